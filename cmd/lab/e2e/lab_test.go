//go:build e2e

// Package e2e tries a whole site: machines that were only Debian, made a site by
// the installer that people use, in a lab on this computer. Everything is done as
// a person would: by the lab's verbs, by git push, and by the commands on the
// machines.
//
//	make e2e                 a lab of its own, taken down at the end; one that an
//	                         earlier run left is taken down first
//	E2E_KEEP=1 make e2e      leaves it for a look, and takes over one that was left
//	make e2e-long            the tests of roles and volumes that take hours
//
// The tests share the lab, and each leaves it as it found it or larger. None of them
// knows who is master: ask master and workers.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
)

const name = "e2e"

// a lab is the site under test, seen through the lab's command line.
type lab struct {
	binary string
	repo   string // working clone of the site repo
}

// site is what TestMain made.
var site lab

// TestLab is what a site of machines does at all.
func TestLab(t *testing.T) {
	inOrder(t, []part{
		{"the site is up", testSite},
		{"a push arrives", testPush},
		{"a machine's rights", testOwnMachine},
		{"reboot", testReboot},
	})
}

// TestLabLong is more of it. (In CI power cuts are those of TestCrown, and the network
// and volumes are those that TestDesktops needs.)
func TestLabLong(t *testing.T) {
	long(t)
	calm(t)
	inOrder(t, []part{
		{"network", testNetwork},
		{"network of VXLAN", testVXLAN},
		{"cable out", testCut},
		{"power cut", testPower},
		{"unlisted machine", testUnlisted},
		{"boot without a master", testAPIAway},
		{"join", testJoin},
	})
}

type part struct {
	name string
	run  func(t *testing.T)
}

// inOrder runs them; after what fails it shows how the site is.
func inOrder(t *testing.T, parts []part) {
	for _, p := range parts {
		if !t.Run(p.name, p.run) {
			t.Log(everything())
		}
	}
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := up(dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		fmt.Fprintln(os.Stderr, "the lab stays for a look: lab status --name", name)
		return 1
	}
	code := m.Run()
	if os.Getenv("E2E_KEEP") != "" {
		return code
	}
	if code != 0 {
		fmt.Fprint(os.Stderr, everything())
	}
	if out, err := command(site.binary, "down", "--name", name); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: lab down:", out, err)
		return 1
	}
	return code
}

// up builds the lab's program and has it make a site.
func up(dir string) error {
	site.binary = filepath.Join(dir, "lab")
	if out, err := command("go", "build", "-o", site.binary, ".."); err != nil {
		return fmt.Errorf("build the lab: %s %w", out, err)
	}
	if os.Getenv("E2E_KEEP") == "" {
		if rooms, err := room.Rooms(); err == nil && slices.Contains(rooms, name) {
			fmt.Fprintf(os.Stderr, "e2e: an earlier run left the lab %s; taking it down and making a new one (E2E_KEEP=1 takes it over)\n", name)
		}
		// Whether or not: a lab can be left without its folder, too.
		if out, err := commandIn("../../..", "", site.binary, "down", "--name", name); err != nil {
			return fmt.Errorf("lab down: %s %w", out, err)
		}
	}
	if _, err := command(site.binary, "kubeconfig", "--name", name); err != nil {
		cmd := exec.Command(site.binary, "up", "--name", name)
		cmd.Dir = "../../.."
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("lab up: %w", err)
		}
	}
	out, err := command(site.binary, "repo", "--clone", "--name", name)
	if err != nil {
		return fmt.Errorf("lab repo: %s %w", out, err)
	}
	site.repo = strings.TrimSpace(out)
	return nil
}

// everything is what a person would look at who asks what went wrong.
func everything() string {
	var b strings.Builder
	out, _ := command(site.binary, "status", "--name", name)
	fmt.Fprintf(&b, "== lab status\n%s\n", out)
	if first, _, err := leading(); err == nil {
		args := []string{"exec", "--name", name, first, "--", "journalctl", "-u", "noded", "-n", "50", "--no-pager"}
		out, _ := command(site.binary, args...)
		fmt.Fprintf(&b, "== lab %s\n%s\n", strings.Join(args, " "), out)
	}
	for _, args := range [][]string{{"get", "machines,nodes,pods,crowns", "-A", "-o", "wide"}, {"logs", "-n", "kingmaker-system", "daemonset/reconcile", "--all-pods", "--prefix", "--tail", "50"}} {
		out, _ := kubectl(args...)
		fmt.Fprintf(&b, "== kubectl %s\n%s\n", strings.Join(args, " "), out)
	}
	return b.String()
}

// command runs one and gives all that it said.
func command(name string, args ...string) (string, error) { return commandIn("", "", name, args...) }

