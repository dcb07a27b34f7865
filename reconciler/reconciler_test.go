package reconciler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// fakeSource is a repository of sites.
type fakeSource struct {
	mu    sync.Mutex
	head  string
	err   error
	sites map[string]*plan.Site
}

func (s *fakeSource) Head(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head, s.err
}

func (s *fakeSource) Site(_ context.Context, commit string) (*plan.Site, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if site := s.sites[commit]; site != nil {
		return site, nil
	}
	return nil, &plan.Fault{Code: "Broken", Cause: "commit " + commit + " is broken"}
}

func (s *fakeSource) set(head string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head, s.err = head, err
}

// fakeSystem keeps objects in memory; functions stand in where a test wants
// another behaviour.
type fakeSystem struct {
	name    string
	observe func() (plan.State, error)
	apply   func(context.Context, plan.Change) error

	mu   sync.Mutex
	have plan.State
	log  []string
}

func (s *fakeSystem) Name() string { return s.name }

func (s *fakeSystem) Observe(context.Context, *plan.Site) (plan.State, error) {
	if s.observe != nil {
		return s.observe()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := plan.State{}
	for _, o := range s.have {
		have.Add(o)
	}
	return have, nil
}

func (s *fakeSystem) Desire(_ context.Context, site *plan.Site, _ plan.State) (plan.State, error) {
	return site.Objects.Of(s.name), nil
}

func (s *fakeSystem) Apply(ctx context.Context, c plan.Change) error {
	if s.apply != nil {
		if err := s.apply(ctx, c); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf("%s %s", c.Action(), c.ID.Name))
	if s.have == nil {
		s.have = plan.State{}
	}
	if delete(s.have, c.ID); c.Want != nil {
		s.have.Add(*c.Want)
	}
	return nil
}

func (s *fakeSystem) names() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, id := range s.have.IDs() {
		names = append(names, id.Name)
	}
	return strings.Join(names, " ")
}

// siteOf declares objects by name; "b<a" needs a.
func siteOf(commit string, names ...string) *plan.Site {
	s := &plan.Site{Name: "school", Commit: commit, Objects: plan.State{}}
	for _, name := range names {
		name, need, needs := strings.Cut(name, "<")
		o := plan.Object{ID: plan.ID{System: plan.Objects, Kind: "Thing", Name: name}, Spec: map[string]any{"name": name}}
		if needs {
			o.Needs = []plan.ID{{System: plan.Objects, Kind: "Thing", Name: need}}
		}
		s.Objects.Add(o)
	}
	return s
}

// running starts Run in a bubble of its own time and hands out the rounds.
func running(t *testing.T, r *Reconciler) <-chan Round {
	t.Helper()
	rounds := make(chan Round, 100)
	r.Observer = func(_ context.Context, round Round) { rounds <- round }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return rounds
}

func TestRunConvergesAndFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{head: "1", sites: map[string]*plan.Site{"1": siteOf("1", "a", "b"), "2": siteOf("2", "b", "c")}}
		system := &fakeSystem{name: plan.Objects}
		r := &Reconciler{Source: source, Systems: []System{system}}
		rounds := running(t, r)
		if round := <-rounds; round.Applied != 2 || system.names() != "a b" {
			t.Fatalf("applied %d, have %s", round.Applied, system.names())
		}
		if round := <-rounds; !round.Settled() {
			t.Fatalf("no round to see that the commit is reached: %+v", round)
		}
		source.set("2", nil)
		began := time.Now()
		r.Poll()
		if round := <-rounds; round.Applied != 2 || system.names() != "b c" || time.Since(began) > 0 {
			t.Fatalf("applied %d after %s, have %s", round.Applied, time.Since(began), system.names())
		}
		// Without a poll the interval brings the next look.
		source.set("1", nil)
		for round := (Round{}); round.Commit != "1" || !round.Settled(); {
			round = <-rounds
		}
		// Drift is corrected when someone tells of it.
		system.mu.Lock()
		clear(system.have)
		system.mu.Unlock()
		began = time.Now()
		r.Nudge()
		if round := <-rounds; round.Applied != 2 || time.Since(began) > 0 {
			t.Fatalf("applied %d after %s", round.Applied, time.Since(began))
		}
	})
}

// TestNewerCommitWins has a commit that hangs in the middle: the next one must
// not wait for it.
func TestNewerCommitWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{head: "bad", sites: map[string]*plan.Site{"bad": siteOf("bad", "hangs", "later<hangs"), "good": siteOf("good", "a")}}
		system := &fakeSystem{name: plan.Objects}
		stuck := make(chan struct{})
		system.apply = func(ctx context.Context, c plan.Change) error {
			if c.ID.Name == "hangs" {
				close(stuck)
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		r := &Reconciler{Source: source, Systems: []System{system}}
		rounds := running(t, r)
		<-stuck
		source.set("good", nil)
		r.Poll()
		if round := <-rounds; round.Commit != "good" || !strings.Contains(system.names(), "a") {
			t.Fatalf("commit %s, have %s", round.Commit, system.names())
		}
		if slices.Contains(system.log, "create later") {
			t.Error("what came after the hanging change was done")
		}
	})
}

