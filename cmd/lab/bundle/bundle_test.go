package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kingmaker-io/kingmaker/cmd/lab/build"
)

// fake are options with programs of a few bytes, and a cache that has a set of
// Debian packages already.
func fake(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	o := Options{
		Programs:  filepath.Join(dir, "programs"),
		Kingmaker: filepath.Join(dir, "kingmaker"),
		Upstream:  build.Upstream{Kubernetes: "v1.36.3", Etcd: "v3.6.16", CoreDNS: "v1.14.0", Flannel: "v0.28.0", CNI: "v1.9.0", Pause: "3.10"},
		Version:   "0.1.0-abc",
		Packages:  []string{"haproxy"},
		Cache:     filepath.Join(dir, "cache"),
	}
	for _, name := range o.programs() {
		write(t, o.program(name), "program "+name)
	}
	set := o.set(o.Cache)
	write(t, filepath.Join(set.repository(), "Packages"), "Package: haproxy\n")
	write(t, filepath.Join(set.repository(), "haproxy_3.0_amd64.deb"), "deb")
	write(t, set.certificates(), "certificates")
	for _, l := range debianLayers() {
		entries, err := l.read(strings.NewReader(fakeBase(t)))
		if err != nil {
			t.Fatal(err)
		}
		content, err := tarOf(entries)
		if err != nil {
			t.Fatal(err)
		}
		write(t, set.layer(l.name), string(content))
	}
	fakeDesktop(t, desktopSet(o.Cache))
	return o
}

// fakeBase is a tar such as mmdebstrap writes.
func fakeBase(t *testing.T) string {
	t.Helper()
	var content bytes.Buffer
	out := tar.NewWriter(&content)
	add := func(h tar.Header, text string) {
		h.Size, h.ModTime = int64(len(text)), time.Now()
		if err := out.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(out, text)
	}
	add(tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, "")
	add(tar.Header{Name: "./lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib", Mode: 0o777}, "")
	add(tar.Header{Name: "./dev/null", Typeflag: tar.TypeChar, Mode: 0o666}, "")
	add(tar.Header{Name: "./usr/sbin/", Typeflag: tar.TypeDir, Mode: 0o755}, "")
	add(tar.Header{Name: "./usr/sbin/xtables-nft-multi", Mode: 0o755}, "xtables")
	add(tar.Header{Name: "./usr/bin/busybox", Mode: 0o755}, "busybox")
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, does := range []string{"", "-save", "-restore"} {
			add(tar.Header{Name: "./usr/sbin/" + name + "-nft" + does, Typeflag: tar.TypeSymlink, Linkname: "xtables-nft-multi", Mode: 0o777}, "")
		}
	}
	add(tar.Header{Name: "./usr/lib/x86_64-linux-gnu/libc.so.6", Mode: 0o755}, "libc")
	add(tar.Header{Name: "./usr/lib/x86_64-linux-gnu/gconv/BIG5.so", Mode: 0o644}, "big")
	add(tar.Header{Name: "./usr/share/man/man8/nft.8.gz", Mode: 0o644}, "manual")
	add(tar.Header{Name: "./usr/sbin/slapd", Mode: 0o755}, "slapd")
	add(tar.Header{Name: "./usr/sbin/slapadd", Typeflag: tar.TypeLink, Linkname: "./usr/sbin/slapd", Mode: 0o755}, "")
	add(tar.Header{Name: "./usr/lib/ldap/argon2.so", Typeflag: tar.TypeSymlink, Linkname: "argon2-2.6.so.0", Mode: 0o777}, "")
	add(tar.Header{Name: "./usr/lib/ldap/back_perl.so", Mode: 0o644}, "perl")
	add(tar.Header{Name: "./usr/lib/x86_64-linux-gnu/libperl.so.5.40", Mode: 0o644}, "perl")
	add(tar.Header{Name: "./etc/ldap/schema/core.schema", Mode: 0o644}, "schema")
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return content.String()
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func mustMake(t *testing.T, o Options) string {
	t.Helper()
	dir, err := Make(t.Context(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFolder(t *testing.T) {
	dir := mustMake(t, fake(t))
	if want := "kingmaker-0.1.0-abc-linux-" + runtime.GOARCH; filepath.Base(dir) != want {
		t.Errorf("folder %s, want %s", filepath.Base(dir), want)
	}
	if got := read(t, filepath.Join(dir, "VERSION")); got != "0.1.0-abc\n" {
		t.Errorf("VERSION: %q", got)
	}
	names, err := list(dir)
	if err != nil {
		t.Fatal(err)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return strings.HasPrefix(name, "images/blobs/") || strings.HasPrefix(name, "cni/host-")
	})
	want := strings.Fields(`VERSION bin/etcdctl bin/etcdutl bin/kubeadm bin/kubectl bin/kubelet bin/noded bin/reconcile bundle.json
		cni/bandwidth cni/bridge cni/firewall cni/flannel cni/loopback cni/macvlan cni/portmap cni/ptp cni/tuning debian/Packages debian/haproxy_3.0_amd64.deb images/index.json images/oci-layout`)
	if !slices.Equal(names, want) {
		t.Errorf("files\n%v, want\n%v", names, want)
	}
	for name, mode := range map[string]os.FileMode{"bin/noded": 0o755, "cni/bridge": 0o755, "debian/Packages": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: mode %v, want %v (%v)", name, info.Mode(), mode, err)
		}
	}
	// As people check it, and noded.
	check := exec.Command("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS")
	check.Dir = dir
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %v\n%s", check, err, out)
	}
}

