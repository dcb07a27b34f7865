package render

//lint:file-ignore SA1019 deprecated fields of kustomizations are in use, and must be refused or read like the others

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/provider"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/openapi"
	k8syaml "sigs.k8s.io/yaml"
)

// exitMemory is how a child ends that has taken too much memory.
const exitMemory = 77

// Child is the main function of a child: cmd calls it first of all where
// os.Args[0] is ChildName, and exits with what it returns.
func Child(in io.Reader, out io.Writer) int {
	send, requests := gob.NewEncoder(out), gob.NewDecoder(in)
	var l limits
	if err := requests.Decode(&l); err != nil {
		fmt.Fprintln(os.Stderr, "read the limits:", err)
		return 2
	}
	os.Stdout = os.Stderr // kustomize prints warnings; out is for answers
	http.DefaultTransport = noNetwork{}
	go watchMemory(l.Memory)
	debug.SetGCPercent(400) // a short life: memory is cheaper than time
	debug.SetMemoryLimit(l.Memory * 3 / 4)
	if err := enclose(l); err != nil {
		fmt.Fprintln(os.Stderr, "enclose the renderer:", err)
		return 2
	}
	if _, err := io.WriteString(out, greeting); err != nil {
		return 2
	}
	for {
		var q request
		switch err := requests.Decode(&q); {
		case errors.Is(err, io.EOF):
			return 0
		case err != nil:
			fmt.Fprintln(os.Stderr, "read a request:", err)
			return 2
		}
		limitCPU(l.Time)
		b := &builder{limits: l, request: &q, documents: provider.NewDepProvider().GetResourceFactory()}
		if err := send.Encode(b.build()); err != nil {
			return 2
		}
	}
}

// noNetwork stands for the network.
type noNetwork struct{}

func (noNetwork) RoundTrip(r *http.Request) (*http.Response, error) {
	return nil, errors.New("a render does not use the network")
}

// watchMemory ends the process when it holds more than it may. The Go runtime
// has no such limit: its own only makes it collect more often.
func watchMemory(limit int64) {
	held := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	for range time.Tick(5 * time.Millisecond) {
		metrics.Read(held)
		if held[0].Value.Uint64()-held[1].Value.Uint64() > uint64(limit) {
			os.Exit(exitMemory)
		}
	}
}

// builder answers one request.
type builder struct {
	limits
	*request
	documents *resource.Factory
	memory    *memory // the files of the request
	content   map[string]file
	notes     map[string]int // how many faults were found in a file that was inspected
	sick      bool           // a file must not reach kustomize
	full      bool           // a limit is reached
	bytes     int64          // rendered so far
	answer    answer
}

// build makes the answer.
func (b *builder) build() *answer {
	b.content, b.notes, b.memory = map[string]file{}, map[string]int{}, newMemory()
	for _, f := range b.Files {
		b.content[f.Path] = f
		b.memory.put(f.Path, f.Content)
		if f.Role != opaque && !f.Rewritten {
			if found := precheck(f.Content, b.Documents); len(found) > 0 {
				b.sick = true
				b.note(f.Path, found)
			}
		}
	}
	if b.InspectOnly {
		for _, f := range b.Files {
			b.inspect(f.Path)
		}
		return &b.answer
	}
	for _, p := range b.Parts {
		if b.full {
			break
		}
		if p.Kustomization != "" {
			b.kustomize(p)
		} else if b.notes[p.Path] > 0 {
			continue
		} else if err := b.read(p.Path); err != nil && !b.full && b.inspect(p.Path) == 0 {
			b.blame(p.Path, err)
		}
	}
	return &b.answer
}

func (b *builder) fault(f fault) { b.answer.Faults = append(b.answer.Faults, f) }

// note makes faults of what is wrong with a file.
func (b *builder) note(at string, found notes) {
	b.notes[at] = len(found)
	for _, n := range found {
		f := n.fault(at)
		b.fault(fault{f.Code, f.Where, f.Field, f.Cause, f.Hint})
	}
}

// inspect says how many faults a file has, and adds them the first time.
func (b *builder) inspect(at string) int {
	f := b.content[at]
	if found, known := b.notes[at]; known || f.Role == opaque || f.Rewritten {
		return found
	}
	b.note(at, inspect(f.Content, f.Role == objects))
	return b.notes[at]
}

// read takes the objects of a file as they are, as kustomize does with what is
// listed under resources.
func (b *builder) read(at string) (err error) {
	defer catch(&err)
	found, err := b.documents.SliceFromBytes(b.content[at].Content)
	for _, r := range found {
		if err == nil && !isLocal(r) {
			r.RemoveBuildAnnotations()
			err = b.add(r, at, false)
		}
	}
	return err
}

