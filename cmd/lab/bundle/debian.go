package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
)

// A debianLayer is a layer of images that is made of Debian packages.
type debianLayer struct {
	name     string
	packages []string
	wanted   []string          // what of them it has, as regular expressions
	links    map[string]string // what the scripts of the packages, which are not run, would have linked
}

// debianLayers are those that there are. Each begins with base-files, which unpacks
// to the links that all programs rely on.
func debianLayers() []debianLayer {
	// Iptables for kube-proxy and flannel, nftables for when they are told to use
	// that, cp for the init container of flannel (coreutils has one too, which brings
	// 10 MB of libraries).
	iptables := debianLayer{
		name:     tables,
		packages: []string{"base-files", "busybox", "iptables", "nftables"},
		wanted: []string{
			`usr/bin/busybox|usr/sbin/(nft|xtables.*|ip6?tables.*)`,
			`usr/lib/[^/]*-linux-gnu/(lib.*\.so.*|ld-linux.*|xtables/.*)`,
			`etc/(protocols|services)`,
		},
		links: map[string]string{"usr/bin/cp": "busybox"},
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, does := range []string{"", "-save", "-restore"} { // what Debian prefers, the variant that speaks to nftables
			iptables.links["usr/sbin/"+name+does] = name + "-nft" + does
		}
	}
	return []debianLayer{iptables, {
		// The directory's server, and what people look at it with. Perl, databases of
		// others' and the overlays that nobody loads stay out.
		name:     ldap,
		packages: []string{"base-files", "ldap-utils", "slapd"},
		wanted: []string{
			`usr/sbin/slap.*|usr/bin/ldap.*`,
			`usr/lib/ldap/(back_mdb|syncprov|accesslog|ppolicy|argon2)[-.].*`,
			`etc/ldap/(ldap\.conf|schema/.*\.schema)`,
			`usr/lib/[^/]*-linux-gnu/(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|crypt|ldap|lber|slapi|ltdl|wrap|sasl2|argon2|sodium` +
				`|ssl|crypto|gnutls|p11-kit|idn2|unistring|tasn1|nettle|hogweed|gmp|ffi|db-5|com_err|nsl|tirpc|gssapi.*|krb5.*|k5crypto|keyutils|systemd|z|zstd)[-.0-9].*)`,
			`etc/services`,
		},
	}}
}

// inImages are the packages of all of them.
func inImages() (packages []string) {
	for _, l := range debianLayers() {
		packages = append(packages, l.packages...)
	}
	return packages
}

// A debianSet is a folder with all that a bundle has from Debian.
type debianSet string

// repository is the flat APT repository: *.deb and Packages.
func (d debianSet) repository() string { return filepath.Join(string(d), "repository") }

// layer is the layer of a name.
func (d debianSet) layer(name string) string { return filepath.Join(string(d), name+".tar") }

// certificates is a file with the certificate authorities that Debian trusts.
// That of this computer might have more.
func (d debianSet) certificates() string { return filepath.Join(string(d), "ca-certificates.crt") }

// packages are all that are asked for, for machines and for images.
func (o Options) packages() []string {
	packages := slices.Concat(o.Packages, inImages(), []string{"ca-certificates"})
	slices.Sort(packages)
	return slices.Compact(packages)
}

// set is where the cache has the set for the list of packages and the layers.
func (o Options) set(cache string) debianSet {
	sum := sha256.Sum256(fmt.Append(nil, format, o.packages(), debianLayers()))
	return debianSet(filepath.Join(cache, "debian", fmt.Sprintf("%s-%s-%x", here.Suite, runtime.GOARCH, sum[:6])))
}

// debian gives the set from the cache, and makes it first where it is not there
// or a fresh one is asked for.
func (o Options) debian(ctx context.Context, cache string, progress io.Writer) (debianSet, error) {
	set := o.set(cache)
	home := filepath.Dir(string(set))
	if _, err := os.Stat(string(set)); err != nil || o.Refresh {
		if err := os.MkdirAll(home, 0o755); err != nil {
			return "", err
		}
		if err := atomically(string(set), func(tmp string) error {
			return makeSet(ctx, debianSet(tmp), o.packages(), home, progress)
		}); err != nil {
			return "", fmt.Errorf("get Debian packages: %w", err)
		}
	}
	return set, prune(home, string(set))
}

