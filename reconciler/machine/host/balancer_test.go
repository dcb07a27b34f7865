package host_test

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
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
)

func masters(addresses ...string) (list []netip.AddrPort) {
	for _, a := range addresses {
		list = append(list, netip.MustParseAddrPort(a))
	}
	return list
}

func TestBalancerConfig(t *testing.T) {
	three := masters("10.20.1.13:6443", "10.20.1.9:6443", "10.20.1.11:6443")
	for name, got := range map[string][]byte{
		"none.cfg":  host.BalancerConfig("", nil),
		"three.cfg": host.BalancerConfig("room-1", three),
		"ipv6.cfg":  host.BalancerConfig("room-1", masters("[fd00::11]:6443")),
	} {
		golden(t, "balancer-"+name, got)
	}
	slices.Reverse(three)
	if !bytes.Equal(host.BalancerConfig("room-1", three), host.BalancerConfig("room-1", append(three, three[0]))) {
		t.Error("order or a double matters")
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is otherwise (UPDATE_GOLDEN=1 writes it):\n%s", file, got)
	}
}

// installed is a machine after noded install.
func installed(t *testing.T) *hosttest.Debian {
	t.Helper()
	m := hosttest.NewDebian(t)
	o := options(t, m, hosttest.Bundle(t))
	o.Disk = ""
	if err := host.Do(t.Context(), host.Install(m.Host, o), quiet); err != nil {
		t.Fatal(err)
	}
	m.Runner.Forget()
	return m
}

func TestSetMasters(t *testing.T) {
	m := installed(t)
	set := func(addresses ...string) bool {
		t.Helper()
		m.Runner.Forget()
		changed, err := host.SetMasters(t.Context(), m.Host, "room-1", masters(addresses...))
		if err != nil {
			t.Fatal(err)
		}
		return changed
	}
	if set() {
		t.Error("none after none is a change")
	}
	if !set("10.20.1.11:6443", "10.20.1.12:6443") {
		t.Error("the first is no change")
	}
	want := []string{"haproxy -c -q -f " + m.Path("/etc/kingmaker/balancer.cfg.new"), "systemctl reload-or-restart kingmaker-balancer.service"}
	if got := m.Runner.Lines(); !slices.Equal(got, want) {
		t.Errorf("did %q", got)
	}
	if set("10.20.1.12:6443", "10.20.1.11:6443") || len(m.Runner.Lines()) > 0 {
		t.Errorf("the same again did %q", m.Runner.Lines())
	}
	if got, err := host.Masters(m.Host); err != nil || !slices.Equal(got, masters("10.20.1.11:6443", "10.20.1.12:6443")) {
		t.Errorf("the last good list is %v, %v", got, err)
	}

	if _, err := host.SetMasters(t.Context(), m.Host, "room-1", nil); err == nil || !strings.Contains(err.Error(), "the list is empty; it goes on with [10.20.1.11:6443 10.20.1.12:6443]") {
		t.Errorf("an empty list: %v", err)
	}
	good := m.Get(host.BalancerFile)
	if _, err := host.SetMasters(t.Context(), m.Host, "nonsense", masters("10.20.1.13:6443")); err == nil || !strings.Contains(err.Error(), "the last good list stays") {
		t.Errorf("one that haproxy does not like: %v", err)
	}
	if m.Get(host.BalancerFile) != good || m.Exists("/etc/kingmaker/balancer.cfg.new") {
		t.Error("something of it stayed")
	}

	// A death between writing and reading: the next time it is read.
	m.Runner.Before = func(_ int, line string) error {
		if strings.HasPrefix(line, "systemctl") {
			return context.Canceled
		}
		return nil
	}
	if _, err := host.SetMasters(t.Context(), m.Host, "room-1", masters("10.20.1.13:6443")); err == nil {
		t.Error("no error")
	}
	m.Runner.Before = nil
	if !set("10.20.1.13:6443") || !slices.Equal(m.Runner.Lines(), want[1:]) {
		t.Errorf("afterwards: %q", m.Runner.Lines())
	}

	// Another site, by chance with a master of the same address.
	m.Put(t, host.CAFile, "another CA")
	if !set("10.20.1.13:6443") || !slices.Equal(m.Runner.Lines(), want[1:]) {
		t.Errorf("with another CA: %q", m.Runner.Lines())
	}

	// The list outlives another installation, and ends with the membership.
	steps := host.Install(m.Host, host.Options{Bundle: hosttest.Bundle(t)})
	balancer := steps[slices.IndexFunc(steps, func(s host.Step) bool { return s.Name == "balancer" })]
	if err := balancer.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := host.Masters(m.Host); len(got) != 1 {
		t.Errorf("after another installation: %v", got)
	}
	if err := host.ForgetMasters(t.Context(), m.Host); err != nil {
		t.Fatal(err)
	}
	if got, err := host.Masters(m.Host); len(got) > 0 || err != nil {
		t.Errorf("forgotten: %v, %v", got, err)
	}
}

