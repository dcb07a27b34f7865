package sops

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// testKeys are keys of testdata, in a folder as LoadKeys wants it.
func testKeys(t testing.TB, names ...string) Keys {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), read(t, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := LoadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// documents are those of a file, with what is encrypted put in.
func documents(t testing.TB, text []byte, values map[string]plan.Secret) (all []any) {
	t.Helper()
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var document any
		err := decoder.Decode(&document)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, put(document, values))
	}
}

func put(tree any, values map[string]plan.Secret) any {
	switch v := tree.(type) {
	case map[string]any:
		for key, item := range v {
			v[key] = put(item, values)
		}
	case []any:
		for i, item := range v {
			v[i] = put(item, values)
		}
	case string:
		if s, ok := values[v]; ok {
			return plan.Reveal(s)
		}
	case int:
		return int64(v)
	default:
		if at, ok := v.(interface{ MarshalText() ([]byte, error) }); ok { // a time
			text, _ := at.MarshalText()
			return string(text)
		}
	}
	return tree
}

// TestSOPS reads what the real sops wrote as the real sops reads it.
func TestSOPS(t *testing.T) {
	keys := testKeys(t, "site.agekey", "pq.agekey")
	for _, name := range []string{"secret.yaml", "types.yaml", "many.yaml", "maconly.yaml", "whole.yaml", "unregex.yaml", "suffix.yaml", "pq.yaml", "json.json"} {
		t.Run(name, func(t *testing.T) {
			content := read(t, name)
			if !Looks(content) {
				t.Error("it does not look encrypted")
			}
			f, fault := Read(name, content)
			if fault != nil {
				t.Fatal(fault)
			}
			if filepath.Ext(name) == ".yaml" && bytes.Count(f.Clear, []byte("\n")) != bytes.Count(content, []byte("\n")) {
				t.Error("the lines of the file moved")
			}
			if bytes.Contains(f.Clear, []byte("canary")) || bytes.Contains(f.Clear, []byte("sops")) {
				t.Errorf("it shows too much:\n%s", f.Clear)
			}
			values, fault := f.Decrypt(keys)
			if fault != nil {
				t.Fatal(fault)
			}
			want := documents(t, read(t, strings.TrimSuffix(name, filepath.Ext(name))+".want"), nil)
			if got := documents(t, f.Clear, values); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
			for text := range f.Values() {
				if _, ok := values[text]; !ok {
					t.Errorf("%s was not opened", text)
				}
			}
		})
	}
}

// TestRefused changes files, and takes other keys.
func TestRefused(t *testing.T) {
	site := testKeys(t, "site.agekey")
	for _, tt := range []struct {
		name, file string
		old, new   string
		keys       Keys
		want       plan.Code
	}{
		{"no key", "secret.yaml", "", "", Keys{}, NoKey},
		{"another key", "secret.yaml", "", "", testKeys(t, "other.agekey"), WrongKey},
		{"one of two keys", "maconly.yaml", "", "", testKeys(t, "other.agekey"), ""},
		{"pgp only", "pgp.yaml", "", "", site, UnknownKeys},
		{"chosen by comments", "comment.yaml", "", "", site, UnsupportedSOPS},
		{"a clear value changed", "secret.yaml", "type: Opaque", "type: Other", site, Tampered},
		{"a value taken out", "secret.yaml", "    empty: \"\"\n", "", site, ""},
		{"a value put in", "secret.yaml", "type: Opaque", "type: Opaque\nimmutable: true", site, Tampered},
		{"a value in the clear", "secret.yaml", "empty: \"\"", "empty: canary-clear", site, BadEncryption},
		{"a value in the clear, not covered by the MAC", "maconly.yaml", "empty: \"\"", "empty: canary-clear", site, BadEncryption},
		{"a value moved", "secret.yaml", "    password:", "    passwort:", site, Tampered},
		{"a bit of a value", "secret.yaml", "tag:2", "tag:3", site, Tampered},
		{"the time of the proof", "secret.yaml", "lastmodified: \"2026", "lastmodified: \"2025", site, Tampered},
		{"no time", "secret.yaml", "lastmodified: \"2026", "lastmodified: \"canary", site, BadEncryption},
		{"the rule", "secret.yaml", "encrypted_regex: ^(data|stringData|spec)$", "encrypted_regex: ^(data)$", site, Tampered},
		{"no expression", "secret.yaml", "encrypted_regex: ^(data|stringData|spec)$", "encrypted_regex: '('", site, BadEncryption},
		{"two rules", "secret.yaml", "encrypted_regex: ^", "unencrypted_suffix: x\n    encrypted_regex: ^", site, BadEncryption},
		{"a document without section", "many.yaml", "\n---\n", "\n---\na: b\n---\n", site, BadEncryption},
		{"the key of the file", "secret.yaml", "BEGIN AGE", "BEGIN", site, WrongKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			content := strings.Replace(string(read(t, tt.file)), tt.old, tt.new, 1)
			f, fault := Read("services/wiki/key.yaml", []byte(content))
			if fault == nil {
				_, fault = f.Decrypt(tt.keys)
			}
			if (fault == nil) != (tt.want == "") || fault != nil && fault.Code != tt.want {
				t.Fatalf("got %v, want %s", fault, tt.want)
			}
			if fault == nil {
				return
			}
			if strings.Contains(fault.Error(), "canary") || !strings.HasPrefix(fault.Where, "services/wiki/key.yaml:") || fault.Hint == "" && fault.Code != BadEncryption {
				t.Errorf("%s", fault)
			}
		})
	}
}

