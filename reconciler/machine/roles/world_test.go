package roles

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// planner is Plan, or one with a bug that the model must find.
type planner func(Declared, Observed, time.Time, Memory) Decision

// chooser gives numbers from 0 to n-1: rapid's, or those of a seed.
type chooser func(n int) int

// pc is one machine as it really is; what the API server has of it is in object.
type pc struct {
	name, address string

	on, lost       bool // lost for good: it is never switched on again
	side           int  // of a network that is cut in two
	boot, booting  int  // ticks until it is up
	kubelet, agent bool // processes
	etcd           bool

	// its disk
	conf, keys, manifests bool
	registered            bool   // by the kubelet that runs
	data                  uint64 // of which member
	seenRole              string
	seen, reached         int64
	tried, failed         int64
	join                  int // how far
	joining               uint64
	reset                 string // the order that was carried out

	pods         int
	stuck, fails bool // its Pods cannot be evicted; its next join fails
	skew, fsync  time.Duration
	images       bool
	cpu          int
}

func (p *pc) blank() bool { return !p.conf && !p.keys && !p.manifests && p.data == 0 }

// object is what the API server has of a machine.
type object struct {
	role                       string
	generation                 int64
	ordered                    string
	invited                    string // the boot for which a token exists
	until                      time.Time
	heartbeat                  time.Time
	reached, failed            int64
	resetFor                   string
	blank, keys                bool
	boot                       string
	joined, labelled, cordoned bool
	ours                       bool
	lease                      time.Time
}

type etcdMember struct {
	id         uint64
	name, peer string
	learner    bool
}

// brain is one daemon.
type brain struct {
	memory Memory
	git    Declared
	// down is for how long it looked while a machine was down in truth.
	down   map[string]time.Duration
	looked time.Time
}

// look forgets what it saw before a gap.
func (b *brain) look(now time.Time) {
	if now.Before(b.looked) {
		return
	}
	if now.Sub(b.looked) > 40*time.Second {
		clear(b.down)
	}
	b.looked = now
}

// reading is what a daemon read, and of which version of the records.
type reading struct {
	Observed
	version int
}

// world is a site, with the rules of etcd, kubeadm and the agents.
type world struct {
	choose  chooser
	plan    planner
	now     time.Time
	pcs     []*pc
	objects map[string]*object
	members []etcdMember
	leads   uint64
	nextID  uint64
	crowns  []Crown
	version int
	key     Key
	snap    time.Time
	git     Declared
	pulls   bool // the git server answers
	brains  [2]*brain
	leading int
	past    []reading // for caches that lag

	flaky     bool     // the next write meets an error
	fullDisk  bool     // no snapshot can be written
	violation error    // the first invariant that was broken
	log       []string // what happened, for people
	steps     int
	did       map[Action]int
	held      map[plan.Code]int
	retired   map[uint64]bool // members that were removed
}

func (w *world) note(format string, a ...any) {
	w.log = append(w.log, w.now.Format("15:04:05 ")+fmt.Sprintf(format, a...))
}

// The numbers are those of the design's list of what must hold; 13 is ours: the
// Node of a machine stays until the machine has proved that it runs nothing of it.
func (w *world) violate(number int, format string, a ...any) {
	if w.violation == nil {
		w.violation = fmt.Errorf("invariant %d: %s", number, fmt.Sprintf(format, a...))
		w.note("VIOLATION %v", w.violation)
	}
}

var start = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

