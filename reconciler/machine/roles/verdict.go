package roles

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of what holds roles back, and of what people should know of them.
const (
	Suspended        plan.Code = "Suspended"        // the site is
	Paused           plan.Code = "Paused"           // a machine that would be touched is
	EvenMasters      plan.Code = "EvenMasters"      // the declared count is even, or less than one
	Unreadable       plan.Code = "Unreadable"       // etcd's list of members could not be read
	QuorumLost       plan.Code = "QuorumLost"       // nothing automatic any more
	TwoCrowns        plan.Code = "TwoCrowns"        // two records are open
	ForeignMember    plan.Code = "ForeignMember"    // etcd has a member that no crown of ours put there
	CircuitDown      plan.Code = "CircuitDown"      // the breaker by circuit
	TooManyUnhealthy plan.Code = "TooManyUnhealthy" // the breaker by share
	CrownsPerDay     plan.Code = "CrownsPerDay"     // the breaker by number
	Flapping         plan.Code = "Flapping"         // the victim comes and goes
	ClockSkew        plan.Code = "ClockSkew"        // the clock of a master is out of step
	NoHeir           plan.Code = "NoHeir"           // no machine is eligible
	CountUnmet       plan.Code = "CountUnmet"       // there are too few machines for the declared count
	LastMaster       plan.Code = "LastMaster"       // it is never retired
	WouldLoseQuorum  plan.Code = "WouldLoseQuorum"  // a removal or an add would leave too few members that answer
	EtcdAway         plan.Code = "EtcdAway"         // the machine lives, its etcd does not answer
	AgentAway        plan.Code = "AgentAway"        // etcd answers, kubelet and agent are silent
	KeysLeft         plan.Code = "KeysLeft"         // a retired machine did not report that data and keys are gone

	// of what goes on by itself
	NotYetDead plan.Code = "NotYetDead" // a silent master, before failover.after
	InProgress plan.Code = "InProgress" // an agent is at it
	MemberAway plan.Code = "MemberAway" // no voluntary change while a member does not answer
)

const (
	day        = 24 * time.Hour
	flapWindow = time.Hour
	flapLimit  = 3 // returns within flapWindow
	minShare   = 3 // machines, under which the breaker by share stays closed
)

// view is one reading, indexed, and what to think of each machine.
type view struct {
	d        Declared
	o        Observed
	now      time.Time
	memory   Memory
	names    []string // of machines and members, in order
	machines map[string]*Machine
	declared map[string]*Declaration
	voters   []string // machines, in order
	member   map[string]*Member
	loose    []*Member // learners, and members without a name
	crown    *Crown    // the open one
}

func look(d Declared, o Observed, now time.Time, m Memory) *view {
	d = d.withDefaults()
	v := &view{d: d, o: o, now: now, memory: m.See(o, d.Limits.Silent),
		machines: make(map[string]*Machine, len(o.Machines)), declared: make(map[string]*Declaration, len(d.Machines)), member: map[string]*Member{}}
	for i := range d.Machines {
		v.declared[d.Machines[i].Name] = &d.Machines[i]
	}
	for i := range o.Machines {
		v.machines[o.Machines[i].Name] = &o.Machines[i]
	}
	for i := range o.Members {
		m := &o.Members[i]
		if m.Learner || m.Name == "" {
			v.loose = append(v.loose, m)
		} else {
			v.voters = append(v.voters, m.Name)
		}
		if m.Name == "" {
			continue
		}
		v.member[m.Name] = m
		if v.machines[m.Name] == nil {
			v.machines[m.Name] = &Machine{Name: m.Name}
		}
	}
	slices.Sort(v.voters)
	v.names = slices.Sorted(maps.Keys(v.machines))
	for i := range o.Crowns {
		if o.Crowns[i].Open() {
			v.crown = &o.Crowns[i]
		}
	}
	return v
}

// quorum of n voters.
func quorum(n int) int { return n/2 + 1 }

// answering counts the voters that answer, but one.
func (v *view) answering(without string) (n int) {
	for _, name := range v.voters {
		if name != without && v.member[name].Answers {
			n++
		}
	}
	return n
}

// hasLeader reports whether etcd has one.
func (v *view) hasLeader() bool {
	return slices.ContainsFunc(v.voters, func(name string) bool { return v.member[name].Leader })
}

func (v *view) isVoter(name string) bool {
	m := v.member[name]
	return m != nil && !m.Learner
}

