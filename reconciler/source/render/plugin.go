package render

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// builtin are the plugins that kustomize has built in and that run nothing.
// HelmChartInflationGenerator is the one that does.
var builtin = []string{
	"AnnotationsTransformer", "ConfigMapGenerator", "HashTransformer", "IAMPolicyGenerator", "ImageTagTransformer",
	"LabelTransformer", "NamespaceTransformer", "PatchJson6902Transformer", "PatchStrategicMergeTransformer",
	"PatchTransformer", "PrefixSuffixTransformer", "PrefixTransformer", "ReplacementTransformer",
	"ReplicaCountTransformer", "SecretGenerator", "SuffixTransformer", "ValueAddTransformer",
}

// plugins checks the entries of generators, transformers and validators: files
// of plugin configurations, or such YAML itself. Folders, which kustomize would
// build to get at the configurations, are refused, since then no scan could say
// what comes out.
func (k *kustomization) plugins(field string, entries []string) {
	for i := range entries {
		if strings.Contains(entries[i], "\n") {
			if text, ok := k.configurations([]byte(entries[i]), field, i); ok {
				entries[i] = string(text)
			}
			continue
		}
		at, file, ok := k.resolve(&entries[i], field, i)
		switch {
		case !ok:
		case file == nil:
			k.fault(PluginRefused, []any{field, i}, "name the files in it", "%s is a folder", nameOf(at))
		case k.inside(at, field, i):
			if file.Size > maxKustomization {
				k.fault(TooBig, []any{field, i}, "", "%s has %d bytes; %d are the most", at, file.Size, maxKustomization)
				continue
			}
			content, err := file.Read()
			if err != nil {
				k.s.err = err
				return
			}
			if text, ok := k.configurations(content, field, i); ok {
				k.s.use(k.f, at, file, parsed)
				k.s.files[at].text = text
			}
		}
	}
}

// configurations checks plugin configurations and writes them anew, as JSON:
// text that kustomize cannot take for anything else.
func (k *kustomization) configurations(content []byte, field ...any) (text []byte, ok bool) {
	found := examine(content)
	for _, n := range found {
		k.fault(n.code, field, n.hint, "%s", n.cause)
	}
	if len(found) > 0 {
		return nil, false
	}
	ok = true
	eachDocument(content, func(document, _ []byte, _ int) {
		var node yaml.Node
		if yaml.Unmarshal(document, &node) != nil || node.Kind == 0 {
			return // nothing but comments: examine has read the rest
		}
		value := (&reader{notes: &notes{}}).value(&node)
		if value == nil {
			return
		}
		configuration, _ := value.(map[string]any)
		line, err := json.Marshal(configuration)
		if ok = err == nil && k.configuration(configuration, field...) && ok; ok {
			text = append(append(text, line...), "\n---\n"...)
		}
	})
	return bytes.TrimSuffix(text, []byte("---\n")), ok
}

// configuration checks one plugin configuration. One that names a file is
// refused: the field of the kustomization that does the same thing may name it.
// Kustomize decodes it by encoding/json, so the case of keys means nothing.
func (k *kustomization) configuration(c map[string]any, field ...any) bool {
	kind, _ := c["kind"].(string)
	if c["apiVersion"] != "builtin" || !slices.Contains(builtin, kind) {
		k.fault(PluginRefused, field, "only what kustomize has built in may be used, helm excepted", "the plugin %q is not run", shorten(kind))
		return false
	}
	const hint = "patches, replacements, configMapGenerator and secretGenerator may"
	replacements := []any{}
	for key, value := range c {
		if slices.ContainsFunc([]string{"path", "paths", "targetFilePath", "files", "envs", "env"}, func(name string) bool { return strings.EqualFold(name, key) }) {
			k.fault(PluginRefused, field, hint, "a plugin may not name files, as %s does", key)
			return false
		}
		if list, ok := value.([]any); ok && strings.EqualFold(key, "replacements") {
			replacements = append(replacements, list...)
		}
	}
	for _, item := range replacements {
		one, _ := item.(map[string]any)
		for key := range one {
			if strings.EqualFold(key, "path") {
				k.fault(PluginRefused, field, hint, "a plugin may not name files, as replacements does")
				return false
			}
		}
	}
	return true
}
