package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseNamespace exists in every cluster, also in one that no site was applied
// to yet.
const leaseNamespace = "kube-system"

// lead runs while we hold the lease, and waits for it while another has it. The
// lease is given back when the work has ended, and not before: client-go would
// do so at once, and not wait for its callback either.
func lead(ctx context.Context, config *rest.Config, metrics *metrics, log *slog.Logger, run func(context.Context)) error {
	client, err := coordination.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connect to the cluster: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find a name for the lease: %w", err)
	}
	me := fmt.Sprintf("%s_%d_%d", host, os.Getpid(), time.Now().UnixNano())
	lock := &lease{LeaseLock: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: leaseNamespace, Name: "kingmaker-reconcile"},
		Client:     leases{client},
		LockConfig: resourcelock.ResourceLockConfig{Identity: me},
	}, log: log}
	work := make(chan struct{}, 1) // full while we work
	for ctx.Err() == nil {
		holding, giveBack := context.WithCancel(context.WithoutCancel(ctx))
		stop := context.AfterFunc(ctx, func() {
			work <- struct{}{}
			giveBack()
			<-work
		})
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, ReleaseOnCancel: true, Name: "reconcile",
			// The defaults of Kubernetes' own controllers.
			LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(leading context.Context) {
					work <- struct{}{}
					defer func() { <-work }()
					leading, cancel := context.WithCancel(leading)
					defer cancel()
					defer context.AfterFunc(ctx, cancel)()
					log.Info("this reconcile works now", "identity", me)
					metrics.leader.Set(1)
					run(leading)
				},
				OnStoppedLeading: func() { metrics.leader.Set(0) },
				OnNewLeader: func(identity string) {
					if identity != me {
						log.Info("another reconcile works; this one stands by", "identity", identity)
						metrics.ready.Store(true)
					}
				},
			},
		})
		if err != nil {
			return fmt.Errorf("set up the lease: %w", err)
		}
		elector.Run(holding)
		work <- struct{}{} // the lease may be lost before the work has ended
		<-work
		stop()
		giveBack()
	}
	return nil
}

// lease is the lock, and tells why it cannot be had, each reason once: client-go
// only says so in a log of its own.
type lease struct {
	*resourcelock.LeaseLock
	log  *slog.Logger
	last string
}

func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.LeaseLock.Get(ctx)
	return record, raw, l.tell(err)
}

func (l *lease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.tell(l.LeaseLock.Create(ctx, record))
}

func (l *lease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.tell(l.LeaseLock.Update(ctx, record))
}

func (l *lease) tell(err error) error {
	switch reason := fmt.Sprint(err); {
	case err == nil:
		l.last = ""
	case apierrors.IsNotFound(err), apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), errors.Is(err, context.Canceled):
		// Nobody had it yet, or another was faster, or we end.
	case reason != l.last:
		l.last = reason
		l.log.Warn("the lease cannot be had, and nothing is done without it", "error", err)
	}
	return err
}

// leases is the part of the coordination client that a lock wants.
type leases struct{ coordination.LeasesGetter }
