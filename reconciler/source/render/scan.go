package render

//lint:file-ignore SA1019 deprecated fields of kustomizations are in use, and must be refused or read like the others

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/types"
	k8syaml "sigs.k8s.io/yaml"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/sops"
	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// maxKustomization is how many bytes a kustomization may have: ten thousand
// entries and more. The parent parses them, so it has no other wall.
const maxKustomization = 1 << 20

// role says what kustomize does with a file.
type role int

const (
	opaque  role = iota // copies it
	parsed              // parses it: a patch, a configuration
	objects             // takes its documents for objects of the site
)

// part is one thing to build: a file of objects, or a folder with a
// kustomization.
type part struct {
	Path          string
	Kustomization string   // the name of the kustomization file; "" for a file of objects
	KeepOrigin    bool     // the kustomization asks for the annotations that tell origins
	Reach         []string // the files that the kustomization reads, directly or not

	// Where kustomize would treat each object by itself: the files of objects
	// in order, whether it would change nothing at all in them, and the
	// namespace that it would put them into.
	Listed    []string
	Plain     bool
	Namespace string
}

// source is a file that the build of a unit reads.
type source struct {
	file *tree.File
	role role
	text []byte // what kustomize reads in place of the file's content; nil for the content
}

// scan is all that a unit can reach.
type scan struct {
	root    *tree.Dir
	parts   []part             // what to build, in order
	files   map[string]*source // by path from the root
	folders map[string]*folder
	stack   []string // folders that are being read, outermost first
	faults  []*plan.Fault
	err     error // a file could not be read

	encrypted []*sops.File // of files, found when they are loaded
}

// folder is a folder with its kustomization, read or made up.
type folder struct {
	at      string
	name    string    // of the kustomization file
	made    bool      // there is no kustomization of its own
	kind    string    // Kustomization or Component; "" where it could not be read
	parts   []part    // how to build it by itself
	files   []string  // that its own kustomization names
	folders []*folder // that its own kustomization names
	lists   bool      // it does nothing but list files, directly or not
	listed  []string  // these files
	entries []string  // its resources, where it is made up
}

// maxListed is where a list of files is given up: bases that include each
// other's bases can double it with each level. Kustomize may try, within its time.
const maxListed = 100_000

// scanUnit follows all references of a unit.
func scanUnit(u Unit) *scan {
	s := &scan{root: u.Root, files: map[string]*source{}, folders: map[string]*folder{}}
	if f := s.folder(u.Path, u.Loose); f.kind != types.ComponentKind { // a Component is a piece of other units
		s.parts = f.parts
	}
	for i, p := range s.parts {
		if p.Kustomization != "" {
			reach := map[string]bool{}
			s.folders[p.Path].reach(reach, map[*folder]bool{})
			s.parts[i].Reach = slices.Sorted(maps.Keys(reach))
		}
	}
	return s
}

// reach collects the files that the build of a folder reads.
func (f *folder) reach(files map[string]bool, seen map[*folder]bool) {
	if seen[f] {
		return
	}
	seen[f] = true
	for _, at := range f.files {
		files[at] = true
	}
	for _, sub := range f.folders {
		sub.reach(files, seen)
	}
}

