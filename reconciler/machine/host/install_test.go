package host_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
)

func quiet(string) {}

// options are those of a usual PC, whose second disk may be split.
func options(t *testing.T, m *hosttest.Debian, b *host.Bundle) host.Options {
	t.Helper()
	needs, err := host.Detect(t.Context(), m.Host)
	if err != nil {
		t.Fatal(err)
	}
	return host.Options{Bundle: b, Needs: needs, Disk: "/dev/sdb"}
}

func look(t *testing.T, steps []host.Step) []string {
	t.Helper()
	todo, err := host.Look(t.Context(), steps)
	if err != nil {
		t.Fatal(err)
	}
	return todo
}

// Each step has something to do on a bare machine, and nothing when it was done;
// and then nothing at all is changed any more.
func TestInstall(t *testing.T) {
	m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
	steps := host.Install(m.Host, options(t, m, b))
	if todo := look(t, steps); len(todo) < len(steps) {
		t.Errorf("on a bare machine only: %q", todo)
	}
	if changes := m.Runner.Changes(); len(changes) > 0 {
		t.Errorf("looking did %q", changes)
	}
	for _, s := range steps {
		if s.Name == "preflight" {
			continue
		}
		if todo, err := s.Look(t.Context()); err != nil || len(todo) == 0 {
			t.Errorf("%s has nothing to do: %v", s.Name, err)
		}
		if err := s.Do(t.Context()); err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		if todo, err := s.Look(t.Context()); err != nil || len(todo) > 0 {
			t.Errorf("%s is done, and would do: %q, %v", s.Name, todo, err)
		}
	}
	for _, unit := range []string{"containerd.service", host.BalancerUnit, "var-lib-containerd.mount", "srv-brick.mount"} {
		if !m.Enabled[unit] || !m.Active[unit] {
			t.Errorf("%s does not run", unit)
		}
	}
	for _, unit := range []string{host.KubeletUnit, host.NodedUnit} {
		if !m.Enabled[unit] || m.Active[unit] {
			t.Errorf("%s is not what waits for a site", unit)
		}
	}
	if m.Active["haproxy.service"] {
		t.Error("Debian's haproxy runs")
	}
	const geo = "/usr/lib/x86_64-linux-gnu/glusterfs/gsyncd"
	if m.Exists(geo) || !m.Exists(geo+".distrib") {
		t.Errorf("%s is not aside", geo)
	}
	for name, image := range m.Images {
		if !slices.Contains(image.Labels, "io.cri-containerd.pinned=pinned") {
			t.Errorf("image %s is not pinned", name)
		}
	}
	if got := m.Get("/etc/containerd/config.toml.before-kingmaker"); !strings.Contains(got, "Debian's own") {
		t.Errorf("the configuration that was there is gone: %q", got)
	}
	for _, name := range []string{"/usr/local/bin/kubelet", "/opt/cni/bin/bridge"} {
		if info, err := os.Stat(m.Path(name)); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s cannot be run: %v", name, err)
		}
	}

	before := m.Tree(t, "/")
	m.Runner.Forget()
	if err := host.Do(t.Context(), steps, func(line string) { t.Errorf("done twice: %s", line) }); err != nil {
		t.Fatal(err)
	}
	for _, s := range steps { // even when nobody looked
		if err := s.Do(t.Context()); err != nil {
			t.Errorf("%s again: %v", s.Name, err)
		}
	}
	if after := m.Tree(t, "/"); !maps.Equal(before, after) {
		t.Error("the second time changed files")
	}
	// Only what systemctl may be told any number of times: to go on.
	for _, line := range m.Runner.Changes() {
		if !strings.HasPrefix(line, "systemctl ") {
			t.Errorf("the second time did %q", line)
		}
	}
}