// newWorld is a site that works: n machines, some of them masters.
func newWorld(choose chooser, p planner) *world {
	n := 4 + choose(6)
	w := &world{choose: choose, plan: p, now: start, objects: map[string]*object{}, nextID: 0xa0, pulls: true,
		did: map[Action]int{}, held: map[plan.Code]int{}, retired: map[uint64]bool{}}
	masters := []int{1, 3, 3, 3, 5}[choose(5)]
	masters = min(masters, n/2*2-1)
	w.git = Declared{Masters: masters, Failover: plan.Failover{After: plan.Duration{Duration: []time.Duration{time.Minute, 5 * time.Minute, 10 * time.Minute}[choose(3)]}}}
	w.git.Failover.CrownsPerDay = choose(3) // 0 is the default
	circuits := choose(4)
	for i := range n {
		name := fmt.Sprintf("pc-%02d", i+1)
		d := Declaration{Name: name}
		if circuits > 0 {
			d.Circuit = string(rune('A' + i%circuits))
		}
		w.git.Machines = append(w.git.Machines, d)
		p := &pc{name: name, address: fmt.Sprintf("10.0.0.%d", i+1), on: true, boot: 1, kubelet: true, agent: true, conf: true,
			seenRole: Worker, seen: 1, reached: 1, pods: choose(3), fsync: time.Duration(1+choose(5)) * time.Millisecond, images: choose(2) == 0, cpu: 2 + choose(3)}
		o := &object{role: Worker, generation: 1, joined: true}
		if i < masters {
			w.nextID++
			p.seenRole, p.keys, p.manifests, p.data, p.etcd = Master, true, true, w.nextID, true
			o.role, o.labelled = Master, true
			w.members = append(w.members, etcdMember{id: w.nextID, name: name, peer: peer(p)})
		}
		w.pcs = append(w.pcs, p)
		w.objects[name] = o
	}
	w.lead(0)
	w.tick(10 * time.Second)
	w.tick(10 * time.Second)
	return w
}

func peer(p *pc) string { return "https://" + p.address + ":2380" }

func (w *world) lead(i int) {
	w.leading = i
	w.brains[i] = &brain{git: w.git, down: map[string]time.Duration{}}
}

func (w *world) pc(name string) *pc {
	if i := slices.IndexFunc(w.pcs, func(p *pc) bool { return p.name == name }); i >= 0 {
		return w.pcs[i]
	}
	return nil
}

func (w *world) member(id uint64) *etcdMember {
	if i := slices.IndexFunc(w.members, func(m etcdMember) bool { return m.id == id }); i >= 0 {
		return &w.members[i]
	}
	return nil
}

func (w *world) voters() (n int) {
	for _, m := range w.members {
		if !m.learner {
			n++
		}
	}
	return n
}

// running is the machine on which a member runs.
func (w *world) running(m etcdMember) *pc {
	for _, p := range w.pcs {
		if p.on && p.etcd && p.data == m.id {
			return p
		}
	}
	return nil
}

// quorumSide is the side of the network on which etcd works; -1 for neither.
func (w *world) quorumSide() int {
	var n [2]int
	for _, m := range w.members {
		if p := w.running(m); p != nil && !m.learner {
			n[p.side]++
		}
	}
	for side, n := range n {
		if n >= quorum(w.voters()) {
			return side
		}
	}
	return -1
}

func (w *world) answers(m etcdMember) bool {
	p := w.running(m)
	return p != nil && p.side == w.quorumSide()
}

// healthy counts the voters that answer, but one.
func (w *world) healthy(without uint64) (n int) {
	for _, m := range w.members {
		if !m.learner && m.id != without && w.answers(m) {
			n++
		}
	}
	return n
}

// tick lets time pass, in turns of ten seconds: the agents, and the leading
// daemon looks.
func (w *world) tick(d time.Duration) {
	turn := 10 * time.Second
	if d > time.Hour/2 {
		turn = 30 * time.Second
	}
	for ; d > 0; d -= turn {
		step := min(turn, d)
		w.now = w.now.Add(step)
		for _, p := range w.pcs {
			w.turn(p)
		}
		w.invariants()
		if b := w.brains[w.leading]; b != nil && w.quorumSide() >= 0 {
			b.look(w.now)
			b.memory = b.memory.See(w.observe(true).Observed, 40*time.Second)
			for _, p := range w.pcs {
				if w.isDown(p) {
					b.down[p.name] += step
				} else {
					b.down[p.name] = 0
				}
			}
		}
	}
}

// isDown reports whether a machine gives no sign, in truth.
func (w *world) isDown(p *pc) bool {
	if !p.on || p.side != w.quorumSide() || p.booting > 0 {
		return true
	}
	if p.etcd && w.member(p.data) != nil {
		return false
	}
	return !p.agent && !(p.kubelet && p.conf)
}

