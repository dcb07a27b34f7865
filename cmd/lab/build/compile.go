package build

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// args gives the arguments of the compiler that decide how a program comes out;
// the places of input and output are left to build.
func (r recipe) args(p program) []string {
	if strings.HasSuffix(p.pkg, ".c") { // as in build/pause/Makefile of Kubernetes
		return []string{"-Os", "-static", "-s", "-DVERSION=v" + pauseVersion + "-" + r.version}
	}
	link := []string{"-s", "-w"}
	for _, variable := range r.stamps {
		link = append(link, "-X", variable+"="+r.version)
		if pkg, ok := strings.CutSuffix(variable, ".gitVersion"); ok { // the other ones of Kubernetes
			number := strings.SplitN(strings.TrimPrefix(r.version, "v"), ".", 3)
			for _, set := range []string{
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

// build builds one program into the file out.
func (r recipe) build(ctx context.Context, p program, out, title string, progress io.Writer) error {
	if !strings.HasSuffix(p.pkg, ".c") {
		return follow(ctx, goCommand(ctx, r.dir, append(r.args(p), "-o", out, p.pkg)...), title, progress)
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		return errors.New("it is written in C, and there is no gcc; install Debian's packages gcc and libc6-dev")
	}
	text, err := goCommand(ctx, r.dir, "mod", "download", "-json", r.path).Output()
	if err != nil {
		return fmt.Errorf("find module %s: %w", r.path, cmp.Or(context.Cause(ctx), err))
	}
	var where struct{ Dir string }
	if err := json.Unmarshal(text, &where); err != nil {
		return fmt.Errorf("find module %s: %w", r.path, err)
	}
	cmd := exec.CommandContext(ctx, "gcc", append(r.args(p), "-o", out, filepath.Join(where.Dir, p.pkg))...)
	return follow(ctx, cmd, title, progress)
}

// follow runs a compiler and tells progress how long it is at it. The error quotes
// what the compiler said; when ctx has ended it is the cause of that.
func follow(ctx context.Context, cmd *exec.Cmd, title string, progress io.Writer) error {
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
				return context.Cause(ctx) // rather than how it made the compiler end
			}
			if err != nil {
				return fmt.Errorf("%w\n%s", err, lastLines(said.Bytes(), 20))
			}
			fmt.Fprintf(progress, "  %s: built in %s\n", title, time.Since(begin).Round(time.Second))
			return nil
		}
	}
}

// lastLines gives the last n lines, indented so that they stand apart as a quote.
func lastLines(text []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\t" + strings.Join(lines[max(0, len(lines)-n):], "\n\t")
}

// goCommand runs go in a module, shielded from settings of the caller's that are
// meant for his own modules. When ctx ends, its compilers end with it.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(slices.Clip(os.Environ()), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly",
		"GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}
