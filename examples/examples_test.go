// Package examples_test holds the examples to what they promise: that they
// build, that nothing is wrong with them, and that they are what README.md says.
// They are rendered with kustomize itself; the reconciler's own render has the
// same answer, or is wrong.
package examples_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
	"github.com/kingmaker-io/kingmaker/reconciler/source/validate"
)

// site renders, reads and validates an example.
func site(t *testing.T, example string) *plan.Site {
	t.Helper()
	structure, err := validate.New()
	if err != nil {
		t.Fatal(err)
	}
	documents := plantest.Documents(t, render(t, example))
	var faults []*plan.Fault
	for _, document := range documents {
		_, more := ldap.Include(document, "anywhere.yaml", func(file string) ([]byte, error) { return find(example, file) })
		faults = append(faults, more...)
	}
	site := plantest.Site(t, documents...)
	if len(site.Objects) != len(documents) {
		t.Errorf("%d documents make %d objects: some have one name", len(documents), len(site.Objects))
	}
	for _, id := range site.Objects.IDs() {
		faults = append(faults, structure.Structure(id, site.Objects[id].Spec)...)
	}
	var warnings []*plan.Fault
	for _, check := range []func(*plan.Site) (faults, warnings []*plan.Fault){
		(*plan.Site).Validate, machine.Validate, gluster.Validate, ldap.Validate, kube.Validate,
	} {
		f, w := check(site)
		faults, warnings = append(faults, f...), append(warnings, w...)
	}
	if lines := plantest.Lines(faults, warnings); lines != "" {
		t.Error(lines)
	}
	return site
}

// render gives all documents of a site, unit by unit.
func render(t *testing.T, folder string) string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(folder, "kustomization.yaml")); err == nil {
		m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
		if err != nil {
			t.Fatal(err)
		}
		text, err := m.AsYaml()
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, entry := range entries {
		at := filepath.Join(folder, entry.Name())
		switch {
		case entry.IsDir():
			all.WriteString("\n---\n" + render(t, at))
		case filepath.Ext(at) == ".yaml":
			all.WriteString("\n---\n" + string(read(t, at)))
		}
	}
	return all.String()
}

