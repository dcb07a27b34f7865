package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/desktop/x11"
)

// xfce are the programs of XFCE that people see, and its session manager, which knows
// the rest: settings, and what the user wants to be started. It would start all, after
// itself. A desktop is there a good deal earlier when what is seen waits for nothing,
// and has the processors for itself until it is there.
func xfce() (shell [][]string, manager []string) {
	// They would look every so often for a window manager before they begin.
	const atOnce = "--disable-wm-check"
	return [][]string{{"xfwm4"}, {"xfdesktop", atOnce}, {"xfce4-panel", atOnce}}, []string{"xfce4-session"}
}

// session runs one session, on a message bus of its own, and says why it ended. It
// errs when the screen is gone.
func (d *Desktop) session(ctx context.Context, server *child, display string) (reason string, err error) {
	mailman, err := d.startBus(display)
	if err != nil {
		return err.Error(), nil
	}
	with, stop := context.WithCancel(ctx)
	var kept sync.WaitGroup
	defer kept.Wait() // so that none of the shell begins after this
	defer stop()
	fell := make(chan *child)
	for _, program := range d.shell {
		kept.Go(func() { d.keep(with, server, display, program, fell) })
	}
	session := &child{} // which has not begun, and does not end
	if len(d.shell) == 0 {
		if session, err = d.launch(display, d.Session...); err != nil {
			return err.Error(), nil
		}
	}
	begin := time.Now()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	manager := time.Time{} // since when there is a window manager
	painted, was := false, false
	why := func(c *child) string {
		if was { // what a user's programs said is theirs
			return fmt.Sprintf("%s ended: %s", c.cmd.Args[0], c.how())
		}
		return c.ending(c.cmd.Args[0])
	}
	for ; ; was = was || painted {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-server.ended:
			return "", errors.New(server.ending("the X server"))
		case <-mailman.ended:
			reason := mailman.ending("the message bus")
			if !was { // it serves nobody who has no name
				reason += "\nare passwd and group mounted at /var/lib/extrausers?"
			}
			return reason, nil
		case <-session.ended:
			return why(session), nil
		case program := <-fell:
			d.Log.Warn("a program of the desktop begins anew", "reason", why(program))
			if !painted {
				d.set(Screen, display, errors.New(why(program)))
			}
		case now := <-look.C:
			s, err := x11.Look("/tmp/.X11-unix/X"+display[1:], d.cookie)
			if err == nil && !s.Manager {
				manager = time.Time{}
			} else if err == nil && manager.IsZero() {
				manager = now
			}
			// Between the manager and the desktop are seconds of black. Some people like it
			// black, and some sessions have nothing on the screen of their own.
			is := err == nil && s.Manager && (painted || s.Lit > 50 || now.Sub(manager) > 10*time.Second)
			switch {
			case is && !painted:
				d.Log.Info("painted", "after", time.Since(begin).Round(time.Millisecond).String())
				d.set(Painted, display, nil)
				look.Reset(2 * time.Second)
				painted = true
				if session.cmd == nil {
					if session, err = d.launch(display, d.Session...); err != nil {
						return err.Error(), nil
					}
				}
			case painted && err == nil && !is: // a server that does not answer in time is slow; a dead one ends
				d.set(Screen, display, errors.New("there is no window manager"))
				look.Reset(200 * time.Millisecond)
				painted = false
			}
		}
	}
}

// startBus starts a message bus, which is ours rather than dbus-run-session's, so that
// warnings find it. It gets a socket that listens already, as systemd would give it
// (sd_listen_fds(3)), so that programs need not wait until it is there.
func (d *Desktop) startBus(display string) (*child, error) {
	_ = os.Remove(d.bus()) // of a session before
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.bus(), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the message bus: %w", err)
	}
	defer socket.Close()
	socket.SetUnlinkOnClose(false)
	file, err := socket.File()
	if err != nil {
		return nil, fmt.Errorf("listen for the message bus: %w", err)
	}
	defer file.Close()
	cmd := d.command(display, "sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec dbus-daemon "$@"`,
		"dbus-daemon", "--session", "--nofork", "--nopidfile", "--nosyslog", "--address=systemd:")
	cmd.ExtraFiles = []*os.File{file}
	return d.start(cmd)
}

// launch starts a program on the display, in the home.
func (d *Desktop) launch(display string, command ...string) (*child, error) {
	return d.start(d.command(display, command...))
}

func (d *Desktop) command(display string, command ...string) *exec.Cmd {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env, cmd.Dir = d.environ(display), d.Home
	return cmd
}

func (d *Desktop) start(cmd *exec.Cmd) (*child, error) {
	c, err := d.family.start(cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Args[0], err)
	}
	return c, nil
}

// keep runs a program of the shell until ctx ends, and again each time that it fails,
// which fell is told. One that ends well was told to, or has seen that another is there.
func (d *Desktop) keep(ctx context.Context, server *child, display string, program []string, fell chan<- *child) {
	for again := (retry{}); d.awaitLease(ctx, server) == nil; {
		begin := time.Now()
		p, err := d.launch(display, program...)
		if err != nil {
			d.Log.Error("the desktop is not whole", "reason", err.Error())
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-p.ended:
		}
		if p.cmd.ProcessState.Success() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case fell <- p:
		}
		wait(ctx, again.after(time.Since(begin)))
	}
}

// awaitLease waits for the lease, for no program that may touch the home begins without
// one. It errs when the screen or ctx ends first.
func (d *Desktop) awaitLease(ctx context.Context, server *child) error {
	for !d.lease.runs() {
		select {
		case <-server.ended:
			return errors.New(server.ending("the X server"))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return ctx.Err()
}
