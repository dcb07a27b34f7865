package build

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
)

// fakeGo puts a script in the place of go and of gcc. The script gets their
// arguments, and $LOG names a file that it may write to.
func fakeGo(t *testing.T, script string) (log string) {
	t.Helper()
	bin := t.TempDir()
	log = filepath.Join(bin, "log")
	script = "#!/bin/sh\nset -e\ncase $1 in env) echo go1.2.3; exit;; mod) echo '{\"Dir\": \"/module\"}'; exit;; esac\n" + script
	for _, name := range []string{"go", "gcc"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("LOG", log)
	t.Setenv("KINGMAKER_CACHE", t.TempDir())
	return log
}

// touchOutput is what "go build" leaves: the file after -o.
const touchOutput = `while [ "$1" != -o ]; do shift; done; basename "$2" >>"$LOG"; echo "$@" >"$2"` + "\n"

// built gives what touchOutput has built since it was asked last.
func built(t *testing.T, log string) []string {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))
}

func TestSets(t *testing.T) {
	if got, want := ControlPlane.Names(), strings.Fields("etcd etcdctl etcdutl kube-apiserver kube-controller-manager kube-scheduler kubectl"); !slices.Equal(got, want) {
		t.Errorf("of the control plane: %q, want %q", got, want)
	}
	site := Site.Names()
	for _, name := range append(ControlPlane.Names(), strings.Fields("kubelet kubeadm kube-proxy pause coredns flanneld bridge host-local loopback portmap flannel")...) {
		if !slices.Contains(site, name) {
			t.Errorf("no %s in the set of a site", name)
		}
	}
	slices.Sort(site)
	if n := len(slices.Compact(slices.Clone(site))); n != len(site) {
		t.Errorf("a name twice: %q", site)
	}
}

func TestProgramsOnce(t *testing.T) {
	log := fakeGo(t, touchOutput)
	var dirs [3]string
	var wg sync.WaitGroup
	for i := range dirs { // a lock is of an open file, so goroutines stand for processes
		wg.Go(func() {
			dir, err := Programs(t.Context(), ControlPlane, nil)
			if err != nil {
				t.Error(err)
			}
			dirs[i] = dir
		})
	}
	wg.Wait()
	if got, want := built(t, log), ControlPlane.Names(); !slices.Equal(got, want) {
		t.Errorf("built: %q, want %q", got, want)
	}
	dir := dirs[0]
	if dirs != [3]string{dir, dir, dir} {
		t.Errorf("not one folder: %q", dirs)
	}
	folders, err := filepath.Glob(filepath.Join(os.Getenv("KINGMAKER_CACHE"), "programs", "*_go1.2.3_*"))
	if err != nil || len(folders) != 2 || !strings.Contains(folders[0], "/etcd-v3.") || !strings.Contains(folders[1], "/kubernetes-v1.") {
		t.Errorf("the names of the modules' folders do not tell the versions: %v %v", folders, err)
	}

	// A larger set builds what it adds, and the smaller one stays what it was.
	site, err := Programs(t.Context(), Site, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(Site.Names(), func(name string) bool { return slices.Contains(ControlPlane.Names(), name) })
	if got := built(t, log); !slices.Equal(got, want) {
		t.Errorf("built for the larger set: %q, want %q", got, want)
	}
	for dir, want := range map[string][]string{site: Site.Names(), dir: ControlPlane.Names()} {
		if got := list(t, dir); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("in %s: %q", dir, got)
		}
	}

	// A program that someone deleted is there again; here the module still has it.
	if err := os.Remove(filepath.Join(dir, "kubectl")); err != nil {
		t.Fatal(err)
	}
	again, err := Programs(t.Context(), ControlPlane, nil)
	if err != nil || again != dir || len(list(t, dir)) != len(ControlPlane.Names()) {
		t.Errorf("not mended: %v", err)
	}
	if got := built(t, log); len(got) != 0 {
		t.Errorf("to mend the folder, %q was built", got)
	}
}

