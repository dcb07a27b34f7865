package render

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/kustomize/api/provider"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

func TestUnits(t *testing.T) {
	for _, tt := range []struct{ files, want string }{
		{"-- site.yaml --\n-- machines/a.yaml --\n-- .github/x.yaml --\n-- services/x.yaml --\n-- services/wiki/a/b.yaml --\n-- services/print/x.yaml --\n",
			"[.* machines services* services/print services/wiki]"},
		{"-- kustomization.yaml --\n-- machines/a.yaml --\n-- services/x/y.yaml --\n", "[.]"},
		{"-- services/kustomization.yml --\n-- services/x/y.yaml --\n", "[.* services]"},
		{"", "[.*]"},
	} {
		var got []string
		for _, u := range Units(site(t, tt.files)) {
			if u.Loose {
				u.Name += "*"
			}
			got = append(got, u.Name)
		}
		if fmt.Sprint(got) != tt.want {
			t.Errorf("%s: got %v, want %s", tt.files, got, tt.want)
		}
	}
}

// TestRender compares documents with "unit origin JSON" lines.
func TestRender(t *testing.T) {
	const pem = "-----BEGIN OPENSSH PRIVATE KEY-----\n  b3BlbnNzaC1rZXktdjEAAAAA${HOME} $(NAME) \\n%s\t|\n\n-----END OPENSSH PRIVATE KEY-----\n"
	quoted, _ := json.Marshal(pem)
	for _, tt := range []struct {
		name, files string
		want        []string
	}{
		{"a folder without kustomization", `
-- site.yaml --
apiVersion: kingmaker.dev/v1alpha1
kind: Site
metadata: {name: school}
-- services/wiki/b.yml --
# The service.
apiVersion: v1
kind: Service
metadata: {name: b}
---
---
# nothing
---
apiVersion: v1
kind: Service
metadata: {name: c}
-- services/wiki/a/a.yaml --
apiVersion: v1
kind: Service
metadata: {name: a}
-- services/wiki/a/.hidden.yaml --
not: an object
-- services/wiki/a/notes.txt --
not: an object
-- services/wiki/z/kustomization.yaml --
namePrefix: z-
resources: [z.yaml]
-- services/wiki/z/z.yaml --
apiVersion: v1
kind: Service
metadata: {name: z}
-- services/wiki/component/kustomization.yaml --
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
namePrefix: z-
`, []string{
			`. site.yaml {"apiVersion":"kingmaker.dev/v1alpha1","kind":"Site","metadata":{"name":"school"}}`,
			`services/wiki services/wiki/a/a.yaml {"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}}`,
			`services/wiki services/wiki/b.yml {"apiVersion":"v1","kind":"Service","metadata":{"name":"b"}}`,
			`services/wiki services/wiki/b.yml {"apiVersion":"v1","kind":"Service","metadata":{"name":"c"}}`,
			`services/wiki services/wiki/z/z.yaml {"apiVersion":"v1","kind":"Service","metadata":{"name":"z-z"}}`,
		}},
		{"values", `
-- services/a/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
data: {no: no, on: yes, octal: 0644, new octal: 0o644, e: 1e3, one: 1.0, half: .5, hex: 0x10, big: 18446744073709551615, date: 2001-12-14, sexagesimal: 1:20, empty: , "null": null, 1: one, true: t, bin: !!binary aGVsbG8=, under: 1_000, t: true, str: "1"}
`, []string{`services/a services/a/x.yaml {"apiVersion":"v1","data":{"1":"one","big":18446744073709552000,"bin":"hello","date":"2001-12-14","e":1000,"empty":null,"half":0.5,"hex":16,"new octal":420,"no":"no","null":null,"octal":420,"on":"yes","one":1,"sexagesimal":"1:20","str":"1","t":true,"true":"t","under":1000},"kind":"ConfigMap","metadata":{"name":"x"}}`}},
		{"text survives, with kustomize and without", `
-- services/a/kustomization.yaml --
labels: [{pairs: {a: b}}]
resources: [x.yaml]
configMapGenerator:
- name: key
  files: [id_ed25519, "name=my key.txt"]
  options: {disableNameSuffixHash: true}
-- services/a/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
data: {"id": ` + string(quoted) + `}
-- services/a/id_ed25519 --
` + pem + `-- services/a/my key.txt --
ä
-- services/b/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
data: {"id": ` + string(quoted) + `}
`, []string{
			`services/a services/a/x.yaml {"apiVersion":"v1","data":{"id":` + string(quoted) + `},"kind":"ConfigMap","metadata":{"labels":{"a":"b"},"name":"x"}}`,
			`services/a services/a/kustomization.yaml {"apiVersion":"v1","data":{"id_ed25519":` + string(quoted) + `,"name":"ä\n"},"kind":"ConfigMap","metadata":{"labels":{"a":"b"},"name":"key"}}`,
			`services/b services/b/x.yaml {"apiVersion":"v1","data":{"id":` + string(quoted) + `},"kind":"ConfigMap","metadata":{"name":"x"}}`,
		}},
		{"annotations", `
-- services/a/kustomization.yaml --
namePrefix: a-
resources: [../b]
-- services/b/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x, annotations: {config.kubernetes.io/depends-on: y, internal.config.kubernetes.io/index: "1", n: "1"}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: local, annotations: {config.kubernetes.io/local-config: "true"}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: y, annotations: {config.kubernetes.io/origin: "path: /etc/passwd"}}
-- services/c/kustomization.yaml --
namePrefix: c-
resources: [x.yaml]
buildMetadata: [originAnnotations]
-- services/c/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
`, []string{
			`services/a services/b/x.yaml {"apiVersion":"v1","kind":"ConfigMap","metadata":{"annotations":{"config.kubernetes.io/depends-on":"y","n":"1"},"name":"a-x"}}`,
			`services/a services/b/x.yaml {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a-y"}}`,
			`services/b services/b/x.yaml {"apiVersion":"v1","kind":"ConfigMap","metadata":{"annotations":{"config.kubernetes.io/depends-on":"y","n":"1"},"name":"x"}}`,
			`services/b services/b/x.yaml {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"y"}}`,
			`services/c services/c/x.yaml {"apiVersion":"v1","kind":"ConfigMap","metadata":{"annotations":{"config.kubernetes.io/origin":"path: x.yaml\n"},"name":"c-x"}}`,
		}},
		{"lists, aliases, BOM and CRLF", "-- services/a/x.yaml --\n\ufeffapiVersion: v1\r\nkind: List\r\nitems:\r\n- apiVersion: v1\r\n  kind: ConfigMap\r\n  metadata: &m {name: x}\r\n- apiVersion: v1\r\n  kind: ConfigMapList\r\n  items: [{apiVersion: v1, kind: ConfigMap, metadata: {<<: *m, name: y}}]\r\n---\r\napiVersion: v1\r\nkind: ConfigMap\r\nmetadata: {name: z}\r\ndata:\r\n  a: |\r\n    b\r\n    c\r\n", []string{
			`services/a services/a/x.yaml {"apiVersion":"v1","data":{"a":"b\nc\n"},"kind":"ConfigMap","metadata":{"name":"z"}}`,
			`services/a services/a/x.yaml {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}`,
			`services/a services/a/x.yaml {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"y"}}`,
		}},
		{"an overlay of everything", `
-- kustomization.yaml --
namespace: wiki
resources: [services]
components: [parts/more]
generators: [generators.yaml]
transformers:
- |
  apiVersion: builtin
  kind: LabelTransformer
  metadata: {name: x}
  labels: {by: transformer}
  fieldSpecs: [{path: metadata/labels, create: true}]
patchesStrategicMerge:
- |-
  apiVersion: v1
  kind: ConfigMap
  metadata: {name: x}
  data: {inline: patch}
patches:
- path: patch.json
  target: {kind: ConfigMap, name: x}
replacements: [{path: replacement.yaml}]
-- services/b/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
-- parts/more/kustomization.yaml --
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
resources: [y.yaml]
-- parts/more/y.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: y}
-- patch.json --
[{"op": "add", "path": "/data/json", "value": "patch"}]
-- replacement.yaml --
source: {kind: ConfigMap, name: "y", fieldPath: metadata.name}
targets:
- select: {kind: ConfigMap, name: x}
  fieldPaths: [data.replaced]
  options: {create: true}
-- generators.yaml --
apiVersion: builtin
kind: ConfigMapGenerator
metadata: {name: made}
options: {disableNameSuffixHash: true}
literals: [key=patch]
`, []string{
			`. services/b/x.yaml {"apiVersion":"v1","data":{"inline":"patch","json":"patch","replaced":"y"},"kind":"ConfigMap","metadata":{"labels":{"by":"transformer"},"name":"x","namespace":"wiki"}}`,
			`. generators.yaml {"apiVersion":"v1","data":{"key":"patch"},"kind":"ConfigMap","metadata":{"labels":{"by":"transformer"},"name":"made","namespace":"wiki"}}`,
			`. parts/more/y.yaml {"apiVersion":"v1","kind":"ConfigMap","metadata":{"labels":{"by":"transformer"},"name":"y","namespace":"wiki"}}`,
		}},
		{"a schema of one unit is not the next one's", `
-- services/a/kustomization.yaml --
openapi: {path: schema.json}
resources: [x.yaml]
patches:
- patch: |
    apiVersion: v1
    kind: Thing
    metadata: {name: x}
    spec: {items: [{name: a, b: c}]}
-- services/a/schema.json --
{"definitions": {"v1.Thing": {"properties": {"spec": {"properties": {"items": {"type": "array", "items": {"type": "object"},
 "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge"}}}}, "x-kubernetes-group-version-kind": [{"group": "", "kind": "Thing", "version": "v1"}]}}}
-- services/a/x.yaml --
apiVersion: v1
kind: Thing
metadata: {name: x}
spec: {items: [{name: b}]}
-- services/b/kustomization.yaml --
resources: [x.yaml]
patches:
- patch: |
    apiVersion: v1
    kind: Thing
    metadata: {name: x}
    spec: {items: [{name: a, b: c}]}
-- services/b/x.yaml --
apiVersion: v1
kind: Thing
metadata: {name: x}
spec: {items: [{name: b}]}
`, []string{
			`services/a services/a/x.yaml {"apiVersion":"v1","kind":"Thing","metadata":{"name":"x"},"spec":{"items":[{"b":"c","name":"a"},{"name":"b"}]}}`,
			`services/b services/b/x.yaml {"apiVersion":"v1","kind":"Thing","metadata":{"name":"x"},"spec":{"items":[{"b":"c","name":"a"}]}}`,
		}},
		{"secrets are concealed", `
-- services/a/kustomization.yaml --
secretGenerator:
- name: x
  literals: [password=` + canary + `]
  options: {disableNameSuffixHash: true}
`, []string{`services/a services/a/kustomization.yaml {"apiVersion":"v1","data":{"password":"(secret)"},"kind":"Secret","metadata":{"name":"x"},"type":"Opaque"}`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			documents, err := New(Options{Workers: 1}).Render(t.Context(), Units(site(t, tt.files)))
			if err != nil {
				t.Fatal(err)
			}
			for i, d := range documents {
				content, err := json.Marshal(d.Content)
				if err != nil {
					t.Fatal(err)
				}
				got := fmt.Sprintf("%s %s %s", d.Unit, d.Origin, content)
				if i >= len(tt.want) || got != tt.want[i] {
					t.Errorf("document %d:\n got %s\nwant %s", i, got, strings.Join(tt.want[min(i, len(tt.want)):min(i+1, len(tt.want))], ""))
				}
			}
			if len(documents) < len(tt.want) {
				t.Errorf("no document %s", tt.want[len(documents)])
			}
		})
	}
}

