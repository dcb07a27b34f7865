package gluster

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// CLI runs one gluster command on this machine, and returns what it prints. The
// arguments are those after `gluster --mode=script --xml`; none may be put together
// from text that others wrote. Of glusterd's cluster-wide lock, one caller at a time
// gets along; the next is told that another transaction is in progress.
type CLI func(ctx context.Context, args ...string) (stdout []byte, err error)

// Refusal is what gluster answers instead of doing what it was told.
type Refusal struct {
	Command string // such as volume start
	Number  int    // opErrno; of no use to tell refusals apart
	Text    string // opErrstr
}

func (r *Refusal) Error() string { return fmt.Sprintf("gluster %s: %s", r.Command, r.Text) }

// Peer is a machine of the trusted pool, this one included.
type Peer struct {
	UUID      string
	Addresses []string // none of this machine itself: gluster calls it localhost
	Self      bool
	Connected bool
	Member    bool // it is in the pool; else it is on the way in or was rejected
	State     string
}

// Live is a volume as GlusterFS has it.
type Live struct {
	ID       string // UUID, for ever
	Name     string
	Started  bool
	Replicas int
	Sets     int // of replicas: files are spread over them; 1 where each brick has every file
	Arbiters int
	Bricks   []LiveBrick
	Options  map[string]string // that differ from GlusterFS's defaults
}

// LiveBrick is one brick of a volume.
type LiveBrick struct {
	Address string // of the machine
	Path    string
	Peer    string // UUID of the machine's glusterd
	Arbiter bool
}

// String is the brick as gluster's command line has it.
func (b LiveBrick) String() string { return b.Address + ":" + b.Path }

// Process is a brick, or a self-heal daemon, of a volume that is started.
type Process struct {
	Peer   string // UUID
	Path   string // of a brick; "" for the self-heal daemon
	Online bool
}

// Heal is what a brick has for others to catch up with.
type Heal struct {
	Brick      string // address:path
	Known      bool   // it was asked; else nothing is known, least of all that there is nothing
	Pending    int    // entries
	SplitBrain int    // of them: entries of which nobody can say which copy is right
}

// answer is what all of gluster's answers have.
type answer struct {
	Ret   int    `xml:"opRet"`
	Errno int    `xml:"opErrno"`
	Text  string `xml:"opErrstr"`
}