// find reads a CSV file. Kustomize does not say which file a document came from,
// so this looks wherever an example has such files.
func find(example, file string) (data []byte, err error) {
	for _, folder := range []string{example, filepath.Join(example, "people"), "school/people"} {
		if data, err = os.ReadFile(filepath.Join(folder, file)); err == nil {
			break
		}
	}
	return data, err
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// count is the number of objects of a kind.
func count(site *plan.Site, kind string) (n int) {
	for id := range site.Objects {
		if id.Kind == kind {
			n++
		}
	}
	return n
}

// people is the number of users, and of groups that have some.
func people(t *testing.T, site *plan.Site) (users, groups int) {
	t.Helper()
	seen := map[string]bool{}
	for _, roster := range plan.Documents[ldap.Roster](site, plan.Directory, "Roster", &plan.Report{}) {
		users += len(roster.Spec.Users)
		seen[roster.Spec.Group] = true
	}
	return users, len(seen)
}

func TestMinimal(t *testing.T) {
	s := site(t, "minimal")
	if n := count(s, "Machine"); n != 1 || s.Spec.MasterCount() != 1 {
		t.Errorf("%d machines, %d masters", n, s.Spec.MasterCount())
	}
}

func TestSchool(t *testing.T) {
	s := site(t, "school")
	circuits, preferred := map[string]int{}, map[string]bool{}
	for _, m := range plan.Documents[machine.Machine](s, plan.Machines, "Machine", &plan.Report{}) {
		circuits[m.Spec.Circuit]++
		if m.Spec.Role() == machine.Preferred {
			preferred[m.Spec.Circuit] = true
		}
	}
	if len(circuits) != 3 || circuits["a"] != 10 || circuits["b"] != 10 || circuits["c"] != 10 {
		t.Errorf("machines by circuit: %v", circuits)
	}
	if s.Spec.MasterCount() != 3 || len(preferred) != 3 {
		t.Errorf("%d masters, preferred on circuits %v", s.Spec.MasterCount(), preferred)
	}
	if users, groups := people(t, s); users != 120 || groups != 4 || count(s, "Group") != 4 {
		t.Errorf("%d users in %d groups of %d", users, groups, count(s, "Group"))
	}
	if n := count(s, "Desktop."+plan.Group); n != 2 {
		t.Errorf("%d desktops", n)
	}
	if !s.Has(plan.ID{System: plan.Objects, Kind: "Deployment.apps", Name: "wiki/web"}) || !s.Has(plan.ID{System: plan.Objects, Kind: "Service", Name: "printing/library"}) {
		t.Error("the services are not there")
	}
	// A kustomization.yaml at the root would make one unit of the whole site.
	if _, err := os.Stat("school/kustomization.yaml"); err == nil {
		t.Error("school/kustomization.yaml is there")
	}
}

func TestSchoolNorth(t *testing.T) {
	s, first := site(t, "school-north"), site(t, "school")
	if s.Name == first.Name || count(s, "Machine") != 6 || count(s, "Volume") != count(first, "Volume") || count(s, "Group") != 4 {
		t.Errorf("%s: %d machines, %d volumes, %d groups", s.Name, count(s, "Machine"), count(s, "Volume"), count(s, "Group"))
	}
	if s.Has(plan.ID{System: plan.Directory, Kind: "Roster", Name: "class-5a"}) || !s.Has(plan.ID{System: plan.Directory, Kind: "Roster", Name: "class-7n"}) {
		t.Error("the classes are those of the first campus")
	}
	for id, o := range s.Objects {
		if id.Kind == "ConfigMap" {
			if php, _ := o.Spec["data"].(map[string]any)["local.php"].(string); !strings.Contains(php, "North Campus") {
				t.Errorf("the wiki has the first campus's settings: %q", php)
			}
		}
	}
}

// TestEditorLines: the first line of each file of site documents names the
// schema that its documents have, by a path that leads there.
func TestEditorLines(t *testing.T) {
	err := filepath.WalkDir(".", func(at string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(at) != ".yaml" {
			return err
		}
		data := read(t, at)
		if !bytes.Contains(data, []byte(plan.APIVersion)) || entry.Name() == "kustomization.yaml" {
			return nil
		}
		head, _, _ := strings.Cut(string(data), "\n")
		file, ok := strings.CutPrefix(head, "# yaml-language-server: $schema=")
		if !ok {
			t.Errorf("%s: the first line names no schema", at)
			return nil
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(at), file)); err != nil {
			t.Errorf("%s: %v", at, err)
		}
		for _, document := range plantest.Documents(t, string(data)) {
			if kind, _ := document["kind"].(string); strings.ToLower(kind)+".json" != filepath.Base(file) {
				t.Errorf("%s: a %s in a file of %s", at, kind, filepath.Base(file))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLab: the site of `lab up` knows the machines by what the lab gives them,
// and asks for no image that is not in the bundle.
func TestLab(t *testing.T) {
	s := site(t, "lab")
	circuits := map[string]bool{}
	for _, m := range plan.Documents[machine.Machine](s, plan.Machines, "Machine", &plan.Report{}) {
		if want := "02:4b:4d:00:00:" + strings.TrimPrefix(m.ID.Name, "pc-"); m.Spec.MAC != want {
			t.Errorf("%s has the mac %s, want %s", m.ID.Name, m.Spec.MAC, want)
		}
		circuits[m.Spec.Circuit] = true
	}
	if n := count(s, "Machine"); n != 5 || len(circuits) != 3 {
		t.Errorf("%d machines on circuits %v", n, circuits)
	}
	module := string(read(t, "../cmd/lab/build/coredns/go.mod"))
	for _, line := range strings.Split(render(t, "lab"), "\n") {
		image, ok := strings.CutPrefix(strings.TrimSpace(line), "image: ")
		if !ok {
			continue
		}
		version, ok := strings.CutPrefix(image, "kingmaker.dev/coredns:")
		if !ok || !strings.Contains(module, "github.com/coredns/coredns "+version) {
			t.Errorf("the bundle has no image %s", image)
		}
	}
}

// TestDesktops: what `lab up --desktops` lays into the site of the lab.
func TestDesktops(t *testing.T) {
	dir := t.TempDir()
	for _, folder := range []string{"lab", "desktops"} {
		if err := os.CopyFS(dir, os.DirFS(folder)); err != nil {
			t.Fatal(err)
		}
	}
	s := site(t, dir)
	if users, groups := people(t, s); users != 4 || groups != 3 || s.Spec.Admins != "admins" {
		t.Errorf("%d users in %d groups; admins are %q", users, groups, s.Spec.Admins)
	}
	for _, d := range plan.Documents[kube.Desktop](s, plan.Objects, "Desktop."+plan.Group, &plan.Report{}) {
		if d.Spec.Image != "kingmaker.dev/desktop" {
			t.Errorf("the bundle has no image %s", d.Spec.Image)
		}
	}
	if n := count(s, "Desktop."+plan.Group); n != 2 {
		t.Errorf("%d desktops", n)
	}
}
