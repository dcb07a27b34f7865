// Package host is what one machine does to itself: it looks at what is there,
// and puts in place what a member of a site needs.
//
// All of it goes through a Host, so that every step can be tried without root
// and without a machine: in a folder, with a Runner that is not real. Each step
// is repeatable: done twice it changes nothing.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Host is one machine. Runner and Log are required.
type Host struct {
	Root   string       // folder that stands for /; "" is the machine's own
	Runner Runner       // carries out commands
	Log    *slog.Logger // has each command and what it said
}

// Command is one command line. No part of it is ever given to a shell.
type Command struct {
	Name  string   // looked up in PATH
	Args  []string // hold no secret: every user of the machine can read them
	Stdin io.Reader
	Env   []string // added to the agent's own

	// Stderr has all that the command says on standard error; nil is nobody.
	Stderr io.Writer
}

// String is the command as a person would type it.
func (c Command) String() string { return strings.Join(append([]string{c.Name}, c.Args...), " ") }

// Runner carries out commands.
type Runner interface {
	// Run waits for the end of a command. What it wrote to standard output
	// comes back even with an error, which is an *Exit where the command
	// itself said no. What it wrote to standard error is in c.Stderr then.
	Run(ctx context.Context, c Command) (stdout []byte, err error)
}

// Exit is a command that ended with a code other than 0.
type Exit struct {
	Command Command
	Code    int    // 128 and the signal's number where it was killed
	Stderr  string // what it said last
}

func (e *Exit) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", e.Command, e.Code, strings.TrimSpace(e.Stderr))
}

// Run carries out a command, and logs it with what it said.
func (h *Host) Run(ctx context.Context, name string, args ...string) (stdout []byte, err error) {
	return h.Do(ctx, Command{Name: name, Args: args})
}

// Do is Run for a command that needs more than its arguments. What it reads is
// not logged.
func (h *Host) Do(ctx context.Context, c Command) (stdout []byte, err error) {
	var stderr bytes.Buffer
	if c.Stderr == nil {
		c.Stderr = &stderr
	} else {
		c.Stderr = io.MultiWriter(&stderr, c.Stderr)
	}
	stdout, err = h.Runner.Run(ctx, c)
	h.Log.DebugContext(ctx, "command", "line", c.String(), "stdout", string(stdout), "stderr", stderr.String(), "error", err)
	return stdout, err
}

// Path is where a file of the machine is found.
func (h *Host) Path(name string) string { return filepath.Join("/", h.Root, name) }

// Read is the content of a file. A missing one is fs.ErrNotExist.
func (h *Host) Read(name string) ([]byte, error) { return os.ReadFile(h.Path(name)) }

// Exists reports whether there is a file or folder of the name.
func (h *Host) Exists(name string) bool {
	_, err := os.Lstat(h.Path(name))
	return err == nil
}

// Same reports whether a file has just this content and mode.
func (h *Host) Same(name string, content []byte, mode fs.FileMode) bool {
	info, err := os.Stat(h.Path(name))
	if err != nil || info.Mode().Perm() != mode {
		return false
	}
	have, err := h.Read(name)
	return err == nil && bytes.Equal(have, content)
}

// Write makes a file have a content and a mode, whole or not at all, with the
// folders that it needs (a mounted file alone is not replaced, but overwritten).
// What is so already is not touched.
func (h *Host) Write(name string, content []byte, mode fs.FileMode) error {
	if h.Same(name, content, mode) {
		return nil
	}
	h.Log.Debug("write", "file", name, "bytes", len(content))
	err := h.replace(name, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
	if errors.Is(err, syscall.EBUSY) {
		// A file that is mounted, as a container's /etc/hosts is, cannot be
		// replaced: what it holds can.
		err = overwrite(h.Path(name), content, mode)
	}
	return err
}

// replace writes a file beside the one that it then takes the place of.
func (h *Host) replace(name string, mode fs.FileMode, write func(io.Writer) error) error {
	path := h.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = write(tmp)
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}

func overwrite(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// Remove takes a file or a folder with all that is in it away; a missing one is
// gone already.
func (h *Host) Remove(name string) error {
	if !h.Exists(name) {
		return nil
	}
	h.Log.Debug("remove", "file", name)
	return os.RemoveAll(h.Path(name))
}

// Step is one thing that a machine needs.
type Step struct {
	Name string // one word that stays: "containerd"

	// Look says, a line each, what Do would do; nothing when all is done. It
	// changes nothing. Its error refuses the whole: what is wrong, and what to do.
	Look func(ctx context.Context) (todo []string, err error)

	// Do makes it so. After it Look has nothing to say.
	Do func(ctx context.Context) error
}

// Look asks all steps, and refuses with everything that is wrong.
func Look(ctx context.Context, steps []Step) (todo []string, err error) {
	for _, s := range steps {
		lines, e := s.Look(ctx)
		todo = append(todo, lines...)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", s.Name, e))
		}
	}
	return todo, err
}

// Do carries out the steps that have something to do, in order, and tells
// progress of each as it begins.
func Do(ctx context.Context, steps []Step, progress func(line string)) error {
	for _, s := range steps {
		todo, err := s.Look(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		if len(todo) == 0 {
			continue
		}
		for _, line := range todo {
			progress(line)
		}
		if err := s.Do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return nil
}

// System is the Runner of the machine itself. Commands speak English, and are
// found in the folders of root even where su left those out of PATH.
type System struct{}

// Run implements Runner. At the end of ctx a command is asked to stop, and has
// ten seconds for that: one that installs packages must not be torn away.
func (System) Run(ctx context.Context, c Command) ([]byte, error) {
	cmd := exec.CommandContext(ctx, find(c.Name), c.Args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":"+strings.Join(sbin(), ":"))
	cmd.Env, cmd.Stdin = append(cmd.Env, c.Env...), c.Stdin
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(&stderr, c.Stderr)
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = fmt.Errorf("%s: %w", c, context.Cause(ctx))
	case errors.As(err, &exit):
		code := exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
		err = &Exit{c, code, tail(stderr.String())}
	}
	return stdout.Bytes(), err
}

func sbin() []string { return []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} }

func find(name string) string {
	if _, err := exec.LookPath(name); err == nil || strings.Contains(name, "/") {
		return name
	}
	for _, dir := range sbin() {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return name
}

// tail is the end of what a command said.
func tail(text string) string {
	const most = 2000
	if len(text) > most {
		text = "…" + text[len(text)-most:]
	}
	return text
}
