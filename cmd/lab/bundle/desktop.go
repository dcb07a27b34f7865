package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
)

// The image of desktops is the one that a whole Debian is installed for: its
// packages have scripts that make caches and databases, without which hardly a
// program draws an icon. What people never see is cut out afterwards, and what is
// Kingmaker's own lies on top (folder desktop).
//
// Its packages are apart from those of machines: no machine installs them, so a
// bundle has them in the image alone.

// desktopPackages are what users find, and what shows it.
func desktopPackages() []string {
	return []string{
		"tigervnc-standalone-server", "dbus-daemon", "libnss-extrausers", "locales", "ca-certificates",
		"xfce4-session", "xfwm4", "xfce4-panel", "xfdesktop4", "xfce4-settings", "xfce4-notifyd", "libnotify-bin", "xdg-user-dirs",
		"adwaita-icon-theme", "fonts-dejavu-core", "fonts-liberation",
		"thunar", "xfce4-terminal", "mousepad", "ristretto",
		"firefox-esr", "firefox-esr-l10n-de", "firefox-esr-l10n-es-es", "firefox-esr-l10n-fr", "firefox-esr-l10n-it",
		"abiword", "gnumeric",
	}
}

// desktopLocales are those of which texts stay; C.UTF-8 needs none.
func desktopLocales() []string { return []string{"de_DE", "en_GB", "en_US", "es_ES", "fr_FR", "it_IT"} }

// desktopUnwanted are paths that are cut out, as regular expressions, with all
// below them.
func desktopUnwanted() []string {
	return []string{
		`dev/.*`, `proc/.*`, `sys/.*`, `run/.*`, `boot`, `tmp/.*`,
		`var/(log|lib/(apt|systemd|ucf|pam)|tmp|cache/(apt|debconf|ldconfig|man))/.*`, `var/lib/dpkg/(info|.*-old|triggers|updates|parts)`,
		`etc/(apt|systemd|init\.d|rc.\.d|cron\..*|logrotate\.d|kernel|resolv\.conf|hostname|mtab)`,
		`usr/share/(man|info|gtk-doc|lintian|bug|i18n|bash-completion|zsh|doc-base|menu|pixmaps/debian|gdb|vim|apport|reportbug)`,
		`usr/share/doc/.*/(changelog.*|NEWS.*|README.*|examples|html|TODO.*|AUTHORS.*|.*\.gz)`,
		`usr/share/help/(..|..[_@-].*|...)`, // manuals: all in English too, in C
		`usr/share/backgrounds`, `usr/share/sounds`,
		// There is no graphics card, and to do in software what one does is slow.
		// Firefox draws without.
		`usr/lib/[^/]*-linux-gnu/(dri|gbm|libLLVM.*|libz3\..*|libgallium.*|libGLX_mesa.*|libEGL_mesa.*|libvulkan.*)`,
		// What tells xrdb's macros apart, vncserver's script, mime types for mail.
		`usr/lib/gcc`, `usr/libexec/gcc`, `usr/bin/([^/]*cpp.*|perl.*5\..*)`,
		`usr/lib/[^/]*-linux-gnu/(perl|libperl\..*|libisl\..*|libmpfr\..*|libmpc\..*)`, `usr/share/(perl|perl5)`,
		`usr/(lib|share)/python3.*`, `usr/bin/(python3.*|pydoc.*|pygettext.*)`, `usr/lib/[^/]*-linux-gnu/libpython.*`,
		// The container has no init.
		`usr/lib/systemd/.*`, `usr/lib/udev`, `usr/lib/[^/]*-linux-gnu/systemd`, `usr/bin/(systemd.*|[^/]*ctl|kernel-install)`,
		`usr/lib/modules.*`, `usr/lib/tmpfiles\.d`, `usr/lib/sysusers\.d`,
		// Logging out and locking are the portal's.
		`usr/share/applications/(xfce4-session-logout|xfce4-screensaver.*|debian-.*)\.desktop`, `usr/bin/xflock4`,
		`usr/share/applications/xfce4-mail-reader\.desktop`, // there is no program for mail
		// Thunar has two names, and what asks for both at once had it started twice, to
		// find that it is there already. By the other name it takes this one, too.
		`usr/share/dbus-1/services/org\.xfce\.Thunar\.FileManager1\.service`,
		`etc/xdg/autostart/(xfce4-screensaver|xscreensaver|light-locker|xiccd)\.desktop`,
		// Nothing runs as another user.
		`usr/bin/(su|newgrp|chfn|chsh|passwd|gpasswd|chage|expiry)`, `usr/sbin/(unix_chkpwd|pam_.*)`, `etc/(shadow|gshadow)-?`,
	}
}

// desktopFormat changes when the same packages are made into other layers.
const desktopFormat = "2"

// desktopFonts makes the cache of fonts, without which each program looks through all
// of them when it starts. A cache is of folders as old as it has noted, which in layers
// are of the epoch; and told of SOURCE_DATE_EPOCH=0 fc-cache writes none.
const desktopFonts = `chroot "$1" sh -c "find /usr/share/fonts /usr/local/share/fonts -type d -exec touch --date=@0 {} + && env --unset=SOURCE_DATE_EPOCH fc-cache --system-only --really-force"`

