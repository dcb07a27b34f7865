package git

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

// checkPack reads the headers of a pack, so that nothing is unpacked that is
// larger than it may be: go-git takes the sizes that a pack declares for
// granted, and 10 KiB can declare gigabytes.
func checkPack(ctx context.Context, pack io.Reader, l Limits) error {
	scanner := packfile.NewScanner(pack)
	_, count, err := scanner.Header()
	if err != nil {
		return err
	}
	if objects := 4 * int64(l.Files); int64(count) > objects {
		return tooLarge("objects of the pack", objects)
	}
	total := int64(0)
	for range count {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := scanner.NextObjectHeader()
		if err != nil {
			return err
		}
		if h.Type == 5 || !h.Type.Valid() { // 5 is kept for later
			return fmt.Errorf("object of kind %d, which does not exist", h.Type)
		}
		size := h.Length
		if size >= 0 && size <= l.FileBytes {
			var start head
			if _, _, err := scanner.NextObject(&start); err != nil {
				return err
			}
			if h.Type.IsDelta() {
				size = max(size, start.target())
			}
		}
		if size < 0 || size > l.FileBytes {
			return tooLarge("a file of the commit", mebibytes(l.FileBytes))
		}
		if total += size; total > l.Bytes {
			return tooLarge("all files of the commit together", mebibytes(l.Bytes))
		}
	}
	return nil
}

// head keeps the first bytes of an object.
type head struct {
	bytes [2 * binary.MaxVarintLen64]byte
	n     int
}

func (h *head) Write(p []byte) (int, error) {
	h.n += copy(h.bytes[h.n:], p)
	return len(p), nil
}

// target is the size of what a delta makes; it stands behind that of its base.
// A size that cannot be read is beyond every limit.
func (h *head) target() int64 {
	_, n := binary.Uvarint(h.bytes[:h.n])
	if n <= 0 {
		return 1 << 62
	}
	size, n := binary.Uvarint(h.bytes[n:h.n])
	if n <= 0 || size > 1<<62 {
		return 1 << 62
	}
	return int64(size)
}
