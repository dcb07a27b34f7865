package roles

import (
	"cmp"
	"fmt"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// goOn is the next step of a crown under way: undone where it has to be, else the
// first of its stages that is not done, if its gate is open.
func (v *view) goOn(c *Crown) (d Decision) {
	d.Why = c.Why
	s := v.next(c)
	if c.Undo == "" {
		if outcome, cause := v.undo(c, s); outcome != "" {
			do := map[Outcome]Action{Cancelled: Cancel, Failed: RollBack}[outcome]
			record := *c.at(do, cmp.Or(c.Heir, c.Victim), cause, v.now)
			record.Undo, record.Cause = outcome, cause
			d.Record = &record
			d.Step = &Step{Do: do, Machine: record.Machine, Crown: c.Name(), Why: cause}
			return d
		}
	}
	name := c.machine(s.who)
	if s.do.touches() && !v.unpaused(&d, c, s) {
		return d
	}
	step := Step{Do: s.do, Machine: name, Crown: c.Name()}
	if !v.gate(&d, c, s, &step) {
		return d
	}
	record := c.at(step.Do, step.Machine, step.Why, v.now)
	if m := v.machines[step.Machine]; step.Do == Join && c.Address != m.Address {
		told := *record
		told.Address = m.Address
		record = &told
	}
	if step.Do == Close {
		ended := *record
		ended.Outcome, ended.Ended = cmp.Or(c.Undo, Done), v.now
		if c.Undo == "" && c.Heir != "" && !v.verified(c) {
			ended.Outcome, ended.Cause = Failed, "it is a master, and did not become Ready in time"
		}
		if c.Step == Snapshot && !v.snapshot(c) {
			// The roles are as they should be, and the next dead master must not wait.
			ended.Cause = cmp.Or(ended.Cause, "no snapshot of etcd was written: "+cmp.Or(c.Error, "nobody reported one"))
		}
		record = &ended
	}
	d.Step, d.Record = &step, record
	return d
}

// touches reports whether an action changes a machine, or what stands for it.
func (a Action) touches() bool {
	switch a {
	case Verify, Cleanup, Snapshot, Close:
		return false
	}
	return true
}

// unpaused holds a crown whose machines are paused. Once the victim is no member,
// only the heir counts: what is still to be done about the victim waits until it
// is paused no more.
func (v *view) unpaused(d *Decision, c *Crown, s stage) bool {
	for _, name := range []string{c.Heir, c.Victim} {
		if v.isPaused(name) && (name == c.Heir || c.Undo == "" && !v.isRemoved(c)) {
			d.hold(&plan.Fault{Code: Paused, ID: about(name), Cause: fmt.Sprintf("it is paused in the site repo, and the next step is %s", s.do), Hint: "take paused out of the site repo"})
			return false
		}
	}
	return true
}

// next is the first stage from where the record is that is not done.
func (v *view) next(c *Crown) stage {
	stages, from := c.stages(), 0
	for i, s := range stages {
		if s.do == c.Step && c.machine(s.who) == c.Machine {
			from = i
		}
	}
	for _, s := range stages[from:] {
		if !v.done(c, s) {
			return s
		}
	}
	return stages[len(stages)-1] // Close is never done
}

// isRemoved reports whether the victim's member is gone.
func (v *view) isRemoved(c *Crown) bool {
	for i := range v.o.Members {
		if v.o.Members[i].ID == c.Member {
			return false
		}
	}
	return true
}

// done reports whether a stage needs nothing any more: as seen, not as remembered.
func (v *view) done(c *Crown, s stage) bool {
	m := v.machines[c.machine(s.who)]
	if m == nil && s.who != nobody {
		m = &Machine{} // deleted by hand
	}
	gone := s.who == victim && (c.Dead || !m.Joined)
	switch s.do {
	case Cordon:
		return gone || m.Cordoned
	case Prepull:
		return m.Images
	case Drain:
		return gone || m.Pods == 0
	case Reset:
		return m.Blank && m.Boot != c.Boot
	case DeleteNode:
		// That of a victim stays until it has proved that it is reset; it goes then
		// like that of any blank machine.
		return !m.Joined || s.who == victim && (v.isPaused(c.Victim) || !m.Blank || m.Reached != m.Generation)
	case MoveLeader:
		return !v.isVoter(c.Victim) || !v.member[c.Victim].Leader
	case RemoveMember:
		if s.who == heir {
			// One that became a voter at the last moment is a master like others.
			return v.leftover(c.Heir) == nil || v.isVoter(c.Heir) && m.Role == Master
		}
		return v.isRemoved(c)
	case Fence:
		if s.who == heir {
			return m.Role != Master || v.isVoter(c.Heir)
		}
		return m.Role != Master || v.isPaused(c.Victim)
	case IssueKey:
		return v.isVoter(c.Heir) || m.Role == Master || v.hasKey(m)
	case Join:
		return v.isVoter(c.Heir)
	case Verify:
		return v.verified(c) || c.Step == Verify && v.now.Sub(c.Since) > v.d.Limits.Verify
	case Cleanup:
		return v.o.Key.For == ""
	case Snapshot:
		return c.Step == Snapshot && (v.snapshot(c) || c.Attempts >= maxAttempts || v.over(c, s, v.d.Limits.Snapshot))
	}
	return false
}

// snapshot reports whether one was written in the step that is for it.
func (v *view) snapshot(c *Crown) bool { return !v.o.Snapshot.Before(c.Since) }

// hasKey reports whether a key for a machine exists that it can still use.
func (v *view) hasKey(m *Machine) bool {
	k := v.o.Key
	return k.For == m.Name && k.Boot == m.Boot && k.Until.Sub(v.now) > time.Minute
}

// verified reports whether the end is reached.
func (v *view) verified(c *Crown) bool {
	if c.Kind == Retire {
		m := v.machines[c.Victim]
		return m == nil || c.Dead || m.Role == "" || v.isPaused(c.Victim) || m.Blank && !m.Keys && m.Reached == m.Generation
	}
	m := v.machines[c.Heir]
	return m != nil && v.isVoter(c.Heir) && v.member[c.Heir].Answers && v.o.Agree && m.Ready && m.Labelled && m.Reached == m.Generation
}

// undo is whether a crown is to be undone, with which outcome and why.
func (v *view) undo(c *Crown, s stage) (Outcome, string) {
	removed := c.Victim != "" && v.isRemoved(c)
	dead := v.deadBut(c.Victim)
	switch {
	case c.Victim == "" || removed:
	case c.Dead && v.isBack(c.Victim):
		return Cancelled, c.Victim + " is back"
	case !c.Dead && v.isSilent(c.Victim):
		return Cancelled, c.Victim + " went silent while it was being retired"
	case c.Kind == Replace && len(v.voters) > v.d.Masters:
		return Cancelled, fmt.Sprintf("%s declared now, and %s is not needed", count(v.d.Masters, "master is", "masters are"), c.Heir)
	case c.Kind == Retire && len(v.voters) <= v.d.Masters && !v.isWiped(c.Victim):
		return Cancelled, count(v.d.Masters, "master is", "masters are") + " declared now"
	case c.Kind == Retire && !c.Dead && (c.Attempts >= maxAttempts || s.do == Drain && v.over(c, s, v.d.Limits.Drain)):
		return Failed, c.late(s, v)
	case v.now.Sub(c.Begun) > v.d.Failover.After.Duration+v.d.Limits.Held:
		return Cancelled, "it was held back for too long"
	case c.Kind == Retire && !c.Dead && dead != "":
		return Cancelled, dead + " is dead, and that goes first"
	}
	if c.Heir == "" || v.isVoter(c.Heir) {
		return "", ""
	}
	m := v.machines[c.Heir]
	if m == nil {
		return Failed, c.Heir + " is gone"
	}
	joining := m.Role == Master
	eligible := 0
	for _, name := range v.voters {
		if v.mayBeMaster(name) {
			eligible++
		}
	}
	sign := v.sign(c.Heir)
	last := sign.First
	if sign.Agent.After(last) {
		last = sign.Agent
	}
	unable := v.unable(c.Heir, bearable*v.d.Limits.Fsync)
	switch {
	case !joining && (c.Kind == Grow || removed) && eligible >= v.d.Masters:
		return Cancelled, count(v.d.Masters, "master is", "masters are") + " declared now"
	case !joining && c.Kind == Grow && dead != "" && v.answering("") < quorum(len(v.voters)+1):
		return Cancelled, dead + " is dead, and without it no other can be added"
	case !v.mayBeMaster(c.Heir):
		return Cancelled, fmt.Sprintf("the site repo does not let %s be a master any more", c.Heir)
	case joining && m.Failed == m.Generation:
		return Failed, fmt.Sprintf("the join of %s failed", c.Heir)
	case !joining && v.leftover(c.Heir) != nil:
		return Failed, fmt.Sprintf("%s is in etcd's list already", c.Heir)
	case v.age(last) > v.d.Limits.Lost:
		return Failed, fmt.Sprintf("%s is silent for %s", c.Heir, span(v.age(last)))
	case !joining && v.hasAgent(c.Heir) && (!m.Blank || m.Joined) && s.prepared():
		return Failed, fmt.Sprintf("%s was reset, and something joined it again", c.Heir)
	case m.Blank && v.hasAgent(c.Heir) && unable != "":
		return Failed, fmt.Sprintf("%s: %s", c.Heir, unable)
	case s.who == heir && c.Attempts >= maxAttempts, s.who == heir && v.over(c, s, v.limit(s.do)):
		return Failed, c.late(s, v)
	}
	if other := v.sameAddress(c.Heir); other != nil && other.ID != c.Member {
		return Failed, fmt.Sprintf("the address of %s is that of etcd's member %s", c.Heir, cmp.Or(other.Name, fmt.Sprintf("%x", other.ID)))
	}
	return "", ""
}

// bearable is how many times the limit the disk of an heir may take that was fit when
// it was chosen: it is timed again just when it has booted, and a site that lacks a
// master is worse off than one whose etcd has a slow disk.
const bearable = 10

// prepared reports whether the heir is to be reset, and without a Node, at a stage.
func (s stage) prepared() bool {
	return s.who == victim || s.do == IssueKey || s.do == Join
}

// limit is how long a step about the heir may take.
func (v *view) limit(do Action) time.Duration {
	l := v.d.Limits
	switch do {
	case Prepull:
		return l.Prepull
	case Drain:
		return l.Drain
	case Reset:
		return l.Reset
	case Verify:
		return l.Verify
	}
	return l.Join
}

// over reports whether a stage has taken longer than it may.
func (v *view) over(c *Crown, s stage, limit time.Duration) bool {
	return c.Step == s.do && c.Machine == c.machine(s.who) && v.now.Sub(c.Since) > limit
}

func (c *Crown) late(s stage, v *view) string {
	name := c.machine(s.who)
	cause := fmt.Sprintf("%s of %s is not done after %s", s.do, name, span(v.now.Sub(c.Since)))
	if c.Attempts >= maxAttempts {
		cause = fmt.Sprintf("%s of %s failed %d times", s.do, name, c.Attempts)
	}
	if c.Error != "" {
		cause += ": " + c.Error
	} else if m := v.machines[name]; s.do == Drain && m != nil && m.Stuck != "" {
		cause += ": " + m.Stuck
	}
	return cause
}

// gate reports whether a stage may be done now, says what it waits for where it
// may not, and completes the step.
func (v *view) gate(d *Decision, c *Crown, s stage, step *Step) bool {
	// Up to the removal, whatever would hold it back holds back the preparation:
	// nobody's desktop is drained for a crown that will not be.
	if c.Victim != "" && c.Undo == "" && !v.isRemoved(c) {
		d.Holds = append(d.Holds, v.breakers(c.Kind, c.Number, c.Victim, c.Heir)...)
		if f := v.projected(c.Victim, !c.Dead); f != nil {
			d.hold(f)
		}
		if f := v.foreign(); f != nil {
			d.hold(f)
		}
		if len(d.Holds) > 0 {
			return false
		}
	}
	m := v.machines[step.Machine]
	switch s.do {
	case Cordon:
		step.Why = "no new Pods on a machine that is to be drained"
	case Prepull:
		step.Why = "the images of the control plane are needed there"
	case Drain:
		step.Why = fmt.Sprintf("%s to be evicted", count(m.Pods, "Pod is", "Pods are"))
		if m.Stuck != "" {
			d.wait(InProgress, m.Name, "Pods cannot be evicted now: "+m.Stuck)
		}
	case Reset:
		if m.Ordered == c.Name() {
			d.wait(InProgress, m.Name, fmt.Sprintf("it resets and reboots, since %s", span(v.now.Sub(c.Since))))
			return false
		}
		step.Why = "it starts afresh, and proves that it does so unattended"
	case DeleteNode:
		step.Why = "kubeadm refuses to join while a Node of that name is Ready"
		if s.who == victim {
			step.Why = "it is reset, and joins again as a worker"
		}
	case MoveLeader:
		return v.moveLeader(d, c, step)
	case RemoveMember:
		if s.who == heir {
			return v.gateLeftover(d, c, step)
		}
		return v.gateRemoval(d, c, step)
	case Fence:
		step.Generation = m.Generation + 1
		step.Why = fmt.Sprintf("whenever it comes back, it is a worker: generation %d", step.Generation)
	case IssueKey:
		if !v.isPrepared(d, c.Heir) {
			return false
		}
		step.Boot = m.Boot
		step.Why = "for this machine alone, and for 15 minutes"
	case Join:
		return v.gateJoin(d, c, step)
	case Verify:
		if c.Kind == Retire {
			d.wait(InProgress, c.Victim, "it resets, wipes data and keys, and reboots")
			if v.now.Sub(c.Since) > v.d.Limits.Verify/2 && c.Step == Verify {
				d.hold(&plan.Fault{Code: KeysLeft, ID: about(c.Victim), Cause: "it has not reported yet that etcd's data and the CA's keys are gone", Hint: "see whether its agent runs"})
			}
		}
		step.Why = "etcd, API server, Node and role agree"
	case Cleanup:
		step.Why = "with the key and the token one could become root of the site"
	case Snapshot:
		step.Why = "of the new membership"
	case Close:
		step.Why = cmp.Or(c.Cause, "it is done")
	}
	return true
}

// isPrepared reports whether the heir waits, reset and without a Node.
func (v *view) isPrepared(d *Decision, name string) bool {
	m := v.machines[name]
	switch {
	case !v.hasAgent(name):
		d.wait(InProgress, name, "its agent has not reported of late")
	case !m.Blank:
		d.wait(InProgress, name, "it does not report that it is reset")
	case m.Joined:
		d.wait(InProgress, name, "it has a Node again")
	default:
		return true
	}
	return false
}

// gateRemoval is the gate of the one step that cannot be taken back.
func (v *view) gateRemoval(d *Decision, c *Crown, step *Step) bool {
	step.Member, step.PeerURL = c.Member, c.PeerURL
	if c.Dead && !v.isDead(c.Victim) {
		silent, after := v.silentFor(c.Victim), v.d.Failover.After.Duration
		d.wait(NotYetDead, c.Victim, fmt.Sprintf("silent for %s, and dead after %s", span(silent), span(after)))
		d.again(v.now.Add(after - silent))
		return false
	}
	if c.Heir != "" && !v.isPrepared(d, c.Heir) {
		return false
	}
	if !c.Dead {
		for _, name := range v.voters {
			if !v.member[name].Answers {
				d.wait(MemberAway, name, "its etcd does not answer, and no master that works is retired until it does")
				return false
			}
		}
		if v.member[c.Victim] != nil && v.member[c.Victim].Leader {
			step.Do = MoveLeader
			return v.moveLeader(d, c, step)
		}
		step.Why = fmt.Sprintf("masters %d -> %d", len(v.voters), len(v.voters)-1)
		return true
	}
	step.Why = fmt.Sprintf("it is dead for %s; %d of the remaining %d members answer", span(v.silentFor(c.Victim)), v.answering(c.Victim), len(v.voters)-1)
	return true
}

// moveLeader gives etcd's leadership to the first other member that answers.
func (v *view) moveLeader(d *Decision, c *Crown, step *Step) bool {
	for _, name := range v.voters {
		if name != c.Victim && v.member[name].Answers {
			step.To, step.Why = name, "a leader that is removed costs an election"
			return true
		}
	}
	d.hold(&plan.Fault{Code: WouldLoseQuorum, ID: about(c.Victim), Cause: "it leads etcd, and no other member answers"})
	return false
}

// gateLeftover is the gate for removing what an heir that failed left in etcd: not
// while it still may be at work there.
func (v *view) gateLeftover(d *Decision, c *Crown, step *Step) bool {
	m, l := v.machines[c.Heir], v.leftover(c.Heir)
	step.Member, step.PeerURL = l.ID, l.PeerURL
	voter := !l.Learner && l.Name != ""
	silenced := m.Reached >= m.Generation && m.Blank || v.lostAgent(c.Heir)
	switch {
	case !silenced:
		d.wait(InProgress, c.Heir, "it stops its etcd and wipes its data")
	case l.Answers && voter:
		d.hold(&plan.Fault{Code: ForeignMember, ID: about(c.Heir), Cause: "it failed as heir, its agent is silent, and its etcd answers and has a vote", Hint: "noded reset on it"})
	case voter:
		if f := v.projected(c.Heir, false); f != nil {
			d.hold(f)
		} else if holds := v.breakers(Retire, c.Number, c.Heir, ""); len(holds) > 0 {
			d.Holds = append(d.Holds, holds...)
		} else {
			step.Why = "the heir failed, and its data is gone"
			return true
		}
	default:
		step.Why = "what the heir that failed left in etcd is in the way of the next"
		return true
	}
	return false
}

// gateJoin is the gate of the join.
func (v *view) gateJoin(d *Decision, c *Crown, step *Step) bool {
	m, n := v.machines[c.Heir], len(v.voters)
	if m.Role == Master {
		d.wait(InProgress, c.Heir, fmt.Sprintf("it joins as a master, since %s", span(v.now.Sub(c.Since))))
		return false
	}
	if !v.isPrepared(d, c.Heir) {
		return false
	}
	if f := v.foreign(); f != nil {
		d.hold(f)
		return false
	}
	// etcd's own rule since 3.6.12: the newcomer counts as down, unless there is but
	// one member.
	if answer := v.answering(""); n > 1 && answer < quorum(n+1) {
		d.hold(&plan.Fault{Code: WouldLoseQuorum, ID: about(c.Heir), Cause: fmt.Sprintf("%d of %d members answer, and with one more %d must", answer, n, quorum(n+1)), Hint: "see to the other masters"})
		return false
	}
	if !v.hasKey(m) {
		step.Do, step.Boot, step.Why = IssueKey, m.Boot, "the key or the token is over, or the machine rebooted"
		return true
	}
	step.Generation = m.Generation + 1
	step.Why = fmt.Sprintf("master %d of %d, generation %d", n+1, v.d.Masters, step.Generation)
	return true
}
