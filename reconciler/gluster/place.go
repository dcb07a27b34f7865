package gluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Candidate is a machine whose brick a volume could use.
type Candidate struct {
	Machine string
	Circuit string // power circuit or switch; "" is one of its own
	Size    int64  // of the brick, in bytes; 0 is not known
	Out     string // why it takes no new copy, such as "its brick is full"; "" where it does
	Gone    bool   // for longer than storage.replaceAfter: what it has is given up where another can take over
}

// Placement is where the copies of a volume are to be.
type Placement struct {
	Machines []string // in the order in which GlusterFS has the bricks: those that stay, then the new ones
	Missing  int      // copies for which there is no brick
	Why      string   // for people; "" where nothing changes
}

// Place chooses the bricks of a volume with so many copies. What has a copy keeps
// it as long as it may, for each move costs a copy of everything; new ones go where
// the fewest copies share a circuit, and then where there is most room. It is a
// function of its arguments alone: placed again, nothing moves.
//
// now are the machines that have a copy, in GlusterFS's order. One that is no
// candidate any more was taken out of the site repo.
func Place(replicas int, candidates []Candidate, now []string) Placement {
	by := map[string]Candidate{}
	for _, c := range candidates {
		by[c.Machine] = c
	}
	var p Placement
	var lost []string // they have a copy, and are not to be relied on
	for _, name := range now {
		if c, ok := by[name]; ok && !c.Gone {
			p.Machines = append(p.Machines, name)
		} else {
			lost = append(lost, name)
		}
	}
	var why []string
	for len(p.Machines) > replicas {
		name := worst(p.Machines, by)
		p.Machines = slices.DeleteFunc(p.Machines, func(n string) bool { return n == name })
		why = append(why, "without "+name)
	}
	for len(p.Machines) < replicas {
		c, ok := best(candidates, p.Machines, by)
		if !ok {
			break
		}
		reason := fmt.Sprintf("new on %s", c.Machine)
		if n := sharing(c, p.Machines, by); n > 0 {
			reason += fmt.Sprintf(", which shares circuit %s with %d other copies", c.Circuit, n)
		}
		p.Machines = append(p.Machines, c.Machine)
		why = append(why, reason)
	}
	// A copy on a machine that is gone is better than none: it may come back.
	for _, name := range lost {
		switch _, declared := by[name]; {
		case declared && len(p.Machines) < replicas:
			p.Machines = append(p.Machines, name)
		case declared:
			why = append(why, name+" is gone")
		default:
			why = append(why, name+" brings no brick any more")
		}
	}
	p.Machines = ordered(p.Machines, now)
	p.Missing = replicas - len(p.Machines)
	if !slices.Equal(p.Machines, now) {
		p.Why = strings.Join(why, "; ")
	}
	return p
}

// ordered has those that were there before in their old order, and then the others.
func ordered(machines, now []string) []string {
	at := func(name string) int {
		if i := slices.Index(now, name); i >= 0 {
			return i
		}
		return len(now)
	}
	slices.SortStableFunc(machines, func(a, b string) int { return cmp.Compare(at(a), at(b)) })
	return machines
}

// sharing counts the copies that a common fault would take together with that of a
// candidate.
func sharing(c Candidate, placed []string, by map[string]Candidate) (n int) {
	for _, name := range placed {
		if name != c.Machine && c.Circuit != "" && by[name].Circuit == c.Circuit {
			n++
		}
	}
	return n
}

// best is the candidate for one copy more.
func best(candidates []Candidate, placed []string, by map[string]Candidate) (found Candidate, ok bool) {
	for _, c := range candidates {
		if c.Out != "" || c.Gone || slices.Contains(placed, c.Machine) {
			continue
		}
		if !ok || better(c, found, placed, by) < 0 {
			found, ok = c, true
		}
	}
	return found, ok
}

// worst is the copy that is missed least.
func worst(placed []string, by map[string]Candidate) string {
	return slices.MaxFunc(placed, func(a, b string) int {
		one, other := by[a], by[b]
		if (one.Out == "") != (other.Out == "") { // a full brick before one that has room
			if one.Out != "" {
				return 1
			}
			return -1
		}
		return better(one, other, placed, by)
	})
}

// better compares two candidates as places for a copy: negative where the first is
// the better one.
func better(a, b Candidate, placed []string, by map[string]Candidate) int {
	return cmp.Or(
		cmp.Compare(sharing(a, placed, by), sharing(b, placed, by)),
		cmp.Compare(b.Size, a.Size),
		strings.Compare(a.Machine, b.Machine),
	)
}
