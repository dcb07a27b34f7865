package roles

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// anything is one event of the world: mostly the daemon and time, else a fault.
func (w *world) anything() {
	p := w.pcs[w.choose(len(w.pcs))]
	d := &w.git.Machines[slices.Index(w.pcs, p)]
	switch w.choose(60) {
	default: // a round of the leading daemon
		w.daemon(w.leading, 0, never)
	case 0, 1, 2, 3, 4, 5, 6, 7, 8, 9:
		w.tick([]time.Duration{time.Second, 10 * time.Second, 20 * time.Second, time.Minute}[w.choose(4)])
	case 10:
		w.tick([]time.Duration{3 * time.Minute, 6 * time.Minute, 20 * time.Minute}[w.choose(3)])
	case 11, 12:
		w.daemon(w.leading, 1+w.choose(6), never) // on a stale cache
	case 13, 14:
		w.daemon(w.leading, w.choose(3), 1+w.choose(3)) // killed
	case 15:
		w.lead(1 - w.leading)
	case 16: // the former leader was asleep, and goes on
		w.daemon(1-w.leading, w.choose(6), never)
	case 17:
		w.race()
	case 18, 19:
		if p.on && w.bearable(p) {
			w.note("%s is switched off", p.name)
			p.on, p.etcd, p.join = false, false, 0
		}
	case 20, 21:
		w.start(p)
	case 22:
		if p.on && w.bearable(p) {
			w.note("%s reboots", p.name)
			p.boot, p.booting, p.etcd, p.join = p.boot+1, 1+w.choose(6), false, 0
		}
	case 23:
		if w.bearable(p) {
			w.note("%s is cut off, or comes back", p.name)
			p.side = 1 - p.side
		}
	case 24:
		if o := w.objects[p.name]; o.joined && w.choose(2) == 0 {
			w.note("somebody deletes the Node of %s", p.name)
			o.joined, o.labelled, o.cordoned, o.ours, o.lease = false, false, false, false, time.Time{}
			break
		}
		p.kubelet = false
		w.note("the kubelet of %s dies", p.name)
	case 25:
		p.agent, p.join = !p.agent && p.on && p.booting == 0, 0
		w.note("the agent of %s runs: %v", p.name, p.agent)
	case 26:
		w.git.Masters = []int{1, 3, 3, 5, 5, 4}[w.choose(6)]
		w.note("%d masters are declared", w.git.Masters)
	case 27:
		d.Master = []string{Allowed, Preferred, Never}[w.choose(3)]
		w.note("%s: master: %s", p.name, d.Master)
	case 28:
		d.Paused = !d.Paused
		w.note("%s: paused: %v", p.name, d.Paused)
	case 29:
		if w.git.Suspended = ""; w.choose(3) == 0 {
			w.git.Suspended = "holidays"
		}
		w.note("suspended: %q", w.git.Suspended)
	case 30:
		p.skew = []time.Duration{0, 0, 3 * time.Second, -20 * time.Second, time.Hour}[w.choose(5)]
	case 31:
		p.fsync = []time.Duration{2 * time.Millisecond, 3 * time.Millisecond, 80 * time.Millisecond, 200 * time.Millisecond}[w.choose(4)]
	case 32:
		p.stuck, p.fails = w.choose(4) == 0, w.choose(4) == 0
	case 33:
		p.pods = w.choose(4)
	case 34:
		w.flaky = true
		w.fullDisk = !w.fullDisk
	case 35:
		w.pulls = !w.pulls
	case 36:
		if w.choose(4) == 0 && w.bearable(p) {
			w.reinstall(p)
		}
	case 38:
		if m := w.members[w.choose(len(w.members))]; !m.learner && w.answers(m) {
			w.leads = m.id
		}
	case 39:
		if w.choose(3) == 0 && p.on && w.bearable(p) {
			w.flap(p)
		}
	case 37:
		if w.choose(3) == 0 {
			w.newcomer(p)
		}
	}
	w.steps++
	w.invariants()
}

// bearable reports whether etcd works without a machine; mostly only such faults
// are made, for without a quorum nothing happens at all.
func (w *world) bearable(p *pc) bool {
	m := w.member(p.data)
	return m == nil || m.learner || w.healthy(m.id) >= quorum(w.voters()) || w.choose(8) == 0
}

func (w *world) start(p *pc) {
	if p.on || p.lost {
		return
	}
	for _, other := range w.pcs {
		if other != p && other.address == p.address {
			return // two of one address do not get far
		}
	}
	w.note("%s is switched on", p.name)
	p.on, p.boot, p.booting = true, p.boot+1, 1+w.choose(4)
}

// flap is a loose plug.
func (w *world) flap(p *pc) {
	w.note("%s flaps", p.name)
	for range 3 + w.choose(2) {
		p.on, p.etcd, p.join = false, false, 0
		w.tick(80 * time.Second)
		w.start(p)
		w.tick(time.Minute)
	}
	p.on, p.etcd, p.join = false, false, 0
}

