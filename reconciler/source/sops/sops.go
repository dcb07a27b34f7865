// Package sops reads files that SOPS (github.com/getsops/sops) encrypted for age
// keys: YAML and JSON with a section sops at the top.
//
//	Read     takes a file apart: what is encrypted in it, and the rest
//	Decrypt  opens the values with a key, and proves that nobody changed the file
//
// A value is opened where it is needed and not before: kustomize is given the
// file without its section, with ENC[...] in the place of each value, and the
// values are put into what it makes of that. So neither the process that runs
// kustomize, nor a message of it, nor a cache ever holds one.
//
// This is our own reading of the format, for decrypting only, on filippo.io/age
// and crypto/aes. The library has a good one, but no part of it comes without
// the rest: its root package imports the clients of AWS, Google, Azure, Huawei
// and Vault, and its cipher imports the root. That is over 200 modules in the
// go.sum of a program that asks none of them. The tests read what the real sops
// wrote.
//
// Left out, and said so where it is met: keys other than age's, key groups that
// share a key (Shamir), and the choice of values by comments.
package sops

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of what is wrong with an encrypted file, or with the key.
const (
	NoKey           plan.Code = "NoKey"           // there is no key at all
	WrongKey        plan.Code = "WrongKey"        // the file is encrypted for other keys
	BadKey          plan.Code = "BadKey"          // the key cannot be read, or too many people can
	UnknownKeys     plan.Code = "UnknownKeys"     // the file is encrypted for keys of a kind that we do not have
	Tampered        plan.Code = "Tampered"        // the file was changed without its key
	BadEncryption   plan.Code = "BadEncryption"   // the section sops, or a value, is not what SOPS writes
	UnsupportedSOPS plan.Code = "UnsupportedSOPS" // a way of SOPS that this package leaves out
)

// Section is the key of a document that says how it is encrypted.
const Section = "sops"

// value is an encrypted value; it is found within other text too.
var value = regexp.MustCompile(`ENC\[AES256_GCM,data:([A-Za-z0-9+/=]*),iv:([A-Za-z0-9+/=]+),tag:([A-Za-z0-9+/=]+),type:([a-z]+)\]`)

// Find is where encrypted values stand in a text, as regexp has it.
func Find(text string) [][]int { return value.FindAllStringIndex(text, -1) }

// TypeOf is the type of an encrypted value: str, int, float, bool, time.
func TypeOf(encrypted string) string {
	if m := value.FindStringSubmatch(encrypted); m != nil {
		return m[4]
	}
	return ""
}

// metadata is the section sops.
type metadata struct {
	Age       []recipient `yaml:"age"`
	KeyGroups []struct {
		Age []recipient `yaml:"age"`
	} `yaml:"key_groups"`
	LastModified     any    `yaml:"lastmodified"`
	MAC              string `yaml:"mac"`
	MACOnlyEncrypted bool   `yaml:"mac_only_encrypted"`

	UnencryptedSuffix       string `yaml:"unencrypted_suffix"`
	EncryptedSuffix         string `yaml:"encrypted_suffix"`
	UnencryptedRegex        string `yaml:"unencrypted_regex"`
	EncryptedRegex          string `yaml:"encrypted_regex"`
	UnencryptedCommentRegex string `yaml:"unencrypted_comment_regex"`
	EncryptedCommentRegex   string `yaml:"encrypted_comment_regex"`
}

// recipient is the key of the file, encrypted for one age key.
type recipient struct {
	Recipient string `yaml:"recipient"`
	Enc       string `yaml:"enc"`
}

// File is an encrypted file.
type File struct {
	Path  string
	Clear []byte // without the sections: what is encrypted still is, and each line stands where it stood

	section   metadata
	modified  string // as the file's proof has it
	line      int    // of the section
	encrypted func(path []string) bool
	documents []*yaml.Node // without the sections
	values    map[string]Place
}

// Place is where in a file a value stands.
type Place struct {
	Path []string // keys, from the top of the document
	Line int
}

// Values are the encrypted values of the file, each with its first place.
func (f *File) Values() map[string]Place { return f.values }

