package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/kingmaker-io/kingmaker/cmd/lab/bundle"
	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
	"github.com/kingmaker-io/kingmaker/cmd/lab/room/site"
)

// roomVerbs are those of the lab that act on a room and the site in it.
func roomVerbs() []verb {
	onMachine := func(name, about string, do func(*room.Room, context.Context, string) error) verb {
		return verb{name, "[--name LAB] MACHINE", about, func(ctx context.Context, flags *flag.FlagSet, args []string) error {
			r, err := parseRoom(flags, args, 1)
			if err != nil {
				return err
			}
			return do(r, ctx, flags.Arg(0))
		}}
	}
	return []verb{
		{"up", "[flags]", "make a site on this computer: machines that are containers, installed from the bundle", runUp},
		{"down", "[--name LAB]", "take a lab away, and all that belongs to it", runDown},
		{"status", "[--name LAB]", "show the machines of a lab", runStatus},
		{"exec", "[--name LAB] MACHINE -- CMD [ARGS...]", "run a command on a machine; its exit code becomes the lab's", runExec},
		onMachine("kill", "cut the power of a machine", (*room.Room).Kill),
		onMachine("start", "switch a machine on", (*room.Room).Start),
		onMachine("reboot", "have a machine boot again, and wait until it has", (*room.Room).Reboot),
		onMachine("cut", "pull the network cable of a machine", (*room.Room).Cut),
		onMachine("heal", "put the network cable back", (*room.Room).Heal),
		{"add", "[--name LAB]", "buy one more machine, which is a member of nothing, and print its name", runAdd},
		{"kubeconfig", "[--name LAB]", "print the path of the administrator's kubeconfig, which leads to a master that answers", runKubeconfig},
		{"url", "[--name LAB]", "print the address of the portal", runURL},
		{"repo", "[--name LAB] [--clone]", "print the push address of the site repo, or the path of a clone", runRepo},
	}
}

// parseRoom reads the flags of a verb that acts on a room, and count arguments; a
// negative count is at least so many.
func parseRoom(flags *flag.FlagSet, args []string, count int) (*room.Room, error) {
	name := flags.String("name", "lab", "the `LAB`, where there are several")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil, err
	} else if err != nil {
		return nil, errUsage
	}
	if n := flags.NArg(); n != count && (count >= 0 || n < -count) {
		fmt.Fprintf(flags.Output(), "lab %s: %d arguments, want %d; flags come first\n", flags.Name(), n, max(count, -count))
		flags.Usage()
		return nil, errUsage
	}
	return room.New(*name, (&clock{os.Stderr, time.Now()}).say)
}

// clock tells what happens, and when, in seconds from its beginning.
type clock struct {
	w     io.Writer
	begin time.Time
}

func (c *clock) say(line string) {
	fmt.Fprintf(c.w, "%6.1f s  %s\n", time.Since(c.begin).Seconds(), line)
}

func runUp(ctx context.Context, flags *flag.FlagSet, args []string) error {
	var o upOptions
	flags.IntVar(&o.machines, "machines", 5, "how many")
	flags.StringVar(&o.site, "site", "", "the `DIR` whose content is the site repo's first commit (default examples/lab)")
	flags.StringVar(&o.bundle, "bundle", "", "the `DIR` of a bundle (default: one is made)")
	flags.BoolVar(&o.desktops, "desktops", false, "with the image of desktops, of 650 MB, which each machine unpacks; and with examples/desktops in the site repo")
	r, err := parseRoom(flags, args, 0)
	if err != nil {
		return err
	}
	s, err := up(ctx, r, o)
	if err != nil {
		return err
	}
	return printStatus(ctx, os.Stdout, s)
}

// upOptions are what lab up can be told.
type upOptions struct {
	machines int
	site     string // folder; "" is examples/lab
	bundle   string // folder; "" makes one
	desktops bool   // the one that is made has the image of desktops, and the site some
}

// up makes a room, and a site in it.
func up(ctx context.Context, r *room.Room, o upOptions) (*site.Site, error) {
	checkout, err := here.Checkout()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "kingmaker-lab-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, os.DirFS(cmp.Or(o.site, filepath.Join(checkout, "examples", "lab")))); err != nil {
		return nil, fmt.Errorf("read the site: %w", err)
	}
	if o.desktops {
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(checkout, "examples", "desktops"))); err != nil {
			return nil, fmt.Errorf("lay desktops into the site: %w", err)
		}
	}
	if err := site.Fit(dir, o.machines); err != nil {
		return nil, fmt.Errorf("fit the site to %d machines: %w", o.machines, err)
	}
	if err := r.Free(ctx); err != nil {
		return nil, fmt.Errorf("up: %w", err)
	}
	began := time.Now()
	if o.bundle == "" {
		r.Progress("the bundle")
		if o.bundle, err = bundle.Make(ctx, bundle.Options{NoDesktop: !o.desktops}, os.Stderr); err != nil {
			return nil, err
		}
	}
	s := &site.Site{Room: r, Progress: r.Progress}
	r.Progress(fmt.Sprintf("a room with %d machines and a git server; the bundle is %s", o.machines, o.bundle))
	if err := r.Build(ctx, room.Options{Machines: o.machines, Media: o.bundle, Site: dir}); err != nil {
		return nil, fmt.Errorf("up: %w\nwhat there is of it stays, for a look; `lab down --name %s` takes it away", err, r.Name)
	}
	url, err := r.URL(ctx)
	if err != nil {
		return nil, err
	}
	r.Progress("all machines have booted; the site repo is " + url)
	if err := s.Up(ctx); err != nil {
		return nil, fmt.Errorf("up: %w\neverything stays as it is, for a look; `lab down --name %s` takes it away", err, r.Name)
	}
	file, err := s.Kubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	r.Progress(fmt.Sprintf("%s is up after %.0f s", r.Name, time.Since(began).Seconds()))
	fmt.Printf(`
site repo    %s   a clone that can push: %s
kubeconfig   %s
`, url, r.WorkTree(), file)
	return s, nil
}

