package hand

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"golang.org/x/sys/unix"
)

const (
	glusterdUnit = "glusterd.service"
	glusterdDir  = "/var/lib/glusterd"
	infoFile     = glusterdDir + "/glusterd.info"
	pidFile      = "/run/glusterd.pid"           // as its unit in Debian has it
	volumeID     = "trusted.glusterfs.volume-id" // on the folder of a brick: its volume's UUID
)

// disk is what a look at the brick's file system found.
type disk struct {
	brick gluster.MachineBrick
	err   error
}

// lookBrick looks at the brick, and sees that glusterd works where there is one.
// Only by a fresh word of the site is anything of glusterd's, or on the brick, changed.
func (h *Hand) lookBrick(ctx context.Context, fresh bool) (gluster.MachineBrick, error) {
	h.disk.begin(func() disk { b, err := h.fileSystem(); return disk{b, err} })
	found, ok := h.disk.wait(ctx, time.Now().Add(diskPatience))
	if !ok {
		found.brick.Unfit = "it does not answer"
		return found.brick, errors.New("the brick at " + gluster.BrickDir + " does not answer: see journalctl -k for its disk")
	}
	brick, site := found.brick, h.site
	errs := make(chan error, 1) // of the glusterd of this round
	h.daemon.begin(func() string {
		uuid, err := h.glusterd(ctx, brick, site, fresh)
		errs <- err
		return uuid
	})
	uuid, ok := h.daemon.wait(ctx, time.Now().Add(daemonPatience))
	if !ok {
		return brick, errors.Join(found.err, errors.New("glusterd does not answer: see systemctl status glusterd"))
	}
	brick.Glusterd = uuid
	select {
	case err := <-errs:
		return brick, errors.Join(found.err, err)
	default: // it was begun by an earlier round
		return brick, found.err
	}
}

// fileSystem is the brick without its glusterd.
func (h *Hand) fileSystem() (b gluster.MachineBrick, err error) {
	table, err := mountTable(h.Host)
	if err != nil {
		b.Unfit = err.Error()
		return b, err
	}
	m := at(table, gluster.BrickDir)
	if m == nil {
		b.Unfit = "nothing is mounted at " + gluster.BrickDir
		return b, nil
	}
	var fs unix.Statfs_t
	if err := h.stat(h.Host.Path(gluster.BrickDir), &fs); err != nil {
		b.Unfit = "it cannot be read: " + err.Error()
		return b, fmt.Errorf("look at the brick at %s: %w", gluster.BrickDir, err)
	}
	b.FileSystem = m.Type
	b.Size, b.Free = int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
	b.Unfit = unfit(m, at(table, "/"), fs.Flags&unix.ST_RDONLY != 0)
	b.Holds, err = h.holds()
	return b, err
}

// unfit is why a file system can be no brick; "" where it can.
func unfit(m, root *mounted, readOnly bool) string {
	switch {
	case root != nil && m.Device == root.Device:
		return "it is on the file system of the system itself, which a volume could fill"
	case m.Type != "xfs":
		return "its file system is " + m.Type + ", and a brick wants xfs"
	case readOnly:
		return "it is read-only"
	}
	return ""
}

