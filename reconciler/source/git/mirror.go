package git

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// origin is where commits come from: a server, or a repository on this computer.
type origin interface {
	// refs are the branches and tags that there are. Where the named branch is
	// one of them, the others may be left out.
	refs(ctx context.Context, branch string) (refs, error)

	// pack writes a pack of what a commit has and have, which may be nil, has
	// not. It may hold more, and with trouble at the origin it may hold less:
	// the commit is verified afterwards.
	pack(ctx context.Context, commit plumbing.Hash, have *generation, w io.Writer) error
}

// refs are commits by short name.
type refs struct {
	head        plumbing.Hash // zero where there is none
	heads, tags map[string]plumbing.Hash
}

func (r refs) add(name plumbing.ReferenceName, commit plumbing.Hash) {
	switch {
	case name.IsBranch():
		r.heads[name.Short()] = commit
	case name.IsTag():
		r.tags[name.Short()] = commit
	}
}

// maxPacks is how often a generation grows before it makes place for a fresh
// one: looking for an object costs a look into each pack.
const maxPacks = 30

// mirror is a Repository of commits, kept in a store of our own.
type mirror struct {
	at     location
	names  names
	origin origin
	limits Limits
	cache  string // folder of the store; "" in memory

	store atomic.Pointer[store]
	busy  chan struct{} // held by the one Tree that works

	// A commit that was too large is not fetched again to find it so.
	refused plumbing.Hash
	refusal error
}

func openMirror(at location, n names, cache string, o origin, l Limits) (*mirror, error) {
	m := &mirror{at: at, names: n, origin: o, limits: l, busy: make(chan struct{}, 1)}
	if cache != "" {
		key := sha256.Sum256([]byte(at.String() + "\n" + n.branch + "\n" + n.revision))
		m.cache = filepath.Join(cache, fmt.Sprintf("%x", key[:10]))
	}
	s, err := openStore(m.cache, l)
	if errors.Is(err, errInUse) { // a dry run beside the daemon: it goes on in memory
		s, err = openStore("", l)
	}
	if err != nil {
		return nil, cacheFailed(m.cache, err)
	}
	m.store.Store(s)
	return m, nil
}

func cacheFailed(dir string, err error) *plan.Fault {
	return fault(CacheFailed, "keep what was fetched in "+dir+": "+err.Error(), "see whether the disk is full, or name another folder with --cache")
}

func (m *mirror) String() string { return m.at.String() }

func (m *mirror) Close() error {
	m.store.Load().close()
	return nil
}

func (m *mirror) LastGood() (string, bool) { return m.store.Load().lastGood() }

func (m *mirror) Watch(ctx context.Context) (<-chan struct{}, error) {
	if m.at.remote() {
		return nil, nil
	}
	return watchRefs(ctx, m.at.path)
}

// Head looks the branch or revision up. A branch comes before a tag of its name.
func (m *mirror) Head(ctx context.Context) (string, error) {
	if hash, ok := fullHash(m.names.revision); ok {
		return hash.String(), nil
	}
	ctx, cancel, ended := withTime(ctx, m.limits)
	defer cancel()
	name := m.names.branch + m.names.revision // one of them is empty
	found, err := m.origin.refs(ctx, name)
	if err != nil {
		return "", cmp.Or(ended("look at "+m.at.String()), err)
	}
	if hash, ok := found.heads[name]; ok {
		return hash.String(), nil
	}
	if m.names.branch != "" {
		return "", m.branchNotFound(found)
	}
	if l, ok := m.origin.(*local); ok {
		return l.resolve(ctx, name)
	}
	if hash, ok := found.tags[name]; ok {
		return hash.String(), nil
	}
	if name == "HEAD" && !found.head.IsZero() {
		return found.head.String(), nil
	}
	return "", fault(RevisionNotFound, fmt.Sprintf("look at %s: there is no branch or tag %q", m.at, name), "of a server, want a branch, a tag, or a commit's whole hash")
}