// TestShortcutsAgree compares what is read without kustomize, or built by it in
// slices, with one run of kustomize.
func TestShortcutsAgree(t *testing.T) {
	for _, kustomization := range []string{
		lists, labels,
		"namespace: other\nresources:\nLIST\n",
		"commonLabels: {a: b}\ncommonAnnotations: {c: d}\nimages: [{name: registry.example/wiki, newTag: '2'}]\nresources:\nLIST\n",
	} {
		for _, extra := range []string{"", binding} {
			root := manyObjects(t, 1, 205, kustomization)
			put(root, "services/unit-00/file-0000.yaml", regular([]byte(object(0)+"---\n"+extra)))
			s := scanUnit(Unit{Name: "x", Root: root, Path: "services/unit-00"})
			if len(s.faults) > 0 || s.parts[0].Listed == nil {
				t.Fatal(s.faults, s.parts)
			}
			got := build(t, s)
			s.parts[0].Listed = nil
			want := build(t, s)
			if len(want) < 190 || !reflect.DeepEqual(got, want) {
				t.Errorf("%s with %q: %d documents differ from kustomize's %d", kustomization[:20], extra, len(got), len(want))
			}
		}
	}
}

// binding is an object that kustomize completes from another.
const binding = `apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: wiki}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: robot}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: robot}]
`