// turn is what a machine does in one turn: its agent, kubelet and etcd.
func (w *world) turn(p *pc) {
	if !p.on {
		return
	}
	o := w.objects[p.name]
	reach := w.quorumSide() == p.side
	learn := func() {
		if reach && o.generation >= p.seen {
			p.seen, p.seenRole = o.generation, o.role
		}
	}
	reboot := func() { p.boot, p.booting, p.etcd, p.join = p.boot+1, 2, false, 0 }
	fence := func() {
		p.etcd, p.data, p.keys, p.manifests, p.conf, p.join = false, 0, false, false, false, 0
		reboot()
	}
	if p.booting > 0 {
		if p.booting--; p.booting > 0 {
			return
		}
		p.kubelet, p.agent, p.registered = true, true, false
		learn()
		if p.seenRole == Worker && (p.manifests || p.data != 0 || p.keys) {
			fence() // before kubelet and etcd may start
			return
		}
	}
	joins := false
	if p.agent {
		learn()
		switch {
		case p.seenRole == Worker && (p.manifests || p.data != 0 || p.keys):
			fence()
			return
		case p.seenRole == Worker && o.ordered != "" && o.ordered != p.reset && reach:
			p.reset, p.conf = o.ordered, false
			reboot()
			return
		case p.seenRole == Master && p.seen > p.reached && reach:
			w.join(p, o)
		case p.seenRole == Worker:
			if p.reached = p.seen; p.blank() && o.invited == fmt.Sprint(p.boot) && o.until.After(w.now) && reach && !o.joined {
				p.conf, joins = true, true
			}
		}
		if reach && !joins { // its Node is there before it tells that it is blank no more
			o.heartbeat = w.now.Add(p.skew)
			o.resetFor = p.reset
			o.reached, o.failed, o.blank, o.keys, o.boot = p.reached, p.failed, p.blank(), p.keys, fmt.Sprint(p.boot)
		}
	}
	if p.kubelet && p.conf && reach {
		if !o.joined && !p.registered { // which a kubelet does when it starts, and not again
			o.joined, o.labelled, o.cordoned, o.ours = true, false, false, false
		}
		p.registered = true
		if o.joined {
			o.lease = w.now.Add(p.skew)
		}
	}
	if p.kubelet && p.manifests && p.data != 0 {
		p.etcd = true
	}
	if p.etcd && reach && w.member(p.data) == nil {
		p.etcd = false // "the member has been permanently removed"
	}
}

// join is kubeadm join --control-plane, a part of it each turn. An agent tries
// each generation once: a second try would find its own member, skip the add, and
// start a voter on an empty directory.
func (w *world) join(p *pc, o *object) {
	fail := func(why string) {
		p.failed, p.join = p.seen, 0
		w.note("%s: join fails: %s", p.name, why)
	}
	switch p.join {
	case 0:
		switch {
		case p.tried == p.seen:
			if p.failed != p.seen {
				fail("interrupted")
			}
			return
		case w.key.For != p.name || w.key.Boot != fmt.Sprint(p.boot) || !w.key.Until.After(w.now) || !p.blank():
			return
		}
		p.tried = p.seen
		if p.fails {
			p.fails = false
			fail("early")
			return
		}
		for _, m := range w.members {
			if m.peer == peer(p) {
				w.violate(5, "%s joins, and member %x has its peer URL: kubeadm skips the add, and etcd starts on an empty directory", p.name, m.id)
				return
			}
			if m.learner || m.name == "" {
				fail("too many learner members")
				return
			}
		}
		if n := w.voters(); n > 1 && w.healthy(0) < quorum(n+1) { // as etcd since 3.6.12
			fail("unhealthy cluster")
			return
		}
		w.nextID++
		w.members = append(w.members, etcdMember{id: w.nextID, peer: peer(p), learner: true})
		p.joining, p.keys, p.manifests, p.join = w.nextID, true, true, 1
		if w.choose(12) == 0 {
			fail("after the add")
		}
	case 1:
		m := w.member(p.joining)
		if m == nil {
			fail("its member was removed")
			return
		}
		m.name, p.data, p.etcd, p.join = p.name, p.joining, true, 2
		if w.choose(12) == 0 {
			fail("as a learner")
		}
	case 2:
		m := w.member(p.joining)
		if m == nil {
			fail("its member was removed")
			return
		}
		m.learner, p.conf, p.registered, p.reached, p.join = false, true, true, p.seen, 0
		o.joined, o.labelled, o.cordoned, o.ours = true, true, false, false
		o.lease = w.now
		w.note("%s is a master", p.name)
	}
}

