package gluster

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/leaderelection"
)

// steward is the field manager of what the steward writes.
const steward = "kingmaker-steward"

// Steward works on the trusted pool, from one of its machines. Every machine with a
// brick has one; the one that holds the lease of the Pool works. Everything it
// decides it decides from what it sees in that moment, so that another can go on
// where it was cut short.
type Steward struct {
	Machine string                            // this one
	Connect func() (dynamic.Interface, error) // as this machine's Node; whose credentials change with its membership
	Gluster CLI
	UUID    func() string // of this machine's glusterd, "" while none answers
	// Prepare makes what a volume has in it before it is used, through the mount of this
	// machine; see package hand.
	Prepare func(ctx context.Context, volume, id string, placed Placed) (homes int, err error)
	Log     *slog.Logger

	client  dynamic.Interface // of this standing for the lease
	nudged  map[string]time.Time
	calm    map[string]time.Time
	refused map[string]Refused
	told    map[string]string // by volume: phase
	busy    time.Time         // when a volume was last otherwise than well
	held    bool              // something waits for what is not there
	heard   string            // the news of the last turn

	mu       sync.Mutex
	prepared map[string]*preparing
}

// preparing is what came of Prepare, and for what.
type preparing struct {
	preparation
	id     string // of the volume
	placed Placed
	at     time.Time
	going  bool
}

const (
	// patienceOfGluster is how long turns may fail before another machine is to try: the
	// cause may be here. It is as long as gluster itself waits for a lock.
	patienceOfGluster = 2 * time.Minute
	prepareAgain      = time.Minute      // even where nothing changed: somebody may have removed a home's folder
	prepareSoon       = 3 * time.Second  // where it failed
	tryAgain          = 10 * time.Second // what gluster refused
	maxHolds          = 3                // causes in a Pool's message
)

// Run stands for the lease, and works while it holds it, until the context ends.
func (s *Steward) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if s.mayStand(ctx) {
			s.stand(ctx)
		}
		pause(ctx, 5*time.Second)
	}
}

// mayStand reports whether this machine's glusterd knows the pool: one that belongs
// to another, or was installed anew, sees no volumes and would make new ones. Where
// there is nothing yet, any may begin.
func (s *Steward) mayStand(ctx context.Context) bool {
	own := s.UUID()
	if own == "" {
		return false
	}
	var err error
	if s.client, err = s.Connect(); err != nil {
		return false
	}
	pool, err := getPool(ctx, s.client)
	if err != nil || slices.ContainsFunc(pool.Peers, func(p PeerStatus) bool { return p.UUID == own }) {
		return err == nil
	}
	volumes, err := volumesOf(ctx, s.client)
	made := slices.ContainsFunc(slices.Collect(maps.Values(volumes)), func(s stored) bool { return s.status.ID != "" })
	return err == nil && !made && len(pool.Peers) <= 1
}

// stand waits for the lease and works until it is lost, or nothing succeeds.
func (s *Steward) stand(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{}, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &lease{client: s.client, holder: s.Machine}, ReleaseOnCancel: true, Name: "steward",
		// The defaults of Kubernetes' own controllers.
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				s.Log.Info("this machine is the steward of the pool now")
				s.work(leading)
				cancel()
				ended <- struct{}{}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		s.Log.Error("the lease of the pool was not set up", "error", err)
		return
	}
	elector.Run(ctx)
	if elector.IsLeader() {
		<-ended
	}
}

// work takes one turn after the other.
func (s *Steward) work(ctx context.Context) {
	s.forget()
	var last string
	var failed time.Time // since when no turn has succeeded
	for ctx.Err() == nil && s.UUID() != "" {
		acted, err := s.Turn(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failed, last = time.Time{}, ""
		default:
			if err.Error() != last {
				last = err.Error()
				s.Log.Warn("the pool is not as it should be", "error", err)
			}
			if failed.IsZero() {
				failed = time.Now()
			} else if time.Since(failed) > patienceOfGluster {
				s.Log.Warn("another machine is to try", "error", err)
				return
			}
		}
		if !acted {
			s.rest(ctx, err != nil)
		}
	}
}

// rest waits until there may be something to do. Each look at the pool costs a second
// of an old PC, one at what the site says next to nothing.
func (s *Steward) rest(ctx context.Context, failed bool) {
	const glance = 3 * time.Second
	long := 30 * time.Second
	switch {
	case time.Since(s.busy) < time.Minute:
		long = glance
	case failed || s.held || s.preparing():
		long = 10 * time.Second
	}
	for until := time.Now().Add(long); ; {
		pause(ctx, glance)
		if ctx.Err() != nil || s.UUID() == "" || !time.Now().Before(until) {
			return
		}
		if v, err := look(ctx, s.client); err != nil || v.news() != s.heard {
			return
		}
	}
}

