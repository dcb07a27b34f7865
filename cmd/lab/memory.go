package main

import (
	"os"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"
)

// memoryWatch samples how much of the computer's memory programs hold: what is not
// available to others, in the words of /proc/meminfo. Caches that the kernel
// would give back do not count.
type memoryWatch struct {
	begin int64
	most  atomic.Int64
}

// watchMemory begins to sample, each second, until the process ends.
func watchMemory() *memoryWatch {
	m := &memoryWatch{begin: memoryInUse()}
	m.most.Store(m.begin)
	go func() {
		for range time.Tick(time.Second) {
			m.most.Store(max(m.most.Load(), memoryInUse()))
		}
	}()
	return m
}

// peak is the most that was in use above what was at the beginning, in bytes.
func (m *memoryWatch) peak() int64 { return m.most.Load() - m.begin }

func memoryInUse() int64 {
	text, _ := os.ReadFile("/proc/meminfo")
	size := func(name string) int64 {
		found := regexp.MustCompile(name + `: +(\d+) kB`).FindSubmatch(text)
		if found == nil {
			return 0
		}
		kb, _ := strconv.ParseInt(string(found[1]), 10, 64)
		return kb << 10
	}
	return size("MemTotal") - size("MemAvailable")
}
