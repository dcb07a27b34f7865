package render

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// What one YAML document may hold. The parser stops by itself at 10,000 levels;
// what comes out of it is walked by functions that call themselves.
const (
	maxDepth  = 1000      // levels of nesting
	maxNodes  = 1_000_000 // nodes after aliases are expanded, where that is
	maxGrowth = 10        // times as many as the file has
)

// note is something wrong in a file, by line.
type note struct {
	line  int
	code  plan.Code
	cause string
	hint  string
}

// notes collects them, up to a number that a person will read.
type notes []note

const maxNotes = 100

func (n *notes) add(line int, code plan.Code, hint, format string, args ...any) {
	switch {
	case len(*n) < maxNotes:
		*n = append(*n, note{line, code, fmt.Sprintf(format, args...), hint})
	case len(*n) == maxNotes:
		*n = append(*n, note{line: line, code: code, cause: "there is more wrong with the file"})
	}
}

// separator is what kustomize takes for the border between two documents.
var separator = regexp.MustCompile(`\n---.*\n`)

// eachDocument cuts a file as kustomize does, and calls visit with the text of
// each document, the line of the --- above it, and the number of lines before it.
func eachDocument(content []byte, visit func(text, border []byte, before int)) {
	content = bytes.ReplaceAll(content, []byte("\r\n"), []byte("\n"))
	start, before := 0, 0
	var above []byte
	for _, border := range separator.FindAllIndex(content, -1) {
		text := content[start : border[0]+1]
		visit(text, above, before)
		before += bytes.Count(text, []byte("\n")) + 1
		start, above = border[1], content[border[0]+1:border[1]]
	}
	visit(content[start:], above, before)
}

// precheck refuses a file that must not reach kustomize at all: one that is not
// text, and one that grows in memory. It parses only what looks as if it might.
func precheck(content []byte, documents int) (found notes) {
	if !utf8.Valid(content) {
		line := 1
		for rest := content; ; {
			r, size := utf8.DecodeRune(rest)
			if r == utf8.RuneError && size <= 1 {
				break
			}
			if r == '\n' {
				line++
			}
			rest = rest[size:]
		}
		found.add(line, BadYAML, "save the file as UTF-8", "the file is not UTF-8 text")
		return found
	}
	if at := bytes.IndexByte(content, 0); at >= 0 {
		found.add(lineAt(content, at), BadYAML, "", "the file holds a NUL byte")
		return found
	}
	if n := bytes.Count(content, []byte("\n---")); n >= documents {
		found.add(0, TooBig, "split the file", "the file holds %d documents; %d are the most that a unit may have", n+1, documents)
		return found
	}
	aliases := bytes.IndexByte(content, '&') >= 0 && bytes.IndexByte(content, '*') >= 0
	if aliases || bytes.Contains(content, []byte("\n...")) || looksDeep(content) {
		return inspect(content, false)
	}
	return found
}

// examine is precheck and inspect: all that can be wrong with YAML of any kind.
func examine(content []byte) notes {
	if found := precheck(content, math.MaxInt); len(found) > 0 {
		return found
	}
	return inspect(content, false)
}

// looksDeep tells a file that may be nested too deep from one that cannot be.
func looksDeep(content []byte) bool {
	if bytes.Count(content, []byte("["))+bytes.Count(content, []byte("{")) > maxDepth {
		return true
	}
	for line := range bytes.Lines(content) {
		if len(line) > maxDepth && len(line)-len(bytes.TrimLeft(line, " -?\t")) > maxDepth {
			return true
		}
	}
	return false
}

func lineAt(content []byte, at int) int { return 1 + bytes.Count(content[:at], []byte("\n")) }

