package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The names of our partitions, in the partition table. By them a disk is known
// to be ours already.
const (
	SystemPartition = "km-system" // ext4, at /var/lib/containerd
	BrickPartition  = "km-brick"  // of the volumes; XFS, at /srv/brick
)

const (
	defaultSystem = 40 << 30
	leastSystem   = 16 << 30
	leastBrick    = 8 << 30
	align         = 1 << 20 // as every tool of the last fifteen years does
	blankness     = 16 << 20
)

// Disk is a disk and what is on it, as far as it was looked at.
type Disk struct {
	Name       string // sda
	Path       string // /dev/sda
	Model      string
	Size       int64 // bytes
	Rotational bool
	ReadOnly   bool
	Portable   bool   // on USB, or made to be taken out
	Type       string // disk; or loop, part, lvm, raid1, ...

	Signatures []string // of file systems, RAIDs and tables on the whole disk; "ext4"
	Written    bool     // its first 16 MiB hold something
	Busy       bool     // the kernel has it in use
	Mounts     []string // of the whole disk
	Users      []string // devices made of it: "raid1 md0"
	Parts      []Part   // as the table on the disk has them; with none, as the kernel has them
}

// Part is a partition.
type Part struct {
	Number int
	Name   string // in a GPT
	UUID   string // of the partition
	Path   string // /dev/sda1; "" while the kernel does not know it
	Start  int64  // bytes
	Size   int64  // bytes

	Signatures []string // "ext4 km-system": type and label
	Mounts     []string
	Users      []string // "lvm vg0-root"
}

// String is the disk as people tell it from others.
func (d Disk) String() string {
	return strings.Join(strings.Fields(d.Path+" "+size(d.Size)+" "+d.Model), " ")
}

// Layout is what is to be written to a disk. The zero value is nothing.
type Layout struct {
	Fresh  bool // a new partition table
	System Span // of size 0: none
	Brick  Span
}

// Span is a part of a disk, in bytes.
type Span struct{ Start, Size int64 }

func (s Span) end() int64 { return s.Start + s.Size }

// PlanDisk decides what may be written to a disk, with a system partition of so
// many bytes (0 is 40Gi): both partitions on an empty disk; the brick alone in
// the free end of the disk that the running system is on; nothing on one that
// is ours. Everything else is refused, with what was found and what to do.
func PlanDisk(d Disk, system int64) (Layout, error) {
	if system == 0 {
		system = defaultSystem
	}
	refuse := func(format string, args ...any) (Layout, error) {
		return Layout{}, fmt.Errorf("split %s: %s; nothing was written", d, fmt.Sprintf(format, args...))
	}
	switch {
	case system < leastSystem:
		return refuse("a system partition of %s is too small for the images; give at least %s (--system)", size(system), size(leastSystem))
	case d.Type != "disk" && d.Type != "loop":
		return refuse("it is not a whole disk, but of type %s; give a disk from lsblk --nodeps", d.Type)
	case d.ours():
		return Layout{}, nil
	case d.ReadOnly:
		return refuse("it is read-only; give another disk, or look for its switch")
	case d.Portable:
		return refuse("it can be unplugged (USB or removable); give a disk that stays in the machine")
	case d.running():
		return planRest(d, refuse)
	}
	if found := d.found(); found != "" {
		return refuse("it is not empty: %s. Save what is worth it; then empty it yourself: %s", found, d.emptying())
	}
	if least := system + leastBrick + 2*align; d.Size < least {
		return refuse("too small: %s for the system and %s for the brick need more than %s; give a smaller --system (at least %s), or another disk",
			size(system), size(leastBrick), size(least), size(leastSystem))
	}
	l := Layout{Fresh: true, System: Span{align, system / align * align}}
	l.Brick.Start = l.System.end()
	l.Brick.Size = (d.Size-align)/align*align - l.Brick.Start // the end holds the table's copy
	return l, nil
}

