package session

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A world is a simulated cluster with one user, whose home must never be in two
// desktops that run. Two portals decide and renew leases, each on its own reading, which
// may be old; each may fall asleep between a decision and its deed, and forget what it
// knew. Machines lose their power and their cable, and come back; people delete Nodes.

// Bugs of what is around the decisions.
const (
	forgotten = "Kubernetes forgets Pods of which nobody knows whether they are over"
	anyPod    = "a lease is renewed whatever the generation"
	backwards = "the Session is read before the clock"
	late      = "a lease counts from when it is sent"
	unleased  = "a desktop begins with a lease"
)

type chooser func(limit int) int

type decider func(Observed, time.Time) Decision

type world struct {
	choose chooser
	decide decider
	now    time.Time

	version  int // of whatever is in the API
	there    bool
	uid      int
	spec     Spec
	status   Status
	specRev  int
	template *Template
	pods     map[string]*worldPod // by name
	nodes    []*worldNode
	portals  [2]portal
	next     int    // UID of the next Pod
	bug      string // a planted one

	steps int
	did   map[Do]int
	log   []string
	wrong string
}

type worldPod struct {
	Pod
	rev    int
	failed bool // as PodGC writes it, which is no kubelet's word
}

type worldNode struct {
	name    string
	on, cut bool
	hung    bool            // its kubelet
	exists  bool            // its Node object
	beat    time.Time       // of its kubelet
	knows   map[string]bool // Pods that it has read, by UID; true: to end
	runs    map[string]bool
	was     map[string]bool // began, in any boot
	leases  map[string]time.Time
}

type portal struct {
	asleep  *Decision // between its decision and its deed
	session string
	rev     int
	since   map[string]time.Time // when it learnt that the generation of a Pod is over, by UID
	renewal *renewal             // under way
}

// renewal of a lease: between the reading of the clock and the question for the Session,
// or between that and the letter.
type renewal struct {
	uid, session string
	generation   int64
	clock        time.Time
	asked        bool
}

func newWorld(choose chooser, decide decider) *world {
	w := &world{choose: choose, decide: decide, now: time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC), pods: map[string]*worldPod{}, did: map[Do]int{},
		there: true, uid: 1, spec: Spec{User: "anna", Template: "xfce", Generation: 1, Wanted: true}, template: &Template{Name: "xfce", IdleAfter: Duration(time.Hour)}}
	for i := range 3 {
		w.nodes = append(w.nodes, &worldNode{name: fmt.Sprintf("pc-%d", i+1), on: true, exists: true, beat: w.now,
			knows: map[string]bool{}, runs: map[string]bool{}, was: map[string]bool{}, leases: map[string]time.Time{}})
	}
	for i := range w.portals {
		w.portals[i].since = map[string]time.Time{}
	}
	return w
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, w.now.Format("15:04:05 ")+fmt.Sprintf(format, args...))
}

func (w *world) rev() int { w.version++; return w.version }

// observe is what a portal sees; of an old reading, what it saw then.
func (w *world) observe(i int, fresh bool) Observed {
	p := &w.portals[i]
	o := Observed{Fresh: fresh, There: w.there, UID: fmt.Sprint(w.uid), Spec: w.spec, Status: w.status, Template: w.template}
	for _, name := range slices.Sorted(maps.Keys(w.pods)) {
		o.Pods = append(o.Pods, w.pods[name].Pod)
	}
	w.past(p, &o)
	return o
}

// past is what a portal has learnt of generations that are over: as package keeper does
// it, and on what it sees, which may be old.
func (w *world) past(p *portal, o *Observed) {
	o.Pods = slices.Clone(o.Pods)
	for i := range o.Pods {
		pod := &o.Pods[i]
		same := o.There && pod.Session == o.UID
		pod.Past = 0
		if same && pod.Generation >= o.Spec.Generation {
			delete(p.since, pod.UID)
			continue
		}
		since, known := p.since[pod.UID]
		if !known {
			if !same && !o.Fresh {
				continue
			}
			since = w.now
			p.since[pod.UID] = since
		}
		pod.Past = w.now.Sub(since)
	}
}

