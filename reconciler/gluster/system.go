package gluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/apiwrite"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// manager is the field manager of what the daemon writes.
const manager = "kingmaker"

// NotWell is the code of a volume as declared, of which not all copies are well.
const NotWell plan.Code = "NotWell"

// System is the system of volumes: those that git declares against those of the
// cluster, which the steward of the pool makes real. Make one with New.
//
// An object of its plans is a Volume, with every choice made:
//
//	spec: {access: homes, bricks: [{machine: pc-01, address: 10.0.0.11}, ...], homes: [...], options: {...}}
//
// A site whose cluster is somebody else's (spec.kubernetes.managed: false) has and
// wants nothing here.
type System struct {
	client dynamic.Interface
	seen   view // by the last Observe

	mu   sync.Mutex
	last map[string]stored // volumes of the last Observe, for metrics
}

// New makes a System for a cluster, without asking it anything yet.
func New(config *rest.Config) (*System, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1 // the server's priority and fairness decides, not a guess of ours
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return &System{client: client}, nil
}

// Name is plan.Volumes.
func (s *System) Name() string { return plan.Volumes }

// Observe is all Volumes of the cluster.
func (s *System) Observe(ctx context.Context, site *plan.Site) (plan.State, error) {
	s.seen = view{}
	if !site.Spec.Kubernetes.IsManaged() {
		return plan.State{}, nil
	}
	v, err := look(ctx, s.client)
	if err != nil {
		return nil, err
	}
	s.seen = v
	s.mu.Lock()
	s.last = v.volumes
	s.mu.Unlock()
	return observed(v), nil
}

// Desire is what the site wants, given what the last Observe saw.
func (s *System) Desire(_ context.Context, site *plan.Site, _ plan.State) (plan.State, error) {
	if !site.Spec.Kubernetes.IsManaged() {
		return plan.State{}, nil
	}
	want, faults := desired(site, s.seen)
	return want, plan.Join(faults)
}

// Examine is what of the declared volumes is not well: as the steward saw it.
func (s *System) Examine(_ context.Context, site *plan.Site) (unwell []*plan.Fault) {
	for _, name := range slices.Sorted(maps.Keys(s.seen.volumes)) {
		status := s.seen.volumes[name].status
		if !site.Has(about(name)) || status.Phase == Started && status.Message == "" {
			continue
		}
		f := &plan.Fault{Code: NotWell, ID: about(name), Cause: "no steward has looked at it yet", Hint: "kubectl get volumes,pools shows more"}
		if status.Phase != "" {
			f.Cause = strings.TrimSuffix(fmt.Sprintf("it is %s: %s", status.Phase, status.Message), ": ")
		}
		unwell = append(unwell, f)
	}
	return unwell
}

