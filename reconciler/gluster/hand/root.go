package hand

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"golang.org/x/sys/unix"
)

// Roots makes what volumes have in their roots: the sentinel, and the folder that
// Pods see with the homes in it. The steward has one, on its own machine, where the
// volumes are mounted. Host is required.
type Roots struct {
	Host *host.Host

	mu   sync.Mutex
	busy map[string]bool            // by volume: a Setup that perhaps hangs
	seen map[string]map[string]bool // by volume: homes that belong to whom they should, as NAME/UID

	statfs func(path string, into *unix.Statfs_t) error // nil is the kernel's; tests have no FUSE
}

// Names in a volume; the contract has them from the outside.
const (
	newHome = ".new-" // before a name: a home that is not whole yet
	skel    = ".skel" // in the data of homes: what a new one begins with
	hostSk  = "/etc/skel"
)

// Setup makes a mounted volume be as it is declared, and says how many of its homes
// there are. It is of the steward alone, writes nothing where the volume is not
// mounted, and changes nothing in a home that is there. An error does not keep it
// from doing the rest. A mount that hangs does not hang the caller beyond ctx; until
// it answers, the volume's next Setup is refused.
func (r *Roots) Setup(ctx context.Context, volume, id string, placed gluster.Placed) (homes int, err error) {
	if !r.enter(volume) {
		return 0, fmt.Errorf("make the folders of volume %s: its mount does not answer since they were last looked at", volume)
	}
	type result struct {
		homes int
		err   error
	}
	done := make(chan result, 1)
	go func() {
		homes, err := r.setup(ctx, volume, id, placed)
		r.exit(volume)
		done <- result{homes, err}
	}()
	select {
	case got := <-done:
		homes, err = got.homes, got.err
	case <-ctx.Done():
		err = fmt.Errorf("its mount does not answer: %w", context.Cause(ctx))
	}
	if err != nil {
		err = fmt.Errorf("make the folders of volume %s: %w", volume, err)
	}
	return homes, err
}

func (r *Roots) enter(volume string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[volume] {
		return false
	}
	if r.busy == nil {
		r.busy = map[string]bool{}
	}
	r.busy[volume] = true
	return true
}

func (r *Roots) exit(volume string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, volume)
}

func (r *Roots) setup(ctx context.Context, volume, id string, placed gluster.Placed) (homes int, err error) {
	if id == "" {
		return 0, errors.New("it has no UUID yet")
	}
	table, err := mountTable(r.Host)
	if err != nil {
		return 0, err
	}
	statfs := r.statfs
	if statfs == nil {
		statfs = unix.Statfs
	}
	point := r.Host.Path(gluster.MountPath(volume))
	// The mount may go between this and what follows: then the folder below is
	// immutable, and nothing is written.
	if why := proveMount(volume, at(table, gluster.MountPath(volume)), point, statfs); why != "" {
		return 0, errors.New(why)
	}
	root, err := os.OpenRoot(point)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	if err := sentinel(root, id); err != nil {
		return 0, err
	}
	data := path.Base(gluster.DataPath(volume))
	if err := folder(root, data, topOf(placed)); err != nil {
		return 0, err
	}
	if cmp.Or(placed.Access, gluster.Private) != gluster.Homes {
		return 0, nil
	}
	inside, err := root.OpenRoot(data)
	if err != nil {
		return 0, err
	}
	defer inside.Close()
	return r.homes(ctx, inside, volume, placed.Homes)
}

// sentinel is made once, and is right or is a reason to keep away.
func sentinel(root *os.Root, id string) error {
	want := id + "\n"
	f, err := root.OpenFile(gluster.Sentinel, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err == nil {
		_, err = f.WriteString(want)
		return errors.Join(err, f.Sync(), f.Close())
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write the sentinel: %w", err)
	}
	if f, err = root.Open(gluster.Sentinel); err != nil {
		return fmt.Errorf("read the sentinel: %w", err)
	}
	defer f.Close()
	have, err := io.ReadAll(io.LimitReader(f, 100))
	switch {
	case err != nil:
		return fmt.Errorf("read the sentinel: %w", err)
	case string(have) == want:
		return nil
	case strings.HasPrefix(want, string(have)):
		// We were cut off while we wrote it: nobody else writes a beginning of that.
		return rewrite(root, want)
	}
	return fmt.Errorf("the volume's root has the sentinel of another volume: it says %q, and the UUID is %s; what is in it belongs elsewhere, and is left alone", have, id)
}

func rewrite(root *os.Root, want string) error {
	f, err := root.OpenFile(gluster.Sentinel, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("complete the sentinel: %w", err)
	}
	_, err = f.WriteString(want)
	return errors.Join(err, f.Sync(), f.Close())
}

// top is whose the folder is that Pods see, and what they may do in it.
type top struct {
	gid  int
	mode fs.FileMode
}

// topOf is by what the volume is for. What is written in a folder with setgid belongs
// to its group. A group of the site keeps its tree to itself; Debian's users, who are
// all, let others read.
func topOf(p gluster.Placed) top {
	switch p.Access {
	case gluster.Homes:
		return top{0, 0o755}
	case gluster.Shared:
		if gid := cmp.Or(p.GID, gluster.SharedGID); gid != gluster.SharedGID {
			return top{int(gid), fs.ModeSetgid | 0o770}
		}
		return top{gluster.SharedGID, fs.ModeSetgid | 0o775}
	}
	return top{gluster.SharedGID, fs.ModeSetgid | 0o770} // services: their Pods are in that group
}

// folder makes a folder, or puts its owner and mode right; what is in it stays.
func folder(root *os.Root, name string, want top) error {
	err := root.Mkdir(name, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the folder %s: %w", name, err)
	}
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no folder", name)
	}
	if uid, gid := owner(info); uid != 0 || gid != want.gid {
		if err := root.Lchown(name, 0, want.gid); err != nil {
			return err
		}
	}
	const bits = fs.ModePerm | fs.ModeSetgid | fs.ModeSetuid | fs.ModeSticky
	if info, err = root.Lstat(name); err == nil && info.Mode()&bits != want.mode {
		err = root.Chmod(name, want.mode)
	}
	return err
}

