package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// Options of a System. Config is required.
type Options struct {
	Config *rest.Config

	// Notify is called when an object of ours changed by another hand, and when
	// the cluster changed so that equality has to be proved again. Nil is nobody.
	Notify func()

	// Recheck is how long proofs hold at most in this process: what decides an
	// admission can change without a trace. Zero is for ever.
	Recheck time.Duration

	Log     *slog.Logger     // nil is silent
	Now     func() time.Time // nil is time.Now
	Workers int              // requests under way at once; default 8
}

// System is the system of Kubernetes objects. Make one with New.
type System struct {
	Options
	ctx       context.Context // that the watches live in
	discovery discovery.CachedDiscoveryInterface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	dynamic   dynamic.Interface
	metadata  metadata.Interface

	site     string    // whose objects the members below are about
	parent   *parent   // as last read, and as written since
	used     parent    // the kinds and namespaces that the last Observe met
	version  string    // of the server
	proving  time.Time // since when proofs count, see Options.Recheck
	watchers map[schema.GroupVersionResource]*watcher
	guards   map[schema.GroupVersionResource]*watcher // of what decides the epoch

	examined map[plan.ID]examined
	outdated atomic.Bool // what was discovered of the cluster's kinds

	admission sync.Mutex // one writer of the parent at a time

	mu          sync.Mutex
	hashes      map[plan.ID]hashed      // of the last site
	verdicts    map[plan.ID]verdict     // of dry-runs, for what carries no record of ours
	corrections map[plan.ID][]time.Time // within the last minute
}

// verdict remembers that the server found an object equal to what git declares.
type verdict struct {
	uid                 types.UID
	hash, fields, epoch string
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
	if o.Workers == 0 {
		o.Workers = 8
	}
	s := &System{
		Options: o, ctx: ctx, proving: o.Now(),
		watchers: map[schema.GroupVersionResource]*watcher{}, guards: map[schema.GroupVersionResource]*watcher{},
		hashes: map[plan.ID]hashed{}, verdicts: map[plan.ID]verdict{}, corrections: map[plan.ID][]time.Time{},
	}
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	if s.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	if s.metadata, err = metadata.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	s.discovery = memory.NewMemCacheClient(d)
	s.mapper = restmapper.NewDeferredDiscoveryRESTMapper(s.discovery)
	return s, nil
}

// Name is plan.Objects.
func (s *System) Name() string { return plan.Objects }

// live is the Handle of an observed object.
type live struct {
	*record
	proven  bool                        // in sync by its record; Spec is then the site's own
	entries []metav1.ManagedFieldsEntry // of one that is not proven
}

// draft is the Handle of a wanted object: what is sent to make it so.
type draft struct {
	declared
	fields string // our managedFields entry to be, as far as the dry-run told
}

// Observe finds the site's objects in the cluster: what carries our label, and
// what the site wants. What is proved in sync is not read.
func (s *System) Observe(ctx context.Context, site *plan.Site) (plan.State, error) {
	if err := s.begin(ctx, site); err != nil {
		return nil, err
	}
	wanted := site.Objects.Of(plan.Objects)
	byKind := map[schema.GroupKind][]plan.ID{}
	for id := range wanted {
		byKind[kindOf(id)] = append(byKind[kindOf(id)], id)
	}
	for kind := range s.parent.kinds {
		byKind[kind] = append(byKind[kind], nil...)
	}

	// Start all watches before waiting for the first.
	type kindRead struct {
		mapping *meta.RESTMapping
		watcher *watcher
	}
	reads, watched := map[schema.GroupKind]kindRead{}, map[schema.GroupVersionResource]bool{}
	for kind := range byKind {
		mapping, err := s.mapping(kind)
		if err != nil {
			continue // Desire says so of each object that wants the kind
		}
		watched[mapping.Resource] = true
		reads[kind] = kindRead{mapping, s.watch(s.watchers, mapping.Resource, partOf+"="+applySetOf(site.Name), s.drifted)}
	}

	for gvr, w := range s.watchers {
		if !watched[gvr] {
			w.stop() // the kind is gone, or no longer ours
			delete(s.watchers, gvr)
		}
	}

	have := plan.State{}
	var faults []*plan.Fault
	var unread []plan.ID
	used := parent{kinds: map[schema.GroupKind]bool{}, namespaces: map[string]bool{}}
	for id := range wanted {
		used.add(id, namespaceOf(wanted[id].Spec))
	}
	for kind, read := range reads {
		records, err := read.watcher.list(ctx)
		if err != nil {
			used.kinds[kind] = true // who knows
			for _, id := range byKind[kind] {
				f := fault(id, err)
				f.Code, f.Cause = KindUnreadable, "list "+read.mapping.Resource.Resource+": "+f.Cause
				faults = append(faults, f)
			}
			continue
		}
		epoch := s.epoch(kind)
		seen := map[plan.ID]bool{}
		for key, r := range records {
			id := plan.ID{System: plan.Objects, Kind: kind.String(), Name: key}
			seen[id] = true
			used.add(id, r.namespace)
			o, ok := wanted[id]
			switch {
			case r.terminating:
				faults = append(faults, &plan.Fault{Code: Terminating, ID: id, Cause: "it was deleted and is not gone yet",
					Hint: "a finalizer may hold it: see metadata.finalizers"})
			case !ok && r.owned:
				// A controller made it and copied our label: it goes with its owner.
			case ok && s.proved(id, r, s.hash(o), epoch):
				o.Handle = &live{record: r, proven: true}
				o.Identity = string(r.uid)
				have.Add(o)
			default:
				unread = append(unread, id)
			}
		}
		for _, id := range byKind[kind] {
			if !seen[id] {
				unread = append(unread, id)
			}
		}
	}
	for kind := range s.parent.kinds {
		if _, served := reads[kind]; !served {
			used.kinds[kind] = true // it may be served again, with objects of ours
		}
	}
	s.used = used
	found, more := s.read(ctx, unread)
	maps.Copy(have, found)
	faults = append(faults, more...)
	things := newCatalog(have)
	for id, o := range have {
		have[id] = things.arrange(o)
	}
	return have, plan.Join(faults)
}

