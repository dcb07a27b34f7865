package git

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// node is a folder of a commit of which every object is there.
type node struct {
	hash plumbing.Hash
	dir  *tree.Dir
	kids map[string]*node

	// What is below it, counted as often as it appears: one folder may stand in
	// many places, which costs whoever made it nothing.
	files  int
	bytes  int64
	height int
}

// builder reads the folders of one commit. That is the proof that the commit is
// whole, and that it is within the limits.
type builder struct {
	ctx     context.Context
	objects storer.EncodedObjectStorer
	limits  Limits
	read    func(plumbing.Hash) func() ([]byte, error) // of a file's content

	built map[plumbing.Hash]*node // folders read
	sizes map[plumbing.Hash]int64 // files looked up
}

func newBuilder(ctx context.Context, objects storer.EncodedObjectStorer, l Limits, read func(plumbing.Hash) func() ([]byte, error)) *builder {
	return &builder{ctx, objects, l, read, map[plumbing.Hash]*node{}, map[plumbing.Hash]int64{}}
}

// tree reads a folder. What is equal in old, the folder at the same place of an
// earlier commit, is taken from there.
func (b *builder) tree(hash plumbing.Hash, old *node, at string, depth int) (*node, error) {
	n := b.built[hash]
	if old != nil && old.hash == hash {
		n = old
	}
	if n != nil {
		return n, b.withinDepth(depth+n.height, at)
	}
	if err := errors.Join(b.ctx.Err(), b.withinDepth(depth, at)); err != nil {
		return nil, err
	}
	t, err := object.GetTree(b.objects, hash)
	if err != nil {
		return nil, fmt.Errorf("folder %q: %w", at, err)
	}
	n = &node{hash: hash, kids: map[string]*node{}, dir: &tree.Dir{Hash: hash.String(), Dirs: map[string]*tree.Dir{}, Files: map[string]*tree.File{}}}
	if old == nil {
		old = &node{dir: &tree.Dir{}}
	}
	for _, e := range t.Entries {
		below := path.Join(at, e.Name)
		if _, twice := n.kids[e.Name]; twice || n.dir.Files[e.Name] != nil || !goodName(e.Name) {
			return nil, fault(TreeInvalid, fmt.Sprintf("%.200q: a name that cannot be in a folder, or is there twice", at+"/"+e.Name), "take it out of the repository")
		}
		if e.Mode == filemode.Dir {
			kid, err := b.tree(e.Hash, old.kids[e.Name], below, depth+1)
			if err != nil {
				return nil, err
			}
			n.kids[e.Name], n.dir.Dirs[e.Name] = kid, kid.dir
			n.files, n.bytes, n.height = n.files+kid.files, n.bytes+kid.bytes, max(n.height, kid.height+1)
		} else {
			f, err := b.file(e, old.dir.Files[e.Name], below)
			if err != nil {
				return nil, err
			}
			n.dir.Files[e.Name] = f
			n.files, n.bytes = n.files+1, n.bytes+f.Size
		}
		if n.files > b.limits.Files {
			return nil, tooLarge("files of the commit", b.limits.Files)
		}
		if n.bytes > b.limits.Bytes {
			return nil, tooLarge("all files of the commit together", mebibytes(b.limits.Bytes))
		}
	}
	b.built[hash] = n
	return n, nil
}

func (b *builder) file(e object.TreeEntry, old *tree.File, at string) (*tree.File, error) {
	f := &tree.File{Hash: e.Hash.String(), Executable: e.Mode == filemode.Executable}
	switch e.Mode {
	case filemode.Submodule:
		f.Kind = tree.Submodule
		return f, nil
	case filemode.Symlink:
		f.Kind = tree.Symlink
	}
	if old != nil && old.Hash == f.Hash && old.Kind == f.Kind && old.Executable == f.Executable {
		return old, nil
	}
	size, known := b.sizes[e.Hash]
	if !known {
		var err error
		if size, err = b.size(e.Hash); err != nil {
			return nil, fmt.Errorf("file %q: %w", at, err)
		}
	}
	if size > b.limits.FileBytes {
		return nil, tooLarge(fmt.Sprintf("file %.200q", at), mebibytes(b.limits.FileBytes))
	}
	f.Size, b.sizes[e.Hash] = size, size
	if f.Kind == tree.Regular && b.read != nil {
		f.Read = b.read(e.Hash)
	}
	return f, nil
}

// size is the length of a file, which also shows that it is there.
func (b *builder) size(hash plumbing.Hash) (int64, error) {
	size, err := b.objects.EncodedObjectSize(hash)
	if !errors.Is(err, plumbing.ErrObjectNotFound) {
		return size, err
	}
	o, err := b.objects.EncodedObject(plumbing.BlobObject, hash) // looks into alternates too
	if err != nil {
		return 0, err
	}
	return o.Size(), nil
}

func (b *builder) withinDepth(depth int, at string) error {
	if depth > b.limits.Depth {
		return tooLarge(fmt.Sprintf("folders in each other at %.200q", at), b.limits.Depth)
	}
	return nil
}

// goodName keeps out what git itself would not check out.
func goodName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.Contains(name, "/") && !strings.EqualFold(name, ".git")
}
