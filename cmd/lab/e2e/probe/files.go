package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// cat prints a file.
func cat(file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(content)
	return err
}

// patience is how long one file is tried again before the writer gives up.
const patience = 5 * time.Minute

// writers is how many files are on their way at a time: one alone waits for disks.
const writers = 8

// write writes so many small files, each as a careful program does: under another
// name, synced, and renamed. What is in them follows from the seed. A line says when a
// file was acknowledged, in nanoseconds, and ok, its name and its SHA-256; or when it
// was not, and no and the reason: then it is tried again.
func write(folder, count, seed, pause string) error {
	n, err := strconv.Atoi(count)
	number, e := strconv.ParseUint(seed, 10, 64)
	between, er := time.ParseDuration(pause)
	if err := errors.Join(err, e, er, os.MkdirAll(folder, 0o755)); err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(writers)
	for i := range n {
		group.Go(func() error { return writeOne(folder, fmt.Sprintf("f-%06d", i), content(number, uint64(i))) })
		time.Sleep(between)
	}
	return group.Wait()
}

func writeOne(folder, name string, text []byte) error {
	for began := time.Now(); ; {
		err := put(folder, name, text)
		if err == nil {
			break
		}
		fmt.Printf("%d no %q\n", time.Now().UnixNano(), err)
		if time.Since(began) > patience {
			return fmt.Errorf("%s cannot be written: %w", name, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	_, err := fmt.Printf("%d ok %s %x\n", time.Now().UnixNano(), name, sha256.Sum256(text))
	return err
}

// content is of 1 to 8 KiB.
func content(seed, file uint64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], file)
	source := rand.NewChaCha8(key)
	text := make([]byte, 1<<10+rand.New(source).IntN(7<<10+1))
	_, _ = source.Read(text) // it never fails
	return text
}

func put(folder, name string, text []byte) error {
	part := filepath.Join(folder, "."+name+".part")
	f, err := os.Create(part)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(part, filepath.Join(folder, name))
}

// read reads files of a folder, another one each time, until it is killed. A line
// says when it began to, in nanoseconds, and ok, or no and the reason.
func read(folder string) error {
	for tick := time.NewTicker(200 * time.Millisecond); ; <-tick.C {
		began, said := time.Now(), "ok"
		if err := readOne(folder); err != nil {
			said = fmt.Sprintf("no %q", err)
		}
		if _, err := fmt.Println(began.UnixNano(), said); err != nil {
			return err
		}
	}
}

func readOne(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return fmt.Errorf("%s is empty", folder)
	}
	_, err = os.ReadFile(filepath.Join(folder, entries[rand.IntN(len(entries))].Name()))
	return err
}

// verify compares the files of a folder with a list: a name and a SHA-256 a line. It
// tells the first that are missing or differ, and how many of all are right.
func verify(folder string, list io.Reader) error {
	all, right := 0, 0
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		name, want, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			return fmt.Errorf("%q is no name and sum", lines.Text())
		}
		all++
		text, err := os.ReadFile(filepath.Join(folder, name))
		sum := sha256.Sum256(text)
		switch got := hex.EncodeToString(sum[:]); {
		case err == nil && got == want:
			right++
		case all-right > 20: // enough was told
		case err != nil:
			fmt.Println("missing:", err)
		default:
			fmt.Printf("differs: %s of %d bytes is %s, want %s\n", name, len(text), got, want)
		}
	}
	fmt.Printf("%d of %d files are right\n", right, all)
	if err := lines.Err(); err != nil {
		return err
	}
	if right < all || all == 0 {
		return fmt.Errorf("%s has not all that was acknowledged", folder)
	}
	return nil
}
