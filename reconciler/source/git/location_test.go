package git

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

func TestLocations(t *testing.T) {
	t.Parallel()
	here, _ := os.Getwd()
	for raw, want := range map[string]string{
		"https://git.school.example/site.git":       "https://git.school.example/site.git",
		"https://git.school.example:8443/a%20b/c":   "https://git.school.example:8443/a%20b/c",
		"http://127.0.0.1:3000/site.git":            "http://127.0.0.1:3000/site.git",
		"http://[::1]:3000/site.git":                "http://[::1]:3000/site.git",
		"http://localhost/site.git":                 "http://localhost/site.git",
		"ssh://git@git.school.example:2222/srv/s":   "ssh://git@git.school.example:2222/srv/s",
		"ssh://git.school.example/~anna/site":       "ssh://git.school.example/~anna/site",
		"git@git.school.example:it/site.git":        "ssh://git@git.school.example/it/site.git",
		"git.school.example:it/site.git":            "ssh://git.school.example/it/site.git",
		"file:///srv/site.git":                      "/srv/site.git",
		"file://localhost/srv/site.git":             "/srv/site.git",
		"/srv/site":                                 "/srv/site",
		"site":                                      filepath.Join(here, "site"),
		"./a:b":                                     filepath.Join(here, "a:b"),
		"HTTPS://git.school.example/site.git":       "https://git.school.example/site.git",
		"ssh://git@[fe80::1]:22/srv/site":           "ssh://git@[fe80::1]:22/srv/site",
		"https://git.school.example/-/really/a.git": "",
		"":                                             "",
		"-x":                                           "",
		"--upload-pack=touch /tmp/x":                   "",
		"ext::sh -c 'touch /tmp/x'":                    "",
		"fd::17":                                       "",
		"git://git.school.example/site.git":            "",
		"ftp://git.school.example/site.git":            "",
		"http://git.school.example/site.git":           "",
		"http://169.254.169.254/latest":                "",
		"https://git.school.example":                   "",
		"https://git.school.example/":                  "",
		"https:///site.git":                            "",
		"https://-oProxyCommand=x/site.git":            "",
		"ssh://-oProxyCommand=x/site.git":              "",
		"-oProxyCommand=x:site.git":                    "",
		"git@-oProxyCommand=x:site.git":                "",
		"git@git.school.example:-x":                    "",
		"git@git.school.example:":                      "",
		"ssh://-l@git.school.example/x":                "",
		"https:/anna:" + canary + "@h.example/x":       "",
		"https://git.school.example:0/x":               "",
		"https://git.school.example:99999/x":           "",
		"https://git.school.example/x\n":               "",
		"https://git.school.example/x%0ay":             "https://git.school.example/x%0ay", // stays as it is in a URL
		"ssh://git.school.example/x%0ay":               "",
		"https://git.school.example/x?y=" + canary:     "",
		"https://git.school.example/x#" + canary:       "",
		"https://anna:" + canary + "@h.example/x":      "",
		"https://" + canary + "@h.example/x":           "",
		"https://" + canary + "@h.example/x%zz":        "",
		"ssh://anna:" + canary + "@h.example/x":        "",
		"anna:" + canary + "@h.example:x":              "",
		"anna:" + canary + "@h.example/x":              "",
		"file://anna:" + canary + "@localhost/x":       "",
		"file://elsewhere/x":                           "",
		"https://h\u00e4user.example/x":                "",
		"https://[fe80::1%25eth0]/x":                   "",
		"https://git.school.example/\u202egit.x\u202c": "",
	} {
		at, err := parseLocation(raw)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q is taken for %s", raw, at)
		case want == "":
			wantFault(t, err, URLRefused)
		case err != nil || at.String() != want:
			t.Errorf("%q: %s, %v, want %s", raw, at, err, want)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{
		{Branch: "-x"}, {Branch: "a..b"}, {Branch: "a b"}, {Branch: "a~1"}, {Branch: "a.lock"}, {Branch: "/a"}, {Branch: "a/"}, {Branch: "a//b"},
		{Branch: "@"}, {Branch: "a@{1}"}, {Branch: ".a"}, {Branch: "a/.b"}, {Branch: "a."}, {Branch: "a\x00"}, {Branch: "a\\b"}, {Branch: "--upload-pack=x"},
		{Revision: "-x"}, {Revision: "~1"}, {Revision: "^"}, {Revision: ":/text"}, {Revision: "HEAD^{/x}"}, {Revision: "HEAD@{1}"}, {Revision: "a b"}, {Revision: "HEAD~99999"}, {Revision: "HEAD:x"},
		{Path: "/etc"}, {Path: ".."}, {Path: "a/../b"}, {Path: "a/.git"}, {Path: "-x"}, {Path: "a\x00"},
	} {
		o.URL = "https://git.school.example/x"
		_, err := Open(o)
		wantFault(t, err, NameRefused)
	}
	for _, o := range []Options{
		{}, {Branch: "feature/x-1"}, {Branch: "refs/heads/main"}, {Revision: "v1.0"}, {Revision: "HEAD~2^2~"}, {Revision: "origin/main"}, {Path: "."}, {Path: "sites/./north/"},
	} {
		if _, err := parseNames(o); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add("https://anna:secretpw@h.example/x", "main", "", "")
	f.Add("git@h.example:x/y.git", "a/b", "HEAD~1", "sites/north")
	f.Add("ext::sh -c x", "-x", "--upload-pack", "../x")
	f.Add("file:///srv/x", "", "v1.0", ".")
	f.Add("ssh://git:secretpw@[::1]:22/~x", "@{", "^", "/")
	f.Add("anna:secretpw@h:x", "", "", "")
	f.Fuzz(func(t *testing.T, url, branch, revision, path string) {
		r, err := Open(Options{URL: url, Branch: branch, Revision: revision, Path: path})
		secret := ""
		if parts := regexp.MustCompile(`^(?:[a-zA-Z0-9+.-]+://)?[^/@:]*:([^/@]{6,})@`).FindStringSubmatch(url); parts != nil {
			secret = parts[1]
		}
		if err != nil {
			if !isFault(err) {
				t.Errorf("%v is no fault", err)
			}
			if secret != "" && strings.Contains(err.Error(), secret) && isFaultOf(err, URLRefused) {
				t.Errorf("%v quotes %q", err, secret)
			}
			return
		}
		defer r.Close()
		if secret != "" && strings.Contains(r.String(), secret) && !strings.HasPrefix(r.String(), "/") {
			t.Errorf("%q: %s", url, r)
		}
		for _, name := range []string{url, branch, revision, path} {
			if strings.HasPrefix(name, "-") {
				t.Errorf("%q is accepted", name)
			}
		}
		if regexp.MustCompile(`^[^:/]*::`).MatchString(url) {
			t.Errorf("%q is accepted", url)
		}
	})
}

func isFaultOf(err error, code plan.Code) bool {
	faults, _ := plan.Split(err)
	return len(faults) > 0 && faults[0].Code == code
}

// Older versions have holes that a hostile repository gets through.
func TestGoGitFloor(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	parts := regexp.MustCompile(`github.com/go-git/go-git/v5 v5\.(\d+)\.(\d+)`).FindSubmatch(mod)
	if parts == nil {
		t.Fatal("go.mod has no go-git v5")
	}
	minor, _ := strconv.Atoi(string(parts[1]))
	patch, _ := strconv.Atoi(string(parts[2]))
	if minor != 19 || patch < 3 {
		t.Errorf("%s, want 5.19.3 or a newer 5.19", parts[0])
	}
}
