package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// Reasons of the conditions that the agent reports.
const (
	NodeReady    plan.Code = "NodeReady"    // kubelet and Node are well
	NodeNotReady plan.Code = "NodeNotReady" // the kubelet says that something is missing
	KubeletDown  plan.Code = "KubeletDown"  // the kubelet does not answer on its own machine
	InStep       plan.Code = "InStep"       // this clock agrees with a master's
	OutOfStep    plan.Code = "OutOfStep"    // it does not
	NotMeasured  plan.Code = "NotMeasured"  // nothing is known yet
	FastEnough   plan.Code = "FastEnough"   // the disk could carry etcd
	TooSlow      plan.Code = "TooSlow"      // it could not
	MasterFound  plan.Code = "MasterFound"  // the balancer leads to a master that works
)

// object is a Machine as the API has it.
type object struct {
	Metadata struct {
		UID        types.UID `json:"uid"`
		Generation int64     `json:"generation"`
	} `json:"metadata"`
	Spec   machine.Assigned `json:"spec"`
	Status machine.Status   `json:"status"`
}

// report beats: one heartbeat after the other, and faster while the API is away.
func (a *Agent) report(ctx context.Context, m *member.Membership) {
	var client dynamic.Interface
	var word string
	clock := &clock{}
	var own *object // as the API had it last; nil is not seen yet
	var away bool   // the API was, until now
	var told troubles
	for {
		var err error
		if now := member.Word(a.Host); client == nil || now != word {
			word, own = now, nil
			client, err = a.connect(m, clock)
		}
		if err == nil {
			own, err = a.beat(ctx, client, clock, m, own, away)
		}
		if ctx.Err() != nil {
			return
		}
		a.alive()
		if a.Answered != nil {
			a.Answered(err)
		}
		pause := cmp.Or(a.Beat, 10*time.Second)
		if err != nil {
			if told.new(err.Error()) {
				a.Log.WarnContext(ctx, "not reported", "error", err)
			}
			own = nil // who knows what happened meanwhile
			var answer apierrors.APIStatus
			away = away || !errors.As(err, &answer) && !errors.Is(err, errNoMachine)
			pause = min(pause, cmp.Or(a.Retry, 3*time.Second))
		} else {
			if len(told) > 0 {
				a.Log.InfoContext(ctx, "reporting again")
			}
			told, away = nil, false
		}
		timer := time.NewTimer(jitter(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-a.due:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// connect makes a client that listens to the masters' clocks.
func (a *Agent) connect(m *member.Membership, clock *clock) (dynamic.Interface, error) {
	config, err := m.Speak(a.Host, a.Version)
	if err != nil {
		return nil, err
	}
	config.Wrap(clock.listen)
	return dynamic.NewForConfig(config)
}

// beat looks at the machine and reports the whole of it. It returns the Machine
// as it is then.
func (a *Agent) beat(ctx context.Context, client dynamic.Interface, clock *clock, m *member.Membership, own *object, away bool) (*object, error) {
	machines := client.Resource(machine.Resource())
	if own == nil {
		found, err := machines.Get(ctx, m.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("%w %s yet: the reconciler makes it when the site repo declares it", errNoMachine, m.Name)
		}
		if err != nil {
			return nil, unanswered(err)
		}
		if own, err = read(found); err != nil {
			return nil, err
		}
	}
	a.hear(m.Name, own)
	ready, err := a.ready(ctx, client, m)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.own.ready = ready.Status == "True"
	a.mu.Unlock()
	// The API answered a moment ago, and its clock with it.
	conditions := []plan.Condition{ready, clock.condition(), a.disk(own.Status.Inventory)}
	if own.Spec.Kiosk && a.Screen != nil {
		conditions = append(conditions, kiosk(a.Screen()))
	}
	conditions = append(conditions,
		plan.Condition{Type: machine.ConditionAPIReachable, Status: "True", Reason: MasterFound, Message: "the balancer leads to a master that works"})
	now := time.Now()
	want := a.status(own, m, conditions, now)
	want.ClockAhead = clock.words()
	if away { // which could not be told when it was so
		reachable := &want.Conditions[len(want.Conditions)-1]
		reachable.LastTransitionTime = now.UTC().Truncate(time.Second)
	}
	body, err := changes(own.Status, want)
	if err != nil {
		return nil, err
	}
	patched, err := machines.Patch(ctx, m.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: "noded"}, "status")
	if err != nil {
		return nil, unanswered(err)
	}
	return read(patched)
}

// kiosk is whether the machine's own screen is one.
func kiosk(trouble error) plan.Condition {
	if trouble != nil {
		return plan.Condition{Type: machine.ConditionKiosk, Status: "False", Reason: "NotInstalled", Message: trouble.Error()}
	}
	return plan.Condition{Type: machine.ConditionKiosk, Status: "True", Reason: "Installed", Message: "the machine's own screen shows the portal"}
}

var errNoMachine = errors.New("the site has no Machine")

// unanswered says plainly that nobody was there; what the API itself says stays.
func unanswered(err error) error {
	var answer apierrors.APIStatus
	if errors.As(err, &answer) {
		return err
	}
	return fmt.Errorf("no master answers: %s", member.Plain(err))
}

// status is what the agent has to say, given what it said before.
func (a *Agent) status(own *object, m *member.Membership, conditions []plan.Condition, now time.Time) machine.Status {
	last := own.Status
	s := machine.Status{
		Heartbeat:          now.UTC().Truncate(time.Second),
		ObservedGeneration: own.Metadata.Generation,
		RoleGeneration:     last.RoleGeneration,
		Inventory:          a.inventory(m, last.Inventory),
		Conditions:         moved(last.Conditions, conditions, own.Metadata.Generation, now),
	}
	a.mu.Lock()
	self := a.own
	a.mu.Unlock()
	known := a.known()
	s.Images = known.images || last.Images && known.inventory.MachineID == ""
	s.FailedGeneration, s.Failure, s.Blank, s.Keys, s.UnorderedBoots, s.Done = last.FailedGeneration, last.Failure, last.Blank, last.Keys, last.UnorderedBoots, last.Done
	if p := self.part; self.known {
		s.RoleGeneration, s.FailedGeneration, s.Failure, s.Blank, s.Keys, s.UnorderedBoots, s.Done = p.Reached, p.Failed, p.Failure, self.blank, self.keys, len(p.Boots), p.Done
	}
	ready := slices.ContainsFunc(conditions, func(c plan.Condition) bool { return c.Type == machine.ConditionReady && c.Status == "True" })
	switch {
	case ready:
		s.Phase = machine.Ready
	case last.Phase == machine.Ready || last.Phase == machine.NotReady:
		s.Phase = machine.NotReady
	default: // new, or back after it had left
		s.Phase = machine.Joining
	}
	return s
}

// moved gives conditions the time at which they last became what they are.
func moved(last, now []plan.Condition, generation int64, at time.Time) []plan.Condition {
	for i := range now {
		c := &now[i]
		c.ObservedGeneration, c.LastTransitionTime = generation, at.UTC().Truncate(time.Second)
		for _, before := range last {
			if before.Type == c.Type && before.Status == c.Status {
				c.LastTransitionTime = before.LastTransitionTime
			}
		}
	}
	return now
}

// changes is the merge patch that makes one status another.
func changes(have, want machine.Status) ([]byte, error) {
	before, err := json.Marshal(map[string]any{"status": have})
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(map[string]any{"status": want})
	if err != nil {
		return nil, err
	}
	return jsonpatch.CreateMergePatch(before, after)
}

func read(o *unstructured.Unstructured) (*object, error) {
	text, err := o.MarshalJSON()
	if err != nil {
		return nil, err
	}
	into := &object{}
	if err := json.Unmarshal(text, into); err != nil {
		return nil, fmt.Errorf("read Machine %s: %w", o.GetName(), err)
	}
	return into, nil
}

// ready asks the kubelet on the spot, and the site about its Node.
func (a *Agent) ready(ctx context.Context, client dynamic.Interface, m *member.Membership) (plan.Condition, error) {
	c := plan.Condition{Type: machine.ConditionReady, Status: "False"}
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	nodes := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"})
	switch o, err := nodes.Get(ctx, m.Name, metav1.GetOptions{}); {
	case apierrors.IsNotFound(err):
		c.Reason, c.Message = NodeNotReady, "the site has no Node of this name"
	case err != nil:
		return c, unanswered(err)
	default:
		text, err := o.MarshalJSON()
		if err != nil {
			return c, err
		}
		if err := json.Unmarshal(text, &node); err != nil {
			return c, err
		}
		c.Reason, c.Message = NodeNotReady, "the kubelet has not reported yet"
		for _, condition := range node.Status.Conditions {
			if condition.Type == "Ready" {
				c.Status, c.Message = condition.Status, condition.Message
			}
		}
	}
	if c.Status == "True" {
		c.Reason = NodeReady
	}
	if err := a.kubelet(ctx); err != nil {
		c.Status, c.Reason, c.Message = "False", KubeletDown, "the kubelet does not answer: "+member.Plain(err)
	}
	return c, nil
}

// kubelet asks the kubelet whether it is well.
func (a *Agent) kubelet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, cmp.Or(a.Healthz, "http://127.0.0.1:10248/healthz"), nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 200))
		return fmt.Errorf("%s: %s", response.Status, said)
	}
	return nil
}

