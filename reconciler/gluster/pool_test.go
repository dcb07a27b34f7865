package gluster_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/glustertest"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// school is a site on real parts: an API server, and glusterd on five machines. What
// the daemon and the hands of the machines do is done by the test.
type school struct {
	*testing.T
	cluster
	room     *glustertest.Room
	copies   []string
	steward  *gluster.Steward
	kills    map[string]int // by step: how often the steward died over it
	dead     bool           // it just did
	stewards int
}

func startSchool(t *testing.T) *school {
	s := &school{T: t, cluster: startCluster(t), room: glustertest.Start(t, 5), kills: map[string]int{}}
	s.kubectl(t, "apiVersion: kingmaker.dev/v1alpha1\nkind: Pool\nmetadata: {name: site}\n", "apply", "-f", "-")
	return s
}

// want places the volume.
func (s *school) want(names ...string) {
	s.Helper()
	s.copies = names
	var bricks []string
	for _, name := range names {
		bricks = append(bricks, fmt.Sprintf("{machine: %s, address: %s}", name, s.room.Machine(name).Address))
	}
	s.kubectl(s.T, fmt.Sprintf("apiVersion: kingmaker.dev/v1alpha1\nkind: Volume\nmetadata: {name: homes}\nspec: {access: homes, bricks: [%s]}\n", strings.Join(bricks, ", ")), "apply", "-f", "-")
}

// errKilled is the end of a steward in the middle of a command.
var errKilled = errors.New("killed")

// turn is one of the steward. Each that is about to do a step dies over it: the first
// before it is done, the second when it was done, and before it knows; the third is
// spared. A new one works on another machine.
func (s *school) turn() {
	s.Helper()
	s.tellBricks()
	if s.steward == nil {
		var up []*glustertest.Machine
		for _, m := range s.room.Machines {
			if _, err := m.Run(s.Context(), "true"); err == nil && s.inPool(m.Name) {
				up = append(up, m)
			}
		}
		m := up[s.stewards%len(up)]
		s.stewards++
		s.steward = &gluster.Steward{Machine: m.Name, Connect: func() (dynamic.Interface, error) { return s.client, nil },
			Gluster: s.deadly(m.CLI()), UUID: func() string { return m.Name }, Log: slog.New(slog.DiscardHandler)}
	}
	s.dead = false
	_, err := s.steward.Turn(s.Context())
	if err != nil {
		s.Logf("%s: %v", s.steward.Machine, err)
	}
	if _, off := s.room.Machine(s.steward.Machine).Run(s.Context(), "true"); off != nil || s.dead {
		s.steward = nil
	}
}

// inPool reports whether the Pool has a machine: no other may be the steward. Before
// there is one it is the first.
func (s *school) inPool(name string) bool {
	machines := s.kubectl(s.T, "", "get", "pool", "site", "-o", "jsonpath={.status.peers[*].machine}")
	return machines == "" && name == "pc-01" || slices.Contains(strings.Fields(machines), name)
}

// deadly is a gluster over which stewards die.
func (s *school) deadly(cli gluster.CLI) gluster.CLI {
	return func(ctx context.Context, args ...string) ([]byte, error) {
		line := strings.Join(args, " ")
		if strings.Contains(line, "info") || strings.Contains(line, "status") || strings.Contains(line, "list") || args[1] == "heal" {
			return cli(ctx, args...)
		}
		s.kills[line]++
		if s.dead = s.kills[line] <= 2; !s.dead {
			return cli(ctx, args...)
		}
		s.Logf("the steward dies over gluster %s", line)
		if s.kills[line] == 2 {
			_, _ = cli(ctx, args...)
		}
		return nil, errKilled
	}
}

