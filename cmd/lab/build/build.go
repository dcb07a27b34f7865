// Package build builds the programs that a site consists of from Go modules, and
// keeps them in the user's cache by version: neither a release server nor an image
// registry need answer, and nothing is built twice. The lab uses it, and what
// makes the offline bundle; a site never does.
//
//	dir, err := build.Programs(ctx, build.ControlPlane, os.Stderr)
//	...
//	etcd := exec.Command(filepath.Join(dir, "etcd"))
//
// Each subfolder is a Go module of its own, a nested one, so that what Kubernetes
// requires does not weigh on Kingmaker, and the other way round. Its go.mod says
// which version is built, and its go.sum what every part of that must hash to. All
// but flannel hold nothing else: what is built is a package of a module that they
// require.
//
// It promises: the folders that it gives are complete and are not changed any
// more; any number of processes may ask for the same at once, of which one builds
// and the others wait; a build that was cut short leaves what was finished and
// nothing that is half-done; a changed nested module builds its own programs
// again and no others. It runs inside a checkout of Kingmaker, with Go there; the
// program pause needs a C compiler. Linux only, as kingmaker is.
package build

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
	"github.com/kingmaker-io/kingmaker/cmd/lab/lock"
)

// A Set is a choice of programs.
type Set int

// The sets, and what is in them. Programs of a set lie in one folder.
const (
	// ControlPlane is what a bare control plane runs and is asked by: etcd, etcdctl,
	// etcdutl, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl.
	ControlPlane Set = iota

	// Site is everything that machines of a site run, but for Kingmaker and Debian.
	// It adds to ControlPlane: kubelet, kubeadm, kube-proxy, pause; coredns;
	// flanneld; and the CNI plugins bridge, host-local, loopback, portmap, tuning,
	// firewall, bandwidth, ptp, host-device, macvlan and flannel.
	Site
)

func (s Set) String() string {
	if s == ControlPlane {
		return "control plane"
	}
	return "site"
}

// A module is one nested module.
type module struct {
	name     string   // of its folder
	path     string   // the required Go module whose version it stands for
	stamps   []string // string variables that the linker sets to that version
	programs []program
}

// A program is one binary.
type program struct {
	name string
	pkg  string // Go package, or with suffix .c a file of the module's
	bare bool   // in the set ControlPlane
}

// modules lists what can be built, the quick ones first: a broken tool chain then
// shows within seconds.
func modules() []module {
	const (
		plugins  = "github.com/containernetworking/plugins"
		cniStamp = plugins + "/pkg/utils/buildversion.BuildVersion"
	)
	return []module{
		{name: "cni", path: plugins, stamps: []string{cniStamp}, programs: []program{
			{name: "bridge", pkg: plugins + "/plugins/main/bridge"},
			{name: "host-device", pkg: plugins + "/plugins/main/host-device"},
			{name: "loopback", pkg: plugins + "/plugins/main/loopback"},
			{name: "macvlan", pkg: plugins + "/plugins/main/macvlan"},
			{name: "ptp", pkg: plugins + "/plugins/main/ptp"},
			{name: "host-local", pkg: plugins + "/plugins/ipam/host-local"},
			{name: "bandwidth", pkg: plugins + "/plugins/meta/bandwidth"},
			{name: "firewall", pkg: plugins + "/plugins/meta/firewall"},
			{name: "portmap", pkg: plugins + "/plugins/meta/portmap"},
			{name: "tuning", pkg: plugins + "/plugins/meta/tuning"},
		}},
		{name: "flannelcni", path: plugins, stamps: []string{cniStamp}, programs: []program{
			{name: "flannel", pkg: plugins + "/plugins/meta/flannel"},
		}},
		{name: "etcd", path: "go.etcd.io/etcd/server/v3", programs: []program{
			{name: "etcd", pkg: "go.etcd.io/etcd/server/v3", bare: true},
			{name: "etcdctl", pkg: "go.etcd.io/etcd/etcdctl/v3", bare: true},
			{name: "etcdutl", pkg: "go.etcd.io/etcd/etcdutl/v3", bare: true},
		}},
		{name: "flannel", path: "github.com/flannel-io/flannel",
			stamps: []string{"github.com/flannel-io/flannel/pkg/version.Version"}, programs: []program{
				{name: "flanneld", pkg: "."},
			}},
		{name: "coredns", path: "github.com/coredns/coredns", programs: []program{ // knows its version by itself
			{name: "coredns", pkg: "github.com/coredns/coredns"},
		}},
		{name: "kubernetes", path: "k8s.io/kubernetes", stamps: []string{
			// Without them kubectl warns and the API server announces v0.0.0.
			"k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion",
		}, programs: []program{
			{name: "kube-apiserver", pkg: "k8s.io/kubernetes/cmd/kube-apiserver", bare: true},
			{name: "kube-controller-manager", pkg: "k8s.io/kubernetes/cmd/kube-controller-manager", bare: true},
			{name: "kube-scheduler", pkg: "k8s.io/kubernetes/cmd/kube-scheduler", bare: true},
			{name: "kubectl", pkg: "k8s.io/kubernetes/cmd/kubectl", bare: true},
			{name: "kubelet", pkg: "k8s.io/kubernetes/cmd/kubelet"},
			{name: "kubeadm", pkg: "k8s.io/kubernetes/cmd/kubeadm"},
			{name: "kube-proxy", pkg: "k8s.io/kubernetes/cmd/kube-proxy"},
			{name: "pause", pkg: "build/pause/linux/pause.c"},
		}},
	}
}

