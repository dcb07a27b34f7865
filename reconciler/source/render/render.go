package render

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/sops"
)

// Document is one object that a unit declares.
type Document struct {
	Unit   string // name of the unit
	Origin string // the file that declares it, relative to the site's root

	// Content is a tree of map[string]any, []any, string, bool, int64,
	// float64, nil and plan.Secret. It is shared with other renders: never
	// change it.
	Content map[string]any

	// Sealed documents hold values that are encrypted still; see Options.Sealed.
	Sealed bool
}

// Options are the limits of a Renderer. Zero means the default.
type Options struct {
	Workers   int           // units rendered at once. Default: GOMAXPROCS
	Memory    int64         // bytes of memory of a child. Default: 1 GiB
	Time      time.Duration // for one unit. Default: 60s
	Bytes     int64         // that a unit reads, and that it renders to. Default: 64 MiB each
	Documents int           // that a unit renders to. Default: 100,000

	// Keys are asked for once in each Render; they open what SOPS encrypted.
	// Nil has none.
	Keys func() (sops.Keys, error)

	// Sealed lets a site be read by people who have no key at all: encrypted
	// values stay what they are, as Secrets that nobody can apply. False makes
	// a fault of each encrypted file for which there is no key.
	Sealed bool

	// Program is the program of a child: one that calls Child where its
	// os.Args[0] is ChildName. Default: the running program itself.
	Program string
}

// Renderer renders units, and remembers what it rendered. Its methods may be
// called from several goroutines.
type Renderer struct {
	options Options
	started func(pid int) // tests watch children by it

	mu    sync.Mutex
	round int                // calls of Render so far
	cache map[string]*result // by key of the scan
}

// result is what a unit rendered to.
type result struct {
	documents []Document   // with all that is encrypted still encrypted
	encrypted []*sops.File // what it is in
	round     int          // the last call of Render that asked for it
}

// rounds is how many calls of Render a result outlives without being asked for:
// a few, for a caller renders the site and the built-in manifests in turns, and
// compares commits.
const rounds = 8

// New makes a Renderer.
func New(o Options) *Renderer {
	o.Workers = cmp.Or(o.Workers, runtime.GOMAXPROCS(0))
	o.Memory = cmp.Or(o.Memory, 1<<30)
	o.Time = cmp.Or(o.Time, time.Minute)
	o.Bytes = cmp.Or(o.Bytes, 64<<20)
	o.Documents = cmp.Or(o.Documents, 100_000)
	o.Program = cmp.Or(o.Program, "/proc/self/exe")
	return &Renderer{options: o, cache: map[string]*result{}}
}

