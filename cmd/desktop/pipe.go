package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"github.com/kingmaker-io/kingmaker/cmd/desktop/rfb"
)

// How long a client that says nothing is still there.
const (
	pingEvery = 20 * time.Second
	mayMiss   = 2
)

// vnc carries the screen over a WebSocket.
func (d *Desktop) vnc(w http.ResponseWriter, r *http.Request) {
	screen, err := net.DialTimeout("unix", d.socket(), 2*time.Second)
	if err != nil {
		http.Error(w, "there is no screen yet", http.StatusServiceUnavailable)
		return
	}
	defer screen.Close()
	// Of other origins it takes none; the portal, which is no browser, names none.
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:    []string{"binary"},
		CompressionMode: websocket.CompressionDisabled, // what VNC sends is compressed
	})
	if err != nil {
		return // Accept has answered
	}
	p := &pipe{ws: ws, screen: screen.(*net.UnixConn), held: heldOf(r.Context()), every: pingEvery, touched: d.touched}
	begin := time.Now()
	n := d.clients.Add(1)
	d.Log.Info("a client came", "clients", n)
	reason := p.run()
	n = d.clients.Add(-1)
	d.Log.Info("a client went", "clients", n, "after", time.Since(begin).Round(time.Second).String(), "reason", reason.Error())
}

// A pipe is one connection. It holds no buffer while nothing passes.
type pipe struct {
	ws      *websocket.Conn
	screen  *net.UnixConn
	held    *held
	every   time.Duration
	touched func() // is told of a person's input

	seen    atomic.Bool   // the client said something
	writing atomic.Bool   // something is on its way to the client
	sent    atomic.Uint64 // how much has got there

	done   chan struct{}
	once   sync.Once
	reason error
}

var (
	errClient = errors.New("the client left")
	errScreen = errors.New("the screen ended")
	errSilent = errors.New("the client does not answer")
)

// run carries both ways until one end is gone, and says which.
func (p *pipe) run() error {
	p.done = make(chan struct{})
	p.ws.SetReadLimit(-1) // messages are passed on as they come
	var all sync.WaitGroup
	all.Go(func() { p.end(p.down()) })
	all.Go(func() { p.end(p.alive()) })
	p.end(p.up())
	all.Wait()
	return p.reason
}

// end ends it all, for the first reason that there is.
func (p *pipe) end(reason error) {
	p.once.Do(func() {
		p.reason = reason
		close(p.done)
		if reason == errScreen {
			_ = p.ws.Close(websocket.StatusGoingAway, reason.Error())
		}
		_ = p.ws.CloseNow()
		_ = p.screen.Close()
	})
}

// chunk is how much passes at once at most. VNC's updates are some 10 to 100 KB; with half
// of it a stream costs a tenth more of the processor, with twice no less.
const chunk = 128 << 10

var buffers = sync.Pool{New: func() any { return new([chunk]byte) }}

// down carries what the screen shows.
func (p *pipe) down() error {
	raw, err := p.screen.SyscallConn()
	if err != nil {
		return errScreen
	}
	for {
		var b *[chunk]byte
		n := 0
		// The buffer is taken when there is something to read, and given back when
		// there is not: most of the time most screens stand still.
		err := raw.Read(func(fd uintptr) bool {
			b = buffers.Get().(*[chunk]byte)
			var failed error
			for {
				if n, failed = syscall.Read(int(fd), b[:]); failed != syscall.EINTR {
					break
				}
			}
			if failed == syscall.EAGAIN {
				buffers.Put(b)
				return false
			}
			return true
		})
		if err != nil { // it was closed
			return errScreen
		}
		if n <= 0 {
			buffers.Put(b)
			return errScreen
		}
		p.writing.Store(true)
		p.held.hold()
		err = p.ws.Write(context.Background(), websocket.MessageBinary, b[:n])
		err = errors.Join(err, p.held.release())
		p.writing.Store(false)
		p.sent.Add(uint64(n))
		buffers.Put(b)
		if err != nil {
			return errClient
		}
	}
}

// up carries what the client says.
func (p *pipe) up() error {
	var watch rfb.Watch
	for {
		_, message, err := p.ws.Reader(context.Background())
		if err != nil {
			return errClient
		}
		b := buffers.Get().(*[chunk]byte)
		for err == nil {
			var n int
			n, err = message.Read(b[:])
			if n > 0 {
				p.seen.Store(true)
				if watch.See(b[:n]) {
					p.touched()
				}
				if _, failed := p.screen.Write(b[:n]); failed != nil {
					buffers.Put(b)
					return errScreen
				}
			}
		}
		buffers.Put(b)
		if err != io.EOF {
			return errClient
		}
	}
}

// alive asks the client whether it is there, so that whatever is between the two
// sees something pass, and so that one that has vanished is let go.
func (p *pipe) alive() error {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	var sent uint64
	for missed := 0; ; {
		select {
		case <-p.done:
			return errClient
		case <-tick.C:
		}
		if p.ping() || p.seen.Swap(false) || p.sent.Load() != sent && p.writing.Load() {
			missed = 0
		} else if missed++; missed >= mayMiss {
			return errSilent
		}
		sent = p.sent.Load()
	}
}

// ping asks, unless there is something on its way already: a ping could only wait
// behind it, and a write that waits for long ends the connection.
func (p *pipe) ping() bool {
	if p.writing.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.every)
	defer cancel()
	return p.ws.Ping(ctx) == nil
}
