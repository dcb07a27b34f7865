package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// BrickDir is where the brick's file system is mounted.
const BrickDir = "/srv/brick"

const (
	brickUnit = "srv-brick.mount"
	brickFile = "/etc/systemd/system/" + brickUnit
)

// brick puts an XFS file system on the brick of the disk that the options name,
// and mounts it. One that is there is mounted as it is, on a machine that was
// installed anew as well: nothing is ever made over anything.
func (i *install) brick() Step {
	h := i.h
	look := func(ctx context.Context) (todo []string, err error) {
		d, p, err := i.findBrick(ctx)
		if err != nil || p.Name == "" {
			return nil, err
		}
		if !hasXFS(p) {
			todo = append(todo, fmt.Sprintf("%s: make an XFS file system on %s", d, BrickPartition))
		}
		lines, err := h.lookUnit(ctx, brickMount(p))
		return append(todo, lines...), err
	}
	do := func(ctx context.Context) error {
		// What the step before saw may be hours old.
		d, p, err := i.findBrick(ctx)
		if err != nil || p.Name == "" {
			return err
		}
		if p.Path == "" {
			return fmt.Errorf("the kernel does not know partition %s of %s yet; reboot, and run it again", BrickPartition, d)
		}
		if !hasXFS(p) {
			// Gluster's attributes fit into inodes of 512 bytes. Never -f: without
			// it mkfs.xfs too refuses to write over anything.
			if _, err := h.Run(ctx, "mkfs.xfs", "-q", "-i", "size=512", "-L", BrickPartition, p.Path); err != nil {
				return err
			}
		}
		return h.mount(ctx, brickMount(p), h.lockBare)
	}
	return Step{"brick", look, do}
}

// findBrick is the brick's partition, without a path and a UUID while it is still
// to be made. It has no name where there is nothing to do: without --disk, on a
// disk without a brick, and where somebody else mounted something already.
func (i *install) findBrick(ctx context.Context) (d Disk, p Part, err error) {
	h := i.h
	source := h.mounted(BrickDir)
	if i.Disk == "" || source != "" && !h.Exists(brickFile) {
		return d, p, nil
	}
	if d, err = h.diskAt(ctx, i.Disk); err != nil {
		return d, p, err
	}
	if p = d.part(BrickPartition); p.Name == "" {
		if l, err := PlanDisk(d, i.System); err != nil || l.Brick.Size <= 0 { // its error is the step disk's to tell
			return d, p, nil
		}
		p.Name = BrickPartition
	}
	if what := slices.Concat(p.Signatures, mounted(p.Mounts), p.Users); len(what) > 0 && !hasXFS(p) {
		return d, p, fmt.Errorf("partition %s of %s holds %s, which is not made by Kingmaker; nothing was written to it. Save what is worth it, then wipefs --all %s, and run it again",
			BrickPartition, d, strings.Join(what, ", "), p.Path)
	}
	if err := h.isOf(brickMount(p), BrickDir, p); err != nil {
		return d, p, err
	}
	if source != "" {
		return d, p, nil
	}
	entries, err := os.ReadDir(h.Path(BrickDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, p, err
	}
	if len(entries) > 0 {
		return d, p, fmt.Errorf("%s is to be the mount point of %s, which would hide what is in it now, such as %s; move that away, and run it again", BrickDir, BrickPartition, entries[0].Name())
	}
	return d, p, nil
}

// hasXFS reports whether a partition has XFS, whatever else looks like something
// on it: in the data of users, say.
func hasXFS(p Part) bool {
	return slices.ContainsFunc(p.Signatures, func(s string) bool { return s == "xfs" || strings.HasPrefix(s, "xfs ") })
}

// lockBare makes the mount point, and has nobody write into it: what was written
// while the brick is not mounted would fill the system's disk, and be hidden later.
func (h *Host) lockBare(ctx context.Context) error {
	if err := os.MkdirAll(h.Path(BrickDir), 0o755); err != nil {
		return err
	}
	_, err := h.Run(ctx, "chattr", "+i", h.Path(BrickDir))
	if exit := (*Exit)(nil); errors.As(err, &exit) {
		h.Log.WarnContext(ctx, "the file system of the bare folder cannot keep it from being written to", "folder", BrickDir, "error", err)
		return nil
	}
	return err
}

// brickMount mounts the partition by an ID that no other disk has, and before
// glusterd looks for its copies. A machine whose disk is gone still boots. From a
// brick nothing is run and no device is opened: users have their files by way of
// Gluster.
func brickMount(p Part) unit {
	text := header + `[Unit]
Description=Brick of the volumes, on partition ` + BrickPartition + `
Before=glusterd.service

[Mount]
What=/dev/disk/by-partuuid/` + p.UUID + `
Where=` + BrickDir + `
Type=xfs
Options=noatime,inode64,nosuid,nodev

[Install]
WantedBy=multi-user.target
`
	return unit{name: brickUnit, verb: start, files: []file{{brickFile, []byte(text), 0o644}}}
}