// Render renders units: their documents by unit name, then as kustomize gave
// them. The error is made of all faults of all units, and then the documents
// are what could be rendered all the same: a fault with an ID is about one
// document, any other is about its unit, which then has none. Or the error is
// what kept the render from finding out.
func (r *Renderer) Render(ctx context.Context, units []Unit) ([]Document, error) {
	units = slices.Clone(units)
	slices.SortFunc(units, func(a, b Unit) int { return cmp.Compare(a.Name, b.Name) })
	round := r.begin()
	var keys sops.Keys
	if r.options.Keys != nil {
		var err error
		if keys, err = r.options.Keys(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	documents := make([][]Document, len(units))
	faults := make([][]*plan.Fault, len(units))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(r.options.Workers, len(units)) {
		workers.Go(func() {
			// Linux kills a child when the thread that made it ends.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			w := &worker{renderer: r}
			defer w.stop()
			for i := range next {
				var err error
				if documents[i], faults[i], err = r.unit(ctx, w, units[i], round, keys); err != nil {
					cancel(err) // nothing that the others find can help
				}
			}
		})
	}
	for i := range units {
		next <- i
	}
	close(next)
	workers.Wait()

	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	all := slices.Concat(faults...)
	plan.SortFaults(all)
	// Units that share a folder find the same faults in it.
	all = slices.CompactFunc(all, func(a, b *plan.Fault) bool { return *a == *b })
	return slices.Concat(documents...), plan.Join(all)
}

// begin counts a round, and forgets what has not been asked for in the last ones.
func (r *Renderer) begin() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.round++
	for key, old := range r.cache {
		if old.round < r.round-rounds {
			delete(r.cache, key)
		}
	}
	return r.round
}

// unit is one unit, opened. A defect of ours costs the one unit.
func (r *Renderer) unit(ctx context.Context, w *worker, u Unit, round int, keys sops.Keys) (documents []Document, faults []*plan.Fault, err error) {
	defer func() {
		if broken := recover(); broken != nil {
			faults = []*plan.Fault{{Code: RenderCrashed, Where: path.Clean(u.Path), Cause: fmt.Sprintf("the render of unit %s broke down: %v", u.Name, broken)}}
		}
	}()
	documents, encrypted, faults, err := r.closed(ctx, w, u, round)
	if err != nil || len(encrypted) == 0 {
		return documents, faults, err
	}
	documents, more := r.open(u, documents, encrypted, keys)
	return documents, append(faults, more...), nil
}

// closed renders one unit, or remembers it, and leaves encrypted what is.
func (r *Renderer) closed(ctx context.Context, w *worker, u Unit, round int) (documents []Document, encrypted []*sops.File, faults []*plan.Fault, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, nil, err
	}
	s := scanUnit(u)
	if s.err != nil {
		return nil, nil, nil, s.err
	}
	key := s.key(u.Name)
	if len(s.faults) == 0 {
		r.mu.Lock()
		old := r.cache[key]
		if old != nil {
			old.round = max(old.round, round)
		}
		r.mu.Unlock()
		if old != nil {
			return old.documents, old.encrypted, nil, nil
		}
	}
	q, fault, err := s.request(r.options.Bytes)
	if err != nil {
		return nil, nil, nil, err
	}
	if fault != nil {
		return nil, nil, append(s.faults, fault), nil
	}
	faults = s.faults
	if len(q.Parts) > 0 || q.InspectOnly {
		a, fault, err := w.ask(ctx, u, q)
		if err != nil {
			return nil, nil, nil, err
		}
		if fault != nil {
			return nil, s.encrypted, append(faults, fault), nil
		}
		var more []*plan.Fault
		if documents, more, err = judge(u, a, s.encrypted); err != nil {
			return nil, nil, nil, err
		}
		faults = append(faults, more...)
	}
	if len(faults) > 0 {
		return documents, s.encrypted, faults, nil
	}
	r.mu.Lock()
	r.cache[key] = &result{documents, s.encrypted, round}
	r.mu.Unlock()
	return documents, s.encrypted, nil, nil
}

// request loads what the build of a unit reads. Where the scan found faults the
// files are only inspected, so that theirs are found in the same run.
func (s *scan) request(limit int64) (*request, *plan.Fault, error) {
	q := &request{Parts: s.parts}
	var size, largest int64
	var name string
	for at, f := range s.files {
		if f.text == nil && f.file.Size > largest {
			largest, name = f.file.Size, at
		}
		if f.text == nil {
			size += f.file.Size
		}
	}
	tooBig := &plan.Fault{Code: TooBig, Where: name, Cause: fmt.Sprintf("the unit has more than %d MiB of files", limit>>20),
		Hint: "this file is the largest; split the unit, or keep data out of the site repo"}
	if size > limit {
		return nil, tooBig, nil
	}
	size = 0
	for at, f := range s.files {
		content := f.text
		if content == nil {
			var err error
			if content, err = f.file.Read(); err != nil {
				return nil, nil, fmt.Errorf("read %s: %w", at, err)
			}
		}
		if size += int64(len(content)); size > limit {
			return nil, tooBig, nil // a plain folder that changes while it is read
		}
		if f.text == nil && sops.Looks(content) {
			content = s.close(at, f.role, content)
		}
		q.Files = append(q.Files, file{Path: at, Role: f.role, Content: content, Rewritten: f.text != nil})
	}
	slices.SortFunc(q.Files, func(a, b file) int { return cmp.Compare(a.Path, b.Path) })
	slices.SortFunc(s.encrypted, func(a, b *sops.File) int { return cmp.Compare(a.Path, b.Path) })
	if len(s.faults) > 0 { // of encrypted files, too
		q.Parts, q.InspectOnly = nil, true
	}
	return q, nil, nil
}

