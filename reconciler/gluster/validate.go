package gluster

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of the rules of this room.
const (
	TooFewBricks   plan.Code = "TooFewBricks"   // fewer bricks than replicas
	ReservedOption plan.Code = "ReservedOption" // an option that Kingmaker sets itself
	OneCopy        plan.Code = "OneCopy"        // a volume that one broken disk takes away
)

// reserved are the options that keep a volume from losing data, and those that
// say who may mount it: the site repo has other words for them, or none.
func reserved(option string) bool {
	switch option {
	case "cluster.quorum-type", "cluster.quorum-count", "cluster.server-quorum-type", "cluster.server-quorum-ratio",
		"cluster.favorite-child-policy", "cluster.self-heal-daemon",
		"auth.allow", "auth.reject", "auth.ssl-allow", "client.ssl", "server.ssl":
		return true
	}
	return false
}

// optionName is the form of all of GlusterFS's options: class.name.
var optionName = regexp.MustCompile(`^[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)+$`)

// Validate checks every Volume of a site against the bricks that the declared
// machines bring.
func Validate(site *plan.Site) (faults, warnings []*plan.Fault) {
	r, all := &plan.Report{}, bricks(site)
	checkSiteDefault(site, all, r)
	for _, v := range plan.Documents[Volume](site, plan.Volumes, "Volume", r) {
		checkName(v, r)
		checkOptions(v, r)
		checkGroup(site, v, r)
		checkNamespace(site, v, r)
		usable, ok := choose(site, v, all, r)
		if !ok {
			continue // what was meant is not known
		}
		checkReplicas(site, v, usable, len(all), r)
	}
	return r.Faults, r.Warnings
}

// maxName is the longest name of a volume: it is a part of the name of a label,
// of which Kubernetes takes 63 letters, of a systemd unit and of a folder.
const maxName = 40

func checkName(v plan.Document[Volume], r *plan.Report) {
	if len(v.ID.Name) <= maxName {
		plan.CheckName(v.ID, r)
		return
	}
	r.Fault(plan.Fault{Code: plan.InvalidName, ID: v.ID, Field: "metadata.name",
		Cause: fmt.Sprintf("the name has %d letters, and it becomes a part of a label, a systemd unit and a folder", len(v.ID.Name)),
		Hint:  fmt.Sprintf("want at most %d", maxName)})
}

func checkGroup(site *plan.Site, v plan.Document[Volume], r *plan.Report) {
	f := plan.Fault{ID: v.ID, Field: "spec.group"}
	switch group := v.Spec.Group; {
	case group == "":
		return
	case v.Spec.For() != Shared:
		f.Code, f.Cause = plan.Contradiction, fmt.Sprintf("access: %s and group exclude each other: a group is whom a shared volume belongs to", v.Spec.For())
		f.Hint = "write access: shared, or take the group out"
	case !site.Has(groupID(group)):
		f.Code, f.Cause, f.Hint = plan.UnknownReference, fmt.Sprintf("there is no Group %q", group), "declare it, or name one that is declared"
	default:
		return
	}
	r.Fault(f)
}

func groupID(name string) plan.ID {
	return plan.ID{System: plan.Directory, Kind: "Group", Name: name}
}

// checkNamespace looks at where the claim is to be. A namespace that nobody
// declares would keep it from being made for ever.
func checkNamespace(site *plan.Site, v plan.Document[Volume], r *plan.Report) {
	f := plan.Fault{ID: v.ID, Field: "spec.namespace"}
	switch name := v.Spec.ClaimNamespace(); {
	case name == DesktopsNamespace: // the built-in manifests bring it
		return
	case name == DirectoryNamespace && v.ID.Name == DirectoryBackup:
		if !site.Spec.Kubernetes.IsManaged() {
			f.Code, f.Cause = plan.UnknownReference, "a site that does not keep its Kubernetes has no directory of its own"
			f.Hint = "take the volume out, or set spec.kubernetes.managed of the Site"
			break
		}
		return
	case !plan.IsLabel(name):
		f.Code, f.Cause = plan.InvalidName, fmt.Sprintf("%q cannot be the name of a namespace", name)
		f.Hint = "want at most 63 small letters, digits and dashes, with a letter or digit at both ends"
	case strings.HasPrefix(name, "kube-") || strings.HasPrefix(name, "kingmaker-"):
		f.Code, f.Cause = plan.InvalidValue, fmt.Sprintf("%s belongs to the system itself", name)
		f.Hint = "want a namespace of a service, or leave it out for " + DesktopsNamespace
	case !site.Has(namespaceID(name)):
		f.Code, f.Cause = plan.UnknownReference, fmt.Sprintf("there is no Namespace %q", name)
		f.Hint = "declare it in services/, or name one that is declared"
	default:
		return
	}
	r.Fault(f)
}