// observe is a reading of now.
func (w *world) observe(fresh bool) reading {
	o := Observed{At: w.now, Fresh: fresh, Version: "v1.36.3", Agree: true, Key: w.key, Snapshot: w.snap, Crowns: slices.Clone(w.crowns)}
	for _, p := range w.pcs {
		a := w.objects[p.name]
		pods := p.pods
		if !a.joined {
			pods = 0
		}
		o.Machines = append(o.Machines, Machine{Name: p.name, Joined: a.joined, Ready: a.joined && w.now.Sub(a.lease.Add(-p.skew)) < 50*time.Second && !a.blank,
			Labelled: a.labelled, Cordoned: a.cordoned, Ours: a.ours, Lease: a.lease, Version: "v1.36.3",
			Role: a.role, Generation: a.generation, Ordered: a.ordered, Invited: a.invited != "" && a.invited == a.boot && a.until.After(w.now),
			ResetFor: a.resetFor, Heartbeat: a.heartbeat, Reached: a.reached, Blank: a.blank, Keys: a.keys, Failed: a.failed, Boot: a.boot,
			Address: p.address, CPU: p.cpu, Memory: 8 << 30, Fsync: p.fsync, Skew: p.skew, Images: p.images, Pods: pods, Displaced: float64(pods)})
	}
	leader := w.member(w.leads)
	if leader == nil || leader.learner || !w.answers(*leader) {
		for _, m := range w.members {
			if !m.learner && w.answers(m) {
				w.leads = m.id
				break
			}
		}
	}
	for _, m := range w.members {
		o.Members = append(o.Members, Member{ID: m.id, Name: m.name, PeerURL: m.peer, Learner: m.learner, Leader: m.id == w.leads, Answers: m.name != "" && w.answers(m)})
	}
	return reading{o, w.version}
}

// The points at which a daemon may be killed.
const (
	never = iota
	beforeRecord
	beforeAct
	afterAct
)

// daemon is one round of a daemon on a cache that lags. It is killed at a point.
func (w *world) daemon(i, lag, kill int) *Decision {
	if w.brains[i] == nil {
		w.lead(i)
	}
	b := w.brains[i]
	w.steps++
	if w.pulls {
		b.git = w.git
	}
	r := w.observe(false)
	if w.quorumSide() < 0 {
		// The API server is away; etcd's members can still be asked one by one.
		d := w.plan(b.git, r.Observed, w.now, b.memory)
		if d.Step != nil {
			w.violate(1, "the quorum is lost, and the planner decides %s", d.Step)
		}
		w.heldBy(&d)
		return &d
	}
	if w.past = append(w.past, r); len(w.past) > 8 {
		w.past = slices.Delete(w.past, 0, 1)
	}
	if lag > 0 {
		r = w.past[max(0, len(w.past)-1-lag)]
	}
	b.look(r.At)
	d := w.plan(b.git, r.Observed, w.now, b.memory)
	b.memory = d.Memory
	if d.Step != nil && d.Step.Do == Recheck {
		b.look(w.now)
		if kill == beforeRecord {
			w.brains[i] = nil
			return &d
		}
		r = w.observe(true)
		d = w.plan(b.git, r.Observed, w.now, b.memory)
		b.memory = d.Memory
	}
	w.heldBy(&d)
	w.carry(i, r, &d, kill)
	return &d
}

