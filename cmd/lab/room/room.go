// Package room is a room full of PCs on this computer: containers that behave as
// machines with a minimal Debian do, and a git server, on a network of their own
// without a way out.
//
//	r, err := room.New("lab", progress)
//	err = r.Build(ctx, room.Options{Machines: 5, Site: "examples/lab", ...})
//	err = r.Kill(ctx, "pc-02")      // power off
//	err = r.Down(ctx)               // nothing is left
//
// A machine's PID 1 is systemd. It has a fixed address and a fixed MAC, a boot id
// of its own for each boot, and files that outlive its power. What is done to it
// is what hands do to a PC: power, reset, network cable, USB stick. Nothing here
// knows what a site is; package site, in the folder below, does.
//
// Docker itself remembers the room: everything that belongs to one carries the
// label kingmaker.lab with its name, and the state folder holds only what Docker
// cannot, such as the credentials of the git server. So a room survives the
// program that built it, in any state, and Down finds all of it.
//
// The docker command line is used, and not its Go client: what the lab needs is a
// dozen commands that anybody can type after it, and the client is a forest that
// go.mod would share with the product.
package room

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
)

// labels of what belongs to a room.
const (
	labelLab     = "kingmaker.lab"     // its name
	labelMachine = "kingmaker.machine" // on containers: pc-01, or git
)

// Git is the name under which the git server is killed, started, cut and healed.
const Git = "git"

// A Room may not be built yet, or not be there any more: only its name is needed
// to ask.
type Room struct {
	// Name begins the names of its containers; the network is called so too.
	Name string
	// Dir is its state folder. It exists while the room does.
	Dir string
	// Runner carries out the commands.
	Runner Runner
	// Progress is told what happens, a line each.
	Progress func(line string)

	settings string // folder of the computer's settings: /proc/sys
}

// New gives the room of a name, which need not exist: letters, digits and dashes,
// at most 20, and "" is lab. Progress may be nil.
func New(name string, progress func(line string)) (*Room, error) {
	name = cmp.Or(name, "lab")
	if !regexp.MustCompile(`^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$`).MatchString(name) {
		return nil, fmt.Errorf("name %q: want at most 20 small letters, digits and dashes, such as lab-2", name)
	}
	dir, err := stateDir()
	if err != nil {
		return nil, err
	}
	if progress == nil {
		progress = func(string) {}
	}
	return &Room{Name: name, Dir: filepath.Join(dir, name), Runner: Computer{}, Progress: progress, settings: "/proc/sys"}, nil
}

// stateDir holds a folder for each room.
func stateDir() (string, error) { return here.Cache("lab") }

// Options of a room that is built.
type Options struct {
	// Machines is how many: pc-01, pc-02 and so on, at most 89.
	Machines int
	// Media is a folder whose content every machine finds at /media/kingmaker,
	// read-only, as on a USB stick; "" for none. The room gets a copy.
	Media string
	// Site is the folder whose content is the first commit of the site repo,
	// without the history that it may have itself.
	Site string
}

// MaxMachines is the most that a room holds.
const MaxMachines = 89

// Build makes a room from nothing: machines that are on and have booted, and a
// site repo with its first commit. It needs root, and runs inside a checkout of
// kingmaker: the git server is built from it, and its scripts install what is
// missing on this computer. What is half made when it ends with an error stays for
// inspection.
func (r *Room) Build(ctx context.Context, o Options) (err error) {
	if o.Machines < 1 || o.Machines > MaxMachines {
		return fmt.Errorf("%d machines: want 1 to %d", o.Machines, MaxMachines)
	}
	if err := mayBuild(); err != nil {
		return err
	}
	if _, err := os.Stat(o.Site); err != nil {
		return fmt.Errorf("read the site: %w", err)
	}
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	if err := r.Free(ctx); err != nil {
		return err
	}
	var images images
	var net network
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"make the base images", func() (err error) { images, err = r.baseImages(ctx); return err }},
		{"lend the computer's settings", func() error { return r.borrow() }},
		{"write the stick", func() error { return r.writeStick(ctx, o.Media) }},
		{"make the network", func() (err error) { net, err = r.makeNetwork(ctx); return err }},
		{"start the git server", func() error { return r.startGit(ctx, images.git, net) }},
		{"make the site repo", func() error { return r.makeRepo(ctx, o.Site) }},
		{"start the machines", func() error { return r.startMachines(ctx, images.machine, net, o.Machines) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// writeStick copies media into the state folder: a bundle in a cache goes when
// newer ones come, and a machine does not start without its mounts. Where both are
// on one file system nothing is copied, but linked.
func (r *Room) writeStick(ctx context.Context, media string) error {
	if err := os.MkdirAll(r.stick(), 0o700); err != nil || media == "" {
		return err
	}
	copyAs := func(how string) error {
		_, err := r.run(ctx, "cp", "--recursive", how, filepath.Clean(media)+"/.", r.stick())
		return err
	}
	if copyAs("--link") == nil {
		return nil
	}
	if err := errors.Join(os.RemoveAll(r.stick()), os.MkdirAll(r.stick(), 0o700)); err != nil {
		return err
	}
	return copyAs("--reflink=auto")
}

func (r *Room) stick() string { return filepath.Join(r.Dir, "media") }

// startMachines switches all machines on, and waits until each has booted.
func (r *Room) startMachines(ctx context.Context, image string, net network, machines int) error {
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(4) // more at once are slower to the last one
	for n := 1; n <= machines; n++ {
		all.Go(func() error { return r.add(ctx, n, image, net) })
	}
	return all.Wait()
}

// Add buys one more PC: a machine that is on, has booted, and is a member of
// nothing. It returns its name.
func (r *Room) Add(ctx context.Context) (name string, err error) {
	unlock, err := r.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	machines, err := r.Machines(ctx)
	if err != nil {
		return "", err
	}
	n := 1
	for _, m := range machines {
		n = max(n, number(m.Name)+1)
	}
	if n > MaxMachines {
		return "", fmt.Errorf("%s is full: it has %d machines", r.Name, MaxMachines)
	}
	net, err := r.network(ctx)
	if err != nil {
		return "", err
	}
	images, err := r.baseImages(ctx)
	if err != nil {
		return "", err
	}
	return MachineName(n), r.add(ctx, n, images.machine, net)
}

func (r *Room) add(ctx context.Context, n int, image string, net network) error {
	name := MachineName(n)
	c, err := thisComputer(ctx, r.Runner)
	if err != nil {
		return err
	}
	if err := r.makeBrick(ctx, name); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := r.docker(ctx, runMachine(r.Name, n, net.machine(n), image, r.stick(), r.brick(name), c)...); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return r.Booted(ctx, name)
}

// Down takes away all that belongs to the room, whatever state it is in. A room
// that does not exist is down already.
func (r *Room) Down(ctx context.Context) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if !r.answers(ctx) {
		if _, err := os.Stat(r.Dir); err != nil {
			return ignoreMissing(err)
		}
		// It was stopped since, and keeps the containers.
		if err := r.script(ctx, "docker", "start"); err != nil {
			return err
		}
	}
	mine := []string{"--filter", "label=" + labelLab + "=" + r.Name}
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"ps", "--all", "--quiet"}, []string{"rm", "--force", "--volumes"}},
		{[]string{"volume", "ls", "--quiet"}, []string{"volume", "rm"}},
	} {
		ids, err := r.lines(ctx, append(kind.list, mine...)...)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			continue
		}
		if _, err := r.docker(ctx, append(kind.remove, ids...)...); err != nil {
			return err
		}
	}
	// Before the folder: it would be emptied through what is mounted in it.
	if err := errors.Join(r.removeNetwork(ctx), r.removeBricks(ctx)); err != nil {
		return err
	}
	if err := os.RemoveAll(r.Dir); err != nil {
		return err
	}
	return r.last(ctx)
}

