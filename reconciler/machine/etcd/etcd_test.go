package etcd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/etcdtest"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/etcd"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestLook: who is a member and who answers, while machines are killed, hang, and
// come back.
func TestLook(t *testing.T) {
	s := etcdtest.Start(t, "pc-01", "pc-02", "pc-03")
	m := s.Look()
	if len(m.Members) != 3 || etcdtest.Answering(m) != 3 || !m.Agree || etcdtest.Leader(m) == "" {
		t.Fatalf("%+v", m)
	}
	for name, p := range s.Members {
		if e := s.Member(m, name); e.PeerURL != p.PeerURL || e.Learner || e.ID == 0 {
			t.Errorf("%s: %+v", name, e)
		}
	}
	// The others are found through one.
	if one, err := s.Cluster.Look(t.Context(), s.Masters("pc-02")); err != nil || etcdtest.Answering(one) != 3 {
		t.Errorf("through one: %+v %v", one, err)
	}

	victim := etcdtest.Leader(m)
	s.Kill(victim)
	m = s.Await("a leader among the other two", func(m etcd.Membership) bool { return etcdtest.Answering(m) == 2 && etcdtest.Leader(m) != "" })
	if s.Member(m, victim).Answers || etcdtest.Leader(m) == victim || !m.Agree {
		t.Errorf("%s is dead: %+v", victim, m)
	}
	s.Run(victim)
	s.Await(victim+" back", func(m etcd.Membership) bool { return m.Agree && etcdtest.Answering(m) == 3 })

	// One that hangs answers no more than a dead one.
	process := s.Members["pc-03"].Cmd.Process
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.Await("pc-03 to hang", func(m etcd.Membership) bool { return etcdtest.Answering(m) == 2 && !s.Member(m, "pc-03").Answers })
	if err := process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.Await("pc-03 back", func(m etcd.Membership) bool { return etcdtest.Answering(m) == 3 })
}

// TestQuorumLost: of the last one that is up can be learned who is missing, and
// the planner does nothing.
func TestQuorumLost(t *testing.T) {
	s := etcdtest.Start(t, "pc-01", "pc-02", "pc-03")
	s.Kill("pc-01")
	s.Kill("pc-03")
	m := s.Await("one to be left", func(m etcd.Membership) bool { return etcdtest.Answering(m) == 1 })
	if !s.Member(m, "pc-02").Answers || m.Agree || etcdtest.Leader(m) != "" {
		t.Errorf("%+v", m)
	}
	d := roles.Plan(roles.Declared{Masters: 3}, roles.Observed{At: time.Now(), Fresh: true, Members: m.Members}, time.Now(), roles.Memory{})
	if d.Step != nil || len(d.Holds) != 1 || d.Holds[0].Code != roles.QuorumLost || !strings.Contains(d.Holds[0].Cause, "missing: pc-01, pc-03") {
		t.Errorf("%+v %+v", d.Step, d.Holds)
	}
	e := s.Member(m, "pc-01")
	if err := s.Cluster.Remove(t.Context(), s.Masters(), e.ID, e.PeerURL); err == nil || !strings.Contains(err.Error(), "no member is in touch with a quorum") {
		t.Errorf("a removal without quorum: %v", err)
	}
	s.Kill("pc-02")
	if m, err := s.Cluster.Look(t.Context(), s.Masters()); err == nil {
		t.Errorf("all are dead: %+v", m)
	}
}