func (w *world) heldBy(d *Decision) {
	for _, f := range slices.Concat(d.Holds, d.Waits) {
		w.held[f.Code]++
		if f.Cause == "" {
			w.violate(0, "%s has no sentence", f.Code)
		}
	}
}

// carry is the executor.
func (w *world) carry(i int, r reading, d *Decision, kill int) {
	b := w.brains[i]
	if d.Step == nil {
		return
	}
	s := *d.Step
	if s.Do.NeedsFresh() && !r.Fresh {
		w.violate(10, "%s is decided on a cache", s)
	}
	if kill == beforeRecord {
		w.note("daemon %d is killed before the record of %s", i, s)
		w.brains[i] = nil
		return
	}
	w.check(b, r, &s, d)
	if d.Record != nil {
		if r.version != w.version {
			w.note("daemon %d is late: %s", i, s)
			return
		}
		w.record(*d.Record)
	}
	if kill == beforeAct {
		w.note("daemon %d is killed before %s", i, s)
		w.brains[i] = nil
		return
	}
	if w.flaky {
		w.flaky = false
		if d.Record != nil && d.Record.Open() {
			failed := *d.Record
			failed.Attempts, failed.Error = failed.Attempts+1, "etcdserver: request timed out"
			w.record(failed)
		}
		return
	}
	w.did[s.Do]++
	if s.Do != Verify && s.Do != Prepull {
		w.note("daemon %d: %s (%s)", i, s, s.Why)
	}
	w.act(&s)
	if kill == afterAct {
		w.note("daemon %d is killed after it", i)
		w.brains[i] = nil
	}
}

func (w *world) record(c Crown) {
	i := slices.IndexFunc(w.crowns, func(old Crown) bool { return old.Number == c.Number })
	switch {
	case i < 0:
		w.crowns = append(w.crowns, c)
	case reflect.DeepEqual(w.crowns[i], c):
		return
	default:
		w.crowns[i] = c
	}
	w.version++
}

// act does a step, as the API server, etcd and kubeadm would have it.
func (w *world) act(s *Step) {
	p, o := w.pc(s.Machine), w.objects[s.Machine]
	switch s.Do {
	case Cordon:
		if o.joined && !o.cordoned {
			o.cordoned, o.ours = true, true
		}
	case Uncordon:
		if o.ours {
			o.cordoned, o.ours = false, false
		}
	case Prepull:
		p.images = true
	case Drain:
		if !p.stuck {
			p.pods = max(0, p.pods-1)
		}
	case Reset:
		o.ordered = s.Crown
	case DeleteNode:
		*o = object{role: o.role, generation: o.generation, ordered: o.ordered, resetFor: o.resetFor, invited: o.invited, until: o.until, heartbeat: o.heartbeat,
			reached: o.reached, failed: o.failed, blank: o.blank, keys: o.keys, boot: o.boot}
	case RemoveMember:
		if m := w.member(s.Member); m != nil && m.peer == s.PeerURL {
			if !m.learner && w.answers(*m) && w.healthy(0)-1 < quorum(w.voters()-1) {
				w.note("etcd refuses") // strict reconfiguration
				return
			}
			w.retired[m.id] = true
			w.members = slices.DeleteFunc(w.members, func(m etcdMember) bool { return m.id == s.Member })
		}
	case Fence, Join:
		if s.Generation > o.generation { // written only over a smaller one
			o.generation, o.role = s.Generation, Worker
			if s.Do == Join {
				o.role = Master
			}
		}
	case IssueKey:
		w.key = Key{s.Machine, s.Boot, w.now.Add(15 * time.Minute)}
	case Cleanup:
		w.key = Key{}
	case Snapshot:
		if !w.fullDisk {
			w.snap = w.now
		}
	case MoveLeader:
		for _, m := range w.members {
			if m.name == s.To && !m.learner && w.answers(m) {
				w.leads = m.id
			}
		}
	case Repair:
		if p.on && p.agent && p.side == w.quorumSide() {
			p.kubelet, p.registered = true, false
		}
	case Withdraw:
		o.ordered = ""
	case Label:
		o.labelled = true
	case JoinWorker:
		o.invited, o.until = o.boot, w.now.Add(15*time.Minute)
	}
}

