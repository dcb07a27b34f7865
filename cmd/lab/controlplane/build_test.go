package controlplane

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fakeGo puts a script in the place of go. The script gets the arguments of go,
// and $LOG names a file that it may write to.
func fakeGo(t *testing.T, script string) (log string) {
	t.Helper()
	bin := t.TempDir()
	log = filepath.Join(bin, "log")
	script = "#!/bin/sh\nset -e\nif [ \"$1\" = env ]; then echo go1.2.3; exit; fi\n" + script
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("LOG", log)
	t.Setenv("KINGMAKER_CACHE", t.TempDir())
	return log
}

// touchOutput is what "go build" leaves: the file after -o.
const touchOutput = `while [ "$1" != -o ]; do shift; done; echo "$2" >>"$LOG"; touch "$2"` + "\n"

func TestBuildOnce(t *testing.T) {
	log := fakeGo(t, touchOutput)
	var dirs [3]string
	var wg sync.WaitGroup
	for i := range dirs { // flock is by open file, so goroutines stand for processes
		wg.Go(func() {
			dir, err := Build(t.Context(), nil)
			if err != nil {
				t.Error(err)
			}
			dirs[i] = dir
		})
	}
	wg.Wait()
	built, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(built, []byte("\n")); n != len(programs()) {
		t.Errorf("%d programs were built, want %d:\n%s", n, len(programs()), built)
	}
	dir := dirs[0]
	if dirs != [3]string{dir, dir, dir} {
		t.Errorf("not one folder: %q", dirs)
	}
	if name := filepath.Base(dir); !strings.Contains(name, "kubernetes-v1.") || !strings.Contains(name, "_etcd-v3.") || !strings.Contains(name, "_go1.2.3_") {
		t.Errorf("the folder's name does not tell the versions: %s", name)
	}

	// A program that someone deleted is built again.
	if err := os.Remove(filepath.Join(dir, "kubectl")); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), nil); err != nil || !complete(dir) {
		t.Errorf("not mended: %v", err)
	}
}

func TestBuildFails(t *testing.T) {
	fakeGo(t, `case "$*" in *kube-scheduler*) echo main.go:1: no such thing; exit 1;; esac`+"\n"+touchOutput)
	_, err := Build(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "build the control plane: kube-scheduler: exit status 1\n\tmain.go:1: no such thing") {
		t.Errorf("error: %v", err)
	}
	onlyLockIn(t, os.Getenv("KINGMAKER_CACHE"))
}

func TestBuildCancelled(t *testing.T) {
	fakeGo(t, `exec sleep 1000`)
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	_, err := Build(ctx, writer(func(line string) {
		if strings.HasPrefix(line, "building ") {
			cancel(enough)
		}
	}))
	if !errors.Is(err, enough) {
		t.Errorf("error: %v", err)
	}
	onlyLockIn(t, os.Getenv("KINGMAKER_CACHE"))
}

func TestBuildOutsideCheckout(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, err := Build(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "not inside a checkout of "+rootModule) {
		t.Errorf("error: %v", err)
	}
}

// TestRecipe reads the modules as they are.
func TestRecipe(t *testing.T) {
	src, err := sources()
	if err != nil {
		t.Fatal(err)
	}
	r, err := readRecipe(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	args := buildArgs(r, program{module: "kubernetes"})
	if link := args[len(args)-1]; !slices.Contains(strings.Fields(link), "k8s.io/component-base/version.gitVersion="+r.kubernetes) {
		t.Errorf("the version is not linked in: %s", link)
	}
	other := r
	other.sum = "0"
	if r.key() == other.key() {
		t.Error("the key does not tell the modules apart")
	}
}

func onlyLockIn(t *testing.T, cache string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(cache, "controlplane"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "lock" {
		t.Errorf("left in the cache: %v %v", entries, err)
	}
}

// writer is an io.Writer that is a function.
type writer func(string)

func (w writer) Write(b []byte) (int, error) {
	w(string(b))
	return len(b), nil
}
