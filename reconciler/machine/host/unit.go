package host

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// A unit is a service of systemd with the files that make it what it is.
type unit struct {
	name  string   // containerd.service
	verb  string   // restart, start or tryRestart
	files []file   // of the unit, drop-ins and configuration
	uses  []string // what else it must be started anew for, such as the sum of its program
}

// What systemctl does to a unit that changed.
const (
	restart    = "restart"     // it runs from now on
	start      = "start"       // it runs from now on, and goes on where it runs
	tryRestart = "try-restart" // it starts by itself when it has what it waits for
)

type file struct {
	name    string
	content []byte
	mode    fs.FileMode
}

// what is a hash of everything that the unit depends on.
func (u unit) what() string {
	hash := sha256.New()
	for _, f := range u.files {
		fmt.Fprintf(hash, "%s %o %d\n%s", f.name, f.mode, len(f.content), f.content)
	}
	fmt.Fprintf(hash, "%q %s", u.uses, u.verb)
	return fmt.Sprintf("%x\n", hash.Sum(nil))
}

// begun is the file that says what a service was last started with. A service
// tells nobody which configuration it has read, and noded may be killed between
// writing that and the restart.
func begun(unit string) string { return StateDir + "/begun/" + unit }

func (h *Host) begun(unit, what string) bool { return h.Same(begun(unit), []byte(what), 0o644) }

// lookUnit says what doUnit would do.
func (h *Host) lookUnit(ctx context.Context, u unit) (todo []string, err error) {
	for _, f := range u.files {
		if !h.Same(f.name, f.content, f.mode) {
			todo = append(todo, "write "+f.name)
		}
	}
	enabled, err := h.enabled(ctx, u.name)
	if err != nil {
		return nil, err
	}
	if !enabled {
		todo = append(todo, "enable "+u.name)
	}
	active, err := h.Active(ctx, u.name)
	if err != nil {
		return nil, err
	}
	switch {
	case u.verb != tryRestart && !active:
		todo = append(todo, "start "+u.name)
	case !h.begun(u.name, u.what()):
		todo = append(todo, u.verb+" "+u.name)
	}
	return todo, nil
}

func (h *Host) doUnit(ctx context.Context, u unit) error {
	for _, f := range u.files {
		if err := h.Write(f.name, f.content, f.mode); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", u.name}, {u.verb, u.name}} {
		if _, err := h.Run(ctx, "systemctl", args...); err != nil {
			return fmt.Errorf("%w; journalctl -u %s tells more", err, u.name)
		}
	}
	return h.Write(begun(u.name), []byte(u.what()), 0o644)
}

// step is a unit as a step.
func (h *Host) step(name string, make func() (unit, error)) Step {
	return Step{name, func(ctx context.Context) ([]string, error) {
		u, err := make()
		if err != nil {
			return nil, err
		}
		return h.lookUnit(ctx, u)
	}, func(ctx context.Context) error {
		u, err := make()
		if err != nil {
			return err
		}
		return h.doUnit(ctx, u)
	}}
}

// enabled is said in a word, and with an exit code that is no error here.
func (h *Host) enabled(ctx context.Context, unit string) (bool, error) {
	out, err := h.ask(ctx, "systemctl", "is-enabled", unit)
	return strings.TrimSpace(string(out)) == "enabled", err
}

// Active reports whether a unit runs; one that there is not does not. systemctl
// that has no word for it, as where no systemd runs, is an error.
func (h *Host) Active(ctx context.Context, unit string) (bool, error) {
	out, err := h.Run(ctx, "systemctl", "is-active", unit)
	state := strings.TrimSpace(string(out))
	if exit := (*Exit)(nil); state != "" && errors.As(err, &exit) {
		err = nil
	}
	return state == "active", err
}

// ask is Run for a program whose exit code is part of its answer.
func (h *Host) ask(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := h.Run(ctx, name, args...)
	if exit := (*Exit)(nil); errors.As(err, &exit) {
		err = nil
	}
	return out, err
}
