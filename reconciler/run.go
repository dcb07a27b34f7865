package reconciler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Round makes one pass: plan, and apply unless something holds it.
func (r *Reconciler) Round(ctx context.Context, site *plan.Site) (round Round) {
	round = Round{Commit: site.Commit, Site: site, Started: time.Now()}
	defer func() { round.Took = time.Since(round.Started) }()
	if round.Plan, round.Err = r.Plan(ctx, site); round.Err != nil {
		return round
	}
	if r.Hold != nil {
		round.Held = r.Hold(ctx, site)
	}
	if round.Held == nil {
		round.Applied, round.Err = r.Apply(ctx, round.Plan)
	}
	if ctx.Err() != nil {
		return round
	}
	for _, system := range r.Systems {
		round.Unhealthy = append(round.Unhealthy, examine(ctx, system, site)...)
	}
	return round
}

func examine(ctx context.Context, system System, site *plan.Site) (unhealthy []*plan.Fault) {
	e, ok := system.(Examiner)
	if !ok {
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			unhealthy = []*plan.Fault{{Code: Panicked, ID: plan.ID{System: system.Name()}, Cause: fmt.Sprint(p)}}
		}
	}()
	return e.Examine(ctx, site)
}

// maxRounds bounds Converge: a CRD that an operator brings, what needs it, and
// what needs that are three.
const maxRounds = 8

// Converge makes rounds until one finds nothing left that it could do. That
// round is returned, and how many changes all of them carried out.
func (r *Reconciler) Converge(ctx context.Context, site *plan.Site) (last Round, applied int) {
	for range maxRounds {
		last = r.Round(ctx, site)
		applied += last.Applied
		if last.Applied == 0 && !stale(last.Err) || ctx.Err() != nil {
			break
		}
	}
	return last, applied
}

// stale reports whether planning again may help.
func stale(err error) bool {
	faults, _ := plan.Split(err)
	return slices.ContainsFunc(faults, func(f *plan.Fault) bool { return f.Code == plan.Stale })
}

// Poll has Run look at the source now. It never blocks.
func (r *Reconciler) Poll() { r.start(); trySend(r.poll) }

// Nudge has Run begin a round now: something may have drifted. It never blocks.
func (r *Reconciler) Nudge() { r.start(); trySend(r.nudge) }

func (r *Reconciler) start() {
	r.once.Do(func() { r.poll, r.nudge = make(chan struct{}, 1), make(chan struct{}, 1) })
}

func trySend(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is waiting already, and one is enough
	}
}

// head is what a look at the source found.
type head struct {
	commit string // the newest that was ever found
	err    error  // of the last look
}

// Run keeps the site equal to its source until the context ends. A newer commit
// ends the work on an older one. A commit that cannot be had or is faulty
// changes nothing: the last good one is kept up.
func (r *Reconciler) Run(ctx context.Context) {
	r.start()
	heads := make(chan head, 1)
	go r.follow(ctx, heads)

	var now head
	var site *plan.Site // of the last good commit
	select {
	case <-ctx.Done():
		return
	case now = <-heads:
	}
	for failures := 0; ; {
		var round Round
		at := now
		superseded := during(ctx, heads, &now, func(ctx context.Context) { round, site = r.pass(ctx, at, site) })
		if ctx.Err() != nil {
			return
		}
		if superseded {
			r.log().Info("a newer commit came", "was", at.commit, "is", now.commit)
			failures = 0
			continue
		}
		if r.Observer != nil {
			r.Observer(ctx, round)
		}
		// What does not work may be about to: look again soon, and then less and
		// less often.
		if failures++; round.Err == nil && len(round.Unhealthy) == 0 {
			failures = 0
		}
		if round.Applied > 0 && round.Err == nil {
			r.Nudge() // see what that led to, and whether the commit is reached now
		}
		select {
		case <-ctx.Done():
			return
		case now = <-heads:
			failures = 0
		case <-r.nudge:
		case <-time.After(r.pause(failures)):
		}
	}
}

// pass takes the site of a commit and makes a round over it. Where the commit
// cannot be had, the round is over the last good site.
func (r *Reconciler) pass(ctx context.Context, now head, good *plan.Site) (Round, *plan.Site) {
	trouble := now.err
	if now.commit != "" && (good == nil || good.Commit != now.commit) {
		site, err := r.Source.Site(ctx, now.commit)
		if err == nil {
			good = site
		}
		trouble = errors.Join(trouble, err)
	}
	if good == nil && r.Reached != nil {
		if reached := r.Reached(ctx); reached != "" && reached != now.commit {
			// Where it cannot be had either, the trouble is told already.
			good, _ = r.Source.Site(ctx, reached)
		}
	}
	round := Round{Started: time.Now()}
	if good != nil && ctx.Err() == nil {
		round = r.Round(ctx, good)
	}
	round.Commit = now.commit
	round.Err = errors.Join(trouble, round.Err)
	return round, good
}

// during does some work while it takes in what the look-out finds. A newer
// commit cuts the work short; what it left half done the next round completes.
func during(ctx context.Context, heads <-chan head, now *head, work func(context.Context)) (superseded bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		work(ctx)
	}()
	for {
		select {
		case <-done:
			return superseded
		case newer := <-heads:
			if newer.commit != now.commit {
				superseded = true
				cancel(&plan.Fault{Code: Superseded, Cause: "commit " + newer.commit + " came"})
			}
			*now = newer
		}
	}
}

// follow looks at the source at intervals, and when it is polled, and reports
// what changed.
func (r *Reconciler) follow(ctx context.Context, heads chan head) {
	var last head
	for first := true; ; first = false {
		commit, err := r.Source.Head(ctx)
		now := head{commit, err}
		if commit == "" {
			now.commit = last.commit
		}
		if first || now.commit != last.commit || text(now.err) != text(last.err) {
			select {
			case <-heads: // not taken yet, and out of date
			default:
			}
			heads <- now
			last = now
		}
		failures := 0
		if err != nil {
			failures = 1
		}
		select {
		case <-ctx.Done():
			return
		case <-r.poll:
		case <-time.After(r.pause(failures)):
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// pause is the time to the next round: the interval, varied by a tenth so that
// many sites do not ask one server at one moment; less after a failure, and
// while something does not work: first 2 s, doubled each time.
func (r *Reconciler) pause(failures int) time.Duration {
	pause := or(r.Interval, time.Minute)
	if failures > 0 {
		pause = min(pause, 2*time.Second<<min(failures-1, 10))
	}
	return time.Duration(float64(pause) * (0.9 + 0.2*rand.Float64()))
}
