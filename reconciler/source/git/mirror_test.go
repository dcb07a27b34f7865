package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

func TestFollowsBranch(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, s *site, o Options) {
		first := s.push("site.yaml", "one", "machines/pc-01.yaml", "same", "deep/er/still.yaml", "same")
		r := open(t, o)
		if _, ok := r.LastGood(); ok {
			t.Error("a last good commit before the first")
		}
		wantHead(t, r, first, "site.yaml", "one", "machines/pc-01.yaml", "same")

		second := s.push("site.yaml", "two", "machines/pc-02.yaml", "new")
		wantHead(t, r, second, "site.yaml", "two", "machines/pc-01.yaml", "same", "machines/pc-02.yaml", "new", "deep/er/still.yaml", "same")

		// Force-pushed back, and to something that has no part in it.
		s.git("reset", "-q", "--hard", first)
		s.git("push", "-q", "-f", "origin", "HEAD:main")
		wantHead(t, r, first, "site.yaml", "one")
		s.git("checkout", "-q", "--orphan", "other")
		unrelated := s.push("site.yaml", "three")
		wantHead(t, r, unrelated, "site.yaml", "three", "machines/pc-01.yaml", "same")
		run(t, s.bare, "git", "gc", "-q", "--prune=now") // of what we have, it has nothing left but the tip
		s.git("checkout", "-q", "main")
		s.git("reset", "-q", "--hard", second)
		again := s.push("site.yaml", "four")
		wantHead(t, r, again, "site.yaml", "four", "machines/pc-02.yaml", "new")

		// The branch goes away.
		s.git("push", "-q", "origin", "main:refs/heads/renamed", ":main")
		_, err := r.Head(t.Context())
		wantFault(t, err, BranchNotFound, "main", "renamed")
		if commit, ok := r.LastGood(); !ok || commit != again {
			t.Errorf("last good %s, %v", commit, ok)
		}
		s.git("push", "-q", "origin", "main")
		wantHead(t, r, again, "site.yaml", "four")
	})
}

func TestEmptyRepository(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, s *site, o Options) {
		r := open(t, o)
		_, err := r.Head(t.Context())
		wantFault(t, err, RepositoryEmpty, "push")
		wantHead(t, r, s.push("site.yaml", "one"), "site.yaml", "one")
	})
}

// The last good commit outlives the repository, and the process.
func TestRepositoryVanishes(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, s *site, o Options) {
		first := s.push("site.yaml", "one", "big", string(make([]byte, 100_000)))
		r := open(t, o)
		wantHead(t, r, first)
		if err := os.Rename(s.bare, s.bare+".gone"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err := r.Head(t.Context())
			if err == nil {
				t.Fatal("no error")
			}
			if o.Credentials == (Credentials{}) {
				wantFault(t, err, RepositoryUnreachable, "nothing")
			} else {
				wantFault(t, err, RepositoryNotFound)
			}
			commit, ok := r.LastGood()
			if !ok || commit != first {
				t.Fatalf("last good %s, %v", commit, ok)
			}
			d, err := r.Tree(t.Context(), commit)
			if err != nil {
				t.Fatal(err)
			}
			wantFiles(t, d, "site.yaml", "one", "big", string(make([]byte, 100_000)))
			if o.Cache == "" {
				return
			}
			r.Close()
			r = open(t, o)
		}
		if err := os.Rename(s.bare+".gone", s.bare); err != nil {
			t.Fatal(err)
		}
		wantHead(t, r, s.push("site.yaml", "two"), "site.yaml", "two")
	})
}

