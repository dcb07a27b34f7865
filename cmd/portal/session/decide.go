package session

import (
	"fmt"
	"strings"
	"time"
)

// Observed is what was seen of one Session at one moment.
type Observed struct {
	// Fresh is true of a look that went to the API and not to a cache, and that saw
	// the Pods first and then the Session and then the Pods again: what cannot be
	// taken back is decided on such a one only.
	Fresh bool
	// There is false where the Session was deleted and Pods of it are left.
	There  bool
	UID    string
	Spec   Spec
	Status Status
	// Template is the one that is wanted; nil is none.
	Template *Template
	// Pods of this Session, and of others that had its name.
	Pods []Pod
	// Nodes by name. One that is missing is not known.
	Nodes map[string]Node
	// SelfFence is after how long without the API a machine stops its desktops by
	// itself. 0: it does not.
	SelfFence time.Duration
}

// Pod is one desktop's, as the API has it.
type Pod struct {
	Name, UID  string
	Session    string // UID of its Session
	Generation int64
	Gated      bool      // no scheduler takes it
	Node       string    // "" while it has none
	Deleting   bool      // it has been told to end
	Ended      bool      // its kubelet says that all has ended; or it was deleted before it had a machine
	Begun      time.Time // when its container did, by the clock of its machine; zero while it has not
	Boot       string    // BootNote
	Ready      bool
	IP         string
	Stage      string
	// Heard is true where the desktop itself said how long nobody touched it.
	Heard bool
	Idle  time.Duration
	// Trouble is what Kubernetes tells of it, with a code.
	Reason, Trouble string
}

// Node is a machine as far as its desktops go.
type Node struct {
	OutOfService bool          // the taint
	Ready        bool          // its kubelet says so
	Blank        bool          // its Machine: nothing runs on it
	Boot         string        // its Machine: installation and boot; "" where it has none
	Heartbeat    time.Time     // its Machine: when it last said so, by its own clock
	Silent       time.Duration // for how long we have waited for the next heartbeat
}

// Do is what is to be done.
type Do string

// All that is done. Each is repeatable, and names what it is about by UID or by
// generation, so that it does nothing where that is not there any more.
const (
	Nothing Do = ""
	Raise   Do = "Raise"   // the generation of the Session: the next Pod
	Create  Do = "Create"  // the Pod of this generation, gated
	Open    Do = "Open"    // the gate of a Pod
	Delete  Do = "Delete"  // a Pod, which may take its time to end
	Release Do = "Release" // a Pod that is over: it leaves the API
	Mark    Do = "Mark"    // a Pod with the boot that it runs in
	Warn    Do = "Warn"    // the user, that the desktop will stop
	Stop    Do = "Stop"    // the desktop of one who left: it is not wanted any more
	Recheck Do = "Recheck" // look again, at the API, and decide again
)

// Decision is the next thing to do, and what the Session says meanwhile.
type Decision struct {
	Do         Do
	Pod        Pod    // of Open, Delete, Release, Mark
	Generation int64  // of Raise: the new one
	Boot       string // of Mark
	Why        string
	Status     Status
}

// How long things take.
const (
	// Notice is how long before the end a user is told of it.
	Notice = time.Minute
	// DefaultIdleAfter is IdleAfter of a template that does not say.
	DefaultIdleAfter = 4 * time.Hour
	// maxBackoff is the longest pause after Pods that ended by themselves.
	maxBackoff = time.Minute
)

// Decide is the one next thing to do.
func Decide(o Observed, now time.Time) Decision {
	d := decide(o, now)
	switch d.Do {
	case Create, Open, Release, Raise:
		if !o.Fresh {
			d.Do = Recheck
		}
	}
	return d
}

