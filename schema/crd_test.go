package schema_test

import (
	"cmp"
	"encoding/json"
	"slices"
	"testing"

	"github.com/invopop/jsonschema"
	"sigs.k8s.io/yaml"

	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/crown"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// crd is what differs between the CRDs of the site kinds that are objects in the
// cluster too.
type crd struct {
	kind, plural, short string
	spec, status        any
	labels              map[string]any
	namespaced          bool
	dir                 string         // of manifests; "" is base
	whole               bool           // spec and status are written in one write, by one hand
	reports             map[string]any // fields of the status that another room's hand writes
	columns             []column
}

// column is one that kubectl get prints.
type column struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	JSONPath    string `json:"jsonPath"`
	Description string `json:"description"`
	Priority    int    `json:"priority,omitempty"` // above 0: only with -o wide
}

func crds() []crd {
	age := column{Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp", Description: "When the object was created"}
	return []crd{
		{kind: "Site", plural: "sites", short: "km", spec: plan.SiteSpec{}, status: plan.SiteStatus{},
			// The Site is the parent of the ApplySet, and kubectl apply --prune
			// takes only kinds for parents that say that they are one.
			labels: map[string]any{"applyset.kubernetes.io/is-parent-type": "true"},
			columns: []column{
				{Name: "Masters", Type: "integer", JSONPath: ".spec.masters", Description: "Masters that are wanted"},
				{Name: "Commit", Type: "string", JSONPath: ".status.commit.short", Description: "Commit that the whole site last equalled"},
				{Name: "Ready", Type: "string", JSONPath: `.status.conditions[?(@.type=="Ready")].status`, Description: "True when the site equals the wanted commit and works"},
				{Name: "Suspended", Type: "string", JSONPath: `.status.conditions[?(@.type=="Suspended")].status`, Description: "True while nothing is changed"},
				{Name: "Message", Type: "string", JSONPath: `.status.conditions[?(@.type=="Ready")].message`, Description: "What keeps the site from being ready", Priority: 1},
				age,
			}},
		{kind: "Machine", plural: "machines", short: "mc", spec: machine.Assigned{}, status: machine.Status{},
			reports: map[string]any{"brick": gluster.MachineBrick{}},
			columns: []column{
				{Name: "Role", Type: "string", JSONPath: ".spec.role", Description: "master or worker; empty while it has not joined"},
				{Name: "Ready", Type: "string", JSONPath: `.status.conditions[?(@.type=="Ready")].status`, Description: "True when the machine said last that it works"},
				{Name: "Circuit", Type: "string", JSONPath: ".spec.circuit", Description: "What fails with it"},
				{Name: "CPU", Type: "integer", JSONPath: ".status.inventory.cpu", Description: "Processors"},
				{Name: "Memory", Type: "string", JSONPath: ".status.inventory.memory", Description: "Its size"},
				{Name: "Phase", Type: "string", JSONPath: ".status.phase", Description: "Joining, Ready, NotReady or Leaving"},
				{Name: "Seen", Type: "date", JSONPath: ".status.heartbeat", Description: "When it last reported"},
				age,
				{Name: "Address", Type: "string", JSONPath: ".status.inventory.address", Description: "By which the site reaches it", Priority: 1},
				{Name: "Brick", Type: "integer", JSONPath: ".status.brick.free", Description: "Free bytes of its brick", Priority: 1},
				{Name: "Kubelet", Type: "string", JSONPath: ".status.inventory.versions.kubelet", Description: "Version of its kubelet", Priority: 1},
				{Name: "Message", Type: "string", JSONPath: `.status.conditions[?(@.type=="Ready")].message`, Description: "What keeps it from being ready", Priority: 1},
			}},
		{kind: "Crown", plural: "crowns", short: "cr", spec: crown.Spec{}, status: crown.Status{}, whole: true,
			columns: []column{
				{Name: "Kind", Type: "string", JSONPath: ".spec.kind", Description: "replace, grow or retire"},
				{Name: "Victim", Type: "string", JSONPath: ".spec.victim", Description: "Who ceases to be a master"},
				{Name: "Heir", Type: "string", JSONPath: ".spec.heir", Description: "Who becomes one"},
				{Name: "Step", Type: "string", JSONPath: ".status.step", Description: "What is being done"},
				{Name: "Machine", Type: "string", JSONPath: ".status.machine", Description: "To whom"},
				{Name: "Outcome", Type: "string", JSONPath: ".status.outcome", Description: "How it ended; empty while it is open"},
				{Name: "Age", Type: "date", JSONPath: ".spec.begun", Description: "When it began"},
				{Name: "Cause", Type: "string", JSONPath: ".status.cause", Description: "Why it was undone", Priority: 1},
				{Name: "Why", Type: "string", JSONPath: ".spec.why", Description: "Why it began", Priority: 1},
			}},
		{kind: "Volume", plural: "volumes", short: "gv", spec: gluster.Placed{}, status: gluster.VolumeStatus{},
			columns: []column{
				{Name: "Access", Type: "string", JSONPath: ".spec.access", Description: "homes, shared or private"},
				{Name: "Copies", Type: "string", JSONPath: ".status.copies", Description: "Copies that run, of those there are"},
				{Name: "Phase", Type: "string", JSONPath: ".status.phase", Description: "Started, Healing, Degraded, SplitBrain or what it is on the way to"},
				{Name: "Heal", Type: "integer", JSONPath: ".status.pending", Description: "Entries that copies have to catch up with"},
				{Name: "Split", Type: "integer", JSONPath: ".status.splitBrain", Description: "Entries that copies contradict each other in"},
				{Name: "Homes", Type: "integer", JSONPath: ".status.homes", Description: "Homes that are there", Priority: 1},
				age,
				{Name: "Step", Type: "string", JSONPath: ".status.step", Description: "What was done last", Priority: 1},
				{Name: "Message", Type: "string", JSONPath: ".status.message", Description: "Why it is not as declared"},
			}},
		{kind: "Pool", plural: "pools", short: "gp", status: gluster.PoolStatus{},
			columns: []column{
				{Name: "Steward", Type: "string", JSONPath: ".status.steward.holder", Description: "The machine that works on it"},
				{Name: "Renewed", Type: "date", JSONPath: ".status.steward.renewed", Description: "When it last said so"},
				{Name: "Message", Type: "string", JSONPath: ".status.message", Description: "What holds it back"},
				age,
			}},
		{kind: "Desktop", plural: "desktops", short: "dt", spec: kube.Desktop{},
			columns: []column{
				{Name: "Image", Type: "string", JSONPath: ".spec.image", Description: "Image of the container"},
				{Name: "Default", Type: "boolean", JSONPath: ".spec.default", Description: "Whether users get it without choosing"},
				{Name: "IdleAfter", Type: "string", JSONPath: ".spec.idleAfter", Description: "How long nobody touches it before it stops"},
				age,
			}},
		{kind: "Session", plural: "sessions", short: "desk", spec: session.Spec{}, status: session.Status{}, namespaced: true, dir: "portal",
			columns: []column{
				{Name: "User", Type: "string", JSONPath: ".spec.user", Description: "Whose desktop it is"},
				{Name: "Template", Type: "string", JSONPath: ".spec.template", Description: "Name of the Desktop"},
				{Name: "Wanted", Type: "boolean", JSONPath: ".spec.wanted", Description: "Whether it is to run"},
				{Name: "Phase", Type: "string", JSONPath: ".status.phase", Description: "Stopped, Stopping, Fenced, Starting, Ready or Failed"},
				{Name: "Node", Type: "string", JSONPath: ".status.node", Description: "The machine it is on"},
				{Name: "Input", Type: "date", JSONPath: ".status.lastInput", Description: "When its user last touched it"},
				age,
				{Name: "Message", Type: "string", JSONPath: ".status.message", Description: "What keeps it from running", Priority: 1},
			}},
	}
}

func TestCRDsCurrent(t *testing.T) {
	r := newReflector(t)
	for _, c := range crds() {
		text, err := yaml.Marshal(c.object(t, r))
		if err != nil {
			t.Fatal(err)
		}
		head := "# Generated from the Go types by go test ./schema -update. Do not edit.\n"
		current(t, "../manifests/"+cmp.Or(c.dir, "base")+"/crd-"+c.plural+".yaml", append([]byte(head), text...))
	}
}

func (c crd) object(t *testing.T, r *jsonschema.Reflector) map[string]any {
	properties := map[string]any{
		"apiVersion": map[string]any{"type": "string"},
		"kind":       map[string]any{"type": "string"},
		"metadata":   map[string]any{"type": "object"},
	}
	var description any
	if c.spec != nil {
		spec := structural(t, r, c.spec)
		properties["spec"], description = spec, spec["description"]
	}
	version := map[string]any{
		"name": "v1alpha1", "served": true, "storage": true,
		"additionalPrinterColumns": c.columns,
	}
	if c.status != nil {
		status := structural(t, r, c.status)
		for field, of := range c.reports {
			status["properties"].(map[string]any)[field] = structural(t, r, of)
		}
		properties["status"] = status
		if c.spec == nil {
			description = status["description"]
		}
		if !c.whole {
			version["subresources"] = map[string]any{"status": map[string]any{}}
		}
	}
	schema := map[string]any{
		"type": "object", "properties": properties,
		"description": description,
	}
	if c.status == nil {
		schema["required"] = []string{"spec"}
	} // a Site, which has one, begins as the record of what belongs to it, before its spec is applied
	version["schema"] = map[string]any{"openAPIV3Schema": schema}
	metadata := map[string]any{"name": c.plural + "." + plan.Group}
	scope := "Cluster"
	if c.namespaced {
		scope = "Namespaced"
	}
	if c.labels != nil {
		metadata["labels"] = c.labels
	}
	return map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": metadata,
		"spec": map[string]any{
			"group": plan.Group, "scope": scope, "versions": []any{version},
			"names": map[string]any{
				"kind": c.kind, "listKind": c.kind + "List", "plural": c.plural, "singular": c.plural[:len(c.plural)-1],
				"shortNames": []string{c.short}, "categories": []string{"kingmaker"},
			},
		},
	}
}