// reinstall is a new disk in the PC of the same name and address.
func (w *world) reinstall(p *pc) {
	w.note("%s is reinstalled", p.name)
	p.on, p.boot, p.booting, p.join = true, p.boot+1, 2, 0
	p.conf, p.keys, p.manifests, p.etcd, p.data = false, false, false, false, 0
	p.seen, p.reached, p.seenRole, p.tried, p.failed, p.reset = 0, 0, "", 0, 0, ""
}

// newcomer is a worker that gets the address of a machine that is off.
func (w *world) newcomer(p *pc) {
	if !p.on || p.data != 0 || p.join != 0 {
		return
	}
	for _, other := range w.pcs {
		if other != p && !other.on && w.unique(other) && w.unique(p) {
			w.note("%s gets the address of %s", p.name, other.name)
			p.address = other.address
			return
		}
	}
}

func (w *world) unique(p *pc) bool {
	return !slices.ContainsFunc(w.pcs, func(other *pc) bool { return other != p && other.address == p.address })
}

// race is two daemons that both think they lead, and act on the same reading.
func (w *world) race() {
	if w.quorumSide() < 0 {
		return
	}
	var decisions [2]Decision
	for i := range w.brains {
		if w.brains[i] == nil {
			w.brains[i] = &brain{git: w.git, down: map[string]time.Duration{}}
		}
	}
	r := w.observe(true)
	for i, b := range w.brains {
		b.look(w.now)
		decisions[i] = w.plan(b.git, r.Observed, w.now, b.memory)
		b.memory = decisions[i].Memory
	}
	for i := range w.brains {
		w.carry(i, r, &decisions[i], never)
	}
}

// heal ends all faults; one machine may stay lost, if the others suffice.
func (w *world) heal() {
	w.note("all faults end")
	w.flaky, w.pulls, w.git.Suspended = false, true, ""
	if w.git.Masters%2 == 0 {
		w.git.Masters = 3
	}
	w.git.Masters = min(w.git.Masters, (len(w.pcs)-2)/2*2+1)
	for i, p := range w.pcs {
		w.git.Machines[i].Paused, w.git.Machines[i].Master = false, Allowed
		p.side, p.skew, p.stuck, p.fails = 0, 0, false, false
		p.fsync = min(p.fsync, 5*time.Millisecond)
		if p.on && p.booting == 0 {
			p.registered = p.registered && p.kubelet
			p.agent, p.kubelet = true, true
		}
		// An address that two have goes to the one that is a member with it.
		for _, other := range w.pcs[:i] {
			if other.address == p.address {
				loser := p
				if slices.ContainsFunc(w.members, func(m etcdMember) bool {
					return m.name == p.name && m.peer == peer(p) || m.id == p.joining && m.peer == peer(p)
				}) {
					loser = other
				}
				loser.address = "10.0.1" + loser.address[len("10.0.0"):] + "0"
				if loser == p {
					loser.address = fmt.Sprintf("10.0.1.%d", i+1)
				} else {
					loser.address = fmt.Sprintf("10.0.1.%d", slices.Index(w.pcs, loser)+1)
				}
			}
		}
	}
	var spared *pc
	if w.choose(2) == 0 {
		spared = w.pcs[w.choose(len(w.pcs))]
	}
	for _, p := range w.pcs {
		if p != spared {
			w.start(p)
		}
	}
	w.tick(time.Minute)
	if spared == nil {
		return
	}
	m := w.member(spared.data)
	if m == nil || m.learner || w.healthy(m.id) >= quorum(w.voters()) {
		w.note("%s is lost for good", spared.name)
		spared.on, spared.etcd, spared.lost, spared.join = false, false, true, 0
	} else {
		w.start(spared)
	}
}

// rest is what is not as it should be in the end; "" for nothing.
func (w *world) rest() string {
	voters := 0
	for _, m := range w.members {
		if m.learner || m.name == "" {
			return "a learner is left"
		}
		if !w.answers(m) {
			return m.name + " does not answer"
		}
		voters++
	}
	if voters != w.git.Masters {
		return fmt.Sprintf("%d masters of %d", voters, w.git.Masters)
	}
	for i := range w.crowns {
		if w.crowns[i].Open() {
			return w.crowns[i].Name() + " is open"
		}
	}
	if w.key.For != "" {
		return "a key is left"
	}
	for _, p := range w.pcs {
		o := w.objects[p.name]
		isMember := slices.ContainsFunc(w.members, func(m etcdMember) bool { return m.name == p.name })
		switch {
		case (o.role == Master) != isMember:
			return p.name + " has the wrong role"
		case p.lost:
		case p.blank() || !o.joined || o.cordoned || p.reached != o.generation || p.keys != isMember:
			return p.name + " is not at work"
		}
	}
	return ""
}

// bound is how many rounds a site may take to come to rest after the faults, and
// stay how many it is watched then.
const (
	bound = 900
	stay  = 40
)

// converge lets the site come to rest. It fails the model where it does not.
func (w *world) converge() {
	w.heal()
	w.settle()
}

