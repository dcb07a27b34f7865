package machine

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/apiwrite"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// Apply carries out one change. It looks at the Machine and the Node as they
// are, refuses where one is neither what was planned from nor what is wanted,
// and writes each only in the version that it has looked at.
func (s *System) Apply(ctx context.Context, c plan.Change) error {
	err := apiwrite.Try(c.ID, "machine", func() error { return s.try(ctx, c) })
	if err == nil {
		s.correct(c)
	}
	return err
}

func (s *System) try(ctx context.Context, c plan.Change) error {
	l, err := s.get(ctx, c.ID.Name)
	if err != nil {
		return err
	}
	steps, err := steps(c, l.machine, l.node)
	if err != nil {
		return err
	}
	for _, step := range steps {
		switch {
		case step.node != nil:
			err = s.writeNode(ctx, l, step)
		case step.spec != nil:
			err = s.writeMachine(ctx, &l, c.ID.Name, step)
		default:
			err = s.deleteMachine(ctx, l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// step is one write: of the Node where it has a part of one, of the Machine
// where it has a spec, else the deletion of the Machine.
type step struct {
	node   *part
	spec   map[string]any
	record record // of the Machine, as it is after the step
}

// steps are the writes of a change, given the Machine and the Node as they are,
// nil for none. A Stale fault says that they are something else by now.
//
//	Machine  spec, and a record grown by what the Node is to get
//	Node     labels and taints
//	Machine  the record shrunk to what the Node has; or deleted
//
// So there is never a label of ours that nobody remembers, and what was cut
// short goes on from what is there.
func steps(c plan.Change, m *stored, n *node) (steps []step, err error) {
	end := c.Want
	if end == nil {
		end = c.Have
	}
	d := end.Handle.(*draft)
	var now map[string]any
	var before record
	if m != nil {
		now, before = m.spec, m.record
	}
	want := specIn(c.Want)
	if !reflect.DeepEqual(now, specIn(c.Have)) && !reflect.DeepEqual(now, want) {
		return nil, plan.StaleChange(c.ID, "its Machine changed since it was planned")
	}
	if seen := partOf(n, before); !seen.equal(d.seen) && !seen.equal(d.want) {
		return nil, plan.StaleChange(c.ID, "its Node changed since it was planned")
	}
	grown, after := before, before
	if n != nil {
		after = d.want.record(n.uid)
		grown = before.on(n.uid).and(after)
	}
	write := func(r record) {
		if want != nil && !(reflect.DeepEqual(now, want) && reflect.DeepEqual(before, r)) {
			steps = append(steps, step{spec: want, record: r})
			now, before = want, r
		}
	}
	write(grown)
	if n != nil && !d.want.isOn(n, grown) {
		steps = append(steps, step{node: d.want, record: grown})
	}
	write(after)
	if want == nil && m != nil {
		steps = append(steps, step{})
	}
	return steps, nil
}

// live is a machine as it is: its two objects, each nil where there is none.
type live struct {
	raw     *unstructured.Unstructured // the Machine
	machine *stored
	rawNode *unstructured.Unstructured
	node    *node
}

func (s *System) get(ctx context.Context, name string) (l live, err error) {
	l.raw, err = s.client.Resource(Resource()).Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		m := readMachine(l.raw)
		l.machine = &m
	} else if !apierrors.IsNotFound(err) {
		return l, err
	}
	l.rawNode, err = s.client.Resource(nodesResource()).Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		n := readNode(l.rawNode)
		l.node = &n
	} else if !apierrors.IsNotFound(err) {
		return l, err
	}
	return l, nil
}

// specIn is the spec of the Machine in an object of a plan, nil for none.
func specIn(o *plan.Object) map[string]any {
	if o == nil {
		return nil
	}
	spec, _ := o.Spec["spec"].(map[string]any)
	return spec
}

// writeMachine makes a Machine, or gives it another spec and record.
func (s *System) writeMachine(ctx context.Context, l *live, name string, to step) (err error) {
	client := s.client.Resource(Resource())
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": plan.APIVersion, "kind": kind, "metadata": map[string]any{"name": name}}}
	if l.machine != nil {
		object = l.raw.DeepCopy()
	}
	object.Object["spec"] = to.spec
	annotations := object.GetAnnotations()
	delete(annotations, recordAnnotation)
	if to.record.Node != "" {
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[recordAnnotation] = to.record.text()
	}
	object.SetAnnotations(annotations)
	if l.machine == nil {
		l.raw, err = client.Create(ctx, object, metav1.CreateOptions{FieldManager: manager, FieldValidation: metav1.FieldValidationStrict})
	} else {
		l.raw, err = client.Update(ctx, object, metav1.UpdateOptions{FieldManager: manager, FieldValidation: metav1.FieldValidationStrict})
	}
	if err != nil {
		return err
	}
	s.machines.wrote(l.raw)
	m := readMachine(l.raw)
	l.machine = &m
	return nil
}

// writeNode makes a part of a Node ours: what is ours by the record and not in
// the part goes.
func (s *System) writeNode(ctx context.Context, l live, to step) error {
	raw, _, _ := unstructured.NestedSlice(l.rawNode.Object, "spec", "taints")
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": l.node.uid, "resourceVersion": l.node.version, "labels": patchLabels(l.node.labels, to.record, to.node.labels)},
		"spec":     map[string]any{"taints": mergeTaints(raw, to.record, to.node.taints)},
	})
	if err != nil {
		return err
	}
	written, err := s.client.Resource(nodesResource()).Patch(ctx, l.node.name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: manager})
	if apierrors.IsNotFound(err) {
		return plan.StaleChange(idOf(l.node.name), "its Node is gone")
	}
	if err != nil {
		return err
	}
	s.nodes.wrote(written)
	return nil
}

// isOn reports whether a part is on a Node, and nothing else of ours is.
func (p *part) isOn(n *node, ours record) bool { return partOf(n, ours).equal(p) }

// patchLabels is what turns a Node's labels into those with ours as they are to
// be: a value for each that differs, nil for each that goes.
func patchLabels(have map[string]string, ours record, want map[string]string) map[string]any {
	patch := map[string]any{}
	for key, value := range want {
		if at, ok := have[key]; !ok || at != value {
			patch[key] = value
		}
	}
	for key := range have {
		if _, ok := want[key]; !ok && ours.hasLabel(key) {
			patch[key] = nil
		}
	}
	return patch
}

// mergeTaints is a Node's list of taints with ours as they are to be, and all
// others as they are, in their places.
func mergeTaints(have []any, ours record, want []Taint) (merged []any) {
	missing := slices.Clone(want)
	for _, taint := range have {
		t := readTaint(taint)
		at := slices.IndexFunc(missing, func(w Taint) bool { return w.identity() == t.identity() })
		switch {
		case at >= 0 && missing[at] == t:
			merged = append(merged, taint) // with the time at which it was put on
		case at >= 0:
			merged = append(merged, missing[at].tree())
		case !ours.hasTaint(t):
			merged = append(merged, taint)
		}
		if at >= 0 {
			missing = slices.Delete(missing, at, at+1)
		}
	}
	for _, t := range missing {
		merged = append(merged, t.tree())
	}
	return merged
}

func (s *System) deleteMachine(ctx context.Context, l live) error {
	if l.machine == nil {
		return nil
	}
	err := s.client.Resource(Resource()).Delete(ctx, l.machine.name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &l.machine.uid, ResourceVersion: &l.machine.version},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	s.machines.deleted(l.machine.name)
	return nil
}
