package gluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
)

// TestDesired is what the daemon makes of a Volume, given what the machines report.
func TestDesired(t *testing.T) {
	at := time.Unix(1e9, 0)
	machine := func(name, circuit string) map[string]any {
		return map[string]any{"apiVersion": plan.APIVersion, "kind": "Machine", "metadata": map[string]any{"name": name},
			"spec": map[string]any{"circuit": circuit}}
	}
	document := func(spec map[string]any) map[string]any {
		return map[string]any{"apiVersion": plan.APIVersion, "kind": "Volume", "metadata": map[string]any{"name": "homes"}, "spec": spec}
	}
	room := func() view {
		v := view{at: at, volumes: map[string]stored{}, machines: map[string]pc{}}
		for i := range 5 {
			v.machines[fmt.Sprintf("pc-%02d", i+1)] = pc{address: fmt.Sprintf("10.0.0.%d", i+1), heartbeat: at,
				brick: MachineBrick{Heartbeat: at, Size: 1000, Free: 900, Glusterd: "u"}}
		}
		return v
	}
	change := func(v view, name string, do func(*pc)) {
		m := v.machines[name]
		do(&m)
		v.machines[name] = m
	}
	made := func(v view, names ...string) {
		s := stored{status: VolumeStatus{ID: "id", Phase: Started}}
		for _, name := range names {
			s.spec.Bricks = append(s.spec.Bricks, PlacedBrick{name, v.machines[name].address})
			s.status.Bricks = append(s.status.Bricks, BrickStatus{Machine: name, Online: true})
		}
		v.volumes["homes"] = s
	}
	three := map[string]any{"access": "homes", "replicas": int64(3)}
	for _, c := range []struct {
		name string
		spec map[string]any
		do   func(view)
		want string
	}{
		{"spread over circuits", three, func(view) {}, "pc-01 pc-03 pc-05: 3 copies (as it asks): new on pc-01; new on pc-03; new on pc-05"},
		{"the default is five with five bricks", map[string]any{}, func(view) {}, "pc-01 pc-03 pc-05 pc-02 pc-04: 5 copies (the default with 5 bricks): new on pc-01; new on pc-03; new on pc-05; new on pc-02, which shares circuit a with 1 other copies; new on pc-04, which shares circuit b with 1 other copies"},
		{"machines that did not join yet", map[string]any{}, func(v view) { delete(v.machines, "pc-05"); delete(v.machines, "pc-04") },
			"MissingBricks 5 copies are wanted (the default with 5 bricks), and there are bricks for 3 (pc-04 has not joined; pc-05 has not joined)"},
		{"bricks that cannot be used", three, func(v view) {
			change(v, "pc-01", func(m *pc) { m.brick.Free = 1 })
			change(v, "pc-02", func(m *pc) { m.brick.Unfit = "its file system is tmpfs, and a brick wants xfs" })
			change(v, "pc-03", func(m *pc) { m.heartbeat = at.Add(-3 * time.Minute) })
		}, "MissingBricks 3 copies are wanted (as it asks), and there are bricks for 1 (pc-01 its brick is full; pc-02 its file system is tmpfs, and a brick wants xfs; pc-03 is silent)"},
		{"nothing moves while a machine is away for less than an hour", three, func(v view) {
			made(v, "pc-01", "pc-02", "pc-03")
			change(v, "pc-02", func(m *pc) { m.heartbeat = at.Add(-50 * time.Minute) })
		}, "pc-01 pc-02 pc-03: 3 copies (as it asks)"},
		{"one that is gone is replaced", three, func(v view) {
			made(v, "pc-01", "pc-02", "pc-03")
			change(v, "pc-02", func(m *pc) { m.heartbeat = at.Add(-2 * time.Hour) })
		}, "pc-01 pc-03 pc-05: 3 copies (as it asks): new on pc-05; pc-02 is gone"},
		{"so is a copy whose machine is there", three, func(v view) {
			made(v, "pc-01", "pc-02", "pc-03")
			v.volumes["homes"].status.Bricks[1].Since = at.Add(-2 * time.Hour)
		}, "pc-01 pc-03 pc-05: 3 copies (as it asks): new on pc-05; pc-02 is gone"},
		{"too many are silent", three, func(v view) {
			made(v, "pc-01", "pc-02", "pc-03")
			for _, name := range []string{"pc-02", "pc-03", "pc-04"} {
				change(v, name, func(m *pc) { m.heartbeat = at.Add(-2 * time.Hour) })
			}
		}, "pc-01 pc-02 pc-03: 3 copies (as it asks) [TooManySilent]"},
		{"three of four copies are no better than two", map[string]any{"replicas": int64(5)}, func(v view) {
			made(v, "pc-01", "pc-02", "pc-03")
			change(v, "pc-05", func(m *pc) { m.heartbeat = at.Add(-3 * time.Minute) })
		}, "pc-01 pc-02 pc-03: 3 copies (as it asks) [MissingBricks]"},
		{"only by name", map[string]any{"replicas": int64(1), "machines": map[string]any{"names": []any{"pc-04"}}}, func(view) {}, "pc-04: 1 copies (as it asks): new on pc-04"},
	} {
		v := room()
		c.do(v)
		documents := []map[string]any{document(c.spec)}
		for i, circuit := range []string{"a", "a", "b", "b", "c"} {
			documents = append(documents, machine(fmt.Sprintf("pc-%02d", i+1), circuit))
		}
		want, faults := desired(plantest.Site(t, documents...), v)
		var got string
		for _, f := range faults {
			got += string(f.Code) + " " + f.Cause
		}
		if o, ok := want[about("homes")]; ok {
			var names []string
			for _, b := range o.Spec["spec"].(map[string]any)["bricks"].([]any) {
				names = append(names, b.(map[string]any)["machine"].(string))
			}
			got = strings.Join(names, " ") + ": " + o.Why
			for _, n := range o.Notes {
				got += " [" + string(n.Code) + "]"
			}
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}
