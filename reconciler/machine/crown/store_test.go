package crown_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/crown"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// start is a real API server that knows the kind.
func start(t *testing.T) dynamic.Interface {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plane.Stop() })
	for _, args := range [][]string{{"apply", "-f", "../../../manifests/base/crd-crowns.yaml"}, {"wait", "--for=condition=Established", "crd/crowns.kingmaker.dev"}} {
		cmd := exec.CommandContext(t.Context(), plane.Bin("kubectl"), args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+plane.Kubeconfig)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestStore(t *testing.T) {
	client := start(t)
	t.Run("a life, with a daemon killed after each write", func(t *testing.T) { testLife(t, client) })
	t.Run("of two daemons one acts", func(t *testing.T) { testTwo(t, client) })
	t.Run("what cannot be read stops everything", func(t *testing.T) { testUnreadable(t, client) })
	t.Run("prune", func(t *testing.T) { testPrune(t, client) })
}

func replacement(number int) *roles.Crown {
	return &roles.Crown{Number: number, Kind: roles.Replace, Victim: "pc-02", Member: 1<<64 - 1, PeerURL: "https://10.0.0.2:2380", Dead: true, Heir: "pc-07",
		Boot: "b1", Why: "retire pc-02 (dead 12m): heir pc-07", Begun: time.Date(2026, 11, 26, 8, 0, 0, 123456789, time.UTC), Step: roles.Choose, Machine: "pc-07"}
}

func list(t *testing.T, s *crown.Store) []roles.Crown {
	t.Helper()
	all, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// testLife: each step is stored, and read by a daemon that knows nothing else.
func testLife(t *testing.T, client dynamic.Interface) {
	c := replacement(1)
	for _, step := range []roles.Action{roles.Choose, roles.Cordon, roles.Drain, roles.RemoveMember, roles.Close} {
		s := &crown.Store{Client: client}
		before := list(t, s)
		if step != roles.Choose && (len(before) != 1 || !reflect.DeepEqual(before[0], *c)) {
			t.Fatalf("before %s:\n%+v\n%+v", step, before, c)
		}
		c.Step, c.Since = step, time.Now().UTC()
		c.Journal = append(c.Journal, roles.Entry{At: c.Since, Step: step, Machine: "pc-07", Note: "so \"it\" is: ü"})
		if step == roles.Close {
			c.Outcome, c.Ended = roles.Done, c.Since
		}
		if err := s.Put(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		// What it wrote itself it may write again without reading.
		if err := s.Put(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

// testTwo: two daemons read the same and decide at once, a new crown and a step of
// one that is open.
func testTwo(t *testing.T, client dynamic.Interface) {
	for round, change := range []func(c *roles.Crown){
		func(*roles.Crown) {},
		func(c *roles.Crown) { c.Step = roles.Cordon },
		func(c *roles.Crown) { c.Undo = roles.Cancelled },
	} {
		stores := []*crown.Store{{Client: client}, {Client: client}, {Client: client}}
		errs := make([]error, len(stores))
		for _, s := range stores {
			list(t, s)
		}
		var all sync.WaitGroup
		for i, s := range stores {
			all.Go(func() {
				c := replacement(2)
				change(c)
				c.Attempts = i // they do not decide the same
				errs[i] = s.Put(t.Context(), c)
			})
		}
		all.Wait()
		stored := 0
		for i, err := range errs {
			switch {
			case err == nil:
				stored++
				if got := list(t, &crown.Store{Client: client}); got[1].Attempts != i {
					t.Errorf("round %d: %+v is stored, and daemon %d was told that it stored its own", round, got[1], i)
				}
			case !errors.Is(err, crown.ErrLate):
				t.Error(err)
			}
		}
		if stored != 1 {
			t.Errorf("round %d: %d daemons stored a record: %v", round, stored, errs)
		}
	}
	// A record that was deleted is not made again by who once read it.
	s := &crown.Store{Client: client}
	list(t, s)
	if err := client.Resource(crown.Resource()).Delete(t.Context(), "crown-2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), replacement(2)); !errors.Is(err, crown.ErrLate) {
		t.Errorf("a deleted record: %v", err)
	}
}

func testUnreadable(t *testing.T, client dynamic.Interface) {
	s := &crown.Store{Client: client}
	if err := s.Put(t.Context(), &roles.Crown{Number: 3, Kind: roles.Replace, Heir: "pc-07"}); err == nil || errors.Is(err, crown.ErrLate) {
		t.Errorf("a record without a victim is stored: %v", err)
	}
	list(t, s)
	if err := s.Put(t.Context(), replacement(3)); err != nil {
		t.Fatal(err)
	}
	patch := func(body string) {
		t.Helper()
		if _, err := client.Resource(crown.Resource()).Patch(t.Context(), "crown-3", types.MergePatchType, []byte(body), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch(`{"spec":{"number":4}}`)
	if all, err := s.List(t.Context()); err == nil || !strings.Contains(err.Error(), "crown-3") {
		t.Errorf("a record of two numbers: %+v %v", all, err)
	}
	patch(`{"spec":{"number":3,"victim":null}}`)
	if all, err := s.List(t.Context()); err == nil || !strings.Contains(err.Error(), "delete it") {
		t.Errorf("a record without a victim: %+v %v", all, err)
	}
	if err := client.Resource(crown.Resource()).Delete(context.WithoutCancel(t.Context()), "crown-3", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func testPrune(t *testing.T, client dynamic.Interface) {
	s := &crown.Store{Client: client}
	list(t, s)
	now := time.Now()
	for n, c := range []*roles.Crown{replacement(10), replacement(11), replacement(12)} {
		c.Outcome, c.Ended = roles.Done, now.Add(-time.Duration(40-n)*24*time.Hour)
		if err := s.Put(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Prune(t.Context(), list(t, s), now); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list(t, s) {
		names = append(names, c.Name())
	}
	if got := strings.Join(names, " "); got != "crown-1 crown-12" {
		t.Errorf("left are %s", got)
	}
}
