package session

import (
	"fmt"
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
}

// Pod is one desktop's, as the API has it.
type Pod struct {
	Name, UID  string
	Session    string // UID of its Session
	Generation int64
	Node       string // "" while it has none
	Deleting   bool   // it has been told to end
	Ended      bool   // its kubelet says that all has ended; or it was deleted before it had a machine
	Begun      bool   // its container runs, or did
	Ready      bool
	IP         string
	Stage      string
	// Past is for how long it has been known that its generation is over: nobody renews
	// its lease since. It counts from when the one who looks learnt of it, or later.
	Past time.Duration
	// Heard is when the desktop itself said for how long nobody had touched it: Idle.
	// Zero: it did not, of late.
	Heard time.Time
	Idle  time.Duration
	// Silent is for how long it should have answered, and did not.
	Silent time.Duration
	// Trouble is what Kubernetes tells of it, with a code.
	Reason, Trouble string
}

// Do is what is to be done.
type Do string

// All that is done. Each is repeatable, and names what it is about by UID or by
// generation, so that it does nothing where that is not there any more.
const (
	Nothing Do = ""
	Raise   Do = "Raise"   // the generation of the Session: the next Pod
	Create  Do = "Create"  // the Pod of this generation
	Delete  Do = "Delete"  // a Pod, which may take its time to end
	Release Do = "Release" // a Pod that is over: it leaves the API
	Warn    Do = "Warn"    // the user, that the desktop will stop
	Stop    Do = "Stop"    // the desktop of one who left: it is not wanted any more
	Recheck Do = "Recheck" // look again, at the API, and decide again
)

// Decision is the next thing to do, and what the Session says meanwhile.
type Decision struct {
	Do         Do
	Pod        Pod   // of Delete, Release
	Generation int64 // of Raise: the new one
	Why        string
	Status     Status
}

// How long things take.
const (
	// LeaseFor is how long a desktop goes on after the portal last renewed its lease. It is longer
	// than it takes another portal to take over, and short for one who waits.
	LeaseFor = 45 * time.Second
	// slack is for clocks that do not run equally fast, and for a desktop that looks at
	// its own now and then.
	slack = 5 * time.Second
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
	case Create, Release, Raise, Delete:
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
	current, leave := part(o)

	// A Session that was deleted and made anew begins after all Pods of the one before.
	if next := above(o); o.There && next > o.Spec.Generation {
		return d.do(Raise, Pod{}, "there are Pods of a later generation", func(d *Decision) { d.Generation = next })
	}

	// What is not wanted belongs to the past, too: then its lease runs out.
	if current != nil && !o.Spec.Wanted {
		d.Status.Phase = Stopping
		return d.do(Raise, Pod{}, "it is not wanted any more", func(d *Decision) { d.Generation = o.Spec.Generation + 1 })
	}

	// What ended by itself is followed by the next, and not by itself again: a Pod is
	// never made twice.
	if current != nil && (current.Ended || current.Deleting) {
		d.Status.Phase, d.Status.Reason, d.Status.Message = Failed, Ended, "the desktop on "+current.Node+" ended"
		if current.Node == "" {
			d.Status.Message = "the desktop was deleted"
		}
		d.Status.Failures, d.Status.FailedAt = s.Failures+1, now
		return d.do(Raise, Pod{}, d.Status.Message, func(d *Decision) { d.Generation = o.Spec.Generation + 1 })
	}

	leaving := d
	leaving.Status.Phase = Stopping
	if current != nil { // what is made too late is no matter of the one that runs
		leaving.Status = o.Status
	}
	for _, p := range leave {
		if why := over(p); why != "" {
			return leaving.do(Release, p, why, nil)
		}
	}
	for _, p := range leave {
		if !p.Deleting {
			return leaving.do(Delete, p, "it is not wanted any more", nil)
		}
	}
	if len(leave) > 0 && current == nil { // they take their time
		p := leave[0]
		d.Status.Pod, d.Status.Node, d.Status.Phase = p.Name, p.Node, Stopping
		if o.There && o.Spec.Wanted {
			d.Status.Phase, d.Status.Reason = Fenced, FormerAlive
			d.Status.Message = "the former desktop has to end first"
			if p.Node != "" {
				d.Status.Message += ": it is on " + p.Node + ", which has not said so yet, and is not waited for longer than a minute"
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
	if current.Ready {
		return attend(d, *current, o, now)
	}
	if current.Node != "" {
		d.Status.Stage = Placed
		if current.Begun {
			d.Status.Stage = Begun
		}
		if current.Stage == Screen || current.Stage == Painted {
			d.Status.Stage, d.Status.PodIP = current.Stage, current.IP
		}
	}
	d.silent(*current)
	if current.Reason != "" {
		d.Status.Reason, d.Status.Message = current.Reason, current.Trouble
	}
	return d
}

// silent says of a desktop that it does not answer.
func (d *Decision) silent(p Pod) {
	if p.Silent > 0 {
		d.Status.Reason = Silent
		d.Status.Message = fmt.Sprintf("it has not answered for %s, and may be frozen: is there a network between the portal and %s?", p.Silent.Truncate(time.Minute)+time.Minute, p.Node)
	}
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

// over is why nothing of a Pod of the past runs any more, and never will; "" where that
// is not known. Without its kubelet's word only one that was told to end is ever over:
// its kubelet ends it, whenever the machine comes back.
func over(p Pod) string {
	switch {
	case p.Ended:
		return "it has ended"
	case p.Deleting && p.Past >= LeaseFor+slack:
		return fmt.Sprintf("its lease has run out: nobody renews it for %s", LeaseFor+slack)
	}
	return ""
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
	d.silent(p)
	if o.Template == nil || p.Heard.IsZero() { // unknown is not idle
		return d
	}
	if last := p.Heard.Add(-p.Idle); last.Sub(d.Status.LastInput).Abs() >= time.Minute {
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
	case !p.Heard.Before(d.Status.Warned.Add(Notice)) && p.Idle >= after: // said when the notice was over
		d.Status.Reason, d.Status.Message = Idle, fmt.Sprintf("nobody touched it for %s", after)
		return d.do(Stop, p, d.Status.Message, nil)
	}
	return d
}
