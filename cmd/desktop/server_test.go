package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

const token = "a token of this very session, canary"

// secrets writes what the portal mounts.
func secrets(t testing.TB, dir, name string) (roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, content := range map[string][]byte{
		"token":   []byte(token + "\n"),
		"tls.crt": certificate,
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	return roots
}

// fake is a desktop without anything on it.
func fake(t testing.TB) (*Desktop, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	secrets(t, dir, "desktop")
	var said bytes.Buffer
	d, err := New(Options{User: "anna", Home: dir, Secrets: dir, Runtime: dir, Listen: "127.0.0.1:0",
		Log: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.own(""), 0o700); err != nil {
		t.Fatal(err)
	}
	return d, &said
}

// xvnc answers at the socket of a fake as talk does.
func xvnc(t testing.TB, d *Desktop, talk func(net.Conn)) {
	t.Helper()
	listener, err := net.Listen("unix", d.socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			nc, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				talk(nc)
			}()
		}
	}()
}

func echo(nc net.Conn) { _, _ = io.Copy(nc, nc) }

// Who waits for the next stage hears of it when it comes, and else after a second.
func TestNextStage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := fake(t)
		begin := time.Now()
		took := func(want time.Duration) {
			t.Helper()
			if got := time.Since(begin); got != want {
				t.Errorf("after %s, want %s", got, want)
			}
		}
		d.past(t.Context(), "")
		d.past(t.Context(), Painted)
		took(0)
		d.past(t.Context(), Starting)
		took(time.Second)
		time.AfterFunc(300*time.Millisecond, func() { d.set(Starting, "", errors.New("not yet")) })
		time.AfterFunc(500*time.Millisecond, func() { d.set(Screen, ":1", nil) })
		d.past(t.Context(), Starting)
		took(1500 * time.Millisecond)
	})
}

