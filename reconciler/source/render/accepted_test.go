package render

//lint:file-ignore SA1019 deprecated fields of kustomizations are in use, and must be refused or read like the others

import (
	"path"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/types"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// checkAccepted reads what kustomize would read, and sees that each path in it
// begins with a dot, as no address does, and is in the tree.
func checkAccepted(t *testing.T, root *tree.Dir, s *scan) {
	t.Helper()
	for at, f := range s.files {
		if f.text == nil || !strings.HasPrefix(path.Base(at), "kustomization") {
			continue
		}
		var k types.Kustomization
		if err := k.Unmarshal(f.text); err != nil {
			t.Fatalf("%s: %v\n%s", at, err, f.text)
		}
		for _, entry := range pathsOf(k) {
			if strings.Contains(entry, "\n") {
				if !strings.HasPrefix(entry, "{\"") && !strings.HasPrefix(entry, "# inline\n") {
					t.Errorf("%s: inline text %q could be taken for an address", at, entry)
				}
				continue
			}
			target := path.Join(path.Dir(at), entry)
			if !strings.HasPrefix(entry, ".") || strings.HasPrefix(target, "..") || root.Sub(target) == nil && root.File(target) == nil {
				t.Errorf("%s: accepted %q", at, entry)
			}
		}
		if len(k.HelmCharts) > 0 || k.HelmGlobals != nil || len(k.HelmChartInflationGenerator) > 0 {
			t.Errorf("%s: accepted helm", at)
		}
	}
}

// pathsOf are all paths that kustomize finds in a kustomization.
func pathsOf(k types.Kustomization) (paths []string) {
	for _, list := range [][]string{k.Resources, k.Bases, k.Components, k.Crds, k.Configurations, k.Generators, k.Transformers, k.Validators} {
		paths = append(paths, list...)
	}
	for _, p := range k.PatchesStrategicMerge {
		paths = append(paths, string(p))
	}
	add := func(entry string) {
		if entry != "" {
			paths = append(paths, entry)
		}
	}
	for _, p := range append(k.Patches, k.PatchesJson6902...) {
		add(p.Path)
	}
	for _, r := range k.Replacements {
		add(r.Path)
	}
	add(k.OpenAPI["path"])
	sources := func(from types.KvPairSources) {
		for _, entry := range from.FileSources {
			if _, at, keyed := strings.Cut(entry, "="); keyed {
				entry = at
			}
			paths = append(paths, entry)
		}
		paths = append(paths, from.EnvSources...)
		add(from.EnvSource)
	}
	for _, g := range k.ConfigMapGenerator {
		sources(g.KvPairSources)
	}
	for _, g := range k.SecretGenerator {
		sources(g.KvPairSources)
	}
	return paths
}
