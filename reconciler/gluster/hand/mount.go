package hand

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"golang.org/x/sys/unix"
)

// wish is a volume that is to be mounted.
type wish struct {
	Volume  string
	ID      string
	Servers []string // that know the volume; the first is asked first
	Homes   bool     // each file is one person's, who is on one machine at a time
}

// wishes are the volumes that a machine is to mount: all that there are. The steward
// is on one of the machines, and makes the folders of a volume through its mount, so
// that one is mounted before it can be of use.
func wishes(volumes []volume, machine string) (list []wish) {
	for _, v := range volumes {
		if v.goes() || v.Status.ID == "" || len(v.Spec.Bricks) == 0 {
			continue
		}
		w := wish{Volume: v.Metadata.Name, ID: v.Status.ID, Homes: v.Spec.Access == gluster.Homes}
		for _, b := range v.Spec.Bricks {
			if b.Machine == machine {
				w.Servers = slices.Insert(w.Servers, 0, b.Address) // without the network, too
			} else {
				w.Servers = append(w.Servers, b.Address)
			}
		}
		list = append(list, w)
	}
	return list
}

// former are the volumes of which there is something here, and that are no more.
func former(volumes []volume, here []string) (names []string) {
	for _, name := range here {
		stays := slices.ContainsFunc(volumes, func(v volume) bool { return v.Metadata.Name == name && !v.goes() })
		if !stays {
			names = append(names, name)
		}
	}
	return names
}