// planRest is for the disk under the running system: what is there stays.
func planRest(d Disk, refuse func(string, ...any) (Layout, error)) (Layout, error) {
	if !slices.Contains(d.Signatures, "gpt") {
		return refuse("the running system is on it, without a GPT that could take a partition more; give another disk")
	}
	var end int64
	for _, p := range d.Parts {
		end = max(end, p.Start+p.Size)
	}
	l := Layout{Brick: Span{Start: (end + align - 1) / align * align}}
	l.Brick.Size = (d.Size-align)/align*align - l.Brick.Start
	if l.Brick.Size < leastBrick {
		return refuse("the running system is on it, and only %s are free at its end, where a brick needs %s; give another disk, or make the last partition smaller",
			size(max(l.Brick.Size, 0)), size(leastBrick))
	}
	return l, nil
}

func (d Disk) ours() bool {
	return slices.ContainsFunc(d.Parts, func(p Part) bool { return p.Name == SystemPartition || p.Name == BrickPartition })
}

// running reports whether the system that runs here is on the disk.
func (d Disk) running() bool {
	all := slices.Clone(d.Mounts)
	for _, p := range d.Parts {
		all = append(all, p.Mounts...)
	}
	return slices.Contains(all, "/")
}

// found says what keeps a disk from being empty.
func (d Disk) found() string {
	var found []string
	found = append(found, mounted(d.Mounts)...)
	found = append(found, d.Users...)
	for _, p := range d.Parts {
		line := fmt.Sprintf("partition %d of %s", p.Number, size(p.Size))
		if what := slices.Concat(p.Signatures, mounted(p.Mounts), p.Users); len(what) > 0 {
			line += " (" + strings.Join(what, ", ") + ")"
		}
		found = append(found, line)
	}
	for _, signature := range d.Signatures {
		switch signature {
		case "gpt", "dos":
			signature = "partition table " + signature
		case "PMBR": // part of a GPT
			continue
		}
		found = append(found, signature)
	}
	switch {
	case len(found) == 0 && d.Busy:
		found = append(found, "the kernel has it in use, maybe for another container")
	case len(found) == 0 && d.Written:
		found = append(found, "data in its first 16 MiB, of a kind that nobody here knows")
	}
	return strings.Join(found, ", ")
}

func mounted(points []string) (words []string) {
	for _, point := range points {
		words = append(words, "mounted at "+point)
	}
	return words
}

// emptying is how a person empties a disk.
func (d Disk) emptying() string {
	devices := ""
	for _, p := range d.Parts {
		if p.Path != "" {
			devices += p.Path + " "
		}
	}
	return fmt.Sprintf("wipefs --all %s%s && dd if=/dev/zero of=%s bs=1M count=16 conv=fsync", devices, d.Path, d.Path)
}

// DiskLines tells of each disk what --disk would do to it.
func DiskLines(disks []Disk, system int64) (lines []string) {
	for _, d := range disks {
		l, err := PlanDisk(d, system)
		switch {
		case err != nil:
			_, cause, _ := strings.Cut(err.Error(), ": ")
			cause, _, _ = strings.Cut(cause, "; nothing was written")
			lines = append(lines, fmt.Sprintf("%s: cannot be used: %s", d, cause))
		case l == Layout{}:
			lines = append(lines, fmt.Sprintf("%s: split already", d))
		default:
			lines = append(lines, fmt.Sprintf("%s: --disk %s would %s", d, d.Path, strings.Join(l.words(), " and ")))
		}
	}
	return lines
}

func (l Layout) words() (words []string) {
	if l.System.Size > 0 {
		words = append(words, fmt.Sprintf("make a partition %s of %s for containers and images", SystemPartition, size(l.System.Size)))
	}
	if l.Brick.Size > 0 {
		words = append(words, fmt.Sprintf("make a partition %s of %s for volumes", BrickPartition, size(l.Brick.Size)))
	}
	return words
}

// script is the layout for sfdisk.
func (l Layout) script() string {
	const linux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	var text strings.Builder
	if l.Fresh {
		text.WriteString("label: gpt\n")
	}
	for _, p := range []struct {
		name string
		Span
	}{{SystemPartition, l.System}, {BrickPartition, l.Brick}} {
		if p.Size > 0 {
			fmt.Fprintf(&text, "start=%dMiB, size=%dMiB, type=%s, name=\"%s\"\n", p.Start/align, p.Size/align, linux, p.name)
		}
	}
	return text.String()
}

