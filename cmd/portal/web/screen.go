package web

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/visit"
)

// How the stream of a screen is looked after.
const (
	defaultPulse = 20 * time.Second // a ping to both sides, and a look at the visit
	// What a browser may send at once: a clipboard.
	maxFromBrowser = 4 << 20
	// What a desktop may: a whole picture, of the largest screen.
	maxFromDesktop = 256 << 20
)

// Why the stream ended, beside the codes of the protocol.
const statusSignedOut = websocket.StatusCode(4401)

// screen connects the visitor with his own desktop. Nothing in the request says which.
func (p *Portal) screen(w http.ResponseWriter, r *http.Request) {
	// CrossOriginProtection lets every GET through, and a handshake is one; the library
	// lets those through that name no origin. Browsers always do.
	if r.Header.Get("Origin") != "https://"+r.Host {
		p.audit(r, "cross-origin screen refused", "")
		http.Error(w, "The request came from another site.", http.StatusForbidden)
		return
	}
	v, err := p.who(r, false) // a script connects again by itself
	switch {
	case errors.Is(err, visit.ErrNone):
		http.Error(w, "Sign in first.", http.StatusUnauthorized)
		return
	case err != nil:
		p.Log.Warn("a screen could not be opened", "error", err)
		http.Error(w, "The site does not answer.", http.StatusServiceUnavailable)
		return
	case v.MustChange:
		http.Error(w, "Change the password first.", http.StatusForbidden)
		return
	}
	dialing, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	desktop, err := p.Screens(dialing, v.User)
	cancel()
	if errors.Is(err, cluster.ErrAway) {
		http.Error(w, "No desktop runs.", http.StatusNotFound)
		return
	}
	if err != nil {
		p.Log.Warn("a desktop could not be reached", "error", err)
		http.Error(w, "The desktop does not answer.", http.StatusBadGateway)
		return
	}
	defer desktop.CloseNow()
	browser, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"binary"}, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return // it has been answered
	}
	defer browser.CloseNow()
	browser.SetReadLimit(maxFromBrowser)
	desktop.SetReadLimit(maxFromDesktop)
	begun := p.now()
	p.audit(r, "screen opened", v.User)
	s := stream{pulse: cmp.Or(p.pulse, defaultPulse)}
	s.run(r.Context(), browser, desktop, func(active bool) error {
		if active {
			if err := p.goesOn(r, v); errors.Is(err, visit.ErrNone) {
				return err
			}
		}
		_, err := p.Visits.Get(r.Context(), v.cookie)
		if errors.Is(err, visit.ErrNone) {
			return err
		}
		return nil // an API that is away ends no stream
	})
	p.audit(r, "screen closed", v.User, "seconds", int(p.now().Sub(begun).Seconds()), "sent", s.sent.Load(), "received", s.received.Load())
}

// stream is one screen's bytes, in both directions.
type stream struct {
	pulse          time.Duration
	sent, received atomic.Int64 // to and from the browser
	input          atomic.Bool  // since the last pulse
}

// run copies until one side ends, or does not answer, or the visit is over.
func (s *stream) run(ctx context.Context, browser, desktop *websocket.Conn, visited func(active bool) error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type end struct {
		code   websocket.StatusCode
		reason string
	}
	ends := make(chan end, 5) // each of the five ends once
	var all sync.WaitGroup
	all.Go(func() {
		copyMessages(ctx, desktop, browser, func(first byte, n int64) {
			s.received.Add(n)
			// Of RFB: a key, the mouse, a clipboard; and 255, a key as QEMU has it, which is
			// what browsers send where the server takes it. What is seen is no sign of a
			// person: a clock sends for ever.
			if first >= 4 && first <= 6 || first == 255 {
				s.input.Store(true)
			}
		})
		ends <- end{websocket.StatusNormalClosure, "closed"}
	})
	all.Go(func() {
		copyMessages(ctx, browser, desktop, func(_ byte, n int64) { s.sent.Add(n) })
		ends <- end{websocket.StatusServiceRestart, "the desktop ended"}
	})
	for _, side := range []*websocket.Conn{browser, desktop} {
		all.Go(func() {
			for missed := 0; missed < 2; {
				if !sleep(ctx, s.pulse) {
					return
				}
				waiting, cancel := context.WithTimeout(ctx, s.pulse)
				err := side.Ping(waiting)
				cancel()
				if missed++; err == nil {
					missed = 0
				}
			}
			ends <- end{websocket.StatusGoingAway, "no answer"}
		})
	}
	all.Go(func() {
		for sleep(ctx, s.pulse) {
			if visited(s.input.Swap(false)) != nil {
				ends <- end{statusSignedOut, "signed out"}
				return
			}
		}
	})
	e := <-ends
	_ = browser.Close(e.code, e.reason) // before cancel, which ends it without a word
	cancel()
	desktop.CloseNow()
	all.Wait()
}

// buffers are shared: an idle screen holds none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// copyMessages copies from one side to the other, message by message and as they come,
// and never looks into one beyond its first byte.
func copyMessages(ctx context.Context, to, from *websocket.Conn, count func(first byte, n int64)) {
	for {
		kind, r, err := from.Reader(ctx)
		if err != nil || kind != websocket.MessageBinary {
			return
		}
		if err := copyMessage(ctx, to, r, count); err != nil {
			return
		}
	}
}

func copyMessage(ctx context.Context, to *websocket.Conn, r io.Reader, count func(first byte, n int64)) error {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	n, err := io.ReadFull(r, *b)
	if err == io.EOF || err == io.ErrUnexpectedEOF { // all of it: one frame
		if n > 0 {
			count((*b)[0], int64(n))
		}
		return to.Write(ctx, websocket.MessageBinary, (*b)[:n])
	}
	if err != nil {
		return err
	}
	w, err := to.Writer(ctx, websocket.MessageBinary)
	if err != nil {
		return err
	}
	for first := (*b)[0]; ; {
		if _, err := w.Write((*b)[:n]); err != nil {
			return err
		}
		count(first, int64(n))
		n, err = io.ReadFull(r, *b)
		first = 0
		if err == io.EOF {
			return w.Close()
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return err
		}
	}
}

// sleep reports whether the time went by.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
