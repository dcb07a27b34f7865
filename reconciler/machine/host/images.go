package host

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// pinned is the label by which containerd, and through it the kubelet, leaves an
// image on a full disk: it could not be had again.
const (
	pinned     = "io.cri-containerd.pinned"
	pinnedIs   = "pinned"
	imageSpace = "k8s.io" // containerd's namespace for Kubernetes
)

// images puts every image of the bundle into containerd: those that are missing
// or other than the bundle's. Images of an earlier bundle lose their pin, so
// that the kubelet may remove them when nothing uses them.
func (i *install) images() Step {
	h := i.h
	look := func(ctx context.Context) (todo []string, err error) {
		w, err := i.imageWork(ctx)
		if err != nil {
			return nil, err
		}
		var total int64
		var names []string
		for _, image := range w.missing {
			total += image.Size
			names = append(names, strings.TrimPrefix(image.Name, repository))
		}
		if len(names) > 0 {
			todo = append(todo, fmt.Sprintf("import images (%s): %s", size(total), strings.Join(names, " ")))
		}
		// An image that is missing is pinned when it is there.
		if len(w.missing) == 0 && len(w.pin) > 0 {
			todo = append(todo, "keep images on a full disk: "+strings.Join(w.pin, " "))
		}
		if len(w.unpin) > 0 {
			todo = append(todo, "let go of images of an earlier bundle: "+strings.Join(w.unpin, " "))
		}
		return todo, nil
	}
	do := func(ctx context.Context) error {
		w, err := i.imageWork(ctx)
		if err != nil {
			return err
		}
		if len(w.missing) > 0 {
			if err := i.importImages(ctx, w.missing); err != nil {
				return err
			}
		}
		for _, name := range w.pin {
			if _, err := h.ctr(ctx, "images", "label", name, pinned+"="+pinnedIs); err != nil {
				return err
			}
		}
		for _, name := range w.unpin {
			if _, err := h.ctr(ctx, "images", "label", name, pinned+"="); err != nil {
				return err
			}
		}
		return nil
	}
	return Step{"images", look, do}
}

func (h *Host) ctr(ctx context.Context, args ...string) ([]byte, error) {
	return h.Run(ctx, "ctr", append([]string{"--namespace", imageSpace}, args...)...)
}

// imageWork is what there is to do.
type imageWork struct {
	missing    []Image
	pin, unpin []string
}

func (i *install) imageWork(ctx context.Context) (w imageWork, err error) {
	have := map[string]stored{}
	// Before its first start there are none.
	running, err := i.h.Active(ctx, ContainerdUnit)
	if err != nil {
		return w, err
	}
	if running {
		if have, err = i.h.storedImages(ctx); err != nil {
			return w, err
		}
	}
	wanted := map[string]bool{}
	for _, image := range i.Bundle.Images {
		wanted[image.Name] = true
		if have[image.Name].digest != image.Digest {
			w.missing = append(w.missing, image)
		}
		if have[image.Name].digest != image.Digest || !have[image.Name].pinned {
			w.pin = append(w.pin, image.Name)
		}
	}
	for name, image := range have {
		if strings.HasPrefix(name, repository) && image.pinned && !wanted[name] {
			w.unpin = append(w.unpin, name)
		}
	}
	slices.Sort(w.unpin)
	return w, nil
}

// stored is an image that containerd has.
type stored struct {
	digest string
	pinned bool
}

// storedImages reads the table that ctr prints: REF TYPE DIGEST SIZE PLATFORMS
// LABELS, of which SIZE has a blank within.
func (h *Host) storedImages(ctx context.Context) (map[string]stored, error) {
	out, err := h.ctr(ctx, "images", "list")
	if err != nil {
		return nil, err
	}
	images := map[string]stored{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[2], "sha256:") {
			continue
		}
		labels := fields[len(fields)-1]
		images[fields[0]] = stored{fields[2], strings.Contains(","+labels+",", ","+pinned+"="+pinnedIs+",")}
	}
	return images, nil
}

