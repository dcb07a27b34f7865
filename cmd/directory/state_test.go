package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

func (s *site) password() plan.Secret { return plan.NewSecret("correct horse battery staple") }

func writeFile(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// TestClaim: one machine makes the directory, once.
func TestClaim(t *testing.T) {
	now := time.Date(2026, 7, 28, 12, 0, 0, 0, time.UTC)
	var s State
	if !s.claim("pc-01", now) || s.ID == "" {
		t.Fatalf("the first may not: %+v", s)
	}
	first := s.ID
	if s.claim("pc-02", now.Add(time.Minute)) {
		t.Error("a second may too")
	}
	if !s.claim("pc-01", now.Add(time.Hour)) || s.ID != first {
		t.Error("it may not go on after its own restart")
	}
	if !s.claim("pc-02", now.Add(time.Hour)) || s.ID == first {
		t.Error("a dead one holds all others up")
	}
	if s.founded("pc-01", first) == nil {
		t.Error("the one that was given up serves")
	}
	if err := s.founded("pc-02", s.ID); err != nil {
		t.Fatal(err)
	}
	if s.claim("pc-03", now.Add(24*time.Hour)) {
		t.Error("it is made twice")
	}
	s.Servers = maxServers
	if _, err := s.server(); err == nil {
		t.Error("a server ID that LDAP does not have")
	}
}

// TestStore: the cluster's store, with many who want the same at once.
func TestStore(t *testing.T) {
	cluster := fake.NewClientset()
	core := cluster.CoreV1()
	k := kube{core.ConfigMaps("x"), core.Secrets("x"), cluster.DiscoveryV1().EndpointSlices("x")}
	var work sync.WaitGroup
	var mu sync.Mutex
	ids, passwords := map[string]bool{}, map[string]bool{}
	for range 8 {
		work.Go(func() {
			s, err := k.Update(t.Context(), func(s *State) error { s.claim("pc-01", time.Now()); return nil })
			if err != nil {
				t.Error(err)
			}
			shared, err := readSecrets(t.Context(), k, base)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[s.ID], passwords[shared.passwords[slapd.Daemon].Value()] = true, true
		})
	}
	work.Wait()
	if len(ids) != 1 || len(passwords) != 1 {
		t.Errorf("%d directories, %d passwords", len(ids), len(passwords))
	}
	want, err := k.Update(t.Context(), func(s *State) error { s.Servers = 7; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if have, err := k.State(t.Context()); err != nil || have != want {
		t.Errorf("%+v, %v; want %+v", have, err, want)
	}
	for _, address := range []string{"10.0.0.1", "10.0.0.1", "10.0.0.2"} {
		if err := k.Serve(t.Context(), address); err != nil {
			t.Fatal(err)
		}
		slice, err := cluster.DiscoveryV1().EndpointSlices("x").Get(t.Context(), serviceName, metav1.GetOptions{})
		if err != nil || len(slice.Endpoints) != 1 || slice.Endpoints[0].Addresses[0] != address {
			t.Errorf("%s: %v, %v", address, slice, err)
		}
	}
	public, err := core.ConfigMaps("x").Get(t.Context(), authorityName, metav1.GetOptions{})
	if err != nil || !strings.HasPrefix(public.Data["ca.crt"], "-----BEGIN CERTIFICATE") || strings.Contains(public.Data["ca.crt"], "KEY") {
		t.Errorf("published: %v, %v", public, err)
	}
	// A Secret that somebody emptied is not a password.
	if _, err := core.Secrets("x").Update(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "directory-portal"}}, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecrets(t.Context(), k, base); err == nil || !strings.Contains(err.Error(), "directory-portal") {
		t.Error(err)
	}
}

// TestOffice: two machines with clocks of their own, and never two writers.
func TestOffice(t *testing.T) {
	now := time.Date(2026, 7, 28, 12, 0, 0, 0, time.UTC)
	a, b := &office{machine: "pc-01", lease: 30 * time.Second}, &office{machine: "pc-02", lease: 30 * time.Second}
	s := State{Writer: "pc-01", Beat: 4} // of before its restart
	a.see(s, now)
	b.see(s, now)
	if a.held(now) {
		t.Error("holds what it has not counted itself")
	}
	count := func(o *office) bool {
		if !o.wants(s, true, now) {
			return false
		}
		s.Writer, s.Beat = o.machine, s.Beat+1
		o.counted(s, now, now)
		return true
	}
	if count(b) || !count(a) || !a.held(now) || b.held(now) {
		t.Fatalf("%+v, %+v", a, b)
	}
	b.see(s, now)
	taken := time.Duration(0)
	for d := time.Duration(0); d < time.Minute && taken == 0; d += time.Second { // a is cut off
		now = now.Add(time.Second)
		b.see(s, now)
		if count(b) {
			taken = d
		}
		if a.held(now) && b.held(now) {
			t.Fatalf("two writers after %s", d)
		}
	}
	if taken < 29*time.Second || taken > 32*time.Second {
		t.Errorf("taken over after %s", taken)
	}
	a.see(s, now)
	if a.held(now) || a.wants(s, true, now) || b.wants(s, false, now) {
		t.Errorf("%+v, %+v", a, b)
	}
	_ = b.leave(&s)
	if !count(a) || !a.held(now) {
		t.Errorf("nobody takes what was left: %+v", a)
	}
}
