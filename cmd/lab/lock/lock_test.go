package lock

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
)

// The lock is that of an open file, so that one process stands for two here.

func TestTry(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	held, err := Try(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Try(file); !errors.Is(err, ErrHeld) {
		t.Errorf("while it is held: %v, want %v", err, ErrHeld)
	}
	held.Close()
	if again, err := Try(file); err != nil {
		t.Errorf("when it is free again: %v", err)
	} else {
		again.Close()
	}
	if _, err := Try(filepath.Join(t.TempDir(), "none", "lock")); err == nil || errors.Is(err, ErrHeld) {
		t.Errorf("in a folder that is not there: %v", err)
	}
}

func TestWait(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	held, err := Try(file)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	next, err := Wait(t.Context(), file, func() { told++; held.Close() })
	if err != nil || told != 1 {
		t.Fatalf("told %d times that it waits, want once; error: %v", told, err)
	}
	defer next.Close()
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := Wait(ctx, file, func() { cancel(enough) }); !errors.Is(err, enough) {
		t.Errorf("cancelled: %v, want %v", err, enough)
	}
}
