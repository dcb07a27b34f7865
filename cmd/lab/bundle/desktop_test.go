package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/lock"
)

// systemOf is a tar such as mmdebstrap writes of an installed Debian.
func systemOf(t testing.TB, headers ...tar.Header) string {
	t.Helper()
	var content bytes.Buffer
	out := tar.NewWriter(&content)
	for _, h := range headers {
		text := ""
		switch {
		case strings.HasSuffix(h.Name, "/"):
			h.Typeflag = tar.TypeDir
		case h.Typeflag == 0:
			text = "content of " + h.Name
		}
		h.Uid, h.Uname, h.ModTime, h.Size = 1000, "somebody", time.Now(), int64(len(text))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := out.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(out, text)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return content.String()
}

func fakeDesktop(t testing.TB, set debianSet) {
	t.Helper()
	if err := os.MkdirAll(string(set), 0o755); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(t.TempDir(), "base.tar")
	if err := os.WriteFile(base, []byte(systemOf(t,
		tar.Header{Name: "./"},
		tar.Header{Name: "./dev/"},
		tar.Header{Name: "./dev/null", Typeflag: tar.TypeChar},
		tar.Header{Name: "./etc/"},
		tar.Header{Name: "./etc/nsswitch.conf"},
		tar.Header{Name: "./etc/shadow"},
		tar.Header{Name: "./lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"},
		tar.Header{Name: "./tmp/", Mode: 0o1777},
		tar.Header{Name: "./usr/"},
		tar.Header{Name: "./usr/bin/"},
		tar.Header{Name: "./usr/bin/Xtigervnc"},
		tar.Header{Name: "./usr/bin/mount", Mode: 0o4755},
		tar.Header{Name: "./usr/bin/umount", Typeflag: tar.TypeLink, Linkname: "./usr/bin/mount"},
		tar.Header{Name: "./usr/bin/passwd", Mode: 0o4755},
		tar.Header{Name: "./usr/lib/"},
		tar.Header{Name: "./usr/lib/firefox-esr/"},
		tar.Header{Name: "./usr/lib/firefox-esr/firefox-esr"},
		tar.Header{Name: "./usr/share/"},
		tar.Header{Name: "./usr/share/man/"},
		tar.Header{Name: "./usr/share/man/man1/"},
		tar.Header{Name: "./usr/share/man/man1/Xvnc.1.gz"},
		tar.Header{Name: "./usr/share/manners"},
	)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := splitDesktop(set, base); err != nil {
		t.Fatal(err)
	}
}

// headersOf reads a layer; what is in a folder comes after it.
func headersOf(t testing.TB, file string) map[string]*tar.Header {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string]*tar.Header{}
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if dir := path.Dir(strings.TrimSuffix(h.Name, "/")) + "/"; dir != "./" && files[dir] == nil {
			t.Errorf("%s comes before its folder", h.Name)
		}
		files[h.Name] = h
	}
}

func TestSplit(t *testing.T) {
	set := debianSet(t.TempDir())
	fakeDesktop(t, set)
	whole, web := headersOf(t, set.layer(desktop)), headersOf(t, set.layer(browser))
	for _, name := range []string{"dev/null", "etc/shadow", "usr/bin/passwd", "usr/share/man/", "usr/share/man/man1/Xvnc.1.gz", "usr/lib/firefox-esr/firefox-esr"} {
		if whole[name] != nil {
			t.Errorf("%s is there", name)
		}
	}
	for _, name := range []string{"dev/", "tmp/", "lib", "usr/bin/Xtigervnc", "usr/share/manners", "usr/bin/umount"} {
		if whole[name] == nil {
			t.Errorf("%s is not there", name)
		}
	}
	if got := len(web); got != 4 || web["usr/lib/firefox-esr/firefox-esr"] == nil {
		t.Errorf("the browser has %d entries", got)
	}
	if h := whole["usr/bin/mount"]; h.Mode != 0o755 || h.Uid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
		t.Errorf("mount has mode %o, is of %d %q and %v", h.Mode, h.Uid, h.Uname, h.ModTime)
	}
	if h := whole["usr/bin/umount"]; h.Typeflag != tar.TypeLink || h.Linkname != "usr/bin/mount" {
		t.Errorf("umount is %+v", h)
	}
	for _, l := range desktopLayers() {
		content := []byte(read(t, set.layer(l.name)))
		if got, err := set.readSum(l.name); err != nil || got != fmt.Sprintf("%x", sha256.Sum256(content)) {
			t.Errorf("sum of %s: %s %v", l.name, got, err)
		}
	}
	again := debianSet(t.TempDir())
	fakeDesktop(t, again)
	if read(t, set.layer(desktop)) != read(t, again.layer(desktop)) {
		t.Error("the same system gives another layer")
	}

	for about, system := range map[string]string{
		"cut out": systemOf(t, tar.Header{Name: "./etc/"}, tar.Header{Name: "./etc/shadow"}, tar.Header{Name: "./etc/copy", Typeflag: tar.TypeLink, Linkname: "./etc/shadow"}),
		"kind":    systemOf(t, tar.Header{Name: "./etc/"}, tar.Header{Name: "./etc/pipe", Typeflag: tar.TypeFifo}),
		"before":  systemOf(t, tar.Header{Name: "./etc/file"}),
	} {
		base := filepath.Join(t.TempDir(), "base.tar")
		write(t, base, system)
		if _, err := splitDesktop(debianSet(t.TempDir()), base); err == nil || !strings.Contains(err.Error(), about) {
			t.Errorf("%s: %v", about, err)
		}
	}
}

