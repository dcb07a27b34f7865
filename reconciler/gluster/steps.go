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
	BrickUnfit    plan.Code = "BrickUnfit"    // its file system is not mounted, is another one, or is full
	BrickForeign  plan.Code = "BrickForeign"  // the folder belongs to another volume
	SplitBrain    plan.Code = "SplitBrain"    // copies differ, and none is in the right
	Healing       plan.Code = "Healing"       // copies catch up
	OnlyCopy      plan.Code = "OnlyCopy"      // it cannot be moved without another copy
	Distributed   plan.Code = "Distributed"   // somebody made the volume of several sets: it is left as it is
	MissingBricks plan.Code = "MissingBricks" // fewer bricks than copies
	Rejected      plan.Code = "Rejected"      // glusterd refuses a peer
)

// Wanted is a volume as the daemon wants it: declared, and placed.
type Wanted struct {
	Name    string
	Arbiter bool
	Bricks  []Target          // a copy each, in GlusterFS's order
	Options map[string]string // of the site repo
}

// Target is a brick that is to be, or is.
type Target struct {
	Machine string
	Address string
	Path    string
	Unfit   string // why it can hold nothing, such as "its file system is not mounted"; "" where it can
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
	Targets   map[string]Target    // of every machine by the address and path of a brick, as its agent reports
	Nudged    map[string]time.Time // by volume: when its heal was last ordered
}

// Do is what a step does.
type Do string

// The steps. Each can be done twice; none is done with force but where GlusterFS
// knows no other form.
const (
	Probe   Do = "Probe"   // take a machine into the trusted pool
	Create  Do = "Create"  // a volume
	Set     Do = "Set"     // an option
	Start   Do = "Start"   // a volume
	Revive  Do = "Revive"  // the bricks of a started volume that do not run (start force: it starts, and changes nothing)
	Reset   Do = "Reset"   // a brick in its old place, on an empty file system (reset-brick)
	Replace Do = "Replace" // a brick by one elsewhere
	Add     Do = "Add"     // bricks: more copies
	Remove  Do = "Remove"  // bricks: fewer copies; their folders keep what they have
	Mend    Do = "Mend"    // have the copies catch up now

	// SetAside is the one that is not gluster's: the machine itself renames the folder
	// of a former copy. What is in it is stale, and still somebody's.
	SetAside Do = "SetAside"
)

