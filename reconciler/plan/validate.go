package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Codes of what validation finds, in every room. Rules that one room alone has
// bring their own.
const (
	Unreadable       Code = "Unreadable"       // the document does not decode
	InvalidName      Code = "InvalidName"      // a name of a form that some system refuses
	InvalidValue     Code = "InvalidValue"     // a value out of range, or of a form that cannot be read
	Duplicate        Code = "Duplicate"        // what must be unique is there twice
	MissingField     Code = "MissingField"     // a field that cannot be left out
	UnknownReference Code = "UnknownReference" // a name of something that is declared nowhere
	Contradiction    Code = "Contradiction"    // two fields that exclude each other
	EvenCount        Code = "EvenCount"        // an even number where only odd ones keep a quorum
	Overlap          Code = "Overlap"          // address ranges or paths that lie in each other
)

// Report is what validation finds: faults, each of which keeps the commit from
// being applied, and warnings, which do not. The zero Report is empty.
type Report struct {
	Faults   []*Fault
	Warnings []*Fault
}

// Fault adds a fault.
func (r *Report) Fault(f Fault) { r.Faults = append(r.Faults, &f) }

// Warn adds a warning.
func (r *Report) Warn(f Fault) { r.Warnings = append(r.Warnings, &f) }

// MergeFaults adds what a later check found to what an earlier one did. Two
// checks often stumble over one mistake: of a field that the earlier one names,
// and of the fact that a document does not decode, the later one is not heard.
func MergeFaults(earlier, later []*Fault) []*Fault {
	type field struct {
		id   ID
		path string
	}
	fields, objects := map[field]bool{}, map[ID]bool{}
	for _, f := range earlier {
		fields[field{f.ID, f.Field}], objects[f.ID] = true, true
	}
	all := slices.Clone(earlier)
	for _, f := range later {
		if fields[field{f.ID, f.Field}] || f.Code == Unreadable && objects[f.ID] {
			continue
		}
		all = append(all, f)
	}
	return all
}

// plainName is a field name that needs no quotes in a path.
var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

// Field is the path of a field as Fault.Field has it, from names and indexes:
// spec.users[3].uid. Names that are not plain words stand in brackets:
// spec.labels["kingmaker.dev/room"].
func Field(parts ...any) string {
	var b strings.Builder
	for _, part := range parts {
		switch name, ok := part.(string); {
		case !ok:
			fmt.Fprintf(&b, "[%v]", part)
		case !plainName.MatchString(name):
			fmt.Fprintf(&b, "[%q]", name)
		case b.Len() > 0:
			b.WriteString("." + name)
		default:
			b.WriteString(name)
		}
	}
	return b.String()
}

// Taken finds values that are used twice. Make one with make.
type Taken[K comparable] map[K]string

// Claim takes a value for a user that people can find ("user anna of Roster
// class-5a"). It answers who has it already, and "" where it was free.
func (t Taken[K]) Claim(value K, user string) (owner string) {
	if owner, taken := t[value]; taken {
		return owner
	}
	t[value] = user
	return ""
}

// labelName is an RFC 1123 label, the strictest form of a Kubernetes name.
var labelName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// IsLabel reports whether a name is an RFC 1123 label.
func IsLabel(name string) bool { return labelName.MatchString(name) }

// CheckName reports a document whose metadata.name is not an RFC 1123 label.
func CheckName(id ID, r *Report) {
	if !IsLabel(id.Name) {
		r.Fault(Fault{Code: InvalidName, ID: id, Field: "metadata.name",
			Cause: fmt.Sprintf("%q cannot be a name here", id.Name),
			Hint:  "want at most 63 small letters, digits and dashes, with a letter or digit at both ends"})
	}
}

// Limits and defaults of SiteSpec.
const (
	DefaultMasters  = 3
	DefaultPods     = "10.244.0.0/16"
	DefaultServices = "10.96.0.0/12"
	DefaultBackend  = "host-gw"
	DefaultAfter    = 10 * time.Minute
	MinAfter        = time.Minute // of Failover.After: below it a reboot would cost a crown

	DefaultReplaceAfter = time.Hour
	MinReplaceAfter     = time.Minute // of Storage.ReplaceAfter: below it a reboot would cost a copy of all that the machine holds
)

// podsPerNode is the size of the range that each node gets out of
// Network.Pods: a /24 of IPv4, a /64 of IPv6, as kubeadm has it.
func podsPerNode(pods netip.Prefix) int {
	if pods.Addr().Is4() {
		return 24
	}
	return 64
}

