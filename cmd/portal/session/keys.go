package session

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Authority signs certificates. The portal keeps one for desktops, which have neither it
// nor a name that differs, and are told apart by the certificate itself (see Trust); and
// one for itself.
type Authority struct {
	Certificate []byte // PEM
	Key         []byte // PEM
}

// NewAuthority makes one for ten years.
func NewAuthority(name string, now time.Time) (Authority, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return Authority{}, err
	}
	ca := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		return Authority{}, err
	}
	return Authority{Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: keyPEM}, nil
}

// Issue makes a server's certificate for names and addresses, for a year, which is as
// long as browsers take.
func (a Authority) Issue(names []string, now time.Time) (certificate, key []byte, err error) {
	pair, err := tls.X509KeyPair(a.Certificate, a.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority: %w", err)
	}
	own, key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	leaf := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: "Kingmaker, " + names[0]}, // and not the authority's: who has its own issuer's name counts as signed by itself
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, pair.Leaf, &own.PublicKey, pair.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key, nil
}

// Trust is how the portal knows one desktop: by the authority, and by its very
// certificate. All desktops have one name, and addresses of Pods are used again: by
// the authority alone, one user's desktop could pass for another's and be told that
// one's token.
func Trust(authority, certificate []byte) (*tls.Config, error) {
	roots := x509.NewCertPool()
	block, _ := pem.Decode(certificate)
	if !roots.AppendCertsFromPEM(authority) || block == nil {
		return nil, errors.New("the certificate of the desktop cannot be read")
	}
	want := string(block.Bytes)
	return &tls.Config{RootCAs: roots, ServerName: Host, MinVersion: tls.VersionTLS13, VerifyConnection: func(c tls.ConnectionState) error {
		if len(c.PeerCertificates) == 0 || string(c.PeerCertificates[0].Raw) != want {
			return errors.New("who answers is another desktop")
		}
		return nil
	}}, nil
}

// NewToken is 256 random bits, as hex.
func NewToken() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	return n
}

func typesUID(uid string) types.UID { return types.UID(uid) }

func ptr[T any](v T) *T { return &v }
