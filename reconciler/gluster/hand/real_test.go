package hand

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/glustertest"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
)

// real is a machine of a room as a host: its files are seen through its first
// process, and its systemd is played, for there is none.
type real struct {
	*testing.T
	*glustertest.Machine
	host *host.Host
}

func newReal(t *testing.T, m *glustertest.Machine) *real {
	t.Helper()
	r := &real{T: t, Machine: m}
	root := fmt.Sprintf("/proc/%d/root", firstProcess(t, m))
	r.host = &host.Host{Root: root, Runner: r, Log: slog.New(slog.DiscardHandler)}
	// Its own folders in the place of this computer's.
	own := t.TempDir()
	units, lib := filepath.Join(own, "units"), filepath.Join(own, "lib")
	for _, dir := range []string{units, filepath.Join(lib, "glusterd"), filepath.Join(lib, "kingmaker")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.must("mount", "--bind", units, unitDir)
	// This computer need not have /var/lib/kingmaker: the folder above is covered.
	r.must("mount", "--bind", "/var/lib/glusterd", filepath.Join(lib, "glusterd"))
	r.must("mount", "--rbind", lib, "/var/lib")
	t.Cleanup(func() { // else the folder cannot be removed
		points, _ := filepath.Glob(filepath.Join(own, "lib/kingmaker/volumes/*"))
		for _, p := range points {
			_ = exec.Command("chattr", "-i", p).Run()
		}
	})
	return r
}

// firstProcess of a machine, as this computer counts.
func firstProcess(t *testing.T, m *glustertest.Machine) int {
	t.Helper()
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, e := range entries {
		line, _ := os.ReadFile(e)
		status, _ := os.ReadFile(filepath.Join(filepath.Dir(e), "status"))
		if bytes.HasSuffix(line, []byte("\x00"+m.Name+"\x00"+m.Address+"\x00")) && bytes.Contains(status, fmt.Appendf(nil, "\nPPid:\t%d\n", os.Getpid())) {
			var pid int
			if _, err := fmt.Sscanf(e, "/proc/%d/", &pid); err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("%s has no first process", m.Name)
	return 0
}

func (r *real) must(args ...string) string {
	r.Helper()
	out, err := r.Machine.Run(r.Context(), args...)
	if err != nil {
		r.Fatal(err)
	}
	return string(out)
}

// Run implements host.Runner.
func (r *real) Run(ctx context.Context, c host.Command) ([]byte, error) {
	args := append([]string{c.Name}, c.Args...)
	for i := range args {
		args[i] = strings.TrimPrefix(args[i], r.host.Root)
	}
	if c.Name == "systemctl" {
		if args = r.systemctl(c); args == nil {
			return nil, nil
		}
	}
	out, err := r.Machine.Run(ctx, args...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = hosttest.Refuse(c, exit.ExitCode(), err.Error())
	}
	return out, err
}

// glusterdPid is a word of sh: the process of the machine's glusterd.
const glusterdPid = `for p in /proc/[0-9]*; do grep -qs '^Name:.glusterd$' $p/status && ! grep -q '^State:.Z' $p/status && basename $p; done; true`

func (r *real) systemctl(c host.Command) []string {
	verb, unit := c.Args[0], c.Args[len(c.Args)-1]
	if unit == glusterdUnit {
		return []string{"sh", "-c", map[string]string{
			"is-active": `[ -n "$(` + glusterdPid + `)" ] && echo active || { echo inactive; exit 3; }`,
			"enable":    `glusterd --log-level WARNING`,
			"stop":      `for p in $(` + glusterdPid + `); do kill $p; while grep -qs '^State:.[^Z]' /proc/$p/status; do sleep 0.1; done; done`,
		}[verb]}
	}
	volume, ok := volumeOf(unit)
	if !ok || verb != "start" && verb != "stop" {
		return nil
	}
	if verb == "stop" {
		return []string{"umount", gluster.MountPath(volume)}
	}
	text, _ := r.host.Read(unitFile(volume))
	field := func(name string) string {
		_, value, _ := strings.Cut(string(text), "\n"+name+"=")
		value, _, _ = strings.Cut(value, "\n")
		return value
	}
	return []string{"mount", "-t", field("Type"), "-o", field("Options"), field("What"), field("Where")}
}

func within(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// TestReal mounts a real volume, and takes a machine that was installed anew back.
func TestReal(t *testing.T) {
	room := glustertest.Start(t, 3)
	ctx := t.Context()
	cli := room.Machines[0].CLI()
	do := func(args ...string) {
		t.Helper()
		if out, err := cli(ctx, args...); err != nil || !bytes.Contains(out, []byte("<opRet>0</opRet>")) {
			t.Fatalf("gluster %v: %v %s", args, err, out)
		}
	}
	do("peer", "probe", "10.99.0.2")
	do("peer", "probe", "10.99.0.3")
	within(t, "a pool of three", func() error { return connected(ctx, cli, 3) })
	create := []string{"volume", "create", "homes", "replica", "3"}
	spec := gluster.Placed{Access: gluster.Homes, Homes: []gluster.Home{{Name: "ada", UID: 1001, GID: 100}}}
	for _, m := range room.Machines {
		create = append(create, m.Address+":"+gluster.BrickPath("homes"))
		spec.Bricks = append(spec.Bricks, gluster.PlacedBrick{Machine: m.Name, Address: m.Address})
	}
	do(create...)
	do("volume", "start", "homes")
	live, err := cli.Volumes(ctx)
	if err != nil || len(live) != 1 {
		t.Fatal(live, err)
	}
	v := volume{Spec: spec}
	v.Metadata.Name, v.Status.ID = "homes", live[0].ID

	r := newReal(t, room.Machines[0])
	h := &Hand{Host: r.host, Machine: "pc-01", Address: "10.99.0.1", Log: r.host.Log, site: &site{Volumes: []volume{v}, served: true}}
	roots := &Roots{Host: r.host}
	w := wishes(h.site.Volumes, h.Machine)[0]
	if _, err := roots.Setup(ctx, "homes", w.ID, spec); err == nil {
		t.Error("folders were made where nothing is mounted")
	}
	if why := h.keep(ctx, w); why != "its folders are not made yet" {
		t.Fatal(why)
	}
	if homes, err := roots.Setup(ctx, "homes", w.ID, spec); homes != 1 || err != nil {
		t.Fatal(homes, err)
	}
	if why := h.keep(ctx, w); why != "" {
		t.Fatal(why)
	}
	if out := r.must("stat", "-c", "%a %u", gluster.DataPath("homes")+"/ada", gluster.DataPath("homes")+"/ada/.bashrc"); out != "700 1001\n644 1001\n" {
		t.Error(out)
	}
	other := w
	other.ID = homesID
	if why := h.keep(ctx, other); !strings.Contains(why, "another volume") {
		t.Error("the proof:", why)
	}

	// Its process is killed: the mount is dead, is taken away and made again.
	for _, pid := range clients(r.host, gluster.MountPath("homes")) {
		r.must("kill", "-9", fmt.Sprint(pid))
	}
	within(t, "a mount that is dead", func() error {
		if _, do, err := h.look("homes"); err != nil || do != detach {
			return fmt.Errorf("%s %v", do, err)
		}
		return nil
	})
	if why := h.keep(ctx, w); why != "" {
		t.Error("made again:", why)
	}

	// Without the mount not even root can write.
	r.must("umount", gluster.MountPath("homes"))
	if out, err := r.Machine.Run(ctx, "touch", gluster.MountPath("homes")+"/lost"); err == nil {
		t.Error("a file was written below the mount:", string(out))
	}
	if why := h.keep(ctx, w); why != "" {
		t.Error("made again:", why)
	}

	// It is no more.
	if err := drop(ctx, r.host, "homes", false); err != nil || r.host.Exists(gluster.MountPath("homes")) || r.host.Exists(unitFile("homes")) {
		t.Error("taken away:", err)
	}

	t.Run("installed anew", func(t *testing.T) { reinstall(t, room, v) })
}

func connected(ctx context.Context, cli gluster.CLI, want int) error {
	peers, err := cli.Pool(ctx)
	if err != nil {
		return err
	}
	peers = slices.DeleteFunc(peers, func(p gluster.Peer) bool { return !p.Connected || !p.Member })
	if len(peers) != want {
		return fmt.Errorf("connected are %+v", peers)
	}
	return nil
}

// reinstall wipes what glusterd of pc-03 knew, as a new installation does. Its brick
// is as it was.
func reinstall(t *testing.T, room *glustertest.Room, v volume) {
	ctx := t.Context()
	peers, err := room.Machines[1].CLI().Pool(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var pool []gluster.PeerStatus
	for _, p := range peers {
		s := gluster.PeerStatus{Machine: "pc-02", Address: "10.99.0.2", UUID: p.UUID}
		if !p.Self {
			s.Address = p.Addresses[0]
			s.Machine = strings.Replace(s.Address, "10.99.0.", "pc-0", 1)
		}
		pool = append(pool, s)
	}
	r := newReal(t, room.Machine("pc-03"))
	h := &Hand{Host: r.host, Machine: "pc-03", Address: "10.99.0.3", Log: r.host.Log}
	if err := run(ctx, r.host, time.Minute, "systemctl", "stop", glusterdUnit); err != nil {
		t.Fatal(err)
	}
	r.must("sh", "-c", "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = glusterfsd ] && kill $(basename $p); done; rm -rf /var/lib/glusterd/*")
	// It was started once, before anybody told it who it is.
	if err := run(ctx, r.host, time.Minute, "systemctl", "enable", "--now", glusterdUnit); err != nil {
		t.Fatal(err, r.must("sh", "-c", "tail -n 40 /var/log/glusterfs/glusterd.log; ls -l /run /var/lib/glusterd"))
	}
	within(t, "a glusterd without a past", func() error { return connected(ctx, r.CLI(), 1) })

	brick, err := h.fileSystem()
	if err != nil || brick.Unfit != "" || len(brick.Holds) != 1 || brick.Holds[0] != (gluster.Held{Volume: "homes", ID: v.Status.ID}) {
		t.Fatalf("the brick: %+v %v", brick, err)
	}
	uuid := ""
	within(t, "a glusterd that answers", func() error {
		uuid, err = h.glusterd(ctx, brick, &site{Peers: pool}, true)
		return err
	})
	self := slices.IndexFunc(pool, func(p gluster.PeerStatus) bool { return p.Machine == "pc-03" })
	if uuid != pool[self].UUID {
		t.Errorf("it is %s, and was %s", uuid, pool[self].UUID)
	}
	within(t, "all of the pool, seen from it", func() error { return connected(ctx, r.CLI(), 3) })
	within(t, "all of the pool, seen from another", func() error { return connected(ctx, room.Machines[1].CLI(), 3) })
	within(t, "the volume, with all its bricks", func() error {
		processes, err := r.CLI().Processes(ctx, "homes")
		online := 0
		for _, p := range processes {
			if p.Path != "" && p.Online {
				online++
			}
		}
		if online != 3 {
			return fmt.Errorf("%d bricks: %+v %v", online, processes, err)
		}
		return nil
	})
	if done, err := h.restore(ctx, pool, true); done || err != nil {
		t.Error("it is done again:", err)
	}
}
