package machine

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
)

// TestDecide is the planner as a table; what there is of a case are the Nodes and
// Machines of the cluster.
func TestDecide(t *testing.T) {
	plantest.Plans(t, "testdata/decide.txt", "machines", "cluster", func(t *testing.T, site *plan.Site, have string) string {
		return string(printed(t, site, cluster(t, have)))
	})
}

// cluster reads Nodes and Machines. A document of kind Unserved stands for a
// cluster that does not know the kind Machine.
func cluster(t *testing.T, text string) view {
	v := view{machines: map[string]stored{}, nodes: map[string]node{}}
	for _, document := range plantest.Documents(t, text) {
		o := &unstructured.Unstructured{Object: document}
		switch o.GetKind() {
		case "Node":
			v.nodes[o.GetName()] = readNode(o)
		case "Machine":
			v.machines[o.GetName()] = readMachine(o)
		case "Unserved":
			v.unserved = true
		}
	}
	return v
}

func planOf(site *plan.Site, v view) (*plan.Plan, error) {
	want, faults := desired(site, v)
	return plan.Make(site, []plan.Part{
		{System: plan.Machines, Have: observed(site, v), Want: want, Faults: faults},
		{System: plan.Objects, Want: plan.State{definition: {ID: definition}}},
	})
}

func printed(t *testing.T, site *plan.Site, v view) []byte {
	t.Helper()
	p, err := planOf(site, v)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if !v.unserved { // then its CRD is no part of what is shown
		p.Changes = slices.DeleteFunc(p.Changes, func(c plan.Change) bool { return c.ID == definition })
	}
	if err := p.WriteDiff(&b, false); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String())
}

// model is a cluster that carries steps out as the API server would.
type model struct {
	view
	written int
}

// carry makes a plan and carries out as many writes of it as it may: the daemon
// may be killed after each.
func (m *model) carry(t *rapid.T, site *plan.Site, may int) (writes int) {
	p, err := planOf(site, m.view)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range p.Changes {
		if c.ID == definition {
			continue
		}
		name := c.ID.Name
		steps, err := steps(c, m.machine(name), m.node(name))
		if err != nil {
			t.Fatalf("%s: %v", c.ID, err)
		}
		if len(steps) == 0 {
			t.Fatalf("%s %s does nothing", c.Action(), c.ID)
		}
		for _, step := range steps {
			if writes == may {
				return writes
			}
			writes++
			m.write(name, step)
		}
	}
	return writes
}

func (m *model) write(name string, s step) {
	m.written++
	switch {
	case s.node != nil:
		n := m.nodes[name]
		n.labels = maps.Clone(n.labels)
		for key, value := range patchLabels(n.labels, s.record, s.node.labels) {
			if value == nil {
				delete(n.labels, key)
			} else {
				n.labels[key] = value.(string)
			}
		}
		var raw []any
		for _, t := range n.taints {
			raw = append(raw, t.tree())
		}
		n.taints = nil
		for _, t := range mergeTaints(raw, s.record, s.node.taints) {
			n.taints = append(n.taints, readTaint(t))
		}
		m.nodes[name] = n
	case s.spec != nil:
		at := m.machines[name]
		at.name, at.spec, at.record = name, s.spec, s.record
		m.machines[name] = at
	default:
		delete(m.machines, name)
	}
}