// preparing reports whether a volume is being made ready beside the turns.
func (s *Steward) preparing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.prepared {
		if p.going {
			return true
		}
	}
	return false
}

// forget begins anew: what was seen while another was the steward is not known.
func (s *Steward) forget() {
	s.nudged, s.calm, s.refused, s.told = map[string]time.Time{}, map[string]time.Time{}, map[string]Refused{}, map[string]string{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepared = map[string]*preparing{}
}

// Turn is one look, what there is to say of it, and at most one step; acted is true
// where one was done. An error is one of the API or of glusterd; what holds a volume
// back is in its status.
func (s *Steward) Turn(ctx context.Context) (acted bool, err error) {
	if s.client == nil {
		if s.client, err = s.Connect(); err != nil {
			return false, err
		}
	}
	if s.nudged == nil {
		s.forget()
	}
	v, err := look(ctx, s.client)
	if err != nil || v.unserved {
		return false, err
	}
	pool, err := getPool(ctx, s.client)
	if err != nil {
		return false, err
	}
	s.heard = v.news()
	seen, err := s.Gluster.See(ctx)
	if err != nil {
		return false, err
	}
	seen.fill(v, s.Machine)
	s.remember(&seen)
	wanted := v.wanted()
	step, holds := Next(wanted, seen)
	s.held = len(holds) > 0
	for _, h := range holds {
		if h.Code == Vanished {
			err = fmt.Errorf("%s", h.Cause) // perhaps only for this machine's glusterd
		}
	}
	for _, w := range wanted {
		if e := s.report(ctx, w, v.volumes[w.Name], seen, holds, step); e != nil {
			return false, e
		}
	}
	if e := s.reportPool(ctx, pool, seen, holds); e != nil {
		return false, e
	}
	if err != nil || step == nil || step.Do == SetAside { // which its machine does, and is told in the status
		return false, err
	}
	if err := s.remind(ctx, step, seen); err != nil {
		return false, err
	}
	if err := s.carry(ctx, step, seen); err != nil && ctx.Err() == nil {
		s.Log.Warn("refused", "step", step.Do, "volume", step.Volume, "error", err)
		s.refused[step.key()] = Refused{Why: err.Error(), Until: time.Now().Add(tryAgain)}
		return false, nil
	}
	return true, ctx.Err()
}

// remember adds what was seen in earlier turns.
func (s *Steward) remember(seen *Seen) {
	for _, v := range seen.Volumes {
		switch {
		case !seen.isWhole(v):
			delete(s.calm, v.Name)
		case s.calm[v.Name].IsZero():
			s.calm[v.Name] = seen.At
		}
	}
	seen.Nudged, seen.Calm, seen.Refused = s.nudged, s.calm, s.refused
}

// remind writes down the set of copies as it is before a step changes it: whoever comes
// after a step that was cut short must know of it.
func (s *Steward) remind(ctx context.Context, step *Step, seen Seen) error {
	v := seen.live(step.Volume)
	if v == nil {
		return nil
	}
	o, err := s.client.Resource(Resource()).Get(ctx, step.Volume, metav1.GetOptions{})
	if err != nil {
		return err
	}
	at, err := readVolume(o)
	if err != nil {
		return err
	}
	next := at.status
	if next.Eras = erasAfter(at.status.Eras, *v, step); reflect.DeepEqual(next.Eras, at.status.Eras) {
		return nil
	}
	delete(s.calm, step.Volume)
	return s.put(ctx, o, next)
}

// carry does a step.
func (s *Steward) carry(ctx context.Context, step *Step, seen Seen) error {
	if step.Do == Mend || step.Do == Rewrite {
		s.nudged[step.Volume] = seen.At
	}
	if err := s.Gluster.Carry(ctx, step); err != nil {
		return fmt.Errorf("%s %s: %w", strings.ToLower(string(step.Do)), cmp.Or(step.Volume, step.Address), err)
	}
	s.Log.Info("done", "step", step.Do, "volume", step.Volume, "why", step.Why)
	if step.Volume != "" && step.Do != Mend {
		s.event(ctx, step.Volume, "Normal", string(step.Do), step.Why)
	}
	return nil
}

// report writes what is seen of a volume, where it changed.
func (s *Steward) report(ctx context.Context, w Wanted, at stored, seen Seen, holds []*plan.Fault, step *Step) error {
	var split []string
	if v := seen.live(w.Name); v != nil && v.Started {
		if _, n, _ := seen.behind(*v, nil); n > 0 {
			split, _ = s.Gluster.SplitFiles(ctx, w.Name, maxSplit) // the count is told without, too
		}
	}
	next := statusOf(w, at.status, at.generation, seen, holds, s.prepare(ctx, w, at, seen), split)
	if step != nil && step.Volume == w.Name && step.Do != Mend {
		next.Step = fmt.Sprintf("%s: %s", step.Do, step.Why)
	}
	err := s.write(ctx, w.Name, at, next)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // its spec was written, or it was deleted: the next turn sees it
	}
	if err != nil {
		return err
	}
	if next.Phase != Started || !next.Prepared {
		s.busy = seen.At
	}
	if before := s.told[w.Name]; before != next.Phase && before != "" {
		severity := "Normal"
		if next.Phase == Degraded || next.Phase == Split {
			severity = "Warning"
		}
		s.event(ctx, w.Name, severity, next.Phase, next.words())
	}
	s.told[w.Name] = next.Phase
	return nil
}