// catch makes an error of a panic, which is kustomize's answer to some
// malformed inputs.
func catch(err *error) {
	if broken := recover(); broken != nil {
		*err = fmt.Errorf("kustomize broke down: %v", broken)
	}
}

// isLocal tells the objects that are meant for kustomize alone.
func isLocal(r *resource.Resource) bool {
	local, ok := r.GetAnnotations()[konfig.IgnoredByKustomizeAnnotation]
	return ok && local != "false"
}

// kustomize builds a folder with a kustomization. Its error is shown only where
// nothing is wrong with the files that it read: they are what an error is about
// for the most part, and inspect says it better.
func (b *builder) kustomize(p part) {
	var err error
	if !b.sick {
		err = b.run(p)
	}
	if b.sick || err != nil && !b.full {
		found := 0
		for _, at := range p.Reach {
			found += b.inspect(at)
		}
		if found == 0 && err != nil {
			b.blame(path.Join(p.Path, p.Kustomization), err)
		}
	}
}

// run builds a folder.
func (b *builder) run(p part) (err error) {
	defer catch(&err)
	own := path.Join(p.Path, p.Kustomization)
	if bytes.Contains(b.content[own].Content, []byte("openapi:")) {
		defer openapi.ResetOpenAPI() // it would be in force for the next unit
	}
	switch {
	case p.Listed == nil || b.entangled(p):
		return b.runOnce(b.memory, p, nil)
	case p.Plain:
		for _, at := range p.Listed {
			if err := b.read(at); err != nil {
				return err
			}
		}
		return nil
	}
	return b.runSliced(p, own)
}

// entangled tells objects that kustomize completes from others: it writes
// namespaces into the references that these fields hold, and a namespace given
// to all renames a Namespace of another name.
func (b *builder) entangled(p part) bool {
	words := []string{"subjects", "clientConfig", "configSource"}
	for _, at := range p.Listed {
		content := b.content[at].Content
		for _, word := range words {
			if bytes.Contains(content, []byte(word)) {
				return true
			}
		}
		if p.Namespace != "" && bytes.Contains(content, []byte("Namespace")) && renames(content, p.Namespace) {
			return true
		}
	}
	return false
}

// renames reports whether a file has a Namespace that would be renamed, or
// cannot be read, so that nobody knows.
func renames(content []byte, namespace string) (yes bool) {
	eachDocument(content, func(text, _ []byte, _ int) {
		var head struct {
			Kind     string
			Metadata struct{ Name string }
			Items    []any // a List may hold one
		}
		if err := k8syaml.Unmarshal(text, &head); err != nil || head.Items != nil ||
			head.Kind == "Namespace" && head.Metadata.Name != namespace {
			yes = true
		}
	})
	return yes
}

// runSliced has kustomize build slices of the objects, one after the other: the
// documents are those of one run, and the cost grows with their number only.
func (b *builder) runSliced(p part, own string) error {
	var k types.Kustomization
	if err := k.Unmarshal(b.content[own].Content); err != nil {
		return err
	}
	k.Bases = nil
	asked := k.BuildMetadata
	return eachSlice(p.Listed, b.content, func(texts [][]byte, origins []string) error {
		k.Resources, k.BuildMetadata = nil, asked
		made, slice := map[string]string{}, newMemory()
		for i, text := range texts {
			name := fmt.Sprintf("%d.yaml", i)
			k.Resources = append(k.Resources, "./"+name)
			made[path.Join(p.Path, name)] = origins[i]
			slice.put(path.Join(p.Path, name), text)
		}
		run := func(metadata []string, build func() error) error {
			k.BuildMetadata = metadata
			content, err := k8syaml.Marshal(k)
			if err != nil {
				return err
			}
			slice.put(own, content)
			return build()
		}
		if !p.KeepOrigin && oneEach(texts) {
			// Annotated, each object would also carry the story of its
			// transformations: a third of the time of the whole build.
			err := run(nil, func() error { return b.runInOrder(slice, p, origins) })
			if !errors.Is(err, errUncounted) {
				return err
			}
		}
		return run(asked, func() error { return b.runOnce(slice, p, made) })
	})
}

// errUncounted says that files and objects are not one to one after all.
var errUncounted = errors.New("not one object for each file")

// oneEach reports whether each text is one document, and that no list of others.
func oneEach(texts [][]byte) bool {
	return !slices.ContainsFunc(texts, func(text []byte) bool {
		return bytes.Contains(text, []byte("---\n")) && !bytes.HasPrefix(text, []byte("---\n")) ||
			bytes.Count(text, []byte("\n---")) > 0 || bytes.Contains(text, []byte("List")) || len(bytes.TrimSpace(text)) == 0
	})
}

