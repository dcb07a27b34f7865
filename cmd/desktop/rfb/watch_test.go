package rfb

import (
	"bytes"
	"strings"
	"testing"
)

const hello = "RFB 003.008\n\x01\x01" // version, security None, shared

// messages are what clients send, whole.
var messages = map[string]struct {
	bytes string
	input bool
}{
	"pixel format":                    {"\x00" + strings.Repeat("\x04", 19), false},
	"no encodings":                    {"\x02\x00\x00\x00", false},
	"encodings":                       {"\x02\x00\x00\x02\x00\x00\x00\x07\xff\xff\xff\x21", false},
	"update request":                  {"\x03\x01\x00\x00\x00\x00\x07\x80\x04\x38", false},
	"key":                             {"\x04\x01\x00\x00\x00\x00\x00\x61", true},
	"pointer":                         {"\x05\x01\x00\x10\x00\x20", true},
	"pointer, 8th button":             {"\x05\x80\x00\x10\x00\x20", true},
	"cut text":                        {"\x06\x00\x00\x00\x00\x00\x00\x05\x04\x04\x04\x04\x04", true},
	"no cut text":                     {"\x06\x00\x00\x00\x00\x00\x00\x00", true},
	"clipboard: capabilities":         {"\x06\x00\x00\x00\xff\xff\xff\xf8\x01\x00\x00\x01\x00\x10\x00\x00", false},
	"clipboard: asks for the desktop": {"\x06\x00\x00\x00\xff\xff\xff\xfc\x02\x00\x00\x01", false},
	"clipboard: has something":        {"\x06\x00\x00\x00\xff\xff\xff\xfc\x08\x00\x00\x01", true},
	"clipboard: hands it over":        {"\x06\x00\x00\x00\xff\xff\xff\xfa\x10\x00\x00\x01\x78\x9c", true},
	"continuous updates":              {"\x96\x01\x00\x00\x00\x00\x07\x80\x04\x38", false},
	"fence":                           {"\xf8\x00\x00\x00\x80\x00\x00\x01\x03\x04\x05\x06", false},
	"fence without content":           {"\xf8\x00\x00\x00\x00\x00\x00\x01\x00", false},
	"xvp":                             {"\xfa\x00\x01\x02", false},
	"size":                            {"\xfb\x00\x07\x80\x04\x38\x01\x00" + strings.Repeat("\x04", 16), false},
	"key with code":                   {"\xff\x00\x00\x01\x00\x00\x00\x61\x00\x00\x00\x1e", true},
	"sound off":                       {"\xff\x01\x00\x01", false},
	"sound format":                    {"\xff\x01\x00\x02\x03\x02\x00\x00\xbb\x80", false},
}

// TestMessages: each is known, whole and byte by byte, and does not bring the next
// out of step.
func TestMessages(t *testing.T) {
	for name, m := range messages {
		for _, step := range []int{1, 3, 1000} {
			var w Watch
			see := func(text string) (input bool) {
				for b := []byte(text); len(b) > 0; {
					n := min(step, len(b))
					input = w.See(b[:n]) || input
					b = b[n:]
				}
				return input
			}
			if see(hello) {
				t.Errorf("%s: the handshake counts as input", name)
			}
			if got := see(m.bytes); got != m.input {
				t.Errorf("%s, %d bytes a time: input %v", name, step, got)
			}
			if see(messages["update request"].bytes) || w.Lost() {
				t.Errorf("%s, %d bytes a time: is out of step", name, step)
			}
			if !see(messages["key"].bytes) || w.Lost() {
				t.Errorf("%s, %d bytes a time: does not know a key", name, step)
			}
		}
	}
}

func TestHandshake(t *testing.T) {
	for text, lost := range map[string]bool{
		"RFB 003.003\n\x01":                        false,
		"RFB 003.007\n\x01\x00":                    false,
		"RFB 003.008\n\x01\x01":                    false,
		"RFB 003.008\n\x02":                        true, // another security type
		"RFB 004.001\n":                            true,
		"GET / HTTP/1.1":                           true,
		hello + "\x63":                             true, // no such message
		hello + "\xff\x07":                         true, // no such one of QEMU's
		hello + "\xff\x01\x00\x09":                 true,
		hello + "\x06\x00\x00\x00\xff\xff\xff\xfe": true, // no place for its flags
	} {
		var w Watch
		w.See([]byte(text))
		if w.Lost() != lost {
			t.Errorf("%q: lost %v", text, w.Lost())
		}
		if lost && !w.See([]byte{0}) {
			t.Errorf("%q: what comes after it is no input", text)
		}
	}
}

// TestButtons: a client that knows of more buttons sends a longer event for them.
func TestButtons(t *testing.T) {
	var w Watch
	w.See([]byte(hello + "\x02\x00\x00\x02\x00\x00\x00\x07\xff\xff\xfe\xc4"))
	if !w.See([]byte("\x05\x80\x00\x10\x00\x20\x01")) || w.Lost() {
		t.Error("the long event is not known")
	}
	if !w.See([]byte("\x05\x01\x00\x10\x00\x20")) || w.Lost() {
		t.Error("the short event is not known")
	}
	if w.See([]byte(messages["update request"].bytes)) || w.Lost() {
		t.Error("it is out of step")
	}
}

// FuzzWatch: however the bytes are cut, they say the same, and nothing panics.
func FuzzWatch(f *testing.F) {
	var all strings.Builder
	all.WriteString(hello)
	for _, m := range messages {
		f.Add([]byte(hello+m.bytes), uint8(2))
		all.WriteString(m.bytes)
	}
	f.Add([]byte(all.String()), uint8(7))
	f.Add([]byte("RFB 003.003\n\x00\x06\x00\x00\x00\x80\x00\x00\x00\x08\x00\x00\x00"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		before := bytes.Clone(b)
		var whole, parts Watch
		all := whole.See(b)
		some := false
		for rest := b; len(rest) > 0; {
			n := min(1+int(step), len(rest))
			some = parts.See(rest[:n]) || some
			rest = rest[n:]
		}
		if all != some || whole.Lost() != parts.Lost() || whole.skip != parts.skip {
			t.Errorf("whole: input %v, lost %v; in parts: %v, %v", all, whole.Lost(), some, parts.Lost())
		}
		if !bytes.Equal(b, before) {
			t.Error("it changed what it saw")
		}
	})
}

// BenchmarkWatch is what watching costs the pipe.
func BenchmarkWatch(b *testing.B) {
	var w Watch
	w.See([]byte(hello))
	moves := []byte(strings.Repeat(messages["pointer"].bytes+messages["update request"].bytes, 100))
	b.SetBytes(int64(len(moves)))
	for b.Loop() {
		w.See(moves)
	}
}
