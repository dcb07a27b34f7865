package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kingmaker-io/kingmaker/cmd/lab/logtest"
	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
	"github.com/kingmaker-io/kingmaker/cmd/portal/signin"
	"github.com/kingmaker-io/kingmaker/cmd/portal/visit"
)

const right = "canary-of-the-right-password"

// people is a directory: everybody has the same password.
type people struct {
	mu     sync.Mutex
	groups map[string][]string
	must   map[string]bool
	away   bool
	busy   atomic.Int64
	most   atomic.Int64
}

func (d *people) Person(_ context.Context, user string) (signin.Person, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return signin.Person{}, errors.New("the directory does not answer")
	}
	groups, ok := d.groups[user]
	if !ok {
		return signin.Person{}, signin.ErrUnknown
	}
	p := signin.Person{Person: session.Person{Name: user, UID: 12001, GID: 5000}, MustChange: d.must[user]}
	for _, g := range groups {
		p.Groups = append(p.Groups, session.Membership{Name: g, GID: 5000})
	}
	return p, nil
}

func (d *people) SignIn(ctx context.Context, user, password string) (signin.Person, error) {
	n := d.busy.Add(1)
	defer d.busy.Add(-1)
	for most := d.most.Load(); n > most && !d.most.CompareAndSwap(most, n); most = d.most.Load() {
	}
	p, err := d.Person(ctx, user)
	if err != nil && !errors.Is(err, signin.ErrUnknown) {
		return p, err
	}
	if err != nil || password != right {
		return signin.Person{}, &signin.Refused{User: p.Name}
	}
	return p, nil
}

func (d *people) ChangePassword(_ context.Context, user, old, password string) error {
	switch {
	case old != right:
		return signin.ErrRefused
	case len(password) < 12:
		return signin.ErrWeak
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.must[user] = false
	return nil
}

// desks are desktops without a cluster.
type desks struct {
	mu      sync.Mutex
	of      map[string]cluster.Desk
	changed chan struct{}
}

func (d *desks) Look(_ context.Context, user string) (cluster.Desk, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	desk, ok := d.of[user]
	return desk, ok, nil
}

func (d *desks) set(user string, change func(*cluster.Desk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	desk := d.of[user]
	desk.Name, desk.Spec.User = session.Name(user), user
	change(&desk)
	d.of[user] = desk
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *desks) Watch(ctx context.Context, user string) <-chan cluster.Desk {
	out := make(chan cluster.Desk)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			d.mu.Lock()
			changed := d.changed
			desk, ok := d.of[user]
			d.mu.Unlock()
			if ok {
				select {
				case out <- desk:
				case <-ctx.Done():
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}()
	return out
}

func (d *desks) Templates(context.Context) ([]session.Template, error) {
	return []session.Template{
		{Name: "xfce", Title: "Classroom", Groups: &[]string{"pupils", "admins"}},
		{Name: "office", Title: "Office <b>", Groups: &[]string{"admins"}},
	}, nil
}

func (d *desks) Start(_ context.Context, user, template string, screen session.Size) error {
	d.set(user, func(k *cluster.Desk) {
		k.Spec.Template, k.Spec.Wanted, k.Spec.Screen, k.Spec.Generation = template, true, screen, k.Spec.Generation+1
	})
	return nil
}

func (d *desks) Restart(_ context.Context, user string) error {
	d.set(user, func(k *cluster.Desk) { k.Spec.Generation++ })
	return nil
}

func (d *desks) Stop(_ context.Context, user string) error {
	d.set(user, func(k *cluster.Desk) { k.Spec.Wanted = false })
	return nil
}

func (d *desks) ReadSite(context.Context) (cluster.Site, error) {
	return cluster.Site{Name: "school", Admins: "admins", Wanted: "c0ffee", Reached: "beef00", Message: "one <volume> heals"}, nil
}

func (d *desks) Machines(context.Context) ([]cluster.Machine, error) {
	return []cluster.Machine{{Name: "pc-01", Role: "master", Phase: "Ready", Heartbeat: time.Now()}, {Name: "pc-02", Role: "worker", Phase: "NotReady"}}, nil
}

func (d *desks) Volumes(context.Context) ([]cluster.Volume, error) {
	return []cluster.Volume{{Name: "homes", Phase: "Started", Copies: "3/3"}}, nil
}

func (d *desks) All(context.Context) (all []cluster.Desk, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, desk := range d.of {
		all = append(all, desk)
	}
	return all, nil
}

// site is a portal with all of it around.
type site struct {
	t       *testing.T
	people  *people
	desks   *desks
	visits  *visit.Store
	portal  *Portal
	handler http.Handler
	server  *httptest.Server
	log     *logtest.Buffer
	now     atomic.Int64 // seconds that have gone by
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, log: &logtest.Buffer{},
		people: &people{groups: map[string][]string{"anna": {"pupils"}, "ben": {"pupils"}, "carla": {"admins"}}, must: map[string]bool{}},
		desks:  &desks{of: map[string]cluster.Desk{}, changed: make(chan struct{})}}
	begun := time.Now()
	clock := func() time.Time { return begun.Add(time.Since(begun) + time.Duration(s.now.Load())*time.Second) }
	s.visits = &visit.Store{Client: fake.NewClientset().CoreV1().Secrets("kingmaker-portal"), Now: clock}

	// A desktop that says its name, and then repeats what it is told.
	desktop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"binary"}})
		if err != nil {
			return
		}
		c.SetReadLimit(-1)
		_ = c.Write(r.Context(), websocket.MessageBinary, []byte("desktop of "+r.URL.Query().Get("user")))
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil {
				return
			}
			_ = c.Write(r.Context(), kind, b)
		}
	}))
	t.Cleanup(desktop.Close)
	s.portal = &Portal{Directory: s.people, Visits: s.visits, Desks: s.desks, Site: s.desks, Limits: &signin.Limits{Now: clock}, Now: clock,
		Log: slog.New(slog.NewTextHandler(s.log, nil)), pulse: 400 * time.Millisecond,
		Screens: func(ctx context.Context, user string) (*websocket.Conn, error) {
			if d, ok, _ := s.desks.Look(ctx, user); !ok || !d.Shows() {
				return nil, cluster.ErrAway
			}
			c, _, err := websocket.Dial(ctx, desktop.URL+"?user="+user, &websocket.DialOptions{Subprotocols: []string{"binary"}})
			return c, err
		}}
	var err error
	if s.handler, err = s.portal.Handler(); err != nil {
		t.Fatal(err)
	}
	s.server = httptest.NewTLSServer(s.handler)
	t.Cleanup(s.server.Close)
	t.Cleanup(func() {
		log := s.log.String()
		for _, canary := range []string{right, "canary-of-a-wrong-password", "__Host-sid"} {
			if strings.Contains(log, canary) {
				t.Errorf("the log has %q", canary)
			}
		}
	})
	return s
}

