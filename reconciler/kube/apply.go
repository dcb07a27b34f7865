package kube

import (
	"context"
	"fmt"
	"maps"
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
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/csaupgrade"
)

// How long Apply waits for a consequence of its own write.
const (
	establishTimeout = 30 * time.Second // a CRD begins to serve its kind
	goneTimeout      = 5 * time.Second  // a deleted object is gone; finalizers may take longer, and the next round sees them
	pollInterval     = 20 * time.Millisecond
)

// Apply carries out one change.
func (s *System) Apply(ctx context.Context, c plan.Change) error {
	err := s.apply(ctx, c)
	if f, ok := err.(*plan.Fault); ok {
		return hush(f, c.Want, c.Have)
	}
	return err
}

func (s *System) apply(ctx context.Context, c plan.Change) error {
	kind := kindOf(c.ID)
	mapping, err := s.mapping(kind)
	if meta.IsNoMatchError(err) {
		s.mapper.Reset() // its CRD may have come in this very plan
		mapping, err = s.mapping(kind)
	}
	if meta.IsNoMatchError(err) && c.Want == nil {
		return nil // gone with its CRD
	}
	if err != nil {
		return fault(c.ID, fmt.Errorf("discover its kind: %w", err))
	}
	if c.Want != nil {
		if err := s.admit(ctx, c.ID, namespaceOf(c.Want.Spec)); err != nil {
			return fault(c.ID, err)
		}
	}
	switch c.Action() {
	case plan.Create:
		return s.create(ctx, mapping, c)
	case plan.Update:
		return s.update(ctx, mapping, c)
	case plan.Replace:
		if err := s.delete(ctx, mapping, c); err != nil {
			return err
		}
		return s.create(ctx, mapping, plan.Change{ID: c.ID, Want: c.Want})
	default:
		return s.delete(ctx, mapping, c)
	}
}

// admit sees to it that the parent lists the kind and the namespace of an
// object before the object is written. The CRD of the parent and the parent
// itself cannot wait for that; they are listed with the parent.
func (s *System) admit(ctx context.Context, id plan.ID, namespace string) error {
	s.admission.Lock()
	defer s.admission.Unlock()
	if s.parent.has(kindOf(id), namespace) || id == siteCRD {
		return nil
	}
	next := *s.parent
	next.kinds, next.namespaces = maps.Clone(next.kinds), maps.Clone(next.namespaces)
	next.add(id, namespace)
	next.add(siteCRD, "")
	if err := next.write(ctx, s.dynamic, s.site); err != nil {
		return err
	}
	s.parent = &next
	return nil
}

func (s *System) create(ctx context.Context, mapping *meta.RESTMapping, c plan.Change) error {
	want := c.Want.Handle.(*draft)
	at, err := s.at(mapping, c.ID).Get(ctx, nameOf(c.ID), metav1.GetOptions{})
	switch {
	case err == nil && c.ID.Kind == siteKind && at.GetAnnotations()[appliedAnnotation] == "":
		// Only our own book-keeping is in it, see admit.
	case err == nil && newRecord(at).proves(want.hash):
		return nil // applied before
	case err == nil && !strings.HasPrefix(at.GetAnnotations()[appliedAnnotation], want.hash):
		return plan.StaleChange(c.ID, "something of that name is there now")
	case err != nil && !apierrors.IsNotFound(err):
		return fault(c.ID, err)
	}
	return s.write(ctx, mapping, c, want, "", "")
}

func (s *System) update(ctx context.Context, mapping *meta.RESTMapping, c plan.Change) error {
	want, seen := c.Want.Handle.(*draft), c.Have.Handle.(*live)
	version := seen.version
	for {
		err := s.write(ctx, mapping, c, want, seen.uid, version)
		if f, ok := err.(*plan.Fault); !ok || f.Code != plan.Stale {
			return err
		}
		// Status changes move the version too: only what we compare counts.
		now, err := s.at(mapping, c.ID).Get(ctx, nameOf(c.ID), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return plan.StaleChange(c.ID, "it is gone")
		case err != nil:
			return fault(c.ID, err)
		case newRecord(now).proves(want.hash):
			return nil // applied before
		case changedSince(c, now, version):
			return plan.StaleChange(c.ID, "it changed since it was planned")
		}
		version = now.GetResourceVersion()
	}
}

// changedSince reports whether an object, after a conflict at a version, is no
// longer what the change was planned for.
func changedSince(c plan.Change, now *unstructured.Unstructured, version string) bool {
	planned := settle(&unstructured.Unstructured{Object: c.Have.Spec}) // without our record, if it is shown
	return now.GetUID() != c.Have.Handle.(*live).uid || now.GetResourceVersion() == version || !reflect.DeepEqual(settle(now), planned)
}

// write applies an object and waits until what needs it can go on. A uid and a
// version make the server refuse when the object is another one by now.
func (s *System) write(ctx context.Context, mapping *meta.RESTMapping, c plan.Change, want *draft, uid types.UID, version string) error {
	if uid != "" {
		if err := s.migrate(ctx, mapping, c); err != nil {
			return err
		}
	}
	object := want.with(want.fields)
	if version != "" && !c.Have.Handle.(*live).migrated() {
		object.SetResourceVersion(version)
	}
	object.SetUID(uid)
	answer, err := s.patch(ctx, mapping, c.ID, object, false)
	if err != nil {
		return fault(c.ID, err)
	}
	if fields := ownFields(answer.GetManagedFields()); fields != want.fields {
		// The server could not be asked before, or an admission webhook answers
		// otherwise in earnest: the record is set right.
		if answer, err = s.patch(ctx, mapping, c.ID, want.with(fields), false); err != nil {
			return fault(c.ID, err)
		}
	}
	if w := s.watchers[mapping.Resource]; w != nil {
		w.wrote(newRecord(answer))
	}
	s.correct(c, want)
	if c.ID.Kind == crdKind {
		return s.establish(ctx, mapping, c.ID)
	}
	return nil
}

