package schema_test

import (
	"bytes"
	"encoding/json"
	"testing"

	validator "github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/schema"
)

// planJSON is what plan.Plan.MarshalJSON writes. The shape belongs to package
// plan, which does not show it as a type; TestPlan holds the two together.
type planJSON struct {
	Commit   string        `json:"commit" jsonschema:"required" jsonschema_description:"Commit that the plan leads to; dir-HASH for a plain folder."`
	Settled  bool          `json:"settled" jsonschema:"required" jsonschema_description:"Settled is true where there is nothing to do and nothing that waits."`
	Totals   totalsJSON    `json:"totals" jsonschema:"required" jsonschema_description:"Totals are the numbers of changes by action."`
	Changes  []changeJSON  `json:"changes" jsonschema:"required" jsonschema_description:"Changes in the order of carrying out."`
	Withheld []withheld    `json:"withheld" jsonschema:"required" jsonschema_description:"Withheld changes lose something, and wait for consent in Site.spec.confirm."`
	Waiting  []*plan.Fault `json:"waiting" jsonschema:"required" jsonschema_description:"Waiting is what cannot be planned yet, each with the reason."`
	Notes    []*plan.Fault `json:"notes" jsonschema:"required" jsonschema_description:"Notes are what people should know; nothing is held back for them."`
}

type totalsJSON struct {
	Create  int `json:"create" jsonschema:"required,minimum=0"`
	Update  int `json:"update" jsonschema:"required,minimum=0"`
	Replace int `json:"replace" jsonschema:"required,minimum=0"`
	Delete  int `json:"delete" jsonschema:"required,minimum=0"`
}

type changeJSON struct {
	ID     plan.ID `json:"id" jsonschema:"required" jsonschema_description:"ID of the object: system/kind/name."`
	Action string  `json:"action" jsonschema:"required,enum=create,enum=update,enum=replace,enum=delete"`
	Why    string  `json:"why" jsonschema:"required" jsonschema_description:"Why is one sentence for people."`
	Origin string  `json:"origin,omitempty" jsonschema_description:"Origin is the file, and the line where it is known, that declares the object."`
	Have   any     `json:"have,omitempty" jsonschema_description:"Have is the object as it is, secrets masked; absent where it is created."`
	Want   any     `json:"want,omitempty" jsonschema_description:"Want is the object as it is to be, secrets masked; absent where it is deleted."`
}

type withheld struct {
	changeJSON
	Reason *plan.Fault `json:"reason" jsonschema:"required" jsonschema_description:"Reason says what would be lost, and how to confirm it."`
}

// TestPlan encodes plans with everything in them and holds them against the
// schema, which knows no other field.
func TestPlan(t *testing.T) {
	s := compile(t, schema.Plan())
	a := plan.Object{ID: plan.ID{System: plan.Objects, Kind: "Namespace", Name: "wiki"}, Spec: map[string]any{"kind": "Namespace"}, Origin: "services/wiki/namespace.yaml:1"}
	b := a
	b.Identity = "other"
	fault := &plan.Fault{Code: plan.NeedsConsent, ID: a.ID, Where: "site.yaml:3", Field: "spec", Cause: "it is so", Hint: "change it"}
	create, remove := plan.Change{ID: a.ID, Want: &a, Why: "declared"}, plan.Change{ID: a.ID, Have: &a, Why: "no longer"}
	for _, p := range []*plan.Plan{
		{Commit: "c0ffee"},
		{Commit: "c0ffee", Changes: []plan.Change{create, {ID: a.ID, Have: &a, Want: &a}, {ID: a.ID, Have: &a, Want: &b}, remove},
			Withheld: []plan.Withheld{{Change: remove, Reason: fault}}, Waiting: []*plan.Fault{fault, {Code: "X", Cause: "y"}}, Notes: []*plan.Fault{fault}},
	} {
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		instance, err := validator.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(instance); err != nil {
			t.Errorf("%s\n%v", data, err)
		}
	}
}

func compile(t *testing.T, data []byte) *validator.Schema {
	t.Helper()
	doc, err := validator.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := validator.NewCompiler()
	if err := c.AddResource("mem:schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("mem:schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}