// pauseVersion is what Kubernetes calls the pause in its module, in the file
// build/pause/Makefile; a test compares.
const pauseVersion = "3.10.2"

// choose gives the modules that a set needs, each with the programs of the set
// alone.
func (s Set) choose() []module {
	var chosen []module
	for _, m := range modules() {
		if s == ControlPlane {
			m.programs = slices.DeleteFunc(m.programs, func(p program) bool { return !p.bare })
		}
		if len(m.programs) > 0 {
			chosen = append(chosen, m)
		}
	}
	return chosen
}

// Names are those of all programs in a set.
func (s Set) Names() (names []string) {
	for _, m := range s.choose() {
		for _, p := range m.programs {
			names = append(names, p.name)
		}
	}
	return names
}

// Programs returns the folder that holds the programs of a set, and builds what is
// missing first. That takes minutes, of which progress (nil is quiet) is told. The
// folder is below $KINGMAKER_CACHE, or kingmaker in the user's cache folder:
// outside the checkout, so that a fresh clone finds it again.
func Programs(ctx context.Context, set Set, progress io.Writer) (dir string, err error) {
	root, err := here.Checkout()
	if err != nil {
		return "", fmt.Errorf("build the programs of the %s: %w", set, err)
	}
	cache, err := here.Cache("programs")
	if err != nil {
		return "", fmt.Errorf("build the programs of the %s: %w", set, err)
	}
	if progress == nil {
		progress = io.Discard
	}
	dir, err = programs(ctx, set, nested(root), cache, progress)
	if err != nil {
		return "", fmt.Errorf("build the programs of the %s: %w", set, err)
	}
	return dir, nil
}

// programs keeps two kinds of folders in cache. One for each recipe of a module
// fills program by program. One for each set of recipes has hard links to these
// and exists complete or not at all; to find it is all that there is to do when
// nothing has changed.
func programs(ctx context.Context, set Set, src, cache string, progress io.Writer) (dir string, err error) {
	var recipes []recipe
	hash := sha256.New()
	for _, m := range set.choose() {
		r, err := readRecipe(ctx, src, m)
		if err != nil {
			return "", err
		}
		recipes = append(recipes, r)
		fmt.Fprintln(hash, r.key(), m.programs)
	}
	dir = filepath.Join(cache, fmt.Sprintf("%s_%x", strings.ReplaceAll(set.String(), " ", ""), hash.Sum(nil)[:6]))
	if complete(dir, recipes) {
		return dir, nil
	}

	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	held, err := lock.Wait(ctx, filepath.Join(cache, "lock"), func() {
		fmt.Fprintln(progress, "another process is building programs; waiting for it")
	})
	if err != nil {
		return "", err
	}
	defer held.Close()
	if complete(dir, recipes) { // another process built it while this one waited
		return dir, nil
	}
	// Nobody else builds here now, so other temporary folders are of the dead.
	stale, _ := filepath.Glob(filepath.Join(cache, "building-*"))
	for _, d := range stale {
		os.RemoveAll(d)
	}
	tmp, err := os.MkdirTemp(cache, "building-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := fill(ctx, recipes, cache, tmp, progress); err != nil {
		return "", err
	}
	return dir, collect(recipes, cache, filepath.Join(tmp, "set"), dir)
}

