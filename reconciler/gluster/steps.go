package gluster

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of what keeps a volume from being as declared.
const (
	BrickAway     plan.Code = "BrickAway"     // a machine, or what serves its brick, does not answer
	BrickUnfit    plan.Code = "BrickUnfit"    // its file system is not mounted, is another one, or cannot be written
	BrickFull     plan.Code = "BrickFull"     // what is written fails soon
	BrickForeign  plan.Code = "BrickForeign"  // the folder belongs to another volume
	SplitBrain    plan.Code = "SplitBrain"    // copies differ, and none is in the right
	Healing       plan.Code = "Healing"       // copies catch up
	HalfCopies    plan.Code = "HalfCopies"    // too few copies are left to know that they have everything
	OnlyCopy      plan.Code = "OnlyCopy"      // it cannot be moved without another copy
	Distributed   plan.Code = "Distributed"   // somebody made the volume of several sets: it is left as it is
	MissingBricks plan.Code = "MissingBricks" // fewer bricks than copies
	Rejected      plan.Code = "Rejected"      // glusterd refuses a peer
	Stranger      plan.Code = "Stranger"      // a volume, or a peer, that is not the site's
	StepRefused   plan.Code = "StepRefused"   // gluster refuses a step
	Vanished      plan.Code = "Vanished"      // the pool knows nothing of a volume that was there
)

// Wanted is a volume as the daemon wants it: declared, and placed.
type Wanted struct {
	Name    string
	ID      string // UUID, as it was seen before; "" while it was never seen
	Arbiter bool
	Bricks  []Target          // a copy each, in GlusterFS's order
	Options map[string]string // of the site repo
	Delete  bool              // with consent
	Eras    [][]string        // VolumeStatus.Eras
}

// Target is a brick that is to be, or is.
type Target struct {
	Machine string
	Address string
	Path    string
	Unfit   string // why it can hold nothing, such as "its file system is not mounted"; "" where it can
	Full    bool   // little room is left
	Holds   string // UUID of the volume of which its folder is a brick already; "" for none
}

// String is the brick as gluster's command line has it.
func (t Target) String() string { return t.Address + ":" + t.Path }

// Seen is what the steward read, all of it now.
type Seen struct {
	At        time.Time
	Self      []string // addresses of the steward's machine, of which its own glusterd knows none
	Peers     []Peer
	Volumes   []Live
	Processes map[string][]Process // by volume; of those that are started
	Heals     map[string][]Heal
	Machines  []Target             // that are to be in the trusted pool; without a path
	Targets   map[string]Target    // of every machine by the address and path of a brick, as its hand reports
	Nudged    map[string]time.Time // by volume: when its heal was last ordered
	Refused   map[string]Refused   // by a step's key: those that gluster refused a moment ago
	Calm      map[string]time.Time // by volume: since when all of its copies run and none has anything to catch up with; none where that is not so
}

// Refused is a step that gluster refused, and why.
type Refused struct {
	Why   string
	Until time.Time // it is not tried again before
}

// Do is what a step does.
type Do string

// The steps. Each can be done twice; none is done with force but where GlusterFS
// knows no other form.
const (
	Probe   Do = "Probe"   // take a machine into the trusted pool
	Detach  Do = "Detach"  // take one out that has no brick in any volume
	Create  Do = "Create"  // a volume
	Set     Do = "Set"     // an option
	Start   Do = "Start"   // a volume
	Revive  Do = "Revive"  // the bricks of a started volume that do not run (start force: it starts, and changes nothing)
	Reset   Do = "Reset"   // a brick in its old place, on an empty file system (reset-brick)
	Replace Do = "Replace" // a brick by one elsewhere
	Add     Do = "Add"     // bricks: more copies
	Remove  Do = "Remove"  // bricks: fewer copies; their folders keep what they have
	Mend    Do = "Mend"    // have the copies catch up now
	Rewrite Do = "Rewrite" // the files that glusterd gives to clients: an option is set to what it is
	Stop    Do = "Stop"    // a volume, to delete it
	Delete  Do = "Delete"  // a volume that is stopped; its bricks keep what they have

	// SetAside is the one that is not gluster's: the machine itself renames the folder
	// of a former copy. What is in it is stale, and still somebody's.
	SetAside Do = "SetAside"
)

