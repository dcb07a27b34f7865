// Package validate holds documents of a site repo against the JSON Schemas of
// their kinds, and says what is wrong in words for people: each fault names the
// field, what was found, and what to write instead.
//
// It looks at one document at a time, and knows no rule that the schemas do not
// have. What takes knowledge of a kind, or a second document, is checked by the
// Validate of the room that owns the kind.
package validate

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/schema"
)

// Codes of what is wrong with the structure of a document.
const (
	UnknownKind    plan.Code = "UnknownKind"    // a kind that a site repo does not have
	UnknownVersion plan.Code = "UnknownVersion" // an apiVersion that this reconciler does not read
	UnknownField   plan.Code = "UnknownField"   // a field that the kind does not have
	WrongType      plan.Code = "WrongType"      // text where a number belongs, and the like
	NotDecrypted   plan.Code = "NotDecrypted"   // a document that is still encrypted with SOPS
)

// Validator holds the compiled schemas. It may be used by many goroutines.
type Validator struct{ kinds map[string]compiled }

// compiled is a schema to validate with, and the same one to look things up in.
type compiled struct {
	schema *jsonschema.Schema
	tree   node
}

// New compiles the schemas. That takes a few milliseconds: make one and keep it.
func New() (*Validator, error) {
	v := &Validator{kinds: map[string]compiled{}}
	for _, name := range schema.Kinds() {
		data, _ := schema.For(name)
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("read the schema of %s: %w", name, err)
		}
		c, at := jsonschema.NewCompiler(), "embedded:///"+name+".json"
		if err := c.AddResource(at, document); err != nil {
			return nil, fmt.Errorf("read the schema of %s: %w", name, err)
		}
		s, err := c.Compile(at)
		if err != nil {
			return nil, fmt.Errorf("compile the schema of %s: %w", name, err)
		}
		v.kinds[name] = compiled{s, document.(map[string]any)}
	}
	return v, nil
}

// Structure is all that is wrong with the structure of one document, in the
// order of its fields. Documents that are no site documents are not looked at.
func (v *Validator) Structure(id plan.ID, content map[string]any) []*plan.Fault {
	apiVersion, _ := content["apiVersion"].(string)
	kindName, _ := content["kind"].(string)
	group, _, _ := strings.Cut(apiVersion, "/")
	f := &plan.Fault{ID: id}
	switch {
	case group != plan.Group:
		if v.kinds[kindName].schema != nil && near(group, plan.Group) {
			f.Code, f.Field, f.Cause = UnknownVersion, "apiVersion", fmt.Sprintf("there is no %q", apiVersion)
			f.Hint = "did you mean " + plan.APIVersion + "?"
			return []*plan.Fault{f}
		}
		return nil
	case apiVersion != plan.APIVersion:
		f.Code, f.Field, f.Cause = UnknownVersion, "apiVersion", fmt.Sprintf("this reconciler does not read %q", apiVersion)
		f.Hint = "want " + plan.APIVersion
		return []*plan.Fault{f}
	case v.kinds[kindName].schema == nil:
		f.Code, f.Field, f.Cause = UnknownKind, "kind", fmt.Sprintf("there is no kind %q", kindName)
		f.Hint = suggest(kindName, schema.Kinds())
		return []*plan.Fault{f}
	}
	if _, encrypted := content["sops"]; encrypted {
		f.Code, f.Cause, f.Hint = NotDecrypted, "the document is encrypted with SOPS, and was not decrypted", "does the daemon have the age key?"
		return []*plan.Fault{f}
	}
	c := v.kinds[kindName]
	// Secrets are no JSON. Their content is a room's affair, so text will do.
	err := c.schema.Validate(withoutSecrets(content))
	if err == nil {
		return nil
	}
	r := &reader{id: id, content: content, schema: c.tree}
	r.read(err.(*jsonschema.ValidationError))
	slices.SortStableFunc(r.faults, func(a, b *plan.Fault) int { return strings.Compare(a.Field, b.Field) })
	return r.faults
}

func withoutSecrets(tree any) any {
	switch t := tree.(type) {
	case map[string]any:
		m := make(map[string]any, len(t))
		for key, value := range t {
			m[key] = withoutSecrets(value)
		}
		return m
	case []any:
		l := make([]any, len(t))
		for i, value := range t {
			l[i] = withoutSecrets(value)
		}
		return l
	case plan.Secret:
		return ""
	}
	return tree
}

