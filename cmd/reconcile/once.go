package main

import (
	"context"
	"fmt"

	"github.com/kingmaker-io/kingmaker/reconciler"
)

// once converges the site and says how far that went.
func once(ctx context.Context, f *flags, s streams) error {
	log, err := newLog(f, s)
	if err != nil {
		return err
	}
	site, err := readSite(ctx, f, s, "", false)
	if err != nil {
		return err
	}
	c, err := openCluster(ctx, f, s, nil)
	if err != nil {
		return err
	}
	notePeople(s.err, site)
	r := &reconciler.Reconciler{Systems: c.systems(), Hold: hold(c.objects), Log: log}
	round, applied := r.Converge(ctx, site)
	if err := newObserver(c.objects, log).record(ctx, round); err != nil {
		log.Warn("the status of the site was not written", "error", err)
	}
	if round.Err != nil {
		return round.Err
	}
	if round.Held != nil {
		fmt.Fprintf(s.err, "reconcile: nothing was changed: %s\n", round.Held)
		return code(exitPending)
	}
	if err := round.Plan.WriteSummary(s.out, s.outTerminal); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%d changes made\n", applied)
	if err := unread(round.Plan); err != nil {
		return err
	}
	if !round.Settled() {
		return code(exitPending)
	}
	return nil
}
