package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Options are those of one replica.
type Options struct {
	Base     string // root of the directory
	Machine  string // whose disk has the data
	Data     string // folder of the data; lasts as long as the disk
	Runtime  string // folder for the rest; its path is short, for it has UNIX sockets
	Listen   string // address of LDAP over TLS
	Health   string // address of the health pages; "" is none
	Names    []string
	Store    Store
	Discover func(context.Context) (addresses []string, err error) // the other replicas
	Log      *slog.Logger
	MaxSize  int64         // of the database; 0 is slapd's default
	Address  string        // where others reach this replica, for those who ask for the writer
	Lease    time.Duration // how long a writer that says nothing is still the writer; default 30s
}

// A Replica is one server.
type Replica struct {
	Options
	mu     sync.Mutex
	status Status
	slapd  *os.Process
	spare  int // a server ID that was given out and is not used yet
}

// New makes a replica, which does nothing yet.
func New(o Options) *Replica {
	if o.Lease == 0 {
		o.Lease = 30 * time.Second
	}
	return &Replica{Options: o}
}

// How often a replica looks around. At the state it does so four times a lease.
const (
	look    = 2 * time.Second  // at itself and the others
	patient = 15 * time.Second // until one that sees no other believes that it is alone
)

// setAside is how long data that is not the site's any more stays.
const setAside = 30 * 24 * time.Hour

// Run is the life of a replica, until ctx ends.
func (r *Replica) Run(ctx context.Context) error {
	if r.Machine == "" || r.Base == "" {
		return errors.New("a replica needs the name of its machine, and a base")
	}
	if err := slapd.Installed(); err != nil {
		return err
	}
	lock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if r.Health != "" {
		stop, err := r.serveHealth()
		if err != nil {
			return err
		}
		defer stop()
	}
	for {
		err := r.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		r.set(func(s *Status) { s.Ready, s.Reason = false, err.Error() })
		r.Log.Warn("begin anew", "reason", err.Error())
		wait(ctx, time.Second)
	}
}

// lock keeps two replicas from one disk: that of an old Pod may still be ending.
func (r *Replica) lock(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(r.Data, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data: %w", err)
	}
	for told := false; ; wait(ctx, time.Second) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if ctx.Err() != nil {
			f.Close()
			return nil, ctx.Err()
		}
		if !told {
			r.Log.Info("another replica is still using the data", "folder", r.Data)
			told = true
		}
	}
}

