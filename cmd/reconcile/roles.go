package main

import (
	"cmp"
	"context"
	"log/slog"
	"sync"

	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/crown"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
)

// newKeeper makes the keeper of roles. It goes by what the cluster has of the site,
// and so works on while git cannot be reached.
func newKeeper(config *rest.Config, objects *kube.System, log *slog.Logger) (*crown.Keeper, error) {
	return crown.New(crown.Options{
		Config:    config,
		Suspended: suspended,
		Told: func(ctx context.Context, site string, warning bool, reason plan.Code, note string) {
			if err := objects.Event(ctx, site, warning, reason, note); err != nil {
				log.Warn("an event was not recorded", "error", err)
			}
		},
		Log: log,
	})
}

// suspended is why a person suspended a Site, "" where nobody did.
func suspended(site *unstructured.Unstructured) string {
	s := kube.SuspensionOf(site)
	if s == nil {
		return ""
	}
	return "suspended by " + cmp.Or(s.By, "hand") + ": " + s.Reason
}

// together runs all until the last has ended.
func together(all ...func(context.Context)) func(context.Context) {
	return func(ctx context.Context) {
		var group sync.WaitGroup
		for _, run := range all {
			group.Go(func() { run(ctx) })
		}
		group.Wait()
	}
}
