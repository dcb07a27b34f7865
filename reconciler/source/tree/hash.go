package tree

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// HashBlob is the git object id of a file's content.
func HashBlob(content []byte) string { return hash("blob", content) }

// hash is the id that git gives to an object. SHA-1 is git's choice; whoever
// can push a collision can push anything else as well.
func hash(kind string, content []byte) string {
	h := sha1.New()
	fmt.Fprintf(h, "%s %d\x00", kind, len(content))
	h.Write(content)
	return hex.EncodeToString(h.Sum(nil))
}

// emptyTree is the id of a folder without files, which git does not record.
const emptyTree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

// Seal fills in the Hash of every folder below d, and of d itself, that has
// none yet: the git tree id. It returns d.
func (d *Dir) Seal() *Dir {
	if d.Hash != "" {
		return d
	}
	type entry struct{ key, mode, name, hash string }
	var entries []entry
	for name, sub := range d.Dirs {
		if sub.Seal().Hash != emptyTree {
			entries = append(entries, entry{name + "/", "40000", name, sub.Hash}) // git sorts a folder as if its name ended in a slash
		}
	}
	for name, f := range d.Files {
		entries = append(entries, entry{name, f.mode(), name, f.Hash})
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	var content []byte
	for _, e := range entries {
		id, _ := hex.DecodeString(e.hash) // an Irregular file has none
		content = append(content, e.mode+" "+e.name+"\x00"...)
		content = append(content, id...)
	}
	d.Hash = hash("tree", content)
	return d
}

// mode is how git writes the kind of a file in a tree. Git has no Irregular
// files: the zero mode keeps a folder with one apart from the same without.
func (f *File) mode() string {
	switch {
	case f.Kind == Symlink:
		return "120000"
	case f.Kind == Submodule:
		return "160000"
	case f.Kind == Irregular:
		return "0"
	case f.Executable:
		return "100755"
	}
	return "100644"
}

// FromFS is the tree of a file system, read once for the hashes: meant for
// small ones, such as embedded files. Symlinks and devices are kept by name and
// not followed.
func FromFS(fsys fs.FS) (*Dir, error) { return fromFS(fsys, ".") }

func fromFS(fsys fs.FS, at string) (*Dir, error) {
	entries, err := fs.ReadDir(fsys, at)
	if err != nil {
		return nil, fmt.Errorf("read folder %s: %w", at, err)
	}
	d := &Dir{Dirs: map[string]*Dir{}, Files: map[string]*File{}}
	for _, e := range entries {
		below := path.Join(at, e.Name())
		if e.IsDir() {
			if d.Dirs[e.Name()], err = fromFS(fsys, below); err != nil {
				return nil, err
			}
			continue
		}
		if d.Files[e.Name()], err = fileFromFS(fsys, below, e.Type()); err != nil {
			return nil, err
		}
	}
	return d.Seal(), nil
}

func fileFromFS(fsys fs.FS, at string, mode fs.FileMode) (*File, error) {
	f := &File{Kind: Irregular}
	var content []byte
	var err error
	switch {
	case mode.IsRegular():
		f.Kind, f.Read = Regular, func() ([]byte, error) { return fs.ReadFile(fsys, at) }
		if content, err = f.Read(); err != nil {
			return nil, fmt.Errorf("read file %s: %w", at, err)
		}
	case mode&fs.ModeSymlink != 0:
		target, err := fs.ReadLink(fsys, at)
		if err != nil {
			return nil, fmt.Errorf("read link %s: %w", at, err)
		}
		f.Kind, content = Symlink, []byte(target)
	default:
		return f, nil
	}
	f.Hash, f.Size = HashBlob(content), int64(len(content))
	if info, err := fs.Stat(fsys, at); err == nil && f.Kind == Regular {
		f.Executable = info.Mode()&0o100 != 0
	}
	return f, nil
}