// disk is whether etcd could work here, by the last measurement: that may have
// been another agent's, before this one was started.
func (a *Agent) disk(last machine.Inventory) plan.Condition {
	c := plan.Condition{Type: machine.ConditionDiskFit}
	p99 := a.known().fsync
	if p99 == 0 {
		p99, _ = time.ParseDuration(last.FsyncP99)
	}
	switch {
	case p99 == 0:
		c.Status, c.Reason, c.Message = "Unknown", NotMeasured, "the disk is timed when the machine has come to rest"
	case p99 > host.MaxFsync:
		c.Status, c.Reason = "False", TooSlow
		c.Message = fmt.Sprintf("99 of 100 writes last within %s, and etcd wants %s", p99.Round(100*time.Microsecond), host.MaxFsync)
	default:
		c.Status, c.Reason = "True", FastEnough
		c.Message = fmt.Sprintf("99 of 100 writes last within %s", p99.Round(100*time.Microsecond))
	}
	return c
}

// inventory is the machine as the site is told of it. What is not known yet is
// as it was last known.
func (a *Agent) inventory(m *member.Membership, last machine.Inventory) machine.Inventory {
	known := a.known()
	v := last
	if found := known.inventory; found.MachineID != "" {
		v = machine.Inventory{
			CPU: found.CPU, Memory: mebibytes(found.Memory), Architecture: found.Architecture,
			MACs: found.MACs, MachineID: found.MachineID, BootID: found.BootID, FsyncP99: last.FsyncP99,
			Versions: machine.Versions{Kubelet: found.Kubelet, Containerd: found.Containerd, Kernel: found.Kernel, Debian: found.Debian},
		}
		for _, address := range found.Addresses {
			v.Addresses = append(v.Addresses, address.String())
		}
		for _, d := range found.Disks {
			v.Disks = append(v.Disks, machine.DiskFound{Name: d.Name, Size: mebibytes(d.Size), Model: d.Model, Rotational: d.Rotational})
		}
	}
	v.Address, v.Versions.Noded = m.Address.String(), a.Version
	if known.fsync > 0 {
		v.FsyncP99 = known.fsync.Round(100 * time.Microsecond).String()
	}
	return v
}

