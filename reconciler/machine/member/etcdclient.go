package member

import (
	"bytes"
	"context"
	"crypto"
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
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// The certificate with which the reconciler speaks to the etcd of each master.
const (
	etcdClientName = "etcd-client"         // its Secret
	etcdClientUser = "kingmaker-reconcile" // who etcd's log says that it was
	etcdCA         = "/etc/kubernetes/pki/etcd/ca.crt"
	etcdCAKey      = "/etc/kubernetes/pki/etcd/ca.key"

	// certificateValidity is that of all certificates of a master.
	certificateValidity = 43800 * time.Hour
	// renewBefore its end a certificate is made anew.
	renewBefore = 30 * 24 * time.Hour
)

// etcdClient gives the reconciler in the cluster a way to etcd. The Secret is none
// of the site's own, as the credentials of the site repo: no commit changes it, or
// takes it away.
func (i *Init) etcdClient() host.Step {
	return host.Step{
		Name: "etcd",
		Look: func(ctx context.Context) ([]string, error) {
			todo := []string{"give the reconciler a certificate for etcd"}
			c, err := openCluster(i.Host, adminConf)
			if err != nil || !i.member() {
				return todo, nil
			}
			ca, err := readEtcdCA(i.Host)
			if err != nil {
				return nil, err
			}
			var have struct{ Data map[string][]byte }
			found, err := c.get(ctx, core("secrets"), systemNamespace, etcdClientName, &have)
			if err == nil && found && ca.vouches(have.Data, time.Now()) {
				return nil, nil
			}
			return todo, nil
		},
		Do: func(ctx context.Context) error {
			ca, err := readEtcdCA(i.Host)
			if err != nil {
				return err
			}
			data, err := ca.issue(etcdClientUser, time.Now())
			if err != nil {
				return fmt.Errorf("make a certificate for etcd: %w", err)
			}
			return i.apply(ctx, object{"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
				"metadata": object{"name": etcdClientName, "namespace": systemNamespace}, "data": data})
		},
	}
}

// signer is a CA that signs certificates of clients.
type signer struct {
	certificate *x509.Certificate
	key         crypto.Signer
	pem         []byte // of the certificate
}

func readEtcdCA(h *host.Host) (*signer, error) {
	text, err := h.Read(etcdCA)
	if err != nil {
		return nil, fmt.Errorf("read etcd's CA: %w", err)
	}
	secret, err := h.Read(etcdCAKey)
	if err != nil {
		return nil, fmt.Errorf("read the key of etcd's CA: %w", err)
	}
	all, err := certutil.ParseCertsPEM(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", etcdCA, err)
	}
	parsed, err := keyutil.ParsePrivateKeyPEM(secret)
	key, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return nil, fmt.Errorf("read %s: it has no private key", etcdCAKey) // the cause could quote it
	}
	return &signer{all[0], key, text}, nil
}

// issue makes a key, and a certificate of it for a client of a name, as the data of
// a Secret.
func (a *signer) issue(user string, now time.Time) (data map[string][]byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	until := now.Add(certificateValidity)
	if until.After(a.certificate.NotAfter) {
		until = a.certificate.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      pkix.Name{CommonName: user},
		NotBefore:    a.certificate.NotBefore, // as kubeadm: clocks of masters may differ
		NotAfter:     until,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	secret, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, errors.New("the key cannot be written")
	}
	return map[string][]byte{
		"ca.crt":  a.pem,
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: certutil.CertificateBlockType, Bytes: der}),
		"tls.key": secret,
	}, nil
}

// vouches reports whether the data of a Secret are a client's key and certificate
// of this CA, and good for long enough.
func (a *signer) vouches(data map[string][]byte, now time.Time) bool {
	if !bytes.Equal(data["ca.crt"], a.pem) {
		return false
	}
	pair, err := tls.X509KeyPair(data["tls.crt"], data["tls.key"])
	if err != nil {
		return false
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return false
	}
	// One that ends with its CA can be made no longer.
	return pair.Leaf.NotAfter.Sub(now) > renewBefore || pair.Leaf.NotAfter.Equal(a.certificate.NotAfter)
}