// Step is one command of gluster.
type Step struct {
	Do            Do
	Volume        string
	Address       string   // Probe
	Bricks        []string // Create, Add, Remove: address:path
	Old, New      string   // Replace: address:path; Reset, SetAside: Old
	Replicas      int      // Create, Add, Remove: copies afterwards
	Arbiter       bool     // Create
	Option, Value string   // Set
	Why           string
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
const patience = time.Minute

// Next is the next step towards the volumes as wanted, nil where there is none now;
// and what holds back. It is one for the whole pool: gluster does one thing at a
// time, and so do we, until what was done is healed.
//
// No step takes a copy away, or writes to one in its place, while another copy of
// the volume is away or behind. A volume that is not wanted any more is left alone.
func Next(wanted []Wanted, seen Seen) (step *Step, holds []*plan.Fault) {
	wanted = slices.SortedFunc(slices.Values(wanted), func(a, b Wanted) int { return strings.Compare(a.Name, b.Name) })
	for _, w := range wanted {
		s, h := seen.probe(w)
		holds = append(holds, h...)
		step = cmp.Or(step, s)
	}
	for _, w := range wanted {
		s, h := seen.volume(w)
		holds = append(holds, h...)
		step = cmp.Or(step, s)
	}
	return step, holds
}

func about(volume string) plan.ID {
	return plan.ID{System: plan.Volumes, Kind: "Volume", Name: volume}
}

// probe takes the machines of a volume into the pool.
func (s Seen) probe(w Wanted) (step *Step, holds []*plan.Fault) {
	for _, t := range w.Bricks {
		switch p := s.peer(t.Address); {
		case t.Unfit != "" || p != nil && p.Member:
		case p == nil:
			step = cmp.Or(step, &Step{Do: Probe, Volume: w.Name, Address: t.Address, Why: fmt.Sprintf("%s is to hold a copy of %s", t.Machine, w.Name)})
		case strings.Contains(p.State, "Rejected"):
			holds = append(holds, &plan.Fault{Code: Rejected, ID: about(w.Name), Cause: fmt.Sprintf("the trusted pool rejects %s: %s", t.Machine, p.State),
				Hint: "it was in another pool, or its glusterd lost its files: see its /var/lib/glusterd"})
		}
	}
	return step, holds
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

// volume is the next step for one volume.
func (s Seen) volume(w Wanted) (step *Step, holds []*plan.Fault) {
	hold := func(code plan.Code, cause, hint string) {
		holds = append(holds, &plan.Fault{Code: code, ID: about(w.Name), Cause: cause, Hint: hint})
	}
	at := slices.IndexFunc(s.Volumes, func(v Live) bool { return v.Name == w.Name })
	if at < 0 {
		return s.create(w)
	}
	v := s.Volumes[at]
	if v.Sets > 1 {
		hold(Distributed, fmt.Sprintf("the volume has %d sets of bricks: it was not made by Kingmaker", v.Sets), "its bricks are left as they are")
		return nil, holds
	}
	options := must(len(w.Bricks))
	maps.Copy(options, w.Options)
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if v.Options[name] != options[name] {
			return &Step{Do: Set, Volume: w.Name, Option: name, Value: options[name], Why: fmt.Sprintf("%s is %s", name, cmp.Or(v.Options[name], "as GlusterFS has it"))}, holds
		}
	}
	if !v.Started {
		return &Step{Do: Start, Volume: w.Name, Why: "it is not started"}, holds
	}
	return s.bricks(w, v)
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
	var down []LiveBrick // they do not run
	revive := false
	for _, b := range v.Bricks {
		if s.online(v.Name, b) {
			continue
		}
		down = append(down, b)
		t, known := s.Targets[b.String()]
		switch p := s.peerOf(b); {
		case p == nil || !p.Connected:
			hold(BrickAway, fmt.Sprintf("the copy on %s is away", cmp.Or(t.Machine, b.Address)), "")
		case !known:
			hold(BrickAway, fmt.Sprintf("the brick %s does not run, and its machine says nothing of it", b), "")
		case t.Unfit != "":
			hold(BrickUnfit, fmt.Sprintf("the brick of %s cannot be used: %s", t.Machine, t.Unfit), "noded status on it says more")
		case t.Holds == v.ID:
			revive = true
		case t.Holds != "":
			hold(BrickForeign, fmt.Sprintf("%s on %s is a brick of the volume %s", t.Path, t.Machine, t.Holds), "")
		case s.othersWell(v, b):
			return &Step{Do: Reset, Volume: w.Name, Old: b.String(), Why: fmt.Sprintf("the brick of %s is empty: its disk is another one", t.Machine)}, holds
		}
	}
	if revive {
		return &Step{Do: Revive, Volume: w.Name, Why: "a brick does not run, and its machine is there"}, holds
	}

	pending, split, known := 0, 0, true
	for _, b := range v.Bricks {
		h, ok := s.heal(v.Name, b)
		if pending, split = pending+h.Pending, split+h.SplitBrain; !ok && !slices.Contains(down, b) {
			known = false
		}
	}
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
	missing = slices.DeleteFunc(missing, func(t Target) bool {
		f := s.unusable(w.Name, t)
		if f != nil {
			holds = append(holds, f)
		}
		return f != nil
	})

	// One that is down and not to stay is replaced though the others have things for
	// it: they would for ever.
	if len(down) == 1 && slices.Contains(extra, down[0]) && len(missing) > 0 && known && s.othersWell(v, down[0]) {
		return &Step{Do: Replace, Volume: w.Name, Old: down[0].String(), New: missing[0].String(), Why: fmt.Sprintf("its machine is gone, and %s takes its place", missing[0].Machine)}, holds
	}
	switch {
	case len(down) > 0:
		return nil, holds // until it is back, or given up
	case !known:
		hold(Healing, "it is not known how far the copies are", "")
		return nil, holds
	case pending > 0:
		hold(Healing, fmt.Sprintf("the copies catch up: %d entries are left", pending), "")
		if s.At.Sub(s.Nudged[v.Name]) >= patience {
			return &Step{Do: Mend, Volume: w.Name, Why: fmt.Sprintf("%d entries are to be healed", pending)}, holds
		}
		return nil, holds
	}
	switch {
	case len(missing) > 0 && len(extra) > 0 && len(v.Bricks) == 1:
		hold(OnlyCopy, "its one copy cannot be moved", "want replicas: 3 first, and 1 once these are healed")
	case len(missing) > 0 && len(extra) > 0:
		return &Step{Do: Replace, Volume: w.Name, Old: extra[0].String(), New: missing[0].String(), Why: "it is to be on " + missing[0].Machine}, holds
	case len(missing) > 0 && (len(v.Bricks)+len(missing))%2 == 1:
		return &Step{Do: Add, Volume: w.Name, Bricks: texts(missing), Replicas: len(v.Bricks) + len(missing), Why: fmt.Sprintf("%d copies -> %d", len(v.Bricks), len(v.Bricks)+len(missing))}, holds
	case len(missing) > 0:
		hold(MissingBricks, fmt.Sprintf("%d copies would be no better than %d", len(v.Bricks)+len(missing), len(v.Bricks)), "")
	case len(extra) > 0 && (len(v.Bricks)-len(extra))%2 == 1:
		return &Step{Do: Remove, Volume: w.Name, Bricks: texts(extra), Replicas: len(v.Bricks) - len(extra), Why: fmt.Sprintf("%d copies -> %d", len(v.Bricks), len(v.Bricks)-len(extra))}, holds
	case len(extra) > 0:
		hold(MissingBricks, fmt.Sprintf("%s is to go, and there is no brick in its place", extra[0]), "let another machine bring a brick")
	}
	return nil, holds
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
func (s Seen) online(volume string, b LiveBrick) bool {
	return slices.ContainsFunc(s.Processes[volume], func(p Process) bool { return p.Peer == b.Peer && p.Path == b.Path && p.Online })
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