// build is a child's work, done here.
func build(t *testing.T, s *scan) []document {
	t.Helper()
	q, fault, err := s.request(1 << 30)
	if err != nil || fault != nil {
		t.Fatal(err, fault)
	}
	b := &builder{limits: limits{Bytes: 1 << 30, Documents: 1 << 20}, request: q, documents: provider.NewDepProvider().GetResourceFactory()}
	a := b.build()
	if len(a.Faults) > 0 {
		t.Fatal(a.Faults)
	}
	return a.Documents
}

// TestBigFilesAreSliced cuts a single file of many documents.
func TestBigFilesAreSliced(t *testing.T) {
	var text strings.Builder
	for i := range 300 {
		text.WriteString(object(i) + "---\n")
	}
	root := site(t, "-- services/a/kustomization.yaml --\nnamespace: a\nresources: [x.yaml]\n")
	put(root, "services/a/x.yaml", regular([]byte(text.String())))
	documents, err := New(Options{}).Render(t.Context(), Units(root))
	if err != nil || len(documents) != 300 || documents[299].Origin != "services/a/x.yaml" {
		t.Fatal(len(documents), err)
	}
}

func TestCache(t *testing.T) {
	root := manyObjects(t, 3, 5, labels)
	r := New(Options{Workers: 2})
	children := 0
	r.started = func(int) { children++ }
	first := renderAll(t, r, root)
	if again := renderAll(t, r, root); !sameMaps(first, again) {
		t.Error("an unchanged site was rendered again")
	}
	root.Sub("services/unit-01").Files["file-0000.yaml"] = regular([]byte(object(99)))
	children = 0
	changed := renderAll(t, r, root)
	if children != 1 {
		t.Errorf("%d children for one changed unit", children)
	}
	if len(changed) != 11 || !sameMaps(first[:5], changed[:5]) || !sameMaps(first[10:], changed[6:]) || sameMaps(first[5:6], changed[5:6]) {
		t.Error("a unit was rendered again since another has changed, or the changed one was not")
	}
	root.Sub("services/unit-01").Files["readme.txt"] = regular([]byte("no part of the unit"))
	if children = 0; !sameMaps(changed, renderAll(t, r, root)) || children > 0 {
		t.Error("a file that the unit does not read counts")
	}
	for range rounds + 1 {
		renderAll(t, r, site(t, ""))
	}
	if len(r.cache) > 1 {
		t.Errorf("%d results are kept for ever", len(r.cache))
	}
}

