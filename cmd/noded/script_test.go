package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/script: README there says what the commands are.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		UpdateScripts:      os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			m := hosttest.NewDebian(t)
			m.Put(t, "/etc/hosts", "127.0.0.1 localhost\n")
			bundle := hosttest.Bundle(t)
			env.Setenv("ROOT", m.Root)
			env.Setenv("BUNDLE", bundle.Dir)
			env.Values[pcKey{}] = m
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"noded": noded, "plays": plays, "ran": ran,
		},
	})
}

type pcKey struct{}

// noded runs the program in this process, on the machine of the script: noded
// CODE ARGS... [< FILE] [as UID] [asked ANSWER].
func noded(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: noded CODE ARGS... [< FILE] [as UID] [asked ANSWER]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	m := ts.Value(pcKey{}).(*hosttest.Debian)
	s := &surroundings{in: strings.NewReader(""), out: ts.Stdout(), err: ts.Stderr(), host: m.Host,
		tty: func() (io.ReadWriteCloser, error) { return nil, errors.New("no terminal") }}
	for args = args[1:]; len(args) > 1; args = args[:len(args)-2] {
		value := args[len(args)-1]
		switch args[len(args)-2] {
		case "<":
			s.in = strings.NewReader(ts.ReadFile(value))
			continue
		case "as":
			s.uid, err = strconv.Atoi(value)
			ts.Check(err)
			continue
		case "asked":
			s.tty = func() (io.ReadWriteCloser, error) { return &person{answer: strings.NewReader(value + "\n")}, nil }
			continue
		}
		break
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if got := run(ctx, args, s); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// person answers one question.
type person struct {
	answer io.Reader
	asked  bytes.Buffer
}

func (p *person) Read(b []byte) (int, error)  { return p.answer.Read(b) }
func (p *person) Write(b []byte) (int, error) { return p.asked.Write(b) }
func (p *person) Close() error                { return nil }

// plays gives the machine a program: plays CODE FILE COMMAND... prints the file
// to standard output, or with a code other than 0 to standard error.
func plays(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: plays CODE FILE COMMAND...")
	}
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	text := ts.ReadFile(args[1])
	m := ts.Value(pcKey{}).(*hosttest.Debian)
	m.Runner.Answers[strings.Join(args[2:], " ")] = func(c host.Command, _ []byte) (string, error) {
		if code != 0 {
			return "", hosttest.Refuse(c, code, text)
		}
		return text, nil
	}
}

// ran prints the commands that changed something, and forgets them.
func ran(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: ran")
	}
	m := ts.Value(pcKey{}).(*hosttest.Debian)
	out := ts.Stdout() // even where nothing is printed: else the last command's counts
	for _, line := range m.Runner.Changes() {
		io.WriteString(out, strings.ReplaceAll(line, m.Root, "")+"\n")
	}
	m.Runner.Forget()
}

// TestLogTurnsOver writes more than a log may have.
func TestLogTurnsOver(t *testing.T) {
	r := &rotating{name: filepath.Join(t.TempDir(), "deep", "noded.log")}
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	r.size = mostLog
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 {
				if _, err := r.Write([]byte("a line\n")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.Write([]byte("late")); err == nil {
		t.Error("a closed log took a line")
	}
	lines := 0
	for _, name := range []string{r.name, r.name + ".1"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
		lines += bytes.Count(text, []byte("\n"))
	}
	if lines != 40 {
		t.Errorf("%d lines, want 40", lines)
	}
}

func TestLastBeat(t *testing.T) {
	m := hosttest.NewDebian(t)
	now := time.Date(2026, 1, 1, 8, 0, 0, 0, time.UTC)
	l := &lastBeat{host: m.Host, now: func() time.Time { return now }}
	for _, test := range []struct {
		err   error
		since time.Time
	}{
		{nil, now}, {nil, now}, {errors.New("no master answers"), now.Add(2 * time.Minute)}, {errors.New("no answer in time"), now.Add(2 * time.Minute)}, {nil, now.Add(4 * time.Minute)},
	} {
		l.note(test.err)
		var b beat
		if err := json.Unmarshal([]byte(m.Get(lastBeatFile)), &b); err != nil || !b.Since.Equal(test.since) || (b.Error == "") != (test.err == nil) {
			t.Errorf("%+v, want since %s; %v", b, test.since, err)
		}
		now = now.Add(time.Minute)
	}
}
