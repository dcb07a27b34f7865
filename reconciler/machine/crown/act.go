package crown

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// act carries one step out, or begins it: what takes its time is found done, or not
// yet, by the next look. Each done twice is done once.
func (k *Keeper) act(ctx context.Context, r *reading, s *roles.Step) error {
	switch s.Do {
	case roles.Cordon:
		return k.cordon(ctx, r.nodes[s.Machine], s.Crown)
	case roles.Uncordon:
		return k.cordon(ctx, r.nodes[s.Machine], "")
	case roles.Prepull:
		return k.orderOf(ctx, r, s.Machine, func(o *machine.Orders) { o.Prepull = s.Crown })
	case roles.Drain:
		return k.drain(ctx, s.Machine)
	case roles.Reset:
		return k.orderOf(ctx, r, s.Machine, func(o *machine.Orders) { o.Reset = s.Crown })
	case roles.DeleteNode:
		return k.deleteNode(ctx, r.nodes[s.Machine])
	case roles.RemoveMember:
		cluster, err := k.etcd(ctx)
		if err != nil {
			return err
		}
		return cluster.Remove(ctx, r.masters, s.Member, s.PeerURL)
	case roles.MoveLeader:
		cluster, err := k.etcd(ctx)
		if err != nil {
			return err
		}
		for _, m := range r.observed.Members {
			if m.Name == s.To {
				return cluster.MoveLeader(ctx, r.masters, m.ID)
			}
		}
		return fmt.Errorf("%s is no member of etcd", s.To)
	case roles.Fence:
		// The label first: with the role written the step counts as done.
		if err := k.unlabel(ctx, r.nodes[s.Machine]); err != nil {
			return err
		}
		return k.assign(ctx, r, s.Machine, roles.Worker, s.Generation)
	case roles.Join:
		return k.assign(ctx, r, s.Machine, roles.Master, s.Generation)
	case roles.IssueKey:
		return k.issueKey(ctx, r, s.Machine, s.Boot)
	case roles.JoinWorker:
		m, ok := r.machines[s.Machine]
		if !ok {
			return fmt.Errorf("there is no Machine %s", s.Machine)
		}
		return k.invite(ctx, s.Machine, m.Status.Inventory.BootID)
	case roles.Cleanup:
		return k.cleanup(ctx, r)
	case roles.Snapshot:
		return k.snapshot(ctx, r, s.Crown)
	case roles.Withdraw:
		return k.orderOf(ctx, r, s.Machine, func(o *machine.Orders) { o.Reset = "" })
	case roles.Label:
		return k.label(ctx, r.nodes[s.Machine])
	case roles.Repair:
		return k.orderOf(ctx, r, s.Machine, func(o *machine.Orders) { o.RestartKubelet = k.Now().UTC().Format(time.RFC3339) })
	}
	return nil // Choose, Recheck, Verify, Cancel, RollBack, Close: the record is all there is to do
}

// assign writes a role: over a smaller generation only, and only over the Machine
// that was read.
func (k *Keeper) assign(ctx context.Context, r *reading, name, role string, generation int64) error {
	m, ok := r.machines[name]
	if !ok {
		return fmt.Errorf("there is no Machine %s to give a role to", name)
	}
	if m.Spec.RoleGeneration >= generation {
		return nil
	}
	return k.patch(ctx, m, map[string]any{"role": role, "roleGeneration": generation})
}

// order gives the agent of a machine an order.
func (k *Keeper) order(ctx context.Context, m kept, change func(*machine.Orders)) error {
	orders := m.Spec.Orders
	change(&orders)
	if orders == m.Spec.Orders {
		return nil
	}
	return k.patch(ctx, m, map[string]any{"orders": orders})
}

func (k *Keeper) orderOf(ctx context.Context, r *reading, name string, change func(*machine.Orders)) error {
	m, ok := r.machines[name]
	if !ok {
		return fmt.Errorf("there is no Machine %s to give an order to", name)
	}
	return k.order(ctx, m, change)
}

