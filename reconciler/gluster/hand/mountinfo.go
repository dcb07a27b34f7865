package hand

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// mounted is one line of /proc/1/mountinfo.
type mounted struct {
	Device string // major:minor
	Point  string
	Type   string
	Source string
}

// mountTable is everything that systemd sees mounted, for it is the one that mounts.
// It is read from the kernel's memory: no file system is asked, so that none can
// hang it.
func mountTable(h *host.Host) ([]mounted, error) {
	text, err := h.Read("/proc/1/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("see what is mounted: %w", err)
	}
	return parseMounts(string(text)), nil
}

func parseMounts(text string) (table []mounted) {
	for line := range strings.Lines(text) {
		head, tail, ok := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if ok && len(h) >= 5 && len(t) >= 2 {
			table = append(table, mounted{Device: h[2], Point: plain(h[4]), Type: t[0], Source: plain(t[1])})
		}
	}
	return table
}

// at is what is mounted at a place; the last of them covers the others.
func at(table []mounted, point string) *mounted {
	for i := len(table) - 1; i >= 0; i-- {
		if table[i].Point == point {
			return &table[i]
		}
	}
	return nil
}

// plain undoes the kernel's way of writing spaces: \040.
func plain(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
