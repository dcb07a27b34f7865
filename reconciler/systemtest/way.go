package systemtest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Way is a way to a server that can be cut while the server stays, as that of a
// balancer is which lost its masters for a moment. It is open from the beginning,
// and ends with the test.
type Way struct {
	Address string // of this end: HOST:PORT
	to      string // the server

	mu       sync.Mutex
	listener net.Listener // nil while it is cut
	open     []net.Conn
}

// NewWay opens a way to the server at HOST:PORT.
func NewWay(t *testing.T, to string) *Way {
	t.Helper()
	w := &Way{Address: "127.0.0.1:0", to: to}
	w.Mend(t)
	t.Cleanup(w.Cut)
	return w
}

// Mend opens a way that was cut, at the same address.
func (w *Way) Mend(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", w.Address)
	if err != nil {
		t.Fatal(err)
	}
	w.Address = listener.Addr().String()
	w.mu.Lock()
	w.listener = listener
	w.mu.Unlock()
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			w.lead(listener, from)
		}
	}()
}

// lead connects one who came by a listener with the server.
func (w *Way) lead(listener net.Listener, from net.Conn) {
	to, err := net.Dial("tcp", w.to)
	if err != nil {
		from.Close()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listener != listener { // cut meanwhile
		from.Close()
		to.Close()
		return
	}
	w.open = append(w.open, from, to)
	go func() { io.Copy(to, from); to.Close() }()
	go func() { io.Copy(from, to); from.Close() }()
}

// Cut ends all connections, and refuses new ones.
func (w *Way) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listener != nil {
		w.listener.Close()
		w.listener = nil
	}
	for _, c := range w.open {
		c.Close()
	}
	w.open = nil
}