// Step is one command of gluster.
type Step struct {
	Do       Do
	Volume   string
	Address  string            // Probe, Detach
	Bricks   []string          // Create, Add, Remove: address:path
	Old, New string            // Replace: address:path; Reset, SetAside: Old
	Replicas int               // Create, Add, Remove: copies afterwards
	Arbiter  bool              // Create
	Options  map[string]string // Set
	Why      string
}

// key tells one step from another, whatever the reason for it.
func (s Step) key() string {
	s.Why = ""
	return fmt.Sprint(s)
}

// must are the options of every volume. Their reasons were measured: without a
// quorum of clients two halves write on; with 42 s of ping-timeout, GlusterFS's own,
// a machine that vanishes stops a desktop for 81 s; and no copy ever wins by itself.
func must(replicas int) map[string]string {
	options := map[string]string{
		"network.ping-timeout":          "10",
		"cluster.favorite-child-policy": "none",
		"cluster.self-heal-daemon":      "on",
		"cluster.granular-entry-heal":   "on",
		"cluster.server-quorum-type":    "none",
		"storage.fips-mode-rchecksum":   "on",
		"cluster.lookup-optimize":       "on",
		"performance.readdir-ahead":     "off",
	}
	if replicas > 1 {
		options["cluster.quorum-type"] = "auto"
	}
	return options
}

// patience is how long a heal is left to itself before it is asked for again.
const patience = 15 * time.Second

// settling is how long the copies must have been equal before one of them is
// touched: a copy that has just begun to catch up may say that there is nothing.
const settling = 10 * time.Second

// Next is the next step towards the volumes as wanted, nil where there is none now;
// and what holds back. It is one for the whole pool: gluster does one thing at a
// time, and so do we, until what was done is healed.
//
// No step takes a copy away, or writes to one in its place, while another copy of
// the volume is away or behind. A volume that is not wanted any more is left alone.
func Next(wanted []Wanted, seen Seen) (step *Step, holds []*plan.Fault) {
	wanted = slices.SortedFunc(slices.Values(wanted), func(a, b Wanted) int { return strings.Compare(a.Name, b.Name) })
	step, holds = seen.pool()
	if f := seen.refused(step, aboutPool()); f != nil {
		step, holds = nil, append(holds, f)
	}
	for _, w := range wanted {
		s, h := seen.volume(w)
		holds = append(holds, h...)
		if f := seen.refused(s, about(w.Name)); f != nil {
			s, holds = nil, append(holds, f)
		}
		step = cmp.Or(step, s)
	}
	return step, holds
}

// refused is why a step is not tried now; nil where it may be.
func (s Seen) refused(step *Step, id plan.ID) *plan.Fault {
	if step == nil {
		return nil
	}
	r, ok := s.Refused[step.key()]
	if !ok || !s.At.Before(r.Until) {
		return nil
	}
	return &plan.Fault{Code: StepRefused, ID: id, Cause: r.Why, Hint: "it is tried again"}
}

func about(volume string) plan.ID {
	return plan.ID{System: plan.Volumes, Kind: "Volume", Name: volume}
}

func aboutPool() plan.ID { return plan.ID{System: plan.Volumes, Kind: "Pool", Name: PoolName} }

