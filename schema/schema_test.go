package schema_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"
	orderedmap "github.com/wk8/go-ordered-map/v2"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/schema"
)

var update = flag.Bool("update", false, "write the schemas and the CRDs anew")

// spec is the Go type of the spec of each kind.
func spec(kind string) any {
	return map[string]any{
		"Site":    plan.SiteSpec{},
		"Machine": machine.Machine{},
		"Volume":  gluster.Volume{},
		"Group":   ldap.Group{},
		"Roster":  ldap.Roster{},
		"Desktop": kube.Desktop{},
	}[kind]
}

func TestCurrent(t *testing.T) {
	r := newReflector(t)
	for _, kind := range schema.Kinds() {
		current(t, strings.ToLower(kind)+".json", indent(t, document(r, kind)))
	}
	p := r.Reflect(planJSON{})
	p.ID, p.Title = id("plan"), "Plan"
	p.Description = "What reconcile --dry-run --output json prints: the ordered list of changes for one commit."
	current(t, "plan.json", indent(t, p))
}

// current compares a file with what was generated, or writes it.
func current(t *testing.T, file string, want []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Errorf("%s is not what the Go types give: run go test ./schema -update", filepath.Base(file))
	}
}

func id(name string) jsonschema.ID {
	return jsonschema.ID("https://" + plan.Group + "/schema/v1alpha1/" + name + ".json")
}

func indent(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// newReflector knows the comments of all rooms, and the types of ours that are
// something else in JSON than in Go.
func newReflector(t *testing.T) *jsonschema.Reflector {
	t.Helper()
	r := &jsonschema.Reflector{
		Anonymous: true, DoNotReference: true, ExpandedStruct: false,
		RequiredFromJSONSchemaTags: true, // omitzero says nothing of what must be there
		Mapper:                     mapped,
	}
	for _, room := range []string{"reconciler/plan", "reconciler/machine", "reconciler/gluster", "reconciler/ldap", "reconciler/kube", "cmd/portal/session"} {
		if err := r.AddGoComments("github.com/kingmaker-io/kingmaker/schema", "../"+room); err != nil {
			t.Fatal(err)
		}
	}
	for key, comment := range r.CommentMap {
		r.CommentMap[key] = strings.ReplaceAll(comment, "\n", " ")
	}
	return r
}

func mapped(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[plan.Duration]():
		// No 0s: a zero duration is an absent one.
		return &jsonschema.Schema{Type: "string", Pattern: `^[1-9][0-9]*(\.[0-9]+)?(ms|s|m|h)([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`}
	case reflect.TypeFor[plan.Percent]():
		return &jsonschema.Schema{Type: "string", Pattern: `^(100|[1-9]?[0-9])%$`}
	case reflect.TypeFor[plan.Quantity]():
		return &jsonschema.Schema{
			Pattern: `^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$`, Minimum: "1",
			Extras: map[string]any{"type": []string{"string", "integer"}},
		}
	case reflect.TypeFor[plan.Secret]():
		return &jsonschema.Schema{Type: "string", WriteOnly: true}
	case reflect.TypeFor[plan.ID]():
		return &jsonschema.Schema{Type: "string"}
	}
	return nil
}

// document is the schema of a whole document of a kind.
func document(r *jsonschema.Reflector, kind string) *jsonschema.Schema {
	s := r.Reflect(spec(kind))
	s.Version, s.Definitions = "", nil
	text := &jsonschema.Schema{Type: "string"}

	metadata := object("Metadata names the document.",
		property{"name", nameOf(kind), true},
		property{"labels", &jsonschema.Schema{Type: "object", AdditionalProperties: text, Description: "Labels of the document."}, false},
		property{"annotations", &jsonschema.Schema{Type: "object", AdditionalProperties: text, Description: "Annotations of the document, for people and tools."}, false})
	whole := object(s.Description,
		property{"apiVersion", &jsonschema.Schema{Const: plan.APIVersion}, true},
		property{"kind", &jsonschema.Schema{Const: kind}, true},
		property{"metadata", metadata, true},
		property{"spec", s, true})
	whole.Version, whole.ID, whole.Title = jsonschema.Version, id(strings.ToLower(kind)), kind
	return whole
}

// nameOf is what a document of a kind may be called: groups as POSIX has it, all
// others as Kubernetes does.
func nameOf(kind string) *jsonschema.Schema {
	if kind == "Group" {
		return &jsonschema.Schema{Type: "string", Pattern: `^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`,
			Description: "Name: at most 32 letters of a to z, digits, dots, dashes and underscores, with a letter first."}
	}
	return &jsonschema.Schema{Type: "string", Pattern: `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`,
		Description: "Name: at most 63 small letters, digits and dashes, with a letter or digit at both ends."}
}

type property struct {
	name     string
	schema   *jsonschema.Schema
	required bool
}

func object(description string, properties ...property) *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "object", Description: description, AdditionalProperties: jsonschema.FalseSchema, Properties: orderedmap.New[string, *jsonschema.Schema]()}
	for _, p := range properties {
		s.Properties.Set(p.name, p.schema)
		if p.required {
			s.Required = append(s.Required, p.name)
		}
	}
	return s
}