// round is one of a portal's: it looks, decides, and does, unless it falls asleep.
func (w *world) round(i int, stale *Observed, sleep bool) {
	p := &w.portals[i]
	o := w.observe(i, true)
	rev := w.specRev
	if stale != nil {
		o = *stale
		o.Fresh = false
		w.past(p, &o)
	}
	d := w.decide(o, w.now)
	if d.Do == Recheck {
		o = w.observe(i, true)
		rev = w.specRev
		d = w.decide(o, w.now)
	}
	if o.There && w.there && o.UID == fmt.Sprint(w.uid) && rev == w.specRev {
		w.status = d.Status
	}
	w.did[d.Do]++
	if d.Do == Nothing || d.Do == Recheck {
		return
	}
	p.session, p.rev = o.UID, rev
	// Create says whose Pod it is by what was seen.
	d.Pod.Session = cmpOr(d.Pod.Session, o.UID)
	if d.Do == Create {
		d.Pod.Generation = o.Spec.Generation
	}
	if sleep {
		w.note("portal %d falls asleep before %s", i, d.Do)
		p.asleep = &d
		return
	}
	w.carry(i, d)
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// carry does it, with the preconditions that package keeper gives the API.
func (w *world) carry(i int, d Decision) {
	p := w.portals[i]
	w.note("portal %d: %s %s %d: %s", i, d.Do, d.Pod.Name, d.Generation, d.Why)
	find := func() *worldPod {
		if q := w.pods[d.Pod.Name]; q != nil && q.UID == d.Pod.UID {
			return q
		}
		return nil
	}
	switch d.Do {
	case Raise:
		if w.there && p.session == fmt.Sprint(w.uid) && p.rev == w.specRev {
			w.spec.Generation, w.specRev = d.Generation, w.rev()
		}
	case Stop:
		if w.there && p.session == fmt.Sprint(w.uid) && p.rev == w.specRev {
			w.spec.Wanted, w.specRev = false, w.rev()
		}
	case Create:
		name := PodName("anna", d.Pod.Generation)
		if w.pods[name] == nil {
			w.next++
			w.pods[name] = &worldPod{Pod: Pod{Name: name, UID: fmt.Sprint("p", w.next), Session: d.Pod.Session, Generation: d.Pod.Generation}, rev: w.rev()}
		}
	case Delete:
		if q := find(); q != nil {
			q.Deleting, q.rev = true, w.rev()
			q.Ended = q.Ended || q.Node == ""
		}
	case Release:
		if q := find(); q != nil {
			delete(w.pods, q.Name)
		}
	}
}

// renew is the next part of what a portal does for the lease of a desktop.
func (w *world) renew(i int) {
	p := &w.portals[i]
	if p.renewal == nil {
		for _, n := range w.nodes {
			for uid := range n.runs {
				if pod := w.byUID(uid); pod != nil && n.on && !n.cut {
					p.renewal = &renewal{uid: uid, session: pod.Session, generation: pod.Generation, clock: w.now}
				}
			}
		}
		if p.renewal != nil && w.bug == backwards { // it asks before it reads the clock
			p.renewal.asked = w.lets(p.renewal)
		}
		return
	}
	r := p.renewal
	if !r.asked {
		if !w.lets(r) {
			p.renewal = nil
			return
		}
		r.asked = true
		return
	}
	p.renewal = nil
	until := r.clock.Add(LeaseFor)
	if w.bug == late || w.bug == backwards {
		until = w.now.Add(LeaseFor)
	}
	for _, n := range w.nodes {
		if n.on && !n.cut && n.runs[r.uid] && until.After(n.leases[r.uid]) && until.After(w.now) {
			n.leases[r.uid] = until
		}
	}
}

// lets is the API's answer.
func (w *world) lets(r *renewal) bool {
	return w.bug == anyPod || w.there && r.session == fmt.Sprint(w.uid) && r.generation == w.spec.Generation && w.spec.Wanted
}

func (w *world) byUID(uid string) *worldPod {
	for _, p := range w.pods {
		if p.UID == uid {
			return p
		}
	}
	return nil
}

// tick lets time go by.
func (w *world) tick(d time.Duration) {
	w.now = w.now.Add(d)
	for _, n := range w.nodes {
		if n.on && !n.cut && !n.hung {
			n.beat, n.exists = w.now, true
		}
		for _, p := range w.pods {
			// The taint manager of Kubernetes, and what collects Pods of no Node.
			if p.Node == n.name && !p.Deleting && w.now.Sub(n.beat) > 70*time.Second && w.choose(2) == 0 {
				p.Deleting = true
			}
			if p.Node == n.name && !n.exists && w.choose(2) == 0 {
				p.Deleting, p.failed = true, true
				if w.bug == forgotten {
					delete(w.pods, p.Name)
				}
			}
		}
	}
}

func (w *world) schedule() {
	for _, name := range slices.Sorted(maps.Keys(w.pods)) {
		p := w.pods[name]
		if p.Deleting || p.Node != "" {
			continue
		}
		for range 4 {
			n := w.nodes[w.choose(len(w.nodes))]
			if n.exists && w.now.Sub(n.beat) < 40*time.Second {
				p.Node = n.name
				break
			}
		}
	}
}

// kubelet is a round of one machine's: it reads, begins and ends, and reports. Each
// part may be left out, as if it was slow.
func (w *world) kubelet(n *worldNode, read, act, report bool) {
	if !n.on || n.hung {
		return
	}
	online := !n.cut && n.exists
	if read && online {
		clear(n.knows)
		for _, p := range w.pods {
			if p.Node == n.name {
				n.knows[p.UID] = p.Deleting
			}
		}
		for uid := range n.runs {
			if _, ok := n.knows[uid]; !ok {
				delete(n.runs, uid) // its Pod is gone
			}
		}
	}
	if act {
		for _, uid := range slices.Sorted(maps.Keys(n.knows)) {
			if !n.knows[uid] && !n.was[uid] {
				n.runs[uid], n.was[uid] = true, true
				if w.bug == unleased {
					n.leases[uid] = w.now.Add(LeaseFor)
				}
			} else if n.knows[uid] {
				delete(n.runs, uid)
			}
		}
	}
	if report && online {
		for _, p := range w.pods {
			if p.Node != n.name {
				continue
			}
			toEnd, known := n.knows[p.UID]
			if n.was[p.UID] {
				p.Begun = true
				p.Ready, p.Heard = n.runs[p.UID], time.Time{}
				if p.Ready {
					p.Heard = w.now
				}
				p.Ended = p.Ended || !n.runs[p.UID]
			} else if known && toEnd {
				p.Ended = true
			}
			p.rev = w.rev()
		}
	}
}

// check is what must hold: no two of one home have a lease where they run. A desktop may
// be late to see that its own has run out.
func (w *world) check() {
	var running []string
	for _, n := range w.nodes {
		if n.on {
			for uid := range n.runs {
				if w.now.Before(n.leases[uid].Add(time.Second)) {
					running = append(running, uid+" on "+n.name)
				}
			}
		}
	}
	if len(running) > 1 && w.wrong == "" {
		w.wrong = "two desktops of one home run: " + strings.Join(running, ", ")
	}
}

// calm is what mostly happens: everybody does his work.
func (w *world) calm() {
	w.round(0, nil, false)
	for range 3 {
		w.renew(w.choose(5) / 4) // the other one is slow
	}
	w.tick([]time.Duration{time.Second, 3 * time.Second, 20 * time.Second}[w.choose(3)])
	w.schedule()
	for _, n := range w.nodes {
		w.kubelet(n, true, w.choose(4) > 0, w.choose(3) > 0)
	}
	w.steps++
	w.check()
}

func (w *world) anything(stale []Observed) {
	n := w.nodes[w.choose(len(w.nodes))]
	someStale := func() *Observed {
		if len(stale) == 0 {
			return nil
		}
		// Each kind has a cache of its own, and one may be behind the other.
		o := stale[w.choose(len(stale))]
		o.Pods = stale[w.choose(len(stale))].Pods
		if w.choose(3) == 0 {
			o.Pods = w.observe(0, false).Pods
		}
		return &o
	}
	switch w.choose(38) {
	default:
		w.round(w.choose(2), nil, false)
	case 0, 1:
		w.round(w.choose(2), someStale(), false)
	case 2, 3:
		w.round(w.choose(2), nil, true)
	case 4, 5, 6:
		for i := range w.portals {
			if d := w.portals[i].asleep; d != nil {
				w.portals[i].asleep = nil
				w.carry(i, *d)
			}
		}
	case 7, 8, 9:
		w.tick([]time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 6 * time.Minute}[w.choose(5)])
	case 10, 11, 12:
		w.schedule()
	case 13, 14, 15, 16, 17, 18:
		w.kubelet(n, w.choose(3) > 0, w.choose(3) > 0, w.choose(3) > 0)
	case 19, 20:
		w.note("%s loses its power", n.name)
		n.on = false
		clear(n.runs)
		clear(n.knows)
	case 21, 22, 23:
		if !n.on {
			w.note("%s boots", n.name)
			n.on, n.hung = true, false
		}
	case 24:
		n.cut, n.hung = w.choose(2) == 0, w.choose(2) == 0
		w.note("%s: cut off %v, its kubelet hangs %v", n.name, n.cut, n.hung)
	case 25, 26:
		n.cut, n.hung = false, false
		w.note("%s has its cable", n.name)
	case 27, 28:
		w.renew(w.choose(2))
	case 29:
		w.note("somebody deletes the Node of %s", n.name)
		n.exists = false
	case 30, 31: // the user
		w.spec.Generation, w.spec.Wanted, w.specRev = w.spec.Generation+1, true, w.rev()
	case 32:
		w.spec.Wanted, w.specRev = false, w.rev()
	case 33:
		for _, p := range w.pods {
			p.Idle = time.Duration(w.choose(3)) * 40 * time.Minute
		}
	case 34: // a desktop that ends by itself
		clear(n.runs)
	case 35:
		if w.choose(6) == 0 {
			w.note("the Session is deleted, and made anew")
			w.uid++
			w.spec = Spec{User: "anna", Template: "xfce", Generation: 1, Wanted: true}
			w.status, w.specRev = Status{}, w.rev()
		}
	case 36:
		w.note("a portal begins anew")
		w.portals[w.choose(2)] = portal{since: map[string]time.Time{}}
	case 37:
		if w.template == nil {
			w.template = &Template{Name: "xfce", IdleAfter: Duration(time.Hour)}
		} else if w.choose(4) == 0 {
			w.template = nil
		}
	}
	w.steps++
	w.check()
}

