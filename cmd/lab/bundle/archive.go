package bundle

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/pgzip"
)

// Archive writes the bundle in dir to file, which ends in .tar.gz, and its sum
// beside it to file.sha256, for sha256sum -c. Both appear when they are whole; the
// folder for them must exist. The same bundle gives the same bytes.
func Archive(ctx context.Context, dir, file string) error {
	if err := archive(ctx, dir, file); err != nil {
		return fmt.Errorf("archive the bundle as %s: %w", file, err)
	}
	return nil
}

func archive(ctx context.Context, dir, file string) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()

	// Blocks are compressed side by side. Their size is part of how the archive
	// comes out, the number of processors is not.
	zip, err := pgzip.NewWriterLevel(tmp, pgzip.DefaultCompression)
	if err != nil {
		return err
	}
	if err := pack(ctx, zip, dir); err != nil {
		return errors.Join(err, zip.Close())
	}
	if err := errors.Join(zip.Close(), tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	hex, err := sum(tmp.Name())
	if err != nil {
		return err
	}
	// The sum goes first: an archive without one beside it would look unfinished.
	line := fmt.Sprintf("%s  %s\n", hex, filepath.Base(file))
	if err := os.WriteFile(file+".sha256", []byte(line), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

// pack writes dir as a tar of one top folder: sorted, of the epoch, root's, and
// with one of two modes.
func pack(ctx context.Context, w io.Writer, dir string) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error { // in the order of names
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(filepath.Dir(dir), file)
		if err != nil {
			return err
		}
		header := &tar.Header{Name: name, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		switch {
		case entry.IsDir():
			header.Typeflag, header.Mode = tar.TypeDir, 0o755
			header.Name += "/"
			return out.WriteHeader(header)
		case !entry.Type().IsRegular():
			return fmt.Errorf("%s is not a regular file", file)
		case info.Mode()&0o100 != 0:
			header.Mode = 0o755
		}
		header.Typeflag, header.Size = tar.TypeReg, info.Size()
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(out, f)
		return err
	})
	return errors.Join(err, out.Close())
}