func runDown(ctx context.Context, flags *flag.FlagSet, args []string) error {
	r, err := parseRoom(flags, args, 0)
	if err != nil {
		return err
	}
	if err := r.Down(ctx); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	r.Progress(r.Name + " is down, and nothing of it is left")
	return nil
}

func runStatus(ctx context.Context, flags *flag.FlagSet, args []string) error {
	r, err := parseRoom(flags, args, 0)
	if err != nil {
		return err
	}
	if err := r.Wake(ctx); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	return printStatus(ctx, os.Stdout, &site.Site{Room: r, Progress: r.Progress})
}

func printStatus(ctx context.Context, w io.Writer, s *site.Site) error {
	rows, doubt, err := s.Rows(ctx)
	if err != nil {
		return err
	}
	writeStatus(w, rows, time.Now())
	if doubt != nil {
		fmt.Fprintf(w, "\nroles and phases are not known: %v\n", doubt)
	}
	return nil
}

// writeStatus writes a table: power and cable as they are, the rest as the site
// heard last.
func writeStatus(w io.Writer, rows []site.Row, now time.Time) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nMACHINE\tADDRESS\tPOWER\tCABLE\tROLE\tPHASE\tSEEN")
	word := func(yes bool, is, isNot string) string {
		if yes {
			return is
		}
		return isNot
	}
	for _, row := range rows {
		seen := "-"
		if !row.Heartbeat.IsZero() {
			seen = duration.HumanDuration(now.Sub(row.Heartbeat)) + " ago"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Name, row.Address, word(row.On, "on", "off"), word(row.Cable, "in", "out"),
			cmp.Or(row.Role, "-"), cmp.Or(row.Phase, "-"), seen)
	}
	table.Flush()
}

func runExec(ctx context.Context, flags *flag.FlagSet, args []string) error {
	r, err := parseRoom(flags, args, -2)
	if err != nil {
		return err
	}
	machine, line := flags.Arg(0), flags.Args()[1:]
	if line[0] == "--" {
		line = line[1:]
	}
	if len(line) == 0 {
		flags.Usage()
		return errUsage
	}
	switch m, err := r.Machine(ctx, machine); {
	case err != nil:
		return err
	case !m.On:
		return fmt.Errorf("%s is off: `lab start --name %s %[1]s` switches it on", machine, r.Name)
	}
	argv := r.Exec(machine, isTerminal(os.Stdin) && isTerminal(os.Stdout), line...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exitCode(exit.ExitCode())
	}
	return err
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func runAdd(ctx context.Context, flags *flag.FlagSet, args []string) error {
	r, err := parseRoom(flags, args, 0)
	if err != nil {
		return err
	}
	name, err := r.Add(ctx)
	if err != nil {
		return fmt.Errorf("add: %w", err)
	}
	fmt.Println(name)
	return nil
}

func runKubeconfig(ctx context.Context, flags *flag.FlagSet, args []string) error {
	r, err := parseRoom(flags, args, 0)
	if err != nil {
		return err
	}
	file, err := (&site.Site{Room: r, Progress: r.Progress}).Kubeconfig(ctx)
	if err != nil {
		return err
	}
	fmt.Println(file)
	return nil
}

func runURL(ctx context.Context, flags *flag.FlagSet, args []string) error {
	r, err := parseRoom(flags, args, 0)
	if err != nil {
		return err
	}
	machines, err := r.Machines(ctx)
	if err != nil {
		return err
	}
	var at []string
	for _, m := range machines {
		if m.On && m.Name != room.Git {
			at = append(at, m.Address.String())
		}
	}
	return fmt.Errorf("the site has no portal yet; its machines are at %s", strings.Join(at, ", "))
}

func runRepo(ctx context.Context, flags *flag.FlagSet, args []string) error {
	clone := flags.Bool("clone", false, "print the path of a clone on this computer, from which git push works")
	r, err := parseRoom(flags, args, 0)
	if err != nil {
		return err
	}
	url, err := r.URL(ctx)
	if err != nil {
		return err
	}
	if *clone {
		url = r.WorkTree()
	}
	fmt.Println(url)
	return nil
}
