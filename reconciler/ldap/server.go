package ldap

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Server is a directory server and the account of ours on it. URL is required.
type Server struct {
	// URL is ldaps://HOST[:636], or ldap://HOST[:389], which is changed to TLS
	// before anything is said.
	URL string

	// TLS holds the CAs that are trusted. Nil: those of the computer.
	TLS *tls.Config

	BindDN   string
	Password plan.Secret

	// Connect makes the way to HOST:PORT. From outside of the cluster it leads
	// through the API server. Nil dials.
	Connect func(ctx context.Context, address string) (net.Conn, error)
}

// Dial connects and logs in. It is what Options.Dial wants.
func (s Server) Dial(ctx context.Context) (*goldap.Conn, error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", s.URL, err)
	}
	return conn, nil
}

func (s Server) dial(ctx context.Context) (*goldap.Conn, error) {
	u, err := url.Parse(s.URL)
	if err != nil {
		return nil, err
	}
	port, ok := map[string]string{"ldaps": "636", "ldap": "389"}[u.Scheme]
	if !ok || u.Hostname() == "" {
		return nil, errors.New("want ldaps://HOST or ldap://HOST")
	}
	address := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
	connect := s.Connect
	if connect == nil {
		connect = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := connect(ctx, address)
	if err != nil {
		return nil, err
	}
	// What follows knows no context: it ends with the connection.
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	config := &tls.Config{}
	if s.TLS != nil {
		config = s.TLS.Clone()
	}
	config.ServerName = cmp.Or(config.ServerName, u.Hostname())
	var conn *goldap.Conn
	if u.Scheme == "ldaps" {
		secure := tls.Client(raw, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		conn = goldap.NewConn(secure, true)
		conn.Start()
	} else {
		conn = goldap.NewConn(raw, false)
		conn.Start()
		if err := conn.StartTLS(config); err != nil {
			conn.Close()
			return nil, err
		}
	}
	if err := conn.Bind(s.BindDN, s.Password.Value()); err != nil {
		conn.Close()
		return nil, fmt.Errorf("log in as %s: %w", s.BindDN, cmp.Or(ctx.Err(), err))
	}
	return conn, nil
}

const dialTimeout = 10 * time.Second

// link is the one connection of a System. Requests of several goroutines are under
// way on it at once: that is all the pipelining that slapd makes use of, for it
// writes one after the other.
type link struct {
	dial    func(ctx context.Context) (*goldap.Conn, error)
	timeout time.Duration // of one request

	mu   sync.Mutex
	conn *goldap.Conn
}

// do has a function use the connection. Where it broke since it was last used, a
// new one is made: the function may be called twice.
func (l *link) do(ctx context.Context, f func(*goldap.Conn) error) error {
	for {
		conn, fresh, err := l.get(ctx)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		err = f(conn)
		stop()
		if !goldap.IsErrorWithCode(err, goldap.ErrorNetwork) {
			return err
		}
		conn.Close() // after a time-out, too: what comes late is not to be taken for something else
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if fresh {
			return err
		}
	}
}

// get is the connection; fresh is one that nobody has used before.
func (l *link) get(ctx context.Context) (conn *goldap.Conn, fresh bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil && !l.conn.IsClosing() {
		return l.conn, false, nil
	}
	conn, err = l.dial(ctx)
	if err != nil {
		return nil, false, err
	}
	conn.SetTimeout(l.timeout)
	l.conn = conn
	return conn, true, nil
}

// close ends the connection. A later use makes a new one.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// page is how many entries come at once: few enough that they need no memory to
// speak of (some 7 MB in this client), and enough that the way does not count.
const page = 1000

// search goes through all entries that a request finds (RFC 2696). The function
// must not keep the entry.
func search(conn *goldap.Conn, r *goldap.SearchRequest, each func(*goldap.Entry)) error {
	paging := goldap.NewControlPaging(page)
	r.Controls = append(r.Controls, paging)
	for {
		result, err := conn.Search(r)
		if err != nil {
			return err
		}
		for _, e := range result.Entries {
			each(e)
		}
		answer, ok := goldap.FindControl(result.Controls, goldap.ControlTypePaging).(*goldap.ControlPaging)
		if !ok || len(answer.Cookie) == 0 {
			return nil
		}
		paging.SetCookie(answer.Cookie)
	}
}

// controlAssertion is the type of the control that has a server change an entry only
// if a filter holds for it at that very moment (RFC 4528).
const controlAssertion = "1.3.6.1.1.12"

// unchanged has a change be made only to the version of an entry that was read.
type unchanged struct{ csn string }

func (unchanged) GetControlType() string { return controlAssertion }
func (u unchanged) String() string       { return "entryCSN is " + u.csn }

func (u unchanged) Encode() *ber.Packet {
	filter, err := goldap.CompileFilter("(entryCSN=" + goldap.EscapeFilter(u.csn) + ")")
	if err != nil {
		panic(err) // of a filter that is escaped
	}
	p := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "Control")
	p.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, controlAssertion, "Control Type"))
	p.AppendChild(ber.NewBoolean(ber.ClassUniversal, ber.TypePrimitive, ber.TagBoolean, true, "Criticality"))
	p.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, string(filter.Bytes()), "Assertion"))
	return p
}
