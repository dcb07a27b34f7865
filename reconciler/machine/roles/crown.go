package roles

import (
	"fmt"
	"slices"
	"time"
)

// Kind is what a crown does.
type Kind string

// The kinds of crowns.
const (
	Replace Kind = "replace" // a dead master, by an heir
	Grow    Kind = "grow"    // one master more
	Retire  Kind = "retire"  // one master less
)

// Outcome is how a crown ended.
type Outcome string

// The outcomes.
const (
	Done      Outcome = "done"
	Cancelled Outcome = "cancelled" // it is no longer needed: the victim returned, or the commit changed
	Failed    Outcome = "failed"    // the heir could not
)

// Crown is the record of one change of roles: all that is remembered of it. It
// is written before each step, and only if it still is what the decision saw.
type Crown struct {
	// Number is one more than that of the crown before, so that of two daemons
	// only one can begin it.
	Number int
	Kind   Kind
	// Victim is who ceases to be a master; "" when growing.
	Victim string
	// Member and PeerURL are those of the victim's etcd.
	Member  uint64
	PeerURL string
	// Dead is true of a victim that was silent when the crown began.
	Dead bool
	// Heir is who becomes a master; "" when retiring.
	Heir string
	// Boot is the heir's, or the retired one's, before the reset.
	Boot string
	// Address is the heir's when it was told to join: a member that it left before it
	// had a name is found by it, even if the machine has another one now.
	Address string
	// Why is the sentence for people with which it began.
	Why string
	// Begun is when.
	Begun time.Time

	// Step and Machine are what is being done, Since when.
	Step    Action
	Machine string
	Since   time.Time
	// Attempts is how often the executor met an error in this step, and Error is
	// the last one. He writes both; the planner takes them away with the next step.
	Attempts int
	Error    string
	// Undo is set once the crown is to be undone, and with which outcome, Cause
	// is why.
	Undo  Outcome
	Cause string

	// Outcome and Ended are set once it is over.
	Outcome Outcome
	Ended   time.Time
	Journal []Entry
}

// Entry is one line of a crown's journal.
type Entry struct {
	At      time.Time
	Step    Action
	Machine string
	Note    string
}

// Name of the record in the cluster.
func (c *Crown) Name() string { return fmt.Sprintf("crown-%d", c.Number) }

// Open reports whether it is not over.
func (c *Crown) Open() bool { return c.Outcome == "" }

// removed is when the removal of the victim's member began.
func (c *Crown) removed() (at time.Time, ok bool) {
	for _, e := range c.Journal {
		if e.Step == RemoveMember && e.Machine == c.Victim && c.Victim != "" {
			return e.At, true
		}
	}
	return at, false
}

// at is the record for a step: the same one, where the step goes on.
func (c *Crown) at(do Action, machine, note string, now time.Time) *Crown {
	if c.Step == do && c.Machine == machine {
		return c
	}
	next := *c
	next.Step, next.Machine, next.Since, next.Attempts, next.Error = do, machine, now, 0, ""
	next.Journal = append(slices.Clip(c.Journal), Entry{now, do, machine, note})
	return &next
}

// Action is what one step does.
type Action string

// The actions. Each can be repeated: what is done already is not done again.
const (
	Choose       Action = "Choose"       // store the record of a new crown; nothing else
	Cordon       Action = "Cordon"       // no new Pods on the machine, and a mark that it was us
	Prepull      Action = "Prepull"      // see that the images of the control plane are there, else have them pulled
	Drain        Action = "Drain"        // evict the Pods, as their budgets allow
	Reset        Action = "Reset"        // tell the agent to reset the machine and reboot
	DeleteNode   Action = "DeleteNode"   // delete the machine's Node
	Recheck      Action = "Recheck"      // read everything afresh, and ask again at once
	RemoveMember Action = "RemoveMember" // from etcd, by ID and peer URL, through a member that answers; then see that it is gone
	Fence        Action = "Fence"        // assign the role of a worker with a new generation
	IssueKey     Action = "IssueKey"     // a certificate key and a token of 15 minutes, for this machine in this boot
	Join         Action = "Join"         // assign the role of a master with a new generation; its agent joins
	Verify       Action = "Verify"       // see that the role is reached: of a master etcd, API and Node; of a retired one that data and keys are gone
	Cleanup      Action = "Cleanup"      // delete the certificate key and the token
	Snapshot     Action = "Snapshot"     // write a snapshot of etcd
	Close        Action = "Close"        // store the record with its outcome; nothing else
	MoveLeader   Action = "MoveLeader"   // etcd's leadership to another member
	Repair       Action = "Repair"       // have the agent restart the kubelet
	Cancel       Action = "Cancel"       // store that the crown is to be undone, because it is not needed; nothing else
	RollBack     Action = "RollBack"     // store that the crown is to be undone, because the heir failed; nothing else
	Uncordon     Action = "Uncordon"     // of a machine that we cordoned
	JoinWorker   Action = "JoinWorker"   // a token for a blank machine; its agent joins as a worker
	Label        Action = "Label"        // the Node of a master, which no kubelet may call one
	Withdraw     Action = "Withdraw"     // the order to reset that a machine did not carry out in time
)