// write puts a status in the place of the one that was read, in no other version: two
// stewards, of which one does not know yet that it is none any more, do not mix.
func (s *Steward) write(ctx context.Context, name string, at stored, next VolumeStatus) error {
	if normal(at.status) == normal(next) {
		return nil
	}
	o, err := s.client.Resource(Resource()).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if now, err := readVolume(o); err != nil || normal(now.status) != normal(at.status) {
		return cmp.Or(err, fmt.Errorf("another steward writes the status of %s", name))
	}
	return s.put(ctx, o, next)
}

// put writes the status of an object in the version in which it was read.
func (s *Steward) put(ctx context.Context, o *unstructured.Unstructured, next VolumeStatus) error {
	o.Object["status"] = asStored(next)
	_, err := s.client.Resource(Resource()).UpdateStatus(ctx, o, metav1.UpdateOptions{FieldManager: steward})
	return err
}

// normal is a status as it is compared: as JSON has it.
func normal(status any) string {
	text, _ := json.Marshal(status)
	return string(text)
}

// reportPool writes what is seen of the pool, where it changed.
func (s *Steward) reportPool(ctx context.Context, last PoolStatus, seen Seen, holds []*plan.Fault) error {
	var words []string
	for _, h := range holds {
		if h.ID.Kind == "Pool" && len(words) < maxHolds {
			words = append(words, h.Cause)
		}
	}
	next := last
	next.Peers, next.Message = peers(seen, last.Peers, s.Machine), strings.Join(words, "; ")
	if normal(next) == normal(last) {
		return nil
	}
	message := any(next.Message)
	if next.Message == "" {
		message = nil // a merge patch takes it away
	}
	body, err := json.Marshal(map[string]any{"status": map[string]any{"peers": next.Peers, "message": message}})
	if err != nil {
		return err
	}
	_, err = s.client.Resource(PoolResource()).Patch(ctx, PoolName, types.MergePatchType, body, metav1.PatchOptions{FieldManager: steward}, "status")
	return err
}

// prepare has a started volume made ready for use, beside the turns: ten thousand new
// homes take minutes. It returns what is known of it.
func (s *Steward) prepare(ctx context.Context, w Wanted, at stored, seen Seen) preparation {
	v := seen.live(w.Name)
	if v == nil || !v.Started || w.Delete || at.status.ID != v.ID || s.Prepare == nil {
		return preparation{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.prepared[w.Name]
	if p == nil {
		p = &preparing{}
		s.prepared[w.Name] = p
	}
	same := p.id == v.ID && p.placed.GID == at.spec.GID && slices.Equal(p.placed.Homes, at.spec.Homes)
	again := prepareAgain
	if p.err != nil {
		again = prepareSoon
	}
	if !p.going && (!same || seen.At.Sub(p.at) >= again) {
		p.going = true
		go func() {
			homes, err := s.Prepare(ctx, w.Name, v.ID, at.spec)
			s.mu.Lock()
			defer s.mu.Unlock()
			*p = preparing{preparation{done: err == nil || homes > 0, homes: homes, err: err}, v.ID, at.spec, time.Now(), false}
		}()
	}
	if p.id != v.ID {
		return preparation{}
	}
	return p.preparation
}

// event tells people. That it could not be told is no reason not to go on.
func (s *Steward) event(ctx context.Context, volume, severity, reason, message string) {
	now := time.Now().UTC().Format(time.RFC3339)
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event", "metadata": map[string]any{"generateName": volume + ".", "namespace": "default"},
		"involvedObject": map[string]any{"apiVersion": plan.APIVersion, "kind": kind, "name": volume},
		"type":           severity, "reason": reason, "message": message, "count": int64(1), "firstTimestamp": now, "lastTimestamp": now,
		"source": map[string]any{"component": steward, "host": s.Machine}, "reportingComponent": steward, "reportingInstance": s.Machine,
	}}
	events := s.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "events"})
	if _, err := events.Namespace("default").Create(ctx, o, metav1.CreateOptions{FieldManager: steward}); err != nil {
		s.Log.Debug("an event was not written", "error", err)
	}
}

// pause waits, and no longer than the context lasts.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