// TestConverges has git, kubelets and other people do what they like, kills the
// daemon between any two of its writes, and then lets it finish.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"pc-1", "pc-2"}
		m := &model{view: view{machines: map[string]stored{}, nodes: map[string]node{}}}
		docs := map[string]Machine{}
		open := false
		others := map[string]map[string]string{} // labels that others put on the Nodes
		uid := 0
		site := func() *plan.Site {
			s := &plan.Site{Name: "school", Objects: plan.State{}}
			s.Spec.Confirm = []string{"machines/Machine/pc-1", "machines/Machine/pc-2"}
			if open {
				s.Spec.Admission = "open"
			}
			for name, d := range docs {
				spec := map[string]any{"address": "10.0.0.1"}
				if d.Circuit != "" {
					spec["circuit"] = d.Circuit
				}
				if d.Labels != nil {
					spec["labels"] = (&part{labels: d.Labels}).tree()["labels"]
					if len(d.Labels) == 0 {
						spec["labels"] = map[string]any{}
					}
				}
				if d.Taints != nil {
					taints := []any{}
					for _, t := range d.Taints {
						taints = append(taints, t.tree())
					}
					spec["taints"] = taints
				}
				s.Objects.Add(plan.Object{ID: idOf(name), Spec: map[string]any{"spec": spec}, Origin: "machines/" + name + ".yaml"})
			}
			return s
		}
		pick := func() string { return rapid.SampledFrom(names).Draw(t, "name") }
		t.Repeat(map[string]func(*rapid.T){
			"git declares": func(t *rapid.T) {
				d := Machine{Circuit: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "circuit")}
				if rapid.Bool().Draw(t, "has labels") {
					d.Labels = rapid.MapOf(rapid.SampledFrom([]string{"git-a", "git-b", "both"}), rapid.SampledFrom([]string{"1", "2"})).Draw(t, "labels")
				}
				if rapid.Bool().Draw(t, "has taints") {
					d.Taints = []Taint{}
					for _, key := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"git-a", "git-b"}), rapid.ID).Draw(t, "taints") {
						d.Taints = append(d.Taints, Taint{key, rapid.SampledFrom([]string{"", "1"}).Draw(t, "value"), noSchedule})
					}
				}
				docs[pick()] = d
			},
			"git drops":    func(t *rapid.T) { delete(docs, pick()) },
			"git opens":    func(t *rapid.T) { open = rapid.Bool().Draw(t, "open") },
			"people go on": func(t *rapid.T) { m.carry(t, site(), rapid.IntRange(0, 6).Draw(t, "writes before the kill")) },
			"a Node registers": func(t *rapid.T) {
				uid++
				name := pick()
				n := node{meta: meta{name: name, uid: types.UID(fmt.Sprint(uid))}, labels: map[string]string{"theirs": "1"}}
				others[name] = map[string]string{"theirs": "1"}
				if rapid.Bool().Draw(t, "a master") {
					n.labels[MasterLabel] = ""
				} else {
					n.taints = []Taint{{Key: "theirs", Effect: "NoExecute"}, unlisted()}
				}
				m.nodes[name] = n
			},
			"a Node is deleted": func(t *rapid.T) {
				name := pick()
				delete(m.nodes, name)
				delete(others, name)
			},
			"somebody labels": func(t *rapid.T) {
				if n, ok := m.nodes[pick()]; ok {
					n.labels = maps.Clone(n.labels)
					n.labels[rapid.SampledFrom([]string{"both", RoleLabel, CircuitLabel}).Draw(t, "key")] = "x"
					n.taints = append(slices.Clone(n.taints), unlisted())[:len(n.taints)+rapid.IntRange(0, 1).Draw(t, "taint")]
					m.nodes[n.name] = n
				}
			},
			"somebody unlabels": func(t *rapid.T) {
				if n, ok := m.nodes[pick()]; ok {
					n.labels = maps.Clone(n.labels)
					delete(n.labels, rapid.SampledFrom([]string{"git-a", "both", RoleLabel, CircuitLabel}).Draw(t, "key"))
					m.nodes[n.name] = n
				}
			},
			"": func(t *rapid.T) {
				// Finish, in a copy of the world.
				end := &model{view: view{machines: maps.Clone(m.machines), nodes: maps.Clone(m.nodes)}}
				s := site()
				for round := 0; end.carry(t, s, 1000) > 0; round++ {
					if round == 3 {
						t.Fatalf("never settled:\n%s", explain(s, end.view))
					}
				}
				for name, n := range end.nodes {
					d, declared := docs[name]
					admitted := declared || open
					tainted := slices.ContainsFunc(n.taints, Taint.isUnlisted)
					switch {
					case admitted && tainted:
						t.Fatalf("%s is admitted, and gets no Pods", name)
					case !admitted && !tainted && !n.isMaster():
						t.Fatalf("%s is not admitted, and gets Pods", name)
					}
					if !n.isMaster() && !slices.Contains(n.taints, Taint{Key: "theirs", Effect: "NoExecute"}) {
						t.Fatalf("%s lost a taint of others: %v", name, n.taints)
					}
					for key, value := range others[name] {
						if n.labels[key] != value {
							t.Fatalf("%s lost %s of others: %v", name, key, n.labels)
						}
					}
					for key, value := range d.Labels {
						if n.labels[key] != value {
							t.Fatalf("%s lacks label %s=%s: %v", name, key, value, n.labels)
						}
					}
					if n.labels[CircuitLabel] != d.Circuit {
						t.Fatalf("%s has circuit %q, want %q", name, n.labels[CircuitLabel], d.Circuit)
					}
					for _, key := range []string{"git-a", "git-b"} { // nobody else sets them
						_, wanted := d.Labels[key]
						if _, has := n.labels[key]; has && !wanted && (!declared || d.Labels != nil) {
							t.Fatalf("%s still has label %s: %v", name, key, n.labels)
						}
						wanted = slices.ContainsFunc(d.Taints, func(t Taint) bool { return t.Key == key })
						has := slices.ContainsFunc(n.taints, func(t Taint) bool { return t.Key == key })
						if wanted != has && (!declared || d.Taints != nil) {
							t.Fatalf("%s: taint %s wanted: %v, there: %v", name, key, wanted, has)
						}
					}
					role := end.machine(name).role()
					if admitted && (role == "" || n.labels[RoleLabel] != role) {
						t.Fatalf("%s has role %q and label %q", name, role, n.labels[RoleLabel])
					}
				}
				for name := range docs {
					if end.machine(name) == nil {
						t.Fatalf("%s has no Machine", name)
					}
				}
			},
		})
	})
}

