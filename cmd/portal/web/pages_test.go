package web

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// full is a page with everything in it.
func full(w *words, lang string) page {
	return page{Title: "login.title", Problem: "login.refused", Note: "login.over", Lang: lang, Class: "desk", Script: "desk.js", Refresh: true, User: "anna", Admin: true,
		Choice:   []session.Template{{Name: "xfce", Title: `Class "room" <i>`}},
		Progress: shown{Text: "progress.placed", Step: 2, Reason: "reason.NoRoom", Detail: "0/5 nodes <are> available", Failed: true},
		Overview: overview{Site: cluster.Site{Name: "school", Wanted: "c0ffee", Message: "a & b"}, Machines: []cluster.Machine{{Name: "pc-01"}}, Volumes: []cluster.Volume{{Name: "homes"}},
			Desks: []cluster.Desk{{Spec: session.Spec{User: "anna"}, Status: session.Status{Phase: session.Fenced, Node: "pc-02", Message: "it waits"}}}},
		words: w, now: time.Now()}
}

// TestPages: each page, in each language, is well-formed; nothing is inline; whatever
// one fills in has a label, and what is referred to is there.
func TestPages(t *testing.T) {
	pages, err := readPages()
	if err != nil {
		t.Fatal(err)
	}
	w, err := readWords()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range pages {
		if name == "frame" {
			continue
		}
		for lang := range w.texts {
			t.Run(name+" "+lang, func(t *testing.T) {
				var b bytes.Buffer
				if err := p.ExecuteTemplate(&b, name+".html", full(w, lang)); err != nil {
					t.Fatal(err)
				}
				check(t, b.String(), lang)
			})
		}
	}
}

func check(t *testing.T, html, lang string) {
	if key := regexp.MustCompile(`>[a-z]+\.[a-zA-Z.]+<`).FindString(html); key != "" {
		t.Errorf("a key without a text: %s", key)
	}
	if strings.Contains(html, "ZgotmplZ") {
		t.Error("html/template refused a value")
	}
	d := xml.NewDecoder(strings.NewReader(html))
	ids, refers, labels, inputs, headings := map[string]int{}, []string{}, []string{}, []string{}, 0
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, html)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		a := map[string]string{}
		for _, attribute := range e.Attr {
			a[attribute.Name.Local] = attribute.Value
			if name := attribute.Name.Local; strings.HasPrefix(name, "on") || name == "style" {
				t.Errorf("<%s> has %s inline", e.Name.Local, name)
			}
		}
		if a["id"] != "" {
			ids[a["id"]]++
		}
		for _, name := range []string{"aria-controls", "aria-describedby", "aria-labelledby"} {
			refers = append(refers, strings.Fields(a[name])...)
		}
		if anchor, ok := strings.CutPrefix(a["href"], "#"); ok {
			refers = append(refers, anchor)
		}
		switch e.Name.Local {
		case "html":
			if a["lang"] != lang {
				t.Errorf("lang is %q", a["lang"])
			}
		case "script":
			if a["src"] == "" {
				t.Error("an inline script")
			}
		case "style":
			t.Error("an inline style")
		case "h1":
			headings++
		case "label":
			labels = append(labels, a["for"])
		case "input", "textarea":
			if a["type"] != "hidden" && a["hidden"] == "" {
				inputs = append(inputs, a["id"])
			}
		case "form":
			if a["method"] != "post" || !strings.HasPrefix(a["action"], "/") {
				t.Errorf("a form with %v", a)
			}
		case "th":
			if a["scope"] == "" {
				t.Error("a th without scope")
			}
		}
	}
	for id, n := range ids {
		if n > 1 {
			t.Errorf("%d elements have the id %s", n, id)
		}
	}
	for _, id := range slices.Concat(refers, labels) {
		if ids[id] == 0 {
			t.Errorf("there is no %q", id)
		}
	}
	for _, id := range inputs {
		if !slices.Contains(labels, id) {
			t.Errorf("input %q has no label", id)
		}
	}
	if headings != 1 {
		t.Errorf("%d h1", headings)
	}
}

// TestWords: all languages have the same keys, with the same gaps, and every key that a
// page or the program uses is there.
func TestWords(t *testing.T) {
	w, err := readWords()
	if err != nil {
		t.Fatal(err)
	}
	gap := regexp.MustCompile(`\{\d\}`)
	for code, texts := range w.texts {
		for key, text := range w.texts[fallback] {
			if other, ok := texts[key]; !ok || other == "" {
				t.Errorf("%s lacks %s", code, key)
			} else if fmt.Sprint(gap.FindAllString(text, -1)) != fmt.Sprint(gap.FindAllString(other, -1)) {
				t.Errorf("%s: %s has other gaps", code, key)
			}
		}
		if len(texts) != len(w.texts[fallback]) {
			t.Errorf("%s has %d texts, %s %d", code, len(texts), fallback, len(w.texts[fallback]))
		}
	}
	used := []string{}
	for _, pattern := range []string{"pages/*.html", "*.go"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`"((?:login|choose|progress|reason|desk|nav|password|admin|phase|error)\.[a-zA-Z.]*[a-zA-Z])"`).FindAllStringSubmatch(string(text), -1) {
				if m[1] != "desk.js" {
					used = append(used, m[1])
				}
			}
		}
	}
	for _, phase := range []string{session.Stopped, session.Stopping, session.Fenced, session.Starting, session.Ready, session.Failed} {
		used = append(used, "phase."+phase)
	}
	for _, reason := range []string{session.FormerAlive, session.NoTemplate, session.Ended, session.NoRoom, session.NoImage, session.NoVolume, session.NoPerson, session.Trouble, session.Idle} {
		used = append(used, "reason."+reason)
	}
	for _, stage := range stages {
		used = append(used, "progress."+stage)
	}
	for _, key := range used {
		if w.texts[fallback][key] == "" {
			t.Errorf("no text for %s", key)
		}
	}
}

// TestLibrary: noVNC is as npm had it, and nobody changed it here.
func TestLibrary(t *testing.T) {
	version, err := os.ReadFile("novnc/VERSION")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	err = filepath.WalkDir("novnc", func(file string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && entry.Name() != "VERSION" {
			names = append(names, file)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	all := sha256.New()
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(all, "%x  %s\n", sha256.Sum256(content), name)
	}
	if sum := hex.EncodeToString(all.Sum(nil)); !strings.Contains(string(version), "\nfiles "+sum+"\n") {
		t.Errorf("the files are %s, and VERSION says\n%s", sum, version)
	}
}
