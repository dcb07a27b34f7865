package render

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// canary is a text that no fault may quote.
const canary = "hunter2-canary"

// bad are sites with something wrong in them, and the faults that must come of
// it, all in one run: each as "Code: where: part of the text". A site without
// wanted faults renders.
var bad = []struct {
	name  string
	files string
	want  []string
}{
	// What points out of the tree, in every field that holds a path.
	{"remote everywhere", `
-- services/a/kustomization.yaml --
resources:
- https://example.com/x.yaml
- github.com/org/repo
- git@github.com:org/repo.git
- git::https://example.com/org/repo
- https://example.com/org/repo?ref=main
- file:///etc/passwd
- //example.com/x
- ssh://git@example.com/org/repo
- example.com/org/repo/path
- GITHUB.COM/org/repo
- org/repo.git//path?ref=v1
- C:\windows\x.yaml
bases:
- https://example.com/bases
components:
- https://example.com/components
crds:
- https://example.com/crds
configurations:
- https://example.com/configurations
generators:
- https://example.com/generators
transformers:
- https://example.com/transformers
validators:
- https://example.com/validators
patches:
- path: https://example.com/patches
patchesJson6902:
- path: https://example.com/json6902
  target: {kind: Service}
patchesStrategicMerge:
- https://example.com/strategic
openapi:
  path: https://example.com/openapi
replacements:
- path: https://example.com/replacements
configMapGenerator:
- name: a
  files: [https://example.com/files, "key=https://example.com/keyed"]
  envs: [https://example.com/envs]
- name: b
  env: https://example.com/env
secretGenerator:
- name: c
  files: [https://example.com/secrets]
`, []string{
		"RemoteBase: services/a/kustomization.yaml:2: resources[0]",
		"RemoteBase: services/a/kustomization.yaml:3: resources[1]",
		"RemoteBase: services/a/kustomization.yaml:4: resources[2]",
		"RemoteBase: services/a/kustomization.yaml:5: resources[3]",
		"RemoteBase: services/a/kustomization.yaml:6: resources[4]",
		"RemoteBase: services/a/kustomization.yaml:7: resources[5]",
		"RemoteBase: services/a/kustomization.yaml:8: resources[6]",
		"RemoteBase: services/a/kustomization.yaml:9: resources[7]",
		"RemoteBase: services/a/kustomization.yaml:10: resources[8]",
		"RemoteBase: services/a/kustomization.yaml:11: resources[9]",
		"RemoteBase: services/a/kustomization.yaml:12: resources[10]",
		"RemoteBase: services/a/kustomization.yaml:13: resources[11]",
		"RemoteBase: services/a/kustomization.yaml:15: bases[0]",
		"RemoteBase: services/a/kustomization.yaml:17: components[0]",
		"RemoteBase: services/a/kustomization.yaml:19: crds[0]",
		"RemoteBase: services/a/kustomization.yaml:21: configurations[0]",
		"RemoteBase: services/a/kustomization.yaml:23: generators[0]",
		"RemoteBase: services/a/kustomization.yaml:25: transformers[0]",
		"RemoteBase: services/a/kustomization.yaml:27: validators[0]",
		"RemoteBase: services/a/kustomization.yaml:29: patches[0].path",
		"RemoteBase: services/a/kustomization.yaml:31: patchesJson6902[0].path",
		"RemoteBase: services/a/kustomization.yaml:34: patchesStrategicMerge[0]",
		"RemoteBase: services/a/kustomization.yaml:36: openapi.path",
		"RemoteBase: services/a/kustomization.yaml:38: replacements[0].path",
		"RemoteBase: services/a/kustomization.yaml:41: configMapGenerator[0].files[0]",
		"RemoteBase: services/a/kustomization.yaml:41: configMapGenerator[0].files[1]",
		"RemoteBase: services/a/kustomization.yaml:42: configMapGenerator[0].envs[0]",
		"RemoteBase: services/a/kustomization.yaml:44: configMapGenerator[1].env",
		"RemoteBase: services/a/kustomization.yaml:47: secretGenerator[0].files[0]",
	}},
	{"field names in any case, as kustomize reads them", `
-- services/a/kustomization.yaml --
RESOURCES: [https://example.com/x]
baſes: [https://example.com/y]
`, []string{"RemoteBase: services/a/kustomization.yaml:1: resources[0]", "RemoteBase: services/a/kustomization.yaml:2: bases[0]"}},
	{"by anchor and merge key", `
-- services/a/kustomization.yaml --
metadata:
  name: &x https://example.com/x
resources: [*x]
`, []string{"RemoteBase: services/a/kustomization.yaml:3: resources[0]"}},
	{"a remote base of a base", `
-- services/a/kustomization.yaml --
resources: [../../base]
-- base/kustomization.yaml --
resources: [https://example.com/x]
`, []string{"RemoteBase: base/kustomization.yaml:1"}}, // once, though base is a unit as well
	{"helm", `
-- services/a/kustomization.yaml --
helmCharts: [{name: x, repo: https://example.com}]
helmGlobals: {chartHome: x}
-- services/b/kustomization.yaml --
helmChartInflationGenerator: [{chartName: x}]
`, []string{"PluginRefused: services/a/kustomization.yaml:1: helmCharts", "PluginRefused: services/a/kustomization.yaml:2: helmGlobals",
		"PluginRefused: services/b/kustomization.yaml:1: helmChartInflationGenerator"}},
	{"plugins", `
-- services/a/kustomization.yaml --
generators:
- helm.yaml
- folder
- |
  apiVersion: builtin
  kind: HelmChartInflationGenerator
  metadata: {name: x}
transformers:
- exec.yaml
- |
  apiVersion: builtin
  kind: PatchTransformer
  metadata: {name: x}
  PATH: https://example.com/x
- |
  apiVersion: builtin
  kind: ReplacementTransformer
  metadata: {name: x}
  replacements: [{path: ../../../x}]
validators:
- "https://example.com/org/repo?ref=--upload-pack=touch\n"
-- services/a/helm.yaml --
apiVersion: builtin
kind: HelmChartInflationGenerator
metadata: {name: x}
-- services/a/exec.yaml --
apiVersion: example.com/v1
kind: Exec
metadata:
  name: x
  annotations: {config.kubernetes.io/function: "exec: {path: ./x}"}
-- services/a/folder/x.yaml --
apiVersion: builtin
kind: NamespaceTransformer
metadata: {name: x, namespace: y}
`, []string{
		"PluginRefused: services/a/kustomization.yaml:2: generators[0]",
		"PluginRefused: services/a/kustomization.yaml:3: generators[1]",
		"PluginRefused: services/a/kustomization.yaml:4: generators[2]",
		"PluginRefused: services/a/kustomization.yaml:9: transformers[0]",
		"PluginRefused: services/a/kustomization.yaml:10: transformers[1]: a plugin may not name files, as PATH does",
		"PluginRefused: services/a/kustomization.yaml:15: transformers[2]: a plugin may not name files, as replacements does",
		"PluginRefused: services/a/kustomization.yaml:21: validators[0]",
	}},
	{"paths that leave", `
-- services/a/kustomization.yaml --
resources:
- /etc/passwd
- ../../../x
- ../../x/../../y
- "%2e%2e/x"
- ""
- "a\nb"
- "a\u202eb"
- "a\0b"
- ../../site.yaml
- x - ../b
patches:
- path: ../b/x.yaml
configMapGenerator:
- name: a
  files: ["=x", "x=", "a=b=c", "k=../b/x.yaml"]
-- services/b/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
-- site.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: site}
`, []string{
		"OutsideSite: services/a/kustomization.yaml:2: resources[0]: the path \"/etc/passwd\" is absolute",
		"OutsideSite: services/a/kustomization.yaml:3: resources[1]",
		"OutsideSite: services/a/kustomization.yaml:4: resources[2]",
		"UnknownReference: services/a/kustomization.yaml:5: resources[3]",
		"BadKustomization: services/a/kustomization.yaml:6: resources[4]: the path is empty",
		"BadFileName: services/a/kustomization.yaml:7: resources[5]",
		"BadFileName: services/a/kustomization.yaml:8: resources[6]",
		"BadFileName: services/a/kustomization.yaml:9: resources[7]",
		"OutsideSite: services/a/kustomization.yaml:10: resources[8]: site.yaml is not below",
		"BadKustomization: services/a/kustomization.yaml:11: resources[9]",
		"OutsideSite: services/a/kustomization.yaml:13: patches[0].path",
		"BadKustomization: services/a/kustomization.yaml:16: configMapGenerator[0].files[0]",
		"BadKustomization: services/a/kustomization.yaml:16: configMapGenerator[0].files[1]",
		"BadKustomization: services/a/kustomization.yaml:16: configMapGenerator[0].files[2]",
		"OutsideSite: services/a/kustomization.yaml:16: configMapGenerator[0].files[3]",
	}},
	{"names that look remote, with a path that does not", `
-- services/a/kustomization.yaml --
resources: [./github.com/org/repo]
configMapGenerator:
- name: a
  options: {disableNameSuffixHash: true}
  files: [icon@2x.png]
-- services/a/github.com/org/repo/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
-- services/a/icon@2x.png --
x
`, nil},
	{"case", `
-- services/a/kustomization.yaml --
resources: [web.yaml]
-- services/a/Web.yaml --
x: y
-- services/b/wiki.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
-- services/b/Wiki.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: y}
`, []string{"UnknownReference: services/a/kustomization.yaml:1: resources[0]: there is no file or folder services/a/web.yaml (there is services/a/Web.yaml)",
		"BadFileName: services/b/wiki.yaml: the name differs from Wiki.yaml in capitals only"}},
	{"symlinks", `
-- services/a/kustomization.yaml --
resources: [link.yaml, folder/x.yaml, chain]
-- services/a/link.yaml -> /etc/passwd --
-- services/a/folder -> .. --
-- services/a/chain -> folder --
-- services/b/self -> self --
-- services/c/Kustomization -> /proc/self/environ --
`, []string{
		"NotRegular: services/a/kustomization.yaml:1: resources[0]: services/a/link.yaml is a symlink",
		"NotRegular: services/a/kustomization.yaml:1: resources[1]: services/a/folder is a symlink",
		"NotRegular: services/a/kustomization.yaml:1: resources[2]: services/a/chain is a symlink",
		"NotRegular: services/b/self: services/b/self is a symlink",
		"NotRegular: services/c/Kustomization",
	}},
	{"odd names", "-- services/a/x\u202eyaml.exe --\nx\n-- services/b/x\ny.yaml --\nx\n", []string{
		`BadFileName: "services/a/x\u202eyaml.exe": the name has a character that does not show`, `BadFileName: "services/b/x\ny.yaml": the name has a control character`}},
	{"cycles", `
-- services/a/kustomization.yaml --
resources: [../b]
-- services/b/kustomization.yaml --
resources: [../a]
-- services/c/kustomization.yaml --
resources: [.]
-- services/d/kustomization.yaml --
resources: [../../services]
`, []string{"BaseCycle: services/a/kustomization.yaml:1", "BaseCycle: services/b/kustomization.yaml:1",
		"BaseCycle: services/c/kustomization.yaml:1", "BaseCycle: services/d/kustomization.yaml:1"}},
	{"kustomizations that are none", `
-- services/a/kustomization.yaml --
resource: [x.yaml]
-- services/b/kustomization.yaml --
resources: x.yaml
-- services/c/kustomization.yaml --
-- services/d/kustomization.yaml --
resources: []
resources: []
-- services/e/kustomization.yaml --
resources: []
---
resources: []
-- services/f/kustomization.yaml --
resources: []
-- services/f/kustomization.yml --
resources: []
-- services/g/kustomization.yaml --
kind: Other
resources: []
-- services/h/kustomization.yaml --
resources: [
-- services/i/Kustomization.yaml --
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: []
-- services/j/kustomization.yaml --
components: [../k]
resources: [comp]
-- services/j/comp/kustomization.yaml --
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
namePrefix: x-
-- services/k/kustomization.yaml --
resources: []
`, []string{
		"BadKustomization: services/a/kustomization.yaml:1: resource: kustomize knows no such field",
		"BadKustomization: services/b/kustomization.yaml:1: a value is of the wrong kind: string in resources",
		"BadKustomization: services/c/kustomization.yaml: the kustomization is empty",
		"BadYAML: services/d/kustomization.yaml:2: the key \"resources\" is there twice",
		"BadKustomization: services/e/kustomization.yaml:1: the file has more than one document",
		"BadKustomization: services/f/kustomization.yml: the folder has two kustomizations",
		"BadKustomization: services/g/kustomization.yaml:1: kind: kind should be Kustomization or Component",
		"BadYAML: services/h/kustomization.yaml:1: not YAML",
		"BadKustomization: services/i/Kustomization.yaml:1: a kustomization in a file of a name that kustomize does not know",
		"BadKustomization: services/j/kustomization.yaml:1: components[0]: services/k is no Component",
		"BadKustomization: services/j/kustomization.yaml:2: resources[0]: services/j/comp is a Component",
	}},

	// YAML.
	{"all faults of all files in one run", `
-- services/a/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
data: {a: b, a: c}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: y}
data: [null]
---
kind: ConfigMap
metadata: {name: z}
---
apiVersion: v1
metadata: {name: z}
---
apiVersion: v1
kind: ConfigMap
---
apiVersion: v1
kind: ConfigMap
metadata: {generateName: z-}
---
just text
-- services/a/y.yaml --
apiVersion: v1
kind: ConfigMap
metadata:
	name: x
-- services/b/kustomization.yaml --
namePrefix: x-
resources: [x.yaml, y.yaml]
-- services/b/x.yaml --
apiVersion: v1
kind: ConfigMap
-- services/b/y.yaml --
a: *nowhere
`, []string{
		"BadYAML: services/a/x.yaml:4: the key \"a\" is there twice",
		"BadYAML: services/a/x.yaml:9: an item of a list is empty",
		"MissingField: services/a/x.yaml:11: the document has no apiVersion",
		"MissingField: services/a/x.yaml:14: the document (v1) has no kind",
		"MissingField: services/a/x.yaml:17: ConfigMap has no metadata.name",
		"MissingField: services/a/x.yaml:20: ConfigMap has generateName",
		"BadYAML: services/a/x.yaml:24: the document is not an object",
		"BadYAML: services/a/y.yaml:4: not YAML: found character that cannot start any token (YAML is indented with spaces, not with tabs)",
		"MissingField: services/b/x.yaml:1: ConfigMap has no metadata.name",
		"BadYAML: services/b/y.yaml:1: not YAML: an alias (*)",
	}},
	{"a fault of the kustomization does not hide those of the files", `
-- services/a/kustomization.yaml --
resources: [x.yaml, missing.yaml]
-- services/a/x.yaml --
kind: ConfigMap
`, []string{"UnknownReference: services/a/kustomization.yaml:1: resources[1]", "MissingField: services/a/x.yaml:1"}},
	{"text that is none", "-- services/a/x.yaml --\na: \xff\n-- services/b/x.yaml --\na: b\nc: \x00\n-- services/c/x.yaml --\na: b\n...\nc: d\n-- services/d/x.yaml --\na: b\n--- c: d\ne: f\n-- services/e/x.yaml --\na: b\n--- {c: d}\n", []string{
		"BadYAML: services/a/x.yaml:1: the file is not UTF-8",
		"BadYAML: services/b/x.yaml:2: the file holds a NUL byte",
		"BadYAML: services/c/x.yaml:2: a document ends with ...",
		"MissingField: services/d/x.yaml:1",
		"BadYAML: services/d/x.yaml:2: kustomize takes no text on the line of a ---",
		"MissingField: services/d/x.yaml:3",
		"MissingField: services/e/x.yaml:1",
		"BadYAML: services/e/x.yaml:2: kustomize takes no text on the line of a ---",
	}},
	{"bombs", bombs(), []string{
		"TooBig: services/a/x.yaml:1: the document grows to more than 1000000 values",
		"TooBig: services/b/x.yaml:1: the document is nested more than 1000 levels deep",
		"TooBig: services/c/x.yaml:1: the document is nested more than 1000 levels deep",
		"BadYAML: services/d/x.yaml:1: an anchor (&) contains an alias (*) of itself",
		"TooBig: services/e/kustomization.yaml:1: the document grows to",
		"TooBig: services/f/x.yaml:1: the document grows to",
		"TooBig: services/g/kustomization.yaml:3: patches[0].patch: the document grows to",
		"BadYAML: services/h/x.yaml:4: not YAML: exceeded max depth of 10000",
		"TooBig: services/i/x.yaml: the file holds 100001 documents",
	}},

	// Objects.
	{"twice", `
-- services/a/x.yaml --
apiVersion: apps/v1
kind: Deployment
metadata: {name: x}
---
apiVersion: apps/v1beta1
kind: Deployment
metadata: {name: x, namespace: default}
-- services/b/kustomization.yaml --
resources: [x.yaml, y.yaml]
configMapGenerator: [{name: z}]
-- services/b/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
-- services/b/y.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
`, []string{"Duplicate: services/a/x.yaml:7: Deployment.apps default/x: the object is declared twice (the other is at services/a/x.yaml:1)",
		"RenderFailed: services/b/kustomization.yaml: ConfigMap.v1/x.[noNs] is there twice"}},
	{"kustomize's own errors", `
-- services/a/kustomization.yaml --
resources: [x.yaml]
patches:
- patch: |
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: nowhere}
-- services/a/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
-- services/b/kustomization.yaml --
resources: [x.yaml]
replicas: [{name: nowhere, count: 3}]
-- services/b/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
-- services/c/kustomization.yaml --
resources: [x.yaml]
patches:
- patch: "not a patch"
-- services/c/x.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
-- services/d/kustomization.yaml --
crds: [x.yaml]
-- services/d/x.yaml --
`, []string{
		"RenderFailed: services/a/kustomization.yaml: a patch is for Deployment.v1.apps/nowhere.[noNs], which the unit does not have",
		"RenderFailed: services/b/kustomization.yaml: replicas names nowhere",
		"RenderFailed: services/c/kustomization.yaml: a patch is neither",
		"RenderFailed: services/d/kustomization.yaml: kustomize: ",
	}},

	// Secrets: no fault quotes one.
	{"secrets", `
-- services/a/x.yaml --
apiVersion: v1
kind: Secret
metadata: {name: x}
stringData:
  number: 20061970
  list: [` + canary + `]
data:
  text: ` + canary + `!
  fine: aGVsbG8=
-- services/b/x.yaml --
apiVersion: v1
kind: Secret
metadata: {name: x}
stringData:
  password: *` + canary + `
-- services/c/x.yaml --
apiVersion: v1
kind: Secret
metadata: {name: x}
stringData:
  password: ` + canary + `: x
-- services/d/kustomization.yaml --
resources: [x.yaml]
patches:
- target: {kind: Secret}
  patch: '[{"op": "remove", "path": "/stringData/nowhere", "value": "` + canary + `"}]'
-- services/d/x.yaml --
apiVersion: v1
kind: Secret
metadata: {name: x}
stringData:
  password: ` + canary + `
-- services/e/kustomization.yaml --
secretGenerator:
- name: x
  literals: [` + canary + `]
-- services/g/x.yaml --
apiVersion: v1
kind: Secret
metadata: {name: x}
stringData: ` + canary + `
-- services/h/x.yaml --
apiVersion: kingmaker.dev/v1alpha1
kind: Roster
metadata: {name: x}
spec:
  users: [{name: a, password: {initial: ` + canary + `}}, null]
-- services/i/x.yaml --
apiVersion: v1
kind: Secret
metadata: {name: x}
stringData: !!binary ` + canary + `
`, []string{
		"BadSecret: services/a/x.yaml:5: Secret x: stringData.number: the value is not text (put it in quotes)",
		"BadSecret: services/a/x.yaml:6: Secret x: stringData.list: the value is not text",
		"BadSecret: services/a/x.yaml:8: Secret x: data.text: the value is not base64",
		"BadYAML: services/b/x.yaml:5: not YAML: an alias (*)",
		"BadYAML: services/c/x.yaml:5: not YAML: mapping values are not allowed",
		"RenderFailed: services/d/kustomization.yaml: kustomize refuses the unit; its message is withheld",
		"RenderFailed: services/e/kustomization.yaml: kustomize refuses the unit; its message is withheld",
		"BadSecret: services/g/x.yaml:4: Secret x: stringData: the field is not a map",
		"BadYAML: services/h/x.yaml:5: an item of a list is empty",
		"BadYAML: services/i/x.yaml:4: a value is not what its tag !!binary says",
	}},
}