// MasterCount is how many masters the site wants, the default included.
func (s *SiteSpec) MasterCount() int { return orDefault(s.Masters, DefaultMasters) }

// IsManaged reports whether noded made the cluster, the default included.
func (k Kubernetes) IsManaged() bool { return k.Managed == nil || *k.Managed }

// BackendName is the network's backend, the default included.
func (n Network) BackendName() string { return cmp.Or(n.Backend, DefaultBackend) }

// ReplacesAfter is how long a machine with a brick may be away, the default included.
func (s Storage) ReplacesAfter() time.Duration {
	return max(cmp.Or(s.ReplaceAfter.Duration, DefaultReplaceAfter), MinReplaceAfter)
}

// Ranges are the address ranges of Pods and Services, the defaults included. A
// range that cannot be read is the zero Prefix, which contains nothing.
func (n Network) Ranges() (pods, services netip.Prefix) {
	read := func(text, fallback string) netip.Prefix {
		if text == "" {
			text = fallback
		}
		p, _ := netip.ParsePrefix(text)
		return p
	}
	return read(n.Pods, DefaultPods), read(n.Services, DefaultServices)
}

// SiteID is the ID of the Site document.
func (s *Site) SiteID() ID { return ID{Objects, "Site." + Group, s.Name} }

// Has reports whether the site declares an object.
func (s *Site) Has(id ID) bool {
	_, ok := s.Objects[id]
	return ok
}

// Validate checks the Site document. What needs the fields of other kinds is
// checked by the rooms that own them. Structure comes before it: types, unknown
// fields and lists of allowed values are the schema's part.
func (s *Site) Validate() (faults, warnings []*Fault) {
	r, id, spec := &Report{}, s.SiteID(), s.Spec
	fault := func(code Code, field, cause, hint string) {
		r.Fault(Fault{Code: code, ID: id, Field: field, Cause: cause, Hint: hint})
	}
	CheckName(id, r)

	switch {
	case spec.Masters < 0:
		fault(InvalidValue, "spec.masters", "a site cannot have fewer than one master", "")
	case spec.Masters > 0 && spec.Masters%2 == 0:
		fault(EvenCount, "spec.masters",
			fmt.Sprintf("%d masters survive the loss of %d, as %d do", spec.Masters, spec.Masters/2-1, spec.Masters-1),
			fmt.Sprintf("want an odd number: %d or %d", spec.Masters-1, spec.Masters+1))
	case spec.Masters > 7:
		fault(InvalidValue, "spec.masters", "more than 7 masters make every write slower and the site no safer", "want 1, 3, 5 or 7")
	}

	s.validateNetwork(r)

	if after := spec.Failover.After.Duration; after != 0 && after < MinAfter {
		fault(InvalidValue, "spec.failover.after", fmt.Sprintf("%s is too short: a reboot takes as long", after), "want 1m or more; 10m is the default")
	}
	if spec.Failover.CircuitBreaker.Machines < 0 {
		fault(InvalidValue, "spec.failover.circuitBreaker.machines", "want 1 or more", "")
	}
	if spec.Failover.CrownsPerDay < 0 {
		fault(InvalidValue, "spec.failover.crownsPerDay", "want 1 or more", "")
	}
	if share := spec.Failover.CircuitBreaker.Share; share != "" {
		if n, ok := share.read(); !ok || n < 1 {
			fault(InvalidValue, "spec.failover.circuitBreaker.share", fmt.Sprintf("%q is no share", share),
				"want 1% to 100%; the breaker would never close at 0%")
		}
	}
	if share := spec.Deletes.Share; share != "" {
		if _, ok := share.read(); !ok {
			fault(InvalidValue, "spec.deletes.share", fmt.Sprintf("%q is no share", share), "want 0% to 100%")
		}
	}
	if spec.Deletes.Max < 0 {
		fault(InvalidValue, "spec.deletes.max", "want 1 or more", "")
	}

	confirmed := make(Taken[ID])
	for i, entry := range spec.Confirm {
		field := Field("spec", "confirm", i)
		entryID, err := ParseID(entry)
		if err != nil {
			fault(InvalidValue, field, err.Error(), "copy the ID from the plan")
		} else if confirmed.Claim(entryID, field) != "" {
			fault(Duplicate, field, entry+" is confirmed twice", "take one of them out")
		}
	}
	if spec.Suspend != nil && strings.TrimSpace(spec.Suspend.Reason) == "" {
		fault(InvalidValue, "spec.suspend.reason", "is empty", "say why, for whoever wonders")
	}
	if n := spec.Storage.Replicas; n != 0 && n%2 == 0 || n < 0 {
		fault(EvenCount, "spec.storage.replicas", fmt.Sprintf("%d replicas have no majority when they part in halves", n), "want 1, 3, 5 or 7")
	}
	if after := spec.Storage.ReplaceAfter.Duration; after != 0 && after < MinReplaceAfter {
		fault(InvalidValue, "spec.storage.replaceAfter", fmt.Sprintf("%s is too short: a reboot takes as long, and every copy of the machine would be made anew", after),
			"want 1m or more; 1h is the default")
	}
	if spec.Domain != "" && !isHostname(spec.Domain) {
		fault(InvalidValue, "spec.domain", fmt.Sprintf("%q is not a DNS domain", spec.Domain), "such as school.example")
	}
	if strings.HasSuffix(spec.Domain, ".local") {
		r.Warn(Fault{Code: InvalidValue, ID: id, Field: "spec.domain", Cause: "names below .local are answered by multicast DNS on many computers, and then not found",
			Hint: "use a domain of your own, or one below .internal"})
	}
	if spec.Admins != "" && !s.Has(ID{Directory, "Group", spec.Admins}) {
		fault(UnknownReference, "spec.admins", fmt.Sprintf("there is no Group %q", spec.Admins), "declare it, or name one that is declared")
	}
	for i, patch := range spec.Platform.Patches {
		if strings.TrimSpace(patch.Patch) == "" {
			fault(InvalidValue, Field("spec", "platform", "patches", i, "patch"), "is empty", "")
		}
	}
	return r.Faults, r.Warnings
}

