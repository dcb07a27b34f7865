package crown

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The work on machines: what would have to move if one was crowned.

// work counts the Pods, where that matters: who is chosen as heir depends on it,
// and whether it is drained. A site that rests is not asked for all its Pods every
// few seconds.
func (k *Keeper) work(ctx context.Context, r *reading) error {
	o := &r.observed
	rests := len(o.Members) == max(1, r.declared.Masters)
	for _, m := range o.Members {
		rests = rests && m.Answers && !m.Learner &&
			slices.ContainsFunc(r.declared.Machines, func(d roles.Declaration) bool { return d.Name == m.Name })
	}
	for _, c := range o.Crowns {
		rests = rests && !c.Open()
	}
	for _, d := range r.declared.Machines {
		rests = rests && (d.Master != roles.Never || r.machines[d.Name].Spec.Role != roles.Master)
	}
	if rests {
		return nil
	}
	pods, err := k.core.Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	pinned, err := k.pinned(ctx)
	if err != nil {
		return err
	}
	for i := range o.Machines {
		m := &o.Machines[i]
		var bound, alone []string
		for p := range pods.Items {
			pod := &pods.Items[p]
			if pod.Spec.NodeName != m.Name || !evictable(pod) {
				continue
			}
			m.Pods++
			m.Displaced += weight(pod)
			if metav1.GetControllerOf(pod) == nil {
				alone = append(alone, pod.Namespace+"/"+pod.Name)
			}
			for _, v := range pod.Spec.Volumes {
				if c := v.PersistentVolumeClaim; c != nil && pinned[pod.Namespace+"/"+c.ClaimName] {
					bound = append(bound, pod.Namespace+"/"+pod.Name)
				}
			}
		}
		if len(bound) > 0 {
			m.Pinned = "the data of " + strings.Join(slices.Compact(bound), ", ") + " are on its disk"
		}
		if len(alone) > 0 { // kubectl drain would want --force
			m.Pinned = "nobody would start " + strings.Join(alone, ", ") + " again"
		}
		m.Stuck = k.stuck[m.Name]
	}
	return nil
}

// pinned are the claims, by namespace and name, whose volume is on one machine alone.
func (k *Keeper) pinned(ctx context.Context) (claims map[string]bool, err error) {
	volumes, err := k.core.PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	claims = map[string]bool{}
	for _, v := range volumes.Items {
		if c := v.Spec.ClaimRef; c != nil && (v.Spec.NodeAffinity != nil || v.Spec.HostPath != nil || v.Spec.Local != nil) {
			claims[c.Namespace+"/"+c.Name] = true
		}
	}
	return claims, nil
}

// evictable reports whether a drain moves a Pod, as kubectl drain has it: not one
// of a DaemonSet, which would come back at once, nor a static one, nor one that has
// ended.
func evictable(pod *corev1.Pod) bool {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return false
	}
	if _, static := pod.Annotations[corev1.MirrorPodAnnotationKey]; static {
		return false
	}
	owner := metav1.GetControllerOf(pod)
	return owner == nil || owner.Kind != "DaemonSet"
}

// weight of a Pod: the cores that it asks for, those of low priority a quarter.
func weight(pod *corev1.Pod) float64 {
	var cores float64
	for _, c := range pod.Spec.Containers {
		cores += c.Resources.Requests.Cpu().AsApproximateFloat64()
	}
	cores = max(cores, .1) // it has to move all the same
	if p := pod.Spec.Priority; p != nil && *p < 0 {
		cores /= 4
	}
	return cores
}

// drain asks for the eviction of all Pods of a machine, once, and notes what
// refused: their budgets decide. It waits for nothing; what is left is counted at
// the next look.
func (k *Keeper) drain(ctx context.Context, name string) error {
	pods, err := k.core.Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name})
	if err != nil {
		return fmt.Errorf("list the pods of %s: %w", name, err)
	}
	var stuck []string
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !evictable(pod) || pod.DeletionTimestamp != nil {
			continue
		}
		err := k.core.Pods(pod.Namespace).EvictV1(ctx, &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}},
		})
		switch {
		case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
		case apierrors.IsTooManyRequests(err):
			stuck = append(stuck, pod.Namespace+"/"+pod.Name)
		default:
			return fmt.Errorf("evict pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	delete(k.stuck, name)
	if len(stuck) > 0 {
		k.stuck[name] = "the disruption budgets of " + strings.Join(stuck, ", ")
	}
	return nil
}