// patch changes the spec of a Machine, if it still is the one that was read. What
// its agent reports meanwhile is no hindrance: only the spec counts as another
// generation.
func (k *Keeper) patch(ctx context.Context, m kept, spec map[string]any) error {
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	patch := []operation{{"test", "/metadata/uid", m.Metadata.UID}, {"test", "/metadata/generation", m.Metadata.Generation}}
	for _, field := range slices.Sorted(maps.Keys(spec)) {
		patch = append(patch, operation{"add", "/spec/" + field, spec[field]})
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	machines := k.dynamic.Resource(machine.Resource())
	_, err = machines.Patch(ctx, m.Metadata.Name, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: manager, FieldValidation: metav1.FieldValidationStrict})
	if apierrors.IsInvalid(err) { // which is how a test that fails is told
		err = fmt.Errorf("it was written by another hand meanwhile: %v", err)
	}
	if err != nil {
		return fmt.Errorf("write Machine %s: %w", m.Metadata.Name, err)
	}
	return nil
}

// cordon keeps new Pods off a Node, with a mark of the crown; "" lets them on it
// again. One that people cordoned is left as it is.
func (k *Keeper) cordon(ctx context.Context, n *corev1.Node, crown string) error {
	if n == nil {
		return nil
	}
	mark, off := any(crown), any(true)
	if crown == "" {
		if n.Annotations[CordonedBy] == "" {
			return nil
		}
		mark, off = nil, nil
	} else if n.Spec.Unschedulable {
		return nil
	}
	return k.patchNode(ctx, n, map[string]any{"annotations": map[string]any{CordonedBy: mark}}, map[string]any{"unschedulable": off})
}

// unlabel takes from a Node what makes it that of a master: what runs on masters
// alone runs there no more, and nobody is sent to its API server.
func (k *Keeper) unlabel(ctx context.Context, n *corev1.Node) error {
	if n == nil {
		return nil
	}
	if _, ok := n.Labels[machine.MasterLabel]; !ok {
		return nil
	}
	taints := []corev1.Taint{}
	for _, t := range n.Spec.Taints {
		if t.Key != machine.MasterLabel {
			taints = append(taints, t)
		}
	}
	return k.patchNode(ctx, n, map[string]any{"labels": map[string]any{machine.MasterLabel: nil}}, map[string]any{"taints": taints})
}

// label makes a master's Node one, as kubeadm would have: a join may be cut short
// before it does, and somebody may have deleted the Node.
func (k *Keeper) label(ctx context.Context, n *corev1.Node) error {
	if n == nil {
		return nil
	}
	taints := n.Spec.Taints
	if !slices.ContainsFunc(taints, func(t corev1.Taint) bool { return t.Key == machine.MasterLabel }) {
		taints = append(taints, corev1.Taint{Key: machine.MasterLabel, Effect: corev1.TaintEffectPreferNoSchedule})
	}
	return k.patchNode(ctx, n, map[string]any{"labels": map[string]any{machine.MasterLabel: ""}}, map[string]any{"taints": taints})
}

func (k *Keeper) patchNode(ctx context.Context, n *corev1.Node, metadata, spec map[string]any) error {
	metadata["uid"], metadata["resourceVersion"] = n.UID, n.ResourceVersion
	body, err := json.Marshal(map[string]any{"metadata": metadata, "spec": spec})
	if err == nil {
		_, err = k.core.Nodes().Patch(ctx, n.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: manager})
	}
	if err != nil {
		return fmt.Errorf("write Node %s: %w", n.Name, err)
	}
	return nil
}

func (k *Keeper) deleteNode(ctx context.Context, n *corev1.Node) error {
	if n == nil {
		return nil
	}
	err := k.core.Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &n.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete Node %s: %w", n.Name, err)
	}
	return nil
}

// snapshot orders one from the first master that can write it, and from another
// where that one is silent now.
func (k *Keeper) snapshot(ctx context.Context, r *reading, crown string) error {
	var first *kept
	for _, e := range r.observed.Members {
		m, ok := r.machines[e.Name]
		if !ok || !e.Answers || e.Learner || r.observed.At.Sub(m.Status.Heartbeat) > time.Minute {
			continue
		}
		if m.Spec.Orders.Snapshot == crown {
			return nil
		}
		if first == nil {
			first = &m
		}
	}
	if first == nil {
		return fmt.Errorf("no master is there whose agent could write a snapshot")
	}
	return k.order(ctx, *first, func(o *machine.Orders) { o.Snapshot = crown })
}
