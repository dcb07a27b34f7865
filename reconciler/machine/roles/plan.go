package roles

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Decision is what Plan decides: at most one step, and what people should know.
type Decision struct {
	// Step is the next one; nil where there is nothing to do now.
	Step *Step
	// Record is to be stored before the step, and only if the stored one is still
	// that of the reading: then of two daemons one acts. It may be equal to it; nil
	// is a step that belongs to no crown.
	Record *Crown
	// Why is the change that is pending or under way, in a sentence; "" for none.
	Why string
	// Holds are what holds back, and what only people can mend.
	Holds []*plan.Fault
	// Waits are what goes on by itself.
	Waits []*plan.Fault
	// Again is when to ask again though nothing changes; zero for no such moment.
	Again time.Time
	// Scores is the table for the heir, where one is sought.
	Scores []Score
	// Memory is for the next call.
	Memory Memory
}

// maxAttempts is how many errors of the executor fail a step that may fail.
const maxAttempts = 5

// Plan decides the next step. Observed is not changed.
func Plan(declared Declared, observed Observed, now time.Time, memory Memory) Decision {
	v := look(declared, observed, now, memory)
	d := v.decide()
	d.Memory = v.memory
	switch s := d.Step; {
	case s == nil:
	case s.Do.NeedsFresh() && !observed.Fresh:
		d.Step = &Step{Do: Recheck, Machine: s.Machine, For: s.Do, Crown: s.Crown, Why: "every gate is checked again on fresh reads before " + string(s.Do)}
		d.Record = nil
	case s.Do == Repair:
		d.Memory = d.Memory.repaired(s.Machine, now)
	}
	return d
}

// decide is the whole of it: a crown under way goes on; beside it, and without
// one, what is left about is tidied up; then a new one is begun if need be.
func (v *view) decide() (d Decision) {
	if hold := v.frozen(); hold != nil {
		return Decision{Holds: []*plan.Fault{hold}}
	}
	if v.crown != nil {
		d = v.goOn(v.crown)
	}
	if d.Step == nil {
		if chore := v.chore(); chore != nil {
			d.Step, d.Record = chore, nil
		}
	}
	if d.Step == nil && v.crown == nil {
		d = v.begin()
	}
	d.Holds = append(d.Holds, v.ailing()...)
	return d
}

// hold and wait add what people should know.
func (d *Decision) hold(f *plan.Fault) { d.Holds = append(d.Holds, f) }
func (d *Decision) wait(code plan.Code, name, cause string) {
	d.Waits = append(d.Waits, &plan.Fault{Code: code, ID: about(name), Cause: cause})
}

// again is the earliest of the moments to ask again.
func (d *Decision) again(at time.Time) {
	if d.Again.IsZero() || at.Before(d.Again) {
		d.Again = at
	}
}

// begin is the next crown, if one is needed: dead masters first, then what the
// declared count asks for.
func (v *view) begin() (d Decision) {
	if f := v.foreign(); f != nil {
		d.hold(f)
		return d
	}
	number := 1
	for i := range v.o.Crowns {
		number = max(number, v.o.Crowns[i].Number+1)
	}
	silent := slices.DeleteFunc(slices.Clone(v.voters), func(name string) bool { return !v.isSilent(name) })
	slices.SortStableFunc(silent, func(a, b string) int { return cmp.Compare(v.silentFor(b), v.silentFor(a)) })
	for _, name := range silent {
		if one := v.strike(name, number); one.Step != nil {
			return one // what holds the others back is told when it is their turn
		} else {
			d.Holds = append(d.Holds, one.Holds...)
			d.Waits = append(d.Waits, one.Waits...)
			if d.Why == "" {
				d.Why, d.Scores = one.Why, one.Scores
			}
			if !one.Again.IsZero() {
				d.again(one.Again)
			}
		}
	}
	unmet := v.unmet()
	if unmet != nil {
		d.hold(unmet)
	}
	if len(silent) > 0 {
		return d
	}
	target := v.d.Masters
	if unmet != nil {
		target = (v.able()-1)/2*2 + 1 // better three of five than four
	}
	eligible := 0
	for _, name := range v.voters {
		if v.mayBeMaster(name) {
			eligible++
		}
	}
	grow, retire := false, len(v.voters) > v.d.Masters
	if !retire {
		// A master that the site repo no longer lets be one is replaced by one more
		// and then one less: never below the declared count.
		grow = eligible < target
	}
	if !grow && !retire {
		return d
	}
	for _, name := range v.voters {
		if !v.member[name].Answers {
			d.wait(MemberAway, name, "its etcd does not answer, and no change that can wait is made until it does")
		}
	}
	switch {
	case len(d.Waits) > 0:
	case retire:
		v.retire(&d, number)
	default:
		v.grow(&d, number, eligible)
	}
	return d
}

