package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"
)

// State is what all replicas agree on. It is small, changed as one, and as lasting
// as the cluster.
type State struct {
	// ID says which directory is the site's: the entryUUID of its root. "" is none yet.
	// Each restore makes a new one, and data of another ID is not served any more.
	ID string

	// Founder is the machine that makes it, since Since. "" is nobody: it is made.
	Founder string
	Since   time.Time

	// Servers is how many server IDs were given out. Each set of data has its own: one
	// that was lost must not come back in another's changes.
	Servers int

	// Writer is the machine whose replica takes changes, and Beat what it counts up to
	// show that it lives, see office.go.
	Writer string
	Beat   int
}

// maxServers is where LDAP ends.
const maxServers = 4095

// A Store keeps the state, and the secrets of the site's directory.
type Store interface {
	// State is the newest.
	State(context.Context) (State, error)

	// Update has change alter the newest state, and stores that as one step: where
	// another was faster, change is asked again. Its error ends it.
	Update(ctx context.Context, change func(*State) error) (State, error)

	// Secret gives a secret, and makes it first where there is none. All who ask get
	// the same one.
	Secret(ctx context.Context, name string, make func() (map[string][]byte, error)) (map[string][]byte, error)

	// Serve sends those who ask for the directory to an address.
	Serve(ctx context.Context, address string) error

	// Publish tells everybody the certificate of the directory's own authority.
	Publish(ctx context.Context, certificate []byte) error
}

// founding is how long a machine may take to make the directory. Then another
// begins anew; the first, if it lives, finds out before it serves.
const founding = 2 * time.Minute

// claim is what a machine without data may do: make the directory, where there never
// was one.
func (s *State) claim(machine string, now time.Time) (mine bool) {
	switch {
	case s.ID == "", s.Founder != "" && s.Founder != machine && now.Sub(s.Since) > founding:
		s.ID, s.Founder, s.Since = newID(), machine, now.UTC().Truncate(time.Second)
	}
	return s.Founder == machine
}

// founded is told when the data of id is complete on machine's disk, and before
// anybody sees it.
func (s *State) founded(machine, id string) error {
	if s.ID != id || s.Founder != machine {
		return fmt.Errorf("the directory %s was given up: another machine began anew", id)
	}
	s.Founder, s.Since = "", time.Time{}
	return nil
}

// server gives out the next server ID.
func (s *State) server() (int, error) {
	if s.Servers >= maxServers {
		return 0, fmt.Errorf("all %d server IDs were given out: back the directory up and restore it, which begins anew", maxServers)
	}
	s.Servers++
	return s.Servers, nil
}

// newID is a random UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
