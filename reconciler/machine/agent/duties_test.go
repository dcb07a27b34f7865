package agent

import (
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// TestNext: what a machine does, whatever state its disk is in and whatever it is
// told. The same rules are those of the simulated machines of package roles.
func TestNext(t *testing.T) {
	key := machine.Ticket{Token: plan.NewSecret("a.b"), CertificateKey: plan.NewSecret("c")}
	token := machine.Ticket{Token: plan.NewSecret("a.b")}
	heard := func(role string, generation int64, orders machine.Orders) *machine.Assigned {
		return &machine.Assigned{Role: role, RoleGeneration: generation, Orders: orders}
	}
	worker := member.Part{Role: machine.Worker, Generation: 2, Reached: 2}
	master := member.Part{Role: machine.Master, Generation: 2, Reached: 2}
	crowned := member.Part{Role: machine.Master, Generation: 3, Reached: 2}
	tried, failed := crowned, crowned
	tried.Tried = 3
	failed.Tried, failed.Failed = 3, 3
	moved := worker
	moved.Generation = 3
	did := worker
	did.Done = machine.Orders{Reset: "crown-1", Prepull: "crown-1"}
	for name, test := range map[string]struct {
		state state
		want  duty
	}{
		"nothing is known":                             {state{}, none},
		"a worker at work":                             {state{part: worker, heard: heard(machine.Worker, 2, machine.Orders{}), kubelet: true}, none},
		"a master at work":                             {state{part: master, heard: heard(machine.Master, 2, machine.Orders{}), serves: true, keys: true}, none},
		"a former master":                              {state{part: moved, heard: heard(machine.Worker, 3, machine.Orders{}), serves: true, keys: true}, fence},
		"a former master that hears nobody":            {state{part: moved, serves: true}, fence},
		"of which only the keys are left":              {state{part: moved, keys: true}, fence},
		"a master that hears nobody":                   {state{part: master, serves: true, keys: true}, none},
		"a worker with a new generation":               {state{part: moved, heard: heard(machine.Worker, 3, machine.Orders{}), kubelet: true}, arrived},
		"an order to reset":                            {state{part: worker, heard: heard(machine.Worker, 2, machine.Orders{Reset: "crown-1"})}, reset},
		"the same after the reboot":                    {state{part: did, heard: heard(machine.Worker, 2, machine.Orders{Reset: "crown-1", Prepull: "crown-1"}), blank: true}, none},
		"an order to reset a master":                   {state{part: master, heard: heard(machine.Master, 2, machine.Orders{Reset: "crown-1"}), serves: true}, none},
		"an order to reset that is not heard any more": {state{part: worker}, none},
		"crowned, without a ticket":                    {state{part: crowned, heard: heard(machine.Master, 3, machine.Orders{}), blank: true}, none},
		"crowned, with a ticket":                       {state{part: crowned, heard: heard(machine.Master, 3, machine.Orders{}), blank: true, ticket: &key}, joinMaster},
		"crowned, with a worker's ticket":              {state{part: crowned, heard: heard(machine.Master, 3, machine.Orders{}), blank: true, ticket: &token}, none},
		"a master that was joined anew by hand":        {state{part: crowned, heard: heard(machine.Master, 3, machine.Orders{}), ticket: &key, kubelet: true}, fence},
		"cut short":                                    {state{part: tried, heard: heard(machine.Master, 3, machine.Orders{}), blank: true, ticket: &key}, joinFailed},
		"cut short in the middle":                      {state{part: tried, heard: heard(machine.Master, 3, machine.Orders{}), serves: true, keys: true}, joinFailed},
		"cut short at the last moment":                 {state{part: tried, heard: heard(machine.Master, 3, machine.Orders{}), serves: true, keys: true, kubelet: true, ready: true}, arrived},
		"failed: it waits for what becomes of it":      {state{part: failed, heard: heard(machine.Master, 3, machine.Orders{}), blank: true, ticket: &key}, none},
		"reset, with a ticket to be a worker":          {state{part: worker, heard: heard(machine.Worker, 2, machine.Orders{}), blank: true, ticket: &token}, joinWorker},
		"reset, with a ticket to be a master":          {state{part: worker, heard: heard(machine.Worker, 2, machine.Orders{}), blank: true, ticket: &key}, none},
		"an order to pull":                             {state{part: worker, heard: heard(machine.Worker, 2, machine.Orders{Prepull: "crown-2"})}, prepull},
		"an order to restart":                          {state{part: worker, heard: heard(machine.Worker, 2, machine.Orders{RestartKubelet: "now"})}, restartKubelet},
		"an order that was taken back":                 {state{part: did, heard: heard(machine.Worker, 2, machine.Orders{})}, none},
		"a snapshot":                                   {state{part: master, heard: heard(machine.Master, 2, machine.Orders{Snapshot: "crown-2"}), serves: true}, snapshot},
		"a snapshot from who has no etcd":              {state{part: worker, heard: heard(machine.Worker, 2, machine.Orders{Snapshot: "crown-2"})}, none},
		"an upload, though a snapshot fails":           {state{part: master, heard: heard(machine.Master, 2, machine.Orders{Snapshot: "crown-1", UploadCerts: "pc-04/a"}), serves: true}, uploadCerts},
		"an upload":                                    {state{part: master, heard: heard(machine.Master, 2, machine.Orders{UploadCerts: "pc-04/a"}), serves: true}, uploadCerts},
	} {
		if got := next(test.state); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// TestPart: an older role teaches nothing, and a boot that was ordered is none of
// those that speak against a machine.
func TestPart(t *testing.T) {
	p := member.Part{}.Learn("a", machine.Master, 3).Learn("a", machine.Worker, 2).Learn("a", "", 9).Learn("b", "", 1)
	if q := p.Learn("b", machine.Worker, 1); q.Role != machine.Worker || q.Generation != 1 {
		t.Errorf("the Machine was made anew: %+v", q)
	}
	if p.Role != machine.Master || p.Generation != 3 {
		t.Errorf("%+v", p)
	}
	now := time.Date(2026, 11, 27, 8, 0, 0, 0, time.UTC)
	p = p.Started("a", now) // the first is none that is known of
	p = p.Started("a", now)
	p = p.Started("b", now)
	p.Ordered = true
	p = p.Started("c", now)
	if len(p.Boots) != 1 || p.Ordered || p.Boot != "c" {
		t.Errorf("%+v", p)
	}
	if p = p.Started("d", now.Add(31*24*time.Hour)); len(p.Boots) != 1 || !p.Boots[0].After(now) {
		t.Errorf("boots of more than a month ago count: %+v", p)
	}
	if p = p.Started("", now); p.Boot != "d" {
		t.Errorf("a boot that is not known is another one: %+v", p)
	}
}
