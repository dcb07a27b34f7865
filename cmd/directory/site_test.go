package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
	"github.com/kingmaker-io/kingmaker/cmd/lab/logtest"
	"github.com/kingmaker-io/kingmaker/cmd/lab/slapdtest"
)

const base = slapd.DefaultBase

// lease is short, for tests wait for its end.
const lease = 16 * time.Second

// memory is a Store as the cluster's is, for one process.
type memory struct {
	mu      sync.Mutex
	state   State
	secrets map[string]map[string][]byte
	ca      []byte
}

func (m *memory) State(context.Context) (State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state, nil
}

func (m *memory) Update(_ context.Context, change func(*State) error) (State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	if err := change(&s); err != nil {
		return State{}, err
	}
	m.state = s
	return s, nil
}

func (m *memory) Secret(_ context.Context, name string, make func() (map[string][]byte, error)) (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.secrets == nil {
		m.secrets = map[string]map[string][]byte{}
	}
	if m.secrets[name] == nil {
		data, err := make()
		if err != nil {
			return nil, err
		}
		m.secrets[name] = data
	}
	return m.secrets[name], nil
}

func (m *memory) Serve(context.Context, string) error { return nil }

// wired is the store as one machine has it: with a cable.
type wired struct {
	*memory
	m *machine
}

var errCut = errors.New("the cable is out")

func (w wired) State(ctx context.Context) (State, error) {
	if w.m.isCut.Load() {
		return State{}, errCut
	}
	return w.memory.State(ctx)
}

func (w wired) Update(ctx context.Context, change func(*State) error) (State, error) {
	if w.m.isCut.Load() {
		return State{}, errCut
	}
	return w.memory.Update(ctx, change)
}

func (m *memory) Publish(_ context.Context, certificate []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ca = certificate
	return nil
}

func (m *memory) authority() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ca
}

// site is a few machines with a replica each, and a switch between them.
type site struct {
	*testing.T
	store    *memory
	machines []*machine
	links    map[[2]int]*link
}

type machine struct {
	site    *site
	n       int
	name    string
	data    string
	listen  string
	replica *Replica // nil: it is off
	cancel  func()
	done    chan error
	log     *logtest.Buffer
	isCut   atomic.Bool
}

// newSite makes machines, which are off.
func newSite(t *testing.T, n int) *site {
	t.Helper()
	if testing.Short() {
		t.Skip("runs slapd")
	}
	if err := slapd.Installed(); err != nil {
		t.Skipf("%v: .ci/packages slapd", err)
	}
	s := &site{T: t, store: &memory{}, links: map[[2]int]*link{}}
	for i := range n {
		m := &machine{site: s, n: i, name: fmt.Sprintf("pc-%02d", i+1), data: t.TempDir()}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		m.listen = l.Addr().String()
		l.Close()
		s.machines = append(s.machines, m)
		t.Cleanup(m.kill)
	}
	for _, from := range s.machines {
		for _, to := range s.machines {
			if from != to {
				s.links[[2]int{from.n, to.n}] = newLink(t, to.listen)
			}
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, m := range s.machines {
				t.Logf("%s said:\n%s", m.name, m.log)
			}
		}
	})
	return s
}