// key is equal for scans that render to the same documents.
func (s *scan) key(unit string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q\n", unit)
	for _, p := range s.parts {
		fmt.Fprintf(h, "%q %q %t\n", p.Path, p.Kustomization, p.KeepOrigin)
	}
	for _, at := range slices.Sorted(maps.Keys(s.files)) {
		f := s.files[at]
		if f.text != nil {
			fmt.Fprintf(h, "%q %d %x\n", at, f.role, sha256.Sum256(f.text))
		} else {
			fmt.Fprintf(h, "%q %d %s\n", at, f.role, f.file.Hash)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (s *scan) fault(f plan.Fault) { s.faults = append(s.faults, &f) }

// folder reads a folder once. The caller has made sure that it is not being
// read already.
func (s *scan) folder(at string, loose bool) *folder {
	if f := s.folders[at]; f != nil {
		return f
	}
	f := &folder{at: at}
	s.folders[at] = f
	s.stack = append(s.stack, at)
	defer func() { s.stack = s.stack[:len(s.stack)-1] }()
	dir := s.root.Sub(at)
	if dir == nil {
		s.fault(plan.Fault{Code: plan.UnknownReference, Where: at, Cause: "there is no such folder"})
		return f
	}
	s.checkNames(at, dir)
	switch names := kustomizations(dir); len(names) {
	case 0:
		s.makeUp(f, dir, loose)
	case 1:
		f.name = names[0]
		(&kustomization{s: s, f: f, at: path.Join(at, f.name)}).read()
	default:
		s.fault(plan.Fault{Code: BadKustomization, Where: path.Join(at, names[1]),
			Cause: fmt.Sprintf("the folder has two kustomizations, %s and %s", names[0], names[1]), Hint: "keep one"})
	}
	return f
}

// checkNames refuses names that one computer would hold and another would not,
// or that read otherwise than they are.
func (s *scan) checkNames(at string, dir *tree.Dir) {
	seen := map[string]string{}
	for _, name := range slices.Sorted(keys(dir)) {
		if hidden(name) {
			continue
		}
		if bad := unreadable(name); bad != "" {
			s.fault(plan.Fault{Code: BadFileName, Where: fmt.Sprintf("%q", path.Join(at, name)),
				Cause: "the name has " + bad, Hint: "rename it"})
		}
		if other := seen[strings.ToLower(name)]; other != "" {
			s.fault(plan.Fault{Code: BadFileName, Where: path.Join(at, name),
				Cause: fmt.Sprintf("the name differs from %s in capitals only, and many computers can hold but one of them", other), Hint: "rename one"})
		}
		seen[strings.ToLower(name)] = name
	}
}

func keys(d *tree.Dir) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for name := range d.Dirs {
			if !yield(name) {
				return
			}
		}
		for name := range d.Files {
			if !yield(name) {
				return
			}
		}
	}
}

// makeUp is the kustomization of a folder without one: all its YAML files and
// all its folders, by name. It is built part by part; include writes it down for
// kustomizations elsewhere that include the folder.
func (s *scan) makeUp(f *folder, dir *tree.Dir, loose bool) {
	f.made, f.lists, f.name, f.kind = true, true, "kustomization.yaml", types.KustomizationKind
	for _, name := range slices.Sorted(keys(dir)) {
		at := path.Join(f.at, name)
		file := dir.Files[name]
		switch {
		case hidden(name), unreadable(name) != "":
		case file == nil && loose:
		case file == nil:
			sub := s.folder(at, false)
			if sub.kind == types.ComponentKind {
				continue // for others to include
			}
			f.parts, f.folders = append(f.parts, sub.parts...), append(f.folders, sub)
			f.lists, f.listed = f.lists && sub.lists, append(f.listed, sub.listed...)
			if !sub.made {
				f.entries = append(f.entries, "./"+name)
			}
			for _, below := range sub.entries {
				f.entries = append(f.entries, "./"+name+below[1:])
			}
		case file.Kind != tree.Regular:
			s.refuse(file, at, plan.Fault{Where: at})
		case isYAML(name):
			s.use(f, at, file, objects)
			f.parts, f.listed = append(f.parts, part{Path: at}), append(f.listed, at)
			f.entries = append(f.entries, "./"+name)
		}
	}
}

// use adds a file to what the build of a folder reads.
func (s *scan) use(f *folder, at string, file *tree.File, as role) {
	f.files = append(f.files, at)
	if old := s.files[at]; old != nil {
		old.role = max(old.role, as)
		return
	}
	s.files[at] = &source{file: file, role: as}
}

// write puts down what kustomize reads as the kustomization at a path.
func (s *scan) write(at string, k *types.Kustomization) error {
	text, err := k8syaml.Marshal(k)
	if err != nil {
		return err
	}
	s.files[at] = &source{text: text, role: parsed}
	return nil
}

// refuse adds the fault of a file that is none.
func (s *scan) refuse(file *tree.File, at string, f plan.Fault) {
	f.Code = NotRegular
	switch file.Kind {
	case tree.Symlink:
		f.Cause, f.Hint = at+" is a symlink, which is never followed", "put the file itself there, or refer to its folder in a kustomization.yaml"
	case tree.Submodule:
		f.Cause, f.Hint = at+" is a git submodule, which is never fetched", "copy its files into the site repo"
	default:
		f.Cause = at + " is no regular file"
	}
	s.fault(f)
}

// kustomization reads one kustomization file.
type kustomization struct {
	s     *scan
	f     *folder
	at    string // path of the file
	nodes yaml.Node
	spec  types.Kustomization
}

// fault adds a fault of a field.
func (k *kustomization) fault(code plan.Code, field []any, hint, cause string, args ...any) {
	k.s.fault(plan.Fault{Code: code, Where: k.where(field), Field: plan.Field(field...), Cause: fmt.Sprintf(cause, args...), Hint: hint})
}

// where is the place of a field.
func (k *kustomization) where(field []any) string {
	return place(k.at, lineIn(&k.nodes, field))
}

// read decodes the file as kustomize does, checks and rewrites each path in it,
// and writes down what is left for kustomize to read.
func (k *kustomization) read() {
	if !k.decode() {
		return
	}
	faults := len(k.s.faults)
	keepOrigin := slices.Contains(k.spec.BuildMetadata, types.OriginAnnotations)
	var eachAlone bool
	k.f.lists, eachAlone = k.changes()
	onlyFiles := k.resources("resources", k.spec.Resources)
	onlyFiles = k.resources("bases", k.spec.Bases) && onlyFiles
	k.f.lists = k.f.lists && onlyFiles
	k.components()
	for i := range k.spec.Crds {
		k.file(&k.spec.Crds[i], parsed, "crds", i)
	}
	for i := range k.spec.Configurations {
		k.file(&k.spec.Configurations[i], parsed, "configurations", i)
	}
	k.plugins("generators", k.spec.Generators)
	k.plugins("transformers", k.spec.Transformers)
	k.plugins("validators", k.spec.Validators)
	k.patches("patches", k.spec.Patches)
	k.patches("patchesJson6902", k.spec.PatchesJson6902)
	for i := range k.spec.PatchesStrategicMerge {
		// YAML itself, or a path. Text of one line is never taken for YAML:
		// kustomize would try it as a path and as a URL.
		entry := (*string)(&k.spec.PatchesStrategicMerge[i])
		if strings.Contains(*entry, "\n") {
			*entry = k.inline(*entry, "patchesStrategicMerge", i)
		} else {
			k.file(entry, parsed, "patchesStrategicMerge", i)
		}
	}
	for i := range k.spec.Replacements {
		k.optional(&k.spec.Replacements[i].Path, "replacements", i, "path")
	}
	for i := range k.spec.ConfigMapGenerator {
		k.sources(&k.spec.ConfigMapGenerator[i].KvPairSources, "configMapGenerator", i)
	}
	for i := range k.spec.SecretGenerator {
		k.sources(&k.spec.SecretGenerator[i].KvPairSources, "secretGenerator", i)
	}
	if at, ok := k.spec.OpenAPI["path"]; ok {
		k.file(&at, parsed, "openapi", "path")
		k.spec.OpenAPI["path"] = at
	}
	for field, used := range map[string]bool{
		"helmCharts": k.spec.HelmCharts != nil, "helmGlobals": k.spec.HelmGlobals != nil,
		"helmChartInflationGenerator": k.spec.HelmChartInflationGenerator != nil,
	} {
		if used {
			k.fault(PluginRefused, []any{field}, "commit what helm template prints", "helm is not run")
		}
	}
	if len(k.s.faults) > faults {
		return
	}
	p := part{Path: k.f.at, Kustomization: k.f.name, KeepOrigin: keepOrigin}
	if eachAlone && onlyFiles {
		p.Listed, p.Plain, p.Namespace = k.f.listed, k.f.lists, k.spec.Namespace
	}
	k.f.parts = []part{p}
	if !keepOrigin {
		k.spec.BuildMetadata = append(k.spec.BuildMetadata, types.OriginAnnotations)
	}
	if err := k.s.write(k.at, &k.spec); err != nil || !k.sameWhenRead() {
		k.fault(BadKustomization, nil, "", "the kustomization does not read the same when it is written anew")
	}
}

// decode reads the file, as types.Kustomization does it for kustomize: field
// names in any case, aliases, merge keys and all.
func (k *kustomization) decode() bool {
	file := k.s.root.File(k.at)
	if file.Kind != tree.Regular {
		k.s.refuse(file, k.at, plan.Fault{Where: k.at})
		return false
	}
	if file.Size > maxKustomization {
		k.fault(TooBig, nil, "split the folder, or leave the kustomization out: all YAML files of the folder are rendered then",
			"the kustomization has %d bytes; %d are the most", file.Size, maxKustomization)
		return false
	}
	content, err := file.Read()
	if err != nil {
		k.s.err = fmt.Errorf("read %s: %w", k.at, err)
		return false
	}
	if found := examine(content); len(found) > 0 {
		for _, n := range found {
			k.s.fault(n.fault(k.at))
		}
		return false
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	if err := decoder.Decode(&k.nodes); err == nil {
		var second yaml.Node
		if !errors.Is(decoder.Decode(&second), io.EOF) {
			k.fault(BadKustomization, nil, "keep one", "the file has more than one document, and kustomize reads the first only")
			return false
		}
	}
	if err := k.spec.Unmarshal(content); err != nil {
		k.undecodable(err)
		return false
	}
	var check types.Kustomization // apart, since what follows moves fields about
	if err := check.Unmarshal(content); err != nil {
		return false
	}
	check.FixKustomization()
	if err := check.CheckEmpty(); err != nil {
		k.fault(BadKustomization, nil, "list something under resources, or delete the file: all YAML files of the folder are rendered then", "the kustomization is empty")
		return false
	}
	if errs := check.EnforceFields(); len(errs) > 0 {
		k.fault(BadKustomization, []any{"kind"}, "", "%s", strings.Join(errs, ", "))
		return false
	}
	k.f.kind = check.Kind
	return true
}

// How encoding/json says that there is no such field, and that a field has a
// value of another kind.
var (
	unknownField = regexp.MustCompile(`unknown field "([^"]*)"`)
	wrongKind    = regexp.MustCompile(`cannot unmarshal (\w+) into Go (?:struct field|value of type) (\S+)`)
)

// undecodable says why a kustomization does not decode, without its values.
func (k *kustomization) undecodable(err error) {
	if m := unknownField.FindStringSubmatch(err.Error()); m != nil {
		k.fault(BadKustomization, []any{m[1]}, "", "kustomize knows no such field")
	} else if m := wrongKind.FindStringSubmatch(err.Error()); m != nil {
		k.fault(BadKustomization, nil, "", "a value is of the wrong kind: %s in %s", m[1], strings.TrimPrefix(m[2], "Kustomization."))
	} else {
		k.fault(BadKustomization, nil, "", "the kustomization does not decode")
	}
}

// sameWhenRead proves that kustomize will decode what the scan has accepted.
func (k *kustomization) sameWhenRead() bool {
	var again types.Kustomization
	if err := again.Unmarshal(k.s.files[k.at].text); err != nil {
		return false
	}
	wrote, _ := json.Marshal(k.spec)
	read, _ := json.Marshal(again)
	return string(wrote) == string(read)
}

// changes tells a kustomization that changes nothing of what it lists, and one
// that changes each object without a look at the others, names left alone.
func (k *kustomization) changes() (nothing, eachAlone bool) {
	rest := k.spec
	rest.TypeMeta, rest.MetaData, rest.Resources, rest.Bases = types.TypeMeta{}, nil, nil, nil
	nothing = reflect.DeepEqual(rest, types.Kustomization{})
	rest.Namespace, rest.Labels, rest.CommonLabels, rest.CommonAnnotations, rest.Images = "", nil, nil, nil, nil
	eachAlone = reflect.DeepEqual(rest, types.Kustomization{})
	kustomizes := k.f.kind == types.KustomizationKind
	return nothing && kustomizes, eachAlone && kustomizes
}

// resources are files, and folders with a kustomization, own or made up. It
// tells whether nothing but files is listed in the end.
func (k *kustomization) resources(field string, entries []string) (onlyFiles bool) {
	onlyFiles = true
	for i := range entries {
		at, file, ok := k.resolve(&entries[i], field, i)
		if !ok {
			continue
		}
		if file != nil {
			if k.inside(at, field, i) {
				k.s.use(k.f, at, file, objects)
				k.f.listed = append(k.f.listed, at)
			}
			continue
		}
		f := k.include(at, field, i)
		if f == nil {
			continue
		}
		if f.kind == types.ComponentKind {
			k.fault(BadKustomization, []any{field, i}, "list it under components", "%s is a Component", at)
		}
		if onlyFiles = onlyFiles && f.lists && len(k.f.listed)+len(f.listed) < maxListed; onlyFiles {
			k.f.listed = append(k.f.listed, f.listed...)
		}
	}
	return onlyFiles
}

func (k *kustomization) components() {
	for i := range k.spec.Components {
		at, file, ok := k.resolve(&k.spec.Components[i], "components", i)
		if !ok {
			continue
		}
		if file != nil {
			k.fault(BadKustomization, []any{"components", i}, "name the folder", "%s is a file", at)
		} else if f := k.include(at, "components", i); f != nil && f.kind == types.KustomizationKind {
			k.fault(BadKustomization, []any{"components", i}, "list it under resources, or make its kind Component", "%s is no Component", at)
		}
	}
}

// include reads another folder, unless it would include itself.
func (k *kustomization) include(at string, field ...any) *folder {
	for _, outer := range k.s.stack {
		if at == "" || outer == at || strings.HasPrefix(outer, at+"/") {
			k.fault(BaseCycle, field, "", "%s includes %s, which holds it", k.at, nameOf(at))
			return nil
		}
	}
	f := k.s.folder(at, false)
	k.f.folders = append(k.f.folders, f)
	if own := path.Join(f.at, f.name); f.made && k.s.files[own] == nil {
		k.s.err = cmp.Or(k.s.err, k.s.write(own, &types.Kustomization{Resources: f.entries, BuildMetadata: []string{types.OriginAnnotations}}))
	}
	return f
}

func nameOf(at string) string {
	if at == "" {
		return "the root of the site"
	}
	return at
}

// optional checks a field that names a file, or is absent.
func (k *kustomization) optional(entry *string, field ...any) {
	if *entry != "" {
		k.file(entry, parsed, field...)
	}
}

// file checks an entry that names a file.
func (k *kustomization) file(entry *string, as role, field ...any) {
	at, file, ok := k.resolve(entry, field...)
	switch {
	case !ok:
	case file == nil:
		k.fault(BadKustomization, field, "name a file", "%s is a folder", nameOf(at))
	case k.inside(at, field...):
		k.s.use(k.f, at, file, as)
	}
}

// inside refuses files that kustomize does not load: those outside the
// kustomization's own folder.
func (k *kustomization) inside(at string, field ...any) bool {
	if k.f.at == "" || strings.HasPrefix(at, k.f.at+"/") {
		return true
	}
	k.fault(OutsideSite, field, "move the file there, or refer to a folder with a kustomization.yaml", "%s is not below the folder of the kustomization, and kustomize loads no file from elsewhere", at)
	return false
}

func (k *kustomization) patches(field string, patches []types.Patch) {
	for i := range patches {
		k.optional(&patches[i].Path, field, i, "path")
		k.inline(patches[i].Patch, field, i, "patch")
	}
}

// inline checks YAML that stands in a kustomization. The line that it puts
// before it makes sure that kustomize never takes it for an address.
func (k *kustomization) inline(text string, field ...any) string {
	for _, n := range precheck([]byte(text), maxKustomization) {
		k.fault(n.code, field, n.hint, "%s", n.cause)
	}
	return "# inline\n" + text
}

// sources checks what a generator reads: files as path or key=path, and files
// of variables.
func (k *kustomization) sources(from *types.KvPairSources, field ...any) {
	in := func(more ...any) []any { return slices.Concat(field, more) }
	for i, entry := range from.FileSources {
		key, at, named := strings.Cut(entry, "=")
		switch {
		case strings.Contains(at, "=") || named && (key == "" || at == ""):
			k.fault(BadKustomization, in("files", i), "", "want path or key=path, with no other =")
		case named:
			k.file(&at, opaque, in("files", i)...)
			from.FileSources[i] = key + "=" + at
		default:
			k.file(&from.FileSources[i], opaque, in("files", i)...)
		}
	}
	for i := range from.EnvSources {
		k.file(&from.EnvSources[i], opaque, in("envs", i)...)
	}
	if from.EnvSource != "" {
		k.file(&from.EnvSource, opaque, in("env")...)
	}
}

// lineIn is the line of a field, or of the nearest thing around it that is
// there; 0 where nothing is.
func lineIn(n *yaml.Node, field []any) int {
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	line := n.Line
	for _, part := range field {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		var next *yaml.Node
		switch part := part.(type) {
		case int:
			if n.Kind == yaml.SequenceNode && part < len(n.Content) {
				next = n.Content[part]
				line = next.Line
			}
		case string:
			for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
				if strings.EqualFold(n.Content[i].Value, part) {
					next, line = n.Content[i+1], n.Content[i].Line
				}
			}
		}
		if next == nil {
			return line
		}
		n = next
	}
	return line
}

// fault makes a note about a file a fault.
func (n note) fault(at string) plan.Fault {
	return plan.Fault{Code: n.code, Where: place(at, n.line), Cause: n.cause, Hint: n.hint}
}

// place is "file:line", or the file alone where there is no line.
func place(at string, line int) string {
	if line <= 0 {
		return at
	}
	return fmt.Sprintf("%s:%d", at, line)
}
