package roles

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// school is a site of eight machines on four circuits, three of them masters, all
// of which live; and the memory of a brain that has looked for an hour.
type school struct {
	Declared
	Observed
	Memory
	now time.Time
}

func newSchool() *school {
	s := &school{now: start}
	s.Declared = Declared{Masters: 3}
	s.Observed = Observed{At: start, Fresh: true, Agree: true, Version: "v1.36.3"}
	for i := range 8 {
		name := fmt.Sprintf("pc-%02d", i+1)
		s.Declared.Machines = append(s.Declared.Machines, Declaration{Name: name, Circuit: string(rune('A' + i%4))})
		m := Machine{Name: name, Joined: true, Ready: true, Version: "v1.36.3", Role: Worker, Generation: 1, Reached: 1, Boot: "1",
			Lease: start, Heartbeat: start, Address: fmt.Sprintf("10.0.0.%d", i+1), CPU: 4, Memory: 8 << 30, Fsync: 2 * time.Millisecond, Images: true,
			Pods: i % 3, Displaced: float64(i%3) / 2}
		if i < 3 {
			m.Role, m.Labelled, m.Keys = Master, true, true
			s.Members = append(s.Members, Member{ID: uint64(0xa1 + i), Name: name, PeerURL: "https://" + m.Address + ":2380", Leader: i == 0, Answers: true})
		}
		s.Observed.Machines = append(s.Observed.Machines, m)
	}
	s.Memory = Assume(s.Observed)
	return s
}

func (s *school) machine(name string) *Machine {
	i := slices.IndexFunc(s.Observed.Machines, func(m Machine) bool { return m.Name == name })
	return &s.Observed.Machines[i]
}

func (s *school) declaration(name string) *Declaration {
	i := slices.IndexFunc(s.Declared.Machines, func(m Declaration) bool { return m.Name == name })
	return &s.Declared.Machines[i]
}

// grown has more machines as masters.
func (s *school) grown(names ...string) {
	for _, name := range names {
		m := s.machine(name)
		m.Role, m.Labelled, m.Keys = Master, true, true
		s.Members = append(s.Members, Member{ID: uint64(0xa1 + len(s.Members)), Name: name, PeerURL: "https://" + m.Address + ":2380", Answers: true})
	}
}

// alone has one master.
func (s *school) alone() {
	s.Declared.Masters, s.Members = 1, s.Members[:1]
	for _, name := range []string{"pc-02", "pc-03"} {
		m := s.machine(name)
		m.Role, m.Labelled, m.Keys = Worker, false, false
	}
}

// silence has machines give no sign since some time ago.
func (s *school) silence(ago time.Duration, names ...string) {
	for _, name := range names {
		m := s.machine(name)
		m.Lease, m.Heartbeat, m.Ready = start.Add(-ago), start.Add(-ago), false
		for i := range s.Members {
			if s.Members[i].Name == name {
				s.Members[i].Answers = false
			}
		}
	}
	s.Memory = Assume(s.Observed)
}

