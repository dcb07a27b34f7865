package member

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// caFiles are a CA as kubeadm keeps one.
type caFiles struct{ crt, key string }

func newEtcdCA() caFiles { return newEtcdCAUntil(time.Now().AddDate(10, 0, 0)) }

func newEtcdCAUntil(end time.Time) caFiles {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd-ca"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end, KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	secret, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		panic(err)
	}
	return caFiles{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(secret)}
}

// etcdSecret is what the cluster has of the certificate.
func (p *pc) etcdSecret(t *testing.T) map[string][]byte {
	t.Helper()
	text, err := json.Marshal(p.objects["secrets/"+etcdClientName])
	if err != nil {
		t.Fatal(err)
	}
	var secret struct {
		Type string
		Data map[string][]byte
	}
	if err := json.Unmarshal(text, &secret); err != nil || secret.Type != "kubernetes.io/tls" {
		t.Fatalf("the Secret is %q, %v", secret.Type, err)
	}
	return secret.Data
}

// certificateOf is the one in the data of a Secret, checked against a CA.
func certificateOf(t *testing.T, data map[string][]byte, ca caFiles) *x509.Certificate {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ca.crt)) || string(data["ca.crt"]) != ca.crt {
		t.Fatalf("ca.crt is another CA's:\n%s", data["ca.crt"])
	}
	all, err := certutil.ParseCertsPEM(data["tls.crt"])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := all[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Fatal(err)
	}
	return all[0]
}

// quiet checks that a secret is nowhere where it can be read.
func (p *pc) quiet(t *testing.T, key []byte) {
	t.Helper()
	block, _ := pem.Decode(key)
	if block == nil {
		t.Fatal("there is no key")
	}
	said := p.log.String() + strings.Join(p.commands, "\n") + strings.Join(p.told, "\n")
	for _, file := range p.files() {
		said += file
	}
	middle := base64.StdEncoding.EncodeToString(block.Bytes)[20:50]
	for _, canary := range []string{string(key), base64.StdEncoding.EncodeToString(key), base64.StdEncoding.EncodeToString(key)[60:100], middle} {
		if strings.Contains(said, canary) {
			t.Error("the key is in a log, on a command line, on the screen or in a file")
		}
	}
}

// TestEtcdClient: the reconciler's certificate is made once, and is as the
// reconciler looks for it.
func TestEtcdClient(t *testing.T) {
	if where := systemNamespace + "/" + etcdClientName; where != "kingmaker-system/etcd-client" { // as package crown has it
		t.Errorf("it is at %s", where)
	}
	p := newPC(t)
	if err := become(t.Context(), p.init()); err != nil {
		t.Fatal(err)
	}
	data := p.etcdSecret(t)
	c := certificateOf(t, data, anEtcdCA())
	if s := c.Subject; s.CommonName != "kingmaker-reconcile" || len(s.Organization) > 0 {
		t.Errorf("it is %s's", s)
	}
	if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() || c.IsCA || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("a key %T, usages %v, CA %v", c.PublicKey, c.ExtKeyUsage, c.IsCA)
	}
	if left := time.Until(c.NotAfter); left < certificateValidity-time.Hour || left > certificateValidity {
		t.Errorf("it is good for %s", left)
	}
	if n := strings.Count(strings.Join(p.stdins, ""), `"`+etcdClientName+`"`); n != 1 {
		t.Errorf("written %d times", n)
	}
	p.quiet(t, data["tls.key"])
}

// TestEtcdClientAgain: it is kept as long as it is good.
func TestEtcdClientAgain(t *testing.T) {
	now := time.Now()
	late := newEtcdCAUntil(now.AddDate(0, 0, 20))
	issued := func(ca caFiles, at time.Time) map[string][]byte {
		p := newPC(t)
		p.put(etcdCA, ca.crt)
		p.put(etcdCAKey, ca.key)
		a, err := readEtcdCA(p.Host)
		if err != nil {
			t.Fatal(err)
		}
		data, err := a.issue(etcdClientUser, at)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	other := issued(anEtcdCA(), now)["tls.key"]
	without := func(data map[string][]byte, key string, value []byte) map[string][]byte {
		data[key] = value
		return data
	}
	for _, test := range []struct {
		name string
		ca   caFiles
		data map[string][]byte
		kept bool
	}{
		{"good", anEtcdCA(), issued(anEtcdCA(), now), true},
		{"none", anEtcdCA(), nil, false},
		{"31 days left", anEtcdCA(), issued(anEtcdCA(), now.Add(31*24*time.Hour-certificateValidity)), true},
		{"29 days left", anEtcdCA(), issued(anEtcdCA(), now.Add(29*24*time.Hour-certificateValidity)), false},
		{"ended", anEtcdCA(), issued(anEtcdCA(), now.Add(-time.Hour-certificateValidity)), false},
		{"ends with its CA", late, issued(late, now), true},
		{"of another CA", anEtcdCA(), issued(newEtcdCA(), now), false},
		{"of another CA, that it says is this one", anEtcdCA(), without(issued(newEtcdCA(), now), "ca.crt", []byte(anEtcdCA().crt)), false},
		{"of another key", anEtcdCA(), without(issued(anEtcdCA(), now), "tls.key", other), false},
		{"without a key", anEtcdCA(), without(issued(anEtcdCA(), now), "tls.key", nil), false},
		{"broken", anEtcdCA(), without(issued(anEtcdCA(), now), "tls.crt", []byte("broken")), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPC(t)
			i := p.init()
			if err := become(t.Context(), i); err != nil {
				t.Fatal(err)
			}
			p.put(etcdCA, test.ca.crt)
			p.put(etcdCAKey, test.ca.key)
			delete(p.objects, "secrets/"+etcdClientName)
			if test.data != nil {
				p.objects["secrets/"+etcdClientName] = map[string]any{"data": test.data}
			}
			step, n := i.etcdClient(), len(p.stdins)
			if err := host.Do(t.Context(), []host.Step{step}, p.tell); err != nil {
				t.Fatal(err)
			}
			if kept := len(p.stdins) == n; kept != test.kept {
				t.Errorf("kept %v, want %v", kept, test.kept)
			}
			if !test.kept {
				certificateOf(t, p.etcdSecret(t), test.ca)
				p.quiet(t, p.etcdSecret(t)["tls.key"])
			}
			if todo, err := step.Look(t.Context()); err != nil || len(todo) > 0 {
				t.Errorf("then it says %q, %v", todo, err)
			}
		})
	}
}

// TestEtcdClientWithoutCA: what a broken CA holds is not told.
func TestEtcdClientWithoutCA(t *testing.T) {
	for name, files := range map[string]caFiles{
		"no certificate": {"", anEtcdCA().key},
		"no key":         {anEtcdCA().crt, strings.Replace(anEtcdCA().key, "PRIVATE KEY", "PRIVATE CANARY", 2)},
	} {
		p := newPC(t)
		i := p.init()
		if err := become(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		p.put(etcdCA, files.crt)
		p.put(etcdCAKey, files.key)
		_, err := i.etcdClient().Look(t.Context())
		err = errors.Join(err, i.etcdClient().Do(t.Context()))
		if err == nil || strings.Contains(err.Error(), "CANARY") || !strings.Contains(err.Error(), "read /etc/kubernetes/pki/etcd/ca.") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