// pool takes the machines of the site into the pool, and others out of it.
func (s Seen) pool() (step *Step, holds []*plan.Fault) {
	id := aboutPool()
	ours := map[string]bool{} // UUIDs
	for _, t := range s.Machines {
		p := s.peer(t.Address)
		if p != nil {
			ours[p.UUID] = true
		}
		switch {
		case t.Unfit != "" || p != nil && p.Member:
		case p == nil:
			step = cmp.Or(step, &Step{Do: Probe, Address: t.Address, Why: t.Machine + " brings a brick"})
		case strings.Contains(p.State, "Rejected"):
			holds = append(holds, &plan.Fault{Code: Rejected, ID: id, Cause: fmt.Sprintf("the trusted pool rejects %s: %s", t.Machine, p.State),
				Hint: "it was in another pool, or its glusterd lost its files: see its /var/lib/glusterd"})
		}
	}
	if len(ours) == 0 {
		return step, holds // nothing is known of the site's machines, least of all that others are not its own
	}
	for _, p := range s.Peers {
		switch {
		case p.Self || ours[p.UUID] || len(p.Addresses) == 0 || s.hasBrick(p):
		case !p.Connected: // it would take force
			holds = append(holds, &plan.Fault{Code: Stranger, ID: id, Cause: fmt.Sprintf("%s is in the trusted pool, is no machine of the site, and does not answer", p.Addresses[0]),
				Hint: "where it is gone for good: gluster peer detach " + p.Addresses[0] + " force"})
		default:
			step = cmp.Or(step, &Step{Do: Detach, Address: p.Addresses[0], Why: "it is no machine of the site, and has no copy of anything"})
		}
	}
	return step, holds
}

// hasBrick reports whether a peer has a copy of any volume.
func (s Seen) hasBrick(p Peer) bool {
	return slices.ContainsFunc(s.Volumes, func(v Live) bool {
		return slices.ContainsFunc(v.Bricks, func(b LiveBrick) bool { return b.Peer == p.UUID })
	})
}

// peer is who has an address, nil for nobody.
func (s Seen) peer(address string) *Peer {
	for i, p := range s.Peers {
		if slices.Contains(p.Addresses, address) || p.Self && slices.Contains(s.Self, address) {
			return &s.Peers[i]
		}
	}
	return nil
}

// live is a volume as the pool has it, nil where it has none of that name.
func (s Seen) live(name string) *Live {
	if at := slices.IndexFunc(s.Volumes, func(v Live) bool { return v.Name == name }); at >= 0 {
		return &s.Volumes[at]
	}
	return nil
}

// volume is the next step for one volume.
func (s Seen) volume(w Wanted) (step *Step, holds []*plan.Fault) {
	hold := func(code plan.Code, cause, hint string) {
		holds = append(holds, &plan.Fault{Code: code, ID: about(w.Name), Cause: cause, Hint: hint})
	}
	v := s.live(w.Name)
	switch {
	case v == nil && w.Delete:
		return nil, nil
	case v == nil && w.ID != "":
		hold(Vanished, fmt.Sprintf("the trusted pool knows nothing of the volume, which was there (%s)", w.ID),
			"its copies are in "+BrickPath(w.Name)+" of the machines; to have a new one made, kubectl delete volumes.kingmaker.dev "+w.Name)
		return nil, holds
	case v == nil:
		return s.create(w)
	case w.ID != "" && v.ID != w.ID:
		hold(Stranger, fmt.Sprintf("the pool has another volume of that name: %s instead of %s", v.ID, w.ID), "it is left as it is; see who made it")
		return nil, holds
	case w.Delete && v.Started:
		return &Step{Do: Stop, Volume: w.Name, Why: "git confirms that it goes"}, nil
	case w.Delete:
		return &Step{Do: Delete, Volume: w.Name, Why: "git confirms that it goes; its bricks keep what they have"}, nil
	case v.Sets > 1:
		hold(Distributed, fmt.Sprintf("the volume has %d sets of bricks: it was not made by Kingmaker", v.Sets), "its bricks are left as they are")
		return nil, holds
	}
	own := must(len(w.Bricks))
	for name := range w.Options {
		delete(own, name)
	}
	if step := set(w.Name, own, *v); step != nil {
		return step, nil
	}
	if !v.Started {
		return &Step{Do: Start, Volume: w.Name, Why: "it is not started"}, nil
	}
	step, holds = s.bricks(w, *v)
	// Those of the site repo last, each for itself: one may be refused.
	for _, name := range slices.Sorted(maps.Keys(w.Options)) {
		one := set(w.Name, map[string]string{name: w.Options[name]}, *v)
		if f := s.refused(one, about(w.Name)); f != nil {
			holds = append(holds, f)
			continue
		}
		step = cmp.Or(step, one)
	}
	return step, holds
}

