package gluster

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// Codes of what people should know of a volume.
const (
	TooManySilent plan.Code = "TooManySilent" // so many machines are silent that nothing is given up
	Deleting      plan.Code = "Deleting"      // the pool is to delete it first
)

// kind is the kind of this room.
const kind = "Volume"

// definition is the CRD of kind Volume. A Volume needs it while the cluster does not
// serve the kind: on the first round of a new site.
var definition = plan.ID{System: plan.Objects, Kind: "CustomResourceDefinition.apiextensions.k8s.io", Name: "volumes." + plan.Group}

const (
	silence   = 2 * time.Minute  // after which a machine gets no new copy
	starting  = 10 * time.Minute // that a brick may take to run, on a machine that is there
	minSilent = 3                // machines: fewer never are too many
)

// view is all that there is of volumes and bricks at one moment.
type view struct {
	at       time.Time
	volumes  map[string]stored
	machines map[string]pc
	unserved bool // the cluster has no kind Volume yet
}

// stored is a Volume of the cluster.
type stored struct {
	uid        types.UID
	version    string
	generation int64
	tree       map[string]any // its spec as it is
	spec       Placed
	status     VolumeStatus
}

// pc is what this room reads of a Machine of the cluster.
type pc struct {
	address   string // by which the site reaches it; "" is not known yet
	heartbeat time.Time
	noBrick   bool // by git
	brick     MachineBrick
}

// observed is what there is: every Volume.
func observed(v view) plan.State {
	have := plan.State{}
	for name, s := range v.volumes {
		o := plan.Object{ID: about(name), Spec: map[string]any{"spec": s.tree}}
		if s.status.ID != "" {
			o.Precious = "the files in it"
			o.Why = "no longer in the site repo"
		}
		have.Add(o)
	}
	return have
}

// desired is what a site wants of volumes, each with its bricks chosen.
func desired(site *plan.Site, v view) (want plan.State, faults []*plan.Fault) {
	want = plan.State{}
	r := &plan.Report{}
	all := bricks(site)
	homes := homesOf(site)
	tooMany := v.tooMany(site)
	for _, d := range plan.Documents[Volume](site, plan.Volumes, kind, r) {
		o, f := v.place(site, d, all, tooMany, homes)
		if f != nil {
			r.Fault(*f)
			continue
		}
		want.Add(o)
	}
	return want, r.Faults
}

// place is one volume as it is wanted, or why that cannot be said yet.
func (v view) place(site *plan.Site, d plan.Document[Volume], all map[string]brick, tooMany *plan.Fault, homes []Home) (o plan.Object, f *plan.Fault) {
	have, exists := v.volumes[d.ID.Name]
	now := have.machines()
	candidates := v.candidates(site, d, have, all, tooMany)
	replicas, from := copies(site, &d.Spec, len(all))
	p := odd(Place(replicas, candidates, now), now)
	o = plan.Object{ID: d.ID, Origin: site.Objects[d.ID].Origin}
	if p.Missing > 0 {
		f = &plan.Fault{Code: MissingBricks, ID: d.ID, Cause: fmt.Sprintf("%d copies are wanted (%s), and there are bricks for %d%s", replicas, from, len(p.Machines), why(candidates, p.Machines)),
			Hint: "it goes on as soon as there are more"}
		if !exists || len(now) == 0 {
			return o, f
		}
		o.Notes = append(o.Notes, f)
	}
	if tooMany != nil && slices.ContainsFunc(now, func(name string) bool { return v.silent(name, silence) }) {
		note := *tooMany
		note.ID = d.ID
		o.Notes = append(o.Notes, &note)
	}
	placed := Placed{Options: d.Spec.Options, Access: d.Spec.For(), Arbiter: d.Spec.Arbiter}
	switch d.Spec.For() {
	case Homes:
		placed.Homes = homes
	case Shared:
		placed.GID = gidOf(site, d.Spec.Group)
	}
	for _, name := range p.Machines {
		placed.Bricks = append(placed.Bricks, PlacedBrick{name, cmp.Or(have.address(name), v.machines[name].address, all[name].address)})
	}
	o.Spec = map[string]any{"spec": asStored(placed)}
	o.Why = fmt.Sprintf("%d copies (%s)", len(p.Machines), from)
	if p.Why != "" {
		o.Why += ": " + p.Why
	}
	if v.unserved {
		o.Needs = []plan.ID{definition}
	}
	return o, nil
}

// odd leaves out a new copy that would make their number even: it is no better than
// one less. What there is already stays.
func odd(p Placement, now []string) Placement {
	last := len(p.Machines) - 1
	if len(p.Machines)%2 == 0 && last >= 1 && !slices.Contains(now, p.Machines[last]) {
		p.Machines, p.Missing = p.Machines[:last], p.Missing+1
		if slices.Equal(p.Machines, now) {
			p.Why = ""
		}
	}
	return p
}

// copies is how many copies a volume has, and who says so.
func copies(site *plan.Site, v *Volume, bricks int) (n int, from string) {
	switch n = DefaultReplicas(site, bricks); {
	case v.Replicas != 0:
		return v.Replicas, "as it asks"
	case site.Spec.Storage.Replicas != 0:
		return n, "Site.spec.storage.replicas"
	case n >= 5:
		return n, fmt.Sprintf("the default with %d bricks", bricks)
	default:
		return n, "the default with fewer than 5 bricks"
	}
}

