package render

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/sops"
)

// TestEncrypted has one Renderer render a site with a key, without it and with
// it again: what it remembers in between opens nothing.
func TestEncrypted(t *testing.T) {
	dir := t.TempDir()
	key, err := os.ReadFile("../sops/testdata/site.agekey")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "age.agekey")
	many, err := os.ReadFile("../sops/testdata/many.yaml")
	if err != nil {
		t.Fatal(err)
	}
	units := Units(site(t, "-- services/wiki/many.yaml --\n"+string(many)))
	r := New(Options{Keys: func() (sops.Keys, error) { return sops.LoadKeys(dir) }})
	for i := range 5 {
		if i%2 == 1 {
			os.WriteFile(file, key, 0o600)
		} else {
			os.Remove(file)
		}
		documents, err := r.Render(t.Context(), units)
		if i%2 == 0 {
			faults, rest := plan.Split(err)
			if rest != nil || len(faults) != 1 || faults[0].Code != sops.NoKey || len(documents) > 0 {
				t.Fatalf("%d: without a key: %d documents, %v", i, len(documents), err)
			}
		} else {
			if err != nil || len(documents) != 3 {
				t.Fatalf("%d: %d documents, %v", i, len(documents), err)
			}
			for j, want := range []string{"", "canary-a", "canary-b"} {
				values, _ := documents[j].Content["stringData"].(map[string]any)
				if got, _ := values["password"].(plan.Secret); got.Value() != want {
					t.Errorf("%d: document %d has another password", i, j)
				}
			}
			if text := fmt.Sprintf("%v %+v", documents, documents); strings.Contains(text, "canary") {
				t.Error("a document shows its secret")
			}
		}
		if len(r.cache) == 0 {
			t.Error("nothing is remembered")
		}
		for _, old := range r.cache {
			for _, d := range old.documents {
				if text, _ := json.Marshal(plan.Reveal(d.Content)); strings.Contains(string(text), "canary") {
					t.Fatal("a value is remembered")
				}
			}
			for _, f := range old.encrypted {
				if strings.Contains(string(f.Clear), "canary") {
					t.Fatal("a value is remembered")
				}
			}
		}
	}
}
