package plantest

import (
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Plans is the planner of a room as a table. Of each case in the file, "NAME: git" is
// what the site repo declares, in a folder of the room's; "NAME: HAS" is what there
// is, where has is the word for it, such as cluster; and "NAME: plan" what comes of
// it, as people read it. UPDATE_GOLDEN=1 writes the plans anew.
func Plans(t *testing.T, file, folder, has string, make func(t *testing.T, site *plan.Site, have string) string) {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, f := range archive.Files {
		sections[f.Name] = string(f.Data)
	}
	for i, f := range archive.Files {
		name, ok := strings.CutSuffix(f.Name, ": plan")
		if !ok {
			continue
		}
		t.Run(name, func(t *testing.T) {
			site := Site(t, Documents(t, sections[name+": git"])...)
			for id, o := range site.Objects {
				o.Origin = folder + "/" + id.Name + ".yaml"
				site.Objects.Add(o)
			}
			have := make(t, site, sections[name+": "+has])
			archive.Files[i].Data = []byte(have)
			if want := sections[f.Name]; have != want && os.Getenv("UPDATE_GOLDEN") == "" {
				t.Errorf("have:\n%s\nwant:\n%s", have, want)
			}
		})
	}
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
