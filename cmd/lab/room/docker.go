package room

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Command is a program of this computer with its arguments.
type Command struct {
	Args  []string // the program first; hold no secret
	Stdin io.Reader
	Dir   string   // where it runs; "" is here
	Env   []string // added to the lab's own
}

// String is the command as a person would type it.
func (c Command) String() string { return strings.Join(c.Args, " ") }

// Runner carries out commands.
type Runner interface {
	// Run waits for the end of a command. Its error is an *Exit where the
	// command itself said no; what it printed comes back even then.
	Run(ctx context.Context, c Command) (stdout []byte, err error)
}

// Exit is a command that ended with a code other than 0.
type Exit struct {
	Command Command
	Code    int // 128 and the signal's number where it was killed
	Stderr  string
}

func (e *Exit) Error() string {
	said := strings.TrimSpace(e.Stderr)
	if said == "" {
		said = fmt.Sprint("exit code ", e.Code)
	}
	line := e.Command.String()
	if len(line) > 200 {
		line = line[:200] + "…"
	}
	return line + ": " + said
}

// Computer is the Runner that is real.
type Computer struct{}

// Run implements Runner.
func (Computer) Run(ctx context.Context, c Command) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Stdin, cmd.Dir, cmd.Env = c.Stdin, c.Dir, append(os.Environ(), c.Env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// An interrupt that is typed reaches all of a terminal's programs; this one
	// shall decide what becomes of them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.As(err, &exit):
		code := exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
		err = &Exit{c, code, stderr.String()}
	}
	return stdout.Bytes(), err
}

func (r *Room) run(ctx context.Context, args ...string) ([]byte, error) {
	return r.Runner.Run(ctx, Command{Args: args})
}

func (r *Room) docker(ctx context.Context, args ...string) ([]byte, error) {
	return r.run(ctx, append([]string{"docker"}, args...)...)
}

// lines is what docker prints, by line.
func (r *Room) lines(ctx context.Context, args ...string) ([]string, error) {
	out, err := r.docker(ctx, args...)
	return strings.Fields(string(out)), err
}

// answers reports whether Docker runs.
func (r *Room) answers(ctx context.Context) bool {
	_, err := r.docker(ctx, "version", "--format", "{{.Server.Version}}")
	return err == nil
}

// container is what is read of docker inspect.
type container struct {
	Name   string // with a slash before it
	Config struct{ Labels map[string]string }
	State  struct {
		Running   bool
		Pid       int
		StartedAt string
	}
	NetworkSettings struct {
		Networks map[string]struct {
			IPAMConfig struct{ IPv4Address string }
		}
	}
}

// address is the one that was asked for: a machine has it without power too.
func (c *container) address(network string) (netip.Addr, error) {
	a, err := netip.ParseAddr(c.NetworkSettings.Networks[network].IPAMConfig.IPv4Address)
	if err != nil {
		err = fmt.Errorf("container %s has no address of its own: %w", c.Name, err)
	}
	return a, err
}

// containers are all of the room, in no order.
func (r *Room) containers(ctx context.Context) ([]container, error) {
	ids, err := r.lines(ctx, "ps", "--all", "--quiet", "--filter", "label="+labelLab+"="+r.Name)
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		if _, err := os.Stat(r.Dir); err == nil {
			return nil, fmt.Errorf("%s is half made: `lab down --name %[1]s` takes it away", r.Name)
		}
		return nil, fmt.Errorf("%s is not there: `lab up --name %[1]s` makes it", r.Name)
	}
	out, err := r.docker(ctx, append([]string{"inspect", "--type", "container"}, ids...)...)
	if err != nil {
		return nil, err
	}
	var containers []container
	return containers, json.Unmarshal(out, &containers)
}

// container is the one of a machine.
func (r *Room) container(ctx context.Context, machine string) (*container, error) {
	containers, err := r.containers(ctx)
	if err != nil {
		return nil, err
	}
	for i := range containers {
		if containers[i].Config.Labels[labelMachine] == machine {
			return &containers[i], nil
		}
	}
	_, err = r.Machine(ctx, machine) // says which there are
	return nil, err
}