// candidates are the machines whose bricks a volume may use.
func (v view) candidates(site *plan.Site, d plan.Document[Volume], have stored, all map[string]brick, tooMany *plan.Fault) (list []Candidate) {
	after := site.Spec.Storage.ReplacesAfter()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		b := all[name]
		if m := d.Spec.Machines; m != nil && (m.Names != nil && !slices.Contains(m.Names, name) || !b.matches(m.Selector)) {
			continue
		}
		m := v.machines[name]
		list = append(list, Candidate{Machine: name, Circuit: b.circuit, Size: m.brick.Size, Out: v.out(name, b),
			Gone: tooMany == nil && (have.away(name, v.at) > max(after, starting) || !m.heartbeat.IsZero() && v.silent(name, after))})
	}
	return list
}

// out is why a machine takes no new copy.
func (v view) out(name string, b brick) string {
	m, joined := v.machines[name]
	switch {
	case !joined || m.heartbeat.IsZero() || cmp.Or(m.address, b.address) == "":
		return "has not joined"
	case v.silent(name, silence):
		return "is silent"
	case m.brick.Size == 0 && m.brick.Unfit == "":
		return "has no brick"
	case m.brick.Unfit != "":
		return m.brick.Unfit
	case m.brick.full():
		return "its brick is full"
	}
	return ""
}

// silent reports whether a machine has not been heard for so long.
func (v view) silent(name string, long time.Duration) bool {
	return v.at.Sub(v.machines[name].heartbeat) > long
}

// tooMany is why nothing is given up: so many machines are silent at once that it
// is more likely the network, or the power of the house.
func (v view) tooMany(site *plan.Site) *plan.Fault {
	var silent []string
	for name := range v.machines {
		if v.silent(name, silence) {
			silent = append(silent, name)
		}
	}
	slices.Sort(silent)
	if limit := max(minSilent, site.Spec.Failover.CircuitBreaker.Share.Of(len(v.machines), "30%")); len(silent) < limit {
		return nil
	}
	return &plan.Fault{Code: TooManySilent, Cause: fmt.Sprintf("%d of %d machines are silent (%s): no copy is given up", len(silent), len(v.machines), strings.Join(silent, ", ")),
		Hint: "see to them; take what is gone for good out of the site repo"}
}

// why says of machines that could have had a copy why they have none.
func why(candidates []Candidate, placed []string) string {
	var words []string
	for _, c := range candidates {
		if c.Out != "" && !slices.Contains(placed, c.Machine) {
			words = append(words, c.Machine+" "+c.Out)
		}
	}
	if words == nil {
		return ""
	}
	return " (" + strings.Join(words, "; ") + ")"
}

// machines are those that have, or are to have, a copy, in GlusterFS's order.
func (s stored) machines() (names []string) {
	for _, b := range s.spec.Bricks {
		names = append(names, b.Machine)
	}
	return names
}

// address is the one by which the pool knows a machine that has a copy: it stays.
func (s stored) address(name string) string {
	for _, b := range s.spec.Bricks {
		if b.Machine == name {
			return b.Address
		}
	}
	return ""
}

// away is for how long a machine's copy has not run; 0 is not known, or it runs.
func (s stored) away(name string, at time.Time) time.Duration {
	for _, b := range s.status.Bricks {
		if b.Machine == name && !b.Since.IsZero() {
			return at.Sub(b.Since)
		}
	}
	return 0
}

// homesOf are the homes of all people of a site, in the order of their names.
// Rooms do not know each other's types, and need not: the documents are the
// contract.
func homesOf(site *plan.Site) (homes []Home) {
	for id, o := range site.Objects.Of(plan.Directory) {
		if id.Kind != "Roster" {
			continue
		}
		spec, _ := o.Spec["spec"].(map[string]any)
		group, _ := spec["group"].(string)
		users, _ := spec["users"].([]any)
		for _, u := range users {
			user, _ := u.(map[string]any)
			name, _ := user["name"].(string)
			if uid, ok := integer(user["uid"]); ok && name != "" {
				homes = append(homes, Home{name, uid, gidOf(site, group)})
			}
		}
	}
	slices.SortFunc(homes, func(a, b Home) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(homes, func(a, b Home) bool { return a.Name == b.Name })
}

// gidOf is the number of a Group of the site, and that of all people for none.
func gidOf(site *plan.Site, group string) int64 {
	spec, _ := site.Objects[plan.ID{System: plan.Directory, Kind: "Group", Name: group}].Spec["spec"].(map[string]any)
	if gid, ok := integer(spec["gid"]); ok {
		return gid
	}
	return SharedGID
}

// integer reads a whole number as YAML and JSON have it.
func integer(value any) (int64, bool) {
	switch n := value.(type) {
	case int64:
		return n, true
	case int:
		return int64(n), true
	case float64:
		return int64(n), n == float64(int64(n))
	}
	return 0, false
}

// asStored is a spec or a status as the API server stores it.
func asStored(value any) (tree map[string]any) {
	data, err := json.Marshal(value)
	if err == nil {
		err = utiljson.Unmarshal(data, &tree)
	}
	if err != nil {
		panic(err) // of texts, numbers, times and lists of them
	}
	return tree
}
