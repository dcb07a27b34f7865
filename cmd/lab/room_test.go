package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
	"github.com/kingmaker-io/kingmaker/cmd/lab/room/site"
)

// TestRoomUsage: what is wrong with a command line is said before anything is
// done.
func TestRoomUsage(t *testing.T) {
	t.Setenv("KINGMAKER_CACHE", t.TempDir())
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"kill", 2, "lab kill: 0 arguments, want 1"},
		{"kill pc-01 --name two", 2, "flags come first"},
		{"up now", 2, "lab up: 1 arguments, want 0"},
		{"exec pc-01", 2, "lab exec: 1 arguments, want 2"},
		{"exec pc-01 --", 2, "usage: lab exec [--name LAB] MACHINE -- CMD"},
		{"status --name Lab", 1, `name "Lab": want at most 20 small letters`},
		{"up --site /nowhere", 1, "read the site: "},
		{"heal -h", 0, "put the network cable back"},
	} {
		var stderr bytes.Buffer
		if code := run(t.Context(), strings.Fields(test.args), &stderr); code != test.code || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("lab %s: exit code %d, want %d with %q:\n%s", test.args, code, test.code, test.want, &stderr)
		}
	}
}

func TestWriteStatus(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	var b strings.Builder
	writeStatus(&b, []site.Row{
		{Machine: room.Machine{Name: "pc-01", Address: netip.MustParseAddr("10.181.1.11"), On: true, Cable: true}, Role: "master", Phase: "Ready", Heartbeat: now.Add(-4 * time.Second)},
		{Machine: room.Machine{Name: "pc-02", Address: netip.MustParseAddr("10.181.1.12")}, Role: "worker", Phase: "Ready", Heartbeat: now.Add(-10 * time.Minute)},
		{Machine: room.Machine{Name: "pc-03", Address: netip.MustParseAddr("10.181.1.13"), On: true, Cable: true}, Role: "worker", Phase: "Joining"},
		{Machine: room.Machine{Name: "git", Address: netip.MustParseAddr("10.181.1.2"), On: true, Cable: true}},
	}, now)
	const want = `
MACHINE  ADDRESS      POWER  CABLE  ROLE    PHASE    SEEN
pc-01    10.181.1.11  on     in     master  Ready    4s ago
pc-02    10.181.1.12  off    out    worker  Ready    10m ago
pc-03    10.181.1.13  on     in     worker  Joining  -
git      10.181.1.2   on     in     -       -        -
`
	if b.String() != want {
		t.Errorf("want%s\nhave%s", want, &b)
	}
}