// TestEveryBit changes each byte of the encrypted values in turn.
func TestEveryBit(t *testing.T) {
	keys, content := testKeys(t, "site.agekey"), read(t, "secret.yaml")
	clean, _ := Read("x", content)
	want, _ := clean.Decrypt(keys)
	for _, at := range Find(string(content)) {
		for i := at[0]; i < at[1]; i += 7 {
			changed := bytes.Clone(content)
			changed[i] ^= 1
			f, fault := Read("x", changed)
			if f == nil {
				if fault == nil {
					t.Fatalf("byte %d: it is taken for a file that is not encrypted", i)
				}
				continue
			}
			got, fault := f.Decrypt(keys)
			if fault == nil && len(got) != len(want) {
				t.Errorf("byte %d: %d values, and no fault", i, len(got))
			}
			for text, s := range got {
				if other, ok := want[text]; ok && other != s {
					t.Errorf("byte %d: another value", i)
				}
			}
		}
	}
}

func TestPlainFiles(t *testing.T) {
	for _, content := range []string{"", "a: b\n", "sops: {version: 3}\n", "- a\n", "\t", "sops: ENC[AES256_GCM,\n"} {
		if f, fault := Read("x", []byte(content)); f != nil || fault != nil {
			t.Errorf("%q: %v %v", content, f, fault)
		}
	}
}

func TestLoadKeys(t *testing.T) {
	secret := strings.TrimSpace(string(read(t, "site.agekey")))
	for _, tt := range []struct {
		name, content string
		mode          os.FileMode
		want          string
	}{
		{"age.agekey", secret, 0o600, ""},
		{"age.agekey", secret, 0o440, ""},
		{"age.agekey", secret, 0o604, "can be read by everybody"},
		{"age.agekey", "canary", 0o600, "holds no age key"},
		{"age.agekey", "", 0o600, "holds no age key"},
		{"age.agekey", strings.Replace(secret, "AGE-SECRET-KEY-1", "AGE-SECRET-KEY-1Q", 1), 0o600, "holds no age key"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, tt.name), []byte(tt.content), tt.mode); err != nil {
			t.Fatal(err)
		}
		os.Chmod(filepath.Join(dir, tt.name), tt.mode)
		keys, err := LoadKeys(dir)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) || err != nil && strings.Contains(err.Error(), "SECRET-KEY-1") {
			t.Errorf("mode %v: got %v, want %q", tt.mode, err, tt.want)
		}
		if shown := fmt.Sprintf("%v %+v %#v %s", keys, keys, keys, keys); strings.Contains(shown, "SECRET") {
			t.Error("a key can be printed")
		}
	}
	if keys, err := LoadKeys(filepath.Join(t.TempDir(), "none")); err != nil || !keys.Empty() {
		t.Errorf("got %v, %v", keys, err)
	}
}

// FuzzRead wants neither panics nor values that the proof does not cover.
func FuzzRead(f *testing.F) {
	for _, name := range []string{"secret.yaml", "types.yaml", "many.yaml", "maconly.yaml", "json.json"} {
		f.Add(read(f, name))
	}
	keys := testKeys(f, "site.agekey")
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) > 1<<14 || bytes.Count(content, []byte("*")) > 8 {
			return // the render weighs files before they come here
		}
		file, fault := Read("x", content)
		if (file == nil) == (fault == nil) && file != nil {
			t.Fatal("a file, and a fault")
		}
		if file == nil {
			return
		}
		if Looks(file.Clear) && bytes.Contains(file.Clear, []byte("\nsops:\n")) {
			t.Fatal("a section is left")
		}
		file.Decrypt(keys)
	})
}