// fill builds the programs that are missing in the recipes' folders. They are
// built one after another, for then it can be said which one takes so long; the
// compiler uses all processors anyway, and what they share is compiled once.
func fill(ctx context.Context, recipes []recipe, cache, tmp string, progress io.Writer) error {
	type work struct {
		recipe
		program
	}
	var missing []work
	var titles []string
	for _, r := range recipes {
		before := len(missing)
		for _, p := range r.programs {
			if _, err := os.Stat(filepath.Join(cache, r.key(), p.name)); err != nil {
				missing = append(missing, work{r, p})
			}
		}
		if len(missing) > before {
			titles = append(titles, r.module.name+" "+r.version)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	begin := time.Now()
	fmt.Fprintf(progress, "building %s: once, takes minutes, kept in %s\n", strings.Join(titles, ", "), cache)
	for i, w := range missing {
		title := fmt.Sprintf("%s (%d of %d)", w.program.name, i+1, len(missing))
		out := filepath.Join(tmp, w.program.name)
		if err := w.recipe.build(ctx, w.program, out, title, progress); err != nil {
			return fmt.Errorf("%s: %w", w.program.name, err)
		}
		dir := filepath.Join(cache, w.recipe.key())
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Rename(out, filepath.Join(dir, w.program.name)); err != nil {
			return err
		}
	}
	fmt.Fprintf(progress, "built %d programs in %s\n", len(missing), time.Since(begin).Round(time.Second))
	return nil
}

// collect makes dir, with a hard link to each program, by way of tmp. Links rather
// than symbolic ones, so that the folder can be mounted elsewhere.
func collect(recipes []recipe, cache, tmp, dir string) error {
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	for _, r := range recipes {
		for _, p := range r.programs {
			if err := os.Link(filepath.Join(cache, r.key(), p.name), filepath.Join(tmp, p.name)); err != nil {
				return err
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil { // there, but not complete: someone deleted from it
		return err
	}
	return os.Rename(tmp, dir)
}

func complete(dir string, recipes []recipe) bool {
	for _, r := range recipes {
		for _, p := range r.programs {
			if _, err := os.Stat(filepath.Join(dir, p.name)); err != nil {
				return false
			}
		}
	}
	return true
}

// Upstream says which versions of others' programs are built, such as v1.36.3.
type Upstream struct {
	Kubernetes, Etcd, CoreDNS string
	Flannel                   string // flanneld
	CNI                       string // the CNI plugins but flannel
	FlannelCNI                string // the CNI plugin flannel
	Pause                     string // without v, as its image's tag is
}

// Versions reads the versions from the nested modules.
func Versions() (Upstream, error) {
	root, err := here.Checkout()
	if err != nil {
		return Upstream{}, fmt.Errorf("read which versions are built: %w", err)
	}
	u := Upstream{Pause: pauseVersion}
	into := map[string]*string{"kubernetes": &u.Kubernetes, "etcd": &u.Etcd, "coredns": &u.CoreDNS,
		"flannel": &u.Flannel, "cni": &u.CNI, "flannelcni": &u.FlannelCNI}
	for _, m := range modules() {
		if *into[m.name], err = m.readVersion(nested(root)); err != nil {
			return Upstream{}, fmt.Errorf("read which versions are built: %w", err)
		}
	}
	return u, nil
}

// readVersion gives the version of a module's path in its go.mod.
func (m module) readVersion(src string) (string, error) {
	file := filepath.Join(src, m.name, "go.mod")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`(?m)^(?:require)?\s*` + regexp.QuoteMeta(m.path) + ` (v[0-9]\S*)`).FindSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("%s does not require %s", file, m.path)
	}
	return string(found[1]), nil
}

// A recipe is everything that the programs of a module depend on.
type recipe struct {
	module
	dir      string // of the module
	version  string // such as v1.36.3
	compiler string // such as go1.26.0
	sum      string // hash of the module's files and of how each program is built
}

// readRecipe reads module m in its folder below src.
func readRecipe(ctx context.Context, src string, m module) (r recipe, err error) {
	r = recipe{module: m, dir: filepath.Join(src, m.name)}
	if r.version, err = m.readVersion(src); err != nil {
		return recipe{}, err
	}
	hash := sha256.New()
	err = filepath.WalkDir(r.dir, func(file string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		source := name == "go.mod" || name == "go.sum" || strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
		if err != nil || entry.IsDir() || !source {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(src, file)
		fmt.Fprintf(hash, "%s %d\n%s", relative, len(text), text)
		return err
	})
	if err != nil {
		return recipe{}, err
	}
	// Of all programs, and not only those of a set: sets share the folder.
	for _, all := range modules() {
		if all.name == m.name {
			for _, p := range all.programs {
				fmt.Fprintln(hash, p.name, p.pkg, r.args(p))
			}
		}
	}
	r.sum = fmt.Sprintf("%x", hash.Sum(nil)[:6])

	// A go.mod may select another tool chain than the one that built this program.
	out, err := goCommand(ctx, r.dir, "env", "GOVERSION").Output()
	if err != nil {
		return recipe{}, fmt.Errorf("ask go for its version: %w", cmp.Or(context.Cause(ctx), err))
	}
	r.compiler = strings.TrimSpace(string(out))
	return r, nil
}

// key names the folder of the recipe.
func (r recipe) key() string {
	return fmt.Sprintf("%s-%s_%s_%s-%s_%s", r.name, r.version,
		strings.ReplaceAll(r.compiler, " ", "-"), runtime.GOOS, runtime.GOARCH, r.sum)
}

// nested is where the nested modules are in a checkout.
func nested(root string) string { return filepath.Join(root, "cmd", "lab", "build") }
