package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A family is all processes that come from this one, whoever started them: those of
// a session go on when the session has ended, and what has lost its parent becomes
// this one's, as if it were the first of the computer (in a container it is).
type family struct {
	mu  sync.Mutex
	own map[int]bool // started here, and waited for where they were
}

// adopt makes this process the parent of orphans, and buries them until ctx ends.
func (f *family) adopt(ctx context.Context) error {
	f.own = map[int]bool{}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	go func() {
		defer signal.Stop(died)
		for {
			select {
			case <-ctx.Done():
				return
			case <-died:
				f.bury()
			}
		}
	}()
	return nil
}

// bury takes the dead out of the table of processes, but for those that are waited
// for: to wait for any would take those too.
func (f *family) bury() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range processes() {
		if p.parent == os.Getpid() && p.state == 'Z' && !f.own[p.id] {
			_, _ = syscall.Wait4(p.id, nil, syscall.WNOHANG, nil)
		}
	}
}

// A child is a process that was started here.
type child struct {
	cmd   *exec.Cmd
	said  tail
	ended chan struct{}
	err   error // how it ended; read after it did
}

// start runs a command, in a session of its own so that no signal meant for it comes
// here. What it says is kept, the end of it, and shown to nobody but whom it is
// asked for: programs of the user write there too.
func (f *family) start(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &c.said, &c.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second // others may still hold what it wrote to
	f.mu.Lock()
	err := cmd.Start()
	if err == nil {
		f.own[cmd.Process.Pid] = true
	}
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(c.ended)
		c.err = cmd.Wait()
		f.mu.Lock()
		delete(f.own, cmd.Process.Pid)
		f.mu.Unlock()
	}()
	return c, nil
}

// how says how it ended.
func (c *child) how() string {
	if state := c.cmd.ProcessState; state != nil { // rather than that others held what it wrote to
		return state.String()
	}
	return c.err.Error()
}

// ending says of it, by a name, how it ended and what it said last.
func (c *child) ending(name string) string {
	return fmt.Sprintf("%s ended: %s\n%s", name, c.how(), c.said.last(5))
}

// end ends all of the family but one and its children: they are asked to, and after
// a while made to.
func (f *family) end(but int, patience time.Duration) {
	begin := time.Now()
	signal, wait := syscall.SIGTERM, 20*time.Millisecond
	asked := map[int]bool{}
	for {
		left := 0
		for _, p := range descendants(os.Getpid(), but) {
			left++
			if signal == syscall.SIGKILL || !asked[p.id] {
				_ = syscall.Kill(p.id, signal)
				asked[p.id] = true
			}
		}
		f.bury()
		if left == 0 || signal == syscall.SIGKILL && time.Since(begin) > patience+5*time.Second {
			return
		}
		if time.Since(begin) > patience {
			signal = syscall.SIGKILL
		}
		time.Sleep(wait)
	}
}

// freeze stops all of the family where they are, which none of them can refuse. A
// process that stands still starts no other, so two looks find all in the end.
func (f *family) freeze() {
	for range 20 {
		moving := false
		for _, p := range below(os.Getpid(), 0) {
			// One whose first thread has ended looks dead, and others of it may run.
			if p.state != 'T' {
				moving = moving || p.state != 'Z'
				_ = syscall.Kill(p.id, syscall.SIGSTOP)
			}
		}
		if !moving {
			return
		}
	}
}

// thaw lets them go on.
func (f *family) thaw() {
	for _, p := range below(os.Getpid(), 0) {
		_ = syscall.Kill(p.id, syscall.SIGCONT)
	}
}

// A process is a line of the table of processes.
type process struct {
	id, parent int
	state      byte
}

func processes() (list []process) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		id, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // it has ended meanwhile
		}
		// ID (NAME) STATE PARENT ..., where the name may have anything in it.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		list = append(list, process{id, parent, fields[0][0]})
	}
	return list
}

// descendants are the living below a process, but one and those below that.
func descendants(of, but int) []process {
	return slices.DeleteFunc(below(of, but), func(p process) bool { return p.state == 'Z' })
}

// below are all that are below a process, but one and those below that.
func below(of, but int) (all []process) {
	list := processes()
	var add func(int)
	add = func(parent int) {
		for _, p := range list {
			if p.parent == parent && p.id != but && !slices.Contains(all, p) {
				all = append(all, p)
				add(p.id)
			}
		}
	}
	add(of)
	return all
}

// A tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailSize = 4 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b[max(0, len(b)-tailSize):]...)
	if over := len(t.text) - tailSize; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(b), nil
}

// last gives the last lines.
func (t *tail) last(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
