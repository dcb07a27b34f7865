package source

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"sigs.k8s.io/yaml"
)

// with is the site of these tests, with more lines of spec.
func with(spec string) string {
	return strings.Replace(site, "spec: {masters: 1}", "spec:\n  masters: 1\n"+spec, 1)
}

// platform is the site that a spec makes.
func platform(t *testing.T, spec string) *plan.Site {
	t.Helper()
	s, err := read(t, with(spec), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// object is the one object of a kind whose name begins as given.
func object(t *testing.T, s *plan.Site, kind, name string) map[string]any {
	t.Helper()
	var found []plan.Object
	for id, o := range s.Objects {
		if id.Kind == kind && strings.HasPrefix(id.Name, name) {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects are a %s %s", len(found), kind, name)
	}
	return found[0].Spec
}

// network is what flannel will read.
func network(t *testing.T, s *plan.Site) (settings string) {
	t.Helper()
	data := object(t, s, "ConfigMap", "kube-flannel/kube-flannel-cfg-")["data"].(map[string]any)
	var compact any
	if err := json.Unmarshal([]byte(data["net-conf.json"].(string)), &compact); err != nil {
		t.Fatal(err)
	}
	if data["cni-conf.json"] == nil {
		t.Error("the settings of CNI are lost")
	}
	text, _ := json.Marshal(compact)
	return string(text)
}

// TestPlatform shows all that a managed site gets, and one that has a volume for
// the directory's backups, but for the CRDs and the rules of machines. UPDATE_GOLDEN=1 writes the file anew.
func TestPlatform(t *testing.T) {
	s := platform(t, "  network: {pods: 10.20.0.0/16, backend: vxlan}\n"+backup)
	var all strings.Builder
	for _, id := range s.Objects.IDs() {
		origin := s.Objects[id].Origin
		if !slices.ContainsFunc([]string{"network/", "reconciler/", "directory/", "portal/"}, func(dir string) bool { return strings.HasPrefix(origin, builtIn+dir) }) {
			continue
		}
		text, err := yaml.Marshal(s.Objects[id].Spec)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "---\n# %s\n%s", origin, text)
	}
	const file = "testdata/platform.yaml"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || string(want) != all.String() {
		t.Errorf("the manifests are not those of %s, see UPDATE_GOLDEN; %v", file, err)
	}
}

// backup, after the spec of a Site, is a volume for the backups of the directory.
const backup = "---\napiVersion: kingmaker.dev/v1alpha1\nkind: Volume\nmetadata: {name: directory-backup}\nspec: {namespace: kingmaker-directory, replicas: 1}\n"

func TestPlatformNetwork(t *testing.T) {
	for spec, want := range map[string]string{
		"":                                `{"Backend":{"Type":"host-gw"},"Network":"10.244.0.0/16"}`,
		"  network: {backend: host-gw}\n": `{"Backend":{"Type":"host-gw"},"Network":"10.244.0.0/16"}`,
		"  network: {backend: vxlan, pods: 10.20.0.0/16}\n":                      `{"Backend":{"Type":"vxlan"},"Network":"10.20.0.0/16"}`,
		"  network: {pods: \"fd00:1::/48\", services: \"fd00:2::/112\"}\n":       `{"Backend":{"Type":"host-gw"},"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:1::/48"}`,
		"  kubernetes: {managed: true}\n  network: {services: 192.168.0.0/16}\n": `{"Backend":{"Type":"host-gw"},"Network":"10.244.0.0/16"}`,
		"  platform: {patches: [{patch: '" + ownSettings + "'}]}\n":              `{"Backend":{"Port":4789,"Type":"vxlan"}}`,
	} {
		t.Run(want, func(t *testing.T) {
			if got := network(t, platform(t, spec)); got != want {
				t.Errorf("%s\nwant %s", got, want)
			}
		})
	}
}

const ownSettings = `{apiVersion: v1, kind: ConfigMap, metadata: {name: kube-flannel-cfg, namespace: kube-flannel}, data: {net-conf.json: "{\"Backend\":{\"Type\":\"vxlan\",\"Port\":4789}}"}}`

// TestPlatformRestarts: flannel reads its settings once, so that a change of
// them has to change its Pods.
func TestPlatformRestarts(t *testing.T) {
	mounted := map[string]bool{}
	for _, spec := range []string{"", "  network: {pods: 10.20.0.0/16}\n", "  network: {backend: vxlan}\n", "  platform: {patches: [{patch: '" + ownSettings + "'}]}\n"} {
		text, err := json.Marshal(object(t, platform(t, spec), "DaemonSet.apps", "kube-flannel/"))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), `{"configMap":{"name":"`)
		name, _, _ := strings.Cut(rest, `"`)
		mounted[name] = true
	}
	if len(mounted) != 4 || mounted["kube-flannel-cfg"] {
		t.Errorf("flannel mounts %v", mounted)
	}
}

// TestPlatformUnmanaged: a cluster that noded did not make gets what the site
// kinds need, and no more.
func TestPlatformUnmanaged(t *testing.T) {
	s := platform(t, "  kubernetes: {managed: false}\n  network: {backend: vxlan}\n")
	for _, id := range s.Objects.IDs() {
		origin, ours := strings.CutPrefix(s.Objects[id].Origin, builtIn)
		if ours && !strings.HasPrefix(origin, "base/") {
			t.Errorf("%s comes from %s", id, origin)
		}
	}
}

func TestPlatformManaged(t *testing.T) {
	for spec, want := range map[string]string{
		"":     "base directory machines network/flannel portal reconciler",
		backup: "base directory directory/backup machines network/flannel portal reconciler",
	} {
		folders := map[string]bool{}
		for _, o := range platform(t, spec).Objects {
			if origin, ours := strings.CutPrefix(o.Origin, builtIn); ours {
				folders[path.Dir(origin)] = true
			}
		}
		if got := strings.Join(slices.Sorted(maps.Keys(folders)), " "); got != want {
			t.Errorf("%s\nthe manifests come from %s, want %s", spec, got, want)
		}
	}
}

// TestPlatformImages: each is named with a tag, and the reconciler with our own.
func TestPlatformImages(t *testing.T) {
	s := platform(t, "  platform:\n    patches:\n    - patch: |\n"+
		"        {apiVersion: apps/v1, kind: DaemonSet, metadata: {name: kube-flannel-ds, namespace: kube-flannel}, spec: {template: {spec: {containers: [{name: kube-flannel, image: kingmaker.dev/flannel:ours}]}}}}\n")
	for namespace, want := range map[string]string{"kingmaker-system/": `"image":"kingmaker.dev/reconcile:0.1.0-test"`, "kingmaker-directory/": `"image":"kingmaker.dev/directory:0.1.0-test"`,
		"kube-flannel/": `"image":"kingmaker.dev/flannel:ours"`} {
		text, err := json.Marshal(object(t, s, "DaemonSet.apps", namespace))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %s: %v", namespace, want, err)
		}
	}
}

// TestPlatformOfFaultySite: what is wrong with the Site is told by its field,
// and not by what would come of it.
func TestPlatformOfFaultySite(t *testing.T) {
	_, err := read(t, with("  network: {backend: ../reconciler, pods: 10.20.0.0/40}\n"), nil)
	faults, rest := plan.Split(err)
	if len(faults) != 2 || rest != nil || faults[0].Field != "spec.network.backend" || faults[1].Field != "spec.network.pods" {
		t.Errorf("got %v", err)
	}
}
