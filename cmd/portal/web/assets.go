package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"time"
)

// noVNC's library is as npm has it, at the version and hash in novnc/VERSION;
// novnc.sh brings another.
//
//go:embed static novnc/core novnc/vendor novnc/LICENSE.txt novnc/LICENSE.MPL-2.0 novnc/AUTHORS
var assetFiles embed.FS

// assets are the files that pages need. Their version is a part of their addresses: a
// page with scripts of two versions does not work, and browsers need not ask again for
// what they have.
type assets struct {
	version string
	files   map[string]asset
}

type asset struct {
	content []byte
	tag     string
	kind    string
}

var kinds = map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}

func newAssets() (assets, error) {
	a, all := assets{files: map[string]asset{}}, sha256.New()
	err := fs.WalkDir(assetFiles, ".", func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := assetFiles.ReadFile(file)
		if err != nil {
			return err
		}
		kind := kinds[path.Ext(file)]
		if kind == "" {
			kind = "text/plain; charset=utf-8"
		}
		sum := sha256.Sum256(content)
		fmt.Fprintf(all, "%s %x\n", file, sum)
		a.files[file] = asset{content, `"` + hex.EncodeToString(sum[:12]) + `"`, kind}
		return nil
	})
	a.version = hex.EncodeToString(all.Sum(nil)[:6])
	return a, err
}

// path is where a page finds a file of folder static.
func (a assets) path(file string) string { return "/assets/" + a.version + "/static/" + file }

// ServeHTTP serves a file, or nothing: folders are not listed. While a site goes on to
// the next release a page may be of another one's portal, which is better served than
// not; but nothing of that is kept.
func (a assets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file, ok := a.files[r.PathValue("file")]
	if !ok {
		http.Error(w, "There is no such file.", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", file.kind)
	w.Header().Set("Cache-Control", "no-cache")
	if r.PathValue("version") == a.version {
		w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	}
	w.Header().Set("ETag", file.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file.content))
}