// TestProgramsByModule changes one nested module.
func TestProgramsByModule(t *testing.T) {
	log := fakeGo(t, touchOutput)
	root, err := here.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	src, cache := t.TempDir(), t.TempDir()
	if err := os.CopyFS(src, os.DirFS(nested(root))); err != nil {
		t.Fatal(err)
	}
	build := func() (string, []string) {
		dir, err := programs(t.Context(), Site, src, cache, t.Output())
		if err != nil {
			t.Fatal(err)
		}
		return dir, built(t, log)
	}
	before, all := build()
	if !slices.Equal(all, Site.Names()) {
		t.Fatalf("built: %q, want %q", all, Site.Names())
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("flannel/other_test.go", "package main\n")
	write("flannel/flannel", "someone ran go build")
	if after, again := build(); after != before || len(again) != 0 {
		t.Errorf("for a test and a stray binary, %q was built", again)
	}
	write("flannel/other.go", "package main\n")
	if after, again := build(); after == before || !slices.Equal(again, []string{"flanneld"}) {
		t.Errorf("for a changed flanneld, %q was built, in %s", again, after)
	}
}

// TestProgramsFail: what was finished is kept, the rest is not half there.
func TestProgramsFail(t *testing.T) {
	t.Setenv("BROKEN", "kube-scheduler")
	log := fakeGo(t, `case "$*" in *$BROKEN*) echo main.go:1: no such thing; exit 1;; esac`+"\n"+touchOutput)
	_, err := Programs(t.Context(), ControlPlane, nil)
	if err == nil || !strings.Contains(err.Error(), "build the programs of the control plane: kube-scheduler: exit status 1\n\tmain.go:1: no such thing") {
		t.Errorf("error: %v", err)
	}
	for _, entry := range list(t, filepath.Join(os.Getenv("KINGMAKER_CACHE"), "programs")) {
		if strings.HasPrefix(entry, "building-") || strings.HasPrefix(entry, "controlplane") {
			t.Errorf("left in the cache: %s", entry)
		}
	}
	before := built(t, log)
	t.Setenv("BROKEN", "nothing")
	if _, err := Programs(t.Context(), ControlPlane, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := append(before, built(t, log)...), ControlPlane.Names(); !slices.Equal(got, want) {
		t.Errorf("built: %q, want %q, each once", got, want)
	}
}

func TestProgramsCancelled(t *testing.T) {
	fakeGo(t, `exec sleep 1000`)
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	_, err := Programs(ctx, ControlPlane, writer(func(line string) {
		if strings.HasPrefix(line, "building ") {
			cancel(enough)
		}
	}))
	if !errors.Is(err, enough) {
		t.Errorf("error: %v", err)
	}
	if entries := list(t, filepath.Join(os.Getenv("KINGMAKER_CACHE"), "programs")); !slices.Equal(entries, []string{"lock"}) {
		t.Errorf("left in the cache: %q", entries)
	}
}

func TestOutsideCheckout(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, call := range map[string]func() error{
		"Programs":  func() error { _, err := Programs(t.Context(), Site, nil); return err },
		"Versions":  func() error { _, err := Versions(); return err },
		"Kingmaker": func() error { _, _, err := Kingmaker(t.Context(), nil); return err },
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "not inside a checkout of github.com/kingmaker-io/kingmaker") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRecipes reads the modules as they are.
func TestRecipes(t *testing.T) {
	root, err := here.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	v, err := Versions()
	if err != nil {
		t.Fatal(err)
	}
	stamp := map[string]string{ // what the linker must be told; "" where upstream's code knows its version
		"kubernetes": "k8s.io/component-base/version.gitVersion=" + v.Kubernetes,
		"flannel":    "github.com/flannel-io/flannel/pkg/version.Version=" + v.Flannel,
		"cni":        "github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=" + v.CNI,
		"flannelcni": "github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=" + v.FlannelCNI,
		"etcd":       "", "coredns": "",
	}
	for _, m := range modules() {
		r, err := readRecipe(t.Context(), nested(root), m)
		if err != nil {
			t.Fatal(err)
		}
		args := r.args(m.programs[0])
		want, known := stamp[m.name]
		if link := strings.Fields(args[len(args)-1]); !known || want != "" && !slices.Contains(link, want) {
			t.Errorf("%s: the version is not linked in: %s", m.name, link)
		}
		other := r
		other.sum = "0"
		if r.key() == other.key() || !strings.HasPrefix(r.key(), m.name+"-"+r.version+"_go1.") {
			t.Errorf("%s: its folder is called %s", m.name, r.key())
		}
		// All that is built of others is a tool of the module, so that "go mod tidy"
		// keeps what it needs.
		mod, err := os.ReadFile(filepath.Join(r.dir, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range m.programs {
			if p.pkg != "." && !strings.HasSuffix(p.pkg, ".c") && !slices.Contains(strings.Fields(string(mod)), p.pkg) {
				t.Errorf("%s is no tool of module %s", p.pkg, m.name)
			}
		}
	}
}

// TestAsKubernetesHasIt compares with the source of Kubernetes what belongs to a
// version of Kubernetes.
func TestAsKubernetesHasIt(t *testing.T) {
	if testing.Short() {
		t.Skip("may download Kubernetes")
	}
	root, err := here.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	v, err := Versions()
	if err != nil {
		t.Fatal(err)
	}
	text, err := goCommand(t.Context(), filepath.Join(nested(root), "kubernetes"), "mod", "download", "-json", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatal(err)
	}
	var where struct{ Dir string }
	if err := json.Unmarshal(text, &where); err != nil {
		t.Fatal(err)
	}
	for want, file := range map[string]string{
		"\nTAG ?= " + v.Pause + "\n":                 "build/pause/Makefile",
		"\tPauseVersion = \"" + v.Pause + "\"\n":     "cmd/kubeadm/app/constants/constants.go",
		"\tCoreDNSVersion = \"" + v.CoreDNS + "\"\n": "cmd/kubeadm/app/constants/constants.go",
	} {
		text, err := os.ReadFile(filepath.Join(where.Dir, file))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("Kubernetes %s does not have %q in %s: %v", v.Kubernetes, want, file, err)
		}
	}
}

// TestFlanneld runs the tests of flanneld, which "go test ./..." does not see.
func TestFlanneld(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles flannel")
	}
	root, err := here.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"vet", "."}, {"test", "."}} {
		cmd := goCommand(t.Context(), filepath.Join(nested(root), "flannel"), args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
}

// TestKingmaker builds a small program in the place of Kingmaker.
func TestKingmaker(t *testing.T) {
	o := own{root: t.TempDir(), cache: t.TempDir(), packages: []string{"./cmd/one", "./cmd/two"}}
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(o.root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := func() (string, string) {
		t.Helper()
		dir, version, err := o.build(t.Context(), t.Output())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"one", "two"} {
			said, err := exec.CommandContext(t.Context(), filepath.Join(dir, name)).CombinedOutput()
			if err != nil || string(said) != version {
				t.Errorf("%s says it is %q, want %q: %v", name, said, version, err)
			}
		}
		return dir, version
	}
	write("go.mod", "module example.com/own\n\ngo 1.26.0\n")
	program := "package main\n\nvar stamp string\n\nfunc main() { print(stamp) }\n"
	write("cmd/one/main.go", program)
	write("cmd/two/main.go", program)
	dir, version := build()
	if !strings.HasPrefix(version, "0.1.0-") || len(version) != len("0.1.0-")+12 {
		t.Errorf("version: %s", version)
	}
	if again, same := build(); again != dir || same != version {
		t.Errorf("unchanged, and yet %s in %s", same, again)
	}
	if err := os.Remove(filepath.Join(dir, "two")); err != nil {
		t.Fatal(err)
	}
	if again, same := build(); again != dir || same != version {
		t.Errorf("mended, and yet %s in %s", same, again)
	}
	write("cmd/one/main_test.go", "package main\n")
	write("README.md", "what a program does not depend on")
	if _, same := build(); same != version {
		t.Errorf("what the programs depend on is unchanged, and yet: %s, before: %s", same, version)
	}
	elsewhere := own{root: t.TempDir(), cache: t.TempDir(), packages: o.packages}
	if err := os.CopyFS(elsewhere.root, os.DirFS(o.root)); err != nil {
		t.Fatal(err)
	}
	if _, same, err := elsewhere.build(t.Context(), t.Output()); err != nil || same != version {
		t.Errorf("the same source elsewhere makes %s, want %s: %v", same, version, err)
	}

	versions := []string{version}
	for i := range kept {
		write("cmd/two/main.go", "package main\n\nvar stamp string\n\nfunc main() { print(stamp"+strings.Repeat(`, ""`, i+1)+") }\n")
		_, next := build()
		if slices.Contains(versions, next) {
			t.Errorf("changed, and yet again %s", next)
		}
		versions = append(versions, next)
	}
	want := slices.Sorted(slices.Values(append(versions[1:], "lock", "unstamped")))
	if got := list(t, o.cache); !slices.Equal(got, want) {
		t.Errorf("in the cache: %q, want the newest %d versions: %q", got, kept, want)
	}
}

func TestKingmakerFails(t *testing.T) {
	fakeGo(t, `case "$*" in *noded*) echo cmd/noded: no such folder; exit 1;; esac`+"\n"+touchOutput)
	_, _, err := Kingmaker(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "build Kingmaker: noded: exit status 1\n\tcmd/noded: no such folder") {
		t.Errorf("error: %v", err)
	}
}

// list gives the sorted names in a folder.
func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// writer is an io.Writer that is a function.
type writer func(string)

func (w writer) Write(b []byte) (int, error) {
	w(string(b))
	return len(b), nil
}
