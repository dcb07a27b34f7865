package main

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestLease: nothing of the user runs before there is a lease, nor when it has run out;
// and what was frozen goes on, as the same processes.
func TestLease(t *testing.T) {
	// A family that does what makes processes hard to catch: it leaves its parent behind,
	// and each lives for a moment only.
	r := startWithout(t, "sh", "-c", `
		echo $$ >>"$HOME/sessions"
		setsid sh -c 'while :; do sh -c "echo . >>\"$HOME/orphan\""; done' &
		while :; do echo . >>"$HOME/child"; sleep 0.01; done`)
	size := func(name string) int64 {
		info, err := os.Stat(filepath.Join(r.dir, "home", name))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	written := func() int64 { return size("orphan") + size("child") + size("sessions") }
	grows := func(what string) {
		t.Helper()
		for _, name := range []string{"orphan", "child"} {
			before := size(name)
			eventually(t, what+": "+name+" writes", func() bool { return size(name) > before })
		}
	}

	eventually(t, "the screen answers", func() bool { return r.status().Stage == Screen })
	if code, _ := r.ask("POST", "/lease", "Bearer x", `{"until": 1}`); code != http.StatusUnauthorized {
		t.Errorf("without the token: %d", code)
	}
	for about, until := range map[string]string{"over": "1", "endless": "1000000000000000", "text": `"soon"`} {
		_, _ = r.ask("POST", "/lease", "Bearer "+token, `{"until": `+until+`}`)
		if n := written(); n > 0 || r.status().Frozen {
			t.Fatalf("with a lease that is %s %d bytes were written", about, n)
		}
	}
	r.renew(3 * time.Second)
	grows("with a lease")
	r.renew(time.Second) // which does not make it shorter
	for range 2 {
		eventually(t, "it is frozen", func() bool { return r.status().Frozen })
		if left := r.status().Clock; left == 0 {
			t.Error("it does not tell its clock")
		}
		before := written()
		for range 20 { // there is no event for what does not happen
			time.Sleep(50 * time.Millisecond)
			if n := written() - before; n != 0 {
				t.Fatalf("frozen, and %d bytes were written", n)
			}
		}
		r.renew(2 * time.Second)
		grows("renewed")
		if r.status().Frozen {
			t.Error("it says that it is frozen")
		}
	}
	if n := size("sessions"); n > 10 || n == 0 { // one number
		t.Errorf("the session did not go on, but began anew: %d bytes", n)
	}
	eventually(t, "it is frozen at its end", func() bool { return r.status().Frozen })
	r.stop()
}