func (m *mirror) branchNotFound(found refs) error {
	if len(found.heads)+len(found.tags) == 0 {
		return emptyRepository(m.at)
	}
	branches := slices.Sorted(maps.Keys(found.heads))
	hint := "there is no branch at all"
	if n := len(branches); n > 5 {
		hint = fmt.Sprintf("there are %s and %d more", strings.Join(branches[:5], ", "), n-5)
	} else if n > 0 {
		hint = "there is " + strings.Join(branches, ", ")
	}
	return fault(BranchNotFound, fmt.Sprintf("look at %s: there is no branch %q", m.at, m.names.branch), hint+"; choose with --branch, or push it")
}

func emptyRepository(at location) error {
	return fault(RepositoryEmpty, "look at "+at.String()+": nothing was pushed yet", "push a first commit")
}

// Tree is the folder of a commit, from the store, or fetched into it.
func (m *mirror) Tree(ctx context.Context, commit string) (*tree.Dir, error) {
	hash, ok := fullHash(commit)
	if !ok {
		return nil, fault(RevisionNotFound, fmt.Sprintf("fetch %s: %.50q is no commit of it", m.at, commit), "")
	}
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	bounded, cancel, ended := withTime(ctx, m.limits)
	defer cancel()
	if hash == m.refused {
		return nil, m.refusal
	}
	root, err := m.store.Load().tree(bounded, hash)
	if err != nil && !isFault(err) {
		root, err = m.fetch(bounded, hash)
	}
	if err != nil {
		err = cmp.Or(ended("fetch "+m.at.String()), m.placed(err))
		if f, ok := err.(*plan.Fault); ok && f.Code == TooLarge {
			m.refused, m.refusal = hash, err
		}
		return nil, err
	}
	if sub := root.Sub(m.names.path); sub != nil {
		return sub, nil
	}
	f := fault(PathNotFound, fmt.Sprintf("commit %.12s of %s has no folder %q", commit, m.at, m.names.path), "choose a folder with --path")
	if root.File(m.names.path) != nil {
		f.Hint = "it is a file; " + f.Hint
	}
	return nil, f
}

// fetch gets a commit: what is missing of it, or all of it into a fresh
// generation where the present one cannot be built upon.
func (m *mirror) fetch(ctx context.Context, commit plumbing.Hash) (root *tree.Dir, err error) {
	s := m.store.Load()
	if s.dir == "" && m.cache != "" {
		if own, err := openStore(m.cache, m.limits); err == nil { // the other process is gone
			s = own
			defer func() {
				if root == nil {
					own.close()
				} else {
					m.store.Store(own)
				}
			}()
		}
	}
	if now := s.current(); now != nil && !now.broken.Load() && now.packs.Load() < maxPacks {
		root, err := m.take(ctx, s, now, commit, now)
		if err == nil || isFault(err) || ctx.Err() != nil {
			return root, err
		}
		// Of the many ways in which a shallow history and a server can
		// misunderstand each other, and a store be damaged, few survive
		// beginning anew.
	}
	aside, err := s.aside()
	if err != nil {
		return nil, cacheError{err}
	}
	if root, err = m.take(ctx, s, aside, commit, nil); err != nil {
		aside.remove()
		return nil, err
	}
	return root, nil
}

// take adds a commit to a generation, verifies it, and makes it the last good one.
func (m *mirror) take(ctx context.Context, s *store, g *generation, commit plumbing.Hash, have *generation) (*tree.Dir, error) {
	if err := g.add(ctx, func(w io.Writer) error { return m.origin.pack(ctx, commit, have, w) }); err != nil {
		return nil, err
	}
	root, err := g.root(ctx, commit)
	if err == nil {
		err = s.keep(g, commit)
	}
	return root, err
}

// placed says of which repository an error is.
func (m *mirror) placed(err error) error {
	deed := "fetch " + m.at.String() + ": "
	var f *plan.Fault
	switch {
	case isCacheError(err):
		return cacheFailed(m.cache, err)
	case !errors.As(err, &f):
		return fault(RepositoryUnreachable, deed+"what arrived is not whole: "+clean(err.Error(), nil), "it is tried again; if it stays so, run git fsck in the repository")
	case strings.HasPrefix(f.Cause, deed):
		return f
	}
	return &plan.Fault{Code: f.Code, Cause: deed + f.Cause, Hint: f.Hint}
}
