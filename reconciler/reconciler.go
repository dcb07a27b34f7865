// Package reconciler is the loop of Kingmaker: it takes a site from its Source,
// has each System compare it with what there is, and carries out the plan.
//
// It knows rooms only as Source and System, and it knows nothing of printing:
// a dry run is a caller that calls Plan and does not call Apply.
package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Source is where a site comes from.
type Source interface {
	// Head is the newest commit that can be had. It is cheap when nothing
	// moved, and dials no more than one server. An error may come with the
	// last commit that could be had, which is then kept up.
	Head(ctx context.Context) (commit string, err error)

	// Site is the site as of a commit that Head returned: whole and valid, or
	// an error that holds every fault found. The answer is shared: read only.
	Site(ctx context.Context, commit string) (*plan.Site, error)
}

// System is one of the things that are compared and changed. The contract is
// proved for each by systemtest.Run.
//
// An error of Observe or Desire that is made of *plan.Fault only, each with the
// ID of an object, holds back those objects and nothing else: they are left out
// of the plan, with the fault as the reason. Any other error holds back the
// whole system: what could not be read is never emptied.
type System interface {
	// Name is the value of plan.ID.System for all that the system holds.
	Name() string

	// Observe is what there is, as far as the site is concerned: what is ours
	// and what the site wants to be ours. It changes nothing.
	Observe(ctx context.Context, site *plan.Site) (have plan.State, err error)

	// Desire is what the site wants, in the form in which the system itself
	// would store it, so that equal means nothing to do. It changes nothing.
	Desire(ctx context.Context, site *plan.Site, have plan.State) (want plan.State, err error)

	// Apply carries out one change, and returns when what needs it can go on.
	// Applied twice it is applied once. It refuses, with code Stale, when the
	// live object is neither the change's Have nor its Want. It may be called
	// at once for changes of which none needs another.
	Apply(ctx context.Context, change plan.Change) error
}

// Examiner is a System that can tell whether what it holds works. A round asks
// it after applying; the answer holds nothing back.
type Examiner interface {
	Examine(ctx context.Context, site *plan.Site) (unhealthy []*plan.Fault)
}

// Codes of the reasons that the loop itself gives.
const (
	Unread      plan.Code = "SystemUnread" // a system could not be read: it is left as it is
	Panicked    plan.Code = "Panicked"     // a defect in a system was caught
	ApplyFailed plan.Code = "ApplyFailed"  // a system gave an error of no code of its own
	NotTried    plan.Code = "NotTried"     // a change was not tried, because one that it needs went wrong
	Superseded  plan.Code = "Superseded"   // a newer commit came while this one was worked on
	Suspended   plan.Code = "Suspended"    // someone stopped all changes
)

// Reconciler makes a site equal to what its repo says. Source and Systems are
// required.
type Reconciler struct {
	Source  Source
	Systems []System // in the order of building

	// Interval is the time between two looks at the source, and between two
	// rounds where nothing happens; it varies by a tenth. Default 1m.
	Interval time.Duration

	// Hold says why nothing may be changed at present, nil when it may. A nil
	// Hold never does.
	Hold func(ctx context.Context, site *plan.Site) *plan.Fault

	// Reached is the commit that an earlier process reached, "" for none. It is
	// kept up while the newest commit cannot be had and this process has seen
	// no good one. A nil Reached knows none.
	Reached func(ctx context.Context) (commit string)

	// Observer is told of each round. Nil is nobody.
	Observer func(ctx context.Context, round Round)

	Width int          // changes of one wave that are carried out at once; default 8
	Log   *slog.Logger // nil is silent

	once  sync.Once
	poll  chan struct{} // look at the source now
	nudge chan struct{} // begin a round now
}

