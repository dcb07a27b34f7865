// Package site makes a site of the machines in a room, as a person does who goes
// from PC to PC with a USB stick: noded install on each, noded init on the first,
// and on each further one the line that reconcile token prints.
//
// It does nothing that a person could not do, and knows nothing that he does not
// see: what it waits for is what kubectl shows. So where it works, so do the
// instructions; and where it does not, it says on which machine to look.
package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
)

// A Site may not be there yet.
type Site struct {
	Room *room.Room
	// Progress is told what happens, a line each.
	Progress func(line string)
}

// where things are on a machine.
const (
	stick       = "/media/kingmaker/bin/noded"
	log         = "/var/log/kingmaker/noded.log"
	adminConf   = "/etc/kubernetes/admin.conf"
	credentials = "/root/site-credentials"
)

// Up makes a site of the room's machines, and returns when all of it works. The
// first machine becomes its first master. What is half made when it ends with an
// error stays for inspection.
func (s *Site) Up(ctx context.Context) error {
	all, err := s.Room.Machines(ctx)
	if err != nil {
		return err
	}
	var machines []string
	for _, m := range all {
		if m.Name != room.Git {
			machines = append(machines, m.Name)
		}
	}
	first, further := machines[0], machines[1:]
	for _, step := range []struct {
		name string
		do   func() error
	}{
		// The first master has the longest way, so it goes ahead: the others are
		// installed while it starts.
		{"the first machine", func() error { return s.Install(ctx, first) }},
		{"the first master", func() error {
			both, ctx := errgroup.WithContext(ctx)
			both.Go(func() error { return s.Init(ctx, first) })
			both.Go(func() error { return s.each(ctx, further, s.Install) })
			return both.Wait()
		}},
		{"the further machines", func() error {
			return s.each(ctx, further, func(ctx context.Context, machine string) error { return s.Join(ctx, first, machine) })
		}},
		{"the whole site", func() error { return s.Settled(ctx, machines) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// atOnce is how many machines are worked on at the same time: more than there are
// processors make each of them slower, and none earlier.
const atOnce = 2

func (s *Site) each(ctx context.Context, machines []string, do func(context.Context, string) error) error {
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(atOnce)
	for _, m := range machines {
		all.Go(func() error { return do(ctx, m) })
	}
	return all.Wait()
}

// Install does what comes before a machine can become a member of a site.
func (s *Site) Install(ctx context.Context, machine string) error {
	return s.timed(machine+": noded install", func() error {
		return s.noded(ctx, machine, nil, stick, "install", "--yes")
	})
}

// Init makes a machine the first of the site.
func (s *Site) Init(ctx context.Context, machine string) error {
	url, err := s.Room.URL(ctx)
	if err != nil {
		return err
	}
	if err := s.Room.Copy(ctx, s.Room.Credentials(), machine, credentials); err != nil {
		return err
	}
	if err := s.timed(machine+": noded init", func() error {
		return s.noded(ctx, machine, nil, "noded", "init", "--site", url, "--credentials", credentials, "--yes")
	}); err != nil {
		return err
	}
	return s.takeKubeconfig(ctx, machine)
}

// Join has a machine join, by the line that a person would paste. It is asked for
// on a master.
func (s *Site) Join(ctx context.Context, master, machine string) error {
	line, err := s.Room.Run(ctx, master, nil, "reconcile", "token", "--kubeconfig", adminConf)
	if err != nil {
		return fmt.Errorf("%s: reconcile token: %w", master, err)
	}
	args, token, err := pasted(string(line))
	if err != nil {
		return fmt.Errorf("%s: reconcile token: %w", master, err)
	}
	return s.timed(machine+": noded join", func() error {
		return s.noded(ctx, machine, []byte(token), append(args, "--yes")...)
	})
}

// pasted takes the line "noded join ... <<< TOKEN" apart as a shell would: the
// token goes to standard input, where no other user can see it.
func pasted(text string) (args []string, token string, err error) {
	for line := range strings.Lines(text) {
		if command, token, ok := strings.Cut(line, " <<< "); ok && strings.HasPrefix(command, "noded join ") {
			return strings.Fields(command), strings.TrimSpace(token) + "\n", nil
		}
	}
	return nil, "", errors.New("it prints no line with noded join")
}

// timed tells that something begins, and when it is done how long it took.
func (s *Site) timed(what string, do func() error) error {
	begin := time.Now()
	s.Progress(what)
	err := do()
	if err == nil {
		s.Progress(fmt.Sprintf("%s: done in %.0f s", what, time.Since(begin).Seconds()))
	}
	return err
}

// noded runs it on a machine. Its error says where to look.
func (s *Site) noded(ctx context.Context, machine string, stdin []byte, args ...string) error {
	said, err := s.Room.Run(ctx, machine, stdin, args...)
	var exit *room.Exit
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit): // interrupted, most of the time
		return fmt.Errorf("%s: %s: %w", machine, strings.Join(args, " "), err)
	}
	text := fmt.Sprintf("%s: %s: exit code %d; it said:\n%s", machine, strings.Join(args, " "), exit.Code,
		last(string(said)+exit.Stderr, 12))
	if lines, err := s.Room.Run(ctx, machine, nil, "tail", "-n", "12", log); err == nil {
		text += fmt.Sprintf("\nand its log %s ends with:\n%s", log, last(string(lines), 12))
	}
	return fmt.Errorf("%s\n`lab exec --name %s %s -- bash` leads there", text, s.Room.Name, machine)
}

// last quotes the last n lines of a text, each cut to what a person reads.
func last(text string, n int) string {
	const most = 300
	lines := strings.Split(strings.TrimSpace(text), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		if len(line) > most {
			lines[i] = strings.ToValidUTF8(line[:most], "") + "…"
		}
	}
	return "\t" + strings.Join(lines, "\n\t")
}

// Fit makes a site's folder fit a number of machines, where it declares them as
// the lab's example does, by files machines/pc-NN.yaml: those beyond the number
// go, and those that are missing are made.
func Fit(dir string, machines int) error {
	example, err := os.ReadFile(filepath.Join(dir, "machines", room.MachineName(1)+".yaml"))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil // it declares its machines otherwise
		}
		return err
	}
	for n := 1; n <= room.MaxMachines; n++ {
		file := filepath.Join(dir, "machines", room.MachineName(n)+".yaml")
		_, err := os.Stat(file)
		switch there := err == nil; {
		case there && n > machines:
			err = os.Remove(file)
		case !there && n <= machines:
			text := strings.ReplaceAll(string(example), room.MachineName(1), room.MachineName(n))
			err = os.WriteFile(file, []byte(strings.ReplaceAll(text, room.MAC(1), room.MAC(n))), 0o644)
		default:
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