// NeedsFresh reports whether an action is decided on fresh reads only: whatever
// loses something, or could be done on an old reading to the wrong machine.
func (a Action) NeedsFresh() bool {
	switch a {
	case Prepull, Recheck, Verify, Snapshot, Repair:
		return false
	}
	return true
}

// Step is one step, with all that it needs.
type Step struct {
	Do         Action
	Machine    string // "" where it is about none
	Member     uint64 // RemoveMember: by ID
	PeerURL    string // RemoveMember: and only if it has this one
	To         string // MoveLeader: the machine that takes over
	Generation int64  // Fence, Join: of the role; written only over a smaller one
	For        Action // Recheck: the step that would come next
	Boot       string // IssueKey: the boot of the machine in which alone it may be used
	Crown      string // the record that it belongs to; "" for none
	Why        string // for people
}

// stage is a step of a crown, about its heir or its victim.
type stage struct {
	do  Action
	who who
}

type who int

const (
	nobody who = iota
	heir
	victim
)

// stages are the steps of a crown, in order.
func (c *Crown) stages() []stage {
	switch {
	case c.Undo != "":
		return []stage{
			{Cleanup, heir},      // so that the heir cannot join any more
			{Fence, heir},        // where it had begun to join
			{RemoveMember, heir}, // the learner that it left
			{Close, nobody},      // it comes back as a worker like any other blank machine
		}
	case c.Kind == Replace:
		return []stage{
			{Cordon, heir}, {Prepull, heir}, {Drain, heir},
			{Reset, heir},          // the reboot proves that it starts unattended, before it has a vote
			{DeleteNode, heir},     // kubeadm refuses to join where a Node of that name is Ready
			{RemoveMember, victim}, // here it begins to count
			{Fence, victim},        // whenever it comes back, it is a worker
			// Its Node stays until it reports that it was reset: it may be cut off and
			// running, and with the Node gone Kubernetes would start its StatefulSets'
			// Pods a second time.
			{IssueKey, heir}, // just in time: with it one can become root of the site
			{Join, heir},
			{Verify, heir},
			{Cleanup, heir},
			{Snapshot, nobody}, // of the new membership
			{Close, nobody},
		}
	case c.Kind == Grow:
		return []stage{
			{Cordon, heir}, {Prepull, heir}, {Drain, heir}, {Reset, heir}, {DeleteNode, heir},
			{IssueKey, heir}, {Join, heir}, {Verify, heir}, {Cleanup, heir}, {Snapshot, nobody}, {Close, nobody},
		}
	}
	return []stage{
		{Cordon, victim}, {Drain, victim}, // while its kubelet still reaches an API server: its own
		{MoveLeader, victim},
		{RemoveMember, victim}, // kubeadm reset would only warn where it cannot
		{Fence, victim},        // its agent resets, wipes and reboots
		{Verify, victim},       // that data and keys are gone
		{DeleteNode, victim},   // not before that
		{Snapshot, nobody},
		{Close, nobody},
	}
}

// machine that a stage of the crown is about.
func (c *Crown) machine(w who) string {
	switch w {
	case heir:
		return c.Heir
	case victim:
		return c.Victim
	}
	return ""
}