// settle ends the faults. One machine may stay away for good; the desktop must run in
// the end.
func (w *world) settle() {
	w.note("all faults end")
	lost := w.choose(4)
	for i, n := range w.nodes {
		n.cut, n.hung = false, false
		if i == lost {
			n.on = false
			clear(n.runs)
			continue
		}
		n.on = true
	}
	w.template = &Template{Name: "xfce", IdleAfter: Duration(time.Hour)}
	w.spec.Wanted, w.specRev = true, w.rev()
	w.spec.Generation++
	for range 200 {
		for i := range w.portals {
			if d := w.portals[i].asleep; d != nil {
				w.portals[i].asleep = nil
				w.carry(i, *d)
			}
		}
		for _, p := range w.pods {
			p.Idle = 0
		}
		w.round(0, nil, false)
		w.renew(0)
		w.tick(5 * time.Second)
		w.schedule()
		for _, n := range w.nodes {
			w.kubelet(n, true, true, true)
		}
		if w.check(); w.wrong != "" {
			return
		}
		if w.status.Phase == Ready && len(w.pods) == 1 {
			return
		}
	}
	w.wrong = fmt.Sprintf("the desktop does not run in the end: %+v; pods %d", w.status, len(w.pods))
}

const lifeSteps = 200

func live(choose chooser, decide decider) *world { return newWorld(choose, decide).live() }

