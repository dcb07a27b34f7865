package session

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Template is the spec of a Desktop in the cluster, as far as the portal needs it. The
// object is the contract, and reconciler/kube has its type and its rules; a test
// compares the two.
type Template struct {
	Name        string            `json:"-"`
	Title       string            `json:"title"`
	Image       string            `json:"image"`
	Groups      *[]string         `json:"groups"` // nil: everybody
	Resources   Resources         `json:"resources"`
	Home        *Home             `json:"home"`
	Shared      []Shared          `json:"shared"`
	IdleAfter   Duration          `json:"idleAfter"`
	Screen      Size              `json:"screen"`
	Environment map[string]string `json:"environment"`
	Default     bool              `json:"default"`
}

// Resources of one desktop.
type Resources struct {
	CPU    Quantity `json:"cpu"`
	Memory Quantity `json:"memory"`
}

// Home names the volume with the homes.
type Home struct {
	Volume string `json:"volume"`
}

// Shared is a volume, and where it is mounted.
type Shared struct {
	Volume string `json:"volume"`
	Path   string `json:"path"`
}

// Size in pixels.
type Size struct {
	Width  int `json:"width" jsonschema:"minimum=100,maximum=7680"`
	Height int `json:"height" jsonschema:"minimum=100,maximum=4320"`
}

// ParseSize reads one such as 1280x720. What is none, or is no screen's, is zero.
func ParseSize(text string) (s Size) {
	width, height, _ := strings.Cut(text, "x")
	s.Width, _ = strconv.Atoi(width)
	s.Height, _ = strconv.Atoi(height)
	if s.Width < 100 || s.Width > 7680 || s.Height < 100 || s.Height > 4320 {
		return Size{}
	}
	return s
}

// Duration is written as "2h".
type Duration time.Duration

// UnmarshalJSON reads what time.ParseDuration does.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("a duration is text, not %s", data)
	}
	parsed, err := time.ParseDuration(text)
	*d = Duration(parsed)
	return err
}

// Quantity is text, or a number.
type Quantity string

// UnmarshalJSON reads both.
func (q *Quantity) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) != nil {
		text = string(data)
	}
	*q = Quantity(text)
	return nil
}

// Label is what users see.
func (t *Template) Label() string { return cmp.Or(t.Title, t.Name) }

// For reports whether a user of these groups may have the desktop.
func (t *Template) For(groups []string) bool {
	return t.Groups == nil || slices.ContainsFunc(*t.Groups, func(g string) bool { return slices.Contains(groups, g) })
}

// Choice are the templates that a user of these groups may have, the default first.
// The first group is the primary one, whose default counts before others.
func Choice(all []Template, groups []string) []Template {
	var mine []Template
	for _, t := range all {
		if t.For(groups) {
			mine = append(mine, t)
		}
	}
	rank := func(t Template) int {
		switch {
		case t.Default && t.Groups != nil && len(groups) > 0 && slices.Contains(*t.Groups, groups[0]):
			return 0
		case t.Default:
			return 1
		}
		return 2
	}
	slices.SortFunc(mine, func(a, b Template) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Label(), b.Label()), cmp.Compare(a.Name, b.Name))
	})
	return mine
}

// HasDefault reports whether the first of a choice is started without asking.
func HasDefault(choice []Template) bool {
	return len(choice) == 1 || len(choice) > 0 && choice[0].Default
}
