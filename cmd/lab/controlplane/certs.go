package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// A pair is a certificate, in DER, and its key.
type pair struct {
	der []byte
	key *ecdsa.PrivateKey
}

// An authority is a pair that signs others.
type authority struct {
	pair
	cert *x509.Certificate
}

func newAuthority(name string) (authority, error) {
	p, err := sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil)
	if err != nil {
		return authority{}, err
	}
	cert, err := x509.ParseCertificate(p.der)
	return authority{p, cert}, err
}

// issue makes a certificate for a user, in the sense of Kubernetes, and a group of
// his where there is one. It is good for both ends of a connection: all components
// are clients as well as servers.
func (a authority) issue(user, group string) (pair, error) {
	name := pkix.Name{CommonName: user}
	if group != "" {
		name.Organization = []string{group}
	}
	return sign(&x509.Certificate{
		Subject:     name,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:    []string{"localhost"},
	}, &a)
}

// sign completes c and signs it with the key of by, or with its own for nil.
func sign(c *x509.Certificate, by *authority) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	// No lab lives for a year; the hour forgives a clock that was set back.
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	if by == nil {
		by = &authority{pair{key: key}, c}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.cert, &key.PublicKey, by.key)
	return pair{der, key}, err
}

func (p pair) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.der})
}

func (p pair) keyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// write stores name.crt and name.key, for their owner alone.
func (p pair) write(dir, name string) error {
	key, err := p.keyPEM()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, name+".crt"), p.certPEM(), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".key"), key, 0o600)
}

// writeKubeconfig lets p act upon the API server at url, which ca vouches for.
func (p pair) writeKubeconfig(file, url string, ca authority) error {
	key, err := p.keyPEM()
	if err != nil {
		return err
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: lab
contexts:
- name: lab
  context: {cluster: lab, user: lab}
clusters:
- name: lab
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: lab
  user:
    client-certificate-data: %s
    client-key-data: %s
`, url, base64.StdEncoding.EncodeToString(ca.certPEM()), base64.StdEncoding.EncodeToString(p.certPEM()), base64.StdEncoding.EncodeToString(key))
	return os.WriteFile(file, []byte(text), 0o600)
}