// bombs are files that grow when they are read.
func bombs() string {
	var alias strings.Builder
	alias.WriteString("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\na0: &a0 [x, x, x, x, x, x, x, x, x]\n")
	for i := range 9 {
		fmt.Fprintf(&alias, "a%d: &a%d [%s*a%d]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 8), i)
	}
	a := alias.String()
	head := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"
	return "-- services/a/x.yaml --\n" + a +
		"-- services/b/x.yaml --\n" + head + "data: " + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + "\n" +
		"-- services/c/x.yaml --\n" + head + "data:\n  " + strings.Repeat("- ", 2000) + "x\n" +
		"-- services/d/x.yaml --\n" + head + "data: &x\n  y: *x\n" +
		"-- services/e/kustomization.yaml --\n" + a +
		"-- services/f/kustomization.yaml --\nnamePrefix: y-\nresources: [x.yaml]\n-- services/f/x.yaml --\n" + a +
		"-- services/g/kustomization.yaml --\nresources: []\npatches:\n- patch: |\n    " + strings.ReplaceAll(strings.TrimSpace(a), "\n", "\n    ") + "\n" +
		"-- services/h/x.yaml --\n" + head + "data: " + strings.Repeat("[", 20000) + "\n" +
		"-- services/i/x.yaml --\n" + strings.Repeat("\n---", 100_000) + "\n"
}

func TestBad(t *testing.T) {
	for _, tt := range bad {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := New(Options{Workers: 2}).Render(t.Context(), Units(site(t, tt.files)))
			checkFaults(t, err, tt.want)
		})
	}
}

