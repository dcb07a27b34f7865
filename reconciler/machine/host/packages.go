package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Packages are the Debian packages that a machine needs beyond the smallest
// Debian there is.
func Packages() []string {
	return []string{
		"attr",             // getfattr: what Gluster says of a copy
		"ca-certificates",  // the site repo over https
		"containerd",       // with runc, which Debian has beside it
		"crun",             // makes a container in half the time; see containerd.go
		"e2fsprogs",        // mkfs.ext4 for the system's partition, chattr
		"fdisk",            // sfdisk
		"glusterfs-client", // mounts volumes
		"glusterfs-server", // glusterd, which Debian neither enables nor starts
		"haproxy",          // the balancer
		"iproute2",         // ip: the inventory, flannel
		"iptables",         // kubelet and flannel on the machine itself
		"kmod",             // modprobe
		"mount",            // kubelet
		"procps",           // sysctl
		"util-linux",       // lsblk, wipefs, partx
		"xfsprogs",         // mkfs.xfs for the brick
	}
}

// haproxy's own service would start with the package. Ours is another, so it is
// masked before: but not where it has been in use all along.
const haproxy = "haproxy.service"

// packages are those of every machine.
func (i *install) packages() Step {
	return i.h.debs("packages", Packages(), func() (source, error) { return i.h.source(i.Bundle.Dir, i.Bundle.Debian) })
}

// gluster sets the program of geo-replication aside, for dpkg too. Volumes do without;
// and each gluster command starts it first, a Python program that takes longer than all
// else that the command does, to see whether it is there.
func (i *install) gluster() Step {
	h := i.h
	find := func() ([]string, error) { return filepath.Glob(h.Path("/usr/lib/*/glusterfs/gsyncd")) }
	look := func(context.Context) (todo []string, err error) {
		found, err := find()
		for _, path := range found {
			todo = append(todo, "set "+strings.TrimPrefix(path, h.Path("/"))+" aside, which slows each gluster command down")
		}
		return todo, err
	}
	do := func(ctx context.Context) error {
		found, err := find()
		for _, path := range found {
			const aside = ".distrib" // as dpkg has it
			name := filepath.Join("/", strings.TrimPrefix(path, h.Path("/")))
			// The two apart, so that it can be done again after a half.
			if _, err := h.quietly(ctx, "dpkg-divert", "--local", "--no-rename", "--divert", name+aside, "--add", name); err != nil {
				return err
			}
			if err := os.Rename(path, path+aside); err != nil {
				return err
			}
		}
		return err
	}
	return Step{"gluster", look, do}
}

// debs has packages on the machine. They come from a bundle where that is for
// this release of Debian, with lists and caches apart: the machine's own sources are
// neither asked nor changed, and no network is needed. Otherwise they come from those
// sources.
func (h *Host) debs(name string, packages []string, find func() (source, error)) Step {
	look := func(ctx context.Context) ([]string, error) {
		missing, broken, err := h.missing(ctx, packages)
		if err != nil {
			return nil, err
		}
		from, err := find()
		if err != nil {
			return nil, err
		}
		var todo []string
		if broken {
			todo = append(todo, "finish the installation of packages that was interrupted")
		}
		if len(missing) > 0 {
			todo = append(todo, fmt.Sprintf("install packages from %s: %s", from.words, strings.Join(missing, " ")))
		}
		return todo, nil
	}
	do := func(ctx context.Context) error {
		from, err := find()
		if err != nil {
			return err
		}
		if err := h.waitForDpkg(ctx); err != nil {
			return err
		}
		missing, broken, err := h.missing(ctx, packages)
		if err != nil {
			return err
		}
		if broken {
			if _, err := h.quietly(ctx, "dpkg", "--configure", "--pending", "--force-confold"); err != nil {
				return err
			}
			if missing, _, err = h.missing(ctx, packages); err != nil {
				return err
			}
		}
		if len(missing) == 0 {
			return nil
		}
		if slices.Contains(missing, "haproxy") {
			if _, err := h.Run(ctx, "systemctl", "mask", haproxy); err != nil {
				return err
			}
		}
		if from.list != nil {
			if err := h.Write(sourceList, from.list, 0o644); err != nil {
				return err
			}
		}
		if _, err := h.quietly(ctx, "apt-get", append(slices.Clone(from.options), "update")...); err != nil {
			return err
		}
		// Nothing that is there goes away for ours (--no-remove), and
		// configuration stays as it is.
		args := append(slices.Clone(from.options), "install", "--yes", "--no-install-recommends", "--no-remove",
			"-o", "Dpkg::Options::=--force-confold", "-o", fmt.Sprintf("DPkg::Lock::Timeout=%.0f", dpkgPatience.Seconds()))
		if _, err := h.quietly(ctx, "apt-get", append(args, missing...)...); err != nil {
			return fmt.Errorf("%w; or install these yourself and run it again: apt-get install %s", err, strings.Join(missing, " "))
		}
		return nil
	}
	return Step{name, look, do}
}