// importImages feeds ctr an archive with just the images that are missing, as it
// is written: nothing is stored twice.
func (i *install) importImages(ctx context.Context, images []Image) error {
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := i.Bundle.Archive(write, images)
		write.CloseWithError(err)
		done <- err
	}()
	_, err := i.h.Do(ctx, Command{
		Name:  "ctr",
		Args:  []string{"--namespace", imageSpace, "images", "import", "--snapshotter", i.Needs.Snapshotter, "-"},
		Stdin: read,
	})
	read.CloseWithError(io.ErrClosedPipe) // a command that ended early reads no more
	if e := <-done; e != nil && !errors.Is(e, io.ErrClosedPipe) {
		err = errors.Join(fmt.Errorf("read the bundle's images: %w; unpack the archive again", e), err)
	}
	return err
}

// descriptor is how OCI points to a blob.
type descriptor struct {
	Digest string `json:"digest"`
}

// Archive writes an OCI layout as tar, which ctr images import reads: the index with
// the images that are asked for, and every blob that they consist of, once.
func (b *Bundle) Archive(w io.Writer, images []Image) error {
	out := tar.NewWriter(w)
	index, err := b.index(images)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": index} {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := out.Write(content); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, image := range images {
		if err := b.addImage(out, image, seen); err != nil {
			return fmt.Errorf("%s: %w", image.Name, err)
		}
	}
	return out.Close()
}

// index is the layout's own, less the images that are not asked for. What it
// says of an image, its name above all, is kept as it is.
func (b *Bundle) index(images []Image) ([]byte, error) {
	wanted := map[string]bool{}
	for _, image := range images {
		wanted[image.Digest+" "+image.Name] = true
	}
	text, err := os.ReadFile(filepath.Join(b.Dir, "images", "index.json"))
	if err != nil {
		return nil, err
	}
	var index struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType,omitempty"`
		Manifests     []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fmt.Errorf("images/index.json: %w", err)
	}
	var kept []json.RawMessage
	for _, raw := range index.Manifests {
		var manifest struct {
			descriptor
			Annotations map[string]string `json:"annotations"`
		}
		if err := json.Unmarshal(raw, &manifest); err != nil {
			return nil, fmt.Errorf("images/index.json: %w", err)
		}
		if wanted[manifest.Digest+" "+manifest.Annotations["io.containerd.image.name"]] {
			kept = append(kept, raw)
		}
	}
	if len(kept) != len(images) {
		return nil, fmt.Errorf("images/index.json has %d of the %d images that bundle.json promises", len(kept), len(images))
	}
	index.Manifests = kept
	return json.Marshal(index)
}

func (b *Bundle) addImage(out *tar.Writer, image Image, seen map[string]bool) error {
	text, err := os.ReadFile(b.blob(image.Digest))
	if err != nil {
		return err
	}
	var manifest struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return fmt.Errorf("manifest %s: %w", image.Digest, err)
	}
	for _, d := range append([]descriptor{{image.Digest}, manifest.Config}, manifest.Layers...) {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		if err := b.addBlob(out, d.Digest); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bundle) addBlob(out *tar.Writer, digest string) error {
	f, err := os.Open(b.blob(digest))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	name := "blobs/" + strings.Replace(digest, ":", "/", 1)
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: info.Size()}); err != nil {
		return err
	}
	hash := sha256.New()
	if _, err = io.Copy(io.MultiWriter(out, hash), f); err != nil {
		return err
	}
	if have := fmt.Sprintf("sha256:%x", hash.Sum(nil)); have != digest {
		return fmt.Errorf("blob %s has %s", digest, have)
	}
	return nil
}

// blob is the file of a blob. Its name is all of a digest that counts.
func (b *Bundle) blob(digest string) string {
	algorithm, sum, _ := strings.Cut(digest, ":")
	return filepath.Join(b.Dir, "images", "blobs", filepath.Base(algorithm), filepath.Base(sum))
}
