package gluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestPlace(t *testing.T) {
	room := []Candidate{
		{Machine: "pc-01", Circuit: "a", Size: 500}, {Machine: "pc-02", Circuit: "a", Size: 900},
		{Machine: "pc-03", Circuit: "b", Size: 500}, {Machine: "pc-04", Circuit: "b", Size: 400},
		{Machine: "pc-05", Circuit: "c", Size: 100},
	}
	change := func(name string, do func(*Candidate)) []Candidate {
		changed := slices.Clone(room)
		do(&changed[slices.IndexFunc(changed, func(c Candidate) bool { return c.Machine == name })])
		return changed
	}
	for _, c := range []struct {
		name       string
		replicas   int
		candidates []Candidate
		now        []string
		want       string
	}{
		{"first, a circuit each", 3, room, nil, `[pc-02 pc-03 pc-05] new on pc-02; new on pc-03; new on pc-05`},
		{"five on three circuits", 5, room, nil, `[pc-02 pc-03 pc-05 pc-01 pc-04] new on pc-02; new on pc-03; new on pc-05; new on pc-01, which shares circuit a with 1 other copies; new on pc-04, which shares circuit b with 1 other copies`},
		{"nothing moves for a better place", 3, room, []string{"pc-04", "pc-03", "pc-05"}, `[pc-04 pc-03 pc-05] `},
		{"two more", 5, room, []string{"pc-05", "pc-03", "pc-02"}, `[pc-05 pc-03 pc-02 pc-01 pc-04] new on pc-01, which shares circuit a with 1 other copies; new on pc-04, which shares circuit b with 1 other copies`},
		{"two less: those that share a circuit, the smaller ones", 3, room, []string{"pc-01", "pc-02", "pc-03", "pc-04", "pc-05"}, `[pc-02 pc-03 pc-05] without pc-04; without pc-01`},
		{"a full brick goes first", 3, change("pc-05", func(c *Candidate) { c.Out = "its brick is full" }), []string{"pc-01", "pc-03", "pc-04", "pc-05", "pc-02"}, `[pc-01 pc-03 pc-02] without pc-05; without pc-04`},
		{"a full brick keeps what it has", 3, change("pc-05", func(c *Candidate) { c.Out = "its brick is full" }), []string{"pc-02", "pc-03", "pc-05"}, `[pc-02 pc-03 pc-05] `},
		{"one is gone", 3, change("pc-03", func(c *Candidate) { c.Gone = true }), []string{"pc-02", "pc-03", "pc-05"}, `[pc-02 pc-05 pc-04] new on pc-04; pc-03 is gone`},
		{"one is gone, and there is no other", 5, change("pc-03", func(c *Candidate) { c.Gone = true }), []string{"pc-01", "pc-02", "pc-03", "pc-04", "pc-05"}, `[pc-01 pc-02 pc-03 pc-04 pc-05] `},
		{"one was taken out of the site repo", 3, room[:4], []string{"pc-05", "pc-03", "pc-02"}, `[pc-03 pc-02 pc-01] new on pc-01, which shares circuit a with 1 other copies; pc-05 brings no brick any more`},
		{"too few", 3, room[:2], nil, `[pc-02 pc-01] 1 missing new on pc-02; new on pc-01, which shares circuit a with 1 other copies`},
	} {
		p := Place(c.replicas, c.candidates, c.now)
		got := fmt.Sprintf("%v ", p.Machines)
		if p.Missing > 0 {
			got += fmt.Sprintf("%d missing ", p.Missing)
		}
		if got += p.Why; got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestPlaceProperties holds for every room: as many copies as there can be, each
// on a machine of its own; what may stay stays; placed again nothing moves; new
// copies are spread over circuits as evenly as they can be; and the order of the
// candidates does not matter.
func TestPlaceProperties(t *testing.T) {
	for seed := range uint64(20000) {
		r := rand.New(rand.NewPCG(seed, 0))
		var candidates []Candidate
		var now []string
		usable := map[string]bool{}
		for i := range 1 + r.IntN(9) {
			c := Candidate{Machine: fmt.Sprintf("pc-%02d", i), Size: int64(r.IntN(4))}
			if r.IntN(4) > 0 {
				c.Circuit = string(rune('a' + r.IntN(3)))
			}
			if r.IntN(6) == 0 {
				c.Out = "full"
			}
			c.Gone = r.IntN(6) == 0
			if r.IntN(3) == 0 {
				now = append(now, c.Machine)
			}
			if usable[c.Machine] = !c.Gone && (c.Out == "" || slices.Contains(now, c.Machine)); r.IntN(12) > 0 {
				candidates = append(candidates, c)
			} else {
				usable[c.Machine] = false
			}
		}
		r.Shuffle(len(now), func(i, j int) { now[i], now[j] = now[j], now[i] })
		replicas := 1 + 2*r.IntN(4)
		p := Place(replicas, candidates, now)
		fail := func(what string) {
			t.Fatalf("seed %d: %s: %d copies over %+v, now %v: %+v", seed, what, replicas, candidates, now, p)
		}

		seen := map[string]bool{}
		good := 0
		for _, m := range p.Machines {
			if seen[m] {
				fail("twice on " + m)
			}
			if seen[m] = true; !slices.ContainsFunc(candidates, func(c Candidate) bool { return c.Machine == m }) {
				fail(m + " is not to be used")
			}
			if usable[m] {
				good++
			}
		}
		there := 0
		for _, ok := range usable {
			if ok {
				there++
			}
		}
		if want := min(replicas, there); good != want {
			fail(fmt.Sprintf("%d good copies, and there could be %d", good, want))
		}
		if p.Missing != replicas-len(p.Machines) || p.Missing < 0 {
			fail("missing")
		}
		kept := 0
		for _, m := range now {
			if usable[m] {
				kept++
			}
		}
		for _, m := range now {
			if usable[m] && !seen[m] && kept <= replicas {
				fail("needless move away from " + m)
			}
		}
		if again := Place(replicas, candidates, p.Machines); !slices.Equal(again.Machines, p.Machines) || again.Why != "" {
			fail(fmt.Sprintf("placed again: %+v", again))
		}
		shuffled := slices.Clone(candidates)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if other := Place(replicas, shuffled, now); !slices.Equal(other.Machines, p.Machines) || other.Why != p.Why {
			fail(fmt.Sprintf("in another order: %+v", other))
		}
		if len(now) == 0 && good == len(p.Machines) {
			count, free := map[string]int{}, map[string]bool{}
			for _, c := range candidates {
				if c.Circuit == "" {
					c.Circuit = c.Machine
				}
				if seen[c.Machine] {
					count[c.Circuit]++
				} else if usable[c.Machine] {
					free[c.Circuit] = true
				}
			}
			for a, n := range count {
				for b := range free {
					if n > count[b]+1 {
						fail(fmt.Sprintf("%d copies on circuit %s, and room on %s with %d", n, a, b, count[b]))
					}
				}
			}
		}
	}
}
