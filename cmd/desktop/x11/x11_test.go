package x11

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// A script is a server that says the same to everybody.
type script struct {
	bytes.Reader
	heard bytes.Buffer
}

func (s *script) Write(b []byte) (int, error) { return s.heard.Write(b) }

func welcome(root uint32) []byte {
	rest := make([]byte, 32)
	order.PutUint16(rest[16:], 5) // the vendor's name, which is padded to 8
	rest[20], rest[21] = 1, 2     // one screen, two formats
	rest = append(rest, "tiger\x00\x00\x00"...)
	rest = append(rest, make([]byte, 16)...)
	rest = order.AppendUint32(rest, root)
	rest = append(rest, make([]byte, 16)...)
	rest = order.AppendUint16(rest, 1280)
	rest = order.AppendUint16(rest, 4)
	head := []byte{1, 0, 11, 0, 0, 0, 0, 0}
	order.PutUint16(head[6:], uint16(len(rest)/4))
	return append(head, rest...)
}

func atom(n uint32) []byte {
	b := make([]byte, 32)
	b[0] = 1
	order.PutUint32(b[8:], n)
	return b
}

func windows(list ...uint32) []byte {
	b := make([]byte, 32)
	b[0], b[1] = 1, 32
	order.PutUint32(b[4:], uint32(len(list)))
	order.PutUint32(b[16:], uint32(len(list)))
	for _, w := range list {
		b = order.AppendUint32(b, w)
	}
	return b
}

func line(pixels ...uint32) []byte {
	b := make([]byte, 32)
	b[0], b[1] = 1, 24
	order.PutUint32(b[4:], uint32(len(pixels)))
	for _, p := range pixels {
		b = order.AppendUint32(b, p)
	}
	return b
}

var gone = make([]byte, 32) // the error that a window is none

func TestLook(t *testing.T) {
	dark, light := line(0, 0, 0xff000000, 0), line(1, 2, 3, 4)
	for _, c := range []struct {
		about   string
		answers [][]byte
		want    Screen
		err     string
	}{
		{"nobody was there", [][]byte{welcome(7), atom(0)}, Screen{}, ""},
		{"no manager", [][]byte{welcome(7), atom(9), windows()}, Screen{}, ""},
		{"a dead one", [][]byte{welcome(7), atom(9), windows(70), gone}, Screen{}, ""},
		{"its number is another's now", [][]byte{welcome(7), atom(9), windows(70), windows(71)}, Screen{}, ""},
		{"a manager", [][]byte{welcome(7), atom(9), windows(70), windows(70), dark, dark, dark, dark}, Screen{Manager: true}, ""},
		{"a panel", [][]byte{welcome(7), atom(9), windows(70), windows(70), line(0, 0, 0, 0x808080), dark, dark, line(0, 0, 0, 1)}, Screen{true, 12}, ""},
		{"a desktop", [][]byte{welcome(7), atom(9), windows(70), windows(70), light, light, light, light}, Screen{true, 100}, ""},
		{"made smaller", [][]byte{welcome(7), atom(9), windows(70), windows(70), gone, light, line(1), light}, Screen{true, 100}, ""},
		{"refused", [][]byte{append([]byte{0, 7, 11, 0, 0, 0, 2, 0}, "no entry"...)}, Screen{}, "it refuses: no entr"},
		{"cut", [][]byte{welcome(7)[:20]}, Screen{}, "unexpected EOF"},
		{"an event", [][]byte{welcome(7), append([]byte{12}, make([]byte, 31)...)}, Screen{}, "kind 12"},
		{"no screen", [][]byte{append([]byte{1, 0, 11, 0, 0, 0, 8, 0}, make([]byte, 32)...)}, Screen{}, "no screen"},
		{"too long", [][]byte{welcome(7), append([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, make([]byte, 24)...)}, Screen{}, "bytes"},
	} {
		s := &script{}
		s.Reset(bytes.Join(c.answers, nil))
		got, err := look(s, Cookie{1, 2, 3})
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %+v %v", c.about, got, err)
		}
		if !bytes.HasPrefix(s.heard.Bytes(), []byte("l\x00\x0b\x00\x00\x00\x12\x00\x10\x00\x00\x00MIT-MAGIC-COOKIE-1\x00\x00\x01\x02\x03")) {
			t.Errorf("%s: the greeting is %q", c.about, s.heard.Bytes())
		}
	}
}

func FuzzLook(f *testing.F) {
	f.Add(bytes.Join([][]byte{welcome(7), atom(9), windows(70), windows(70), line(0, 1, 2, 3), gone}, nil))
	f.Fuzz(func(_ *testing.T, answers []byte) {
		s := &script{}
		s.Reset(answers)
		_, _ = look(s, Cookie{})
	})
}

func TestAuthority(t *testing.T) {
	b := Cookie{0: 'a', 15: 'z'}.Authority()
	if binary.BigEndian.Uint16(b) != 0xffff || !bytes.HasSuffix(b, []byte("\x00\x12MIT-MAGIC-COOKIE-1\x00\x10a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00z")) {
		t.Errorf("%q", b)
	}
}