// checkFaults compares an error's faults with those wanted.
func checkFaults(t *testing.T, err error, want []string) {
	t.Helper()
	faults, rest := plan.Split(err)
	if rest != nil {
		t.Fatalf("an error that is no fault: %v", rest)
	}
	for i, f := range faults {
		text := fmt.Sprintf("%s: %s", f.Code, f)
		if strings.Contains(text, canary) || strings.Contains(text, "20061970") {
			t.Errorf("a fault quotes a secret: %s", text)
		}
		if len(text) > 700 {
			t.Errorf("a fault of %d bytes: %s", len(text), text)
		}
		if i >= len(want) || !strings.HasPrefix(text, want[i]) {
			t.Errorf("fault %d:\n got %s\nwant %s", i, text, strings.Join(want[min(i, len(want)):min(i+1, len(want))], ""))
		}
	}
	for i := len(faults); i < len(want); i++ {
		t.Errorf("no fault %s", want[i])
	}
}

// TestNothingRuns plants commands where kustomize executes them, and sees that
// they are not: with the scan in front, and without it.
func TestNothingRuns(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "ran")
	for _, entry := range []string{
		"file:///tmp//x?ref=--upload-pack=touch${IFS}" + marker,
		"https://github.com/org/repo?ref=--upload-pack=touch " + marker + ";",
		"git@github.com:org/repo.git?ref=--upload-pack=touch " + marker,
	} {
		root := site(t, "-- services/a/kustomization.yaml --\nresources:\n- \""+entry+"\"\n")
		_, err := New(Options{}).Render(t.Context(), Units(root))
		checkFaults(t, err, []string{"RemoteBase: services/a/kustomization.yaml:2: resources[0]"})

		// Past the scan, the child has no git, no files and no sockets.
		q := &request{Parts: []part{{Path: "a", Kustomization: "kustomization.yaml"}}, Files: []file{{
			Path: "a/kustomization.yaml", Content: []byte("resources:\n- \"" + entry + "\"\n"), Rewritten: true}}}
		w := &worker{renderer: New(Options{})}
		a, fault, err := w.ask(t.Context(), Unit{Name: "a"}, q)
		w.stop()
		if err != nil || fault != nil || len(a.Faults) != 1 || len(a.Documents) > 0 {
			t.Errorf("%s, past the scan: %v %v %v", entry, a, fault, err)
		}
	}
	if _, err := os.Stat(marker); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a command of the site repo ran: %v", err)
	}
}

