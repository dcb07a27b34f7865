package validate_test

import (
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
	"github.com/kingmaker-io/kingmaker/reconciler/source/validate"
)

func newValidator(t testing.TB) *validate.Validator {
	t.Helper()
	v, err := validate.New()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestStructure(t *testing.T) {
	v := newValidator(t)
	plantest.Golden(t, "testdata/structure.txt", func(site *plan.Site) (faults, warnings []*plan.Fault) {
		for _, id := range site.Objects.IDs() {
			faults = append(faults, v.Structure(id, site.Objects[id].Spec)...)
		}
		for _, f := range faults {
			if strings.Contains(f.Error(), "canary") {
				t.Errorf("a secret is quoted: %v", f)
			}
		}
		return faults, nil
	})
}

// TestStructureChangesNothing: documents are shared.
func TestStructureChangesNothing(t *testing.T) {
	document := plantest.Documents(t, `{apiVersion: kingmaker.dev/v1alpha1, kind: Roster, metadata: {name: a}, spec: {group: b, users: [{name: c, uid: 1000, password: {initial: canary}}]}}`)[0]
	if faults := newValidator(t).Structure(plan.ID{}, document); faults != nil {
		t.Error(plantest.Lines(faults, nil))
	}
	user := document["spec"].(map[string]any)["users"].([]any)[0].(map[string]any)
	if user["password"].(map[string]any)["initial"] != plan.NewSecret("canary") {
		t.Error("the secret is gone")
	}
}

func BenchmarkStructure(b *testing.B) {
	v := newValidator(b)
	document := plantest.Documents(b, `{apiVersion: kingmaker.dev/v1alpha1, kind: Machine, metadata: {name: a}, spec: {address: 10.0.0.1, labels: {room: lab}, disk: {system: 40Gi}}}`)[0]
	for b.Loop() {
		v.Structure(plan.ID{}, document)
	}
}
