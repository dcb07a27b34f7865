package gluster_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/glustertest"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
)

// steward does what the one of a site does, on real machines.
type steward struct {
	*testing.T
	room   *glustertest.Room
	wanted gluster.Wanted
	nudged map[string]time.Time
	calm   map[string]time.Time
}

func newSteward(t *testing.T, machines int) *steward {
	t.Helper()
	return &steward{T: t, room: glustertest.Start(t, machines), nudged: map[string]time.Time{}, calm: map[string]time.Time{}, wanted: gluster.Wanted{Name: "homes"}}
}

// brick is where a machine has its copy.
func brick(m *glustertest.Machine) gluster.Target {
	return gluster.Target{Machine: m.Name, Address: m.Address, Path: path.Join(glustertest.BrickDir, "homes")}
}

// target is the same with what its agent would report.
func (s *steward) target(ctx context.Context, m *glustertest.Machine) gluster.Target {
	t := brick(m)
	out, err := m.Run(ctx, "getfattr", "--absolute-names", "--only-values", "--name", "trusted.glusterfs.volume-id", t.Path)
	if len(out) == 16 && err == nil {
		h := hex.EncodeToString(out)
		t.Holds = strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
	}
	return t
}

// want places the volume.
func (s *steward) want(names ...string) {
	s.wanted.Bricks = nil
	for _, name := range names {
		s.wanted.Bricks = append(s.wanted.Bricks, brick(s.room.Machine(name)))
	}
}

// turn is one look and at most one step, on the first machine that is there.
func (s *steward) turn(ctx context.Context) (step *gluster.Step, holds string, err error) {
	var cli gluster.CLI
	var self []string
	targets := map[string]gluster.Target{}
	var machines []gluster.Target
	for _, m := range s.room.Machines {
		t := s.target(ctx, m)
		targets[t.String()] = t
		machines = append(machines, gluster.Target{Machine: m.Name, Address: m.Address})
		if _, err := m.Run(ctx, "true"); err == nil && cli == nil {
			cli, self = m.CLI(), []string{m.Address}
		}
	}
	seen, err := cli.See(ctx)
	if err != nil {
		return nil, "", err
	}
	seen.At, seen.Self, seen.Machines, seen.Targets, seen.Nudged, seen.Calm = time.Now(), self, machines, targets, s.nudged, s.calm
	for _, v := range seen.Volumes {
		if !seen.IsWhole(v) {
			delete(s.calm, v.Name)
			continue
		}
		if s.calm[v.Name].IsZero() {
			s.calm[v.Name] = seen.At
		}
		if seen.At.Sub(s.calm[v.Name]) >= gluster.Settling {
			s.wanted.Eras = nil
		}
	}
	w := s.wanted
	w.Bricks = slices.Clone(w.Bricks)
	for i, b := range w.Bricks {
		w.Bricks[i] = targets[b.String()]
	}
	step, faults := gluster.Next([]gluster.Wanted{w}, seen)
	for _, f := range faults {
		holds += string(f.Code) + " "
	}
	if step == nil {
		return nil, strings.TrimSpace(holds), nil
	}
	if step.Do == gluster.Mend {
		s.nudged[step.Volume] = time.Now()
	}
	line := string(step.Do)
	switch step.Do {
	case gluster.Set:
		line += fmt.Sprint(" ", step.Options)
	case gluster.Replace:
		line += " " + step.Old + " -> " + step.New
	case gluster.Reset:
		line += " " + step.Old
	case gluster.Create, gluster.Add, gluster.Remove:
		line += fmt.Sprintf(" %d %v", step.Replicas, step.Bricks)
	case gluster.Probe:
		line += " " + step.Address
	}
	s.Logf("%s: %s", line, step.Why)
	if at := slices.IndexFunc(seen.Volumes, func(v gluster.Live) bool { return v.Name == step.Volume }); at >= 0 {
		s.wanted.Eras = gluster.Remember(s.wanted.Eras, seen.Volumes[at], step)
	}
	if step.Do == gluster.SetAside {
		address, folder, _ := strings.Cut(step.Old, ":")
		i := slices.IndexFunc(s.room.Machines, func(m *glustertest.Machine) bool { return m.Address == address })
		_, err := s.room.Machines[i].Run(ctx, "mv", folder, fmt.Sprintf("%s.aside.%d", folder, time.Now().UnixNano()))
		return step, holds, err
	}
	return step, holds, cli.Carry(ctx, step)
}

