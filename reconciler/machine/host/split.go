package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
)

const (
	udev      = "/run/udev/control" // there while udev runs
	mountUnit = "var-lib-containerd.mount"
	mountFile = "/etc/systemd/system/" + mountUnit
)

// disk splits the disk that the options name, if they name one, and puts
// containerd's folder on the system's partition. Each part of it is looked at
// for itself, so that a machine that went dark in the midst goes on from there.
func (i *install) disk() Step {
	h := i.h
	look := func(ctx context.Context) (todo []string, err error) {
		if i.Disk == "" {
			return nil, nil
		}
		d, err := h.diskAt(ctx, i.Disk)
		if err != nil {
			return nil, err
		}
		l, err := PlanDisk(d, i.System)
		if err != nil {
			return nil, err
		}
		if l != (Layout{}) && !h.Exists(udev) {
			return nil, fmt.Errorf("split %s: udev does not run, and nobody else makes the devices of new partitions; in a container use a volume at %s instead", d, ContainerdDir)
		}
		for _, line := range l.words() {
			todo = append(todo, fmt.Sprintf("%s: %s", d, line))
		}
		if l == (Layout{}) && d.unknown() {
			todo = append(todo, fmt.Sprintf("%s: tell the kernel of the partitions", d))
		}
		if !l.Fresh && !d.has(SystemPartition) {
			return todo, nil // the brick alone
		}
		system, err := d.system()
		if err != nil {
			return nil, err
		}
		if err := h.isOf(storeMount(system), ContainerdDir, system); err != nil {
			return nil, err
		}
		if source := h.mounted(ContainerdDir); source != "" && !h.Exists(mountFile) {
			return nil, fmt.Errorf("%s is a file system of its own already (%s), and that is all that the disk would be split for; leave --disk out", ContainerdDir, source)
		}
		if !formatted(system) {
			todo = append(todo, fmt.Sprintf("%s: make an ext4 file system on %s", d, SystemPartition))
		}
		lines, err := h.lookUnit(ctx, storeMount(system))
		if err != nil {
			return nil, err
		}
		if todo = append(todo, lines...); len(todo) == 0 {
			return nil, nil
		}
		mounted, err := h.Active(ctx, mountUnit)
		if err != nil || mounted {
			return todo, err
		}
		emptied, err := i.mayEmpty(ctx)
		return append(todo, emptied...), err
	}
	do := func(ctx context.Context) error {
		// What the step before saw may be hours old.
		d, err := h.diskAt(ctx, i.Disk)
		if err != nil {
			return err
		}
		l, err := PlanDisk(d, i.System)
		if err != nil {
			return err
		}
		if l != (Layout{}) {
			if err := h.write(ctx, d, l); err != nil {
				return fmt.Errorf("split %s: %w", d, err)
			}
		}
		if d, err = h.known(ctx, i.Disk); err != nil || !d.has(SystemPartition) {
			return err
		}
		return i.mount(ctx, d)
	}
	return Step{"disk", look, do}
}

func (d Disk) has(name string) bool {
	return d.part(name).Name != ""
}

// part is the partition of a name; the zero value is none.
func (d Disk) part(name string) (p Part) {
	if n := slices.IndexFunc(d.Parts, func(p Part) bool { return p.Name == name }); n >= 0 {
		p = d.Parts[n]
	}
	return p
}

// unknown reports whether the kernel does not know a partition of the table.
func (d Disk) unknown() bool {
	return slices.ContainsFunc(d.Parts, func(p Part) bool { return p.Path == "" })
}

// system is the system's partition; the zero value while there is none. One
// with another file system is not what we made.
func (d Disk) system() (Part, error) {
	p := d.part(SystemPartition)
	if len(p.Signatures) > 0 && !formatted(p) {
		return Part{}, fmt.Errorf("partition %s of %s holds %s, which is not ours; save what is worth it, then wipefs --all %s", SystemPartition, d, strings.Join(p.Signatures, ", "), p.Path)
	}
	return p, nil
}

func formatted(p Part) bool { return slices.Contains(p.Signatures, "ext4 "+SystemPartition) }

// write writes a partition table, or adds a partition to it. The disk cannot get
// another user in the meantime: an empty one is held against all others.
func (h *Host) write(ctx context.Context, d Disk, l Layout) error {
	args := []string{"--no-reread", "--no-tell-kernel", "--wipe", "never", "--wipe-partitions", "never", "--lock=yes"}
	var before []byte
	if l.Fresh {
		device, err := os.OpenFile(h.Path(d.Path), os.O_RDONLY|syscall.O_EXCL, 0)
		if err != nil {
			return fmt.Errorf("take it: %w; nothing was written", err)
		}
		defer device.Close()
		if written, err := notZero(device); err != nil || written {
			return errors.Join(errors.New("it was written to just now; nothing was changed"), err)
		}
	} else {
		var err error
		if before, err = h.Run(ctx, "sfdisk", "--dump", d.Path); err != nil {
			return err
		}
		if err := h.Write(StateDir+"/"+d.Name+".sfdisk", before, 0o600); err != nil {
			return err
		}
		args = append(args, "--append")
	}
	_, err := h.Do(ctx, Command{Name: "sfdisk", Args: append(args, d.Path), Stdin: strings.NewReader(l.script())})
	if err != nil || l.Fresh {
		return err
	}
	after, err := h.Run(ctx, "sfdisk", "--dump", d.Path)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(before) {
		if bytes.Contains(line, []byte("start=")) && !bytes.Contains(after, line) {
			return fmt.Errorf("the partition %q was changed; put the table back: sfdisk %s < %s", bytes.TrimSpace(line), d.Path, h.Path(StateDir+"/"+d.Name+".sfdisk"))
		}
	}
	return nil
}

