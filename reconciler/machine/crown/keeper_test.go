package crown_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestKeeper is the life of a site on real etcd processes: it grows, loses masters,
// and shrinks, and no acknowledged write is lost.
func TestKeeper(t *testing.T) {
	r := newRoom(t, "pc-01", "pc-02", "pc-03", "pc-04", "pc-05")
	lost := r.write()
	stop := r.run()
	declare := func(n int, after string) {
		r.apply("sites", "lab", map[string]any{"masters": n, "failover": map[string]any{"after": after, "crownsPerDay": 100}})
	}

	declare(3, "1m")
	s := r.await("1 -> 3 masters", func(s state) bool { return s.settled(3) })
	grown := len(s.crowns)
	if grown != 2 {
		t.Errorf("%d crowns for two masters: %+v", grown, s.crowns)
	}
	r.noKeys()

	// The first master dies; an heir takes over, and it comes back as a worker.
	r.kill("pc-01")
	s = r.await("an heir of pc-01", func(s state) bool { return s.settled(3) && len(s.crowns) == grown+1 })
	if slices.Contains(s.masters, "pc-01") || last(s).Outcome != roles.Done || last(s).Victim != "pc-01" {
		t.Errorf("%v %+v", s.masters, last(s))
	}
	r.start("pc-01")
	r.awaitWorker("pc-01")
	r.noKeys()

	// One that comes back in the middle stays.
	victim := s.masters[0]
	declare(3, "3m")
	r.kill(victim)
	r.await("a crown for "+victim, func(s state) bool { return len(s.crowns) == grown+2 })
	r.start(victim)
	s = r.await("it to be cancelled", func(s state) bool { return s.settled(3) && len(s.crowns) == grown+2 })
	if !slices.Contains(s.masters, victim) || last(s).Outcome != roles.Cancelled {
		t.Errorf("%s came back: %v %+v", victim, s.masters, last(s))
	}
	r.awaitWorker(last(s).Heir)

	declare(5, "1m")
	r.await("3 -> 5 masters", func(s state) bool { return s.settled(5) })
	declare(3, "1m")
	s = r.await("5 -> 3 masters", func(s state) bool { return s.settled(3) })
	stop()

	// Two daemons that both believe to lead: of each record one is stored.
	stopA, stopB := r.run(), r.run()
	number, victim := len(s.crowns), s.masters[1]
	r.kill(victim)
	s = r.await("an heir of "+victim, func(s state) bool { return s.settled(3) && len(s.crowns) > number })
	stopA()
	stopB()
	if slices.Contains(s.masters, victim) {
		t.Errorf("%s is dead: %v", victim, s.masters)
	}
	if len(s.crowns) != number+1 {
		t.Errorf("two daemons made %d crowns of one death", len(s.crowns)-number)
	}
	steps := map[string]bool{}
	for _, e := range last(s).Journal {
		if step := string(e.Step) + " " + e.Machine; steps[step] {
			t.Errorf("%s is in the journal twice: %+v", step, last(s).Journal)
		} else {
			steps[step] = true
		}
	}
	lost()
}

// TestKilled: a daemon that is killed after each of its writes leaves nothing that
// the next one does not go on from.
func TestKilled(t *testing.T) {
	r := newRoom(t, "pc-01", "pc-02", "pc-03", "pc-04")
	lost := r.write()
	stop := r.run()
	r.apply("sites", "lab", map[string]any{"masters": 3, "failover": map[string]any{"after": "1m", "crownsPerDay": 100}})
	s := r.await("1 -> 3 masters", func(s state) bool { return s.settled(3) })
	stop()
	number, victim := len(s.crowns), s.masters[1]
	r.kill(victim)
	daemons := 0
	deadline := time.Now().Add(4 * time.Minute)
	for {
		if s, err := r.state(); err == nil && s.settled(3) && len(s.crowns) > number {
			if o := last(s).Outcome; o != roles.Done || slices.Contains(s.masters, victim) {
				t.Errorf("it ended as %s: %+v", o, last(s))
			}
			break
		}
		if time.Now().After(deadline) {
			s, err := r.state()
			t.Fatalf("waited in vain: %+v %v", s, err)
		}
		daemons++
		r.oneWrite()
	}
	t.Logf("%d daemons, each killed after its first write", daemons)
	if daemons < 15 {
		t.Errorf("%d daemons are fewer than the steps of a crown", daemons)
	}
	r.noKeys()
	r.start(victim)
	stop = r.run()
	r.awaitWorker(victim)
	stop()
	lost()
}

// oneWrite is the life of a daemon that is killed by its first write, after that
// has reached the API server; or for want of one.
func (r *room) oneWrite() {
	r.Helper()
	ctx, kill := context.WithTimeout(r.Context(), 12*time.Second)
	defer kill()
	var written atomic.Bool
	k := r.keeper(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			if written.Load() {
				return nil, errors.New("killed")
			}
			response, err := next.RoundTrip(request)
			if request.Method != http.MethodGet && err == nil && response.StatusCode < 300 {
				written.Store(true)
				kill()
			}
			return response, err
		})
	})
	k.Run(ctx)
	k.Close()
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func last(s state) roles.Crown { return s.crowns[len(s.crowns)-1] }

// awaitWorker waits until a machine is a worker like others.
func (r *room) awaitWorker(name string) {
	r.Helper()
	r.await(name+" to be a worker", func(s state) bool {
		n, err := r.core.Nodes().Get(r.Context(), name, metav1.GetOptions{})
		p := r.pcs[name]
		p.mu.Lock()
		defer p.mu.Unlock()
		return err == nil && !p.member && !p.blank && !n.Spec.Unschedulable && !slices.Contains(s.masters, name)
	})
}

// noKeys: with what is left by a crown nobody becomes root of the site.
func (r *room) noKeys() {
	r.Helper()
	list, err := r.core.Secrets("kube-system").List(r.Context(), metav1.ListOptions{})
	if err != nil {
		r.Fatal(err)
	}
	for _, s := range list.Items {
		if s.Name == "kubeadm-certs" || len(s.Data["certificateKey"]) > 0 {
			r.Errorf("%s is left", s.Name)
		}
	}
}

// write writes into etcd without a pause, until the returned function has counted
// what became of it.
func (r *room) write() (lost func()) {
	client, err := clientv3.New(clientv3.Config{Endpoints: r.etcd.Masters(), TLS: r.etcd.TLS, Logger: zap.NewNop()})
	if err != nil {
		r.Fatal(err)
	}
	ctx, stop := context.WithCancel(r.Context())
	var acknowledged []string
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			limited, cancel := context.WithTimeout(ctx, 2*time.Second)
			key := fmt.Sprintf("write-%06d", i)
			if _, err := client.Put(limited, key, "x"); err == nil {
				acknowledged = append(acknowledged, key)
			}
			cancel()
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond): // the machine has other things to do
			}
		}
	})
	return func() {
		r.Helper()
		stop()
		writing.Wait()
		defer client.Close()
		have, err := client.Get(r.Context(), "write-", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			r.Fatal(err)
		}
		stored := map[string]bool{}
		for _, kv := range have.Kvs {
			stored[string(kv.Key)] = true
		}
		for _, key := range acknowledged {
			if !stored[key] {
				r.Errorf("%s was acknowledged, and is lost", key)
			}
		}
		if len(acknowledged) == 0 {
			r.Error("nothing was written")
		}
		r.Logf("%d acknowledged writes, none lost", len(acknowledged))
	}
}
