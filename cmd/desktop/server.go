package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// serve answers the portal until it is stopped. Secrets are read when they are
// needed: a Secret that is mounted may change.
func (d *Desktop) serve() (stop func(), err error) {
	if _, err := d.token(); err != nil {
		return nil, err
	}
	if _, err := d.certificate(nil); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		_ = c.Control(func(fd uintptr) {
			// Who does not acknowledge what was sent is gone: after half a minute, and
			// not after the quarter of an hour that is usual. Connections inherit it.
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 30_000)
		})
		return err
	}}
	listener, err := config.Listen(context.Background(), "tcp", d.Listen)
	if err != nil {
		return nil, err
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true) // WebSockets are of that
	server := &http.Server{
		Handler:   d.handler(),
		Protocols: protocols,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, GetCertificate: d.certificate,
			DynamicRecordSizingDisabled: true, // it delays the first screen, for pages that browsers parse as they come
		},
		ConnContext:       withHeld,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // anybody who can connect could fill the log
	}
	go func() { _ = server.ServeTLS(holding{listener}, "", "") }()
	d.Log.Info("listening", "address", listener.Addr().String())
	return func() { _ = server.Close() }, nil
}

// certificate reads certificate and key.
func (d *Desktop) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(d.Secrets, "tls.crt"), filepath.Join(d.Secrets, "tls.key"))
	if err != nil {
		return nil, fmt.Errorf("read the certificate of the session: %w: mount its Secret at %s", err, d.Secrets)
	}
	return &pair, nil
}

// token is the hash of the token that requests need.
func (d *Desktop) token() (sum [sha256.Size]byte, err error) {
	text, err := os.ReadFile(filepath.Join(d.Secrets, "token"))
	if err != nil {
		return sum, fmt.Errorf("read the token of the session: %w: mount its Secret at %s", err, d.Secrets)
	}
	// A short one could be guessed, and an empty one is everybody's.
	if text = bytes.TrimSpace(text); len(text) < 32 {
		return sum, fmt.Errorf("read the token of the session: %s has %d characters: want 32 or more, of random", filepath.Join(d.Secrets, "token"), len(text))
	}
	return sha256.Sum256(text), nil
}

// handler answers requests. Kubernetes asks the first two, and hears nothing but
// yes and no; the others are the portal's.
func (d *Desktop) handler() http.Handler {
	inner := http.NewServeMux()
	inner.HandleFunc("GET /vnc", d.vnc)
	inner.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		d.past(r.Context(), Stage(r.URL.Query().Get("after"))) // who waits for the next stage hears of it at once
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(d.Status())
	})
	inner.HandleFunc("POST /warn", d.warn)
	inner.HandleFunc("POST /lease", d.renew)

	outer := http.NewServeMux()
	when := func(ok func() bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if !ok() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}
	}
	outer.HandleFunc("GET /healthz", when(func() bool { return !d.lost.Load() }))
	outer.HandleFunc("GET /readyz", when(func() bool { return d.Status().Ready }))
	outer.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		want, err := d.token()
		if err != nil {
			d.Log.Error("nobody can be let in", "reason", err.Error())
			http.Error(w, "the desktop has no token", http.StatusServiceUnavailable)
			return
		}
		given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		// Hashes, so that the time that it takes says nothing of the length either.
		if got := sha256.Sum256([]byte(given)); subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "want the token of this session", http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	})
	return outer
}

// renew lets the desktop go on until a time of its own clock.
func (d *Desktop) renew(w http.ResponseWriter, r *http.Request) {
	var given struct{ Until int64 }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&given); err != nil {
		http.Error(w, `want {"until": MILLISECONDS}, by the clock of /status`, http.StatusBadRequest)
		return
	}
	d.lease.renew(time.Duration(given.Until) * time.Millisecond)
	w.WriteHeader(http.StatusNoContent)
}

// warn shows the user a text, in a corner of the screen, until it is taken away.
func (d *Desktop) warn(w http.ResponseWriter, r *http.Request) {
	var warning struct{ Text string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 8<<10)).Decode(&warning); err != nil {
		http.Error(w, `want {"text": "..."}, of 8 KB at most`, http.StatusBadRequest)
		return
	}
	text := strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return -1
		}
		return r
	}, warning.Text))
	if text == "" {
		http.Error(w, "there is no text", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 15*time.Second)
	defer cancel()
	switch err := d.notify(ctx, text); {
	case errors.Is(err, errDark):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case err != nil:
		d.Log.Error("a warning was not shown", "reason", err.Error())
		http.Error(w, "the warning was not shown", http.StatusBadGateway)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

var errDark = errors.New("there is nothing on the screen yet")

func (d *Desktop) notify(ctx context.Context, text string) error {
	d.mu.Lock()
	stage, display := d.stage, d.display
	d.mu.Unlock()
	if stage != Painted {
		return errDark
	}
	// Notifications take markup.
	text = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
	cmd := exec.Command("notify-send", "--app-name=Kingmaker", "--urgency=critical", "--icon=dialog-warning", "--", "Kingmaker", text)
	cmd.Env = d.environ(display)
	sent, err := d.family.start(cmd)
	if err != nil {
		return fmt.Errorf("run notify-send: %w", err)
	}
	select {
	case <-sent.ended:
		if sent.err != nil && !errors.Is(sent.err, exec.ErrWaitDelay) {
			return fmt.Errorf("notify-send: %w\n%s", sent.err, sent.said.last(3))
		}
		return nil
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		return fmt.Errorf("notify-send: %w", ctx.Err())
	}
}
