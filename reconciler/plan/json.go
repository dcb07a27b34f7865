package plan

import (
	"encoding/json"
	"io"
)

// planJSON is the shape of --output json; schema/plan.json describes it.
type planJSON struct {
	Commit   string         `json:"commit"`
	Settled  bool           `json:"settled"`
	Totals   map[Action]int `json:"totals"`
	Changes  []changeJSON   `json:"changes"`
	Withheld []withheldJSON `json:"withheld"`
	Waiting  []*Fault       `json:"waiting"`
	Notes    []*Fault       `json:"notes"`
}

// changeJSON is one change; Have and Want are absent where the change has none.
type changeJSON struct {
	ID     ID     `json:"id"`
	Action Action `json:"action"`
	Why    string `json:"why"`
	Origin string `json:"origin,omitempty"`
	Have   any    `json:"have,omitempty"`
	Want   any    `json:"want,omitempty"`
}

type withheldJSON struct {
	changeJSON
	Reason *Fault `json:"reason"`
}

func (c Change) toJSON() changeJSON {
	j := changeJSON{ID: c.ID, Action: c.Action(), Why: c.Why}
	switch {
	case c.Have == nil:
		j.Want = maskOne(c.Want.Spec, "")
	case c.Want == nil:
		j.Have = maskOne(c.Have.Spec, "")
	default:
		j.Have, j.Want = maskPair(c.Have.Spec, c.Want.Spec)
	}
	if c.Want != nil {
		j.Origin = c.Want.Origin
	}
	return j
}

// MarshalJSON gives the shape that schema/plan.json describes: lists are never
// null, secrets are masked.
func (p *Plan) MarshalJSON() ([]byte, error) {
	j := planJSON{
		Commit: p.Commit, Settled: p.Settled(), Totals: map[Action]int{},
		Changes: []changeJSON{}, Withheld: []withheldJSON{},
		Waiting: append([]*Fault{}, p.Waiting...), Notes: append([]*Fault{}, p.Notes...),
	}
	for _, a := range Actions() {
		j.Totals[a] = p.Count(a)
	}
	for _, c := range p.Changes {
		j.Changes = append(j.Changes, c.toJSON())
	}
	for _, h := range p.Withheld {
		j.Withheld = append(j.Withheld, withheldJSON{h.Change.toJSON(), h.Reason})
	}
	return json.Marshal(j)
}

// WriteJSON prints the plan as one indented JSON document.
func (p *Plan) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(p)
}
