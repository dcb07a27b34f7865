package room

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
	"github.com/kingmaker-io/kingmaker/cmd/lab/lock"
)

// computer is what matters of the computer that a room is on.
type computer struct {
	cgroups     int  // version: 1 or 2
	sysResource bool // has the capability CAP_SYS_RESOURCE to give
	modules     bool // has a folder of kernel modules
}

// thisComputer looks: none of it is taken for granted.
func thisComputer(ctx context.Context, run Runner) (computer, error) {
	out, err := run.Run(ctx, Command{Args: []string{"docker", "info", "--format", "{{.CgroupVersion}}"}})
	if err != nil {
		return computer{}, err
	}
	c := computer{modules: hasModules()}
	if c.cgroups, err = strconv.Atoi(strings.TrimSpace(string(out))); err != nil {
		return computer{}, fmt.Errorf("docker info does not tell the version of control groups: %q", out)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return computer{}, err
	}
	c.sysResource, err = hasCapability(status, unix.CAP_SYS_RESOURCE)
	return c, err
}

// hasCapability looks into /proc/PID/status whether a process can give away a
// capability.
func hasCapability(status []byte, capability int) (bool, error) {
	_, rest, _ := bytes.Cut(status, []byte("CapBnd:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	set, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64)
	if err != nil {
		return false, fmt.Errorf("read the capabilities: %w", err)
	}
	return set>>capability&1 == 1, nil
}

// String is how the log tells what was found.
func (c computer) String() string {
	text := fmt.Sprintf("control groups version %d", c.cgroups)
	if !c.sysResource {
		text += ", without CAP_SYS_RESOURCE"
	}
	return text
}

// atLeast are settings of the kernel that all machines share with the computer
// and that a room soon exhausts: each systemd, kubelet and containerd watches
// files.
func atLeast() map[string]int {
	return map[string]int{
		"fs.inotify.max_user_instances": 8192,
		"fs.inotify.max_user_watches":   1 << 19,
	}
}

// theirs are settings of the computer that machines write: the kubelet wants them
// as they are on a server.
func theirs() []string {
	return []string{"kernel.panic", "kernel.panic_on_oops", "vm.overcommit_memory", "vm.panic_on_oom"}
}

// borrow remembers the computer's settings, before the first room changes them,
// and raises what is too low.
func (r *Room) borrow() error {
	file, err := lentFile()
	if err != nil {
		return err
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		lent := map[string]string{}
		for _, key := range append(slices.Sorted(maps.Keys(atLeast())), theirs()...) {
			if value, err := r.setting(key); err == nil {
				lent[key] = value
			}
		}
		text, err := json.MarshalIndent(lent, "", "\t")
		if err != nil {
			return err
		}
		// Whole or not at all: half of it would be an error for ever, and what was
		// before is gone once a room has changed it.
		if err := os.WriteFile(file+".new", text, 0o600); err != nil {
			return err
		}
		if err := os.Rename(file+".new", file); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(atLeast())) {
		value, err := r.setting(key)
		if err != nil {
			return err
		}
		if have, err := strconv.Atoi(value); err == nil && have < atLeast()[key] {
			if err := r.set(key, strconv.Itoa(atLeast()[key])); err != nil {
				return fmt.Errorf("raise %s: %w", key, err)
			}
			r.Progress(fmt.Sprintf("this computer: %s raised from %s to %d, until the last lab is down", key, value, atLeast()[key]))
		}
	}
	return nil
}

// giveBack sets everything as it was before the first room.
func (r *Room) giveBack() error {
	file, err := lentFile()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var lent map[string]string
	if err = errors.Join(err, json.Unmarshal(text, &lent)); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	for _, key := range slices.Sorted(maps.Keys(lent)) {
		now, e := r.setting(key)
		if e == nil && now != lent[key] {
			e = r.set(key, lent[key])
			r.Progress(fmt.Sprintf("this computer: %s is %s again", key, lent[key]))
		}
		err = errors.Join(err, e)
	}
	return errors.Join(err, os.Remove(file))
}

func lentFile() (string, error) {
	dir, err := stateDir()
	return filepath.Join(dir, "computer.json"), err
}

func (r *Room) settingFile(key string) string {
	return filepath.Join(r.settings, strings.ReplaceAll(key, ".", "/"))
}

func (r *Room) setting(key string) (string, error) {
	text, err := os.ReadFile(r.settingFile(key))
	return strings.TrimSpace(string(text)), err
}

func (r *Room) set(key, value string) error {
	return os.WriteFile(r.settingFile(key), []byte(value), 0o644)
}

// prepare sees to it that this computer has what a room needs: programs, and a
// Docker that runs. The scripts of the checkout say what they do.
func (r *Room) prepare(ctx context.Context) error {
	var packages []string
	for _, p := range []struct{ program, pkg string }{
		{"git", "git"}, {"ip", "iproute2"}, {"iptables", "iptables"}, {"mmdebstrap", "mmdebstrap"},
		{"mkfs.xfs", "xfsprogs"},
	} {
		if _, err := exec.LookPath(p.program); err != nil {
			packages = append(packages, p.pkg)
		}
	}
	if len(packages) > 0 {
		if err := r.script(ctx, "packages", packages...); err != nil {
			return err
		}
	}
	if !r.answers(ctx) {
		if err := r.script(ctx, "docker", "start"); err != nil {
			return err
		}
	}
	if hasModules() {
		// A machine cannot load them. What is built in or cannot be had is no
		// fault: who needs it will say so.
		_, _ = r.run(ctx, append([]string{"modprobe", "--all", "--quiet"}, modules()...)...)
	}
	return nil
}

// modules of the kernel that machines use.
func modules() []string {
	return []string{"overlay", "br_netfilter", "nf_conntrack", "vxlan", "fuse", "loop", "xfs"}
}

// stopDocker ends Docker where the lab had to start it and nobody's room, those of
// another cache included, has a container left.
func (r *Room) stopDocker(ctx context.Context) error {
	started, err := startedDocker()
	if err != nil || !started {
		return err
	}
	return r.script(ctx, "docker", "stop")
}

// Wake starts Docker again where the room is there, the lab had started Docker for
// it, and it does not run any more, as after a boot of this computer; machines come
// up with it, and so their bricks are mounted before. Elsewhere it does nothing: a
// Docker that somebody else stopped is his.
func (r *Room) Wake(ctx context.Context) error {
	if r.answers(ctx) {
		return nil
	}
	if _, err := os.Stat(r.Dir); err != nil {
		return ignoreMissing(err)
	}
	started, err := startedDocker()
	if err != nil || !started {
		return err
	}
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.mountBricks(ctx); err != nil {
		return err
	}
	return r.script(ctx, "docker", "start")
}

// startedDocker reports whether the lab had to start Docker, by the file in which
// the script remembers it.
func startedDocker() (bool, error) {
	dir, err := stateDir()
	if err != nil {
		return false, err
	}
	_, err = os.Stat(filepath.Join(dir, "dockerd.pid"))
	return err == nil, ignoreMissing(err)
}

// script runs one of the checkout's scripts, and tells what it said.
func (r *Room) script(ctx context.Context, name string, args ...string) error {
	checkout, err := here.Checkout()
	if err != nil {
		return err
	}
	out, err := r.run(ctx, append([]string{filepath.Join(checkout, ".ci", name)}, args...)...)
	for line := range strings.Lines(string(out)) {
		r.Progress(strings.TrimSpace(line))
	}
	return err
}

// lock keeps others from building or taking down a room: they share Docker's
// networks and this computer's settings. It ends with the process at the latest.
func (r *Room) lock(ctx context.Context) (unlock func(), err error) {
	dir, err := stateDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := lock.Wait(ctx, filepath.Join(dir, "lock"), func() {
		r.Progress("another lab is being built or taken down; waiting for it")
	})
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}

// ignoreMissing is err, but nil where it says that there is no such file.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