// Whichever command fails, or was done though it seemed to fail: the error says
// which step, and the next try completes, with the same result as at once.
func TestInstallResumes(t *testing.T) {
	b := hosttest.Bundle(t)
	m := hosttest.NewDebian(t)
	if err := host.Do(t.Context(), host.Install(m.Host, options(t, m, b)), quiet); err != nil {
		t.Fatal(err)
	}
	lines := m.Runner.Lines()
	want := state(t, m)
	for n, line := range lines {
		for _, when := range []string{"before", "after"} {
			t.Run(fmt.Sprintf("%d %s", n+1, when), func(t *testing.T) {
				t.Parallel()
				m := hosttest.NewDebian(t)
				steps := host.Install(m.Host, options(t, m, b))
				power := errors.New("the power went off")
				fail := func(at int, _ string) error {
					if at == n+1 {
						return power
					}
					return nil
				}
				if when == "before" {
					m.Runner.Before = fail
				} else {
					m.Runner.After = fail
				}
				err := host.Do(t.Context(), steps, quiet)
				m.Runner.Before, m.Runner.After = nil, nil
				if err == nil {
					t.Errorf("%s: no error", line)
				}
				if err != nil && (!slices.ContainsFunc(steps, func(s host.Step) bool { return strings.HasPrefix(err.Error(), s.Name+": ") }) || !errors.Is(err, power)) {
					t.Errorf("%s: the error does not say what and where: %v", line, err)
				}
				if err := host.Do(t.Context(), steps, quiet); err != nil {
					t.Fatalf("%s: the second try: %v", line, err)
				}
				if todo := look(t, steps); len(todo) > 0 {
					t.Errorf("%s: still to do: %q", line, todo)
				}
				if got := state(t, m); !maps.Equal(got, want) {
					t.Errorf("%s: the result differs\n%v\n%v", line, got, want)
				}
			})
		}
	}
}

// state is all that an installation leaves on a machine.
func state(t *testing.T, m *hosttest.Debian) map[string]string {
	t.Helper()
	state := m.Tree(t, "/")
	for _, what := range []struct {
		name  string
		value any
	}{{"packages", m.Packages}, {"enabled", m.Enabled}, {"active", m.Active}, {"masked", m.Masked}, {"images", m.Images}, {"parts", m.Parts}, {"signatures", m.Signatures}} {
		state[what.name] = fmt.Sprint(what.value)
	}
	return state
}

// A machine that has everything else gets just what is missing.
func TestInstallRepairs(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(m *hosttest.Debian)
		todo  string
	}{
		{"a package was removed", func(m *hosttest.Debian) { delete(m.Packages, "fdisk") }, "install packages from the bundle: fdisk"},
		{"dpkg was interrupted", func(m *hosttest.Debian) { m.Packages["fdisk"] = "half-configured" }, "finish the installation of packages that was interrupted"},
		{"dpkg was killed", func(m *hosttest.Debian) { m.Put(t, "/var/lib/dpkg/updates/0001", "") }, "finish the installation of packages that was interrupted"},
		{"a program was damaged", func(m *hosttest.Debian) {
			os.WriteFile(m.Path("/usr/local/bin/kubelet"), []byte("this is bin/kubeleT\n"), 0o755)
		}, "copy to /usr/local/bin: kubelet"},
		{"a program cannot be run", func(m *hosttest.Debian) { os.Chmod(m.Path("/usr/local/bin/kubelet"), 0o644) }, "copy to /usr/local/bin: kubelet"},
		{"the configuration was changed", func(m *hosttest.Debian) { os.WriteFile(m.Path("/etc/containerd/config.toml"), nil, 0o644) }, "write /etc/containerd/config.toml"},
		{"containerd was stopped", func(m *hosttest.Debian) { m.Active["containerd.service"] = false }, "start containerd.service"},
		{"the balancer was disabled", func(m *hosttest.Debian) { m.Enabled[host.BalancerUnit] = false }, "enable kingmaker-balancer.service"},
		{"an image is missing", func(m *hosttest.Debian) { delete(m.Images, "kingmaker.dev/etcd:v3.6.16") }, "import images (1Mi): etcd:v3.6.16"},
		{"an image is another", func(m *hosttest.Debian) { m.Images["kingmaker.dev/etcd:v3.6.16"] = hosttest.Stored{Digest: "sha256:1"} }, "import images (1Mi): etcd:v3.6.16"},
		{"an image is not pinned", func(m *hosttest.Debian) {
			i := m.Images["kingmaker.dev/etcd:v3.6.16"]
			m.Images["kingmaker.dev/etcd:v3.6.16"] = hosttest.Stored{Digest: i.Digest}
		}, "keep images on a full disk: kingmaker.dev/etcd:v3.6.16"},
		{"an image of an earlier bundle", func(m *hosttest.Debian) {
			m.Images["kingmaker.dev/etcd:v3.6.15"] = hosttest.Stored{Digest: "sha256:1", Labels: []string{"io.cri-containerd.pinned=pinned"}}
		}, "let go of images of an earlier bundle: kingmaker.dev/etcd:v3.6.15"},
		{"a setting was lowered", func(m *hosttest.Debian) { os.WriteFile(m.Path("/proc/sys/net/ipv4/ip_forward"), []byte("0\n"), 0o644) }, "set net.ipv4.ip_forward from 0 to 1 (Pods reach other machines)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
			steps := host.Install(m.Host, options(t, m, b))
			if err := host.Do(t.Context(), steps, quiet); err != nil {
				t.Fatal(err)
			}
			test.spoil(m)
			var told []string
			if err := host.Do(t.Context(), steps, func(line string) { told = append(told, line) }); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(told, []string{test.todo}) {
				t.Errorf("did %q, want %q", told, test.todo)
			}
			if todo := look(t, steps); len(todo) > 0 {
				t.Errorf("still to do: %q", todo)
			}
		})
	}
}

