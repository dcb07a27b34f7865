package host

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Process is what the kernel tells of one.
type Process struct {
	Name  string // of its program, cut to 15 letters
	State string // a letter: Z is one that has ended
	Began uint64 // ticks of the clock since the boot; with the number it means one process for ever
}

// Process reads /proc/PID/stat (proc_pid_stat(5)). It errs where there is no such
// process.
func (h *Host) Process(pid string) (p Process, err error) {
	text, err := h.Read(path.Join("/proc", pid, "stat"))
	if err != nil {
		return p, fmt.Errorf("look at process %s: %w", pid, err)
	}
	// The name is in brackets, and may hold anything.
	stat := string(text)
	from, to := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if from < 0 || to < from {
		return p, fmt.Errorf("look at process %s: it has no name", pid)
	}
	const state, began = 0, 19 // counted from the third
	fields := strings.Fields(stat[to+1:])
	if len(fields) <= began {
		return p, fmt.Errorf("look at process %s: %d fields", pid, len(fields))
	}
	p = Process{Name: stat[from+1 : to], State: fields[state]}
	if p.Began, err = strconv.ParseUint(fields[began], 10, 64); err != nil {
		return p, fmt.Errorf("look at process %s: when it began: %w", pid, err)
	}
	return p, nil
}