// device is a line of lsblk.
type device struct {
	Name, Path, Type string
	Size             int64
	RO, RM, Rota     bool
	Tran, Model      string
	Start            int64 // in units of 512 bytes, whatever the disk's are
	Mountpoints      []*string
	Children         []device
}

func (h *Host) lsblk(ctx context.Context, args ...string) ([]device, error) {
	args = append([]string{"--json", "--bytes", "--output", "NAME,PATH,TYPE,SIZE,RO,RM,TRAN,ROTA,MODEL,START,MOUNTPOINTS"}, args...)
	out, err := h.Run(ctx, "lsblk", args...)
	if err != nil {
		return nil, err
	}
	var found struct{ Blockdevices []device }
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("read what lsblk says: %w", err)
	}
	return found.Blockdevices, nil
}

// disks are the disks of a machine by what lsblk alone says: nothing of what is
// on them, but for what is mounted.
func (h *Host) disks(ctx context.Context) (disks []Disk, err error) {
	devices, err := h.lsblk(ctx)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	for _, dev := range devices {
		// What has no size has no medium; compressed memory is no disk; and what a
		// container sees, but cannot open, are the disks of the computer around it.
		if dev.Type == "disk" && dev.Size > 0 && !strings.HasPrefix(dev.Name, "zram") && h.Exists(dev.Path) {
			disks = append(disks, dev.disk())
		}
	}
	return disks, nil
}

func (dev device) disk() Disk {
	d := Disk{
		Name: dev.Name, Path: dev.Path, Model: strings.TrimSpace(dev.Model), Size: dev.Size, Type: dev.Type,
		Rotational: dev.Rota, ReadOnly: dev.RO, Portable: dev.RM || dev.Tran == "usb", Mounts: dev.mounts(),
	}
	for _, child := range dev.Children {
		if child.Type != "part" {
			d.Users = append(d.Users, child.Type+" "+child.Name)
			d.Mounts = append(d.Mounts, child.everywhere()...)
			continue
		}
		p := Part{Number: number(child.Name), Path: child.Path, Start: child.Start * 512, Size: child.Size, Mounts: child.everywhere()}
		for _, user := range child.Children {
			p.Users = append(p.Users, user.Type+" "+user.Name)
		}
		d.Parts = append(d.Parts, p)
	}
	return d
}

// number is the last number of a partition's name: 3 of sda3 and of nvme0n1p3.
func number(name string) int {
	n, _ := strconv.Atoi(regexp.MustCompile(`[0-9]*$`).FindString(name))
	return n
}

// mounts are where a device is mounted; lsblk has a null for nowhere.
func (dev device) mounts() (points []string) {
	for _, point := range dev.Mountpoints {
		if point != nil {
			points = append(points, *point)
		}
	}
	return points
}

// everywhere are the mounts of a device and of all that is made of it.
func (dev device) everywhere() []string {
	points := dev.mounts()
	for _, child := range dev.Children {
		points = append(points, child.everywhere()...)
	}
	return points
}

// Disks are the disks of the machine, with what is on them. Nothing is written.
func Disks(ctx context.Context, h *Host) (disks []Disk, err error) {
	found, err := h.disks(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range found {
		if d, err = h.inspect(ctx, d); err != nil {
			return nil, err
		}
		disks = append(disks, d)
	}
	return disks, nil
}

// diskAt is the disk of a name: /dev/sdb, or a link to it.
func (h *Host) diskAt(ctx context.Context, name string) (Disk, error) {
	devices, err := h.lsblk(ctx, name)
	if err != nil {
		return Disk{}, fmt.Errorf("look at disk %s: %w; lsblk shows which there are", name, err)
	}
	if len(devices) != 1 {
		return Disk{}, fmt.Errorf("look at disk %s: lsblk shows %d devices", name, len(devices))
	}
	return h.inspect(ctx, devices[0].disk())
}

// inspect adds what is on the disk itself, by reading it.
func (h *Host) inspect(ctx context.Context, d Disk) (_ Disk, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("look at disk %s: %w", d.Path, err)
		}
	}()
	if d.Signatures, err = h.signatures(ctx, d.Path); err != nil {
		return d, err
	}
	if slices.ContainsFunc(d.Signatures, func(s string) bool { return s == "gpt" || s == "dos" }) {
		if err := h.readTable(ctx, &d); err != nil {
			return d, err
		}
	}
	for n := range d.Parts {
		if p := &d.Parts[n]; p.Path != "" && h.Exists(p.Path) {
			if p.Signatures, err = h.signatures(ctx, p.Path); err != nil {
				return d, err
			}
		}
	}
	d.Written, d.Busy, err = h.touched(d.Path)
	return d, err
}