// TestLastGoodCommitIsKeptUp breaks the commit, then the repository: drift is
// corrected all the same, and the status says what is wrong.
func TestLastGoodCommitIsKeptUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{head: "1", sites: map[string]*plan.Site{"1": siteOf("1", "a")}}
		system := &fakeSystem{name: plan.Objects}
		r := &Reconciler{Source: source, Systems: []System{system}}
		rounds := running(t, r)
		<-rounds
		for _, trouble := range []struct {
			head string
			err  error
			says string
		}{{"broken", nil, "commit broken is broken"}, {"", errors.New("no route to host"), "no route to host"}} {
			source.set(trouble.head, trouble.err)
			r.Poll()
			round := <-rounds
			for !strings.Contains(fmt.Sprint(round.Err), trouble.says) {
				round = <-rounds
			}
			system.mu.Lock()
			clear(system.have)
			system.mu.Unlock()
			r.Nudge()
			for system.names() != "a" {
				<-rounds
			}
			status := Status(plan.SiteStatus{}, round, time.Now())
			if status.Conditions[0].Status != "False" || status.Commit.Wanted != "broken" {
				t.Errorf("status %+v", status)
			}
		}
	})
}

func TestApplyGoesOnAroundAFailure(t *testing.T) {
	system := &fakeSystem{name: plan.Objects, apply: func(_ context.Context, c plan.Change) error {
		if c.ID.Name == "a" {
			return errors.New("no")
		}
		return nil
	}}
	r := &Reconciler{Systems: []System{system}}
	round := r.Round(t.Context(), siteOf("1", "a", "b<a", "c<b", "d"))
	if system.names() != "d" || round.Applied != 1 {
		t.Errorf("applied %d, have %q", round.Applied, system.names())
	}
	faults, _ := plan.Split(round.Err)
	var told []string
	for _, f := range faults {
		told = append(told, string(f.Code)+" "+f.ID.Name)
	}
	if got := strings.Join(told, ", "); got != "ApplyFailed a, NotTried b, NotTried c" {
		t.Errorf("told %s", got)
	}
}

func TestAPanicIsOneFault(t *testing.T) {
	bad := &fakeSystem{name: plan.Volumes, observe: func() (plan.State, error) { panic("nil map") }}
	good := &fakeSystem{name: plan.Objects, apply: func(_ context.Context, c plan.Change) error {
		if c.ID.Name == "b" {
			panic("index out of range")
		}
		return nil
	}}
	r := &Reconciler{Systems: []System{bad, good}}
	round := r.Round(t.Context(), siteOf("1", "a", "b"))
	if good.names() != "a" || len(round.Plan.Waiting) != 1 || round.Plan.Waiting[0].Code != Panicked {
		t.Errorf("have %q, waiting %v", good.names(), round.Plan.Waiting)
	}
	if round.Err == nil || !strings.Contains(round.Err.Error(), "index out of range") {
		t.Errorf("got %v", round.Err)
	}
}

func TestUnreadSystemIsNotEmptied(t *testing.T) {
	system := &fakeSystem{name: plan.Objects, observe: func() (plan.State, error) { return nil, errors.New("time-out") }}
	r := &Reconciler{Systems: []System{system}}
	round := r.Round(t.Context(), siteOf("1", "a"))
	if len(system.log) > 0 || len(round.Plan.Waiting) != 1 || round.Plan.Waiting[0].Code != Unread {
		t.Errorf("did %v, waiting %v", system.log, round.Plan.Waiting)
	}
}

func TestHeldChangesNothing(t *testing.T) {
	system := &fakeSystem{name: plan.Objects}
	r := &Reconciler{Systems: []System{system}, Hold: func(context.Context, *plan.Site) *plan.Fault {
		return &plan.Fault{Code: Suspended, Cause: "exams"}
	}}
	round, _ := r.Converge(t.Context(), siteOf("1", "a"))
	if len(system.log) > 0 || round.Held == nil || len(round.Plan.Changes) != 1 {
		t.Errorf("did %v, round %+v", system.log, round)
	}
	status := Status(plan.SiteStatus{}, round, time.Now())
	if c := status.Conditions[3]; c.Type != "Suspended" || c.Status != "True" || !strings.Contains(c.Message, "exams") {
		t.Errorf("condition %+v", c)
	}
}

func TestStatusKeepsTransitionTimes(t *testing.T) {
	system := &fakeSystem{name: plan.Objects}
	r := &Reconciler{Systems: []System{system}}
	site := siteOf("1", "a")
	r.Converge(t.Context(), site)
	first := Status(plan.SiteStatus{}, r.Round(t.Context(), site), time.Unix(1000, 0))
	second := Status(first, r.Round(t.Context(), site), time.Unix(2000, 0))
	if first.Commit.Reached != "1" || second.Conditions[0].Status != "True" {
		t.Fatalf("status %+v", second)
	}
	if !second.Conditions[0].LastTransitionTime.Equal(time.Unix(1000, 0)) || !second.LastRound.Equal(time.Unix(2000, 0)) {
		t.Errorf("times %+v", second)
	}
}
