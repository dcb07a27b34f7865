package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts are what a machine is like where Kubernetes cares. The zero value is
// not a machine that Kubernetes could run on.
type Facts struct {
	Cgroup         int    // version: 1 or 2
	Resources      bool   // CAP_SYS_RESOURCE: may lower out-of-memory scores and raise limits
	UserNamespace  bool   // root here is not root of the computer
	Container      string // what contains the machine, such as docker; "" is a computer of its own
	Conntrack      bool   // the size of the kernel's connection table can be set
	KernelLog      bool   // /dev/kmsg can be read
	Overlay        bool   // the kernel has overlayfs
	StoreOnOverlay bool   // containerd's folder lies on overlayfs, which cannot be stacked on itself
}

// Needs are the settings by which Kubernetes runs on a machine as it is.
type Needs struct {
	CgroupDriver        string          // of the kubelet: systemd or cgroupfs
	FailCgroupV1        bool            // of the kubelet
	FeatureGates        map[string]bool // of the kubelet; nil where none is needed
	KeepConntrack       bool            // kube-proxy must not size the connection table: conntrack.maxPerCore 0
	SystemdCgroup       bool            // of containerd's runc
	RestrictOOMScoreAdj bool            // of containerd
	Snapshotter         string          // of containerd: overlayfs or native
	Words               []string        // each choice with its reason
}

// Detect looks at the machine, and logs what it chose and why.
func Detect(ctx context.Context, h *Host) (Needs, error) {
	facts, err := h.facts()
	if err != nil {
		return Needs{}, fmt.Errorf("detect what this machine needs: %w", err)
	}
	needs := facts.Needs()
	for _, line := range needs.Words {
		h.Log.InfoContext(ctx, "detected", "choice", line)
	}
	return needs, nil
}

// Needs is what follows from the facts.
func (f Facts) Needs() Needs {
	n := Needs{
		CgroupDriver: "systemd", SystemdCgroup: true, FailCgroupV1: true,
		KeepConntrack: !f.Conntrack, RestrictOOMScoreAdj: !f.Resources,
		Snapshotter: "overlayfs",
	}
	say := func(line string) { n.Words = append(n.Words, line) }
	where := "on a computer of its own"
	if f.Container != "" {
		where = "in a container (" + f.Container + ")"
	}
	say("runs " + where)

	// The systemd driver is for the one hierarchy of version 2. With version 1,
	// which systemd gives up, whoever writes to the file system directly works
	// everywhere, in a container as well.
	if f.Cgroup == 1 {
		n.CgroupDriver, n.SystemdCgroup, n.FailCgroupV1 = "cgroupfs", false, false
		say("cgroup v1: kubelet with failCgroupV1 false and cgroupDriver cgroupfs")
	} else {
		say("cgroup v2: kubelet with cgroupDriver systemd, containerd with SystemdCgroup")
	}
	if f.Resources {
		say("CAP_SYS_RESOURCE: out-of-memory scores as Kubernetes wants them")
	} else {
		say("no CAP_SYS_RESOURCE: containerd with restrict_oom_score_adj")
	}
	// The gate tells the kubelet to bear what it may not write, and the missing
	// kernel log; it has no effect where root is root.
	if f.UserNamespace {
		n.FeatureGates = map[string]bool{"KubeletInUserNamespace": true}
		say("user namespace: kubelet with feature gate KubeletInUserNamespace")
	}
	if f.Conntrack {
		say("connection table: sized by kube-proxy")
	} else {
		say("connection table cannot be sized here: kube-proxy with conntrack.maxPerCore 0")
	}
	switch {
	case f.StoreOnOverlay:
		n.Snapshotter = "native"
		say("/var/lib/containerd lies on overlayfs: containerd with snapshotter native, which copies and is slow")
	case !f.Overlay:
		n.Snapshotter = "native"
		say("no overlayfs in this kernel: containerd with snapshotter native, which copies and is slow")
	}
	return n
}

// facts reads what the kernel and systemd say of the machine.
func (h *Host) facts() (f Facts, err error) {
	status, err := h.Read("/proc/self/status")
	if err != nil {
		return f, err
	}
	capabilities, err := strconv.ParseUint(field(status, "CapEff:"), 16, 64)
	if err != nil {
		return f, fmt.Errorf("read /proc/self/status: no CapEff: %w", err)
	}
	f.Resources = capabilities&(1<<unix.CAP_SYS_RESOURCE) != 0
	// Each folder of a version 2 hierarchy has this file; the mixed mode of
	// systemd has it in a subfolder alone.
	f.Cgroup = 1
	if h.Exists("/sys/fs/cgroup/cgroup.controllers") {
		f.Cgroup = 2
	}
	// Outside a user namespace the whole range maps to itself.
	if ids, err := h.Read("/proc/self/uid_map"); err == nil {
		f.UserNamespace = strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295"
	}
	f.Container = h.container()
	f.Conntrack = true
	for _, name := range []string{"/proc/sys/net/netfilter/nf_conntrack_max", "/sys/module/nf_conntrack/parameters/hashsize"} {
		f.Conntrack = f.Conntrack && h.writable(name, f.Container != "")
	}
	if log, err := os.Open(h.Path("/dev/kmsg")); err == nil {
		f.KernelLog = true
		log.Close()
	}
	// A computer loads the module when it needs it.
	systems, _ := h.Read("/proc/filesystems")
	f.Overlay = f.Container == "" || bytes.Contains(systems, []byte("\toverlay\n"))
	f.StoreOnOverlay = h.onOverlay(ContainerdDir)
	return f, nil
}

// container is what systemd, or else Docker or Podman, says that contains it.
func (h *Host) container() string {
	if name, err := h.Read("/run/systemd/container"); err == nil {
		return strings.TrimSpace(string(name))
	}
	if h.Exists("/.dockerenv") {
		return "docker"
	}
	if h.Exists("/run/.containerenv") {
		return "podman"
	}
	return ""
}

// writable opens a switch of the kernel without writing to it: modes and
// capabilities do not tell what a container may. One that is missing comes with
// its module, on a computer.
func (h *Host) writable(name string, container bool) bool {
	f, err := os.OpenFile(h.Path(name), os.O_WRONLY, 0)
	if os.IsNotExist(err) {
		return !container
	}
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// onOverlay reports whether a folder, or the one that it would be made in, is
// on overlayfs.
func (h *Host) onOverlay(name string) bool {
	for ; !h.Exists(name); name = filepath.Dir(name) {
	}
	var fs unix.Statfs_t
	return unix.Statfs(h.Path(name), &fs) == nil && fs.Type == unix.OVERLAYFS_SUPER_MAGIC
}

// field is the first word after a key at the start of a line; "" where there is none.
func field(text []byte, key string) string {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				return words[0]
			}
		}
	}
	return ""
}
