package member

import (
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// Part is what a machine remembers of the roles that it was given: what it has to
// know when nobody answers, and what it must not do twice. It is kept on the disk,
// and the zero value is that of a machine that was given none yet.
type Part struct {
	// Machine is the UID of the Machine object that told: the next of that name counts
	// its generations afresh.
	Machine string `json:"machine,omitempty"`
	// Role and Generation are the newest that it was told of.
	Role       string `json:"role,omitempty"`
	Generation int64  `json:"generation,omitempty"`
	// Reached is the generation in which it works.
	Reached int64 `json:"reached,omitempty"`
	// Tried is the generation for which it began to join as a master: each once. A
	// second try could find the member of the first, skip the add, and start a voter
	// on an empty disk.
	Tried int64 `json:"tried,omitempty"`
	// Failed is the generation for which that failed, and Failure is why.
	Failed  int64  `json:"failed,omitempty"`
	Failure string `json:"failure,omitempty"`
	// Done are the orders that were carried out.
	Done machine.Orders `json:"done,omitzero"`
	// Boot is the boot ID when it was last looked at, Ordered is true where the next
	// boot is one that we ordered, and Boots are when others were noticed, in the last
	// 30 days.
	Boot    string      `json:"boot,omitempty"`
	Ordered bool        `json:"ordered,omitempty"`
	Boots   []time.Time `json:"boots,omitempty"`
}

const partFile = host.StateDir + "/role.yaml"

// ReadPart is what is on the disk.
func ReadPart(h *host.Host) (p Part, err error) {
	_, err = load(h, partFile, &p)
	return p, err
}

// SavePart puts it there.
func SavePart(h *host.Host, p Part) error { return save(h, partFile, p) }

// Learn is the part after the Machine object of a UID told of a role. An older
// generation teaches nothing.
func (p Part) Learn(machine, role string, generation int64) Part {
	if role == "" {
		return p
	}
	if p.Machine != "" && machine != p.Machine {
		p.Generation, p.Reached, p.Tried, p.Failed, p.Failure = 0, 0, 0, 0, ""
	}
	if generation >= p.Generation {
		p.Machine, p.Role, p.Generation = machine, role, generation
	}
	return p
}

// Started is the part in a boot: one that nobody ordered is noted.
func (p Part) Started(boot string, now time.Time) Part {
	if boot == "" || boot == p.Boot {
		return p
	}
	var kept []time.Time
	for _, at := range p.Boots {
		if now.Sub(at) < 30*24*time.Hour {
			kept = append(kept, at)
		}
	}
	if p.Boot != "" && !p.Ordered {
		kept = append(kept, now.UTC().Truncate(time.Second))
	}
	p.Boot, p.Ordered, p.Boots = boot, false, kept
	return p
}
