package web

import (
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

//go:embed pages text
var files embed.FS

// readPages parses each page with the frame around it.
func readPages() (map[string]*template.Template, error) {
	pages := map[string]*template.Template{}
	names, err := fs.Glob(files, "pages/*.html")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		name := strings.TrimSuffix(path.Base(file), ".html")
		if pages[name], err = template.ParseFS(files, "pages/frame.html", file); err != nil {
			return nil, fmt.Errorf("read page %s: %w", name, err)
		}
	}
	return pages, nil
}

// page is what a page is made of.
type page struct {
	Title   string // key
	Problem string // key; "" is none
	Note    string // key
	Lang    string
	Class   string // of body
	Script  string // module that belongs to it
	Refresh bool   // without scripts: load it anew
	User    string
	Admin   bool

	Choice   []session.Template
	Progress shown
	Overview overview

	visitor visitor
	words   *words
	assets  assets
	now     time.Time
}

// overview is what administrators see.
type overview struct {
	Site                         cluster.Site
	Desks                        []cluster.Desk
	Machines                     []cluster.Machine
	Volumes                      []cluster.Volume
	DesksUnknown, VolumesUnknown bool
}

// T is the text of a key, with {0}, {1} ... filled in.
func (d page) T(key string, fill ...string) string { return d.words.text(d.Lang, key, fill...) }

// Asset is the address of a style, a script or a picture.
func (d page) Asset(file string) string { return d.assets.path(file) }

// Phase is the word for one.
func (d page) Phase(phase string) string {
	if phase == "" {
		phase = session.Starting
	}
	return d.T("phase." + phase)
}

// When is a time, as long as it is short.
func (d page) When(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	ago := max(0, d.now.Sub(t))
	switch {
	case ago < time.Minute:
		return fmt.Sprintf("%d s", int(ago.Seconds()))
	case ago < time.Hour:
		return fmt.Sprintf("%d min", int(ago.Minutes()))
	}
	return fmt.Sprintf("%d h %d min", int(ago.Hours()), int(ago.Minutes())%60)
}

// Language is one that there are words of.
type Language struct{ Code, Name string }

// Languages of the portal.
func (d page) Languages() []Language { return d.words.languages }

// words are the texts of all languages, by language and key.
type words struct {
	texts     map[string]map[string]string
	languages []Language
}

const fallback = "en"

func readWords() (*words, error) {
	w := &words{texts: map[string]map[string]string{}}
	names, err := fs.Glob(files, "text/*.json")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		code := strings.TrimSuffix(path.Base(file), ".json")
		text, err := fs.ReadFile(files, file)
		if err != nil {
			return nil, err
		}
		var texts map[string]string
		if err := json.Unmarshal(text, &texts); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		w.texts[code] = texts
		w.languages = append(w.languages, Language{code, texts["language"]})
	}
	return w, nil
}

func (w *words) has(code string) bool { return w.texts[code] != nil }

func (w *words) text(language, key string, fill ...string) string {
	text, ok := w.texts[language][key]
	if !ok {
		if text, ok = w.texts[fallback][key]; !ok {
			return key
		}
	}
	for i, f := range fill {
		text = strings.ReplaceAll(text, "{"+strconv.Itoa(i)+"}", f)
	}
	return text
}

// choose is the language of a visitor: the one that he chose, else the best of those
// that his browser asks for.
func (w *words) choose(r *http.Request) string {
	if c, err := r.Cookie(languageName); err == nil && w.has(c.Value) {
		return c.Value
	}
	type wish struct {
		code    string
		quality float64
	}
	var wishes []wish
	for _, part := range strings.Split(r.Header.Get("Accept-Language"), ",") {
		tag, parameter, _ := strings.Cut(strings.TrimSpace(part), ";")
		code, _, _ := strings.Cut(strings.ToLower(tag), "-")
		quality := 1.0
		if q, ok := strings.CutPrefix(strings.TrimSpace(parameter), "q="); ok {
			quality, _ = strconv.ParseFloat(q, 64)
		}
		if w.has(code) && quality > 0 {
			wishes = append(wishes, wish{code, quality})
		}
	}
	if len(wishes) == 0 {
		return fallback
	}
	return slices.MaxFunc(wishes, func(a, b wish) int { // the first of equals
		switch {
		case a.quality < b.quality:
			return -1
		case a.quality > b.quality:
			return 1
		}
		return 0
	}).code
}
