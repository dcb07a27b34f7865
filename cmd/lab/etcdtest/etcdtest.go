// Package etcdtest is an etcd of real processes on loopback, for tests: with TLS both
// ways, as masters have it, at the ports that masters have, on addresses of its own.
package etcdtest

import (
	"bytes"
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
	"syscall"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/build"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/etcd"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Site is an etcd of real processes on loopback, with TLS both ways, as masters
// have it.
type Site struct {
	T       testing.TB
	TLS     *tls.Config // of a client
	Members map[string]*Process
	Cluster *etcd.Cluster

	dir  string
	etcd string // the program
	net  [2]byte
	next byte
}

type Process struct {
	Name, Address, ClientURL, PeerURL string
	Cmd                               *exec.Cmd
	Ended                             chan struct{} // closed once it has

	args []string
	said *bytes.Buffer // read after the end
}

// Start runs an etcd of these machines, and returns when all answer.
func Start(t *testing.T, names ...string) *Site {
	t.Helper()
	if testing.Short() {
		t.Skip("runs etcd")
	}
	bin, err := build.Programs(t.Context(), build.ControlPlane, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	s := New(t)
	s.etcd = filepath.Join(bin, "etcd")
	var initial []string
	for _, name := range names {
		initial = append(initial, s.Plug(name))
	}
	for _, name := range names {
		s.Run(name, "--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-state=new")
	}
	s.Await("all to answer", func(m etcd.Membership) bool { return m.Agree && Answering(m) == len(names) })
	return s
}

// New is a site of no machine, with a CA of its own.
func New(t testing.TB) *Site {
	t.Helper()
	s := &Site{T: t, dir: t.TempDir(), Members: map[string]*Process{}}
	s.certify()
	s.Cluster = etcd.Open(s.TLS, time.Second)
	t.Cleanup(func() { s.Cluster.Close() })
	return s
}

// File is the path of ca.crt, tls.crt or tls.key.
func (s *Site) File(name string) string { return filepath.Join(s.dir, name) }

// certify makes a CA and one certificate, which all present.
func (s *Site) certify() {
	s.T.Helper()
	sign := func(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
		if err != nil {
			s.T.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	newKey := func() (*ecdsa.PrivateKey, []byte) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			s.T.Fatal(err)
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			s.T.Fatal(err)
		}
		return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1)} // from where the kernel has peers call
	for n := range byte(16) {
		addresses = append(addresses, s.address(n))
	}
	caKey, _ := newKey()
	key, keyPEM := newKey()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd-ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kingmaker"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: addresses, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	caPEM, leafPEM := sign(ca, ca, caKey, caKey), sign(leaf, ca, key, caKey)
	for name, content := range map[string][]byte{"ca.crt": caPEM, "tls.crt": leafPEM, "tls.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			s.T.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(leafPEM, keyPEM)
	if err != nil {
		s.T.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(caPEM)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}
}

// address of the nth machine: each site has a network of loopback for itself.
func (s *Site) address(n byte) net.IP {
	for s.net[0] == 0 {
		_, _ = rand.Read(s.net[:])
	}
	return net.IPv4(127, s.net[0], s.net[1], n)
}

// Plug gives a machine its two addresses, and returns its part of the initial cluster.
func (s *Site) Plug(name string) string {
	s.T.Helper()
	s.next++
	p := &Process{Name: name, Address: s.address(s.next).String()}
	p.ClientURL, p.PeerURL = fmt.Sprintf("https://%s:%d", p.Address, etcd.ClientPort), fmt.Sprintf("https://%s:%d", p.Address, etcd.ClientPort+1)
	p.args = []string{"--name=" + name, "--data-dir=" + s.File(name),
		"--listen-client-urls=" + p.ClientURL, "--advertise-client-urls=" + p.ClientURL, "--listen-peer-urls=" + p.PeerURL, "--initial-advertise-peer-urls=" + p.PeerURL,
		"--heartbeat-interval=50", "--election-timeout=500", "--unsafe-no-fsync",
		"--client-cert-auth", "--trusted-ca-file=" + s.File("ca.crt"), "--cert-file=" + s.File("tls.crt"), "--key-file=" + s.File("tls.key"),
		"--peer-client-cert-auth", "--peer-trusted-ca-file=" + s.File("ca.crt"), "--peer-cert-file=" + s.File("tls.crt"), "--peer-key-file=" + s.File("tls.key")}
	s.Members[name] = p
	return name + "=" + p.PeerURL
}

// Run starts a machine's etcd, with arguments that last.
func (s *Site) Run(name string, more ...string) {
	s.T.Helper()
	p := s.Members[name]
	p.args = append(p.args, more...)
	p.Ended, p.said = make(chan struct{}), &bytes.Buffer{}
	p.Cmd = exec.Command(s.etcd, p.args...)
	p.Cmd.Stderr = p.said
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Cmd.Start(); err != nil {
		s.T.Fatal(err)
	}
	cmd, ended := p.Cmd, p.Ended
	go func() { _ = cmd.Wait(); close(ended) }()
	s.T.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
}

// Wipe takes a machine's data away, and what it was last started with.
func (s *Site) Wipe(name string) {
	s.T.Helper()
	if err := os.RemoveAll(s.File(name)); err != nil {
		s.T.Fatal(err)
	}
	p := s.Members[name]
	p.args = slices.DeleteFunc(p.args, func(a string) bool { return strings.HasPrefix(a, "--initial-cluster") })
}

// Kill is a power cut.
func (s *Site) Kill(name string) {
	s.T.Helper()
	p := s.Members[name]
	if err := p.Cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) { // a removed member ends by itself
		s.T.Fatal(err)
	}
	<-p.Ended
}

// Masters are the client URLs of these machines, or of all.
func (s *Site) Masters(names ...string) (urls []string) {
	for name, p := range s.Members {
		if len(names) == 0 || slices.Contains(names, name) {
			urls = append(urls, p.ClientURL)
		}
	}
	slices.Sort(urls)
	return urls
}

func (s *Site) Look() etcd.Membership {
	s.T.Helper()
	m, err := s.Cluster.Look(s.T.Context(), s.Masters())
	if err != nil {
		s.T.Fatal(err)
	}
	return m
}

// Await looks until what is wanted is so.
func (s *Site) Await(what string, ok func(etcd.Membership) bool) (m etcd.Membership) {
	s.T.Helper()
	until := time.Now().Add(30 * time.Second)
	for {
		m, err := s.Cluster.Look(s.T.Context(), s.Masters())
		if err == nil && ok(m) {
			return m
		}
		if time.Now().After(until) {
			for name, p := range s.Members {
				_ = p.Cmd.Process.Kill()
				<-p.Ended
				s.T.Logf("%s: %s", name, tail(p.said.String()))
			}
			s.T.Fatalf("waited in vain for %s: %+v %v", what, m, err)
		}
	}
}

func (s *Site) Member(m etcd.Membership, name string) roles.Member {
	s.T.Helper()
	i := slices.IndexFunc(m.Members, func(e roles.Member) bool {
		return e.Name == name || e.Name == "" && e.PeerURL == s.Members[name].PeerURL
	})
	if i < 0 {
		s.T.Fatalf("%s is no member: %+v", name, m)
	}
	return m.Members[i]
}

// Client writes, and adds members as kubeadm does.
func (s *Site) Client(names ...string) *clientv3.Client {
	s.T.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: s.Masters(names...), TLS: s.TLS, Logger: zap.NewNop()})
	if err != nil {
		s.T.Fatal(err)
	}
	s.T.Cleanup(func() { c.Close() })
	return c
}

// Answering counts the voters that do.
func Answering(m etcd.Membership) (n int) {
	for _, e := range m.Members {
		if e.Answers && !e.Learner {
			n++
		}
	}
	return n
}

// Leader is the name of the member that leads, "" for none.
func Leader(m etcd.Membership) (name string) {
	for _, e := range m.Members {
		if e.Leader {
			name = e.Name
		}
	}
	return name
}

// tail is the end of what a program said.
func tail(text string) string { return text[max(0, len(text)-2000):] }