// holds are the folders on the brick that are, or were, copies.
func (h *Hand) holds() (holds []gluster.Held, err error) {
	entries, err := os.ReadDir(h.Host.Path(gluster.BrickDir))
	if err != nil {
		return nil, fmt.Errorf("look at the brick: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		var id [16]byte
		n, err := unix.Lgetxattr(h.Host.Path(gluster.BrickPath(e.Name())), volumeID, id[:])
		if err == nil && n == len(id) {
			holds = append(holds, gluster.Held{Volume: e.Name(), ID: uuidOf(id)})
		}
	}
	return holds, nil // sorted by name, as ReadDir is
}

func uuidOf(id [16]byte) string {
	x := hex.EncodeToString(id[:])
	return strings.Join([]string{x[:8], x[8:12], x[12:16], x[16:20], x[20:]}, "-")
}

// glusterd sees that it runs where it is to, and returns the UUID of the one that
// answers. One that somebody runs on a machine without a brick is only looked at.
func (h *Hand) glusterd(ctx context.Context, brick gluster.MachineBrick, site *site, fresh bool) (uuid string, err error) {
	active := h.answered != "" && h.answered == h.process() // systemctl would tell the same, and costs a hundred times as much
	if !active {
		if active, err = h.Host.Active(ctx, glusterdUnit); err != nil {
			return "", fmt.Errorf("glusterd: %w", err)
		}
	}
	fit := brick.Unfit == ""
	if fit && fresh {
		again, err := h.restore(ctx, site.Peers, active)
		if err != nil {
			return "", fmt.Errorf("glusterd of a machine that was installed anew: %w", err)
		}
		pings, err := h.pings()
		if err != nil {
			return "", err
		}
		if pings && active && !again { // no brick ends with it
			if err := run(ctx, h.Host, time.Minute, "systemctl", "restart", glusterdUnit); err != nil {
				return "", fmt.Errorf("restart glusterd: %w", err)
			}
		}
		active = active && !again
	}
	switch {
	case !active && !fit:
		return "", nil
	case !active:
		if err := h.startGlusterd(ctx); err != nil {
			return "", err
		}
	}
	aside := formerCopies(h.Machine, site.Volumes, brick.Holds)
	if known := h.UUID(); active && known != "" && len(aside) == 0 && time.Since(h.asked) < askAgain {
		return known, nil // each command of gluster costs an old PC a tenth of a second
	}
	cli := CLI(h.Host, daemonPatience)
	peers, err := cli.Pool(ctx)
	if err != nil {
		return "", fmt.Errorf("glusterd does not answer: %w; systemctl status glusterd tells more", err)
	}
	self := slices.IndexFunc(peers, func(p gluster.Peer) bool { return p.Self })
	if self < 0 {
		return "", errors.New("glusterd does not name itself: gluster pool list tells more")
	}
	uuid, h.asked, h.answered = peers[self].UUID, time.Now(), h.process()
	if fit && fresh {
		err = h.setAside(ctx, cli, uuid, aside)
	}
	return uuid, err
}

// process is the glusterd that runs, by its number and when it began; "" is none.
func (h *Hand) process() string {
	number, err := h.Host.Read(pidFile)
	pid := strings.TrimSpace(string(number))
	if _, e := strconv.ParseUint(pid, 10, 31); err != nil || e != nil {
		return ""
	}
	p, err := h.Host.Process(pid)
	if err != nil || p.Name != "glusterd" || p.State == "Z" {
		return ""
	}
	return fmt.Sprintf("%s since %d", pid, p.Began)
}

// startGlusterd starts it, now and at each boot; at most every 30 s, for one that
// ends at once needs a person.
func (h *Hand) startGlusterd(ctx context.Context) error {
	if since := time.Since(h.started); since < 30*time.Second {
		return errors.New("glusterd does not run: systemctl status glusterd tells why; it is started again in half a minute")
	}
	h.started = time.Now()
	h.Log.InfoContext(ctx, "start glusterd")
	if err := run(ctx, h.Host, time.Minute, "systemctl", "enable", "--now", glusterdUnit); err != nil {
		return fmt.Errorf("start glusterd: %w; journalctl -u glusterd tells more", err)
	}
	return nil
}

const volFile = "/etc/glusterfs/glusterd.vol"

// pings has glusterd look whether its peers are there, and reports whether that was
// new. As Debian has it, it does not: one whose cable is pulled is then waited for, with
// the pool's lock held, until TCP gives up after a quarter of an hour. With 20 s it was
// given up after 38 s.
func (h *Hand) pings() (changed bool, err error) {
	text, err := h.Host.Read(volFile)
	if err != nil {
		return false, fmt.Errorf("how glusterd is set up: %w", err)
	}
	with := pinging(string(text))
	if with == string(text) {
		return false, nil
	}
	return true, h.Host.Write(volFile, []byte(with), 0o644)
}

// pinging is glusterd.vol with pings, where it has none.
func pinging(vol string) string {
	return strings.Replace(vol, "option ping-timeout 0\n", "option ping-timeout 20\n", 1)
}

// traces are what a glusterd knows of its past.
type traces struct {
	Info    string // glusterd.info; "" is none
	Peers   bool   // it has some
	Volumes bool   // it has some
}

func (h *Hand) traces() (t traces, err error) {
	info, err := h.Host.Read(infoFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return t, err
	}
	t.Info = string(info)
	for dir, has := range map[string]*bool{"peers": &t.Peers, "vols": &t.Volumes} {
		entries, err := os.ReadDir(h.Host.Path(path.Join(glusterdDir, dir)))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return t, err
		}
		*has = len(entries) > 0
	}
	return t, nil
}

