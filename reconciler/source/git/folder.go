package git

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// folder is a Repository that is a working folder: the files as they are saved.
//
// Below its top each thing is opened by its name in an open folder, and never
// through a link: what takes a file's place while it is read cannot lead out.
// (os.Root nearly does that. But it follows links that stay inside, and waits
// for ever at a pipe that took the place of a folder.)
type folder struct {
	at     location
	path   string
	sub    string // folder in it that is read, clean; "." is all
	limits Limits

	mu    sync.Mutex
	known map[string]hashed // by path; of the last snapshot
	trees []snapshot        // the last ones, newest first
}

type snapshot struct {
	commit string
	root   *tree.Dir
}

// stamp is what tells that a file is still the one that was hashed. The time is
// that of the inode's change: nobody can set it back.
type stamp struct {
	size, changed int64
	device, inode uint64
}

// hashed is a file's content as of a stamp.
type hashed struct {
	stamp
	hash string
}

// settled is how old a change must be before the stamp can tell a later one
// from it: clocks of file systems are coarse, and those of servers apart.
const settled = 2 * time.Second

func (d *folder) String() string           { return d.at.String() }
func (d *folder) Close() error             { return nil }
func (d *folder) LastGood() (string, bool) { return "", false }

func (d *folder) Watch(ctx context.Context) (<-chan struct{}, error) {
	return watchFolder(ctx, filepath.Join(d.path, d.sub))
}

// Head hashes the files, those that changed since the last time only.
func (d *folder) Head(ctx context.Context) (string, error) {
	s, err := d.snapshot(ctx)
	return s.commit, err
}

// Tree is a folder that Head has seen. Its files are read when they are asked
// for, and refused when they changed since.
func (d *folder) Tree(ctx context.Context, commit string) (*tree.Dir, error) {
	d.mu.Lock()
	for _, s := range d.trees {
		if s.commit == commit {
			d.mu.Unlock()
			return s.root, nil
		}
	}
	d.mu.Unlock()
	s, err := d.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	if s.commit != commit {
		return nil, changed(d.at.String())
	}
	return s.root, nil
}

func changed(at string) error {
	return fault(FolderChanged, at+" was saved while it was read", "the next look takes what is there then")
}

func (d *folder) snapshot(ctx context.Context) (snapshot, error) {
	ctx, cancel, ended := withTime(ctx, d.limits)
	defer cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	top, err := d.open()
	if err != nil {
		return snapshot{}, err
	}
	defer top.Close()
	r := &reading{folder: d, ctx: ctx, started: time.Now(), hashed: make(map[string]hashed, len(d.known))}
	root, err := r.dir(top, ".", 0)
	if err != nil {
		return snapshot{}, cmp.Or(ended("read "+d.at.String()), err)
	}
	s := snapshot{"dir-" + root.Seal().Hash[:12], root}
	d.known = r.hashed
	if len(d.trees) == 0 || d.trees[0].commit != s.commit {
		d.trees = append([]snapshot{s}, d.trees[:min(len(d.trees), 2)]...)
	}
	return s, nil
}

// open opens the folder that is read.
func (d *folder) open() (*os.File, error) {
	top, err := os.Open(d.path)
	if err != nil {
		return nil, fault(RepositoryUnreachable, "read "+d.at.String()+": "+reason(err), "see whether it was moved, or is not mounted")
	}
	if d.sub == "." {
		return top, nil
	}
	sub, err := openBelow(top, d.sub, unix.O_DIRECTORY)
	if err != nil {
		return nil, fault(PathNotFound, fmt.Sprintf("%s has no folder %q", d.at, d.sub), "choose a folder with --path; links are not followed")
	}
	return sub, nil
}

// openBelow opens what is at a path in a folder, and closes the folder.
func openBelow(dir *os.File, at string, flags int) (*os.File, error) {
	parts := strings.Split(at, "/")
	for i, part := range parts {
		extra := unix.O_DIRECTORY
		if i == len(parts)-1 {
			extra = flags
		}
		f, err := openIn(dir, part, extra)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = f
	}
	return dir, nil
}

// openIn opens something by its name in a folder: no link, and nothing to wait for.
func openIn(dir *os.File, name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|flags, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if err != unix.EINTR {
			return nil, err
		}
	}
}

// reason is an error without the path, which the text around it has.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// reading is the making of one snapshot.
type reading struct {
	*folder
	ctx     context.Context
	started time.Time
	hashed  map[string]hashed
	files   int
	bytes   int64
}

func (r *reading) dir(dir *os.File, at string, depth int) (*tree.Dir, error) {
	if depth > r.limits.Depth {
		return nil, tooLarge(fmt.Sprintf("folders in each other at %.200q", at), r.limits.Depth)
	}
	if err := r.ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, r.fault(at, err)
	}
	d := &tree.Dir{Dirs: map[string]*tree.Dir{}, Files: map[string]*tree.File{}}
	for _, e := range entries {
		if ignored(e.Name()) {
			continue
		}
		below := path.Join(at, e.Name())
		if e.IsDir() {
			err = r.nested(d, dir, e.Name(), below, depth+1)
		} else {
			err = r.file(d, dir, e.Name(), below)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // which was deleted since it was listed
			return nil, r.fault(below, err)
		}
	}
	return d, nil
}

