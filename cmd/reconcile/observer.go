package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// statusEvery is how often a status is written that tells nothing new but the
// time, so that its age shows that the daemon lives.
const statusEvery = 5 * time.Minute

// observer turns rounds into the status and the events of the Site.
type observer struct {
	objects *kube.System
	log     *slog.Logger
	written time.Time
}

func newObserver(objects *kube.System, log *slog.Logger) *observer {
	return &observer{objects: objects, log: log}
}

// record writes what a round brought, where it is news.
func (o *observer) record(ctx context.Context, round reconciler.Round) error {
	name, last, err := o.last(ctx, round)
	if name == "" || err != nil {
		return err
	}
	now := time.Now()
	status := reconciler.Status(last, round, now)
	status.Reconciler, status.Verified = version(), last.Verified
	if kube.SameStatus(last, status) && !o.objects.ProofsChanged(last) && now.Sub(o.written) < statusEvery {
		return nil
	}
	if err := o.objects.WriteStatus(ctx, name, status); err != nil {
		return err
	}
	o.written = now
	for _, c := range status.Conditions {
		if before, ok := condition(last, c.Type); !ok || before.Status != c.Status || before.Reason != c.Reason {
			warning := c.Type == "Ready" && c.Status == "False" && c.Reason != reconciler.Progressing
			if err := o.objects.Event(ctx, name, warning, c.Reason, c.Message); err != nil {
				return err
			}
		}
	}
	return nil
}

// last is the name and the last status of the site that a round was about.
// Where no commit was good, only the cluster knows its name; a cluster that no
// site was applied to yet has nothing to write to.
func (o *observer) last(ctx context.Context, round reconciler.Round) (name string, last plan.SiteStatus, err error) {
	if round.Site != nil {
		last, _ = o.objects.LastStatus()
		return round.Site.Name, last, nil
	}
	names, err := o.objects.SiteNames(ctx)
	if err != nil || len(names) != 1 {
		return "", last, err
	}
	last, _, err = o.objects.ReadStatus(ctx, names[0])
	return names[0], last, err
}

func condition(s plan.SiteStatus, kind string) (plan.Condition, bool) {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return c, true
		}
	}
	return plan.Condition{}, false
}