func TestImages(t *testing.T) {
	o := fake(t)
	dir := mustMake(t, o)
	var contents Contents
	if err := json.Unmarshal([]byte(read(t, filepath.Join(dir, "bundle.json"))), &contents); err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil { // the thorough way expects gzip
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != len(contents.Images) {
		t.Fatalf("%d images in the layout, %d in bundle.json", len(manifest.Manifests), len(contents.Images))
	}
	var names []string
	for n, d := range manifest.Manifests {
		name := d.Annotations["io.containerd.image.name"]
		names = append(names, name)
		if d.Annotations["org.opencontainers.image.ref.name"] != name {
			t.Errorf("%s: annotations %v", name, d.Annotations)
		}
		if got := contents.Images[n]; got.Name != name || got.Digest != d.Digest.String() || got.Size <= d.Size {
			t.Errorf("%s: bundle.json has %+v", name, got)
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]*tar.Header{}
		for _, l := range layers {
			if media, _ := l.MediaType(); media != types.OCIUncompressedLayer {
				t.Errorf("%s: layer of type %s", name, media)
			}
			r, err := l.Compressed() // as it is stored
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if digest, _ := l.Digest(); digest.Hex != fmt.Sprintf("%x", sha256.Sum256(content)) {
				t.Errorf("%s: layer %s has another digest", name, digest)
			}
			for in := tar.NewReader(bytes.NewReader(content)); ; {
				h, err := in.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 {
					t.Errorf("%s: %s is of %d:%d and %v", name, h.Name, h.Uid, h.Gid, h.ModTime)
				}
				files["/"+h.Name] = h
			}
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if h := files[config.Config.Entrypoint[0]]; h == nil || h.Mode != 0o755 {
			t.Errorf("%s: cannot run %v", name, config.Config.Entrypoint)
		}
		short, _, _ := strings.Cut(strings.TrimPrefix(name, "kingmaker.dev/"), ":")
		var want []string
		switch short {
		case "kube-proxy", "flannel":
			want = []string{config.Config.Entrypoint[0], "/usr/sbin/iptables", "/usr/sbin/ip6tables-restore", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/lib"}
			for _, unwanted := range []string{"/usr/lib/x86_64-linux-gnu/gconv/BIG5.so", "/usr/share/man/man8/nft.8.gz", "/dev/null"} {
				if files[unwanted] != nil {
					t.Errorf("%s: has %s", name, unwanted)
				}
			}
			if h := files["/usr/sbin/iptables-save"]; h == nil || h.Linkname != "iptables-nft-save" {
				t.Errorf("%s: iptables-save is %+v", name, h)
			}
		case "directory":
			want = []string{config.Config.Entrypoint[0], "/usr/sbin/slapd", "/usr/sbin/slapadd", "/usr/lib/ldap/argon2.so", "/etc/ldap/schema/core.schema", "/usr/lib/x86_64-linux-gnu/libc.so.6"}
			for _, unwanted := range []string{"/usr/lib/ldap/back_perl.so", "/usr/lib/x86_64-linux-gnu/libperl.so.5.40", "/usr/sbin/iptables"} {
				if files[unwanted] != nil {
					t.Errorf("%s: has %s", name, unwanted)
				}
			}
			if config.Config.User != "65532" {
				t.Errorf("%s: runs as %q", name, config.Config.User)
			}
		case "desktop":
			want = []string{config.Config.Entrypoint[0], "/usr/bin/Xtigervnc", "/usr/lib/firefox-esr/firefox-esr", "/etc/nsswitch.conf",
				"/etc/xdg/xfce4/kiosk/kioskrc", "/etc/firefox-esr/kingmaker.js", "/run/kingmaker/session/", "/run/desktop/", "/var/lib/extrausers/", "/tmp/"}
			if h := files["/tmp/"]; h != nil && h.Mode != 0o1777 {
				t.Errorf("%s: /tmp has mode %o", name, h.Mode)
			}
			if config.Config.User != "65532" || !slices.Equal(config.Config.Cmd, []string{"run"}) {
				t.Errorf("%s: runs %v as %q", name, config.Config.Cmd, config.Config.User)
			}
		case "coredns":
			want = []string{"/coredns", "/etc/ssl/certs/ca-certificates.crt"}
			if h := files["/coredns"]; h != nil && h.PAXRecords["SCHILY.xattr.security.capability"] == "" {
				t.Errorf("%s: may not listen on port 53", name)
			}
		case "etcd":
			want = []string{"/usr/local/bin/etcd", "/usr/local/bin/etcdctl", "/usr/local/bin/etcdutl"}
		case "reconcile":
			want = []string{"/usr/local/bin/reconcile", "/etc/ssl/certs/ca-certificates.crt", "/etc/passwd", "/tmp/"}
			if h := files["/tmp/"]; h != nil && h.Mode != 0o1777 {
				t.Errorf("%s: /tmp has mode %o", name, h.Mode)
			}
			if config.Config.User != "65532" {
				t.Errorf("%s: runs as %q", name, config.Config.User)
			}
		case "pause":
			want = []string{"/pause"}
		default:
			want = []string{"/usr/local/bin/" + short, "/etc/passwd"}
		}
		for _, file := range want {
			if files[file] == nil {
				t.Errorf("%s: there is no %s", name, file)
			}
		}
	}
	for _, name := range []string{"kube-apiserver:v1.36.3", "etcd:v3.6.16", "coredns:v1.14.0", "pause:3.10", "flannel:v0.28.0", "reconcile:0.1.0-abc", "directory:0.1.0-abc", "desktop:0.1.0-abc"} {
		if !slices.Contains(names, "kingmaker.dev/"+name) {
			t.Errorf("there is no image %s among %v", name, names)
		}
	}
}

// TestSame: the same programs give the same bytes, whenever and wherever.
func TestSame(t *testing.T) {
	first, second := mustMake(t, fake(t)), mustMake(t, fake(t))
	if first == second {
		t.Fatal("one folder: nothing is compared")
	}
	if a, b := read(t, filepath.Join(first, sumsFile)), read(t, filepath.Join(second, sumsFile)); a != b {
		t.Errorf("sums\n%s\nand\n%s", a, b)
	}
	if a, b := filepath.Base(filepath.Dir(first)), filepath.Base(filepath.Dir(second)); a != b {
		t.Errorf("keys %s and %s", a, b)
	}
	var archives []string
	for _, dir := range []string{first, second} {
		file := filepath.Join(t.TempDir(), "bundle.tar.gz")
		if err := Archive(t.Context(), dir, file); err != nil {
			t.Fatal(err)
		}
		archives = append(archives, read(t, file))
		want := fmt.Sprintf("%x  bundle.tar.gz\n", sha256.Sum256([]byte(read(t, file))))
		if got := read(t, file+".sha256"); got != want {
			t.Errorf("%s.sha256: %q, want %q", file, got, want)
		}
	}
	if archives[0] != archives[1] {
		t.Error("the archives differ")
	}
}

func TestArchive(t *testing.T) {
	dir := mustMake(t, fake(t))
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	if err := Archive(t.Context(), dir, file); err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(strings.NewReader(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("%s is of %d:%d %q and %v", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		if h.Typeflag == tar.TypeReg {
			name, err := filepath.Rel(filepath.Base(dir), h.Name)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
			content, err := io.ReadAll(in)
			if err != nil || string(content) != read(t, filepath.Join(dir, name)) {
				t.Errorf("%s came out differently (%v)", h.Name, err)
			}
		}
	}
	want, err := list(dir)
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, sumsFile)
	slices.Sort(want)
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("files\n%v, want\n%v", names, want)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestVerify(t *testing.T) {
	dir := mustMake(t, fake(t))
	if err := Verify(dir); err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(dir, "images", "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	content := []byte(read(t, blobs[0]))
	content[len(content)/2] ^= 1
	write(t, blobs[0], string(content))
	write(t, filepath.Join(dir, "bin", "extra"), "not ours")
	if err := os.Remove(filepath.Join(dir, "cni", "bridge")); err != nil {
		t.Fatal(err)
	}
	err = Verify(dir)
	if err == nil {
		t.Fatal("nothing found")
	}
	changed, _ := filepath.Rel(dir, blobs[0])
	for _, want := range []string{changed + ": has changed", "bin/extra: is not in SHA256SUMS", "cni/bridge: is missing"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %q", err, want)
		}
	}
}

// TestAgain: a bundle that is there is not made again, another program makes
// another bundle, and two stay.
func TestAgain(t *testing.T) {
	o := fake(t)
	first := mustMake(t, o)
	marker := filepath.Join(first, "marker")
	write(t, marker, "made once")
	if again := mustMake(t, o); again != first || read(t, marker) == "" {
		t.Errorf("made %s again as %s", first, again)
	}
	dirs := []string{first}
	for _, change := range []string{"one", "two"} {
		write(t, o.program("kubelet"), change)
		dirs = append(dirs, mustMake(t, o))
	}
	slices.Sort(dirs)
	if len(slices.Compact(slices.Clone(dirs))) != 3 {
		t.Errorf("folders %v", dirs)
	}
	if _, err := os.Stat(first); err == nil {
		t.Error("the oldest of three is kept")
	}
	entries, err := os.ReadDir(filepath.Join(o.Cache, "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 3 { // two and the lock
		t.Errorf("in the cache: %v", entries)
	}
}

// TestVersions: an image without a tag would be imported under half a name.
func TestVersions(t *testing.T) {
	o := fake(t)
	o.Upstream.CoreDNS = ""
	if _, err := Make(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), "version is missing") {
		t.Errorf("error %v", err)
	}
}

// TestMissing: what is missing is named, and nothing is left behind.
func TestMissing(t *testing.T) {
	o := fake(t)
	if err := os.Remove(o.program("kubelet")); err != nil {
		t.Fatal(err)
	}
	if _, err := Make(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), "kubelet") {
		t.Errorf("error %v does not name kubelet", err)
	}
	if left, _ := filepath.Glob(filepath.Join(o.Cache, "bundle", "*")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// TestBuilt: what package build builds is what a bundle holds, no more and no less.
func TestBuilt(t *testing.T) {
	built := append(build.Site.Names(), "noded", "reconcile", "directory", "desktop", "portal")
	slices.Sort(built)
	if used := (Options{}).programs(); !slices.Equal(built, used) {
		t.Errorf("built: %q\nused:  %q", built, used)
	}
}

func TestPlainName(t *testing.T) {
	for deb, want := range map[string]string{
		"conntrack_1%3a1.4.8-2_amd64.deb": "conntrack_1.4.8-2_amd64.deb",
		"runc_1.1.15+ds1-2+b4_amd64.deb":  "runc_1.1.15+ds1-2+b4_amd64.deb",
		"x_1.2%3a3_all.deb":               "x_1.2%3a3_all.deb",
	} {
		if got := plainName(deb); got != want {
			t.Errorf("%s: %s, want %s", deb, got, want)
		}
	}
}