// sign of a machine. What a blank machine reports is no sign of the master that
// its member stands for: that one's data is gone.
func (v *view) sign(name string) Sign {
	s := v.memory.Signs[name]
	if v.machines[name].Blank && v.isVoter(name) {
		s.Kubelet, s.Agent = time.Time{}, time.Time{}
	}
	return s
}

func (v *view) age(sign time.Time) time.Duration { return v.o.At.Sub(sign) }

// silentFor is how long a machine has given no sign; 0 where it is not silent.
func (v *view) silentFor(name string) time.Duration {
	if v.machines[name] == nil {
		return 0
	}
	if m := v.member[name]; m != nil && m.Answers {
		return 0
	}
	if age := v.age(v.sign(name).lived()); age > v.d.Limits.Silent {
		return age
	}
	return 0
}

func (v *view) isSilent(name string) bool { return v.silentFor(name) > 0 }

// isDead reports whether a master is given up.
func (v *view) isDead(name string) bool { return v.silentFor(name) >= v.d.Failover.After.Duration }

// deadBut is the first dead master that is not the one; "" where there is none.
func (v *view) deadBut(name string) string {
	for _, voter := range v.voters {
		if voter != name && v.isDead(voter) {
			return voter
		}
	}
	return ""
}

// isOff reports whether nothing at all is heard of a PC, whatever is on its disk:
// what its circuit would explain.
func (v *view) isOff(name string) bool {
	m := v.member[name]
	return !(m != nil && m.Answers) && v.age(v.memory.Signs[name].lived()) > v.d.Limits.Silent
}

// hasAgent and hasKubelet report whether a sign was noticed of late. A brain that
// has just taken over has noticed none yet.
func (v *view) hasAgent(name string) bool   { return v.recent(v.sign(name).Agent) }
func (v *view) hasKubelet(name string) bool { return v.recent(v.sign(name).Kubelet) }

func (v *view) recent(sign time.Time) bool {
	return !sign.IsZero() && v.age(sign) <= v.d.Limits.Silent
}

// lostAgent and lostKubelet report that none was noticed, though there was time.
func (v *view) lostAgent(name string) bool {
	s := v.sign(name)
	return !v.recent(s.Agent) && v.age(s.First) > v.d.Limits.Silent
}
func (v *view) lostKubelet(name string) bool {
	s := v.sign(name)
	return !v.recent(s.Kubelet) && v.age(s.First) > v.d.Limits.Silent
}

// lostEtcd reports that an etcd has not answered for so long that its machine would be
// silent by now, if it was that which died.
func (v *view) lostEtcd(name string) bool {
	s := v.sign(name)
	return min(v.age(s.Etcd), v.age(s.First)) > 2*v.d.Limits.Silent
}

// mayRepair reports whether a kubelet that gives no sign had the time to give one
// by itself, also since it was restarted last: after a crown its old lease may have
// to go first.
func (v *view) mayRepair(name string) bool {
	s := v.sign(name)
	for _, at := range []time.Time{s.First, s.Kubelet, s.Repair} {
		if v.age(at) < v.d.Limits.Repair {
			return false
		}
	}
	return true
}

// isWiped reports whether a master says itself that its data is gone.
func (v *view) isWiped(name string) bool {
	return v.isVoter(name) && !v.member[name].Answers && v.machines[name].Blank && v.recent(v.memory.Signs[name].Agent)
}

// isBack reports whether a machine that was silent gives signs again.
func (v *view) isBack(name string) bool {
	m := v.member[name]
	return m != nil && m.Answers || v.hasAgent(name) || v.hasKubelet(name)
}

func (v *view) circuit(name string) string {
	if d := v.declared[name]; d != nil {
		return d.Circuit
	}
	return ""
}

func (v *view) isPaused(name string) bool {
	d := v.declared[name]
	return d != nil && d.Paused
}

// mayBeMaster reports whether the site repo lets the machine be one.
func (v *view) mayBeMaster(name string) bool {
	d := v.declared[name]
	return d != nil && d.Master != Never
}

// down are the machines of a circuit of which nothing is heard.
func (v *view) down(circuit string) (names []string) {
	for _, name := range v.names {
		if circuit != "" && v.circuit(name) == circuit && v.isOff(name) {
			names = append(names, name)
		}
	}
	return names
}