func TestPreflight(t *testing.T) {
	for _, test := range []struct {
		name, file, content, want string
	}{
		{"not root", "/proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n", "not root (uid 1000); run it with sudo"},
		{"another distribution", "/etc/os-release", "ID=ubuntu\nID_LIKE=debian\n", `this is no Debian ("ubuntu" in /etc/os-release); install Debian 13`},
		{"an old Debian", "/etc/os-release", "ID=debian\nVERSION_ID=\"11\"\nVERSION_CODENAME=bullseye\n", "this is Debian 11, whose containerd is too old"},
		{"little memory", "/proc/meminfo", "MemTotal: 500000 kB\n", "only 488Mi of memory"},
		{"a name that no machine has", "/proc/sys/kernel/hostname", "PC_01\n", `the host name "PC_01" cannot be a machine's`},
		{"localhost", "/proc/sys/kernel/hostname", "localhost\n", "hostnamectl set-hostname pc-01"},
		{"no machine ID", "/etc/machine-id", "uninitialized\n", "run systemd-machine-id-setup"},
		{"a port in use", "/proc/net/tcp6", "sl\n 0: 00000000000000000000000000000000:192B 00000000000000000000000000000000:0000 0A 0\n", "port 6443, which kube-apiserver needs, is used by another program"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := hosttest.NewDebian(t)
			m.Put(t, test.file, test.content)
			steps := host.Install(m.Host, host.Options{Bundle: hosttest.Bundle(t)})
			_, err := host.Look(t.Context(), steps)
			if err == nil || !strings.Contains(err.Error(), "preflight: ") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if err := host.Do(t.Context(), steps, quiet); err == nil {
				t.Error("went on")
			}
			if changes := m.Runner.Changes(); len(changes) > 0 {
				t.Errorf("did %q", changes)
			}
		})
	}
}

// Everything that is wrong is told at once.
func TestPreflightTellsAll(t *testing.T) {
	m := hosttest.NewDebian(t)
	m.Put(t, "/proc/sys/kernel/hostname", "localhost")
	m.Put(t, "/etc/machine-id", "")
	if err := os.Remove(m.Path("/dev/kmsg")); err != nil {
		t.Fatal(err)
	}
	_, err := host.Look(t.Context(), host.Install(m.Host, host.Options{Bundle: hosttest.Bundle(t)}))
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("not three faults: %v", err)
	}
}

// On a member its own programs listen, and a bundle with another Kubernetes is
// no installation but an upgrade.
func TestInstallOnMember(t *testing.T) {
	m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
	o := options(t, m, b)
	o.Disk = ""
	if err := host.Do(t.Context(), host.Install(m.Host, o), quiet); err != nil {
		t.Fatal(err)
	}
	m.Put(t, host.MachineFile, "site: room-1\n")
	m.Put(t, "/proc/net/tcp", "sl\n 0: 00000000:192B 00000000:0000 0A 0\n")
	if todo := look(t, host.Install(m.Host, o)); len(todo) > 0 {
		t.Errorf("on a member: %q", todo)
	}
	o.Disk = "/dev/sdb"
	if _, err := host.Look(t.Context(), host.Install(m.Host, o)); err == nil || !strings.Contains(err.Error(), "noded reset first") {
		t.Errorf("the disk of a member: %v", err)
	}
	o.Disk = ""
	newer := *b
	newer.Kubernetes = "v1.37.0"
	o.Bundle = &newer
	if _, err := host.Look(t.Context(), host.Install(m.Host, o)); err == nil || !strings.Contains(err.Error(), "member of a site with Kubernetes v1.36.3") {
		t.Errorf("an upgrade: %v", err)
	}
}

