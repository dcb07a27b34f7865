package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// MaxFsync is how long the disk below etcd may take to make a write last, in 99
// of 100 cases. It is etcd's own advice on hardware ("Disks" there), as measured
// by fio with --fdatasync=1 --bs=2300: etcd answers no write before that, and
// its members exchange heartbeats every 100 ms.
const MaxFsync = 10 * time.Millisecond

const (
	fsyncWrites = 200
	fsyncBytes  = 2300 // of a usual entry of etcd's log
)

// FsyncP99 measures how long a write takes to last in a folder, as etcd writes
// its log: small appends within a file that has its space already, each followed
// by fdatasync. "" is StateDir, on the file system where etcd's folder is made.
// On a slow disk it takes some seconds.
func FsyncP99(ctx context.Context, h *Host, dir string) (time.Duration, error) {
	if dir == "" {
		dir = StateDir
	}
	took, err := fsyncs(ctx, h.Path(dir))
	if err != nil {
		return 0, fmt.Errorf("measure writes to %s: %w", dir, err)
	}
	slices.Sort(took)
	return took[len(took)*99/100-1], nil
}

func fsyncs(ctx context.Context, dir string) (took []time.Duration, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, ".fsync-probe"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	// A file system that cannot do it ahead does it with the writes.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, fsyncWrites*fsyncBytes); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, err
	}
	entry := make([]byte, fsyncBytes)
	for range fsyncWrites {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := f.Write(entry); err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

// MaxSkew is how far a machine's clock may be from a master's. Kubernetes and
// Kingmaker compare times of different machines where they decide who is alive:
// a lease that is not renewed for 40 to 50 seconds, a heartbeat every ten. Within
// 30 seconds nobody takes the living for dead, and certificates are good: their
// signers date them back by five minutes. Less could not be told safely from the
// Date of an HTTP answer, which is in whole seconds and took its time.
const MaxSkew = 30 * time.Second

// CheckClock compares the machine's time with another's at the same moment.
func CheckClock(now, other time.Time) error {
	off := now.Sub(other).Round(time.Second)
	if off.Abs() <= MaxSkew {
		return nil
	}
	word := "fast"
	if off < 0 {
		word = "slow"
	}
	return fmt.Errorf("the clock of this machine is %s %s, and at most %s are allowed; set it, and have it kept: apt-get install systemd-timesyncd, timedatectl set-ntp true", off.Abs(), word, MaxSkew)
}