// structural is the schema of a type in the form that an API server takes: what
// it does not know is taken out, or said in its words.
func structural(t *testing.T, r *jsonschema.Reflector, of any) map[string]any {
	t.Helper()
	s := r.Reflect(of)
	s.Version, s.Definitions = "", nil
	var tree map[string]any
	if err := json.Unmarshal(indent(t, s), &tree); err != nil {
		t.Fatal(err)
	}
	convert(tree)
	return tree
}

func convert(s map[string]any) {
	// A default would be stored with the object, and absent would be as good as
	// written; the rest is for editors.
	for _, keyword := range []string{"default", "examples", "writeOnly", "title"} {
		delete(s, keyword)
	}
	if s["format"] == "hostname" { // known to editors only
		delete(s, "format")
	}
	if s["additionalProperties"] == false { // what is not listed is pruned, or refused with fieldValidation=Strict
		delete(s, "additionalProperties")
	}
	if s["uniqueItems"] == true {
		delete(s, "uniqueItems")
		s["x-kubernetes-list-type"] = "set"
	}
	if key, ok := s["x-kubernetes-list-map-keys"].(string); ok {
		s["x-kubernetes-list-map-keys"] = []any{key}
	}
	if _, several := s["type"].([]any); several { // a Quantity
		for _, keyword := range []string{"type", "pattern", "minimum"} {
			delete(s, keyword)
		}
		s["x-kubernetes-int-or-string"] = true
	}
	if properties, ok := s["properties"].(map[string]any); ok {
		for _, p := range properties {
			convert(p.(map[string]any))
		}
	}
	for _, keyword := range []string{"items", "additionalProperties"} {
		if sub, ok := s[keyword].(map[string]any); ok {
			convert(sub)
		}
	}
}

