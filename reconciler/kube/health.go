package kube

import (
	"context"
	"slices"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NotReady is the code of an object that is as declared and does not work (yet).
const NotReady plan.Code = "NotReady"

// examined is what the last look at an object told, for one version of it.
type examined struct {
	uid     types.UID
	version string
	fault   *plan.Fault // nil where it works
}

// Examine tells which of the site's objects do not work, by the rules of
// kstatus. Only objects that moved since the last look are read.
func (s *System) Examine(ctx context.Context, site *plan.Site) []*plan.Fault {
	var ask []plan.ID
	known := map[plan.ID]examined{}
	for id := range site.Objects.Of(plan.Objects) {
		if hasNoStatus(id.Kind) {
			continue
		}
		r := s.recordOf(ctx, id)
		if r == nil {
			continue // not there: the plan says so
		}
		if before, ok := s.examined[id]; ok && before.uid == r.uid && before.version == r.version {
			known[id] = before
			continue
		}
		ask = append(ask, id)
	}
	_, _ = s.each(ctx, ask, func(id plan.ID) (*plan.Object, *plan.Fault) {
		e, f := s.examine(ctx, id)
		if f == nil {
			s.mu.Lock()
			known[id] = e
			s.mu.Unlock()
		}
		return nil, f
	})
	s.examined = known
	var faults []*plan.Fault
	for _, e := range known {
		if e.fault != nil {
			faults = append(faults, e.fault)
		}
	}
	plan.SortFaults(faults)
	return faults
}

func (s *System) examine(ctx context.Context, id plan.ID) (examined, *plan.Fault) {
	mapping, err := s.mapping(kindOf(id))
	if err != nil {
		return examined{}, fault(id, err)
	}
	object, err := s.at(mapping, id).Get(ctx, nameOf(id), metav1.GetOptions{})
	if err != nil {
		return examined{}, fault(id, err)
	}
	e := examined{uid: object.GetUID(), version: object.GetResourceVersion()}
	if verdict, err := status.Compute(object); err == nil && verdict.Status != status.CurrentStatus {
		e.fault = &plan.Fault{Code: NotReady, ID: id, Cause: string(verdict.Status) + ": " + verdict.Message}
	}
	return e, nil
}

// recordOf is what the watch of its kind last saw of an object, nil for nothing.
func (s *System) recordOf(ctx context.Context, id plan.ID) *record {
	mapping, err := s.mapping(kindOf(id))
	if err != nil {
		return nil
	}
	w := s.watchers[mapping.Resource]
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.records[id.Name]
}

// hasNoStatus lists the kinds, common by the thousand, that can only work.
func hasNoStatus(kind string) bool {
	return slices.Contains([]string{"ConfigMap", "Secret", "ServiceAccount", siteKind, "Desktop." + plan.Group,
		"Role.rbac.authorization.k8s.io", "RoleBinding.rbac.authorization.k8s.io",
		"ClusterRole.rbac.authorization.k8s.io", "ClusterRoleBinding.rbac.authorization.k8s.io",
		"NetworkPolicy.networking.k8s.io", "PriorityClass.scheduling.k8s.io", "LimitRange"}, kind)
}