// signatures are what libblkid finds on a device, wherever on it: a type, and
// the label of a file system. wipefs only looks.
func (h *Host) signatures(ctx context.Context, path string) (found []string, err error) {
	out, err := h.Run(ctx, "wipefs", "--no-act", "--json", path)
	if err != nil {
		return nil, err
	}
	var said struct {
		Signatures []struct{ Type, Label string }
	}
	if len(bytes.TrimSpace(out)) > 0 {
		if err := json.Unmarshal(out, &said); err != nil {
			return nil, fmt.Errorf("read what wipefs says: %w", err)
		}
	}
	for _, s := range said.Signatures {
		if what := strings.TrimSpace(s.Type + " " + s.Label); !slices.Contains(found, what) {
			found = append(found, what)
		}
	}
	return found, nil
}

// readTable takes the partitions from the disk itself: what lsblk has is what
// the kernel remembers, and names only where udev runs.
func (h *Host) readTable(ctx context.Context, d *Disk) error {
	out, err := h.Run(ctx, "partx", "--pairs", "--output", "NR,START,SECTORS,NAME,UUID", d.Path)
	var exit *Exit
	if errors.As(err, &exit) && exit.Code == 1 && len(bytes.TrimSpace(out)) == 0 {
		return nil // a table without partitions
	}
	if err != nil {
		return err
	}
	known := d.Parts
	d.Parts = nil
	pair := regexp.MustCompile(`([A-Z]+)="([^"]*)"`)
	for line := range strings.Lines(string(out)) {
		value := map[string]string{}
		for _, match := range pair.FindAllStringSubmatch(line, -1) {
			value[match[1]] = match[2]
		}
		nr, err := strconv.Atoi(value["NR"])
		start, err2 := strconv.ParseInt(value["START"], 10, 64)
		sectors, err3 := strconv.ParseInt(value["SECTORS"], 10, 64)
		if err := errors.Join(err, err2, err3); err != nil {
			return fmt.Errorf("read what partx says: %q: %w", line, err)
		}
		p := Part{Number: nr, Start: start * 512, Size: sectors * 512}
		if n := slices.IndexFunc(known, func(k Part) bool { return k.Number == nr }); n >= 0 {
			p = known[n]
		}
		p.Name, p.UUID = value["NAME"], value["UUID"]
		d.Parts = append(d.Parts, p)
	}
	// What the kernel has and the table has not is in use all the same.
	for _, k := range known {
		if !slices.ContainsFunc(d.Parts, func(p Part) bool { return p.Number == k.Number }) {
			d.Parts = append(d.Parts, k)
		}
	}
	return nil
}

// touched reports whether the beginning of a device holds anything, and whether
// the kernel refuses it to us because somebody has it: a mount, a RAID, a
// logical volume, in this container or another.
func (h *Host) touched(path string) (written, busy bool, err error) {
	f, err := os.OpenFile(h.Path(path), os.O_RDONLY|syscall.O_EXCL, 0)
	if errors.Is(err, syscall.EBUSY) {
		busy = true
		f, err = os.Open(h.Path(path))
	}
	if err != nil {
		return false, busy, err
	}
	defer f.Close()
	written, err = notZero(f)
	return written, busy, err
}

func notZero(r io.Reader) (bool, error) {
	var zero, block [64 << 10]byte
	for left := blankness; left > 0; left -= len(block) {
		n, err := io.ReadFull(r, block[:])
		if !bytes.Equal(block[:n], zero[:n]) {
			return true, nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}