func TestBundleDamaged(t *testing.T) {
	m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
	if err := os.WriteFile(filepath.Join(b.Dir, "cni/bridge"), []byte("this is cnI/bridge\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := host.Do(t.Context(), host.Install(m.Host, options(t, m, b)), quiet)
	if err == nil || !strings.HasPrefix(err.Error(), "bundle: verify bundle: "+b.Dir+"/cni/bridge is damaged") {
		t.Error(err)
	}
	if changes := m.Runner.Changes(); len(changes) > 0 {
		t.Errorf("did %q", changes)
	}
}

// What was verified may be changed before it is used: then it is not.
func TestBundleChanged(t *testing.T) {
	for name, want := range map[string]string{"bin/kubelet": "programs: copy kubelet", "images/blobs": "images: read the bundle's images"} {
		m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
		m.Runner.Before = func(_ int, line string) error {
			if !strings.HasPrefix(line, "apt-get") {
				return nil
			}
			return filepath.WalkDir(filepath.Join(b.Dir, name), func(path string, entry os.DirEntry, err error) error {
				if err != nil || entry.IsDir() {
					return err
				}
				return os.WriteFile(path, []byte("not what was verified"), 0o644)
			})
		}
		err := host.Do(t.Context(), host.Install(m.Host, options(t, m, b)), quiet)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if m.Exists("/usr/local/bin/kubelet") && m.Get("/usr/local/bin/kubelet") != "this is bin/kubelet\n" || len(m.Images) > 0 {
			t.Errorf("%s: used all the same", name)
		}
	}
}

func TestOpenBundle(t *testing.T) {
	b := hosttest.Bundle(t)
	if _, err := host.OpenBundle(filepath.Join(b.Dir, "images")); err == nil || !strings.Contains(err.Error(), "it has no bundle.json") {
		t.Error(err)
	}
	for name, content := range map[string]string{"bundle.json": "{", "SHA256SUMS": "1234  bin/noded\n"} {
		b := hosttest.Bundle(t)
		if err := os.WriteFile(filepath.Join(b.Dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := host.OpenBundle(b.Dir); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	sum := strings.Repeat("0", 64)
	if err := os.WriteFile(filepath.Join(b.Dir, "SHA256SUMS"), []byte(sum+"  ../../etc/passwd\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := host.OpenBundle(b.Dir); err == nil || !strings.Contains(err.Error(), "not the sum of a file in it") {
		t.Errorf("a way out of the bundle: %v", err)
	}
}

// The bundle's packages on the release that they are for, and only there.
func TestPackagesSource(t *testing.T) {
	for codename, want := range map[string]bool{"trixie": true, "bookworm": false} {
		m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
		m.Put(t, "/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME="+codename+"\n")
		if err := host.Do(t.Context(), host.Install(m.Host, options(t, m, b)), quiet); err != nil {
			t.Fatal(err)
		}
		private := fmt.Sprintf("-o Dir::Etc::sourcelist=%s -o Dir::Etc::sourceparts=-", m.Path("/var/lib/kingmaker/apt/sources.list"))
		for _, line := range m.Runner.Lines() {
			if strings.HasPrefix(line, "apt-get ") && strings.Contains(line, private) != want {
				t.Errorf("%s: %s", codename, line)
			}
		}
		if list := m.Get("/var/lib/kingmaker/apt/sources.list"); want && list != "deb [trusted=yes] file://"+b.Dir+"/debian ./\n" {
			t.Errorf("%s: %s", codename, list)
		}
	}
}

// Another program that installs packages is waited for.
func TestPackagesLocked(t *testing.T) {
	m := hosttest.NewDebian(t)
	m.Put(t, "/var/lib/dpkg/lock-frontend", "")
	step := host.Install(m.Host, options(t, m, hosttest.Bundle(t)))[2]
	lock, err := os.OpenFile(m.Path("/var/lib/dpkg/lock-frontend"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := step.Do(impatient); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if changes := m.Runner.Changes(); len(changes) > 0 {
		t.Errorf("did %q", changes)
	}
	done := make(chan error)
	go func() { done <- step.Do(t.Context()) }()
	lock.Close()
	if err := <-done; err != nil || m.Packages["haproxy"] != "installed" {
		t.Error(err)
	}
}

// The site's haproxy is ours; one that was there before belongs to somebody.
func TestHaproxyThatWasThere(t *testing.T) {
	m := hosttest.NewDebian(t)
	m.Packages["haproxy"] = "installed"
	if err := host.Do(t.Context(), host.Install(m.Host, options(t, m, hosttest.Bundle(t))), quiet); err != nil {
		t.Fatal(err)
	}
	if m.Masked["haproxy.service"] {
		t.Error("masked")
	}
}

// A container without a module loader: what is missing is said once, and the
// rest goes on.
func TestKernelInContainer(t *testing.T) {
	m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
	m.Put(t, "/run/systemd/container", "docker\n")
	m.Put(t, "/sys/module/overlay/refcnt", "0\n")
	m.Runner.Answers["modprobe"] = func(c host.Command, _ []byte) (string, error) {
		return "", hosttest.Refuse(c, 1, "modprobe: FATAL: Module br_netfilter not found in directory /lib/modules/6.18.44")
	}
	var log bytes.Buffer
	m.Log = slog.New(slog.NewTextHandler(&log, nil))
	steps := host.Install(m.Host, options(t, m, b))
	if err := host.Do(t.Context(), steps, quiet); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "module=br_netfilter without=\"Services between Pods of one machine\"") {
		t.Errorf("nothing in the log:\n%s", &log)
	}
	if todo := look(t, steps); len(todo) > 0 {
		t.Errorf("still to do: %q", todo)
	}
	// On a computer the same is an error.
	if err := os.RemoveAll(m.Path("/run/systemd/container")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(m.Path("/var/lib/kingmaker/no-module")); err != nil {
		t.Fatal(err)
	}
	if err := host.Do(t.Context(), steps, quiet); err == nil || !strings.Contains(err.Error(), "kernel: modprobe br_netfilter") {
		t.Error(err)
	}
}

// Only the images that are missing are in what ctr reads, with each blob once.
func TestImportedArchive(t *testing.T) {
	m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
	steps := host.Install(m.Host, options(t, m, b))
	if err := host.Do(t.Context(), steps, quiet); err != nil {
		t.Fatal(err)
	}
	delete(m.Images, "kingmaker.dev/etcd:v3.6.16")
	load := m.Runner.Answers["ctr"]
	var names []string
	m.Runner.Answers["ctr --namespace k8s.io images import"] = func(c host.Command, stdin []byte) (string, error) {
		for in := tar.NewReader(bytes.NewReader(stdin)); ; {
			header, err := in.Next()
			if err == io.EOF {
				return load(c, stdin)
			}
			if err != nil {
				return "", err
			}
			names = append(names, header.Name)
		}
	}
	if err := host.Do(t.Context(), steps, quiet); err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	if unique := slices.Compact(slices.Clone(names)); len(names) != 2+4 || len(unique) != len(names) {
		t.Errorf("not layout, index, manifest, config and two layers: %q", names)
	}
}

// A ctr that fails at once must not leave anybody waiting.
func TestImportRefused(t *testing.T) {
	m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
	m.Host.Runner = deaf{m.Runner}
	err := host.Do(t.Context(), host.Install(m.Host, options(t, m, b)), quiet)
	if err == nil || !strings.HasPrefix(err.Error(), "images: ctr --namespace k8s.io images import") {
		t.Error(err)
	}
}

// deaf reads nothing of an import.
type deaf struct{ host.Runner }

func (d deaf) Run(ctx context.Context, c host.Command) ([]byte, error) {
	if slices.Contains(c.Args, "import") {
		return nil, hosttest.Refuse(c, 1, "no space left on device")
	}
	return d.Runner.Run(ctx, c)
}
