package build

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
	"github.com/kingmaker-io/kingmaker/cmd/lab/lock"
)

// kept is how many versions of Kingmaker stay in the cache. While one works on it,
// each change makes a new one.
const kept = 5

// Kingmaker builds Kingmaker's own programs, reconcile, noded, directory, desktop and
// portal, from the checkout as it is, and returns the folder that holds them. Version is 0.1.0
// with a hash of the programs: other than a commit it holds for a checkout with changes
// too, stays where a commit changed what they do not depend on, and is the same
// for all who build the same source with the same Go. The programs know it: it is
// linked into the variable main.stamp. Progress (nil is quiet) is told what is
// being built.
//
// The newest five versions stay in the cache. A folder that was returned can thus
// vanish, when as many others were built since.
func Kingmaker(ctx context.Context, progress io.Writer) (dir, version string, err error) {
	root, err := here.Checkout()
	if err != nil {
		return "", "", fmt.Errorf("build Kingmaker: %w", err)
	}
	cache, err := here.Cache("own")
	if err != nil {
		return "", "", fmt.Errorf("build Kingmaker: %w", err)
	}
	if progress == nil {
		progress = io.Discard
	}
	o := own{root: root, cache: cache, packages: []string{"./cmd/reconcile", "./cmd/noded", "./cmd/directory", "./cmd/desktop", "./cmd/portal"}}
	dir, version, err = o.build(ctx, progress)
	if err != nil {
		return "", "", fmt.Errorf("build Kingmaker: %w", err)
	}
	return dir, version, nil
}

// own is what to build of a checkout: main packages, each into a program with the
// name of its folder.
type own struct {
	root, cache string
	packages    []string
}

func (o own) build(ctx context.Context, progress io.Writer) (dir, version string, err error) {
	// Without a stamp the programs are the same whenever their source is. They stay
	// where they are, for the linker has nothing to do where they are up to date.
	plain := filepath.Join(o.cache, "unstamped")
	if err := os.MkdirAll(plain, 0o755); err != nil {
		return "", "", err
	}
	held, err := lock.Wait(ctx, filepath.Join(o.cache, "lock"), func() {
		fmt.Fprintln(progress, "another process is building Kingmaker; waiting for it")
	})
	if err != nil {
		return "", "", err
	}
	defer held.Close()
	hash := sha256.New()
	for _, pkg := range o.packages {
		program := filepath.Join(plain, filepath.Base(pkg))
		if err := o.compile(ctx, pkg, program, "", progress); err != nil {
			return "", "", err
		}
		f, err := os.Open(program)
		if err != nil {
			return "", "", err
		}
		_, err = io.Copy(hash, f)
		f.Close()
		if err != nil {
			return "", "", err
		}
	}
	version = fmt.Sprintf("0.1.0-%x", hash.Sum(nil)[:6])
	dir = filepath.Join(o.cache, version)
	if !o.complete(dir) {
		if err := o.stamp(ctx, version, dir, progress); err != nil {
			return "", "", err
		}
	}
	now := time.Now() // of the last use, by which prune goes
	if err := os.Chtimes(dir, now, now); err != nil {
		return "", "", err
	}
	return dir, version, o.prune()
}

// stamp fills dir, which exists complete or not at all.
func (o own) stamp(ctx context.Context, version, dir string, progress io.Writer) error {
	tmp := filepath.Join(o.cache, "building") // ours alone, by the lock
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, pkg := range o.packages {
		if err := o.compile(ctx, pkg, filepath.Join(tmp, filepath.Base(pkg)), version, progress); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil { // there, but not complete: someone deleted from it
		return err
	}
	return os.Rename(tmp, dir)
}

func (o own) compile(ctx context.Context, pkg, out, version string, progress io.Writer) error {
	link := "-s -w"
	title := filepath.Base(pkg)
	if version != "" {
		link += " -X main.stamp=" + version
		title += " " + version
	}
	cmd := goCommand(ctx, o.root, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", link, "-o", out, pkg)
	if err := follow(ctx, cmd, title, progress); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(pkg), err)
	}
	return nil
}

func (o own) complete(dir string) bool {
	return !slices.ContainsFunc(o.packages, func(pkg string) bool {
		_, err := os.Stat(filepath.Join(dir, filepath.Base(pkg)))
		return err != nil
	})
}

// prune removes all versions but those that were asked for last.
func (o own) prune() error {
	dirs, err := filepath.Glob(filepath.Join(o.cache, "0.1.0-*"))
	if err != nil {
		return err
	}
	used := func(dir string) time.Time {
		info, err := os.Stat(dir)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(dirs, func(a, b string) int { return used(b).Compare(used(a)) })
	for _, dir := range dirs[min(kept, len(dirs)):] {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
