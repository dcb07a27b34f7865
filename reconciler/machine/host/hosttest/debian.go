package hosttest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// Debian is a freshly installed PC: Debian 13, cgroup v2, one disk for the
// system and one that is empty (/dev/sdb, 100 GiB). Its programs remember what
// they were told, as far as they can be asked again.
type Debian struct {
	*host.Host
	Runner *Runner
	Root   string

	Packages   map[string]string // dpkg's status by name
	Enabled    map[string]bool   // units
	Active     map[string]bool
	Masked     map[string]bool
	Images     map[string]Stored // of containerd, by name
	Namespaces []string          // of containerd
	Accounts   []string          // that were made
	Parts      []Part            // of /dev/sdb, as its table has them
	Known      int               // how many of them the kernel knows
	Signatures map[string]string // of file systems, by device: "ext4 label"
}

// Stored is an image in containerd.
type Stored struct {
	Digest string
	Labels []string
}

// Part is a partition of /dev/sdb, in MiB.
type Part struct {
	Name        string
	Start, Size int64
}

// DiskSize of /dev/sdb in bytes.
const DiskSize = 100 << 30

// NewDebian makes a machine that nothing was done to.
func NewDebian(t testing.TB) *Debian {
	t.Helper()
	m := &Debian{
		Root:       root(t),
		Packages:   map[string]string{"iproute2": "installed", "mount": "installed", "util-linux": "installed", "procps": "installed", "kmod": "installed"},
		Enabled:    map[string]bool{},
		Active:     map[string]bool{},
		Masked:     map[string]bool{},
		Images:     map[string]Stored{},
		Signatures: map[string]string{},
	}
	m.Runner = &Runner{Answers: map[string]Answer{
		"dpkg-query": m.dpkgQuery, "dpkg": m.dpkg, "apt-get": m.aptGet, "systemctl": m.systemctl,
		"modprobe": m.modprobe, "sysctl": m.sysctl, "ctr": m.ctr, "haproxy": m.haproxy,
		"lsblk": m.lsblk, "wipefs": m.wipefs, "partx": m.partx, "sfdisk": m.sfdisk, "mkfs.ext4": m.mkfs, "mkfs.xfs": m.mkfs,
		"getent passwd": m.getent, "useradd": m.useradd,
		"dpkg-divert":    func(host.Command, []byte) (string, error) { return "", nil },
		"chattr":         func(host.Command, []byte) (string, error) { return "", nil },
		"udevadm settle": func(host.Command, []byte) (string, error) { return "", nil },
		"ip":             func(host.Command, []byte) (string, error) { return network, nil },
		"containerd": func(host.Command, []byte) (string, error) {
			return "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+deb13u1\n", nil
		},
	}}
	m.Host = &host.Host{Root: m.Root, Runner: m.Runner, Log: slog.New(slog.DiscardHandler)}
	for name, content := range bare() {
		m.Put(t, name, content)
	}
	m.Put(t, "/dev/sdb", "")
	if err := os.Truncate(m.Path("/dev/sdb"), 16<<20); err != nil { // the beginning is all that is read
		t.Fatal(err)
	}
	return m
}