// unhealthy are the machines that do not work, and those that we are changing or
// are about to. Declared ones that never joined are no machines yet, and one that
// reports that it was wiped leaves nothing to judge: it only waits for us.
func (v *view) unhealthy(victim, heir string) (names []string, of int) {
	for _, name := range v.names {
		m := v.machines[name]
		if v.declared[name] == nil || m.Role == "" {
			continue
		}
		of++
		waits := m.Blank && v.recent(v.memory.Signs[name].Agent)
		if name == heir || !waits && (name == victim || v.isOff(name) || !m.Joined || !m.Ready) {
			names = append(names, name)
		}
	}
	return names, of
}

func about(name string) plan.ID {
	if name == "" {
		return plan.ID{System: plan.Machines}
	}
	return plan.ID{System: plan.Machines, Kind: "Machine", Name: name}
}

// breakers are what holds the removal of a victim. Each says what would close it.
func (v *view) breakers(kind Kind, number int, victim, heir string) (holds []*plan.Fault) {
	hold := func(code plan.Code, name, cause, hint string) {
		holds = append(holds, &plan.Fault{Code: code, ID: about(name), Cause: cause, Hint: hint})
	}
	b := v.d.Failover.CircuitBreaker
	if down := v.down(v.circuit(victim)); len(down) >= b.Machines {
		hold(CircuitDown, victim, fmt.Sprintf("%d machines of circuit %s are down (%s): a circuit that fails comes back as a whole", len(down), v.circuit(victim), list(down)),
			"see to the circuit; take what is gone for good out of the site repo")
	}
	bad, of := v.unhealthy(victim, heir)
	if limit := max(minShare, b.Share.Of(of, "30%")); len(bad) >= limit {
		hold(TooManyUnhealthy, victim, fmt.Sprintf("%d of %d machines are unhealthy or about to be changed (%s), and at %d nothing is judged any more", len(bad), of, list(bad), limit),
			"see to them; take what is gone for good out of the site repo")
	}
	for _, name := range v.voters {
		if skew := v.machines[name].Skew; name != victim && skew.Abs() > v.d.Limits.Skew {
			hold(ClockSkew, name, fmt.Sprintf("its clock is off by %s, and %s are allowed", skew.Abs().Round(time.Millisecond), v.d.Limits.Skew), "timedatectl set-ntp true on it")
		}
	}
	if kind != Replace {
		return holds
	}
	crowned := 0
	for i := range v.o.Crowns {
		c := &v.o.Crowns[i]
		if at, ok := c.removed(); ok && c.Kind == Replace && c.Number != number && v.now.Sub(at) < day {
			crowned++
		}
	}
	if limit := v.d.Failover.CrownsPerDay; crowned >= limit {
		hold(CrownsPerDay, victim, fmt.Sprintf("%s replaced within a day, and failover.crownsPerDay is %d", count(crowned, "master was", "masters were"), limit),
			"see why they die; raise crownsPerDay in the site repo")
	}
	if returns := v.returns(victim); returns >= flapLimit {
		hold(Flapping, victim, fmt.Sprintf("it was silent and came back %d times within %s", returns, span(flapWindow)), "see to its power, network and disk; master: never takes it out of the choice")
	}
	return holds
}

// returns is how often a victim came back of late: as this brain noticed, and as
// the records of cancelled crowns say to a brain that has just taken over.
func (v *view) returns(name string) int {
	noticed, recorded := 0, 0
	for _, at := range v.memory.Signs[name].Returns {
		if v.o.At.Sub(at) <= flapWindow {
			noticed++
		}
	}
	for i := range v.o.Crowns {
		if c := &v.o.Crowns[i]; c.Victim == name && c.Undo == Cancelled && c.Dead && !c.Ended.IsZero() && v.now.Sub(c.Ended) <= flapWindow {
			recorded++
		}
	}
	return max(noticed, recorded)
}

// projected are what forbids to remove a voter, by the members themselves.
func (v *view) projected(name string, byCount bool) *plan.Fault {
	left, answer := len(v.voters)-1, v.answering(name)
	switch {
	case left < 1:
		return &plan.Fault{Code: LastMaster, ID: about(name), Cause: "it is the last master"}
	case answer < quorum(left):
		return &plan.Fault{Code: WouldLoseQuorum, ID: about(name), Cause: fmt.Sprintf("without it %d of %d members would answer, and %d are needed", answer, left, quorum(left)), Hint: "see to the other masters"}
	case byCount && answer < quorum(v.d.Masters):
		return &plan.Fault{Code: WouldLoseQuorum, ID: about(name), Cause: fmt.Sprintf("without it %s would answer, and of %d declared ones %d are needed", count(answer, "member", "members"), v.d.Masters, quorum(v.d.Masters)), Hint: "see to the other masters"}
	}
	return nil
}

