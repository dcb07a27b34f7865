package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
)

// runDemo shows the main job from nothing: a control plane, a site repo, a plan,
// a converged site, a push and what comes of it. It ends by itself and leaves
// nothing behind.
func runDemo(ctx context.Context, flags *flag.FlagSet, args []string) (err error) {
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return errUsage
	}
	dir, err := os.MkdirTemp("", "kingmaker-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &demo{ctx: ctx, out: os.Stdout, dir: dir, bare: filepath.Join(dir, "school.git"), work: filepath.Join(dir, "work"), reconcile: filepath.Join(dir, "reconcile")}

	d.title("A control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler on 127.0.0.1")
	if d.plane, err = controlplane.Start(ctx, controlplane.Options{Controllers: true, Progress: os.Stderr}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.plane.Stop()) }()

	for _, step := range []struct {
		title string
		do    func() error
	}{
		{"Build reconcile", d.build},
		{"A site repo: a bare git repository made from examples/school", d.makeRepo},
		{"What would happen? The plan, before anything is changed", d.dryRun},
		{"Converge: the daemon takes over", d.startDaemon},
		{"A commit that changes, adds and removes something, pushed as people do", d.push},
		{"Drift: somebody deletes a Deployment by hand", d.drift},
		{"How the site is", d.status},
	} {
		d.title(step.title)
		if err := step.do(); err != nil {
			d.stopDaemon()
			return fmt.Errorf("demo: %s: %w", strings.ToLower(step.title[:1])+step.title[1:], err)
		}
	}
	d.stopDaemon()
	fmt.Fprint(d.out, whatNext)
	return nil
}

const whatNext = `
That was the main job. What to try next:

  go run ./cmd/reconcile validate examples/school                  every fault with file and line; break something first
  go run ./cmd/reconcile --repo examples/school --dry-run --offline --output summary
  go run ./cmd/lab controlplane --controllers                      a control plane of your own; then, with its KUBECONFIG:
  go run ./cmd/reconcile --repo examples/school                    edit a file there and watch it arrive
  make bench                                                       the figures, beside kubectl
`

// demo is one run of it.
type demo struct {
	ctx             context.Context
	out             io.Writer
	dir, bare, work string
	reconcile       string
	plane           *controlplane.Plane
	daemon          *exec.Cmd
	daemonLog       bytes.Buffer
}

func (d *demo) title(text string) { fmt.Fprintf(d.out, "\n== %s\n", text) }

// run runs a command in a folder and returns what it printed and its exit code.
// Show prints the command line and the output as it comes.
func (d *demo) run(dir string, show bool, name string, args ...string) (string, int, error) {
	cmd := exec.CommandContext(d.ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "KUBECONFIG="+d.plane.Kubeconfig, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if show {
		fmt.Fprintf(d.out, "$ %s %s\n", filepath.Base(name), strings.Join(args, " "))
		cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, d.out), d.out
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.String(), exit.ExitCode(), nil
	}
	return out.String(), 0, err
}

// must is run for a command that has to succeed.
func (d *demo) must(dir string, show bool, name string, args ...string) (string, error) {
	out, code, err := d.run(dir, show, name, args...)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s %s ended with %d: %s", filepath.Base(name), strings.Join(args, " "), code, strings.TrimSpace(out))
	}
	return out, err
}

func (d *demo) build() error {
	_, err := d.must(".", true, "env", "CGO_ENABLED=0", "go", "build", "-o", d.reconcile, "./cmd/reconcile")
	return err
}

func (d *demo) git(args ...string) error {
	_, err := d.must(d.work, false, "git", append([]string{"-c", "user.name=Ada", "-c", "user.email=ada@school.example"}, args...)...)
	return err
}

func (d *demo) makeRepo() error {
	if err := os.CopyFS(d.work, os.DirFS("examples/school")); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"init", "--quiet", "--initial-branch=main"}, {"add", "--all"}, {"commit", "--quiet", "--message=The school"},
		{"clone", "--quiet", "--bare", d.work, d.bare}, {"remote", "add", "origin", d.bare},
	} {
		if err := d.git(args...); err != nil {
			return err
		}
	}
	_, err := d.must(d.work, true, "git", "log", "--oneline", "--stat", "--no-decorate", "-1", "--stat=80")
	return err
}

func (d *demo) dryRun() error {
	_, code, err := d.run(d.dir, true, d.reconcile, "--repo", d.bare, "--dry-run", "--output", "summary")
	if err == nil && code != 1 {
		err = fmt.Errorf("exit code %d, and 1 is changes pending", code)
	}
	fmt.Fprintf(d.out, "(exit code %d: changes are pending)\n", code)
	return err
}