func renderAll(t *testing.T, r *Renderer, root *tree.Dir) []Document {
	t.Helper()
	documents, err := r.Render(t.Context(), Units(root))
	if err != nil {
		t.Fatal(err)
	}
	return documents
}

func sameMaps(a, b []Document) bool {
	return slices.EqualFunc(a, b, func(a, b Document) bool {
		return reflect.ValueOf(a.Content).Pointer() == reflect.ValueOf(b.Content).Pointer()
	})
}

// TestBaseOfAnotherUnit sees that a unit is rendered again when a folder
// elsewhere, that it includes, has changed.
func TestBaseOfAnotherUnit(t *testing.T) {
	root := site(t, "-- services/a/kustomization.yaml --\nnamePrefix: a-\nresources: [../../base]\n-- base/x.yaml --\n"+object(1))
	r := New(Options{})
	before := renderAll(t, r, root)
	root.Sub("base").Files["x.yaml"] = regular([]byte(object(2)))
	if after := renderAll(t, r, root); sameMaps(before[1:], after[1:]) {
		t.Error("the unit is as it was")
	}
}

// TestDeadChildren has children die of everything there is. The other units go
// on, and so does the Renderer.
func TestDeadChildren(t *testing.T) {
	root := manyObjects(t, 4, 50, labels)
	text, rest := new(bytes.Buffer), strings.Repeat("[x, y, z],", 40)
	for i := range 40_000 {
		fmt.Fprintf(text, "k%d: [%s]\n", i, rest)
	}
	big := regular(append([]byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n"), text.Bytes()...))
	for _, tt := range []struct {
		name string
		o    Options
		kill bool
		want string
	}{
		{"killed", Options{Workers: 1}, true, "RenderCrashed: services/"},
		{"slow", Options{Workers: 2, Time: time.Nanosecond}, false, "RenderTime: services/"},
		{"greedy", Options{Workers: 2, Memory: 100 << 20}, false, "RenderMemory: services/big"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := New(tt.o)
			site := root
			if tt.name == "greedy" {
				site = &tree.Dir{Dirs: map[string]*tree.Dir{"services": {Dirs: map[string]*tree.Dir{"big": newDir()}}}}
				for name, d := range root.Sub("services").Dirs {
					site.Dirs["services"].Dirs[name] = d
				}
				site.Sub("services/big").Files["x.yaml"] = big
				if raced {
					r.options.Memory *= 2
				}
			}
			killed := 0
			if tt.kill {
				r.started = func(pid int) {
					if killed++; killed == 1 {
						syscall.Kill(pid, syscall.SIGSTOP) // so that it cannot answer first
						time.AfterFunc(50*time.Millisecond, func() { syscall.Kill(pid, syscall.SIGKILL) })
					}
				}
			}
			_, err := r.Render(t.Context(), Units(site))
			faults, rest := plan.Split(err)
			if rest != nil || len(faults) == 0 || !strings.HasPrefix(fmt.Sprintf("%s: %s", faults[0].Code, faults[0]), tt.want) {
				t.Fatalf("got %v, want %s", err, tt.want)
			}
			if tt.name == "slow" {
				return
			}
			if len(faults) != 1 {
				t.Errorf("other units suffered: %v", err)
			}
			r.options = New(Options{}).options
			if documents, err := r.Render(t.Context(), Units(root)); err != nil || len(documents) != 200 {
				t.Errorf("afterwards: %d documents, %v", len(documents), err)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := New(Options{Workers: 2})
	r.started = func(pid int) { cancel() }
	if _, err := r.Render(ctx, Units(manyObjects(t, 4, 50, labels))); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestUnreadableTree(t *testing.T) {
	broken := errors.New("broken pack")
	root := site(t, "-- services/a/x.yaml --\nx\n-- services/b/x.yaml --\nx\n")
	root.Sub("services/a").Files["x.yaml"].Read = func() ([]byte, error) { return nil, broken }
	if _, err := New(Options{}).Render(t.Context(), Units(root)); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestNoChild(t *testing.T) {
	root := manyObjects(t, 1, 1, "")
	for program, want := range map[string]string{"/bin/true": "does not greet as a child", "/nowhere": "no such file"} {
		if _, err := New(Options{Program: program}).Render(t.Context(), Units(root)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", program, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	documents := renderAll(t, New(Options{}), manyObjects(t, 2, 1001, ""))
	w := Warnings(documents[:1001+1000])
	if len(w) != 1 || w[0].Where != "services/unit-00" || !strings.Contains(w[0].Error(), "1001 objects") {
		t.Error(w)
	}
}

// TestEnclosed has a child try what a render must not.
func TestEnclosed(t *testing.T) {
	cmd := exec.Cmd{Path: "/proc/self/exe", Args: []string{probeName}, Env: []string{}, Dir: "/", SysProcAttr: childAttributes()}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "" {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestLocate(t *testing.T) {
	root := site(t, `
-- a.yaml --
# head
apiVersion: v1
kind: Roster
metadata:
  name: r
spec:
  users:
  - name: anna
    uid: 1000
  - name: ben
---
# second
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata:
    name: c
    namespace: one
    labels:
      kingmaker.dev/room: "1"
- apiVersion: v1
  kind: ConfigMap
  metadata:
    name: c
    namespace: two
-- kustomization.yaml --
configMapGenerator:
- name: first
- name: second
`)
	for _, tt := range []struct{ origin, kind, name, field, want string }{
		{"a.yaml", "Roster", "r", "", "a.yaml:2"},
		{"a.yaml", "Roster", "r", "spec.users[0].uid", "a.yaml:9"},
		{"a.yaml", "Roster", "r", "spec.users[1].uid", "a.yaml:10"},
		{"a.yaml", "Roster", "r", "spec.users[7].uid", "a.yaml:7"},
		{"a.yaml", "Roster", "prefix-r", "spec", "a.yaml:6"},
		{"a.yaml", "ConfigMap", "c", `metadata.labels["kingmaker.dev/room"]`, "a.yaml:22"},
		{"a.yaml", "ConfigMap", "two/c", "metadata.name", "a.yaml:26"},
		{"a.yaml", "Deployment.apps", "x", "", "a.yaml"},
		{"kustomization.yaml", "ConfigMap", "second-h4sh", "data", "kustomization.yaml:3"},
		{"nowhere.yaml", "ConfigMap", "c", "", "nowhere.yaml"},
	} {
		if got := Locate(root, tt.origin, tt.kind, tt.name, tt.field); got != tt.want {
			t.Errorf("%v: got %s", tt, got)
		}
	}
}

// FuzzScan holds the scanner to its promise: a kustomization that it accepts
// holds no path that is not in the tree, and reads the same when kustomize
// decodes it.
func FuzzScan(f *testing.F) {
	for _, tt := range bad {
		for _, file := range strings.Split(tt.files, "\n-- ") {
			if name, text, ok := strings.Cut(file, " --\n"); ok && strings.Contains(name, "ustomization") {
				f.Add(text)
			}
		}
	}
	f.Add("resources: [x.yaml, ./sub, sub/../x.yaml]\npatches: [{path: x.yaml}]\ncomponents: [sub]\nconfigMapGenerator: [{name: a, files: [k=x.yaml]}]\n")
	f.Add("transformers: [\"apiVersion: builtin\\nkind: PatchTransformer\\nmetadata: {name: x}\\npath: x.yaml\\n\"]\n")
	f.Fuzz(func(t *testing.T, text string) {
		root := site(t, "-- a/x.yaml --\n"+object(1)+"-- a/sub/kustomization.yaml --\nresources: [y.yaml]\n-- a/sub/y.yaml --\n"+object(2))
		put(root, "a/kustomization.yaml", regular([]byte(text)))
		s := scanUnit(Unit{Name: "a", Root: root, Path: "a"})
		if len(s.faults) > 0 {
			return
		}
		checkAccepted(t, root, s)
	})
}

// FuzzFile feeds files to what a child does with them: nothing may panic or run
// away, and what kustomize refuses must be explained by line.
func FuzzFile(f *testing.F) {
	for _, tt := range bad {
		for _, file := range strings.Split(tt.files, "\n-- ") {
			if _, text, ok := strings.Cut(file, " --\n"); ok && len(text) < 10_000 {
				f.Add(text)
			}
		}
	}
	f.Add(object(0))
	f.Add(binding)
	f.Fuzz(func(t *testing.T, text string) {
		q := &request{Parts: []part{{Path: "x.yaml"}}, Files: []file{{Path: "x.yaml", Role: objects, Content: []byte(text)}}}
		b := &builder{limits: limits{Bytes: 1 << 20, Documents: 100}, request: q, documents: provider.NewDepProvider().GetResourceFactory()}
		for _, fault := range b.build().Faults {
			if fault.Code == RenderFailed {
				t.Errorf("%q: %s", text, fault.Cause)
			}
		}
		for _, d := range b.answer.Documents {
			if _, err := decode(d.JSON); err != nil {
				t.Errorf("%q: %v", text, err)
			}
		}
	})
}
