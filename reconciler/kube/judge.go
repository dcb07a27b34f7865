package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// judge has the server say what an object would become.
//
//	live object    server's answer             wanted
//	none           accepted                    created, as git declares it
//	none           its CRD or namespace is     created, unchecked, after what it needs
//	               declared and not there yet
//	any            equal, and ours             nothing
//	any            equal, and not ours         adopted
//	any            different                   updated
//	any            a field is immutable        replaced
//	any            refused                     a fault
func (s *System) judge(ctx context.Context, o plan.Object, have plan.State, things catalog) (plan.Object, *plan.Fault) {
	d, err := s.declare(o)
	if err != nil {
		return o, &plan.Fault{Code: Invalid, ID: o.ID, Where: o.Origin, Cause: err.Error()}
	}
	at, exists := have[o.ID]
	mapping, err := s.mappingFor(d.manifest)
	if err != nil {
		return s.judgeUnserved(o, d, things, err)
	}
	namespace := namespaceOf(o.Spec)
	namespaced := mapping.Scope.Name() == meta.RESTScopeNameNamespace
	if f := misplaced(o, namespaced, namespace); f != nil {
		return o, f
	}
	if !exists {
		for _, need := range o.Needs {
			if _, there := have[need]; !there {
				return create(o, d), nil // nothing to ask the server before its namespace or CRD is there
			}
		}
	}
	var seen *live
	if exists {
		seen = at.Handle.(*live)
		if f := s.ownedByOther(at); f != nil {
			return o, f
		}
		if f := s.fight(o.ID, seen); f != nil {
			return o, f
		}
		if seen.scaled {
			d = d.withoutReplicas()
		}
	}
	answer, err := s.patch(ctx, mapping, o.ID, d.with(unknownFields), true)
	if err != nil {
		if fields, ok := immutable(err); ok && exists {
			return replace(o, d, at, fields), nil
		}
		f := fault(o.ID, err)
		f.Where = o.Origin
		if apierrors.IsNotFound(err) && namespaced {
			f.Code, f.Hint = NamespaceUnknown, "declare the namespace in the site repo, or correct its name"
		}
		return o, f
	}
	if !exists {
		return create(o, d), nil
	}

	// What others hold is what they still hold after our apply: the rest is drift.
	after := newRecord(answer)
	after.scaled = seen.scaled
	o.Notes = notes(o, after)
	fields := after.fields
	record := d.hash + "." + fields
	o.Identity, o.Spec, o.Handle = at.Identity, settle(answer), &draft{d, fields}
	if !reflect.DeepEqual(at.Spec, o.Spec) {
		o.Why = why(o, d, seen, answer)
		return o, nil
	}
	if seen.applied == record && seen.fields == fields {
		s.mu.Lock()
		s.verdicts[o.ID] = verdict{seen.uid, d.hash, fields, s.epoch(kindOf(o.ID))}
		s.mu.Unlock()
		return o, nil
	}
	// Equal, and yet something to do: our claim on its fields is written down,
	// so that what git drops later is dropped in the cluster too.
	o.Spec = annotated(o.Spec, record)
	o.Why = "equal to git; the record of it is renewed"
	if seen.fields == "" {
		o.Why = "equal to git, and not ours yet: it is adopted"
	} else if seen.fields != fields {
		o.Why = "equal to git, but others took over fields of it: they are claimed back"
	}
	return o, nil
}

// judgeUnserved deals with an object whose kind the cluster does not serve.
func (s *System) judgeUnserved(o plan.Object, d declared, things catalog, err error) (plan.Object, *plan.Fault) {
	if !meta.IsNoMatchError(err) {
		return o, fault(o.ID, fmt.Errorf("discover its kind: %w", err))
	}
	definition, ok := things.kinds[o.ID.Kind]
	if !ok {
		s.outdated.Store(true) // another may bring the kind at any time
		apiVersion, _ := o.Spec["apiVersion"].(string)
		return o, &plan.Fault{Code: NoKind, ID: o.ID, Where: o.Origin,
			Cause: fmt.Sprintf("the cluster serves no kind %s of %s", strings.Split(o.ID.Kind, ".")[0], apiVersion),
			Hint:  "correct apiVersion and kind, or declare the CRD; if an operator brings it, the object follows then"}
	}
	if f := misplaced(o, definition.namespaced, namespaceOf(o.Spec)); f != nil {
		return o, f
	}
	return create(o, d), nil
}

// misplaced says what is wrong with the namespace of an object, if anything.
func misplaced(o plan.Object, namespaced bool, namespace string) *plan.Fault {
	f := &plan.Fault{ID: o.ID, Where: o.Origin, Field: "metadata.namespace"}
	switch {
	case namespaced && namespace == "":
		f.Code, f.Cause = NamespaceMissing, "the kind lives in namespaces, and none is given"
		f.Hint = "add it to the object, or namespace: to the kustomization of its folder"
	case !namespaced && namespace != "":
		f.Code, f.Cause = NamespaceUnwanted, "the kind does not live in a namespace"
		f.Hint = "take metadata.namespace away"
	default:
		return nil
	}
	return f
}