// tellBricks does what the hands do: they report, and put aside what they are told to.
func (s *school) tellBricks() {
	s.Helper()
	status := s.status()
	for _, m := range s.room.Machines {
		folder := path.Join(glustertest.BrickDir, "homes")
		if _, err := m.Run(s.Context(), "true"); err != nil {
			continue // it is off
		}
		brick := gluster.MachineBrick{Heartbeat: time.Now().UTC(), Size: 1000, Free: 900, FileSystem: "xfs", Glusterd: m.Name}
		id, err := m.Run(s.Context(), "getfattr", "--absolute-names", "--only-values", "--name", "trusted.glusterfs.volume-id", folder)
		if len(id) == 16 && err == nil {
			h := hex.EncodeToString(id)
			held := gluster.Held{Volume: "homes", ID: strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")}
			brick.Holds = []gluster.Held{held}
			if slices.Contains(status.Aside, m.Name) {
				if _, err := m.Run(s.Context(), "mv", folder, fmt.Sprintf("%s.aside.%d", folder, time.Now().UnixNano())); err != nil {
					s.Fatal(err)
				}
				s.Logf("%s puts its former copy aside", m.Name)
				brick.Holds = nil
			}
		}
		text, _ := json.Marshal(map[string]any{"status": map[string]any{"heartbeat": time.Now().UTC().Format(time.RFC3339), "brick": nil}})
		full, _ := json.Marshal(map[string]any{"status": map[string]any{"brick": brick}})
		for _, body := range [][]byte{text, full} { // the first takes away what the second has not
			if _, err := s.client.Resource(gluster.MachineResource()).Patch(s.Context(), m.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status"); err != nil {
				s.Fatal(err)
			}
		}
	}
}

// status is that of the volume, as the API has it.
func (s *school) status() (status gluster.VolumeStatus) {
	s.Helper()
	o, err := s.client.Resource(gluster.Resource()).Get(s.Context(), "homes", metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	text, err := json.Marshal(o.Object["status"])
	if err == nil {
		err = json.Unmarshal(text, &status)
	}
	if err != nil {
		s.Fatal(err)
	}
	if status.ObservedGeneration != o.GetGeneration() {
		status.Phase = "of an earlier generation"
	}
	return status
}

// settle goes on until the volume is in a phase.
func (s *school) settle(phase string) {
	s.Helper()
	var last string
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		s.turn()
		at := s.status()
		if at.Phase == phase && len(at.Aside) == 0 {
			return
		}
		if now := at.Phase + " " + at.Copies + " " + at.Message; now != last {
			s.Log(now)
			last = now
		}
		if time.Now().After(deadline) {
			s.Fatalf("not settled: %+v", at)
		}
	}
}

// mount mounts the volume on a machine, and returns where.
func (s *school) mount(name string) string {
	s.Helper()
	m, at := s.room.Machine(name), "/srv/homes"
	for _, args := range [][]string{{"mkdir", "-p", at}, {"mount", "-t", "glusterfs", m.Address + ":/homes", at}} {
		if out, err := m.Run(s.Context(), args...); err != nil {
			s.Fatalf("%v: %v %s", args, err, out)
		}
	}
	return at
}

// write makes files through the mount, and returns their checksums.
func (s *school) write(name, at, prefix string, n int) map[string]string {
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
func (s *school) on(name string) map[string]string {
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

func (s *school) everywhere(sums map[string]string) {
	s.Helper()
	for _, name := range s.copies {
		if found := s.on(name); !maps.Equal(found, sums) {
			s.Errorf("%s has %d files of %d", name, len(found), len(sums))
		}
	}
}

// TestSteward is the life of a volume on real glusterd, with stewards that die over
// each step: made; a machine dies and is replaced; one comes back as it was, and one
// with an empty disk; more copies, one of them where there is a former one; and two die
// for good. At the end of each, every brick has every file.
func TestSteward(t *testing.T) {
	s := startSchool(t)
	s.want("pc-01", "pc-02", "pc-03")
	s.settle(gluster.Started)
	at := s.mount("pc-01")
	sums := s.write("pc-01", at, "first", 100)
	s.everywhere(sums)

	// It dies, and is given up while people write.
	s.room.Machine("pc-03").Off()
	maps.Copy(sums, s.write("pc-01", at, "second", 100))
	s.settle(gluster.Degraded)
	s.want("pc-01", "pc-02", "pc-04")
	s.settle(gluster.Started)
	s.everywhere(sums)

	// One comes back as it was: it catches up.
	s.room.Machine("pc-02").Off()
	maps.Copy(sums, s.write("pc-01", at, "third", 50))
	s.settle(gluster.Degraded)
	s.room.Machine("pc-02").On()
	s.settle(gluster.Started)
	s.everywhere(sums)

	// One comes back with an empty disk.
	s.room.Machine("pc-04").Off()
	s.settle(gluster.Degraded)
	s.room.Machine("pc-04").NewDisk()
	s.room.Machine("pc-04").On()
	s.settle(gluster.Started)
	s.everywhere(sums)

	// More copies, among them one on the machine that was given up.
	s.room.Machine("pc-03").On()
	s.want("pc-01", "pc-02", "pc-04", "pc-03", "pc-05")
	maps.Copy(sums, s.write("pc-01", at, "fourth", 50))
	s.settle(gluster.Started)
	s.everywhere(sums)

	// Two die for good, and nothing is to be in their place.
	s.room.Machine("pc-02").Off()
	s.room.Machine("pc-03").Off()
	s.want("pc-01", "pc-04", "pc-05")
	s.settle(gluster.Started)
	s.everywhere(sums)
	if len(s.kills) < 10 {
		t.Errorf("stewards died over %d steps only: %v", len(s.kills), s.kills)
	}
}