// set is the step that gives a volume options, nil where it has them.
func set(volume string, options map[string]string, v Live) *Step {
	differ := map[string]string{}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if v.Options[name] != options[name] {
			differ[name] = options[name]
			words = append(words, fmt.Sprintf("%s is %s", name, cmp.Or(v.Options[name], "as GlusterFS has it")))
		}
	}
	if words == nil {
		return nil
	}
	return &Step{Do: Set, Volume: volume, Options: differ, Why: strings.Join(words, ", ")}
}

// create waits until every brick is there: a volume is not made smaller than it is
// to be, for with one copy it could be written to.
func (s Seen) create(w Wanted) (step *Step, holds []*plan.Fault) {
	var bricks []string
	for _, t := range w.Bricks {
		if f := s.unusable(w.Name, t); f != nil {
			holds = append(holds, f)
		}
		bricks = append(bricks, t.String())
	}
	if len(holds) > 0 || len(bricks) == 0 {
		return nil, holds
	}
	return &Step{Do: Create, Volume: w.Name, Bricks: bricks, Replicas: len(bricks), Arbiter: w.Arbiter, Why: "it is declared"}, nil
}

// unusable is why a new brick cannot be taken.
func (s Seen) unusable(volume string, t Target) *plan.Fault {
	p := s.peer(t.Address)
	switch {
	case t.Unfit != "":
		return &plan.Fault{Code: BrickUnfit, ID: about(volume), Cause: fmt.Sprintf("the brick of %s cannot be used: %s", t.Machine, t.Unfit), Hint: "noded status on it says more"}
	case t.Holds != "":
		return &plan.Fault{Code: BrickForeign, ID: about(volume), Cause: fmt.Sprintf("%s on %s is a brick of the volume %s already", t.Path, t.Machine, t.Holds), Hint: "where nobody needs it, move that folder away"}
	case p != nil && !p.Member:
		return &plan.Fault{Code: BrickAway, ID: about(volume), Cause: fmt.Sprintf("%s is on its way into the trusted pool: %s", t.Machine, p.State)}
	case p == nil || !p.Connected:
		return &plan.Fault{Code: BrickAway, ID: about(volume), Cause: fmt.Sprintf("glusterd of %s does not answer", t.Machine), Hint: "see whether the machine is on: systemctl status glusterd"}
	}
	return nil
}