// The real haproxy with the real configuration but for port, user and CA's file:
// it takes only masters that are ready and prove that they are the site's, and
// leaves one that is dead within five seconds, with all who were connected.
func TestBalancer(t *testing.T) {
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		if _, err := os.Stat("/usr/sbin/haproxy"); err != nil {
			t.Skip("no haproxy here")
		}
		haproxy = "/usr/sbin/haproxy"
	}
	good, other := newCA(t), newCA(t)
	one, two := newMaster(t, good, "api.room-1.internal"), newMaster(t, good, "api.room-1.internal")
	stranger := newMaster(t, other, "api.room-1.internal")
	neighbour := newMaster(t, good, "api.room-2.internal")
	unready := newMaster(t, good, "api.room-1.internal")
	unready.ready.Store(false)

	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, good.pem, 0o644); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	config := string(host.BalancerConfig("room-1", []netip.AddrPort{one.address, two.address, stranger.address, neighbour.address, unready.address}))
	for old, replacement := range map[string]string{
		"bind 127.0.0.1:7443": "bind " + address, host.CAFile: ca,
		"    user haproxy\n": "", "    group haproxy\n": "",
	} {
		if !strings.Contains(config, old) {
			t.Fatalf("no %q in\n%s", old, config)
		}
		config = strings.Replace(config, old, replacement, 1)
	}
	// All masters of this test have one address.
	for n, m := range []*master{one, two, stranger, neighbour, unready} {
		config = strings.Replace(config, "server 127.0.0.1 "+m.address.String(), "server m"+string(rune('0'+n))+" "+m.address.String(), 1)
	}
	file := filepath.Join(dir, "balancer.cfg")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(haproxy, "-W", "-f", file)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})

	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: good.pool, ServerName: "api.room-1.internal"},
	}}
	get := func(path string) error {
		resp, err := client.Get("https://" + address + path)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	bad := []*master{stranger, neighbour, unready}
	eventually(t, "the bad are out", func() bool {
		for _, m := range bad {
			m.served.Store(0)
		}
		for range 12 {
			if get("/api") != nil {
				return false
			}
		}
		return !slices.ContainsFunc(bad, func(m *master) bool { return m.served.Load() > 0 })
	})
	if one.served.Load() == 0 || two.served.Load() == 0 {
		t.Errorf("not both masters are used: %d and %d", one.served.Load(), two.served.Load())
	}

	// A watch through each master; one of these goes dark.
	watcher := &http.Client{Transport: client.Transport}
	ended := make(chan int, 8)
	for range 4 {
		resp, err := watcher.Get("https://" + address + "/watch")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			ended <- 1
		}()
	}
	if one.watches.Load() == 0 || two.watches.Load() == 0 {
		t.Fatalf("watches are not spread: %d and %d", one.watches.Load(), two.watches.Load())
	}
	begin := time.Now()
	one.ready.Store(false)
	for range one.watches.Load() {
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatal("a watch through the dead master goes on")
		}
	}
	t.Logf("watches ended after %v", time.Since(begin))
	select {
	case <-ended:
		t.Error("a watch through the other master ended too")
	default:
	}
	two.served.Store(0)
	for range 8 {
		if err := get("/api"); err != nil {
			t.Errorf("after one master is gone: %v", err)
		}
	}
	if two.served.Load() != 8 {
		t.Errorf("the other master answered %d of 8", two.served.Load())
	}
	one.ready.Store(true)
	eventually(t, "the master that came back is used", func() bool {
		one.served.Store(0)
		for range 4 {
			get("/api")
		}
		return one.served.Load() > 0
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

// master is an API server as far as the balancer can tell.
type master struct {
	address         netip.AddrPort
	ready           atomic.Bool
	served, watches atomic.Int32
}

func newMaster(t *testing.T, ca *authority, name string) *master {
	t.Helper()
	m := &master{}
	m.ready.Store(true)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/readyz":
			if !m.ready.Load() {
				w.WriteHeader(http.StatusInternalServerError)
			}
		case r.URL.Path == "/watch":
			m.watches.Add(1)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			m.served.Add(1)
		}
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{ca.issue(t, name)}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of checks that find it wanting
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	m.address = netip.MustParseAddrPort(server.Listener.Addr().String())
	return m
}

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
	pool        *x509.CertPool
}

func newCA(t *testing.T) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	ca := &authority{pool: x509.NewCertPool()}
	var err error
	if ca.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	ca.pool.AddCert(ca.certificate)
	return ca
}

func (ca *authority) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, ca.certificate, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