// begin reads what a round rests on: the server's version, the parent, and what
// decides the epoch.
func (s *System) begin(ctx context.Context, site *plan.Site) error {
	if s.site != site.Name {
		for _, w := range s.watchers {
			w.stop()
		}
		clear(s.watchers)
		s.site = site.Name
	}
	version, err := s.discovery.ServerVersion()
	if err != nil {
		return fmt.Errorf("ask the cluster for its version: %w", err)
	}
	if s.outdated.Swap(false) || version.GitVersion != s.version {
		s.version = version.GitVersion
		s.mapper.Reset()
	}
	remembered, err := readParent(ctx, s.dynamic, site.Name)
	if err != nil {
		return err
	}
	if s.parent != nil {
		maps.Copy(remembered.verified, s.parent.verified)
	}
	s.mu.Lock()
	if now := s.Now(); s.Recheck > 0 && now.Sub(s.proving) > s.Recheck {
		s.proving = now
		clear(remembered.verified)
		clear(s.verdicts)
	}
	s.parent = remembered
	s.mu.Unlock()
	for _, kind := range guardKinds() {
		mapping, err := s.mapping(kind)
		if meta.IsNoMatchError(err) {
			continue // not served by this version
		}
		if err != nil {
			return fmt.Errorf("discover %s: %w", kind, err)
		}
		s.watch(s.guards, mapping.Resource, "", func(_, _ *record) {
			s.outdated.Store(true)
			s.Notify()
		})
	}
	for gvr, w := range s.guards {
		if _, err := w.list(ctx); err != nil {
			return fmt.Errorf("list %s: %w", gvr.Resource, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.hashes {
		if _, ok := site.Objects[id]; !ok {
			delete(s.hashes, id)
			delete(s.verdicts, id)
		}
	}
	return nil
}

// guardKinds are the kinds that can change what the server makes of an
// unchanged object.
func guardKinds() []schema.GroupKind {
	return []schema.GroupKind{
		{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"},
		{Group: "admissionregistration.k8s.io", Kind: "MutatingWebhookConfiguration"},
		{Group: "admissionregistration.k8s.io", Kind: "ValidatingWebhookConfiguration"},
		{Group: "admissionregistration.k8s.io", Kind: "MutatingAdmissionPolicy"},
	}
}

// epoch names the circumstances under which the server judged a kind: a proof
// made in another epoch does not hold.
func (s *System) epoch(kind schema.GroupKind) string {
	parts := []string{s.version}
	for gvr, w := range s.guards {
		w.mu.Lock()
		for _, r := range w.records {
			if gvr.Resource != "customresourcedefinitions" || strings.HasSuffix(r.name, "."+kind.Group) {
				parts = append(parts, fmt.Sprintf("%s/%s %s %d", gvr.Resource, r.name, r.uid, r.generation))
			}
		}
		w.mu.Unlock()
	}
	slices.Sort(parts)
	return digest([]byte(strings.Join(parts, "\n")))
}

func (s *System) mapping(kind schema.GroupKind) (*meta.RESTMapping, error) {
	return s.mapper.RESTMapping(kind)
}

// mappingFor is the mapping of the very version that a document declares.
func (s *System) mappingFor(manifest map[string]any) (*meta.RESTMapping, error) {
	u := unstructured.Unstructured{Object: manifest}
	gvk := u.GroupVersionKind()
	return s.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
}

// watch is the watcher of a resource, started where there is none.
func (s *System) watch(all map[schema.GroupVersionResource]*watcher, gvr schema.GroupVersionResource, selector string, changed func(old, new *record)) *watcher {
	w := all[gvr]
	if w == nil {
		w = newWatcher(s.ctx, s.metadata, gvr, selector, changed)
		all[gvr] = w
	}
	return w
}

// drifted passes a change on where it touches what a round would look at:
// status and heartbeats do not.
func (s *System) drifted(old, new *record) {
	if old != nil && new != nil && old.applied == new.applied && old.fields == new.fields &&
		old.foreign == new.foreign && old.scaled == new.scaled && old.terminating == new.terminating {
		return
	}
	s.Notify()
}

// hash is the hash of an object as it would be sent. It is made once, and what
// would be sent is not kept: of thousands of objects hardly any will be.
func (s *System) hash(o plan.Object) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.hashes[o.ID]; ok && sameMap(known.spec, o.Spec) {
		return known.hash
	}
	d, err := s.declare(o)
	if err != nil {
		return "" // proves nothing; Desire says why
	}
	s.hashes[o.ID] = hashed{o.Spec, d.hash}
	return d.hash
}

func (s *System) declare(o plan.Object) (declared, error) { return declare(o, applySetOf(s.site)) }

// hashed is the hash of an object that a site declares.
type hashed struct {
	spec map[string]any
	hash string
}

// sameMap reports whether two maps are one and the same: what a site declares
// is never changed, so then there is nothing to compare.
func sameMap(a, b map[string]any) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

// proved reports whether an object is known to be as git declares it.
func (s *System) proved(id plan.ID, r *record, hash, epoch string) bool {
	if r.proves(hash) && s.parent.verified[id.Kind] == epoch {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verdicts[id] == verdict{r.uid, hash, r.fields, epoch}
}

// read gets the live objects that could not be proved.
func (s *System) read(ctx context.Context, ids []plan.ID) (plan.State, []*plan.Fault) {
	slices.SortFunc(ids, plan.ID.Compare)
	return s.each(ctx, ids, func(id plan.ID) (*plan.Object, *plan.Fault) {
		mapping, err := s.mapping(kindOf(id))
		if err != nil {
			return nil, fault(id, err)
		}
		object, err := s.at(mapping, id).Get(ctx, nameOf(id), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil, nil
		case err != nil:
			return nil, fault(id, err)
		}
		o := observed(id, object)
		return &o, nil
	})
}

func observed(id plan.ID, object *unstructured.Unstructured) plan.Object {
	return plan.Object{ID: id, Spec: settle(object), Identity: string(object.GetUID()),
		Handle: &live{record: newRecord(object), entries: object.GetManagedFields()}}
}

// each runs one function for many IDs at once and collects what they give.
func (s *System) each(ctx context.Context, ids []plan.ID, do func(plan.ID) (*plan.Object, *plan.Fault)) (plan.State, []*plan.Fault) {
	state := plan.State{}
	var faults []*plan.Fault
	var mu sync.Mutex
	var group sync.WaitGroup
	next := make(chan plan.ID)
	for range min(s.Workers, len(ids)) {
		group.Go(func() {
			for id := range next {
				o, f := do(id)
				mu.Lock()
				if o != nil {
					state.Add(*o)
				}
				if f != nil {
					faults = append(faults, f)
				}
				mu.Unlock()
			}
		})
	}
	for _, id := range ids {
		if ctx.Err() != nil {
			faults = append(faults, fault(id, ctx.Err()))
			continue
		}
		next <- id
	}
	close(next)
	group.Wait()
	return state, faults
}

// at is the client for the place of an object.
func (s *System) at(mapping *meta.RESTMapping, id plan.ID) dynamic.ResourceInterface {
	if namespace, _, ok := strings.Cut(id.Name, "/"); ok && mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return s.dynamic.Resource(mapping.Resource).Namespace(namespace)
	}
	return s.dynamic.Resource(mapping.Resource)
}

func nameOf(id plan.ID) string {
	_, name, ok := strings.Cut(id.Name, "/")
	if !ok {
		return id.Name
	}
	return name
}

func namespaceOf(spec map[string]any) string {
	metadata, _ := spec["metadata"].(map[string]any)
	namespace, _ := metadata["namespace"].(string)
	return namespace
}

// Desire is what the site's objects would become: the server says so, by a
// dry-run of each that is not proved in sync.
func (s *System) Desire(ctx context.Context, site *plan.Site, have plan.State) (plan.State, error) {
	wanted := site.Objects.Of(plan.Objects)
	things := newCatalog(wanted)
	faulty := map[string]bool{}
	want, faults := s.each(ctx, wanted.IDs(), func(id plan.ID) (*plan.Object, *plan.Fault) {
		o := things.arrange(wanted[id])
		f := o.Sealed()
		if f != nil {
			return nil, f
		}
		if at, ok := have[id]; ok && at.Handle.(*live).proven {
			o.Identity, o.Handle = at.Identity, nil
			o.Notes = notes(o, at.Handle.(*live).record)
		} else if o, f = s.judge(ctx, o, have, things); f != nil {
			declared := wanted[id]
			return nil, hush(f, &declared)
		}
		return &o, nil
	})
	for _, f := range faults {
		faulty[f.ID.Kind] = true
	}
	epochs := map[string]string{}
	for id := range wanted {
		if _, ok := epochs[id.Kind]; !ok && !faulty[id.Kind] {
			epochs[id.Kind] = s.epoch(kindOf(id))
		}
	}
	maps.Copy(s.parent.verified, epochs)
	return want, plan.Join(faults)
}