// bricks brings the copies to where they are to be.
func (s Seen) bricks(w Wanted, v Live) (step *Step, holds []*plan.Fault) {
	hold := func(code plan.Code, cause, hint string) {
		holds = append(holds, &plan.Fault{Code: code, ID: about(w.Name), Cause: cause, Hint: hint})
	}
	down, step, holds := s.down(w, v)
	if step != nil {
		return step, holds
	}
	pending, split, known := s.behind(v, down)
	if split > 0 {
		hold(SplitBrain, fmt.Sprintf("%d entries differ between the copies, and none is in the right", split), "gluster volume heal "+w.Name+" info split-brain names them; which copy wins is a person's to say")
		return nil, holds
	}
	missing, extra := difference(w, v)
	for _, t := range missing {
		// Of this volume once, or left by a try that was refused half-way: with force,
		// gluster would take it with all that is stale in it.
		if t.Holds == v.ID && t.Unfit == "" {
			return &Step{Do: SetAside, Volume: w.Name, Old: t.String(), Why: fmt.Sprintf("what %s has of the volume is of an earlier time", t.Machine)}, holds
		}
	}
	places := len(missing) // those that cannot be used now included
	missing = slices.DeleteFunc(missing, func(t Target) bool {
		f := s.unusable(w.Name, t)
		if f != nil {
			holds = append(holds, f)
		}
		return f != nil
	})
	lost := slices.DeleteFunc(slices.Clone(extra), func(b LiveBrick) bool { return !slices.Contains(down, b) })
	switch {
	case len(down) > len(lost):
		return nil, holds // until it is back, or given up
	case !known:
		hold(Healing, "it is not known how far the copies are", "")
		if s.unlisted(v) && s.At.Sub(s.Nudged[v.Name]) >= patience {
			const option = "network.ping-timeout"
			return &Step{Do: Rewrite, Volume: w.Name, Options: map[string]string{option: v.Options[option]},
				Why: "clients are told of fewer bricks than there are: a step failed on one machine only"}, holds
		}
		return nil, holds
	case len(lost) > 0: // the others have things for it, and would for ever
		step, f := giveUp(w, v, lost, missing, places)
		if f != nil {
			holds = append(holds, f)
		}
		return step, holds
	case pending > 0:
		hold(Healing, fmt.Sprintf("the copies catch up: %d entries are left", pending), "")
		if s.At.Sub(s.Nudged[v.Name]) >= patience {
			return &Step{Do: Mend, Volume: w.Name, Why: fmt.Sprintf("%d entries are to be healed", pending)}, holds
		}
		return nil, holds
	case len(missing)+len(extra) == 0:
		return nil, holds
	case !s.settled(v.Name):
		hold(Healing, "the copies are equal, and are watched for a moment before one is touched", "")
		return nil, holds
	}
	step, f := move(w, v, missing, extra)
	if f != nil {
		holds = append(holds, f)
	}
	return step, holds
}

// down are the bricks that do not run, and what can be done about one at once.
func (s Seen) down(w Wanted, v Live) (down []LiveBrick, step *Step, holds []*plan.Fault) {
	hold := func(code plan.Code, cause, hint string) {
		holds = append(holds, &plan.Fault{Code: code, ID: about(w.Name), Cause: cause, Hint: hint})
	}
	for _, b := range v.Bricks {
		t, known := s.Targets[b.String()]
		if t.Full {
			hold(BrickFull, fmt.Sprintf("the brick of %s is nearly full", t.Machine), "make room in the volume, or let machines with bigger disks bring a brick")
		}
		if s.online(v.Name, b) {
			continue
		}
		down = append(down, b)
		switch p := s.peerOf(b); {
		case p == nil || !p.Connected:
			hold(BrickAway, fmt.Sprintf("the copy on %s is away", cmp.Or(t.Machine, b.Address)), "see whether the machine is on, and glusterd runs there")
		case !known:
			hold(BrickAway, fmt.Sprintf("the brick %s does not run, and its machine says nothing of it", b), "")
		case t.Unfit != "":
			hold(BrickUnfit, fmt.Sprintf("the brick of %s cannot be used: %s", t.Machine, t.Unfit), "noded status on it says more")
		case t.Holds == v.ID:
			step = cmp.Or(step, &Step{Do: Revive, Volume: w.Name, Why: fmt.Sprintf("the brick of %s does not run, and the machine is there", t.Machine)})
		case t.Holds != "":
			hold(BrickForeign, fmt.Sprintf("%s on %s is a brick of the volume %s", t.Path, t.Machine, t.Holds), "")
		case s.othersWell(v, b) && mostOf(w.Eras, v, b):
			step = &Step{Do: Reset, Volume: w.Name, Old: b.String(), Why: fmt.Sprintf("the brick of %s is empty: its disk is another one", t.Machine)}
		default:
			hold(HalfCopies, fmt.Sprintf("the brick of %s is empty, and the other copies are not well enough to fill it", t.Machine), "bring the others back first")
		}
	}
	return down, step, holds
}

