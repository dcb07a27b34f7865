package reconciler

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/kingmaker-io/kingmaker"

// mayImport is the house: which of our packages each package may import. A
// package that is not in it has no place yet, and is a fault.
var mayImport = map[string][]string{
	// floor 3: wiring
	"cmd/reconcile": {"..."},
	"cmd/noded":     {"reconciler/plan", "reconciler/machine", "reconciler/machine/...", "reconciler/gluster", "reconciler/gluster/..."},
	"cmd/directory": {"cmd/directory/...", "reconciler/plan"},
	"cmd/portal":    {"cmd/portal/..."},  // it meets the reconciler in Kubernetes and LDAP, not in Go
	"cmd/desktop":   {"cmd/desktop/..."}, // it runs as a user, and knows nothing of the site
	"cmd/lab":       {"cmd/lab/..."},

	// beside: how the server is set up that cmd/directory runs
	"cmd/directory/slapd": {"reconciler/plan"}, // of plan only what a secret is

	// beside: the rooms of the portal
	"cmd/portal/session": {}, // pure: what the life of a desktop is
	"cmd/portal/cluster": {"cmd/portal/session"},
	"cmd/portal/keeper":  {"cmd/portal/session", "cmd/portal/cluster"}, // carries it out
	"cmd/portal/signin":  {"cmd/portal/session"},                       // of session only what a person is
	"cmd/portal/visit":   {},
	"cmd/portal/web":     {"cmd/portal/session", "cmd/portal/cluster", "cmd/portal/signin", "cmd/portal/visit"},
	// beside: what a VNC client says, and what an X server knows
	"cmd/desktop/rfb": {},
	"cmd/desktop/x11": {},

	// beside: what the lab is made of; it knows nothing of ours
	"cmd/lab/lock":         {},
	"cmd/lab/here":         {},
	"cmd/lab/build":        {"cmd/lab/here", "cmd/lab/lock"},
	"cmd/lab/controlplane": {"cmd/lab/build", "cmd/lab/lock"},
	"cmd/lab/bundle":       {"cmd/lab/build", "cmd/lab/here", "cmd/lab/lock", "reconciler/machine/host"}, // of host only the list of packages
	"cmd/lab/room":         {"cmd/lab/here", "cmd/lab/lock"},
	"cmd/lab/room/site":    {"cmd/lab/room"},
	"cmd/lab/gitserver":    {},
	"cmd/lab/glustertest":  {"reconciler/gluster"},
	"cmd/lab/logtest":      {},
	"cmd/lab/slapdtest":    {},
	"cmd/lab/etcdtest":     {"cmd/lab/build", "reconciler/machine/etcd", "reconciler/machine/roles"},
	"cmd/lab/e2e/probe":    {},

	// floor 2: the loop
	"reconciler":            {"reconciler/plan"},
	"reconciler/systemtest": {"reconciler", "reconciler/plan"},

	// floor 1: rooms, which do not know each other
	"reconciler/source":                {"reconciler/plan", "schema", "manifests", "reconciler/source/..."},
	"reconciler/source/tree":           {},
	"reconciler/source/git":            {"reconciler/plan", "reconciler/source/tree"},
	"reconciler/source/sops":           {"reconciler/plan"},
	"reconciler/source/render":         {"reconciler/plan", "reconciler/source/tree", "reconciler/source/sops"},
	"reconciler/source/validate":       {"reconciler/plan", "schema"},
	"reconciler/machine":               {"reconciler/plan", "reconciler/plan/apiwrite"},
	"reconciler/machine/roles":         {"reconciler/plan"},                                                                              // pure: who becomes a master
	"reconciler/machine/etcd":          {"reconciler/machine/roles"},                                                                     // its membership, as roles see it
	"reconciler/machine/crown":         {"reconciler/plan", "reconciler/machine", "reconciler/machine/roles", "reconciler/machine/etcd"}, // carries out what roles decide
	"reconciler/machine/host":          {},
	"reconciler/machine/host/hosttest": {"reconciler/machine/host"},
	"reconciler/machine/member":        {"reconciler/plan", "reconciler/machine", "reconciler/machine/host"},
	"reconciler/machine/agent":         {"reconciler/plan", "reconciler/machine", "reconciler/machine/host", "reconciler/machine/member"},
	"reconciler/gluster":               {"reconciler/plan", "reconciler/plan/apiwrite"},
	"reconciler/gluster/hand":          {"reconciler/plan", "reconciler/gluster", "reconciler/machine/host"}, // what one machine does about it
	"reconciler/kube":                  {"reconciler/plan"},
	"reconciler/ldap":                  {"reconciler/plan"},

	// floor 0: pure
	"reconciler/plan":          {},
	"reconciler/plan/apiwrite": {"reconciler/plan"}, // for rooms with objects of their own in the cluster
	"reconciler/plan/plantest": {"reconciler/plan"},

	// data
	"manifests": {},
	"schema":    {},
	"examples":  {},
}

// pure are the packages of the standard library and others that plan must not
// touch: files, network, clock and logger.
var impure = []string{"os", "net", "net/http", "log", "io/fs", "path/filepath", "os/exec", "syscall"}

// TestFloors parses every source file but tests, which may start the real
// things of any floor.
func TestFloors(t *testing.T) {
	root := ".."
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			nested := file != root && exists(filepath.Join(file, "go.mod"))
			if nested || name == "testdata" || strings.HasPrefix(name, ".") && name != ".." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		relative, _ := filepath.Rel(root, file)
		dir := path.Dir(filepath.ToSlash(relative))
		allowed, ok := mayImport[dir]
		if !ok {
			t.Errorf("%s: package %s has no place in the house", relative, dir)
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		seen[dir] = seen[dir] || parsed.Doc != nil
		for _, spec := range parsed.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			if dir == "reconciler/plan" && slices.Contains(impure, imported) {
				t.Errorf("%s: imports %s, and plan is pure", relative, imported)
			}
			ours, ok := strings.CutPrefix(imported, module+"/")
			if ok && !slices.ContainsFunc(allowed, func(pattern string) bool { return matches(pattern, ours) }) {
				t.Errorf("%s: imports %s, which is not below it", relative, ours)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, documented := range seen {
		if !documented {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

func matches(pattern, name string) bool {
	prefix, any := strings.CutSuffix(pattern, "...")
	return name == pattern || any && strings.HasPrefix(name, prefix)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// TestTopLevel keeps the top of the tree as the house lists it.
func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	known := []string{"cmd", "reconciler", "manifests", "examples", "schema", "go.mod", "go.sum", "Makefile", "README.md", "LICENSE",
		"dist"} // what make bundle writes, which git ignores
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") && !slices.Contains(known, entry.Name()) {
			t.Errorf("%s does not belong at the top level", entry.Name())
		}
	}
}
