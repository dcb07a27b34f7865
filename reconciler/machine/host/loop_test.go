package host_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
)

// loop is a machine with a real disk, a file behind a loop device, which the
// real programs work on. systemd alone is played.
type loop struct {
	*hosttest.Debian
	image, device string
	step, brick   host.Step
	fail          string // the command that fails
	root          string // where a mount stands for the root of the running system
}

func newLoop(t *testing.T, size int64) *loop {
	t.Helper()
	if mounts, err := os.ReadFile("/proc/self/mounts"); os.Getuid() != 0 || err != nil || !bytes.Contains(mounts, []byte(" /dev devtmpfs ")) {
		t.Skip("loop devices are for root, outside of containers")
	}
	l := &loop{Debian: hosttest.NewDebian(t), image: filepath.Join(t.TempDir(), "disk.img")}
	if err := os.WriteFile(l.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(l.image, size); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"sfdisk", "mkfs.ext4"} {
		if _, err := (host.System{}).Run(t.Context(), host.Command{Name: tool, Args: []string{"-V"}}); err != nil && !errors.As(err, new(*host.Exit)) {
			t.Skipf("no %s here", tool)
		}
	}
	out, err := exec.Command("losetup", "--find", "--show", "--partscan", l.image).CombinedOutput()
	if err != nil {
		t.Skipf("no loop devices here: %s", out)
	}
	l.device = strings.TrimSpace(string(out))
	t.Cleanup(func() { l.sh(t, "losetup", "--detach", l.device) })
	// The machine's devices are the real ones from now on.
	if err := os.RemoveAll(l.Path("/dev")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev", l.Path("/dev")); err != nil {
		t.Fatal(err)
	}
	l.Host.Runner = l
	steps := host.Install(l.Host, host.Options{Bundle: hosttest.Bundle(t), Disk: l.device})
	l.step = steps[slices.IndexFunc(steps, func(s host.Step) bool { return s.Name == "disk" })]
	l.brick = steps[slices.IndexFunc(steps, func(s host.Step) bool { return s.Name == "brick" })]
	return l
}

func (l *loop) Run(ctx context.Context, c host.Command) ([]byte, error) {
	if l.fail != "" && strings.HasPrefix(c.String(), l.fail) {
		return nil, errors.New("the power went off")
	}
	if !slices.Contains([]string{"lsblk", "wipefs", "partx", "sfdisk", "mkfs.ext4", "mkfs.xfs", "chattr"}, c.Name) {
		return l.Debian.Runner.Run(ctx, c)
	}
	out, err := host.System{}.Run(ctx, c)
	if c.Name == "lsblk" && l.root != "" {
		out = []byte(strings.ReplaceAll(string(out), `"`+l.root+`"`, `"/"`))
	}
	return out, err
}

