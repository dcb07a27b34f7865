package plan

import "reflect"

// Action is what a change does to its object.
type Action string

// The actions, in the order in which summaries count them.
const (
	Create  Action = "create"
	Update  Action = "update"
	Replace Action = "replace" // delete and create again: the change cannot be made in place
	Delete  Action = "delete"
)

// Actions are all actions, in order.
func Actions() []Action { return []Action{Create, Update, Replace, Delete} }

// Change turns Have into Want. A nil Have creates, a nil Want deletes.
type Change struct {
	ID   ID
	Have *Object
	Want *Object
	Why  string // one sentence for people
}

// Action is derived from the two ends of the change, so that it cannot lie.
func (c Change) Action() Action {
	switch {
	case c.Have == nil:
		return Create
	case c.Want == nil:
		return Delete
	case c.Have.Identity != c.Want.Identity:
		return Replace
	}
	return Update
}

// newChange is the change between two states of one object, either of which
// may lack it; ok is false where there is nothing to do.
func newChange(id ID, have, want State) (c Change, ok bool) {
	h, hasHave := have[id]
	w, hasWant := want[id]
	c = Change{ID: id}
	if hasHave == hasWant && h.Identity == w.Identity && reflect.DeepEqual(h.Spec, w.Spec) {
		return c, false // most are, and cost nothing then
	}
	return differing(c, h, w, hasHave, hasWant)
}

// differing is a change of which it is known that there is something to do.
func differing(c Change, h, w Object, hasHave, hasWant bool) (Change, bool) {
	switch {
	case !hasHave:
		c.Want, c.Why = &w, "declared in "+place(w)
	case !hasWant:
		c.Have, c.Why = &h, "no longer in the site repo"
	default:
		c.Have, c.Want, c.Why = &h, &w, "differs from "+place(w)
	}
	if c.Want != nil && c.Want.Why != "" {
		c.Why = c.Want.Why
	} else if c.Want == nil && c.Have.Why != "" {
		c.Why = c.Have.Why
	}
	return c, true
}

func place(o Object) string {
	if o.Origin == "" {
		return "the site repo"
	}
	return o.Origin
}

// Withheld is a change that loses something and that the site has not confirmed.
type Withheld struct {
	Change Change
	Reason *Fault
}

// Plan is the ordered list of changes for one commit. It may be partial: the
// next round goes on from what it sees then.
type Plan struct {
	Commit   string
	Changes  []Change   // in the order of carrying out
	Withheld []Withheld // deletions and replacements that wait for consent in git
	Waiting  []*Fault   // what cannot be planned yet, each with the reason
	Notes    []*Fault   // what people should know; nothing is held back for it
}

// Settled reports whether there is nothing to do and nothing that waits.
func (p *Plan) Settled() bool {
	return len(p.Changes)+len(p.Withheld)+len(p.Waiting) == 0
}

// Count is the number of changes with an action.
func (p *Plan) Count(a Action) (n int) {
	for _, c := range p.Changes {
		if c.Action() == a {
			n++
		}
	}
	return n
}
