package git

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-billy/v5/util"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// store keeps what was fetched:
//
//	lock      held while the store is open
//	good      "COMMIT GENERATION": the last good commit, and where it is
//	g1, g2    generations: bare storage, of which the newest grows
//
// A commit is good once it is named in good. A process that is killed before
// that leaves a generation that the next one removes.
type store struct {
	dir    string // "" in memory
	limits Limits
	lock   *os.File

	mu     sync.Mutex
	now    *generation // nil before the first fetch
	before *generation // kept for trees that were handed out
	serial int
	good   plumbing.Hash // zero where there is none
}

// errInUse is another process with the same store.
var errInUse = errors.New("in use")

// cacheError is an error of our own storage, not of the repository.
type cacheError struct{ error }

func isCacheError(err error) bool {
	var ours cacheError
	return errors.As(err, &ours)
}

// openStore opens a folder, or memory where dir is empty, with the last good
// commit that is whole.
func openStore(dir string, l Limits) (*store, error) {
	s := &store{dir: dir, limits: l}
	if dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, errInUse
	}
	s.lock = lock
	s.restore()
	return s, nil
}

// restore takes up the last good commit. What is damaged, or was never finished,
// is removed: it can be fetched again, and must not be trusted.
func (s *store) restore() {
	record, _ := os.ReadFile(filepath.Join(s.dir, "good"))
	commit, name, _ := strings.Cut(strings.TrimSpace(string(record)), " ")
	if hash, ok := fullHash(commit); ok {
		g := openGeneration(s.dir, filepath.Base(name), s.limits)
		if _, err := g.root(context.Background(), hash); err == nil {
			g.dropUnfinished()
			s.now, s.good = g, hash
			s.serial, _ = strconv.Atoi(strings.TrimPrefix(g.name, "g"))
		} else {
			g.close()
		}
	}
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		if used := s.now != nil && e.Name() == s.now.name; !used && e.Name() != "lock" && (e.Name() != "good" || e.IsDir()) {
			os.RemoveAll(filepath.Join(s.dir, e.Name()))
		}
	}
}

// tree is the root folder of a commit that was fetched, which makes it the last
// good one again.
func (s *store) tree(ctx context.Context, commit plumbing.Hash) (*tree.Dir, error) {
	now := s.current()
	if now == nil || now.broken.Load() {
		return nil, plumbing.ErrObjectNotFound
	}
	root, err := now.root(ctx, commit)
	if err == nil {
		err = s.keep(now, commit)
	}
	return root, err
}

func (s *store) current() *generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// aside is a new generation beside the one in use.
func (s *store) aside() (*generation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	name := fmt.Sprintf("g%d", s.serial)
	if s.dir != "" {
		if err := os.MkdirAll(filepath.Join(s.dir, name, "objects", "pack"), 0o700); err != nil {
			return nil, err
		}
	}
	return openGeneration(s.dir, name, s.limits), nil
}

// keep makes a commit the last good one, and its generation the one in use.
func (s *store) keep(g *generation, commit plumbing.Hash) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == g && s.good == commit {
		return nil
	}
	if s.dir != "" {
		if err := writeFile(filepath.Join(s.dir, "good"), commit.String()+" "+g.name+"\n"); err != nil {
			return cacheError{err}
		}
	}
	if s.now != g {
		if s.before != nil {
			s.before.remove()
		}
		s.before, s.now = s.now, g
	}
	s.good = commit
	return nil
}

func (s *store) lastGood() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.good.String(), !s.good.IsZero()
}

func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range []*generation{s.now, s.before} {
		if g != nil {
			g.close()
		}
	}
	if s.lock != nil {
		syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN) // closing alone does not, while some fork of ours has not begun
		s.lock.Close()
	}
}

// generation is bare storage for commits of which the objects came in packs.
type generation struct {
	name   string
	dir    string // "" in memory
	fs     billy.Filesystem
	limits Limits
	packs  atomic.Int32 // that came in
	broken atomic.Bool  // something in it was not what it should be

	mu      sync.Mutex // go-git's storage is for one at a time
	objects *filesystem.Storage
	commit  plumbing.Hash // read most recently
	top     *node         // of it
}

func openGeneration(dir, name string, l Limits) *generation {
	g := &generation{name: name, limits: l, fs: memfs.New()}
	if dir != "" {
		g.dir = filepath.Join(dir, name)
		g.fs = osfs.New(g.dir)
	}
	g.objects = filesystem.NewStorageWithOptions(g.fs, cache.NewObjectLRU(8*cache.MiByte), filesystem.Options{KeepDescriptors: true})
	packs, _ := g.objects.ObjectPacks()
	g.packs.Store(int32(len(packs)))
	return g
}

