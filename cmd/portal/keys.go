package main

import (
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
	"log/slog"
	"math/big"
	"net"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
)

// The Secrets with the portal's certificate: the site's, where it gives one (kind
// kubernetes.io/tls), else one that the first portal makes and signs itself.
const (
	siteKeys = "portal-tls"
	ownKeys  = "portal-tls-own"
)

// renewBefore is how long before its end our own certificate is made anew.
const renewBefore = 30 * 24 * time.Hour

// keys is the certificate that the portal shows.
type keys struct {
	secrets typed.SecretInterface
	names   func(context.Context) []string // for one of our own
	log     *slog.Logger

	now     func() time.Time // nil: time.Now
	current atomic.Pointer[tls.Certificate]
}

func (k *keys) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := k.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("there is no certificate yet")
}

// load takes the site's certificate, or ours. One of the site's that cannot be used is
// told, and the last good one stays.
func (k *keys) load(ctx context.Context) error {
	secret, err := k.secrets.Get(ctx, siteKeys, metav1.GetOptions{})
	if err == nil {
		pair, err := read(secret)
		if err == nil {
			k.current.Store(pair)
			return nil
		}
		if k.current.Load() != nil {
			return fmt.Errorf("use the site's certificate: %w", err)
		}
		k.log.Warn("the site's certificate cannot be used; the portal shows one of its own", "error", err)
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read Secret %s: %s", siteKeys, apierrors.ReasonForError(err))
	}
	for range 3 {
		secret, err := k.secrets.Get(ctx, ownKeys, metav1.GetOptions{})
		switch {
		case err == nil:
			pair, err := read(secret)
			if err == nil && pair.Leaf.NotAfter.Sub(k.clock()) > renewBefore {
				k.current.Store(pair)
				return nil
			}
			uid := secret.UID
			if err := k.secrets.Delete(ctx, ownKeys, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return fmt.Errorf("remove an old certificate: %s", apierrors.ReasonForError(err))
			}
		case !apierrors.IsNotFound(err):
			return fmt.Errorf("read Secret %s: %s", ownKeys, apierrors.ReasonForError(err))
		}
		made, err := k.make(ctx)
		if err != nil {
			return err
		}
		// Of two portals that make one, the other's counts.
		if _, err := k.secrets.Create(ctx, made, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("keep the portal's certificate: %s", apierrors.ReasonForError(err))
		}
	}
	return errors.New("the portal's certificate comes and goes")
}

func (k *keys) clock() time.Time {
	if k.now != nil {
		return k.now()
	}
	return time.Now()
}

func read(secret *corev1.Secret) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, errors.New("tls.crt and tls.key do not hold a pair")
	}
	return &pair, nil
}

// make is one for a year, which is as long as browsers take.
func (k *keys) make(ctx context.Context) (*corev1.Secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := k.clock()
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "Kingmaker portal"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true}
	all := k.names(ctx)
	slices.Sort(all)
	for _, name := range slices.Compact(all) {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if name != "" {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: ownKeys, Labels: map[string]string{"kingmaker.dev/owner": "portal"}}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}}, nil
}
