package machine

import (
	"context"
	"maps"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
)

// entry is what a watcher keeps of an object.
type entry[T any] interface {
	id() meta
	moved(before T) bool
}

// watcher keeps what is looked at of all objects of one kind. It is the store
// of a client-go Reflector, which lists once and watches then.
type watcher[T entry[T]] struct {
	read   func(*unstructured.Unstructured) T
	notify func() // told of changes by other hands that matter
	stop   context.CancelFunc

	mu      sync.Mutex
	entries map[string]T  // nil before the first list
	err     error         // why it cannot be read, nil while it can
	settled chan struct{} // closed when the first list succeeded or failed
	once    sync.Once
}

// newWatcher starts to watch a resource. It ends with the context.
func newWatcher[T entry[T]](ctx context.Context, client dynamic.NamespaceableResourceInterface, read func(*unstructured.Unstructured) T, notify func()) *watcher[T] {
	ctx, stop := context.WithCancel(ctx)
	w := &watcher[T]{read: read, notify: notify, stop: stop, settled: make(chan struct{})}
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if o.ResourceVersion == "0" {
				o.ResourceVersion = "" // as it is now, and not as a cache of the server has it
			}
			list, err := client.List(ctx, o)
			if err != nil {
				w.failed(err)
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			events, err := client.Watch(ctx, o)
			w.failed(err)
			return events, err
		},
	}
	reflector := cache.NewReflectorWithOptions(plainList{source}, &unstructured.Unstructured{}, w, cache.ReflectorOptions{Name: "machines"})
	go reflector.RunWithContext(ctx)
	return w
}

// plainList has the Reflector begin with one LIST.
type plainList struct{ *cache.ListWatch }

func (plainList) IsWatchListSemanticsUnSupported() bool { return true }

// list is the entries as of now, after the first list came in, or the error
// with which it or the watch failed.
func (w *watcher[T]) list(ctx context.Context) (map[string]T, error) {
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
	return maps.Clone(w.entries), nil
}

// isBroken reports whether list would fail.
func (w *watcher[T]) isBroken() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil
}

// failed takes in the answer of the server; nil for a good one.
func (w *watcher[T]) failed(err error) {
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
	w.once.Do(func() { close(w.settled) })
}

// wrote takes in what we wrote ourselves, so that the next round need not wait
// for the watch, and the watch tells nobody. A nil watcher takes nothing in.
func (w *watcher[T]) wrote(object *unstructured.Unstructured) {
	if w == nil {
		return
	}
	e := w.read(object)
	w.mu.Lock()
	defer w.mu.Unlock()
	if before, ok := w.entries[e.id().name]; w.entries != nil && (!ok || newer(e.id().version, before.id().version)) {
		w.entries[e.id().name] = e
	}
}

// deleted takes in what we deleted ourselves.
func (w *watcher[T]) deleted(name string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.entries, name)
}

// newer compares resource versions, which are integers that grow (KEP-5504).
func newer(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	return errX == nil && errY == nil && x > y
}

// The store of a Reflector.

func (w *watcher[T]) Add(object any) error    { return w.put(object) }
func (w *watcher[T]) Update(object any) error { return w.put(object) }
func (w *watcher[T]) Resync() error           { return nil }

func (w *watcher[T]) put(object any) error {
	e := w.read(object.(*unstructured.Unstructured))
	w.mu.Lock()
	before, ok := w.entries[e.id().name]
	if ok && !newer(e.id().version, before.id().version) {
		w.mu.Unlock()
		return nil
	}
	w.entries[e.id().name] = e
	w.mu.Unlock()
	if !ok || e.moved(before) {
		w.notify()
	}
	return nil
}

func (w *watcher[T]) Delete(object any) error {
	e := w.read(object.(*unstructured.Unstructured))
	w.mu.Lock()
	before, ok := w.entries[e.id().name]
	if !ok || newer(before.id().version, e.id().version) {
		w.mu.Unlock()
		return nil
	}
	delete(w.entries, e.id().name)
	w.mu.Unlock()
	w.notify()
	return nil
}

// Replace takes the result of a list: at the start, and after a watch broke.
func (w *watcher[T]) Replace(objects []any, version string) error {
	entries := make(map[string]T, len(objects))
	for _, object := range objects {
		e := w.read(object.(*unstructured.Unstructured))
		entries[e.id().name] = e
	}
	w.mu.Lock()
	moved := w.entries != nil && len(entries) != len(w.entries)
	for name, before := range w.entries {
		switch e, ok := entries[name]; {
		case newer(before.id().version, version):
			entries[name] = before // written by us after the list
		case !ok || e.moved(before):
			moved = true
		}
	}
	w.entries = entries
	w.mu.Unlock()
	w.failed(nil)
	if moved {
		w.notify()
	}
	return nil
}
