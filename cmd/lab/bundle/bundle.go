// Package bundle makes the offline bundle: one folder, and one archive, with all
// that a machine with a minimal Debian needs to become a member of a site, where
// neither an image registry nor a Debian mirror answers.
//
//	dir, err := bundle.Make(ctx, bundle.Options{}, os.Stderr)
//	...
//	err = bundle.Archive(ctx, dir, "dist/"+filepath.Base(dir)+".tar.gz")
//
// The folder is called kingmaker-VERSION-linux-ARCHITECTURE:
//
//	VERSION      Kingmaker's version
//	bundle.json  what is in it, see Contents
//	SHA256SUMS   every other file, for sha256sum -c
//	bin/         noded reconcile kubelet kubeadm kubectl etcdctl etcdutl
//	cni/         the CNI plugins, which go to /opt/cni/bin
//	images/      an OCI image layout
//	debian/      a flat APT repository
//
// The programs come from package build, the images from the programs and from
// Debian packages (see image.go, and desktop.go for that of desktops), the Debian
// packages from the mirror that APT on this computer is configured with (see
// debian.go).
//
// It promises: the same programs and the same Debian packages give the same
// bytes, folder and archive; a bundle exists whole or not at all; one whose parts
// are all in the cache is made without a network.
package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kingmaker-io/kingmaker/cmd/lab/build"
	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
	"github.com/kingmaker-io/kingmaker/cmd/lab/lock"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// Options say what goes into a bundle. The zero value is what a site needs, built
// from this checkout.
type Options struct {
	// Programs is a folder with the programs that are not ours, as build.Site has
	// them; Upstream are their versions. Empty means those of package build, which
	// takes minutes where they are not in the cache.
	Programs string
	Upstream build.Upstream

	// Kingmaker is a folder with noded, reconcile, directory, desktop and portal; Version is
	// theirs.
	// Empty means those of package build.
	Kingmaker string
	Version   string

	// Packages are the Debian packages that noded asks for. Those that they depend
	// on come along. Empty means those of package host.
	Packages []string

	// Refresh looks for newer Debian packages, over the network. Without it those
	// in the cache are used as long as the list is the same.
	Refresh bool

	// NoDesktop leaves the image of desktops out, two thirds of a bundle: for labs that
	// try other things.
	NoDesktop bool

	// Cache is the folder where bundles and Debian packages are kept. Empty is
	// $KINGMAKER_CACHE, or kingmaker in the user's cache folder.
	Cache string
}

// Contents is bundle.json.
type Contents struct {
	Version      string  `json:"version"` // Kingmaker's, as in VERSION
	Kubernetes   string  `json:"kubernetes"`
	Etcd         string  `json:"etcd"`
	CoreDNS      string  `json:"coredns"`
	Flannel      string  `json:"flannel"`
	CNI          string  `json:"cni"`
	Debian       string  `json:"debian"`       // codename of the release that debian/ is for
	Architecture string  `json:"architecture"` // as Go and Debian call it
	Images       []Image `json:"images"`       // in the order of images/index.json
}

// Image is one image of a bundle.
type Image struct {
	Name   string `json:"name"`   // such as kingmaker.dev/etcd:v3.6.16
	Digest string `json:"digest"` // of its manifest, sha256:HEX
	Size   int64  `json:"size"`   // bytes of manifest, configuration and layers
}

// binaries are the programs that a machine runs outside of containers.
func binaries() []string {
	return []string{"noded", "reconcile", "kubelet", "kubeadm", "kubectl", "etcdctl", "etcdutl"}
}

// plugins are the CNI plugins: those that flannel's configuration names, those that
// they call in turn, and a few for sites that bring a network of their own.
func plugins() []string {
	return []string{"bandwidth", "bridge", "firewall", "flannel", "host-device", "host-local", "loopback", "macvlan", "portmap", "ptp", "tuning"}
}

// format changes when the same inputs are made into another bundle.
const format = "2"

// kept is how many bundles stay in the cache: a lab may still be running from
// the one before.
const kept = 2

