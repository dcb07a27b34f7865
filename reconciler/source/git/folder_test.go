package git

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

func TestWorkingFolder(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.push("site.yaml", "one", "machines/pc-01.yaml", "pc", "run.sh", "#!/bin/sh", "deep/er/x", "x")
	os.Chmod(filepath.Join(s.work, "run.sh"), 0o755)
	os.Symlink("site.yaml", filepath.Join(s.work, "link"))
	os.Symlink("/etc", filepath.Join(s.work, "etc"))
	s.commit()
	// Neither saved for good nor a part of the site.
	s.write("site.yaml~", "x", ".site.yaml.swp", "x", "#site.yaml#", "x", "4913", "x", ".goutputstream-ABC", "x")
	os.Symlink("user@host.1", filepath.Join(s.work, ".#site.yaml"))
	os.Mkdir(filepath.Join(s.work, "empty"), 0o755)

	r := open(t, Options{URL: s.work})
	commit, d := newest(t, r)
	if want := s.git("rev-parse", "HEAD^{tree}"); d.Hash != want || commit != "dir-"+want[:12] {
		t.Errorf("%s with tree %s, git says %s", commit, d.Hash, want)
	}
	if d.Files["link"].Kind != tree.Symlink || d.Files["etc"].Kind != tree.Symlink || d.Files["link"].Read != nil {
		t.Errorf("%+v", d.Files["link"])
	}
	wantFiles(t, d, "site.yaml", "one", "machines/pc-01.yaml", "pc")

	// What is saved counts, not what is committed. Same size, same moment.
	for i := range 20 {
		s.write("site.yaml", fmt.Sprintf("%03d", i))
		wantHead(t, r, "", "site.yaml", fmt.Sprintf("%03d", i), "machines/pc-01.yaml", "pc")
	}
	last, d := newest(t, r)
	s.write("site.yaml", "xxx")
	_, err := d.File("site.yaml").Read()
	wantFault(t, err, FolderChanged, "next look")
	os.Remove(filepath.Join(s.work, "site.yaml"))
	_, err = d.File("site.yaml").Read()
	wantFault(t, err, FolderChanged)
	if again, err := open(t, Options{URL: s.work}).Tree(t.Context(), func() string { c, _ := newest(t, r); return c }()); err != nil {
		t.Error(again, err)
	}
	_, err = r.Tree(t.Context(), "dir-000000000000")
	wantFault(t, err, FolderChanged)
	if kept, err := r.Tree(t.Context(), last); err != nil || kept != d {
		t.Error("the snapshot is not kept", err)
	}

	// A repository in the repository, and things that are no files.
	run(t, s.work, "git", "init", "-q", "nested")
	s.write("nested/x.yaml", "x")
	if err := syscall.Mkfifo(filepath.Join(s.work, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, d = newest(t, r)
	if f := d.File("nested"); f == nil || f.Kind != tree.Submodule || d.Dirs["nested"] != nil {
		t.Errorf("nested: %+v", f)
	}
	if f := d.File("pipe"); f == nil || f.Kind != tree.Irregular {
		t.Errorf("pipe: %+v", f)
	}

	for path, want := range map[string]bool{"deep": true, "deep/er/": true, "nothing": false, "etc": false, "deep/er/x": false, "link": false} {
		r := open(t, Options{URL: s.work, Path: path})
		_, err := r.Head(t.Context())
		if want && err != nil {
			t.Error(err)
		} else if !want {
			wantFault(t, err, PathNotFound, "--path")
		}
	}
	wantHead(t, open(t, Options{URL: s.work, Path: "deep/er"}), "", "x", "x")

	for _, l := range []Limits{{Files: 3}, {Bytes: 5}, {Depth: 1}} {
		_, err := open(t, Options{URL: s.work, Limits: l}).Head(t.Context())
		wantFault(t, err, TooLarge)
	}
	// A large file is in the way of those only who read it.
	large := open(t, Options{URL: s.work, Limits: Limits{FileBytes: 2}})
	commit, err = large.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	root, err := large.Tree(t.Context(), commit)
	if err != nil {
		t.Fatal(err)
	}
	_, err = root.File("run.sh").Read()
	wantFault(t, err, TooLarge)
	os.RemoveAll(s.work)
	_, err = r.Head(t.Context())
	wantFault(t, err, RepositoryUnreachable, "no such file")
}

// A file is read once, as long as its stamp stays.
func TestFolderKeepsHashes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/a", "one")
	d := open(t, Options{URL: dir}).(*folder)
	newest(t, d)
	if d.known["a"].changed != 0 {
		t.Error("the stamp of a moment ago is trusted")
	}
	var info unix.Stat_t
	unix.Lstat(dir+"/a", &info)
	planted := hashed{stampOf(&info), tree.HashBlob([]byte("planted"))}
	d.known["a"] = planted
	if commit, _ := d.Head(t.Context()); commit == "" || d.known["a"] != planted {
		t.Error("the file was read again")
	}
	write(t, dir+"/a", "two")
	wantHead(t, d, "", "a", "two")
}

// Whatever happens to a folder while it is read, no file of elsewhere gets in.
func TestFolderRaces(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	write(t, outside+"/secret/x", canary)
	write(t, dir+"/real/x", "x")
	r := open(t, Options{URL: dir})
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			at := dir + "/d"
			switch i % 5 {
			case 0:
				os.MkdirAll(at, 0o755)
				os.WriteFile(at+"/x", []byte(fmt.Sprint(i)), 0o644)
			case 1:
				os.Rename(at, dir+"/e")
				os.Symlink(outside+"/secret", at)
			case 2:
				os.Remove(at)
				os.WriteFile(at, []byte("file"), 0o644)
			case 3:
				os.Remove(at)
				syscall.Mkfifo(at, 0o644)
			case 4:
				os.Remove(at)
				os.RemoveAll(dir + "/e")
			}
		}
	})
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		commit, err := r.Head(t.Context())
		if err != nil {
			if !isFault(err) {
				t.Error(err)
			}
			continue
		}
		d, err := r.Tree(t.Context(), commit)
		if err != nil {
			continue
		}
		d.Walk(func(at string, f *tree.File) error {
			if f.Kind != tree.Regular {
				return nil
			}
			content, err := f.Read()
			if strings.Contains(string(content), canary) {
				t.Errorf("%s leads out", at)
			}
			if err == nil && tree.HashBlob(content) != f.Hash {
				t.Errorf("%s is not what was hashed", at)
			}
			if err != nil && !isFault(err) {
				if info, _ := os.Lstat(dir + "/" + at); info == nil || info.Mode().IsRegular() {
					t.Log(err)
				}
			}
			return nil
		})
	}
	close(stop)
	group.Wait()
}

