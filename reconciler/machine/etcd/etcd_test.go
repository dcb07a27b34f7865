package etcd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/build"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/etcd"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// site is an etcd of real processes on loopback, with TLS both ways, as masters
// have it.
type site struct {
	t       *testing.T
	dir     string
	etcd    string // the program
	tls     *tls.Config
	members map[string]*process
	cluster *etcd.Cluster
}

type process struct {
	name, client, peer string
	args               []string
	cmd                *exec.Cmd
	ended              chan struct{}
	said               *bytes.Buffer // read after the end
}

func start(t *testing.T, names ...string) *site {
	t.Helper()
	if testing.Short() {
		t.Skip("runs etcd")
	}
	bin, err := build.Programs(t.Context(), build.ControlPlane, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: t.TempDir(), etcd: filepath.Join(bin, "etcd"), members: map[string]*process{}}
	s.certify()
	s.cluster = etcd.Open(s.tls, time.Second)
	t.Cleanup(func() { s.cluster.Close() })
	var initial []string
	for _, name := range names {
		initial = append(initial, s.plug(name))
	}
	for _, name := range names {
		s.run(name, "--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-state=new")
	}
	s.await("all to answer", func(m etcd.Membership) bool { return m.Agree && answering(m) == len(names) })
	return s
}

// certify makes a CA and one certificate, which all present.
func (s *site) certify() {
	s.t.Helper()
	sign := func(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
		if err != nil {
			s.t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	newKey := func() (*ecdsa.PrivateKey, []byte) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			s.t.Fatal(err)
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			s.t.Fatal(err)
		}
		return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	}
	caKey, _ := newKey()
	key, keyPEM := newKey()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd-ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kingmaker"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	caPEM, leafPEM := sign(ca, ca, caKey, caKey), sign(leaf, ca, key, caKey)
	for name, content := range map[string][]byte{"ca.crt": caPEM, "tls.crt": leafPEM, "tls.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(leafPEM, keyPEM)
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(caPEM)
	s.tls = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}
}

// plug gives a machine its two addresses, and returns its part of the initial cluster.
func (s *site) plug(name string) string {
	s.t.Helper()
	at := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.t.Fatal(err)
		}
		defer l.Close()
		return "https://" + l.Addr().String()
	}
	p := &process{name: name, client: at(), peer: at()}
	file := func(name string) string { return filepath.Join(s.dir, name) }
	p.args = []string{"--name=" + name, "--data-dir=" + file(name),
		"--listen-client-urls=" + p.client, "--advertise-client-urls=" + p.client, "--listen-peer-urls=" + p.peer, "--initial-advertise-peer-urls=" + p.peer,
		"--heartbeat-interval=50", "--election-timeout=500", "--unsafe-no-fsync",
		"--client-cert-auth", "--trusted-ca-file=" + file("ca.crt"), "--cert-file=" + file("tls.crt"), "--key-file=" + file("tls.key"),
		"--peer-client-cert-auth", "--peer-trusted-ca-file=" + file("ca.crt"), "--peer-cert-file=" + file("tls.crt"), "--peer-key-file=" + file("tls.key")}
	s.members[name] = p
	return name + "=" + p.peer
}

// run starts a machine's etcd, with arguments that last.
func (s *site) run(name string, more ...string) {
	s.t.Helper()
	p := s.members[name]
	p.args = append(p.args, more...)
	p.ended, p.said = make(chan struct{}), &bytes.Buffer{}
	p.cmd = exec.Command(s.etcd, p.args...)
	p.cmd.Stderr = p.said
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, ended := p.cmd, p.ended
	go func() { _ = cmd.Wait(); close(ended) }()
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
}

// kill is a power cut.
func (s *site) kill(name string) {
	s.t.Helper()
	p := s.members[name]
	if err := p.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	<-p.ended
}

// masters are the client URLs of these machines, or of all.
func (s *site) masters(names ...string) (urls []string) {
	for name, p := range s.members {
		if len(names) == 0 || slices.Contains(names, name) {
			urls = append(urls, p.client)
		}
	}
	slices.Sort(urls)
	return urls
}