func (w *world) live() *world {
	var stale []Observed
	for range lifeSteps {
		if w.choose(4) == 0 {
			stale = append(stale, w.observe(0, false))
			if len(stale) > 5 {
				stale = stale[1:]
			}
		}
		if w.choose(3) > 0 {
			w.calm()
		} else {
			w.anything(stale)
		}
		if w.wrong != "" {
			return w
		}
	}
	w.settle()
	return w
}

func seeded(seed uint64) chooser { return rand.New(rand.NewPCG(seed, 0x6465736b)).IntN }

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 1<<20)
		w := live(func(limit int) int { return n.Draw(t, "n") % limit }, Decide)
		if w.wrong != "" {
			t.Fatalf("%s\n%s", w.wrong, strings.Join(w.log, "\n"))
		}
	})
}

// TestModelReaches: more lives, and each action is done in them: a model that does not
// get there proves nothing.
func TestModelReaches(t *testing.T) {
	lives := uint64(3000)
	if testing.Short() {
		lives = 300
	}
	did, steps := map[Do]int{}, 0
	for seed := range lives {
		w := live(seeded(seed), Decide)
		if w.wrong != "" {
			t.Fatalf("seed %d: %s\n%s", seed, w.wrong, strings.Join(w.log, "\n"))
		}
		for do, n := range w.did {
			did[do] += n
		}
		steps += w.steps
	}
	for _, do := range []Do{Nothing, Raise, Create, Delete, Release, Warn, Stop} {
		if did[do] == 0 {
			t.Errorf("never was anything of %q done", do)
		}
	}
	t.Logf("%d steps: %v", steps, did)
}

