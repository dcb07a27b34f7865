package member

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// TestRefusals has every way in which a machine is not let in, and what it is
// told. In none of them may the token's secret leave the machine.
func TestRefusals(t *testing.T) {
	now := time.Now()
	ca, other := newCA(t, now.Add(-24*time.Hour)), newCA(t, now.Add(-24*time.Hour))
	young := newCA(t, now.Add(-time.Minute))
	const good = tokenID + "." + tokenSecret
	for _, test := range []struct {
		name   string
		master *master
		token  string        // that is shown
		pin    *testCA       // of the line; nil is ca
		here   time.Duration // this machine's clock is ahead
		code   plan.Code
		says   string
	}{
		{"another site's CA", &master{ca: other, token: good}, good, nil, 0, CADiffers, "somebody else answers, or the line is of another site"},
		{"somebody between", &master{ca: ca, signer: other, token: good}, good, nil, 0, CADiffers, "shows a certificate of another"},
		{"somebody between who changes what is said", &master{ca: ca, token: good, lies: true}, good, nil, 0, CADiffers, "somebody between changes them"},
		{"an address that is not in the certificate", &master{ca: ca, address: "10.9.9.9", token: good}, good, nil, 0, CADiffers, "is not for this address"},
		{"a token that never was", &master{ca: ca, token: "zzzzzz." + tokenSecret}, good, nil, 0, TokenUnknown, "it has expired, or never existed here (make a new line with reconcile token; each is good for 15 minutes)"},
		{"no token at all", &master{ca: ca}, good, nil, 0, TokenUnknown, "does not know the token abcdef"},
		{"a mistyped token", &master{ca: ca, token: good}, tokenID + ".0123456789abcdef", nil, 0, TokenWrong, "the second half of token abcdef is not the one that"},
		{"this clock an hour behind", &master{ca: ca, token: good}, good, nil, -time.Hour, ClockDiffers, "this machine's clock is 1h0m behind that of master 127.0.0.1 (here "},
		{"this clock an hour ahead", &master{ca: ca, token: good}, good, nil, time.Hour, ClockDiffers, "1h0m ahead of that of master"},
		{"the master's clock an hour ahead", &master{ca: ca, token: good, clock: time.Hour}, good, nil, 0, ClockDiffers, "1h0m behind that of master"},
		{"this clock before the site was made", &master{ca: young, token: good}, good, young, -time.Hour, ClockDiffers, "it is this one that is wrong, for the site was made on"},
		{"the master's clock before the site was made", &master{ca: young, token: good, clock: -time.Hour}, good, young, 0, ClockDiffers, "it is the master's that is wrong"},
		{"a certificate of tomorrow", &master{ca: ca, token: good, from: now.Add(24 * time.Hour)}, good, nil, 0, CertificateDates, "is not valid before"},
		{"a certificate of yesteryear", &master{ca: ca, token: good, from: now.AddDate(-2, 0, 0), until: now.AddDate(-1, 0, 0)}, good, nil, 0, CertificateDates, "was valid until"},
		{"a cluster of somebody else", &master{ca: ca, token: good, server: "https://10.0.0.1:6443"}, good, nil, 0, NotAMaster, "only sites that noded init made"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := test.master.start(t)
			pin := test.pin
			if pin == nil {
				pin = ca
			}
			line, err := machine.ParseInvitation(where(s).String(), hash(pin.cert), test.token)
			if err != nil {
				t.Fatal(err)
			}
			d := Discovery{Invitation: line, Patience: time.Nanosecond, Now: func() time.Time { return time.Now().Add(test.here) }}
			_, err = d.Find(t.Context())
			refused(t, err, test.code, test.says)
			for _, shown := range test.master.shown {
				t.Errorf("the token was shown to a master that is not trusted: %s", shown)
			}
		})
	}
}

// refused wants one line with a code.
func refused(t *testing.T, err error, code plan.Code, says string) {
	t.Helper()
	var f *plan.Fault
	if !errors.As(err, &f) {
		t.Fatalf("no refusal: %v", err)
	}
	if f.Code != code || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %s\nwant %s: ...%s...", f.Code, err, code, says)
	}
	if f.Hint == "" || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), tokenSecret) {
		t.Errorf("not one line with what to do next and without a secret: %q", err)
	}
}

