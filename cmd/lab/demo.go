package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
	"github.com/kingmaker-io/kingmaker/cmd/lab/room/site"
)

// runDemo is the main job, from nothing: PCs with only Debian become a site, and
// a push changes it. The site stays, to be tried; a lab that is up already is
// used as it is.
func runDemo(ctx context.Context, flags *flag.FlagSet, args []string) error {
	r, err := parseRoom(flags, args, 0)
	if err != nil {
		return err
	}
	s := &site.Site{Room: r, Progress: r.Progress}
	rooms, err := room.Rooms()
	if err != nil {
		return err
	}
	if slices.Contains(rooms, r.Name) {
		r.Progress(fmt.Sprintf("the lab %s is there already; `lab down --name %[1]s` takes it away", r.Name))
		if _, err := s.Kubeconfig(ctx); err != nil { // of a demo that was interrupted, most of the time
			return fmt.Errorf("demo: its site does not answer: %w", err)
		}
	} else {
		began, memory := time.Now(), watchMemory()
		if s, err = up(ctx, r, upOptions{machines: 5}); err != nil {
			return err
		}
		fmt.Printf("\nfrom nothing to a site in %.0f s; peak memory of the whole computer %.1f GB above what it used before\n",
			time.Since(began).Seconds(), float64(memory.peak())/1e9)
	}

	d := &demo{ctx: ctx, out: os.Stdout, lab: r, site: s}
	for _, step := range []struct {
		title string
		do    func() error
	}{
		{"The machines, as the site knows them", d.machines},
		{"How far the site has come", d.status},
		{"A commit, pushed as people do", d.push},
	} {
		fmt.Printf("\n== %s\n", step.title)
		if err := step.do(); err != nil {
			return fmt.Errorf("demo: %s: %w", strings.ToLower(step.title[:1])+step.title[1:], err)
		}
	}
	fmt.Printf(whatNext, r.WorkTree())
	return nil
}

const whatNext = `
That is a site, and it stays. What to try next (lab is "go run ./cmd/lab"):

  lab status                          the machines: power, cable, role
  lab cut pc-03; lab heal pc-03       pull a network cable, and put it back
  lab kill pc-02; lab start pc-02     cut the power of a machine
  lab exec pc-01 -- bash              sit down at one; kubectl, noded status and reconcile are there
  lab add                             buy another PC; noded install, and the line of reconcile token, make it a machine
  lab down                            takes everything away

And in another terminal, a clone of the site repo: edit, commit, push, and watch it arrive.

  cd %s
`

// demo shows a site.
type demo struct {
	ctx  context.Context
	out  io.Writer
	lab  *room.Room
	site *site.Site
}

// on runs a command on the first machine, and shows both.
func (d *demo) on(args ...string) error {
	fmt.Fprintf(d.out, "pc-01$ %s\n", strings.Join(args, " "))
	return d.run("", d.lab.Exec("pc-01", false, append([]string{"env", "KUBECONFIG=/etc/kubernetes/admin.conf"}, args...)...)...)
}

func (d *demo) run(dir string, argv ...string) error {
	cmd := exec.CommandContext(d.ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = d.out, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}

func (d *demo) machines() error { return d.on("kubectl", "get", "machines") }

func (d *demo) status() error { return d.on("reconcile", "status") }

// push commits a notice, and waits until the site has it.
func (d *demo) push() error {
	clone := d.lab.WorkTree()
	file := filepath.Join(clone, "services", "notice", "notice.yaml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notice, namespace: default}\ndata: {text: \"pushed at %s\"}\n", time.Now().Format(time.TimeOnly))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{{"add", "--all"}, {"commit", "--quiet", "--message", "A notice"}, {"push", "--quiet"}} {
		fmt.Fprintf(d.out, "clone$ git %s\n", strings.Join(args, " "))
		if err := d.run(clone, append([]string{"git"}, args...)...); err != nil {
			return err
		}
	}
	pushed := time.Now()
	if err := d.site.Settled(d.ctx, nil); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "the site has it after %.1f s\n", time.Since(pushed).Seconds())
	return d.on("kubectl", "get", "configmap", "notice", "-o", "jsonpath={.data.text}{'\\n'}")
}