// TestModelFindsBugs plants bugs, one at a time; the model must find each.
func TestModelFindsBugs(t *testing.T) {
	always := func(change func(*Observed)) decider {
		return func(o Observed, now time.Time) Decision {
			o.Pods = slices.Clone(o.Pods)
			change(&o)
			return Decide(o, now)
		}
	}
	bugs := map[string]decider{
		"what was told to end counts as over": always(func(o *Observed) {
			for i := range o.Pods {
				o.Pods[i].Ended = o.Pods[i].Ended || o.Pods[i].Deleting
			}
		}),
		"a lease that is not renewed counts as one that has run out": always(func(o *Observed) {
			for i := range o.Pods {
				if o.Pods[i].Past > 0 {
					o.Pods[i].Past += LeaseFor
				}
			}
		}),
		"other Pods are not looked at": always(func(o *Observed) {
			o.Pods = slices.DeleteFunc(o.Pods, func(p Pod) bool { return o.There && (p.Generation != o.Spec.Generation || p.Session != o.UID) })
		}),
		"a Pod of another Session of the name is taken for its own": always(func(o *Observed) {
			for i := range o.Pods {
				o.Pods[i].Session = o.UID
			}
			o.Pods = slices.DeleteFunc(o.Pods, func(p Pod) bool { return p.Generation > o.Spec.Generation })
		}),
		"who was lost is never followed": func(o Observed, now time.Time) Decision {
			if d := Decide(o, now); d.Do != Raise {
				return d
			}
			return Decision{Status: o.Status}
		},
		forgotten: Decide, anyPod: Decide, backwards: Decide, late: Decide, unleased: Decide,
	}
	for name, bug := range bugs {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4000) {
				w := newWorld(seeded(seed), bug)
				w.bug = name
				if w.live().wrong != "" {
					t.Logf("seed %d: %s", seed, w.wrong)
					return
				}
			}
			t.Error("the model did not find it")
		})
	}
}

// TestLate is what chance hardly finds: a portal that slept before it made a Pod makes it
// when the next one runs. It gets no lease, and goes; and the next one goes on.
func TestLate(t *testing.T) {
	w := newWorld(func(int) int { return 1 }, Decide)
	w.round(1, nil, true) // portal 1 is to make the first Pod, and sleeps
	w.spec.Generation, w.specRev = 2, w.rev()
	for range 5 {
		w.calm()
	}
	if w.status.Phase != Ready {
		t.Fatalf("the second one does not run: %+v", w.status)
	}
	w.carry(1, *w.portals[1].asleep)
	if w.pods["desk-anna-1"] == nil {
		t.Fatal("the first one was not made")
	}
	for range 10 {
		w.schedule()
		for _, n := range w.nodes {
			w.kubelet(n, true, true, true)
		}
		w.calm()
		if w.status.Phase != Ready || w.status.Pod != "desk-anna-2" {
			t.Fatalf("it is in the way: %+v", w.status)
		}
	}
	if w.wrong != "" || w.pods["desk-anna-1"] != nil {
		t.Errorf("%d Pods; %s", len(w.pods), w.wrong)
	}
}
