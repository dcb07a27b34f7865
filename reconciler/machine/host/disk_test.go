package host_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

func TestPlanDisk(t *testing.T) {
	blank := host.Disk{Name: "sdb", Path: "/dev/sdb", Model: "WDC WD10EZEX", Size: 100*gib + 12345, Type: "disk"}
	system := host.Disk{
		Name: "sda", Path: "/dev/sda", Size: 500 * gib, Type: "disk", Signatures: []string{"gpt", "PMBR"}, Written: true, Busy: true,
		Parts: []host.Part{{Number: 1, Path: "/dev/sda1", Start: mib, Size: 100 * gib, Signatures: []string{"ext4"}, Mounts: []string{"/"}}},
	}
	for _, test := range []struct {
		name   string
		disk   host.Disk
		change func(*host.Disk)
		size   int64
		want   host.Layout
		refuse string
	}{
		{name: "empty", disk: blank, want: host.Layout{Fresh: true, System: host.Span{Start: mib, Size: 40 * gib}, Brick: host.Span{Start: mib + 40*gib, Size: 60*gib - 2*mib}}},
		{name: "empty, small system", disk: blank, size: 16*gib + 5, want: host.Layout{Fresh: true, System: host.Span{Start: mib, Size: 16 * gib}, Brick: host.Span{Start: mib + 16*gib, Size: 84*gib - 2*mib}}},
		{name: "too small a system", disk: blank, size: 15 * gib, refuse: "a system partition of 15Gi is too small"},
		{name: "too small a disk", disk: blank, change: func(d *host.Disk) { d.Size = 48 * gib }, refuse: "too small: 40Gi for the system and 8Gi for the brick need more than 48Gi; give a smaller --system"},
		{name: "just large enough", disk: blank, change: func(d *host.Disk) { d.Size = 48*gib + 2*mib }, want: host.Layout{Fresh: true, System: host.Span{Start: mib, Size: 40 * gib}, Brick: host.Span{Start: mib + 40*gib, Size: 8 * gib}}},
		{name: "a file system", disk: blank, change: func(d *host.Disk) { d.Signatures = []string{"ext4 photos"} }, refuse: "it is not empty: ext4 photos. Save what is worth it; then empty it yourself: wipefs --all /dev/sdb && dd if=/dev/zero of=/dev/sdb bs=1M count=16 conv=fsync; nothing was written"},
		{name: "LVM", disk: blank, change: func(d *host.Disk) { d.Signatures, d.Users = []string{"LVM2_member"}, []string{"lvm vg0-home"} }, refuse: "it is not empty: lvm vg0-home, LVM2_member."},
		{name: "RAID", disk: blank, change: func(d *host.Disk) { d.Signatures = []string{"linux_raid_member pc-01:0"} }, refuse: "it is not empty: linux_raid_member pc-01:0."},
		{name: "ZFS", disk: blank, change: func(d *host.Disk) { d.Signatures = []string{"zfs_member tank"} }, refuse: "it is not empty: zfs_member tank."},
		{name: "an empty table", disk: blank, change: func(d *host.Disk) { d.Signatures = []string{"dos"} }, refuse: "it is not empty: partition table dos."},
		{name: "partitions", disk: blank, change: func(d *host.Disk) {
			d.Signatures = []string{"gpt", "PMBR"}
			d.Parts = []host.Part{{Number: 1, Path: "/dev/sdb1", Size: 90 * gib, Signatures: []string{"ntfs Windows"}, Mounts: []string{"/mnt"}}}
		}, refuse: "it is not empty: partition 1 of 90Gi (ntfs Windows, mounted at /mnt), partition table gpt. Save what is worth it; then empty it yourself: wipefs --all /dev/sdb1 /dev/sdb && "},
		{name: "mounted", disk: blank, change: func(d *host.Disk) { d.Mounts = []string{"/srv"} }, refuse: "it is not empty: mounted at /srv."},
		{name: "held by who knows", disk: blank, change: func(d *host.Disk) { d.Busy = true }, refuse: "the kernel has it in use, maybe for another container"},
		{name: "unknown data", disk: blank, change: func(d *host.Disk) { d.Written = true }, refuse: "data in its first 16 MiB, of a kind that nobody here knows"},
		{name: "read-only", disk: blank, change: func(d *host.Disk) { d.ReadOnly = true }, refuse: "it is read-only"},
		{name: "USB", disk: blank, change: func(d *host.Disk) { d.Portable = true }, refuse: "it can be unplugged"},
		{name: "a partition", disk: blank, change: func(d *host.Disk) { d.Type = "part" }, refuse: "it is not a whole disk, but of type part"},
		{name: "ours", disk: blank, change: func(d *host.Disk) {
			d.Signatures, d.Written = []string{"gpt"}, true
			d.Parts = []host.Part{{Number: 1, Name: host.SystemPartition, Mounts: []string{"/var/lib/containerd"}}, {Number: 2, Name: host.BrickPartition}}
		}},

		{name: "free end", disk: system, want: host.Layout{Brick: host.Span{Start: 100*gib + mib, Size: 400*gib - 2*mib}}},
		{name: "free end, not aligned", disk: system, change: func(d *host.Disk) { d.Parts[0].Size -= 512 }, want: host.Layout{Brick: host.Span{Start: 100*gib + mib, Size: 400*gib - 2*mib}}},
		{name: "little at the end", disk: system, change: func(d *host.Disk) { d.Size = 107 * gib }, refuse: "the running system is on it, and only 6Gi are free at its end, where a brick needs 8Gi"},
		{name: "nothing at the end", disk: system, change: func(d *host.Disk) { d.Size = 100*gib + mib }, refuse: "only 0 are free at its end"},
		{name: "free end, MBR", disk: system, change: func(d *host.Disk) { d.Signatures = []string{"dos"} }, refuse: "the running system is on it, without a GPT that could take a partition more"},
		{name: "free end, ours", disk: system, change: func(d *host.Disk) { d.Parts = append(d.Parts, host.Part{Number: 2, Name: host.BrickPartition}) }},
		{name: "system on the whole disk", disk: blank, change: func(d *host.Disk) { d.Signatures, d.Mounts = []string{"ext4"}, []string{"/"} }, refuse: "without a GPT"},
		{name: "system within LVM", disk: system, change: func(d *host.Disk) {
			d.Parts[0].Users, d.Parts[0].Signatures = []string{"lvm vg0-root"}, []string{"LVM2_member"}
		}, want: host.Layout{Brick: host.Span{Start: 100*gib + mib, Size: 400*gib - 2*mib}}},
		{name: "system on a stick", disk: system, change: func(d *host.Disk) { d.Portable = true }, refuse: "it can be unplugged"},
	} {
		d := test.disk
		d.Parts = slices.Clone(d.Parts)
		if test.change != nil {
			test.change(&d)
		}
		got, err := host.PlanDisk(d, test.size)
		if got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
		switch {
		case (err != nil) != (test.refuse != ""):
			t.Errorf("%s: got error %v, want %q", test.name, err, test.refuse)
		case err != nil && !(strings.HasPrefix(err.Error(), "split "+d.String()+": ") && strings.Contains(err.Error(), test.refuse) && strings.HasSuffix(err.Error(), "; nothing was written")):
			t.Errorf("%s: got\n%v\nwant\n%s", test.name, err, test.refuse)
		}
	}
}

