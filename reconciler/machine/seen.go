package machine

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// What the daemon alone writes on Nodes.
const (
	CircuitLabel  = plan.Group + "/circuit"  // the circuit, on a machine that declares one
	RoleLabel     = plan.Group + "/role"     // master or worker
	UnlistedTaint = plan.Group + "/unlisted" // NoSchedule: on workers that the site does not admit; they register with it
)

// MasterLabel is on the Nodes of masters, from kubeadm. No kubelet can put it on
// its own Node (admission plugin NodeRestriction).
const MasterLabel = "node-role.kubernetes.io/control-plane"

// APIPort is where the API server of a master listens, as kubeadm has it.
const APIPort = 6443

// recordAnnotation of a Machine is its record as JSON.
const recordAnnotation = plan.Group + "/applied"

// meta names one version of an object of the cluster.
type meta struct {
	name    string
	uid     types.UID
	version string
}

func (m meta) id() meta { return m }

func metaOf(o metav1.Object) meta { return meta{o.GetName(), o.GetUID(), o.GetResourceVersion()} }

// stored is a Machine of the cluster.
type stored struct {
	meta
	spec   map[string]any
	record record
	status Status
}

func readMachine(o *unstructured.Unstructured) stored {
	m := stored{meta: metaOf(o)}
	if m.spec, _, _ = unstructured.NestedMap(o.Object, "spec"); m.spec == nil {
		m.spec = map[string]any{}
	}
	// What does not decode was not written by us, and records nothing.
	_ = json.Unmarshal([]byte(o.GetAnnotations()[recordAnnotation]), &m.record)
	if status, ok := o.Object["status"]; ok {
		data, _ := json.Marshal(status)
		_ = json.Unmarshal(data, &m.status) // an agent's; the CRD has checked it
	}
	return m
}

// moved reports whether a round would look at a Machine with other eyes: status
// and heartbeats do not count.
func (m stored) moved(before stored) bool {
	return m.uid != before.uid || !reflect.DeepEqual(m.spec, before.spec) || !reflect.DeepEqual(m.record, before.record)
}

// role is the one that the daemon gave, "" while it has given none.
func (m *stored) role() string {
	if m == nil {
		return ""
	}
	role, _ := m.spec["role"].(string)
	return role
}

// node is what is looked at of a Node.
type node struct {
	meta
	labels  map[string]string
	taints  []Taint
	address string // "" while the kubelet has not told it
	ready   string // True, False, Unknown; "" while the kubelet has not told it
}

func readNode(o *unstructured.Unstructured) node {
	n := node{meta: metaOf(o), labels: o.GetLabels()}
	taints, _, _ := unstructured.NestedSlice(o.Object, "spec", "taints")
	for _, taint := range taints {
		n.taints = append(n.taints, readTaint(taint))
	}
	addresses, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
	for _, address := range addresses {
		if a, _ := address.(map[string]any); a["type"] == "InternalIP" && n.address == "" {
			n.address, _ = a["address"].(string)
		}
	}
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, condition := range conditions {
		if c, _ := condition.(map[string]any); c["type"] == "Ready" {
			n.ready, _ = c["status"].(string)
		}
	}
	return n
}

func readTaint(taint any) (t Taint) {
	fields, _ := taint.(map[string]any)
	t.Key, _ = fields["key"].(string)
	t.Value, _ = fields["value"].(string)
	t.Effect, _ = fields["effect"].(string)
	return t
}

// moved reports whether a round would look at a Node with other eyes: what the
// kubelet reports of itself does not count.
func (n node) moved(before node) bool {
	return n.uid != before.uid || n.address != before.address || !maps.Equal(n.labels, before.labels) || !slices.Equal(n.taints, before.taints)
}

// isMaster reports whether the Node came as a master.
func (n *node) isMaster() bool {
	if n == nil {
		return false
	}
	_, ok := n.labels[MasterLabel]
	return ok
}

