package here

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
)

// Suite is the release of Debian that machines have: their base image is made of
// it, and the bundle's packages are for it.
const Suite = "trixie"

// Keyring has the keys that sign Debian's releases; package
// debian-archive-keyring, which every Debian has.
const Keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Mirrors are the addresses from which this computer gets its own Debian,
// whichever release that is, without a slash at the end. That of cloud images is
// called mirror+file:/etc/apt/...
type Mirrors struct {
	Main     string // Debian's archive
	Security string // its security updates; "" where this computer has none
}

// FindMirrors asks APT, by way of run, which gives what a command prints.
func FindMirrors(ctx context.Context, run func(ctx context.Context, args ...string) ([]byte, error)) (Mirrors, error) {
	empty, err := os.MkdirTemp("", "kingmaker-apt-")
	if err != nil {
		return Mirrors{}, err
	}
	defer os.RemoveAll(empty)
	if err := os.MkdirAll(filepath.Join(empty, "lists", "partial"), 0o755); err != nil {
		return Mirrors{}, err
	}
	// As if APT knew nothing yet: it then names all that it would fetch, without a
	// network. "apt-get indextargets" tells only of lists that were fetched before.
	would, err := run(ctx, "apt-get", "-o", "Dir::State="+empty, "update", "--print-uris")
	if err != nil {
		return Mirrors{}, err
	}
	m := mirrors(string(would))
	if m.Main == "" {
		return m, errors.New("APT on this computer has no source for Debian's component main; add one to /etc/apt/sources.list")
	}
	return m, nil
}

// mirrors finds them among the addresses that "apt-get update --print-uris"
// writes. Others have releases of the same names, but no component main beside
// them; and if one had, APT would miss Debian's signature.
func mirrors(uris string) (found Mirrors) {
	for _, m := range regexp.MustCompile(`(?m)^'(\S+)/dists/([a-z]+)(-security)?/main/binary-`).FindAllStringSubmatch(uris, -1) {
		switch {
		case m[3] == "" && found.Main == "":
			found.Main = m[1]
		case m[3] != "" && found.Security == "":
			found.Security = m[1]
		}
	}
	return found
}
