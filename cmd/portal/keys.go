package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// The Secrets with the portal's certificate: the site's, where it gives one (type
// kubernetes.io/tls; with ca.crt, where browsers do not know who signed it), else one
// that the first portal makes, with an authority of its own: who has trusted that once
// trusts what follows, for machines come and go, and a year ends.
const (
	siteKeys = "portal-tls"
	ownKeys  = "portal-tls-own"
)

// renewBefore is how long before its end our own certificate is made anew.
const renewBefore = 30 * 24 * time.Hour

// keys is the certificate that the portal shows.
type keys struct {
	secrets   typed.SecretInterface
	maps      typed.ConfigMapInterface
	authority func(context.Context) (session.Authority, error)
	names     func(context.Context) []string // for one of our own
	log       *slog.Logger

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
			return k.publish(ctx, secret.Data["ca.crt"], nameOf(pair.Leaf))
		}
		if k.current.Load() != nil {
			return fmt.Errorf("use the site's certificate: %w", err)
		}
		k.log.Warn("the site's certificate cannot be used; the portal shows one of its own", "error", err)
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read Secret %s: %s", siteKeys, apierrors.ReasonForError(err))
	}
	authority, err := k.authority(ctx)
	if err != nil {
		return err
	}
	names := k.wanted(ctx)
	for range 3 {
		secret, err := k.secrets.Get(ctx, ownKeys, metav1.GetOptions{})
		switch {
		case err == nil:
			pair, err := read(secret)
			if err == nil && pair.Leaf.NotAfter.Sub(k.clock()) > renewBefore && covers(pair.Leaf, names) {
				k.current.Store(pair)
				return k.publish(ctx, authority.Certificate, "")
			}
			uid := secret.UID
			if err := k.secrets.Delete(ctx, ownKeys, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return fmt.Errorf("remove an old certificate: %s", apierrors.ReasonForError(err))
			}
		case !apierrors.IsNotFound(err):
			return fmt.Errorf("read Secret %s: %s", ownKeys, apierrors.ReasonForError(err))
		}
		made, err := k.make(authority, names)
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

// address is the ConfigMap in which machines read how a browser finds the portal:
// ca.crt, whom to trust beside those whom everybody does, and name, under which it is
// known; without one any machine's address is.
const address = "portal"

// publish writes it.
func (k *keys) publish(ctx context.Context, authority []byte, name string) error {
	want := map[string]string{"ca.crt": string(authority), "name": name}
	have, err := k.maps.Get(ctx, address, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = k.maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: address, Labels: map[string]string{session.OwnerLabel: session.Owner}}, Data: want}, metav1.CreateOptions{})
	case err == nil && !maps.Equal(have.Data, want):
		have.Data = want
		_, err = k.maps.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.IsConflict(err) { // another portal did
		return fmt.Errorf("tell machines how to find the portal: %w", err)
	}
	return nil
}

// nameOf is the first name of a certificate that a browser can go to.
func nameOf(leaf *x509.Certificate) string {
	for _, name := range leaf.DNSNames {
		if !strings.HasPrefix(name, "*") {
			return name
		}
	}
	return ""
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

// covers reports whether a certificate is for all names.
func covers(leaf *x509.Certificate, names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return leaf.VerifyHostname(name) != nil })
}

// wanted are the names of a certificate of our own, each once.
func (k *keys) wanted(ctx context.Context) []string {
	all := slices.DeleteFunc(k.names(ctx), func(name string) bool { return name == "" })
	slices.Sort(all)
	return slices.Compact(all)
}

func (k *keys) make(a session.Authority, names []string) (*corev1.Secret, error) {
	certificate, key, err := a.Issue(names, k.clock())
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: ownKeys, Labels: map[string]string{session.OwnerLabel: session.Owner}}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		corev1.TLSCertKey: append(certificate, a.Certificate...), corev1.TLSPrivateKeyKey: key}}, nil
}
