// Command noded makes a PC with Debian a machine of a site, and is its agent from
// then on.
//
// The story, from top to bottom: main.go reads the command line (cli.go says what
// there is). install.go puts in place what every machine needs; become.go makes
// it a master or a worker; run.go is the agent, reset.go the way out, status.go
// what a person wants to know. What is done to the machine is in package host,
// how it comes into a site in package member, and what it reports in package
// agent. Only here is asked before something is changed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Exit codes; scripts depend on them.
const (
	exitDone  = 0
	exitError = 2 // refused, or broke
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], &surroundings{
		in: os.Stdin, out: os.Stdout, err: os.Stderr, inTerminal: terminal(os.Stdin), tty: openTTY,
		host: &host.Host{Runner: host.System{}}, uid: os.Geteuid(),
	}))
}

// surroundings are what noded has around it: the person, and the machine.
type surroundings struct {
	in         io.Reader
	out, err   io.Writer
	inTerminal bool                               // somebody types what in reads
	tty        func() (io.ReadWriteCloser, error) // whom to ask where in is something else; an error is nobody
	host       *host.Host                         // without its log, which log.go opens
	uid        int
}

func terminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && info.Mode()&os.ModeDevice != 0 && f.Name() != os.DevNull
}

func openTTY() (io.ReadWriteCloser, error) { return os.OpenFile("/dev/tty", os.O_RDWR, 0) }

// run is main without the process around it.
func run(ctx context.Context, args []string, s *surroundings) int {
	root := newRoot(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitDone
	case ctx.Err() != nil:
		fmt.Fprintln(s.err, "noded: interrupted; run it again to complete what was begun, or noded reset to take it back")
	default:
		tell(s.err, err)
	}
	return exitError
}

// tell prints an error: one line for each thing that is wrong, with what to do
// next.
func tell(w io.Writer, err error) {
	faults, rest := plan.Split(err)
	for _, f := range faults {
		fmt.Fprintf(w, "noded: %s [%s]\n", f, f.Code)
	}
	if rest != nil {
		for line := range strings.Lines(strings.TrimSpace(rest.Error())) {
			fmt.Fprintf(w, "noded: %s\n", strings.TrimSpace(line))
		}
	}
}

// stamp is the version of a bundle. It is set by the linker (-X main.stamp=...),
// and empty in a binary that was built otherwise.
var stamp string

// version is the stamp, and without one what the Go toolchain recorded in the
// binary.
func version() string {
	if stamp != "" {
		return stamp
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return plan.Short(setting.Value)
		}
	}
	return strings.Trim(info.Main.Version, "()")
}

var errNotRoot = errors.New("this is for root: run it with sudo")
