package bundle

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

const sumsFile = "SHA256SUMS"

// Verify compares every file of a bundle with SHA256SUMS. Its error names each
// file that is missing, changed, or not in the list.
func Verify(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, sumsFile))
	if err != nil {
		return fmt.Errorf("verify the bundle: %w; a bundle without it is not whole: copy it again", err)
	}
	want := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		sum, name, ok := strings.Cut(lines.Text(), "  ")
		if !ok || len(sum) != 2*sha256.Size {
			return fmt.Errorf("verify the bundle: %s:%d: not a sum and a name: %q", sumsFile, n, lines.Text())
		}
		want[name] = sum
	}
	names, err := list(dir)
	if err != nil {
		return fmt.Errorf("verify the bundle: %w", err)
	}
	sums, err := sumAll(dir, names)
	if err != nil {
		return fmt.Errorf("verify the bundle: %w", err)
	}
	var faults []error
	for i, name := range names {
		switch want[name] {
		case sums[i]:
		case "":
			faults = append(faults, fmt.Errorf("%s: is not in %s", name, sumsFile))
		default:
			faults = append(faults, fmt.Errorf("%s: has changed", name))
		}
		delete(want, name)
	}
	for name := range want {
		faults = append(faults, fmt.Errorf("%s: is missing", name))
	}
	if len(faults) == 0 {
		return nil
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return fmt.Errorf("verify the bundle %s; copy it again:\n%w", dir, errors.Join(faults...))
}

// writeSums writes SHA256SUMS of what is in dir.
func writeSums(dir string) error {
	names, err := list(dir)
	if err != nil {
		return err
	}
	sums, err := sumAll(dir, names)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for i, name := range names {
		fmt.Fprintf(&text, "%s  %s\n", sums[i], name)
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), text.Bytes(), 0o644)
}

// list names the files below dir but SHA256SUMS itself, relative, in the order of
// their names. Anything but a file or a folder is an error.
func list(dir string) (names []string, err error) {
	err = filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if !entry.Type().IsRegular() {
			return fmt.Errorf("%s is not a regular file", file)
		}
		name, err := filepath.Rel(dir, file)
		if name != sumsFile {
			names = append(names, name)
		}
		return err
	})
	slices.Sort(names)
	return names, err
}

// sumAll gives the SHA-256 of each file, in hex. Names are taken from dir.
func sumAll(dir string, names []string) ([]string, error) {
	sums := make([]string, len(names))
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for i, name := range names {
		work.Go(func() (err error) {
			sums[i], err = sum(filepath.Join(dir, name))
			return err
		})
	}
	return sums, work.Wait()
}

func sum(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return fmt.Sprintf("%x", hash.Sum(nil)), nil
}
