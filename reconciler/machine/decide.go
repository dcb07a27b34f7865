package machine

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// Codes of what people should know of a machine.
const (
	NotListed    plan.Code = "NotListed"    // it joined, and the site repo does not declare it
	NotJoined    plan.Code = "NotJoined"    // it is declared, and has no Node
	WrongMachine plan.Code = "WrongMachine" // the PC of that name has another address or network card
	RoleDiffers  plan.Code = "RoleDiffers"  // its Node came back in another role
	LeftAlone    plan.Code = "LeftAlone"    // git once set labels or taints, and now says nothing of them
	Paused       plan.Code = "Paused"       // its Node is not as declared, and may not be changed
)

// kind is the kind of this room.
const kind = "Machine"

func idOf(name string) plan.ID { return plan.ID{System: plan.Machines, Kind: kind, Name: name} }

// definition is the CRD of kind Machine. A Machine needs it while the cluster
// does not serve the kind: on the first round of a new site.
var definition = plan.ID{System: plan.Objects, Kind: "CustomResourceDefinition.apiextensions.k8s.io", Name: "machines." + plan.Group}

// view is all that there is of machines at one moment.
type view struct {
	machines map[string]stored
	nodes    map[string]node
	unserved bool // the cluster has no kind Machine yet
}

func (v view) machine(name string) *stored {
	if m, ok := v.machines[name]; ok {
		return &m
	}
	return nil
}

func (v view) node(name string) *node {
	if n, ok := v.nodes[name]; ok {
		return &n
	}
	return nil
}

// draft is the Handle of the objects of a plan: the two ends of a change that
// concern the Node.
type draft struct {
	seen *part // at planning; nil for no Node
	want *part // nil for no Node; of one that is to be deleted, what it leaves behind
}

// isOpen reports whether the site takes machines that it does not list.
func isOpen(site *plan.Site) bool { return site.Spec.Admission == "open" }

// observed is what a site has of machines: every Machine, and where only listed
// ones are admitted each Node without one, for the taint that keeps work off it.
func observed(site *plan.Site, v view) plan.State {
	have := plan.State{}
	for name, m := range v.machines {
		n := v.node(name)
		seen := partOf(n, m.record)
		o := plan.Object{ID: idOf(name), Spec: specOf(m.spec, seen), Handle: &draft{seen, left(n, seen)}}
		if m.role() == Master || n.isMaster() {
			o.Precious = "a master of the site"
		}
		if n != nil {
			o.Why = "no longer in the site repo; its Node gets no new Pods"
		}
		have.Add(o)
	}
	for name, n := range v.nodes {
		if v.machine(name) == nil && !isOpen(site) && !site.Has(idOf(name)) {
			seen := partOf(&n, record{})
			have.Add(plan.Object{ID: idOf(name), Spec: specOf(nil, seen), Handle: &draft{seen, seen}})
		}
	}
	return have
}

// specOf is the content of an object of this system: the spec of the Machine,
// and what is ours of the Node. Either may be missing.
func specOf(spec map[string]any, node *part) map[string]any {
	tree := map[string]any{}
	if spec != nil {
		tree["spec"] = spec
	}
	if node != nil {
		tree["node"] = node.tree()
	}
	return tree
}

// left is what stays on the Node of a machine that the site does not admit. A
// master gets no taint: it has the keys of the site anyway, and the reconciler,
// which takes no unlisted machine, may have nowhere else to run.
func left(n *node, seen *part) *part {
	switch {
	case n == nil:
		return nil
	case n.isMaster() && !slices.ContainsFunc(seen.taints, Taint.isUnlisted):
		return &part{}
	}
	return &part{taints: []Taint{unlisted()}}
}

