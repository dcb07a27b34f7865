package controlplane

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rootModule is the module whose checkout holds the nested modules. They cannot
// be embedded: go:embed does not reach into another module.
const rootModule = "github.com/kingmaker-io/kingmaker"

// A program is one binary: what it is called, and which package of which nested
// module it is built from.
type program struct{ name, module, pkg string }

// programs lists what Build builds, the quick ones first: a broken tool chain
// then shows within seconds.
func programs() []program {
	return []program{
		{"etcd", "etcd", "go.etcd.io/etcd/server/v3"},
		{"etcdctl", "etcd", "go.etcd.io/etcd/etcdctl/v3"},
		{"etcdutl", "etcd", "go.etcd.io/etcd/etcdutl/v3"},
		{"kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"},
		{"kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"},
		{"kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"},
		{"kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl"},
	}
}

// Build returns the folder that holds the control plane's programs and kubectl,
// and builds them first where it does not exist yet. That takes minutes, of which
// progress (nil is quiet) is told. The folder is below $KINGMAKER_CACHE, or
// kingmaker in the user's cache folder: outside the checkout, so that a fresh
// clone finds it again. Its name says what the programs depend on.
//
// Build reads the nested modules, so it runs inside a checkout of kingmaker. Any
// number of processes may call it at once; one builds and the others wait.
func Build(ctx context.Context, progress io.Writer) (dir string, err error) {
	src, err := sources()
	if err != nil {
		return "", fmt.Errorf("build the control plane: %w", err)
	}
	r, err := readRecipe(ctx, src)
	if err != nil {
		return "", fmt.Errorf("build the control plane: %w", err)
	}
	cache, err := cacheDir()
	if err != nil {
		return "", fmt.Errorf("build the control plane: %w", err)
	}
	if progress == nil {
		progress = io.Discard
	}
	dir = filepath.Join(cache, r.key())
	if err := r.build(ctx, src, dir, progress); err != nil {
		return "", fmt.Errorf("build the control plane: %w", err)
	}
	return dir, nil
}

// sources finds the checkout around the working directory: "go run" and "go test"
// are started inside it. The path of this very file would be no help, for
// -trimpath removes it.
func sources() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	line := regexp.MustCompile(`(?m)^module ` + regexp.QuoteMeta(rootModule) + `$`)
	for dir := wd; ; dir = filepath.Dir(dir) {
		if mod, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && line.Match(mod) {
			return filepath.Join(dir, "cmd", "lab", "controlplane"), nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside a checkout of %s, which holds the modules to build", wd, rootModule)
		}
	}
}

func cacheDir() (string, error) {
	cache := os.Getenv("KINGMAKER_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache folder (KINGMAKER_CACHE names another): %w", err)
		}
		cache = filepath.Join(user, "kingmaker")
	}
	return filepath.Abs(filepath.Join(cache, "controlplane"))
}

// A recipe is everything that the built programs depend on.
type recipe struct {
	kubernetes, etcd string // versions, such as v1.36.3
	compiler         string // such as go1.26.0
	sum              string // hash of the nested modules' files and of the flags
}

func readRecipe(ctx context.Context, src string) (recipe, error) {
	var r recipe
	hash := sha256.New()
	for _, m := range []struct {
		name, path string
		version    *string
	}{
		{"kubernetes", "k8s.io/kubernetes", &r.kubernetes},
		{"etcd", "go.etcd.io/etcd/server/v3", &r.etcd},
	} {
		for _, name := range []string{"go.mod", "go.sum"} {
			file := filepath.Join(src, m.name, name)
			text, err := os.ReadFile(file)
			if err != nil {
				return recipe{}, err
			}
			fmt.Fprintf(hash, "%s/%s %d\n%s", m.name, name, len(text), text)
			if name == "go.mod" {
				found := regexp.MustCompile(`(?m)^(?:require)?\s*` + regexp.QuoteMeta(m.path) + ` (v[0-9]\S*)`).FindSubmatch(text)
				if found == nil {
					return recipe{}, fmt.Errorf("%s does not require %s", file, m.path)
				}
				*m.version = string(found[1])
			}
		}
	}
	for _, p := range programs() {
		fmt.Fprintln(hash, p, buildArgs(r, p))
	}
	r.sum = fmt.Sprintf("%x", hash.Sum(nil))[:12]

	// A go.mod may select another tool chain than the one that built this program.
	out, err := goCommand(ctx, filepath.Join(src, "kubernetes"), "env", "GOVERSION").Output()
	if err != nil {
		return recipe{}, fmt.Errorf("ask go for its version: %w", err)
	}
	r.compiler = strings.TrimSpace(string(out))
	return r, nil
}

