package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
)

// A peer is another replica, as it was a moment ago.
type peer struct {
	address string
	root    slapd.Root
	err     error
}

// lookup finds the addresses of all replicas by a DNS name. Where DNS is away, they
// are where they were.
func lookup(name, own, listen string) func(context.Context) ([]string, error) {
	var last []string
	return func(ctx context.Context) ([]string, error) {
		_, port, err := net.SplitHostPort(listen)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		ips, err := net.DefaultResolver.LookupHost(ctx, name)
		var notFound *net.DNSError
		if err != nil && !(errors.As(err, &notFound) && notFound.IsNotFound) {
			return last, err
		}
		last = nil
		for _, ip := range ips {
			if ip != own {
				last = append(last, net.JoinHostPort(ip, port))
			}
		}
		slices.Sort(last)
		return last, nil
	}
}

// peers asks all other replicas, at once.
func (r *Replica) peers(ctx context.Context, s *secrets) []peer {
	addresses, err := r.Discover(ctx)
	if err != nil {
		r.Log.Warn("cannot look for the other replicas", "error", err.Error())
	}
	all := make([]peer, len(addresses))
	var work sync.WaitGroup
	for n, address := range addresses {
		work.Go(func() {
			all[n] = peer{address: address}
			all[n].root, all[n].err = r.ask(ctx, address, s)
		})
	}
	work.Wait()
	return all
}

// ask is what another replica says of its directory.
func (r *Replica) ask(ctx context.Context, address string, s *secrets) (slapd.Root, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := r.dial(ctx, address, s)
	if err != nil {
		return slapd.Root{}, err
	}
	defer conn.Close()
	conn.SetTimeout(5 * time.Second)
	return slapd.ReadRoot(conn, r.Base)
}

// dial connects to another replica as the replicator.
func (r *Replica) dial(ctx context.Context, address string, s *secrets) (*goldap.Conn, error) {
	raw, err := dialTLS(ctx, address, s.client())
	if err != nil {
		return nil, err
	}
	return login(raw, slapd.DN(slapd.Replicator, r.Base), s.passwords[slapd.Replicator])
}

func dialTLS(ctx context.Context, address string, config *tls.Config) (net.Conn, error) {
	return (&tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 5 * time.Second,
			// A cable that was pulled says nothing.
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}},
		Config: config,
	}).DialContext(ctx, "tcp", address)
}

// A forwarder lets slapd follow the other replicas. Slapd knows a few sockets, and
// its configuration stays as it is; behind each is one of those that there are, over
// TLS, once it has shown to hold the same directory, with data: what it holds not,
// slapd would delete here.
type forwarder struct {
	sync.WaitGroup
	mu     sync.Mutex
	behind []string // address by socket; "" is nobody
}

// connect listens on the sockets until ctx ends.
func (r *Replica) connect(ctx context.Context, s *secrets, id string, sockets []string) (*forwarder, error) {
	f := &forwarder{behind: make([]string, len(sockets))}
	for n, socket := range sockets {
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		listener, err := net.Listen("unix", socket)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { listener.Close() })
		f.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				f.Go(func() {
					defer conn.Close()
					address := f.at(n)
					if address == "" {
						return
					}
					root, err := r.ask(ctx, address, s)
					switch {
					case err != nil:
						return
					case root.ID != id:
						r.Log.Warn("not followed: it holds another directory", "peer", address, "id", root.ID)
						return
					}
					f.pipe(ctx, conn, address, s.client())
				})
			}
		})
	}
	return f, nil
}

// pipe carries bytes until one of the two ends.
func (f *forwarder) pipe(ctx context.Context, near net.Conn, address string, config *tls.Config) {
	far, err := dialTLS(ctx, address, config)
	if err != nil {
		return
	}
	defer far.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { near.Close(); far.Close() })
	f.Go(func() {
		defer cancel()
		_, _ = io.Copy(far, near)
	})
	_, _ = io.Copy(near, far)
}

func (f *forwarder) at(n int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.behind[n]
}

// assign puts each replica behind a socket. One that stays keeps its own.
func (f *forwarder) assign(peers []peer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	waiting := make([]string, 0, len(peers))
	for _, p := range peers {
		waiting = append(waiting, p.address)
	}
	for n, address := range f.behind {
		if at := slices.Index(waiting, address); at >= 0 {
			waiting = slices.Delete(waiting, at, at+1)
		} else {
			f.behind[n] = ""
		}
	}
	for n := range f.behind {
		if f.behind[n] == "" && len(waiting) > 0 {
			f.behind[n], waiting = waiting[0], waiting[1:]
		}
	}
}
