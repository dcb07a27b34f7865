package reconciler

import (
	"fmt"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// maxErrors is how many errors a status holds: it is one object in etcd, and
// nobody reads more.
const maxErrors = 20

// Reasons of conditions.
const (
	Reached     plan.Code = "Reached"     // the site equals its commit, and works
	Progressing plan.Code = "Progressing" // changes are under way, or wait
	Unhealthy   plan.Code = "Unhealthy"   // as declared, and not working
	Failing     plan.Code = "Failing"     // something went wrong
	Running     plan.Code = "Running"     // nothing is suspended
)

// Status is what to tell people after a round. Only what changed in it since
// the last status is new: a condition keeps its time while its status stays.
func Status(last plan.SiteStatus, round Round, now time.Time) plan.SiteStatus {
	s := plan.SiteStatus{
		ObservedGeneration: last.ObservedGeneration,
		Commit:             plan.CommitStatus{Wanted: round.Commit, Reached: last.Commit.Reached},
		LastRound:          now.UTC().Truncate(time.Second),
		Reconciler:         last.Reconciler,
	}
	if round.Settled() {
		s.Commit.Reached = round.Commit
	}
	s.Commit.Short = plan.Short(s.Commit.Reached)
	if s.Counts.Objects = last.Counts.Objects; round.Site != nil {
		s.Counts.Objects = len(round.Site.Objects)
	}
	s.Counts.Unhealthy = len(round.Unhealthy)
	faults, rest := plan.Split(round.Err)
	if rest != nil {
		faults = append([]*plan.Fault{{Code: Failing, Cause: rest.Error()}}, faults...)
	}
	if p := round.Plan; p != nil {
		s.Counts.Changes, s.Counts.Withheld, s.Counts.Waiting = len(p.Changes)-round.Applied, len(p.Withheld), len(p.Waiting)
		faults = append(faults, p.Waiting...)
		for _, h := range p.Withheld {
			faults = append(faults, h.Reason)
		}
	}
	faults = append(faults, round.Unhealthy...)
	for i, f := range faults {
		if i == maxErrors {
			break
		}
		s.Errors = append(s.Errors, *f)
	}

	for _, c := range conditions(round, s.Commit.Short) {
		c.ObservedGeneration, c.LastTransitionTime = s.ObservedGeneration, s.LastRound
		for _, before := range last.Conditions {
			if before.Type == c.Type && before.Status == c.Status {
				c.LastTransitionTime = before.LastTransitionTime
			}
		}
		s.Conditions = append(s.Conditions, c)
	}
	return s
}

// conditions are those of a round. Ready is for people and for kubectl wait;
// Reconciling and Stalled are what kstatus, and whoever builds on it, look for:
// they are True when something is the matter.
func conditions(round Round, commit string) []plan.Condition {
	ready := plan.Condition{Type: "Ready", Status: "True", Reason: Reached, Message: "the site equals commit " + commit}
	reconciling := plan.Condition{Type: "Reconciling", Status: "False", Reason: Reached, Message: "nothing is under way"}
	stalled := plan.Condition{Type: "Stalled", Status: "False", Reason: Running, Message: "nothing went wrong"}
	suspended := plan.Condition{Type: "Suspended", Status: "False", Reason: Running, Message: "changes are carried out"}
	switch {
	case round.Err != nil:
		ready.Status, ready.Reason, ready.Message = "False", Failing, firstLine(round.Err.Error())
		stalled.Status, stalled.Reason, stalled.Message = "True", Failing, ready.Message
	case round.Plan != nil && !round.Plan.Settled():
		ready.Status, ready.Reason, ready.Message = "False", Progressing, round.Plan.Totals()
		reconciling.Status, reconciling.Reason, reconciling.Message = "True", Progressing, ready.Message
	case len(round.Unhealthy) > 0:
		ready.Status, ready.Reason = "False", Unhealthy
		ready.Message = fmt.Sprintf("%d objects do not work: %s", len(round.Unhealthy), round.Unhealthy[0].Error())
	}
	if round.Held != nil {
		suspended.Status, suspended.Reason, suspended.Message = "True", round.Held.Code, round.Held.Error()
	}
	return []plan.Condition{ready, reconciling, stalled, suspended}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