func namespaceID(name string) plan.ID {
	return plan.ID{System: plan.Objects, Kind: "Namespace", Name: name}
}

// DefaultReplicas is the replica count of a volume that does not say, in a site
// with so many bricks.
func DefaultReplicas(site *plan.Site, bricks int) int {
	if n := site.Spec.Storage.Replicas; n != 0 {
		return n
	}
	if bricks >= 5 {
		return 5
	}
	return 3
}

// brick is what this room reads of a Machine. Rooms do not know each other's
// types, and need not: the document is the contract.
type brick struct {
	labels  map[string]any
	circuit string
	address string // "" where the machine is known by its network card
}

// bricks are the machines that bring a brick, by name.
func bricks(site *plan.Site) map[string]brick {
	found := map[string]brick{}
	for id, o := range site.Objects.Of(plan.Machines) {
		spec, _ := o.Spec["spec"].(map[string]any)
		disk, _ := spec["disk"].(map[string]any)
		if has, said := disk["brick"].(bool); said && !has {
			continue
		}
		labels, _ := spec["labels"].(map[string]any)
		circuit, _ := spec["circuit"].(string)
		address, _ := spec["address"].(string)
		found[id.Name] = brick{labels, circuit, address}
	}
	return found
}

// choose counts the bricks that a volume may use; ok is false where that was
// said in a way that makes no sense.
func choose(site *plan.Site, v plan.Document[Volume], all map[string]brick, r *plan.Report) (usable int, ok bool) {
	m := v.Spec.Machines
	if m == nil {
		return len(all), true
	}
	f := plan.Fault{ID: v.ID, Field: "spec.machines"}
	switch {
	case m.Names != nil && m.Selector != nil:
		f.Code, f.Cause, f.Hint = plan.Contradiction, "names and selector exclude each other", "take one of them out"
	case m.Names == nil && m.Selector == nil:
		f.Code, f.Cause, f.Hint = plan.MissingField, "neither names nor selector says which machines", "leave out machines to use all bricks"
	case m.Names != nil:
		return chooseByName(site, v, all, r)
	default:
		for _, b := range all {
			if b.matches(m.Selector) {
				usable++
			}
		}
		if usable > 0 {
			return usable, true
		}
		f.Code, f.Field = plan.UnknownReference, "spec.machines.selector"
		f.Cause, f.Hint = "no machine with a brick has all of these labels", "labels are those of Machine.spec.labels"
	}
	r.Fault(f)
	return 0, false
}

func chooseByName(site *plan.Site, v plan.Document[Volume], all map[string]brick, r *plan.Report) (usable int, ok bool) {
	taken := make(plan.Taken[string])
	ok = true
	for i, name := range v.Spec.Machines.Names {
		f := plan.Fault{ID: v.ID, Field: plan.Field("spec", "machines", "names", i)}
		_, hasBrick := all[name]
		switch {
		case taken.Claim(name, f.Field) != "":
			f.Code, f.Cause = plan.Duplicate, fmt.Sprintf("%s is named twice", name)
		case !site.Has(plan.ID{System: plan.Machines, Kind: "Machine", Name: name}):
			f.Code, f.Cause = plan.UnknownReference, fmt.Sprintf("there is no Machine %q", name)
		case !hasBrick:
			f.Code, f.Cause = plan.UnknownReference, fmt.Sprintf("Machine %s has no brick", name)
			f.Hint = "its disk.brick is false"
		default:
			usable++
			continue
		}
		r.Fault(f)
		ok = false
	}
	if len(v.Spec.Machines.Names) == 0 {
		r.Fault(plan.Fault{Code: plan.UnknownReference, ID: v.ID, Field: "spec.machines.names",
			Cause: "an empty list leaves the volume no brick", Hint: "leave out machines to use all bricks"})
		return 0, false
	}
	return usable, ok
}