// identity are the files that make a glusterd without a past the one that the pool
// knows by this machine's name: it has the UUID that bricks are known by, and the
// others give it the volumes. nil is that there is nothing to do: one that has peers
// or volumes is never made another.
func identity(t traces, machine string, pool []gluster.PeerStatus) map[string]string {
	self := slices.IndexFunc(pool, func(p gluster.PeerStatus) bool { return p.Machine == machine && p.UUID != "" })
	if self < 0 || t.Peers || t.Volumes {
		return nil
	}
	uuid := pool[self].UUID
	version := "operating-version=100000" // of GlusterFS 10, Debian 12's; the others raise it
	for line := range strings.Lines(t.Info) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "operating-version=") {
			version = line
		}
	}
	files := map[string]string{}
	for _, p := range pool {
		if p.UUID != uuid && p.UUID != "" && p.Address != "" {
			files[path.Join(glusterdDir, "peers", p.UUID)] = fmt.Sprintf("uuid=%s\nstate=3\nhostname1=%s\n", p.UUID, p.Address)
		}
	}
	if len(files) == 0 {
		return nil // there is nobody who would know it again
	}
	files[infoFile] = "UUID=" + uuid + "\n" + version + "\n"
	return files
}

// restore makes glusterd of a machine that was installed anew what it was. It is
// stopped then, and done is true.
func (h *Hand) restore(ctx context.Context, pool []gluster.PeerStatus, active bool) (done bool, err error) {
	t, err := h.traces()
	if err != nil {
		return false, err
	}
	files := identity(t, h.Machine, pool)
	if files == nil {
		return false, nil
	}
	h.Log.WarnContext(ctx, "this machine was installed anew: its glusterd is made the one that the pool knows", "peers", len(files)-1)
	if active {
		if err := run(ctx, h.Host, time.Minute, "systemctl", "stop", glusterdUnit); err != nil {
			return false, fmt.Errorf("stop it: %w", err)
		}
	}
	// Its own name first: should this break off, there are no peers still, and it is
	// done again; and one peer is enough to hear of the others.
	for _, name := range slices.SortedFunc(maps.Keys(files), func(a, b string) int { return cmp.Compare(len(a), len(b)) }) {
		if err := h.Host.Write(name, []byte(files[name]), 0o600); err != nil {
			return true, err
		}
	}
	h.started = time.Time{}
	return true, nil
}

// formerCopies are the folders that the steward wants put aside here, and that are there.
func formerCopies(machine string, volumes []volume, holds []gluster.Held) (names []string) {
	for _, v := range volumes {
		held := slices.ContainsFunc(holds, func(h gluster.Held) bool { return h.Volume == v.Metadata.Name })
		if held && slices.Contains(v.Status.Aside, machine) {
			names = append(names, v.Metadata.Name)
		}
	}
	return names
}

// setAside renames the folders of former copies. What is in them is stale, and still
// somebody's. glusterd has the last word: what it serves as a brick stays.
func (h *Hand) setAside(ctx context.Context, cli gluster.CLI, uuid string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	live, err := cli.Volumes(ctx)
	if err != nil {
		return fmt.Errorf("put former copies aside: %w", err)
	}
	var errs error
	for _, name := range names {
		if serves(live, name, uuid, h.Address) {
			errs = errors.Join(errs, fmt.Errorf("put the former copy %s aside: glusterd still has it as a brick; it stays until the steward has taken it out", gluster.BrickPath(name)))
			continue
		}
		errs = errors.Join(errs, h.putAside(ctx, name))
	}
	return errs
}

// serves reports whether glusterd has the folder of a volume here as a brick, of
// whatever volume.
func serves(live []gluster.Live, name, uuid, address string) bool {
	for _, v := range live {
		for _, b := range v.Bricks {
			if b.Path == gluster.BrickPath(name) && (b.Peer == uuid || b.Address == address) {
				return true
			}
		}
	}
	return false
}

func (h *Hand) putAside(ctx context.Context, name string) error {
	if err := os.MkdirAll(h.Host.Path(gluster.AsideDir), 0o700); err != nil {
		return fmt.Errorf("put a former copy aside: %w", err)
	}
	to := path.Join(gluster.AsideDir, name+"-"+time.Now().UTC().Format("20060102T150405Z"))
	if h.Host.Exists(to) {
		return fmt.Errorf("put the former copy %s aside: there is %s already", gluster.BrickPath(name), to)
	}
	if err := os.Rename(h.Host.Path(gluster.BrickPath(name)), h.Host.Path(to)); err != nil {
		return fmt.Errorf("put a former copy aside: %w", err)
	}
	h.Log.WarnContext(ctx, "a former copy was put aside; nothing deletes it", "volume", name, "folder", to)
	return nil
}