// desired is what a site wants of machines, in the form in which it is stored.
func desired(site *plan.Site, v view) (want plan.State, faults []*plan.Fault) {
	want = plan.State{}
	r := &plan.Report{}
	declared := map[string]Machine{}
	for _, d := range plan.Documents[Machine](site, plan.Machines, kind, r) {
		declared[d.ID.Name] = d.Spec
	}
	names := slices.Collect(maps.Keys(v.nodes))
	if isOpen(site) {
		// Its Node may be away for a moment, and nothing in git says whether for
		// good: what is over is deleted by hand.
		names = slices.AppendSeq(names, maps.Keys(v.machines))
	}
	for id := range site.Objects.Of(plan.Machines) {
		names = append(names, id.Name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		d, ok := declared[name]
		m, n, id := v.machine(name), v.node(name), idOf(name)
		switch {
		case ok:
			document, err := document(site.Objects[id])
			if err != nil {
				r.Fault(plan.Fault{Code: plan.Unreadable, ID: id, Field: "spec", Cause: err.Error()})
				continue
			}
			want.Add(admit(site, id, document, &d, m, n, v.unserved))
		case site.Has(id): // a fault already
		case isOpen(site):
			want.Add(admit(site, id, map[string]any{}, nil, m, n, v.unserved))
		case m == nil:
			seen := partOf(n, record{})
			wanted := left(n, seen)
			want.Add(plan.Object{ID: id, Spec: specOf(nil, wanted), Handle: &draft{seen, wanted},
				Why: "it joined, and the site repo does not list it: it gets no Pods", Notes: []*plan.Fault{notListed(id, n)}})
		}
	}
	return want, r.Faults
}

// document is the spec as git declares it, as JSON would have it: what the
// cluster gives back is compared with it.
func document(o plan.Object) (spec map[string]any, err error) {
	data, err := json.Marshal(o.Spec["spec"])
	if err == nil {
		err = utiljson.Unmarshal(data, &spec)
	}
	return spec, err
}

// admit is what a site wants of a machine that it admits. Document and d are
// what git declares; d is nil for one that an open site takes without. M and n
// are what there is, nil for nothing.
func admit(site *plan.Site, id plan.ID, document map[string]any, d *Machine, m *stored, n *node, unserved bool) plan.Object {
	o := plan.Object{ID: id, Origin: site.Objects[id].Origin}
	role, generation := assign(m, n)
	if role != "" {
		document["role"], document["roleGeneration"] = role, generation
	}
	var before record
	if m != nil {
		if orders, ok := m.spec["orders"]; ok {
			document["orders"] = orders // another hand of the daemon's gives them
		}
		before = m.record
	}
	seen := partOf(n, before)
	wanted := seen
	if n != nil {
		wanted = wantedPart(d, role, seen)
	}
	if d != nil && d.Paused && !wanted.equal(seen) {
		wanted = seen
		o.Notes = append(o.Notes, &plan.Fault{Code: Paused, ID: id, Cause: "it is paused, and its Node is left as it is",
			Hint: "take spec.paused out to have it made as declared"})
	}
	o.Spec, o.Handle = specOf(document, wanted), &draft{seen, wanted}
	o.Why = why(d, m, n, o, wanted)
	if m != nil && n != nil && reflect.DeepEqual(m.spec, document) && wanted.equal(seen) {
		if now := wanted.record(n.uid); !reflect.DeepEqual(now.on(n.uid), before.on(n.uid)) {
			// Nothing differs but what we remember: a label that somebody took
			// off while git dropped it must not stay ours.
			o.Spec["applied"] = now.text()
			o.Why = "equal to git; the record of what is ours on its Node is renewed"
		}
	}
	if unserved {
		o.Needs = []plan.ID{definition}
	}
	o.Notes = append(o.Notes, notes(id, d, m, n, seen)...)
	return o
}

// assign is the role of a machine, and its generation: the role that it has,
// else the one that its Node came with, else none. Who becomes a master is
// decided elsewhere.
func assign(m *stored, n *node) (role string, generation int64) {
	if m != nil {
		generation, _ = m.spec["roleGeneration"].(int64)
	}
	role = m.role()
	switch {
	case role != "" || n == nil:
	case n.isMaster():
		role = Master
	default:
		role = Worker
	}
	return role, max(1, generation)
}

// wantedPart is what is to be ours on the Node of an admitted machine. Labels
// and taints that the document leaves out are not ours to change; those of a
// machine without a document are.
func wantedPart(d *Machine, role string, seen *part) *part {
	p := &part{labels: map[string]string{RoleLabel: role}}
	if d == nil {
		return p
	}
	if d.Circuit != "" {
		p.labels[CircuitLabel] = d.Circuit
	}
	labels, taints := d.Labels, d.Taints
	if labels == nil {
		labels = given(seen).labels
	}
	if taints == nil {
		taints = given(seen).taints
	}
	maps.Copy(p.labels, labels)
	p.taints = slices.Clone(taints)
	return p.sort()
}

// given is the part that git gave a Node: without what only we write.
func given(p *part) *part {
	if p == nil {
		return &part{}
	}
	g := &part{labels: map[string]string{}}
	for key, value := range p.labels {
		if !(record{}).hasLabel(key) {
			g.labels[key] = value
		}
	}
	for _, t := range p.taints {
		if !t.isUnlisted() {
			g.taints = append(g.taints, t)
		}
	}
	return g
}

// why is the reason of a change, "" for the one that planning gives.
func why(d *Machine, m *stored, n *node, o plan.Object, wanted *part) string {
	switch {
	case m == nil && d == nil:
		return "it joined, and the site admits every machine"
	case m == nil && n != nil:
		return "declared in " + o.Origin + ", and it joined"
	case m == nil:
		return ""
	case m.role() == "" && n != nil:
		return fmt.Sprintf("it joined as a %s", o.Spec["spec"].(map[string]any)["role"])
	case !reflect.DeepEqual(m.spec, o.Spec["spec"]):
		return ""
	case n != nil && m.record.Node != n.uid && m.record.Node != "" && !wanted.equal(partOf(n, m.record)):
		return "its Node was deleted, and is a new one"
	case d != nil:
		return "its Node differs from " + o.Origin
	}
	return "its Node differs from what an admitted machine has"
}

// notes are what people should know of an admitted machine.
func notes(id plan.ID, d *Machine, m *stored, n *node, seen *part) (notes []*plan.Fault) {
	note := func(f plan.Fault) {
		f.ID = id
		notes = append(notes, &f)
	}
	switch {
	case n == nil && m.role() != "":
		f := plan.Fault{Code: NotJoined, Cause: "it has no Node: it was reset, or its Node was deleted",
			Hint: "restart its kubelet, or run the line of reconcile token on it; where it is gone for good, take it out of the site repo"}
		if d == nil {
			f.Hint = "restart its kubelet, or run the line of reconcile token on it; where it is gone for good, kubectl delete machine " + id.Name
		}
		note(f)
	case n == nil:
		note(plan.Fault{Code: NotJoined, Cause: "it has not joined yet", Hint: "run the line of reconcile token on it"})
	case m.role() == Master && !n.isMaster():
		note(plan.Fault{Code: RoleDiffers, Cause: "it was a master, and its Node is a worker's", Hint: "see whether it was reset and joined again"})
	case m.role() == Worker && n.isMaster():
		note(plan.Fault{Code: RoleDiffers, Cause: "it was a worker, and its Node is a master's", Hint: "see who made it one"})
	}
	if d == nil {
		return notes
	}
	if m != nil {
		found := m.status.Inventory
		if addresses := sorted(slices.Concat(found.Addresses, []string{found.Address})); isOther(d.Address, addresses, sameAddress) {
			note(plan.Fault{Code: WrongMachine, Field: "spec.address",
				Cause: fmt.Sprintf("%s is declared, and the PC of that name has %s", d.Address, strings.Join(addresses, ", ")),
				Hint:  "correct the site repo, or see which PC joined under that name"})
		}
		if macs := sorted(found.MACs); isOther(d.MAC, macs, sameMAC) {
			note(plan.Fault{Code: WrongMachine, Field: "spec.mac",
				Cause: fmt.Sprintf("%s is declared, and the PC of that name has %s", d.MAC, strings.Join(macs, ", ")),
				Hint:  "correct the site repo, or see which PC joined under that name"})
		}
	}
	left := given(seen)
	if keys := slices.Sorted(maps.Keys(left.labels)); d.Labels == nil && len(keys) > 0 {
		note(plan.Fault{Code: LeftAlone, Field: "spec.labels", Cause: "it is left out now, and what git once set stays on the Node: " + strings.Join(keys, ", "),
			Hint: "labels: {} takes it away"})
	}
	if d.Taints == nil && len(left.taints) > 0 {
		var keys []string
		for _, t := range left.taints {
			keys = append(keys, t.identity())
		}
		note(plan.Fault{Code: LeftAlone, Field: "spec.taints", Cause: "it is left out now, and what git once set stays on the Node: " + strings.Join(keys, ", "),
			Hint: "taints: [] takes it away"})
	}
	return notes
}

// isOther reports whether what is declared is none of what was found. What is not
// declared, or not looked for yet, is no other.
func isOther(declared string, found []string, same func(a, b string) bool) bool {
	return declared != "" && len(found) > 0 && !slices.ContainsFunc(found, func(f string) bool { return same(declared, f) })
}

// sorted are the texts that are not empty, each once.
func sorted(texts []string) []string {
	return union(slices.DeleteFunc(slices.Clone(texts), func(text string) bool { return text == "" }), nil)
}

func sameAddress(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	return errX == nil && errY == nil && x.Unmap() == y.Unmap()
}

func sameMAC(a, b string) bool {
	x, errX := net.ParseMAC(a)
	y, errY := net.ParseMAC(b)
	return errX == nil && errY == nil && x.String() == y.String()
}

// notListed says which file admits a machine.
func notListed(id plan.ID, n *node) *plan.Fault {
	address := cmp.Or(n.address, "…") // the kubelet tells it in a moment
	f := &plan.Fault{Code: NotListed, ID: id, Cause: "it joined, and the site repo does not list it: it gets no Pods",
		Hint: fmt.Sprintf("to admit it, add machines/%s.yaml: {apiVersion: %s, kind: %s, metadata: {name: %s}, spec: {address: %s}}",
			id.Name, plan.APIVersion, kind, id.Name, address)}
	if n.isMaster() {
		f.Cause = "it is a master, and the site repo does not list it"
	}
	if n.ready == "False" || n.ready == "Unknown" {
		f.Hint += "; where it is gone for good, kubectl delete node " + id.Name
	}
	return f
}
