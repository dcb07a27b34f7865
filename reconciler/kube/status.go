package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
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
	var status plan.SiteStatus
	object, err := s.dynamic.Resource(sitesResource()).Get(ctx, site, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return status, nil, nil
	}
	if err != nil {
		return status, nil, fmt.Errorf("read Site %s: %w", site, err)
	}
	return decodeStatus(object)
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
	if text := object.GetAnnotations()[suspendedAnnotation]; text != "" {
		suspension = &Suspension{}
		if json.Unmarshal([]byte(text), suspension) != nil {
			suspension = &Suspension{Reason: text} // written by hand: it stops the site all the same
		}
	}
	return status, suspension, nil
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
// were proved in sync in which epoch. A Site that is not there yet is left out.
func (s *System) WriteStatus(ctx context.Context, site string, status plan.SiteStatus) error {
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
	return nil
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
