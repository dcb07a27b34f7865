package git

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

func generationOf(r Repository) *generation { return r.(*mirror).store.Load().current() }

// storeDir is the one store of a cache.
func storeDir(t *testing.T, cache string) string {
	t.Helper()
	dirs, _ := filepath.Glob(filepath.Join(cache, "*"))
	if len(dirs) != 1 {
		t.Fatalf("stores %q", dirs)
	}
	return dirs[0]
}

func listing(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Commits grow a generation until it has many packs. Then there is a fresh one.
func TestGenerations(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, s *site, o Options) {
		s.push("site.yaml", "0", "same/file", strings.Repeat("same", 1000))
		r := open(t, o)
		wantHead(t, r, "")
		for i := range 3 {
			wantHead(t, r, s.push("site.yaml", fmt.Sprint(i)), "site.yaml", fmt.Sprint(i))
		}
		g := generationOf(r)
		if g.name != "g1" || g.packs.Load() != 4 {
			t.Errorf("%s with %d packs", g.name, g.packs.Load())
		}
		_, early := newest(t, r)
		for i := range 2 {
			generationOf(r).packs.Store(maxPacks)
			wantHead(t, r, s.push("site.yaml", fmt.Sprint("again", i)), "site.yaml", fmt.Sprint("again", i), "same/file", strings.Repeat("same", 1000))
			if i == 0 {
				wantFiles(t, early, "site.yaml", "2")
			}
		}
		if g := generationOf(r); g.name != "g3" || g.packs.Load() != 1 {
			t.Errorf("%s with %d packs", g.name, g.packs.Load())
		}
		if o.Cache != "" {
			dir := storeDir(t, o.Cache)
			if got := listing(t, dir); !slices.Equal(got, []string{"g2", "g3", "good", "lock"}) {
				t.Error(got)
			}
			if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
				t.Error(info.Mode())
			}
		}
	})
}

func TestDamagedCache(t *testing.T) {
	t.Parallel()
	packs := func(dir, end string) string {
		found, _ := filepath.Glob(filepath.Join(dir, "g*", "objects", "pack", "*"+end))
		if len(found) != 1 {
			t.Fatalf("%d packs", len(found))
		}
		os.Chmod(found[0], 0o600)
		return found[0]
	}
	flip := func(at string, offset int64) {
		data, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		data[int64(len(data))*offset/100] ^= 0xff
		os.WriteFile(at, data, 0o600)
	}
	for name, damage := range map[string]func(dir string){
		"pack has an error": func(dir string) { flip(packs(dir, ".pack"), 50) },
		"pack is cut":       func(dir string) { os.Truncate(packs(dir, ".pack"), 1000) },
		"pack is empty":     func(dir string) { os.Truncate(packs(dir, ".pack"), 0) },
		"pack is gone":      func(dir string) { os.Remove(packs(dir, ".pack")) },
		"index is gone":     func(dir string) { os.Remove(packs(dir, ".idx")) },
		"index has an error": func(dir string) {
			flip(packs(dir, ".idx"), 60)
		},
		"good is nonsense": func(dir string) { write(t, dir+"/good", "nonsense") },
		"good leads out": func(dir string) {
			write(t, dir+"/good", strings.Repeat("1", 40)+" ../../../../etc")
		},
		"good is gone":       func(dir string) { os.Remove(dir + "/good") },
		"good is a folder":   func(dir string) { os.Remove(dir + "/good"); os.Mkdir(dir+"/good", 0o700) },
		"folders are gone":   func(dir string) { os.RemoveAll(dir + "/g1") },
		"folder is a file":   func(dir string) { os.RemoveAll(dir + "/g1"); write(t, dir+"/g1", "x") },
		"everything is gone": func(dir string) { os.RemoveAll(dir) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			o := Options{URL: s.bare, Cache: t.TempDir()}
			files := []string{}
			for i := range 50 {
				files = append(files, fmt.Sprintf("f/%d", i), strings.Repeat(fmt.Sprint("content ", i, "\n"), 30))
			}
			commit := s.push(files...)
			r := open(t, o)
			wantHead(t, r, commit)
			r.Close()
			damage(storeDir(t, o.Cache))
			r, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, ok := r.LastGood(); ok { // damage to a file shows when it is read
				if name != "pack has an error" {
					t.Error("still there")
				}
				_, d := newest(t, r)
				err := d.Walk(func(_ string, f *tree.File) error { _, err := f.Read(); return err })
				wantFault(t, err, CacheFailed)
			}
			wantHead(t, r, commit, files...)
		})
	}
}

