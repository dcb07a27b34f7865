package member

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/cluster-bootstrap/token/jws"
)

const (
	tokenID = "abcdef"
	// tokenSecret is searched for wherever it must not be.
	tokenSecret = "c4n4ry0123456789"
)

// authority is a CA of a test.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCA(t *testing.T, from time.Time) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, NotBefore: from, NotAfter: from.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (c *testCA) serving(t *testing.T, from, until time.Time, address string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"}, NotBefore: from, NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.ParseIP(address)}}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// master is an API server as far as a machine that wants to join sees it. The
// fields are what a test may set before start.
type master struct {
	ca       *testCA       // that it tells of
	signer   *testCA       // of its certificate; nil is ca
	address  string        // in its certificate; "" is where it listens
	from     time.Time     // its certificate is valid; zero is an hour ago
	until    time.Time     // zero is in a year
	clock    time.Duration // its clock is ahead of this one
	server   string        // endpoint that it tells of
	token    string        // it knows; "" is none
	version  string
	lies     bool // tells another CA with trust than without
	noAccess int  // answers Node requests with this

	mu     sync.Mutex
	node   map[string]any // the Node that has the name
	asked  []string       // requests
	shown  []string       // Authorization headers
	signed int            // requests before the token is announced
}

func (m *master) start(t *testing.T) *httptest.Server {
	t.Helper()
	now := time.Now()
	if m.from.IsZero() {
		m.from = now.Add(-time.Hour)
	}
	if m.until.IsZero() {
		m.until = now.AddDate(1, 0, 0)
	}
	if m.signer == nil {
		m.signer = m.ca
	}
	if m.address == "" {
		m.address = "127.0.0.1"
	}
	if m.server == "" {
		m.server = "https://api.lab.internal:7443"
	}
	if m.version == "" {
		m.version = "v1.36.3"
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(m.serve))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{m.signer.serving(t, m.from, m.until, m.address)}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (m *master) serve(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, r.Method+" "+r.URL.Path)
	if a := r.Header.Get("Authorization"); a != "" {
		m.shown = append(m.shown, a)
	}
	w.Header().Set("Date", time.Now().Add(m.clock).UTC().Format(http.TimeFormat))
	w.Header().Set("Content-Type", "application/json")
	reply := func(code int, body any) {
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(body)
	}
	switch path := r.URL.Path; {
	case path == "/api/v1/namespaces/kube-public/configmaps/cluster-info":
		text := kubeconfigOf(m.server, m.ca.pem)
		if m.lies && len(m.asked) > 1 {
			text += "# and more\n"
		}
		data := map[string]string{"kubeconfig": text}
		if id, secret, ok := strings.Cut(m.token, "."); ok && m.signed <= 0 {
			data["jws-kubeconfig-"+id], _ = jws.ComputeDetachedSignature(text, id, secret)
		}
		m.signed--
		reply(200, map[string]any{"data": data})
	case path == "/version":
		reply(200, map[string]string{"gitVersion": m.version})
	case strings.HasPrefix(path, "/api/v1/nodes/") && m.noAccess != 0:
		reply(m.noAccess, map[string]any{"message": "no"})
	case strings.HasPrefix(path, "/api/v1/nodes/") && m.node != nil:
		reply(200, m.node)
	default:
		reply(404, map[string]any{"message": "not found"})
	}
}

// set changes the Node while the master runs.
func (m *master) set(node map[string]any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node = node
}

func kubeconfigOf(server string, ca []byte) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    server: %s\n    certificate-authority-data: %s\n",
		server, base64.StdEncoding.EncodeToString(ca))
}

// aNode is a Node as the API tells of it.
func aNode(ready, machineID, board string) map[string]any {
	return map[string]any{"status": map[string]any{
		"conditions": []any{map[string]any{"type": "MemoryPressure", "status": "False"}, map[string]any{"type": "Ready", "status": ready, "message": "kubelet is posting"}},
		"addresses":  []any{map[string]any{"type": "InternalIP", "address": "10.0.0.12"}},
		"nodeInfo":   map[string]any{"machineID": machineID, "systemUUID": board},
	}}
}

func where(s *httptest.Server) netip.AddrPort {
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// nobody is an address where nothing listens.
func nobody(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}