func TestNoMasterAnswers(t *testing.T) {
	hangs, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	ca := newCA(t, time.Now())
	line, err := machine.ParseInvitation(nobody(t).String()+","+hangs.Addr().String(), hash(ca.cert), tokenID+"."+tokenSecret)
	if err != nil {
		t.Fatal(err)
	}
	_, err = (&Discovery{Invitation: line, Timeout: 100 * time.Millisecond}).Find(t.Context())
	refused(t, err, NoMasterAnswers, "connection refused; "+hangs.Addr().String()+": no answer in time")
}

func TestFound(t *testing.T) {
	ca, other := newCA(t, time.Now().Add(-time.Hour)), newCA(t, time.Now())
	token := tokenID + "." + tokenSecret
	good, stranger := &master{ca: ca, token: token, signed: 2}, &master{ca: other, token: token} // signed soon
	down, up, foreign := nobody(t), where(good.start(t)), where(stranger.start(t))
	line, err := machine.ParseInvitation(strings.Join([]string{down.String(), foreign.String(), up.String()}, " , "), strings.ToUpper(hash(ca.cert)[:7])+hash(ca.cert)[7:], token+"\n")
	if err == nil {
		line.CAHash = hash(ca.cert)
	} else {
		t.Fatal(err)
	}
	d := &Discovery{Invitation: line}
	site, err := d.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if site.Name != "lab" || site.Endpoint != "api.lab.internal:7443" || site.Kubernetes != "v1.36.3" || string(site.CA) != string(ca.pem) {
		t.Errorf("site %+v", site)
	}
	if want := []netip.AddrPort{down, up}; !slices.Equal(site.Masters, want) {
		t.Errorf("masters %v, want %v: one that is down may come back, a stranger may not", site.Masters, want)
	}
	if len(site.Doubts) != 2 || !strings.Contains(site.Doubts[1], "somebody else answers") {
		t.Errorf("doubts %q", site.Doubts)
	}
	for _, m := range []*master{good, stranger} {
		if len(m.shown) > 0 {
			t.Errorf("the token was shown without need")
		}
	}

	self := Identity{"5e1f", "AAAA-1"}
	for _, test := range []struct {
		name string
		node map[string]any
		says string // "" is let in
	}{
		{"new", nil, ""},
		{"repaired", aNode("Unknown", "0123", "aaaa-9"), ""},
		{"left before", aNode("False", "5e1f", "aaaa-1"), ""},
		{"a second machine of the name", aNode("True", "0123456789ab", "aaaa-9"), "a second machine of the name pc-02: the one with address 10.0.0.12 and machine-id 01234567 is at work, and this one has 5e1f"},
		{"a copied disk", aNode("True", "5e1f", "aaaa-2"), "a second machine of the name pc-02"},
		{"a neighbour in the same computer", aNode("True", "0123", "aaaa-1"), "a second machine of the name pc-02"},
	} {
		t.Run(test.name, func(t *testing.T) {
			good.set(test.node)
			err := d.CheckName(t.Context(), site, "pc-02", self, func(string) { t.Error("waits") })
			if test.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, NameTaken, test.says)
		})
	}

	t.Run("this very machine, which has just left", func(t *testing.T) {
		good.set(aNode("True", "5e1f", "aaaa-1"))
		var told []string
		err := d.CheckName(t.Context(), site, "pc-02", self, func(line string) {
			told = append(told, line)
			good.set(aNode("Unknown", "5e1f", "aaaa-1"))
		})
		if err != nil || len(told) != 1 || !strings.Contains(told[0], "waiting until the site notices") {
			t.Errorf("%v %q", err, told)
		}
	})

	t.Run("a token that lets nobody in", func(t *testing.T) {
		for code, says := range map[int]string{401: "lets nobody in: it has just expired", 403: "was not made by reconcile token"} {
			good.noAccess = code
			refused(t, d.CheckName(t.Context(), site, "pc-02", self, nil), TokenUnknown, says)
		}
	})

	if !slices.Contains(good.shown, "Bearer "+token) || len(stranger.shown) > 0 {
		t.Errorf("shown %d and %d times", len(good.shown), len(stranger.shown))
	}
}

func TestFindIsCancelled(t *testing.T) {
	m := &master{ca: newCA(t, time.Now().Add(-time.Hour))}
	line, err := machine.ParseInvitation(where(m.start(t)).String(), hash(m.ca.cert), tokenID+"."+tokenSecret)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	time.AfterFunc(50*time.Millisecond, func() { cancel(enough) })
	if _, err := (&Discovery{Invitation: line, Patience: time.Hour}).Find(ctx); !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
}