// Damage done while the store is open shows when a file is read.
func TestDamagedWhileOpen(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.push("a", "one", "same/b", "two")
	r := open(t, Options{URL: s.bare})
	wantHead(t, r, "")
	generationOf(r).objects = openGeneration("", "other", Limits{}).objects
	commit := s.push("a", "three")
	_, d := newest(t, r)
	_, err := d.File("same/b").Read()
	wantFault(t, err, CacheFailed, "again")
	wantHead(t, r, commit, "a", "three", "same/b", "two")

	o := Options{URL: s.bare, Cache: t.TempDir()}
	r = open(t, o)
	wantHead(t, r, commit)
	os.RemoveAll(o.Cache)
	wantHead(t, r, s.push("a", "four"), "a", "four", "same/b", "two")
}

// A dry run beside the daemon has the same cache.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.push("a", "one")
	o := Options{URL: s.bare, Cache: t.TempDir()}
	daemon, other := open(t, o), open(t, o)
	wantHead(t, daemon, first, "a", "one")
	wantHead(t, other, first, "a", "one")
	second := s.push("a", "two")
	wantHead(t, other, second, "a", "two")
	if commit, _ := daemon.LastGood(); commit != first {
		t.Errorf("the daemon has %s", commit)
	}
	daemon.Close()
	third := s.push("a", "three")
	wantHead(t, other, third, "a", "three")
	other.Close()
	if commit, _ := open(t, o).LastGood(); commit != third {
		t.Errorf("the cache has %s", commit)
	}
}