func TestRequests(t *testing.T) {
	d, said := fake(t)
	server := httptest.NewServer(d.handler())
	defer server.Close()
	ask := func(method, path, authorization, body string) (int, string) {
		t.Helper()
		r, _ := http.NewRequest(method, server.URL+path, strings.NewReader(body))
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, string(text)
	}
	const bearer = "Bearer " + token
	table := func(stage string, rows [][]string) {
		t.Helper()
		for _, row := range rows {
			method, path, _ := strings.Cut(row[0], " ")
			body := ""
			if len(row) > 3 {
				body = row[3]
			}
			code, text := ask(method, path, row[1], body)
			if http.StatusText(code) != row[2] {
				t.Errorf("%s: %s with %q: %d %s, want %s", stage, row[0], row[1], code, text, row[2])
			}
			if strings.HasSuffix(path, "z") && text != "" {
				t.Errorf("%s says %q to anybody", path, text)
			}
			if strings.Contains(text, "canary") {
				t.Errorf("%s tells the token", row[0])
			}
		}
	}
	table("starting", [][]string{
		{"GET /healthz", "", "OK"},
		{"GET /readyz", "", "Service Unavailable"},
		{"GET /status", "", "Unauthorized"},
		{"GET /status", "Bearer ", "Unauthorized"},
		{"GET /status", "Bearer " + token[1:], "Unauthorized"},
		{"GET /status", "Bearer " + token + "x", "Unauthorized"},
		{"GET /status", "Basic " + token, "Unauthorized"},
		{"GET /vnc", "", "Unauthorized"},
		{"GET /vnc?token=" + strings.ReplaceAll(token, " ", "+"), "", "Unauthorized"},
		{"POST /warn", "", "Unauthorized", `{"text": "x"}`},
		{"GET /", "", "Unauthorized"},
		{"GET /../readyz/x", "", "Unauthorized"},
		{"GET /status", bearer, "OK"},
		{"GET /", bearer, "Not Found"},
		{"POST /status", bearer, "Method Not Allowed"},
		{"GET /vnc", bearer, "Service Unavailable"},
		{"GET /warn", bearer, "Method Not Allowed"},
		{"POST /warn", bearer, "Bad Request", `text`},
		{"POST /warn", bearer, "Bad Request", `{"text": "  "}`},
		{"POST /warn", bearer, "Bad Request", `{"text": "` + strings.Repeat("x", 9000) + `"}`},
		{"POST /warn", bearer, "Service Unavailable", `{"text": "soon"}`},
	})
	d.set(Screen, ":1", nil)
	table("screen", [][]string{{"GET /readyz", "", "Service Unavailable"}})
	d.set(Painted, ":1", nil)
	table("painted", [][]string{{"GET /readyz", "", "OK"}})
	d.set(Screen, ":1", errors.New("the session ended"))
	table("again", [][]string{{"GET /readyz", "", "Service Unavailable"}})
	d.lost.Store(true)
	table("no home", [][]string{{"GET /healthz", "", "Service Unavailable"}})

	_, text := ask("GET", "/status", bearer, "")
	var status Status
	err := json.Unmarshal([]byte(text), &status)
	told := status.Clock
	if status.Clock = 0; err != nil || told <= 0 || told > clock().Milliseconds() || status != (Status{Stage: Screen, Reason: "the session ended"}) {
		t.Errorf("status %s %v", text, err)
	}

	for _, content := range []string{"", "\n", "short"} {
		if err := os.WriteFile(filepath.Join(d.Secrets, "token"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		table("token is "+content, [][]string{
			{"GET /status", "Bearer " + strings.TrimSpace(content), "Service Unavailable"},
			{"GET /status", "", "Service Unavailable"},
		})
	}
	if err := os.WriteFile(filepath.Join(d.Secrets, "token"), []byte(strings.Repeat("another", 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	table("another token", [][]string{
		{"GET /status", bearer, "Unauthorized"},
		{"GET /status", "Bearer " + strings.Repeat("another", 10), "OK"},
	})
	if strings.Contains(said.String(), "canary") {
		t.Errorf("the log tells the token: %s", said)
	}
}

// TestTLS: the certificate is the one that is mounted now, and nothing older than
// TLS 1.3 is spoken.
func TestTLS(t *testing.T) {
	d, _ := fake(t)
	address := serve(t, d)
	for _, name := range []string{"one", "two"} {
		roots := secrets(t, d.Secrets, name)
		nc, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, ServerName: name})
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
	if _, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("it speaks TLS 1.2")
	}
	os.Remove(filepath.Join(d.Secrets, "tls.key"))
	if _, err := d.serve(); err == nil || !strings.Contains(err.Error(), "mount its Secret at "+d.Secrets) {
		t.Errorf("without a key: %v", err)
	}
}

// serve serves a fake as Run does, and gives its address.
func serve(t testing.TB, d *Desktop) (address string) {
	t.Helper()
	d.Log = slog.New(slog.NewTextHandler(writer(func(b []byte) {
		if _, after, ok := strings.Cut(string(b), "address="); ok {
			address = strings.TrimSpace(after)
		}
	}), nil))
	stop, err := d.serve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return address
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

func dial(t testing.TB, ctx context.Context, url string, header http.Header) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	header.Set("Authorization", "Bearer "+token)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // TestTLS verifies
	return websocket.Dial(ctx, url+"/vnc", &websocket.DialOptions{HTTPClient: client, HTTPHeader: header, Subprotocols: []string{"binary"}})
}

// TestPipe: what comes in goes out, however long; clients are counted, and input is
// told from what is none.
func TestPipe(t *testing.T) {
	d, _ := fake(t)
	xvnc(t, d, echo)
	url := "https://" + serve(t, d)
	ws, _, err := dial(t, t.Context(), url, http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if ws.Subprotocol() != "binary" {
		t.Errorf("subprotocol %q", ws.Subprotocol())
	}
	ws.SetReadLimit(-1)
	d.begin = d.begin.Add(-time.Hour)
	send := func(text string) {
		t.Helper()
		go func() { _ = ws.Write(t.Context(), websocket.MessageBinary, []byte(text)) }()
		got, err := io.ReadAll(io.LimitReader(websocket.NetConn(t.Context(), ws, websocket.MessageBinary), int64(len(text))))
		if err != nil || string(got) != text {
			t.Fatalf("%d bytes came back as %d: %v", len(text), len(got), err)
		}
	}
	send("RFB 003.008\n\x01\x01")
	send("\x03\x01\x00\x00\x00\x00\x07\x80\x04\x38")
	if s := d.Status(); s.Clients != 1 || s.IdleSeconds < 3600 {
		t.Errorf("after a request for an update: %+v", s)
	}
	send("\x06\x00\x00\x00\x00\x10\x00\x00" + strings.Repeat("text", 1<<18)) // a megabyte
	if s := d.Status(); s.IdleSeconds > 60 {
		t.Errorf("after the clipboard: %+v", s)
	}
	d.begin = d.begin.Add(-time.Hour)
	send("\x04\x01\x00\x00\x00\x00\x00\x61")
	if s := d.Status(); s.IdleSeconds > 60 {
		t.Errorf("after a key: %+v", s)
	}
	ws.CloseNow()
	eventually(t, "the client is forgotten", func() bool { return d.Status().Clients == 0 })

	if _, answer, err := dial(t, t.Context(), url, http.Header{"Origin": {"https://evil.example"}}); err == nil || answer.StatusCode != http.StatusForbidden {
		t.Errorf("another origin: %v %v", answer, err)
	}
}

// TestHeld: what is gathered goes out at once and in order, and nothing is lost of
// what is written beside.
func TestHeld(t *testing.T) {
	var nothing *held
	nothing.hold()
	if err := nothing.release(); err != nil {
		t.Error(err)
	}
	here, there := net.Pipe()
	defer there.Close()
	got := make(chan string)
	go func() {
		b := make([]byte, 100)
		for {
			n, err := there.Read(b)
			if err != nil {
				return
			}
			got <- string(b[:n])
		}
	}()
	h := &held{Conn: here}
	for range 2 {
		go io.WriteString(h, "at once")
		if text := <-got; text != "at once" {
			t.Errorf("it wrote %q", text)
		}
		h.hold()
		for _, text := range []string{"a", "b", "c"} {
			if n, err := io.WriteString(h, text); n != 1 || err != nil {
				t.Errorf("%d %v", n, err)
			}
		}
		go h.release()
		if text := <-got; text != "abc" {
			t.Errorf("it wrote %q", text)
		}
	}
	h.hold()
	here.Close()
	_, _ = io.WriteString(h, "lost")
	if err := h.release(); err == nil {
		t.Error("that it was closed is no error")
	}
}

// TestScreenEnds: the client learns that it may come again.
func TestScreenEnds(t *testing.T) {
	d, _ := fake(t)
	xvnc(t, d, func(nc net.Conn) { _, _ = io.WriteString(nc, "RFB 003.008\n") })
	server := httptest.NewServer(d.handler())
	defer server.Close()
	ws, _, err := dial(t, t.Context(), server.URL, http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if _, text, err := ws.Read(t.Context()); err != nil || string(text) != "RFB 003.008\n" {
		t.Fatalf("%q %v", text, err)
	}
	if _, _, err := ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the end: %v", err)
	}
}

// TestSilent: who answers no ping is let go, and who does is kept.
func TestSilent(t *testing.T) {
	d, _ := fake(t)
	xvnc(t, d, func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) })
	ended := make(chan error, 2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		screen, err := net.Dial("unix", d.socket())
		if err != nil {
			return
		}
		ended <- (&pipe{ws: ws, screen: screen.(*net.UnixConn), every: 30 * time.Millisecond, touched: d.touched}).run()
	}))
	defer server.Close()
	awake, _, err := dial(t, t.Context(), server.URL, http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	defer awake.CloseNow()
	awake.CloseRead(t.Context()) // reads, and so answers
	asleep, _, err := dial(t, t.Context(), server.URL, http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	defer asleep.CloseNow()
	if reason := <-ended; reason != errSilent {
		t.Errorf("it ended, for %v", reason)
	}
	select {
	case reason := <-ended:
		t.Errorf("the other ended too, for %v", reason)
	case <-time.After(300 * time.Millisecond):
	}
	awake.CloseNow()
	if reason := <-ended; reason != errClient {
		t.Errorf("the other ended, for %v", reason)
	}
}

// TestOptions: what is wrong is said before anything is begun.
func TestOptions(t *testing.T) {
	home := t.TempDir()
	file := filepath.Join(home, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{User: "anna", Home: home}, ""},
		{Options{User: "anna", Home: home, Screen: "1280x800"}, ""},
		{Options{User: "anna", Home: home, Screen: "1280x800 -rfbport 5900"}, "want a size"},
		{Options{Home: home}, "HOME and USER"},
		{Options{User: "anna"}, "HOME and USER"},
		{Options{User: "anna", Home: filepath.Join(home, "none")}, "is its volume mounted?"},
		{Options{User: "anna", Home: file}, "is not a folder"},
	} {
		if _, err := New(c.o); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
}

// TestEnvironment: what the portal gives is the session's, but for what only the
// desktop knows.
func TestEnvironment(t *testing.T) {
	d, _ := fake(t)
	d.Environ = []string{"LANG=de_DE.UTF-8", "DISPLAY=:77", "EXAM=1"}
	has := map[string]string{}
	for _, line := range d.environ(":3") {
		name, value, _ := strings.Cut(line, "=")
		has[name] = value
	}
	for name, want := range map[string]string{"LANG": "de_DE.UTF-8", "DISPLAY": ":3", "EXAM": "1", "LOGNAME": "anna",
		"XDG_CACHE_HOME": "/tmp/cache", "XAUTHORITY": d.authority()} {
		if has[name] != want {
			t.Errorf("%s is %q, want %q", name, has[name], want)
		}
	}
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never is so that %s", what)
		}
	}
}
