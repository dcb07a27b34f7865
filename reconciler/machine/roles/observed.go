package roles

import (
	"cmp"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Declared is what the site repo says, as far as roles go.
type Declared struct {
	// Masters is how many there are to be. 0 is 3.
	Masters int
	// Failover says when a dead master is replaced, and what holds that back.
	Failover plan.Failover
	// Suspended is the reason why the site is suspended, "" where it is not.
	Suspended string
	// Machines of the site repo, and of an open site those that it admitted.
	Machines []Declaration
	// Limits of heirs and steps.
	Limits Limits
}

// Declaration is one machine of the site repo.
type Declaration struct {
	Name    string
	Master  string // Allowed, Preferred or Never; "" is Allowed
	Circuit string // what fails with it; "" is a circuit of its own
	Paused  bool
}

// The values of Declaration.Master.
const (
	Allowed   = "allowed"
	Preferred = "preferred"
	Never     = "never"
)

// The roles of a machine.
const (
	Master = "master"
	Worker = "worker"
)

// Limits say what an heir must be able to do, and how long a step may take. The
// zero value of each takes the default that its comment names.
type Limits struct {
	CPU      int           // cores; 2
	Memory   int64         // bytes; 2 GiB, less what a kernel keeps of it
	Fsync    time.Duration // p99 of a write below etcd; 10ms
	Skew     time.Duration // of a clock; 5s
	Silent   time.Duration // a sign of life is older than this: silent; 40s
	Lost     time.Duration // an heir that is silent for so long failed; 5m, for PCs that start slowly
	Prepull  time.Duration // 10m
	Drain    time.Duration // 5m
	Reset    time.Duration // with the reboot; 10m
	Join     time.Duration // 10m
	Verify   time.Duration // 10m
	Snapshot time.Duration // 2m
	Held     time.Duration // a prepared heir is kept waiting by breakers for so long; 30m
	Repair   time.Duration // without a sign of a kubelet before it is restarted, and between two restarts; 2m
}

func (l Limits) withDefaults() Limits {
	l.CPU = cmp.Or(l.CPU, 2)
	l.Memory = cmp.Or(l.Memory, 1700<<20)
	l.Fsync = cmp.Or(l.Fsync, 10*time.Millisecond)
	l.Skew = cmp.Or(l.Skew, 5*time.Second)
	l.Silent = cmp.Or(l.Silent, 40*time.Second)
	l.Lost = cmp.Or(l.Lost, 5*time.Minute)
	l.Prepull = cmp.Or(l.Prepull, 10*time.Minute)
	l.Drain = cmp.Or(l.Drain, 5*time.Minute)
	l.Reset = cmp.Or(l.Reset, 10*time.Minute)
	l.Join = cmp.Or(l.Join, 10*time.Minute)
	l.Verify = cmp.Or(l.Verify, 10*time.Minute)
	l.Snapshot = cmp.Or(l.Snapshot, 2*time.Minute)
	l.Held = cmp.Or(l.Held, 30*time.Minute)
	l.Repair = cmp.Or(l.Repair, 2*time.Minute)
	return l
}

func (d Declared) withDefaults() Declared {
	d.Masters = cmp.Or(d.Masters, 3)
	f := &d.Failover
	f.After.Duration = max(cmp.Or(f.After.Duration, 10*time.Minute), time.Minute)
	f.CircuitBreaker.Machines = cmp.Or(f.CircuitBreaker.Machines, 2)
	f.CircuitBreaker.Share = cmp.Or(f.CircuitBreaker.Share, "30%")
	f.CrownsPerDay = cmp.Or(f.CrownsPerDay, 3)
	d.Limits = d.Limits.withDefaults()
	return d
}

// Observed is what there is.
type Observed struct {
	// At is when the reading began. It may lie back: then it is of a cache. A brain
	// looks every ten seconds or so, and with Fresh readings now and then: only
	// these show that a clock was set back.
	At time.Time
	// Fresh is true of a reading made for this decision: linearizable, from the
	// API server and through etcd's members, with the daemon's lease still held.
	Fresh bool
	// Version of the control plane, such as v1.36.3.
	Version string
	// Machines that ever joined, and those that a Node or member is known of.
	Machines []Machine
	// Members of etcd. None at all is a list that could not be read.
	Members []Member
	// Agree is true where every member that answers gives this same list.
	Agree bool
	// Crowns are the records: at most one is open, the others are of the last
	// day, and at least the newest.
	Crowns []Crown
	// Key is for whom a certificate key and a token exist.
	Key Key
	// Snapshot is when etcd's newest snapshot was written.
	Snapshot time.Time
}

// Machine is what there is of one PC.
type Machine struct {
	Name string

	// of its Node
	Joined   bool      // it has a Node
	Ready    bool      // its Node is Ready
	Labelled bool      // its Node has the label and the taint of a master
	Cordoned bool      // it gets no new Pods
	Ours     bool      // and that by our hand
	Lease    time.Time // renewed, by its own clock
	Version  string    // of the kubelet

	// of the Machine's spec, which the daemon writes
	Role       string // Master or Worker; "" of one that never joined
	Generation int64  // of the role
	Ordered    string // the crown for which its agent was told to reset it
	Invited    bool   // a token for it exists, to join as a worker

	// of the Machine's status, which its agent writes
	Heartbeat time.Time     // by its own clock
	Reached   int64         // the generation of the role that it works in
	Blank     bool          // it was reset and rebooted: no kubelet.conf, no manifests, no etcd data, no keys
	Keys      bool          // it has the CA's keys
	ResetFor  string        // the crown for which its agent reset it last
	Failed    int64         // the generation for which a join failed; an agent tries each once
	Boot      string        // changes with each boot
	Address   string        // by which the site reaches it
	CPU       int           // cores
	Memory    int64         // bytes
	Fsync     time.Duration // p99; 0 is not measured yet
	Skew      time.Duration // of its clock, from the masters'
	Images    bool          // those of the control plane are there
	Restarts  int           // boots that we did not order, in 30 days

	// of its Pods
	Pods      int     // that a drain would evict
	Displaced float64 // what they ask for, in cores, each times the weight of its priority: 1 is usual, less is low; and what its copies of volumes weigh
	Pinned    string  // what cannot be moved away, in words; "" for nothing
	Stuck     string  // what keeps Pods from being evicted now: the budgets; "" for nothing
}

// Member is a member of etcd, as seen through the others.
type Member struct {
	ID      uint64
	Name    string // of its machine; "" until its etcd has started
	PeerURL string
	Learner bool
	Leader  bool
	Answers bool // a linearizable read through it works; of a learner, that it is up
}

// Key is for whom a certificate key and a token exist. The heir's agent uses them
// only in that boot: one that was reinstalled or power-cycled in the middle of
// its join must not begin another, for its member may be listed already.
type Key struct {
	For   string // a machine; "" for none
	Boot  string // of the machine, when it was issued
	Until time.Time
}

// host is the address of a member.
func (m Member) host() string {
	u, err := url.Parse(m.PeerURL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// Memory is what a brain remembers since it leads. The zero value is that of one
// that has just taken over. A Decision has the next one.
type Memory struct {
	At    time.Time // of the newest reading seen
	Signs map[string]Sign
}

// Sign is what was noticed of one machine, at times by the brain's clock.
type Sign struct {
	First   time.Time   // it was first looked at
	Kubelet time.Time   // its lease was seen to have been renewed
	Agent   time.Time   // it was seen to have reported
	Etcd    time.Time   // it last answered
	Silent  bool        // at the last look
	Returns []time.Time // it was silent, and then gave a sign
	Repair  time.Time   // its kubelet was last restarted by us

	lease, heartbeat time.Time // as last seen
}

// See is the memory after a reading. Readings of a cache that lie back before
// the newest seen teach nothing. A brain that did not look for longer than a
// machine may be silent does not know what it missed, and begins afresh, but for
// the returns that it counted.
func (m Memory) See(o Observed, silent time.Duration) Memory {
	if o.At.Before(m.At) {
		return m
	}
	if o.At.Sub(m.At) > silent {
		afresh := make(map[string]Sign, len(m.Signs))
		for name, s := range m.Signs {
			afresh[name] = Sign{First: o.At, Returns: s.Returns, Repair: s.Repair, lease: s.lease, heartbeat: s.heartbeat}
		}
		m.Signs = afresh
	}
	// A clock may be set back, so whatever differs is a sign. But a cache may show
	// the one before again: of it only what is newer counts.
	moved := func(before, after time.Time) bool {
		return after.After(before) || o.Fresh && !after.IsZero() && !after.Equal(before)
	}
	next := Memory{At: o.At, Signs: make(map[string]Sign, len(o.Machines))}
	see := func(name string, lease, heartbeat time.Time, answers bool) {
		s, known := m.Signs[name]
		if known {
			if moved(s.lease, lease) {
				s.Kubelet = o.At
			}
			if moved(s.heartbeat, heartbeat) {
				s.Agent = o.At
			}
		} else {
			s.First = o.At
		}
		if !known || moved(s.lease, lease) {
			s.lease = lease
		}
		if !known || moved(s.heartbeat, heartbeat) {
			s.heartbeat = heartbeat
		}
		if answers {
			s.Etcd = o.At
		}
		was := s.Silent
		s.Silent = o.At.Sub(s.lived()) > silent
		if was && !s.Silent {
			s.Returns = append(slices.DeleteFunc(slices.Clone(s.Returns), func(t time.Time) bool { return o.At.Sub(t) > flapWindow }), o.At)
		}
		next.Signs[name] = s
	}
	answers := map[string]bool{}
	for _, m := range o.Members {
		if m.Name != "" {
			answers[m.Name] = answers[m.Name] || m.Answers
		}
	}
	for i := range o.Machines {
		name := o.Machines[i].Name
		see(name, o.Machines[i].Lease, o.Machines[i].Heartbeat, answers[name])
		delete(answers, name)
	}
	for name, a := range answers { // members of which nothing else is known
		see(name, time.Time{}, time.Time{}, a)
	}
	return next
}

// repaired is the memory after a kubelet was restarted.
func (m Memory) repaired(name string, at time.Time) Memory {
	m.Signs = maps.Clone(m.Signs)
	s := m.Signs[name]
	s.Repair = at
	m.Signs[name] = s
	return m
}

// lived is when the machine last gave a sign, or was first looked at.
func (s Sign) lived() time.Time {
	last := s.First
	for _, t := range []time.Time{s.Kubelet, s.Agent, s.Etcd} {
		if t.After(last) {
			last = t
		}
	}
	return last
}

// Assume is the memory of a brain that had looked all the while, as the clocks of
// the machines themselves tell it. It is for showing a plan, where nobody has
// looked: those who act wait and see.
func Assume(o Observed) Memory {
	m := Memory{At: o.At, Signs: make(map[string]Sign, len(o.Machines))}
	for i := range o.Machines {
		p := &o.Machines[i]
		m.Signs[p.Name] = Sign{First: o.At.Add(-day), Kubelet: p.Lease, Agent: p.Heartbeat, lease: p.Lease, heartbeat: p.Heartbeat}
	}
	return m
}