// check is the invariants that a step could break, told from the truth and not
// from what the planner saw.
func (w *world) check(b *brain, r reading, s *Step, d *Decision) {
	git, c := b.git.withDefaults(), d.Record
	declared := func(name string) Declaration {
		i := slices.IndexFunc(git.Machines, func(d Declaration) bool { return d.Name == name })
		if i < 0 {
			return Declaration{Name: name, Master: Never}
		}
		return git.Machines[i]
	}
	if git.Suspended != "" {
		w.violate(8, "the site is suspended, and the step is %s", s)
	}
	if s.Machine != "" && declared(s.Machine).Paused && (s.Do.touches() && s.Do != Cancel && s.Do != RollBack) {
		w.violate(8, "%s is paused, and the step is %s", s.Machine, s)
	}
	open := 0
	for i := range w.crowns {
		if w.crowns[i].Open() {
			open++
		}
	}
	if s.Do == Choose && r.version == w.version && open > 0 {
		w.violate(3, "a crown is open, and another is begun")
	}
	m := w.member(s.Member)
	switch s.Do {
	case Choose, Join:
		if c == nil || c.Heir == "" {
			break
		}
		p, slow := w.pc(c.Heir), 10*time.Millisecond
		if s.Do == Join { // it was fit when it was chosen
			slow *= bearable
		}
		if dec := declared(c.Heir); dec.Master == Never || dec.Paused || p.cpu < 2 || p.fsync > slow || p.skew.Abs() > 5*time.Second && s.Do == Choose {
			w.violate(7, "%s is no eligible heir: %+v, fsync %s, skew %s", c.Heir, dec, p.fsync, p.skew)
		}
		for _, old := range w.crowns {
			if s.Do == Choose && old.Heir == c.Heir && old.Outcome == Failed && w.now.Sub(old.Ended) < day {
				w.violate(7, "%s failed as heir within a day", c.Heir)
			}
		}
	case Reset, Fence:
		p := w.pc(s.Machine)
		for _, m := range w.members {
			if m.name == s.Machine && !m.learner && p.data == m.id && w.objects[s.Machine].role == Master {
				w.violate(2, "%s has a voter, and the step is %s", s.Machine, s)
			}
		}
	case DeleteNode:
		// With the Node gone, Kubernetes starts the Pods of StatefulSets elsewhere.
		if p := w.pc(s.Machine); p.conf && r.version == w.version {
			w.violate(13, "the Node of %s is deleted, and it may run what it was given", s.Machine)
		}
	case IssueKey:
		if w.objects[s.Machine].role == Master && w.pc(s.Machine).data == 0 && w.pc(s.Machine).reached == w.objects[s.Machine].generation {
			w.violate(12, "a key for %s, which is a master", s.Machine)
		}
		if c == nil || c.Heir != s.Machine {
			w.violate(12, "a key for %s, which is no heir", s.Machine)
		}
	case RemoveMember:
		if m == nil || m.learner || m.name == "" {
			break
		}
		left, healthy := w.voters()-1, w.healthy(m.id)
		if healthy < quorum(left) || left == 0 {
			w.violate(1, "%s is removed, and %d of the remaining %d are healthy", m.name, healthy, left)
		}
		if w.answers(*m) && healthy < quorum(git.Masters) {
			w.violate(2, "%s is removed, and %d of %d declared are healthy", m.name, healthy, git.Masters)
		}
		if w.answers(*m) && (c == nil || c.Kind != Retire || left < git.Masters) {
			w.violate(4, "%s answers and is removed", m.name)
		}
		for i := range w.crowns {
			if w.answers(*m) && w.crowns[i].Open() && w.crowns[i].Dead {
				w.violate(4, "%s answers and is removed as dead", m.name)
			}
		}
		w.checkBreakers(b, git, m.name, c)
	}
}

