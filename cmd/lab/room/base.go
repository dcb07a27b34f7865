package room

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
)

//go:embed entry.sh
var entry []byte

// recipe says how a base image is made: a Debian that is as small as one that can
// be installed on a PC. The mirror is the one that this computer is configured
// with, and is no part of it.
type recipe struct {
	name     string   // of the image and, with the suite and a sum, of its tar
	packages []string // beside what Debian calls essential, and apt
	entry    []byte   // script, the entry point; nil for none
}

func recipes() (machine, git recipe) {
	small := []string{"ca-certificates", "iproute2", "procps"}
	return recipe{"machine", append(small, "systemd-sysv", "dbus", "udev", "kmod", "iputils-ping"), entry},
		recipe{"git", append(small, "git"), nil}
}

// entryPath is where the entry point lies in the image.
const entryPath = "/usr/local/sbin/pc"

// args are those of mmdebstrap, without output and mirror.
func (b recipe) args() []string {
	args := []string{
		"--variant=minbase", "--include=" + strings.Join(b.packages, ","),
		"--dpkgopt=force-unsafe-io", // there too: a container's disk loses nothing that matters
		"--quiet",
	}
	if b.entry != nil {
		args = append(args, "--customize-hook=upload ENTRY "+entryPath, `--customize-hook=chmod 755 "$1`+entryPath+`"`)
	}
	return append(args, here.Suite)
}

// key names the outcome: as long as the recipe is the same, so is the key.
func (b recipe) key() string {
	sum := sha256.Sum256(fmt.Append(nil, b.args(), "\n", string(b.entry)))
	return fmt.Sprintf("%s-%s-%x", b.name, here.Suite, sum[:6])
}

func (b recipe) image() string { return "kingmaker.dev/lab-" + b.name + ":" + b.key() }

// images are the names that Docker has for the base images.
type images struct{ machine, git string }

// baseImages sees to it that Docker has them: imported, and made first where that
// was never done on this computer. Made, they are kept in the cache. The caller
// holds the lock.
func (r *Room) baseImages(ctx context.Context) (images, error) {
	cache, err := here.Cache("base")
	if err != nil {
		return images{}, err
	}
	stale, _ := filepath.Glob(filepath.Join(cache, making+"*")) // of the dead, for we hold the lock
	for _, dir := range stale {
		os.RemoveAll(dir)
	}
	machine, git := recipes()
	both, ctx := errgroup.WithContext(ctx)
	for _, b := range []recipe{machine, git} {
		both.Go(func() error {
			if err := r.baseImage(ctx, b, filepath.Join(cache, b.key()+".tar")); err != nil {
				return fmt.Errorf("base image of %s: %w", b.name, err)
			}
			return nil
		})
	}
	return images{machine.image(), git.image()}, both.Wait()
}

func (r *Room) baseImage(ctx context.Context, b recipe, tar string) error {
	if _, err := r.docker(ctx, "image", "inspect", b.image()); err == nil {
		return nil
	}
	if _, err := os.Stat(tar); err != nil {
		if err := r.bootstrap(ctx, b, tar); err != nil {
			return err
		}
	}
	args := []string{"import", "--change", "LABEL " + labelBase + "=" + b.name}
	if b.entry != nil {
		args = append(args, "--change", `ENTRYPOINT ["`+entryPath+`"]`)
	}
	if _, err := r.docker(ctx, append(args, tar, b.image())...); err != nil {
		return err
	}
	return r.forget(ctx, b)
}

// labelBase is on base images.
const labelBase = "kingmaker.base"

// forget takes the images of former recipes away; those that a room still uses
// stay.
func (r *Room) forget(ctx context.Context, b recipe) error {
	tags, err := r.lines(ctx, "image", "ls", "--filter", "label="+labelBase+"="+b.name, "--format", "{{.Repository}}:{{.Tag}}")
	for _, tag := range tags {
		if tag != b.image() {
			_, _ = r.docker(ctx, "image", "rm", tag) // no: it is in use
		}
	}
	return err
}

// making begins the names of folders in which a base image is made.
const making = "making-"

// bootstrap makes a base image as a tar, whole or not at all.
func (r *Room) bootstrap(ctx context.Context, b recipe, tar string) error {
	begin := time.Now()
	mirrors, err := here.FindMirrors(ctx, r.run)
	if err != nil {
		return err
	}
	dir := filepath.Dir(tar)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, making)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "entry"), b.entry, 0o644); err != nil {
		return err
	}
	r.Progress(fmt.Sprintf("base image of %s: Debian %s from %s, once, kept in %s", b.name, here.Suite, mirrors.Main, tar))
	args := []string{"mmdebstrap"}
	for _, arg := range b.args() {
		args = append(args, strings.Replace(arg, "ENTRY", filepath.Join(tmp, "entry"), 1))
	}
	made := filepath.Join(tmp, "made.tar") // its name tells mmdebstrap the format
	// A whole line rather than an address: the mirror of Debian's cloud images is
	// called mirror+file:/etc/apt/..., which mmdebstrap takes for no address.
	source := fmt.Sprintf("deb [signed-by=%s] %s %s main", here.Keyring, mirrors.Main, here.Suite)
	if _, err := r.run(ctx, append(args, made, source)...); err != nil {
		return err
	}
	if err := os.Rename(made, tar); err != nil {
		return err
	}
	r.Progress(fmt.Sprintf("base image of %s: made in %s", b.name, time.Since(begin).Round(time.Second)))
	return nil
}
