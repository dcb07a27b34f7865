package roles

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Ahead is one step of a change that is pending, if all goes well.
type Ahead struct {
	Step Step
	In   time.Duration // how long the timers make it wait; not how long steps take
}

// maxAhead is more steps than any change has that is shown: 1 -> 7 masters.
const maxAhead = 120

// Forecast is what will be done from here on, in order, if every step succeeds and
// nobody else lives or dies; and the decision at its end, whose Holds say what
// stops it there. It asks Plan on a copy of the site in which each step takes no
// time.
func Forecast(declared Declared, observed Observed, now time.Time, memory Memory) (steps []Ahead, end Decision) {
	f := forecast{o: observed.clone(), from: now, now: now}
	f.o.Fresh = true
	f.tick(now.Sub(observed.At), memory) // as if it had just been read
	for len(steps) < maxAhead {
		end = Plan(declared, f.o, f.now, memory)
		memory = end.Memory
		switch {
		case end.Step != nil:
			steps = append(steps, Ahead{*end.Step, f.now.Sub(f.from)})
			f.carry(end)
		case end.Again.After(f.now):
			// In turns, as a brain that looks all the while.
			turn := declared.Limits.withDefaults().Silent / 2
			for f.now.Before(end.Again) {
				f.tick(min(turn, end.Again.Sub(f.now)), memory)
				memory = memory.See(f.o, 2*turn)
			}
		default:
			return steps, end
		}
	}
	return steps, end
}

// forecast is a site in which all goes well.
type forecast struct {
	o         Observed
	from, now time.Time
}

func (o Observed) clone() Observed {
	o.Machines, o.Members, o.Crowns = slices.Clone(o.Machines), slices.Clone(o.Members), slices.Clone(o.Crowns)
	return o
}

// tick lets time pass: who lived goes on to live.
func (f *forecast) tick(d time.Duration, memory Memory) {
	for i := range f.o.Machines {
		m := &f.o.Machines[i]
		if s := memory.Signs[m.Name]; !s.Silent {
			if !s.Kubelet.IsZero() {
				m.Lease = m.Lease.Add(d)
			}
			if !s.Agent.IsZero() {
				m.Heartbeat = m.Heartbeat.Add(d)
			}
		}
	}
	f.now = f.now.Add(d)
	f.o.At = f.now
}

func (f *forecast) machine(name string) *Machine {
	for i := range f.o.Machines {
		if f.o.Machines[i].Name == name {
			return &f.o.Machines[i]
		}
	}
	return &Machine{}
}

// carry does what the executor and the agents would.
func (f *forecast) carry(d Decision) {
	if r := d.Record; r != nil {
		if i := slices.IndexFunc(f.o.Crowns, func(c Crown) bool { return c.Number == r.Number }); i >= 0 {
			f.o.Crowns[i] = *r
		} else {
			f.o.Crowns = append(f.o.Crowns, *r)
		}
	}
	s := d.Step
	m := f.machine(s.Machine)
	blank := func() {
		m.Blank, m.Keys, m.Boot, m.Ready = true, false, m.Boot+"+", false
		m.Reached = m.Generation
	}
	switch s.Do {
	case Cordon:
		m.Cordoned, m.Ours = true, true
	case Uncordon:
		m.Cordoned, m.Ours = false, false
	case Prepull:
		m.Images = true
	case Drain:
		m.Pods = 0
	case Reset:
		m.Ordered, m.ResetFor = s.Crown, s.Crown
		blank()
	case DeleteNode:
		m.Joined, m.Ready, m.Labelled, m.Cordoned, m.Ours = false, false, false, false, false
	case RemoveMember:
		f.o.Members = slices.DeleteFunc(f.o.Members, func(e Member) bool { return e.ID == s.Member })
	case Fence:
		m.Role, m.Generation = Worker, s.Generation
		if !m.Lease.IsZero() && m.Ready { // it lives
			blank()
		}
	case IssueKey:
		f.o.Key = Key{s.Machine, s.Boot, f.now.Add(15 * time.Minute)}
	case Join:
		m.Role, m.Generation, m.Reached = Master, s.Generation, s.Generation
		m.Blank, m.Keys, m.Joined, m.Labelled, m.Lease = false, true, true, true, f.now // Ready once it is verified
		id := uint64(1)
		for _, e := range f.o.Members {
			id = max(id, e.ID+1)
		}
		f.o.Members = append(f.o.Members, Member{ID: id, Name: m.Name, PeerURL: "https://" + m.Address + ":2380", Answers: true})
		f.o.Agree = true
	case Verify:
		m.Ready = m.Joined
	case Cleanup:
		f.o.Key = Key{}
	case Snapshot:
		f.o.Snapshot = f.now
	case MoveLeader:
		for i := range f.o.Members {
			f.o.Members[i].Leader = f.o.Members[i].Name == s.To
		}
	case Repair:
		m.Lease = m.Lease.Add(time.Second)
	case Label:
		m.Labelled = true
	case Withdraw:
		m.Ordered = ""
	case JoinWorker:
		m.Blank, m.Joined, m.Ready, m.Lease = false, true, true, f.now
	}
}

