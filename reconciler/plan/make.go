package plan

import (
	"fmt"
	"slices"
)

// Codes of the reasons that planning itself gives.
const (
	NeedsConsent Code = "NeedsConsent" // something would be lost, and git does not confirm it
	OverBudget   Code = "OverBudget"   // the plan deletes more than the site allows at once
	StillNeeded  Code = "StillNeeded"  // something that stays needs what would be deleted
	NeedWaits    Code = "NeedWaits"    // what it needs cannot be planned
	NeedMissing  Code = "NeedMissing"  // what it needs is declared nowhere
	UnusedEntry  Code = "UnusedEntry"  // an entry of Site.spec.confirm that confirms nothing
)

// Part is what one system has and is to have.
type Part struct {
	System string
	Have   State
	Want   State

	// Faults hold back the objects that they name, or the whole system where
	// one names no object.
	Faults []*Fault
}

// Make compares the parts, given in the order of building, and orders what is
// to be done:
//
//	created and updated   down the list of parts, each after its needs, then by rank, then by ID
//	deleted               after all of that, in the reverse order
//
// Left out, each with its reason: what a fault holds back and what needs that
// (Waiting); what loses something without consent, or deletes too much
// (Withheld). The error is a cycle of needs.
func Make(site *Site, parts []Part) (*Plan, error) {
	m := &maker{site: site, parts: parts, plan: &Plan{Commit: site.Commit}}
	m.compare()
	m.holdBack()
	m.withhold()
	m.keepNeeded()
	return m.plan, m.order()
}

// maker carries one plan through its stages.
type maker struct {
	site  *Site
	parts []Part
	plan  *Plan

	system  map[string]int // position in parts
	held    map[ID]*Fault  // by object; by ID{System} for a whole system
	changes map[ID]Change  // what is still to be done
}

func (m *maker) part(system string) (Part, bool) {
	i, ok := m.system[system]
	if !ok {
		return Part{}, false
	}
	return m.parts[i], true
}

// compare collects the changes of all parts but for what a fault holds back.
func (m *maker) compare() {
	m.system, m.held, m.changes = map[string]int{}, map[ID]*Fault{}, map[ID]Change{}
	for i, part := range m.parts {
		m.system[part.System] = i
		for _, f := range part.Faults {
			key := f.ID
			if key.Kind == "" {
				key = ID{System: part.System}
			}
			m.plan.Waiting = append(m.plan.Waiting, f)
			if m.held[key] == nil {
				m.held[key] = f
			}
		}
		if m.held[ID{System: part.System}] != nil {
			continue
		}
		for id, o := range part.Want {
			m.plan.Notes = append(m.plan.Notes, o.Notes...)
			m.consider(id, part)
		}
		for id := range part.Have {
			if _, ok := part.Want[id]; !ok {
				m.consider(id, part)
			}
		}
	}
}

func (m *maker) consider(id ID, part Part) {
	if m.held[id] != nil {
		return
	}
	if c, ok := newChange(id, part.Have, part.Want); ok {
		m.changes[id] = c
	}
}

// holdBack takes out the changes whose needs cannot be met in this plan, and
// then those that need them.
func (m *maker) holdBack() {
	for again := true; again; {
		again = false
		for _, id := range m.ids() {
			c := m.changes[id]
			if c.Want == nil {
				continue
			}
			for _, need := range c.Want.Needs {
				if f := m.unmet(need); f != nil {
					f.ID = id
					m.held[id] = f
					m.plan.Waiting = append(m.plan.Waiting, f)
					delete(m.changes, id)
					again = true
					break
				}
			}
		}
	}
	SortFaults(m.plan.Waiting)
	SortFaults(m.plan.Notes)
}

// unmet says why a need is neither there nor about to be, or nil.
func (m *maker) unmet(need ID) *Fault {
	part, _ := m.part(need.System)
	if f := m.held[ID{System: need.System}]; f != nil {
		return &Fault{Code: NeedWaits, Cause: fmt.Sprintf("needs %s, and %s could not be read", need, need.System), Hint: f.Cause}
	}
	if _, there := part.Have[need]; there {
		return nil
	}
	if f := m.held[need]; f != nil {
		return &Fault{Code: NeedWaits, Cause: "needs " + need.String() + ", which waits", Hint: f.Cause}
	}
	if _, wanted := part.Want[need]; wanted {
		return nil
	}
	return &Fault{Code: NeedMissing, Cause: "needs " + need.String() + ", which is declared nowhere"}
}