// waitForDpkg returns when no other program installs packages, as a fresh Debian
// does by itself, and an apt-get does that outlived its noded. apt-get waits by
// itself, and dpkg does not.
func (h *Host) waitForDpkg(ctx context.Context) error {
	lock, err := os.OpenFile(h.Path("/var/lib/dpkg/lock-frontend"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close() // lets go of it again
	ctx, cancel := context.WithTimeoutCause(ctx, dpkgPatience, errors.New("another program has been installing packages for two minutes (ps ax shows it); run it again afterwards"))
	defer cancel()
	for {
		err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

const dpkgPatience = 2 * time.Minute

func (h *Host) quietly(ctx context.Context, name string, args ...string) ([]byte, error) {
	return h.Do(ctx, Command{Name: name, Args: args, Env: []string{"DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1"}})
}

// missing are the packages that are not installed, and whether dpkg was interrupted in
// the midst of one.
func (h *Host) missing(ctx context.Context, packages []string) (missing []string, broken bool, err error) {
	// Its code is 1 where it knows nothing of one, which then is not in its answer.
	out, err := h.ask(ctx, "dpkg-query", append([]string{"--show", "--showformat", `${Package} ${db:Status-Status}\n`}, packages...)...)
	status := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if name, state, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			status[name] = state
		}
	}
	for _, name := range packages {
		switch status[name] {
		case "installed":
		case "unpacked", "half-configured", "triggers-awaited", "triggers-pending":
			broken = true
		default:
			missing = append(missing, name)
		}
	}
	// Its journal, which is empty when it is done, may be of packages that ours need.
	journal, _ := os.ReadDir(h.Path("/var/lib/dpkg/updates"))
	return missing, broken || len(journal) > 0, err
}

const (
	aptDir     = StateDir + "/apt"
	sourceList = aptDir + "/sources.list"
)

// source is where packages come from.
type source struct {
	words   string
	list    []byte   // a sources.list; nil is the machine's own
	options []string // of apt-get
}

// source is the bundle in a folder, if it is for this release of Debian.
func (h *Host) source(bundle, codename string) (source, error) {
	release, err := h.release()
	if err != nil {
		return source{}, err
	}
	if release.codename != codename {
		return source{words: fmt.Sprintf("the machine's own sources (the bundle is for Debian %s, this is %s)", codename, release.codename)}, nil
	}
	// What is trusted is the sum of the list of packages, which was verified
	// with the bundle, and which holds the sums of the packages.
	where := url.URL{Scheme: "file", Path: bundle + "/debian"}
	s := source{words: "the bundle", list: fmt.Appendf(nil, "deb [trusted=yes] %s ./\n", where.String())}
	for _, option := range []string{
		"Dir::Etc::sourcelist=" + h.Path(sourceList), "Dir::Etc::sourceparts=-",
		"Dir::State::lists=" + h.Path(aptDir+"/lists"), "Dir::Cache=" + h.Path(aptDir),
		// The bundle may lie where apt's own user cannot read it.
		"APT::Sandbox::User=root",
	} {
		s.options = append(s.options, "-o", option)
	}
	return s, nil
}