// here are the volumes that have a unit, or a mount point. No mount is touched.
func here(h *host.Host) (names []string, err error) {
	files, err := os.ReadDir(h.Path(unitDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("see which volumes have a unit: %w", err)
	}
	for _, f := range files {
		if name, ok := volumeOf(f.Name()); ok {
			names = append(names, name)
		}
	}
	points, err := os.ReadDir(h.Path(gluster.MountDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("see which volumes have a mount point: %w", err)
	}
	for _, p := range points {
		names = append(names, p.Name())
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// act is what is next for a mount point.
type act string

const (
	prove  act = "prove"  // it is mounted: see that it is the right thing
	start  act = "start"  // nothing is mounted
	detach act = "detach" // what is mounted is dead
	wait   act = "wait"   // its bricks do not answer, and its process waits for them
	refuse act = "refuse" // something else is mounted there
)

// next decides what is done about a mount point: m is what is mounted there, and
// asked what stat said of it. A mount whose process has ended and one that has lost
// most of its bricks both say that nothing is connected. The second must stay: it is
// well again when they are back, and desktops use it.
func next(volume string, m *mounted, asked error, served bool) act {
	switch {
	case m == nil:
		return start
	case m.Type != fuseType || !strings.HasSuffix(m.Source, ":/"+volume):
		return refuse
	case errors.Is(asked, syscall.ENOTCONN) || errors.Is(asked, syscall.EIO):
		if served {
			return wait
		}
		return detach
	}
	return prove
}

const fuseType = "fuse.glusterfs"

// keepMounts mounts what is to be mounted, and says of each whether it is ready.
func (h *Hand) keepMounts(ctx context.Context, brick *gluster.MachineBrick) (ready []string) {
	until := time.Now().Add(mountPatience)
	list := wishes(h.site.Volumes, h.Machine)
	for _, w := range list {
		delete(h.leaving, w.Volume)
		h.task(w.Volume).begin(func() outcome { why := h.keep(ctx, w); return outcome{proved: why == "", why: why} })
	}
	for _, w := range list {
		m := gluster.Mount{Volume: w.Volume}
		became, ok := h.task(w.Volume).wait(ctx, until)
		switch {
		case !ok:
			m.Message = "it does not answer"
		case became.proved:
			m.Ready = true
			ready = append(ready, w.Volume)
		default:
			m.Message = cmp.Or(became.why, "it was just taken away")
		}
		brick.Mounts = append(brick.Mounts, m)
	}
	slices.SortFunc(brick.Mounts, func(a, b gluster.Mount) int { return cmp.Compare(a.Volume, b.Volume) })
	return ready
}

// outcome is what came of work for a volume.
type outcome struct {
	proved bool   // it is mounted, and the right one
	gone   bool   // nothing is left of it here
	why    string // neither
}

// task is the one work that is done for a volume at a time.
func (h *Hand) task(volume string) *task[outcome] {
	if h.mounts == nil {
		h.mounts = map[string]*task[outcome]{}
	}
	if h.mounts[volume] == nil {
		h.mounts[volume] = &task[outcome]{}
	}
	return h.mounts[volume]
}

// keep mounts one volume where it is not, and returns why it is not ready. It may hang.
func (h *Hand) keep(ctx context.Context, w wish) (why string) {
	if err := writeUnit(ctx, h.Host, w); err != nil {
		return "its unit cannot be written: " + err.Error()
	}
	point := gluster.MountPath(w.Volume)
	m, do, err := h.look(w.Volume)
	if err != nil {
		return err.Error()
	}
	switch do {
	case refuse:
		return fmt.Sprintf("something else is mounted there: %s, of type %s", m.Source, m.Type)
	case wait:
		return "its bricks do not answer"
	case detach:
		h.Log.WarnContext(ctx, "a mount is dead: it is taken away, and made again", "volume", w.Volume)
		if err := run(ctx, h.Host, stopPatience, "umount", "-l", point); err != nil {
			return "it is dead, and cannot be unmounted: " + err.Error()
		}
		fallthrough
	case start:
		if why := h.start(ctx, w); why != "" {
			return why
		}
		if m, _, err = h.look(w.Volume); err != nil {
			return err.Error()
		}
	}
	if why := h.prove(w, m); why != "" {
		return why
	}
	h.noteServing(w.Volume)
	return ""
}

// look is what is mounted, and what is next.
func (h *Hand) look(volume string) (*mounted, act, error) {
	table, err := mountTable(h.Host)
	if err != nil {
		return nil, "", err
	}
	m := at(table, gluster.MountPath(volume))
	if m == nil {
		return nil, next(volume, nil, nil, false), nil
	}
	_, asked := os.Stat(h.Host.Path(m.Point))
	return m, next(volume, m, asked, h.served(volume)), nil
}

// start mounts a volume.
func (h *Hand) start(ctx context.Context, w wish) (why string) {
	if err := h.bare(ctx, w.Volume); err != nil {
		return err.Error()
	}
	unit := unitOf(w.Volume)
	// Whatever became of it before is no reason not to try again.
	_ = run(ctx, h.Host, stopPatience, "systemctl", "reset-failed", unit)
	err := errors.Join(run(ctx, h.Host, stopPatience, "systemctl", "daemon-reload"), run(ctx, h.Host, startPatience, "systemctl", "start", unit))
	if err != nil {
		h.logOnce(ctx, "a volume cannot be mounted", "volume", w.Volume, "error", err)
		return "it cannot be mounted: journalctl -u '" + unit + "' tells why"
	}
	return ""
}

const (
	startPatience = 40 * time.Second // systemd's own is 30 s
	stopPatience  = time.Minute
)

// bare makes the folder to mount at, into which nobody can write, not even root: what
// is written where a mount is away is on no brick, and vanishes below the next mount.
func (h *Hand) bare(ctx context.Context, volume string) error {
	point := gluster.MountPath(volume)
	if err := os.MkdirAll(h.Host.Path(gluster.MountDir), 0o755); err != nil {
		return fmt.Errorf("make the folder of mount points: %w", err)
	}
	if err := os.Mkdir(h.Host.Path(point), 0); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the mount point: %w", err)
	}
	if err := run(ctx, h.Host, stopPatience, "chattr", "+i", h.Host.Path(point)); err != nil {
		h.logOnce(ctx, "a mount point cannot be made immutable here: nothing but its mode keeps root from writing where the mount is away", "folder", point, "error", err)
	}
	return nil
}

// prove is why what is mounted is not ready. The sentinel is the proof: it is in the
// volume, and in no other.
func (h *Hand) prove(w wish, m *mounted) (why string) {
	if why := proveMount(w.Volume, m, h.Host.Path(gluster.MountPath(w.Volume)), h.stat); why != "" {
		return why
	}
	f, err := os.Open(h.Host.Path(path.Join(gluster.MountPath(w.Volume), gluster.Sentinel)))
	if errors.Is(err, os.ErrNotExist) {
		return "its folders are not made yet"
	}
	if err != nil {
		return "its sentinel cannot be read: " + err.Error()
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 100))
	if err != nil {
		return "its sentinel cannot be read: " + err.Error()
	}
	if string(text) != w.ID+"\n" {
		return fmt.Sprintf("it is another volume: its sentinel says %q, and its UUID is %s", text, w.ID)
	}
	if info, err := os.Lstat(h.Host.Path(gluster.DataPath(w.Volume))); err != nil || !info.IsDir() {
		return "its folders are not made yet"
	}
	return ""
}

// proveMount is why what is at a place is not the volume's mount.
func proveMount(volume string, m *mounted, point string, statfs func(string, *unix.Statfs_t) error) (why string) {
	var fs unix.Statfs_t
	switch err := statfs(point, &fs); {
	case m == nil:
		return "it is not mounted"
	case err != nil:
		return "it cannot be read: " + err.Error()
	case fs.Type != unix.FUSE_SUPER_MAGIC || m.Type != fuseType || !strings.HasSuffix(m.Source, ":/"+volume):
		return fmt.Sprintf("something else is mounted there: %s, of type %s", m.Source, m.Type)
	}
	return ""
}

// noteServing notes which process serves a mount that is well: the youngest. Older ones
// are those of mounts that were taken away while something still used them.
func (h *Hand) noteServing(volume string) {
	if all := clients(h.Host, gluster.MountPath(volume)); len(all) > 0 {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.serving == nil {
			h.serving = map[string]int{}
		}
		h.serving[volume] = all[len(all)-1]
	}
}

// served reports whether the process of a mount lives. Of one that was never seen
// well in this run, any counts.
func (h *Hand) served(volume string) bool {
	all := clients(h.Host, gluster.MountPath(volume))
	h.mu.Lock()
	defer h.mu.Unlock()
	if pid, ok := h.serving[volume]; ok {
		return slices.Contains(all, pid)
	}
	return len(all) > 0
}

// clients are the processes of glusterfs that serve, or served, a mount point, the
// youngest last: the mount point is the last word of their command lines.
func clients(h *host.Host, point string) (pids []int) {
	entries, _ := os.ReadDir(h.Path("/proc"))
	began := map[int]uint64{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, _ := h.Read(path.Join("/proc", e.Name(), "cmdline"))
		words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if path.Base(words[0]) != "glusterfs" || words[len(words)-1] != point {
			continue
		}
		p, _ := h.Process(e.Name()) // one that has just ended is the oldest
		began[pid] = p.Began
		pids = append(pids, pid)
	}
	slices.SortFunc(pids, func(a, b int) int { return cmp.Or(cmp.Compare(began[a], began[b]), cmp.Compare(a, b)) })
	return pids
}

// dropMounts takes away what is here of volumes that are no more.
func (h *Hand) dropMounts(ctx context.Context) error {
	names, err := here(h.Host)
	if err != nil {
		return err
	}
	var errs error
	until := time.Now().Add(mountPatience)
	for _, name := range former(h.site.Volumes, names) {
		if h.leaving == nil {
			h.leaving = map[string]time.Time{}
		}
		if h.leaving[name].IsZero() {
			h.leaving[name] = time.Now()
			h.Log.InfoContext(ctx, "a volume is no more: it is unmounted", "volume", name)
		}
		force := time.Since(h.leaving[name]) > time.Minute
		t := h.task(name)
		t.begin(func() outcome {
			if err := drop(ctx, h.Host, name, force); err != nil {
				return outcome{why: err.Error()}
			}
			return outcome{gone: true}
		})
		became, ok := t.wait(ctx, until)
		switch {
		case !ok:
			errs = errors.Join(errs, fmt.Errorf("unmount volume %s: it takes long", name))
		case became.why != "":
			errs = errors.Join(errs, fmt.Errorf("unmount volume %s: %s", name, became.why))
		case became.gone:
			delete(h.leaving, name)
			delete(h.mounts, name)
		}
	}
	return errs
}

// drop unmounts a volume and removes what the mount needed: never what is in the
// volume, which is gone from here only. With force it is taken away from those who
// use it, who keep it as long as they do.
func drop(ctx context.Context, h *host.Host, volume string, force bool) error {
	unit, point := unitOf(volume), gluster.MountPath(volume)
	mountedStill := func() (bool, error) {
		table, err := mountTable(h)
		return at(table, point) != nil, err
	}
	var stopped error
	is, err := mountedStill()
	if err == nil && is {
		stopped = run(ctx, h, stopPatience, "systemctl", "stop", unit)
		is, err = mountedStill()
	}
	if err == nil && is && force {
		stopped = run(ctx, h, stopPatience, "umount", "-l", point)
		is, err = mountedStill()
	}
	if err != nil {
		return err
	}
	if is {
		return errors.Join(errors.New("somebody uses it still"), stopped)
	}
	if h.Exists(unitFile(volume)) {
		if err := h.Remove(unitFile(volume)); err != nil {
			return err
		}
		if err := run(ctx, h, stopPatience, "systemctl", "daemon-reload"); err != nil {
			return err
		}
	}
	if !h.Exists(point) {
		return nil
	}
	_ = run(ctx, h, stopPatience, "chattr", "-i", h.Path(point)) // where it never was, there is nothing to undo
	err = os.Remove(h.Path(point))                               // only an empty folder
	if errors.Is(err, syscall.ENOTEMPTY) {
		return fmt.Errorf("%s: %w; look through them, and remove the folder", point, errWritten)
	}
	if err != nil {
		return fmt.Errorf("remove the mount point: %w", err)
	}
	return nil
}

// errWritten is a mount point in which somebody has written where it was not
// immutable, and the mount away. All else is done.
var errWritten = errors.New("it is unmounted, and in its mount point are files that are on no brick")

// Leave is a step of noded reset: it unmounts the volumes of the site, once the agent,
// which would mount them again, has stopped. glusterd is left alone: a brick keeps
// serving its copies until a person takes the machine out.
func Leave(h *host.Host) host.Step {
	return host.Step{
		Name: "volumes",
		Look: func(context.Context) (todo []string, err error) {
			names, err := here(h)
			for _, name := range names {
				todo = append(todo, "unmount volume "+name)
			}
			if h.Exists(heardFile) {
				todo = append(todo, "forget which volumes the site has")
			}
			return todo, err
		},
		Do: func(ctx context.Context) error {
			names, errs := here(h)
			for _, name := range names {
				err := drop(ctx, h, name, true)
				if errors.Is(err, errWritten) {
					h.Log.WarnContext(ctx, "a mount point stays", "volume", name, "error", err)
					err = nil // a person's, and no reason to stay in the site
				}
				errs = errors.Join(errs, err)
			}
			return errors.Join(errs, h.Remove(heardFile))
		},
	}
}