// correct counts a correction of drift, see fight.
func (s *System) correct(c plan.Change, want *draft) {
	if c.Have == nil {
		return
	}
	if hash, _, _ := strings.Cut(c.Have.Handle.(*live).applied, "."); hash == want.hash {
		s.mu.Lock()
		s.corrections[c.ID] = append(s.recent(c.ID), s.Now())
		s.mu.Unlock()
	}
}

// migrated reports whether migrate changed the object before it was applied.
func (l *live) migrated() bool {
	return l.fields == "" && slices.ContainsFunc(l.entries, func(e metav1.ManagedFieldsEntry) bool {
		return e.Operation == metav1.ManagedFieldsOperationUpdate && e.Manager == clientSideApply
	})
}

// clientSideApply is the field manager of kubectl apply without --server-side.
const clientSideApply = "kubectl-client-side-apply"

// migrate takes over, at adoption, the fields of kubectl's client-side apply;
// otherwise what git drops later would stay as that manager's for ever.
func (s *System) migrate(ctx context.Context, mapping *meta.RESTMapping, c plan.Change) error {
	seen := c.Have.Handle.(*live)
	if !seen.migrated() {
		return nil
	}
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetManagedFields(seen.entries)
	object.SetResourceVersion(seen.version)
	body, err := csaupgrade.UpgradeManagedFieldsPatch(object, sets.New(clientSideApply), Manager)
	if err != nil || body == nil {
		return err
	}
	_, err = s.at(mapping, c.ID).Patch(ctx, nameOf(c.ID), types.JSONPatchType, body, metav1.PatchOptions{FieldManager: Manager})
	if err != nil {
		return fault(c.ID, err)
	}
	return nil
}

// establish waits until a CRD serves its kind, and has the kind discovered.
func (s *System) establish(ctx context.Context, mapping *meta.RESTMapping, id plan.ID) error {
	var last string
	err := wait.PollUntilContextTimeout(ctx, pollInterval, establishTimeout, true, func(ctx context.Context) (bool, error) {
		crd, err := s.at(mapping, id).Get(ctx, nameOf(id), metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
		established := false
		for _, c := range conditions {
			condition, _ := c.(map[string]any)
			switch condition["type"] {
			case "Established":
				established = condition["status"] == "True"
			case "NamesAccepted":
				if condition["status"] == "False" {
					last = fmt.Sprintf(": %v", condition["message"])
				}
			}
		}
		if !established {
			return false, nil
		}
		s.mapper.Reset()
		group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
		kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
		_, err = s.mapper.RESTMapping(kindOf(plan.ID{Kind: kind + "." + group}))
		return err == nil, nil
	})
	if err != nil {
		return &plan.Fault{Code: NotEstablished, ID: id, Cause: "the server does not serve its kind" + last,
			Hint: "see the conditions of the CRD; what needs it waits"}
	}
	return nil
}

func (s *System) delete(ctx context.Context, mapping *meta.RESTMapping, c plan.Change) error {
	seen := c.Have.Handle.(*live)
	version := seen.version
	background := metav1.DeletePropagationBackground
	for {
		err := s.at(mapping, c.ID).Delete(ctx, nameOf(c.ID), metav1.DeleteOptions{
			PropagationPolicy: &background,
			Preconditions:     &metav1.Preconditions{UID: &seen.uid, ResourceVersion: &version},
		})
		if apierrors.IsNotFound(err) {
			s.forget(mapping, c.ID)
			return nil
		}
		if err == nil {
			return s.gone(ctx, mapping, c.ID, seen.uid)
		}
		if !apierrors.IsConflict(err) {
			return fault(c.ID, err)
		}
		now, err := s.at(mapping, c.ID).Get(ctx, nameOf(c.ID), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fault(c.ID, err)
		case changedSince(c, now, version):
			return plan.StaleChange(c.ID, "it changed since it was planned")
		}
		version = now.GetResourceVersion()
	}
}

// gone waits for the end of a deleted object. One that a finalizer holds is
// left to the next round.
func (s *System) gone(ctx context.Context, mapping *meta.RESTMapping, id plan.ID, uid types.UID) error {
	err := wait.PollUntilContextTimeout(ctx, pollInterval, goneTimeout, true, func(ctx context.Context) (bool, error) {
		now, err := s.at(mapping, id).Get(ctx, nameOf(id), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return true, nil
		case err != nil:
			return false, nil // deleted all the same; the next round looks again
		}
		return now.GetUID() != uid, nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		s.forget(mapping, id)
	}
	if id.Kind == crdKind {
		s.mapper.Reset()
	}
	return nil
}

func (s *System) forget(mapping *meta.RESTMapping, id plan.ID) {
	if w := s.watchers[mapping.Resource]; w != nil {
		w.deleted(id.Name)
	}
}
