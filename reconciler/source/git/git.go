// Package git turns the address of a site repo into file trees of its commits.
//
//	https, ssh          Head asks the server for its refs; Tree fetches one commit
//	bare repo, file://  the same, but the server is a folder, opened to read only
//	working folder      the files as they are saved, hashed as git would
//
// The first two share everything but the way in (an origin): a commit arrives
// as a pack, is held against the limits before anything is unpacked, goes into
// bare storage of our own (a store) and counts only once every object of it is
// there. From then on it is the last good commit, which outlives the repository
// that it came from. There is never a work tree, and nothing is ever run:
// go-git's file transport, which starts git-upload-pack, is not used, and
// neither is its ssh transport, which cannot be given a deadline and reads the
// user's ssh_config and agent (forty lines over golang.org/x/crypto/ssh can).
//
// What arrives with less than it should have (a shallow history that was
// rewritten, a store that someone damaged, too many small packs) is not
// repaired: the commit is fetched anew into a store aside, which then takes the
// place of the old one.
//
// Errors that a person can act on are *plan.Fault. No error, and nothing that
// this package prints or stores, holds a credential.
package git

import (
	"cmp"
	"context"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// Options say which commits, and how to get at them. Only URL is required.
type Options struct {
	// URL is https://, ssh://, user@host:path, file://, or the path of a bare
	// repository or a working folder. http:// is for this computer only.
	URL string

	// Branch to follow. Default main. A tag of the same name does not matter.
	Branch string

	// Revision stands in for Branch: a branch, else a tag, else a full hash.
	// A repository on this computer also knows HEAD~1, origin/main and short
	// hashes. A working folder with one is read from its repository.
	Revision string

	// Path is a folder in the repository. Default its root.
	Path string

	// Cache is the folder of what is fetched; each address and branch gets one
	// of its own in it. Empty keeps it in memory.
	Cache string

	Credentials Credentials
	Limits      Limits
}

// Limits of what a repository may make us read. A zero field takes the default.
type Limits struct {
	Bytes     int64         // of a pack, and of all files of a commit together; default 512 MiB
	FileBytes int64         // of one file; default 16 MiB
	Files     int           // of a commit; default 50,000
	Depth     int           // of folders in each other; default 100
	Refs      int           // branches, tags and others; default 100,000
	Time      time.Duration // of one call; default 2m
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Bytes: cmp.Or(l.Bytes, 512<<20), FileBytes: cmp.Or(l.FileBytes, 16<<20), Files: cmp.Or(l.Files, 50_000),
		Depth: cmp.Or(l.Depth, 100), Refs: cmp.Or(l.Refs, 100_000), Time: cmp.Or(l.Time, 2*time.Minute),
	}
}

// Repository is where commits come from. Its methods may be called at once.
type Repository interface {
	// Head is the hash of the newest commit; of a working folder "dir-" and the
	// beginning of its tree's hash. Of a server it reads the refs only.
	Head(ctx context.Context) (commit string, err error)

	// Tree is the files of a commit that Head or LastGood returned. It fetches
	// what is missing; what was fetched once needs no repository any more.
	Tree(ctx context.Context, commit string) (*tree.Dir, error)

	// LastGood is the commit that was fetched whole most recently, by an
	// earlier process too where there is a cache. Working folders have none.
	LastGood() (commit string, ok bool)

	// Watch sends soon after something was saved or pushed, until the context
	// ends. The channel is nil for servers, which can only be asked. An error
	// beside a channel is a warning: the channel works, by looking now and then.
	Watch(ctx context.Context) (<-chan struct{}, error)

	// String is the address without anything secret.
	String() string

	// Close gives up the cache, for another process to use. Trees that were
	// handed out cannot be read any more.
	Close() error
}

// Open makes a Repository of an address. It dials nothing and needs nothing to
// be there yet.
func Open(o Options) (Repository, error) {
	at, err := parseLocation(o.URL)
	if err != nil {
		return nil, err
	}
	names, err := parseNames(o)
	if err != nil {
		return nil, err
	}
	limits := o.Limits.withDefaults()
	if at.remote() {
		origin := &remote{at: at, credentials: o.Credentials, limits: limits}
		return openMirror(at, names, o.Cache, origin, limits)
	}
	if at.scheme == "" && names.revision == "" && isFolder(at.path) && !isGitDir(at.path) {
		return &folder{at: at, path: at.path, sub: names.path, limits: limits}, nil
	}
	if names.revision != "" {
		at.path, names.path = enclosing(at.path, names.path)
	}
	return openMirror(at, names, o.Cache, &local{at: at, limits: limits}, limits)
}