func (s *school) text(t *testing.T) string {
	t.Helper()
	d := Plan(s.Declared, s.Observed, s.now, s.Memory)
	ahead, end := Forecast(s.Declared, s.Observed, s.now, s.Memory)
	var b strings.Builder
	if err := d.Write(&b, ahead, end); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestText is what people read: the change and its steps, what holds it back, and
// the table for the heir.
func TestText(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(s *school)
		want string
	}{
		{"all is well", func(s *school) {}, `
masters: nothing to change
`},
		{"an order to reset of a crown that is over", func(s *school) { s.machine("pc-05").Ordered = "crown-1" }, `
   1  withdraw the order to reset pc-05
`},
		{"an order that was carried out", func(s *school) { m := s.machine("pc-05"); m.Ordered, m.ResetFor = "crown-1", "crown-1" }, `
masters: nothing to change
`},
		{"a master whose Node does not say so", func(s *school) { s.machine("pc-02").Labelled = false }, `
   1  label the Node of pc-02 as a master's
`},
		{"a Node that somebody deleted", func(s *school) {
			m := s.machine("pc-05")
			m.Joined, m.Ready, m.Lease = false, false, time.Time{}
			s.Memory = Assume(s.Observed)
		}, `
   1  restart the kubelet of pc-05
`},
		{"a machine that may have joined since it said that it is blank", func(s *school) { m := s.machine("pc-05"); m.Blank, m.Invited = true, true }, `
masters: nothing to change
`},
		{"etcd has no leader", func(s *school) { s.Members[0].Leader = false; s.machine("pc-02").Role = Worker }, `
held: QuorumLost: machines: etcd has no leader: nothing is changed automatically (if that lasts, see whether the masters reach each other)
`},
		{"a master dies while another is retired", func(s *school) {
			s.Declared.Masters = 3
			s.grown("pc-04", "pc-05")
			s.Observed.Crowns = []Crown{{Number: 1, Kind: Retire, Victim: "pc-05", Member: 0xa5, Begun: start.Add(-time.Minute), Step: Cordon, Machine: "pc-05", Since: start.Add(-time.Minute), Why: "masters 5 -> 3"}}
			s.silence(12*time.Minute, "pc-02")
		}, `
masters 5 -> 3
   1  undo crown-1
   2  close crown-1
retire pc-02 (dead 12m): masters 5 -> 4
   3  begin crown-2
   4  remove the etcd member a2 of pc-02
   5  make pc-02 a worker, generation 2
   6  write a snapshot of etcd
   7  close crown-2
retire pc-05: masters 4 -> 3; of them it has the worst score, 0.74
   8  begin crown-3
   9  cordon pc-05
  10  drain pc-05
  11  remove the etcd member a5 of pc-05
  12  make pc-05 a worker, generation 2
  13  delete the Node of pc-05
  14  write a snapshot of etcd
  15  close crown-3
  16  join pc-05 as a worker
`},
		{"a master dies while another is added", func(s *school) {
			s.Declared.Masters = 5
			s.Observed.Crowns = []Crown{{Number: 1, Kind: Grow, Heir: "pc-04", Boot: "0", Begun: start.Add(-time.Minute), Step: Drain, Machine: "pc-04", Since: start.Add(-time.Minute), Why: "masters 3 -> 5"}}
			s.silence(12*time.Minute, "pc-02")
		}, `
masters 3 -> 5
   1  undo crown-1
   2  close crown-1
retire pc-02 (dead 12m): heir pc-04, score 0.97, runner-up pc-08 0.89
   3  begin crown-2
   4  cordon pc-04
   5  reset pc-04 and reboot it
   6  delete the Node of pc-04
   7  remove the etcd member a2 of pc-02
   8  make pc-02 a worker, generation 2
   9  issue a key and a token for pc-04
  10  join pc-04 as a master, generation 2
  11  verify pc-04
  12  delete the key and the token
  13  write a snapshot of etcd
  14  close crown-2
crown a worker: masters 3 -> 5: heir pc-06, score 0.84, runner-up pc-07 0.82
  15  begin crown-3
  16  cordon pc-06
  17  drain pc-06
  18  reset pc-06 and reboot it
  19  delete the Node of pc-06
  20  issue a key and a token for pc-06
  21  join pc-06 as a master, generation 2
  22  verify pc-06
  23  delete the key and the token
  24  write a snapshot of etcd
  25  close crown-3
crown a worker: masters 4 -> 5: heir pc-07, score 0.82, runner-up pc-05 0.74
  26  begin crown-4
  27  cordon pc-07
  28  reset pc-07 and reboot it
  29  delete the Node of pc-07
  30  issue a key and a token for pc-07
  31  join pc-07 as a master, generation 2
  32  verify pc-07
  33  delete the key and the token
  34  write a snapshot of etcd
  35  close crown-4
`},
		{"the last master may not be one, and nobody else may", func(s *school) {
			s.alone()
			for i := range s.Declared.Machines {
				s.Declared.Machines[i].Master = Never
			}
		}, `
crown a worker: masters 1 -> 2
held: CountUnmet: machines: 1 master is declared, and 0 machines may be one: pc-01: master: never, pc-02: master: never, pc-03: master: never, pc-04: master: never, pc-05: master: never, pc-06: master: never, pc-07: master: never, pc-08: master: never (add machines to the site repo, or declare fewer masters)
held: NoHeir: machines: no machine can become a master: pc-02: master: never in the site repo; pc-03: master: never in the site repo; pc-04: master: never in the site repo; pc-05: master: never in the site repo; pc-06: master: never in the site repo; pc-07: master: never in the site repo; pc-08: master: never in the site repo (add a machine, or mend one of these)
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-02: master: never in the site repo
pc-03: master: never in the site repo
pc-04: master: never in the site repo
pc-05: master: never in the site repo
pc-06: master: never in the site repo
pc-07: master: never in the site repo
pc-08: master: never in the site repo
`},
		{"the last master is taken out of the site repo", func(s *school) { s.alone(); s.Declared.Machines = s.Declared.Machines[1:] }, `
crown a worker: masters 1 -> 2: heir pc-04, score 0.97, runner-up pc-07 0.97
   1  begin crown-1
   2  cordon pc-04
   3  reset pc-04 and reboot it
   4  delete the Node of pc-04
   5  issue a key and a token for pc-04
   6  join pc-04 as a master, generation 2
   7  verify pc-04
   8  delete the key and the token
   9  write a snapshot of etcd
  10  close crown-1
retire pc-01: the site repo does not let it be a master
  11  begin crown-2
  12  cordon pc-01
  13  move etcd's leadership from pc-01 to pc-04
  14  remove the etcd member a1 of pc-01
  15  make pc-01 a worker, generation 2
  16  delete the Node of pc-01
  17  write a snapshot of etcd
  18  close crown-2
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-07    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-05    0.89   1.00    0.67  0.80  1.00       1.00
pc-02    0.89   1.00    0.67  0.80  1.00       1.00
pc-06    0.84   1.00    0.50  0.80  1.00       1.00
pc-03    0.84   1.00    0.50  0.80  1.00       1.00
`},
		{"the last master dies", func(s *school) { s.alone(); s.silence(12*time.Minute, "pc-01") }, `
held: QuorumLost: machines: 0 of 1 masters answer, and 1 are needed: nothing is changed automatically; missing: pc-01 (start 1 of them; where their disks are lost, restore by hand)
`},
		{"a dead master is replaced", func(s *school) { s.silence(12*time.Minute, "pc-02") }, `
retire pc-02 (dead 12m): heir pc-04, score 0.97, runner-up pc-08 0.89
   1  begin crown-1
   2  cordon pc-04
   3  reset pc-04 and reboot it
   4  delete the Node of pc-04
   5  remove the etcd member a2 of pc-02
   6  make pc-02 a worker, generation 2
   7  issue a key and a token for pc-04
   8  join pc-04 as a master, generation 2
   9  verify pc-04
  10  delete the key and the token
  11  write a snapshot of etcd
  12  close crown-1
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-06    0.84   1.00    0.50  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05    0.74   0.50    0.67  0.80  1.00       1.00
`},
		{"a silent master: the heir is prepared while the timer runs", func(s *school) { s.silence(6*time.Minute, "pc-02") }, `
retire pc-02 (silent 6m): heir pc-04, score 0.97, runner-up pc-08 0.89
   1  begin crown-1
   2  cordon pc-04
   3  reset pc-04 and reboot it
   4  delete the Node of pc-04
   5  in 4m: remove the etcd member a2 of pc-02
   6  make pc-02 a worker, generation 2
   7  issue a key and a token for pc-04
   8  join pc-04 as a master, generation 2
   9  verify pc-04
  10  delete the key and the token
  11  write a snapshot of etcd
  12  close crown-1
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-06    0.84   1.00    0.50  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05    0.74   0.50    0.67  0.80  1.00       1.00
`},
		{"a master that has just gone silent", func(s *school) { s.silence(time.Minute, "pc-02") }, `
retire pc-02 (silent 1m): heir pc-04, score 0.97, runner-up pc-08 0.89
   1  in 4m: begin crown-1
   2  cordon pc-04
   3  reset pc-04 and reboot it
   4  delete the Node of pc-04
   5  in 9m: remove the etcd member a2 of pc-02
   6  make pc-02 a worker, generation 2
   7  issue a key and a token for pc-04
   8  join pc-04 as a master, generation 2
   9  verify pc-04
  10  delete the key and the token
  11  write a snapshot of etcd
  12  close crown-1
waiting: NotYetDead: Machine pc-02: silent for 1m; an heir is prepared after 5m, and takes over after 10m
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-06    0.84   1.00    0.50  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05    0.74   0.50    0.67  0.80  1.00       1.00
`},
		{"the table: preferred first, and why others are out", func(s *school) {
			s.silence(12*time.Minute, "pc-02")
			s.declaration("pc-04").Master = Never
			s.declaration("pc-05").Paused = true
			s.declaration("pc-06").Master = Preferred
			s.machine("pc-07").Fsync = 40 * time.Millisecond
			s.Declared.Machines = append(s.Declared.Machines, Declaration{Name: "pc-09"}, Declaration{Name: "pc-10"}, Declaration{Name: "pc-11"}, Declaration{Name: "pc-12"})
			for i := range 4 {
				m := *s.machine("pc-08")
				m.Name, m.Address = fmt.Sprintf("pc-%02d", 9+i), fmt.Sprintf("10.0.0.%d", 9+i)
				s.Observed.Machines = append(s.Observed.Machines, m)
			}
			s.machine("pc-09").Skew = -7 * time.Second
			s.machine("pc-10").CPU = 1
			s.machine("pc-11").Version = "v1.35.1"
			s.Crowns = []Crown{{Number: 3, Kind: Grow, Heir: "pc-12", Outcome: Failed, Undo: Failed, Cause: "the join of pc-12 failed", Ended: start.Add(-2 * time.Hour)}}
			s.Memory = Assume(s.Observed)
		}, `
retire pc-02 (dead 12m): heir pc-06, score 0.84 and preferred, runner-up pc-08 0.89
   1  begin crown-4
   2  cordon pc-06
   3  drain pc-06
   4  reset pc-06 and reboot it
   5  delete the Node of pc-06
   6  remove the etcd member a2 of pc-02
   7  make pc-02 a worker, generation 2
   8  issue a key and a token for pc-06
   9  join pc-06 as a master, generation 2
  10  verify pc-06
  11  delete the key and the token
  12  write a snapshot of etcd
  13  close crown-4
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-06    0.84   1.00    0.50  0.80  1.00       1.00      preferred
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-04: master: never in the site repo
pc-05: paused in the site repo
pc-07: its disk takes 40ms for an fsync, and 10ms are allowed
pc-09: its clock is off by 7s
pc-10: 1 core, and 2 are needed
pc-11: it runs v1.35.1, and the masters v1.36.3
pc-12: it failed as heir 2h ago: the join of pc-12 failed
`},
		{"no eligible heir", func(s *school) {
			s.silence(12*time.Minute, "pc-02")
			for _, name := range []string{"pc-04", "pc-05", "pc-06"} {
				s.machine(name).Memory = 1 << 30
			}
			s.machine("pc-07").Pinned = "the brick of volume homes, which has no other replica"
			s.machine("pc-08").Cordoned = true
		}, `
retire pc-02 (dead 12m)
held: NoHeir: Machine pc-02: no machine can become a master: pc-04: 1024 MB of memory, and 1700 are needed; pc-05: 1024 MB of memory, and 1700 are needed; pc-06: 1024 MB of memory, and 1700 are needed; pc-07: it holds what cannot be moved: the brick of volume homes, which has no other replica; pc-08: cordoned by hand (add a machine, or mend one of these)
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04: 1024 MB of memory, and 1700 are needed
pc-05: 1024 MB of memory, and 1700 are needed
pc-06: 1024 MB of memory, and 1700 are needed
pc-07: it holds what cannot be moved: the brick of volume homes, which has no other replica
pc-08: cordoned by hand
`},
		{"breaker by circuit", func(s *school) { s.silence(12*time.Minute, "pc-02", "pc-06") }, `
retire pc-02 (dead 12m): heir pc-04, score 0.97, runner-up pc-08 0.89
held: CircuitDown: Machine pc-02: 2 machines of circuit B are down (pc-02, pc-06): a circuit that fails comes back as a whole (see to the circuit; take what is gone for good out of the site repo)
held: TooManyUnhealthy: Machine pc-02: 3 of 8 machines are unhealthy or about to be changed (pc-02, pc-04, pc-06), and at 3 nothing is judged any more (see to them; take what is gone for good out of the site repo)
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05    0.74   0.50    0.67  0.80  1.00       1.00
pc-06: silent for 12m
`},
		{"breaker by share", func(s *school) { s.silence(12*time.Minute, "pc-02", "pc-05") }, `
retire pc-02 (dead 12m): heir pc-04, score 0.97, runner-up pc-08 0.89
held: TooManyUnhealthy: Machine pc-02: 3 of 8 machines are unhealthy or about to be changed (pc-02, pc-04, pc-05), and at 3 nothing is judged any more (see to them; take what is gone for good out of the site repo)
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-06    0.84   1.00    0.50  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05: silent for 12m
`},
		{"breaker by number", func(s *school) {
			s.silence(12*time.Minute, "pc-02")
			s.Failover.CrownsPerDay = 1
			s.Crowns = []Crown{{Number: 8, Kind: Replace, Victim: "pc-08", Heir: "pc-03", Outcome: Done, Ended: start.Add(-5 * time.Hour),
				Journal: []Entry{{At: start.Add(-5 * time.Hour), Step: RemoveMember, Machine: "pc-08"}}}}
		}, `
retire pc-02 (dead 12m): heir pc-04, score 0.97, runner-up pc-08 0.89
held: CrownsPerDay: Machine pc-02: 1 master was replaced within a day, and failover.crownsPerDay is 1 (see why they die; raise crownsPerDay in the site repo)
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-06    0.84   1.00    0.50  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05    0.74   0.50    0.67  0.80  1.00       1.00
`},
		{"flapping", func(s *school) {
			s.silence(12*time.Minute, "pc-02")
			sign := s.Signs["pc-02"]
			sign.Returns = []time.Time{start.Add(-50 * time.Minute), start.Add(-40 * time.Minute), start.Add(-20 * time.Minute)}
			s.Signs["pc-02"] = sign
		}, `
retire pc-02 (dead 12m): heir pc-04, score 0.97, runner-up pc-08 0.89
held: Flapping: Machine pc-02: it was silent and came back 3 times within 1h (see to its power, network and disk; master: never takes it out of the choice)
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-06    0.84   1.00    0.50  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05    0.74   0.50    0.67  0.80  1.00       1.00
`},
		{"clock skew", func(s *school) {
			s.silence(12*time.Minute, "pc-02")
			s.machine("pc-03").Skew = 9 * time.Second
		}, `
retire pc-02 (dead 12m): heir pc-04, score 0.97, runner-up pc-08 0.89
held: ClockSkew: Machine pc-03: its clock is off by 9s, and 5s are allowed (timedatectl set-ntp true on it)
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-06    0.84   1.00    0.50  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05    0.74   0.50    0.67  0.80  1.00       1.00
`},
		{"suspended", func(s *school) {
			s.silence(12*time.Minute, "pc-02")
			s.Suspended = "exams until Friday"
		}, `
held: Suspended: machines: the site is suspended: exams until Friday (take suspend out of the site repo)
`},
		{"the victim is paused", func(s *school) {
			s.silence(12*time.Minute, "pc-02")
			s.declaration("pc-02").Paused = true
		}, `
retire pc-02 (dead 12m)
held: Paused: Machine pc-02: it is dead for 12m, and paused in the site repo: it is not replaced (take paused out of the site repo)
`},
		{"the quorum is lost", func(s *school) { s.silence(12*time.Minute, "pc-02", "pc-03") }, `
held: QuorumLost: machines: 1 of 3 masters answer, and 2 are needed: nothing is changed automatically; missing: pc-02, pc-03 (start 1 of them; where their disks are lost, restore by hand)
`},
		{"the kubelet is dead", func(s *school) { s.machine("pc-02").Lease = start.Add(-5 * time.Minute); s.Memory = Assume(s.Observed) }, `
   1  restart the kubelet of pc-02
`},
		{"kubelet and agent are dead, etcd answers", func(s *school) {
			s.silence(20*time.Minute, "pc-02")
			s.Members[1].Answers = true
		}, `
held: AgentAway: Machine pc-02: its etcd answers, kubelet and agent are silent: it is not dead, and nobody there carries anything out (systemctl restart noded kubelet on it)
`},
		{"etcd is away, the machine lives", func(s *school) { s.Members[1].Answers = false }, `
held: EtcdAway: Machine pc-02: the machine lives, and its etcd does not answer: it is not replaced (journalctl -u kubelet on it, and crictl logs of etcd)
`},
		{"grow to five", func(s *school) { s.Declared.Masters = 5 }, `
crown a worker: masters 3 -> 5: heir pc-04, score 0.97, runner-up pc-08 0.89
   1  begin crown-1
   2  cordon pc-04
   3  reset pc-04 and reboot it
   4  delete the Node of pc-04
   5  issue a key and a token for pc-04
   6  join pc-04 as a master, generation 2
   7  verify pc-04
   8  delete the key and the token
   9  write a snapshot of etcd
  10  close crown-1
crown a worker: masters 4 -> 5: heir pc-07, score 0.82, runner-up pc-05 0.74
  11  begin crown-2
  12  cordon pc-07
  13  reset pc-07 and reboot it
  14  delete the Node of pc-07
  15  issue a key and a token for pc-07
  16  join pc-07 as a master, generation 2
  17  verify pc-07
  18  delete the key and the token
  19  write a snapshot of etcd
  20  close crown-2
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05    0.74   0.50    0.67  0.80  1.00       1.00
pc-06    0.69   0.50    0.50  0.80  1.00       1.00
`},
		{"a count that cannot be met", func(s *school) {
			s.Declared.Masters = 5
			for _, name := range []string{"pc-04", "pc-05", "pc-06", "pc-07"} {
				s.declaration(name).Master = Never
			}
		}, `
held: CountUnmet: machines: 5 masters are declared, and 4 machines may be one: pc-04: master: never, pc-05: master: never, pc-06: master: never, pc-07: master: never (add machines to the site repo, or declare fewer masters)
`},
		{"an even count", func(s *school) { s.Declared.Masters = 4 }, `
held: EvenMasters: machines: 4 masters are declared: an even number bears no more failures than one less (declare 1, 3, 5 or 7)
`},
		{"retire to one", func(s *school) { s.Declared.Masters = 1 }, `
retire pc-03: masters 3 -> 1; of them it has the worst score, 0.84
   1  begin crown-1
   2  cordon pc-03
   3  drain pc-03
   4  remove the etcd member a3 of pc-03
   5  make pc-03 a worker, generation 2
   6  delete the Node of pc-03
   7  write a snapshot of etcd
   8  close crown-1
   9  join pc-03 as a worker
retire pc-02: masters 2 -> 1; of them it has the worst score, 0.89
  10  begin crown-2
  11  cordon pc-02
  12  drain pc-02
  13  remove the etcd member a2 of pc-02
  14  make pc-02 a worker, generation 2
  15  delete the Node of pc-02
  16  write a snapshot of etcd
  17  close crown-2
  18  join pc-02 as a worker
`},
		{"a master that may not be one any more", func(s *school) { s.declaration("pc-01").Master = Never }, `
crown a worker: masters 3 -> 4: heir pc-04, score 0.97, runner-up pc-08 0.89
   1  begin crown-1
   2  cordon pc-04
   3  reset pc-04 and reboot it
   4  delete the Node of pc-04
   5  issue a key and a token for pc-04
   6  join pc-04 as a master, generation 2
   7  verify pc-04
   8  delete the key and the token
   9  write a snapshot of etcd
  10  close crown-1
retire pc-01: the site repo does not let it be a master
  11  begin crown-2
  12  cordon pc-01
  13  move etcd's leadership from pc-01 to pc-02
  14  remove the etcd member a1 of pc-01
  15  make pc-01 a worker, generation 2
  16  delete the Node of pc-01
  17  write a snapshot of etcd
  18  close crown-2
  19  join pc-01 as a worker
MACHINE  SCORE  SPREAD  WORK  DISK  STABILITY  HEADROOM
pc-04    0.97   1.00    1.00  0.80  1.00       1.00
pc-08    0.89   1.00    0.67  0.80  1.00       1.00
pc-07    0.82   0.50    1.00  0.80  1.00       1.00
pc-05    0.74   0.50    0.67  0.80  1.00       1.00
pc-06    0.69   0.50    0.50  0.80  1.00       1.00
`},
		{"a learner that nobody explains", func(s *school) {
			s.Declared.Masters = 5
			s.Members = append(s.Members, Member{ID: 0xbb, PeerURL: "https://10.0.0.99:2380", Learner: true})
		}, `
held: ForeignMember: machines: etcd has a member that never started, bb at https://10.0.0.99:2380, that no crown put there (where nobody is at it, etcdctl member remove bb)
`},
		{"a new disk in one of three machines", func(s *school) {
			s.Declared.Machines, s.Observed.Machines = s.Declared.Machines[:3], s.Observed.Machines[:3]
			s.silence(12*time.Minute, "pc-02")
			m := s.machine("pc-02")
			m.Blank, m.Heartbeat, m.Keys = true, start, false
			s.Memory = Assume(s.Observed)
		}, `
retire pc-02 (wiped): no other machine can take over, so it is struck off, and crowned anew
   1  begin crown-1
   2  remove the etcd member a2 of pc-02
   3  make pc-02 a worker, generation 2
   4  write a snapshot of etcd
   5  close crown-1
   6  delete the Node of pc-02
   7  join pc-02 as a worker
crown a worker: masters 2 -> 3: heir pc-02, score 0.89, no runner-up
   8  begin crown-2
   9  cordon pc-02
  10  drain pc-02
  11  reset pc-02 and reboot it
  12  delete the Node of pc-02
  13  issue a key and a token for pc-02
  14  join pc-02 as a master, generation 3
  15  verify pc-02
  16  delete the key and the token
  17  write a snapshot of etcd
  18  close crown-2
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSchool()
			test.make(s)
			if got := s.text(t); got != strings.TrimPrefix(test.want, "\n") {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}

// TestPure checks that a decision changes nothing that it was given, and that the
// same input gives the same decision.
func TestPure(t *testing.T) {
	for seed := range uint64(20) {
		w := live(seeded(seed), func(d Declared, o Observed, now time.Time, m Memory) Decision {
			machines, members, crowns := slices.Clone(o.Machines), slices.Clone(o.Members), slices.Clone(o.Crowns)
			first := Plan(d, o, now, m)
			if second := Plan(d, o, now, m); !reflect.DeepEqual(first, second) {
				t.Errorf("seed %d: %+v, then %+v", seed, first, second)
			}
			if !slices.Equal(machines, o.Machines) || !slices.Equal(members, o.Members) || !reflect.DeepEqual(crowns, o.Crowns) {
				t.Errorf("seed %d: the reading was changed", seed)
			}
			return first
		}, 100)
		if w.violation != nil {
			t.Errorf("seed %d: %v", seed, w.violation)
		}
	}
}

// TestForecast is a whole change of two crowns, told beforehand, with nothing
// changed.
func TestForecast(t *testing.T) {
	s := newSchool()
	s.Declared.Masters = 5
	ahead, end := Forecast(s.Declared, s.Observed, s.now, s.Memory)
	var joined []string
	for _, a := range ahead {
		if a.Step.Do == Join {
			joined = append(joined, a.Step.Machine)
		}
	}
	if len(joined) != 2 || end.Step != nil || len(end.Holds) > 0 {
		t.Errorf("joined %v, and in the end %+v", joined, end)
	}
	if s.machine(joined[0]).Blank || len(s.Members) != 3 || len(s.Crowns) > 0 {
		t.Error("the forecast changed the site")
	}
}

// TestCodes: a reason has the code that the documentation promises.
func TestCodes(t *testing.T) {
	s := newSchool()
	s.silence(12*time.Minute, "pc-02", "pc-06")
	d := Plan(s.Declared, s.Observed, s.now, s.Memory)
	var codes []plan.Code
	for _, f := range d.Holds {
		codes = append(codes, f.Code)
	}
	if want := []plan.Code{CircuitDown, TooManyUnhealthy}; !slices.Equal(codes, want) {
		t.Errorf("held by %v, want %v", codes, want)
	}
}