// once gets data where there is none, and serves it until something begins anew,
// which the error says.
func (r *Replica) once(ctx context.Context) error {
	s, err := readSecrets(ctx, r.Store, r.Base)
	if err != nil {
		return err
	}
	if err := r.certify(s); err != nil {
		return err
	}
	for {
		d, err := r.data(ctx, s)
		if err != nil {
			return err
		}
		if d != nil {
			return r.serve(ctx, s, *d)
		}
		if wait(ctx, look); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// certify makes this replica's certificate, and puts it where slapd reads it.
func (r *Replica) certify(s *secrets) error {
	text, key, err := s.issue(r.Machine, r.Names)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	if err := os.MkdirAll(r.Runtime, 0o700); err != nil {
		return err
	}
	for name, content := range map[string][]byte{"ca.crt": s.pem, "tls.crt": text, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(r.Runtime, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// data is what a folder holds. It is there whole or not at all.
type data struct {
	ID      string `json:"id"`      // of the directory
	Server  int    `json:"server"`  // the server ID
	Machine string `json:"machine"` // a disk that was copied to another is not its
}

func (r *Replica) folder(id string) string { return filepath.Join(r.Data, "data-"+id) }

const markerFile = "replica.json"

// held is the data of a directory on this machine; nil is none.
func (r *Replica) held(id string) (*data, error) {
	text, err := os.ReadFile(filepath.Join(r.folder(id), markerFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var d data
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("read %s: %w", r.folder(id), err)
	}
	if d.ID != id || d.Machine != r.Machine || d.Server < 1 {
		return nil, os.Rename(r.folder(id), filepath.Join(r.Data, "foreign-"+newID()))
	}
	return &d, nil
}

// anyHeld is the ID of the newest data here, whichever directory that is of.
func (r *Replica) anyHeld() (id string) {
	var newest time.Time
	found, _ := filepath.Glob(filepath.Join(r.Data, "data-*", markerFile))
	for _, file := range found {
		candidate := strings.TrimPrefix(filepath.Base(filepath.Dir(file)), "data-")
		info, err := os.Stat(filepath.Join(filepath.Dir(file), "main", "data.mdb"))
		if d, _ := r.held(candidate); err == nil && d != nil && info.ModTime().After(newest) {
			id, newest = candidate, info.ModTime()
		}
	}
	return id
}

// data takes one step towards having the site's data; nil is not yet.
func (r *Replica) data(ctx context.Context, s *secrets) (*data, error) {
	state, err := r.Store.State(ctx)
	if err != nil {
		return nil, err
	}
	if state.ID == "" {
		// Never made; or the cluster has forgotten it, and whoever holds it tells.
		known := r.anyHeld()
		for _, p := range r.peers(ctx, s) {
			if known == "" && p.err == nil {
				known = p.root.ID
			}
		}
		if known != "" {
			r.Log.Warn("the cluster did not know its directory", "id", known)
			_, err := r.remember(ctx, known, 0)
			return nil, err
		}
	}
	mine := state.Founder == r.Machine
	if !mine && (state.ID == "" || state.Founder != "") {
		state, err = r.Store.Update(ctx, func(s *State) error {
			mine = s.claim(r.Machine, time.Now())
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	d, err := r.held(state.ID)
	switch {
	case err != nil:
		return nil, err
	case d == nil && mine:
		r.tell("making the directory")
		first, err := slapd.First(r.Base, state.ID, s.passwords)
		if err != nil {
			return nil, err
		}
		if d, err = r.load(ctx, s, state.ID, true, func(to io.Writer, _ int) error { _, err := io.WriteString(to, first); return err }); err != nil {
			return nil, err
		}
	case d == nil && state.Founder != "":
		r.tell(state.Founder + " is making the directory")
		return nil, nil
	case d == nil:
		return r.fill(ctx, s, state.ID)
	}
	if mine {
		if _, err := r.Store.Update(ctx, func(s *State) error { return s.founded(r.Machine, d.ID) }); err != nil {
			return nil, err
		}
		r.Log.Info("made the directory", "id", d.ID)
	}
	return d, nil
}

// remember tells a cluster that has lost the state which directory is its. Seen is
// the highest server ID that is known; some that are not may have been given out. Who
// the writer is is not known either: it may still be one for the rest of its lease.
func (r *Replica) remember(ctx context.Context, id string, seen int) (State, error) {
	return r.Store.Update(ctx, func(s *State) error {
		if s.ID == "" {
			*s = State{ID: id, Servers: min(max(s.Servers, seen)+64, maxServers-1024), Writer: "unknown"}
		}
		return nil
	})
}

// fill copies the directory of another replica.
func (r *Replica) fill(ctx context.Context, s *secrets, id string) (*data, error) {
	peers := r.peers(ctx, s)
	var best *peer
	for i, p := range peers {
		if p.err == nil && p.root.ID == id && (best == nil || best.root.Behind(p.root) > p.root.Behind(best.root)) {
			best = &peers[i]
		}
	}
	if best == nil {
		r.tell(fmt.Sprintf("no data here, and none of %d others that can be reached has any: if no machine is left that had it, restore a backup", len(peers)))
		return nil, nil
	}
	r.tell("copying the directory of " + best.address)
	begin := time.Now()
	var entries int
	d, err := r.load(ctx, s, id, false, func(to io.Writer, server int) error {
		conn, err := r.dial(ctx, best.address, s)
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		entries, err = slapd.Dump(conn, r.Base, server, to)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("copy the directory of %s: %w", best.address, err)
	}
	r.Log.Info("copied the directory", "from", best.address, "entries", entries, "took", time.Since(begin).Round(time.Millisecond).String())
	return d, nil
}

// load makes the folder of a directory from what write gives.
func (r *Replica) load(ctx context.Context, s *secrets, id string, fresh bool, write func(to io.Writer, server int) error) (*data, error) {
	d := data{ID: id, Machine: r.Machine}
	if r.spare == 0 { // there are not that many, and what fails is tried again and again
		if _, err := r.Store.Update(ctx, func(s *State) (err error) { r.spare, err = s.server(); return err }); err != nil {
			r.spare = 0
			return nil, err
		}
	}
	d.Server = r.spare
	making, err := os.MkdirTemp(r.Data, "making-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(making)
	config := r.config(s, d, making)
	config.Dir, config.Peers, config.ServerID = filepath.Join(making, "conf"), nil, d.Server
	if err := config.Write(); err != nil {
		return nil, err
	}
	from, to := io.Pipe()
	go func() { to.CloseWithError(write(to, d.Server)) }()
	err = config.Load(ctx, from, fresh)
	from.CloseWithError(io.ErrClosedPipe) // where slapadd has had enough of it
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(config.Dir); err != nil { // it has secrets
		return nil, err
	}
	marker, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(making, markerFile), marker, 0o600); err != nil {
		return nil, err
	}
	if err := flush(making); err != nil {
		return nil, err
	}
	if err := os.Rename(making, r.folder(id)); err != nil {
		return nil, err
	}
	r.spare = 0
	return &d, flush(r.Data)
}

// flush puts a folder of files on disk for good: slapadd was told to be quick.
func flush(dir string) error {
	return filepath.WalkDir(dir, func(file string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && strings.HasPrefix(entry.Name(), "making-") && file != dir {
			return filepath.SkipDir
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

func (r *Replica) config(s *secrets, d data, dir string) slapd.Config {
	c := slapd.Config{Base: r.Base, DataDir: dir, Dir: r.Runtime, ServerID: d.Server, MaxSize: r.MaxSize,
		DaemonPassword: s.passwords[slapd.Daemon], ReplicatorPassword: s.passwords[slapd.Replicator]}
	for n := range slapd.MaxPeers {
		c.Peers = append(c.Peers, filepath.Join(r.Runtime, "peer-"+strconv.Itoa(n+1)))
	}
	return c
}

// local is the socket at which slapd answers this program.
func (r *Replica) local() string { return filepath.Join(r.Runtime, "ldapi") }

// serve runs slapd over the data.
func (r *Replica) serve(ctx context.Context, s *secrets, d data) error {
	r.forget(d.ID)
	config := r.config(s, d, r.folder(d.ID))
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	forward, err := r.connect(ctx, s, d.ID, config.Peers)
	if err != nil {
		cancel()
		return err
	}
	defer forward.Wait()
	defer cancel()

	office := &office{machine: r.Machine, lease: r.Lease}
	config.ReadOnly = true
	running, err := r.start(config)
	if err != nil {
		return err
	}
	defer func() {
		running.stop()
		if office.held(time.Now()) { // nobody need wait for the end of the lease
			ctx, cancel := context.WithTimeout(context.WithoutCancel(outer), 3*time.Second)
			defer cancel()
			_, _ = r.Store.Update(ctx, office.leave)
		}
	}()
	r.set(func(s *Status) { *s = Status{ID: d.ID, Server: d.Server, Reason: "starting"} })
	begin, started := time.Now(), time.Now()
	var agreed, served time.Time
	caughtUp, repaired, answered := false, false, false
	for tick := time.NewTicker(min(look, r.Lease/4)); ; {
		peers := r.peers(ctx, s)
		forward.assign(peers)
		own, err := r.own(ctx, s)
		broken := goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials) // the secret was made anew
		behind, reached := 0, 0
		for _, p := range peers {
			if p.err == nil && p.root.ID == d.ID {
				reached++
				behind += own.Behind(p.root)
			}
		}
		answered = answered || err == nil || broken
		if (err == nil || broken) && !caughtUp {
			caughtUp = reached > 0 && behind == 0 || reached == 0 && (len(peers) == 0 || time.Since(started) > patient)
		}
		if time.Since(agreed) >= r.Lease/4 {
			agreed = time.Now()
			// The writer is ahead of the others, and not behind; where a cut cable
			// healed it may be both.
			able := caughtUp && (behind == 0 || office.held(time.Now())) && (err == nil || broken)
			state, err := r.agree(ctx, office, able, d)
			switch {
			case err != nil: // it goes on as it was, as long as the lease lasts
				r.Log.Warn("cannot read or write the state", "error", err.Error())
			case state.ID != d.ID:
				return fmt.Errorf("another directory was restored: %s instead of %s", state.ID, d.ID)
			}
		}
		if writes := office.held(time.Now()); writes == config.ReadOnly { // it became the writer, or is no more
			r.Log.Info("changes", "taken", writes)
			running.stop()
			config.ReadOnly = !writes
			if running, err = r.start(config); err != nil {
				return err
			}
			own, err = r.answers(ctx, s)
			broken = goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials)
			repaired = false
		}
		if office.held(time.Now()) && !repaired && (err == nil || broken) {
			if failed := r.repair(ctx, s); failed != nil {
				r.Log.Warn("cannot put the services' accounts right", "error", failed.Error())
			} else {
				repaired = true
				own, err = r.own(ctx, s)
			}
		}
		if office.held(time.Now()) && err == nil && time.Since(served) >= r.Lease/4 {
			served = time.Now()
			if failed := r.Store.Serve(ctx, r.Address); failed != nil {
				r.Log.Warn("cannot tell where changes go", "error", failed.Error())
			}
		}
		r.set(func(s *Status) {
			s.Ready, s.Writer, s.Behind, s.CSNs, s.Peers = caughtUp && err == nil, office.held(time.Now()) && err == nil, behind, own.CSNs, nil
			for _, p := range peers {
				s.Peers = append(s.Peers, p.status(d.ID))
			}
			switch s.Reason = ""; {
			case err != nil:
				s.Reason = "slapd does not answer: " + err.Error()
			case !caughtUp:
				s.Reason = fmt.Sprintf("catching up: %d of %d others reached", reached, len(peers))
			}
		})
		if time.Since(begin) > renewAfter {
			return errors.New("the certificate is to be renewed")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-running.ended:
			r.Log.Error("slapd ended", "error", fmt.Sprint(running.err))
			r.set(func(s *Status) { s.Ready, s.Writer, s.Reason = false, false, fmt.Sprint("slapd ended: ", running.err) })
			if !answered { // its files may be at fault, which are made anew
				return fmt.Errorf("slapd ended before it answered: %v", running.err)
			}
			if wait(ctx, time.Second); ctx.Err() != nil {
				return ctx.Err()
			}
			if running, err = r.start(config); err != nil {
				return err
			}
			answered = false
			started, caughtUp = time.Now(), office.held(time.Now()) // nobody else knows more
		case <-tick.C:
		}
	}
}

// agree reads the state and writes what follows from it: who the writer is, and, where
// the cluster has forgotten it, which directory this is.
func (r *Replica) agree(ctx context.Context, o *office, able bool, d data) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Lease/4)
	defer cancel()
	state, err := r.Store.State(ctx)
	if err == nil && state.ID == "" {
		if state, err = r.remember(ctx, d.ID, max(d.Server, r.Status().highest())); err == nil {
			r.Log.Warn("the cluster had forgotten its directory", "id", state.ID)
		}
	}
	if err != nil || state.ID != d.ID {
		return state, err
	}
	began := time.Now()
	o.see(state, began)
	if !o.wants(state, able, began) {
		return state, nil
	}
	counted := false
	state, err = r.Store.Update(ctx, func(s *State) error {
		if counted = s.ID == d.ID && o.wants(*s, able, began); counted {
			s.Writer, s.Beat = r.Machine, s.Beat+1
		}
		return nil
	})
	if err == nil && counted {
		o.counted(state, began, time.Now())
	}
	return state, err
}

// answers waits until slapd, which was just started, does.
func (r *Replica) answers(ctx context.Context, s *secrets) (own slapd.Root, err error) {
	for begin := time.Now(); ; wait(ctx, 50*time.Millisecond) {
		own, err = r.own(ctx, s)
		if err == nil || ctx.Err() != nil || time.Since(begin) > 10*time.Second ||
			goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials) {
			return own, err
		}
	}
}

// process is a slapd that was started.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
	err   error         // why; set before ended is closed
}

func (r *Replica) start(config slapd.Config) (*process, error) {
	if err := config.Write(); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(r.Listen)
	if err != nil {
		return nil, err
	}
	cmd := config.Command("ldaps://"+net.JoinHostPort(host, port), slapd.Socket(r.local()))
	cmd.Stdout, cmd.Stderr = lines{r.Log}, lines{r.Log}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	r.mu.Lock()
	r.slapd = cmd.Process
	r.mu.Unlock()
	return p, nil
}

// stop ends slapd, if it was started and has not ended by itself. It may wait for what
// it asked another, and need not: nothing that it has acknowledged is in memory alone.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(2 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// lines logs what slapd says.
type lines struct{ log *slog.Logger }

func (l lines) Write(text []byte) (int, error) {
	for line := range strings.Lines(string(text)) {
		// A server that is away is asked again every few seconds, and /status says so; a
		// client that goes is nobody's business.
		line = strings.TrimSpace(line)
		usual := slices.ContainsFunc([]string{"rc -1 retrying", "ldap_sasl_bind_s failed", "deferring operation: binding", "TLS: can't accept"},
			func(part string) bool { return strings.Contains(line, part) })
		if line != "" && !usual {
			l.log.Info("slapd", "said", line)
		}
	}
	return len(text), nil
}

// own is how far the replica itself is.
func (r *Replica) own(ctx context.Context, s *secrets) (slapd.Root, error) {
	conn, err := r.bind(ctx, slapd.Replicator, s)
	if err != nil {
		return slapd.Root{}, err
	}
	defer conn.Close()
	return slapd.ReadRoot(conn, r.Base)
}

// bind connects to this replica as a service.
func (r *Replica) bind(ctx context.Context, service string, s *secrets) (*goldap.Conn, error) {
	raw, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", r.local())
	if err != nil {
		return nil, err
	}
	return login(raw, slapd.DN(service, r.Base), s.passwords[service])
}

func login(raw net.Conn, dn string, password plan.Secret) (*goldap.Conn, error) {
	conn := goldap.NewConn(raw, true)
	conn.Start()
	conn.SetTimeout(30 * time.Second)
	if err := conn.Bind(dn, password.Value()); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// repair gives the services the passwords that their Secrets have: one that was
// deleted is made anew, and a backup has those of its time.
func (r *Replica) repair(ctx context.Context, s *secrets) error {
	for _, service := range []string{slapd.Replicator, slapd.Portal} {
		conn, err := r.bind(ctx, service, s)
		if err == nil {
			conn.Close()
			continue
		}
		if !goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials) {
			return err
		}
		root, err := r.bind(ctx, slapd.Daemon, s)
		if err != nil {
			return err
		}
		change := goldap.NewModifyRequest(slapd.DN(service, r.Base), nil)
		change.Replace("userPassword", []string{slapd.Hash(s.passwords[service])})
		err = root.Modify(change)
		root.Close()
		if err != nil {
			return fmt.Errorf("set the password of %s: %w", service, err)
		}
		r.Log.Info("set the password of a service to that of its Secret", "service", service)
	}
	return nil
}

// forget removes what was set aside long ago, and what was never completed.
func (r *Replica) forget(current string) {
	entries, _ := os.ReadDir(r.Data)
	for _, e := range entries {
		dir := filepath.Join(r.Data, e.Name())
		old := strings.HasPrefix(e.Name(), "making-")
		if strings.HasPrefix(e.Name(), "data-") && dir != r.folder(current) || strings.HasPrefix(e.Name(), "foreign-") {
			info, err := os.Stat(filepath.Join(dir, "main", "data.mdb"))
			if err != nil {
				info, err = e.Info()
			}
			old = err == nil && time.Since(info.ModTime()) > setAside
		}
		if info, err := e.Info(); old && err == nil && time.Since(info.ModTime()) > time.Hour { // not a restore at work
			_ = os.RemoveAll(dir)
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// tell notes what a replica that does not serve is at.
func (r *Replica) tell(reason string) {
	if r.Status().Reason != reason {
		r.Log.Info(reason)
	}
	r.set(func(s *Status) { *s = Status{Reason: reason} })
}

func (r *Replica) set(change func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
}

// Status is what is known of the replica.
func (r *Replica) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Peers, s.CSNs = slices.Clone(s.Peers), slices.Clone(s.CSNs)
	return s
}
