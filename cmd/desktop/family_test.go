package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFamily: all that came of a command ends, whoever its parent is by now, but for
// the one that is to stay.
func TestFamily(t *testing.T) {
	var f family
	if err := f.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	stays, err := f.start(exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stays.cmd.Process.Kill(); <-stays.ended }()
	// One is orphaned, in a session of its own; one asks to be spared.
	c, err := f.start(exec.Command("sh", "-c", `
		(setsid sleep 1000 & echo $!)
		sh -c 'trap "" TERM; echo $$; sleep 1000 & wait; wait; sleep 1000' &
		sleep 0.2
		echo done`))
	if err != nil {
		t.Fatal(err)
	}
	<-c.ended
	if c.err != nil && !strings.Contains(c.err.Error(), "WaitDelay") {
		t.Fatal(c.err)
	}
	var ids []int
	for _, word := range strings.Fields(c.said.last(9)) {
		if id, err := strconv.Atoi(word); err == nil {
			ids = append(ids, id)
			if !alive(id) {
				t.Errorf("process %d is not there to begin with", id)
			}
		}
	}
	if len(ids) != 2 {
		t.Fatalf("it said %q", c.said.last(9))
	}
	f.end(stays.cmd.Process.Pid, 200*time.Millisecond)
	for _, id := range ids {
		if alive(id) {
			t.Errorf("process %d is still there", id)
		}
	}
	if !alive(stays.cmd.Process.Pid) {
		t.Error("the one that is to stay is gone")
	}
	if left := descendants(os.Getpid(), stays.cmd.Process.Pid); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

func alive(id int) bool { return syscall.Kill(id, 0) == nil }

func TestTail(t *testing.T) {
	var said tail
	for range 1000 {
		if n, err := said.Write([]byte("a line\n")); n != 7 || err != nil {
			t.Fatal(n, err)
		}
	}
	_, _ = said.Write([]byte(strings.Repeat("x", 2*tailSize) + "\nend\n"))
	if len(said.text) > tailSize || said.last(1) != "end" {
		t.Errorf("%d bytes, the last %q", len(said.text), said.last(1))
	}
}

func TestRetry(t *testing.T) {
	var r retry
	var waits []string
	for _, lasted := range []time.Duration{0, 0, time.Second, 0, 0, 0, 0, 0, time.Hour, 0} {
		waits = append(waits, r.after(lasted).String())
	}
	if got := strings.Join(waits, " "); got != "250ms 500ms 1s 2s 4s 8s 10s 10s 0s 250ms" {
		t.Error(got)
	}
}
