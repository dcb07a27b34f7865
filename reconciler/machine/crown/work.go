package crown

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The work on machines: what would have to move if one was crowned, and what would
// be away meanwhile.

// work counts the Pods, and weighs the copies of volumes, where that matters: who is chosen as heir depends on it,
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
	copies, err := k.copies(ctx)
	if err != nil {
		return err
	}
	for i := range o.Machines {
		m := &o.Machines[i]
		m.Displaced += copies[m.Name]
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
	return onOneMachine(volumes.Items), nil
}

// volumeLabel is on the PersistentVolumes of our own volumes: their hostPath is the
// same on every machine that mounts the volume.
const volumeLabel = plan.Group + "/volume"

func onOneMachine(volumes []corev1.PersistentVolume) (claims map[string]bool) {
	claims = map[string]bool{}
	for _, v := range volumes {
		if _, everywhere := v.Labels[volumeLabel]; everywhere {
			continue
		}
		if c := v.Spec.ClaimRef; c != nil && (v.Spec.NodeAffinity != nil || v.Spec.HostPath != nil || v.Spec.Local != nil) {
			claims[c.Namespace+"/"+c.Name] = true
		}
	}
	return claims
}

// volume is what is read of a Volume: where its copies are to be, and where they
// are. Rooms do not know each other's types, and need not: the object is the contract.
type volume struct {
	Spec struct {
		Bricks []brick `json:"bricks"`
	} `json:"spec"`
	Status struct {
		Bricks []brick `json:"bricks"`
	} `json:"status"`
}

type brick struct {
	Machine string `json:"machine"`
	Online  bool   `json:"online"`
}

// copies are what the copies of volumes on each machine weigh, in the cores of
// roles.Machine.Displaced: a machine that is crowned is away for some minutes.
func (k *Keeper) copies(ctx context.Context) (weights map[string]float64, err error) {
	list, err := k.dynamic.Resource(volumesResource()).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil // the cluster does not serve the kind
	}
	if err != nil {
		return nil, fmt.Errorf("list volumes of %s: %w", plan.Group, err)
	}
	weights = map[string]float64{}
	for i := range list.Items {
		var v volume
		text, err := list.Items[i].MarshalJSON()
		if err == nil {
			err = json.Unmarshal(text, &v)
		}
		if err != nil {
			return nil, fmt.Errorf("read Volume %s: %w", list.Items[i].GetName(), err)
		}
		v.weigh(weights)
	}
	return weights, nil
}

func volumesResource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: plan.Group, Version: "v1alpha1", Resource: "volumes"}
}

// What a copy weighs: little where the volume can be written without it, for it has
// to catch up afterwards, and else more than the Pods of any usual machine.
const (
	spareCopy  = .5
	neededCopy = 10
)

// weigh adds what the copies of a volume weigh. One that is not made yet holds
// nothing that anybody needs.
func (v *volume) weigh(weights map[string]float64) {
	counted := map[string]bool{}
	for _, b := range slices.Concat(v.Status.Bricks, v.Spec.Bricks) {
		if b.Machine == "" || counted[b.Machine] {
			continue
		}
		counted[b.Machine] = true
		if v.needs(b.Machine) {
			weights[b.Machine] += neededCopy
		} else {
			weights[b.Machine] += spareCopy
		}
	}
}

// needs reports whether a machine has a copy without which those that run are no
// majority.
func (v *volume) needs(machine string) bool {
	has, others := false, 0
	for _, b := range v.Status.Bricks {
		if b.Machine == machine {
			has = true
		} else if b.Online {
			others++
		}
	}
	return has && 2*others <= len(v.Status.Bricks)
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