// strike is what is done about a silent master: an heir is prepared while it is
// silent, and takes over once it is dead.
func (v *view) strike(name string, number int) (d Decision) {
	silent, after := v.silentFor(name), v.d.Failover.After.Duration
	state := "silent"
	if v.isDead(name) {
		state = "dead"
	}
	d.Why = fmt.Sprintf("retire %s (%s %s)", name, state, span(silent))
	if v.isWiped(name) {
		d.Why = fmt.Sprintf("retire %s (wiped)", name)
	}
	if v.isPaused(name) {
		d.hold(&plan.Fault{Code: Paused, ID: about(name), Cause: fmt.Sprintf("it is %s for %s, and paused in the site repo: it is not replaced", state, span(silent)), Hint: "take paused out of the site repo"})
		return d
	}
	c := &Crown{Number: number, Victim: name, Member: v.member[name].ID, PeerURL: v.member[name].PeerURL, Dead: true, Begun: v.now}
	begin := after / 2
	if len(v.voters) > v.d.Masters {
		c.Kind, begin = Retire, after
		d.Why += fmt.Sprintf(": masters %d -> %d", len(v.voters), len(v.voters)-1)
	} else {
		c.Kind = Replace
		d.Scores = v.scores(name, number)
		switch best := candidates(d.Scores); {
		case len(best) > 0:
			c.Heir, c.Boot = best[0].Machine, v.machines[best[0].Machine].Boot
			d.Why += ": " + praise(best)
		case v.isWiped(name):
			// A new disk in one of three machines: it is its own heir, in two crowns.
			c.Kind, begin = Retire, after
			d.Why += ": no other machine can take over, so it is struck off, and crowned anew"
		default:
			d.hold(v.noHeir(name, d.Scores))
			return d
		}
	}
	if silent < begin {
		d.wait(NotYetDead, name, fmt.Sprintf("silent for %s; an heir is prepared after %s, and takes over after %s", span(silent), span(begin), span(after)))
		d.again(v.now.Add(begin - silent))
		return d
	}
	d.Holds = v.breakers(c.Kind, number, name, c.Heir)
	if f := v.projected(name, false); f != nil {
		d.hold(f)
	}
	if len(d.Holds) == 0 {
		v.choose(&d, c)
	}
	return d
}

// grow is one master more.
func (v *view) grow(d *Decision, number, eligible int) {
	d.Why = fmt.Sprintf("crown a worker: masters %d -> %d", len(v.voters), len(v.voters)+1)
	if eligible == len(v.voters) {
		d.Why = fmt.Sprintf("crown a worker: masters %d -> %d", len(v.voters), v.d.Masters)
	}
	d.Scores = v.scores("", number)
	best := candidates(d.Scores)
	if len(best) == 0 {
		d.hold(v.noHeir("", d.Scores))
		return
	}
	d.Why += ": " + praise(best)
	v.choose(d, &Crown{Number: number, Kind: Grow, Heir: best[0].Machine, Boot: v.machines[best[0].Machine].Boot, Begun: v.now})
}