// checkBreakers counts again what the planner should have counted.
func (w *world) checkBreakers(b *brain, git Declared, victim string, c *Crown) {
	circuit, onCircuit, down, machines := "", 0, 0, 0
	for _, d := range git.Machines {
		if d.Name == victim {
			circuit = d.Circuit
		}
	}
	for _, d := range git.Machines {
		if w.objects[d.Name].role == "" {
			continue
		}
		machines++
		if b.down[d.Name] <= time.Minute || !w.isDown(w.pc(d.Name)) {
			if c != nil && d.Name == c.Heir {
				down++
			}
			continue
		}
		down++
		if circuit != "" && d.Circuit == circuit {
			onCircuit++
		}
	}
	if limit := git.Failover.CircuitBreaker.Machines; onCircuit >= limit {
		w.violate(9, "%s is removed while %d machines of circuit %s are down", victim, onCircuit, circuit)
	}
	if limit := max(3, git.Failover.CircuitBreaker.Share.Of(machines, "30%")); down >= limit {
		w.violate(9, "%s is removed while %d of %d machines are down or changed", victim, down, machines)
	}
	if c != nil && c.Kind == Replace && c.Victim == victim {
		crowned := 0
		for i := range w.crowns {
			if at, ok := w.crowns[i].removed(); ok && w.crowns[i].Kind == Replace && w.crowns[i].Number != c.Number && w.now.Sub(at) < day {
				crowned++
			}
		}
		if crowned >= git.Failover.CrownsPerDay {
			w.violate(9, "%s is removed after %d crowns within a day", victim, crowned)
		}
		if p := w.pc(victim); b.down[victim]+40*time.Second < git.Failover.After.Duration && !p.blank() {
			w.violate(9, "%s is removed after %s, before failover.after", victim, b.down[victim])
		}
	}
}

// invariants are those of a state.
func (w *world) invariants() {
	if w.violation != nil {
		return
	}
	loose, open := 0, 0
	peers := map[string]uint64{}
	for _, m := range w.members {
		if m.learner || m.name == "" {
			loose++
		}
		if other, ok := peers[m.peer]; ok {
			w.violate(5, "members %x and %x have peer URL %s", other, m.id, m.peer)
		}
		peers[m.peer] = m.id
	}
	if loose > 1 {
		w.violate(3, "%d learners or unnamed members", loose)
	}
	for i := range w.crowns {
		if w.crowns[i].Open() {
			open++
		}
	}
	if open > 1 {
		w.violate(3, "%d crowns are open", open)
	}
	for _, p := range w.pcs {
		o := w.objects[p.name]
		if p.on && p.etcd && w.member(p.data) != nil && w.retired[p.data] {
			w.violate(6, "%s serves as member %x, which was retired", p.name, p.data)
		}
		if p.on && p.agent && p.booting == 0 && p.side == w.quorumSide() && o.role == Worker && p.seen == o.generation {
			if p.etcd || p.manifests {
				w.violate(6, "%s is a worker of generation %d, and runs etcd", p.name, p.seen)
			}
			if p.keys {
				w.violate(12, "%s is a worker, and has the CA's keys", p.name)
			}
		}
		if o.generation < p.seen {
			w.violate(6, "the generation of %s shrank", p.name)
		}
	}
}

// String is what happened last.
func (w *world) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "declared %d of %+v\n", w.git.Masters, w.git.Machines)
	for _, line := range w.log[max(0, len(w.log)-60):] {
		fmt.Fprintln(&b, line)
	}
	fmt.Fprintf(&b, "members %+v\nkey %+v\n", w.members, w.key)
	for _, p := range w.pcs {
		fmt.Fprintf(&b, "%+v\n    %+v\n", *p, *w.objects[p.name])
	}
	for _, c := range w.crowns {
		if c.Open() {
			fmt.Fprintf(&b, "open: %+v\n", c)
		} else {
			fmt.Fprintf(&b, "%s: %s %s heir %s: %s %s\n", c.Name(), c.Kind, c.Victim, c.Heir, c.Outcome, cmp.Or(c.Cause, "-"))
		}
	}
	return b.String()
}
