// Package tree is a read-only file tree of one commit: the form in which git
// and plain folders hand files to the render. It has no work tree behind it,
// follows no link and runs nothing.
package tree

import (
	"path"
	"slices"
	"strings"
)

// Dir is a folder. Its Hash is the git tree id, of a plain folder too, so that
// equal content has equal hashes wherever it comes from.
type Dir struct {
	Hash  string           // hex object id of the git tree
	Dirs  map[string]*Dir  // by name
	Files map[string]*File // by name: everything that is not a folder
}

// File is anything in a folder that is not a folder.
type File struct {
	Hash string // hex object id of the git blob
	Size int64  // bytes
	Kind Kind

	// Executable files of git have mode 100755. It counts in the hash of the
	// folder and nowhere else.
	Executable bool

	// Read loads the content. Only a Regular file has one. It may be called
	// from several goroutines at once.
	Read func() ([]byte, error)
}

// Kind says what a File is. Only Regular ones can be rendered; the others are
// kept in the tree so that a reference to one can be refused by name.
type Kind int

const (
	Regular   Kind = iota
	Symlink        // never followed
	Submodule      // never fetched
	Irregular      // devices, sockets and pipes of a plain folder
)

// Sub is the folder at a slash-separated path below d; "" and "." are d itself.
// A path that leaves d or names no folder gives nil.
func (d *Dir) Sub(at string) *Dir {
	at = path.Clean("/" + at)[1:]
	for d != nil && at != "" {
		name, rest, _ := strings.Cut(at, "/")
		d, at = d.Dirs[name], rest
	}
	return d
}

// File is the file at a slash-separated path below d, nil where there is none.
func (d *Dir) File(at string) *File {
	folder, name := path.Split(path.Clean("/" + at)[1:])
	if d = d.Sub(folder); d == nil {
		return nil
	}
	return d.Files[name]
}

// Walk calls visit for each file below d, in the order of their paths, until
// visit returns an error.
func (d *Dir) Walk(visit func(at string, f *File) error) error { return d.walk("", visit) }

func (d *Dir) walk(prefix string, visit func(string, *File) error) error {
	names := make([]string, 0, len(d.Dirs)+len(d.Files))
	for name := range d.Dirs {
		names = append(names, name)
	}
	for name := range d.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if sub := d.Dirs[name]; sub != nil {
			if err := sub.walk(path.Join(prefix, name), visit); err != nil {
				return err
			}
		} else if err := visit(path.Join(prefix, name), d.Files[name]); err != nil {
			return err
		}
	}
	return nil
}
