package git

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	quiet   = 80 * time.Millisecond // after the last write: editors and pushes make several
	atMost  = time.Second           // after the first write, however many follow
	polling = 2 * time.Second       // between looks where the kernel does not tell
)

// watchFolder tells of files that are saved at any depth below a folder.
func watchFolder(ctx context.Context, top string) (<-chan struct{}, error) {
	matters := func(at string) bool { return !ignored(filepath.Base(at)) }
	return watch(ctx, fsnotify.NewWatcher, top, matters, matters)
}

// watchRefs tells of branches that move in the repository at a folder.
func watchRefs(ctx context.Context, at string) (<-chan struct{}, error) {
	_, common, err := gitDirs(at)
	if err != nil { // nothing there yet: watch for it
		common = at
	}
	refs := filepath.Join(common, "refs")
	below := func(at string) bool { return at == refs || strings.HasPrefix(at, refs+"/") }
	return watch(ctx, fsnotify.NewWatcher, common, below, func(at string) bool {
		return !strings.HasSuffix(at, ".lock") && (below(at) || at == filepath.Join(common, "HEAD") || at == filepath.Join(common, "packed-refs"))
	})
}

// watcher turns events of the kernel into few and late enough signals.
type watcher struct {
	*fsnotify.Watcher
	top     string
	enter   func(dir string) bool // folders below top that are watched too
	matters func(at string) bool
	out     chan struct{}

	blind bool // of some folder no events come: look now and then
}

func watch(ctx context.Context, open func() (*fsnotify.Watcher, error), top string, enter, matters func(string) bool) (<-chan struct{}, error) {
	w := &watcher{top: top, enter: enter, matters: matters, out: make(chan struct{}, 1)}
	var err error
	if w.Watcher, err = open(); err == nil {
		err = w.add(top)
	} else {
		w.Watcher, w.blind = &fsnotify.Watcher{}, true // of which no events come
	}
	go w.run(ctx)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return w.out, nil
	}
	return w.out, fault(WatchLimited, "watch "+top+": "+reason(err)+"; it is looked at every "+polling.String(),
		"sysctl fs.inotify.max_user_watches and fs.inotify.max_user_instances raise the kernel's limits")
}

// add watches a folder and those below it.
func (w *watcher) add(dir string) error {
	return filepath.WalkDir(dir, func(at string, e fs.DirEntry, err error) error {
		switch {
		case err != nil && at != w.top:
			return nil // gone again
		case err == nil && !e.IsDir():
			return nil
		case at != w.top && !w.enter(at):
			return fs.SkipDir
		}
		if err == nil {
			err = w.Add(at)
		}
		if err != nil && (at == w.top || !errors.Is(err, fs.ErrNotExist)) {
			w.blind = true
			return err
		}
		return nil
	})
}

func (w *watcher) run(ctx context.Context) {
	defer close(w.out)
	if w.Events != nil {
		defer w.Close()
	}
	look := time.NewTicker(polling)
	defer look.Stop()
	var due <-chan time.Time
	var first time.Time
	soon := func() {
		if due == nil {
			first = time.Now()
		}
		due = time.After(min(quiet, time.Until(first.Add(atMost))))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-w.Events:
			if e.Has(fsnotify.Create) && w.enter(e.Name) {
				w.add(e.Name) // what was put in it before shows when it is read
			}
			if e.Name == w.top && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)) {
				w.blind = true // its successor is not watched yet
				soon()
			} else if w.matters(e.Name) {
				soon()
			}
		case <-w.Errors: // more events than the kernel could keep
			w.add(w.top)
			soon()
		case <-due:
			due = nil
			w.signal()
		case <-look.C:
			if w.blind {
				if w.Events != nil {
					w.blind = w.add(w.top) != nil
				}
				w.signal()
			}
		}
	}
}

func (w *watcher) signal() {
	select {
	case w.out <- struct{}{}:
	default: // one is waiting already, and one is enough
	}
}
