package plan

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// masked is all that a Secret ever shows of itself.
const masked = "(secret)"

// Secret is a value that cannot be formatted: fmt, encoding/json, text
// encoders and slog all show "(secret)". It is comparable. Only Value, which is
// easy to search the sources for, gives the content away.
type Secret struct {
	value string
	kind  kind
}

// kind is what a Secret was, for Reveal.
type kind byte

const (
	isText kind = iota
	isInt
	isFloat
	isBool
)

// NewSecret wraps a text.
func NewSecret(value string) Secret { return Secret{value: value} }

// SecretOf wraps a value of a document: text, or a number or bool that Reveal
// gives back as what it was.
func SecretOf(value any) Secret {
	switch v := value.(type) {
	case string:
		return NewSecret(v)
	case int64:
		return Secret{strconv.FormatInt(v, 10), isInt}
	case float64:
		return Secret{strconv.FormatFloat(v, 'g', -1, 64), isFloat}
	case bool:
		return Secret{strconv.FormatBool(v), isBool}
	case Secret:
		return v
	}
	return NewSecret(fmt.Sprint(value))
}

// sealed begins each value that SOPS encrypted.
const sealed = "ENC[AES256_GCM,"

// Sealed reports whether the content is encrypted: there was no key for it where
// the site was read. Nothing is known of it, and it must not be applied.
func (s Secret) Sealed() bool { return strings.Contains(s.value, sealed) }

// SealedValues is the code of an object of which a part is encrypted, where there
// is no key to compare or apply it with.
const SealedValues Code = "Sealed"

// Sealed is the reason why an object can be neither compared nor applied: a part
// of it is encrypted. Nil where none is.
func (o Object) Sealed() *Fault {
	found := false
	eachSecret(o.Spec, func(s Secret) { found = found || s.Sealed() })
	if !found {
		return nil
	}
	return SealedObject(o.ID)
}

// SealedObject is that reason.
func SealedObject(id ID) *Fault {
	return &Fault{Code: SealedValues, ID: id, Cause: "its values are encrypted, and there is no key here to compare or apply them with",
		Hint: "put the site's age key into a file age.agekey in the folder of --credentials"}
}

// HidesValues reports whether an object holds secrets: then what a system says
// of it may quote one.
func (o *Object) HidesValues() (yes bool) {
	if o != nil {
		eachSecret(o.Spec, func(Secret) { yes = true })
	}
	return yes
}

func eachSecret(tree any, visit func(Secret)) {
	switch t := tree.(type) {
	case map[string]any:
		for _, value := range t {
			eachSecret(value, visit)
		}
	case []any:
		for _, value := range t {
			eachSecret(value, visit)
		}
	case Secret:
		visit(t)
	}
}

// Value is the content. It must go to the system that keeps it, and nowhere else.
func (s Secret) Value() string { return s.value }

func (Secret) String() string               { return masked }
func (Secret) GoString() string             { return masked }
func (Secret) Format(f fmt.State, _ rune)   { fmt.Fprint(f, masked) }
func (Secret) LogValue() slog.Value         { return slog.StringValue(masked) }
func (Secret) MarshalText() ([]byte, error) { return []byte(masked), nil }
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(masked) }

// lastApplied is where kubectl apply leaves a copy of the whole object, values
// of Secrets included.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// EncryptedAnnotation marks a Kubernetes object that has secrets outside the data
// of a Secret: values that stand encrypted in git. Conceal knows them by it in
// what the cluster has, though it be another order, an older commit, or an object
// that git has no longer. It holds a short hash of each; whoever may read it may
// read the values too, and it is never printed.
const EncryptedAnnotation = Group + "/encrypted"

// MarkSecrets adds EncryptedAnnotation where Conceal would not find the secrets of
// a Kubernetes object without it. In place.
func MarkSecrets(document map[string]any) {
	if document["kind"] == "Secret" {
		document = maps.Clone(document) // its data need no mark
		delete(document, "data")
		delete(document, "stringData")
	}
	var marks []string
	eachSecret(document, func(s Secret) { marks = append(marks, mark(s)) })
	metadata, ok := document["metadata"].(map[string]any)
	if len(marks) == 0 || !ok {
		return
	}
	annotations, _ := metadata["annotations"].(map[string]any)
	if annotations == nil {
		annotations = map[string]any{}
		metadata["annotations"] = annotations
	}
	slices.Sort(marks)
	annotations[EncryptedAnnotation] = NewSecret(strings.Join(slices.Compact(marks), ","))
}

