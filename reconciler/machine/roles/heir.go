package roles

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Score is one line of the table from which an heir is chosen: filtered out with
// the reason, or a score of 0 to 1, the sum of its weighted parts.
type Score struct {
	Machine   string
	Out       string // why it is no candidate; "" for a candidate
	Preferred bool   // the site repo prefers it: before all others
	Total     float64
	Parts     Parts
}

// Parts of a score, each 0 to 1, and what they weigh.
type Parts struct {
	Spread    float64 // .30: few masters on its circuit
	Work      float64 // .25: little work that would have to move
	Disk      float64 // .15: quick fsync
	Stability float64 // .20: few boots that nobody ordered
	Headroom  float64 // .10: cores and memory above the least
}

func (p Parts) total() float64 {
	return .30*p.Spread + .25*p.Work + .15*p.Disk + .20*p.Stability + .10*p.Headroom
}

// parts of the score of a machine, as if it were a master besides the voters
// other than the victim.
func (v *view) parts(name, victim string) Parts {
	m, l := v.machines[name], v.d.Limits
	beside := 0
	for _, voter := range v.voters {
		if c := v.circuit(name); voter != name && voter != victim && c != "" && v.circuit(voter) == c {
			beside++
		}
	}
	cores := float64(m.CPU-l.CPU) / 2
	memory := float64(m.Memory-l.Memory) / (6 << 30)
	return Parts{
		Spread:    1 / float64(1+beside),
		Work:      1 / (1 + max(0, m.Displaced)),
		Disk:      max(0, 1-float64(m.Fsync)/float64(l.Fsync)),
		Stability: 1 / (1 + float64(m.Restarts)/4),
		Headroom:  (max(0, min(1, cores)) + max(0, min(1, memory))) / 2,
	}
}

// scores is the table for the heir of a victim ("" for none), the best first and
// those that are filtered out last. Ties are broken by a hash that changes from
// crown to crown, so that two brains agree and no name is always first.
func (v *view) scores(victim string, number int) (table []Score) {
	for _, name := range v.names {
		if v.isVoter(name) || name == victim || v.declared[name] == nil {
			continue
		}
		s := Score{Machine: name, Out: v.unfit(name, victim), Preferred: v.declared[name].Master == Preferred}
		if s.Out == "" {
			s.Parts = v.parts(name, victim)
			s.Total = s.Parts.total()
		}
		table = append(table, s)
	}
	slices.SortFunc(table, func(a, b Score) int {
		switch {
		case (a.Out == "") != (b.Out == ""):
			return len(a.Out) - len(b.Out)
		case a.Out != "":
			return strings.Compare(a.Machine, b.Machine)
		case a.Preferred != b.Preferred:
			if a.Preferred {
				return -1
			}
			return 1
		}
		// Sums of the same parts are the same bits; so small differences are real ones.
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(hash(number, a.Machine), hash(number, b.Machine)), strings.Compare(a.Machine, b.Machine))
	})
	return table
}

func hash(number int, name string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d/%s", number, name)
	return h.Sum64()
}

// unfit is why a machine cannot be the heir of a victim; "" where it can.
func (v *view) unfit(name, victim string) string {
	m := v.machines[name]
	switch {
	case m.Role == "":
		return "it has not joined"
	case !v.mayBeMaster(name):
		return "master: never in the site repo"
	case v.isPaused(name):
		return "paused in the site repo"
	case m.Role == Master:
		return "it was a master, and is not a worker yet"
	case m.Blank || !m.Joined:
		return "it is reset, and has not joined again"
	case v.isSilent(name):
		return fmt.Sprintf("silent for %s", span(v.silentFor(name)))
	case !m.Ready:
		return "its Node is not Ready"
	case !v.hasAgent(name):
		return "its agent does not report"
	case !v.hasKubelet(name):
		return "its kubelet does not renew the lease"
	case m.Cordoned && !m.Ours:
		return "cordoned by hand"
	case minor(m.Version) != minor(v.o.Version):
		return fmt.Sprintf("it runs %s, and the masters %s", cmp.Or(m.Version, "an unknown version"), v.o.Version)
	case m.Address == "":
		return "its address is not known"
	case m.Pinned != "":
		return "it holds what cannot be moved: " + m.Pinned
	}
	if why := v.unable(name, v.d.Limits.Fsync); why != "" {
		return why
	}
	if down := v.down(v.circuit(name)); len(down) >= v.d.Failover.CircuitBreaker.Machines {
		return fmt.Sprintf("its circuit fails: %s down", is(down))
	}
	if other := v.sameAddress(name); other != nil && other.Name != victim {
		return fmt.Sprintf("its address %s is that of etcd's member %s", m.Address, cmp.Or(other.Name, fmt.Sprintf("%x", other.ID)))
	}
	for i := range v.o.Crowns {
		if c := &v.o.Crowns[i]; c.Heir == name && c.Outcome == Failed && v.now.Sub(c.Ended) < day {
			return fmt.Sprintf("it failed as heir %s ago: %s", span(v.now.Sub(c.Ended)), c.Cause)
		}
	}
	return ""
}

// unable is why the hardware of a machine is not good enough.
func (v *view) unable(name string, fsync time.Duration) string {
	m, l := v.machines[name], v.d.Limits
	switch {
	case m.Skew.Abs() > l.Skew:
		return fmt.Sprintf("its clock is off by %s", m.Skew.Abs().Round(time.Millisecond))
	case m.CPU < l.CPU:
		return fmt.Sprintf("%s, and %d are needed", count(m.CPU, "core", "cores"), l.CPU)
	case m.Memory < l.Memory:
		return fmt.Sprintf("%d MB of memory, and %d are needed", m.Memory>>20, l.Memory>>20)
	case m.Fsync == 0:
		return "its disk was not measured yet"
	case m.Fsync > fsync:
		return fmt.Sprintf("its disk takes %s for an fsync, and %s are allowed", m.Fsync, fsync)
	}
	return ""
}

func minor(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

func is(names []string) string {
	if len(names) == 1 {
		return names[0] + " is"
	}
	return list(names) + " are"
}

// candidates are the lines of a table that are not filtered out.
func candidates(table []Score) []Score {
	if i := slices.IndexFunc(table, func(s Score) bool { return s.Out != "" }); i >= 0 {
		return table[:i]
	}
	return table
}

// WriteScores prints the table for the heir.
func WriteScores(w io.Writer, table []Score) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MACHINE\tSCORE\tSPREAD\tWORK\tDISK\tSTABILITY\tHEADROOM\t")
	for _, s := range candidates(table) {
		p, note := s.Parts, ""
		if s.Preferred {
			note = "preferred"
		}
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%s\n", s.Machine, s.Total, p.Spread, p.Work, p.Disk, p.Stability, p.Headroom, note)
	}
	_ = t.Flush() // into memory
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	for _, s := range table[len(candidates(table)):] {
		if _, err := fmt.Fprintf(w, "%s: %s\n", s.Machine, s.Out); err != nil {
			return err
		}
	}
	return nil
}
