package main

import (
	"bufio"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestBenchSite compares the two forms of a site: kubectl's manifest has what
// the kustomizations add, and nothing else.
func TestBenchSite(t *testing.T) {
	site := benchSite{objects: 250, perUnit: 100}
	files, kinds := site.files(), map[string]int{}
	for text := range strings.SplitSeq(strings.TrimPrefix(site.manifest(), "---\n"), "---\n") {
		var o struct {
			Kind     string
			Metadata struct {
				Name, Namespace string
				Labels          map[string]string
			}
		}
		if err := yaml.Unmarshal([]byte(text), &o); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		kinds[o.Kind]++
		unit, file := o.Metadata.Namespace, o.Metadata.Name+"-"+strings.ToLower(o.Kind)+".yaml"
		if o.Kind == "Namespace" {
			unit, file = o.Metadata.Name, "namespace.yaml"
		}
		if o.Metadata.Labels["app.kubernetes.io/part-of"] != unit {
			t.Errorf("%s %s is not labelled", unit, file)
		}
		folder := "services/" + unit + "/"
		if !strings.Contains(files[folder+"kustomization.yaml"], "  - "+file+"\n") {
			t.Errorf("the kustomization of %s does not list %s", unit, file)
		}
		for _, line := range []string{"  namespace: " + unit + "\n", "    app.kubernetes.io/part-of: " + unit + "\n"} {
			text = strings.ReplaceAll(text, line, "")
		}
		if text = strings.TrimSuffix(text, "  labels:\n"); text != files[folder+file] {
			t.Errorf("%s%s: the manifest has, but for namespace and label:\n%s\nthe site repo:\n%s", folder, file, text, files[folder+file])
		}
	}
	want := map[string]int{"Namespace": 3, "Deployment": 63, "Service": 63, "ServiceAccount": 62, "ConfigMap": 62}
	if !maps.Equal(kinds, want) {
		t.Errorf("%v, want %v", kinds, want)
	}
	if !strings.Contains(files[changedConfigMap], "revision: r0") {
		t.Errorf("%s: nothing to change in it", changedConfigMap)
	}
}

func TestBenchParsing(t *testing.T) {
	if m := parseMetrics("# HELP a b 1\na{x=\"1 2\"} 1\na{x=\"3\"} 2\nb 1e-3\n"); m["a"] != 3 || m[`a{x="3"}`] != 2 || m[`a{x="1 2"}`] != 1 || m["b"] != 0.001 {
		t.Errorf("metrics: %v", m)
	}
	b := parseBenchmarks("goos: linux\nBenchmarkCold10x1000Labels-2 \t 1\t1625000000 ns/op\t 162 µs/object\nBenchmarkCold10x1000Labels-2 \t 1\t 2000 ns/op\nPASS\n")
	if all := b["Cold10x1000Labels"]; len(all) != 2 || all[0] != 1.625 {
		t.Errorf("benchmarks: %v", b)
	}
	for _, test := range []struct {
		all  []float64
		want string
	}{
		{nil, "-"},
		{[]float64{0.25}, "0.250 s (0.250–0.250, n=1)"},
		{[]float64{3, 1, 2, 40}, "2.50 s (1.00–40.00, n=4)"},
	} {
		if got := figures(test.all, "s"); got != test.want {
			t.Errorf("figures(%v) = %s, want %s", test.all, got, test.want)
		}
	}
	if rss := memory(os.Getpid(), "VmRSS"); rss < 1 || math.IsNaN(rss) {
		t.Errorf("we hold %v MB", rss)
	}
}

// TestAuditLog reads a log as it grows, in pieces that are no lines.
func TestAuditLog(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	read, err := os.Open(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	log := &auditLog{lines: bufio.NewReader(read)}
	for _, step := range []struct {
		piece string
		want  int
	}{
		{`{"stage":"ResponseComplete","verb":"get"}` + "\n" + `{"stage":"Resp`, 1},
		{`onseStarted","verb":"watch"}` + "\n", 1},
		{`{"stage":"ResponseComplete","verb":"watch"}` + "\n", 0}, // counted when it began
		{"", 0},
	} {
		if _, err := file.WriteString(step.piece); err != nil {
			t.Fatal(err)
		}
		if got := log.take(); len(got) != step.want {
			t.Errorf("after %q: %v, want %d", step.piece, got, step.want)
		}
	}
}
