package bundle

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// An image is what the table of images says of one.
type image struct {
	name, tag  string
	below      []string // names of the layers under that with the files
	files      []file
	extra      []entry // what else is in the layer of the files
	entrypoint []string
	command    []string // what the entry point is told, unless a Pod says otherwise
	user       string   // "" is root
}

// A file is a program in an image.
type file struct {
	program string // its name among the programs
	path    string // where it is in the image, without the first slash
	mayBind bool   // has the capability to listen on ports below 1024
}

func (i image) programs() (names []string) {
	for _, f := range i.files {
		names = append(names, f.program)
	}
	return names
}

// The layers that images share.
const (
	accounts = "accounts" // users, groups, certificate authorities, /tmp
	tables   = "tables"   // Debian's iptables, nft and cp with their libraries
	ldap     = "ldap"     // Debian's slapd and ldap-utils with theirs
	desktop  = "desktop"  // a whole Debian, with what users find (see desktop.go)
	browser  = "browser"  // and its browser
)

// nonroot runs what needs no rights, as in the images that are common for Go
// programs.
const nonroot = "65532"

// images are all images of a bundle. Programs are where upstream's images have
// them: kubeadm's static Pods look them up in PATH, its Deployment of CoreDNS
// gives arguments alone.
func (o Options) images() []image {
	v := o.Upstream
	local := func(name string) []file { return []file{{program: name, path: "usr/local/bin/" + name}} }
	plain := func(name, tag string, below ...string) image {
		return image{name: name, tag: tag, below: below, files: local(name), entrypoint: []string{"/usr/local/bin/" + name}}
	}
	etcd := plain("etcd", v.Etcd, accounts)
	etcd.files = append(etcd.files, append(local("etcdctl"), local("etcdutl")...)...) // for people with kubectl exec
	reconcile := plain("reconcile", o.Version, accounts)
	reconcile.user = nonroot
	directory := plain("directory", o.Version, accounts, ldap)
	directory.user = nonroot
	portal := plain("portal", o.Version, accounts)
	portal.user = nonroot
	all := []image{
		plain("kube-apiserver", v.Kubernetes, accounts),
		plain("kube-controller-manager", v.Kubernetes, accounts),
		plain("kube-scheduler", v.Kubernetes, accounts),
		plain("kube-proxy", v.Kubernetes, accounts, tables),
		etcd,
		{
			name: "coredns", tag: v.CoreDNS, below: []string{accounts}, user: nonroot,
			files: []file{{program: "coredns", path: "coredns", mayBind: true}}, entrypoint: []string{"/coredns"},
		},
		{
			name: "flannel", tag: v.Flannel, below: []string{accounts, tables},
			files: []file{{program: "flanneld", path: "opt/bin/flanneld"}}, entrypoint: []string{"/opt/bin/flanneld"},
		},
		{
			name: "pause", tag: v.Pause, user: "65535:65535",
			files: []file{{program: "pause", path: "pause"}}, entrypoint: []string{"/pause"},
		},
		reconcile,
		directory,
		portal,
	}
	if !o.NoDesktop {
		d := plain("desktop", o.Version, desktop, browser)
		d.extra, d.command = desktopSettings(), []string{"run"}
		d.user = nonroot // a Pod says whose it is
		all = append(all, d)
	}
	return all
}