// frozen is what stops everything.
func (v *view) frozen() *plan.Fault {
	open := 0
	for i := range v.o.Crowns {
		if v.o.Crowns[i].Open() {
			open++
		}
	}
	switch n := v.d.Masters; {
	case v.d.Suspended != "":
		return &plan.Fault{Code: Suspended, ID: about(""), Cause: "the site is suspended: " + v.d.Suspended, Hint: "take suspend out of the site repo"}
	case len(v.voters) == 0:
		return &plan.Fault{Code: Unreadable, ID: about(""), Cause: "etcd's list of members could not be read", Hint: "see whether the masters run"}
	case !v.hasLeader() && v.answering("") >= quorum(len(v.voters)):
		// Then their list is what each remembers, and good for nothing but telling people.
		return &plan.Fault{Code: QuorumLost, ID: about(""), Cause: "etcd has no leader: nothing is changed automatically", Hint: "if that lasts, see whether the masters reach each other"}
	case v.answering("") < quorum(len(v.voters)):
		var missing []string
		for _, name := range v.voters {
			if !v.member[name].Answers {
				missing = append(missing, name)
			}
		}
		return &plan.Fault{Code: QuorumLost, ID: about(""),
			Cause: fmt.Sprintf("%d of %d masters answer, and %d are needed: nothing is changed automatically; missing: %s", len(v.voters)-len(missing), len(v.voters), quorum(len(v.voters)), list(missing)),
			Hint:  fmt.Sprintf("start %d of them; where their disks are lost, restore by hand", quorum(len(v.voters))-v.answering(""))}
	case n < 1 || n%2 == 0:
		return &plan.Fault{Code: EvenMasters, ID: about(""), Cause: fmt.Sprintf("%d masters are declared: an even number bears no more failures than one less", n), Hint: "declare 1, 3, 5 or 7"}
	case open > 1:
		return &plan.Fault{Code: TwoCrowns, ID: about(""), Cause: fmt.Sprintf("%d crowns are open at once, which no daemon of ours does", open), Hint: "delete all records but the oldest one"}
	}
	return nil
}

// foreign is a member that no crown of ours put there.
func (v *view) foreign() *plan.Fault {
	for _, m := range v.loose {
		if v.crown != nil && v.crown.Heir != "" && v.isOf(m, v.crown.Heir) {
			continue
		}
		what := "a learner"
		if m.Name == "" {
			what = "a member that never started"
		}
		return &plan.Fault{Code: ForeignMember, ID: about(m.Name), Cause: fmt.Sprintf("etcd has %s, %x at %s, that no crown put there", what, m.ID, m.PeerURL),
			Hint: fmt.Sprintf("where nobody is at it, etcdctl member remove %x", m.ID)}
	}
	for _, name := range v.voters {
		if v.machines[name].Role == Worker && (v.crown == nil || name != v.crown.Heir && name != v.crown.Victim) {
			return &plan.Fault{Code: ForeignMember, ID: about(name), Cause: "it is a member of etcd, and its role is that of a worker",
				Hint: fmt.Sprintf("see who made it one; etcdctl member remove %x, then noded reset on it", v.member[name].ID)}
		}
	}
	return nil
}

// isOf reports whether a member is a machine's: by its name, or before it has one
// by the address that the machine has, or had when it was told to join.
func (v *view) isOf(m *Member, name string) bool {
	if m.Name != "" {
		return m.Name == name
	}
	host := m.host()
	if c := v.crown; c != nil && c.Heir == name && c.Address == host {
		return true
	}
	p := v.machines[name]
	return p != nil && p.Address != "" && p.Address == host
}

// leftover is the member of a machine, started or not.
func (v *view) leftover(name string) *Member {
	if m := v.member[name]; m != nil {
		return m
	}
	for _, m := range v.loose {
		if v.isOf(m, name) {
			return m
		}
	}
	return nil
}

// sameAddress is another's member at the address of a machine.
func (v *view) sameAddress(name string) *Member {
	address := v.machines[name].Address
	for i := range v.o.Members {
		if m := &v.o.Members[i]; address != "" && m.host() == address && !v.isOf(m, name) {
			return m
		}
	}
	return nil
}

// list is names as people write them.
func list(names []string) string { return strings.Join(names, ", ") }

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// span is a time span as people say it: 45s, 12m, 3h, 3h20m.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d%time.Hour < time.Minute:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
}
