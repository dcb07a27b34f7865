package git

import (
	"fmt"
	"strings"
	"testing"
)

// many pushes so many files of 500 bytes, 100 to a folder.
func many(b *testing.B, files int) *site {
	s := newSite(b)
	for i := range files {
		s.write(fmt.Sprintf("machines/%03d/pc-%05d.yaml", i/100, i), strings.Repeat(fmt.Sprintf("address: 10.0.%d.%d\n", i/250, i%250), 25))
	}
	s.push()
	return s
}

// BenchmarkFirst copies 10,000 files from each kind of repository.
func BenchmarkFirst(b *testing.B) {
	s := many(b, 10_000)
	for name, o := range ways(b, s.bare) {
		for _, cached := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s cached=%v", name, cached), func(b *testing.B) {
				o := o
				for b.Loop() {
					if cached {
						o.Cache = b.TempDir()
					}
					newest(b, open(b, o))
				}
			})
		}
	}
	b.Run("reopen", func(b *testing.B) {
		o := Options{URL: s.bare, Cache: b.TempDir()}
		r := open(b, o)
		newest(b, r)
		r.Close()
		for b.Loop() {
			r := open(b, o)
			if _, ok := r.LastGood(); !ok {
				b.Fatal("nothing")
			}
			r.Close()
		}
	})
	b.Run("working folder", func(b *testing.B) {
		for b.Loop() {
			newest(b, open(b, Options{URL: s.work}))
		}
	})
	b.Run("working folder again", func(b *testing.B) {
		r := open(b, Options{URL: s.work})
		for b.Loop() {
			newest(b, r)
		}
	})
	b.Run("read all", func(b *testing.B) {
		r := open(b, Options{URL: s.bare, Cache: b.TempDir()})
		_, d := newest(b, r)
		for b.Loop() {
			for _, folder := range d.Dirs["machines"].Dirs {
				for _, f := range folder.Files {
					if _, err := f.Read(); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
	})
}

// BenchmarkIncrement takes in one changed file of 4,000, in folders of 100 and
// in one folder.
func BenchmarkIncrement(b *testing.B) {
	s := many(b, 4_000)
	s.git("mv", "machines/000", "other")
	for i := range 4_000 {
		s.write(fmt.Sprintf("flat/%d.yaml", i), fmt.Sprint("flat", i))
	}
	s.push()
	for name, o := range ways(b, s.bare) {
		for _, file := range []string{"machines/020/pc-02000.yaml", "flat/7.yaml"} {
			b.Run(name+" "+file, func(b *testing.B) {
				o := o
				o.Cache = b.TempDir()
				r := open(b, o)
				newest(b, r)
				b.ResetTimer()
				for i := 0; i < b.N; i++ {
					b.StopTimer()
					commit := s.push(file, fmt.Sprint(name, i))
					b.StartTimer()
					if got, _ := newest(b, r); got != commit {
						b.Fatal(got)
					}
				}
			})
		}
		b.Run(name+" unchanged", func(b *testing.B) {
			r := open(b, o)
			newest(b, r)
			for b.Loop() {
				newest(b, r)
			}
		})
	}
}