// settle is the rest of it, without healing.
func (w *world) settle() {
	idle := 0
	for round := 0; w.violation == nil; round++ {
		d := w.daemon(w.leading, 0, never)
		if w.quorumSide() < 0 {
			// Data was lost with a majority: the planner says so, and does nothing.
			if !slices.ContainsFunc(d.Holds, func(f *plan.Fault) bool { return f.Code == QuorumLost || f.Code == Unreadable }) {
				w.violate(11, "the quorum is lost, and nobody says so: %+v", d.Holds)
			}
			return
		}
		if idle++; d.Step != nil {
			idle = 0
		}
		switch {
		case idle > 20:
			w.tick(2 * time.Hour) // breakers by day, and heirs that failed
			idle = 15
		default:
			w.tick(10 * time.Second)
		}
		rest := w.rest()
		if rest == "" && idle > 5 { // what was just lost may still seem to live
			break
		}
		if round > bound {
			text := ""
			for _, f := range slices.Concat(d.Holds, d.Waits) {
				text += "; " + string(f.Code) + " " + f.Error()
			}
			w.violate(11, "not at rest after %d rounds: %s%s; step %v", round, rest, text, d.Step)
		}
	}
	for range stay {
		if w.violation != nil {
			return
		}
		if d := w.daemon(w.leading, 0, never); d.Step != nil {
			w.violate(11, "at rest, and then %s: %s", d.Step, d.Step.Why)
		}
		w.tick(10 * time.Second)
		if rest := w.rest(); rest != "" {
			w.violate(11, "it did not stay at rest: %s", rest)
		}
	}
}

// live is one life of a site: faults, and rest. It returns the world for its log.
func live(choose chooser, p planner, events int) *world {
	w := newWorld(choose, p)
	for range events {
		if w.anything(); w.violation != nil {
			return w
		}
	}
	w.converge()
	return w
}

// seeded is a chooser of a seed.
func seeded(seed uint64) chooser {
	r := rand.New(rand.NewPCG(seed, 0x6b696e67))
	return r.IntN
}

// The model runs this many events at least: what CI must. Each life of a site has
// some, then comes to rest.
const (
	lives     = 420
	lifeSteps = 250
)

// TestModel runs the planner against the simulated site under random faults, and
// checks the twelve invariants after each step.
func TestModel(t *testing.T) {
	checks := lives
	if testing.Short() {
		checks /= 10
	}
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue { // nobody asked for another number
		if err := flag.Set("rapid.checks", fmt.Sprint(checks)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = flag.Set("rapid.checks", f.DefValue) }()
	}
	var sum tally
	begun := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 1<<20)
		w := live(func(limit int) int { return n.Draw(t, "n") % limit }, Plan, lifeSteps)
		if w.violation != nil {
			t.Fatalf("%v\n%s", w.violation, w)
		}
		sum.add(w)
	})
	sum.report(t, time.Since(begun))
	if checks == lives && sum.events < 100_000 && !t.Failed() {
		t.Errorf("%d events: CI must run 100,000", sum.events)
	}
}

// TestModelReaches runs the same lives for fixed seeds, and requires that in them
// every action is done and every reason to hold is met: a model that never gets
// there proves nothing.
func TestModelReaches(t *testing.T) {
	if testing.Short() || slow {
		t.Skip("a part of the seeds does not reach everything")
	}
	var sum tally
	begun := time.Now()
	for seed := range uint64(3 * lives) {
		w := live(seeded(seed), Plan, lifeSteps)
		if w.violation != nil {
			t.Fatalf("seed %d: %v\n%s", seed, w.violation, w)
		}
		sum.add(w)
	}
	sum.report(t, time.Since(begun))
	for _, a := range []Action{Choose, Cordon, Prepull, Drain, Reset, DeleteNode, RemoveMember, Fence, IssueKey, Join, Verify, Cleanup, Snapshot, Close, MoveLeader, Repair, Cancel, RollBack, Uncordon, JoinWorker} {
		if sum.did[a] == 0 {
			t.Errorf("no %s was ever done", a)
		}
	}
	for _, c := range []plan.Code{Suspended, Paused, EvenMasters, QuorumLost, CircuitDown, TooManyUnhealthy, CrownsPerDay, Flapping, ClockSkew, NoHeir, CountUnmet, WouldLoseQuorum, EtcdAway, AgentAway, NotYetDead, InProgress, MemberAway, KeysLeft} {
		if sum.held[c] == 0 {
			t.Errorf("nothing was ever held by %s", c)
		}
	}
}

// tally is what happened in some lives.
type tally struct {
	events, steps int
	did           map[Action]int
	held          map[plan.Code]int
}

func (s *tally) add(w *world) {
	if s.did == nil {
		s.did, s.held = map[Action]int{}, map[plan.Code]int{}
	}
	s.events += lifeSteps
	s.steps += w.steps
	for a, n := range w.did {
		s.did[a] += n
	}
	for c, n := range w.held {
		s.held[c] += n
	}
}

func (s *tally) report(t *testing.T, took time.Duration) {
	t.Logf("%d events, %d steps with those until rest, in %s: %.0f steps/s", s.events, s.steps, took.Round(time.Millisecond), float64(s.steps)/took.Seconds())
	t.Logf("done: %v", s.did)
	t.Logf("held: %v", s.held)
}