func (b brick) matches(selector map[string]string) bool {
	for key, value := range selector {
		if b.labels[key] != value {
			return false
		}
	}
	return true
}

func checkReplicas(site *plan.Site, v plan.Document[Volume], usable, all int, r *plan.Report) {
	replicas := cmp.Or(v.Spec.Replicas, DefaultReplicas(site, all))
	f := plan.Fault{ID: v.ID, Field: "spec.replicas"}
	switch {
	case v.Spec.Arbiter && replicas != 3:
		f.Code, f.Field = plan.Contradiction, "spec.arbiter"
		f.Cause, f.Hint = fmt.Sprintf("an arbiter is the third of 3 replicas, and the volume has %d", replicas), "write replicas: 3, or take the arbiter out"
	case replicas < 0 || replicas%2 == 0:
		if v.Spec.Replicas == 0 {
			return // the Site's fault, which is named there
		}
		f.Code, f.Cause = plan.EvenCount, fmt.Sprintf("%d replicas have no majority when they part in halves", replicas)
		f.Hint = "want 1, 3, 5 or 7"
	case replicas > usable:
		f.Code, f.Cause = TooFewBricks, fmt.Sprintf("%d replicas need %d bricks, and the volume can have %d", replicas, replicas, usable)
		if v.Spec.Replicas == 0 {
			f.Cause = fmt.Sprintf("%d replicas, which is the default, need %d bricks, and the volume can have %d", replicas, replicas, usable)
		}
		f.Hint = "want fewer replicas, or let more machines bring a brick"
		if site.Spec.Admission == "open" {
			r.Warn(f) // machines that join later may bring them
			return
		}
	case replicas == 1 && all >= 3:
		f.Code, f.Cause = OneCopy, "one broken disk takes the whole volume away"
		f.Hint = "with 3 replicas it would not"
		r.Warn(f)
		return
	default:
		return
	}
	r.Fault(f)
}

// checkSiteDefault looks at the default that no volume may be using yet.
func checkSiteDefault(site *plan.Site, all map[string]brick, r *plan.Report) {
	if n := site.Spec.Storage.Replicas; n > len(all) && site.Spec.Admission != "open" {
		r.Fault(plan.Fault{Code: TooFewBricks, ID: site.SiteID(), Field: "spec.storage.replicas",
			Cause: fmt.Sprintf("%d replicas need %d bricks, and the declared machines bring %d", n, n, len(all)),
			Hint:  "want fewer replicas, or let more machines bring a brick"})
	}
}

func checkOptions(v plan.Document[Volume], r *plan.Report) {
	for _, option := range slices.Sorted(maps.Keys(v.Spec.Options)) {
		f := plan.Fault{ID: v.ID, Field: plan.Field("spec", "options", option)}
		switch value := v.Spec.Options[option]; {
		case !optionName.MatchString(option):
			f.Code, f.Cause, f.Hint = plan.InvalidName, fmt.Sprintf("%q is not the name of an option", option), "such as performance.cache-size"
		case reserved(option):
			f.Code, f.Cause, f.Hint = ReservedOption, fmt.Sprintf("Kingmaker sets %s itself, so that no data is lost", option), "take it out"
		case value == "":
			f.Code, f.Cause, f.Hint = plan.InvalidValue, "is empty", "leave the option out to leave it alone"
		case strings.HasPrefix(value, "--") || strings.ContainsFunc(value, unicode.IsControl):
			f.Code, f.Cause = plan.InvalidValue, fmt.Sprintf("%q is no value: gluster would take it for a flag of its own", value)
		default:
			continue
		}
		r.Fault(f)
	}
}
