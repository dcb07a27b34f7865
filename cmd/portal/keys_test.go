package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// TestKeys: one certificate for all portals, made anew before its end; the site's where
// it gives one that can be used.
func TestKeys(t *testing.T) {
	core := fake.NewClientset().CoreV1()
	secrets, maps := core.Secrets("kingmaker-portal"), core.ConfigMaps("kingmaker-portal")
	now := time.Now()
	authority, err := session.NewAuthority("portal", now)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"portal.school.example", "10.20.1.11", "10.20.1.11", ""}
	told := func(name string, trusts string) {
		t.Helper()
		m, err := maps.Get(t.Context(), address, metav1.GetOptions{})
		if err != nil || m.Data["name"] != name || m.Data["ca.crt"] != trusts {
			t.Errorf("machines read %v, %v", m.Data, err)
		}
	}
	portal := func() *keys {
		return &keys{secrets: secrets, maps: maps, authority: func(context.Context) (session.Authority, error) { return authority, nil }, log: slog.New(slog.DiscardHandler), now: func() time.Time { return now },
			names: func(context.Context) []string { return slices.Clone(names) }}
	}
	shown := func(k *keys) *tls.Certificate {
		t.Helper()
		if err := k.load(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := k.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if _, err := portal().get(nil); err == nil {
		t.Error("there is one before there is any")
	}
	a, b := shown(portal()), shown(portal())
	if !a.Leaf.Equal(b.Leaf) {
		t.Error("two portals show two certificates")
	}
	for _, name := range []string{"portal.school.example", "10.20.1.11"} {
		if err := a.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	told("", string(authority.Certificate))
	names = append(names, "10.20.1.12") // a machine has joined
	joined := shown(portal())
	if err := joined.Leaf.VerifyHostname("10.20.1.12"); err != nil {
		t.Error(err)
	}
	names = names[:2] // and is gone: nobody needs another
	if again := shown(portal()); !again.Leaf.Equal(joined.Leaf) {
		t.Error("it is made anew for a name less")
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.Certificate)
	if _, err := joined.Leaf.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
		t.Error(err)
	}
	now = now.AddDate(0, 11, 15)
	c := shown(portal())
	if c.Leaf.Equal(joined.Leaf) {
		t.Error("it is not made anew")
	}
	own, err := secrets.Get(t.Context(), ownKeys, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	site := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: siteKeys}, Data: map[string][]byte{"tls.crt": []byte("x"), "tls.key": own.Data["tls.key"]}}
	if _, err := secrets.Create(t.Context(), site, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if d := shown(portal()); !d.Leaf.Equal(c.Leaf) {
		t.Error("a portal does not start with a bad certificate of the site's")
	}
	running := portal()
	running.current.Store(a)
	if err := running.load(t.Context()); err == nil {
		t.Error("a bad certificate is not told")
	}
	made, err := portal().make(authority, []string{"*.school.example", "portal.school.example"})
	if err != nil {
		t.Fatal(err)
	}
	site.Data = made.Data
	if _, err := secrets.Update(t.Context(), site, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if e := shown(running); e.Leaf.Equal(a.Leaf) || e.Leaf.Equal(c.Leaf) {
		t.Error("the site's certificate is not shown")
	}
	told("portal.school.example", "")
}
