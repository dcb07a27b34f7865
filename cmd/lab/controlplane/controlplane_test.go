package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/lock"
)

// doomed makes this test binary a program that starts a plane and waits for death.
const doomed = "KINGMAKER_TEST_DOOMED"

func TestMain(m *testing.M) {
	if os.Getenv(doomed) == "" {
		os.Exit(m.Run())
	}
	plane, err := Start(context.Background(), Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(plane.Dir)
	select {}
}

// start starts a plane that the test stops at its end at the latest.
func start(t *testing.T, o Options) *Plane {
	t.Helper()
	if testing.Short() {
		t.Skip("runs a control plane")
	}
	o.Progress = t.Output()
	plane, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
		noneLeft(t, plane.Dir)
	})
	return plane
}

// kubectl runs as an administrator who has the kubeconfig and nothing else.
func kubectl(t *testing.T, p *Plane, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.Bin("kubectl"), append([]string{"--kubeconfig", p.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// users lists the processes whose command line mentions dir. It does not ask for
// known process IDs, so that it also finds what nobody knows of.
func users(dir string) (found []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if line, err := os.ReadFile(f); err == nil && bytes.Contains(line, []byte(dir)) {
			found = append(found, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func noneLeft(t *testing.T, dir string) {
	t.Helper()
	if left := users(dir); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// eventually waits until ok, for as long as a slow computer may need.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func TestPlane(t *testing.T) {
	audit := filepath.Join(t.TempDir(), "audit.log")
	p := start(t, Options{AuditLog: audit, ExtraAPIServerArgs: []string{"--v=3"}})

	if len(users(p.Dir)) != 2 {
		t.Errorf("want etcd and an API server, have:\n%s", strings.Join(users(p.Dir), "\n"))
	}
	filepath.WalkDir(p.Dir, func(path string, d fs.DirEntry, err error) error {
		if info, err := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 && filepath.Dir(path) != filepath.Join(p.Dir, "etcd", "member") {
			t.Errorf("%s is not for its owner alone: %s", path, info.Mode())
		}
		return nil
	})

	t.Run("ready when started", func(t *testing.T) {
		if got := kubectl(t, p, "", "get", "--raw", "/readyz"); got != "ok" {
			t.Errorf("readyz: %s", got)
		}
		kubectl(t, p, "", "get", "namespaces", "default", "kube-system", "kube-public", "kube-node-lease")
		if got := kubectl(t, p, "", "version"); strings.Count(got, "v1.") != 2 {
			t.Errorf("client and server do not know their version:\n%s", got)
		}
	})

	t.Run("strangers are refused", func(t *testing.T) {
		if err := get(t.Context(), http.DefaultClient, p.URL+"/readyz"); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("the certificate is good for those who do not know the authority: %v", err)
		}
		anybody := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		defer anybody.CloseIdleConnections()
		if err := get(t.Context(), anybody, p.URL+"/api/v1/secrets"); err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("secrets for anybody: %v", err)
		}
		// Even the administrator of Kubernetes must not pass it by.
		admin := p.admin.Transport.(*http.Transport).Clone()
		admin.TLSClientConfig.InsecureSkipVerify = true
		defer admin.CloseIdleConnections()
		if err := get(t.Context(), &http.Client{Transport: admin}, p.ports[etcd].url()+"/version"); err == nil || !strings.Contains(err.Error(), "tls") {
			t.Errorf("etcd for an administrator of Kubernetes: %v", err)
		}
	})

	t.Run("requests are audited", func(t *testing.T) {
		kubectl(t, p, "", "create", "configmap", "counted")
		text, err := os.ReadFile(audit)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, `"verb":"create"`) && strings.Contains(line, `"name":"counted"`) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("the audit log has %d lines for one request", n)
		}
	})

	t.Run("API server restarts", func(t *testing.T) {
		before := p.PIDs()
		watch := exec.CommandContext(t.Context(), p.Bin("kubectl"), "--kubeconfig", p.Kubeconfig, "get", "configmaps", "--watch")
		seen, err := watch.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		defer watch.Wait()
		if _, err := seen.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		// An open watch does not hold it up until it must be killed.
		if err := p.StopAPIServer(); err != nil {
			t.Fatal(err)
		}
		if err := p.StopAPIServer(); err != nil {
			t.Errorf("stop a second time: %v", err)
		}
		if err := get(t.Context(), p.admin, p.URL+"/readyz"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("while it is down: want a refused connection, have %v", err)
		}
		if err := p.StartAPIServer(t.Context()); err != nil {
			t.Fatal(err)
		}
		kubectl(t, p, "", "get", "configmap", "counted")
		if err := p.RestartAPIServer(t.Context()); err != nil {
			t.Fatal(err)
		}
		kubectl(t, p, "", "get", "configmap", "counted")
		after := p.PIDs()
		if after[etcd] != before[etcd] || after[apiserver] == before[apiserver] {
			t.Errorf("want the same etcd and another API server; PIDs before %v, after %v", before, after)
		}
		select {
		case err := <-p.Failed():
			t.Errorf("what was asked for is taken for a failure: %v", err)
		default:
		}
	})

	t.Run("API server is killed", func(t *testing.T) {
		if err := syscall.Kill(p.PIDs()[apiserver], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-p.Failed(); !strings.Contains(err.Error(), "kube-apiserver ended by itself (signal: killed)") {
			t.Error(err)
		}
		if err := p.StartAPIServer(t.Context()); err != nil {
			t.Fatal(err)
		}
		kubectl(t, p, "", "get", "configmap", "counted")
	})

	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	noneLeft(t, p.Dir)
	if _, err := os.Stat(p.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary folder is still there: %v", err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stop a second time: %v", err)
	}
	if err := p.StartAPIServer(t.Context()); err == nil {
		t.Error("an API server without etcd starts")
	}
}

func TestControllers(t *testing.T) {
	p := start(t, Options{Controllers: true})
	kubectl(t, p, "", "create", "deployment", "web", "--image=web")
	eventually(t, "the scheduler says that there is no machine for the pod", func() bool {
		return strings.Contains(kubectl(t, p, "", "get", "pods", "-o=jsonpath={.items[*].status.conditions[*].message}"), "no nodes available")
	})
	if n := len(p.PIDs()); n != 4 {
		t.Errorf("%d components: %v", n, p.PIDs())
	}
}

func TestDirIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	p := start(t, Options{Dir: dir})
	kubectl(t, p, "", "create", "configmap", "kept")
	if second, err := Start(t.Context(), Options{Dir: dir}); err == nil {
		second.Stop()
		t.Error("two planes in one folder")
	} else if !errors.Is(err, lock.ErrHeld) {
		t.Errorf("want %q, have %v", lock.ErrHeld, err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	kubectl(t, start(t, Options{Dir: dir}), "", "get", "configmap", "kept")
}

func TestTwoAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("runs control planes")
	}
	var planes [2]*Plane
	var wg sync.WaitGroup
	for i := range planes {
		wg.Go(func() {
			p, err := Start(t.Context(), Options{})
			if err != nil {
				t.Error(err)
			}
			planes[i] = p
		})
	}
	wg.Wait()
	for _, p := range planes {
		if p != nil {
			defer p.Stop()
		}
	}
	if t.Failed() {
		return
	}
	if planes[0].URL == planes[1].URL {
		t.Errorf("both at %s", planes[0].URL)
	}
	if err := get(t.Context(), planes[0].admin, planes[1].URL+"/readyz"); err == nil {
		t.Error("one plane trusts the other's authority")
	}
	kubectl(t, planes[0], "", "create", "configmap", "mine")
	if got := kubectl(t, planes[1], "", "get", "configmaps", "mine", "--ignore-not-found"); got != "" {
		t.Errorf("one plane has the other's objects: %s", got)
	}
}

// TestKilled kills the process that started a plane as hard as can be.
func TestKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a control plane")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), doomed+"=1")
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir, err := bufio.NewReader(out).ReadString('\n')
	dir = strings.TrimSpace(dir)
	if err != nil || len(users(dir)) != 2 {
		t.Errorf("no plane was started: dir %q, %v, running %v", dir, err, users(dir))
	}
	cmd.Process.Kill()
	cmd.Wait()
	if t.Failed() {
		return
	}
	eventually(t, "etcd and the API server end", func() bool { return len(users(dir)) == 0 })

	// What such an end does leave is a folder, which the next plane removes.
	live := start(t, Options{})
	old := time.Now().Add(-time.Hour)
	for _, d := range []string{dir, live.Dir} {
		if err := os.Chtimes(d, old, old); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of the dead is still there: %v", err)
	}
	if _, err := os.Stat(live.Kubeconfig); err != nil {
		t.Errorf("the folder of the living was removed: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	for _, test := range []struct {
		name, etcd string // etcd is a script; "" is none
		want       []string
	}{
		{"program is missing", "", []string{"start etcd: ", "BIN/etcd: no such file"}},
		{"program ends", "#!/bin/sh\necho the disk is full >&2\nexit 3\n",
			[]string{"start etcd: it ended (exit status 3)", "\n\tthe disk is full"}},
		{"program hangs", "#!/bin/sh\necho thinking; exec sleep 1000\n",
			[]string{"start etcd: not in time", "not ready because: ", "connection refused", "\n\tthinking"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bin := t.TempDir()
			t.Setenv("TMPDIR", t.TempDir())
			if test.etcd != "" {
				if err := os.WriteFile(filepath.Join(bin, etcd), []byte(test.etcd), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("not in time"))
			defer cancel()
			p, err := Start(ctx, Options{Bin: bin, Progress: io.Discard})
			if err == nil {
				p.Stop()
				t.Fatal("it started")
			}
			for _, want := range test.want {
				if want = strings.ReplaceAll(want, "BIN", bin); !strings.Contains(err.Error(), want) {
					t.Errorf("want %q in the error, have:\n%v", want, err)
				}
			}
			if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