// TestSettings: the files of the desktop can be read by what reads them.
func TestSettings(t *testing.T) {
	n := 0
	for _, e := range desktopSettings() {
		if path.Ext(e.name) != ".xml" {
			continue
		}
		n++
		in := xml.NewDecoder(bytes.NewReader(e.content))
		for {
			if _, err := in.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Errorf("%s: %v", e.name, err)
				break
			}
		}
	}
	if n < 5 {
		t.Errorf("%d settings", n)
	}
}

// TestTheme: GTK reads the one file before the settings daemon is there, and the
// daemon the other. Where they differ every program draws itself twice.
func TestTheme(t *testing.T) {
	ini, err := desktopFiles.ReadFile("desktop/etc/gtk-3.0/settings.ini")
	if err != nil {
		t.Fatal(err)
	}
	content, err := desktopFiles.ReadFile("desktop/etc/xdg/xfce4/xfconf/xfce-perchannel-xml/xsettings.xml")
	if err != nil {
		t.Fatal(err)
	}
	type property struct {
		Name  string     `xml:"name,attr"`
		Value string     `xml:"value,attr"`
		Below []property `xml:"property"`
	}
	var channel property
	if err := xml.Unmarshal(content, &channel); err != nil {
		t.Fatal(err)
	}
	// Net/ThemeName is gtk-theme-name, Xft/HintStyle gtk-xft-hintstyle.
	word := regexp.MustCompile(`([a-z])([A-Z])`)
	checked := 0
	for _, group := range channel.Below {
		for _, p := range group.Below {
			key := "gtk-" + strings.ToLower(word.ReplaceAllString(p.Name, "$1-$2"))
			switch {
			case group.Name == "Xft":
				key = "gtk-xft-" + strings.ToLower(p.Name)
			case p.Name == "MonospaceFontName": // of XFCE's own, which GTK does not know
				continue
			}
			if line := key + "=" + p.Value + "\n"; !strings.Contains(string(ini), "\n"+line) {
				t.Errorf("settings.ini has no %s", line)
			}
			checked++
		}
	}
	if checked < 10 {
		t.Errorf("%d settings", checked)
	}
}

// TestDesktop makes the real layers, or takes those that the cache has, and looks
// whether what users need runs in them.
func TestDesktop(t *testing.T) {
	if testing.Short() {
		t.Skip("fetches 330 MB where the cache has no layers of the desktop")
	}
	for _, program := range []string{"mmdebstrap", "apt-ftparchive"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("only root may chroot")
	}
	var o Options
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
	set, err := o.desktop(t.Context(), cache, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	root := t.TempDir()
	for _, l := range desktopLayers() {
		info, err := os.Stat(set.layer(l.name))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("layer %s has %d MB", l.name, info.Size()>>20)
		size += info.Size()
		for name, h := range headersOf(t, set.layer(l.name)) {
			if h.Mode&0o6000 != 0 || h.Uid != 0 || h.Gid != 0 {
				t.Errorf("%s: mode %o of %d:%d", name, h.Mode, h.Uid, h.Gid)
			}
		}
		if out, err := exec.Command("tar", "-xf", set.layer(l.name), "-C", root).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if size > 750<<20 {
		t.Errorf("the layers have %d MB", size>>20)
	}
	settings, err := tarOf(desktopSettings())
	if err != nil {
		t.Fatal(err)
	}
	tar := exec.Command("tar", "-x", "-C", root)
	tar.Stdin = bytes.NewReader(settings)
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	write(t, filepath.Join(root, "var/lib/extrausers/passwd"), "anna:x:12001:12000:Anna Arnold:/home/anna:/bin/bash\n")
	write(t, filepath.Join(root, "var/lib/extrausers/group"), "pupils:x:12000:\n")
	write(t, filepath.Join(root, "dev", "null"), "")
	if err := os.Chmod(filepath.Join(root, "dev", "null"), 0o666); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"getent passwd 12001":                "Anna Arnold",
		"getent group 12000":                 "pupils",
		"locale -a":                          "de_DE.utf8",
		"dbus-daemon --version":              "D-Bus",
		"xkbcomp -version":                   "xkbcomp",
		"notify-send --version":              "notify-send",
		"abiword --version":                  "3.",
		"gnumeric --version":                 "gnumeric",
		"readlink -f /usr/bin/x-www-browser": "/usr/lib/firefox-esr/firefox-esr",
		"readlink -f /usr/bin/Xvnc":          "/usr/bin/Xtigervnc",
		"which xfce4-session xfwm4 xfdesktop xfce4-panel xfsettingsd thunar mousepad xfce4-terminal ristretto": "ristretto",
	} {
		out, err := exec.Command("chroot", append([]string{"--userspec=12001:12000", root, "env", "-i", "HOME=/tmp", "PATH=/usr/bin:/bin"}, strings.Fields(line)...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s", line, err, out)
		}
	}
	for _, name := range []string{"usr/share/applications/xfce4-session-logout.desktop", "usr/share/man", "usr/lib/systemd/systemd", "etc/shadow"} {
		if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	// What was cut out is missed by nothing that is there.
	missing, err := exec.Command("chroot", root, "env", "LD_LIBRARY_PATH=/usr/lib/firefox-esr", "LC_ALL=C", "sh", "-c", `
		for f in /usr/bin/* /usr/lib/*-linux-gnu/*.so* /usr/lib/*-linux-gnu/xfce4/*/* /usr/lib/*-linux-gnu/xfce4/*/*/* /usr/lib/firefox-esr/*.so; do
			[ -f $f ] && ldd $f 2>/dev/null | sed -n "s,^\s*\(.*\) => not found,$f: \1,p"
		done; true`).CombinedOutput()
	if err != nil || len(missing) > 0 {
		t.Errorf("%v: libraries that are not found:\n%s", err, missing)
	}
}
