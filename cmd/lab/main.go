// Lab runs a site on this computer, or parts of one, to try kingmaker and to
// test it.
//
//	lab demo                     the main job, from nothing: PCs become a site
//	lab up, down, status ...     a site of container machines; power, cables, repo
//	lab bundle                   the offline bundle that machines are installed from
//	lab controlplane             a Kubernetes control plane, until interrupted
//	lab controlplane -- CMD ...  the same, for as long as CMD runs
//
// It holds the verbs; what they do is in the packages below it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
)

// A verb is one thing the lab can do. It returns an error, exitCode for a command
// of the user's that ended badly.
type verb struct {
	name, args, about string
	run               func(ctx context.Context, flags *flag.FlagSet, args []string) error
}

func verbs() []verb {
	return append([]verb{
		{"demo", "[--name LAB]", "show the main job from nothing: PCs with only Debian become a site, and a push changes it", runDemo},
		{"bench", "[flags]", "measure what the issues ask for, beside kubectl, and print a table", runBench},
		{"bundle", "[--output DIR] [--refresh]", "make the offline bundle, with which a machine is installed, and print where it is", runBundle},
		{"controlplane", "[flags] [-- CMD ARGS...]", "run a Kubernetes control plane until interrupted, or for as long as CMD runs", runControlPlane},
	}, roomVerbs()...)
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

func run(ctx context.Context, args []string, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "-help" || args[0] == "--help" {
		usage(stderr)
		if len(args) == 0 {
			return 2
		}
		return 0
	}
	for _, v := range verbs() {
		if v.name != args[0] {
			continue
		}
		flags := flag.NewFlagSet(v.name, flag.ContinueOnError)
		flags.SetOutput(stderr)
		flags.Usage = func() {
			fmt.Fprintf(stderr, "usage: lab %s %s\n%s\n", v.name, v.args, v.about)
			flags.PrintDefaults()
		}
		err := v.run(ctx, flags, args[1:])
		var code exitCode
		switch {
		case err == nil, errors.Is(err, flag.ErrHelp):
			return 0
		case errors.As(err, &code):
			return int(code)
		case errors.Is(err, errUsage): // package flag has said it
			return 2
		}
		fmt.Fprintln(stderr, "lab:", err)
		return 1
	}
	fmt.Fprintf(stderr, "lab: there is no verb %q\n", args[0])
	usage(stderr)
	return 2
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: lab VERB [flags]; lab VERB -h tells more")
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, v := range verbs() {
		fmt.Fprintf(table, "  %s\t%s\n", v.name, v.about)
	}
	table.Flush()
}

// exitCode is how a command of the user's ended, which becomes how the lab ends.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// errUsage means that the command line is wrong and that it has been said.
var errUsage = errors.New("wrong usage")

func runControlPlane(ctx context.Context, flags *flag.FlagSet, args []string) error {
	options := controlplane.Options{Progress: os.Stderr}
	flags.BoolVar(&options.Controllers, "controllers", false, "run kube-controller-manager and kube-scheduler too")
	flags.StringVar(&options.AuditLog, "audit", "", "append a line for each request to `FILE`")
	flags.StringVar(&options.Dir, "dir", "", "keep the data in `DIR` (default: a temporary folder that is removed at the end)")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return errUsage
	}

	plane, err := controlplane.Start(ctx, options)
	if err != nil {
		return err
	}
	if flags.NArg() == 0 {
		fmt.Printf("export KUBECONFIG='%s'\n", strings.ReplaceAll(plane.Kubeconfig, "'", `'\''`))
		fmt.Fprintf(os.Stderr, "kubectl is %s; an interrupt (Ctrl-C) ends the control plane\n", plane.Bin("kubectl"))
		select {
		case <-ctx.Done():
		case err = <-plane.Failed():
		}
	} else {
		err = runWith(ctx, plane, flags.Args())
	}
	return errors.Join(err, plane.Stop())
}

// runWith runs a command as a user would who has just set KUBECONFIG and put the
// folder of kubectl into PATH.
func runWith(ctx context.Context, plane *controlplane.Plane, args []string) error {
	for name, value := range map[string]string{
		"KUBECONFIG": plane.Kubeconfig,
		"PATH":       filepath.Dir(plane.Bin("kubectl")) + string(os.PathListSeparator) + os.Getenv("PATH"),
	} {
		if err := os.Setenv(name, value); err != nil { // for all of us: exec looks it up here
			return err
		}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	// Without the lab the command has no cluster. The signal is sent when the thread
	// that started the command ends, so this one waits for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
		return exitCode(128 + int(status.Signal())) // as a shell does
	}
	return exitCode(exit.ExitCode())
}