func create(o plan.Object, d declared) plan.Object {
	o.Handle = &draft{d, unknownFields}
	return o
}

func replace(o plan.Object, d declared, at plan.Object, fields []string) plan.Object {
	o.Spec = overlay(at.Spec, o.Spec).(map[string]any)
	o.Identity, o.Handle = "", &draft{d, unknownFields}
	o.Why = "cannot be changed in place: " + strings.Join(fields, ", ")
	return o
}

// why tells a new wish of git from drift in the cluster.
func why(o plan.Object, d declared, seen *live, answer *unstructured.Unstructured) string {
	if seen.fields == "" {
		return "not ours yet, and differs from " + o.Origin + ": it is adopted"
	}
	if hash, _, _ := strings.Cut(seen.applied, "."); hash != d.hash {
		return "changed in " + o.Origin
	}
	if by := takenBy(seen.entries, answer.GetManagedFields()); by != "" {
		return "drift: changed in the cluster by " + by
	}
	return "drift: changed in the cluster"
}

// takenBy names who holds fields now that are ours after an apply.
func takenBy(now, after []metav1.ManagedFieldsEntry) string {
	lost := ownSet(after).Difference(ownSet(now))
	var names []string
	for _, e := range now {
		if !isOurs(e) && !lost.Intersection(fieldsOf(e)).Empty() {
			names = append(names, e.Manager)
		}
	}
	return strings.Join(names, ", ")
}

// ownedByOther refuses what another ApplySet or Helm holds.
func (s *System) ownedByOther(at plan.Object) *plan.Fault {
	labels, _, _ := unstructured.NestedStringMap(at.Spec, "metadata", "labels")
	annotations, _, _ := unstructured.NestedFieldNoCopy(at.Spec, "metadata", "annotations")
	release, _ := annotations.(map[string]any)
	f := &plan.Fault{Code: OwnedByOther, ID: at.ID}
	switch set := labels[partOf]; {
	case set != "" && set != applySetOf(s.site):
		f.Cause = fmt.Sprintf("it belongs to another ApplySet (%s)", set)
		f.Hint = "a site that was renamed keeps its objects under the old name; or take the label " + partOf + " away to hand the object over"
	case set == "" && labels["app.kubernetes.io/managed-by"] == "Helm" && release["meta.helm.sh/release-name"] != nil:
		f.Cause = fmt.Sprintf("it belongs to the Helm release %v", release["meta.helm.sh/release-name"])
		f.Hint = "uninstall the release with --keep-history and keep its objects, or take the object out of the site repo"
	default:
		return nil
	}
	return f
}

// maxCorrections is how often in a minute drift of one object is corrected
// before we stop and say so, as Config Sync does (KNV2005).
const maxCorrections = 5

func (s *System) fight(id plan.ID, seen *live) *plan.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	recent := s.recent(id)
	if len(recent) < maxCorrections {
		return nil
	}
	var others []string
	for _, e := range seen.entries {
		if !strings.HasPrefix(e.Manager, Manager) && e.Subresource == "" {
			others = append(others, e.Manager)
		}
	}
	return &plan.Fault{Code: Fight, ID: id,
		Cause: fmt.Sprintf("it was corrected %d times within a minute and changed again each time by %s",
			len(recent), strings.Join(slices.Compact(others), ", ")),
		Hint: "it is left alone until that ends: take the field out of the site repo, or stop the other side"}
}

// recent drops the corrections older than a minute and returns the others.
func (s *System) recent(id plan.ID) []time.Time {
	since := s.Now().Add(-time.Minute)
	recent := slices.DeleteFunc(s.corrections[id], func(t time.Time) bool { return t.Before(since) })
	if s.corrections[id] = recent; len(recent) == 0 {
		delete(s.corrections, id)
	}
	return recent
}

// notes are what people should know of an object, as it is and as git declares it.
func notes(o plan.Object, r *record) (notes []*plan.Fault) {
	if r.foreign != "" {
		notes = append(notes, &plan.Fault{Code: ForeignFields, ID: o.ID, Cause: "others hold fields that git does not know: " + r.foreign,
			Hint: "declare them in the site repo, or remove them by hand"})
	}
	if _, declared, _ := unstructured.NestedFieldNoCopy(o.Spec, "spec", "replicas"); declared && r.scaled {
		notes = append(notes, &plan.Fault{Code: ScaledElsewhere, ID: o.ID, Field: "spec.replicas",
			Cause: "an autoscaler holds it, and it is left alone", Hint: "take it out of the site repo"})
	}
	return notes
}

// patch applies an object on the server's side: for real, or as a trial.
func (s *System) patch(ctx context.Context, mapping *meta.RESTMapping, id plan.ID, object *unstructured.Unstructured, trial bool) (*unstructured.Unstructured, error) {
	body, err := json.Marshal(object.Object)
	if err != nil {
		return nil, err
	}
	force := true
	options := metav1.PatchOptions{FieldManager: Manager, Force: &force, FieldValidation: metav1.FieldValidationStrict}
	if trial {
		options.DryRun = []string{metav1.DryRunAll}
	}
	return s.at(mapping, id).Patch(ctx, nameOf(id), types.ApplyPatchType, body, options)
}
