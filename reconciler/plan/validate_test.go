package plan_test

import (
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
)

func TestValidate(t *testing.T) {
	plantest.Golden(t, "testdata/validate.txt", (*plan.Site).Validate)
}

func TestField(t *testing.T) {
	for want, parts := range map[string][]any{
		"spec.users[3].uid":               {"spec", "users", 3, "uid"},
		`spec.labels["a.example/b"]`:      {"spec", "labels", "a.example/b"},
		`spec.options["performance.x"]`:   {"spec", "options", "performance.x"},
		"spec":                            {"spec"},
		"":                                {},
		`spec.environment["two words"].x`: {"spec", "environment", "two words", "x"},
	} {
		if have := plan.Field(parts...); have != want {
			t.Errorf("have %s, want %s", have, want)
		}
	}
}

func TestMergeFaults(t *testing.T) {
	site, other := plan.ID{System: "a", Kind: "b", Name: "c"}, plan.ID{System: "a", Kind: "b", Name: "d"}
	earlier := []*plan.Fault{{Code: plan.InvalidValue, ID: site, Field: "spec.masters", Cause: "4 is none of 1, 3"}}
	later := []*plan.Fault{
		{Code: plan.EvenCount, ID: site, Field: "spec.masters", Cause: "heard already"},
		{Code: plan.Unreadable, ID: site, Field: "spec", Cause: "heard already"},
		{Code: plan.Unreadable, ID: other, Field: "spec", Cause: "news"},
		{Code: plan.InvalidName, ID: site, Field: "metadata.name", Cause: "news"},
	}
	all := plan.MergeFaults(earlier, later)
	if len(all) != 3 || all[1].Cause != "news" || all[2].Cause != "news" {
		t.Error(plantest.Lines(all, nil))
	}
}