// withhold takes out what needs consent: the loss of something precious, and
// all deletions of a plan over the budget, but for those that git confirms.
func (m *maker) withhold() {
	confirmed := map[string]bool{}
	for _, id := range m.site.Spec.Confirm {
		confirmed[id] = false
	}
	deletes, all := 0, 0
	for _, part := range m.parts {
		all += len(part.Have)
	}
	for id, c := range m.changes {
		if _, ok := confirmed[id.String()]; !ok && c.Want == nil {
			deletes++
		}
	}
	limit := m.site.Spec.Deletes.Limit(all)
	for _, id := range m.ids() {
		c := m.changes[id]
		action := c.Action()
		if action != Delete && action != Replace {
			continue
		}
		if _, ok := confirmed[id.String()]; ok {
			confirmed[id.String()] = true
			continue
		}
		switch {
		case c.Have.Precious != "":
			m.keep(id, &Fault{Code: NeedsConsent,
				Cause: fmt.Sprintf("to %s it loses %s", action, c.Have.Precious),
				Hint:  fmt.Sprintf("to confirm, add %s to spec.confirm of the Site", id)})
		case action == Delete && deletes > limit:
			m.keep(id, &Fault{Code: OverBudget,
				Cause: fmt.Sprintf("the plan deletes %d of %d objects, and the site allows %d at once", deletes, all, limit),
				Hint:  "if that is meant, raise spec.deletes of the Site, or confirm single IDs in spec.confirm"})
		}
	}
	for _, entry := range m.site.Spec.Confirm {
		if id, err := ParseID(entry); err == nil && !confirmed[entry] && !m.isDelete(id) {
			m.plan.Notes = append(m.plan.Notes, &Fault{Code: UnusedEntry,
				Cause: "spec.confirm has " + entry + ", and nothing of that name is to be deleted or replaced",
				Hint:  "take it out, so that it cannot confirm a deletion that nobody means"})
		}
	}
}

func (m *maker) isDelete(id ID) bool { return m.changes[id].Want == nil && m.changes[id].Have != nil }

// keep moves a change from the plan to what is withheld.
func (m *maker) keep(id ID, reason *Fault) {
	reason.ID = id
	m.plan.Withheld = append(m.plan.Withheld, Withheld{m.changes[id], reason})
	delete(m.changes, id)
}

// keepNeeded withholds deletions of what something still needs when the plan is
// done: the namespace of a claim whose own deletion is withheld, for one.
func (m *maker) keepNeeded() {
	deletes := slices.ContainsFunc(m.ids(), m.isDelete)
	for again := deletes; again; {
		again = false
		for _, o := range m.staying() {
			for _, need := range o.Needs {
				if m.isDelete(need) {
					m.keep(need, &Fault{Code: StillNeeded, Cause: fmt.Sprintf("%s stays and needs it", o.ID)})
					again = true
				}
			}
		}
	}
	slices.SortFunc(m.plan.Withheld, func(a, b Withheld) int { return a.Change.ID.Compare(b.Change.ID) })
}

// staying are all objects as they are after the plan, in order.
func (m *maker) staying() (objects []Object) {
	for _, part := range m.parts {
		for _, id := range part.Have.IDs() {
			if _, changes := m.changes[id]; !changes {
				objects = append(objects, part.Have[id])
			}
		}
	}
	for _, id := range m.ids() {
		if want := m.changes[id].Want; want != nil {
			objects = append(objects, *want)
		}
	}
	return objects
}

func (m *maker) ids() []ID {
	ids := make([]ID, 0, len(m.changes))
	for id := range m.changes {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, ID.Compare)
	return ids
}

func orDefault(n, fallback int) int {
	if n == 0 {
		return fallback
	}
	return n
}