// inspect reads a file more carefully than kustomize does, and finds all that
// is wrong with it, with lines and without quoting any value. With objects, the
// documents have to be Kubernetes objects as well.
func inspect(content []byte, objects bool) (found notes) {
	eachDocument(content, func(text, border []byte, before int) {
		if rest := bytes.TrimSpace(bytes.TrimPrefix(border, []byte("---"))); len(rest) > 0 && rest[0] != '#' {
			found.add(before, BadYAML, "begin the document on the next line", "kustomize takes no text on the line of a ---")
		}
		var root, next yaml.Node
		decoder := yaml.NewDecoder(bytes.NewReader(text))
		switch err := decoder.Decode(&root); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			found.syntax(err, text, before)
			return
		}
		if err := decoder.Decode(&next); !errors.Is(err, io.EOF) {
			line := lineAt(text, bytes.Index(text, []byte("\n..."))+1)
			found.add(before+line, BadYAML, "end it with --- alone", "a document ends with ..., and kustomize would pass over the next")
		}
		w := weigher{weights: map[*yaml.Node]int{}}
		if weight := w.weigh(&root, 0); w.cyclic {
			found.add(before+root.Line, BadYAML, "", "an anchor (&) contains an alias (*) of itself")
			return
		} else if w.deep {
			found.add(before+root.Line, TooBig, "", "the document is nested more than %d levels deep", maxDepth)
			return
		} else if weight > maxNodes && weight > maxGrowth*w.plain {
			found.add(before+root.Line, TooBig, "write less with aliases (*)", "the document grows to more than %d values when its aliases are expanded", maxNodes)
			return
		}
		r := reader{notes: &found, before: before}
		value := r.value(&root)
		if objects {
			r.object(value, root.Line)
		}
	})
	return found
}

// lineOf is a line of a file by its number, which begins at 1.
func lineOf(content []byte, number int) string {
	for line := range bytes.Lines(content) {
		if number--; number == 0 {
			return string(line)
		}
	}
	return ""
}

// yamlLine is how the parser says where it stumbled.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntax adds what the parser says. Only the name of an unknown anchor would
// quote the file.
func (n *notes) syntax(err error, text []byte, before int) {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		n.add(before+1, BadYAML, "", "not YAML")
		return
	}
	line, _ := strconv.Atoi(m[1])
	line = max(line, 1)
	cause, hint := m[2], ""
	anchor, isAnchor := strings.CutPrefix(cause, "unknown anchor '")
	switch {
	case isAnchor:
		line = lineAt(text, max(bytes.Index(text, []byte("*"+strings.TrimSuffix(anchor, "' referenced"))), 0))
		cause, hint = "an alias (*) of an anchor (&) that is not there", "text that begins with * must stand in quotes"
	case strings.HasPrefix(strings.TrimLeft(lineOf(text, line), " "), "\t"), strings.HasPrefix(strings.TrimLeft(lineOf(text, line+1), " "), "\t"):
		hint = "YAML is indented with spaces, not with tabs"
	}
	n.add(before+line, BadYAML, hint, "not YAML: %s", cause)
}

// weigher counts the nodes that a document has once its aliases are expanded.
type weigher struct {
	weights      map[*yaml.Node]int // of what has an anchor; 0 while it is weighed
	plain        int                // nodes of the file
	cyclic, deep bool
}

func (w *weigher) weigh(n *yaml.Node, depth int) int {
	if depth > maxDepth {
		w.deep = true
		return 1
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
		weight, weighed := w.weights[n]
		if !weighed {
			return 1 // the parser knows no alias before its anchor
		}
		w.cyclic = w.cyclic || weight == 0
		return weight
	}
	if n.Anchor != "" {
		w.weights[n] = 0
	}
	w.plain++
	weight := 1
	for _, child := range n.Content {
		weight = min(weight+w.weigh(child, depth+1), math.MaxInt32)
	}
	if n.Anchor != "" {
		w.weights[n] = weight
	}
	return weight
}

// reader turns nodes into values: maps with text as keys, lists, text, bool,
// int64, float64 and nil, by the core schema of YAML 1.2 as kustomize has it,
// with the octal numbers of 1.1. So no and on are text, 0644 is 420, and 1e3 is
// 1000. A date stays text.
type reader struct {
	notes  *notes
	before int // lines of the file before the document
	depth  int
}

