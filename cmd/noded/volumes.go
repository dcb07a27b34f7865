package main

import (
	"context"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster/hand"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"
)

// membershipEvery is how often it is looked whether the machine is a member still.
const membershipEvery = 5 * time.Second

// glusterPatience is how long one command of gluster may last: its own limit is two
// minutes, after which it gives up.
const glusterPatience = 130 * time.Second

// keepVolumes looks after this machine's brick and mounts until ctx ends. It waits
// while the machine is no member, and begins anew when it becomes another.
func keepVolumes(ctx context.Context, h *host.Host) {
	for {
		m, err := member.Read(h) // the agent logs what is wrong with that
		if err == nil && m != nil && h.Exists(member.Word(h)) {
			keepVolumesOf(ctx, h, m)
		}
		if member.Wait(ctx, membershipEvery) != nil {
			return
		}
	}
}

// keepVolumesOf is the life of one membership.
func keepVolumesOf(ctx context.Context, h *host.Host, m *member.Membership) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	connect := func() (dynamic.Interface, error) {
		config, err := m.Speak(h, version())
		if err != nil {
			return nil, err
		}
		return dynamic.NewForConfig(config)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer leave()
		for member.Wait(ctx, membershipEvery) == nil {
			if now, err := member.Read(h); err == nil && (now == nil || *now != *m) {
				return nil
			}
		}
		return nil
	})
	own := &hand.Hand{Host: h, Connect: connect, Machine: m.Name, Address: m.Address.String(), Log: h.Log}
	group.Go(func() error { return own.Run(ctx) })
	steward := &gluster.Steward{Machine: m.Name, Connect: connect, Gluster: hand.CLI(h, glusterPatience), UUID: own.UUID,
		Prepare: (&hand.Roots{Host: h}).Setup, Log: h.Log}
	group.Go(func() error { steward.Run(ctx); return nil })
	_ = group.Wait() // each tells its own troubles
}
