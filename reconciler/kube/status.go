package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Field managers of what is not git's.
const (
	statusManager  = Manager + "-status"
	suspendManager = Manager + "-suspend"
)

// suspendedAnnotation stops all changes while it is on the Site object: a
// Suspension as JSON.
const suspendedAnnotation = plan.Group + "/suspended"

// Suspension says who stopped a site, why and when.
type Suspension struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// ReadStatus is the status of a Site in the cluster and its suspension, nil
// where it has none. A cluster without the Site gives zero values.
func (s *System) ReadStatus(ctx context.Context, site string) (plan.SiteStatus, *Suspension, error) {
	p, err := readParent(ctx, s.dynamic, site)
	if err != nil {
		return plan.SiteStatus{}, nil, err
	}
	return p.status, p.suspension, nil
}

// LastStatus is what ReadStatus gave when the last Observe read the Site.
func (s *System) LastStatus() (plan.SiteStatus, *Suspension) {
	if s.parent == nil {
		return plan.SiteStatus{}, nil
	}
	return s.parent.status, s.parent.suspension
}

func decodeStatus(object *unstructured.Unstructured) (status plan.SiteStatus, suspension *Suspension, err error) {
	if body, ok := object.Object["status"]; ok {
		data, err := json.Marshal(body)
		if err == nil {
			err = json.Unmarshal(data, &status)
		}
		if err != nil {
			return status, nil, fmt.Errorf("read the status of Site %s: %w", object.GetName(), err)
		}
	}
	status.ObservedGeneration = object.GetGeneration()
	return status, SuspensionOf(object), nil
}

// SuspensionOf is the suspension that a Site object has, nil for none.
func SuspensionOf(site *unstructured.Unstructured) *Suspension {
	text := site.GetAnnotations()[suspendedAnnotation]
	if text == "" {
		return nil
	}
	s := &Suspension{}
	if json.Unmarshal([]byte(text), s) != nil {
		s = &Suspension{Reason: text} // written by hand: it stops the site all the same
	}
	return s
}

// SiteNames are the names of the Site objects in the cluster: one, or none
// before a site has come up.
func (s *System) SiteNames(ctx context.Context) (names []string, err error) {
	list, err := s.dynamic.Resource(sitesResource()).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the sites of the cluster: %w", err)
	}
	for _, item := range list.Items {
		names = append(names, item.GetName())
	}
	return names, nil
}

// WriteStatus records the status on the Site object, and with it which kinds
// were proved in sync in which epoch; kinds of which nothing is left are struck
// from the list of ours. A Site that is not there yet is left out.
func (s *System) WriteStatus(ctx context.Context, site string, status plan.SiteStatus) error {
	if err := s.strike(ctx, site); err != nil {
		return err
	}
	if s.parent != nil && s.site == site {
		status.Verified = maps.Clone(s.parent.verified)
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": plan.APIVersion, "kind": "Site", "metadata": map[string]any{"name": site}, "status": status,
	})
	if err != nil {
		return err
	}
	force := true
	_, err = s.dynamic.Resource(sitesResource()).Patch(ctx, site, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: statusManager, Force: &force}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of Site %s: %w", site, err)
	}
	if s.parent != nil && s.site == site {
		s.parent.status = status
	}
	return nil
}

// strike takes from the parent what the last Observe found nothing of, and what
// the site it was for did not want: since then nothing of that can have been
// written.
func (s *System) strike(ctx context.Context, site string) error {
	s.admission.Lock()
	defer s.admission.Unlock()
	if s.parent == nil || s.site != site || len(s.parent.kinds) == 0 {
		return nil
	}
	if maps.Equal(s.parent.kinds, s.used.kinds) && maps.Equal(s.parent.namespaces, s.used.namespaces) {
		return nil
	}
	next := *s.parent
	next.kinds, next.namespaces = s.used.kinds, s.used.namespaces
	if err := next.write(ctx, s.dynamic, site); err != nil {
		return err
	}
	s.parent = &next
	return nil
}

// Event tells people something about the site, with a Kubernetes event on the
// Site object. Warning marks what needs someone's care.
func (s *System) Event(ctx context.Context, site string, warning bool, reason plan.Code, note string) error {
	kind := "Normal"
	if warning {
		kind = "Warning"
	}
	if len(note) > 1000 { // the API takes 1,024 bytes
		note = strings.ToValidUTF8(note[:1000], "") + "…"
	}
	now := s.Now()
	host, _ := os.Hostname()
	event := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "events.k8s.io/v1", "kind": "Event",
		"metadata":            map[string]any{"name": fmt.Sprintf("%s.%x", site, now.UnixNano()), "namespace": metav1.NamespaceDefault},
		"eventTime":           now.UTC().Format(metav1.RFC3339Micro),
		"type":                kind,
		"reason":              string(reason),
		"action":              "Reconcile",
		"note":                note,
		"regarding":           map[string]any{"apiVersion": plan.APIVersion, "kind": "Site", "name": site},
		"reportingController": plan.Group + "/reconcile",
		"reportingInstance":   "reconcile-" + host,
	}}
	events := schema.GroupVersionResource{Group: "events.k8s.io", Version: "v1", Resource: "events"}
	if _, err := s.dynamic.Resource(events).Namespace(metav1.NamespaceDefault).Create(ctx, event, metav1.CreateOptions{FieldManager: statusManager}); err != nil {
		return fmt.Errorf("record event %s: %w", reason, err)
	}
	return nil
}

// WhoAmI is the name under which the API server knows us.
func (s *System) WhoAmI(ctx context.Context) (string, error) {
	review := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}}
	answer, err := s.dynamic.Resource(schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: "selfsubjectreviews"}).
		Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("ask the cluster who we are: %w", err)
	}
	name, _, _ := unstructured.NestedString(answer.Object, "status", "userInfo", "username")
	return name, nil
}

// ProofsChanged reports whether WriteStatus would record other proofs than a
// status has.
func (s *System) ProofsChanged(status plan.SiteStatus) bool {
	return s.parent != nil && !maps.Equal(s.parent.verified, status.Verified)
}

// SameStatus reports whether two statuses tell the same but for the time.
func SameStatus(a, b plan.SiteStatus) bool {
	a.LastRound, b.LastRound, a.Verified, b.Verified = time.Time{}, time.Time{}, nil, nil
	return reflect.DeepEqual(a, b)
}

// Suspend stops all changes to a site; nil lets them go on.
func (s *System) Suspend(ctx context.Context, site string, suspension *Suspension) error {
	var value any
	if suspension != nil {
		data, err := json.Marshal(suspension)
		if err != nil {
			return err
		}
		value = string(data)
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{suspendedAnnotation: value}}})
	if err != nil {
		return err
	}
	_, err = s.dynamic.Resource(sitesResource()).Patch(ctx, site, types.MergePatchType, body, metav1.PatchOptions{FieldManager: suspendManager})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("suspend: the cluster has no Site %s yet: nothing of it is reconciled", site)
	}
	if err != nil {
		return fmt.Errorf("suspend or resume Site %s: %w", site, err)
	}
	return nil
}
