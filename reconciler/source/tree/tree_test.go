package tree

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// TestHashesAreGits compares with git itself, over all that a tree can hold.
func TestHashesAreGits(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git here")
	}
	dir := t.TempDir()
	write := func(at, content string, mode fs.FileMode) {
		t.Helper()
		at = filepath.Join(dir, at)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("a.txt", "one", 0o644)
	write("a/b", "two", 0o644) // sorted as "a/", after "a.txt"
	write("a-b/c", "three", 0o755)
	write("deep/er/still", "", 0o644)
	os.Mkdir(filepath.Join(dir, "empty"), 0o755)
	if err := os.Symlink("a.txt", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	d, err := FromFS(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	git := exec.Command("sh", "-c", "git init -q && git add -A && git write-tree")
	git.Dir = dir
	git.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := git.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if want := strings.TrimSpace(string(out)); d.Hash != want {
		t.Errorf("hash %s, git says %s", d.Hash, want)
	}
	if f := d.File("link"); f == nil || f.Kind != Symlink || f.Read != nil {
		t.Errorf("link: %+v", f)
	}
}

func TestSealKeepsWhatIsThere(t *testing.T) {
	d := &Dir{Hash: "given"}
	if d.Seal().Hash != "given" {
		t.Error("Seal replaced a hash")
	}
	empty, err := FromFS(fstest.MapFS{})
	if err != nil || empty.Hash != emptyTree {
		t.Errorf("empty: %v, %v", empty, err)
	}
}