func owner(info fs.FileInfo) (uid, gid int) {
	s := info.Sys().(*syscall.Stat_t)
	return int(s.Uid), int(s.Gid)
}

// homes makes those that are missing. Thousands that are there cost one listing, and
// one look at each in the life of this process.
func (r *Roots) homes(ctx context.Context, data *os.Root, volume string, wanted []gluster.Home) (there int, err error) {
	have, err := names(data)
	if err != nil {
		return 0, fmt.Errorf("list the homes: %w", err)
	}
	seen := r.seenOf(volume)
	source, err := r.skeleton(data)
	if err != nil {
		return 0, err
	}
	if source != nil {
		defer source.Close()
	}
	var troubles trouble
	for _, home := range wanted {
		if ctx.Err() != nil {
			return there, errors.Join(troubles.err(), context.Cause(ctx))
		}
		key := fmt.Sprint(home.Name, "/", home.UID)
		switch {
		case !proper(home.Name):
			troubles.add(fmt.Errorf("%q can be no name of a home", home.Name))
		case !have[home.Name]:
			if err := build(data, source, home); err != nil {
				troubles.add(fmt.Errorf("make home %s: %w", home.Name, err))
				continue
			}
			seen[key] = true
			there++
		case seen[key]:
			there++
		default:
			there++
			if err := check(data, home); err != nil {
				troubles.add(err)
				continue
			}
			seen[key] = true
		}
	}
	return there, troubles.err()
}

// trouble is at most a few errors, and how many there are.
type trouble struct {
	first []error
	all   int
}

func (t *trouble) add(err error) {
	if t.all++; len(t.first) < 5 {
		t.first = append(t.first, err)
	}
}

func (t *trouble) err() error {
	if more := t.all - len(t.first); more > 0 {
		return errors.Join(append(t.first, fmt.Errorf("and %d more homes", more))...)
	}
	return errors.Join(t.first...)
}

func (r *Roots) seenOf(volume string) map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[string]map[string]bool{}
	}
	if r.seen[volume] == nil {
		r.seen[volume] = map[string]bool{}
	}
	return r.seen[volume] // of one Setup at a time
}

// proper is asked once more before a name becomes a path.
func proper(name string) bool {
	return name != "" && !strings.HasPrefix(name, ".") && !strings.ContainsAny(name, "/\x00")
}

func names(data *os.Root) (map[string]bool, error) {
	dir, err := data.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	list, err := dir.Readdirnames(-1)
	set := make(map[string]bool, len(list))
	for _, name := range list {
		set[name] = true
	}
	return set, err
}

// check sees whether a home belongs to its user. It is never given to another: what
// is in it may be of somebody who had the name before.
func check(data *os.Root, home gluster.Home) error {
	info, err := data.Lstat(home.Name)
	if err != nil {
		return fmt.Errorf("look at home %s: %w", home.Name, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("home %s is no folder; it is left as it is", home.Name)
	}
	if uid, _ := owner(info); int64(uid) != home.UID {
		return fmt.Errorf("home %s belongs to uid %d, and the roster says %d; it is left as it is", home.Name, uid, home.UID)
	}
	return nil
}

// skeleton is what a new home begins with: the volume's own, else the machine's, nil
// for nothing.
func (r *Roots) skeleton(data *os.Root) (*os.Root, error) {
	if info, err := data.Lstat(skel); err == nil && info.IsDir() {
		return data.OpenRoot(skel)
	}
	own, err := os.OpenRoot(r.Host.Path(hostSk))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return own, err
}

// build makes a home under another name, so that nobody sees half of one.
func build(data, skeleton *os.Root, home gluster.Home) error {
	name := newHome + home.Name
	if err := data.RemoveAll(name); err != nil { // of a try that was cut off
		return err
	}
	if err := data.Mkdir(name, 0o700); err != nil {
		return err
	}
	if skeleton != nil {
		to, err := data.OpenRoot(name)
		if err != nil {
			return err
		}
		err = errors.Join(copyAll(skeleton, to, home), to.Close())
		if err != nil {
			return fmt.Errorf("copy the skeleton: %w", err)
		}
	}
	// Root's alone until now: the user could not get in, and change what is copied.
	if err := errors.Join(data.Chmod(name, 0o700), data.Lchown(name, int(home.UID), int(home.GID))); err != nil {
		return err
	}
	return data.Rename(name, home.Name)
}

// copyAll copies files, folders and symbolic links, and none of what else there may
// be. Links are copied, and never followed.
func copyAll(from, to *os.Root, home gluster.Home) error {
	return fs.WalkDir(from.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := from.Lstat(name)
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() // without setuid and its like
		switch {
		case info.IsDir():
			err = to.Mkdir(name, 0o700)
		case info.Mode().IsRegular():
			err = copyFile(from, to, name)
		case info.Mode()&fs.ModeSymlink != 0:
			target, e := from.Readlink(name)
			if e != nil {
				return e
			}
			return errors.Join(to.Symlink(target, name), to.Lchown(name, int(home.UID), int(home.GID)))
		default:
			return nil
		}
		return errors.Join(err, to.Lchown(name, int(home.UID), int(home.GID)), to.Chmod(name, mode))
	})
}

func copyFile(from, to *os.Root, name string) error {
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