func (d *demo) startDaemon() error {
	d.daemon = exec.CommandContext(d.ctx, d.reconcile, "--repo", d.bare, "--listen", "", "--interval", "5s")
	d.daemon.Env = append(os.Environ(), "KUBECONFIG="+d.plane.Kubeconfig)
	d.daemon.Stdout, d.daemon.Stderr = &d.daemonLog, &d.daemonLog
	d.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	fmt.Fprintf(d.out, "$ reconcile --repo %s --interval 5s &\n", d.bare)
	began := time.Now()
	if err := d.daemon.Start(); err != nil {
		return err
	}
	head, err := d.must(d.work, false, "git", "rev-parse", "HEAD")
	if err != nil {
		return err
	}
	if err := d.await("the site to reach the commit", func() bool {
		wanted, _, _ := d.kubectl("get", "site", "school", "-o", "jsonpath={.status.commit.wanted} {.status.counts.changes}")
		return wanted == strings.TrimSpace(head)+" 0"
	}); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "converged after %.1f s\n", time.Since(began).Seconds())
	_, err = d.must(d.dir, true, d.plane.Bin("kubectl"), "get", "sites,desktops")
	return err
}

// push makes one commit with three changes and shows each arriving.
func (d *demo) push() error {
	wiki := filepath.Join(d.work, "services", "wiki", "deployment.yaml")
	if err := replaceIn(wiki, "replicas: 2", "replicas: 3"); err != nil {
		return err
	}
	clock := filepath.Join(d.work, "services", "clock")
	if err := os.Mkdir(clock, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(clock, "clock.yaml"), []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bells, namespace: wiki}\ndata: {first: \"08:00\", last: \"15:10\"}\n"), 0o644); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(d.work, "services", "wiki", "networkpolicy.yaml")); err != nil {
		return err
	}
	if err := replaceIn(filepath.Join(d.work, "services", "wiki", "kustomization.yaml"), "  - networkpolicy.yaml\n", ""); err != nil {
		return err
	}
	for _, args := range [][]string{{"add", "--all"}, {"commit", "--quiet", "--message=A third wiki, a bell, and no policy"}} {
		if err := d.git(args...); err != nil {
			return err
		}
	}
	if _, err := d.must(d.work, true, "git", "show", "--stat", "--oneline"); err != nil {
		return err
	}
	began := time.Now()
	fmt.Fprintln(d.out, "$ git push")
	if err := d.git("push", "--quiet", "origin", "main"); err != nil {
		return err
	}
	for _, arrival := range []struct {
		what string
		args []string
		ok   func(out string, code int) bool
	}{
		{"changed: Deployment wiki/web has 3 replicas", []string{"get", "deployment", "--namespace", "wiki", "web", "-o", "jsonpath={.spec.replicas}"},
			func(out string, _ int) bool { return out == "3" }},
		{"added:   ConfigMap wiki/bells", []string{"get", "configmap", "--namespace", "wiki", "bells"},
			func(_ string, code int) bool { return code == 0 }},
		{"removed: the NetworkPolicy of the wiki", []string{"get", "networkpolicies", "--namespace", "wiki", "-o", "name"},
			func(out string, code int) bool { return code == 0 && strings.TrimSpace(out) == "" }},
	} {
		if err := d.await(arrival.what, func() bool {
			out, code, _ := d.kubectl(arrival.args...)
			return arrival.ok(out, code)
		}); err != nil {
			return err
		}
		fmt.Fprintf(d.out, "%s, seen %.1f s after the push\n", arrival.what, time.Since(began).Seconds())
	}
	return nil
}

func (d *demo) drift() error {
	before, _, _ := d.kubectl("get", "deployment", "--namespace", "wiki", "web", "-o", "jsonpath={.metadata.uid}")
	began := time.Now()
	if _, err := d.must(d.dir, true, d.plane.Bin("kubectl"), "delete", "deployment", "--namespace", "wiki", "web"); err != nil {
		return err
	}
	if err := d.await("the Deployment to come back", func() bool {
		now, code, _ := d.kubectl("get", "deployment", "--namespace", "wiki", "web", "-o", "jsonpath={.metadata.uid}")
		return code == 0 && now != before
	}); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "it is back %.1f s after the deletion began\n", time.Since(began).Seconds())
	return nil
}

func (d *demo) status() error {
	_, err := d.must(d.dir, true, d.reconcile, "status")
	fmt.Fprintln(d.out, "(Two objects do not work, and that is right: this control plane has no machines to run them.)")
	return err
}

func (d *demo) kubectl(args ...string) (string, int, error) {
	return d.run(d.dir, false, d.plane.Bin("kubectl"), args...)
}

// await waits for something to be seen, and tells what the daemon said where it
// is not.
func (d *demo) await(what string, ok func() bool) error {
	deadline := time.Now().Add(2 * time.Minute)
	for !ok() {
		switch {
		case d.ctx.Err() != nil:
			return d.ctx.Err()
		case time.Now().After(deadline):
			d.stopDaemon()
			return fmt.Errorf("waited two minutes for: %s; the daemon said:\n%s", what, d.daemonLog.String())
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

// stopDaemon ends the daemon, where it runs.
func (d *demo) stopDaemon() {
	if d.daemon == nil || d.daemon.Process == nil || d.daemon.ProcessState != nil {
		return
	}
	_ = d.daemon.Process.Signal(syscall.SIGTERM)
	_ = d.daemon.Wait()
}

func replaceIn(file, old, new string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !strings.Contains(string(text), old) {
		return fmt.Errorf("%s has no %q", file, old)
	}
	return os.WriteFile(file, []byte(strings.Replace(string(text), old, new, 1)), 0o644)
}
