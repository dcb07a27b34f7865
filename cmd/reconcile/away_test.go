package main

import (
	"strings"
	"testing"
)

// TestAway: who is missing and what to do, and whether the quorum is lost.
func TestAway(t *testing.T) {
	for name, test := range map[string]struct {
		there, missing string
		want           []string
		never          string
	}{
		"one of three is there": {"10.0.0.1", "10.0.0.2 10.0.0.3", []string{"of the 3 masters", "there    10.0.0.1", "missing  10.0.0.2, 10.0.0.3", "quorum is lost: 2 are needed", "start 1 of the missing"}, ""},
		"none is there":         {"", "10.0.0.1 10.0.0.2 10.0.0.3", []string{"start 2 of the missing"}, "there  "},
		"two of three":          {"10.0.0.1 10.0.0.2", "10.0.0.3", []string{"the quorum of 2 is there"}, "lost"},
		"the only one":          {"", "10.0.0.1", []string{"of the 1 masters", "quorum is lost: 1 are needed"}, "there  "},
	} {
		got := away(strings.Fields(test.there), strings.Fields(test.missing))
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q lacks %q", name, got, want)
			}
		}
		if test.never != "" && strings.Contains(got, test.never) {
			t.Errorf("%s: %q has %q", name, got, test.never)
		}
	}
}