// signal waits for a signal of a watch.
func signal(t *testing.T, what string, c <-chan struct{}) time.Duration {
	t.Helper()
	start := time.Now()
	select {
	case <-c:
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: no signal", what)
	}
	return time.Since(start)
}

func silence(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
		t.Errorf("%s: a signal", what)
	case <-time.After(3 * quiet):
	}
}

func TestWatchFolder(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.push("site.yaml", "one", "machines/pc-01.yaml", "pc")
	r := open(t, Options{URL: s.work})
	ctx, cancel := context.WithCancel(t.Context())
	c, err := r.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(s.work, name) }
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"a file is saved", func() { s.write("site.yaml", "two") }},
		{"a file is saved below", func() { s.write("machines/pc-01.yaml", "two") }},
		{"a file is saved as editors do", func() { s.write("site.yaml~", "x"); os.Rename(at("site.yaml~"), at("site.yaml")) }},
		{"a folder is made", func() { s.write("new/er/x.yaml", "x") }},
		{"a file is saved in it", func() { s.write("new/er/x.yaml", "y") }},
		{"a folder is renamed", func() { os.Rename(at("new"), at("renamed")) }},
		{"a file is saved in that", func() { s.write("renamed/er/x.yaml", "z") }},
		{"a folder is removed", func() { os.RemoveAll(at("renamed")) }},
		{"a file is made executable", func() { os.Chmod(at("site.yaml"), 0o755) }},
	} {
		step.do()
		if d := signal(t, step.what, c); d > time.Second {
			t.Errorf("%s: a signal after %s", step.what, d)
		}
		for drained := false; !drained; { // what is left of the step
			select {
			case <-c:
			case <-time.After(3 * quiet):
				drained = true
			}
		}
	}
	s.write(".site.yaml.swp", "x", "site.yaml~", "x", ".git/x.lock", "x")
	s.git("add", "-A")
	silence(t, "nothing that matters", c)

	// Writes without an end do not keep the signal back.
	stop := time.After(1500 * time.Millisecond)
	signals := 0
	for writing := true; writing; {
		select {
		case <-stop:
			writing = false
		case <-c:
			signals++
		default:
			s.write("site.yaml", fmt.Sprint(time.Now()))
		}
	}
	if signals < 1 || signals > 4 {
		t.Errorf("%d signals", signals)
	}
	signal(t, "the last write", c)

	// The folder is put in the place of another one.
	os.Rename(s.work, s.work+".old")
	run(t, ".", "git", "clone", "-q", s.bare, s.work)
	signal(t, "a new folder", c)
	eventually(t, "a watch on it", func() bool {
		s.write("site.yaml", fmt.Sprint(time.Now()))
		select {
		case <-c:
			return true
		case <-time.After(2 * quiet):
			return false
		}
	})
	cancel()
	eventually(t, "the end", func() bool {
		select {
		case _, ok := <-c:
			return !ok
		default:
			return false
		}
	})
}