// judge checks what a child answered: each document is an object, is there
// once, and has nothing in it that Kubernetes would refuse while quoting a
// secret. It conceals the secrets.
func judge(u Unit, a *answer, encrypted []*sops.File) (documents []Document, faults []*plan.Fault, err error) {
	for _, f := range a.Faults {
		faults = append(faults, &plan.Fault{Code: f.Code, Where: f.Where, Field: f.Field, Cause: f.Cause, Hint: f.Hint})
	}
	places := NewLocator(u.Root)
	type seen struct{ place, kind, name string }
	before := map[seen]int{}             // how many of a name a file has had so far
	first := map[plan.ID]func() string{} // where an object is declared
	for _, d := range a.Documents {
		if len(faults) > maxNotes {
			return nil, append(faults, &plan.Fault{Code: RenderFailed, Where: path.Clean(u.Path), Cause: "there is more wrong with the unit"}), nil
		}
		content, err := decode(d.JSON)
		if err != nil {
			return nil, nil, fmt.Errorf("unit %s: %s: %w", u.Name, d.Origin, err)
		}
		id, err := plan.Identify(content)
		if err != nil {
			kind, _ := content["kind"].(string)
			faults = append(faults, &plan.Fault{Code: plan.MissingField, Where: places.Locate(d.Origin, kind, "", ""), Cause: err.Error()})
			continue
		}
		before[seen{d.Origin, id.Kind, id.Name}]++
		nth := before[seen{d.Origin, id.Kind, id.Name}]
		where := func(field string) string { return places.locate(d.Origin, id.Kind, id.Name, field, nth) }
		same := id
		same.Name = strings.TrimPrefix(same.Name, "default/")
		if other, twice := first[same]; twice {
			faults = append(faults, &plan.Fault{Code: plan.Duplicate, ID: id, Where: where("metadata.name"),
				Cause: "the object is declared twice", Hint: "the other is at " + other()})
			continue
		}
		first[same] = func() string { return where("") }
		for _, f := range append(secretFaults(content), sealedFaults(content, encrypted)...) {
			f.ID, f.Where = id, where(f.Field)
			faults = append(faults, f)
		}
		plan.Conceal(content)
		documents = append(documents, Document{Unit: u.Name, Origin: d.Origin, Content: content})
	}
	return documents, faults, nil
}

// secretFaults finds the values of a Secret that the API server would refuse,
// with an answer that holds the value.
func secretFaults(content map[string]any) (faults []*plan.Fault) {
	if content["kind"] != "Secret" || content["apiVersion"] != "v1" || content["sops"] != nil {
		return nil
	}
	bad := func(field, key, cause, hint string) {
		faults = append(faults, &plan.Fault{Code: BadSecret, Field: plan.Field(field, key), Cause: cause, Hint: hint})
	}
	for _, field := range []string{"data", "stringData"} {
		values, ok := content[field].(map[string]any)
		if !ok && content[field] != nil {
			faults = append(faults, &plan.Fault{Code: BadSecret, Field: field, Cause: "the field is not a map of names to values"})
		}
		for key, value := range values {
			text, isText := plan.Reveal(value).(string)
			kind := sops.TypeOf(text)
			switch {
			case value == nil:
			case !isText, kind != "" && kind != "str":
				bad(field, key, "the value is not text", "put it in quotes")
			case field == "data" && kind == "":
				if _, err := base64.StdEncoding.DecodeString(text); err != nil {
					bad(field, key, "the value is not base64", "stringData takes plain text")
				}
			}
		}
	}
	return faults
}

// decode reads the JSON of a child.
func decode(content []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.UseNumber()
	var m map[string]any
	if err := decoder.Decode(&m); err != nil {
		return nil, err
	}
	return numbers(m).(map[string]any), nil
}

// numbers makes each number an int64, or a float64 where it is none. In place.
func numbers(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for key, item := range v {
			switch item.(type) {
			case json.Number, map[string]any, []any:
				v[key] = numbers(item)
			}
		}
	case []any:
		for i, item := range v {
			v[i] = numbers(item)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	}
	return value
}