// Make returns the folder of the bundle that o describes, and makes it first
// where it is not in the cache. That takes half a minute, of which progress (nil
// is quiet) is told. Older bundles are removed, but for the newest before it.
//
// Any number of processes may call it at once; one works and the others wait.
func Make(ctx context.Context, o Options, progress io.Writer) (dir string, err error) {
	if progress == nil {
		progress = io.Discard
	}
	if dir, err = o.make(ctx, progress); err != nil {
		return "", fmt.Errorf("make the bundle: %w", err)
	}
	return dir, nil
}

func (o Options) make(ctx context.Context, progress io.Writer) (string, error) {
	o, err := o.complete(ctx, progress)
	if err != nil {
		return "", err
	}
	cache, err := o.cache()
	if err != nil {
		return "", err
	}
	home := filepath.Join(cache, "bundle")
	if err := os.MkdirAll(home, 0o755); err != nil {
		return "", err
	}
	held, err := lock.Wait(ctx, filepath.Join(home, "lock"), func() {
		fmt.Fprintln(progress, "another process is making a bundle; waiting for it")
	})
	if err != nil {
		return "", err
	}
	defer held.Close()

	var s sets
	if s.debian, err = o.debian(ctx, cache, progress); err != nil {
		return "", err
	}
	if !o.NoDesktop {
		if s.desktop, err = o.desktop(ctx, cache, progress); err != nil {
			return "", err
		}
	}
	key, err := o.key(s)
	if err != nil {
		return "", err
	}
	place := filepath.Join(home, key)
	dir := filepath.Join(place, fmt.Sprintf("kingmaker-%s-linux-%s", o.Version, runtime.GOARCH))
	if _, err := os.Stat(filepath.Join(dir, sumsFile)); err != nil {
		begin := time.Now()
		fmt.Fprintln(progress, "making the bundle", filepath.Base(dir))
		if err := atomically(place, func(tmp string) error {
			return o.fill(ctx, filepath.Join(tmp, filepath.Base(dir)), s)
		}); err != nil {
			return "", err
		}
		fmt.Fprintf(progress, "made the bundle in %s\n", time.Since(begin).Round(100*time.Millisecond))
	}
	return dir, prune(home, place)
}

// complete gives o with what it left out.
func (o Options) complete(ctx context.Context, progress io.Writer) (Options, error) {
	var err error
	if o.Programs == "" {
		if o.Programs, err = build.Programs(ctx, build.Site, progress); err != nil {
			return o, err
		}
		if o.Upstream, err = build.Versions(); err != nil {
			return o, err
		}
	}
	if o.Kingmaker == "" {
		if o.Kingmaker, o.Version, err = build.Kingmaker(ctx, progress); err != nil {
			return o, err
		}
	}
	if len(o.Packages) == 0 {
		o.Packages = slices.Concat(host.Packages(), host.KioskPackages())
	}
	if u := o.Upstream; slices.Contains([]string{o.Version, u.Kubernetes, u.Etcd, u.CoreDNS, u.Flannel, u.CNI, u.Pause}, "") {
		return o, fmt.Errorf("a version is missing: Kingmaker %q, others %+v", o.Version, u)
	}
	return o, nil
}

// sets are what a bundle has from Debian: for machines and most images, and for
// desktops ("" is none).
type sets struct{ debian, desktop debianSet }

// key names everything that goes into the bundle.
func (o Options) key(s sets) (string, error) {
	files := []string{filepath.Join(s.debian.repository(), "Packages"), s.debian.certificates()}
	for _, l := range debianLayers() {
		files = append(files, s.debian.layer(l.name))
	}
	if !o.NoDesktop {
		for _, l := range desktopLayers() { // by their sums: they take seconds to read
			files = append(files, s.desktop.sum(l.name))
		}
	}
	for _, name := range o.programs() {
		files = append(files, o.program(name))
	}
	sums, err := sumAll("", files)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	fmt.Fprintln(hash, format, runtime.GOARCH, here.Suite, o.Version, o.Upstream, o.images())
	for i, file := range files {
		fmt.Fprintln(hash, filepath.Base(file), sums[i])
	}
	return fmt.Sprintf("%x", hash.Sum(nil))[:12], nil
}