func TestBigFile(t *testing.T) {
	content := append([]byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  x: "), bytes.Repeat([]byte("x"), 100<<20)...)
	root := newDir()
	put(root, "big/x.yaml", regular(content))
	_, err := New(Options{}).Render(t.Context(), Units(root))
	checkFaults(t, err, []string{"TooBig: big/x.yaml: the unit has more than 64 MiB of files"})
}

func TestManyDocuments(t *testing.T) {
	_, err := New(Options{Documents: 50}).Render(t.Context(), Units(manyObjects(t, 1, 100, "")))
	checkFaults(t, err, []string{"TooBig: services/unit-00/file-0005.yaml: the unit renders to more than 50 objects"})
	_, err = New(Options{Bytes: 10_000}).Render(t.Context(), Units(manyObjects(t, 1, 100, "")))
	checkFaults(t, err, []string{"TooBig: services/unit-00/"})
}

// TestDiamonds includes bases that double with each level, and one base very
// often: the scan must not grow with what kustomize would make of it.
func TestDiamonds(t *testing.T) {
	root := newDir()
	const levels = 40
	for i := range levels {
		put(root, fmt.Sprintf("b/%da/kustomization.yaml", i), regular(fmt.Appendf(nil, "namePrefix: a-\nresources: [../%da, ../%db]\n", i+1, i+1)))
		put(root, fmt.Sprintf("b/%db/kustomization.yaml", i), regular(fmt.Appendf(nil, "namePrefix: b-\nresources: [../%da, ../%db]\n", i+1, i+1)))
	}
	for _, leaf := range []string{"a", "b"} {
		put(root, fmt.Sprintf("b/%d%s/x.yaml", levels, leaf), regular([]byte(object(1))))
	}
	put(root, "often/kustomization.yaml", regular([]byte("resources:\n"+strings.Repeat("- ../b/40a\n", 2_000))))
	_, err := New(Options{}).Render(t.Context(), []Unit{{Name: "top", Root: root, Path: "b/0a"}})
	checkFaults(t, err, []string{"RenderFailed: b/0a/kustomization.yaml: Service.v1/web-1.wiki is there twice"})
	_, err = New(Options{}).Render(t.Context(), []Unit{{Name: "often", Root: root, Path: "often"}})
	checkFaults(t, err, []string{"Duplicate: b/40a/x.yaml:4: Service wiki/web-1", "RenderFailed: often: there is more wrong"})
}
