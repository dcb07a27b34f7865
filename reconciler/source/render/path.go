package render

import (
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// resolve finds what an entry of a kustomization names: a file, or, with a nil
// file, a folder. It rewrites the entry to a path that begins with "./" or
// "../": such a path kustomize takes neither for the address of a repository
// nor for a URL, whatever it holds. Anything else is a fault.
func (k *kustomization) resolve(entry *string, field ...any) (at string, file *tree.File, ok bool) {
	e := *entry
	switch bad := unreadable(e); {
	case e == "":
		k.fault(BadKustomization, field, "", "the path is empty")
		return "", nil, false
	case looksRemote(e):
		k.fault(RemoteBase, field, "copy what you need into the site repo; a path in it that looks like this begins with ./", "%q is not in the site repo, and nothing is fetched from elsewhere", shorten(e))
		return "", nil, false
	case bad != "":
		k.fault(BadFileName, field, "", "the path %q has %s", shorten(e), bad)
		return "", nil, false
	case strings.HasPrefix(e, "/"):
		k.fault(OutsideSite, field, "write it relative to the folder of the kustomization", "the path %q is absolute", shorten(e))
		return "", nil, false
	case ambiguous(e):
		k.fault(BadKustomization, field, "check the indentation: two entries may have become one", "the path %q has a name with .. in it", shorten(e))
		return "", nil, false
	}
	at = path.Join(k.f.at, e)
	if at == ".." || strings.HasPrefix(at, "../") {
		k.fault(OutsideSite, field, "", "the path %q leaves the site repo", shorten(e))
		return "", nil, false
	}
	if at == "." {
		at = ""
	}
	dir, file, name := k.s.lookUp(at)
	switch {
	case file != nil && file.Kind != tree.Regular:
		k.s.refuse(file, name, plan.Fault{Where: k.where(field), Field: plan.Field(field...)})
		return "", nil, false
	case dir == nil && file == nil && looksLikeHost(e):
		k.fault(RemoteBase, field, "copy what you need into the site repo", "%q is not in the site repo, and nothing is fetched from elsewhere", shorten(e))
		return "", nil, false
	case dir == nil && file == nil:
		hint := ""
		if name != "" {
			hint = "there is " + name
		}
		k.fault(plan.UnknownReference, field, hint, "there is no file or folder %s", shorten(at))
		return "", nil, false
	}
	rel, err := filepath.Rel("/"+k.f.at, "/"+at)
	if err != nil {
		k.fault(BadKustomization, field, "", "the path %q cannot be followed", shorten(e))
		return "", nil, false
	}
	if !strings.HasPrefix(rel, "../") && rel != ".." {
		rel = "./" + rel
	}
	*entry = rel
	return at, file, true
}

// lookUp walks down to a path. Where a symlink or submodule stands on the way,
// that is the file. Where there is nothing, name is something that differs from
// what was looked for in capitals only, if there is one.
func (s *scan) lookUp(at string) (dir *tree.Dir, file *tree.File, name string) {
	dir = s.root
	walked := ""
	for rest := at; rest != ""; {
		var step string
		step, rest, _ = strings.Cut(rest, "/")
		below := path.Join(walked, step)
		if f := dir.Files[step]; f != nil && (rest == "" || f.Kind != tree.Regular) {
			return nil, f, below
		}
		if dir.Dirs[step] == nil {
			for other := range keys(dir) {
				if len(s.faults) < maxNotes && strings.EqualFold(other, step) {
					return nil, nil, path.Join(walked, other)
				}
			}
			return nil, nil, ""
		}
		dir, walked = dir.Dirs[step], below
	}
	return dir, nil, walked
}

// hostPath begins as an address of a git host does: a name before a colon, as
// in git@host:path and C:\, or a scheme.
var hostPath = regexp.MustCompile(`^[^/]*:|://`)

// looksRemote tells what kustomize, or a person, would take for an address. A
// path that begins with a dot is none: kustomize's own parser agrees.
func looksRemote(e string) bool {
	if strings.HasPrefix(e, "./") || strings.HasPrefix(e, "../") {
		return false
	}
	lower := strings.ToLower(e)
	return hostPath.MatchString(e) || strings.HasPrefix(e, "//") || strings.HasPrefix(lower, "github.com/") ||
		strings.Contains(lower, ".git/") || strings.HasSuffix(lower, ".git") || strings.Contains(lower, "?ref=") || strings.Contains(lower, "?version=")
}

// looksLikeHost tells host.tld/path, which may as well be a folder, so that it
// is only asked of what is not there.
func looksLikeHost(e string) bool {
	host, _, below := strings.Cut(e, "/")
	return below && strings.Contains(strings.Trim(host, "."), ".")
}

// ambiguous tells a path with .. within a name. Where two entries of a list run
// into one by a slip of indentation, the path cleans up to a folder that nobody
// meant.
func ambiguous(e string) bool {
	for name := range strings.SplitSeq(e, "/") {
		if name != ".." && strings.Contains(name, "..") {
			return true
		}
	}
	return false
}

// unreadable says what is wrong with a name or path that a person cannot read
// for what it is: control characters, and those that turn the direction of
// writing or show nothing.
func unreadable(name string) string {
	if !utf8.ValidString(name) {
		return "bytes that are not UTF-8"
	}
	for _, r := range name {
		switch {
		case r == '\\':
			return "a backslash"
		case unicode.IsControl(r):
			return "a control character"
		case !unicode.IsPrint(r):
			return "a character that does not show"
		}
	}
	return ""
}
