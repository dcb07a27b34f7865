package source

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/kingmaker-io/kingmaker/manifests"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/render"
	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
	"github.com/rogpeppe/go-internal/txtar"
)

func TestMain(m *testing.M) {
	if os.Args[0] == render.ChildName {
		syscall.Exit(render.Child(os.Stdin, os.Stdout)) // os.Exit sleeps under the race detector
	}
	os.Exit(m.Run())
}

// files is a repository of one commit.
type files struct{ root *tree.Dir }

func (f files) Head(context.Context) (string, error)            { return "c0ffee", nil }
func (f files) LastGood() (string, bool)                        { return "", false }
func (f files) Tree(context.Context, string) (*tree.Dir, error) { return f.root, nil }
func (f files) Watch(context.Context) (<-chan struct{}, error)  { return nil, nil }
func (f files) Close() error                                    { return nil }

// read makes a site of a txtar archive.
func read(t testing.TB, archive string, warn func([]*plan.Fault)) (*plan.Site, error) {
	t.Helper()
	disk := fstest.MapFS{}
	for _, f := range txtar.Parse([]byte(archive)).Files {
		disk[f.Name] = &fstest.MapFile{Data: f.Data}
	}
	root, err := tree.FromFS(disk)
	if err != nil {
		t.Fatal(err)
	}
	src, err := New(Options{
		Repository: files{root}, Renderer: render.New(render.Options{}), Platform: manifests.Files(), Images: manifests.Images("0.1.0-test"), Include: ldap.Include,
		Endpoint: func(site string) (string, int) { return "api." + site + ".internal", 7443 },
		Derive:   gluster.Claims,
		Rules:    []Rules{machine.Validate, gluster.Validate, ldap.Validate, kube.Validate}, Warn: warn,
	})
	if err != nil {
		t.Fatal(err)
	}
	return src.Site(t.Context(), "c0ffee")
}

const site = `
-- site.yaml --
apiVersion: kingmaker.dev/v1alpha1
kind: Site
metadata: {name: school}
spec: {masters: 1}
-- machines/pc.yaml --
apiVersion: kingmaker.dev/v1alpha1
kind: Machine
metadata: {name: pc-01}
spec: {address: 192.0.2.1, disk: {device: /dev/sda}}
`