func TestDiskLines(t *testing.T) {
	m := hosttest.NewDebian(t)
	disks, err := host.Disks(t.Context(), m.Host)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/dev/sda 465Gi WDC WD5000AAKX: cannot be used: the running system is on it, without a GPT that could take a partition more; give another disk",
		"/dev/sdb 100Gi Samsung SSD 860: --disk /dev/sdb would make a partition km-system of 40Gi for containers and images and make a partition km-brick of 59Gi for volumes",
	}
	if got := host.DiskLines(disks, 0); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if changes := m.Runner.Changes(); len(changes) > 0 {
		t.Errorf("did %q", changes)
	}
	// What a container sees of the computer around it is not its own.
	if err := os.Remove(m.Path("/dev/sda")); err != nil {
		t.Fatal(err)
	}
	if disks, err = host.Disks(t.Context(), m.Host); err != nil || len(disks) != 1 {
		t.Errorf("%v, %v", disks, err)
	}
}

// Without --disk no disk is so much as looked at.
func TestNoDisk(t *testing.T) {
	m := hosttest.NewDebian(t)
	o := options(t, m, hosttest.Bundle(t))
	o.Disk = ""
	if err := host.Do(t.Context(), host.Install(m.Host, o), quiet); err != nil {
		t.Fatal(err)
	}
	for _, line := range m.Runner.Lines() {
		for _, tool := range []string{"lsblk", "sfdisk", "mkfs", "wipefs", "partx"} {
			if strings.HasPrefix(line, tool) {
				t.Errorf("did %s", line)
			}
		}
	}
}