// mark is how a secret is known again.
func mark(s Secret) string {
	sum := sha256.Sum256([]byte(s.value))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// IsMarked reports whether an object carries EncryptedAnnotation.
func IsMarked(document map[string]any) bool {
	metadata, _ := document["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	return annotations[EncryptedAnnotation] != nil
}

// MayHide reports whether a value of a document may be a secret. Of a site
// document only what its kind keeps as one may: names, numbers and the like stand
// in every plan.
func MayHide(document map[string]any, path []any) bool {
	if len(path) == 0 {
		return false
	}
	switch path[0] {
	case "apiVersion", "kind", "metadata":
		return false
	}
	apiVersion, _ := document["apiVersion"].(string)
	if group, _, _ := strings.Cut(apiVersion, "/"); group != Group || document["kind"] == "Desktop" {
		return true
	}
	return document["kind"] == "Roster" && len(path) == 5 && path[0] == "spec" && path[1] == "users" && path[3] == "password"
}

// Conceal wraps, in place, the values of a document that nobody may see: the
// data of a Kubernetes Secret, the password hashes of a Roster, and what
// MarkSecrets marked. Everything that reads a document from git or from a system
// passes it through here first.
func Conceal(document map[string]any) {
	if IsMarked(document) {
		concealMarked(document)
	}
	switch document["kind"] {
	case "Secret":
		concealAll(document["data"])
		concealAll(document["stringData"])
		if metadata, ok := document["metadata"].(map[string]any); ok {
			if annotations, ok := metadata["annotations"].(map[string]any); ok {
				if copied, ok := annotations[lastApplied].(string); ok {
					annotations[lastApplied] = NewSecret(copied)
				}
			}
		}
	case "Roster":
		spec, _ := document["spec"].(map[string]any)
		users, _ := spec["users"].([]any)
		for _, u := range users {
			if user, ok := u.(map[string]any); ok {
				concealAll(user["password"])
			}
		}
	}
}

func concealMarked(document map[string]any) {
	annotations := document["metadata"].(map[string]any)["annotations"].(map[string]any)
	all := SecretOf(annotations[EncryptedAnnotation])
	annotations[EncryptedAnnotation] = all
	marks := map[string]bool{}
	for one := range strings.SplitSeq(all.value, ",") {
		marks[one] = true
	}
	for key, value := range document {
		if key != "apiVersion" && key != "kind" && key != "metadata" {
			document[key] = concealMarks(value, marks)
		}
	}
}

// concealMarks wraps the marked values of a tree, in place but for the top.
func concealMarks(tree any, marks map[string]bool) any {
	switch t := tree.(type) {
	case map[string]any:
		for key, value := range t {
			t[key] = concealMarks(value, marks)
		}
	case []any:
		for i, value := range t {
			t[i] = concealMarks(value, marks)
		}
	case string, int64, float64, bool:
		if s := SecretOf(t); marks[mark(s)] {
			return s
		}
	}
	return tree
}

func concealAll(values any) {
	m, _ := values.(map[string]any)
	for key, value := range m {
		if text, ok := value.(string); ok {
			m[key] = NewSecret(text)
		} else if _, ok := value.(Secret); !ok && value != nil {
			// A number where text belongs: the system will refuse it, and
			// must not quote it when it does.
			m[key] = NewSecret(fmt.Sprint(value))
		}
	}
}

// Reveal is a copy of a tree with every Secret replaced by its value: the form
// to send to the system that keeps it.
func Reveal(tree any) any {
	switch t := tree.(type) {
	case map[string]any:
		m := make(map[string]any, len(t))
		for key, value := range t {
			m[key] = Reveal(value)
		}
		return m
	case []any:
		l := make([]any, len(t))
		for i, value := range t {
			l[i] = Reveal(value)
		}
		return l
	case Secret:
		return t.reveal()
	}
	return tree
}

func (s Secret) reveal() any {
	var value any = s.value
	switch s.kind {
	case isInt:
		value, _ = strconv.ParseInt(s.value, 10, 64)
	case isFloat:
		value, _ = strconv.ParseFloat(s.value, 64)
	case isBool:
		value = s.value == "true"
	}
	return value
}

// maskPair is a copy of two trees for printing side by side. A secret that
// differs between them shows that it does, and nothing else.
func maskPair(have, want any) (any, any) {
	if _, ok := want.(Secret); ok && !reflect.DeepEqual(have, want) {
		return "(secret, before)", "(secret, after)" // what it was is nobody's affair either
	}
	switch h := have.(type) {
	case map[string]any:
		w, ok := want.(map[string]any)
		if !ok {
			return maskOne(have, "before"), maskOne(want, "after")
		}
		hm, wm := map[string]any{}, map[string]any{}
		for key := range h {
			if other, ok := w[key]; ok {
				hm[key], wm[key] = maskPair(h[key], other)
			} else {
				hm[key] = maskOne(h[key], "before")
			}
		}
		for key := range w {
			if _, ok := h[key]; !ok {
				wm[key] = maskOne(w[key], "after")
			}
		}
		return hm, wm
	case []any:
		if w, ok := want.([]any); ok && len(w) == len(h) {
			hl, wl := make([]any, len(h)), make([]any, len(w))
			for i := range h {
				hl[i], wl[i] = maskPair(h[i], w[i])
			}
			return hl, wl
		}
	case Secret:
		if reflect.DeepEqual(have, want) {
			return masked, masked
		}
	}
	return maskOne(have, "before"), maskOne(want, "after")
}

// maskOne is a copy of a tree with every Secret replaced by "(secret, WHEN)",
// or "(secret)" where there is no when.
func maskOne(tree any, when string) any {
	switch t := tree.(type) {
	case map[string]any:
		m := make(map[string]any, len(t))
		for key, value := range t {
			m[key] = maskOne(value, when)
		}
		return m
	case []any:
		l := make([]any, len(t))
		for i, value := range t {
			l[i] = maskOne(value, when)
		}
		return l
	case Secret:
		if when == "" {
			return masked
		}
		return "(secret, " + when + ")"
	}
	return tree
}