// desktopLayers are the layers: a path is in the first that has it. The browser is
// a third of all, and is updated more often than the rest.
func desktopLayers() []desktopLayer {
	return []desktopLayer{{browser, `usr/lib/firefox-esr/.*`}, {desktop, `.*`}}
}

type desktopLayer struct{ name, has string }

//go:embed all:desktop
var desktopFiles embed.FS

// desktopSettings are the files and folders of Kingmaker's own.
func desktopSettings() (entries []entry) {
	root, err := fs.Sub(desktopFiles, "desktop")
	if err == nil {
		err = fs.WalkDir(root, ".", func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			content, err := fs.ReadFile(root, name)
			entries = append(entries, entry{name: name, mode: 0o644, content: content})
			return err
		})
	}
	if err != nil {
		panic(err) // what is embedded can be read
	}
	for _, folder := range []string{"run/kingmaker/session/", "run/desktop/", "var/lib/extrausers/"} { // where the portal mounts
		entries = append(entries, entry{name: folder, mode: 0o1777}) // as an emptyDir is
	}
	return entries
}

// desktop gives the set of the desktop's layers from the cache, and makes it first
// where it is not there. When a fresh one is asked for and Debian has the same
// packages still, all is kept.
func (o Options) desktop(ctx context.Context, cache string, progress io.Writer) (debianSet, error) {
	set := desktopSet(cache)
	home := filepath.Dir(string(set))
	if _, err := os.Stat(string(set)); err != nil || o.Refresh {
		if err := os.MkdirAll(home, 0o755); err != nil {
			return "", err
		}
		if err := atomically(string(set), func(tmp string) error {
			return makeDesktop(ctx, debianSet(tmp), set, home, progress)
		}); err != nil {
			return "", fmt.Errorf("make the layers of the desktop: %w", err)
		}
	}
	return set, prune(home, string(set))
}

// desktopSet is where the cache has them.
func desktopSet(cache string) debianSet {
	sum := sha256.Sum256(fmt.Append(nil, desktopFormat, desktopPackages(), desktopLocales(), desktopUnwanted(), desktopLayers()))
	return debianSet(filepath.Join(cache, "desktop", fmt.Sprintf("%s-%s-%x", here.Suite, runtime.GOARCH, sum[:6])))
}

// sum is the file with the sum of a layer, by which a bundle knows it.
func (d debianSet) sum(layer string) string { return d.layer(layer) + ".sha256" }

// packages is the file that says which packages it was made of.
func (d debianSet) packages() string { return filepath.Join(string(d), "packages") }

func makeDesktop(ctx context.Context, set, before debianSet, home string, progress io.Writer) error {
	begin := time.Now()
	work := filepath.Join(string(set), "apt")
	defer os.RemoveAll(work)
	// Packages do not say that they need what every Debian has.
	a, err := newAPT(ctx, work, append(desktopPackages(), "?essential"))
	if err != nil {
		return err
	}
	if had, err := os.ReadFile(before.packages()); err == nil && string(had) == a.would {
		return link(string(before), string(set))
	}
	fmt.Fprintf(progress, "making the layers of the desktop: %d packages, once, takes minutes\n", len(a.files()))
	archives, err := a.fetch(ctx, home)
	if err != nil {
		return err
	}
	if _, _, err := index(ctx, set.repository(), archives); err != nil {
		return err
	}
	base := filepath.Join(work, "base.tar")
	if err := installDesktop(ctx, set, base); err != nil {
		return err
	}
	sizes, err := splitDesktop(set, base)
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "made the layers of the desktop (%s) in %s\n", sizes, time.Since(begin).Round(100*time.Millisecond))
	return os.WriteFile(set.packages(), []byte(a.would), 0o644)
}

// link makes a folder with the files of another.
func link(from, to string) error {
	return filepath.WalkDir(from, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		switch at := filepath.Join(to, name); {
		case !e.IsDir():
			return os.Link(file, at)
		case name == "apt": // where the new one is at work
			return fs.SkipDir
		default:
			return os.MkdirAll(at, 0o755)
		}
	})
}

// installDesktop writes a Debian with the packages as a tar. It has nothing of the
// network but what the set has.
func installDesktop(ctx context.Context, set debianSet, base string) error {
	repository := "deb [trusted=yes] copy:" + set.repository() + " ./" // APT has checked them
	args := []string{
		"--quiet", "--variant=essential", "--format=tar", "--architectures=" + runtime.GOARCH,
		"--include=" + strings.Join(desktopPackages(), ","),
		"--dpkgopt=force-unsafe-io",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--customize-hook=" + desktopFonts,
	}
	languages := map[string]bool{}
	for _, locale := range desktopLocales() {
		language, _, _ := strings.Cut(locale, "_")
		languages[language], languages[locale] = true, true
		args = append(args, `--customize-hook=chroot "$1" localedef -i `+locale+` -f UTF-8 `+locale+`.UTF-8`)
	}
	for _, language := range slices.Sorted(maps.Keys(languages)) {
		args = append(args, "--dpkgopt=path-include=/usr/share/locale/"+language+"/*")
	}
	// No suite: the set has no Release that says which one it is.
	_, err := run(ctx, []string{"SOURCE_DATE_EPOCH=0"}, "mmdebstrap", append(args, "", base, repository)...)
	return err
}

