// Package here is what the lab knows of this computer before it does anything:
// where the sources are, where to keep what can be made again, and where Debian
// comes from.
package here

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

const module = "github.com/kingmaker-io/kingmaker"

// Checkout finds the checkout around the working directory: "go run" and "go test"
// are started inside it. The path of this very file would be no help, for
// -trimpath removes it; and what is built from a checkout cannot be embedded, for
// that does not reach into another module.
func Checkout() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if mod, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && bytes.HasPrefix(mod, []byte("module "+module+"\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside a checkout of %s: run the lab there", wd, module)
		}
	}
}

// Cache gives the absolute path of a folder in the cache, where everything lies
// that can be made again: below $KINGMAKER_CACHE, or kingmaker in the user's cache
// folder. Without a name it is that itself. It need not exist.
func Cache(name ...string) (string, error) {
	cache := os.Getenv("KINGMAKER_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache folder (KINGMAKER_CACHE names another): %w", err)
		}
		cache = filepath.Join(user, "kingmaker")
	}
	return filepath.Abs(filepath.Join(append([]string{cache}, name...)...))
}
