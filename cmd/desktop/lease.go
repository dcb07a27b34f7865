package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A lease is what lets programs of the user run. The portal renews it, and starts the
// user's next desktop on another machine when it has run out: from then on nothing here
// may write into the home any more, whether or not we know why nobody renews it. Which
// machine is cut off is not seen from within. So what runs is frozen rather than ended:
// if it was a short trouble, it goes on where it was.
type lease struct {
	frozen atomic.Bool

	mu    sync.Mutex
	until time.Duration // of clock; 0 before the first
}

// clock is a time that no one sets, and that goes on while the computer sleeps. What
// the runtime counts with stands still then.
func clock() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // never fails, on a kernel since 2.6.39
	return time.Duration(now.Nano())
}

// longest is for a portal that errs: nobody waits longer for a desktop that was lost.
const longest = 2 * time.Minute

// renew never makes it shorter: requests may come in another order.
func (l *lease) renew(until time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := clock(); until <= now || until > now+longest {
		return
	}
	l.until = max(l.until, until)
}

// runs says whether there is one now.
func (l *lease) runs() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return clock() < l.until
}

// ever says whether there was one.
func (l *lease) ever() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.until > 0
}

// leaseLook is how often it is looked at: well within what the portal waits more.
const leaseLook = 200 * time.Millisecond

// keepLease freezes the family when the lease has run out, and thaws it when it is
// renewed.
func (d *Desktop) keepLease(ctx context.Context) {
	for ; ctx.Err() == nil; wait(ctx, leaseLook) {
		switch runs, frozen := d.lease.runs(), d.lease.frozen.Load(); {
		case !d.lease.ever(): // nothing of the user runs yet
		case !runs:
			d.family.freeze() // again and again: what was just being born is found, too
			if !frozen {
				d.lease.frozen.Store(true)
				d.Log.Warn("frozen: the portal does not renew the lease")
			}
		case frozen:
			d.lease.frozen.Store(false)
			d.family.thaw()
			d.Log.Info("the lease was renewed, and all goes on")
		}
	}
}