// ask runs a command and reads its answer into to. Some failures come on stderr and
// with an exit code alone, others with neither.
func (c CLI) ask(ctx context.Context, to any, args ...string) error {
	command := strings.Join(args[:min(2, len(args))], " ")
	out, err := c(ctx, args...)
	var a answer
	if bytes.Contains(out, []byte("<cliOutput>")) {
		if e := xml.Unmarshal(out, &a); e != nil {
			return fmt.Errorf("gluster %s: read the answer: %w", command, e)
		}
		if a.Ret != 0 {
			return &Refusal{command, a.Errno, strings.TrimSpace(a.Text)}
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("gluster %s: %w", command, err)
	case a == answer{} && !bytes.Contains(out, []byte("<opRet>")):
		return fmt.Errorf("gluster %s: no answer: %.200q", command, out)
	case to == nil:
		return nil
	}
	if err := xml.Unmarshal(out, to); err != nil {
		return fmt.Errorf("gluster %s: read the answer: %w", command, err)
	}
	return nil
}

// Pool is the trusted pool, as this machine's glusterd sees it.
func (c CLI) Pool(ctx context.Context) (peers []Peer, err error) {
	var out struct {
		Peers []struct {
			UUID      string   `xml:"uuid"`
			Hostname  string   `xml:"hostname"`
			Hostnames []string `xml:"hostnames>hostname"`
			Connected int      `xml:"connected"`
			State     string   `xml:"state"`
			StateStr  string   `xml:"stateStr"`
		} `xml:"peerStatus>peer"`
	}
	if err := c.ask(ctx, &out, "pool", "list"); err != nil {
		return nil, err
	}
	for _, p := range out.Peers {
		peer := Peer{UUID: p.UUID, Addresses: p.Hostnames, Connected: p.Connected == 1, State: p.StateStr, Member: p.State == "3"}
		if p.Hostname == "localhost" {
			peer.Self, peer.Member, peer.Addresses, peer.State = true, true, nil, ""
		}
		peers = append(peers, peer)
	}
	return peers, nil
}

// Volumes are all volumes of the pool.
func (c CLI) Volumes(ctx context.Context) (volumes []Live, err error) {
	var out struct {
		Volumes []struct {
			Name     string `xml:"name"`
			ID       string `xml:"id"`
			Status   string `xml:"statusStr"`
			Sets     int    `xml:"distCount"`
			Replicas int    `xml:"replicaCount"`
			Arbiters int    `xml:"arbiterCount"`
			Bricks   []struct {
				Name    string `xml:"name"`
				Peer    string `xml:"hostUuid"`
				Arbiter int    `xml:"isArbiter"`
			} `xml:"bricks>brick"`
			Options []struct {
				Name  string `xml:"name"`
				Value string `xml:"value"`
			} `xml:"options>option"`
		} `xml:"volInfo>volumes>volume"`
	}
	if err := c.ask(ctx, &out, "volume", "info"); err != nil {
		return nil, err
	}
	for _, v := range out.Volumes {
		live := Live{ID: v.ID, Name: v.Name, Started: v.Status == "Started", Replicas: v.Replicas, Sets: v.Sets, Arbiters: v.Arbiters, Options: map[string]string{}}
		for _, b := range v.Bricks {
			address, path, ok := splitBrick(b.Name)
			if !ok {
				return nil, fmt.Errorf("gluster volume info: brick %q of volume %s has no path", b.Name, v.Name)
			}
			live.Bricks = append(live.Bricks, LiveBrick{address, path, b.Peer, b.Arbiter == 1})
		}
		for _, o := range v.Options {
			live.Options[o.Name] = o.Value
		}
		volumes = append(volumes, live)
	}
	return volumes, nil
}

// splitBrick parts address:/path; an address may have colons itself.
func splitBrick(name string) (address, path string, ok bool) {
	at := strings.Index(name, ":/")
	if at <= 0 {
		return "", "", false
	}
	return name[:at], name[at+1:], true
}

// selfHeal is what gluster calls the self-heal daemon where it has a host's name else.
const selfHeal = "Self-heal Daemon"

// Processes are those of a volume that is started. Of a machine that is away there
// are none.
func (c CLI) Processes(ctx context.Context, volume string) (processes []Process, err error) {
	var out struct {
		Nodes []struct {
			Hostname string `xml:"hostname"`
			Path     string `xml:"path"`
			Peer     string `xml:"peerid"`
			Status   int    `xml:"status"`
		} `xml:"volStatus>volumes>volume>node"`
	}
	if err := c.ask(ctx, &out, "volume", "status", volume); err != nil {
		return nil, err
	}
	for _, n := range out.Nodes {
		p := Process{Peer: n.Peer, Online: n.Status == 1}
		switch {
		case strings.HasPrefix(n.Path, "/"):
			p.Path = n.Path
		case n.Hostname != selfHeal:
			continue // of a feature that we do not use
		}
		processes = append(processes, p)
	}
	return processes, nil
}

// Heals are what the bricks of a volume say of one another. A brick that was not
// reached is not known: gluster's answer is then malformed, and has no counts.
func (c CLI) Heals(ctx context.Context, volume string) (heals []Heal, err error) {
	var out struct {
		Bricks []struct {
			Name       string `xml:"name"`
			Status     string `xml:"status"`
			Pending    string `xml:"totalNumberOfEntries"`
			SplitBrain string `xml:"numberOfEntriesInSplitBrain"`
		} `xml:"healInfo>bricks>brick"`
	}
	if err := c.ask(ctx, &out, "volume", "heal", volume, "info", "summary"); err != nil {
		return nil, err
	}
	for _, b := range out.Bricks {
		h := Heal{Brick: b.Name}
		pending, err := strconv.Atoi(b.Pending)
		split, e := strconv.Atoi(b.SplitBrain)
		if b.Status == "Connected" && err == nil && e == nil && pending >= 0 && split >= 0 {
			h.Known, h.Pending, h.SplitBrain = true, pending, split
		}
		heals = append(heals, h)
	}
	return heals, nil
}

// Counts are how many entries each brick has in its list of what others may have to
// catch up with, by address:path: a brick that was not reached has none. It is what
// gluster can tell at once, where Heals looks at each entry. It prints no XML.
func (c CLI) Counts(ctx context.Context, volume string) (map[string]int, error) {
	out, err := c(ctx, "volume", "heal", volume, "statistics", "heal-count")
	if err != nil {
		return nil, fmt.Errorf("gluster volume heal: %w", err)
	}
	counts, brick := map[string]int{}, ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "Brick "); ok {
			brick = name
		}
		if text, ok := strings.CutPrefix(line, "Number of entries: "); ok {
			if n, err := strconv.Atoi(text); err == nil && n >= 0 {
				counts[brick] = n
			}
		}
	}
	return counts, nil
}

// manyEntries is from how many on the entries of a volume are counted, and not looked
// at: that takes minutes, during which gluster does nothing else.
const manyEntries = 200

