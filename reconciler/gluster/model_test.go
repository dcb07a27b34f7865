package gluster

import (
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// writes is a set of writes, of which there are fewer than 512.
type writes [8]uint64

func (s *writes) add(w int)      { s[w/64] |= 1 << (w % 64) }
func (s *writes) has(w int) bool { return s[w/64]&(1<<(w%64)) != 0 }

// without is what a set has and another lacks.
func (s writes) without(other writes) (rest writes) {
	for i := range s {
		rest[i] = s[i] &^ other[i]
	}
	return rest
}

// count is how many it has.
func (s writes) count() (n int) {
	for _, word := range s {
		n += bits.OnesCount64(word)
	}
	return n
}

// pool is a model of a room with one volume: what GlusterFS does with it, as far as
// data can be lost by it. Writes are numbers; acknowledged is one that most copies
// took.
type pool struct {
	*testing.T
	rand    *rand.Rand
	log     []string
	at      time.Time
	pcs     []*box
	volume  *Live
	next    int
	acked   writes
	nudged  map[string]time.Time
	calm    map[string]time.Time
	refused map[string]Refused
	wanted  Wanted
	n       int     // copies declared
	share   float64 // of what is missing: comes with one heal
}

// box is one PC.
type box struct {
	name  string
	up    bool
	since time.Time
	holds string // the volume whose copy its folder is
	has   writes // writes in it
	aside []writes
	runs  bool // its brick's process
}

func (p *pool) note(format string, args ...any) { p.log = append(p.log, fmt.Sprintf(format, args...)) }

func (p *pool) fail(format string, args ...any) {
	p.Helper()
	for _, line := range p.log[max(0, len(p.log)-60):] {
		p.Log(line)
	}
	p.Fatalf(format, args...)
}

func (p *pool) of(b LiveBrick) *box {
	return p.pcs[slices.IndexFunc(p.pcs, func(m *box) bool { return m.name == b.Address })]
}

// online are the copies that run.
func (p *pool) online() (list []*box) {
	for _, b := range p.volume.Bricks {
		if m := p.of(b); m.up && m.runs && m.holds == p.volume.ID {
			list = append(list, m)
		}
	}
	return list
}

// write is one write of a client: acknowledged with a quorum of copies, as
// cluster.quorum-type auto has it.
func (p *pool) write() {
	on := p.online()
	n := len(p.volume.Bricks)
	if 2*len(on) < n || 2*len(on) == n && !slices.Contains(on, p.of(p.volume.Bricks[0])) {
		return
	}
	p.next++
	for _, m := range on {
		m.has.add(p.next)
	}
	p.acked.add(p.next)
}

// heal brings some of what copies lack from others that run.
func (p *pool) heal(share float64) {
	on := p.online()
	for _, from := range on {
		for _, to := range on {
			missing := from.has.without(to.has)
			for w := range p.next + 1 {
				if missing.has(w) && p.rand.Float64() < share {
					to.has.add(w)
				}
			}
		}
	}
}

// see is what gluster and the machines say.
func (p *pool) see(steward *box) Seen {
	s := Seen{At: p.at, Self: []string{steward.name}, Processes: map[string][]Process{}, Heals: map[string][]Heal{}, Targets: map[string]Target{},
		Nudged: p.nudged, Calm: p.calm, Refused: p.refused}
	for _, m := range p.pcs {
		peer := Peer{UUID: m.name, Addresses: []string{m.name}, Connected: m.up, Member: true}
		if m == steward {
			peer.Self, peer.Addresses = true, nil
		}
		s.Peers = append(s.Peers, peer)
		t := p.target(m)
		s.Targets[t.String()] = t
		s.Machines = append(s.Machines, t)
	}
	if p.volume == nil {
		return s
	}
	v := *p.volume
	v.Bricks = slices.Clone(v.Bricks)
	s.Volumes = []Live{v}
	for _, b := range v.Bricks {
		m := p.of(b)
		on := slices.Contains(p.online(), m)
		s.Processes[v.Name] = append(s.Processes[v.Name], Process{Peer: m.name, Path: b.Path, Online: on})
		h := Heal{Brick: b.String(), Known: on}
		if on {
			var lacked writes
			for _, other := range v.Bricks {
				rest := m.has
				if o := p.of(other); o.holds == v.ID {
					rest = rest.without(o.has)
				}
				for i := range lacked {
					lacked[i] |= rest[i]
				}
			}
			h.Pending = lacked.count()
		}
		s.Heals[v.Name] = append(s.Heals[v.Name], h)
	}
	if !s.isWhole(v) {
		delete(p.calm, v.Name)
	} else if p.calm[v.Name].IsZero() {
		p.calm[v.Name] = p.at
	}
	if since := p.calm[v.Name]; !since.IsZero() && p.at.Sub(since) >= settling {
		p.wanted.Eras = nil
	}
	return s
}

func (p *pool) target(m *box) Target {
	t := Target{Machine: m.name, Address: m.name, Path: BrickPath("homes"), Holds: m.holds}
	if !m.up {
		t.Unfit = "silent"
	}
	return t
}

// place is what the daemon does: those long away are given up.
func (p *pool) place() {
	var candidates []Candidate
	for i, m := range p.pcs {
		c := Candidate{Machine: m.name, Circuit: string(rune('a' + i/2)), Size: 1}
		if !m.up {
			c.Out, c.Gone = "silent", p.at.Sub(m.since) > 5*time.Minute
		}
		candidates = append(candidates, c)
	}
	var now []string
	for _, t := range p.wanted.Bricks {
		now = append(now, t.Machine)
	}
	placed := odd(Place(p.n, candidates, now), now)
	if placed.Missing > 0 && now == nil {
		return
	}
	p.wanted.Bricks = nil
	for _, name := range placed.Machines {
		p.wanted.Bricks = append(p.wanted.Bricks, p.target(p.pcs[slices.IndexFunc(p.pcs, func(m *box) bool { return m.name == name })]))
	}
}

// turn is one of the steward. A random part of the steps is cut short after it was
// remembered, or done and not known to be.
func (p *pool) turn() (step *Step, holds []*plan.Fault) {
	var up []*box
	for _, m := range p.pcs {
		if m.up {
			up = append(up, m)
		}
	}
	if len(up) == 0 {
		return nil, nil
	}
	p.place()
	seen := p.see(up[p.rand.IntN(len(up))])
	step, holds = Next([]Wanted{p.wanted}, seen)
	if step == nil {
		return nil, holds
	}
	p.note("%s %s %s %v %d: %s", step.Do, step.Old, step.New, step.Bricks, step.Replicas, step.Why)
	if p.volume != nil {
		p.wanted.Eras = erasAfter(p.wanted.Eras, *p.volume, step)
	}
	if p.rand.IntN(10) == 0 {
		return step, holds // the steward dies here
	}
	p.carry(step)
	return step, holds
}

// carry does to the model what gluster would do.
func (p *pool) carry(s *Step) {
	before := p.kept()
	box := func(brick string) *box {
		return p.pcs[slices.IndexFunc(p.pcs, func(m *box) bool { t := p.target(m); return t.String() == brick })]
	}
	fresh := func(brick string) LiveBrick {
		m := box(brick)
		if m.holds != "" {
			p.fail("%s takes a folder of %s as a new copy", s.Do, m.name)
		}
		m.holds, m.has, m.runs = "v", writes{}, true
		return LiveBrick{Address: m.name, Path: BrickPath("homes"), Peer: m.name}
	}
	switch v := p.volume; s.Do {
	case Create:
		p.volume = &Live{ID: "v", Name: "homes", Sets: 1, Options: map[string]string{}}
		for _, b := range s.Bricks {
			p.volume.Bricks = append(p.volume.Bricks, fresh(b))
		}
	case Start:
		v.Started = true
	case Set:
		maps.Copy(v.Options, s.Options)
	case Revive:
		for _, b := range v.Bricks {
			if m := p.of(b); m.up {
				m.runs = true
			}
		}
	case Mend:
		p.nudged[v.Name] = p.at
		p.heal(2 * p.share)
	case SetAside:
		m := box(s.Old)
		m.aside, m.holds, m.has = append(m.aside, m.has), "", writes{}
	case Reset:
		fresh(s.Old)
	case Replace:
		i := slices.IndexFunc(v.Bricks, func(b LiveBrick) bool { return b.String() == s.Old })
		v.Bricks[i] = fresh(s.New)
	case Add:
		for _, b := range s.Bricks {
			v.Bricks = append(v.Bricks, fresh(b))
		}
	case Remove:
		v.Bricks = slices.DeleteFunc(slices.Clone(v.Bricks), func(b LiveBrick) bool { return slices.Contains(s.Bricks, b.String()) })
	default:
		p.fail("the model has no step %s", s.Do)
	}
	if lost := before.without(p.kept()); lost.count() > 0 {
		p.fail("%s loses %d writes", s.Do, lost.count())
	}
}

// kept are the acknowledged writes that a copy of the volume has.
func (p *pool) kept() (kept writes) {
	if p.volume == nil {
		return kept
	}
	for _, b := range p.volume.Bricks {
		if m := p.of(b); m.holds == p.volume.ID {
			for i := range kept {
				kept[i] |= m.has[i] & p.acked[i]
			}
		}
	}
	return kept
}

// fault is something that happens to a room.
func (p *pool) fault() {
	m := p.pcs[p.rand.IntN(len(p.pcs))]
	switch p.rand.IntN(8) {
	case 0, 1, 2:
		if m.up {
			p.note("%s is off", m.name)
			m.up, m.runs, m.since = false, false, p.at
		}
	case 3, 4, 5:
		if !m.up {
			p.note("%s is on", m.name)
			m.up, m.runs = true, m.holds != "" && p.rand.IntN(3) > 0
		}
	case 6:
		p.n = []int{3, 3, 5}[p.rand.IntN(3)]
		p.note("%d copies are declared", p.n)
	case 7:
		if !m.up && p.rand.IntN(3) == 0 { // only what all others could have made up for
			before := p.kept()
			holds, has := m.holds, m.has
			if m.holds, m.has = "", (writes{}); p.kept() != before {
				m.holds, m.has = holds, has
				return
			}
			p.note("%s gets an empty disk", m.name)
		}
	}
}

// TestModel goes through random faults: no step ever takes the last copy of what was
// acknowledged, or takes a stale folder for a new copy; and once the room is well,
// each brick has all of it, or it is said that too few are left to know.
func TestModel(t *testing.T) {
	seeds, held, steps := 250, 0, 0
	if testing.Short() {
		seeds = 100
	}
	for seed := range seeds {
		p := &pool{T: t, rand: rand.New(rand.NewPCG(uint64(seed), 1)), at: time.Unix(1e9, 0), nudged: map[string]time.Time{},
			calm: map[string]time.Time{}, wanted: Wanted{Name: "homes"}, n: 3}
		for i := range 5 + p.rand.IntN(3) {
			p.pcs = append(p.pcs, &box{name: fmt.Sprintf("pc-%02d", i+1), up: true})
		}
		heals, faults, pace := 3, 12, 20
		p.share = .3
		if seed%2 == 0 { // a room in which machines die faster than copies catch up
			heals, faults, pace, p.share = 24, 5, 200, .03
		}
		for range 200 {
			p.at = p.at.Add(time.Duration(p.rand.IntN(pace)) * time.Second)
			if p.volume != nil && p.volume.Started {
				p.write()
				if p.rand.IntN(heals) == 0 {
					p.heal(p.share)
				}
				if p.rand.IntN(faults) == 0 {
					p.fault()
				}
			}
			if step, _ := p.turn(); step != nil {
				steps++
			}
		}
		for _, m := range p.pcs {
			m.up = true
		}
		var holds []*plan.Fault
		for range 200 {
			p.at = p.at.Add(10 * time.Second)
			p.heal(1)
			_, holds = p.turn()
		}
		if slices.ContainsFunc(holds, func(f *plan.Fault) bool { return f.Code == HalfCopies }) {
			held++
			continue
		}
		if len(holds) > 0 {
			p.fail("seed %d: held at the end: %v", seed, holds[0])
		}
		if len(p.volume.Bricks) != p.n {
			p.fail("seed %d: %d copies, and %d are declared", seed, len(p.volume.Bricks), p.n)
		}
		for _, b := range p.volume.Bricks {
			if lacks := p.acked.without(p.of(b).has); lacks.count() > 0 {
				p.fail("seed %d: %s lacks %d writes", seed, b, lacks.count())
			}
		}
	}
	t.Logf("%d steps; %d of %d rooms ended in the hands of people", steps, held, seeds)
	if held*3 > seeds {
		t.Errorf("%d of %d rooms wait for people", held, seeds)
	}
}