// splitDesktop writes the layers, and says how large they are.
func splitDesktop(set debianSet, base string) (sizes string, err error) {
	in, err := os.Open(base)
	if err != nil {
		return "", err
	}
	defer in.Close()
	var layers []*layerFile
	for _, l := range desktopLayers() {
		f, err := newLayerFile(set, l)
		if err != nil {
			return "", err
		}
		defer f.file.Close()
		layers = append(layers, f)
	}
	if err := split(in, layers); err != nil {
		return "", fmt.Errorf("read %s: %w", base, err)
	}
	var said []string
	for _, l := range layers {
		size, err := l.close(set)
		if err != nil {
			return "", err
		}
		said = append(said, fmt.Sprintf("%s %d MB", l.name, size>>20))
	}
	return strings.Join(said, ", "), nil
}

// A layerFile is a layer that is being written.
type layerFile struct {
	name string
	has  *regexp.Regexp
	file *os.File
	hash hash.Hash
	out  *tar.Writer
	dirs map[string]bool // that it has
}

func newLayerFile(set debianSet, l desktopLayer) (*layerFile, error) {
	f, err := os.Create(set.layer(l.name))
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	return &layerFile{l.name, regexp.MustCompile(`^(` + l.has + `)$`), f, sum, tar.NewWriter(io.MultiWriter(f, sum)), map[string]bool{}}, nil
}

func (l *layerFile) close(set debianSet) (size int64, err error) {
	if err := l.out.Close(); err != nil {
		return 0, err
	}
	info, err := l.file.Stat()
	if err != nil {
		return 0, err
	}
	line := fmt.Sprintf("%x  %s\n", l.hash.Sum(nil), filepath.Base(l.file.Name()))
	return info.Size(), errors.Join(l.file.Close(), os.WriteFile(set.sum(l.name), []byte(line), 0o644))
}

// split goes through a whole system, cuts out what is unwanted, and writes each path
// to its layer. All is root's and of the epoch, and nothing has more rights than who
// runs it.
func split(from io.Reader, layers []*layerFile) error {
	unwanted := regexp.MustCompile(`^(` + strings.Join(desktopUnwanted(), "|") + `)(/.*)?$`)
	dirs := map[string]*tar.Header{}
	in := tar.NewReader(from)
	for {
		header, err := in.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean(header.Name), "/")
		if name == "." || unwanted.MatchString(name) {
			continue
		}
		clean := &tar.Header{Name: name, Typeflag: header.Typeflag, Linkname: header.Linkname, Size: header.Size,
			Mode: header.Mode & 0o1777, ModTime: time.Unix(0, 0)}
		to := layers[len(layers)-1]
		for _, l := range layers {
			if l.has.MatchString(name) {
				to = l
				break
			}
		}
		switch header.Typeflag {
		case tar.TypeReg, tar.TypeSymlink:
		case tar.TypeDir:
			clean.Name += "/"
			dirs[name] = clean
			if err := to.folder(dirs, name); err != nil {
				return err
			}
			continue
		case tar.TypeLink:
			clean.Linkname = strings.TrimPrefix(path.Clean(header.Linkname), "/")
			if unwanted.MatchString(clean.Linkname) {
				return fmt.Errorf("%s is another name of %s, which is cut out: cut out both, or none", name, clean.Linkname)
			}
			clean.Size = 0
		default:
			return fmt.Errorf("%s: no layer has files of its kind", name)
		}
		if err := to.folder(dirs, path.Dir(name)); err != nil {
			return err
		}
		if err := to.out.WriteHeader(clean); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if clean.Size > 0 {
			if _, err := io.Copy(to.out, in); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
}

// folder writes a folder that the layer has not yet, and those around it.
func (l *layerFile) folder(dirs map[string]*tar.Header, name string) error {
	if name == "." || l.dirs[name] {
		return nil
	}
	if err := l.folder(dirs, path.Dir(name)); err != nil {
		return err
	}
	header := dirs[name]
	if header == nil {
		return fmt.Errorf("%s: what is in it comes before it", name)
	}
	l.dirs[name] = true
	return l.out.WriteHeader(header)
}

// readSum reads the file with the sum of a layer.
func (d debianSet) readSum(layer string) (string, error) {
	text, err := os.ReadFile(d.sum(layer))
	if err != nil {
		return "", err
	}
	sum, _, _ := bytes.Cut(text, []byte(" "))
	if len(sum) != 2*sha256.Size {
		return "", fmt.Errorf("%s is damaged: delete %s", d.sum(layer), string(d))
	}
	return string(sum), nil
}
