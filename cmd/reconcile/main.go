// Command reconcile keeps a site equal to its git repository.
//
// The story, from top to bottom: main.go reads the command line (cli.go says
// what there is), wire.go puts the rooms together, and then one of daemon.go,
// dryrun.go, once.go or a verb of verbs.go tells the reconciler what to do.
// Only here is known what a dry run is: it is a plan that is printed and not
// applied.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/render"
)

// Exit codes; scripts depend on them.
const (
	exitDone    = 0 // nothing to change, or all that was asked for is done
	exitPending = 1 // changes are pending, or wait
	exitError   = 2
)

func main() {
	if os.Args[0] == render.ChildName {
		// We are the sandbox of a render: see package render.
		os.Exit(render.Child(os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], streams{os.Stdout, os.Stderr, terminal(os.Stdout), terminal(os.Stderr)}))
}

// streams are where a command writes.
type streams struct {
	out, err                 io.Writer
	outTerminal, errTerminal bool
}

func terminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// doing shows on a terminal what takes its time; done takes it away again.
func (s streams) doing(format string, args ...any) {
	if s.errTerminal {
		fmt.Fprintf(s.err, "\r\x1b[K"+format+" …", args...)
	}
}

func (s streams) done() {
	if s.errTerminal {
		fmt.Fprint(s.err, "\r\x1b[K")
	}
}

// code is an error that is told by an exit code alone.
type code int

func (c code) Error() string { return fmt.Sprintf("exit %d", int(c)) }

// run is main without the process around it.
func run(ctx context.Context, args []string, s streams) int {
	root := newRoot(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var exit code
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &exit):
		return int(exit)
	case ctx.Err() != nil:
		fmt.Fprintln(s.err, "reconcile: interrupted; what was begun is completed by the next run")
		return exitError
	}
	tell(s.err, err)
	return exitError
}

// tell prints an error: one line for each thing that is wrong, and what to do
// next where it is known.
func tell(w io.Writer, err error) {
	faults, rest := plan.Split(err)
	for _, f := range faults {
		fmt.Fprintf(w, "reconcile: %s [%s]\n", f, f.Code)
	}
	if rest != nil {
		fmt.Fprintf(w, "reconcile: %s\n", strings.TrimSpace(rest.Error()))
	}
}
