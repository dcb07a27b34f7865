// Package hosttest has machines for tests of what is done to machines: a folder
// in place of the root of a file system, and a Runner that plays the programs
// of Debian, as far as package host and those above it call them.
//
//	m := hosttest.NewDebian(t)
//	steps := host.Install(m.Host, host.Options{Bundle: hosttest.Bundle(t), ...})
//	...
//	m.Runner.Lines()    // every command that was carried out
//	m.Runner.Changes()  // those that change something
package hosttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// Answer plays one program. stdin is all that it was given to read. An error
// that is to be the program's own is Refuse's.
type Answer func(c host.Command, stdin []byte) (stdout string, err error)

// Runner is a host.Runner that carries out nothing. It records each command, and
// answers by table. The zero value knows no program.
type Runner struct {
	// Answers by the beginning of the command line, in whole words: "systemctl
	// restart", or "systemctl" for all of its verbs. The longest that fits counts.
	Answers map[string]Answer

	// Before, where it is set, is asked before each command, numbered from 1. With
	// an error the command is not carried out, and fails with it.
	Before func(n int, line string) error

	// After is the same afterwards: the command was carried out, and yet fails.
	After func(n int, line string) error

	mu    sync.Mutex
	lines []string
}

// Run implements host.Runner. A program that is not in the table is not found.
func (r *Runner) Run(ctx context.Context, c host.Command) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	line := c.String()
	r.mu.Lock()
	r.lines = append(r.lines, line)
	n := len(r.lines)
	r.mu.Unlock()

	if r.Before != nil {
		if err := r.Before(n, line); err != nil {
			return nil, err
		}
	}
	answer := r.find(line)
	if answer == nil {
		return nil, errors.New("exec: \"" + c.Name + "\": executable file not found in $PATH (hosttest has no answer to: " + line + ")")
	}
	var stdin bytes.Buffer
	if c.Stdin != nil {
		if _, err := io.Copy(&stdin, c.Stdin); err != nil {
			return nil, err
		}
	}
	stdout, err := answer(c, stdin.Bytes())
	var exit *host.Exit
	if errors.As(err, &exit) && c.Stderr != nil {
		if _, err := io.WriteString(c.Stderr, exit.Stderr); err != nil {
			return nil, err
		}
	}
	if r.After != nil {
		if e := r.After(n, line); e != nil {
			err = e
		}
	}
	return []byte(stdout), err
}

func (r *Runner) find(line string) (found Answer) {
	longest := -1
	for prefix, answer := range r.Answers {
		if (line == prefix || strings.HasPrefix(line, prefix+" ")) && len(prefix) > longest {
			found, longest = answer, len(prefix)
		}
	}
	return found
}

// Lines are the commands so far, as a person would type them.
func (r *Runner) Lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

// Changes are the commands so far that are not known to be for looking only.
func (r *Runner) Changes() []string {
	return slices.DeleteFunc(r.Lines(), looks)
}

// Forget empties the record.
func (r *Runner) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = nil
}

// looks reports whether a command only looks.
func looks(line string) bool {
	for _, prefix := range []string{
		"dpkg-query ", "systemctl is-", "systemctl show", "lsblk ", "wipefs --no-act ", "partx --pairs ", "sfdisk --dump ",
		"ip -json ", "haproxy -c ", "ctr namespaces list", "ctr --namespace k8s.io images list", "ctr --namespace k8s.io containers list",
	} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return strings.HasSuffix(line, " --version")
}

// Refuse is a program that ended with a code other than 0, and said why.
func Refuse(c host.Command, code int, stderr string) error {
	return &host.Exit{Command: c, Code: code, Stderr: stderr}
}