func (r recipe) key() string {
	return fmt.Sprintf("kubernetes-%s_etcd-%s_%s_%s-%s_%s", r.kubernetes, r.etcd,
		strings.ReplaceAll(r.compiler, " ", "-"), runtime.GOOS, runtime.GOARCH, r.sum)
}

// build fills dir, which either exists complete or not at all.
func (r recipe) build(ctx context.Context, src, dir string, progress io.Writer) error {
	if complete(dir) {
		return nil
	}
	cache := filepath.Dir(dir)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	unlock, err := waitLock(ctx, filepath.Join(cache, "lock"), progress)
	if err != nil {
		return err
	}
	defer unlock()
	if complete(dir) { // another process built it while this one waited
		return nil
	}

	// Nobody else builds here now, so other temporary folders are of the dead.
	stale, _ := filepath.Glob(filepath.Join(cache, "building-*"))
	for _, d := range stale {
		os.RemoveAll(d)
	}
	tmp, err := os.MkdirTemp(cache, "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	begin := time.Now()
	fmt.Fprintf(progress, "building Kubernetes %s and etcd %s: once, takes minutes, kept in %s\n", r.kubernetes, r.etcd, dir)
	for i, p := range programs() {
		name := fmt.Sprintf("%s (%d of %d)", p.name, i+1, len(programs()))
		if err := r.buildOne(ctx, p, src, tmp, name, progress); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if err := os.Chmod(tmp, 0o755); err != nil { // MkdirTemp makes it ours alone
		return err
	}
	if err := os.RemoveAll(dir); err != nil { // there, but not complete: someone deleted from it
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	fmt.Fprintf(progress, "built the control plane in %s\n", time.Since(begin).Round(time.Second))
	return nil
}

func complete(dir string) bool {
	for _, p := range programs() {
		if _, err := os.Stat(filepath.Join(dir, p.name)); err != nil {
			return false
		}
	}
	return true
}

// buildOne builds one program. They are built one after another, for then it can
// be said which one takes so long; the compiler uses all processors anyway, and
// what they share is compiled once.
func (r recipe) buildOne(ctx context.Context, p program, src, out, title string, progress io.Writer) error {
	cmd := goCommand(ctx, filepath.Join(src, p.module), buildArgs(r, p)...)
	cmd.Args = append(cmd.Args, "-o", filepath.Join(out, p.name), p.pkg)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(15 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fmt.Fprintf(progress, "  %s: %s so far\n", title, time.Since(begin).Round(time.Second))
		case err := <-done:
			if ctx.Err() != nil {
				return context.Cause(ctx) // rather than how it made go end
			}
			if err != nil {
				return fmt.Errorf("%w\n%s", err, lastLines(said.Bytes(), 20))
			}
			fmt.Fprintf(progress, "  %s: built in %s\n", title, time.Since(begin).Round(time.Second))
			return nil
		}
	}
}

// buildArgs gives the arguments of "go" that decide how p comes out; the place of
// the output is left to the caller. The linker sets the version, which a build
// outside Kubernetes' own repository does not know: kubectl warns about its
// absence and the API server would announce v0.0.0.
func buildArgs(r recipe, p program) []string {
	link := []string{"-s", "-w"}
	if p.module == "kubernetes" {
		number := strings.SplitN(strings.TrimPrefix(r.kubernetes, "v"), ".", 3)
		for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
			for _, set := range []string{
				"gitVersion=" + r.kubernetes,
				"gitMajor=" + number[0],
				"gitMinor=" + number[1],
				"gitTreeState=clean",
				"gitCommit=", // a module does not know it; the default is a raw git placeholder
			} {
				link = append(link, "-X", pkg+"."+set)
			}
		}
	}
	return []string{"build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", strings.Join(link, " ")}
}

// goCommand runs go in a nested module, shielded from settings of the caller's
// that are meant for his own modules. When ctx ends, its compilers end with it.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly",
		"GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// waitLock takes the lock of a file, which ends with the process at the latest.
func waitLock(ctx context.Context, path string, progress io.Writer) (unlock func(), err error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; {
		f, err := tryLock(path)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, errLocked) {
			return nil, err
		}
		if !told {
			fmt.Fprintln(progress, "another process is building the control plane; waiting for it")
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// errLocked is tryLock's answer while another process holds the lock.
var errLocked = errors.New("in use by another process")

// tryLock locks a file until it is closed.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errLocked
	}
	return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
}