// browser is one of a person's.
type browser struct {
	*http.Client
	s *site
}

func (s *site) browser() *browser {
	jar, _ := cookiejar.New(nil)
	return &browser{s: s, Client: &http.Client{Jar: jar, Transport: s.server.Client().Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (b *browser) do(r *http.Request) (*http.Response, string) {
	b.s.t.Helper()
	answer, err := b.Do(r)
	if err != nil {
		b.s.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	return answer, string(text)
}

func (b *browser) get(path string) (*http.Response, string) {
	b.s.t.Helper()
	r, _ := http.NewRequest(http.MethodGet, b.s.server.URL+path, nil)
	return b.do(r)
}

func (b *browser) post(path string, form ...string) (*http.Response, string) {
	b.s.t.Helper()
	values := url.Values{}
	for i := 0; i < len(form); i += 2 {
		values.Set(form[i], form[i+1])
	}
	r, _ := http.NewRequest(http.MethodPost, b.s.server.URL+path, strings.NewReader(values.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// As browsers send it from pages whose Referrer-Policy is no-referrer.
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Origin", "null")
	return b.do(r)
}

func (b *browser) signIn(user string) *browser {
	b.s.t.Helper()
	answer, text := b.post("/login", "user", user, "password", right)
	if answer.StatusCode != http.StatusSeeOther {
		b.s.t.Fatalf("%s cannot sign in: %d %s", user, answer.StatusCode, text)
	}
	return b
}

func (b *browser) cookie() string {
	u, _ := url.Parse(b.s.server.URL)
	for _, c := range b.Jar.Cookies(u) {
		if c.Name == sid {
			return c.Value
		}
	}
	return ""
}

func (b *browser) socket(origin string) (*websocket.Conn, int) {
	header := http.Header{}
	if origin != "" {
		header.Set("Origin", origin)
	}
	c, answer, err := websocket.Dial(b.s.t.Context(), strings.Replace(b.s.server.URL, "https", "wss", 1)+"/desk/ws",
		&websocket.DialOptions{HTTPClient: b.Client, HTTPHeader: header, Subprotocols: []string{"binary"}})
	if err != nil && answer == nil {
		b.s.t.Fatal(err)
	}
	return c, answer.StatusCode
}

func (s *site) ready(user string) {
	s.desks.set(user, func(d *cluster.Desk) {
		d.Spec.Wanted, d.Spec.Generation = true, max(1, d.Spec.Generation)
		d.Status = session.Status{Phase: session.Ready, Generation: d.Spec.Generation, Stage: session.Painted, PodIP: "10.244.1.2"}
	})
}

func expect(t *testing.T, what string, answer *http.Response, status int, location string) {
	t.Helper()
	if answer.StatusCode != status || answer.Header.Get("Location") != location {
		t.Errorf("%s: %d to %q, and not %d to %q", what, answer.StatusCode, answer.Header.Get("Location"), status, location)
	}
}

func TestSignIn(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	answer, _ := b.get("/desk")
	expect(t, "without a cookie", answer, 303, "/login")
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Strict-Transport-Security": "max-age=31536000", "Cache-Control": "no-store"} {
		if got := answer.Header.Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if policy := answer.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") {
		t.Error(policy)
	}
	// Who is unknown, and who is wrong, get the very same page.
	_, wrong := b.post("/login", "user", "anna", "password", "canary-of-a-wrong-password")
	answer, unknown := b.post("/login", "user", "nobody", "password", right)
	if expect(t, "unknown", answer, 401, ""); wrong != unknown || !strings.Contains(wrong, "wrong") {
		t.Error("one learns who is unknown")
	}
	u, _ := url.Parse(s.server.URL)
	b.Jar.SetCookies(u, []*http.Cookie{{Name: screenName, Value: "1280x618", Secure: true, Path: "/"}}) // as desk.js does
	answer, _ = b.post("/login", "user", "anna", "password", right)
	expect(t, "right", answer, 303, "/desk")
	c := answer.Cookies()[0]
	if c.Name != "__Host-sid" || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteStrictMode || len(c.Value) != 43 {
		t.Errorf("the cookie: %v %+v", c.Name, c.SameSite)
	}
	if d, ok, _ := s.desks.Look(t.Context(), "anna"); !ok || !d.Spec.Wanted || d.Spec.Template != "xfce" || d.Spec.Screen != (session.Size{Width: 1280, Height: 618}) {
		t.Errorf("her one desktop does not begin: %+v", d)
	}
	first := b.cookie()
	b.signIn("anna")
	if b.cookie() == first {
		t.Error("the cookie is not another one after a sign-in")
	}
	if _, err := s.visits.Get(t.Context(), first); !errors.Is(err, visit.ErrNone) {
		t.Error("the former cookie is still good")
	}
	answer, _ = b.post("/logout")
	expect(t, "log out", answer, 303, "/login")
	answer, _ = b.get("/desk")
	expect(t, "after", answer, 303, "/login")
	if d, _, _ := s.desks.Look(t.Context(), "anna"); !d.Spec.Wanted {
		t.Error("to log out stopped the desktop")
	}
	s.people.away = true
	answer, text := b.post("/login", "user", "anna", "password", right)
	if expect(t, "no directory", answer, 503, ""); !strings.Contains(text, "does not answer") {
		t.Error(text)
	}
	if log := s.log.String(); !strings.Contains(log, `event="signed in" user=anna`) || strings.Contains(log, "user=nobody") {
		t.Error(log)
	}
}

// TestForged: a cookie that we did not give, an old one, and requests of other sites.
func TestForged(t *testing.T) {
	s := newSite(t)
	s.ready("anna")
	for _, value := range []string{"", "x", strings.Repeat("A", 43), "anna"} {
		b := s.browser()
		u, _ := url.Parse(s.server.URL)
		b.Jar.SetCookies(u, []*http.Cookie{{Name: sid, Value: value, Secure: true, Path: "/"}})
		answer, _ := b.get("/desk")
		if answer.StatusCode != 303 || !strings.HasPrefix(answer.Header.Get("Location"), "/login") {
			t.Errorf("%q: %d", value, answer.StatusCode)
		}
		if answer, _ := b.get("/desk/state"); answer.StatusCode != 401 {
			t.Errorf("state %q: %d", value, answer.StatusCode)
		}
		if answer, _ := b.get("/desk/progress"); answer.StatusCode != 401 {
			t.Errorf("progress %q: %d", value, answer.StatusCode)
		}
		if _, code := b.socket(s.server.URL); code != 401 {
			t.Errorf("screen %q: %d", value, code)
		}
		if answer, _ := b.post("/admin/end", "user", "anna"); answer.StatusCode != 303 {
			t.Errorf("admin %q: %d", value, answer.StatusCode)
		}
	}
	b := s.browser().signIn("anna")
	for _, origin := range []string{"https://evil.example", "null", "http" + strings.TrimPrefix(s.server.URL, "https"), "", s.server.URL + ".evil.example"} {
		if c, code := b.socket(origin); code != 403 {
			t.Errorf("a screen from %q: %d", origin, code)
			c.CloseNow()
		}
	}
	for _, path := range []string{"/desk/stop", "/desk/restart", "/desk/start", "/logout", "/login", "/password", "/admin/end", "/language"} {
		for header, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"} {
			r, _ := http.NewRequest(http.MethodPost, s.server.URL+path, strings.NewReader("user=anna&template=xfce"))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set(header, value)
			if answer, _ := b.do(r); answer.StatusCode != 403 {
				t.Errorf("%s with %s: %d", path, header, answer.StatusCode)
			}
		}
		if answer, _ := b.get(path); answer.StatusCode == 303 && path != "/login" && path != "/password" {
			t.Errorf("GET %s did something", path)
		}
	}
	if d, _, _ := s.desks.Look(t.Context(), "anna"); !d.Spec.Wanted || d.Spec.Generation != 1 {
		t.Errorf("another site changed something: %+v", d.Spec)
	}
	s.now.Store(31 * 60)
	answer, _ := b.get("/desk")
	expect(t, "half an hour later", answer, 303, "/login?over")
}

func TestScreen(t *testing.T) {
	s := newSite(t)
	b := s.browser().signIn("anna")
	if _, code := b.socket(s.server.URL); code != 404 {
		t.Errorf("without a desktop: %d", code)
	}
	s.ready("anna")
	s.ready("ben")
	answer, text := b.get("/desk")
	if expect(t, "desk", answer, 200, ""); !strings.Contains(text, "desk.js") {
		t.Error(text)
	}
	if answer, text := b.get("/desk/state"); answer.StatusCode != 200 || strings.TrimSpace(text) != `{"warned":false}` {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
	c, code := b.socket(s.server.URL)
	if code != 101 || c.Subprotocol() != "binary" {
		t.Fatal(code)
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	if _, b, err := c.Read(t.Context()); err != nil || string(b) != "desktop of anna" {
		t.Fatalf("%s, %v", b, err)
	}
	for _, size := range []int{1, 1000, 32 << 10, 32<<10 + 1, 1 << 20} {
		sent := bytes.Repeat([]byte{3}, size)
		if err := c.Write(t.Context(), websocket.MessageBinary, sent); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes come back as %d, %v", size, len(got), err)
		}
	}
	// A key counts for the visit, and pictures do not.
	before, _ := s.visits.Get(t.Context(), b.cookie())
	s.now.Store(20 * 60)
	_ = c.Write(t.Context(), websocket.MessageBinary, []byte{3, 0})
	_, _, _ = c.Read(t.Context())
	time.Sleep(time.Second)
	if v, _ := s.visits.Get(t.Context(), b.cookie()); !v.Seen.Equal(before.Seen) {
		t.Error("what is seen counts as a person")
	}
	_ = c.Write(t.Context(), websocket.MessageBinary, []byte{4, 1})
	_, _, _ = c.Read(t.Context())
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if v, _ := s.visits.Get(t.Context(), b.cookie()); v.Seen.After(before.Seen) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a key does not count")
		}
	}
	// Logged out in another window: the screen ends, and says why.
	b.post("/logout")
	_, _, err := c.Read(t.Context())
	if websocket.CloseStatus(err) != statusSignedOut {
		t.Errorf("after a log-out: %v", err)
	}
	// Who is locked in the directory is out within a minute, and his desktop ends.
	b.signIn("ben")
	c, _ = b.socket(s.server.URL)
	defer c.CloseNow()
	_, _, _ = c.Read(t.Context())
	s.people.mu.Lock()
	delete(s.people.groups, "ben")
	s.people.mu.Unlock()
	s.now.Add(90)
	_ = c.Write(t.Context(), websocket.MessageBinary, []byte{4, 1})
	for err = nil; err == nil; {
		_, _, err = c.Read(t.Context())
	}
	if d, _, _ := s.desks.Look(t.Context(), "ben"); websocket.CloseStatus(err) != statusSignedOut || d.Spec.Wanted {
		t.Errorf("who is locked: %v, wanted %v", err, d.Spec.Wanted)
	}
}

func TestProgress(t *testing.T) {
	s := newSite(t)
	b := s.browser().signIn("anna")
	answer, text := b.get("/desk")
	if expect(t, "progress", answer, 200, ""); !strings.Contains(text, "Looking for a computer") {
		t.Error(text)
	}
	r, _ := http.NewRequest(http.MethodGet, s.server.URL+"/desk/progress", nil)
	r.Header.Set("Accept-Language", "fr, de;q=0.8, en;q=0.5")
	stream, err := b.Do(r)
	if err != nil || stream.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	var got logtest.Buffer
	done := make(chan struct{})
	go func() { defer close(done); _, _ = io.Copy(&got, stream.Body) }()
	see := func(part string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(got.String(), part); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %q in\n%s", part, got.String())
			}
		}
	}
	see("Ein Rechner mit Platz")
	s.desks.set("anna", func(d *cluster.Desk) {
		d.Status = session.Status{Phase: session.Starting, Generation: d.Spec.Generation, Stage: session.Placed, Since: s.portal.now(), Reason: session.NoVolume, Message: "MountVolume.SetUp failed <for> homes"}
	})
	see("Datenträger mit Ihren Dateien")
	see("MountVolume.SetUp failed")
	if strings.Contains(got.String(), `"failed":true`) {
		t.Error("it has failed at once")
	}
	s.now.Store(100)
	see(`"failed":true`) // by time alone
	// There is a screen before there is a desktop on it: it is connected meanwhile.
	s.desks.set("anna", func(d *cluster.Desk) {
		d.Status.Stage, d.Status.Reason, d.Status.Message, d.Status.PodIP = session.Screen, "", "", "10.244.1.2"
	})
	see(`"screen":true,"ready":false`)
	answer, text = b.get("/desk")
	if expect(t, "screen", answer, 200, ""); !strings.Contains(text, "is being painted") {
		t.Error(text)
	}
	answer, _ = b.get("/desk/state")
	expect(t, "state of one with a screen", answer, 200, "")
	s.ready("anna")
	see(`"ready":true`)
	<-done // it ends by itself
	answer, text = b.get("/desk")
	if expect(t, "ready", answer, 200, ""); !strings.Contains(text, "/desk.js") || strings.Contains(text, "<progress") {
		t.Error(text)
	}
	answer, _ = b.post("/desk/stop")
	expect(t, "stop", answer, 303, "/desk")
	if _, text := b.get("/desk"); !strings.Contains(text, "Start Classroom") || strings.Contains(text, "Office") {
		t.Error(text)
	}
	answer, _ = b.post("/desk/start", "template", "office")
	expect(t, "a desktop that is not for her", answer, 403, "")
	c := s.browser().signIn("carla")
	if _, text := c.get("/desk"); !strings.Contains(text, "Office &lt;b&gt;") {
		t.Errorf("of two without a default one chooses: %s", text)
	}
}

func TestPassword(t *testing.T) {
	s := newSite(t)
	s.people.must["anna"] = true
	b, other := s.browser(), s.browser()
	answer, _ := b.post("/login", "user", "anna", "password", right)
	expect(t, "one that somebody else knows", answer, 303, "/password")
	other.signIn("anna")
	for _, path := range []string{"/desk", "/admin"} {
		answer, _ = b.get(path)
		expect(t, path, answer, 303, "/password")
	}
	if answer, _ = b.get("/desk/state"); answer.StatusCode != 403 {
		t.Error(answer.StatusCode)
	}
	answer, _ = b.post("/password", "old", right, "new", "short", "again", "short")
	expect(t, "short", answer, 422, "")
	answer, _ = b.post("/password", "old", right, "new", "a long password", "again", "another long one")
	expect(t, "two different", answer, 422, "")
	answer, _ = b.post("/password", "old", "canary-of-a-wrong-password", "new", "a long password", "again", "a long password")
	expect(t, "wrong", answer, 403, "")
	answer, _ = b.post("/password", "old", right, "new", "a long password", "again", "a long password")
	expect(t, "changed", answer, 200, "")
	answer, _ = b.get("/desk")
	if answer.StatusCode != 200 {
		t.Error(answer.StatusCode)
	}
	answer, _ = other.get("/desk")
	expect(t, "the other browser", answer, 303, "/login?over")
}

func TestAdmin(t *testing.T) {
	s := newSite(t)
	s.desks.set("anna", func(d *cluster.Desk) {
		d.Spec.Wanted, d.Status = true, session.Status{Phase: session.Fenced, Node: "pc-02", Pod: "desk-anna-1", Reason: session.FormerAlive}
	})
	b := s.browser().signIn("anna")
	answer, _ := b.get("/admin")
	expect(t, "a pupil", answer, 403, "")
	answer, _ = b.post("/admin/end", "user", "carla")
	expect(t, "a pupil who ends", answer, 403, "")
	c := s.browser().signIn("carla")
	answer, text := c.get("/admin")
	if expect(t, "an administrator", answer, 200, ""); false {
		return
	}
	for _, part := range []string{"pc-01", "master", "homes", "3/3", "c0ffee", "beef00", "one &lt;volume&gt; heals", "anna"} {
		if !strings.Contains(text, part) {
			t.Errorf("the page lacks %q", part)
		}
	}
	answer, _ = c.post("/admin/end", "user", "anna")
	expect(t, "end", answer, 303, "/admin")
	if d, _, _ := s.desks.Look(t.Context(), "anna"); d.Spec.Wanted {
		t.Error("it goes on")
	}
	s.people.mu.Lock()
	s.people.groups["carla"] = []string{"pupils"}
	s.people.mu.Unlock()
	answer, _ = c.get("/admin")
	expect(t, "who was one", answer, 403, "")
}

// TestCrowd: a thousand sign in at once, of which ten may.
func TestCrowd(t *testing.T) {
	s := newSite(t)
	s.people.mu.Lock()
	for i := range 10 {
		s.people.groups[fmt.Sprint("pupil", i)] = []string{"pupils"}
	}
	s.people.mu.Unlock()
	statuses := make([]int, 1000)
	var all sync.WaitGroup
	for i := range statuses {
		all.Go(func() {
			user, password, from := fmt.Sprint("guess", i), "canary-of-a-wrong-password", netip.AddrFrom4([4]byte{203, 0, 113, byte(i % 16)})
			if i%3 == 0 {
				user = "anna" // many at one account, from many places
			}
			if i%100 == 0 {
				user, password, from = fmt.Sprint("pupil", i/100), right, netip.AddrFrom4([4]byte{10, 20, 1, byte(i / 100)})
			}
			form := url.Values{"user": {user}, "password": {password}}
			r := httptest.NewRequest(http.MethodPost, "https://portal.example/login", strings.NewReader(form.Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.RemoteAddr = netip.AddrPortFrom(from, 4000).String()
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			statuses[i] = w.Code
		})
	}
	all.Wait()
	count := map[int]int{}
	for i, status := range statuses {
		count[status]++
		if i%100 == 0 && status != 303 {
			t.Errorf("one of the ten: %d", status)
		}
	}
	t.Log(count)
	if count[303] != 10 || count[401]+count[429] != 990 || count[429] == 0 {
		t.Error(count)
	}
}

// TestNoUserInAddresses: no address leads to somebody else, nor out of the assets.
func TestNoUserInAddresses(t *testing.T) {
	s := newSite(t)
	s.ready("anna")
	b := s.browser().signIn("anna")
	for _, path := range []string{"/desk/anna", "/desk/ws/anna", "/assets/../web.go", "/assets/", "/assets/0/static", "/assets/0/static/../../web.go", "/nowhere", "/text/en.json"} {
		if answer, _ := b.get(path); answer.StatusCode/100 == 2 {
			t.Errorf("%s: %d", path, answer.StatusCode)
		}
	}
	_, page := b.get("/password")
	version := regexp.MustCompile(`/assets/([0-9a-f]+)/`).FindStringSubmatch(page)
	if version == nil {
		t.Fatalf("no assets in %s", page)
	}
	for of, kept := range map[string]string{version[1]: "private, max-age=31536000, immutable", "0123456789ab": "no-cache"} {
		for _, file := range []string{"static/style.css", "static/desk.js", "novnc/core/rfb.js", "novnc/vendor/pako/lib/zlib/inflate.js"} {
			answer, text := b.get("/assets/" + of + "/" + file)
			if answer.StatusCode != 200 || answer.Header.Get("ETag") == "" || text == "" || answer.Header.Get("Cache-Control") != kept {
				t.Errorf("%s of %s: %d %v", file, of, answer.StatusCode, answer.Header)
			}
		}
	}
}