// TestAllFaultsInOneRun breaks every room at once: each fault must be told, in
// the order of reading, with the line that it is on.
func TestAllFaultsInOneRun(t *testing.T) {
	_, err := read(t, `
-- site.yaml --
apiVersion: kingmaker.dev/v1alpha1
kind: Site
metadata: {name: school}
spec:
  masters: 2
  mastres: 3
  admins: nobody
-- machines/pc.yaml --
apiVersion: kingmaker.dev/v1alpha1
kind: Machine
metadata: {name: pc-01}
spec:
  address: not an address
---
apiVersion: kingmaker.dev/v1alpha1
kind: Machine
metadata: {name: pc-01}
spec: {address: 192.0.2.2}
-- people/class.yaml --
apiVersion: kingmaker.dev/v1alpha1
kind: Group
metadata: {name: pupils}
spec: {gid: 3000}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Roster
metadata: {name: class}
spec:
  group: pupils
  csv: class.csv
-- people/class.csv --
name,uid,fullName
ada,20001,Ada
bob,20001,Bob
-- services/web/web.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: x}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Desktop
metadata: {name: xfce}
spec:
  image: debian:13
  home:
    volume: homes
`, nil)
	if err == nil {
		t.Fatal("no fault")
	}
	for _, want := range []string{
		"site.yaml:5: Site.kingmaker.dev school: spec.masters:",
		"site.yaml:6: Site.kingmaker.dev school: spec.mastres:", `did you mean "masters"`,
		"site.yaml:7: Site.kingmaker.dev school: spec.admins:",
		"machines/pc.yaml:5: Machine pc-01: spec.address:",
		"machines/pc.yaml:",
		"people/class.csv:3: Roster class: spec.users[1].uid:",
		"services/web/web.yaml:11: Desktop.kingmaker.dev xfce: spec.home.volume:",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestSite(t *testing.T) {
	s, err := read(t, site, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "school" || s.Commit != "c0ffee" || s.Spec.Masters != 1 {
		t.Errorf("%s %s %d", s.Name, s.Commit, s.Spec.Masters)
	}
	for _, id := range []string{"machines/Machine/pc-01", "objects/Site.kingmaker.dev/school",
		"objects/CustomResourceDefinition.apiextensions.k8s.io/sites.kingmaker.dev", "objects/Namespace/kingmaker-system"} {
		parsed, err := plan.ParseID(id)
		if _, ok := s.Objects[parsed]; !ok || err != nil {
			t.Errorf("lacks %s", id)
		}
	}
}

// TestDerived: what follows from a document is in the site, with the document's
// file, and nothing else may take its name.
func TestDerived(t *testing.T) {
	const volume = `
-- volumes/homes.yaml --
apiVersion: kingmaker.dev/v1alpha1
kind: Volume
metadata: {name: homes}
spec: {replicas: 1, access: homes}
`
	s, err := read(t, site+volume, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"objects/PersistentVolume/kingmaker-homes", "objects/PersistentVolumeClaim/kingmaker-desktops/homes"} {
		parsed, err := plan.ParseID(id)
		if o, ok := s.Objects[parsed]; !ok || err != nil || o.Origin != "volumes/homes.yaml" {
			t.Errorf("%s comes from %q", id, o.Origin)
		}
	}
	if !s.Has(plan.ID{System: plan.Objects, Kind: "Namespace", Name: gluster.DesktopsNamespace}) {
		t.Errorf("the built-in manifests have no Namespace %s, where claims are made", gluster.DesktopsNamespace)
	}
	_, err = read(t, site+volume+`
-- services/own/own.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: x}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: homes, namespace: kingmaker-desktops}
`, nil)
	faults, rest := plan.Split(err)
	if len(faults) != 1 || rest != nil || faults[0].Code != plan.Duplicate || !strings.HasPrefix(faults[0].Where, "services/own/own.yaml:5") ||
		!strings.Contains(faults[0].Cause, "volumes/homes.yaml") {
		t.Errorf("got %v", err)
	}
}

// TestPlatformPatches changes a built-in manifest, and then misses it.
func TestPlatformPatches(t *testing.T) {
	patched := func(patch string) string {
		return strings.Replace(site, "spec: {masters: 1}", "spec:\n  masters: 1\n  platform:\n    patches:\n    - patch: |\n"+patch, 1)
	}
	s, err := read(t, patched("        {apiVersion: v1, kind: Namespace, metadata: {name: kingmaker-system, labels: {room: cellar}}}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	namespace := s.Objects[plan.ID{System: plan.Objects, Kind: "Namespace", Name: "kingmaker-system"}]
	if labels := namespace.Spec["metadata"].(map[string]any)["labels"].(map[string]any); labels["room"] != "cellar" {
		t.Errorf("labels %v", labels)
	}
	_, err = read(t, patched("        {apiVersion: v1, kind: Namespace, metadata: {name: nowhere}}\n"), nil)
	if err == nil || !strings.Contains(err.Error(), "site.yaml") || !strings.Contains(err.Error(), "platform.patches") {
		t.Errorf("got %v", err)
	}
}

func TestNoSite(t *testing.T) {
	_, err := read(t, "-- machines/pc.yaml --\napiVersion: kingmaker.dev/v1alpha1\nkind: Machine\nmetadata: {name: pc-01}\nspec: {address: 192.0.2.1}\n", nil)
	if err == nil || !strings.Contains(err.Error(), "there is no document of kind Site") {
		t.Errorf("got %v", err)
	}
	_, err = read(t, site+"-- more.yaml --\napiVersion: kingmaker.dev/v1alpha1\nkind: Site\nmetadata: {name: other}\nspec: {}\n", nil)
	if err == nil || !strings.Contains(err.Error(), "more than one Site") {
		t.Errorf("got %v", err)
	}
}

// FuzzSite feeds documents of a site to everything that reads them: whatever
// they hold, the answer is a site or faults, never a panic, and the password in
// it is quoted by none.
func FuzzSite(f *testing.F) {
	f.Add("spec: {masters: 3}", "spec: {group: g, users: [{name: a, uid: 1, password: {initial: canary-4e1f}}]}")
	f.Add("spec: {confirm: [x], deletes: {share: 3}}", "spec: {users: {a: b}, csv: [canary-4e1f]}")
	f.Add("spec: []", "spec: {users: [[canary-4e1f], {password: canary-4e1f}, {password: {managed: [canary-4e1f]}}]}")
	f.Add("spec: {network: {pods: ::/0}, failover: {after: -1s}}", "metadata: {name: {a: b}}")
	f.Fuzz(func(t *testing.T, siteSpec, roster string) {
		if strings.Contains(siteSpec+roster, "\n-- ") || strings.HasPrefix(siteSpec, "-- ") || strings.HasPrefix(roster, "-- ") {
			t.Skip("would be another archive")
		}
		_, err := read(t, "-- site.yaml --\napiVersion: kingmaker.dev/v1alpha1\nkind: Site\nmetadata: {name: s}\n"+siteSpec+
			"\n-- people/r.yaml --\napiVersion: kingmaker.dev/v1alpha1\nkind: Roster\nmetadata: {name: r}\n"+roster+"\n", nil)
		if err != nil && strings.Contains(roster, "password: {initial: canary-4e1f") && strings.Contains(err.Error(), "canary-4e1f") {
			t.Errorf("a password shows: %v", err)
		}
	})
}
