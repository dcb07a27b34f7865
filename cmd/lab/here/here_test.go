package here

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckout(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Checkout(); err != nil || got != filepath.Join(wd, "..", "..", "..") {
		t.Errorf("%s %v", got, err)
	}
	t.Chdir(t.TempDir())
	if _, err := Checkout(); err == nil || !strings.Contains(err.Error(), "not inside a checkout of "+module) {
		t.Errorf("outside: %v", err)
	}
}

func TestCache(t *testing.T) {
	for _, c := range []struct{ kingmaker, user, home, want string }{
		{"/k", "/u", "/h", "/k/lab"},
		{"", "/u", "/h", "/u/kingmaker/lab"},
		{"", "", "/h", "/h/.cache/kingmaker/lab"},
		{"", "", "", ""},
	} {
		t.Setenv("KINGMAKER_CACHE", c.kingmaker)
		t.Setenv("XDG_CACHE_HOME", c.user)
		t.Setenv("HOME", c.home)
		got, err := Cache("lab")
		if got != c.want || (err == nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), "KINGMAKER_CACHE names another") {
			t.Errorf("%+v: %q %v", c, got, err)
		}
	}
	t.Chdir(t.TempDir())
	t.Setenv("KINGMAKER_CACHE", "k")
	if got, err := Cache(); err != nil || !filepath.IsAbs(got) || filepath.Base(got) != "k" {
		t.Errorf("relative: %q %v", got, err)
	}
}

func TestFindMirrors(t *testing.T) {
	const uris = "'http://deb.example/debian/dists/trixie/main/binary-amd64/Packages.xz' x 0\n"
	for _, c := range []struct {
		about, answer string
		fails         error
		want, err     string
	}{
		{"a mirror", uris, nil, "http://deb.example/debian", ""},
		{"none", "", nil, "", "APT on this computer has no source"},
		{"no APT", "", errors.New("broken"), "", "broken"},
	} {
		got, err := FindMirrors(t.Context(), func(context.Context, ...string) ([]byte, error) { return []byte(c.answer), c.fails })
		if got.Main != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %+v %v", c.about, got, err)
		}
	}
}

func TestMirrors(t *testing.T) {
	for _, c := range []struct{ about, uris, main, security string }{
		{
			about: "Debian 12",
			uris: `'http://deb.example/debian/dists/bookworm/InRelease' deb.example_debian_dists_bookworm_InRelease 0
'http://deb.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' x 0
'http://deb.example/debian/dists/bookworm-updates/main/binary-amd64/Packages.xz' x 0
'http://deb.example/debian-security/dists/bookworm-security/main/binary-amd64/Packages.xz' x 0
`,
			main: "http://deb.example/debian", security: "http://deb.example/debian-security",
		},
		{
			about: "others first",
			uris: `'https://docker.example/linux/debian/dists/bookworm/stable/binary-amd64/Packages.xz' x 0
'https://node.example/node/dists/nodistro/contrib/binary-amd64/Packages.xz' x 0
'http://deb.example/debian/dists/trixie/main/binary-amd64/Packages.xz' x 0
`,
			main: "http://deb.example/debian",
		},
		{
			about: "a cloud image",
			uris:  "'mirror+file:/etc/apt/mirrors/debian.list/dists/trixie/main/binary-amd64/Packages.xz' x 0\n",
			main:  "mirror+file:/etc/apt/mirrors/debian.list",
		},
		{about: "none", uris: "\n"},
	} {
		if got, want := mirrors(c.uris), (Mirrors{c.main, c.security}); got != want {
			t.Errorf("%s: %+v, want %+v", c.about, got, want)
		}
	}
}
