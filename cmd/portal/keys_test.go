package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestKeys: one certificate for all portals, made anew before its end; the site's where
// it gives one that can be used.
func TestKeys(t *testing.T) {
	secrets := fake.NewClientset().CoreV1().Secrets("kingmaker-portal")
	now := time.Now()
	portal := func() *keys {
		return &keys{secrets: secrets, log: slog.New(slog.DiscardHandler), now: func() time.Time { return now },
			names: func(context.Context) []string {
				return []string{"portal.school.example", "10.20.1.11", "10.20.1.11", ""}
			}}
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
	now = now.AddDate(0, 11, 15)
	c := shown(portal())
	if c.Leaf.Equal(a.Leaf) {
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
	made, err := portal().make(t.Context())
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
}
