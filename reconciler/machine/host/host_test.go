package host_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
)

func TestSystem(t *testing.T) {
	run := func(ctx context.Context, name string, args ...string) (string, error) {
		out, err := host.System{}.Run(ctx, host.Command{Name: name, Args: args, Stdin: strings.NewReader("in"), Env: []string{"EXTRA=1"}})
		return string(out), err
	}
	if out, err := run(t.Context(), "sh", "-c", "cat; echo $EXTRA $LC_ALL"); out != "in1 C\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	var exit *host.Exit
	if out, err := run(t.Context(), "sh", "-c", "echo out; echo why >&2; exit 3"); out != "out\n" || !errors.As(err, &exit) || exit.Code != 3 || !strings.HasSuffix(err.Error(), "exit code 3: why") {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := run(t.Context(), "sh", "-c", "kill -9 $$"); !errors.As(err, &exit) || exit.Code != 137 {
		t.Error(err)
	}
	if _, err := run(t.Context(), "no-such-program"); err == nil || errors.As(err, &exit) && exit.Command.Name == "no-such-program" {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := run(ctx, "sleep", "60"); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	t.Setenv("PATH", filepath.Dir(first(t, "/bin/sh", "/usr/bin/sh")))
	if _, err := run(t.Context(), "losetup", "--version"); err != nil {
		t.Errorf("not found without sbin in PATH: %v", err)
	}
}

// What a command says is in the log whole, whether it ends well or not; and who
// asks for standard error has it too.
func TestLog(t *testing.T) {
	var log, stderr bytes.Buffer
	h := &host.Host{Runner: host.System{}, Log: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, code := range []string{"0", "1"} {
		log.Reset()
		stderr.Reset()
		c := host.Command{Name: "sh", Args: []string{"-c", "echo out; printf %5000d 7 >&2; exit " + code}, Stderr: &stderr}
		_, err := h.Do(t.Context(), c)
		var logged struct{ Line, Stdout, Stderr string }
		if e := json.Unmarshal(log.Bytes(), &logged); e != nil {
			t.Fatal(e)
		}
		said := fmt.Sprintf("%5000d", 7)
		if (err != nil) != (code == "1") || logged.Line != c.String() || logged.Stdout != "out\n" || logged.Stderr != said || stderr.String() != said {
			t.Errorf("code %s: %v, %d bytes of standard error; logged %s", code, err, stderr.Len(), &log)
		}
	}
	log.Reset()
	if _, err := h.Run(t.Context(), "sh", "-c", "echo why >&2"); err != nil || !strings.Contains(log.String(), `"stderr":"why\n"`) {
		t.Errorf("%v, logged %s", err, &log)
	}
}

func TestActive(t *testing.T) {
	m := hosttest.NewDebian(t)
	for _, on := range []bool{false, true} {
		m.Active[host.NodedUnit] = on
		if got, err := m.Host.Active(t.Context(), host.NodedUnit); got != on || err != nil {
			t.Errorf("%v, %v; want %v", got, err, on)
		}
	}
	m.Runner.Answers["systemctl is-active"] = func(c host.Command, _ []byte) (string, error) {
		return "", hosttest.Refuse(c, 1, "Failed to connect to bus")
	}
	if got, err := m.Host.Active(t.Context(), host.NodedUnit); got || err == nil || !strings.Contains(err.Error(), "Failed to connect to bus") {
		t.Errorf("without systemd: %v, %v", got, err)
	}
}

func first(t *testing.T, files ...string) string {
	for _, file := range files {
		if _, err := os.Stat(file); err == nil {
			return file
		}
	}
	t.Skipf("none of %q", files)
	return ""
}

func TestWrite(t *testing.T) {
	m := hosttest.NewDebian(t)
	if err := m.Write("/etc/new/file", []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(m.Path("/etc/new/file"))
	if err != nil || before.Mode().Perm() != 0o600 {
		t.Fatal(before, err)
	}
	if err := m.Write("/etc/new/file", []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(m.Path("/etc/new/file")); !os.SameFile(before, after) {
		t.Error("what was so already was written")
	}
	if err := m.Write("/etc/new/file", []byte("one"), 0o644); err != nil || !m.Same("/etc/new/file", []byte("one"), 0o644) {
		t.Error("the mode is not set", err)
	}
	if entries, _ := os.ReadDir(m.Path("/etc/new")); len(entries) != 1 {
		t.Errorf("left over: %v", entries)
	}
}

func TestHosts(t *testing.T) {
	const was = "127.0.0.1 localhost\n127.0.1.1 pc-01\n"
	const block = "# kingmaker: begin\n127.0.0.1 api.room-1.internal\n# kingmaker: end\n"
	for _, test := range []struct{ name, have, want, gone string }{
		{"new", was, was + block, was},
		{"no newline at the end", strings.TrimSpace(was), was + block, was},
		{"empty", "", block, ""},
		{"already", was + block + "10.0.0.1 printer\n", was + block + "10.0.0.1 printer\n", was + "10.0.0.1 printer\n"},
		{"another site", was + strings.Replace(block, "room-1", "room-2", 1), was + block, was},
		{"twice", block + was + block, block + was, was},
		{"its end is missing", "# kingmaker: begin\n127.0.0.1 x\n" + was, block + "127.0.0.1 x\n" + was, "127.0.0.1 x\n" + was},
	} {
		m := hosttest.NewDebian(t)
		m.Put(t, "/etc/hosts", test.have)
		changed, err := host.EnsureHosts(m.Host, "room-1")
		if err != nil || changed != (test.have != test.want) || m.Get("/etc/hosts") != test.want {
			t.Errorf("%s: changed %v, %v:\n%s", test.name, changed, err, m.Get("/etc/hosts"))
		}
		if changed, err := host.EnsureHosts(m.Host, "room-1"); changed || err != nil {
			t.Errorf("%s: changed again, %v", test.name, err)
		}
		for range 2 {
			if err := host.RemoveHosts(m.Host); err != nil || m.Get("/etc/hosts") != test.gone {
				t.Errorf("%s: removed, %v:\n%s", test.name, err, m.Get("/etc/hosts"))
			}
		}
	}
}

func TestInventory(t *testing.T) {
	m := installed(t)
	got, err := host.TakeInventory(t.Context(), m.Host)
	if err != nil {
		t.Fatal(err)
	}
	got.Architecture = "amd64"
	text, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "inventory.json", append(text, '\n'))
	if changes := m.Runner.Changes(); len(changes) > 0 {
		t.Errorf("did %q", changes)
	}
	// Before the installation there are no versions.
	m = hosttest.NewDebian(t)
	delete(m.Runner.Answers, "containerd")
	if got, err := host.TakeInventory(t.Context(), m.Host); err != nil || got.Kubelet != "" || got.Containerd != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.Remove(m.Path("/etc/machine-id")); err != nil {
		t.Fatal(err)
	}
	if _, err := host.TakeInventory(t.Context(), m.Host); err == nil || !strings.HasPrefix(err.Error(), "take inventory: ") {
		t.Error(err)
	}
}

func TestFsyncP99(t *testing.T) {
	h := &host.Host{Root: t.TempDir()}
	took, err := host.FsyncP99(t.Context(), h, "")
	if err != nil || took <= 0 {
		t.Fatal(took, err)
	}
	t.Logf("p99 of the disk below the test: %v", took)
	if entries, err := os.ReadDir(h.Path(host.StateDir)); err != nil || len(entries) > 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := host.FsyncP99(ctx, h, "/srv"); !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "measure writes to /srv: ") {
		t.Error(err)
	}
}

func TestCheckClock(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		off  time.Duration
		want string
	}{
		{0, ""}, {30 * time.Second, ""}, {-30 * time.Second, ""}, {30*time.Second + 400*time.Millisecond, ""},
		{31 * time.Second, "is 31s fast, and at most 30s are allowed"},
		{-time.Hour, "is 1h0m0s slow"},
	} {
		err := host.CheckClock(now.Add(test.off), now)
		if (err != nil) != (test.want != "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v", test.off, err)
		}
	}
}