// String is the step in words: "remove pc-02 from etcd".
func (s Step) String() string {
	m := s.Machine
	switch s.Do {
	case Choose:
		return "begin " + s.Crown
	case Cordon:
		return "cordon " + m
	case Prepull:
		return "pull the images of the control plane on " + m
	case Drain:
		return "drain " + m
	case Reset:
		return "reset " + m + " and reboot it"
	case DeleteNode:
		return "delete the Node of " + m
	case Recheck:
		return "check every gate again"
	case RemoveMember:
		return fmt.Sprintf("remove the etcd member %x of %s", s.Member, m)
	case Fence:
		return fmt.Sprintf("make %s a worker, generation %d", m, s.Generation)
	case IssueKey:
		return "issue a key and a token for " + m
	case Join:
		return fmt.Sprintf("join %s as a master, generation %d", m, s.Generation)
	case Verify:
		return "verify " + m
	case Cleanup:
		return "delete the key and the token"
	case Snapshot:
		return "write a snapshot of etcd"
	case Close:
		return "close " + s.Crown
	case MoveLeader:
		return fmt.Sprintf("move etcd's leadership from %s to %s", m, s.To)
	case Repair:
		return "restart the kubelet of " + m
	case Cancel, RollBack:
		return "undo " + s.Crown
	case Uncordon:
		return "uncordon " + m
	case JoinWorker:
		return "join " + m + " as a worker"
	case Label:
		return "label the Node of " + m + " as a master's"
	case Withdraw:
		return "withdraw the order to reset " + m
	}
	return string(s.Do) + " " + m
}

// Write prints a decision: the change and its steps ahead, what holds it back, and
// the table for the heir.
func (d Decision) Write(w io.Writer, ahead []Ahead, end Decision) error {
	var b strings.Builder
	switch {
	case d.Why != "":
		fmt.Fprintln(&b, d.Why)
	case len(ahead)+len(d.Holds)+len(d.Waits) == 0:
		fmt.Fprintln(&b, "masters: nothing to change")
	}
	for i, a := range ahead {
		if a.Step.Do == Choose && i > 0 {
			fmt.Fprintln(&b, a.Step.Why)
		}
		line := a.Step.String()
		if i == 0 && a.In > 0 || i > 0 && a.In != ahead[i-1].In {
			line = "in " + span(a.In) + ": " + line
		}
		fmt.Fprintf(&b, "%4d  %s\n", i+1, line)
	}
	for _, f := range d.Waits {
		fmt.Fprintf(&b, "waiting: %s: %v\n", f.Code, f)
	}
	for _, f := range d.Holds {
		fmt.Fprintf(&b, "held: %s: %v\n", f.Code, f)
	}
	for _, f := range end.Holds {
		if !slices.ContainsFunc(d.Holds, func(h *plan.Fault) bool { return h.Code == f.Code && h.ID == f.ID }) {
			fmt.Fprintf(&b, "and then held: %s: %v\n", f.Code, f)
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	if len(d.Scores) > 0 {
		return WriteScores(w, d.Scores)
	}
	return nil
}
