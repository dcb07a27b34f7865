package render

import (
	"io/fs"
	"path"

	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// memory is the file system that kustomize sees: the files of a request, by
// absolute path, and no others. Kustomize's own file system in memory holds
// few names (none with a space) and searches a folder to name a file in it.
type memory struct {
	filesys.FileSystem // an empty one, for what a build does not ask
	files              map[string][]byte
	folders            map[string]bool
}

func newMemory() *memory {
	return &memory{filesys.MakeEmptyDirInMemory(), map[string][]byte{}, map[string]bool{"/": true}}
}

// put adds a file, or replaces it.
func (m *memory) put(at string, content []byte) {
	at = path.Join("/", at)
	m.files[at] = content
	for dir := path.Dir(at); !m.folders[dir]; dir = path.Dir(dir) {
		m.folders[dir] = true
	}
}

// CleanedAbs splits a path into folder and file.
func (m *memory) CleanedAbs(at string) (filesys.ConfirmedDir, string, error) {
	at = path.Join("/", at)
	if m.folders[at] {
		return filesys.ConfirmedDir(at), "", nil
	}
	if _, ok := m.files[at]; ok {
		return filesys.ConfirmedDir(path.Dir(at)), path.Base(at), nil
	}
	return "", "", &fs.PathError{Op: "find", Path: at, Err: fs.ErrNotExist}
}

// ReadFile is the content of a file.
func (m *memory) ReadFile(at string) ([]byte, error) {
	if content, ok := m.files[path.Join("/", at)]; ok {
		return content, nil
	}
	return nil, &fs.PathError{Op: "read", Path: at, Err: fs.ErrNotExist}
}

// IsDir tells folders.
func (m *memory) IsDir(at string) bool { return m.folders[path.Join("/", at)] }

// Exists tells files and folders.
func (m *memory) Exists(at string) bool {
	_, _, err := m.CleanedAbs(at)
	return err == nil
}
