package main

import (
	"context"
	"errors"
	"io"
	"testing"
)

// TestNoAnswer has a person press Ctrl-C where he is asked.
func TestNoAnswer(t *testing.T) {
	never, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &surroundings{in: never, inTerminal: true, err: io.Discard}
	if err := s.agree(ctx, "install", []string{"anything"}, false); !errors.Is(err, context.Canceled) {
		t.Errorf("agreed: %v", err)
	}
}
