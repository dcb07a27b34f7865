package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

// noVNC's library is as npm has it, at the version and hash in novnc/VERSION;
// novnc.sh brings another.
//
//go:embed static novnc/core novnc/vendor novnc/LICENSE.txt novnc/LICENSE.MPL-2.0 novnc/AUTHORS
var assetFiles embed.FS

// assets are the files that pages need, by path. Browsers ask each time whether theirs
// is the one: a page with scripts of two versions does not work.
type assets map[string]asset

type asset struct {
	content []byte
	tag     string
	kind    string
}

var kinds = map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}

func newAssets() (http.Handler, error) {
	all := assets{}
	return all, fs.WalkDir(assetFiles, ".", func(file string, entry fs.DirEntry, err error) error {
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
		all[file] = asset{content, `"` + hex.EncodeToString(sum[:12]) + `"`, kind}
		return nil
	})
}

// ServeHTTP serves a file, or nothing: folders are not listed.
func (a assets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file, ok := a[strings.TrimPrefix(r.URL.Path, "/")]
	if !ok {
		http.Error(w, "There is no such file.", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", file.kind)
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", file.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file.content))
}
