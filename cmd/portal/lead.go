package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
)

// lead runs while we hold the lease, and waits for it while another portal has it. That
// two work at once for a moment, when a lease is lost, harms nothing: see package
// session.
func lead(ctx context.Context, client kubernetes.Interface, log *slog.Logger, run func(context.Context) error) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find a name for the lease: %w", err)
	}
	me := fmt.Sprintf("%s_%d", host, time.Now().UnixNano())
	for ctx.Err() == nil {
		holding, giveBack := context.WithCancel(ctx)
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: cluster.Namespace, Name: "portal-keeper"},
				Client: client.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: me}},
			ReleaseOnCancel: true, Name: "portal-keeper",
			// The defaults of Kubernetes' own controllers.
			LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(leading context.Context) {
					log.Info("this portal keeps the desktops now", "identity", me)
					if err := run(leading); err != nil && leading.Err() == nil {
						log.Error("desktops cannot be kept; the lease is given back", "error", err)
						time.Sleep(time.Second) // and not in a hurry
					}
					giveBack()
				},
				OnStoppedLeading: func() {},
				OnNewLeader: func(identity string) {
					if identity != me {
						log.Info("another portal keeps the desktops", "identity", identity)
					}
				},
			},
		})
		if err != nil {
			giveBack()
			return fmt.Errorf("set up the lease: %w", err)
		}
		elector.Run(holding)
		giveBack()
	}
	return nil
}