// TestKilled kills a process in the middle of its second fetch.
func TestKilled(t *testing.T) {
	if cache := os.Getenv("KINGMAKER_TEST_FETCH"); cache != "" {
		r, err := Open(Options{URL: os.Getenv("KINGMAKER_TEST_URL"), Cache: cache})
		if err != nil {
			t.Fatal(err)
		}
		commit, err := r.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.Tree(t.Context(), commit)
		return
	}
	t.Parallel()
	s := newSite(t)
	first := s.push("a", "one")
	git, reached, stall := backend(t, filepath.Dir(s.bare)), make(chan struct{}, 8), false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !stall || r.Method != http.MethodPost {
			git.ServeHTTP(w, r)
			return
		}
		recorder := httptest.NewRecorder()
		git.ServeHTTP(recorder, r)
		w.Header().Set("Content-Type", recorder.Header().Get("Content-Type"))
		w.Write(recorder.Body.Bytes()[:recorder.Body.Len()-50])
		w.(http.Flusher).Flush()
		reached <- struct{}{}
		<-r.Context().Done()
	}))
	defer server.Close()
	o := Options{URL: server.URL + "/site.git", Cache: t.TempDir()}
	r := open(t, o)
	wantHead(t, r, first)
	r.Close()
	stall = true
	second := s.push("a", "two", "b", strings.Repeat("x", 10_000))
	child := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	child.Env = append(os.Environ(), "KINGMAKER_TEST_FETCH="+o.Cache, "KINGMAKER_TEST_URL="+o.URL)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Process.Kill(); child.Wait() })
	<-reached
	g := filepath.Join(storeDir(t, o.Cache), "g1")
	eventually(t, "an incoming pack", func() bool { found, _ := filepath.Glob(g + "/objects/" + incoming + "*"); return len(found) > 0 })
	child.Process.Kill()
	child.Wait()
	os.MkdirAll(filepath.Join(filepath.Dir(g), "g7", "objects"), 0o700) // as one killed while it fetches aside leaves it
	r = open(t, o)
	if commit, ok := r.LastGood(); !ok || commit != first {
		t.Fatalf("last good %s, %v", commit, ok)
	}
	stall = false
	wantHead(t, r, second, "a", "two")
	for _, at := range []string{g, g + "/objects", filepath.Dir(g)} {
		for _, name := range listing(t, at) {
			if strings.HasPrefix(name, "tmp_") || name == "g7" {
				t.Errorf("%s is left", name)
			}
		}
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("cannot mount a small disk: ", err)
	}
	t.Cleanup(func() { syscall.Unmount(small, syscall.MNT_DETACH) })
	s := newSite(t)
	first := s.push("a", "one")
	random := make([]byte, 1<<20)
	for i := range random {
		random[i] = byte(i * i >> 3 * i)
	}
	o := Options{URL: s.bare, Cache: filepath.Join(small, "cache")}
	r := open(t, o)
	wantHead(t, r, first)
	noise := exec.Command("head", "-c", "400000", "/dev/urandom")
	large, _ := noise.Output()
	second := s.push("large", string(large))
	_, err := r.Tree(t.Context(), second)
	wantFault(t, err, CacheFailed, "no space", "--cache")
	if commit, ok := r.LastGood(); !ok || commit != first {
		t.Errorf("last good %s, %v", commit, ok)
	}
	os.Remove(filepath.Join(s.work, "large"))
	third := s.push("a", "three")
	wantHead(t, r, third, "a", "three")
	r.Close()
	r = open(t, o)
	if commit, ok := r.LastGood(); !ok || commit != third {
		t.Errorf("last good %s, %v", commit, ok)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	small := Limits{Bytes: 200_000, FileBytes: 50_000, Files: 100, Depth: 20, Refs: 50}
	large, _ := exec.Command("head", "-c", "60000", "/dev/urandom").Output()
	for name, test := range map[string]struct {
		prepare func(s *site)
		words   string
	}{
		"large file":                 {func(s *site) { s.push("large.bin", string(large)) }, ""},
		"large file that packs well": {func(s *site) { s.push("large.txt", strings.Repeat("x", 10_000_000)) }, ""},
		"many files": {func(s *site) {
			for i := range 101 {
				s.write(fmt.Sprintf("f/%d/x", i), fmt.Sprint(i))
			}
			s.push()
		}, ""},
		"one folder in many places": {func(s *site) {
			s.write("f", "x")
			s.git("add", "-A")
			tree := s.git("write-tree")
			for range 12 { // 10^12 files
				entries := ""
				for i := range 10 {
					entries += fmt.Sprintf("040000 tree %s\td%d\n", tree, i)
				}
				tree = s.mktree(entries)
			}
			s.pushTree(tree)
		}, "files"},
		"deep folders": {func(s *site) { s.deep(4096) }, ""},
		"all together": {func(s *site) {
			for i := range 9 {
				s.write(fmt.Sprint(i), fmt.Sprint(i)+strings.Repeat("x", 30_000))
			}
			s.push()
		}, "together"},
		"large pack": {func(s *site) {
			for i := range 9 {
				s.write(fmt.Sprint(i), fmt.Sprint(i)+string(large[:40_000-i]))
			}
			s.push()
		}, ""},
		"many refs": {func(s *site) {
			commit := s.push("a", "one")
			var packed strings.Builder
			packed.WriteString("# pack-refs with: peeled fully-peeled sorted \n")
			for i := range 100 {
				fmt.Fprintf(&packed, "%s refs/heads/b%03d\n", commit, i)
			}
			write(s.t, s.bare+"/packed-refs", packed.String())
		}, "branches"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			good := s.push("site.yaml", "one")
			test.prepare(s)
			bad := run(t, s.bare, "git", "rev-parse", "main")
			point := func(to string) { write(t, s.bare+"/refs/heads/main", to+"\n") }
			for way, o := range ways(t, s.bare) {
				if name == "many refs" && (way == "path" || way == "file") {
					continue // which do not list them
				}
				o.Limits = small
				r := open(t, o)
				if name != "many refs" {
					point(good)
					wantHead(t, r, good, "site.yaml", "one")
					point(bad)
				}
				commit, err := r.Head(t.Context())
				if err == nil {
					_, err = r.Tree(t.Context(), commit)
				}
				if err == nil {
					t.Fatalf("%s: no error", way)
				}
				wantFault(t, err, TooLarge, test.words)
				if commit, ok := r.LastGood(); name != "many refs" && (!ok || commit != good) {
					t.Errorf("%s: last good %s, %v", way, commit, ok)
				}
				if _, again := r.Tree(t.Context(), bad); name != "many refs" && again != err {
					t.Errorf("%s: then %v", way, again)
				}
			}
		})
	}
}

