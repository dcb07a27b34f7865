package roles

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestModelFindsBugs plants bugs in the planner, one at a time, and requires that
// the model finds each: a model that finds nothing proves nothing.
func TestModelFindsBugs(t *testing.T) {
	for _, bug := range []struct {
		name  string
		plan  planner
		finds []int // one of these invariants
	}{
		{"a victim that comes back is not noticed", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			if c := openCrown(o); c != nil && c.Kind == Replace && c.Undo == "" && len(m.Signs) > 0 {
				o.Members, o.Machines, m.Signs = slices.Clone(o.Members), slices.Clone(o.Machines), maps.Clone(m.Signs)
				for i := range o.Members {
					o.Members[i].Answers = o.Members[i].Answers && o.Members[i].ID != c.Member
				}
				s := m.Signs[c.Victim]
				for i := range o.Machines {
					if p := &o.Machines[i]; p.Name == c.Victim {
						p.Heartbeat, p.Lease = s.heartbeat, s.lease
					}
				}
				s.First, s.Agent, s.Kubelet, s.Etcd = now.Add(-time.Hour), time.Time{}, time.Time{}, time.Time{}
				m.Signs[c.Victim] = s
			}
			return Plan(d, o, now, m)
		}, []int{4, 9}},
		{"the Node of a dead master is deleted, as its Pods would be freed by that", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			decision := Plan(d, o, now, m)
			c := openCrown(o)
			if c == nil || !c.Dead || decision.Step == nil || decision.Step.Do != IssueKey {
				return decision
			}
			for i := range o.Machines {
				if p := &o.Machines[i]; p.Name == c.Victim && p.Joined && !p.Blank {
					decision.Step, decision.Record = &Step{Do: DeleteNode, Machine: c.Victim, Crown: c.Name(), Why: "a bug"}, nil
				}
			}
			return decision
		}, []int{13}},
		{"what a machine last said of itself is believed, though it may have joined since", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			o.Machines, m.Signs = slices.Clone(o.Machines), maps.Clone(m.Signs)
			for i := range o.Machines {
				if p := &o.Machines[i]; p.Blank && p.Joined {
					p.Invited, p.Lease = false, time.Time{}
					if s, ok := m.Signs[p.Name]; ok {
						s.Kubelet, s.lease = time.Time{}, time.Time{}
						m.Signs[p.Name] = s
					}
				}
			}
			return Plan(d, o, now, m)
		}, []int{13}},
		{"a snapshot that cannot be written keeps the crown open", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			d.Limits.Snapshot = 1000 * time.Hour
			return Plan(d, o, now, m)
		}, []int{11}},
		{"the breaker by circuit is forgotten", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			d.Machines = slices.Clone(d.Machines)
			for i := range d.Machines {
				d.Machines[i].Circuit = ""
			}
			return Plan(d, o, now, m)
		}, []int{9}},
		{"the timer does not start afresh with a new leader", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			if m.At.IsZero() || len(m.Signs) == 0 {
				m = Assume(o)
			}
			for name, s := range m.Signs {
				if now.Sub(s.First) < time.Hour {
					s.First = now.Add(-time.Hour)
					m.Signs[name] = s
				}
			}
			return Plan(d, o, now, m)
		}, []int{9, 11}},
		{"what an heir that failed left in etcd is forgotten", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			decision := Plan(d, o, now, m)
			if s := decision.Step; s != nil && s.Do == RemoveMember && decision.Record.Undo != "" {
				ended := *decision.Record
				ended.Step, ended.Outcome, ended.Ended = Close, ended.Undo, now
				decision.Record, decision.Step = &ended, &Step{Do: Close, Crown: ended.Name()}
			}
			return decision
		}, []int{3, 5, 11}},
		{"the open record is not read after a restart", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			if now.Sub(m.Signs[o.Machines[0].Name].First) < time.Minute || len(m.Signs) == 0 {
				o.Crowns = slices.DeleteFunc(slices.Clone(o.Crowns), func(c Crown) bool { return c.Open() })
			}
			return Plan(d, o, now, m)
		}, []int{3}},
		{"a retired machine keeps its generation", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			decision := Plan(d, o, now, m)
			if s := decision.Step; s != nil && s.Do == Fence {
				same := *s
				same.Generation--
				decision.Step = &same
			}
			return decision
		}, []int{11, 6}},
		{"a paused machine is touched", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			d.Machines = slices.Clone(d.Machines)
			for i := range d.Machines {
				d.Machines[i].Paused = false
			}
			return Plan(d, o, now, m)
		}, []int{8, 7}},
		{"master: never is forgotten", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			d.Machines = slices.Clone(d.Machines)
			for i := range d.Machines {
				d.Machines[i].Master = Allowed
			}
			return Plan(d, o, now, m)
		}, []int{7}},
		{"a live master is retired though the count is reached", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			if d.Masters == 5 {
				d.Masters = 3
			}
			return Plan(d, o, now, m)
		}, []int{2, 4, 11}},
		{"the key is left lying about", func(d Declared, o Observed, now time.Time, m Memory) Decision {
			o.Key.For = ""
			if c := openCrown(o); c != nil && c.Step == IssueKey {
				o.Key = Key{c.Heir, machineOf(o, c.Heir).Boot, now.Add(time.Hour)}
			}
			return Plan(d, o, now, m)
		}, []int{11}},
	} {
		t.Run(bug.name, func(t *testing.T) {
			for seed := range uint64(600) {
				w := live(seeded(seed), bug.plan, lifeSteps)
				if w.violation == nil {
					continue
				}
				for _, n := range bug.finds {
					if strings.HasPrefix(w.violation.Error(), fmt.Sprintf("invariant %d:", n)) {
						t.Logf("seed %d: %v", seed, w.violation)
						return
					}
				}
				t.Fatalf("seed %d finds something else: %v\n%s", seed, w.violation, w)
			}
			t.Error("the model does not find it")
		})
	}
}