func (l *loop) sh(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := host.System{}.Run(context.Background(), host.Command{Name: name, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// partition is sfdisk with a script.
func (l *loop) partition(t *testing.T, script string) {
	t.Helper()
	if _, err := (host.System{}).Run(t.Context(), host.Command{Name: "sfdisk", Args: []string{"--quiet", l.device}, Stdin: strings.NewReader(script)}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(script, "size=") {
		l.sh(t, "partx", "--update", l.device)
	}
}

// mount mounts a device, and unmounts it at the end.
func (l *loop) mount(t *testing.T, device string, args ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	l.sh(t, "mount", append(args, device, dir)...)
	t.Cleanup(func() { l.sh(t, "umount", dir) })
	return dir
}

// sum is a hash of every bit of a device.
func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", hash.Sum(nil))
}

func TestLoopEmpty(t *testing.T) {
	l := newLoop(t, 60*gib)
	todo, err := l.step.Look(t.Context())
	if err != nil || len(todo) < 4 || !strings.Contains(todo[0], "make a partition km-system of 40Gi") {
		t.Fatalf("%q, %v", todo, err)
	}
	if err := l.step.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	table := l.sh(t, "sfdisk", "--dump", l.device)
	for _, want := range []string{"label: gpt", `start=        2048, size=    83886080`, `name="km-system"`, `name="km-brick"`} {
		if !strings.Contains(table, want) {
			t.Errorf("no %s in\n%s", want, table)
		}
	}
	uuid := strings.TrimSpace(l.sh(t, "blkid", "--probe", "--match-tag", "PART_ENTRY_UUID", "--output", "value", l.device+"p1"))
	if unit := l.Get("/etc/systemd/system/var-lib-containerd.mount"); uuid == "" || !strings.Contains(unit, "What=/dev/disk/by-partuuid/"+uuid+"\n") {
		t.Errorf("no %s in\n%s", uuid, unit)
	}
	dir := l.mount(t, l.device+"p1")
	if err := os.WriteFile(filepath.Join(dir, "an image"), []byte("layers"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := l.sh(t, "wipefs", "--no-act", l.device+"p2"); strings.TrimSpace(out) != "" {
		t.Errorf("the brick is formatted: %s", out)
	}

	if todo, err := l.step.Look(t.Context()); err != nil || len(todo) > 0 {
		t.Errorf("done, and would do %q, %v", todo, err)
	}
	if err := l.step.Do(t.Context()); err != nil || l.sh(t, "sfdisk", "--dump", l.device) != table {
		t.Errorf("again: %v", err)
	}
	if content, err := os.ReadFile(filepath.Join(dir, "an image")); err != nil || string(content) != "layers" {
		t.Errorf("%q, %v", content, err)
	}
}

// Whatever is on a disk stays, bit for bit.
func TestLoopWithData(t *testing.T) {
	const size = 128 << 20 // read whole, twice
	for _, test := range []struct {
		name string
		fill func(t *testing.T, l *loop)
		want string
	}{
		{"ext4 with a file", func(t *testing.T, l *loop) {
			l.sh(t, "mkfs.ext4", "-q", "-L", "photos", l.device)
			dir := t.TempDir()
			l.sh(t, "mount", l.device, dir)
			if err := os.WriteFile(filepath.Join(dir, "holiday.jpg"), []byte("the sea"), 0o644); err != nil {
				t.Fatal(err)
			}
			l.sh(t, "umount", dir)
		}, "ext4 photos"},
		{"ext4 that is mounted", func(t *testing.T, l *loop) {
			l.sh(t, "mkfs.ext4", "-q", l.device)
			l.mount(t, l.device, "-o", "ro,noload") // else it writes itself
		}, "mounted at "},
		{"a partition with ext4", func(t *testing.T, l *loop) {
			l.partition(t, "label: gpt\nsize=100MiB, name=photos\n")
			l.sh(t, "mkfs.ext4", "-q", "-L", "photos", l.device+"p1")
		}, "partition 1 of 100Mi (ext4 photos), partition table gpt"},
		{"an empty MBR", func(t *testing.T, l *loop) { l.partition(t, "label: dos\n") }, "partition table dos"},
		{"a partition that the kernel does not know", func(t *testing.T, l *loop) {
			l.partition(t, "label: dos\nsize=100MiB\n")
			l.sh(t, "partx", "--delete", l.device)
		}, "partition 1 of 100Mi, partition table dos"},
		{"swap", func(t *testing.T, l *loop) { l.sh(t, "mkswap", l.device) }, "swap"},
		{"data of an unknown kind", func(t *testing.T, l *loop) { write(t, l.device, 16<<20-6) }, "data in its first 16 MiB"},
		{"a RAID's end", func(t *testing.T, l *loop) {
			// Of version 0.90 of Linux, whose mark is 64 to 128 KiB before the end.
			f, err := os.OpenFile(l.device, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			magic := append([]byte{0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0, 90, 0, 0, 0}, make([]byte, 52)...)
			if _, err := f.WriteAt(magic, size-64<<10); err != nil {
				t.Fatal(err)
			}
		}, "linux_raid_member"},
		{"held by another program", func(t *testing.T, l *loop) {
			f, err := os.OpenFile(l.device, os.O_RDONLY|syscall.O_EXCL, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
		}, "the kernel has it in use"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLoop(t, size)
			test.fill(t, l)
			before := sum(t, l.device)
			if _, err := l.step.Look(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasSuffix(err.Error(), "nothing was written") {
				t.Errorf("look: got %v, want %q", err, test.want)
			}
			if err := l.step.Do(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("do: got %v, want %q", err, test.want)
			}
			if after := sum(t, l.device); before != after {
				t.Error("the disk was changed")
			}
		})
	}
}

// The disk of the running system: in use, with free space at its end.
func TestLoopUnderSystem(t *testing.T) {
	l := newLoop(t, 20*gib)
	l.partition(t, "label: gpt\nsize=64MiB, name=boot\nsize=200MiB, name=root\n")
	l.sh(t, "mkfs.ext4", "-q", l.device+"p2")
	l.root = l.mount(t, l.device+"p2")
	if err := os.WriteFile(filepath.Join(l.root, "vmlinuz"), []byte("Linux"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := l.sh(t, "sfdisk", "--dump", l.device)
	todo, err := l.step.Look(t.Context())
	if err != nil || len(todo) != 1 || !strings.Contains(todo[0], "make a partition km-brick of 19Gi") {
		t.Fatalf("%q, %v", todo, err)
	}
	l.fail = "partx --update"
	if err := l.step.Do(t.Context()); err == nil || !strings.Contains(err.Error(), "the table is written, but the kernel does not know it yet") {
		t.Fatal(err)
	}
	l.fail = ""
	if todo, err := l.step.Look(t.Context()); err != nil || len(todo) != 1 || !strings.Contains(todo[0], "tell the kernel") {
		t.Fatalf("%q, %v", todo, err)
	}
	if err := l.step.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := l.sh(t, "sfdisk", "--dump", l.device)
	if rest, ok := strings.CutPrefix(after, before); !ok || strings.Count(rest, "\n") != 1 || !strings.Contains(rest, `name="km-brick"`) {
		t.Errorf("not one partition more:\n%s\n%s", before, after)
	}
	if _, err := os.Stat(l.device + "p3"); err != nil {
		t.Errorf("the kernel does not know it: %v", err)
	}
	if got := l.Get("/var/lib/kingmaker/" + filepath.Base(l.device) + ".sfdisk"); got != before {
		t.Errorf("the table as it was is not kept:\n%s", got)
	}
	if todo, err := l.step.Look(t.Context()); err != nil || len(todo) > 0 {
		t.Errorf("done, and would do %q, %v", todo, err)
	}
	if content, err := os.ReadFile(filepath.Join(l.root, "vmlinuz")); err != nil || string(content) != "Linux" {
		t.Errorf("%q, %v", content, err)
	}
	l.sh(t, "umount", l.root)
	l.sh(t, "fsck.ext4", "-f", "-n", l.device+"p2")
	l.sh(t, "mount", l.device+"p2", l.root) // for the cleanup
}

// Dark in the midst: what was done is not done again.
func TestLoopInterrupted(t *testing.T) {
	for _, fail := range []string{"sfdisk", "partx --update", "mkfs.ext4", "systemctl daemon-reload", "systemctl start"} {
		t.Run(fail, func(t *testing.T) {
			l := newLoop(t, 60*gib)
			l.fail = fail
			if err := l.step.Do(t.Context()); err == nil || !strings.Contains(err.Error(), "the power went off") {
				t.Fatal(err)
			}
			l.fail = ""
			table, _ := host.System{}.Run(t.Context(), host.Command{Name: "sfdisk", Args: []string{"--dump", l.device}})
			if todo, err := l.step.Look(t.Context()); err != nil || len(todo) == 0 {
				t.Fatalf("%q, %v", todo, err)
			}
			if err := l.step.Do(t.Context()); err != nil {
				t.Fatal(err)
			}
			if todo, err := l.step.Look(t.Context()); err != nil || len(todo) > 0 {
				t.Errorf("done, and would do %q, %v", todo, err)
			}
			if after := l.sh(t, "sfdisk", "--dump", l.device); len(table) > 0 && after != string(table) {
				t.Errorf("the table was written again")
			}
		})
	}
}

// The brick is made on an empty partition, and is never made anew.
func TestLoopBrick(t *testing.T) {
	l := newLoop(t, 60*gib)
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		t.Skip("no mkfs.xfs here")
	}
	bare := l.Path(host.BrickDir)
	t.Cleanup(func() { _ = exec.Command("chattr", "-i", bare).Run() })
	if todo, err := l.brick.Look(t.Context()); err != nil || len(todo) < 2 || !strings.Contains(todo[0], "make an XFS file system on km-brick") {
		t.Fatalf("before the disk is split: %q, %v", todo, err)
	}
	if err := l.step.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	part := l.device + "p2"

	// Some file system that was in the disk's free space once.
	l.sh(t, "mkfs.ext4", "-q", "-L", "photos", part, "100M")
	for what, do := range map[string]func() error{
		"look": func() error { _, err := l.brick.Look(t.Context()); return err },
		"do":   func() error { return l.brick.Do(t.Context()) },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "holds ext4 photos, which is not made by Kingmaker") || !strings.Contains(err.Error(), "wipefs --all "+part) {
			t.Errorf("%s: %v", what, err)
		}
	}
	l.sh(t, "fsck.ext4", "-f", "-n", part)
	l.sh(t, "wipefs", "--all", part)

	if err := l.brick.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bare, "file"), nil, 0o644); err == nil {
		t.Log("the bare folder can be written to here")
	}
	id := l.sh(t, "blkid", "--probe", "--match-tag", "UUID", "--output", "value", part)
	partition := strings.TrimSpace(l.sh(t, "blkid", "--probe", "--match-tag", "PART_ENTRY_UUID", "--output", "value", part))
	unit := l.Get("/etc/systemd/system/srv-brick.mount")
	if partition == "" || !strings.Contains(unit, "What=/dev/disk/by-partuuid/"+partition+"\n") {
		t.Errorf("no %s in\n%s", partition, unit)
	}
	_, options, _ := strings.Cut(unit, "Options=")
	options, _, _ = strings.Cut(options, "\n")
	dir := l.mount(t, part, "--types", "xfs", "--options", options)
	if err := os.WriteFile(filepath.Join(dir, "thesis.odt"), []byte("years"), 0o644); err != nil {
		t.Fatal(err)
	}
	if todo, err := l.brick.Look(t.Context()); err != nil || len(todo) > 0 {
		t.Errorf("done, and would do %q, %v", todo, err)
	}

	// Another system on the same disk.
	for _, name := range []string{"/etc/systemd/system/srv-brick.mount", "/var/lib/kingmaker"} {
		if err := l.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	l.Active["srv-brick.mount"], l.Enabled["srv-brick.mount"] = false, false
	_ = exec.Command("chattr", "-i", bare).Run()
	if err := os.RemoveAll(bare); err != nil {
		t.Fatal(err)
	}
	if todo, err := l.brick.Look(t.Context()); err != nil || len(todo) == 0 || strings.Contains(todo[0], "make") {
		t.Errorf("installed anew: %q, %v", todo, err)
	}
	if err := l.brick.Do(t.Context()); err != nil || !l.Active["srv-brick.mount"] {
		t.Errorf("installed anew: %v", err)
	}
	if again := l.sh(t, "blkid", "--probe", "--match-tag", "UUID", "--output", "value", part); again != id {
		t.Errorf("another file system: %s, was %s", again, id)
	}
	if content, err := os.ReadFile(filepath.Join(dir, "thesis.odt")); err != nil || string(content) != "years" {
		t.Errorf("%q, %v", content, err)
	}
}
