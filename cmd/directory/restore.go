package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
)

// restore makes the directory that a backup holds the site's. It gets an ID of its
// own, so that no replica takes what it had for it: each of them begins anew, the one
// on this machine with what is loaded here, and the others with a copy of that.
//
// Only the last step, which is one, is seen by anybody.
func restore(ctx context.Context, o Options, from io.Reader) (entries int, err error) {
	if o.Machine == "" {
		return 0, errors.New("no machine: give --machine")
	}
	s, err := readSecrets(ctx, o.Store, o.Base)
	if err != nil {
		return 0, err
	}
	r := New(o)
	id := newID()
	if _, err := r.load(ctx, s, id, false, func(to io.Writer, server int) (err error) {
		entries, err = slapd.Renew(from, to, o.Base, id, server)
		return err
	}); err != nil {
		return 0, err
	}
	_, err = o.Store.Update(ctx, func(s *State) error {
		s.ID, s.Founder, s.Since = id, "", time.Time{}
		s.Writer, s.Beat = "", s.Beat+1
		return nil
	})
	return entries, err
}