func explain(site *plan.Site, v view) string {
	p, err := planOf(site, v)
	var b strings.Builder
	fmt.Fprintln(&b, err)
	p.WriteDiff(&b, false)
	return b.String()
}

func TestRecordIsRead(t *testing.T) {
	r := record{Node: "u", Labels: []string{"a", "b"}, Taints: []string{"c:NoSchedule"}}
	m := readMachine(&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": "pc-1", "annotations": map[string]any{recordAnnotation: r.text()}}}})
	if !reflect.DeepEqual(m.record, r) {
		t.Errorf("%+v is read as %+v", r, m.record)
	}
	m = readMachine(&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": "pc-1", "annotations": map[string]any{recordAnnotation: "by hand"}}}})
	if !reflect.DeepEqual(m.record, record{}) {
		t.Errorf("nonsense is read as %+v", m.record)
	}
}

// TestFight has something undo each of our corrections.
func TestFight(t *testing.T) {
	now := time.Unix(0, 0)
	s := &System{Options: Options{Now: func() time.Time { return now }}, corrections: map[plan.ID]correction{}}
	have := plan.Object{ID: idOf("pc-1"), Spec: map[string]any{"node": "as others want it"}}
	want := plan.Object{ID: idOf("pc-1"), Spec: map[string]any{"node": "as git has it"}}
	state := plan.State{have.ID: have}
	for i := range maxCorrections {
		if f := s.fight(want, state); f != nil {
			t.Fatalf("gives up after %d corrections: %v", i, f)
		}
		s.correct(plan.Change{ID: want.ID, Have: &have, Want: &want})
		now = now.Add(time.Second)
	}
	if f := s.fight(want, state); f == nil || f.Code != Fight {
		t.Errorf("goes on for ever: %v", f)
	}
	if f := s.fight(want, plan.State{want.ID: want}); f != nil {
		t.Errorf("complains of what is as it should be: %v", f)
	}
	other := want
	other.Spec = map[string]any{"node": "as git has it now"}
	if f := s.fight(other, state); f != nil {
		t.Errorf("complains of a new wish: %v", f)
	}
	for range maxCorrections {
		s.correct(plan.Change{ID: want.ID, Have: &have, Want: &want})
	}
	now = now.Add(time.Minute + time.Second)
	if f := s.fight(want, state); f != nil {
		t.Errorf("never tries again: %v", f)
	}
}