// layout writes all images as an OCI image layout.
func (o Options) layout(ctx context.Context, dir string, s sets) ([]Image, error) {
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return nil, fmt.Errorf("make an image layout: %w", err)
	}
	shared, err := o.sharedLayers(s)
	if err != nil {
		return nil, err
	}
	all := o.images()
	descriptors := make([]*v1.Descriptor, len(all))
	made := make([]Image, len(all))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(2) // each holds its programs in memory
	for n, i := range all {
		work.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			full := fullName(i.name, i.tag)
			img, err := o.image(i, shared)
			if err == nil {
				err = to.WriteImage(img)
			}
			if err == nil {
				descriptors[n], err = partial.Descriptor(img)
			}
			if err == nil {
				made[n], err = describe(full, img)
			}
			if err != nil {
				return fmt.Errorf("make image %s: %w", full, err)
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	for n, d := range descriptors { // in the order of the table, whoever was first
		d.Platform = platform()
		d.Annotations = map[string]string{
			"io.containerd.image.name":          made[n].Name, // what containerd's import calls it
			"org.opencontainers.image.ref.name": made[n].Name,
		}
		if err := to.AppendDescriptor(*d); err != nil {
			return nil, fmt.Errorf("list image %s: %w", made[n].Name, err)
		}
	}
	return made, nil
}

func platform() *v1.Platform { return &v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// image builds one image in memory.
func (o Options) image(i image, shared map[string]v1.Layer) (v1.Image, error) {
	var layers []v1.Layer
	for _, name := range i.below {
		layers = append(layers, shared[name])
	}
	entries := slices.Clone(i.extra)
	for _, f := range i.files {
		content, err := os.ReadFile(o.program(f.program))
		if err != nil {
			return nil, err
		}
		e := entry{name: f.path, mode: 0o755, content: content}
		if f.mayBind {
			e.capability = netBindService
		}
		entries = append(entries, e)
	}
	layer, err := layerOf(entries)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.AppendLayers(img, append(layers, layer)...); err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = platform().OS, platform().Architecture
	config.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	config.History = nil // would say once per layer that nothing is known
	config.Config = v1.Config{
		Entrypoint: i.entrypoint,
		Cmd:        i.command,
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		User:       i.user,
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":   i.name,
			"org.opencontainers.image.version": i.tag,
		},
	}
	return mutate.ConfigFile(img, config)
}

// describe is the line of an image in bundle.json.
func describe(name string, img v1.Image) (Image, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return Image{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return Image{}, err
	}
	size, err := img.Size() // of the manifest alone
	if err != nil {
		return Image{}, err
	}
	size += manifest.Config.Size
	for _, l := range manifest.Layers {
		size += l.Size
	}
	return Image{name, digest.String(), size}, nil
}

// sharedLayers are those that more than one image has, or could have.
func (o Options) sharedLayers(s sets) (map[string]v1.Layer, error) {
	authorities, err := os.ReadFile(s.debian.certificates())
	if err != nil {
		return nil, err
	}
	people := []struct{ name, id, home string }{
		{"root", "0", "/root"},
		{"nonroot", nonroot, "/tmp"},
		{"nobody", "65534", "/nonexistent"},
	}
	var passwd, group strings.Builder
	for _, p := range people {
		fmt.Fprintf(&passwd, "%s:x:%s:%s:%s:%s:/usr/sbin/nologin\n", p.name, p.id, p.id, p.name, p.home)
		fmt.Fprintf(&group, "%s:x:%s:\n", p.name, p.id)
	}
	base, err := layerOf([]entry{
		{name: "etc/passwd", mode: 0o644, content: []byte(passwd.String())},
		{name: "etc/group", mode: 0o644, content: []byte(group.String())},
		{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, content: authorities},
		{name: "tmp/", mode: 0o1777},
	})
	if err != nil {
		return nil, err
	}
	layers := map[string]v1.Layer{accounts: base}
	for _, l := range debianLayers() {
		unpacked, err := os.ReadFile(s.debian.layer(l.name))
		if err != nil {
			return nil, err
		}
		layers[l.name] = static.NewLayer(unpacked, types.OCIUncompressedLayer)
	}
	if !o.NoDesktop {
		for _, l := range desktopLayers() {
			sum, err := s.desktop.readSum(l.name)
			if err != nil {
				return nil, err
			}
			layers[l.name] = storedLayer{s.desktop.layer(l.name), v1.Hash{Algorithm: "sha256", Hex: sum}}
		}
	}
	return layers, nil
}

// A storedLayer is a tar whose sum is known, too large for memory.
type storedLayer struct {
	file string
	sum  v1.Hash
}

func (l storedLayer) Digest() (v1.Hash, error)             { return l.sum, nil }
func (l storedLayer) DiffID() (v1.Hash, error)             { return l.sum, nil }
func (l storedLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.file) }
func (l storedLayer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.file) }
func (l storedLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (l storedLayer) Size() (int64, error) {
	info, err := os.Stat(l.file)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// layerOf makes a layer. It stays uncompressed: that is quicker to make and to
// import, and the archive of the bundle is compressed as a whole.
func layerOf(entries []entry) (v1.Layer, error) {
	content, err := tarOf(entries)
	if err != nil {
		return nil, err
	}
	return static.NewLayer(content, types.OCIUncompressedLayer), nil
}