// known tells the kernel of partitions that are new, and waits until it and udev
// have made what belongs to them.
func (h *Host) known(ctx context.Context, name string) (Disk, error) {
	d, err := h.diskAt(ctx, name)
	if err != nil {
		return d, err
	}
	if !d.unknown() {
		return d, nil
	}
	if _, err := h.Run(ctx, "partx", "--update", d.Path); err != nil {
		return d, fmt.Errorf("%w; the table is written, but the kernel does not know it yet: reboot, and run it again", err)
	}
	if _, err := h.Run(ctx, "udevadm", "settle", "--timeout=30"); err != nil {
		return d, err
	}
	return h.diskAt(ctx, name)
}

// mount makes the file system, and has it at containerd's folder from now on.
func (i *install) mount(ctx context.Context, d Disk) error {
	p, err := d.system()
	if err != nil {
		return err
	}
	if !formatted(p) {
		// One in a hundred blocks for root is enough where no people write.
		if _, err := i.h.Run(ctx, "mkfs.ext4", "-q", "-m", "1", "-L", SystemPartition, p.Path); err != nil {
			return err
		}
	}
	return i.h.mount(ctx, storeMount(p), i.empty)
}

// mount starts a unit that mounts, once the folder below is ready for it.
func (h *Host) mount(ctx context.Context, u unit, ready func(context.Context) error) error {
	mounted, err := h.Active(ctx, u.name)
	if err == nil && !mounted {
		err = ready(ctx)
	}
	if err != nil {
		return err
	}
	return h.doUnit(ctx, u)
}

// isOf refuses where a unit that mounts at a folder is there already, and is for
// another partition.
func (h *Host) isOf(u unit, dir string, p Part) error {
	file := u.files[0].name
	if have, err := h.Read(file); err != nil || p.UUID != "" && bytes.Contains(have, []byte(p.UUID)) {
		return nil
	}
	return fmt.Errorf("%s is on a partition of another disk already (%s); where that disk is gone: systemctl disable %s && rm %s", dir, file, u.name, file)
}

// mounted is what is mounted at a folder; "" is nothing.
func (h *Host) mounted(dir string) (source string) {
	mounts, _ := h.Read("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == dir {
			source = fields[0]
		}
	}
	return source
}

// mayEmpty says whether containerd's folder, which the partition is mounted
// over, is emptied before; images come again from the bundle. It refuses where
// there is more than images.
func (i *install) mayEmpty(ctx context.Context) (todo []string, err error) {
	h := i.h
	entries, err := os.ReadDir(h.Path(ContainerdDir))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if i.member() {
		return nil, fmt.Errorf("this machine is a member of a site and has containers in %s; noded reset first, then install with --disk", ContainerdDir)
	}
	const what = "empty " + ContainerdDir + ", where only images are, which come again from the bundle"
	if h.Exists(emptying) {
		return []string{what}, nil
	}
	const hint = "; empty it yourself where you do not need it: systemctl stop containerd && rm -r " + ContainerdDir + "/*"
	running, err := h.Active(ctx, ContainerdUnit)
	if err != nil {
		return nil, err
	}
	if !running {
		return nil, fmt.Errorf("%s is not empty, and containerd does not run to tell what is in it%s", ContainerdDir, hint)
	}
	out, err := h.Run(ctx, "ctr", "namespaces", "list", "--quiet")
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Fields(string(out)) {
		if name != "k8s.io" {
			return nil, fmt.Errorf("%s holds containers or images of %q, which are not ours%s", ContainerdDir, name, hint)
		}
	}
	out, err = h.Run(ctx, "ctr", "--namespace", "k8s.io", "containers", "list", "--quiet")
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(out)) > 0 {
		return nil, fmt.Errorf("%s holds containers of Kubernetes%s", ContainerdDir, hint)
	}
	return []string{what}, nil
}

func (i *install) empty(ctx context.Context) error {
	todo, err := i.mayEmpty(ctx)
	if err != nil || len(todo) == 0 {
		return err
	}
	if err := i.h.Write(emptying, nil, 0o644); err != nil {
		return err
	}
	if _, err := i.h.Run(ctx, "systemctl", "stop", ContainerdUnit); err != nil {
		return err
	}
	entries, err := os.ReadDir(i.h.Path(ContainerdDir))
	for _, entry := range entries {
		err = errors.Join(err, i.h.Remove(ContainerdDir+"/"+entry.Name()))
	}
	return errors.Join(err, i.h.Remove(emptying))
}

// emptying is there while containerd's folder is being emptied: a half of it
// would not tell any more what it was.
const emptying = StateDir + "/emptying-containerd"

// storeMount mounts the partition by an ID that no other disk has. A machine
// whose disk is gone still boots, but containerd does not start on the small
// disk instead.
func storeMount(p Part) unit {
	text := header + `[Unit]
Description=Containers and images, on partition ` + SystemPartition + `
Before=` + ContainerdUnit + `

[Mount]
What=/dev/disk/by-partuuid/` + p.UUID + `
Where=` + ContainerdDir + `
Type=ext4
Options=noatime

[Install]
WantedBy=multi-user.target
`
	return unit{
		name: mountUnit,
		verb: start,
		files: []file{
			{mountFile, []byte(text), 0o644},
			{"/etc/systemd/system/" + ContainerdUnit + ".d/kingmaker-disk.conf", []byte(header + "[Unit]\nRequiresMountsFor=" + ContainerdDir + "\n"), 0o644},
		},
	}
}