func TestWatchRefs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, url := range []string{s.bare, "file://" + s.bare, "file://" + s.work} {
		r := open(t, Options{URL: url})
		c, err := r.Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		move := func() {
			if strings.HasSuffix(url, s.work) {
				s.commit("site.yaml", fmt.Sprint(time.Now()))
			} else {
				s.push("site.yaml", fmt.Sprint(time.Now()))
			}
		}
		for _, what := range []string{"first push", "second push"} {
			move()
			if d := signal(t, what, c); d > time.Second {
				t.Errorf("%s: a signal after %s", what, d)
			}
			eventually(t, "the commit", func() bool { got, err := r.Head(t.Context()); return err == nil && got == s.git("rev-parse", "HEAD") })
		}
		dir := s.bare
		if strings.HasSuffix(url, s.work) {
			dir = s.work
		}
		run(t, dir, "git", "pack-refs", "--all")
		signal(t, "packed refs", c)
		move()
		signal(t, "a push after that", c)
		run(t, dir, "git", "update-ref", "refs/heads/a/b/c/d", "HEAD")
		signal(t, "a branch in new folders", c)
	}
	c, err := open(t, Options{URL: "https://git.school.example/x"}).Watch(t.Context())
	if c != nil || err != nil {
		t.Errorf("a server is watched: %v, %v", c, err)
	}
	nothing := filepath.Join(t.TempDir(), "later.git")
	c, err = open(t, Options{URL: nothing}).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	run(t, ".", "git", "clone", "-q", "--bare", s.bare, nothing)
	signal(t, "a repository that comes later", c)
}

// Where the kernel does not tell, the folder is looked at.
func TestWatchLimit(t *testing.T) {
	t.Parallel()
	all := func(string) bool { return true }
	c, err := watch(t.Context(), func() (*fsnotify.Watcher, error) { return nil, os.NewSyscallError("inotify_init1", syscall.EMFILE) }, t.TempDir(), all, all)
	wantFault(t, err, WatchLimited, "max_user_watches")
	signal(t, "a look", c)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("x"))
	if _, err := watchFolder(ctx, t.TempDir()); err != nil {
		t.Error(err)
	}
}
