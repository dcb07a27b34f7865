package hosttest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// Bundle makes a small bundle: programs that are no programs, and images that
// share a layer.
func Bundle(t testing.TB) *host.Bundle {
	t.Helper()
	dir := t.TempDir()
	var sums strings.Builder
	put := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
		fmt.Fprintf(&sums, "%s  %s\n", sum, name)
		return sum
	}
	blob := func(content string) string {
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
		if _, err := os.Stat(filepath.Join(dir, "images/blobs/sha256", sum)); err != nil {
			put("images/blobs/sha256/"+sum, content)
		}
		return "sha256:" + sum
	}
	for _, name := range []string{"bin/noded", "bin/reconcile", "bin/kubelet", "bin/kubeadm", "bin/kubectl", "bin/etcdctl", "cni/bridge", "cni/flannel", "debian/Packages"} {
		put(name, "this is "+name+"\n")
	}
	type image = map[string]any
	var images, manifests []image
	layer := blob("a layer that all have")
	for _, name := range []string{"kingmaker.dev/pause:3.10.2", "kingmaker.dev/etcd:v3.6.16", "kingmaker.dev/reconcile:0.1.0-test"} {
		digest := blob(fmt.Sprintf(`{"config":{"digest":%q},"layers":[{"digest":%q},{"digest":%q}]}`, blob("config of "+name), layer, blob("layer of "+name)))
		images = append(images, image{"name": name, "digest": digest, "size": 1 << 20})
		manifests = append(manifests, image{"digest": digest, "annotations": map[string]string{"io.containerd.image.name": name}})
	}
	index, _ := json.Marshal(image{"schemaVersion": 2, "manifests": manifests})
	put("images/index.json", string(index))
	put("images/oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	description, _ := json.Marshal(image{"version": "0.1.0-test", "kubernetes": "v1.36.3", "etcd": "v3.6.16", "debian": "trixie", "architecture": runtime.GOARCH, "images": images})
	put("bundle.json", string(description))
	if err := os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(sums.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := host.OpenBundle(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