// heals are what the bricks say of one another; of many entries, where all bricks run,
// their number alone, for then nothing is done but to wait.
func (c CLI) heals(ctx context.Context, v Live, processes []Process) ([]Heal, error) {
	counts, err := c.Counts(ctx, v.Name)
	if err != nil {
		return c.Heals(ctx, v.Name)
	}
	var rough []Heal
	most := 0
	for _, b := range v.Bricks {
		n, known := counts[b.String()]
		most = max(most, n)
		if !known || !runs(processes, b) {
			return c.Heals(ctx, v.Name)
		}
		rough = append(rough, Heal{Brick: b.String(), Known: true, Pending: n})
	}
	if most < manyEntries {
		return c.Heals(ctx, v.Name)
	}
	return rough, nil
}

// See reads the pool and all its volumes. Self, Targets and Nudged are others' to know.
func (c CLI) See(ctx context.Context) (s Seen, err error) {
	s = Seen{Processes: map[string][]Process{}, Heals: map[string][]Heal{}}
	if s.Peers, err = c.Pool(ctx); err != nil {
		return s, err
	}
	if s.Volumes, err = c.Volumes(ctx); err != nil {
		return s, err
	}
	for _, v := range s.Volumes {
		if !v.Started {
			continue
		}
		if s.Processes[v.Name], err = c.Processes(ctx, v.Name); err != nil {
			return s, err
		}
		if s.Heals[v.Name], err = c.heals(ctx, v, s.Processes[v.Name]); err != nil {
			return s, err
		}
	}
	return s, nil
}

// SplitFiles are the entries of a volume whose copies contradict each other, the
// first so many of them. A file has its path in the volume; one of which only the
// gfid is known has that.
func (c CLI) SplitFiles(ctx context.Context, volume string, atMost int) (files []string, err error) {
	var out struct {
		Bricks []struct {
			Files []string `xml:"file"`
		} `xml:"healInfo>bricks>brick"`
	}
	if err := c.ask(ctx, &out, "volume", "heal", volume, "info", "split-brain"); err != nil {
		return nil, err
	}
	for _, b := range out.Bricks {
		for _, file := range b.Files {
			if !slices.Contains(files, file) && len(files) < atMost {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// Carry carries one step out. Done twice it is done once, or refused.
func (c CLI) Carry(ctx context.Context, s *Step) error {
	copies := strconv.Itoa(s.Replicas)
	var args []string
	switch s.Do {
	case Probe:
		args = []string{"peer", "probe", s.Address}
	case Detach:
		args = []string{"peer", "detach", s.Address}
	case Stop:
		args = []string{"volume", "stop", s.Volume}
	case Delete:
		args = []string{"volume", "delete", s.Volume}
	case Create:
		args = []string{"volume", "create", s.Volume}
		if s.Replicas > 1 {
			args = append(args, "replica", copies)
		}
		if s.Arbiter {
			args = append(args, "arbiter", "1")
		}
		args = append(args, s.Bricks...)
	case Set, Rewrite:
		args = []string{"volume", "set", s.Volume}
		for _, name := range slices.Sorted(maps.Keys(s.Options)) {
			args = append(args, name, s.Options[name])
		}
	case Start:
		args = []string{"volume", "start", s.Volume}
	case Revive:
		args = []string{"volume", "start", s.Volume, "force"}
	case Reset:
		// In two: the second wants a brick that was taken out of service.
		if err := c.ask(ctx, nil, "volume", "reset-brick", s.Volume, s.Old, "start"); err != nil {
			return err
		}
		args = []string{"volume", "reset-brick", s.Volume, s.Old, s.Old, "commit", "force"}
	case Replace:
		args = []string{"volume", "replace-brick", s.Volume, s.Old, s.New, "commit", "force"}
	case Add:
		args = append([]string{"volume", "add-brick", s.Volume, "replica", copies}, s.Bricks...)
	case Remove:
		args = append(append([]string{"volume", "remove-brick", s.Volume, "replica", copies}, s.Bricks...), "force")
	case Mend:
		// This one prints no XML, whatever it is told: its exit code is its answer.
		out, err := c(ctx, "volume", "heal", s.Volume)
		if err != nil && ctx.Err() == nil && len(bytes.TrimSpace(out)) > 0 {
			return &Refusal{Command: "volume heal", Text: strings.Join(strings.Fields(string(out)), " ")}
		}
		return err
	default: // SetAside among them, which is the machine's own
		return fmt.Errorf("gluster: there is no step %q", s.Do)
	}
	return c.ask(ctx, nil, args...)
}