// mebibytes is a size as Kubernetes writes it: 7898Mi.
func mebibytes(n int64) plan.Quantity { return plan.Quantity(fmt.Sprintf("%dMi", n>>20)) }

// clock compares this clock with those of the masters that answer.
type clock struct {
	ahead atomic.Int64 // of the last answer's, in ns
	heard atomic.Bool
}

// listen is a transport that reads the Date of each answer.
func (c *clock) listen(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		begin := time.Now()
		response, err := next.RoundTrip(r)
		if err != nil {
			return response, err
		}
		if there, e := http.ParseTime(response.Header.Get("Date")); e == nil {
			// By the wall clock: what was begun before a jump ended after it.
			c.ahead.Store(int64(begin.Round(0).Add(time.Since(begin) / 2).Sub(there)))
			c.heard.Store(true)
		}
		return response, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// words is by how much this clock is ahead, "" while nobody told the time.
func (c *clock) words() string {
	if !c.heard.Load() {
		return ""
	}
	return time.Duration(c.ahead.Load()).Round(100 * time.Millisecond).String()
}

func (c *clock) condition() plan.Condition {
	condition := plan.Condition{Type: machine.ConditionClockInStep, Status: "Unknown", Reason: NotMeasured, Message: "no master told the time yet"}
	if !c.heard.Load() {
		return condition
	}
	ahead := time.Duration(c.ahead.Load())
	if err := host.CheckClock(time.Now().Add(ahead), time.Now()); err != nil {
		condition.Status, condition.Reason, condition.Message = "False", OutOfStep, err.Error()
		return condition
	}
	condition.Status, condition.Reason, condition.Message = "True", InStep, fmt.Sprintf("within %s of a master's", host.MaxSkew)
	return condition
}

// addressOf reads an address; invalid is none.
func addressOf(text string) netip.Addr {
	a, _ := netip.ParseAddr(text)
	return a.Unmap()
}