// Looks reports whether a file may be encrypted: a quick look, for most are not.
func Looks(content []byte) bool {
	return bytes.Contains(content, []byte("ENC[AES256_GCM,")) && bytes.Contains(content, []byte(Section))
}

// Read takes a file apart. It gives nil for a file that is not encrypted. The
// content is YAML that was found sound, and of a size that can be parsed.
func Read(path string, content []byte) (*File, *plan.Fault) {
	f := &File{Path: path, values: map[string]Place{}}
	var keys []*yaml.Node // of the sections
	var first *yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	for {
		var node yaml.Node
		err := decoder.Decode(&node)
		if err == io.EOF {
			break
		}
		if err != nil || len(node.Content) == 0 {
			return nil, nil // the render will say so
		}
		root := node.Content[0]
		if i := keyOf(root, Section); i >= 0 {
			keys = append(keys, root.Content[i])
			if first == nil {
				first = root.Content[i+1]
			}
			root.Content = append(root.Content[:i:i], root.Content[i+2:]...)
		}
		f.documents = append(f.documents, root)
	}
	if first == nil || keyOf(first, "mac") < 0 {
		return nil, nil
	}
	f.line = keys[0].Line
	if len(keys) != len(f.documents) {
		return nil, f.fault(BadEncryption, f.line, "a document of the file has no section sops", "give plain documents a file of their own; sops encrypts whole files")
	}
	if err := first.Decode(&f.section); err != nil {
		return nil, f.fault(BadEncryption, f.line, "the section sops is not what SOPS writes", "encrypt the file anew")
	}
	if fault := f.understand(); fault != nil {
		return nil, fault
	}
	for _, root := range f.documents {
		if root.Kind != yaml.MappingNode {
			return nil, f.fault(BadEncryption, root.Line, "the document is not a map of keys", "")
		}
		f.walk(root, nil, func(n *yaml.Node, path []string) *plan.Fault {
			if _, known := f.values[n.Value]; !known && f.encrypted(path) && isValue(n.Value) {
				f.values[n.Value] = Place{append([]string{}, path...), n.Line}
			}
			return nil
		})
	}
	f.Clear = f.clear(content, keys)
	if f.Clear == nil {
		return nil, f.fault(BadEncryption, f.line, "the section sops cannot be told from the rest of the file", "encrypt the file anew")
	}
	return f, nil
}

// understand makes out what the section says.
func (f *File) understand() *plan.Fault {
	s := &f.section
	if s.UnencryptedCommentRegex != "" || s.EncryptedCommentRegex != "" {
		return f.fault(UnsupportedSOPS, f.line, "the values are chosen by comments, which Kingmaker does not read", "choose them by name: sops encrypt --encrypted-regex '^(data|stringData)$'")
	}
	switch {
	case len(s.KeyGroups) > 1:
		return f.fault(UnsupportedSOPS, f.line, "the key of the file is split over several groups of keys, which Kingmaker does not put together", "encrypt the file for age keys without key groups")
	case len(s.KeyGroups) == 1:
		s.Age = append(s.Age, s.KeyGroups[0].Age...)
	}
	if len(s.Age) == 0 {
		return f.fault(UnknownKeys, f.line, "the file is not encrypted for any age key, and Kingmaker has no others", "add the site's: sops rotate --in-place --add-age age1... FILE")
	}
	switch at := s.LastModified.(type) {
	case time.Time:
		f.modified = at.Format(time.RFC3339)
	case string:
		parsed, err := time.Parse(time.RFC3339, at)
		if err != nil {
			return f.fault(BadEncryption, f.line, "lastmodified in the section sops is no time", "encrypt the file anew")
		}
		f.modified = parsed.Format(time.RFC3339)
	default:
		return f.fault(BadEncryption, f.line, "lastmodified is missing in the section sops", "encrypt the file anew")
	}
	rules := 0
	for _, rule := range []struct {
		text      string
		regex     bool
		encrypted bool // what the rule says of the paths that it fits
	}{
		{s.UnencryptedSuffix, false, false}, {s.EncryptedSuffix, false, true},
		{s.UnencryptedRegex, true, false}, {s.EncryptedRegex, true, true},
	} {
		if rule.text == "" {
			continue
		}
		rules++
		fits := func(key string) bool { return strings.HasSuffix(key, rule.text) }
		if rule.regex {
			pattern, err := regexp.Compile(rule.text)
			if err != nil {
				return f.fault(BadEncryption, f.line, "the expression that chooses the values is none", "encrypt the file anew")
			}
			fits = pattern.MatchString
		}
		f.encrypted = func(path []string) bool {
			for _, key := range path {
				if fits(key) {
					return rule.encrypted
				}
			}
			return !rule.encrypted
		}
	}
	switch rules {
	case 0:
		s.UnencryptedSuffix = "_unencrypted" // SOPS's own default
		f.encrypted = func(path []string) bool {
			for _, key := range path {
				if strings.HasSuffix(key, s.UnencryptedSuffix) {
					return false
				}
			}
			return true
		}
	case 1:
	default:
		return f.fault(BadEncryption, f.line, "two rules choose the values, and SOPS takes one", "encrypt the file anew")
	}
	return nil
}