// root is a folder in memory where there is one: an installation waits for the
// disk some thirty times.
func root(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "hosttest-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Put writes a file of the machine.
func (m *Debian) Put(t testing.TB, name, content string) {
	t.Helper()
	if err := m.put(name, content); err != nil {
		t.Fatal(err)
	}
}

func (m *Debian) put(name, content string) error {
	path := m.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

// Get is a file of the machine; "" where there is none.
func (m *Debian) Get(name string) string {
	content, _ := m.Read(name)
	return string(content)
}

// Tree is everything in a folder of the machine but devices: content by name.
func (m *Debian) Tree(t testing.TB, name string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	err := filepath.WalkDir(m.Path(name), func(path string, entry os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) || err == nil && (entry.IsDir() || strings.HasPrefix(path, m.Path("/dev"))) {
			return nil
		}
		content, err := os.ReadFile(path)
		tree[strings.TrimPrefix(path, m.Root)] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func bare() map[string]string {
	return map[string]string{
		"/proc/self/status":                       "Name:\tnoded\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n",
		"/proc/self/uid_map":                      "         0          0 4294967295\n",
		"/proc/filesystems":                       "nodev\tsysfs\nnodev\toverlay\n\text4\n",
		"/proc/meminfo":                           "MemTotal:        8009876 kB\nMemFree:         1234567 kB\n",
		"/proc/net/tcp":                           "  sl  local_address rem_address   st tx_queue rx_queue\n   0: 00000000:0016 00000000:0000 0A 00000000:00000000\n",
		"/proc/sys/kernel/hostname":               "pc-01\n",
		"/proc/sys/kernel/osrelease":              "6.12.48+deb13-amd64\n",
		"/proc/sys/kernel/random/boot_id":         "0e5ad2b1-1111-4222-8333-444455556666\n",
		"/proc/sys/net/ipv4/ip_forward":           "0\n",
		"/proc/sys/fs/inotify/max_user_instances": "128\n",
		"/proc/sys/fs/inotify/max_user_watches":   "1048576\n",
		"/sys/fs/cgroup/cgroup.controllers":       "cpuset cpu io memory pids\n",
		"/sys/devices/system/cpu/online":          "0-3\n",
		"/dev/sda":                                "a boot loader",
		"/dev/sda1":                               "",
		"/run/udev/control":                       "",
		"/run/systemd/system/.keep":               "",
		"/dev/kmsg":                               "",
		"/var/lib/dpkg/status":                    "",
		"/etc/os-release":                         "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID=\"13\"\nVERSION_CODENAME=trixie\nID=debian\n",
		"/etc/debian_version":                     "13.1\n",
		"/etc/machine-id":                         "5f3c8a2e1b4d4c6f9a7e0d2b3c4a5f6e\n",
		"/etc/hosts":                              "127.0.0.1 localhost\n127.0.1.1 pc-01\n",
	}
}

const network = `[
{"ifname":"lo","link_type":"loopback","address":"00:00:00:00:00:00","addr_info":[{"local":"127.0.0.1","scope":"host"}]},
{"ifname":"enp3s0","link_type":"ether","address":"52:54:00:12:34:56","addr_info":[{"local":"10.20.1.11","scope":"global"},{"local":"fe80::1","scope":"link"}]},
{"ifname":"cni0","link_type":"ether","address":"0a:58:0a:f4:00:01","linkinfo":{"info_kind":"bridge"},"addr_info":[{"local":"10.244.0.1","scope":"global"}]},
{"ifname":"veth1234","link_type":"ether","address":"0a:58:0a:f4:00:02","master":"cni0","linkinfo":{"info_kind":"veth"},"addr_info":[]},
{"ifname":"dummy0","link_type":"ether","address":"0a:58:0a:f4:00:03","linkinfo":{"info_kind":"dummy"},"addr_info":[{"local":"169.254.20.10","scope":"global"}]}
]`

func (m *Debian) dpkgQuery(c host.Command, _ []byte) (out string, err error) {
	for _, name := range c.Args[3:] {
		if status, ok := m.Packages[name]; ok {
			out += name + " " + status + "\n"
		} else {
			err = Refuse(c, 1, "dpkg-query: no packages found matching "+name)
		}
	}
	return out, err
}

func (m *Debian) dpkg(host.Command, []byte) (string, error) {
	for name := range m.Packages {
		m.Packages[name] = "installed"
	}
	return "", os.RemoveAll(m.Path("/var/lib/dpkg/updates"))
}

func (m *Debian) aptGet(c host.Command, _ []byte) (string, error) {
	install := slices.Index(c.Args, "install")
	if install < 0 {
		return "", nil
	}
	for n := install + 1; n < len(c.Args); n++ {
		if c.Args[n] == "-o" {
			n++
			continue
		}
		if strings.HasPrefix(c.Args[n], "--") {
			continue
		}
		m.Packages[c.Args[n]] = "installed"
		switch c.Args[n] {
		case "containerd":
			err := errors.Join(m.put("/usr/lib/systemd/system/containerd.service", "[Service]\n"),
				m.put("/etc/containerd/config.toml", "version = 2\n# Debian's own\n"),
				m.put("/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db", "none\n"))
			if err != nil {
				return "", err
			}
			m.Enabled["containerd.service"], m.Active["containerd.service"] = true, true
		case "haproxy":
			if err := m.put("/usr/lib/systemd/system/haproxy.service", "[Service]\n"); err != nil {
				return "", err
			}
			m.Enabled["haproxy.service"], m.Active["haproxy.service"] = true, !m.Masked["haproxy.service"]
		case "glusterfs-server": // neither enabled nor started
			err := errors.Join(m.put("/usr/lib/systemd/system/glusterd.service", "[Service]\n"),
				m.put("/usr/lib/x86_64-linux-gnu/glusterfs/gsyncd", "program\n"))
			if err != nil {
				return "", err
			}
		}
	}
	return "", nil
}

func (m *Debian) systemctl(c host.Command, _ []byte) (string, error) {
	verb, unit := c.Args[0], c.Args[len(c.Args)-1]
	word := func(yes bool, is, isnot string) (string, error) {
		if yes {
			return is + "\n", nil
		}
		return isnot + "\n", Refuse(c, 3, "")
	}
	if verb == "daemon-reload" {
		return "", nil
	}
	if !m.Exists("/etc/systemd/system/"+unit) && !m.Exists("/usr/lib/systemd/system/"+unit) && verb != "mask" && !strings.HasPrefix(verb, "is-") {
		return "", Refuse(c, 5, "Unit "+unit+" not found.")
	}
	switch verb {
	case "is-enabled":
		return word(m.Enabled[unit], "enabled", "disabled")
	case "is-active":
		return word(m.Active[unit], "active", "inactive")
	case "mask":
		m.Masked[unit] = true
	case "enable":
		m.Enabled[unit] = true
	case "start", "restart", "reload-or-restart":
		m.Active[unit] = true
	case "stop":
		m.Active[unit] = false
	case "disable":
		m.Enabled[unit] = false
		if slices.Contains(c.Args, "--now") {
			m.Active[unit] = false
		}
	case "try-restart", "reload", "unmask":
	default:
		return "", Refuse(c, 1, "Unknown command verb "+verb)
	}
	return "", nil
}

func (m *Debian) getent(c host.Command, _ []byte) (string, error) {
	if slices.Contains(m.Accounts, c.Args[1]) {
		return c.Args[1] + ":x:998:998::/:/usr/sbin/nologin\n", nil
	}
	return "", Refuse(c, 2, "")
}

func (m *Debian) useradd(c host.Command, _ []byte) (string, error) {
	m.Accounts = append(m.Accounts, c.Args[len(c.Args)-1])
	return "", nil
}

func (m *Debian) modprobe(c host.Command, _ []byte) (string, error) {
	switch c.Args[0] {
	case "overlay":
		return "", m.put("/sys/module/overlay/refcnt", "0\n")
	case "br_netfilter":
		return "", errors.Join(m.put("/proc/sys/net/bridge/bridge-nf-call-iptables", "0\n"), m.put("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "1\n"))
	case "nf_conntrack":
		return "", errors.Join(m.put("/proc/sys/net/netfilter/nf_conntrack_max", "65536\n"), m.put("/sys/module/nf_conntrack/parameters/hashsize", "65536\n"))
	}
	return "", Refuse(c, 1, "modprobe: FATAL: Module "+c.Args[0]+" not found")
}

func (m *Debian) sysctl(c host.Command, _ []byte) (string, error) {
	name, value, _ := strings.Cut(c.Args[1], "=")
	return "", m.put("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), value+"\n")
}

// haproxy finds everything good but the word "nonsense".
func (m *Debian) haproxy(c host.Command, _ []byte) (string, error) {
	config, err := os.ReadFile(c.Args[len(c.Args)-1])
	if err == nil && bytes.Contains(config, []byte("nonsense")) {
		err = Refuse(c, 1, "[ALERT] parsing: unknown keyword 'nonsense'")
	}
	return "", err
}

func (m *Debian) ctr(c host.Command, stdin []byte) (string, error) {
	if !m.Active["containerd.service"] {
		return "", Refuse(c, 1, "ctr: failed to dial \"/run/containerd/containerd.sock\": connect: no such file or directory")
	}
	line := c.String()
	switch {
	case strings.HasPrefix(line, "ctr namespaces list"):
		return strings.Join(m.Namespaces, "\n"), nil
	case strings.Contains(line, " containers list"):
		return "", nil
	case strings.Contains(line, " images list"):
		out := "REF TYPE DIGEST SIZE PLATFORMS LABELS\n"
		for name, image := range m.Images {
			labels := strings.Join(image.Labels, ",")
			if labels == "" {
				labels = "-"
			}
			out += name + " application/vnd.oci.image.manifest.v1+json " + image.Digest + " 100.7 MiB linux/amd64 " + labels + "\n"
		}
		return out, nil
	case strings.Contains(line, " images label "):
		name, label := c.Args[4], c.Args[5]
		image, ok := m.Images[name]
		if !ok {
			return "", Refuse(c, 1, "ctr: image \""+name+"\": not found")
		}
		key, value, _ := strings.Cut(label, "=")
		image.Labels = slices.DeleteFunc(image.Labels, func(l string) bool { return strings.HasPrefix(l, key+"=") })
		if value != "" {
			image.Labels = append(image.Labels, label)
		}
		m.Images[name] = image
		return "", nil
	case strings.Contains(line, " images import "):
		return "", m.load(stdin)
	}
	return "", Refuse(c, 1, "ctr: no such command")
}

// load reads an archive of images, which must be whole.
func (m *Debian) load(archive []byte) error {
	files := map[string][]byte{}
	for in := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if files[header.Name], err = io.ReadAll(in); err != nil {
			return err
		}
	}
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		return err
	}
	for _, image := range index.Manifests {
		for _, digest := range append([]string{image.Digest}, regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindAllString(string(files["blobs/"+strings.Replace(image.Digest, ":", "/", 1)]), -1)...) {
			if _, ok := files["blobs/"+strings.Replace(digest, ":", "/", 1)]; !ok {
				return fmt.Errorf("ctr: content digest %s: not found", digest)
			}
		}
		m.Images[image.Annotations["io.containerd.image.name"]] = Stored{Digest: image.Digest, Labels: []string{"io.cri-containerd.image=managed"}}
	}
	if !slices.Contains(m.Namespaces, "k8s.io") {
		m.Namespaces = append(m.Namespaces, "k8s.io")
	}
	return nil
}

func (m *Debian) lsblk(c host.Command, _ []byte) (string, error) {
	sda := `{"name":"sda","path":"/dev/sda","type":"disk","size":500107862016,"ro":false,"rm":false,"tran":"sata","rota":true,"model":"WDC WD5000AAKX","start":null,"mountpoints":[null],
"children":[{"name":"sda1","path":"/dev/sda1","type":"part","size":500000000000,"start":2048,"mountpoints":["/"]}]}`
	var parts []string
	for n, p := range m.Parts[:m.Known] {
		parts = append(parts, fmt.Sprintf(`{"name":"sdb%d","path":"/dev/sdb%d","type":"part","size":%d,"start":%d,"mountpoints":[null]}`, n+1, n+1, p.Size<<20, p.Start<<11))
	}
	sdb := fmt.Sprintf(`{"name":"sdb","path":"/dev/sdb","type":"disk","size":%d,"ro":false,"rm":false,"tran":"sata","rota":false,"model":"Samsung SSD 860","start":null,"mountpoints":[null],"children":[%s]}`,
		int64(DiskSize), strings.Join(parts, ","))
	switch c.Args[len(c.Args)-1] {
	case "/dev/sda":
		return `{"blockdevices":[` + sda + `]}`, nil
	case "/dev/sdb", "/dev/disk/by-id/ata-Samsung":
		return `{"blockdevices":[` + sdb + `]}`, nil
	}
	if strings.HasPrefix(c.Args[len(c.Args)-1], "/") {
		return "", Refuse(c, 32, "lsblk: "+c.Args[len(c.Args)-1]+": not a block device")
	}
	zram := `{"name":"zram0","path":"/dev/zram0","type":"disk","size":1024,"ro":false,"rm":false,"tran":null,"rota":false,"model":null,"mountpoints":["[SWAP]"]}`
	return `{"blockdevices":[` + sda + "," + sdb + "," + zram + `]}`, nil
}

func (m *Debian) wipefs(c host.Command, _ []byte) (string, error) {
	device := c.Args[len(c.Args)-1]
	kind, label, _ := strings.Cut(m.Signatures[device], " ")
	if device == "/dev/sdb" && len(m.Parts) > 0 {
		kind = "gpt"
	}
	if kind == "" {
		return `{"signatures": []}`, nil
	}
	return fmt.Sprintf(`{"signatures":[{"device":"x","offset":"0x438","type":%q,"uuid":null,"label":%q}]}`, kind, label), nil
}

func (m *Debian) partx(c host.Command, _ []byte) (out string, err error) {
	if c.Args[0] == "--update" {
		m.Known = len(m.Parts)
		for n := range m.Parts {
			err = errors.Join(err, m.put(fmt.Sprintf("/dev/sdb%d", n+1), ""))
		}
		return "", err
	}
	if len(m.Parts) == 0 {
		return "", Refuse(c, 1, "partx: /dev/sdb: failed to read partition table")
	}
	for n, p := range m.Parts {
		out += fmt.Sprintf("NR=\"%d\" START=\"%d\" SECTORS=\"%d\" NAME=\"%s\" UUID=\"0000-%d\"\n", n+1, p.Start<<11, p.Size<<11, p.Name, n+1)
	}
	return out, nil
}

func (m *Debian) sfdisk(c host.Command, stdin []byte) (string, error) {
	for _, match := range regexp.MustCompile(`start=(\d+)MiB, size=(\d+)MiB, .*name="(.*)"`).FindAllStringSubmatch(string(stdin), -1) {
		start, _ := strconv.ParseInt(match[1], 10, 64)
		size, _ := strconv.ParseInt(match[2], 10, 64)
		m.Parts = append(m.Parts, Part{match[3], start, size})
	}
	return "", nil
}

func (m *Debian) mkfs(c host.Command, _ []byte) (string, error) {
	m.Signatures[c.Args[len(c.Args)-1]] = strings.TrimPrefix(c.Name, "mkfs.") + " " + c.Args[slices.Index(c.Args, "-L")+1]
	return "", nil
}
