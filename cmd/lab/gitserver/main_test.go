package main

import (
	"bytes"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// git runs it shielded from the settings of this computer, and with env.
func git(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@school.example", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@school.example")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func must(t *testing.T, dir string, args ...string) {
	t.Helper()
	if out, err := git(t, dir, args...); err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestServer(t *testing.T) {
	repo := filepath.Join(t.TempDir(), "site.git")
	for range 2 { // the second time it is there
		if err := makeRepo(t.Context(), repo); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	server := httptest.NewServer(handler(repo, "lab", "s3cret", slog.New(slog.NewTextHandler(&log, nil))))
	defer server.Close()
	as := func(who, path string) string { return strings.Replace(server.URL, "http://", "http://"+who, 1) + path }

	// More than git sends at once, so that it does not tell the length.
	work := t.TempDir()
	noise, err := io.ReadAll(io.LimitReader(rand.Reader, 3<<20))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, "noise"), noise, 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, work, "init", "--quiet", "--initial-branch=main")
	must(t, work, "add", "--all")
	must(t, work, "commit", "--quiet", "--message=Noise")
	must(t, work, "push", "--quiet", as("lab:s3cret@", "/site.git"), "main")

	clone := filepath.Join(t.TempDir(), "clone")
	must(t, work, "clone", "--quiet", "--depth=1", as("lab:s3cret@", "/site.git"), clone)
	if got, err := os.ReadFile(filepath.Join(clone, "noise")); err != nil || !bytes.Equal(got, noise) {
		t.Errorf("cloned %d bytes: %v", len(got), err)
	}

	for _, url := range []string{as("", "/site.git"), as("lab:wrong@", "/site.git"), as("eve:s3cret@", "/site.git"), as("lab:s3cret@", "/other.git")} {
		if out, err := git(t, work, "ls-remote", url); err == nil {
			t.Errorf("%s is served: %s", url, out)
		}
		if out, err := git(t, work, "push", url, "main:eve"); err == nil {
			t.Errorf("%s takes pushes: %s", url, out)
		}
	}
	resp, err := http.Get(server.URL + "/site.git/HEAD")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a password: %s", resp.Status)
	}
	if strings.Contains(log.String(), "s3cret") {
		t.Errorf("the password is in the log:\n%s", &log)
	}
}
