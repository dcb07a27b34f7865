package gluster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Reasons of the condition Ready of a Volume.
const (
	CopiesWell    plan.Code = "CopiesWell"    // all copies are there and equal
	CopiesMissing plan.Code = "CopiesMissing" // they are not
)

// staleReport is how old a machine's report of its brick may be: it reports every 30 s.
const staleReport = 90 * time.Second

// maxSplit is how many names of files in split-brain a Volume lists.
const maxSplit = 100

// wanted are the volumes of a view, as the steward is to make them.
func (v view) wanted() (list []Wanted) {
	for name, s := range v.volumes {
		w := Wanted{Name: name, ID: s.status.ID, Arbiter: s.spec.Arbiter, Options: s.spec.Options, Delete: s.spec.Delete, Eras: s.status.Eras}
		for _, b := range s.spec.Bricks {
			w.Bricks = append(w.Bricks, v.target(name, b.Machine, b.Address))
		}
		list = append(list, w)
	}
	return list
}

// target is a machine's brick of a volume, as its hand reports it.
func (v view) target(volume, machine, address string) Target {
	m, known := v.machines[machine]
	t := Target{Machine: machine, Address: address, Path: BrickPath(volume), Unfit: m.unfit(v.at), Full: m.brick.full()}
	if !known {
		t.Unfit = "the site has no such machine"
	}
	for _, h := range m.brick.Holds {
		if h.Volume == volume {
			t.Holds = h.ID
		}
	}
	return t
}

// unfit is why nothing can be put on a machine's brick.
func (m pc) unfit(at time.Time) string {
	switch {
	case m.brick.Heartbeat.IsZero():
		return "it has not reported yet"
	case at.Sub(m.brick.Heartbeat) > staleReport:
		return fmt.Sprintf("it last reported %s ago", at.Sub(m.brick.Heartbeat).Round(time.Second))
	case m.brick.Unfit != "":
		return m.brick.Unfit
	case m.brick.Size == 0:
		return "it has no brick"
	case m.brick.Glusterd == "":
		return "its glusterd does not answer"
	}
	return ""
}

// news is what of a view may call for a step, as something to compare: neither what the
// steward writes itself nor what only grows older.
func (v view) news() string {
	all := map[string][]any{}
	for name, s := range v.volumes {
		all["volume "+name] = []any{s.uid, s.spec}
	}
	for name, m := range v.machines {
		b := m.brick
		all["machine "+name] = []any{m.address, m.noBrick, m.unfit(v.at) == "", b.full(), b.Size, b.FileSystem, b.Unfit, b.Glusterd, b.Holds}
	}
	return normal(all)
}

// full reports whether so little room is left that what is written fails soon.
func (b MachineBrick) full() bool { return b.Size > 0 && b.Free*20 < b.Size }

// fill adds to what gluster says what the machines report.
func (s *Seen) fill(v view, self string) {
	s.At, s.Targets = v.at, map[string]Target{}
	s.Self = []string{v.machines[self].address}
	for name, m := range v.machines {
		if m.noBrick || m.address == "" {
			continue
		}
		s.Machines = append(s.Machines, Target{Machine: name, Address: m.address, Unfit: m.unfit(v.at)})
		for volume := range v.volumes {
			t := v.target(volume, name, m.address)
			s.Targets[t.String()] = t
		}
	}
	for name, volume := range v.volumes { // one may be known by an address that it had
		for _, b := range volume.spec.Bricks {
			t := v.target(name, b.Machine, b.Address)
			s.Targets[t.String()] = t
		}
	}
	slices.SortFunc(s.Machines, func(a, b Target) int { return strings.Compare(a.Machine, b.Machine) })
}

// preparation is how far a volume's folders are.
type preparation struct {
	done  bool
	homes int
	err   error
}