// diskStep is the step of a machine whose packages are there.
func diskStep(t *testing.T, m *hosttest.Debian) host.Step {
	t.Helper()
	steps := host.Install(m.Host, options(t, m, hosttest.Bundle(t)))
	return steps[slices.IndexFunc(steps, func(s host.Step) bool { return s.Name == "disk" })]
}

// The disk gets data after everybody agreed that it is empty.
func TestDiskWrittenInBetween(t *testing.T) {
	for name, spoil := range map[string]func(m *hosttest.Debian){
		"a file system":      func(m *hosttest.Debian) { m.Signatures["/dev/sdb"] = "ext4 photos" },
		"partitions":         func(m *hosttest.Debian) { m.Parts = []hosttest.Part{{Name: "photos", Start: 1, Size: 1000}} },
		"data in the middle": func(m *hosttest.Debian) { write(t, m.Path("/dev/sdb"), 15<<20) },
	} {
		m := hosttest.NewDebian(t)
		step := diskStep(t, m)
		if todo, err := step.Look(t.Context()); err != nil || len(todo) == 0 {
			t.Fatal(todo, err)
		}
		spoil(m)
		if err := step.Do(t.Context()); err == nil || !strings.Contains(err.Error(), "it is not empty") {
			t.Errorf("%s: %v", name, err)
		}
		if changes := m.Runner.Changes(); len(changes) > 0 {
			t.Errorf("%s: did %q", name, changes)
		}
	}
}