// Round is one pass over a site: what was planned, and what came of it.
type Round struct {
	Commit    string        // that was to be reached
	Site      *plan.Site    // the commit's, or that of the last good one where the commit is faulty; nil where there is none
	Plan      *plan.Plan    // nil where none could be made
	Held      *plan.Fault   // why the plan was not carried out, nil where it was
	Applied   int           // changes carried out
	Unhealthy []*plan.Fault // objects as declared that do not work
	Err       error         // everything that went wrong
	Started   time.Time
	Took      time.Duration
}

// Settled reports whether the round found its commit reached, with nothing to
// do and nothing that waits.
func (r Round) Settled() bool {
	return r.Err == nil && r.Plan != nil && r.Plan.Settled()
}

// Plan compares the site with what there is.
func (r *Reconciler) Plan(ctx context.Context, site *plan.Site) (*plan.Plan, error) {
	var parts []plan.Part
	for _, system := range r.Systems {
		parts = append(parts, compare(ctx, system, site))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return plan.Make(site, parts)
}

// compare asks one system. What goes wrong is a part of the answer.
func compare(ctx context.Context, system System, site *plan.Site) (part plan.Part) {
	part.System = system.Name()
	unread := func(code plan.Code, err error) {
		part.Faults = append(part.Faults, &plan.Fault{Code: code, ID: plan.ID{System: part.System}, Cause: err.Error(),
			Hint: "it is left as it is, and so is what needs it"})
	}
	defer func() {
		if p := recover(); p != nil {
			unread(Panicked, fmt.Errorf("%v", p))
		}
	}()
	have, err := system.Observe(ctx, site)
	faults, rest := plan.Split(err)
	if part.Faults = faults; rest != nil {
		unread(Unread, rest)
		return part
	}
	part.Have = have
	want, err := system.Desire(ctx, site, have)
	faults, rest = plan.Split(err)
	if part.Faults = append(part.Faults, faults...); rest != nil {
		unread(Unread, rest)
	}
	part.Want = want
	return part
}

// Apply carries out a plan. A change that goes wrong keeps only those from
// being tried that need it. Count is how many were carried out.
func (r *Reconciler) Apply(ctx context.Context, p *plan.Plan) (count int, err error) {
	systems := map[string]System{}
	for _, system := range r.Systems {
		systems[system.Name()] = system
	}
	broken := plan.Broken{}
	var faults []*plan.Fault
	for _, wave := range p.Waves() {
		results := make([]*plan.Fault, len(wave))
		var group sync.WaitGroup
		places := make(chan struct{}, max(1, or(r.Width, 8)))
		for i, change := range wave {
			if ctx.Err() != nil {
				return count, errors.Join(plan.Join(faults), context.Cause(ctx))
			}
			if by, ok := broken.Blocks(change); ok {
				results[i] = &plan.Fault{Code: NotTried, ID: change.ID, Cause: "not tried, because of " + by.String()}
				continue
			}
			places <- struct{}{}
			group.Go(func() {
				defer func() { <-places }()
				results[i] = r.applyOne(ctx, systems[change.ID.System], change)
			})
		}
		group.Wait()
		for i, f := range results {
			if f == nil {
				count++
				continue
			}
			broken.Add(wave[i])
			faults = append(faults, f)
		}
	}
	return count, plan.Join(faults)
}

func (r *Reconciler) applyOne(ctx context.Context, system System, change plan.Change) (f *plan.Fault) {
	defer func() {
		if p := recover(); p != nil {
			f = &plan.Fault{Code: Panicked, ID: change.ID, Cause: fmt.Sprint(p)}
		}
	}()
	if change.Want != nil {
		if f := change.Want.Sealed(); f != nil {
			return f // what is encrypted still is no value to give to anybody
		}
	}
	err := system.Apply(ctx, change)
	if err == nil {
		r.log().Info("applied", "id", change.ID, "action", change.Action(), "why", change.Why)
		return nil
	}
	if !errors.As(err, &f) {
		f = &plan.Fault{Code: ApplyFailed, ID: change.ID, Cause: err.Error()}
	}
	return f
}

func (r *Reconciler) log() *slog.Logger {
	if r.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Log
}

func or[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}