// last gives back what all rooms of this computer share, once there is none.
func (r *Room) last(ctx context.Context) error {
	rooms, err := Rooms()
	if err != nil || len(rooms) > 0 {
		return err
	}
	return errors.Join(r.giveBack(), r.stopDocker(ctx))
}

// Rooms are the names of all that exist, or are half made.
func Rooms() (names []string, err error) {
	dir, err := stateDir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, err
}

func mayBuild() error {
	if os.Geteuid() != 0 {
		return errors.New("a room is built by root: it makes networks and mounts; try sudo")
	}
	return nil
}

// Free has an error where no room of the name can be built: by anybody but root,
// or while there is anything of one already.
func (r *Room) Free(ctx context.Context) error {
	if err := mayBuild(); err != nil {
		return err
	}
	there := fmt.Errorf("%s is there already: `lab status --name %[1]s` shows it, and `lab down --name %[1]s` takes it away", r.Name)
	if _, err := os.Stat(r.Dir); err == nil {
		return there
	}
	if !r.answers(ctx) {
		return nil
	}
	for _, list := range [][]string{{"ps", "--all"}, {"volume", "ls"}, {"network", "ls"}} {
		ids, err := r.lines(ctx, append(list, "--quiet", "--filter", "label="+labelLab+"="+r.Name)...)
		if err != nil {
			return err
		}
		if len(ids) > 0 {
			return there
		}
	}
	return nil
}

// Machine is one of the room's containers, as it was found.
type Machine struct {
	Name    string // pc-01, or Git
	Address netip.Addr
	On      bool // has power
	Cable   bool // its network cable is in; of a machine without power: will be
}

// Machines are those of the room in the order of their names, the git server
// last. A room that does not exist has an error that says so.
func (r *Room) Machines(ctx context.Context) ([]Machine, error) {
	containers, err := r.containers(ctx)
	if err != nil {
		return nil, err
	}
	var machines []Machine
	for _, c := range containers {
		m := Machine{Name: c.Config.Labels[labelMachine], On: c.State.Running, Cable: !r.isCut(c.Config.Labels[labelMachine])}
		if m.Address, err = c.address(r.Name); err != nil {
			return nil, err
		}
		machines = append(machines, m)
	}
	slices.SortFunc(machines, func(a, b Machine) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.Name, b.Name))
	})
	return machines, nil
}

func rank(m Machine) int {
	if m.Name == Git {
		return 1
	}
	return 0
}

// Machine is the one of a name.
func (r *Room) Machine(ctx context.Context, name string) (Machine, error) {
	machines, err := r.Machines(ctx)
	if err != nil {
		return Machine{}, err
	}
	var names []string
	for _, m := range machines {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Machine{}, fmt.Errorf("there is no machine %q in %s: there are %s", name, r.Name, strings.Join(names, ", "))
}

// MachineName is pc-01 for 1.
func MachineName(n int) string { return fmt.Sprintf("pc-%02d", n) }

// number is 1 for pc-01, and 0 for git.
func number(name string) (n int) {
	fmt.Sscanf(name, "pc-%d", &n)
	return n
}

// MAC is the hardware address that the machine of a number has in every room, so
// that a site repo can declare it.
func MAC(n int) string { return fmt.Sprintf("02:4b:4d:00:00:%02d", n) }
