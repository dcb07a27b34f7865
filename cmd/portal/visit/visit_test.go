package visit_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kingmaker-io/kingmaker/cmd/portal/visit"
)

// TestVisit: what one replica began another knows, and it ends when it should.
func TestVisit(t *testing.T) {
	client := fake.NewClientset().CoreV1().Secrets("kingmaker-portal")
	now := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	a, b := &visit.Store{Client: client, Now: clock}, &visit.Store{Client: client, Now: clock}
	ctx := t.Context()
	value, err := a.Begin(ctx, "anna", true)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := b.Get(ctx, value); err != nil || v.User != "anna" || !v.MustChange {
		t.Fatalf("%+v, %v", v, err)
	}
	list, _ := client.List(ctx, metav1.ListOptions{})
	for _, s := range list.Items {
		if strings.Contains(s.String(), value) {
			t.Error("the cookie itself is kept")
		}
	}
	for _, forged := range []string{"", "x", value[:42] + "!", strings.Repeat("A", 43), "../" + value, value + value} {
		if _, err := b.Get(ctx, forged); !errors.Is(err, visit.ErrNone) {
			t.Errorf("%q: %v", forged, err)
		}
	}
	if noted, _ := a.Touch(ctx, value); noted {
		t.Error("noted at once")
	}
	for range 23 { // it goes on for as long as its person is there
		now = now.Add(29 * time.Minute)
		if noted, err := b.Touch(ctx, value); err != nil || !noted {
			t.Fatal(now, noted, err)
		}
	}
	now = now.Add(29*time.Minute + 30*time.Minute) // half a day is over
	if _, err := a.Get(ctx, value); !errors.Is(err, visit.ErrNone) {
		t.Error(err)
	}
	if err := a.Sweep(ctx); err != nil {
		t.Error(err)
	}
	first, _ := a.Begin(ctx, "anna", false)
	second, _ := a.Begin(ctx, "anna", false)
	other, _ := a.Begin(ctx, "ben", false)
	if err := a.EndOthers(ctx, "anna", second); err != nil {
		t.Error(err)
	}
	if _, err := a.Get(ctx, first); !errors.Is(err, visit.ErrNone) {
		t.Error("the other visit goes on")
	}
	for _, v := range []string{second, other} {
		if _, err := a.Get(ctx, v); err != nil {
			t.Error(err)
		}
	}
	now = now.Add(30 * time.Minute)
	if _, err := a.Get(ctx, other); !errors.Is(err, visit.ErrNone) {
		t.Error("half an hour")
	}
	if err := a.End(ctx, other); err != nil {
		t.Error(err)
	}
	if err := a.End(ctx, other); err != nil {
		t.Error(err)
	}
}