// head is the commit that the generation holds whole; nil generations have none.
func (g *generation) head() (commit plumbing.Hash) {
	if g != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		commit = g.commit
	}
	return commit
}

// have is the root folder of head.
func (g *generation) have() *node {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.top
}

// add takes in a pack that write writes, once it is whole and within the limits.
func (g *generation) add(ctx context.Context, write func(io.Writer) error) error {
	spool, err := util.TempFile(g.fs, "objects", incoming)
	if err != nil {
		return cacheError{err}
	}
	defer g.fs.Remove(spool.Name())
	defer spool.Close()
	buffered := bufio.NewWriterSize(&capped{Writer: spool, limit: g.limits.Bytes}, 1<<16)
	if err := write(buffered); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return cacheError{err}
	}
	if err := checkPack(ctx, spool, g.limits); err != nil {
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return cacheError{err}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := packfile.UpdateObjectStorage(g.objects, spool); err != nil {
		g.dropUnfinished()
		return err
	}
	g.packs.Add(1)
	if err := g.sync(); err != nil {
		return cacheError{err}
	}
	return nil
}

// incoming begins the names of packs that are not yet looked into.
const incoming = "tmp_incoming_"

// dropUnfinished removes packs that could not be taken in.
func (g *generation) dropUnfinished() {
	for _, dir := range []string{"objects", "objects/pack"} {
		entries, _ := g.fs.ReadDir(dir)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "tmp_") { // as go-git's do too
				g.fs.Remove(g.fs.Join(dir, e.Name()))
			}
		}
	}
}

// sync has the disk keep what is new in the generation through a power cut: the
// good file must not name what is not there.
func (g *generation) sync() (err error) {
	if g.dir == "" {
		return nil
	}
	packs := filepath.Join(g.dir, "objects", "pack")
	files, _ := filepath.Glob(filepath.Join(packs, "*"))
	for _, at := range append(files, packs, filepath.Dir(packs), g.dir, filepath.Dir(g.dir)) {
		err = errors.Join(err, syncFile(at))
	}
	return err
}

// root is the root folder of a commit, if all of it is there.
func (g *generation) root(ctx context.Context, commit plumbing.Hash) (*tree.Dir, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.commit == commit && g.top != nil {
		return g.top.dir, nil
	}
	top, err := commitTree(newBuilder(ctx, g.objects, g.limits, g.reader), commit, g.top)
	if err != nil {
		return nil, err
	}
	g.commit, g.top = commit, top
	return top.dir, nil
}

// commitTree reads the folders of a commit.
func commitTree(b *builder, commit plumbing.Hash, old *node) (*node, error) {
	c, err := object.GetCommit(b.objects, commit)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", commit, err)
	}
	return b.tree(c.TreeHash, old, "", 0)
}

// reader loads a file when it is asked for. A content that is not what its hash
// says is never handed out.
func (g *generation) reader(hash plumbing.Hash) func() ([]byte, error) {
	return func() ([]byte, error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		content, err := readBlob(g.objects, hash)
		if err == nil && tree.HashBlob(content) != hash.String() {
			err = errors.New("its content is damaged")
		}
		if err != nil {
			g.broken.Store(true) // the next look fetches it anew
			return nil, fault(CacheFailed, fmt.Sprintf("read %s from the cache: %v", hash, err), "it is fetched again at the next look")
		}
		return content, nil
	}
}

func readBlob(objects *filesystem.Storage, hash plumbing.Hash) ([]byte, error) {
	o, err := objects.EncodedObject(plumbing.BlobObject, hash)
	if err != nil {
		return nil, err
	}
	r, err := o.Reader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var content bytes.Buffer
	content.Grow(int(o.Size()) + bytes.MinRead)
	_, err = content.ReadFrom(r)
	return content.Bytes(), err
}

func (g *generation) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.objects.Close()
}

func (g *generation) remove() {
	g.close()
	if g.dir != "" {
		os.RemoveAll(g.dir)
	}
}

// capped is a writer that takes no more than so much.
type capped struct {
	io.Writer
	limit, written int64
}

func (c *capped) Write(p []byte) (int, error) {
	if c.written += int64(len(p)); c.written > c.limit {
		return 0, tooLarge("the pack", mebibytes(c.limit))
	}
	n, err := c.Writer.Write(p)
	if err != nil {
		err = cacheError{err}
	}
	return n, err
}

// writeFile replaces a file so that it is there whole or as it was, whatever
// happens in between.
func writeFile(at, content string) error {
	f, err := os.OpenFile(at+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(at+".new", at); err != nil {
		return err
	}
	return syncFile(filepath.Dir(at))
}

func syncFile(at string) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