// unlisted reports whether a brick is missing in what the self-heal daemon says: it has
// another idea of the volume than glusterd.
func (s Seen) unlisted(v Live) bool {
	return slices.ContainsFunc(v.Bricks, func(b LiveBrick) bool {
		return !slices.ContainsFunc(s.Heals[v.Name], func(h Heal) bool { return h.Brick == b.String() })
	})
}

// behind is how much the copies that run have to catch up with.
func (s Seen) behind(v Live, down []LiveBrick) (pending, split int, known bool) {
	known = true
	for _, b := range v.Bricks {
		h, ok := s.heal(v.Name, b)
		if pending, split = pending+h.Pending, split+h.SplitBrain; !ok && !slices.Contains(down, b) {
			known = false
		}
	}
	return pending, split, known
}

// giveUp goes on without copies that are lost, where what is left has everything.
// All other copies run. Places are the bricks that the volume is to get, missing
// those of them that can be had now.
func giveUp(w Wanted, v Live, lost []LiveBrick, missing []Target, places int) (*Step, *plan.Fault) {
	if !mostOf(w.Eras, v, lost...) {
		return nil, &plan.Fault{Code: HalfCopies, ID: about(w.Name), Cause: fmt.Sprintf("%s are lost, and the copies that are left may lack what was written last", strings.Join(texts(lost), ", ")),
			Hint: "bring one of them back: nothing is given up before"}
	}
	switch {
	case len(missing) > 0 && len(lost) == 1:
		return &Step{Do: Replace, Volume: w.Name, Old: lost[0].String(), New: missing[0].String(), Why: fmt.Sprintf("its machine is gone, and %s takes its place", missing[0].Machine)}, nil
	case v.Arbiters > 0 || places > 0 && len(missing) == 0:
		return nil, nil // until there is a brick in its place
	case places > 0:
		lost = lost[1:] // one after the other: a new copy wants all others to run
	}
	rest := len(v.Bricks) - len(lost)
	return &Step{Do: Remove, Volume: w.Name, Bricks: texts(lost), Replicas: rest, Why: fmt.Sprintf("%d of %d copies are gone", len(lost), len(v.Bricks))}, nil
}

// move is the step of a volume whose copies all run and are equal.
func move(w Wanted, v Live, missing []Target, extra []LiveBrick) (*Step, *plan.Fault) {
	now := len(v.Bricks)
	hold := func(code plan.Code, cause, hint string) (*Step, *plan.Fault) {
		return nil, &plan.Fault{Code: code, ID: about(w.Name), Cause: cause, Hint: hint}
	}
	if (now+len(missing))%2 == 0 && len(extra) == 0 && len(missing) > 1 {
		missing = missing[:len(missing)-1] // an even count is no better than one less
	}
	switch {
	case len(missing) > 0 && len(extra) > 0 && now == 1:
		return hold(OnlyCopy, "its one copy cannot be moved", "want replicas: 3 first, and 1 once these are healed")
	case len(missing) > 0 && len(extra) > 0:
		return &Step{Do: Replace, Volume: w.Name, Old: extra[0].String(), New: missing[0].String(), Why: "it is to be on " + missing[0].Machine}, nil
	case v.Arbiters > 0:
		return hold(MissingBricks, "the number of copies of a volume with an arbiter is not changed", "make another volume, and move what is in this one")
	case len(missing) > 0 && (now+len(missing))%2 == 1:
		return &Step{Do: Add, Volume: w.Name, Bricks: texts(missing), Replicas: now + len(missing), Why: fmt.Sprintf("%d copies -> %d", now, now+len(missing))}, nil
	case len(missing) > 0:
		return hold(MissingBricks, fmt.Sprintf("%d copies would be no better than %d", now+len(missing), now), "")
	case (now-len(extra))%2 == 1:
		return &Step{Do: Remove, Volume: w.Name, Bricks: texts(extra), Replicas: now - len(extra), Why: fmt.Sprintf("%d copies -> %d", now, now-len(extra))}, nil
	}
	return hold(MissingBricks, fmt.Sprintf("%s is to go, and there is no brick in its place", extra[0]), "let another machine bring a brick")
}