func openCrown(o Observed) *Crown {
	for i := range o.Crowns {
		if o.Crowns[i].Open() {
			return &o.Crowns[i]
		}
	}
	return nil
}

func machineOf(o Observed, name string) Machine {
	for _, m := range o.Machines {
		if m.Name == name {
			return m
		}
	}
	return Machine{}
}

// TestEveryCrashPoint kills the daemon at each point of each round of each kind of
// crown, changes the mind of git there, has the victim return, and has the heir
// die: each time the site must come to rest.
func TestEveryCrashPoint(t *testing.T) {
	last := func(n int) int { return n - 1 } // no join fails, and the site has nine machines of one circuit each
	begin := map[Kind]func(w *world){
		Replace: func(w *world) {
			p := w.pc("pc-01")
			p.on, p.etcd, p.lost = false, false, true
		},
		Grow: func(w *world) {
			w.git.Masters = 7
		},
		Retire: func(w *world) { w.git.Masters = 3 },
	}
	meddle := map[string]func(w *world){
		"killed before the record": nil,
		"killed before the step":   nil,
		"killed after the step":    nil,
		"other leader":             func(w *world) { w.lead(1 - w.leading) },
		"3 masters":                func(w *world) { w.git.Masters = 3 },
		"5 masters":                func(w *world) { w.git.Masters = 5 },
		"victim returns": func(w *world) {
			p := w.pc("pc-01")
			p.lost = false
			w.start(p)
		},
		"heir dies": func(w *world) {
			if c := openCrown(w.observe(true).Observed); c != nil && c.Heir != "" {
				p := w.pc(c.Heir)
				p.on, p.etcd, p.lost, p.join = false, false, true, 0
			}
		},
	}
	kills := map[string]int{"killed before the record": beforeRecord, "killed before the step": beforeAct, "killed after the step": afterAct}
	for kind, begin := range begin {
		for name, meddle := range meddle {
			t.Run(fmt.Sprintf("%s, %s", kind, name), func(t *testing.T) {
				t.Parallel()
				stride := 1
				if testing.Short() || slow {
					stride = 9
				}
				for at := 0; at < 110; at += stride {
					w := newWorld(last, Plan)
					for i := range w.git.Machines {
						w.git.Machines[i].Circuit = ""
					}
					// A dead heir, a dead victim and the next heir are too many of nine.
					w.git.Failover.CircuitBreaker.Share = "60%"
					begin(w)
					steps := 0
					for range at {
						w.tick(10 * time.Second)
						if d := w.daemon(w.leading, 0, never); d.Step != nil {
							steps++
						}
					}
					if meddle != nil {
						meddle(w)
					}
					w.daemon(w.leading, 0, kills[name])
					w.settle()
					if w.violation != nil {
						t.Fatalf("after %d rounds: %v\n%s", at, w.violation, w)
					}
					if at > 90 && steps == 0 {
						t.Fatal("nothing was ever done")
					}
				}
			})
		}
	}
}
