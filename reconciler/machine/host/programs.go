package host

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Folders of programs on a machine, by the bundle's.
func programFolders() map[string]string {
	return map[string]string{"bin": "/usr/local/bin", "cni": "/opt/cni/bin"}
}

// programs copies what differs, each whole or not at all. What runs goes on with
// the program that it was started from.
func (i *install) programs() Step {
	look := func(context.Context) (todo []string, err error) {
		for _, from := range []string{"bin", "cni"} {
			var names []string
			for _, name := range i.Bundle.files(from) {
				if !i.copied(from, name) {
					names = append(names, name)
				}
			}
			if len(names) > 0 {
				todo = append(todo, fmt.Sprintf("copy to %s: %s", programFolders()[from], strings.Join(names, " ")))
			}
		}
		return todo, nil
	}
	do := func(ctx context.Context) error {
		for from, to := range programFolders() {
			for _, name := range i.Bundle.files(from) {
				if err := ctx.Err(); err != nil {
					return err
				}
				if i.copied(from, name) {
					continue
				}
				i.h.Log.DebugContext(ctx, "copy", "from", from+"/"+name, "to", to)
				if err := i.copy(from+"/"+name, to+"/"+name); err != nil {
					return fmt.Errorf("copy %s to %s: %w", name, to, err)
				}
			}
		}
		return nil
	}
	return Step{"programs", look, do}
}

func (i *install) copied(from, name string) bool {
	path := i.h.Path(programFolders()[from] + "/" + name)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o755 {
		return false
	}
	// Most that differ differ in size.
	if bundled, err := os.Stat(filepath.Join(i.Bundle.Dir, from, name)); err == nil && bundled.Size() != info.Size() {
		return false
	}
	sum, err := fileSum(path)
	return err == nil && sum == i.Bundle.sums[from+"/"+name]
}

// copy takes nothing but what has the sum that the bundle lists.
func (i *install) copy(from, to string) error {
	in, err := os.Open(filepath.Join(i.Bundle.Dir, from))
	if err != nil {
		return err
	}
	defer in.Close()
	// What a copy that was killed left, which is large.
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(i.h.Path(to)), "."+filepath.Base(to)+".[0-9]*"))
	for _, path := range left {
		os.Remove(path)
	}
	hash := sha256.New()
	return i.h.replace(to, 0o755, func(out io.Writer) error {
		if _, err := io.Copy(io.MultiWriter(out, hash), in); err != nil {
			return err
		}
		if have := fmt.Sprintf("%x", hash.Sum(nil)); have != i.Bundle.sums[from] {
			return fmt.Errorf("it was changed since the bundle was verified (sha256 %s); unpack the archive again", have)
		}
		return nil
	})
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", hash.Sum(nil)), nil
}