// mostOf reports whether the copies of a volume without some of them are most of it
// as it is, and most of each era. What was acknowledged was on most copies of one
// of these sets, so at least one of those left has it.
func mostOf(eras [][]string, v Live, without ...LiveBrick) bool {
	gone := texts(without)
	now := texts(v.Bricks)
	for _, era := range append([][]string{now}, eras...) {
		left := 0
		for _, b := range era {
			if slices.Contains(now, b) && !slices.Contains(gone, b) {
				left++
			}
		}
		if left*2 <= len(era) {
			return false
		}
	}
	return true
}

// erasAfter is the eras of a volume once a step is done: the set of copies as it is
// before is one, until all copies are equal again. A brick that is emptied in its
// place is another one from then on.
func erasAfter(eras [][]string, v Live, s *Step) [][]string {
	switch s.Do {
	case Reset, Replace, Add, Remove:
	default:
		return eras
	}
	next := make([][]string, 0, len(eras)+1)
	for _, era := range append(slices.Clone(eras), texts(v.Bricks)) {
		era = slices.Clone(era)
		if at := slices.Index(era, s.Old); at >= 0 && s.Do == Reset {
			era[at] = "emptied " + s.Old
		}
		if !slices.ContainsFunc(next, func(e []string) bool { return slices.Equal(e, era) }) {
			next = append(next, era)
		}
	}
	return next
}

// settled reports whether the copies of a volume have been equal for long enough.
func (s Seen) settled(volume string) bool {
	since := s.Calm[volume]
	return !since.IsZero() && s.At.Sub(since) >= settling
}

// isWhole reports whether all copies of a volume run, and none has anything to catch
// up with.
func (s Seen) isWhole(v Live) bool {
	pending, split, known := s.behind(v, nil)
	return v.Started && known && pending == 0 && split == 0 && !slices.ContainsFunc(v.Bricks, func(b LiveBrick) bool { return !s.online(v.Name, b) })
}

// difference is which bricks are missing, and which are not wanted.
func difference(w Wanted, v Live) (missing []Target, extra []LiveBrick) {
	for _, t := range w.Bricks {
		if !slices.ContainsFunc(v.Bricks, func(b LiveBrick) bool { return b.String() == t.String() }) {
			missing = append(missing, t)
		}
	}
	for _, b := range v.Bricks {
		if !slices.ContainsFunc(w.Bricks, func(t Target) bool { return b.String() == t.String() }) {
			extra = append(extra, b)
		}
	}
	return missing, extra
}

func texts[T fmt.Stringer](bricks []T) (list []string) {
	for _, b := range bricks {
		list = append(list, b.String())
	}
	return list
}

// online reports whether a brick runs.
func (s Seen) online(volume string, b LiveBrick) bool { return runs(s.Processes[volume], b) }

func runs(processes []Process, b LiveBrick) bool {
	return slices.ContainsFunc(processes, func(p Process) bool { return p.Peer == b.Peer && p.Path == b.Path && p.Online })
}

func (s Seen) peerOf(b LiveBrick) *Peer {
	for i := range s.Peers {
		if s.Peers[i].UUID == b.Peer {
			return &s.Peers[i]
		}
	}
	return nil
}

func (s Seen) heal(volume string, b LiveBrick) (h Heal, known bool) {
	for _, h := range s.Heals[volume] {
		if h.Brick == b.String() {
			return h, h.Known
		}
	}
	return h, false
}

// othersWell reports whether all copies but one run, say what they have to catch up
// with, and have no quarrel: then that one can be made anew from them.
func (s Seen) othersWell(v Live, without LiveBrick) bool {
	others := 0
	for _, b := range v.Bricks {
		if b == without {
			continue
		}
		h, known := s.heal(v.Name, b)
		if !s.online(v.Name, b) || !known || h.SplitBrain > 0 {
			return false
		}
		others++
	}
	return others >= len(v.Bricks)/2+1 || others > 0 && len(v.Bricks) <= 2
}