// reader turns the validator's errors about one document into faults.
type reader struct {
	id      plan.ID
	content map[string]any
	schema  node
	faults  []*plan.Fault
}

// place is where in the document an error is.
type place struct {
	path   []any // as plan.Field takes it
	value  any   // what stands there
	schema node  // what the schema says of it
	secret bool  // the value must not be quoted
}

func (p place) field(name ...any) string { return plan.Field(append(slices.Clone(p.path), name...)...) }

// read takes the leaves of a tree of errors: the branches only say that
// something below them is wrong.
func (r *reader) read(err *jsonschema.ValidationError) {
	if len(err.Causes) > 0 {
		for _, cause := range err.Causes {
			r.read(cause)
		}
		return
	}
	p := r.find(err.InstanceLocation)
	switch k := err.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		for _, name := range slices.Sorted(slices.Values(k.Properties)) {
			r.add(UnknownField, p.field(name), fmt.Sprintf("there is no field %q", name), r.suggestField(p, name))
		}
	case *kind.Required:
		for _, name := range k.Missing {
			r.add(plan.MissingField, p.field(name), "is missing", p.schema.property(name).hint())
		}
	case *kind.Type:
		r.add(WrongType, p.field(), fmt.Sprintf("want %s, got %s", either(k.Want), p.got(k)), typeHint(p, k))
	case *kind.Enum:
		want := make([]string, len(k.Want))
		for i, value := range k.Want {
			want[i] = fmt.Sprint(value)
		}
		r.add(plan.InvalidValue, p.field(), p.quote()+" is none of "+strings.Join(want, ", "), p.schema.hint())
	case *kind.Const:
		r.add(plan.InvalidValue, p.field(), fmt.Sprintf("want %v, got %s", k.Want, p.quote()), "")
	case *kind.Pattern:
		r.add(plan.InvalidValue, p.field(), p.quote()+" does not have the right form", p.schema.hint())
	case *kind.Minimum:
		r.add(plan.InvalidValue, p.field(), fmt.Sprintf("%s is too low: want %s or more", p.quote(), k.Want.RatString()), p.schema.hint())
	case *kind.Maximum:
		r.add(plan.InvalidValue, p.field(), fmt.Sprintf("%s is too high: want %s or less", p.quote(), k.Want.RatString()), p.schema.hint())
	case *kind.MinLength:
		r.add(plan.InvalidValue, p.field(), "is empty", p.schema.hint())
	case *kind.MaxLength:
		r.add(plan.InvalidValue, p.field(), fmt.Sprintf("is %d letters long: want %d or fewer", k.Got, k.Want), p.schema.hint())
	case *kind.UniqueItems:
		r.add(plan.Duplicate, p.field(k.Duplicates[1]), fmt.Sprintf("is the same as %s", p.field(k.Duplicates[0])), "take one of them out")
	default:
		// A keyword that no schema of ours has yet. Its own words may quote.
		r.add(plan.InvalidValue, p.field(), "does not fit the schema: "+strings.Join(k.KeywordPath(), "/"), p.schema.hint())
	}
}

func (r *reader) add(code plan.Code, field, cause, hint string) {
	r.faults = append(r.faults, &plan.Fault{Code: code, ID: r.id, Field: field, Cause: cause, Hint: hint})
}

// find follows a JSON pointer through the document and the schema.
func (r *reader) find(location []string) place {
	p := place{value: r.content, schema: r.schema}
	for _, token := range location {
		switch v := p.value.(type) {
		case map[string]any:
			p.path, p.value, p.schema = append(p.path, token), v[token], p.schema.property(token)
			p.secret = p.secret || hidden(token)
		case []any:
			i, _ := strconv.Atoi(token)
			p.path, p.value, p.schema = append(p.path, i), v[i], p.schema.sub("items")
		}
	}
	return p
}

// hidden reports whether what a field holds, and all below it, may be secret: a
// password in the wrong place, or an environment variable with a token.
func hidden(name string) bool {
	return strings.Contains(strings.ToLower(name), "password") || name == "environment"
}

// quote is the value of a place for a message.
func (p place) quote() string {
	if p.secret {
		return "the value"
	}
	switch v := p.value.(type) {
	case string:
		return strconv.Quote(v)
	case map[string]any, []any, plan.Secret:
		return "the value"
	case nil:
		return "nothing"
	default:
		return fmt.Sprint(v)
	}
}

