package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	gogit "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/filesystem/dotgit"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// local is the origin that is a repository on this computer. It is opened anew
// each time, and only read: whoever repacks it meanwhile takes files away.
type local struct {
	at     location
	limits Limits
}

// isGitDir reports whether a folder is a repository itself, as bare ones are.
func isGitDir(at string) bool {
	_, err := os.Stat(filepath.Join(at, "HEAD"))
	return err == nil && isFolder(filepath.Join(at, "objects")) && isFolder(filepath.Join(at, "refs"))
}

func isFolder(at string) bool {
	info, err := os.Stat(at)
	return err == nil && info.IsDir()
}

// gitDirs are the folders that hold HEAD, and branches and objects. They differ
// in linked work trees only.
func gitDirs(at string) (own, common string, err error) {
	own = at
	if !isGitDir(at) {
		own = filepath.Join(at, ".git")
		if text, err := os.ReadFile(own); err == nil { // a linked work tree, or a submodule
			own = beside(at, strings.TrimPrefix(strings.TrimSpace(string(text)), "gitdir: "))
		}
	}
	common = own
	if text, err := os.ReadFile(filepath.Join(own, "commondir")); err == nil {
		common = beside(own, strings.TrimSpace(string(text)))
	}
	if _, err := os.Stat(filepath.Join(own, "HEAD")); err != nil || !isFolder(filepath.Join(common, "objects")) {
		return "", "", fs.ErrNotExist
	}
	return own, common, nil
}

func beside(dir, at string) string {
	if filepath.IsAbs(at) {
		return at
	}
	return filepath.Join(dir, at)
}

// enclosing finds the work tree that a folder is in, and the folder's path in it.
func enclosing(at, sub string) (top, below string) {
	for dir := at; ; dir = filepath.Dir(dir) {
		if _, _, err := gitDirs(dir); err == nil {
			relative, _ := filepath.Rel(dir, at)
			return dir, filepath.ToSlash(filepath.Join(relative, sub))
		}
		if dir == filepath.Dir(dir) {
			return at, sub
		}
	}
}

func (l *local) open() (*gogit.Repository, *filesystem.Storage, error) {
	own, common, err := gitDirs(l.at.path)
	if err != nil {
		return nil, nil, err
	}
	objects := filesystem.NewStorageWithOptions(dotgit.NewRepositoryFilesystem(osfs.New(own), osfs.New(common)), cache.NewObjectLRU(32*cache.MiByte),
		filesystem.Options{KeepDescriptors: true, LargeObjectThreshold: 1 << 20, AlternatesFS: osfs.New("/")})
	repository, err := gogit.Open(objects, nil)
	return repository, objects, err
}

// attempts at a repository that changes while it is read.
const attempts = 5

// with opens the repository and does something with it, again if what was
// there a moment ago is not.
func (l *local) with(ctx context.Context, deed string, do func(*gogit.Repository, *filesystem.Storage) error) (err error) {
	for range attempts {
		var repository *gogit.Repository
		var objects *filesystem.Storage
		if repository, objects, err = l.open(); err == nil {
			err = do(repository, objects)
			objects.Close()
		}
		gone := errors.Is(err, plumbing.ErrObjectNotFound) || errors.Is(err, dotgit.ErrEmptyRefFile) || errors.Is(err, dotgit.ErrPackfileNotFound) || errors.Is(err, fs.ErrNotExist)
		if !gone || ctx.Err() != nil || !isFolder(l.at.path) {
			break
		}
	}
	if err == nil || isFault(err) || isCacheError(err) {
		return err
	}
	cause, hint := clean(err.Error(), nil), "it is tried again; if it stays so, run git fsck there"
	switch _, statErr := os.Stat(l.at.path); {
	case errors.Is(statErr, fs.ErrNotExist):
		cause, hint = "there is nothing", "see whether it was moved, or is not mounted"
	case errors.Is(statErr, fs.ErrPermission):
		cause, hint = "permission denied", "see whether the user of this process may read it"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, gogit.ErrRepositoryNotExists):
		cause, hint = "it is no git repository", "make one with git init, or give its folder without file:// to take the files as they are"
	}
	return fault(RepositoryUnreachable, fmt.Sprintf("%s %s: %s", deed, l.at, cause), hint)
}

// refs has no more than the branch that is looked for, where there is one: to
// list all would cost a look into each, and fail at a lock file that someone
// left. Tags are as they are, not peeled: resolve reads the one that is wanted.
func (l *local) refs(ctx context.Context, branch string) (found refs, err error) {
	err = l.with(ctx, "look at", func(repository *gogit.Repository, _ *filesystem.Storage) error {
		found = refs{heads: map[string]plumbing.Hash{}, tags: map[string]plumbing.Hash{}}
		if ref, err := repository.Reference(plumbing.NewBranchReferenceName(branch), true); err == nil {
			found.heads[branch] = ref.Hash()
			return nil
		}
		all, err := repository.References()
		if err != nil {
			return err
		}
		return all.ForEach(func(ref *plumbing.Reference) error {
			if len(found.heads)+len(found.tags) > l.limits.Refs {
				return tooLarge("look at "+l.at.String()+": branches and tags", l.limits.Refs)
			}
			if ref.Type() == plumbing.HashReference {
				found.add(ref.Name(), ref.Hash())
			}
			return nil
		})
	})
	return found, err
}

// resolve reads tags, and revisions that only a repository at hand can tell.
func (l *local) resolve(ctx context.Context, revision string) (commit string, err error) {
	missing := func() *plan.Fault {
		return fault(RevisionNotFound, fmt.Sprintf("look at %s: there is no commit %q", l.at, revision),
			"compare with git log; a shallow clone has no older ones (git fetch --unshallow brings them)")
	}
	err = l.with(ctx, "look at", func(repository *gogit.Repository, _ *filesystem.Storage) error {
		var hash *plumbing.Hash
		var err error
		for _, prefix := range []string{"refs/heads/", "refs/tags/", ""} {
			if hash, err = repository.ResolveRevision(plumbing.Revision(prefix + revision)); err == nil {
				break
			}
		}
		if errors.Is(err, plumbing.ErrReferenceNotFound) || errors.Is(err, plumbing.ErrObjectNotFound) || errors.Is(err, io.EOF) {
			return missing()
		}
		if err == nil {
			commit = hash.String()
		}
		return err
	})
	return commit, err
}

// pack reads the folders of a commit but for those that have has too, and packs
// what it finds.
func (l *local) pack(ctx context.Context, commit plumbing.Hash, have *generation, w io.Writer) error {
	return l.with(ctx, "fetch", func(_ *gogit.Repository, objects *filesystem.Storage) error {
		b := newBuilder(ctx, objects, l.limits, nil)
		if _, err := commitTree(b, commit, have.have()); err != nil {
			return err
		}
		missing := []plumbing.Hash{commit}
		for hash := range b.built {
			missing = append(missing, hash)
		}
		for hash := range b.sizes {
			missing = append(missing, hash)
		}
		c := &counted{Writer: w}
		_, err := packfile.NewEncoder(c, objects, false).Encode(missing, 0)
		if err != nil && !isFault(err) && !isCacheError(err) && c.any {
			return fmt.Errorf("pack it: %v", err) // not to be tried again
		}
		return err
	})
}

// counted tells whether anything was written.
type counted struct {
	io.Writer
	any bool
}

func (c *counted) Write(p []byte) (int, error) {
	c.any = true
	return c.Writer.Write(p)
}