// on starts a machine's replica.
func (m *machine) on() {
	m.site.Helper()
	runtime, err := os.MkdirTemp("/tmp", "kd") // UNIX sockets have short names
	if err != nil {
		m.site.Fatal(err)
	}
	m.site.Cleanup(func() { os.RemoveAll(runtime) })
	if m.log == nil {
		m.log = &logtest.Buffer{}
	}
	m.replica = New(Options{
		Base: base, Machine: m.name, Data: m.data, Runtime: runtime, Listen: m.listen, Store: wired{m.site.store, m}, Lease: lease,
		Names: []string{"127.0.0.1"}, MaxSize: 256 << 20,
		Discover: func(context.Context) (others []string, err error) {
			for _, o := range m.site.machines {
				if o != m {
					others = append(others, m.site.links[[2]int{m.n, o.n}].address)
				}
			}
			return others, nil
		},
		Log: slog.New(slog.NewTextHandler(m.log, nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel, m.done = cancel, make(chan error, 1)
	go func() { m.done <- m.replica.Run(ctx) }()
}

// kill is a power cut, as far as one process can have it: slapd dies where it is.
func (m *machine) kill() {
	if m.replica == nil {
		return
	}
	m.replica.mu.Lock()
	p := m.replica.slapd
	m.replica.mu.Unlock()
	if p != nil {
		_ = p.Kill()
	}
	m.off()
}

// off ends the replica in good order.
func (m *machine) off() {
	m.cancel()
	<-m.done
	m.replica = nil
}

// wipe gives the machine a new disk.
func (m *machine) wipe() {
	m.data = m.site.TempDir()
}

// cut and heal are the cable of a machine.
func (s *site) cut(m *machine, off bool) {
	m.isCut.Store(off)
	for ends, l := range s.links {
		if ends[0] == m.n || ends[1] == m.n {
			l.set(off)
		}
	}
}

// eventually waits for something.
func (s *site) eventually(what string, d time.Duration, ok func() error) {
	s.Helper()
	begin := time.Now()
	var err error
	for {
		if err = ok(); err == nil {
			s.Logf("%s: %s", what, time.Since(begin).Round(10*time.Millisecond))
			return
		}
		if time.Since(begin) > d {
			s.Fatalf("%s: not within %s: %v", what, d, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *site) ready(machines ...*machine) {
	s.Helper()
	for _, m := range machines {
		s.eventually(m.name+" is ready", 60*time.Second, func() error {
			if st := m.replica.Status(); !st.Ready {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
	}
}

// writer is the machine that takes changes, but for those that are left out.
func (s *site) writer(but ...*machine) (found *machine) {
	s.Helper()
	s.eventually("there is a writer", 90*time.Second, func() error {
		for _, m := range s.machines {
			if m.replica != nil && m.replica.Status().Writer && !slices.Contains(but, m) {
				found = m
				return nil
			}
		}
		return errors.New("none")
	})
	return found
}

// write does something to the directory as the daemon, wherever that is taken: as one
// who asks again until it is acknowledged.
func (s *site) write(do func(*goldap.Conn) error) {
	s.Helper()
	var err error
	for begin := time.Now(); time.Since(begin) < 90*time.Second; time.Sleep(50 * time.Millisecond) {
		for _, m := range s.machines {
			if m.replica == nil || !m.replica.Status().Writer {
				continue
			}
			var conn *goldap.Conn
			if conn, err = m.as(slapd.DN(slapd.Daemon, base), string(s.store.secrets["directory-daemon"]["password"])); err != nil {
				continue
			}
			err = do(conn)
			conn.Close()
			if err == nil {
				return
			}
		}
	}
	s.Fatalf("nobody takes a change: %v", err)
}

func (m *machine) dial() (*goldap.Conn, error) {
	pool, err := roots(m.site.store.authority())
	if err != nil {
		return nil, err
	}
	conn, err := goldap.DialURL("ldaps://"+m.listen, goldap.DialWithTLSConfig(&tls.Config{RootCAs: pool}))
	if err != nil {
		return nil, err
	}
	conn.SetTimeout(20 * time.Second)
	return conn, nil
}

// as is a connection of somebody.
func (m *machine) as(dn, password string) (*goldap.Conn, error) {
	conn, err := m.dial()
	if err != nil {
		return nil, err
	}
	if err := conn.Bind(dn, password); err != nil {
		conn.Close()
		return nil, err
	}
	m.site.Cleanup(func() { conn.Close() })
	return conn, nil
}

func (m *machine) service(name string) *goldap.Conn {
	m.site.Helper()
	conn, err := m.as(slapd.DN(name, base), string(m.site.store.secrets["directory-"+name]["password"]))
	if err != nil {
		m.site.Fatalf("%s as %s: %v", m.name, name, err)
	}
	return conn
}

func person(uid string) string { return "uid=" + uid + ",ou=people," + base }

// addPerson as the daemon does, with a password.
func addPerson(conn *goldap.Conn, uid string, number int, password string) error {
	r := goldap.NewAddRequest(person(uid), nil)
	r.Attribute("objectClass", []string{"inetOrgPerson", "posixAccount"})
	r.Attribute("uid", []string{uid})
	r.Attribute("cn", []string{"Person " + uid})
	r.Attribute("sn", []string{uid})
	r.Attribute("uidNumber", []string{fmt.Sprint(number)})
	r.Attribute("gidNumber", []string{"5000"})
	r.Attribute("homeDirectory", []string{fmt.Sprint("/homes/", number)})
	if password != "" {
		r.Attribute("userPassword", []string{password})
	}
	return conn.Add(r)
}

func set(conn *goldap.Conn, dn, name, value string) error {
	r := goldap.NewModifyRequest(dn, nil)
	r.Replace(name, []string{value})
	return conn.Modify(r)
}

// content is all that a replica holds, in order: equal replicas are equal, when and
// by whom things were changed included.
func (m *machine) content() (string, error) {
	conn, err := m.as(slapd.DN(slapd.Replicator, base), string(m.site.store.secrets["directory-replicator"]["password"]))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	result, err := conn.SearchWithPaging(goldap.NewSearchRequest(base, goldap.ScopeWholeSubtree, goldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{"*", "+"}, nil), 500)
	if err != nil {
		return "", err
	}
	return slapdtest.Text(result.Entries, "hasSubordinates"), nil
}

// equal waits until all machines hold the same, and gives it.
func (s *site) equal(d time.Duration, machines ...*machine) (content string) {
	s.Helper()
	s.eventually("replicas are equal", d, func() error {
		for n, m := range machines {
			have, err := m.content()
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if n > 0 && have != content {
				return fmt.Errorf("%s differs from %s: %s", m.name, machines[0].name, difference(content, have))
			}
			content = have
		}
		return nil
	})
	return content
}

// difference is what one side has and the other has not, each line with the name of
// its entry.
func difference(a, b string) string {
	named := func(content string) (all []string) {
		var dn string
		for line := range strings.Lines(content) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "dn: ") {
				dn, _, _ = strings.Cut(line[4:], ",")
			}
			all = append(all, dn+": "+line)
		}
		return all
	}
	x, y := named(a), named(b)
	var out []string
	for _, l := range x {
		if !slices.Contains(y, l) {
			out = append(out, "-"+l)
		}
	}
	for _, l := range y {
		if !slices.Contains(x, l) {
			out = append(out, "+"+l)
		}
	}
	return fmt.Sprintf("%d lines: %q", len(out), out[:min(len(out), 12)])
}

// link is a cable with a switch in it.
type link struct {
	address string
	mu      sync.Mutex
	off     bool
	open    map[net.Conn]bool
}

func newLink(t *testing.T, to string) *link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	k := &link{address: l.Addr().String(), open: map[net.Conn]bool{}}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer near.Close()
				far, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer far.Close()
				k.mu.Lock()
				off := k.off
				k.open[near], k.open[far] = true, true
				k.mu.Unlock()
				if off {
					return
				}
				go func() { _, _ = io.Copy(far, near); far.Close() }()
				_, _ = io.Copy(near, far)
				k.mu.Lock()
				delete(k.open, near)
				delete(k.open, far)
				k.mu.Unlock()
			}()
		}
	}()
	return k
}

func (k *link) set(off bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.off = off
	if off {
		for c := range k.open {
			c.Close()
		}
	}
}

func files(t *testing.T, pattern ...string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(pattern...))
	if err != nil {
		t.Fatal(err)
	}
	return found
}
