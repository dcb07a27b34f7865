package git

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-git/go-git/v5/plumbing"
)

// location is an address that may be dialled or opened. It holds no secret.
type location struct {
	scheme string // https, http, ssh, file; "" for a path as people write it
	user   string // of ssh
	host   string
	port   string // "" is the scheme's own
	path   string // absolute on this computer; as the server is to get it otherwise
}

func (l location) remote() bool { return l.host != "" }

// authority is host and port as an address has them.
func (l location) authority() string {
	host := l.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if l.port != "" {
		host += ":" + l.port
	}
	return host
}

func (l location) String() string {
	switch {
	case !l.remote():
		return l.path
	case l.user != "":
		return l.scheme + "://" + l.user + "@" + l.authority() + "/" + strings.TrimPrefix(l.path, "/")
	}
	return l.scheme + "://" + l.authority() + "/" + strings.TrimPrefix(l.path, "/")
}

var (
	hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9.])?$`)
	userName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)
)

func refuse(cause, hint string) (location, error) {
	return location{}, fault(URLRefused, "the address of the repository "+cause, hint)
}

func refusePassword() (location, error) {
	return refuse("holds a name or password", "take it out, and put it in a file of the folder that --credentials names")
}

// parseLocation reads an address. Its errors never quote it: who puts a
// password where it does not belong must not find it in a log.
func parseLocation(raw string) (location, error) {
	const forms = "want https://host/path, ssh://user@host/path, user@host:path, or a folder"
	switch {
	case raw == "":
		return refuse("is empty", forms)
	case !printable(raw):
		return refuse("holds characters that cannot be printed", forms)
	case strings.HasPrefix(raw, "-"):
		return refuse("begins with a dash", "write ./- for a folder of such a name")
	}
	head, _, _ := strings.Cut(raw, "/")
	switch colon := strings.Index(head, ":"); {
	case strings.Contains(raw, "://"):
		return parseURL(raw)
	case colon < 0:
		return localPath("", raw)
	case strings.HasPrefix(head[colon:], "::"):
		return refuse("names a program to run", forms)
	case strings.Contains(head[colon:], "@"):
		return refusePassword()
	case slices.Contains([]string{"https", "http", "ssh", "git", "file"}, strings.ToLower(raw[:colon])):
		return refuse("has no // after the protocol", forms)
	default: // user@host:path, the form that ssh and scp have
		l := location{scheme: "ssh", path: raw[colon+1:], host: raw[:colon]}
		if user, host, ok := strings.Cut(l.host, "@"); ok {
			l.user, l.host = user, host
		}
		return l.check()
	}
}

func parseURL(raw string) (location, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return refuse("cannot be read", "see whether characters such as % or spaces are written as %25 or %20") // err quotes it
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(raw, "#") {
		return refuse("has something after a ? or #", "take it out; branch, folder and credentials have flags of their own")
	}
	l := location{scheme: u.Scheme, host: u.Hostname(), port: u.Port(), path: u.Path}
	_, password := u.User.Password()
	switch l.scheme {
	case "https", "http":
		if u.User != nil { // a name alone is often a token
			return refusePassword()
		}
		l.path = u.EscapedPath()
	case "ssh":
		if password {
			return refusePassword()
		}
		l.user = u.User.Username()
		if strings.HasPrefix(l.path, "/~") {
			l.path = l.path[1:] // as git does: ~user is for the server's shell
		}
	case "file":
		if u.User != nil || l.host != "" && l.host != "localhost" || l.port != "" {
			return refuse("is of a file on another computer", "write file:///path")
		}
		return localPath("file", u.Path)
	default: // git:// too: anyone on the way can change what it carries
		return refuse("is of a protocol that is not safe, or not spoken here", "use https:// or ssh://")
	}
	return l.check()
}

// check refuses remote addresses of which a part could be taken for something
// else on the way to the server.
func (l location) check() (location, error) {
	_, addressErr := netip.ParseAddr(l.host)
	port, portErr := strconv.Atoi(l.port)
	switch {
	case addressErr != nil && !hostName.MatchString(l.host) || strings.Contains(l.host, "%"):
		return refuse("has no host name that can be looked up", "want letters, digits, dots and dashes")
	case l.port != "" && (portErr != nil || port < 1 || port > 65535):
		return refuse("has a port that does not exist", "want 1 to 65535")
	case l.user != "" && !userName.MatchString(l.user):
		return refuse("has a user name that cannot be one", "want letters, digits, dots and dashes")
	case !printable(l.path):
		return refuse("holds characters that cannot be printed", "")
	case strings.Trim(l.path, "/") == "":
		return refuse("names a server and no repository on it", "write the path of the repository after the host")
	case strings.HasPrefix(strings.TrimLeft(l.path, "/"), "-"):
		return refuse("has a path that begins with a dash", "")
	case l.scheme == "http" && !isLoopback(l.host):
		return refuse("is http://, which anyone on the way can read and change", "use https://; a certificate of your own goes into ca.crt of the folder that --credentials names")
	}
	return l, nil
}

func localPath(scheme, at string) (location, error) {
	if !printable(at) {
		return refuse("holds characters that cannot be printed", "")
	}
	if scheme == "file" && !strings.HasPrefix(at, "/") {
		return refuse("has no path", "write file:///path")
	}
	full, err := filepath.Abs(at)
	if err != nil {
		return refuse("is relative to a folder that is gone", "write the whole path")
	}
	return location{scheme: scheme, path: full}, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func printable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

// names are what is looked for in a repository.
type names struct {
	branch   string // short; "" where there is a revision
	revision string
	path     string // clean; "." is the root
}

// base and steps of a revision: HEAD~2^.
var revisionForm = regexp.MustCompile(`^([^~^]+)((?:~[0-9]{0,4}|\^[012]?)*)$`)

func parseNames(o Options) (names, error) {
	n := names{branch: strings.TrimPrefix(cmp.Or(o.Branch, "main"), "refs/heads/"), revision: o.Revision, path: path.Clean(cmp.Or(o.Path, "."))}
	if err := checkRef(n.branch); err != nil {
		return names{}, fault(NameRefused, fmt.Sprintf("branch %.100q: %v", n.branch, err), "see git help check-ref-format")
	}
	if n.revision != "" {
		n.branch = ""
		parts := revisionForm.FindStringSubmatch(n.revision)
		if parts == nil || checkRef(parts[1]) != nil {
			return names{}, fault(NameRefused, fmt.Sprintf("revision %.100q: it cannot name a commit", n.revision), "want a branch, a tag, or a commit's hash")
		}
	}
	switch {
	case !printable(o.Path):
		return names{}, fault(NameRefused, fmt.Sprintf("path %.100q: it holds characters that cannot be printed", o.Path), "")
	case strings.HasPrefix(o.Path, "/"), strings.HasPrefix(o.Path, "-"):
		return names{}, fault(NameRefused, fmt.Sprintf("path %.100q: it does not begin with a folder's name", o.Path), "write it relative to the root of the repository")
	}
	for part := range strings.SplitSeq(o.Path, "/") {
		if part == ".." || strings.EqualFold(part, ".git") {
			return names{}, fault(NameRefused, fmt.Sprintf("path %.100q: it leads out of the repository's files", o.Path), "write it without "+part)
		}
	}
	return n, nil
}

// checkRef holds a short name against the rules of git check-ref-format.
func checkRef(name string) error {
	if !printable(name) || len(name) > 250 || strings.HasPrefix(name, "-") {
		return plumbing.ErrInvalidReferenceName
	}
	return plumbing.NewBranchReferenceName(name).Validate()
}

// fullHash reads a whole object id.
func fullHash(text string) (plumbing.Hash, bool) {
	return plumbing.NewHash(text), plumbing.IsHash(text) && text == strings.ToLower(text)
}
