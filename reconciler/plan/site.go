package plan

import (
	"encoding/json"
	"fmt"
	"time"
)

// Site is everything that one commit of a site repo declares, rendered. It is
// the one input of every system, and is never changed after it was made.
type Site struct {
	Name    string   // metadata.name of the Site document
	Commit  string   // the commit's hash; "dir-HASH" for a plain folder
	Spec    SiteSpec // the Site document
	Objects State    // every document, the Site's own and the built-in manifests included, as declared
}

// SiteSpec is the spec of kind Site, of which a site repo holds exactly one. It
// belongs to no room, because every room reads it. Absent is not empty: a zero
// field takes the default that its comment names.
type SiteSpec struct {
	// Masters is how many machines run the control plane: 1, 3, 5 or 7. Default 3.
	Masters int `json:"masters,omitempty" jsonschema:"enum=1,enum=3,enum=5,enum=7,default=3"`
	// Kubernetes is the version that the machines run, and who made the cluster.
	Kubernetes Kubernetes `json:"kubernetes,omitzero"`
	// Network holds the address ranges of the cluster, and how Pods reach each other.
	Network Network `json:"network,omitzero"`
	// Failover says when a dead master is replaced, and what holds that back.
	Failover Failover `json:"failover,omitzero"`
	// Admission says which machines may join: listed (those declared in the repo; default) or open.
	Admission string `json:"admission,omitempty" jsonschema:"enum=listed,enum=open,default=listed"`
	// Deletes is the budget of deletions of one plan. A plan over it has all its deletions withheld.
	Deletes Budget `json:"deletes,omitzero"`
	// Confirm lists the IDs whose withheld deletion or replacement is wanted, such as objects/Namespace/wiki.
	Confirm []string `json:"confirm,omitempty" jsonschema:"uniqueItems=true"`
	// Suspend stops all changes by a commit, and says why.
	Suspend *Suspend `json:"suspend,omitempty"`
	// Storage holds the defaults of volumes, and when a lost copy is made anew.
	Storage Storage `json:"storage,omitzero"`
	// Domain is the DNS domain of the site, such as school.example.
	Domain string `json:"domain,omitempty" jsonschema:"format=hostname"`
	// Admins names the Group whose members administer the site.
	Admins string `json:"admins,omitempty"`
	// Platform changes what Kingmaker itself installs.
	Platform Platform `json:"platform,omitzero"`
}

// Kubernetes is the wanted version of the cluster, and whose cluster it is.
type Kubernetes struct {
	// Version such as v1.36.3. Default: that of the bundle.
	Version string `json:"version,omitempty" jsonschema:"pattern=^v[0-9]+\\.[0-9]+\\.[0-9]+$"`
	// Managed is false where noded did not make the cluster: Kingmaker then brings no network, no reconciler and no rules for machines, and leaves Nodes alone. Default true.
	Managed *bool `json:"managed,omitempty" jsonschema:"default=true"`
}

// Network holds address ranges in CIDR notation, and the way of a packet from
// the Pods of one machine to those of another.
type Network struct {
	// Pods is the range of Pod addresses. Default 10.244.0.0/16.
	Pods string `json:"pods,omitempty" jsonschema:"default=10.244.0.0/16"`
	// Services is the range of Service addresses. Default 10.96.0.0/12.
	Services string `json:"services,omitempty" jsonschema:"default=10.96.0.0/12"`
	// Backend is host-gw (plain routes, fastest; all machines share one LAN segment; default) or vxlan (a tunnel; for machines with routers between them).
	Backend string `json:"backend,omitempty" jsonschema:"enum=host-gw,enum=vxlan,default=host-gw"`
}

// Failover is the policy for replacing dead masters.
type Failover struct {
	// After is how long a master must be dead before it is replaced: at least 1m. Default 10m.
	After Duration `json:"after,omitzero"`
	// CircuitBreaker holds all replacement while too much is down at once.
	CircuitBreaker CircuitBreaker `json:"circuitBreaker,omitzero"`
	// CrownsPerDay limits replacements in 24 hours. Default 3.
	CrownsPerDay int `json:"crownsPerDay,omitempty" jsonschema:"minimum=1,default=3"`
}

// CircuitBreaker says how much trouble at once is too much for a machine to judge.
type CircuitBreaker struct {
	// Machines down on the victim's own circuit. Default 2.
	Machines int `json:"machines,omitempty" jsonschema:"minimum=1,default=2"`
	// Share of all machines that are unhealthy. Default 30%.
	Share Percent `json:"share,omitempty"`
}

// Budget is how much one plan may delete. A plan of up to five deletions is
// always within it.
type Budget struct {
	// Max is a count, at least 1. Default 50.
	Max int `json:"max,omitempty" jsonschema:"minimum=1,default=50"`
	// Share is a part of all that the site has. Default 30%.
	Share Percent `json:"share,omitempty"`
}

// Limit is how many of so many the budget lets go at once, the defaults included.
func (b Budget) Limit(all int) int {
	return max(5, min(orDefault(b.Max, 50), b.Share.Of(all, "30%")))
}

// Suspend stops a site by a commit.
type Suspend struct {
	// Reason is shown wherever the site's state is.
	Reason string `json:"reason" jsonschema:"required,minLength=1"`
}

// Storage holds the defaults of volumes, and when a lost copy is made anew.
type Storage struct {
	// Replicas of each volume that does not say: odd. Default 5 with five bricks or more, else 3.
	Replicas int `json:"replicas,omitempty" jsonschema:"enum=1,enum=3,enum=5,enum=7"`
	// ReplaceAfter is how long a machine with a brick may be away before its copies are made elsewhere: at least 1m. Default 1h.
	ReplaceAfter Duration `json:"replaceAfter,omitzero"`
}

// Platform changes the built-in manifests.
type Platform struct {
	// Patches are applied to the built-in manifests, as kustomize's patches field does.
	Patches []Patch `json:"patches,omitempty"`
}

// Patch is one entry of kustomize's patches field.
type Patch struct {
	// Patch is a strategic merge patch or a JSON 6902 patch, as YAML.
	Patch string `json:"patch" jsonschema:"required,minLength=1"`
	// Target selects the objects; it may be absent where the patch names one.
	Target *Target `json:"target,omitempty"`
}

// Target selects objects, as kustomize's patch targets do. Empty fields match all.
type Target struct {
	Group              string `json:"group,omitempty"`
	Version            string `json:"version,omitempty"`
	Kind               string `json:"kind,omitempty"`
	Name               string `json:"name,omitempty"`
	Namespace          string `json:"namespace,omitempty"`
	LabelSelector      string `json:"labelSelector,omitempty"`
	AnnotationSelector string `json:"annotationSelector,omitempty"`
}

// Duration is a time span written as "90s", "10m" or "36h". Zero is absent.
type Duration struct{ time.Duration }

// MarshalJSON writes the form that UnmarshalJSON reads.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads what time.ParseDuration does.
func (d *Duration) UnmarshalJSON(data []byte) (err error) {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("a duration is text such as \"10m\", not %s", data)
	}
	d.Duration, err = time.ParseDuration(text)
	return err
}

// Percent is a whole percentage, written "30%". Empty is absent.
type Percent string

// Of is the part of n that the percentage stands for, rounded down; fallback
// stands in for an absent or unreadable one.
func (p Percent) Of(n int, fallback Percent) int {
	var percent int
	if _, err := fmt.Sscanf(string(p), "%d%%", &percent); err != nil {
		if fallback == "" {
			return 0
		}
		return fallback.Of(n, "")
	}
	return n * percent / 100
}
