package kube

import (
	"context"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
)

// watcher holds the records of one kind, by key, and keeps them current. It is
// the store of a client-go Reflector, which lists and watches.
type watcher struct {
	changed func(old, new *record) // told of each change that we did not make; one of the two may be nil
	stop    context.CancelFunc

	mu      sync.Mutex
	records map[string]*record
	err     error         // of the last list, nil once one succeeded
	settled chan struct{} // closed when the first list succeeded or failed
	once    sync.Once
}

// newWatcher starts to watch the metadata of one resource, of the objects that
// the selector picks. It ends with the context.
func newWatcher(ctx context.Context, client metadata.Interface, gvr schema.GroupVersionResource, selector string, changed func(old, new *record)) *watcher {
	ctx, stop := context.WithCancel(ctx)
	w := &watcher{changed: changed, stop: stop, settled: make(chan struct{})}
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			list, err := client.Resource(gvr).List(ctx, o)
			if err != nil {
				w.failed(err)
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			events, err := client.Resource(gvr).Watch(ctx, o)
			w.failed(err) // nil: the way is there again, and nobody lists anew
			return events, err
		},
	}
	reflector := cache.NewReflectorWithOptions(plainList{source}, &metav1.PartialObjectMetadata{}, w,
		cache.ReflectorOptions{Name: gvr.String(), TypeDescription: gvr.String()})
	go reflector.RunWithContext(ctx)
	return w
}

// plainList has the Reflector begin with one LIST: for thousands of objects it
// is several times cheaper than a stream of as many watch events.
type plainList struct{ *cache.ListWatch }

func (plainList) IsWatchListSemanticsUnSupported() bool { return true }

// list is the records as of now, after the first list came in, or the error
// with which it failed.
func (w *watcher) list(ctx context.Context) (map[string]*record, error) {
	select {
	case <-w.settled:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	all := make(map[string]*record, len(w.records))
	for key, r := range w.records {
		all[key] = r
	}
	return all, nil
}

// wrote tells the watcher what we wrote ourselves, so that the next round need
// not wait for the watch to catch up.
func (w *watcher) wrote(r *record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.records != nil && !w.records[r.key()].newer(r) {
		w.records[r.key()] = r
	}
}

// deleted tells the watcher what we deleted ourselves.
func (w *watcher) deleted(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.records, key)
}

// newer compares resource versions, which are integers that grow (KEP-5504).
func (r *record) newer(than *record) bool {
	if r == nil || than == nil {
		return r != nil
	}
	a, errA := strconv.ParseUint(r.version, 10, 64)
	b, errB := strconv.ParseUint(than.version, 10, 64)
	return errA == nil && errB == nil && a > b
}

func (w *watcher) failed(err error) {
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
	w.once.Do(func() { close(w.settled) })
}

// The store of a Reflector.

func (w *watcher) Add(object any) error    { return w.put(object) }
func (w *watcher) Update(object any) error { return w.put(object) }
func (w *watcher) Resync() error           { return nil }

func (w *watcher) put(object any) error {
	r := newRecord(object.(metav1.Object))
	w.mu.Lock()
	old := w.records[r.key()]
	if !r.newer(old) && old != nil {
		w.mu.Unlock()
		return nil
	}
	w.records[r.key()] = r
	w.err = nil
	w.mu.Unlock()
	w.changed(old, r)
	return nil
}

func (w *watcher) Delete(object any) error {
	r := newRecord(object.(metav1.Object))
	w.mu.Lock()
	old := w.records[r.key()]
	if old == nil || old.newer(r) {
		w.mu.Unlock()
		return nil
	}
	delete(w.records, r.key())
	w.mu.Unlock()
	w.changed(old, nil)
	return nil
}

// Replace takes the result of a list: at the start, and after a watch broke.
func (w *watcher) Replace(objects []any, version string) error {
	listed := &record{version: version}
	records := make(map[string]*record, len(objects))
	for _, object := range objects {
		r := newRecord(object.(metav1.Object))
		records[r.key()] = r
	}
	w.mu.Lock()
	first := w.records == nil
	moved := false
	for key, old := range w.records {
		switch r := records[key]; {
		case r == nil && old.newer(listed), old.newer(r) && r != nil:
			records[key] = old // written by us after the list
		case r == nil || r.version != old.version:
			moved = true
		}
	}
	moved = moved || !first && len(records) != len(w.records)
	w.records, w.err = records, nil
	w.mu.Unlock()
	w.once.Do(func() { close(w.settled) })
	if moved {
		w.changed(nil, nil)
	}
	return nil
}