func write(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("photos"), at)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What is in containerd's folder goes only where it is known to be images of ours.
func TestStoreNotEmpty(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(m *hosttest.Debian)
		want  string
	}{
		{"images", func(m *hosttest.Debian) { m.Namespaces = []string{"k8s.io"} }, ""},
		{"containers of Docker", func(m *hosttest.Debian) { m.Namespaces = []string{"moby", "k8s.io"} }, `containers or images of "moby"`},
		{"containers of Kubernetes", func(m *hosttest.Debian) {
			m.Runner.Answers["ctr --namespace k8s.io containers list"] = func(host.Command, []byte) (string, error) { return "abc\n", nil }
		}, "holds containers of Kubernetes"},
		{"nobody to ask", func(m *hosttest.Debian) { m.Active["containerd.service"] = false }, "containerd does not run to tell what is in it"},
		{"a member", func(m *hosttest.Debian) { m.Put(t, host.MachineFile, "") }, "noded reset first"},
		{"killed while emptying", func(m *hosttest.Debian) {
			m.Put(t, "/var/lib/kingmaker/emptying-containerd", "")
			m.Active["containerd.service"] = false
		}, ""},
	} {
		m := hosttest.NewDebian(t)
		m.Put(t, "/usr/lib/systemd/system/containerd.service", "")
		m.Put(t, "/var/lib/containerd/io.containerd.content.v1.content/blob", "bytes")
		m.Active["containerd.service"] = true
		test.spoil(m)
		err := diskStep(t, m).Do(t.Context())
		if test.want == "" {
			if err != nil || m.Exists("/var/lib/containerd/io.containerd.content.v1.content") || !m.Active["var-lib-containerd.mount"] {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
		if m.Get("/var/lib/containerd/io.containerd.content.v1.content/blob") != "bytes" {
			t.Errorf("%s: the data are gone", test.name)
		}
	}
}

// A partition of our name with something else on it was not made by us, and a
// second disk is not put over the first.
func TestDiskNotAsWeMadeIt(t *testing.T) {
	m := hosttest.NewDebian(t)
	m.Parts, m.Known = []hosttest.Part{{Name: host.SystemPartition, Start: 1, Size: 40 << 10}}, 1
	m.Put(t, "/dev/sdb1", "")
	m.Signatures["/dev/sdb1"] = "xfs photos"
	if _, err := diskStep(t, m).Look(t.Context()); err == nil || !strings.Contains(err.Error(), "holds xfs photos, which is not ours") {
		t.Error(err)
	}
	m = hosttest.NewDebian(t)
	m.Put(t, "/etc/systemd/system/var-lib-containerd.mount", "[Mount]\nWhat=/dev/disk/by-partuuid/another\n")
	if _, err := diskStep(t, m).Look(t.Context()); err == nil || !strings.Contains(err.Error(), "on a partition of another disk already") {
		t.Error(err)
	}
}

// Somebody gave containerd a file system of its own.
func TestStoreMounted(t *testing.T) {
	m := hosttest.NewDebian(t)
	m.Put(t, "/proc/self/mounts", "/dev/sda1 / ext4 rw 0 0\n/dev/sda7 /var/lib/containerd xfs rw 0 0\n")
	m.Active["var-lib-containerd.mount"] = true // systemd knows every mount
	if _, err := diskStep(t, m).Look(t.Context()); err == nil || !strings.Contains(err.Error(), "a file system of its own already (/dev/sda7)") {
		t.Error(err)
	}
}

// In a container nobody makes the devices of partitions. That the disk is not
// empty is more important.
func TestNoUdev(t *testing.T) {
	m := hosttest.NewDebian(t)
	if err := os.Remove(m.Path("/run/udev/control")); err != nil {
		t.Fatal(err)
	}
	if _, err := diskStep(t, m).Look(t.Context()); err == nil || !strings.Contains(err.Error(), "udev does not run") {
		t.Error(err)
	}
	m.Signatures["/dev/sdb"] = "ext4"
	if _, err := diskStep(t, m).Look(t.Context()); err == nil || !strings.Contains(err.Error(), "it is not empty: ext4") {
		t.Error(err)
	}
}

func brickStep(t *testing.T, m *hosttest.Debian) host.Step {
	t.Helper()
	steps := host.Install(m.Host, options(t, m, hosttest.Bundle(t)))
	return steps[slices.IndexFunc(steps, func(s host.Step) bool { return s.Name == "brick" })]
}

// Nothing is mounted over what is there, and nothing made over it.
func TestBrick(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(m *hosttest.Debian)
		todo  int    // lines
		want  string // error
	}{
		{"empty", func(*hosttest.Debian) {}, 4, ""},
		{"made before", func(m *hosttest.Debian) { m.Signatures["/dev/sdb2"] = "xfs km-brick" }, 3, ""},
		{"without a label", func(m *hosttest.Debian) { m.Signatures["/dev/sdb2"] = "xfs" }, 3, ""},
		{"foreign", func(m *hosttest.Debian) { m.Signatures["/dev/sdb2"] = "ext4 photos" }, 0, "holds ext4 photos, which is not made by Kingmaker; nothing was written to it. Save what is worth it, then wipefs --all /dev/sdb2"},
		{"another disk's", func(m *hosttest.Debian) {
			m.Put(t, "/etc/systemd/system/srv-brick.mount", "[Mount]\nWhat=/dev/disk/by-partuuid/another\n")
		}, 0, "on a partition of another disk already"},
		{"the folder holds something", func(m *hosttest.Debian) { m.Put(t, "/srv/brick/photo.jpg", "the sea") }, 0, "would hide what is in it now, such as photo.jpg"},
		{"somebody mounted his own", func(m *hosttest.Debian) {
			m.Put(t, "/proc/self/mounts", "/dev/sda1 / ext4 rw 0 0\n/dev/sda7 /srv/brick xfs rw 0 0\n")
		}, 0, ""},
		{"a disk without a brick", func(m *hosttest.Debian) { m.Parts, m.Known = m.Parts[:1], 1 }, 0, ""},
		{"a folder that cannot be made immutable", func(m *hosttest.Debian) {
			m.Runner.Answers["chattr"] = func(c host.Command, _ []byte) (string, error) {
				return "", hosttest.Refuse(c, 1, "chattr: Operation not supported while setting flags on /srv/brick")
			}
		}, 4, ""},
	} {
		m := hosttest.NewDebian(t)
		m.Parts, m.Known = []hosttest.Part{{Name: host.SystemPartition, Start: 1, Size: 40 << 10}, {Name: host.BrickPartition, Start: 40<<10 + 1, Size: 50 << 10}}, 2
		m.Put(t, "/dev/sdb1", "")
		m.Put(t, "/dev/sdb2", "")
		test.spoil(m)
		step, made := brickStep(t, m), m.Signatures["/dev/sdb2"]
		todo, err := step.Look(t.Context())
		if len(todo) != test.todo || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %q, %v", test.name, todo, err)
		}
		if err := step.Do(t.Context()); (err == nil) != (test.want == "") {
			t.Errorf("%s: %v", test.name, err)
		}
		changes := m.Runner.Changes()
		if test.todo == 0 && len(changes) > 0 || made != "" && m.Signatures["/dev/sdb2"] != made {
			t.Errorf("%s: did %q", test.name, changes)
		}
		if test.todo > 0 && !m.Active["srv-brick.mount"] {
			t.Errorf("%s: not mounted", test.name)
		}
		if todo, err := step.Look(t.Context()); len(todo) > 0 || (err == nil) != (test.want == "") {
			t.Errorf("%s, again: %q, %v", test.name, todo, err)
		}
	}
}