// TestCRDsStructural holds the CRDs against what an API server asks of them, as
// far as that can be said without one: each node has a type, and no keyword that
// it refuses.
func TestCRDsStructural(t *testing.T) {
	known := []string{"type", "description", "properties", "required", "items", "additionalProperties", "enum", "pattern", "minimum", "maximum",
		"minLength", "maxLength", "format", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string"}
	var walk func(at string, s map[string]any)
	walk = func(at string, s map[string]any) {
		if s["type"] == nil && s["x-kubernetes-int-or-string"] == nil {
			t.Errorf("%s has no type", at)
		}
		if s["properties"] != nil && s["additionalProperties"] != nil {
			t.Errorf("%s has properties and additionalProperties", at)
		}
		for keyword := range s {
			if !slices.Contains(known, keyword) {
				t.Errorf("%s has %s", at, keyword)
			}
		}
		if keys, ok := s["x-kubernetes-list-map-keys"].([]any); ok {
			required, _ := s["items"].(map[string]any)["required"].([]any)
			for _, key := range keys {
				if !slices.Contains(required, key) {
					t.Errorf("%s is a map by %s, which is not required", at, key)
				}
			}
		}
		properties, _ := s["properties"].(map[string]any)
		for name, p := range properties {
			walk(at+"."+name, p.(map[string]any))
		}
		for _, keyword := range []string{"items", "additionalProperties"} {
			if sub, ok := s[keyword].(map[string]any); ok {
				walk(at+"."+keyword, sub)
			}
		}
	}
	r := newReflector(t)
	for _, c := range crds() {
		if c.spec != nil {
			walk(c.kind+".spec", structural(t, r, c.spec))
		}
		if c.status != nil {
			walk(c.kind+".status", structural(t, r, c.status))
		}
		for field, of := range c.reports {
			walk(c.kind+".status."+field, structural(t, r, of))
		}
	}
}
