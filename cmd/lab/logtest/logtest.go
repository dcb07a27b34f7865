// Package logtest keeps what programs and loggers say while a test reads it.
package logtest

import (
	"bytes"
	"sync"
)

// Buffer holds all that was written to it. Any number may write and read at once; the
// zero value is empty.
type Buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String is what was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
