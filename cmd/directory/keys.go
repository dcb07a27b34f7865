package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// serverName is in the certificate of each replica, wherever it runs: so they know
// each other.
const serverName = "replica.directory.internal"

// How long certificates are good for. A replica makes its own anew at each start,
// and starts anew before it ends.
const (
	authorityLife   = 20 * 365 * 24 * time.Hour
	certificateLife = 365 * 24 * time.Hour
	renewAfter      = certificateLife * 2 / 3
)

// secrets are all that the replicas share.
type secrets struct {
	authority *x509.Certificate
	key       *ecdsa.PrivateKey
	pem       []byte // the authority's certificate
	passwords map[string]plan.Secret
}

// readSecrets reads the secrets of the site's directory, and makes those that are
// not there.
func readSecrets(ctx context.Context, store Store, base string) (*secrets, error) {
	data, err := store.Secret(ctx, authorityName, newAuthority)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(data["tls.crt"], data["tls.key"])
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", authorityName, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read secret %s: its key is of another kind", authorityName)
	}
	s := &secrets{authority: pair.Leaf, key: key, pem: data["tls.crt"], passwords: map[string]plan.Secret{}}
	for _, service := range []string{slapd.Daemon, slapd.Replicator, slapd.Portal} {
		name := "directory-" + service
		data, err := store.Secret(ctx, name, func() (map[string][]byte, error) {
			random := make([]byte, 32)
			_, _ = rand.Read(random) // never fails
			return map[string][]byte{
				"username": []byte(slapd.DN(service, base)),
				"password": []byte(base64.RawURLEncoding.EncodeToString(random)),
				"base":     []byte(base),
				"ca.crt":   s.pem,
			}, nil
		})
		if err != nil {
			return nil, err
		}
		if len(data["password"]) < 16 {
			return nil, fmt.Errorf("read secret %s: no password of 16 characters or more: delete it, and a new one is made", name)
		}
		s.passwords[service] = plan.NewSecret(string(data["password"]))
	}
	return s, store.Publish(ctx, s.pem)
}

// client is how one replica speaks TLS to another.
func (s *secrets) client() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(s.authority)
	return &tls.Config{RootCAs: roots, ServerName: serverName, MinVersion: tls.VersionTLS12}
}

func newAuthority() (map[string][]byte, error) {
	key, keyText, err := newKey()
	if err != nil {
		return nil, err
	}
	template := certificate("Kingmaker directory", authorityLife)
	template.IsCA, template.MaxPathLenZero, template.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	text, err := sign(template, template, key, key)
	return map[string][]byte{"tls.crt": text, "tls.key": keyText}, err
}

// issue makes the certificate of a replica.
func (s *secrets) issue(machine string, names []string) (text, keyText []byte, err error) {
	key, keyText, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template := certificate(machine, certificateLife)
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range slices.Concat([]string{serverName, machine}, names) {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if name != "" {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	text, err = sign(template, s.authority, key, s.key)
	return text, keyText, err
}

func certificate(name string, life time.Duration) *x509.Certificate {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial) // never fails
	serial[0] &= 0x7f
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life), // an hour for clocks that differ
	}
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

func sign(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

// roots reads a file of certificate authorities.
func roots(text []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("it holds no certificate")
	}
	return pool, nil
}