func decide(o Observed, now time.Time) Decision {
	s := o.Status
	s.Reason, s.Message, s.PodIP, s.Pod, s.Node, s.Stage = "", "", "", "", "", ""
	if !o.Spec.Wanted && o.Status.Reason == Idle { // why it was stopped stays to be read
		s.Reason, s.Message = o.Status.Reason, o.Status.Message
	}
	if s.Generation != o.Spec.Generation {
		s.Generation, s.Since, s.LastInput, s.Warned = o.Spec.Generation, now, time.Time{}, time.Time{}
	}
	d := Decision{Status: s}
	current, others := part(o)

	// In which boot it runs is noted as soon as it is certain, for when it will not be.
	for _, p := range o.Pods {
		if boot := booted(p, o.Nodes[p.Node]); boot != "" && p.Boot == "" && !p.Ended {
			return d.do(Mark, p, "it runs in this boot of "+p.Node, func(d *Decision) { d.Boot = boot })
		}
	}

	// A Session that was deleted and made anew begins after all Pods of the one before.
	if next := above(o); o.There && next > o.Spec.Generation {
		return d.do(Raise, Pod{}, "there are Pods of a later generation", func(d *Decision) { d.Generation = next })
	}

	// What ended by itself is followed by the next, and not by itself again: a Pod is
	// never made twice.
	if current != nil && o.There && o.Spec.Wanted && (over(*current, o) != "" || current.Deleting) {
		d.Status.Phase, d.Status.Reason, d.Status.Message = Failed, Ended, "the desktop on "+current.Node+" ended"
		if current.Node == "" {
			d.Status.Message = "the desktop was deleted"
		}
		d.Status.Failures, d.Status.FailedAt = s.Failures+1, now
		return d.do(Raise, Pod{}, d.Status.Message, func(d *Decision) { d.Generation = o.Spec.Generation + 1 })
	}

	leave := others
	if current != nil && (!o.There || !o.Spec.Wanted) {
		leave = append(leave, *current)
	}
	for _, p := range leave {
		if why := over(p, o); why != "" {
			d.Status.Phase = Stopping
			return d.do(Release, p, why, nil)
		}
	}
	for _, p := range leave {
		if !p.Deleting {
			d.Status.Phase = Stopping
			return d.do(Delete, p, "it is not wanted any more", nil)
		}
	}
	if len(leave) > 0 { // they take their time
		p := leave[0]
		d.Status.Pod, d.Status.Node, d.Status.Phase = p.Name, p.Node, Stopping
		if o.There && o.Spec.Wanted {
			d.Status.Phase, d.Status.Reason = Fenced, FormerAlive
			d.Status.Message = "the former desktop has to end first"
			if p.Node != "" {
				d.Status.Message += ": it is on " + p.Node + ", which has not said so yet"
			}
		}
		return d
	}
	switch {
	case !o.There:
		return d
	case !o.Spec.Wanted:
		d.Status.Phase = Stopped
		d.Status.Failures, d.Status.FailedAt = 0, time.Time{}
		return d
	case current == nil:
		return create(d, o, now)
	}
	d.Status.Pod, d.Status.Node, d.Status.Phase, d.Status.Stage = current.Name, current.Node, Starting, Queued
	switch {
	case current.Gated:
		return d.do(Open, *current, "nothing of this home runs", nil)
	case current.Ready:
		return attend(d, *current, o, now)
	}
	if current.Node != "" {
		d.Status.Stage = Placed
		if !current.Begun.IsZero() {
			d.Status.Stage = Begun
		}
		if current.Stage == Screen || current.Stage == Painted {
			d.Status.Stage = current.Stage
		}
	}
	d.Status.Reason, d.Status.Message = current.Reason, current.Trouble
	return d
}

func (d Decision) do(do Do, p Pod, why string, more func(*Decision)) Decision {
	d.Do, d.Pod, d.Why = do, p, why
	if more != nil {
		more(&d)
	}
	return d
}

// part tells the Pod of this Session and generation from all others.
func part(o Observed) (current *Pod, others []Pod) {
	for _, p := range o.Pods {
		if o.There && p.Session == o.UID && p.Generation == o.Spec.Generation {
			current = &p
		} else {
			others = append(others, p)
		}
	}
	return current, others
}

// above is the generation after those of all Pods of others that had the Session's
// name, and of none of its own; 0 where there are none.
func above(o Observed) (next int64) {
	for _, p := range o.Pods {
		if p.Session != o.UID || p.Generation > o.Spec.Generation {
			next = max(next, p.Generation+1)
		}
	}
	return next
}

