package render

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"

	"sigs.k8s.io/kustomize/api/konfig"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// Unit is a folder that is rendered by itself: what is in it is not seen by
// other units, and it is not rendered again until something that it can reach
// has changed.
type Unit struct {
	Name  string    // path of the folder, "." for the root
	Root  *tree.Dir // the whole site: a unit may refer to any folder of it
	Path  string    // the folder in it, "" for the root itself
	Loose bool      // only the folder's own files, for its folders are units themselves
}

// services is the folder whose folders are units, each on its own.
const services = "services"

// Units cuts a site into units. Where the root has a kustomization of its own,
// it is the one unit. Otherwise each folder of the root is one, each folder
// under services, and the files of the root and of services that lie in no
// folder. Names that begin with a dot do not count.
func Units(root *tree.Dir) []Unit {
	if len(kustomizations(root)) > 0 {
		return []Unit{{Name: ".", Root: root}}
	}
	units := []Unit{{Name: ".", Root: root, Loose: true}}
	for _, name := range folders(root) {
		in := root.Dirs[name]
		loose := name == services && len(kustomizations(in)) == 0
		units = append(units, Unit{Name: name, Root: root, Path: name, Loose: loose})
		if !loose {
			continue
		}
		for _, name := range folders(in) {
			at := path.Join(services, name)
			units = append(units, Unit{Name: at, Root: root, Path: at})
		}
	}
	slices.SortFunc(units, func(a, b Unit) int { return cmp.Compare(a.Name, b.Name) })
	return units
}

// folders are the names of a folder's folders that count, in order.
func folders(d *tree.Dir) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(d.Dirs)), hidden)
}

// hidden tells names that a made-up kustomization passes over.
func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// kustomizations are the names of the kustomization files in a folder. More
// than one is a fault, for the scan to find.
func kustomizations(d *tree.Dir) []string {
	return slices.DeleteFunc(konfig.RecognizedKustomizationFileNames(), func(name string) bool {
		return d.Files[name] == nil
	})
}

// isYAML tells the files that a made-up kustomization lists.
func isYAML(name string) bool {
	return strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml")
}
