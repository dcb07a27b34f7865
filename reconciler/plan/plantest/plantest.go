// Package plantest makes sites out of text, for the tests of the rooms, and
// compares what they find wrong with golden files.
package plantest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Documents reads YAML as the source does: numbers as int64 where they are
// whole, and secrets concealed.
func Documents(t testing.TB, text string) []map[string]any {
	t.Helper()
	var all []map[string]any
	for part := range strings.SplitSeq("\n"+text, "\n---") {
		data, err := yaml.YAMLToJSONStrict([]byte(part))
		if err != nil {
			t.Fatalf("%v\n%s", err, part)
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber()
		var tree any
		if err := dec.Decode(&tree); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if document, ok := numbers(tree).(map[string]any); ok {
			plan.Conceal(document)
			all = append(all, document)
		}
	}
	return all
}

func numbers(tree any) any {
	switch v := tree.(type) {
	case map[string]any:
		for key := range v {
			v[key] = numbers(v[key])
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		n, _ := v.Float64()
		return n
	}
	return tree
}

// Site is the site that some documents make. Without a Site document it is
// called school and leaves everything to the defaults.
func Site(t testing.TB, documents ...map[string]any) *plan.Site {
	t.Helper()
	site := &plan.Site{Name: "school", Commit: "c0ffee", Objects: plan.State{}}
	for _, document := range documents {
		id, err := plan.Identify(document)
		if err != nil {
			t.Fatal(err)
		}
		o := plan.Object{ID: id, Spec: document}
		site.Objects.Add(o)
		if id.Kind == "Site."+plan.Group {
			site.Name = id.Name
			// What does not decode is a fault that the test may well want.
			site.Spec, _ = plan.Decode[plan.SiteSpec](o)
		}
	}
	return site
}

// Golden runs the cases of a txtar file. Of each, "NAME" is the documents and
// "NAME: want" what is found: a fault a line, warnings with "warning: " before
// them. Documents of the section "base" are in every case that does not have
// others of their names. UPDATE_GOLDEN=1 writes what is found into the file.
func Golden(t *testing.T, file string, validate func(*plan.Site) (faults, warnings []*plan.Fault)) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split("\n"+strings.TrimSuffix(string(data), "\n"), "\n-- ")
	sections := map[string]string{}
	for _, part := range parts[1:] {
		name, text, _ := strings.Cut(part+"\n", " --\n")
		sections[name] = text
	}
	found := strings.TrimPrefix(parts[0]+"\n", "\n")
	add := func(name, text string) { found += "-- " + name + " --\n" + text }
	for _, part := range parts[1:] {
		name, _, _ := strings.Cut(part+"\n", " --\n")
		if strings.HasSuffix(name, ": want") {
			continue
		}
		add(name, sections[name])
		if name == "base" {
			continue
		}
		want := name + ": want"
		t.Run(name, func(t *testing.T) {
			site := Site(t, Documents(t, sections[name])...)
			if base := sections["base"]; base != "" {
				whole := Site(t, Documents(t, base)...)
				maps.Copy(whole.Objects, site.Objects)
				if site.Has(site.SiteID()) {
					whole.Name, whole.Spec = site.Name, site.Spec
				}
				site = whole
			}
			have := Lines(validate(site))
			add(want, have)
			if have != sections[want] && os.Getenv("UPDATE_GOLDEN") == "" {
				t.Errorf("have:\n%s\nwant:\n%s", have, sections[want])
			}
		})
	}
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(found), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Lines are faults and warnings as a person reads them, with their codes.
func Lines(faults, warnings []*plan.Fault) string {
	var b strings.Builder
	for _, f := range faults {
		fmt.Fprintf(&b, "%s: %s\n", f.Code, f)
	}
	for _, f := range warnings {
		fmt.Fprintf(&b, "warning: %s: %s\n", f.Code, f)
	}
	return b.String()
}