// settle goes on until there is nothing to do, and what holds back is that.
func (s *steward) settle(holds string) {
	s.Helper()
	var last string
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		step, held, err := s.turn(s.Context())
		if step == nil && err == nil && held == holds {
			return
		}
		if now := fmt.Sprint(step, " ", held, " ", err); now != last {
			s.Logf("%s", now)
			last = now
		}
		if time.Now().After(deadline) {
			s.Fatalf("not settled: %v, held %q, %v", step, held, err)
		}
	}
}

// mount mounts the volume on a machine, and returns where.
func (s *steward) mount(name string) string {
	s.Helper()
	m, at := s.room.Machine(name), "/srv/homes"
	must := func(args ...string) {
		s.Helper()
		if out, err := m.Run(s.Context(), args...); err != nil {
			s.Fatalf("%v: %v %s", args, err, out)
		}
	}
	must("mkdir", "-p", at)
	must("mount", "-t", "glusterfs", m.Address+":/homes", at)
	return at
}

// write makes files through the mount, and returns their checksums.
func (s *steward) write(name, at, prefix string, n int) map[string]string {
	s.Helper()
	sums := map[string]string{}
	script := fmt.Sprintf("cd %s && mkdir -p %s && for i in $(seq %d); do echo %s $i > %s/$i; done; sync -f .", at, prefix, n, prefix, prefix)
	if out, err := s.room.Machine(name).Run(s.Context(), "bash", "-c", script); err != nil {
		s.Fatalf("write: %v %s", err, out)
	}
	for i := range n {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d\n", prefix, i+1))
		sums[fmt.Sprintf("%s/%d", prefix, i+1)] = hex.EncodeToString(sum[:])
	}
	return sums
}

// on is every file on a machine's brick, by checksum.
func (s *steward) on(name string) map[string]string {
	s.Helper()
	script := "cd " + path.Join(glustertest.BrickDir, "homes") + " && find . -path ./.glusterfs -prune -o -type f -print0 | xargs -0r sha256sum"
	out, err := s.room.Machine(name).Run(s.Context(), "bash", "-c", script)
	if err != nil {
		s.Fatal(err)
	}
	found := map[string]string{}
	for line := range strings.Lines(string(out)) {
		sum, file, _ := strings.Cut(strings.TrimSpace(line), "  ./")
		found[file] = sum
	}
	return found
}

func (s *steward) everywhere(sums map[string]string) {
	s.Helper()
	for _, b := range s.wanted.Bricks {
		if found := s.on(b.Machine); !maps.Equal(found, sums) {
			s.Errorf("%s has %d files of %d", b.Machine, len(found), len(sums))
		}
	}
}

// TestSteward is the life of a volume on real glusterd: made, one machine dies and is
// replaced, one comes back as it was, and one with an empty disk. At the end of each,
// every brick has every file.
func TestSteward(t *testing.T) {
	s := newSteward(t, 5)
	s.want("pc-01", "pc-02", "pc-03")
	s.settle("")
	at := s.mount("pc-01")
	sums := s.write("pc-01", at, "first", 300)
	s.everywhere(sums)

	// It dies, and is given up while people write.
	s.room.Machine("pc-03").Off()
	maps.Copy(sums, s.write("pc-01", at, "second", 300))
	s.settle("BrickAway")
	s.want("pc-01", "pc-02", "pc-04")
	s.settle("")
	s.everywhere(sums)

	// One comes back as it was: it catches up.
	s.room.Machine("pc-02").Off()
	maps.Copy(sums, s.write("pc-01", at, "third", 100))
	s.room.Machine("pc-02").On()
	s.settle("")
	s.everywhere(sums)

	// One comes back with an empty disk.
	s.room.Machine("pc-04").Off()
	s.room.Machine("pc-04").NewDisk()
	s.room.Machine("pc-04").On()
	s.settle("")
	s.everywhere(sums)

	// More copies, among them one on the machine that was given up: what it had is put
	// aside. And fewer, and more again.
	s.room.Machine("pc-03").On()
	for _, names := range [][]string{{"pc-01", "pc-02", "pc-04", "pc-03", "pc-05"}, {"pc-01", "pc-04", "pc-05"}, {"pc-01", "pc-04", "pc-05", "pc-02", "pc-03"}} {
		s.want(names...)
		maps.Copy(sums, s.write("pc-01", at, fmt.Sprint("part", len(sums)), 100))
		s.settle("")
		s.everywhere(sums)
	}

	// Two die for good, and there is nothing in their place: fewer are wanted then.
	s.room.Machine("pc-02").Off()
	s.room.Machine("pc-03").Off()
	s.want("pc-01", "pc-04", "pc-05")
	s.settle("")
	s.everywhere(sums)
}