// mktree makes a tree that git add would not.
func (s *site) mktree(entries string) string {
	s.t.Helper()
	c := exec.Command("git", "mktree")
	c.Dir, c.Stdin = s.work, strings.NewReader(entries)
	out, err := c.Output()
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func (s *site) pushTree(tree string) string {
	s.t.Helper()
	commit := s.git("commit-tree", "-m", "m", tree)
	s.git("-c", "push.negotiate=false", "push", "-q", "-f", "origin", commit+":refs/heads/main")
	return commit
}

// deep pushes a file below so many folders.
func (s *site) deep(depth int) {
	s.t.Helper()
	c := exec.Command("git", "fast-import", "--quiet", "--force")
	c.Dir = s.bare
	c.Stdin = strings.NewReader("commit refs/heads/main\ncommitter T <t@example.org> 0 +0000\ndata 1\nm\nM 644 inline " + strings.Repeat("a/", depth) + "f\ndata 1\nx\n")
	if out, err := c.CombinedOutput(); err != nil {
		s.t.Fatalf("%v %s", err, out)
	}
}

// Trees with names that would leave a folder, or hide something.
func TestInvalidTrees(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, s *site, o Options) {
		good := s.push("site.yaml", "one")
		blob, _ := fullHash(s.git("rev-parse", "HEAD:site.yaml"))
		r := open(t, o)
		wantHead(t, r, good)
		for _, entries := range [][]string{{".."}, {"."}, {".git"}, {".GIT"}, {"a/b"}, {"a", "a"}, {"../../etc/x"}} {
			var content []byte
			for _, name := range entries {
				content = append(append(content, "100644 "+name+"\x00"...), blob[:]...)
			}
			c := exec.Command("git", "hash-object", "-w", "--stdin", "-t", "tree", "--literally")
			c.Dir, c.Stdin = s.bare, bytes.NewReader(content)
			tree, err := c.Output()
			if err != nil {
				t.Fatal(err)
			}
			commit := run(t, s.bare, "git", "commit-tree", "-m", "m", strings.TrimSpace(string(tree)))
			run(t, s.bare, "git", "update-ref", "refs/heads/main", commit)
			_, err = r.Tree(t.Context(), commit)
			wantFault(t, err, TreeInvalid)
			run(t, s.bare, "git", "update-ref", "refs/heads/main", good)
		}
		wantHead(t, r, good, "site.yaml", "one")
	})
}

// entry is one object of a pack, as a hostile server would write it.
func entry(kind byte, declared uint64, base, content []byte) []byte {
	b := kind<<4 | byte(declared&15)
	declared >>= 4
	var out []byte
	for ; declared > 0; declared >>= 7 {
		out = append(out, b|0x80)
		b = byte(declared & 127)
	}
	out = append(append(out, b), base...)
	var packed bytes.Buffer
	w := zlib.NewWriter(&packed)
	w.Write(content)
	w.Close()
	return append(out, packed.Bytes()...)
}

func packOf(count uint32, entries ...[]byte) []byte {
	out := binary.BigEndian.AppendUint32([]byte("PACK\x00\x00\x00\x02"), count)
	out = append(out, bytes.Join(entries, nil)...)
	sum := sha1.Sum(out)
	return append(out, sum[:]...)
}

