package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Bundle is a folder with everything that a machine needs, as make bundle
// leaves it. Nothing is fetched from anywhere else.
type Bundle struct {
	Dir string `json:"-"` // absolute

	Version      string  `json:"version"`
	Kubernetes   string  `json:"kubernetes"`
	Etcd         string  `json:"etcd"`
	CoreDNS      string  `json:"coredns"`
	Flannel      string  `json:"flannel"`
	CNI          string  `json:"cni"`
	Debian       string  `json:"debian"`       // code name of the release that its packages are for
	Architecture string  `json:"architecture"` // as Go calls it
	Images       []Image `json:"images"`

	sums map[string]string // sha256 by file name, slashes between
	sum  string            // of SHA256SUMS itself: what the bundle is
	text []byte            // bundle.json
}

// Image is a container image of a bundle.
type Image struct {
	Name   string `json:"name"`   // whole, such as kingmaker.dev/etcd:v3.6.16
	Digest string `json:"digest"` // of its manifest
	Size   int64  `json:"size"`   // bytes of its blobs
}

// OpenBundle reads what a bundle says of itself. Whether its files are what
// they should be is for Install to find out.
func OpenBundle(dir string) (*Bundle, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	b := &Bundle{Dir: dir}
	if err := b.open(); err != nil {
		return nil, fmt.Errorf("open bundle %s: %w", dir, err)
	}
	return b, nil
}

func (b *Bundle) open() error {
	text, err := os.ReadFile(filepath.Join(b.Dir, "bundle.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("it has no bundle.json; give the folder that the bundle's archive unpacks to")
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, b); err != nil {
		return fmt.Errorf("bundle.json: %w; unpack the archive again", err)
	}
	b.text = text
	text, err = os.ReadFile(filepath.Join(b.Dir, "SHA256SUMS"))
	if err != nil {
		return err
	}
	b.sum, b.sums = hexSum(text), map[string]string{}
	for line := range strings.Lines(string(text)) {
		sum, name, ok := strings.Cut(strings.TrimRight(line, "\n"), "  ")
		name = path.Clean(name)
		if !ok || len(sum) != 2*sha256.Size || !filepath.IsLocal(name) {
			return fmt.Errorf("SHA256SUMS: %q is not the sum of a file in it; unpack the archive again", strings.TrimSpace(line))
		}
		b.sums[name] = sum
	}
	if _, err := b.pause(); err != nil || len(b.files("bin")) == 0 || b.Version == "" || b.Kubernetes == "" {
		return errors.New("it is not whole: no version, programs or images; unpack the archive again")
	}
	return nil
}

// files are the names, sorted, of those right in a folder of the bundle. What
// SHA256SUMS does not list is not there.
func (b *Bundle) files(folder string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(b.sums)) {
		if path.Dir(name) == folder {
			names = append(names, path.Base(name))
		}
	}
	return names
}

// pause is the image that holds the network of a Pod.
func (b *Bundle) pause() (string, error) {
	for _, image := range b.Images {
		if strings.HasPrefix(image.Name, repository+"pause:") {
			return image.Name, nil
		}
	}
	return "", errors.New("no image " + repository + "pause")
}

// repository is what the names of all our images begin with.
const repository = "kingmaker.dev/"

// verify reads every file, which takes seconds.
func (b *Bundle) verify(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(b.sums)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := os.Open(filepath.Join(b.Dir, name))
		if err != nil {
			return fmt.Errorf("verify bundle: %w; unpack the archive again", err)
		}
		hash := sha256.New()
		_, err = io.Copy(hash, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("verify bundle: %w; copy it anew", err)
		}
		if have := hex.EncodeToString(hash.Sum(nil)); have != b.sums[name] {
			return fmt.Errorf("verify bundle: %s is damaged (sha256 %s, not %s); copy the archive anew and unpack it again", filepath.Join(b.Dir, name), have, b.sums[name])
		}
	}
	return nil
}

// What bundle a machine has, and the sum of the one that was last read whole and
// found good.
const (
	BundleFile = StateDir + "/bundle.json"
	bundleSum  = StateDir + "/bundle.sum"
)

// installed is what a machine's own bundle.json says; the zero value before the
// first installation.
func (h *Host) installed() (b Bundle) {
	// One that cannot be read is none: then a bundle is verified once more.
	if text, err := h.Read(BundleFile); err == nil {
		_ = json.Unmarshal(text, &b)
	}
	return b
}

// bundle is verified once, and what it was is remembered.
func (i *install) bundle() Step {
	look := func(context.Context) ([]string, error) {
		b, last := i.Bundle, i.h.installed()
		switch {
		case b.Architecture != runtime.GOARCH:
			return nil, fmt.Errorf("bundle %s is for %s, and this machine is %s; take the bundle for it", b.Dir, b.Architecture, runtime.GOARCH)
		case i.member() && last.Kubernetes != "" && last.Kubernetes != b.Kubernetes:
			return nil, fmt.Errorf("this machine is a member of a site with Kubernetes %s, and the bundle has %s; noded reset first, then install and join again", last.Kubernetes, b.Kubernetes)
		case i.h.Same(BundleFile, b.text, 0o644) && i.h.Same(bundleSum, []byte(b.sum), 0o644):
			return nil, nil
		}
		return []string{fmt.Sprintf("verify bundle %s (%d files)", b.Version, len(b.sums))}, nil
	}
	do := func(ctx context.Context) error {
		if err := i.Bundle.verify(ctx); err != nil {
			return err
		}
		return errors.Join(i.h.Write(BundleFile, i.Bundle.text, 0o644), i.h.Write(bundleSum, []byte(i.Bundle.sum), 0o644))
	}
	return Step{"bundle", look, do}
}

func hexSum(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
