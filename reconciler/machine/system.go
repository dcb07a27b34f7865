package machine

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// manager is the field manager of what the daemon writes.
const manager = "kingmaker"

// Options of a System. Config is required.
type Options struct {
	Config *rest.Config

	// Notify is called when a Node came, went, or has other labels or taints,
	// and when a Machine was changed by another hand: not for heartbeats. Nil is
	// nobody.
	Notify func()

	Log *slog.Logger     // nil is silent
	Now func() time.Time // nil is time.Now
}

// System is the system of machines: those that git declares against those that
// joined. Make one with New.
//
// An object of its plans is a Machine, with what is ours of its Node:
//
//	spec: {address: 10.0.0.17, role: worker, roleGeneration: 1}    of the Machine; absent for one that is not listed
//	node: {labels: {kingmaker.dev/role: worker}, taints: [...]}    absent while there is no Node
//
// A site whose cluster is somebody else's (spec.kubernetes.managed: false) has
// and wants nothing here.
type System struct {
	Options
	ctx    context.Context // that the watches live in
	client dynamic.Interface

	machines *watcher[stored] // nil before the first Observe
	nodes    *watcher[node]
	seen     view // by the last Observe

	mu          sync.Mutex
	corrections map[plan.ID]correction
}

// New makes a System for a cluster, without asking it anything yet. Its watches
// end with the context.
func New(ctx context.Context, o Options) (*System, error) {
	config := rest.CopyConfig(o.Config)
	config.QPS = -1 // the server's priority and fairness decides, not a guess of ours
	if o.Notify == nil {
		o.Notify = func() {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return &System{Options: o, ctx: ctx, client: client, corrections: map[plan.ID]correction{}}, nil
}

// Resource is where the cluster serves the Machines.
func Resource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: plan.Group, Version: "v1alpha1", Resource: "machines"}
}

func nodesResource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
}

// Name is plan.Machines.
func (s *System) Name() string { return plan.Machines }

// Observe is all Machines, with what is ours of their Nodes. It asks the
// cluster nothing while the watches stand.
func (s *System) Observe(ctx context.Context, site *plan.Site) (plan.State, error) {
	s.seen = view{}
	if !site.Spec.Kubernetes.IsManaged() {
		s.rest()
		return plan.State{}, nil
	}
	var err error
	if s.seen, err = s.look(ctx); err != nil {
		return nil, err
	}
	return observed(site, s.seen), nil
}

// Desire is what the site wants, given what the last Observe saw.
func (s *System) Desire(_ context.Context, site *plan.Site, have plan.State) (plan.State, error) {
	if !site.Spec.Kubernetes.IsManaged() {
		return plan.State{}, nil
	}
	want, faults := desired(site, s.seen)
	for id, o := range want {
		if f := s.fight(o, have); f != nil {
			faults = append(faults, f)
			delete(want, id)
		}
	}
	return want, plan.Join(faults)
}

// look is what there is now. A watch that broke is begun anew, so that each
// round asks for itself what is the matter.
func (s *System) look(ctx context.Context) (v view, err error) {
	if s.machines == nil || s.machines.isBroken() {
		s.rest()
		s.machines = newWatcher(s.ctx, s.client.Resource(Resource()), readMachine, s.Notify)
		s.nodes = newWatcher(s.ctx, s.client.Resource(nodesResource()), readNode, s.Notify)
	}
	if s.nodes.isBroken() {
		s.nodes.stop()
		s.nodes = newWatcher(s.ctx, s.client.Resource(nodesResource()), readNode, s.Notify)
	}
	if v.machines, err = s.machines.list(ctx); apierrors.IsNotFound(err) {
		v.unserved, err = true, nil
		s.machines.stop() // the objects of the site bring the kind; the next round asks again
	}
	if err != nil {
		return v, fmt.Errorf("list machines: %w", err)
	}
	if v.nodes, err = s.nodes.list(ctx); err != nil {
		return v, fmt.Errorf("list nodes: %w", err)
	}
	return v, nil
}

// rest ends the watches.
func (s *System) rest() {
	if s.machines != nil {
		s.machines.stop()
		s.nodes.stop()
		s.machines, s.nodes = nil, nil
	}
}

// maxCorrections is how often in a minute one thing is set right before we stop
// and say so.
const maxCorrections = 5

// Fight is the code of a machine that something else changes back again and
// again.
const Fight plan.Code = "Fight"

// correction is when a machine was made to be just so, within the last minute.
type correction struct {
	want  map[string]any
	times []time.Time
}

// correct counts a correction.
func (s *System) correct(c plan.Change) {
	if c.Have == nil || c.Want == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.corrections[c.ID] = correction{c.Want.Spec, append(s.recent(*c.Want), s.Now())}
}

// fight refuses to go on with what is undone each time.
func (s *System) fight(o plan.Object, have plan.State) *plan.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := have[o.ID]; !ok || reflect.DeepEqual(at.Spec, o.Spec) || len(s.recent(o)) < maxCorrections {
		return nil
	}
	return &plan.Fault{Code: Fight, ID: o.ID,
		Cause: fmt.Sprintf("it was corrected %d times within a minute, and changed again each time", maxCorrections),
		Hint:  "it is left alone until that ends: see metadata.managedFields of the Machine and the Node for who does it"}
}

// recent are the corrections to this very state within the last minute.
func (s *System) recent(o plan.Object) []time.Time {
	c := s.corrections[o.ID]
	since := s.Now().Add(-time.Minute)
	c.times = slices.DeleteFunc(c.times, func(t time.Time) bool { return t.Before(since) })
	if len(c.times) == 0 || !reflect.DeepEqual(c.want, o.Spec) {
		delete(s.corrections, o.ID)
		return nil
	}
	return c.times
}
