package room

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// brickDir is where a machine has its brick.
const brickDir = "/srv/brick"

// brickSize is that of a disk which takes no more room on this computer than what
// is written to it.
const brickSize = 8 << 30

// bricks has for each machine an image of its disk, and the folder where that is
// mounted: Gluster wants a real file system of its own, which is full when it is
// full, and a folder of this computer is not.
func (r *Room) bricks() string { return filepath.Join(r.Dir, "bricks") }

// brick is the folder that a machine gets. It is in the disk, and not where that is
// mounted: while it is not, Docker finds nothing, and does not start a machine
// whose brick would be this computer's own disk.
func (r *Room) brick(machine string) string { return filepath.Join(r.bricks(), machine, "brick") }

func (r *Room) brickImage(machine string) string {
	return filepath.Join(r.bricks(), machine+brickSuffix)
}

const brickSuffix = ".xfs"

// makeBrick makes the disk of a new machine, and mounts it.
func (r *Room) makeBrick(ctx context.Context, machine string) error {
	if err := os.MkdirAll(r.bricks(), 0o700); err != nil {
		return err
	}
	image := r.brickImage(machine)
	if _, err := os.Stat(image); errors.Is(err, fs.ErrNotExist) {
		// Whole or not at all: half of it could not be mounted, and would not be
		// made anew.
		making := image + ".new"
		if err := errors.Join(ignoreMissing(os.Remove(making)), os.WriteFile(making, nil, 0o600), os.Truncate(making, brickSize)); err != nil {
			return err
		}
		if _, err := r.run(ctx, "mkfs.xfs", "-q", "-i", "size=512", "-L", "km-brick", making); err != nil {
			return err
		}
		if err := os.Rename(making, image); err != nil {
			return err
		}
	}
	return r.mountBrick(ctx, machine)
}

// mountBrick mounts the disk of a machine where it is not mounted, as after a boot
// of this computer. The git server has none, and a machine of an older lab has a
// volume.
func (r *Room) mountBrick(ctx context.Context, machine string) error {
	image := r.brickImage(machine)
	if _, err := os.Stat(image); err != nil {
		return ignoreMissing(err)
	}
	dir := filepath.Dir(r.brick(machine))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mounted, err := isMount(dir)
	if err != nil {
		return err
	}
	if !mounted {
		if _, err := r.run(ctx, "mount", "-t", "xfs", "-o", "loop,noatime,inode64,nosuid,nodev", image, dir); err != nil {
			return fmt.Errorf("mount the brick of %s: %w; it needs XFS and loop devices in this computer's kernel", machine, err)
		}
	}
	return os.MkdirAll(r.brick(machine), 0o755)
}

// mountBricks mounts those of all machines.
func (r *Room) mountBricks(ctx context.Context) (err error) {
	images, _ := filepath.Glob(r.brickImage("*"))
	for _, image := range images {
		err = errors.Join(err, r.mountBrick(ctx, strings.TrimSuffix(filepath.Base(image), brickSuffix)))
	}
	return err
}

// removeBricks takes all disks away. No machine is left that would use one.
func (r *Room) removeBricks(ctx context.Context) error {
	dirs, _ := filepath.Glob(filepath.Dir(r.brick("*")))
	for _, dir := range dirs {
		for {
			mounted, err := isMount(dir)
			if err != nil {
				return err
			}
			if !mounted {
				break
			}
			if _, err := r.run(ctx, "umount", dir); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(r.bricks())
}

// isMount reports whether something is mounted at a folder.
func isMount(dir string) (bool, error) {
	var own, around unix.Stat_t
	if err := errors.Join(unix.Lstat(dir, &own), unix.Lstat(filepath.Dir(dir), &around)); err != nil {
		return false, fmt.Errorf("look whether %s is mounted: %w", dir, err)
	}
	return own.Dev != around.Dev, nil
}
