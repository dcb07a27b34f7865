package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Where things of ours are on a machine.
const (
	MachineFile = "/etc/kingmaker/machine.yaml" // there: the machine is a member of a site
	StateDir    = "/var/lib/kingmaker"          // what noded remembers
)

// ContainerdDir holds images and what containers write.
const ContainerdDir = "/var/lib/containerd"

// Options say what Install works with.
type Options struct {
	Bundle *Bundle
	Needs  Needs

	// Disk is a device that may be split into the system's partition and the
	// brick: to name it is to consent. Empty leaves every disk alone.
	Disk string
	// System is the size of the system's partition in bytes: at least 16Gi. 0 is 40Gi.
	System int64
}

// Install is what a fresh Debian machine needs to become a member of a site, in
// order. Afterwards it is a member of none: containerd and the balancer run,
// kubelet and noded wait until init or join has given them something to do.
// Done again it changes nothing, and after a failure it goes on where it was.
func Install(h *Host, o Options) []Step {
	i := &install{h: h, Options: o}
	return []Step{
		i.preflight(),
		i.bundle(),     // before anything of it is used
		i.packages(),   // they bring the tools of the following steps
		i.gluster(),    //
		i.disk(),       // before anything is stored on it
		i.brick(),      // on the disk that is split now
		i.kernel(),     //
		i.programs(),   //
		i.containerd(), //
		i.images(),     // into containerd
		i.balancer(),   // before the kubelet, which goes through it
		i.kubelet(),    //
		i.noded(),      //
	}
}

type install struct {
	h *Host
	Options
}

// member reports whether the machine belongs to a site.
func (i *install) member() bool { return i.h.Exists(MachineFile) }

const (
	leastMemory   = 900 << 20 // of a PC with 1 GiB after what firmware and kernel take
	leastDisk     = 4 << 30   // for packages, programs and images, with some air
	leastWithDisk = 1 << 30   // the same where images have a disk of their own
)

// preflight changes nothing. It refuses with all that is wrong at once.
func (i *install) preflight() Step {
	h := i.h
	look := func(context.Context) ([]string, error) {
		var errs []error
		refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
		read := func(name string) []byte {
			text, err := h.Read(name)
			if err != nil {
				refuse("%w; is /proc mounted?", err)
			}
			return text
		}
		if uid := field(read("/proc/self/status"), "Uid:"); uid != "0" && uid != "" {
			refuse("not root (uid %s); run it with sudo", uid)
		}
		if release, err := h.release(); err != nil {
			errs = append(errs, err)
		} else if release.version != 0 && release.version < 12 {
			refuse("this is Debian %d, whose containerd is too old; upgrade to Debian 12 or later", release.version)
		}
		if !h.Exists("/run/systemd/system") {
			refuse("systemd does not run here, and every service depends on it; start the machine with systemd as its first process")
		}
		if kib, err := strconv.ParseInt(field(read("/proc/meminfo"), "MemTotal:"), 10, 64); err == nil && kib<<10 < leastMemory {
			refuse("only %s of memory; a machine needs at least 1Gi, a master 2Gi", size(kib<<10))
		}
		if err := checkHostname(strings.TrimSpace(string(read("/proc/sys/kernel/hostname")))); err != nil {
			errs = append(errs, err)
		}
		if id, _ := h.Read("/etc/machine-id"); !regexp.MustCompile(`^[0-9a-f]{32}\n?$`).Match(id) {
			refuse("/etc/machine-id is no machine's ID; run systemd-machine-id-setup")
		}
		if facts, err := h.facts(); err == nil && !facts.KernelLog && !facts.UserNamespace {
			refuse("/dev/kmsg cannot be read, and without it the kubelet does not start; give the container that device")
		}
		if !h.Exists(BundleFile) { // else what it is needed for is there
			var space unix.Statfs_t
			if err := unix.Statfs(h.Path("/var/lib"), &space); err != nil {
				refuse("look for free space in /var/lib: %w", err)
			} else if free := int64(space.Bavail) * space.Bsize; i.Disk == "" && free < leastDisk {
				refuse("only %s free in /var/lib; at least %s are needed: make room, or install with --disk", size(free), size(leastDisk))
			} else if free < leastWithDisk {
				refuse("only %s free in /var/lib; at least %s are needed for packages: make room", size(free), size(leastWithDisk))
			}
		}
		if !i.member() {
			errs = append(errs, i.checkPorts()...)
		}
		return nil, errors.Join(errs...)
	}
	return Step{"preflight", look, func(context.Context) error { return nil }}
}

// checkPorts refuses where a program listens where one of ours must.
func (i *install) checkPorts() (errs []error) {
	ours := map[int]string{
		6443: "kube-apiserver", 2379: "etcd", 2380: "etcd", 10250: "the kubelet",
		10256: "kube-proxy", 10257: "kube-controller-manager", 10259: "kube-scheduler",
	}
	if !i.h.Exists(BalancerFile) {
		ours[BalancerPort] = "the balancer"
	}
	for _, port := range i.h.listening() {
		if use, ok := ours[port]; ok {
			errs = append(errs, fmt.Errorf("port %d, which %s needs, is used by another program; ss -ltnp shows by which: remove it", port, use))
		}
	}
	return errs
}

// listening are the TCP ports on which some program waits, sorted.
func (h *Host) listening() (ports []int) {
	const listen = "0A"
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, _ := h.Read(name) // IPv6 may be off
		for line := range bytes.Lines(table) {
			fields := strings.Fields(string(line))
			if len(fields) < 4 || fields[3] != listen {
				continue
			}
			_, port, _ := strings.Cut(fields[1], ":")
			if n, err := strconv.ParseUint(port, 16, 16); err == nil {
				ports = append(ports, int(n))
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// checkHostname refuses a name that could not be a Node's, unless another is
// given later: Kubernetes wants the name to be good either way.
func checkHostname(name string) error {
	if len(name) <= 63 && name != "localhost" && regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`).MatchString(name) {
		return nil
	}
	return fmt.Errorf("the host name %q cannot be a machine's: small letters, digits and - only, and not localhost; hostnamectl set-hostname pc-01", name)
}

// release is which Debian this is.
type release struct {
	codename string
	version  int // 0: not released yet
}

func (h *Host) release() (release, error) {
	text, err := h.Read("/etc/os-release")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return release{}, err
	}
	get := func(key string) string { return strings.Trim(field(text, key+"="), `"`) }
	if get("ID") != "debian" {
		return release{}, fmt.Errorf("this is no Debian (%q in /etc/os-release); install Debian 13", get("ID"))
	}
	version, _ := strconv.Atoi(get("VERSION_ID"))
	return release{get("VERSION_CODENAME"), version}, nil
}

// size is a number of bytes as people say it, rounded down: 931Gi.
func size(bytes int64) string {
	for _, unit := range []struct {
		name  string
		bytes int64
	}{{"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}} {
		if bytes >= unit.bytes {
			return strconv.FormatInt(bytes/unit.bytes, 10) + unit.name
		}
	}
	return strconv.FormatInt(bytes, 10)
}
