package crown

import (
	"fmt"
	"strconv"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
)

// Spec is what a crown is about. It does not change once it has begun.
type Spec struct {
	// Number is one more than that of the crown before.
	Number int `json:"number" jsonschema:"required,minimum=1"`
	// Kind is replace (a dead master, by an heir), grow (one master more) or retire (one less).
	Kind string `json:"kind" jsonschema:"required,enum=replace,enum=grow,enum=retire"`
	// Victim is the machine that ceases to be a master.
	Victim string `json:"victim,omitempty"`
	// Member is the ID of the victim's etcd member, in hex.
	Member string `json:"member,omitempty" jsonschema:"pattern=^[0-9a-f]+$"`
	// PeerURL is that of the victim's etcd member: it is removed only if it has this one.
	PeerURL string `json:"peerURL,omitempty"`
	// Dead is true of a victim that was silent when the crown began.
	Dead bool `json:"dead,omitempty"`
	// Heir is the machine that becomes a master.
	Heir string `json:"heir,omitempty"`
	// Boot is the boot ID of the heir, or of the retired machine, before its reset.
	Boot string `json:"boot,omitempty"`
	// Why is the reason, in a sentence.
	Why string `json:"why,omitempty"`
	// Begun is when.
	Begun time.Time `json:"begun,omitzero"`
}

// Status is how far a crown is.
type Status struct {
	// Step is what is being done, such as Drain.
	Step string `json:"step,omitempty"`
	// Machine is the one that the step is about.
	Machine string `json:"machine,omitempty"`
	// Since is when the step began.
	Since time.Time `json:"since,omitzero"`
	// Attempts is how often the step met an error.
	Attempts int `json:"attempts,omitempty"`
	// Error is the last one.
	Error string `json:"error,omitempty"`
	// Address is the heir's when it was told to join.
	Address string `json:"address,omitempty"`
	// Undo is how a crown will end that is being undone: cancelled or failed.
	Undo string `json:"undo,omitempty" jsonschema:"enum=cancelled,enum=failed"`
	// Cause is why it is undone, or what went wrong.
	Cause string `json:"cause,omitempty"`
	// Outcome is how it ended: done, cancelled or failed. Absent: it is open.
	Outcome string `json:"outcome,omitempty" jsonschema:"enum=done,enum=cancelled,enum=failed"`
	// Ended is when.
	Ended time.Time `json:"ended,omitzero"`
	// Journal has a line for each step, in order.
	Journal []Entry `json:"journal,omitempty"`
}

// Entry is one line of a journal.
type Entry struct {
	// At is when the step began.
	At time.Time `json:"at"`
	// Step is what was done.
	Step string `json:"step"`
	// Machine is the one that it was about.
	Machine string `json:"machine,omitempty"`
	// Note is why.
	Note string `json:"note,omitempty"`
}

// write is a record as the cluster keeps it.
func write(c *roles.Crown) (Spec, Status) {
	spec := Spec{Number: c.Number, Kind: string(c.Kind), Victim: c.Victim, PeerURL: c.PeerURL, Dead: c.Dead, Heir: c.Heir, Boot: c.Boot, Why: c.Why, Begun: c.Begun.UTC()}
	if c.Member != 0 {
		spec.Member = fmt.Sprintf("%x", c.Member)
	}
	status := Status{Step: string(c.Step), Machine: c.Machine, Since: c.Since.UTC(), Attempts: c.Attempts, Error: c.Error, Address: c.Address,
		Undo: string(c.Undo), Cause: c.Cause, Outcome: string(c.Outcome), Ended: c.Ended.UTC()}
	for _, e := range c.Journal {
		status.Journal = append(status.Journal, Entry{At: e.At.UTC(), Step: string(e.Step), Machine: e.Machine, Note: e.Note})
	}
	return spec, status
}

// read is the inverse of write. What cannot be read must not be taken for a crown
// that is about nobody.
func read(spec Spec, status Status) (roles.Crown, error) {
	c := roles.Crown{Number: spec.Number, Kind: roles.Kind(spec.Kind), Victim: spec.Victim, PeerURL: spec.PeerURL, Dead: spec.Dead, Heir: spec.Heir, Boot: spec.Boot, Why: spec.Why, Begun: spec.Begun,
		Step: roles.Action(status.Step), Machine: status.Machine, Since: status.Since, Attempts: status.Attempts, Error: status.Error, Address: status.Address,
		Undo: roles.Outcome(status.Undo), Cause: status.Cause, Outcome: roles.Outcome(status.Outcome), Ended: status.Ended}
	if spec.Member != "" {
		var err error
		if c.Member, err = strconv.ParseUint(spec.Member, 16, 64); err != nil {
			return c, fmt.Errorf("member %q is no ID of etcd's: %w", spec.Member, err)
		}
	}
	switch {
	case c.Number < 1:
		return c, fmt.Errorf("it has no number")
	case c.Kind != roles.Grow && c.Victim == "", c.Kind != roles.Retire && c.Heir == "":
		return c, fmt.Errorf("a crown of kind %q lacks its victim or its heir", spec.Kind)
	case c.Victim != "" && c.Member == 0:
		return c, fmt.Errorf("the etcd member of %s is not named", c.Victim)
	}
	for _, e := range status.Journal {
		c.Journal = append(c.Journal, roles.Entry{At: e.At, Step: roles.Action(e.Step), Machine: e.Machine, Note: e.Note})
	}
	return c, nil
}
