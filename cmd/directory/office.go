package main

import "time"

// An office is what one replica knows of who the writer is: the one that takes
// changes. Two at once could change one entry, and the later version would have it.
//
// The writer counts up Beat in the state. Whoever sees it stand still for a lease, by
// the own clock, may take over; and a writer that could not count for half as long
// takes no more changes by then. No two clocks are compared.
type office struct {
	machine string
	lease   time.Duration

	writer string
	beat   int
	since  time.Time // when it was first seen so
	sure   time.Time // before this machine counted last, as the writer
}

// see takes in a state that was read.
func (o *office) see(s State, now time.Time) {
	if o.since.IsZero() || s.Writer != o.writer || s.Beat != o.beat {
		o.writer, o.beat, o.since = s.Writer, s.Beat, now
	}
	if s.Writer != o.machine {
		o.sure = time.Time{}
	}
}

// wants says whether this replica is to count, or to take over.
func (o *office) wants(s State, able bool, now time.Time) bool {
	return able && (s.Writer == "" || s.Writer == o.machine ||
		s.Writer == o.writer && s.Beat == o.beat && now.Sub(o.since) > o.lease)
}

// counted is told that this machine's count was written, and when it began to.
func (o *office) counted(s State, began, now time.Time) {
	if o.see(s, now); s.Writer == o.machine {
		o.sure = began
	}
}

// held says whether this replica takes changes.
func (o *office) held(now time.Time) bool {
	return o.writer == o.machine && !o.sure.IsZero() && now.Sub(o.sure) < o.lease/2
}

// leave gives the office up.
func (o *office) leave(s *State) error {
	if s.Writer == o.machine {
		s.Writer, s.Beat = "", s.Beat+1
	}
	return nil
}