// retire is one master less: of those that the site repo does not let be one, else
// the one with the worst score; the leader last.
func (v *view) retire(d *Decision, number int) {
	type line struct {
		name   string
		barred bool
		leader bool
		score  float64
	}
	var lines []line
	for _, name := range v.voters {
		l := line{name, !v.mayBeMaster(name), v.member[name].Leader, v.parts(name, name).total()}
		failed := slices.ContainsFunc(v.o.Crowns, func(c Crown) bool {
			return c.Kind == Retire && c.Victim == name && c.Outcome == Failed && v.now.Sub(c.Ended) < day
		})
		switch {
		case v.isPaused(name):
			d.hold(&plan.Fault{Code: Paused, ID: about(name), Cause: "it could be retired, and is paused in the site repo"})
		case failed:
			d.hold(&plan.Fault{Code: Paused, ID: about(name), Cause: "it could be retired, and that failed within a day", Hint: "see which Pods cannot be evicted"})
		default:
			lines = append(lines, l)
		}
	}
	d.Why = fmt.Sprintf("retire a master: %d -> %d", len(v.voters), v.d.Masters)
	if len(lines) == 0 {
		return
	}
	d.Holds = slices.DeleteFunc(d.Holds, func(f *plan.Fault) bool { return f.Code == Paused }) // another one can go
	worst := slices.MinFunc(lines, func(a, b line) int {
		switch {
		case a.barred != b.barred:
			return map[bool]int{true: -1, false: 1}[a.barred]
		case a.leader != b.leader:
			return map[bool]int{true: 1, false: -1}[a.leader]
		}
		return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(hash(number, a.name), hash(number, b.name)))
	})
	d.Why = fmt.Sprintf("retire %s: masters %d -> %d; of them it has the worst score, %.2f", worst.name, len(v.voters), v.d.Masters, worst.score)
	if worst.barred {
		d.Why = fmt.Sprintf("retire %s: the site repo does not let it be a master", worst.name)
	}
	holds := v.breakers(Retire, number, worst.name, "")
	if f := v.projected(worst.name, true); f != nil {
		holds = append(holds, f)
	}
	if d.Holds = append(d.Holds, holds...); len(holds) == 0 {
		m := v.member[worst.name]
		v.choose(d, &Crown{Number: number, Kind: Retire, Victim: worst.name, Member: m.ID, PeerURL: m.PeerURL, Boot: v.machines[worst.name].Boot, Begun: v.now})
	}
}

// choose begins a crown.
func (v *view) choose(d *Decision, c *Crown) {
	c.Why = d.Why
	d.Record = c.at(Choose, cmp.Or(c.Heir, c.Victim), d.Why, v.now)
	d.Step = &Step{Do: Choose, Machine: cmp.Or(c.Heir, c.Victim), Crown: c.Name(), Why: d.Why}
}

func praise(best []Score) string {
	text := fmt.Sprintf("heir %s, score %.2f", best[0].Machine, best[0].Total)
	if best[0].Preferred {
		text += " and preferred"
	}
	if len(best) > 1 {
		return text + fmt.Sprintf(", runner-up %s %.2f", best[1].Machine, best[1].Total)
	}
	return text + ", no runner-up"
}

// noHeir says of each machine why it cannot be the heir.
func (v *view) noHeir(victim string, table []Score) *plan.Fault {
	var why []string
	for _, s := range table {
		why = append(why, s.Machine+": "+s.Out)
	}
	reasons := strings.Join(why, "; ")
	if reasons == "" {
		reasons = "all of them are masters"
	}
	return &plan.Fault{Code: NoHeir, ID: about(victim), Cause: "no machine can become a master: " + reasons, Hint: "add a machine, or mend one of these"}
}

// able counts the machines that the site repo lets be masters, and that joined.
func (v *view) able() (n int) {
	for name := range v.declared {
		if m := v.machines[name]; m != nil && m.Role != "" && v.mayBeMaster(name) {
			n++
		}
	}
	return n
}

