// Package agent is what noded does for as long as a machine is a member of a
// site: it reports on the machine, and keeps the machine's way to the API open.
//
// It speaks as the Node that its machine is, with the kubelet's certificate, and
// writes nothing but the status of its own Machine. What it needs in order to
// reach the API is on the machine: at its start it leads the API's name to the
// balancer, and the balancer to the last masters that were good, before it asks
// anybody anything.
//
// Everything is level-triggered: each beat looks, decides from what it sees, and
// reports the whole. An API that is away for hours is asked again every few
// seconds, and all is as before when it answers.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
)

// Agent reports on one machine. Host is required; zero durations are what a site
// should have, and tests set others.
type Agent struct {
	Host    *host.Host
	Version string // of noded
	Log     *slog.Logger

	// Alive is told that the agent is at work, several times a minute; it may be nil.
	Alive func()
	// Screen says why the machine's own screen is no kiosk, where the site wants one; nil
	// is that it is. It may be nil.
	Screen func() error
	// Answered is told what became of each beat: nil, or why the site was not
	// reached. It may be nil.
	Answered func(error)

	Beat       time.Duration // between two heartbeats; 0 is 10 s
	Retry      time.Duration // between two tries while the API is away; 0 is 3 s
	Membership time.Duration // between two looks at whether the machine is a member; 0 is 5 s
	Inventory  time.Duration // between two inventories; 0 is an hour
	Probe      time.Duration // between two measurements of the disk; 0 is a day
	Settle     time.Duration // before the first one, as a machine that boots is busy; 0 is a minute
	Healthz    string        // URL of the kubelet's own word; "" is the usual one

	mu    sync.Mutex
	facts facts
	own   own
	wake  chan struct{} // made by Run; full when the duties have news
	due   chan struct{} // made by Run; full when there is something to report
}

// own is what the agent knows of its own Machine, and tells of itself.
type own struct {
	name  string
	uid   types.UID         // of the Machine
	at    int64             // its generation
	spec  *machine.Assigned // as last heard in this run; nil is not yet
	ready bool              // its Node, at the last beat
	known bool              // the rest is: the duties have looked
	part  member.Part
	blank bool
	keys  bool
}

// facts are what changes slowly.
type facts struct {
	inventory host.Inventory
	fsync     time.Duration // 0 is not measured yet
	images    bool          // those of a control plane are there
}

// Run is at work until ctx ends. It waits while the machine is no member, and
// begins anew when it becomes one, or another.
func (a *Agent) Run(ctx context.Context) error {
	a.mu.Lock()
	a.wake, a.due = make(chan struct{}, 1), make(chan struct{}, 1)
	a.mu.Unlock()
	// Duties are not cut short by what they bring about: a membership that changes.
	duties := make(chan struct{})
	go func() { defer close(duties); a.do(ctx) }()
	defer func() { <-duties }()
	for {
		m, err := a.membership(ctx)
		if err != nil {
			return nil // told to end
		}
		a.Log.InfoContext(ctx, "member", "site", m.Site, "name", m.Name, "role", m.Role)
		a.serve(ctx, m)
		if ctx.Err() != nil {
			return nil
		}
		a.Log.InfoContext(ctx, "no member any more, or of another kind")
	}
}

// membership waits for one.
func (a *Agent) membership(ctx context.Context) (*member.Membership, error) {
	var told string
	for {
		a.alive()
		m, err := member.Read(a.Host)
		switch {
		case m != nil && a.Host.Exists(member.Word(a.Host)):
			return m, nil
		case err == nil:
			err = errors.New("this machine is no member of a site: noded init or noded join makes it one")
		}
		if told != err.Error() {
			told = err.Error()
			a.Log.InfoContext(ctx, "waiting", "for", told)
		}
		if err := member.Wait(ctx, cmp.Or(a.Membership, 5*time.Second)); err != nil {
			return nil, err
		}
	}
}

// hear notes what the site says of this machine, and wakes the duties where that is
// news. It is heard from two sides, and one may lag behind.
func (a *Agent) hear(name string, o *object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.own.spec != nil && a.own.name == name && a.own.uid == o.Metadata.UID && a.own.at >= o.Metadata.Generation {
		return
	}
	spec := o.Spec
	a.own.name, a.own.uid, a.own.at, a.own.spec = name, o.Metadata.UID, o.Metadata.Generation, &spec
	poke(a.wake)
}

// heardOf is what was heard of a machine, nil for nothing.
func (a *Agent) heardOf(name string) (uid string, spec *machine.Assigned, ready bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.own.name != name {
		return "", nil, false
	}
	return string(a.own.uid), a.own.spec, a.own.ready
}

// tellPart is what the next beat reports.
func (a *Agent) tellPart(p member.Part, s state) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.own.known, a.own.part, a.own.blank, a.own.keys = true, p, s.blank, s.keys
}

// poke fills a channel of one, without waiting; nil is nobody who listens.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// serve is the life of one membership.
func (a *Agent) serve(ctx context.Context, m *member.Membership) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	a.open(ctx, m)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { defer leave(); a.watchMembership(ctx, m); return nil })
	group.Go(func() error { a.measure(ctx); return nil })
	group.Go(func() error { a.follow(ctx, m); return nil })
	group.Go(func() error { a.report(ctx, m); return nil })
	group.Wait()
}