// makeSet fills a set. Packages that other sets in home have are not fetched
// again.
func makeSet(ctx context.Context, set debianSet, packages []string, home string, progress io.Writer) error {
	begin := time.Now()
	fmt.Fprintf(progress, "getting Debian packages for %s\n", here.Suite)
	work := filepath.Join(string(set), "apt")
	defer os.RemoveAll(work)
	a, err := newAPT(ctx, work, packages)
	if err != nil {
		return err
	}
	archives, err := a.fetch(ctx, home)
	if err != nil {
		return err
	}
	size, count, err := index(ctx, set.repository(), archives)
	if err != nil {
		return err
	}
	for _, l := range debianLayers() {
		if err := l.unpack(ctx, set, filepath.Join(work, "base.tar")); err != nil {
			return fmt.Errorf("layer %s: %w", l.name, err)
		}
	}
	if err := authorities(ctx, set); err != nil {
		return err
	}
	fmt.Fprintf(progress, "got %d Debian packages (%d MB) in %s\n", count, size>>20, time.Since(begin).Round(100*time.Millisecond))
	return nil
}

// An apt is an APT with nothing of this computer's but its configuration. For it
// nothing is installed, so that it fetches packages and all that they depend on: how
// much of it a machine has already, and in which version, is not known.
type apt struct {
	work  string   // all its state is below
	args  []string // of apt-get, to install the packages
	would string   // what of Debian that takes: a line for each file, its name, size and sum
}

// newAPT asks Debian for what there is, and checks its signatures. What is
// configured on this computer counts (a proxy, say) but for its list of sources.
func newAPT(ctx context.Context, work string, packages []string) (*apt, error) {
	for _, dir := range []string{"archives/partial", "lists/partial", "cache"} {
		if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
			return nil, err
		}
	}
	lines, err := sources(ctx)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(work, "apt.conf")
	if err := errors.Join(
		os.WriteFile(filepath.Join(work, "sources.list"), []byte(strings.Join(lines, "\n")+"\n"), 0o644),
		os.WriteFile(filepath.Join(work, "status"), nil, 0o644),
		os.WriteFile(config, []byte(aptConfig(work)), 0o644),
	); err != nil {
		return nil, err
	}
	if _, err := run(ctx, nil, "apt-get", "-c", config, "-q", "update"); err != nil {
		return nil, err
	}
	a := &apt{work: work, args: append([]string{"-c", config, "-q", "-y", "--download-only", "install"}, packages...)}
	would, err := run(ctx, nil, "apt-get", append(a.args, "--print-uris")...)
	if err != nil {
		return nil, err
	}
	// APT says a line for each file: 'ADDRESS' NAME SIZE SUM.
	var files []string
	for _, line := range regexp.MustCompile(`(?m)^'\S+' (\S+\.deb .*)$`).FindAllStringSubmatch(string(would), -1) {
		files = append(files, line[1])
	}
	slices.Sort(files)
	a.would = strings.Join(files, "\n")
	return a, nil
}

// files are the names of the packages' files, as APT calls them.
func (a *apt) files() (names []string) {
	for line := range strings.Lines(a.would) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	return names
}

// fetch gets the packages into a folder. Those that the sets in home have are
// linked: APT checks what it finds.
func (a *apt) fetch(ctx context.Context, home string) (archives string, err error) {
	archives = filepath.Join(a.work, "archives")
	for _, name := range a.files() {
		had, err := filepath.Glob(filepath.Join(home, "*", "repository", plainName(name)))
		if err != nil {
			return "", err
		}
		if len(had) > 0 {
			if err := os.Link(had[0], filepath.Join(archives, name)); err != nil {
				return "", err
			}
		}
	}
	_, err = run(ctx, nil, "apt-get", a.args...)
	return archives, err
}

