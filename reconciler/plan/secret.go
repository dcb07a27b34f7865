package plan

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
)

// masked is all that a Secret ever shows of itself.
const masked = "(secret)"

// Secret is a value that cannot be formatted: fmt, encoding/json, text
// encoders and slog all show "(secret)". It is comparable. Only Value, which is
// easy to search the sources for, gives the content away.
type Secret struct{ value string }

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{value} }

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

// Conceal wraps, in place, the values of a document that nobody may see: the
// data of a Kubernetes Secret and the password hashes of a Roster. Everything
// that reads a document from git or from a system passes it through here first.
func Conceal(document map[string]any) {
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
		return t.value
	}
	return tree
}

// maskPair is a copy of two trees for printing side by side. A secret that
// differs between them shows that it does, and nothing else.
func maskPair(have, want any) (any, any) {
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