// statusOf is what there is to say of a volume.
func statusOf(w Wanted, last VolumeStatus, generation int64, seen Seen, holds []*plan.Fault, prepared preparation, split []string) VolumeStatus {
	s := VolumeStatus{ObservedGeneration: generation, ID: last.ID, Eras: last.Eras, Step: last.Step, SplitFiles: split,
		Prepared: last.Prepared || prepared.done, Homes: last.Homes}
	if prepared.done {
		s.Homes = prepared.homes
	}
	v := seen.live(w.Name)
	if v != nil && s.ID == "" {
		s.ID = v.ID
	}
	var words []string
	for _, h := range holds {
		if h.ID == about(w.Name) && !slices.Contains(words, h.Cause) {
			words = append(words, h.Cause)
		}
	}
	if prepared.err != nil && !w.Delete {
		words = append(words, prepared.err.Error())
	}
	s.Message = strings.Join(words, "; ")
	s.Aside = seen.aside(w, s.ID)
	s.Phase = Pending
	if v == nil {
		if w.Delete {
			s.Phase, s.Prepared, s.Homes = Removed, false, 0
			if len(s.Aside) > 0 {
				s.Phase = Removing
			}
		}
		return s.ready(last, seen.At)
	}
	down := 0
	for _, b := range v.Bricks {
		t := seen.Targets[b.String()]
		at := BrickStatus{Machine: t.Machine, Brick: b.String(), Online: seen.online(v.Name, b), Pending: -1}
		if h, known := seen.heal(v.Name, b); known {
			at.Pending = h.Pending
			s.Pending, s.SplitBrain = s.Pending+h.Pending, s.SplitBrain+h.SplitBrain
		}
		if !at.Online {
			down++
			at.Since = last.since(at.Brick, seen.At)
		}
		s.Bricks = append(s.Bricks, at)
	}
	s.Copies = fmt.Sprintf("%d/%d", len(v.Bricks)-down, len(v.Bricks))
	if seen.settled(w.Name) {
		s.Eras = nil
	}
	missing, extra := difference(w, *v)
	switch {
	case w.Delete:
		s.Phase = Removing
	case !v.Started:
		s.Phase = Stopped
	case s.SplitBrain > 0:
		s.Phase = Split
	case down > 0 || len(missing) > len(extra):
		s.Phase = Degraded
	case !seen.isWhole(*v) || len(missing)+len(extra) > 0:
		s.Phase = Catching
	default:
		s.Phase = Started
	}
	return s.ready(last, seen.At)
}

// words are a status for people.
func (s VolumeStatus) words() string {
	switch {
	case s.Message != "":
		return s.Message
	case s.Copies != "":
		return s.Copies + " copies run"
	case s.Phase == Removed:
		return "the pool has it no more; what its bricks hold is still there"
	}
	return "it is not made yet"
}

// aside are the machines that have a former copy of a volume: one that is no brick
// of it any more.
func (s Seen) aside(w Wanted, id string) (machines []string) {
	v := s.live(w.Name)
	for brick, t := range s.Targets {
		if id == "" || t.Holds != id || t.Path != BrickPath(w.Name) || t.Unfit != "" ||
			v != nil && (v.ID != id || slices.ContainsFunc(v.Bricks, func(b LiveBrick) bool { return b.String() == brick })) ||
			v == nil && !w.Delete { // nothing is known of it
			continue
		}
		machines = append(machines, t.Machine)
	}
	slices.Sort(machines)
	return slices.Compact(machines)
}

// since is since when a brick has not run.
func (s VolumeStatus) since(brick string, now time.Time) time.Time {
	for _, b := range s.Bricks {
		if b.Brick == brick && !b.Since.IsZero() {
			return b.Since
		}
	}
	return now.UTC().Truncate(time.Second)
}

// ready adds the condition.
func (s VolumeStatus) ready(last VolumeStatus, now time.Time) VolumeStatus {
	c := plan.Condition{Type: "Ready", Status: "False", Reason: CopiesMissing, Message: s.Message, ObservedGeneration: s.ObservedGeneration}
	if s.Phase == Started && s.Prepared {
		c.Status, c.Reason = "True", CopiesWell
	}
	c.LastTransitionTime = now.UTC().Truncate(time.Second)
	for _, before := range last.Conditions {
		if before.Type == c.Type && before.Status == c.Status {
			c.LastTransitionTime = before.LastTransitionTime
		}
	}
	s.Conditions = []plan.Condition{c}
	return s
}

// peers are the machines of the pool. What a peer's machine was is remembered as long
// as it belongs to the pool.
func peers(seen Seen, last []PeerStatus, own string) (list []PeerStatus) {
	for _, p := range seen.Peers {
		at := PeerStatus{UUID: p.UUID, Connected: p.Connected}
		if len(p.Addresses) > 0 {
			at.Address = p.Addresses[0]
		}
		for _, t := range seen.Machines {
			if slices.Contains(p.Addresses, t.Address) || p.Self && t.Machine == own {
				at.Machine, at.Address = t.Machine, t.Address
			}
		}
		for _, before := range last {
			if before.UUID == p.UUID && at.Machine == "" {
				at.Machine = before.Machine
			}
		}
		list = append(list, at)
	}
	slices.SortFunc(list, func(a, b PeerStatus) int { return strings.Compare(a.Machine+a.UUID, b.Machine+b.UUID) })
	return list
}
