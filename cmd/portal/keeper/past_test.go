package keeper

import (
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// TestPast: a lease is taken to run out from when it was certain that nobody renews it,
// and never because two caches did not fit together for a moment.
func TestPast(t *testing.T) {
	now := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	k := &Keeper{Now: func() time.Time { return now }, since: map[string]time.Time{}}
	pod := session.Pod{UID: "p", Session: "u", Generation: 3}
	see := func(o session.Observed, want time.Duration) {
		t.Helper()
		if got := k.past(pod, o); got != want {
			t.Errorf("%s, not %s", got, want)
		}
		now = now.Add(time.Minute)
	}
	generation := func(n int64) session.Observed {
		return session.Observed{There: true, UID: "u", Spec: session.Spec{Generation: n}}
	}
	see(session.Observed{}, 0)                        // the cache has no Session yet
	see(session.Observed{There: true, UID: "old"}, 0) // or that of before
	see(generation(3), 0)
	see(generation(4), 0) // from now on
	see(generation(4), time.Minute)
	see(session.Observed{}, 2*time.Minute) // it is gone, and that was known before
	see(generation(3), 0)                  // what was known was not so
	see(session.Observed{Fresh: true}, 0)  // from now on
	see(session.Observed{}, time.Minute)
}