// runInOrder is kustomize for files of one object each, which come out in the
// order in which they go in.
func (b *builder) runInOrder(files *memory, p part, origins []string) error {
	found, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, "/"+p.Path)
	if err != nil {
		return err
	}
	if found.Size() != len(origins) {
		return errUncounted
	}
	for i, r := range found.Resources() {
		if err := b.add(r, origins[i], false); err != nil {
			return err
		}
	}
	return nil
}

// sliceSize is how many documents kustomize builds at a time: so few that its
// square does not show, and so many that its beginnings do not.
const sliceSize = 64

// eachSlice cuts files into slices of documents. A slice holds texts of one or
// more documents, and the file that each is from.
func eachSlice(files []string, content map[string]file, build func(texts [][]byte, origins []string) error) (err error) {
	var texts [][]byte
	var origins []string
	documents := 0
	flush := func() {
		if err == nil && documents > 0 {
			err = build(texts, origins)
		}
		texts, origins, documents = nil, nil, 0
	}
	for _, at := range files {
		text := content[at].Content
		count := 1 + bytes.Count(text, []byte("\n---"))
		if documents+count > sliceSize {
			flush()
		}
		if count <= sliceSize || bytes.Count(text, []byte("\n---\n")) != count-1 {
			texts, origins, documents = append(texts, text), append(origins, at), documents+count
			continue
		}
		eachDocument(text, func(text, _ []byte, _ int) {
			if documents == sliceSize {
				flush()
			}
			texts, origins, documents = append(texts, text), append(origins, at), documents+1
		})
	}
	flush()
	return err
}

// runOnce is kustomize. The origins of files that were made for the run are in
// made.
func (b *builder) runOnce(files *memory, p part, made map[string]string) error {
	options := krusty.MakeDefaultOptions() // plugins and helm off, files from below the kustomization only, no reordering
	found, err := krusty.MakeKustomizer(options).Run(files, "/"+p.Path)
	if err != nil {
		return err
	}
	for _, r := range found.Resources() {
		if err := b.add(r, b.origin(r, p, made), p.KeepOrigin); err != nil {
			return err
		}
	}
	return nil
}

// originAnnotation is where kustomize says which file an object comes from.
const originAnnotation = "config.kubernetes.io/origin"

// origin is the file that declares an object: the one it was read from, or the
// kustomization that generates it.
func (b *builder) origin(r *resource.Resource, p part, made map[string]string) string {
	var from struct {
		Path         string `yaml:"path"`
		ConfiguredIn string `yaml:"configuredIn"`
	}
	if err := yaml.Unmarshal([]byte(r.GetAnnotations()[originAnnotation]), &from); err == nil {
		for _, relative := range []string{from.Path, from.ConfiguredIn} {
			at := path.Join(p.Path, relative)
			if made[at] != "" {
				return made[at]
			} else if b.content[at].Path != "" {
				return at
			}
		}
	}
	return path.Join(p.Path, p.Kustomization)
}

// errUnfit is what add says of an object that is not fit to be passed on.
var errUnfit = errors.New("an object is not what Kubernetes objects are made of")

// add puts an object into the answer.
func (b *builder) add(r *resource.Resource, origin string, keepOrigin bool) error {
	var found notes
	content, _ := (&reader{notes: &found}).value(r.YNode()).(map[string]any)
	if len(found) > 0 {
		return errUnfit
	}
	if !keepOrigin {
		dropAnnotation(content, originAnnotation)
	}
	text, err := json.Marshal(content)
	if err != nil {
		return errUnfit
	}
	b.bytes += int64(len(text))
	switch {
	case b.bytes > b.Bytes:
		b.full = true
		b.fault(fault{Code: TooBig, Where: origin, Cause: fmt.Sprintf("the unit renders to more than %d MiB", b.Bytes>>20), Hint: "split the unit"})
		return errUnfit
	case len(b.answer.Documents) == b.Documents:
		b.full = true
		b.fault(fault{Code: TooBig, Where: origin, Cause: fmt.Sprintf("the unit renders to more than %d objects", b.Documents), Hint: "split the unit"})
		return errUnfit
	}
	b.answer.Documents = append(b.answer.Documents, document{origin, text})
	return nil
}

// dropAnnotation takes an annotation out, and the map of them where it was the last.
func dropAnnotation(content map[string]any, name string) {
	metadata, _ := content["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	if _, ok := annotations[name]; !ok {
		return
	}
	if delete(annotations, name); len(annotations) == 0 {
		delete(metadata, "annotations")
	}
}

// blame adds kustomize's error.
func (b *builder) blame(at string, err error) {
	secrets := slices.ContainsFunc(b.Files, func(f file) bool {
		return bytes.Contains(f.Content, []byte("ecret")) || bytes.Contains(f.Content, []byte("assword"))
	})
	cause, hint := explain(err, secrets)
	b.fault(fault{Code: RenderFailed, Where: at, Cause: cause, Hint: hint})
}