// record says which labels and taints of a Node are ours: those that git had us
// put there. It stands on the Machine and not on the Node, because whoever has a
// node's certificate can change the Node, and would have us remove what keeps
// him in check. The labels and the taint that only we write need no record.
type record struct {
	Node   types.UID `json:"node"`             // the Node it is about; of another one nothing is ours
	Labels []string  `json:"labels,omitempty"` // keys, in order
	Taints []string  `json:"taints,omitempty"` // as key:effect, in order
}

// on is what the record says of a Node: nothing, where it is about another one.
func (r record) on(uid types.UID) record {
	if r.Node != uid || len(r.Labels)+len(r.Taints) == 0 {
		return record{}
	}
	return r
}

// and is the record of what either of two records has.
func (r record) and(other record) record {
	if len(r.Labels)+len(r.Taints) == 0 {
		return other
	}
	r.Labels = union(r.Labels, other.Labels)
	r.Taints = union(r.Taints, other.Taints)
	return r
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

func (r record) text() string {
	data, _ := json.Marshal(r) // of texts
	return string(data)
}

// hasLabel reports whether a label of the record's Node is ours.
func (r record) hasLabel(key string) bool {
	return key == CircuitLabel || key == RoleLabel || slices.Contains(r.Labels, key)
}

// hasTaint reports whether a taint of the record's Node is ours.
func (r record) hasTaint(t Taint) bool {
	return t.isUnlisted() || slices.Contains(r.Taints, t.identity())
}

// identity is what Kubernetes tells taints apart by.
func (t Taint) identity() string { return t.Key + ":" + t.Effect }

func (t Taint) isUnlisted() bool { return t.identity() == UnlistedTaint+":"+noSchedule }

const noSchedule = "NoSchedule"

func unlisted() Taint { return Taint{Key: UnlistedTaint, Effect: noSchedule} }

// part is the part of a Node that is ours: of a plan's Spec the field "node".
type part struct {
	labels map[string]string
	taints []Taint // in order of their identities
}

// partOf is what is ours of a Node; nil where there is none.
func partOf(n *node, r record) *part {
	if n == nil {
		return nil
	}
	r = r.on(n.uid)
	p := &part{labels: map[string]string{}}
	for key, value := range n.labels {
		if r.hasLabel(key) {
			p.labels[key] = value
		}
	}
	for _, t := range n.taints {
		if r.hasTaint(t) {
			p.taints = append(p.taints, t)
		}
	}
	return p.sort()
}

func (p *part) sort() *part {
	slices.SortFunc(p.taints, func(a, b Taint) int { return strings.Compare(a.identity(), b.identity()) })
	return p
}

// equal reports whether two parts are the same; a missing one equals only
// another missing one.
func (p *part) equal(other *part) bool {
	if p == nil || other == nil {
		return p == other
	}
	return maps.Equal(p.labels, other.labels) && slices.Equal(p.taints, other.taints)
}

// record is what has to be recorded of a part that is put on a Node.
func (p *part) record(uid types.UID) (r record) {
	for _, key := range slices.Sorted(maps.Keys(p.labels)) {
		if !r.hasLabel(key) {
			r.Labels = append(r.Labels, key)
		}
	}
	for _, t := range p.taints {
		if !r.hasTaint(t) {
			r.Taints = append(r.Taints, t.identity())
		}
	}
	if len(r.Labels)+len(r.Taints) > 0 {
		r.Node = uid
	}
	return r
}

// tree is the part as a plan shows it; empty parts of it are left out.
func (p *part) tree() map[string]any {
	tree := map[string]any{}
	if len(p.labels) > 0 {
		labels := map[string]any{}
		for key, value := range p.labels {
			labels[key] = value
		}
		tree["labels"] = labels
	}
	if len(p.taints) > 0 {
		taints := []any{}
		for _, t := range p.taints {
			taints = append(taints, t.tree())
		}
		tree["taints"] = taints
	}
	return tree
}

func (t Taint) tree() map[string]any {
	tree := map[string]any{"key": t.Key, "effect": t.Effect}
	if t.Value != "" {
		tree["value"] = t.Value
	}
	return tree
}
