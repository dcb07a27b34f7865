package plan

import "time"

// SiteStatus is the status of the Site object in the cluster: how far the site
// has come, for people and for `reconcile status`. The daemon alone writes it.
type SiteStatus struct {
	// ObservedGeneration is the metadata.generation of the Site object that the status is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions are the standard ones, one a type: Ready, Reconciling, Stalled, Suspended.
	Conditions []Condition `json:"conditions,omitempty" jsonschema_extras:"x-kubernetes-list-type=map,x-kubernetes-list-map-keys=type"`
	// Commit says which commit is wanted and which is reached.
	Commit CommitStatus `json:"commit,omitzero"`
	// Counts of the last round.
	Counts Counts `json:"counts,omitzero"`
	// Errors of the last round, the first twenty of them.
	Errors []Fault `json:"errors,omitempty"`
	// LastRound is when the last round ended.
	LastRound time.Time `json:"lastRound,omitzero"`
	// Verified is, by kind of Kubernetes objects, the epoch in which all of the
	// kind was proved in sync; see package kube.
	Verified map[string]string `json:"verified,omitempty"`
	// Reconciler is the version of the daemon that wrote the status.
	Reconciler string `json:"reconciler,omitempty"`
}

// CommitStatus is where a site is between two commits.
type CommitStatus struct {
	// Wanted is the newest commit that was found; it may be faulty.
	Wanted string `json:"wanted,omitempty"`
	// Reached is the last commit that the whole site equalled.
	Reached string `json:"reached,omitempty"`
	// Short is the beginning of reached, for the columns of kubectl get.
	Short string `json:"short,omitempty"`
}

// Counts are numbers of objects. None is absent: 0 is an answer.
type Counts struct {
	// Objects that the site declares.
	Objects int `json:"objects"`
	// Changes that are still to be made.
	Changes int `json:"changes"`
	// Withheld changes, which wait for consent in git.
	Withheld int `json:"withheld"`
	// Waiting are the parts that cannot be planned yet.
	Waiting int `json:"waiting"`
	// Unhealthy objects: as declared, and not working.
	Unhealthy int `json:"unhealthy"`
}

// Condition is a Kubernetes condition, with Kubernetes' field names.
type Condition struct {
	// Type such as Ready.
	Type string `json:"type" jsonschema:"required,minLength=1,maxLength=316"`
	// Status is True, False or Unknown.
	Status string `json:"status" jsonschema:"required,enum=True,enum=False,enum=Unknown"`
	// ObservedGeneration is the metadata.generation that the condition was set for.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// LastTransitionTime is when the status last changed.
	LastTransitionTime time.Time `json:"lastTransitionTime" jsonschema:"required"`
	// Reason is a Code.
	Reason Code `json:"reason" jsonschema:"required,minLength=1,maxLength=1024"`
	// Message is one sentence for people.
	Message string `json:"message" jsonschema:"maxLength=32768"`
}
