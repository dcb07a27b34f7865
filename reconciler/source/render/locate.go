package render

import (
	"bytes"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/konfig"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// Locate is the place, "file:line", of a document or of a field in it; see
// Locator.
func Locate(root *tree.Dir, origin, kind, name, field string) string {
	return NewLocator(root).Locate(origin, kind, name, field)
}

// Locator finds the lines of documents and fields. It reads files again, so it
// is for faults; it keeps what it has read for the next fault. It is for one
// goroutine.
type Locator struct {
	root  *tree.Dir
	files map[string][]placed
}

// placed is a document of a file, before lines from its top.
type placed struct {
	node   *yaml.Node
	before int
}

// NewLocator makes a Locator for a site.
func NewLocator(root *tree.Dir) *Locator { return &Locator{root, map[string][]placed{}} }

// Locate is the place of a document by its origin, kind and name, as a plan.ID
// has them or as the document does; or of a field of it by a path such as
// spec.users[3].uid; of the nearest thing around it, where that is all there is;
// and the origin alone, where the document is not found.
func (l *Locator) Locate(origin, kind, name, field string) string {
	return l.locate(origin, kind, name, field, 1)
}

// locate is Locate for the nth document of a kind and name in a file.
func (l *Locator) locate(origin, kind, name, field string, nth int) string {
	documents, read := l.files[origin]
	if !read {
		documents = load(l.root, origin)
		l.files[origin] = documents
	}
	if len(documents) == 1 && slices.Contains(konfig.RecognizedKustomizationFileNames(), path.Base(origin)) {
		return place(origin, documents[0].before+generatorLine(documents[0].node, name))
	}
	kind, _, _ = strings.Cut(kind, ".")
	namespace, own, ok := strings.Cut(name, "/")
	if !ok {
		namespace, own = "", name
	}
	for _, match := range []func(n *yaml.Node) bool{
		func(n *yaml.Node) bool {
			return scalarAt(n, "metadata", "name") == own && scalarAt(n, "metadata", "namespace") == namespace
		},
		func(n *yaml.Node) bool { return scalarAt(n, "metadata", "name") == own },
		func(n *yaml.Node) bool { // renamed, by namePrefix and the like
			was := scalarAt(n, "metadata", "name")
			return was != "" && strings.Contains(own, was)
		},
	} {
		left := nth
		for _, d := range documents {
			if found := find(d.node, kind, match, &left); found != nil {
				return place(origin, d.before+lineIn(found, fieldParts(field)))
			}
		}
	}
	if len(documents) == 1 {
		return place(origin, documents[0].before+lineIn(documents[0].node, fieldParts(field)))
	}
	return origin
}

// load parses a file, as far as that goes.
func load(root *tree.Dir, at string) (documents []placed) {
	f := root.File(at)
	if f == nil || f.Kind != tree.Regular {
		return nil
	}
	content, err := f.Read()
	if err != nil {
		return nil
	}
	eachDocument(content, func(text, _ []byte, before int) {
		var node yaml.Node
		if yaml.NewDecoder(bytes.NewReader(text)).Decode(&node) == nil && len(node.Content) > 0 {
			documents = append(documents, placed{node.Content[0], before})
		}
	})
	return documents
}

// find is the object of a kind that matches in a document, which may be a List:
// the one at which the countdown ends.
func find(n *yaml.Node, kind string, match func(*yaml.Node) bool, countdown *int) *yaml.Node {
	if scalarAt(n, "kind") == kind && match(n) {
		if *countdown--; *countdown == 0 {
			return n
		}
		return nil
	}
	if items := child(n, "items"); items != nil && items.Kind == yaml.SequenceNode {
		for _, item := range items.Content {
			if found := find(item, kind, match, countdown); found != nil {
				return found
			}
		}
	}
	return nil
}

// generatorLine is the line of the generator that makes an object: the one
// whose name the object's begins or ends with, but for prefix and hash.
func generatorLine(n *yaml.Node, name string) int {
	for _, field := range []string{"configMapGenerator", "secretGenerator"} {
		generators := child(n, field)
		if generators == nil {
			continue
		}
		for _, g := range generators.Content {
			if own := scalarAt(g, "name"); own != "" && strings.Contains(name, own) {
				return g.Line
			}
		}
	}
	return n.Line
}

// child is the value of a key of a mapping.
func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// scalarAt is the text at a path of keys.
func scalarAt(n *yaml.Node, keys ...string) string {
	for _, key := range keys {
		if n = child(n, key); n == nil {
			return ""
		}
	}
	return n.Value
}

// fieldPart is one step of a field's path, as plan.Field writes it.
var fieldPart = regexp.MustCompile(`\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]|([^.\[\]]+)`)

func fieldParts(field string) (parts []any) {
	for _, m := range fieldPart.FindAllStringSubmatch(field, -1) {
		switch {
		case m[1] != "":
			index, _ := strconv.Atoi(m[1])
			parts = append(parts, index)
		case m[2] != "":
			name, _ := strconv.Unquote(m[2])
			parts = append(parts, name)
		default:
			parts = append(parts, m[3])
		}
	}
	return parts
}