// aptConfig is read by APT after its own configuration.
func aptConfig(work string) string {
	return strings.NewReplacer("WORK", work, "ARCH", runtime.GOARCH).Replace(`
Dir::State "WORK";
Dir::State::status "WORK/status";
Dir::Cache "WORK/cache";
Dir::Cache::archives "WORK/archives";
Dir::Etc::sourcelist "WORK/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
APT::Architecture "ARCH";
#clear APT::Architectures;
APT::Architectures { "ARCH"; };
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Keep-Downloaded-Packages "true";
APT::Sandbox::User "root"; // the cache may be in a folder that only its owner enters
// What this computer does after its own updates is none of our business.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
`)
}

// sources are the lines for APT's sources.list that give the packages of the
// suite. The mirrors are those of this computer; where it has none for security
// updates, there is none here.
func sources(ctx context.Context) ([]string, error) {
	mirrors, err := here.FindMirrors(ctx, func(ctx context.Context, args ...string) ([]byte, error) {
		return run(ctx, nil, args[0], args[1:]...)
	})
	if err != nil {
		return nil, err
	}
	line := func(mirror, suite string) string {
		return fmt.Sprintf("deb [arch=%s signed-by=%s target=Packages] %s %s main", runtime.GOARCH, here.Keyring, mirror, suite)
	}
	lines := []string{line(mirrors.Main, here.Suite), line(mirrors.Main, here.Suite+"-updates")}
	if mirrors.Security != "" {
		lines = append(lines, line(mirrors.Security, here.Suite+"-security"))
	}
	return lines, nil
}

// index moves packages into a flat repository and writes its list.
func index(ctx context.Context, repository, archives string) (size int64, count int, err error) {
	if err := os.Mkdir(repository, 0o755); err != nil {
		return 0, 0, err
	}
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return 0, 0, err
	}
	for _, deb := range debs {
		if err := os.Rename(deb, filepath.Join(repository, plainName(filepath.Base(deb)))); err != nil {
			return 0, 0, err
		}
	}
	// In the folder itself, for the list has the names of files as they are given.
	out, err := runIn(ctx, repository, nil, "apt-ftparchive", "packages", ".")
	if err != nil {
		return 0, 0, err
	}
	all := paragraphs(out) // in the order of the file system
	slices.SortFunc(all, bytes.Compare)
	for _, p := range all {
		var n int64
		if _, err := fmt.Sscan(field(p, "Size"), &n); err != nil {
			return 0, 0, fmt.Errorf("read the list of packages: size of %s: %w", field(p, "Package"), err)
		}
		size += n
	}
	list := append(bytes.Join(all, []byte("\n\n")), '\n')
	return size, len(all), os.WriteFile(filepath.Join(repository, "Packages"), list, 0o644)
}

// plainName is the name that a package's file has in Debian's archive: without
// the epoch, which APT writes as 1%3a and, in a flat repository, would have to
// escape twice.
func plainName(deb string) string {
	return regexp.MustCompile(`^([^_]+_)[0-9]+%3a`).ReplaceAllString(deb, "$1")
}

// unpack makes the layer, by way of a tar of all that its packages hold. It takes
// them from the set and needs no network; and it needs no root, for nothing of what
// it unpacks is run (chrootless).
func (l debianLayer) unpack(ctx context.Context, set debianSet, base string) error {
	repository := url.URL{Scheme: "copy", Path: set.repository()}
	if _, err := run(ctx, []string{"SOURCE_DATE_EPOCH=0"}, "mmdebstrap", "--quiet",
		"--mode=chrootless", "--variant=extract", "--format=tar", "--architectures="+runtime.GOARCH,
		"--include="+strings.Join(l.packages, ","),
		"", base, "deb [trusted=yes] "+repository.String()+" ./"); err != nil { // APT has checked them
		return err
	}
	f, err := os.Open(base)
	if err != nil {
		return err
	}
	defer f.Close()
	entries, err := l.read(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", base, err)
	}
	content, err := tarOf(entries)
	if err != nil {
		return err
	}
	return os.WriteFile(set.layer(l.name), content, 0o644)
}