func (r *reading) nested(into *tree.Dir, dir *os.File, name, at string, depth int) error {
	sub, err := openIn(dir, name, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer sub.Close()
	var git unix.Stat_t
	if unix.Fstatat(int(sub.Fd()), ".git", &git, unix.AT_SYMLINK_NOFOLLOW) == nil { // a repository in the repository: git would not take its files either
		into.Files[name] = &tree.File{Kind: tree.Submodule, Hash: strings.Repeat("0", 40)}
		return nil
	}
	d, err := r.dir(sub, at, depth)
	if err == nil {
		into.Dirs[name] = d
	}
	return err
}

func (r *reading) file(into *tree.Dir, dir *os.File, name, at string) error {
	var info unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &info, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if r.files++; r.files > r.limits.Files {
		return tooLarge("files of "+r.at.String(), r.limits.Files)
	}
	f := &tree.File{Kind: tree.Irregular}
	switch info.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(dir.Fd()), name, target)
		if err != nil {
			return err
		}
		f.Kind, f.Hash, f.Size = tree.Symlink, tree.HashBlob(target[:n]), int64(n)
	case unix.S_IFREG:
		if info.Size > r.limits.FileBytes {
			// It is in nobody's way until something refers to it: a folder of
			// work holds what was built there, too.
			stamp := fmt.Sprint(stampOf(&info))
			f.Kind, f.Hash, f.Size = tree.Regular, tree.HashBlob([]byte(stamp)), info.Size
			f.Read = func() ([]byte, error) {
				return nil, tooLarge(fmt.Sprintf("file %.200q", at), mebibytes(r.limits.FileBytes))
			}
			break
		}
		h, err := r.hash(dir, name, at, stampOf(&info))
		if err != nil {
			return err
		}
		f.Kind, f.Hash, f.Size, f.Executable = tree.Regular, h.hash, h.size, info.Mode&0o100 != 0
		f.Read = func() ([]byte, error) { return r.folder.read(at, h.hash) }
	}
	into.Files[name] = f
	return nil
}

// hash is a file's, from the last snapshot if it has the same stamp.
func (r *reading) hash(dir *os.File, name, at string, now stamp) (hashed, error) {
	h, ok := r.known[at]
	if !ok || h.stamp != now {
		f, err := openIn(dir, name, 0)
		if err != nil {
			return h, err
		}
		content, after, err := readFile(f, at, r.limits.FileBytes)
		if err != nil {
			return h, err
		}
		h = hashed{stamp{size: int64(len(content))}, tree.HashBlob(content)}
		if after == now && r.started.Sub(time.Unix(0, now.changed)) > settled {
			h.stamp = now
		}
	}
	r.hashed[at] = h
	if r.bytes += h.size; r.bytes > r.limits.Bytes {
		return h, tooLarge("all files of "+r.at.String()+" together", mebibytes(r.limits.Bytes))
	}
	return h, nil
}

func stampOf(s *unix.Stat_t) stamp { return stamp{s.Size, s.Ctim.Nano(), uint64(s.Dev), s.Ino} }

// read is the content of a file that a snapshot has, or an error where another
// one was saved since.
func (d *folder) read(at, hash string) ([]byte, error) {
	top, err := d.open()
	if err != nil {
		return nil, err
	}
	var content []byte
	f, err := openBelow(top, at, 0)
	if err == nil {
		content, _, err = readFile(f, at, d.limits.FileBytes)
	}
	if err != nil || tree.HashBlob(content) != hash {
		return nil, changed(filepath.Join(d.path, d.sub, at))
	}
	return content, nil
}

// readFile reads a regular file whole, and closes it.
func readFile(f *os.File, at string, limit int64) ([]byte, stamp, error) {
	defer f.Close()
	var info unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &info); err != nil {
		return nil, stamp{}, err
	}
	if info.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, stamp{}, changed(at)
	}
	content := bytes.NewBuffer(make([]byte, 0, min(info.Size, limit)+bytes.MinRead))
	if _, err := content.ReadFrom(io.LimitReader(f, limit+1)); err != nil {
		return nil, stamp{}, err
	}
	if int64(content.Len()) > limit {
		return nil, stamp{}, tooLarge(fmt.Sprintf("file %.200q", at), mebibytes(limit))
	}
	err := unix.Fstat(int(f.Fd()), &info)
	return content.Bytes(), stampOf(&info), err
}

func (r *reading) fault(at string, err error) error {
	at = filepath.Join(r.path, r.sub, at)
	switch {
	case isFault(err) || r.ctx.Err() != nil:
		return err
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR): // something else than was listed
		return changed(at)
	}
	return fault(RepositoryUnreachable, fmt.Sprintf("read %s: %s", at, reason(err)), "see whether the user of this process may read it")
}

// ignored are names that are no part of a site: git's own folder, and what
// editors put beside a file while it is edited.
func ignored(name string) bool {
	return name == ".git" ||
		strings.HasSuffix(name, "~") || strings.HasPrefix(name, ".#") || // backups; Emacs's locks
		strings.HasPrefix(name, "#") && strings.HasSuffix(name, "#") || // Emacs
		strings.HasPrefix(name, ".") && (strings.HasSuffix(name, ".swp") || strings.HasSuffix(name, ".swx") || strings.HasSuffix(name, ".swo")) || // Vim
		name == "4913" || // Vim tries with it whether it may write
		strings.HasPrefix(name, ".goutputstream-") || strings.HasSuffix(name, ".kate-swp") || strings.HasSuffix(name, "___jb_tmp___")
}
