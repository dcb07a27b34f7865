package kube

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Manager is our field manager.
const Manager = "kingmaker"

// appliedAnnotation records what was applied: "HASH.FIELDS", see the package comment.
const appliedAnnotation = plan.Group + "/applied"

// unknownFields stands in the record until the server has said what our
// managedFields entry is.
const unknownFields = "unknown"

// digest is a short name for content: 96 bits, enough that no two contents of
// a site share one.
func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// hashOf stands for an object as it is sent. Keys of JSON objects are sorted.
func hashOf(manifest map[string]any) string {
	data, err := json.Marshal(manifest)
	if err != nil {
		// A tree of JSON values always marshals.
		panic(fmt.Sprintf("hash a manifest: %v", err))
	}
	return digest(data)
}

// ownFields stands for our managedFields entry; "" where there is none.
func ownFields(entries []metav1.ManagedFieldsEntry) string {
	for _, e := range entries {
		if isOurs(e) {
			return digest(e.FieldsV1.GetRawBytes())
		}
	}
	return ""
}

func isOurs(e metav1.ManagedFieldsEntry) bool {
	return e.Manager == Manager && e.Operation == metav1.ManagedFieldsOperationApply && e.Subresource == "" && e.FieldsV1 != nil
}

// record is what a watch keeps of a live object: all that the proof needs, and
// no more, for there are thousands.
type record struct {
	namespace, name string
	uid             types.UID
	version         string // resourceVersion
	generation      int64  // of the spec, where the kind counts it
	applied         string // our annotation
	fields          string // our managedFields entry, as ownFields
	foreign         string // who owns which other fields, for people; "" for nobody
	scaled          bool   // an autoscaler holds the replica count
	owned           bool   // a controller owns the object: it is not ours to delete
	terminating     bool
}

func newRecord(o metav1.Object) *record {
	entries := o.GetManagedFields()
	return &record{
		namespace: o.GetNamespace(), name: o.GetName(), uid: o.GetUID(), version: o.GetResourceVersion(), generation: o.GetGeneration(),
		applied: o.GetAnnotations()[appliedAnnotation], fields: ownFields(entries), foreign: foreign(entries),
		scaled: scaledElsewhere(entries), owned: metav1.GetControllerOf(o) != nil, terminating: o.GetDeletionTimestamp() != nil,
	}
}

func (r *record) key() string {
	if r.namespace == "" {
		return r.name
	}
	return r.namespace + "/" + r.name
}

// proves reports whether the record alone shows that the object is as git
// declares it.
func (r *record) proves(hash string) bool {
	return !r.terminating && r.fields != "" && r.applied == hash+"."+r.fields
}

// isController reports whether a manager is a part of Kubernetes or of ours: they
// write fields of their own into everybody's objects, and are not worth a word.
func isController(manager string) bool {
	switch manager {
	case "kube-controller-manager", "kube-scheduler", "kubelet", "kube-apiserver", "cloud-controller-manager":
		return true
	}
	return strings.HasPrefix(manager, Manager)
}

// fieldsOf are the fields of a managedFields entry; none where it has none, or
// cannot be read.
func fieldsOf(e metav1.ManagedFieldsEntry) *fieldpath.Set {
	set := &fieldpath.Set{}
	if e.FieldsV1 == nil || set.FromJSON(e.FieldsV1.GetRawReader()) != nil {
		return &fieldpath.Set{}
	}
	return set
}

// foreign names the fields that people or other tools hold beside ours:
// "kubectl-edit: spec.paused". Neither a diff nor an apply ever touches them,
// so that they have to be told.
func foreign(entries []metav1.ManagedFieldsEntry) string {
	var others []string
	var own *fieldpath.Set
	for _, e := range entries {
		if e.Subresource != "" || isController(e.Manager) {
			continue
		}
		if own == nil {
			own = ownSet(entries) // rarely needed: most objects have no other manager
		}
		var fields []string
		fieldsOf(e).Difference(own).Leaves().Iterate(func(p fieldpath.Path) {
			if field := strings.TrimPrefix(p.String(), "."); !strings.Contains(field, lastAppliedField) {
				fields = append(fields, field)
			}
		})
		if len(fields) == 0 {
			continue
		}
		slices.Sort(fields)
		if more := len(fields) - 4; more > 0 {
			fields = append(fields[:4], fmt.Sprintf("and %d more", more))
		}
		others = append(others, e.Manager+": "+strings.Join(fields, ", "))
	}
	return strings.Join(others, "; ")
}

// ownSet are the fields of our entry.
func ownSet(entries []metav1.ManagedFieldsEntry) *fieldpath.Set {
	if i := slices.IndexFunc(entries, isOurs); i >= 0 {
		return fieldsOf(entries[i])
	}
	return &fieldpath.Set{}
}

// lastAppliedField is kubectl's own book-keeping.
const lastAppliedField = "kubectl.kubernetes.io/last-applied-configuration"

// scaledElsewhere reports whether an autoscaler holds the replica count: the
// one field that git and a controller may both rightly claim.
func scaledElsewhere(entries []metav1.ManagedFieldsEntry) bool {
	return slices.ContainsFunc(entries, func(e metav1.ManagedFieldsEntry) bool {
		return e.Subresource == "scale" && isController(e.Manager) && !strings.HasPrefix(e.Manager, Manager)
	})
}