// walk visits the scalars of a document in SOPS's order, until one is at fault.
func (f *File) walk(n *yaml.Node, path []string, visit func(n *yaml.Node, path []string) *plan.Fault) *plan.Fault {
	switch n.Kind {
	case yaml.AliasNode:
		return f.walk(n.Alias, path, visit)
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if fault := f.walk(n.Content[i+1], append(path[:len(path):len(path)], n.Content[i].Value), visit); fault != nil {
				return fault
			}
		}
	case yaml.SequenceNode:
		for _, item := range n.Content {
			if fault := f.walk(item, path, visit); fault != nil {
				return fault
			}
		}
	case yaml.ScalarNode:
		return visit(n, path)
	}
	return nil
}

// clear is the file without its sections. Their lines are emptied, so that
// faults that are found later name the right ones. Where that does not come
// out right (a file in JSON), the rest is written anew.
func (f *File) clear(content []byte, keys []*yaml.Node) []byte {
	lines := bytes.SplitAfter(content, []byte("\n"))
	for _, key := range keys {
		if key.Column != 1 || key.Line > len(lines) {
			break
		}
		for i := key.Line - 1; i < len(lines); i++ {
			line := lines[i]
			if i >= key.Line && len(bytes.TrimSpace(line)) > 0 && line[0] != ' ' && line[0] != '\t' && line[0] != '#' {
				break
			}
			lines[i] = line[len(bytes.TrimRight(line, "\r\n")):]
		}
	}
	if text := bytes.Join(lines, nil); f.same(text) {
		return text
	}
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	for _, root := range f.documents {
		if encoder.Encode(root) != nil {
			return nil
		}
	}
	encoder.Close()
	if !f.same(b.Bytes()) {
		return nil
	}
	return b.Bytes()
}

// same reports whether a text holds the documents of the file, and no section.
func (f *File) same(text []byte) bool {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for _, root := range f.documents {
		var node yaml.Node
		if decoder.Decode(&node) != nil || len(node.Content) != 1 || !equal(root, node.Content[0], 0) {
			return false
		}
	}
	return decoder.Decode(new(yaml.Node)) == io.EOF
}

func equal(a, b *yaml.Node, depth int) bool {
	if a.Kind != b.Kind || a.ShortTag() != b.ShortTag() || a.Value != b.Value || len(a.Content) != len(b.Content) || depth > 2000 {
		return false
	}
	for i := range a.Content {
		if !equal(a.Content[i], b.Content[i], depth+1) {
			return false
		}
	}
	return true
}

// keyOf is the position of a key in a mapping, or -1.
func keyOf(n *yaml.Node, key string) int {
	for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
		if n.Content[i].Value == key {
			return i
		}
	}
	return -1
}

func isValue(text string) bool {
	at := value.FindStringIndex(text)
	return at != nil && at[0] == 0 && at[1] == len(text)
}

func (f *File) fault(code plan.Code, line int, cause, hint string) *plan.Fault {
	return &plan.Fault{Code: code, Where: fmt.Sprintf("%s:%d", f.Path, line), Cause: cause, Hint: hint}
}