func (r *reader) fault(n *yaml.Node, code plan.Code, hint, format string, args ...any) {
	r.notes.add(r.before+n.Line, code, hint, format, args...)
}

func (r *reader) value(n *yaml.Node) any {
	if r.depth++; r.depth > maxDepth {
		if r.depth == maxDepth+1 {
			r.fault(n, TooBig, "", "the document is nested more than %d levels deep", maxDepth)
		}
		r.depth--
		return nil
	}
	defer func() { r.depth-- }()
	switch n.Kind {
	case yaml.DocumentNode:
		return r.value(n.Content[0])
	case yaml.AliasNode:
		return r.value(n.Alias)
	case yaml.MappingNode:
		return r.mapping(n)
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			if list[i] = r.value(item); list[i] == nil && item.ShortTag() == "!!null" {
				r.fault(item, BadYAML, "take the item out, or write \"\"", "an item of a list is empty")
			}
		}
		return list
	case yaml.ScalarNode:
		return r.scalar(n)
	}
	return nil
}

func (r *reader) mapping(n *yaml.Node) map[string]any {
	m := make(map[string]any, len(n.Content)/2)
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Tag == "!!merge" {
			merged = append(merged, value)
			continue
		}
		if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!null" {
			r.fault(n.Content[i], BadYAML, "", "a key is not text")
			continue
		}
		if _, twice := m[key.Value]; twice {
			r.fault(n.Content[i], BadYAML, "", "the key %q is there twice", shorten(key.Value))
			continue
		}
		m[key.Value] = r.value(value)
	}
	for _, from := range merged {
		r.merge(m, from)
	}
	return m
}

// merge is the key <<, which kustomize has expanded by itself where inspect has
// not taken the place of its reader.
func (r *reader) merge(into map[string]any, from *yaml.Node) {
	switch other := r.value(from).(type) {
	case map[string]any:
		mergeMissing(into, other)
	case []any:
		for _, one := range other {
			m, _ := one.(map[string]any)
			mergeMissing(into, m)
		}
	}
}

func mergeMissing(into, from map[string]any) {
	for key, value := range from {
		if _, taken := into[key]; !taken {
			into[key] = value
		}
	}
}

func (r *reader) scalar(n *yaml.Node) any {
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return n.Value
	case "!!null":
		return nil
	}
	var value any
	if err := n.Decode(&value); err != nil {
		r.fault(n, BadYAML, "", "a value is not what its tag %s says", shorten(n.Tag))
		return nil
	}
	switch v := value.(type) {
	case int:
		return int64(v)
	case uint64:
		return float64(v)
	case float64:
		if math.IsInf(v, 0) || math.IsNaN(v) {
			r.fault(n, BadYAML, "text must stand in quotes", "a number is infinite or none at all")
			return nil
		}
	case string:
		if !utf8.ValidString(v) {
			r.fault(n, BadYAML, "keep bytes in binaryData or data", "a !!binary value is not text")
			return nil
		}
	}
	return value
}

// object notes what keeps a document, or what is in a List, from being an object.
func (r *reader) object(value any, line int) {
	at := &yaml.Node{Line: line}
	document, ok := value.(map[string]any)
	if !ok {
		if value != nil {
			r.fault(at, BadYAML, "a document has the fields apiVersion, kind and metadata", "the document is not an object")
		}
		return
	}
	kind, _ := document["kind"].(string)
	apiVersion, _ := document["apiVersion"].(string)
	if items, ok := document["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		for _, item := range items {
			r.object(item, line)
		}
		return
	}
	if len(document) == 0 {
		return
	}
	if kind == "Kustomization" && document["metadata"] == nil || strings.HasPrefix(apiVersion, "kustomize.config.k8s.io/") {
		r.fault(at, BadKustomization, "name the file kustomization.yaml", "a kustomization in a file of a name that kustomize does not know")
		return
	}
	if _, err := plan.Identify(document); err != nil {
		r.fault(at, plan.MissingField, "", "%v", err)
	}
}

// shorten keeps a name from filling the screen.
func shorten(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "..."
	}
	return s
}