// programs are the names of all programs that go into the bundle.
func (o Options) programs() []string {
	names := slices.Concat(binaries(), plugins())
	for _, i := range o.images() {
		names = append(names, i.programs()...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// program is the file of a program.
func (o Options) program(name string) string {
	if slices.Contains([]string{"noded", "reconcile", "directory", "desktop", "portal"}, name) {
		return filepath.Join(o.Kingmaker, name)
	}
	return filepath.Join(o.Programs, name)
}

func (o Options) files(names []string) (files []string) {
	for _, name := range names {
		files = append(files, o.program(name))
	}
	return files
}

// fill makes the folder of the bundle.
func (o Options) fill(ctx context.Context, dir string, s sets) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(s.debian.repository(), "*"))
	if err != nil {
		return err
	}
	var made []Image
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() (err error) {
		made, err = o.layout(ctx, filepath.Join(dir, "images"), s)
		return err
	})
	work.Go(func() error {
		return errors.Join(
			copyAll(ctx, filepath.Join(dir, "bin"), o.files(binaries()), 0o755),
			copyAll(ctx, filepath.Join(dir, "cni"), o.files(plugins()), 0o755),
			copyAll(ctx, filepath.Join(dir, "debian"), debs, 0o644))
	})
	if err := work.Wait(); err != nil {
		return err
	}

	contents, err := json.MarshalIndent(Contents{
		Version:      o.Version,
		Kubernetes:   o.Upstream.Kubernetes,
		Etcd:         o.Upstream.Etcd,
		CoreDNS:      o.Upstream.CoreDNS,
		Flannel:      o.Upstream.Flannel,
		CNI:          o.Upstream.CNI,
		Debian:       here.Suite,
		Architecture: runtime.GOARCH,
		Images:       made,
	}, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "VERSION"), []byte(o.Version+"\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "bundle.json"), append(contents, '\n'), 0o644),
		writeSums(dir)) // last: it covers the others, and says that the bundle is whole
}

func (o Options) cache() (string, error) {
	if o.Cache != "" {
		return filepath.Abs(o.Cache)
	}
	return here.Cache()
}

// copyAll copies files into a new folder. Hard links would be quicker by half a
// second, and would let whoever changes a bundle change the cache as well.
func copyAll(ctx context.Context, dir string, files []string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := copyFile(filepath.Join(dir, filepath.Base(file)), file, mode); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(mode), out.Close()) // whatever the umask
}

// atomically fills a folder, which then exists whole or, after an error, is as it
// was before. The caller holds a lock on the folder above.
func atomically(dir string, fill func(tmp string) error) error {
	home := filepath.Dir(dir)
	stale, _ := filepath.Glob(filepath.Join(home, "making-*")) // of the dead, for we hold the lock
	for _, d := range stale {
		os.RemoveAll(d)
	}
	tmp, err := os.MkdirTemp(home, "making-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := fill(tmp); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil { // MkdirTemp makes it ours alone
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// prune marks current as just used and removes the folders beside it, but for
// those that were used last.
func prune(home, current string) error {
	now := time.Now()
	if err := os.Chtimes(current, now, now); err != nil {
		return err
	}
	entries, err := os.ReadDir(home)
	if err != nil {
		return err
	}
	type folder struct {
		name string
		used time.Time
	}
	var folders []folder
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && e.IsDir() && e.Name() != filepath.Base(current) {
			folders = append(folders, folder{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(folders, func(a, b folder) int { return b.used.Compare(a.used) })
	for i, f := range folders {
		if i >= kept-1 {
			if err := os.RemoveAll(filepath.Join(home, f.name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// fullName is how an image is called in the bundle and on the machines. The
// registry of that name does not exist, so nothing can be pulled by mistake.
func fullName(name, tag string) string { return path.Join("kingmaker.dev", name) + ":" + tag }
