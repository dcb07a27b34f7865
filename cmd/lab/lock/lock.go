// Package lock keeps two processes from doing the same thing at once, by a lock
// on a file. The kernel takes the lock away when its holder ends in whatever way,
// so that none is ever left behind; the file stays, for to remove it would let two
// processes lock two files of one name.
package lock

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld is why Try gives no lock while another process holds it.
var ErrHeld = errors.New("in use by another process")

// Try locks a file, which is made where it is missing, until it is closed. While
// another process holds the lock the error wraps ErrHeld.
func Try(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrHeld
	}
	return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
}

// Wait is Try that waits for the lock until ctx ends, and then returns its cause.
// It calls waiting once before it waits, and not at all where it need not.
func Wait(ctx context.Context, path string, waiting func()) (*os.File, error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; {
		f, err := Try(path)
		if err == nil || !errors.Is(err, ErrHeld) {
			return f, err
		}
		if !told {
			waiting()
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}