func (s *site) look() etcd.Membership {
	s.t.Helper()
	m, err := s.cluster.Look(s.t.Context(), s.masters())
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// await looks until what is wanted is so.
func (s *site) await(what string, ok func(etcd.Membership) bool) (m etcd.Membership) {
	s.t.Helper()
	until := time.Now().Add(30 * time.Second)
	for {
		m, err := s.cluster.Look(s.t.Context(), s.masters())
		if err == nil && ok(m) {
			return m
		}
		if time.Now().After(until) {
			s.t.Fatalf("waited in vain for %s: %+v %v", what, m, err)
		}
	}
}

func (s *site) member(m etcd.Membership, name string) roles.Member {
	s.t.Helper()
	i := slices.IndexFunc(m.Members, func(e roles.Member) bool { return e.Name == name || e.Name == "" && e.PeerURL == s.members[name].peer })
	if i < 0 {
		s.t.Fatalf("%s is no member: %+v", name, m)
	}
	return m.Members[i]
}

func answering(m etcd.Membership) (n int) {
	for _, e := range m.Members {
		if e.Answers && !e.Learner {
			n++
		}
	}
	return n
}

func leader(m etcd.Membership) (name string) {
	for _, e := range m.Members {
		if e.Leader {
			name = e.Name
		}
	}
	return name
}

// client writes, and adds members as kubeadm does.
func (s *site) client(names ...string) *clientv3.Client {
	s.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: s.masters(names...), TLS: s.tls, Logger: zap.NewNop()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// TestLook: who is a member and who answers, while machines are killed, hang, and
// come back.
func TestLook(t *testing.T) {
	s := start(t, "pc-01", "pc-02", "pc-03")
	m := s.look()
	if len(m.Members) != 3 || answering(m) != 3 || !m.Agree || leader(m) == "" {
		t.Fatalf("%+v", m)
	}
	for name, p := range s.members {
		if e := s.member(m, name); e.PeerURL != p.peer || e.Learner || e.ID == 0 {
			t.Errorf("%s: %+v", name, e)
		}
	}
	// The others are found through one.
	if one, err := s.cluster.Look(t.Context(), s.masters("pc-02")); err != nil || answering(one) != 3 {
		t.Errorf("through one: %+v %v", one, err)
	}

	victim := leader(m)
	s.kill(victim)
	m = s.await("a leader among the other two", func(m etcd.Membership) bool { return answering(m) == 2 && leader(m) != "" })
	if s.member(m, victim).Answers || leader(m) == victim || !m.Agree {
		t.Errorf("%s is dead: %+v", victim, m)
	}
	s.run(victim)
	s.await(victim+" back", func(m etcd.Membership) bool { return m.Agree && answering(m) == 3 })

	// One that hangs answers no more than a dead one.
	process := s.members["pc-03"].cmd.Process
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.await("pc-03 to hang", func(m etcd.Membership) bool { return answering(m) == 2 && !s.member(m, "pc-03").Answers })
	if err := process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.await("pc-03 back", func(m etcd.Membership) bool { return answering(m) == 3 })
}

// TestQuorumLost: of the last one that is up can be learned who is missing, and
// the planner does nothing.
func TestQuorumLost(t *testing.T) {
	s := start(t, "pc-01", "pc-02", "pc-03")
	s.kill("pc-01")
	s.kill("pc-03")
	m := s.await("one to be left", func(m etcd.Membership) bool { return answering(m) == 1 })
	if !s.member(m, "pc-02").Answers || m.Agree || leader(m) != "" {
		t.Errorf("%+v", m)
	}
	d := roles.Plan(roles.Declared{Masters: 3}, roles.Observed{At: time.Now(), Fresh: true, Members: m.Members}, time.Now(), roles.Memory{})
	if d.Step != nil || len(d.Holds) != 1 || d.Holds[0].Code != roles.QuorumLost || !strings.Contains(d.Holds[0].Cause, "missing: pc-01, pc-03") {
		t.Errorf("%+v %+v", d.Step, d.Holds)
	}
	e := s.member(m, "pc-01")
	if err := s.cluster.Remove(t.Context(), s.masters(), e.ID, e.PeerURL); err == nil || !strings.Contains(err.Error(), "no member is in touch with a quorum") {
		t.Errorf("a removal without quorum: %v", err)
	}
	s.kill("pc-02")
	if m, err := s.cluster.Look(t.Context(), s.masters()); err == nil {
		t.Errorf("all are dead: %+v", m)
	}
}

// TestReplace: the dead leader is struck off and a machine takes its place, while a
// client writes; no acknowledged write is lost, and the old one serves no more.
func TestReplace(t *testing.T) {
	s := start(t, "pc-01", "pc-02", "pc-03")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	writer := s.client()
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

	before := s.look()
	victim := s.member(before, leader(before))
	s.kill(victim.Name)
	m := s.await("a new leader", func(m etcd.Membership) bool { return answering(m) == 2 && leader(m) != "" })

	if err := s.cluster.Remove(t.Context(), s.masters(), victim.ID, "https://127.0.0.1:1"); !errors.Is(err, etcd.ErrOtherMember) {
		t.Errorf("a member of the ID and not of the peer URL: %v", err)
	}
	var alive roles.Member
	for _, e := range m.Members {
		if e.Answers {
			alive = e
		}
	}
	if err := s.cluster.Remove(t.Context(), s.masters(), alive.ID, alive.PeerURL); err == nil {
		t.Errorf("etcd lets one of two that live be removed")
	}
	for range 2 { // done twice it is done once
		if err := s.cluster.Remove(t.Context(), s.masters(), victim.ID, victim.PeerURL); err != nil {
			t.Fatal(err)
		}
	}
	m = s.await("two members", func(m etcd.Membership) bool { return len(m.Members) == 2 && m.Agree })

	// The heir joins as kubeadm has it: as a learner, and then as a voter.
	var initial []string
	for _, e := range m.Members {
		initial = append(initial, e.Name+"="+e.PeerURL)
	}
	initial = append(initial, s.plug("pc-04"))
	admin := s.client(m.Members[0].Name, m.Members[1].Name)
	added, err := admin.MemberAddAsLearner(t.Context(), []string{s.members["pc-04"].peer})
	if err != nil {
		t.Fatal(err)
	}
	if e := s.member(s.look(), "pc-04"); !e.Learner || e.Name != "" || e.Answers {
		t.Errorf("it has not started: %+v", e)
	}
	s.run("pc-04", "--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-state=existing")
	s.await("the learner", func(m etcd.Membership) bool {
		e := s.member(m, "pc-04")
		return e.Learner && e.Name == "pc-04" && e.Answers
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		if _, err = admin.MemberPromote(t.Context(), added.Member.ID); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	m = s.await("three voters", func(m etcd.Membership) bool { return m.Agree && answering(m) == 3 })
	if _, ok := names(m)[victim.Name]; ok {
		t.Errorf("%+v", m)
	}

	// The old one comes back with its data, and finds that it is none of them.
	s.run(victim.Name)
	select {
	case <-s.members[victim.Name].ended:
	case <-time.After(30 * time.Second):
		t.Errorf("%s was removed, and its etcd runs", victim.Name)
	}

	stop()
	writing.Wait()
	if len(acknowledged) == 0 {
		t.Fatal("nothing was written")
	}
	have, err := s.client("pc-04").Get(t.Context(), "write-", clientv3.WithPrefix(), clientv3.WithKeysOnly())
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
	s := start(t, "pc-01", "pc-02", "pc-03")
	m := s.look()
	for _, e := range m.Members {
		for range 2 {
			if err := s.cluster.MoveLeader(t.Context(), s.masters(), e.ID); err != nil {
				t.Fatal(err)
			}
			if now := s.await("a leader", func(m etcd.Membership) bool { return leader(m) != "" }); leader(now) != e.Name {
				t.Errorf("%s leads, and %s was to", leader(now), e.Name)
			}
		}
	}
	if err := s.cluster.MoveLeader(t.Context(), s.masters(), 1); err == nil {
		t.Error("to a member that there is not")
	}
}

// TestTLS: a certificate of another CA is shown nothing.
func TestTLS(t *testing.T) {
	s := start(t, "pc-01")
	other := &site{t: t, dir: t.TempDir()}
	other.certify()
	for name, config := range map[string]*tls.Config{
		"a client of another CA":       {Certificates: other.tls.Certificates, RootCAs: s.tls.RootCAs},
		"a server of another CA":       {Certificates: s.tls.Certificates, RootCAs: other.tls.RootCAs},
		"a client without certificate": {RootCAs: s.tls.RootCAs},
	} {
		c := etcd.Open(config, time.Second)
		if m, err := c.Look(t.Context(), s.masters()); err == nil {
			t.Errorf("%s sees %+v", name, m)
		}
		c.Close()
	}
}
