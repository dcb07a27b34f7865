package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"golang.org/x/sys/unix"
)

const logFile = member.Log

// mostLog is how long the log grows before a new one is begun. The last one is
// kept, under the name with .1 at its end.
const mostLog = 16 << 20

// alone keeps two who change the machine at once apart: two people, or one who
// was impatient. The lock ends with the process at the latest.
func alone(h *host.Host) (unlock func(), err error) {
	file := h.Path(host.StateDir + "/lock")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another noded is changing this machine: wait until it has ended")
		}
		return nil, err
	}
	return func() { f.Close() }, nil
}

// change is open for a verb that changes the machine: it does so alone.
func (s *surroundings) change(verb string, flags ...any) (h *host.Host, done func(), err error) {
	h, closeLog, err := s.open(nil, append([]any{"verb", verb}, flags...)...)
	if err != nil {
		return nil, nil, err
	}
	unlock, err := alone(h)
	if err != nil {
		closeLog()
		return nil, nil, err
	}
	return h, func() { unlock(); closeLog() }, nil
}

// open gives the host its log: every command in full, and what it said. It is
// for root alone, for what commands say is not for everybody. also is where what
// matters goes besides; it may be nil.
func (s *surroundings) open(also slog.Handler, doing ...any) (h *host.Host, done func(), err error) {
	if s.uid != 0 {
		return nil, nil, errNotRoot
	}
	h = &host.Host{Root: s.host.Root, Runner: s.host.Runner}
	file := &rotating{name: h.Path(logFile)}
	if err := file.open(); err != nil {
		return nil, nil, fmt.Errorf("open the log: %w", err)
	}
	var handler slog.Handler = slog.NewTextHandler(file, &slog.HandlerOptions{Level: slog.LevelDebug})
	if also != nil {
		handler = slog.NewMultiHandler(handler, also)
	}
	h.Log = slog.New(handler)
	h.Log.Info("noded", append([]any{"version", version()}, doing...)...)
	return h, func() { file.Close() }, nil
}

// rotating is a file that is begun anew before it becomes too long.
type rotating struct {
	name string

	mu   sync.Mutex
	file *os.File
	size int64
}

func (r *rotating) open() error {
	if err := os.MkdirAll(filepath.Dir(r.name), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(r.name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil {
		err = file.Chmod(0o600) // one that somebody else made
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	r.file, r.size = file, info.Size()
	return nil
}

// Write implements io.Writer, one whole line at a time.
func (r *rotating) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return 0, fs.ErrClosed
	}
	if r.size > mostLog {
		if err := os.Rename(r.name, r.name+".1"); err == nil {
			r.file.Close()
			if err := r.open(); err != nil {
				return 0, err
			}
		}
	}
	n, err := r.file.Write(line)
	r.size += int64(n)
	return n, err
}

func (r *rotating) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.file.Close()
	r.file = nil
	return err
}

var _ io.WriteCloser = (*rotating)(nil)