func TestHostilePacks(t *testing.T) {
	t.Parallel()
	limits := Limits{Bytes: 1 << 20, FileBytes: 1 << 16, Files: 100}.withDefaults()
	good := entry(3, 5, nil, []byte("hello"))
	base := sha1.Sum([]byte("blob 5\x00hello"))
	delta := func(source, target uint64, rest ...byte) []byte {
		d := binary.AppendUvarint(binary.AppendUvarint(nil, source), target)
		return append(d, rest...)
	}
	deltaEntry := func(d []byte) []byte { return entry(7, uint64(len(d)), base[:], d) }
	for name, test := range map[string]struct {
		pack  []byte
		large bool
	}{
		"size that is declared":        {packOf(1, entry(3, 1<<40, nil, []byte("x"))), true},
		"size beyond int64":            {packOf(1, entry(3, 1<<63+5, nil, []byte("x"))), false},
		"size that is not declared":    {packOf(1, entry(3, 10, nil, make([]byte, 1<<24))), false},
		"delta that makes a terabyte":  {packOf(2, good, deltaEntry(delta(5, 1<<40, 0x90, 5))), true},
		"delta beyond int64":           {packOf(2, good, deltaEntry(delta(5, 1<<63, 0x90, 5))), true},
		"delta without an end":         {packOf(2, good, deltaEntry(bytes.Repeat([]byte{0xff}, 30))), true},
		"empty delta":                  {packOf(2, good, deltaEntry(nil)), true},
		"delta that lies":              {packOf(2, good, deltaEntry(delta(5, 7, 0x90, 5))), false},
		"delta of nothing":             {packOf(1, deltaEntry(delta(5, 5, 0x90, 5))), false},
		"count of objects":             {packOf(1<<31, good), true},
		"fewer objects than counted":   {packOf(3, good), false},
		"no objects":                   {packOf(0), false},
		"no pack":                      {[]byte("hello"), false},
		"nothing":                      {nil, false},
		"cut":                          {packOf(1, good)[:20], false},
		"wrong checksum":               {append(packOf(1, good)[:12+len(good)], make([]byte, 20)...), false},
		"kind that does not exist":     {packOf(1, entry(5, 5, nil, []byte("hello"))), false},
		"many that are large together": {packOf(300, slices.Repeat([][]byte{entry(3, 1<<15, nil, make([]byte, 1<<15))}, 300)...), true},
		"pack beyond the limit":        {make([]byte, 1<<21), true},
	} {
		for _, dir := range []string{"", t.TempDir()} {
			t.Run(fmt.Sprint(name, dir != ""), func(t *testing.T) {
				g := openGeneration(dir, "g1", limits)
				defer g.close()
				err := g.add(t.Context(), func(w io.Writer) error { _, err := w.Write(test.pack); return err })
				if name == "no objects" {
					return // which is for the builder to find
				}
				if err == nil {
					t.Fatal("taken in")
				}
				if isFaultOf(err, TooLarge) != test.large {
					t.Error(err)
				}
				t.Log(err)
				if dir != "" {
					if left, _ := filepath.Glob(dir + "/g1/objects/pack/*"); len(left) > 0 {
						t.Errorf("left: %q", left)
					}
				}
				// It goes on working.
				if err := g.add(t.Context(), func(w io.Writer) error { _, err := w.Write(packOf(1, good)); return err }); err != nil {
					t.Error(err)
				}
				hash, _ := fullHash(fmt.Sprintf("%x", base))
				if content, err := g.reader(hash)(); string(content) != "hello" {
					t.Errorf("%q, %v", content, err)
				}
			})
		}
	}
}

// A server that cannot make shallow clones sends all history.
func TestServerWithoutShallow(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.push("a", "one")
	git := backend(t, filepath.Dir(s.bare))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recorder := httptest.NewRecorder()
		git.ServeHTTP(recorder, r)
		for key, values := range recorder.Header() {
			w.Header()[key] = values
		}
		w.WriteHeader(recorder.Code)
		w.Write(bytes.Replace(recorder.Body.Bytes(), []byte(" shallow "), []byte(" shallox "), 1))
	}))
	defer server.Close()
	r := open(t, Options{URL: server.URL + "/site.git"})
	wantHead(t, r, s.push("a", "two"), "a", "two")
	wantHead(t, r, s.push("a", "three"), "a", "three")
}

// Repacking and pruning go on while the repository is read.
func TestConcurrentRepack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for i := range 300 {
		s.write(fmt.Sprintf("d%d/f%d", i%10, i), strings.Repeat(fmt.Sprint(i), 100))
	}
	s.push()
	// Git's own push fails when a folder of objects goes while it writes into it.
	var pushing sync.Mutex
	stop, done := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-done }()
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				pushing.Lock()
				exec.Command("git", "-C", s.bare, "repack", "-a", "-d", "-f", "-q").Run()
				exec.Command("git", "-C", s.bare, "pack-refs", "--all").Run()
				pushing.Unlock()
			}
		}
	}()
	for i := range 6 {
		r := open(t, Options{URL: s.bare})
		pushing.Lock()
		head := s.push("a", fmt.Sprint(i))
		pushing.Unlock()
		wantHead(t, r, head, "a", fmt.Sprint(i))
	}
}