// unmet says why the declared count cannot be met, whatever is mended.
func (v *view) unmet() *plan.Fault {
	able := v.able()
	if able >= v.d.Masters {
		return nil
	}
	var why []string
	for name := range v.declared {
		switch m := v.machines[name]; {
		case !v.mayBeMaster(name):
			why = append(why, name+": master: never")
		case m == nil || m.Role == "":
			why = append(why, name+" has not joined")
		}
	}
	slices.Sort(why)
	cause := fmt.Sprintf("%s declared, and %s may be one", count(v.d.Masters, "master is", "masters are"), count(able, "machine", "machines"))
	if len(why) > 0 {
		cause += ": " + list(why)
	}
	return &plan.Fault{Code: CountUnmet, ID: about(""), Cause: cause, Hint: "add machines to the site repo, or declare fewer masters"}
}

// ailing are the masters that are neither well nor dead.
func (v *view) ailing() (holds []*plan.Fault) {
	for _, name := range v.voters {
		if v.crown != nil && name == v.crown.Heir {
			continue // it has just started
		}
		switch answers := v.member[name].Answers; {
		case !answers && !v.isSilent(name) && v.isBack(name) && v.lostEtcd(name):
			holds = append(holds, &plan.Fault{Code: EtcdAway, ID: about(name), Cause: "the machine lives, and its etcd does not answer: it is not replaced", Hint: "journalctl -u kubelet on it, and crictl logs of etcd"})
		case answers && v.lostAgent(name) && v.lostKubelet(name):
			holds = append(holds, &plan.Fault{Code: AgentAway, ID: about(name), Cause: "its etcd answers, kubelet and agent are silent: it is not dead, and nobody there carries anything out", Hint: "systemctl restart noded kubelet on it"})
		}
	}
	return holds
}

// chore is the next thing to tidy up: on machines that no crown is about.
func (v *view) chore() *Step {
	c := v.crown
	if c == nil && v.o.Key.For != "" {
		return &Step{Do: Cleanup, Machine: v.o.Key.For, Why: "a key and a token are left, and nobody joins"}
	}
	for _, name := range v.names {
		m := v.machines[name]
		if v.isPaused(name) || c != nil && (name == c.Heir || name == c.Victim) {
			continue
		}
		s := &Step{Machine: name}
		switch {
		case v.isVoter(name) && v.lostKubelet(name) && v.hasAgent(name) && !m.Blank && v.mayRepair(name):
			s.Do, s.Why = Repair, "its agent reports, and its kubelet does not renew the lease"
		case v.declared[name] != nil && !m.Joined && !m.Blank && v.hasAgent(name) && v.mayRepair(name):
			s.Do, s.Why = Repair, "it has no Node, and a kubelet makes one when it starts"
		case m.Role == Master && v.leftover(name) == nil && v.o.Agree:
			s.Do, s.Generation, s.Why = Fence, m.Generation+1, "its role is that of a master, and it is no member of etcd"
		case m.Role == Worker && m.Blank && v.hasAgent(name) && v.declared[name] != nil && v.leftover(name) == nil:
			switch {
			case m.Invited, m.Joined && v.hasKubelet(name): // it may have joined, and not have told so yet
			case m.Joined:
				s.Do, s.Why = DeleteNode, "it is reset, and its old Node is in the way of joining again"
			default:
				s.Do, s.Why = JoinWorker, "it is reset, and joins again as a worker"
			}
		case m.Ordered != "" && m.Ordered != m.ResetFor:
			s.Do, s.Why = Withdraw, "it was for "+m.Ordered+", which is over, and people work there again"
		case m.Role == Master && v.isVoter(name) && v.member[name].Answers && m.Reached == m.Generation && m.Joined && !m.Labelled:
			s.Do, s.Why = Label, "it is a master, and its Node does not say so"
		case m.Ours && m.Cordoned && m.Joined && !m.Blank && m.Ready:
			s.Do, s.Why = Uncordon, "no crown is about it any more"
		}
		if s.Do != "" {
			return s
		}
	}
	return nil
}
