package main

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// backup writes files. They hold the hashes of everybody: their folder is to be as
// private as the server's own.
type backup struct {
	base, address string
	account, to   string
	keep          int
	now           func() time.Time
}

const (
	backupPrefix = "directory-"
	backupSuffix = ".ldif.gz"
)

// make writes one file, which is there whole or not at all; then the oldest go.
func (b backup) make(ctx context.Context) (file string, entries int, err error) {
	if b.keep < 1 {
		return "", 0, fmt.Errorf("--keep %d: want 1 or more", b.keep)
	}
	password, err := os.ReadFile(filepath.Join(b.account, "password"))
	if err != nil {
		return "", 0, err
	}
	text, err := os.ReadFile(filepath.Join(b.account, "ca.crt"))
	if err != nil {
		return "", 0, err
	}
	pool, err := roots(text)
	if err != nil {
		return "", 0, fmt.Errorf("read %s: %w", filepath.Join(b.account, "ca.crt"), err)
	}
	raw, err := dialTLS(ctx, b.address, &tls.Config{RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS12})
	if err != nil {
		return "", 0, err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	conn, err := login(raw, slapd.DN(slapd.Replicator, b.base), plan.NewSecret(string(password)))
	if err != nil {
		return "", 0, fmt.Errorf("log in at %s: %w", b.address, err)
	}
	defer conn.Close()

	file = filepath.Join(b.to, backupPrefix+b.now().UTC().Format("20060102T150405Z")+backupSuffix)
	f, err := os.CreateTemp(b.to, ".making-")
	if err != nil {
		return "", 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	zip := gzip.NewWriter(f)
	if entries, err = slapd.Dump(conn, b.base, 0, zip); err != nil {
		return "", 0, err
	}
	if err := errors.Join(zip.Close(), f.Sync(), f.Close()); err != nil {
		return "", 0, fmt.Errorf("write the backup: %w", err)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return "", 0, err
	}
	return file, entries, b.prune()
}

// prune removes the oldest backups, and what others have left half-done.
func (b backup) prune() error {
	files, err := filepath.Glob(filepath.Join(b.to, backupPrefix+"*"+backupSuffix))
	if err != nil {
		return err
	}
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(b, a) }) // the newest first
	var errs []error
	for _, file := range files[min(b.keep, len(files)):] {
		errs = append(errs, os.Remove(file))
	}
	left, _ := filepath.Glob(filepath.Join(b.to, ".making-*"))
	for _, file := range left {
		if info, err := os.Stat(file); err == nil && b.now().Sub(info.ModTime()) > 24*time.Hour {
			errs = append(errs, os.Remove(file))
		}
	}
	return errors.Join(errs...)
}
