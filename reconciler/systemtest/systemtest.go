// Package systemtest is the contract of reconciler.System as a test: each
// system runs it, on the real thing.
package systemtest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// World is what a System under test acts on.
type World struct {
	// Open gives a System on the world, with no memory, as a fresh process has.
	Open func(t *testing.T) reconciler.System

	// Sites are gone through in order; each should create, change and delete
	// something against the one before. All have the same name. The last one
	// is kept up in the other tests.
	Sites []*plan.Site

	// Within are objects that the last site declares inside of documents, or that
	// hold what it declares: to take the site away, consent to them is needed, too.
	Within []plan.ID

	// Snapshot is everything in the world that could be lost or changed, in a
	// form in which equal worlds are equal.
	Snapshot func(t *testing.T) string

	// Meddle changes an object that the last site declares, behind the
	// System's back, so that a round has to correct it.
	Meddle func(t *testing.T, id plan.ID)

	// Meddled is the object to meddle with.
	Meddled plan.ID

	// Refuse makes the world refuse to change the object Meddled until undo is
	// called.
	Refuse func(t *testing.T) (undo func())

	// Break makes the world unreadable until undo is called.
	Break func(t *testing.T) (undo func())
}

// Run proves the contract. The subtests build on each other.
func Run(t *testing.T, w World) {
	ctx := t.Context()
	before := w.Snapshot(t)
	last := w.Sites[len(w.Sites)-1]

	for _, site := range w.Sites {
		t.Run("applied it is settled: "+site.Commit, func(t *testing.T) {
			r := &reconciler.Reconciler{Systems: []reconciler.System{w.Open(t)}}
			if round, _ := r.Converge(ctx, site); !round.Settled() {
				t.Fatalf("not settled:\n%s", tell(round))
			}
			at := w.Snapshot(t)
			fresh := &reconciler.Reconciler{Systems: []reconciler.System{w.Open(t)}}
			if p := mustPlan(t, fresh, site); !p.Settled() {
				t.Fatalf("a fresh process sees something to do:\n%s", tell(reconciler.Round{Plan: p}))
			}
			if now := w.Snapshot(t); now != at {
				t.Fatalf("planning changed the world:\nbefore:\n%s\nafter:\n%s", at, now)
			}
		})
	}

	t.Run("drift is corrected", func(t *testing.T) {
		at := w.Snapshot(t)
		w.Meddle(t, w.Meddled)
		if w.Snapshot(t) == at {
			t.Fatal("Meddle changed nothing")
		}
		r := &reconciler.Reconciler{Systems: []reconciler.System{w.Open(t)}}
		p := mustPlan(t, r, last)
		if len(p.Changes) != 1 || p.Changes[0].ID != w.Meddled {
			t.Fatalf("want one change, of %s:\n%s", w.Meddled, tell(reconciler.Round{Plan: p}))
		}
		if round, _ := r.Converge(ctx, last); !round.Settled() {
			t.Fatalf("not settled:\n%s", tell(round))
		}
		if now := w.Snapshot(t); now != at {
			t.Fatalf("not as it was:\nbefore:\n%s\nafter:\n%s", at, now)
		}
	})

	t.Run("a refused change loses nothing", func(t *testing.T) {
		w.Meddle(t, w.Meddled)
		at := w.Snapshot(t)
		undo := w.Refuse(t)
		refused := w.Snapshot(t)
		r := &reconciler.Reconciler{Systems: []reconciler.System{w.Open(t)}}
		round := r.Round(ctx, last)
		if round.Err == nil && len(round.Plan.Waiting) == 0 {
			t.Error("nothing says that the change was refused")
		}
		if now := w.Snapshot(t); now != refused {
			t.Errorf("the world changed:\nbefore:\n%s\nafter:\n%s", refused, now)
		}
		undo()
		if now := w.Snapshot(t); now != at {
			t.Fatalf("undo did not undo:\nbefore:\n%s\nafter:\n%s", at, now)
		}
		if round, _ := r.Converge(ctx, last); !round.Settled() {
			t.Fatalf("not settled when no longer refused:\n%s", tell(round))
		}
	})

	t.Run("what is no longer Have is not changed", func(t *testing.T) {
		w.Meddle(t, w.Meddled)
		r := &reconciler.Reconciler{Systems: []reconciler.System{w.Open(t)}}
		p := mustPlan(t, r, last)
		w.Meddle(t, w.Meddled)
		at := w.Snapshot(t)
		for _, c := range p.Changes {
			var f *plan.Fault
			if err := r.Systems[0].Apply(ctx, c); !errors.As(err, &f) {
				t.Errorf("apply %s: want a fault, got %v", c.ID, err)
			}
		}
		if now := w.Snapshot(t); now != at {
			t.Errorf("the world changed:\nbefore:\n%s\nafter:\n%s", at, now)
		}
		if round, _ := r.Converge(ctx, last); !round.Settled() {
			t.Fatalf("not settled afterwards:\n%s", tell(round))
		}
	})

	t.Run("what cannot be read is not empty", func(t *testing.T) {
		undo := w.Break(t)
		defer undo()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		system := w.Open(t)
		have, err := system.Observe(ctx, last)
		if err == nil {
			t.Fatalf("no error, and %d objects", len(have))
		}
		r := &reconciler.Reconciler{Systems: []reconciler.System{system}}
		p := mustPlan(t, r, last)
		if len(p.Changes) > 0 || len(p.Waiting) == 0 {
			t.Errorf("want no change and something that waits:\n%s", tell(reconciler.Round{Plan: p}))
		}
	})

	t.Run("applied twice is applied once, until nothing of ours is left", func(t *testing.T) {
		for _, site := range []*plan.Site{w.without(last), last, w.without(last)} {
			deadline := time.Now().Add(time.Minute) // some things take their time to end
			for {
				r := &reconciler.Reconciler{Systems: []reconciler.System{w.Open(t)}}
				p := mustPlan(t, r, site)
				if p.Settled() {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("not settled:\n%s", tell(reconciler.Round{Plan: p}))
				}
				for _, c := range p.Changes {
					if err := r.Systems[0].Apply(ctx, c); err != nil {
						t.Fatalf("%s %s: %v", c.Action(), c.ID, err)
					}
					at := w.Snapshot(t)
					if err := r.Systems[0].Apply(ctx, c); err != nil {
						t.Fatalf("%s %s again: %v", c.Action(), c.ID, err)
					}
					if now := w.Snapshot(t); now != at {
						t.Fatalf("%s %s again changed the world:\nbefore:\n%s\nafter:\n%s", c.Action(), c.ID, at, now)
					}
				}
			}
		}
		if now := w.Snapshot(t); now != before {
			t.Fatalf("something is left:\nbefore:\n%s\nafter:\n%s", before, now)
		}
	})
}

// without is a site that declares nothing and consents to everything.
func (w World) without(site *plan.Site) *plan.Site {
	empty := &plan.Site{Name: site.Name, Commit: site.Commit + "-without", Objects: plan.State{}}
	for id := range site.Objects {
		empty.Spec.Confirm = append(empty.Spec.Confirm, id.String())
	}
	for _, id := range w.Within {
		empty.Spec.Confirm = append(empty.Spec.Confirm, id.String())
	}
	return empty
}

func mustPlan(t *testing.T, r *reconciler.Reconciler, site *plan.Site) *plan.Plan {
	t.Helper()
	p, err := r.Plan(t.Context(), site)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tell is a round as text for a failing test.
func tell(round reconciler.Round) string {
	var b strings.Builder
	if round.Plan != nil {
		round.Plan.WriteDiff(&b, false)
	}
	if round.Err != nil {
		b.WriteString(round.Err.Error())
	}
	return b.String()
}
