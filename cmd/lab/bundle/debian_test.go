package bundle

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/cmd/lab/lock"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// TestDebian gets the real packages, as the first bundle on a computer does, or
// takes those that the cache has.
func TestDebian(t *testing.T) {
	if testing.Short() {
		t.Skip("fetches 90 MB where the cache has no Debian packages")
	}
	for _, program := range []string{"mmdebstrap", "apt-ftparchive"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	o := Options{Packages: host.Packages()}
	cache, err := o.cache()
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(cache, "bundle")
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	held, err := lock.Wait(t.Context(), filepath.Join(home, "lock"), func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	set, err := o.debian(t.Context(), cache, t.Output())
	if err != nil {
		t.Fatal(err)
	}

	if n := strings.Count(read(t, set.certificates()), "-----BEGIN CERTIFICATE-----"); n < 50 {
		t.Errorf("%d certificate authorities", n)
	}
	t.Run("a machine can install them", func(t *testing.T) {
		work := t.TempDir()
		for _, dir := range []string{"lists/partial", "archives/partial", "cache"} {
			if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(work, "status"), "")
		write(t, filepath.Join(work, "sources.list"), "deb [trusted=yes] file:"+set.repository()+" ./\n")
		write(t, filepath.Join(work, "apt.conf"), aptConfig(work))
		for _, args := range [][]string{{"update"}, append([]string{"--simulate", "install"}, o.Packages...)} {
			args = append([]string{"-q", "-y", "-c", filepath.Join(work, "apt.conf")}, args...)
			if _, err := run(t.Context(), nil, "apt-get", args...); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("iptables runs in its layer", func(t *testing.T) {
		root := rootOf(t, set, tables)
		for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
			out, err := exec.Command("chroot", root, name, "--version").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "nf_tables") {
				t.Errorf("%s: %v: %s", name, err, out)
			}
		}
		for _, name := range []string{"nft --version", "cp --help"} {
			if out, err := exec.Command("chroot", append([]string{root}, strings.Fields(name)...)...).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", name, err, out)
			}
		}
	})
	t.Run("slapd runs in its layer", func(t *testing.T) {
		root := rootOf(t, set, ldap)
		write(t, filepath.Join(root, "tmp", "slapd.conf"), `include /etc/ldap/schema/core.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload syncprov
moduleload accesslog
moduleload ppolicy
moduleload argon2 m=19456 t=2 p=1
database mdb
suffix dc=x
directory /tmp
`)
		write(t, filepath.Join(root, "dev", "urandom"), "as random as a test needs, which has no devices")
		for _, line := range []string{"slapd -VV", "slapadd -n 1 -u -f /tmp/slapd.conf -l /tmp/none", "slappasswd -o module-path=/usr/lib/ldap -o module-load=argon2 -h {ARGON2} -s x", "ldapsearch -VV"} {
			write(t, filepath.Join(root, "tmp", "none"), "")
			out, err := exec.Command("chroot", append([]string{root}, strings.Fields(line)...)...).CombinedOutput()
			if err != nil {
				t.Errorf("%s: %v: %s", line, err, out)
			}
			t.Logf("%s: %s", line, out)
		}
	})
}

// rootOf unpacks a layer, for programs to be tried in.
func rootOf(t *testing.T, set debianSet, layer string) (root string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may chroot")
	}
	content := read(t, set.layer(layer))
	t.Logf("the layer has %d bytes", len(content))
	if size := len(content); size > 40<<20 {
		t.Errorf("the layer has %d bytes", size)
	}
	root = t.TempDir()
	tar := exec.Command("tar", "-x", "-C", root)
	tar.Stdin = strings.NewReader(content)
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return root
}