// TestReplace: the dead leader is struck off and a machine takes its place, while a
// client writes; no acknowledged write is lost, and the old one serves no more.
func TestReplace(t *testing.T) {
	s := etcdtest.Start(t, "pc-01", "pc-02", "pc-03")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	writer := s.Client()
	var acknowledged []string
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			limited, cancel := context.WithTimeout(ctx, 2*time.Second)
			key := fmt.Sprintf("write-%05d", i)
			if _, err := writer.Put(limited, key, "x"); err == nil {
				acknowledged = append(acknowledged, key)
			}
			cancel()
		}
	})

	before := s.Look()
	victim := s.Member(before, etcdtest.Leader(before))
	s.Kill(victim.Name)
	m := s.Await("a new leader", func(m etcd.Membership) bool { return etcdtest.Answering(m) == 2 && etcdtest.Leader(m) != "" })

	if err := s.Cluster.Remove(t.Context(), s.Masters(), victim.ID, "https://127.0.0.1:1"); !errors.Is(err, etcd.ErrOtherMember) {
		t.Errorf("a member of the ID and not of the peer URL: %v", err)
	}
	var alive roles.Member
	for _, e := range m.Members {
		if e.Answers {
			alive = e
		}
	}
	if err := s.Cluster.Remove(t.Context(), s.Masters(), alive.ID, alive.PeerURL); err == nil {
		t.Errorf("etcd lets one of two that live be removed")
	}
	for range 2 { // done twice it is done once
		if err := s.Cluster.Remove(t.Context(), s.Masters(), victim.ID, victim.PeerURL); err != nil {
			t.Fatal(err)
		}
	}
	m = s.Await("two members", func(m etcd.Membership) bool { return len(m.Members) == 2 && m.Agree })

	// The heir joins as kubeadm has it: as a learner, and then as a voter.
	var initial []string
	for _, e := range m.Members {
		initial = append(initial, e.Name+"="+e.PeerURL)
	}
	initial = append(initial, s.Plug("pc-04"))
	admin := s.Client(m.Members[0].Name, m.Members[1].Name)
	added, err := admin.MemberAddAsLearner(t.Context(), []string{s.Members["pc-04"].PeerURL})
	if err != nil {
		t.Fatal(err)
	}
	if e := s.Member(s.Look(), "pc-04"); !e.Learner || e.Name != "" || e.Answers {
		t.Errorf("it has not started: %+v", e)
	}
	s.Run("pc-04", "--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-state=existing")
	s.Await("the learner", func(m etcd.Membership) bool {
		e := s.Member(m, "pc-04")
		return e.Learner && e.Name == "pc-04" && e.Answers
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		if _, err = admin.MemberPromote(t.Context(), added.Member.ID); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	m = s.Await("three voters", func(m etcd.Membership) bool { return m.Agree && etcdtest.Answering(m) == 3 })
	if _, ok := names(m)[victim.Name]; ok {
		t.Errorf("%+v", m)
	}

	// The old one comes back with its data, and finds that it is none of them.
	s.Run(victim.Name)
	select {
	case <-s.Members[victim.Name].Ended:
	case <-time.After(30 * time.Second):
		t.Errorf("%s was removed, and its etcd runs", victim.Name)
	}

	stop()
	writing.Wait()
	if len(acknowledged) == 0 {
		t.Fatal("nothing was written")
	}
	have, err := s.Client("pc-04").Get(t.Context(), "write-", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]bool{}
	for _, kv := range have.Kvs {
		stored[string(kv.Key)] = true
	}
	for _, key := range acknowledged {
		if !stored[key] {
			t.Errorf("%s was acknowledged, and is lost", key)
		}
	}
	t.Logf("%d acknowledged writes, none lost", len(acknowledged))
}

func names(m etcd.Membership) map[string]roles.Member {
	all := map[string]roles.Member{}
	for _, e := range m.Members {
		all[e.Name] = e
	}
	return all
}

// TestMoveLeader: to whom it is given, and done twice it is done once.
func TestMoveLeader(t *testing.T) {
	s := etcdtest.Start(t, "pc-01", "pc-02", "pc-03")
	m := s.Look()
	for _, e := range m.Members {
		for range 2 {
			if err := s.Cluster.MoveLeader(t.Context(), s.Masters(), e.ID); err != nil {
				t.Fatal(err)
			}
			if now := s.Await("a leader", func(m etcd.Membership) bool { return etcdtest.Leader(m) != "" }); etcdtest.Leader(now) != e.Name {
				t.Errorf("%s leads, and %s was to", etcdtest.Leader(now), e.Name)
			}
		}
	}
	if err := s.Cluster.MoveLeader(t.Context(), s.Masters(), 1); err == nil {
		t.Error("to a member that there is not")
	}
}

// TestTLS: a certificate of another CA is shown nothing.
func TestTLS(t *testing.T) {
	s := etcdtest.Start(t, "pc-01")
	other := etcdtest.New(t)
	for name, config := range map[string]*tls.Config{
		"a client of another CA":       {Certificates: other.TLS.Certificates, RootCAs: s.TLS.RootCAs},
		"a server of another CA":       {Certificates: s.TLS.Certificates, RootCAs: other.TLS.RootCAs},
		"a client without certificate": {RootCAs: s.TLS.RootCAs},
	} {
		c := etcd.Open(config, time.Second)
		if m, err := c.Look(t.Context(), s.Masters()); err == nil {
			t.Errorf("%s sees %+v", name, m)
		}
		c.Close()
	}
}
