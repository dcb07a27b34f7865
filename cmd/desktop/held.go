package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// A held connection can gather what is written to it. TLS writes 16 KB at a time,
// each with a call of the kernel, which costs more than to encrypt them.
type held struct {
	net.Conn
	mu       sync.Mutex
	gathered *bytes.Buffer // nil while it gathers nothing
}

var gatherings = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func (h *held) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gathered == nil {
		return h.Conn.Write(b)
	}
	return h.gathered.Write(b)
}

// hold begins to gather. A connection that cannot, nil, goes on as it did.
func (h *held) hold() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gathered = gatherings.Get().(*bytes.Buffer)
}

// release writes what was gathered.
func (h *held) release() error {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	gathered := h.gathered
	h.gathered = nil
	_, err := h.Conn.Write(gathered.Bytes())
	gathered.Reset()
	gatherings.Put(gathered)
	return err
}

// holding is a listener of such connections.
type holding struct{ net.Listener }

func (l holding) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &held{Conn: nc}, nil
}

type heldKey struct{}

// withHeld lets the handler of a request find its connection.
func withHeld(ctx context.Context, nc net.Conn) context.Context {
	if secure, ok := nc.(*tls.Conn); ok {
		if h, ok := secure.NetConn().(*held); ok {
			return context.WithValue(ctx, heldKey{}, h)
		}
	}
	return ctx
}

func heldOf(ctx context.Context) *held {
	h, _ := ctx.Value(heldKey{}).(*held)
	return h
}