// look is what there is now.
func look(ctx context.Context, client dynamic.Interface) (v view, err error) {
	v = view{at: time.Now(), machines: map[string]pc{}}
	if v.volumes, err = volumesOf(ctx, client); err != nil {
		return v, err
	}
	v.unserved = v.volumes == nil
	err = each(ctx, client, MachineResource(), func(o *unstructured.Unstructured) error {
		m, err := readMachine(o)
		v.machines[o.GetName()] = m
		return err
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return v, fmt.Errorf("list machines: %w", err)
	}
	return v, nil
}

// volumesOf are all Volumes of the cluster; nil where it does not serve the kind.
func volumesOf(ctx context.Context, client dynamic.Interface) (map[string]stored, error) {
	volumes := map[string]stored{}
	err := each(ctx, client, Resource(), func(o *unstructured.Unstructured) error {
		s, err := readVolume(o)
		volumes[o.GetName()] = s
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	return volumes, nil
}

// each goes through all objects of a resource.
func each(ctx context.Context, client dynamic.Interface, gvr schema.GroupVersionResource, do func(*unstructured.Unstructured) error) error {
	list, err := client.Resource(gvr).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		if err := do(&list.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

func readVolume(o *unstructured.Unstructured) (s stored, err error) {
	s = stored{uid: o.GetUID(), version: o.GetResourceVersion(), generation: o.GetGeneration()}
	if s.tree, _, _ = unstructured.NestedMap(o.Object, "spec"); s.tree == nil {
		s.tree = map[string]any{}
	}
	var into struct {
		Spec   Placed
		Status VolumeStatus
	}
	err = Decode(o, &into)
	s.spec, s.status = into.Spec, into.Status
	return s, err
}

func readMachine(o *unstructured.Unstructured) (m pc, err error) {
	var into struct {
		Spec struct {
			Address string
			Disk    struct{ Brick *bool }
		}
		Status struct {
			Heartbeat time.Time
			Inventory struct{ Address string }
			Brick     MachineBrick
		}
	}
	err = Decode(o, &into)
	m = pc{address: into.Status.Inventory.Address, heartbeat: into.Status.Heartbeat,
		noBrick: into.Spec.Disk.Brick != nil && !*into.Spec.Disk.Brick, brick: into.Status.Brick}
	if m.address == "" {
		m.address = into.Spec.Address
	}
	return m, err
}

// Decode reads an object of the cluster, which its CRD has checked.
func Decode(o *unstructured.Unstructured, into any) error {
	data, err := o.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("read %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

// Apply carries out one change. It refuses where the Volume is neither what was
// planned from nor what is wanted, and writes it only in the version that it has
// looked at. A volume that exists is deleted in two: the steward is told, and once
// the pool has it no more its object goes.
func (s *System) Apply(ctx context.Context, c plan.Change) error {
	return apiwrite.Try(c.ID, "volume", func() error { return s.try(ctx, c) })
}

func (s *System) try(ctx context.Context, c plan.Change) error {
	client := s.client.Resource(Resource())
	live, err := client.Get(ctx, c.ID.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		live, err = nil, nil
	}
	if err != nil {
		return err
	}
	want := specIn(c.Want)
	switch {
	case live == nil && want == nil:
		return nil
	case live == nil && c.Have != nil:
		return plan.StaleChange(c.ID, "it is gone")
	case live == nil:
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": plan.APIVersion, "kind": kind,
			"metadata": map[string]any{"name": c.ID.Name}, "spec": want}}
		_, err = client.Create(ctx, o, metav1.CreateOptions{FieldManager: manager, FieldValidation: metav1.FieldValidationStrict})
		return err
	}
	at, err := readVolume(live)
	if err != nil {
		return err
	}
	if want == nil {
		return s.remove(ctx, c, live, at)
	}
	switch {
	case reflect.DeepEqual(at.tree, want):
		return nil
	case !reflect.DeepEqual(at.tree, specIn(c.Have)):
		return plan.StaleChange(c.ID, "it changed since it was planned")
	}
	return s.update(ctx, live, want)
}

func (s *System) update(ctx context.Context, live *unstructured.Unstructured, spec map[string]any) error {
	o := live.DeepCopy()
	o.Object["spec"] = spec
	_, err := s.client.Resource(Resource()).Update(ctx, o, metav1.UpdateOptions{FieldManager: manager, FieldValidation: metav1.FieldValidationStrict})
	return err
}

// remove is a deletion as far as it can go now.
func (s *System) remove(ctx context.Context, c plan.Change, live *unstructured.Unstructured, at stored) error {
	marked := maps.Clone(at.tree)
	marked["delete"] = true
	have := maps.Clone(specIn(c.Have))
	if have != nil {
		have["delete"] = true
	}
	switch {
	case !reflect.DeepEqual(marked, have):
		return plan.StaleChange(c.ID, "it changed since it was planned")
	case at.status.ID != "" && at.status.Phase != Removed:
		if !at.spec.Delete {
			if err := s.update(ctx, live, marked); err != nil {
				return err
			}
		}
		return &plan.Fault{Code: Deleting, ID: c.ID, Cause: "the pool is deleting it", Hint: "it goes on by itself; kubectl get volumes shows how far it is"}
	}
	err := s.client.Resource(Resource()).Delete(ctx, c.ID.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &at.uid, ResourceVersion: &at.version},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// specIn is the spec of the Volume in an object of a plan, nil for none.
func specIn(o *plan.Object) map[string]any {
	if o == nil {
		return nil
	}
	spec, _ := o.Spec["spec"].(map[string]any)
	return spec
}

// Line is one volume for people.
type Line struct {
	Name   string       `json:"name"`
	Access string       `json:"access"`
	Status VolumeStatus `json:"status"`
}

// Lines are all volumes of the cluster, in order; none where it serves no such kind.
func (s *System) Lines(ctx context.Context) (lines []Line, err error) {
	volumes, err := volumesOf(ctx, s.client)
	return linesOf(volumes), err
}

// Last are the volumes that the last Observe saw. It may be called at any time.
func (s *System) Last() []Line {
	s.mu.Lock()
	defer s.mu.Unlock()
	return linesOf(s.last)
}

func linesOf(volumes map[string]stored) (lines []Line) {
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		lines = append(lines, Line{name, volumes[name].spec.Access, volumes[name].status})
	}
	return lines
}
