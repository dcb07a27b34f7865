package main

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"golang.org/x/sync/errgroup"
)

// daemon keeps the site equal to its repo until it is told to end.
func daemon(ctx context.Context, f *flags, s streams) error {
	log, err := newLog(f, s)
	if err != nil {
		return err
	}
	// Thousands of objects are garbage after each commit, and nothing after
	// that: collect early rather than hold twice as much as is needed.
	debug.SetGCPercent(50)

	src, err := openSource(f, "", false, func(warnings []*plan.Fault) {
		for _, w := range warnings {
			log.Warn("the site repo", "code", w.Code, "warning", w.Error())
		}
	})
	if err != nil {
		return err
	}
	defer src.Close()
	secret, err := webhookSecret(f.credentials)
	if err != nil {
		return err
	}
	metrics := newMetrics()
	config, err := clusterConfig(f)
	if err != nil {
		return err
	}
	config.Wrap(metrics.countRequests)

	r := &reconciler.Reconciler{Source: src, Interval: f.interval, Log: log}
	c, err := openClusterWith(ctx, config, log, r.Nudge)
	if err != nil {
		return err
	}
	metrics.registry.MustRegister(volumeMetrics{c.volumes.Last})
	objects := c.objects
	keeper, err := newKeeper(config, objects, r.Nudge, log) // so that its news are in the status at once
	if err != nil {
		return err
	}
	defer keeper.Close()
	c.roles = &withRoles{System: c.machines, keeper: keeper, live: keeper.Last}
	r.Systems, r.Hold = c.systems(), hold(objects)
	r.Reached = func(ctx context.Context) string {
		name, err := siteName(ctx, objects)
		if err != nil {
			return "" // the round will say that the cluster does not answer
		}
		status, _, _ := objects.ReadStatus(ctx, name)
		return status.Commit.Reached
	}
	observer := newObserver(objects, log)
	r.Observer = func(ctx context.Context, round reconciler.Round) {
		metrics.observe(round)
		logRound(log, round)
		if err := observer.record(ctx, round); err != nil {
			log.Warn("the status of the site was not written", "error", err)
		}
	}

	work := together(r.Run, keeper.Run)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return watchSource(ctx, src, r, log) })
	group.Go(func() error { return serve(ctx, f.listen, metrics, r.Poll, secret, log) })
	group.Go(func() error {
		if f.noLeader {
			metrics.leader.Set(1)
			work(ctx)
			return nil
		}
		return lead(ctx, config, metrics, log, work)
	})
	return group.Wait()
}

// watchSource has a folder that changes looked at at once. A remote repository
// has no watch: it is polled, and its webhook may hasten that.
func watchSource(ctx context.Context, src interface {
	Watch(context.Context) (<-chan struct{}, error)
}, r *reconciler.Reconciler, log *slog.Logger) error {
	events, err := src.Watch(ctx)
	if err != nil {
		log.Warn("the site repo is not watched, and only looked at at intervals", "error", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events: // a nil channel never is ready
			if !ok {
				return nil
			}
			r.Poll()
		}
	}
}

// logRound says what came of a round, where something did.
func logRound(log *slog.Logger, round reconciler.Round) {
	log = log.With("commit", plan.Short(round.Commit), "took", round.Took.Round(time.Millisecond))
	switch {
	case round.Held != nil:
		log.Warn("held", "code", round.Held.Code, "reason", round.Held.Error())
	case round.Err != nil:
		faults, rest := plan.Split(round.Err)
		for _, f := range faults {
			if f.Code == reconciler.NotTried {
				continue // what it waits for is told
			}
			log.Error("not reached", "code", f.Code, "cause", f.Error())
		}
		if rest != nil && !errors.Is(rest, context.Canceled) {
			log.Error("not reached", "cause", rest)
		}
	case round.Applied > 0:
		log.Info("applied", "changes", round.Applied)
	default:
		log.Debug("nothing to do")
	}
	if round.Plan != nil {
		for _, f := range round.Plan.Waiting {
			log.Warn("waits", "code", f.Code, "cause", f.Error())
		}
		for _, h := range round.Plan.Withheld {
			log.Warn("withheld", "code", h.Reason.Code, "cause", h.Reason.Error())
		}
	}
}