func commandIn(dir, stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// kubectl asks a live master, with the kubectl of that machine, and no other.
func kubectl(args ...string) (string, error) {
	machine, server, err := leading()
	if err != nil {
		return "", err
	}
	return exit(machine, "", append([]string{"kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "--server", server}, args...)...)
}

func must(t *testing.T, out string, err error) string {
	t.Helper()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// on runs a command on a machine.
func on(t *testing.T, machine string, args ...string) string {
	t.Helper()
	out, err := exit(machine, "", args...)
	return must(t, out, err)
}

func exit(machine, stdin string, args ...string) (string, error) {
	return commandIn("", stdin, site.binary, append([]string{"exec", "--name", name, machine, "--"}, args...)...)
}

// reconcile runs a command of reconcile as an administrator would, on a master.
func reconcile(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return exit(master(t), "", append(append([]string{"reconcile"}, args...), "--kubeconfig", "/etc/kubernetes/admin.conf")...)
}

// do is a verb of the lab that acts on a machine.
func do(t *testing.T, verb string, machine string) {
	t.Helper()
	out, err := command(site.binary, verb, "--name", name, machine)
	must(t, out, err)
}

// push writes files into the site repo and pushes them; an empty content takes
// one away.
func push(t *testing.T, message string, files map[string]string) (commit string) {
	t.Helper()
	for file, content := range files {
		path := filepath.Join(site.repo, file)
		if content == "" {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"add", "--all"}, {"commit", "--quiet", "--allow-empty", "--message", message}, {"push", "--quiet"}} {
		out, err := commandIn(site.repo, "", "git", args...)
		must(t, out, err)
	}
	out, err := commandIn(site.repo, "", "git", "rev-parse", "HEAD")
	return strings.TrimSpace(must(t, out, err))
}

// patience is by how much a wait may be longer than what a quiet machine needs: five
// PCs share the cores of this one with the tests, and some days are slow. How long
// things take is logged; see inTime for what is promised.
const patience = 3

// await waits for a condition, and says what it saw last.
func await(t *testing.T, within time.Duration, what string, ok func() (seen string, ok bool)) time.Duration {
	t.Helper()
	began := time.Now()
	within *= patience
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		seen, done := ok()
		if done {
			return time.Since(began)
		}
		if time.Since(began) > within {
			t.Fatalf("waited %s for: %s; last seen:\n%s", within, what, seen)
		}
		<-tick.C
	}
}

// machine is what the tests look at of a Machine.
type machine struct {
	Metadata struct{ Name string }
	Spec     struct {
		Role           string
		RoleGeneration int64
	}
	Status struct {
		Phase          string
		Heartbeat      time.Time
		RoleGeneration int64
		Inventory      struct{ Address, BootID, MachineID string }
		Conditions     []struct{ Type, Status string }
	}
}

func (m machine) ready() bool {
	for _, c := range m.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True" && time.Since(m.Status.Heartbeat) < 30*time.Second
		}
	}
	return false
}

func getMachine(name string) (m machine, err error) {
	out, err := kubectl("get", "machine", name, "-o", "json")
	if err != nil {
		return m, fmt.Errorf("%s %w", out, err)
	}
	return m, json.Unmarshal([]byte(out), &m)
}

func getMachines(t *testing.T) (all []machine) {
	t.Helper()
	out, err := kubectl("get", "machines", "-o", "json")
	var list struct{ Items []machine }
	if err := json.Unmarshal([]byte(must(t, out, err)), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// master is a machine whose API server answers.
func master(t *testing.T) string {
	t.Helper()
	machine, _, err := leading()
	if err != nil {
		t.Fatal(err)
	}
	return machine
}

// workers are those machines of the lab's first five that are none; there have to
// be as many as that.
func workers(t *testing.T, count int) (names []string) {
	t.Helper()
	for _, m := range getMachines(t) {
		if m.Spec.Role == "worker" && m.Metadata.Name <= "pc-05" {
			names = append(names, m.Metadata.Name)
		}
	}
	if len(names) < count {
		t.Fatalf("the workers are %v, want %d", names, count)
	}
	return names
}

// awaitReady waits until a machine is Ready, as its own agent and the site's
// Kubernetes see it.
func awaitReady(t *testing.T, within time.Duration, machine string) time.Duration {
	t.Helper()
	return await(t, within, machine+" to be Ready", func() (string, bool) {
		m, err := getMachine(machine)
		node, _ := kubectl("get", "node", machine, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		return fmt.Sprintf("%+v %v node Ready: %s", m, err, node), err == nil && m.ready() && m.Status.Phase == "Ready" && strings.TrimSpace(node) == "True"
	})
}

// awaitReached waits until the whole site equals a commit.
func awaitReached(t *testing.T, within time.Duration, commit string) time.Duration {
	t.Helper()
	return await(t, within, "the site to reach "+commit, func() (string, bool) {
		out, err := kubectl("get", "sites", "-o", "jsonpath={.items[0].status.commit.reached}{'\\n'}{.items[0].status.conditions}{.items[0].status.errors}")
		return out, err == nil && strings.HasPrefix(out, commit)
	})
}
