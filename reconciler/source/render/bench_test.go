package render

import "testing"

// The kustomizations of the benchmarks. One that only lists is read without
// kustomize; one that labels is not.
const (
	lists  = "resources:\nLIST\n"
	labels = "resources:\nLIST\nlabels:\n- pairs:\n    site: school\n"
)

func benchmarkCold(b *testing.B, units, objects int, kustomization string) {
	root := manyObjects(b, units, objects, kustomization)
	for b.Loop() {
		documents, err := New(Options{}).Render(b.Context(), Units(root))
		if err != nil || len(documents) != units*objects {
			b.Fatal(len(documents), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(units*objects), "µs/object")
}

func BenchmarkCold10x100Listed(b *testing.B)  { benchmarkCold(b, 10, 100, lists) }
func BenchmarkCold10x1000Listed(b *testing.B) { benchmarkCold(b, 10, 1000, lists) }
func BenchmarkCold10x100Labels(b *testing.B)  { benchmarkCold(b, 10, 100, labels) }
func BenchmarkCold10x1000Labels(b *testing.B) { benchmarkCold(b, 10, 1000, labels) }
func BenchmarkCold10x1000MadeUp(b *testing.B) { benchmarkCold(b, 10, 1000, "") }
func BenchmarkCold1x10000MadeUp(b *testing.B) { benchmarkCold(b, 1, 10000, "") }
func BenchmarkCold40x100MadeUp(b *testing.B)  { benchmarkCold(b, 40, 100, "") }
func BenchmarkCold1x1MadeUp(b *testing.B)     { benchmarkCold(b, 1, 1, "") }

func benchmarkOneChanged(b *testing.B, kustomization string) {
	root := manyObjects(b, 10, 1000, kustomization)
	r := New(Options{})
	if _, err := r.Render(b.Context(), Units(root)); err != nil {
		b.Fatal(err)
	}
	i := 100_000
	for b.Loop() {
		i++
		root.Sub("services/unit-03").Files["file-0000.yaml"] = regular([]byte(object(i)))
		if _, err := r.Render(b.Context(), Units(root)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOneOf10x1000Listed(b *testing.B) { benchmarkOneChanged(b, lists) }
func BenchmarkOneOf10x1000Labels(b *testing.B) { benchmarkOneChanged(b, labels) }
func BenchmarkOneOf10x1000MadeUp(b *testing.B) { benchmarkOneChanged(b, "") }