func (s *Site) validateNetwork(r *Report) {
	n := s.Spec.Network
	check := func(field, text string) bool {
		p, err := netip.ParsePrefix(text)
		fault := Fault{Code: InvalidValue, ID: s.SiteID(), Field: field}
		switch {
		case text == "":
			return true
		case err != nil:
			fault.Cause, fault.Hint = fmt.Sprintf("%q is not an address range", text), "such as "+DefaultPods
		case p != p.Masked():
			fault.Cause, fault.Hint = fmt.Sprintf("%s begins inside its own range", text), fmt.Sprintf("write %s", p.Masked())
		default:
			return true
		}
		r.Fault(fault)
		return false
	}
	pods, services := n.Ranges()
	podsGood, servicesGood := check("spec.network.pods", n.Pods), check("spec.network.services", n.Services)
	if podsGood && servicesGood {
		// Name the field that was written: the other may be the default.
		field := "spec.network.services"
		if n.Services == "" {
			field = "spec.network.pods"
		}
		switch {
		case pods.Overlaps(services):
			r.Fault(Fault{Code: Overlap, ID: s.SiteID(), Field: field,
				Cause: fmt.Sprintf("the Pods' range %s and the Services' range %s overlap", pods, services), Hint: "choose ranges apart from each other and from the room's network"})
		case pods.Addr().Is4() != services.Addr().Is4():
			r.Fault(Fault{Code: InvalidValue, ID: s.SiteID(), Field: field,
				Cause: fmt.Sprintf("%s and %s are of two address families", pods, services), Hint: "write both, of one family"})
		}
	}
	if podsGood {
		room, machines := 0, len(s.Objects.Of(Machines))
		if bits := podsPerNode(pods) - pods.Bits(); bits >= 0 {
			room = 1 << min(bits, 30)
		}
		if room == 0 || machines > room {
			r.Fault(Fault{Code: InvalidValue, ID: s.SiteID(), Field: "spec.network.pods",
				Cause: fmt.Sprintf("%s has room for %d machines at a /%d each, and %d are declared", pods, room, podsPerNode(pods), machines),
				Hint:  "choose a larger range; it cannot be changed once the site is built"})
		}
	}
	if limit := services.Addr().BitLen() - 4; servicesGood && services.Bits() > limit {
		r.Fault(Fault{Code: InvalidValue, ID: s.SiteID(), Field: "spec.network.services",
			Cause: fmt.Sprintf("%s is too small for the Services of a site", services), Hint: fmt.Sprintf("want a /%d or larger", limit)})
	}
}

// read is the number of a percentage.
func (p Percent) read() (percent int, ok bool) {
	var rest string
	n, _ := fmt.Sscanf(string(p), "%d%s", &percent, &rest)
	return percent, n == 2 && rest == "%" && percent >= 0 && percent <= 100
}

func isHostname(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !labelName.MatchString(label) {
			return false
		}
	}
	return true
}