// open leads the API's name to the balancer, and that to the last good masters.
// Both are so already, unless something else wrote to these files: Docker does
// with /etc/hosts at each start of a container.
func (a *Agent) open(ctx context.Context, m *member.Membership) {
	changed, err := host.EnsureHosts(a.Host, m.Site)
	masters, e := host.Masters(a.Host)
	if e == nil && len(masters) == 0 && m.Role == machine.Master {
		masters = []netip.AddrPort{netip.AddrPortFrom(m.Address, machine.APIPort)} // at least itself
	}
	if e == nil && len(masters) > 0 {
		_, e = host.SetMasters(ctx, a.Host, m.Site, masters)
	}
	if err := errors.Join(err, e); err != nil {
		a.Log.ErrorContext(ctx, "the way to the API", "error", err)
		return
	}
	a.Log.InfoContext(ctx, "the way to the API", "endpoint", m.Endpoint, "masters", masters, "hosts written", changed)
}

// watchMembership returns when the machine is not what it was any more. Until
// then it keeps the API's name, without which not even the kubelet finds the API:
// other programs write to /etc/hosts too.
func (a *Agent) watchMembership(ctx context.Context, m *member.Membership) {
	var told troubles
	for member.Wait(ctx, cmp.Or(a.Membership, 5*time.Second)) == nil {
		if now, err := member.Read(a.Host); err == nil && (now == nil || *now != *m) {
			return
		}
		switch changed, err := host.EnsureHosts(a.Host, m.Site); {
		case err == nil:
			told = nil
			if changed {
				a.Log.WarnContext(ctx, "the API's name was gone from /etc/hosts; it is there again", "endpoint", m.Endpoint)
			}
		case told.new(err.Error()):
			a.Log.ErrorContext(ctx, "the way to the API", "error", err)
		}
	}
}

// measure takes the inventory and times the disk, each in its own time.
func (a *Agent) measure(ctx context.Context) {
	probe := time.Now().Add(cmp.Or(a.Settle, time.Minute))
	for {
		inventory, err := host.TakeInventory(ctx, a.Host)
		if err != nil && ctx.Err() == nil {
			a.Log.WarnContext(ctx, "inventory", "error", err)
		}
		missing, e := member.MissingImages(ctx, a.Host)
		a.mu.Lock()
		if err == nil {
			a.facts.inventory = inventory
		}
		a.facts.images = e == nil && len(missing) == 0
		a.mu.Unlock()
		next := time.Now().Add(jitter(cmp.Or(a.Inventory, time.Hour)))
		for time.Now().Before(next) {
			until := next
			if probe.Before(until) {
				until = probe
			}
			if member.Wait(ctx, max(time.Until(until), 0)) != nil {
				return
			}
			if !time.Now().Before(probe) {
				probe = time.Now().Add(a.probe(ctx))
			}
		}
	}
}

// probe times the disk, unless others are at it: that would say nothing of the
// disk, and be no help to them. It returns when to look again: soon where the
// answer was not good, for one bad moment must not count for a day.
func (a *Agent) probe(ctx context.Context) (again time.Duration) {
	daily := jitter(cmp.Or(a.Probe, 24*time.Hour))
	soon := daily / 144 // ten minutes
	if busy(a.Host) {
		return soon
	}
	p99, err := host.FsyncP99(ctx, a.Host, "")
	if err != nil {
		if ctx.Err() == nil {
			a.Log.WarnContext(ctx, "the disk could not be timed", "error", err)
		}
		return soon
	}
	a.mu.Lock()
	a.facts.fsync = p99
	a.mu.Unlock()
	if p99 > host.MaxFsync {
		return soon
	}
	return daily
}

// busy reports whether the kernel has seen programs wait for disks in more than
// a tenth of the last ten seconds. One that does not count that says no.
func busy(h *host.Host) bool {
	text, err := h.Read("/proc/pressure/io")
	if err != nil {
		return false
	}
	var waited float64
	_, err = fmt.Sscanf(string(text), "some avg10=%f", &waited)
	return err == nil && waited > 10
}

// known are the facts so far.
func (a *Agent) known() facts {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.facts
}

func (a *Agent) alive() {
	if a.Alive != nil {
		a.Alive()
	}
}

// jitter is a tenth more or less, so that the machines of a room that was
// switched on at once do not stay in step.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// troubles are what was told since all was well, so that hours of the same few
// troubles in turn are a few lines of log. The zero value is that all is well.
type troubles map[string]bool

// new reports whether a trouble was not told yet, and notes it.
func (t *troubles) new(text string) bool {
	if (*t)[text] {
		return false
	}
	if *t == nil {
		*t = troubles{}
	}
	(*t)[text] = true
	return true
}

// sorted addresses without repetition.
func sorted(list []netip.AddrPort) []netip.AddrPort {
	return slices.Compact(slices.SortedFunc(slices.Values(list), netip.AddrPort.Compare))
}