// over is why nothing of a Pod runs any more, and never will; "" where that is not
// known. Without its kubelet's word only one that was told to end is ever over: no
// kubelet begins such a one, whenever its machine comes back.
func over(p Pod, o Observed) string {
	n, known := o.Nodes[p.Node]
	switch {
	case p.Ended:
		return "it has ended"
	case !p.Deleting || p.Node == "":
		return ""
	case o.Spec.Off != "" && o.Spec.Off == p.Name:
		return "an administrator says that " + p.Node + " is off"
	case !known:
		return ""
	case n.OutOfService && !n.Ready:
		return p.Node + " is out of service"
	case n.Blank:
		return p.Node + " was reset"
	case p.Boot != "" && later(n.Boot, p.Boot):
		return p.Node + " has been started anew"
	case o.SelfFence > 0 && n.Silent >= o.SelfFence:
		return fmt.Sprintf("%s is silent for %s, and has stopped its desktops", p.Node, o.SelfFence)
	}
	return ""
}

// booted is the boot in which a Pod runs, or one after: the Machine reported it when
// the container had begun. A report from before could be of the boot before, and the
// next one would be taken for the Pod's end. Both times are of the machine's clock;
// Kubernetes cuts fractions off.
func booted(p Pod, n Node) string {
	if p.Node == "" || p.Begun.IsZero() || n.Boot == "" || !n.Heartbeat.After(p.Begun.Add(2*time.Second)) {
		return ""
	}
	return n.Boot
}

// later reports whether two boots are different ones of the same installation. Of two
// installations either PC may run.
func later(now, then string) bool {
	a, _, _ := strings.Cut(now, "/")
	b, _, _ := strings.Cut(then, "/")
	return now != "" && a == b && now != then
}

// create makes the Pod, unless it cannot be, or the last ones ended at once.
func create(d Decision, o Observed, now time.Time) Decision {
	d.Status.Phase, d.Status.Stage, d.Status.Pod = Starting, Queued, PodName(Name(o.Spec.User), o.Spec.Generation)
	if o.Template == nil {
		d.Status.Phase, d.Status.Reason = Failed, NoTemplate
		d.Status.Message = fmt.Sprintf("there is no desktop template %q", o.Spec.Template)
		return d
	}
	if wait := d.Status.FailedAt.Add(Backoff(d.Status.Failures)).Sub(now); d.Status.Failures > 0 && wait > 0 {
		d.Status.Phase, d.Status.Reason = Failed, Ended
		d.Status.Message = fmt.Sprintf("the desktop ended %d times by itself; it is tried again", d.Status.Failures)
		return d
	}
	return d.do(Create, Pod{}, "it is wanted, and nothing of this home runs", nil)
}

// Backoff is the pause before the next Pod, after so many that ended by themselves.
func Backoff(failures int) time.Duration {
	if failures <= 1 { // a machine that died is no fault of the desktop's
		return 0
	}
	return min(maxBackoff, 2*time.Second<<min(failures-2, 10))
}

// attend is what one needs that runs: its user is warned when nobody touches it, and
// it is stopped.
func attend(d Decision, p Pod, o Observed, now time.Time) Decision {
	d.Status.Phase, d.Status.Stage, d.Status.PodIP = Ready, Painted, p.IP
	if o.Template == nil || !p.Heard { // unknown is not idle
		return d
	}
	if last := now.Add(-p.Idle); last.Sub(d.Status.LastInput).Abs() >= time.Minute {
		d.Status.LastInput = last.UTC().Truncate(time.Second)
	}
	if now.Sub(d.Status.Since) > 10*time.Minute {
		d.Status.Failures, d.Status.FailedAt = 0, time.Time{}
	}
	after := time.Duration(o.Template.IdleAfter)
	if after == 0 {
		after = DefaultIdleAfter
	}
	switch {
	case p.Idle < after-Notice:
		d.Status.Warned = time.Time{}
	case d.Status.Warned.IsZero():
		d.Status.Warned = now.UTC()
		return d.do(Warn, p, "nobody touches it", nil)
	case now.Sub(d.Status.Warned) >= Notice && p.Idle >= after:
		d.Status.Reason, d.Status.Message = Idle, fmt.Sprintf("nobody touched it for %s", after)
		return d.do(Stop, p, d.Status.Message, nil)
	}
	return d
}
