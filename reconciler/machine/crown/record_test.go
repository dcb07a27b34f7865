package crown

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	"pgregory.net/rapid"
)

// anyCrown draws a record as the planner makes them, at moments of a clock that
// knows nanoseconds.
func anyCrown(t *rapid.T) roles.Crown {
	when := func(name string) time.Time {
		return time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, name), rapid.Int64Range(0, 999_999_999).Draw(t, name+" ns")).UTC()
	}
	text := rapid.String()
	c := roles.Crown{
		Number: rapid.IntRange(1, 1<<31).Draw(t, "number"),
		Kind:   rapid.SampledFrom([]roles.Kind{roles.Replace, roles.Grow, roles.Retire}).Draw(t, "kind"),
		Boot:   text.Draw(t, "boot"), Why: text.Draw(t, "why"), Begun: when("begun"), Dead: rapid.Bool().Draw(t, "dead"),
		Step: roles.Drain, Machine: "pc-07", Since: when("since"), Attempts: rapid.IntRange(0, 9).Draw(t, "attempts"), Error: text.Draw(t, "error"), Address: "10.0.0.7",
		Undo: rapid.SampledFrom([]roles.Outcome{"", roles.Cancelled, roles.Failed}).Draw(t, "undo"), Cause: text.Draw(t, "cause"),
	}
	if c.Kind != roles.Grow {
		c.Victim, c.Member, c.PeerURL = "pc-02", rapid.Uint64Min(1).Draw(t, "member"), "https://10.0.0.2:2380"
	}
	if c.Kind != roles.Retire {
		c.Heir = "pc-07"
	}
	if rapid.Bool().Draw(t, "over") {
		c.Outcome, c.Ended = roles.Done, when("ended")
	}
	for range rapid.IntRange(0, 4).Draw(t, "entries") {
		c.Journal = append(c.Journal, roles.Entry{At: when("at"), Step: roles.Cordon, Machine: "pc-07", Note: text.Draw(t, "note")})
	}
	return c
}

// TestRoundTrip: what is written is read as it was, through JSON, to the nanosecond
// and to the last bit of a member's ID.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := anyCrown(t)
		var o object
		o.Spec, o.Status = write(&c)
		body, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		o = object{}
		if err := json.Unmarshal(body, &o); err != nil {
			t.Fatal(err)
		}
		back, err := read(o.Spec, o.Status)
		if err != nil {
			t.Fatal(err)
		}
		// JSON has no text that is not UTF-8; rapid draws none.
		if !reflect.DeepEqual(back, c) {
			t.Fatalf("\n%+v\n%+v", c, back)
		}
	})
}

// TestUnreadable: a record that lacks what a step needs is no record.
func TestUnreadable(t *testing.T) {
	good := Spec{Number: 1, Kind: "replace", Victim: "pc-02", Member: "a2", PeerURL: "https://10.0.0.2:2380", Heir: "pc-07"}
	if _, err := read(good, Status{}); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Spec){
		"no number":              func(s *Spec) { s.Number = 0 },
		"lacks its victim":       func(s *Spec) { s.Victim = "" },
		"its heir":               func(s *Spec) { s.Heir = "" },
		"is not named":           func(s *Spec) { s.Member = "" },
		"is no ID of etcd's":     func(s *Spec) { s.Member = "pc-02" },
		`kind "" lacks`:          func(s *Spec) { s.Kind, s.Heir = "", "" },
		"value out of range":     func(s *Spec) { s.Member = "10000000000000000" },
		`a crown of kind "grow"`: func(s *Spec) { s.Kind, s.Heir = "grow", "" },
	} {
		s := good
		spoil(&s)
		if c, err := read(s, Status{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %+v %v", want, c, err)
		}
	}
}

// TestOver: what the breakers, the next number or people still need stays.
func TestOver(t *testing.T) {
	now := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	ended := func(number int, ago time.Duration) roles.Crown {
		return roles.Crown{Number: number, Outcome: roles.Done, Ended: now.Add(-ago)}
	}
	const month = 31 * 24 * time.Hour
	for name, test := range map[string]struct {
		crowns []roles.Crown
		want   string
	}{
		"none":                 {nil, ""},
		"only an old one":      {[]roles.Crown{ended(7, 2*month)}, ""},
		"old ones":             {[]roles.Crown{ended(1, 3*month), ended(2, 2*month), ended(3, time.Hour)}, "crown-1 crown-2"},
		"an open one is young": {[]roles.Crown{{Number: 1, Begun: now.Add(-2 * month)}, ended(2, time.Hour)}, ""},
	} {
		var names []string
		for _, c := range over(test.crowns, now) {
			names = append(names, c.Name())
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	// A day with more crowns than are kept is kept whole; a week with more is not.
	var day, week []roles.Crown
	for n := range keepCount + 5 {
		day, week = append(day, ended(n+1, time.Hour)), append(week, ended(n+1, 7*24*time.Hour))
	}
	if n := len(over(day, now)); n != 0 {
		t.Errorf("%d of a day are over", n)
	}
	if got := fmt.Sprint(len(over(week, now))); got != "5" {
		t.Errorf("%s of a week are over", got)
	}
}
