package manifests_test

import (
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/kingmaker-io/kingmaker/manifests"
)

// TestBases renders each base with kustomize itself. All that it may lack is
// the tags of images.
func TestBases(t *testing.T) {
	memory := filesys.MakeFsInMemory()
	var bases []string
	err := fs.WalkDir(manifests.Files(), ".", func(at string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if path.Base(at) == "kustomization.yaml" {
			bases = append(bases, path.Dir(at))
		}
		text, err := fs.ReadFile(manifests.Files(), at)
		if err != nil {
			return err
		}
		return memory.WriteFile("/"+at, text)
	})
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]bool{}
	for _, base := range bases {
		t.Run(base, func(t *testing.T) {
			objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(memory, "/"+base)
			if err != nil {
				t.Fatal(err)
			}
			text, err := objects.AsYaml()
			if err != nil || objects.Size() == 0 {
				t.Fatalf("%d objects, %v", objects.Size(), err)
			}
			for _, image := range regexp.MustCompile(`(?m)^ *-? *image: *(\S+)$`).FindAllStringSubmatch(string(text), -1) {
				images[image[1]] = true
			}
		})
	}
	if got, want := slices.Sorted(maps.Keys(images)), slices.Sorted(maps.Keys(manifests.Images("v1"))); !slices.Equal(got, want) {
		t.Errorf("the bases have the images %v, and Images %v", got, want)
	}
}

// TestImages: the images are those that the bundle is built of.
func TestImages(t *testing.T) {
	images := manifests.Images("0.1.0-test")
	if images["kingmaker.dev/reconcile"] != "0.1.0-test" {
		t.Error(images)
	}
	module, err := os.ReadFile("../cmd/lab/build/flannel/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if required := "github.com/flannel-io/flannel " + images["kingmaker.dev/flannel"]; !slices.ContainsFunc(strings.Split(string(module), "\n"), func(line string) bool {
		line, _, _ = strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "require "), "//")
		return strings.TrimSpace(line) == required
	}) {
		t.Errorf("cmd/lab/build/flannel/go.mod does not require %s: one of the two was changed alone", required)
	}
}