// read picks what the layer needs: programs, their libraries and licences.
func (l debianLayer) read(r io.Reader) ([]entry, error) {
	wanted := regexp.MustCompile(`^(` + strings.Join(append([]string{
		`bin|sbin|lib|lib64`, // symbolic links into usr
		`usr/lib64/.*`,       // the program loader
		`etc/(os-release|debian_version)`,
		`usr/lib/os-release`,
		`usr/share/doc/[^/]*/copyright`,
		`usr/share/common-licenses/.*`,
	}, l.wanted...), "|") + `)$`)
	var entries []entry
	for in := tar.NewReader(r); ; {
		header, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		e := entry{name: strings.TrimPrefix(path.Clean(header.Name), "/"), mode: fs.FileMode(header.Mode).Perm(), link: header.Linkname}
		if !wanted.MatchString(e.name) {
			continue
		}
		switch header.Typeflag {
		case tar.TypeReg:
			if e.content, err = io.ReadAll(in); err != nil {
				return nil, err
			}
		case tar.TypeSymlink:
		case tar.TypeLink: // a second name, of a file that is wanted too
			e.link = path.Clean("/" + header.Linkname)
		case tar.TypeDir:
			continue // made for what is in it
		default:
			return nil, fmt.Errorf("%s: no layer has files of its kind", header.Name)
		}
		entries = append(entries, e)
	}
	for name, target := range l.links { // tarOf sorts
		if at := path.Join(path.Dir(name), target); !slices.ContainsFunc(entries, func(e entry) bool { return e.name == at }) {
			return nil, fmt.Errorf("there is no %s in it", at)
		}
		entries = append(entries, entry{name: name, mode: 0o777, link: target})
	}
	return entries, nil
}

// authorities writes the file of certificate authorities, as Debian's
// update-ca-certificates would without any choice of a user's.
func authorities(ctx context.Context, set debianSet) error {
	debs, err := filepath.Glob(filepath.Join(set.repository(), "ca-certificates_*.deb"))
	if err != nil {
		return err
	}
	if len(debs) != 1 {
		return fmt.Errorf("%d packages ca-certificates in %s, not one", len(debs), set.repository())
	}
	content, err := run(ctx, nil, "dpkg-deb", "--fsys-tarfile", debs[0])
	if err != nil {
		return err
	}
	certificates := map[string][]byte{}
	for in := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", debs[0], err)
		}
		if header.Typeflag == tar.TypeReg && path.Ext(header.Name) == ".crt" {
			if certificates[header.Name], err = io.ReadAll(in); err != nil {
				return fmt.Errorf("read %s: %w", debs[0], err)
			}
		}
	}
	var names []string
	for name := range certificates {
		names = append(names, name)
	}
	slices.Sort(names)
	var all bytes.Buffer
	for _, name := range names {
		all.Write(bytes.TrimSpace(certificates[name]))
		all.WriteByte('\n')
	}
	if all.Len() == 0 {
		return fmt.Errorf("there are no certificates in %s", debs[0])
	}
	return os.WriteFile(set.certificates(), all.Bytes(), 0o644)
}

// paragraphs splits a list of packages.
func paragraphs(list []byte) (all [][]byte) {
	for p := range bytes.SplitSeq(list, []byte("\n\n")) {
		if p = bytes.Trim(p, "\n"); len(p) > 0 {
			all = append(all, p)
		}
	}
	return all
}

// field is the value of a field that has one line; "" where it is missing.
func field(paragraph []byte, name string) string {
	for line := range bytes.Lines(paragraph) {
		if value, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// run runs a program and gives what it wrote. Its error has what it said.
func run(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	return runIn(ctx, "", env, name, args...)
}

func runIn(ctx context.Context, dir string, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx) // rather than how it made the program end
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%w; .ci/packages installs what is needed", err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w\n%s", name, err, lastLines(said.Bytes(), 20))
	}
	return out.Bytes(), nil
}

func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}
