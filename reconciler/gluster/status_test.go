package gluster

import (
	"testing"
	"time"
)

// TestNews is what makes the steward look before its time.
func TestNews(t *testing.T) {
	at := time.Unix(1e9, 0)
	room := func() view {
		brick := MachineBrick{Heartbeat: at, Size: 1000, Free: 900, Glusterd: "u", Holds: []Held{{Volume: "homes", ID: "id"}}}
		return view{at: at, volumes: map[string]stored{"homes": {uid: "1", spec: Placed{Bricks: []PlacedBrick{{"pc-01", "10.0.0.1"}}}}},
			machines: map[string]pc{"pc-01": {address: "10.0.0.1", heartbeat: at, brick: brick}}}
	}
	machine := func(do func(*pc)) func(*view) {
		return func(v *view) { m := v.machines["pc-01"]; do(&m); v.machines["pc-01"] = m }
	}
	volume := func(do func(*stored)) func(*view) {
		return func(v *view) { s := v.volumes["homes"]; do(&s); v.volumes["homes"] = s }
	}
	for _, c := range []struct {
		name string
		do   func(*view)
		want bool
	}{
		{"nothing", func(*view) {}, false},
		{"time goes by", func(v *view) { v.at = at.Add(staleReport) }, false},
		{"a machine reports", machine(func(m *pc) { m.heartbeat, m.brick.Heartbeat = at.Add(time.Second), at.Add(time.Second) }), false},
		{"somebody writes", machine(func(m *pc) { m.brick.Free = 800 }), false},
		{"a volume is mounted", machine(func(m *pc) { m.brick.Mounts = []Mount{{Volume: "homes", Ready: true}} }), false},
		{"the steward's own word", volume(func(s *stored) { s.version, s.status.Phase = "2", Degraded }), false},
		{"a brick is full", machine(func(m *pc) { m.brick.Free = 10 }), true},
		{"a machine is silent", func(v *view) { v.at = at.Add(staleReport + time.Second) }, true},
		{"its brick is not there", machine(func(m *pc) { m.brick.Unfit = "nothing is mounted" }), true},
		{"its glusterd does not answer", machine(func(m *pc) { m.brick.Glusterd = "" }), true},
		{"it puts a copy aside", machine(func(m *pc) { m.brick.Holds = nil }), true},
		{"a machine joins", func(v *view) { v.machines["pc-02"] = pc{} }, true},
		{"another brick is wanted", volume(func(s *stored) { s.spec.Bricks[0].Machine = "pc-02" }), true},
		{"somebody gets a home", volume(func(s *stored) { s.spec.Homes = []Home{{Name: "ada"}} }), true},
		{"it is to go", volume(func(s *stored) { s.spec.Delete = true }), true},
		{"it was made anew", volume(func(s *stored) { s.uid = "2" }), true},
		{"one more", func(v *view) { v.volumes["exchange"] = stored{} }, true},
	} {
		v := room()
		c.do(&v)
		if got := v.news() != room().news(); got != c.want {
			t.Errorf("%s: news: %v", c.name, got)
		}
	}
	silent := func(by time.Duration) string { v := room(); v.at = at.Add(by); return v.news() }
	if silent(2*staleReport) != silent(3*staleReport) {
		t.Error("that a machine is still silent is news")
	}
}
