package room

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// disks are the folders of a machine that are volumes: an overlay cannot lie on
// the overlay that a container's own files are, and etcd wants a real file system.
// The brick has one of its own.
func disks() []struct{ name, path string } {
	return []struct{ name, path string }{
		{"containerd", "/var/lib/containerd"},
		{"kubelet", "/var/lib/kubelet"},
		{"etcd", "/var/lib/etcd"},
		{"glusterd", "/var/lib/glusterd"},
	}
}

// runMachine gives the arguments of docker that switch a new machine on.
func runMachine(lab string, n int, address netip.Addr, image, media, brick string, c computer) []string {
	name := MachineName(n)
	args := []string{
		"run", "--detach", "--name", lab + "-" + name, "--hostname", name,
		"--label", labelLab + "=" + lab, "--label", labelMachine + "=" + name,
		"--network", lab, "--ip", address.String(),

		// Whoever reboots inside comes up again; a machine whose power was cut
		// (docker kill) stays dead. Docker cannot tell a reboot from a machine
		// that switches itself off: that one comes up again, too.
		"--restart", "unless-stopped", "--stop-signal", "SIGRTMIN+3",

		// A machine may do all that root may on a PC, but for what would change
		// the computer: its clock and its kernel. --privileged would hand it all
		// devices as well.
		"--cap-add", "ALL", "--cap-drop", "SYS_TIME", "--cap-drop", "SYS_MODULE",
	}
	if !c.sysResource { // Docker refuses to give what the computer does not have
		args = append(args, "--cap-drop", "SYS_RESOURCE")
	}
	args = append(args,
		"--security-opt", "seccomp=unconfined",
		"--security-opt", "apparmor=unconfined",
		"--security-opt", "systempaths=unconfined", // /proc/sys can be written
		// With version 1 of control groups a privileged Pod gets all devices only
		// where its machine has them. No device file is there but those below.
		"--device-cgroup-rule", "a *:* rwm",
		"--device", "/dev/fuse", "--device", "/dev/kmsg",
		"--cgroupns", "private",
		"--tmpfs", "/run:exec", "--tmpfs", "/tmp:exec",
		"--log-opt", "max-size=1m",
		"--env", "container=docker", // systemd looks for it
	)
	if c.cgroups == 1 {
		args = append(args, "--env", "SYSTEMD_PROC_CMDLINE=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1")
	}
	for _, d := range disks() {
		args = append(args, "--mount", fmt.Sprintf("type=volume,src=%s-%s-%s,dst=%s,volume-label=%s=%[1]s", lab, name, d.name, d.path, labelLab))
	}
	args = append(args,
		"--mount", fmt.Sprintf("type=bind,src=%s,dst=%s", brick, brickDir),
		"--mount", fmt.Sprintf("type=bind,src=%s,dst=/media/kingmaker,readonly", media))
	if c.modules { // modprobe finds what is loaded or built in; it can load nothing
		args = append(args, "--mount", "type=bind,src=/lib/modules,dst=/lib/modules,readonly")
	}
	return append(args, image)
}

// Exec gives the command that runs args on a machine, as root, in its root
// folder: for callers that want to connect the streams themselves. With terminal
// it gets one.
func (r *Room) Exec(machine string, terminal bool, args ...string) []string {
	line := []string{"docker", "exec", "--interactive"}
	if terminal {
		line = append(line, "--tty")
	}
	return append(append(line, r.Name+"-"+machine), args...)
}

// Run runs a command on a machine, and returns what it printed. Stdin may be nil.
// Its error is an *Exit where the command itself, or Docker, said no.
func (r *Room) Run(ctx context.Context, machine string, stdin []byte, args ...string) ([]byte, error) {
	return r.Runner.Run(ctx, Command{Args: r.Exec(machine, false, args...), Stdin: bytes.NewReader(stdin)})
}

// Copy puts a file or a folder of this computer into a folder of a machine,
// modes included, owned by root.
func (r *Room) Copy(ctx context.Context, file, machine, folder string) error {
	_, err := r.docker(ctx, "cp", file, r.Name+"-"+machine+":"+folder)
	return err
}

// Kill cuts the power of a machine, until Start.
func (r *Room) Kill(ctx context.Context, machine string) error {
	if m, err := r.Machine(ctx, machine); err != nil || !m.On {
		return err
	}
	_, err := r.docker(ctx, "kill", "--signal", "KILL", r.Name+"-"+machine)
	return err
}

// Start switches a machine on, and Docker before it as Wake does. It does not wait
// until the machine has booted.
func (r *Room) Start(ctx context.Context, machine string) error {
	if err := r.Wake(ctx); err != nil {
		return err
	}
	m, err := r.Machine(ctx, machine)
	if err != nil {
		return err
	}
	// This computer forgets all three when it boots, and the room stays.
	if err := errors.Join(r.borrow(), r.openNetwork(ctx), r.mountBrick(ctx, machine)); err != nil || m.On {
		return err
	}
	if _, err := r.docker(ctx, "start", r.Name+"-"+machine); err != nil {
		return err
	}
	return r.recut(ctx, machine)
}

// Reboot asks a machine to boot again, and waits until it has.
func (r *Room) Reboot(ctx context.Context, machine string) error {
	before, err := r.container(ctx, machine)
	if err != nil {
		return err
	}
	if !before.State.Running {
		return fmt.Errorf("%s is off: `lab start %[1]s` switches it on", machine)
	}
	if machine == Git { // no init there that could be asked
		_, err := r.docker(ctx, "restart", "--time", "1", r.Name+"-"+machine)
		return errors.Join(err, r.recut(ctx, machine))
	}
	_, err = r.Run(ctx, machine, nil, "systemctl", "reboot")
	var exit *Exit
	if err != nil && !errors.As(err, &exit) { // the answer is lost where the reboot is quick
		return err
	}
	said := err
	if err := await(ctx, time.Minute, func(ctx context.Context) error {
		now, err := r.container(ctx, machine)
		switch {
		case err != nil:
			return err
		case !now.State.Running || now.State.StartedAt == before.State.StartedAt:
			return errors.Join(fmt.Errorf("%s did not go down", machine), said)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := r.recut(ctx, machine); err != nil {
		return err
	}
	return r.Booted(ctx, machine)
}

// Booted waits until systemd has nothing more to start on a machine.
func (r *Room) Booted(ctx context.Context, machine string) error {
	return await(ctx, 90*time.Second, func(ctx context.Context) error {
		// It waits, but only once there is somebody to ask.
		out, err := r.Run(ctx, machine, nil, "systemctl", "is-system-running", "--wait")
		switch state := strings.TrimSpace(string(out)); state {
		case "running", "degraded":
			return nil
		case "":
			return fmt.Errorf("%s does not boot: %w", machine, err)
		default:
			return fmt.Errorf("%s does not boot: systemd is %s", machine, state)
		}
	})
}

// await asks until there is no error, and gives up with the last one.
func await(ctx context.Context, patience time.Duration, ask func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(limited)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
			continue
		case <-limited.Done():
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("waited %s in vain: %w", patience, err)
	}
}

// hasModules reports whether this computer has a folder of kernel modules.
func hasModules() bool {
	info, err := os.Stat("/lib/modules")
	return err == nil && info.IsDir()
}