// Links and submodules are in the tree, and not followed.
func TestKinds(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, s *site, o Options) {
		os.Symlink("/etc/passwd", filepath.Join(s.work, "link"))
		os.Symlink("sub", filepath.Join(s.work, "dirlink"))
		s.write("sub/run.sh", "#!/bin/sh", "sub/folder/x", "x")
		os.Chmod(filepath.Join(s.work, "sub/run.sh"), 0o755)
		s.git("update-index", "--add", "--cacheinfo", "160000,1111111111111111111111111111111111111111,module")
		s.git("add", "sub", "link", "dirlink")
		s.git("commit", "-q", "-m", "m")
		s.git("push", "-q", "origin", "main")
		_, d := newest(t, open(t, o))
		if want := s.git("rev-parse", "HEAD^{tree}"); d.Hash != want {
			t.Errorf("hash %s, want %s", d.Hash, want)
		}
		for at, want := range map[string]tree.File{"link": {Kind: tree.Symlink}, "dirlink": {Kind: tree.Symlink}, "module": {Kind: tree.Submodule}, "sub/run.sh": {Executable: true}} {
			if f := d.File(at); f == nil || f.Kind != want.Kind || f.Executable != want.Executable || (f.Read == nil) == (f.Kind == tree.Regular) {
				t.Errorf("%s: %+v", at, f)
			}
		}
		o.Cache = ""
		for path, want := range map[string]bool{"sub/folder": true, "sub/": true, "sub/nothing": false, "dirlink": false, "dirlink/folder": false, "module": false, "sub/run.sh": false} {
			o.Path = path
			r := open(t, o)
			commit, _ := r.Head(t.Context())
			sub, err := r.Tree(t.Context(), commit)
			if !want {
				wantFault(t, err, PathNotFound, "--path", filepath.Clean(path))
			} else if err != nil || sub.Hash != s.git("rev-parse", "HEAD:"+filepath.Clean(path)) {
				t.Error(path, err)
			}
		}
		for i := range 7 {
			s.git("push", "-q", "origin", fmt.Sprint("main:refs/heads/b", i))
		}
		o.Branch = "nothing"
		_, err := open(t, o).Head(t.Context())
		wantFault(t, err, BranchNotFound, "b0, b1, b2, b3, b4 and 3 more")
		_, err = open(t, o).Tree(t.Context(), "nothing")
		wantFault(t, err, RevisionNotFound)
	})
}

// Objects may lie in another repository, as with clone --shared.
func TestAlternates(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	commit := s.push("a", "one", "b/c", "two")
	shared := filepath.Join(t.TempDir(), "shared.git")
	run(t, ".", "git", "clone", "-q", "--bare", "--shared", s.bare, shared)
	wantHead(t, open(t, Options{URL: shared}), commit, "a", "one", "b/c", "two")
	os.RemoveAll(s.bare)
	r := open(t, Options{URL: shared})
	if _, err := r.Head(t.Context()); err == nil {
		_, err = r.Tree(t.Context(), commit)
		wantFault(t, err, RepositoryUnreachable, "fsck")
	}
}

// A newer commit does not wait for an older one that is given up.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.push("a", "one")
	git, reached := backend(t, filepath.Dir(s.bare)), make(chan struct{}, 8)
	stall := true
	url, ca := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if stall && r.Method == http.MethodPost {
			stall = false
			io.Copy(io.Discard, r.Body) // or the server does not see that the client is gone
			reached <- struct{}{}
			<-r.Context().Done()
			return
		}
		git.ServeHTTP(w, r)
	}))
	r := open(t, Options{URL: url + "/site.git", Credentials: Credentials{CA: ca}})
	ctx, cancel := context.WithCancelCause(t.Context())
	result := make(chan error)
	go func() {
		_, err := r.Tree(ctx, first)
		result <- err
	}()
	<-reached
	impatient, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := r.Tree(impatient, first); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	second := s.push("a", "two")
	if got, err := r.Head(t.Context()); err != nil || got != second {
		t.Error(got, err)
	}
	newer := errors.New("a newer commit came")
	cancel(newer)
	if err := <-result; !errors.Is(err, newer) || isFault(err) {
		t.Error(err)
	}
	wantHead(t, r, second, "a", "two")
}