// got is what was found in the place of another type: of numbers the very one,
// since 1.5 is one and no whole one.
func (p place) got(k *kind.Type) string {
	if k.Got == "number" && !p.secret {
		return p.quote()
	}
	return article(k.Got)
}

// suggestField says what a field that is not there may have meant: one beside it
// with a like name, one of that very name elsewhere, or any that could be there.
func (r *reader) suggestField(p place, name string) string {
	if len(p.path) == 1 && p.path[0] == "metadata" && name == "namespace" {
		return "site documents have no namespace; does a kustomization above set one?"
	}
	fields := p.schema.names()
	for _, field := range fields {
		if near(name, field) {
			return fmt.Sprintf("did you mean %q?", field)
		}
	}
	if elsewhere := r.schema.paths(name, nil); len(elsewhere) == 1 {
		return "it belongs to " + elsewhere[0]
	}
	return "want one of " + strings.Join(fields, ", ")
}

// typeHint knows what YAML does to people.
func typeHint(p place, k *kind.Type) string {
	switch {
	case k.Got == "null" && slices.Contains(k.Want, "array"):
		return "[] empties the list; take the line out to leave things alone"
	case k.Got == "null" && len(p.path) == 1:
		return ""
	case k.Got == "null":
		return "take the line out to leave things alone"
	case slices.Contains(k.Want, "string") && k.Got == "boolean":
		return "YAML reads yes, no, on and off as true and false: put the text in quotes"
	case slices.Contains(k.Want, "string") && k.Got == "number":
		if _, ok := p.schema["pattern"]; ok && len(k.Want) == 1 {
			return p.schema.hint() // quotes alone would not do
		}
		return "put it in quotes"
	case slices.Contains(k.Want, "integer") && k.Got == "string":
		return "take the quotes away"
	case slices.Contains(k.Want, "array"):
		return "begin each entry with a dash"
	}
	return p.schema.hint()
}

// either is a list of types in words.
func either(types []string) string {
	words := make([]string, len(types))
	for i, t := range types {
		words[i] = article(t)
	}
	return strings.Join(words, " or ")
}

func article(jsonType string) string {
	switch jsonType {
	case "string":
		return "text"
	case "array":
		return "a list"
	case "object":
		return "fields"
	case "integer":
		return "a whole number"
	case "number":
		return "a number"
	case "boolean":
		return "true or false"
	case "null":
		return "nothing"
	}
	return jsonType
}

// suggest is a hint to one of a few words.
func suggest(word string, among []string) string {
	for _, other := range among {
		if near(word, other) {
			return fmt.Sprintf("did you mean %s?", other)
		}
	}
	return "want one of " + strings.Join(among, ", ")
}

// near reports whether a word is another one with a slip of the finger.
func near(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	return distance(a, b) <= max(1, min(len(a), len(b))/4)
}

// distance is how many letters must be put in, taken out, changed or swapped
// with their neighbour.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		for j := range rows[i] {
			switch {
			case i == 0:
				rows[i][j] = j
				continue
			case j == 0:
				rows[i][j] = i
				continue
			}
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// node is a schema as a tree. The schemas of this package have no references,
// so that a path in a document is a path in its schema.
type node map[string]any

func (n node) sub(keyword string) node {
	s, _ := n[keyword].(map[string]any)
	return s
}

// property is the schema of a field, listed or not.
func (n node) property(name string) node {
	if p, ok := n.sub("properties")[name].(map[string]any); ok {
		return p
	}
	return n.sub("additionalProperties")
}

// names are the fields that may stand at a place.
func (n node) names() []string { return slices.Sorted(maps.Keys(n.sub("properties"))) }

// hint is what the comment of the Go type says of the field.
func (n node) hint() string {
	text, _ := n["description"].(string)
	return strings.TrimSuffix(text, ".")
}

// paths are all places below n that have a field of a name.
func (n node) paths(name string, at []any) (found []string) {
	if items := n.sub("items"); items != nil {
		return items.paths(name, at)
	}
	for _, field := range n.names() {
		below := append(slices.Clone(at), field)
		if field == name {
			found = append(found, plan.Field(at...))
		}
		found = append(found, n.property(field).paths(name, below)...)
	}
	return found
}
