package hand

import (
	"context"
	"time"
)

// task is work that may hang, as whatever touches a file system may: it is done
// beside the round, and never twice at a time. The zero value does nothing.
type task[T any] struct {
	result chan T // nil: nothing is under way
	late   bool   // a round has waited for it in vain
}

// begin starts f, unless it is under way still.
func (t *task[T]) begin(f func() T) {
	if t.result != nil {
		return
	}
	result := make(chan T, 1)
	t.result, t.late = result, false
	go func() { result <- f() }()
}

// wait takes what came of it. What is late already is not waited for again.
func (t *task[T]) wait(ctx context.Context, until time.Time) (got T, ok bool) {
	if t.result == nil {
		return got, false
	}
	patience := time.Until(until)
	if t.late {
		patience = 0
	}
	timer := time.NewTimer(max(patience, 0))
	defer timer.Stop()
	select {
	case got = <-t.result:
	default:
		select {
		case got = <-t.result:
		case <-timer.C:
			t.late = true
			return got, false
		case <-ctx.Done():
			return got, false
		}
	}
	t.result = nil
	return got, true
}
