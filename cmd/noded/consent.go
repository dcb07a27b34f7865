package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// clock tells what happens, and when, in seconds from its beginning.
type clock struct {
	w     io.Writer
	begin time.Time
}

func (s *surroundings) clock() *clock { return &clock{s.err, time.Now()} }

func (c *clock) say(line string) {
	fmt.Fprintf(c.w, "%6.1f s  %s\n", time.Since(c.begin).Seconds(), line)
}

// agree lists what is about to be done, and asks for consent. The question goes
// to the terminal even where standard input is something else, as it is with a
// pasted token.
func (s *surroundings) agree(ctx context.Context, verb string, todo []string, yes bool) error {
	fmt.Fprintf(s.err, "noded %s will\n", verb)
	for _, line := range todo {
		fmt.Fprintf(s.err, "  - %s\n", line)
	}
	if yes {
		return nil
	}
	var in io.Reader = s.in
	var out = s.err
	if !s.inTerminal {
		tty, err := s.tty()
		if err != nil {
			return errors.New("this changes the machine, and there is nobody to ask: add --yes")
		}
		defer tty.Close()
		in, out = tty, tty
	}
	fmt.Fprint(out, "Go on? [y/N] ")
	answer, err := heard(ctx, func() (string, error) { return bufio.NewReader(in).ReadString('\n') })
	if err != nil && answer == "" {
		return fmt.Errorf("no answer (%w): nothing was changed", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was changed")
}

// heard is what a person says, unless he presses Ctrl-C instead: main catches
// that, and a read does not end by it.
func heard(ctx context.Context, read func() (string, error)) (string, error) {
	type answer struct {
		text string
		err  error
	}
	said := make(chan answer, 1)
	go func() {
		text, err := read()
		said <- answer{text, err}
	}()
	select {
	case a := <-said:
		return a.text, a.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// token reads the one secret of a join. It is not shown while it is typed.
func (s *surroundings) token(ctx context.Context) (string, error) {
	if f, ok := s.in.(*os.File); ok && s.inTerminal {
		if shown, err := term.GetState(int(f.Fd())); err == nil {
			defer term.Restore(int(f.Fd()), shown) // a read that was given up does not
		}
		fmt.Fprint(s.err, "token: ")
		text, err := heard(ctx, func() (string, error) {
			text, err := term.ReadPassword(int(f.Fd()))
			return string(text), err
		})
		fmt.Fprintln(s.err)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		return text, nil
	}
	text, err := io.ReadAll(io.LimitReader(s.in, 4096))
	if err != nil {
		return "", fmt.Errorf("read the token from standard input: %w", err)
	}
	return string(text), nil
}
