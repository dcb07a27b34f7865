package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/desktop/x11"
)

// Options are those of one desktop.
type Options struct {
	User, Home string
	Listen     string   // address of HTTPS
	Secrets    string   // folder with token, tls.crt, tls.key
	Runtime    string   // folder for what is made anew at each start; its path is short, for it has UNIX sockets
	Screen     string   // size that it begins with; default 1920x1080
	Session    []string // the command of the session; default XFCE
	Environ    []string // of this process; the session has it too
	Log        *slog.Logger
}

// A Desktop is one user's screen.
type Desktop struct {
	Options
	shell   [][]string // programs that people see, beside the session
	family  family
	cookie  x11.Cookie
	input   atomic.Int64 // when there was input last, in nanoseconds since begin
	clients atomic.Int32
	begin   time.Time
	lost    atomic.Bool // the home is gone
	lease   lease

	mu      sync.Mutex
	stage   Stage
	reason  string
	display string        // such as :1; "" while there is none
	staged  chan struct{} // closed when the stage is another one
}

// Stage says how far a desktop is.
type Stage string

// The stages, in order. Each has all of those before it.
const (
	Starting Stage = "starting"
	Screen   Stage = "screen"  // the VNC server answers
	Painted  Stage = "painted" // there is something to see
)

// New makes a desktop, which does nothing yet.
func New(o Options) (*Desktop, error) {
	o.Screen = cmp.Or(o.Screen, "1920x1080")
	if !regexp.MustCompile(`^[1-9][0-9]{2,3}x[1-9][0-9]{2,3}$`).MatchString(o.Screen) {
		return nil, fmt.Errorf("SCREEN is %q: want a size such as 1920x1080", o.Screen)
	}
	var shell [][]string
	if len(o.Session) == 0 {
		shell, o.Session = xfce()
	}
	if o.Home == "" || o.User == "" {
		return nil, errors.New("HOME and USER say whose desktop it is, and one is empty: set them")
	}
	if info, err := os.Stat(o.Home); err != nil {
		return nil, fmt.Errorf("find the home: %w: is its volume mounted?", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("the home %s is not a folder", o.Home)
	}
	d := &Desktop{Options: o, shell: shell, begin: time.Now(), stage: Starting, staged: make(chan struct{})}
	_, _ = rand.Read(d.cookie[:]) // never fails
	return d, nil
}

// The files of a desktop.
func (d *Desktop) own(name string) string { return filepath.Join(d.Runtime, "session", name) }
func (d *Desktop) socket() string         { return d.own("rfb") }
func (d *Desktop) authority() string      { return d.own("authority") }
func (d *Desktop) bus() string            { return d.own("bus") }

// Run is the life of a desktop, until ctx ends.
func (d *Desktop) Run(ctx context.Context) error {
	if err := d.prepare(); err != nil {
		return err
	}
	if err := d.family.adopt(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	stop, err := d.serve()
	if err != nil {
		return err
	}
	defer stop()
	go d.watchHome(ctx)
	// To the very end: who is told to end has a while, and may not write in it without.
	go d.keepLease(context.WithoutCancel(ctx))
	for again := (retry{}); ; {
		begin := time.Now()
		err := d.screen(ctx)
		d.set(Starting, "", err)
		if ctx.Err() != nil {
			return nil
		}
		d.Log.Warn("the screen ended, and begins anew", "reason", err.Error())
		wait(ctx, again.after(time.Since(begin)))
	}
}

// prepare makes the folders that the screen needs, and that only root would make.
func (d *Desktop) prepare() error {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := d.own("")
	// What a container before this one left behind, in a volume of the Pod.
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return fmt.Errorf("make the folder for sockets: %w: mount an emptyDir at %s", err, d.Runtime)
	}
	if err := os.WriteFile(d.authority(), d.cookie.Authority(), 0o600); err != nil {
		return fmt.Errorf("write how programs come to the screen: %w", err)
	}
	for _, shared := range []string{"/tmp/.X11-unix", "/tmp/.ICE-unix"} {
		err := os.Mkdir(shared, 0o700)
		if err == nil {
			err = os.Chmod(shared, 0o1777) // whatever the umask
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make the folder for the X server's sockets: %w: mount an emptyDir at /tmp", err)
		}
	}
	return nil
}

// screen runs the X server until it ends, and sessions on it.
func (d *Desktop) screen(ctx context.Context) error {
	server, display, err := d.startServer(ctx)
	if server != nil {
		defer func() {
			d.family.end(0, 2*time.Second)
			<-server.ended
		}()
	}
	if err != nil {
		return err
	}
	d.set(Screen, display, nil)
	d.Log.Info("screen", "display", display, "after", time.Since(d.begin).Round(time.Millisecond).String())
	for again := (retry{}); ; {
		if err := d.awaitLease(ctx, server); err != nil {
			return err
		}
		begin := time.Now()
		reason, err := d.session(ctx, server, display)
		// What the session has left behind would be on the screen of the next. At the
		// end programs have a while to save what they have.
		patience := 3 * time.Second
		if ctx.Err() != nil {
			patience = 8 * time.Second
		}
		d.family.end(server.cmd.Process.Pid, patience)
		if err != nil || ctx.Err() != nil {
			return err
		}
		d.set(Screen, display, errors.New(reason))
		d.Log.Info("the session ended, and begins anew", "reason", reason)
		wait(ctx, again.after(time.Since(begin)))
	}
}

// startServer starts the X server, and waits until it answers VNC clients. After an
// error the server may be there, too.
func (d *Desktop) startServer(ctx context.Context) (server *child, display string, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	defer read.Close()
	_ = os.Remove(d.socket()) // of a server before
	cmd := exec.Command("Xvnc",
		"-displayfd", "3", // which takes the first that is free, and says so when it is ready
		"-auth", d.authority(), "-nolisten", "tcp", "-noreset", // and stays when its last program ends
		"-geometry", d.Screen, "-depth", "24", "-dpi", "96",
		"-rfbunixpath", d.socket(), "-rfbunixmode", "0600", "-rfbport", "-1",
		"-SecurityTypes", "None", // who may open the socket may look; nobody else gets that far
		"-AlwaysShared", "-AcceptSetDesktopSize", // another browser takes over without waiting for the first
		"-UseBlacklist=0", // all clients have one address, which would lock everybody out
		"-desktop", d.User)
	cmd.Env = d.environ("")
	cmd.ExtraFiles = []*os.File{write}
	server, err = d.family.start(cmd)
	write.Close()
	if err != nil {
		return nil, "", fmt.Errorf("start the X server: %w", err)
	}
	fail := func(err error) (*child, string, error) {
		return server, "", fmt.Errorf("start the X server: %w\n%s", err, server.said.last(5))
	}
	_ = read.SetReadDeadline(time.Now().Add(30 * time.Second))
	defer context.AfterFunc(ctx, func() { _ = read.SetReadDeadline(time.Now()) })()
	number, err := bufio.NewReader(read).ReadString('\n')
	if err != nil {
		return fail(err)
	}
	for end := time.Now().Add(30 * time.Second); ; wait(ctx, 20*time.Millisecond) {
		err := d.greet()
		if err == nil {
			return server, ":" + strings.TrimSpace(number), nil
		}
		select {
		case <-server.ended:
			return fail(errors.New(server.how()))
		case <-ctx.Done():
			return server, "", ctx.Err()
		default:
		}
		if time.Now().After(end) {
			return fail(err)
		}
	}
}

// greet asks whether the VNC server answers.
func (d *Desktop) greet() error {
	nc, err := net.DialTimeout("unix", d.socket(), time.Second)
	if err != nil {
		return err
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(2 * time.Second))
	hello := make([]byte, 12)
	if _, err := io.ReadFull(nc, hello); err != nil {
		return fmt.Errorf("it does not greet: %w", err)
	}
	if !strings.HasPrefix(string(hello), "RFB ") {
		return fmt.Errorf("it speaks no RFB: %q", hello)
	}
	return nil
}

// environ is the environment of what runs on a display.
func (d *Desktop) environ(display string) []string {
	has := map[string]string{}
	for _, line := range d.Environ {
		name, value, _ := strings.Cut(line, "=")
		has[name] = value
	}
	env := append([]string{}, d.Environ...)
	set := func(name, value string) { env = append(env, name+"="+value) } // the last one counts
	unset := func(name, value string) {
		if has[name] == "" {
			set(name, value)
		}
	}
	set("LOGNAME", d.User)
	set("XAUTHORITY", d.authority())
	set("XDG_RUNTIME_DIR", d.own(""))
	set("DBUS_SESSION_BUS_ADDRESS", "unix:path="+d.bus())
	set("ICEAUTHORITY", d.own("ICEauthority"))
	if display != "" {
		set("DISPLAY", display)
	}
	// Caches are worth nothing on a volume that all machines share. Where one is
	// mounted in the home it is that.
	if !mounted(filepath.Join(d.Home, ".cache"), d.Home) {
		unset("XDG_CACHE_HOME", "/tmp/cache")
	}
	unset("SHELL", "/bin/bash")
	unset("LANG", "C.UTF-8")
	unset("GSETTINGS_BACKEND", "keyfile") // in the home, and without a server
	unset("NO_AT_BRIDGE", "1")            // no screen reader is there to be told of all that happens
	unset("XDG_SESSION_TYPE", "x11")
	unset("XDG_CURRENT_DESKTOP", "XFCE")
	unset("XDG_SESSION_DESKTOP", "xfce")
	unset("DESKTOP_SESSION", "xfce")
	unset("XDG_MENU_PREFIX", "xfce-")
	unset("XDG_CONFIG_DIRS", "/etc/xdg")
	unset("XDG_DATA_DIRS", "/usr/local/share:/usr/share")
	unset("XFCE_PANEL_MIGRATE_DEFAULT", "1") // takes the panel as it is set up, and does not ask
	return env
}

// mounted says whether a folder is on another file system than the one around it.
func mounted(dir, around string) bool {
	var a, b syscall.Stat_t
	return syscall.Stat(dir, &a) == nil && syscall.Stat(around, &b) == nil && a.Dev != b.Dev
}

// watchHome sees a home whose mount has died. Only a new container finds the mount
// that the machine has made since; Kubernetes ends this one when /healthz fails, and
// the portal makes the next.
func (d *Desktop) watchHome(ctx context.Context) {
	for ctx.Err() == nil {
		_, err := os.Stat(d.Home) // may take long, while a volume waits for a copy
		if was := d.lost.Swap(errors.Is(err, syscall.ENOTCONN)); !was && d.lost.Load() {
			d.Log.Error("the home is gone: its mount has died", "home", d.Home)
		}
		wait(ctx, 5*time.Second)
	}
}

func (d *Desktop) set(stage Stage, display string, reason error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stage != stage {
		close(d.staged)
		d.staged = make(chan struct{})
	}
	d.stage, d.display, d.reason = stage, display, ""
	if reason != nil && !errors.Is(reason, context.Canceled) {
		d.reason = reason.Error()
	}
}

// Status is what a desktop says of itself.
type Status struct {
	Ready       bool   `json:"ready"`
	Stage       Stage  `json:"stage"`
	Reason      string `json:"reason,omitempty"` // why it is not further
	IdleSeconds int    `json:"idleSeconds"`      // since a person's last input, or the start
	Clients     int    `json:"clients"`          // connections to the screen
	Clock       int64  `json:"clock"`            // ms, by which the lease counts
	Frozen      bool   `json:"frozen"`           // its lease has run out
}

// Status is that of now.
func (d *Desktop) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	idle := time.Since(d.begin) - time.Duration(d.input.Load())
	return Status{d.stage == Painted, d.stage, d.reason, int(idle.Seconds()), int(d.clients.Load()), clock().Milliseconds(), d.lease.frozen.Load()}
}

// past waits until the desktop is not at a stage any more, for a second at most.
func (d *Desktop) past(ctx context.Context, stage Stage) {
	d.mu.Lock()
	is, staged := d.stage == stage, d.staged
	d.mu.Unlock()
	if !is {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	select {
	case <-staged:
	case <-ctx.Done():
	}
}

// touched is told of input.
func (d *Desktop) touched() { d.input.Store(int64(time.Since(d.begin))) }

// A retry waits longer each time that something ended too soon.
type retry struct{ last time.Duration }

func (r *retry) after(lasted time.Duration) time.Duration {
	if lasted > 10*time.Second {
		r.last = 0
		return 0
	}
	r.last = min(max(2*r.last, 250*time.Millisecond), 10*time.Second)
	return r.last
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
