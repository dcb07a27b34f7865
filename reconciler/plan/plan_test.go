package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// object is a test object: "a" is objects/Thing/a; a system may stand in front
// of the name: "volumes:a".
func object(name, content string, needs ...string) Object {
	o := Object{ID: tid(name), Spec: map[string]any{"content": content}, Origin: name + ".yaml"}
	for _, need := range needs {
		o.Needs = append(o.Needs, tid(need))
	}
	return o
}

func tid(name string) ID {
	if system, name, ok := strings.Cut(name, ":"); ok {
		return ID{system, "Thing", name}
	}
	return ID{Objects, "Thing", name}
}

func state(objects ...Object) State {
	s := State{}
	for _, o := range objects {
		s.Add(o)
	}
	return s
}

func precious(o Object) Object { o.Precious = "its data"; return o }

// TestMake is the planner as a table of small examples. Each wanted line is a
// change, something withheld (!) or something that waits (…).
func TestMake(t *testing.T) {
	for _, test := range []struct {
		name  string
		spec  SiteSpec
		parts []Part
		want  string
	}{
		{"nothing", SiteSpec{}, []Part{{System: Objects, Have: state(object("a", "1")), Want: state(object("a", "1"))}}, ""},
		{"create update delete", SiteSpec{}, []Part{{System: Objects,
			Have: state(object("a", "1"), object("b", "1")),
			Want: state(object("a", "2"), object("c", "1"))}},
			"update a, create c, delete b"},
		{"needs before names", SiteSpec{}, []Part{{System: Objects,
			Want: state(object("a", "1", "z"), object("z", "1"))}},
			"create z, create a"},
		{"deletes backwards", SiteSpec{}, []Part{{System: Objects,
			Have: state(object("a", "1"), object("b", "1", "a"), object("c", "1", "b"))}},
			"delete c, delete b, delete a"},
		{"systems in order", SiteSpec{}, []Part{
			{System: Volumes, Want: state(object("volumes:z", "1"))},
			{System: Objects, Want: state(object("a", "1"))}},
			"create z, create a"},
		{"needs across systems", SiteSpec{}, []Part{
			{System: Volumes, Want: state(object("volumes:v", "1", "a"))},
			{System: Objects, Want: state(object("a", "1"))}},
			"create a, create v"},
		{"a fault holds back what needs it, and no more", SiteSpec{}, []Part{{System: Objects,
			Want:   state(object("b", "1", "a"), object("c", "1", "b"), object("d", "1")),
			Faults: []*Fault{{Code: "X", ID: tid("a"), Cause: "no"}}}},
			"create d, …a, …b, …c"},
		{"what is there already satisfies a need", SiteSpec{}, []Part{{System: Objects,
			Have:   state(object("a", "1")),
			Want:   state(object("b", "1", "a")),
			Faults: []*Fault{{Code: "X", ID: tid("a"), Cause: "no"}}}},
			"create b, …a"},
		{"an unread system is not emptied, and what needs it waits", SiteSpec{}, []Part{
			{System: Volumes, Have: state(object("volumes:v", "1")), Faults: []*Fault{{Code: "X", ID: ID{System: Volumes}, Cause: "time-out"}}},
			{System: Objects, Want: state(object("a", "1", "volumes:v"), object("b", "1"))}},
			"create b, …, …a"},
		{"a need that nobody declares", SiteSpec{}, []Part{{System: Objects, Want: state(object("a", "1", "b"))}}, "…a"},
		{"precious", SiteSpec{}, []Part{{System: Objects, Have: state(precious(object("a", "1")))}}, "!a"},
		{"precious and confirmed", SiteSpec{Confirm: []string{"objects/Thing/a"}},
			[]Part{{System: Objects, Have: state(precious(object("a", "1")))}}, "delete a"},
		{"a precious thing keeps what it needs", SiteSpec{}, []Part{{System: Objects,
			Have: state(object("a", "1"), object("b", "1", "a"), precious(object("c", "1", "b")))}},
			"!a, !b, !c"},
		{"an update of a precious thing loses nothing", SiteSpec{}, []Part{{System: Objects,
			Have: state(precious(object("a", "1"))), Want: state(precious(object("a", "2")))}}, "update a"},
		{"a replacement of one does", SiteSpec{}, []Part{{System: Objects,
			Have: state(Object{ID: tid("a"), Identity: "1", Precious: "its data"}),
			Want: state(Object{ID: tid("a"), Precious: "its data"})}}, "!a"},
		{"over the budget", SiteSpec{Deletes: Budget{Max: 6}}, []Part{{System: Objects, Have: many(7), Want: state(object("z", "1"))}},
			"create z, !0, !1, !2, !3, !4, !5, !6"},
		{"five may always go", SiteSpec{Deletes: Budget{Max: 1}}, []Part{{System: Objects, Have: many(5)}},
			"delete 4, delete 3, delete 2, delete 1, delete 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := Make(&Site{Commit: "c0ffee", Spec: test.spec}, test.parts)
			if err != nil {
				t.Fatal(err)
			}
			if got := brief(p); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func many(n int) State {
	s := State{}
	for i := range n {
		s.Add(object(fmt.Sprint(i), "1"))
	}
	return s
}

func brief(p *Plan) string {
	var lines []string
	for _, c := range p.Changes {
		lines = append(lines, string(c.Action())+" "+c.ID.Name)
	}
	for _, f := range p.Waiting {
		lines = append(lines, "…"+f.ID.Name)
	}
	slices.Sort(lines[len(p.Changes):])
	for _, h := range p.Withheld {
		lines = append(lines, "!"+h.Change.ID.Name)
	}
	return strings.Join(lines, ", ")
}

func TestCycle(t *testing.T) {
	_, err := Make(&Site{}, []Part{{System: Objects, Want: state(
		object("a", "1", "b"), object("b", "1", "c"), object("c", "1", "b"), object("d", "1"))}})
	want := "order the changes: the needs form a cycle: objects/Thing/b needs objects/Thing/c needs objects/Thing/b"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestUnusedConfirm(t *testing.T) {
	p, _ := Make(&Site{Spec: SiteSpec{Confirm: []string{"objects/Thing/gone"}}}, nil)
	if len(p.Notes) != 1 || p.Notes[0].Code != UnusedEntry {
		t.Errorf("got %v", p.Notes)
	}
}

// drawn is a random pair of states over few names, so that they meet. A need
// always points at a greater name, so that there is no cycle.
func drawn(t *rapid.T) (site *Site, parts []Part) {
	site = &Site{Commit: "c0ffee"}
	systems := []string{Machines, Volumes, Objects, Directory}
	names := []ID{}
	for _, system := range systems {
		for _, name := range []string{"a", "b", "c"} {
			names = append(names, ID{system, "Thing", name})
		}
	}
	end := func(label string) State {
		s := State{}
		for i, id := range names {
			if !rapid.Bool().Draw(t, label+id.String()) {
				continue
			}
			o := Object{ID: id, Spec: map[string]any{"n": rapid.IntRange(0, 1).Draw(t, "spec")}, Rank: rapid.IntRange(-1, 1).Draw(t, "rank")}
			if rapid.IntRange(0, 4).Draw(t, "precious") == 0 {
				o.Precious = "data"
			}
			for _, need := range names[i+1:] {
				if rapid.IntRange(0, 3).Draw(t, "needs") == 0 {
					o.Needs = append(o.Needs, need)
				}
			}
			s.Add(o)
		}
		return s
	}
	have, want := end("have"), end("want")
	for _, system := range systems {
		part := Part{System: system, Have: have.Of(system), Want: want.Of(system)}
		if rapid.IntRange(0, 5).Draw(t, "unread") == 0 {
			part.Faults = append(part.Faults, &Fault{Code: "X", ID: ID{System: system}})
		}
		if rapid.IntRange(0, 2).Draw(t, "faulty") == 0 {
			part.Faults = append(part.Faults, &Fault{Code: "X", ID: ID{system, "Thing", "b"}})
		}
		parts = append(parts, part)
	}
	for _, id := range names {
		if rapid.IntRange(0, 3).Draw(t, "confirm") == 0 {
			site.Spec.Confirm = append(site.Spec.Confirm, id.String())
		}
	}
	site.Spec.Deletes.Max = rapid.IntRange(0, 8).Draw(t, "max")
	return site, parts
}

// TestPlanProperties follows a plan step by step through the world it was made
// for, and checks at each step what must hold.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		site, parts := drawn(t)
		p, err := Make(site, parts)
		if err != nil {
			t.Fatal(err)
		}
		world, unread := State{}, map[string]bool{}
		for _, part := range parts {
			for _, o := range part.Have {
				world.Add(o)
			}
			for _, f := range part.Faults {
				unread[f.ID.System] = unread[f.ID.System] || f.ID.Kind == ""
			}
		}
		deleting, unconfirmed := false, 0
		for _, c := range p.Changes {
			if unread[c.ID.System] {
				t.Fatalf("%s of a system that could not be read", c.header())
			}
			if c.Want == nil {
				deleting = true
				if !slices.Contains(site.Spec.Confirm, c.ID.String()) {
					unconfirmed++
					if c.Have.Precious != "" {
						t.Fatalf("%s loses something without consent", c.header())
					}
				}
				for _, o := range world {
					if o.ID != c.ID && slices.Contains(o.Needs, c.ID) {
						t.Fatalf("%s while %s needs it", c.header(), o.ID)
					}
				}
				delete(world, c.ID)
				continue
			}
			if deleting {
				t.Fatalf("%s after a deletion", c.header())
			}
			for _, need := range c.Want.Needs {
				if _, ok := world[need]; !ok {
					t.Fatalf("%s before %s", c.header(), need)
				}
			}
			world.Add(*c.Want)
		}
		if limit := max(5, site.Spec.Deletes.Max); unconfirmed > limit && site.Spec.Deletes.Max > 0 {
			t.Fatalf("%d deletions, and %d are allowed", unconfirmed, limit)
		}
		// What is neither done nor told is lost.
		told := map[ID]bool{}
		for _, f := range p.Waiting {
			told[f.ID] = true
		}
		for _, h := range p.Withheld {
			told[h.Change.ID] = true
		}
		for _, part := range parts {
			for id, want := range part.Want {
				got, ok := world[id]
				if !told[id] && !unread[id.System] && (!ok || fmt.Sprint(got.Spec) != fmt.Sprint(want.Spec)) {
					t.Fatalf("%s is not as wanted, and nothing says so", id)
				}
			}
			for id := range part.Have {
				_, wanted := part.Want[id]
				if _, there := world[id]; there && !wanted && !told[id] && !unread[id.System] {
					t.Fatalf("%s is still there, and nothing says so", id)
				}
			}
		}
		var waves []Change
		for _, wave := range p.Waves() {
			for _, c := range wave {
				for _, other := range wave {
					if c.Want != nil && slices.Contains(c.Want.Needs, other.ID) || c.Want == nil && slices.Contains(c.Have.Needs, other.ID) {
						t.Fatalf("%s and %s in one wave", c.ID, other.ID)
					}
				}
			}
			waves = append(waves, wave...)
		}
		if len(waves) != len(p.Changes) {
			t.Fatalf("%d changes in waves of %d", len(waves), len(p.Changes))
		}
		again, _ := Make(site, parts)
		var a, b bytes.Buffer
		p.WriteJSON(&a)
		again.WriteJSON(&b)
		if a.String() != b.String() {
			t.Fatal("the same input gives other bytes")
		}
	})
}

const canary = "canary-5d1e"

// TestSecretsStayHidden prints a plan with a secret in every place and in every
// way, and looks for it.
func TestSecretsStayHidden(t *testing.T) {
	document := func(value string) map[string]any {
		d := map[string]any{"kind": "Secret", "data": map[string]any{"password": value, "number": 42},
			"metadata": map[string]any{"annotations": map[string]any{lastApplied: "copy of " + value}}}
		Conceal(d)
		return d
	}
	a, b := document(canary), document(canary+"-new")
	p, err := Make(&Site{Commit: "c0ffee"}, []Part{{System: Objects,
		Have: State{tid("u"): {ID: tid("u"), Spec: a}, tid("d"): {ID: tid("d"), Spec: a}},
		Want: State{tid("u"): {ID: tid("u"), Spec: b}, tid("c"): {ID: tid("c"), Spec: b}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p.WriteDiff(&out, true)
	p.WriteSummary(&out, false)
	p.WriteJSON(&out)
	p.WriteMarkdown(&out, 0)
	s := NewSecret(canary)
	fmt.Fprintf(&out, "%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s)
	fmt.Fprintln(&out, s, &s, errors.New(fmt.Sprint(a)))
	slog.New(slog.NewTextHandler(&out, nil)).Info("log", "secret", s, "tree", a)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("log", "secret", s, "tree", a)
	json.NewEncoder(&out).Encode(a)
	if strings.Contains(out.String(), canary) || strings.Contains(out.String(), fmt.Sprintf("%x", canary)) {
		t.Errorf("a secret shows:\n%s", out.String())
	}
	if !strings.Contains(out.String(), "(secret, before)") || !strings.Contains(out.String(), "(secret, after)") {
		t.Error("the diff does not show that a secret changed")
	}
	if got := Reveal(a).(map[string]any)["data"].(map[string]any)["password"]; got != canary {
		t.Errorf("revealed %v", got)
	}
}

// TestPrints is the golden text of every form.
func TestPrints(t *testing.T) {
	have := object("b", "old")
	want := object("b", "new")
	want.Notes = []*Fault{{Code: "ForeignFields", ID: want.ID, Cause: "others hold spec.x"}}
	p, err := Make(&Site{Commit: "0123456789abcdef"}, []Part{{System: Objects,
		Have:   state(have, object("c", "1"), precious(object("d", "1"))),
		Want:   state(want, object("a", "1\x1b[31mred\u202e")),
		Faults: []*Fault{{Code: "NoKind", ID: tid("e"), Where: "e.yaml:7", Cause: "no such kind", Hint: "declare it"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var diff, summary, markdown bytes.Buffer
	p.WriteDiff(&diff, false)
	p.WriteSummary(&summary, false)
	p.WriteMarkdown(&markdown, 0)
	for _, test := range []struct{ name, got, want string }{
		{"diff", diff.String(), `+ create objects/Thing/a: declared in a.yaml
--- live/objects/Thing/a
+++ git/objects/Thing/a
@@ -0,0 +1,1 @@
+content: "1\e[31mred` + "\uFFFD" + `"
~ update objects/Thing/b: differs from b.yaml
--- live/objects/Thing/b
+++ git/objects/Thing/b
@@ -1,1 +1,1 @@
-content: old
+content: new
- delete objects/Thing/c: no longer in the site repo
--- live/objects/Thing/c
+++ git/objects/Thing/c
@@ -1,1 +0,0 @@
-content: "1"
` + rest},
		{"summary", summary.String(), `+ create objects/Thing/a: declared in a.yaml
~ update objects/Thing/b: differs from b.yaml
- delete objects/Thing/c: no longer in the site repo
` + rest},
	} {
		if test.got != test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, test.got, test.want)
		}
	}
	for _, part := range []string{"### Kingmaker: plan for 0123456789ab:", "| update | `objects/Thing/b` |", "<details>", "-content: old\n+content: new", "**withheld**"} {
		if !strings.Contains(markdown.String(), part) {
			t.Errorf("markdown lacks %q:\n%s", part, markdown.String())
		}
	}
}

const rest = `! withheld: delete objects/Thing/d: to delete it loses its data (to confirm, add objects/Thing/d to spec.confirm of the Site)
… waiting: e.yaml:7: Thing e: no such kind (declare it) [NoKind]
i note: Thing b: others hold spec.x [ForeignFields]
plan for 0123456789ab: 1 to create, 1 to update, 0 to replace, 1 to delete; 1 withheld, 1 waiting
`

func TestMarkdownIsCut(t *testing.T) {
	p, _ := Make(&Site{Commit: "c0ffee"}, []Part{{System: Objects, Want: many(500)}})
	var out bytes.Buffer
	p.WriteMarkdown(&out, 5000)
	if out.Len() > 5000 || !strings.Contains(out.String(), "Cut to size") {
		t.Errorf("%d bytes, ending %q", out.Len(), out.String()[out.Len()-200:])
	}
}

func TestIdentify(t *testing.T) {
	for _, test := range []struct{ document, want string }{
		{`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"wiki"}}`, "objects/Deployment.apps/wiki/web"},
		{`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"wiki"}}`, "objects/Namespace/wiki"},
		{`{"apiVersion":"kingmaker.dev/v1alpha1","kind":"Volume","metadata":{"name":"homes"}}`, "volumes/Volume/homes"},
		{`{"apiVersion":"kingmaker.dev/v1alpha1","kind":"Desktop","metadata":{"name":"xfce"}}`, "objects/Desktop.kingmaker.dev/xfce"},
		{`{"kind":"X"}`, "the document has no apiVersion"},
		{`{"apiVersion":"v1"}`, "the document (v1) has no kind"},
		{`{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"x-"}}`, "Pod has generateName and no name: what git declares must have a name that stays"},
		{`{"apiVersion":"v1","kind":"Pod"}`, "Pod has no metadata.name"},
	} {
		var document map[string]any
		json.Unmarshal([]byte(test.document), &document)
		id, err := Identify(document)
		got := id.String()
		if err != nil {
			got = err.Error()
		} else if back, err := ParseID(got); err != nil || back != id {
			t.Errorf("%s does not parse back: %v", got, err)
		}
		if got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}

// TestMarkedSecrets has secrets of a kind that is none go through a cluster and
// come back: in another order, as numbers, and in an object that git has no more.
func TestMarkedSecrets(t *testing.T) {
	want := map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "a"},
		"spec": map[string]any{"env": []any{map[string]any{"value": NewSecret("canary")}}, "pin": SecretOf(int64(77010203)), "on": SecretOf(true), "share": SecretOf(0.25)}}
	MarkSecrets(want)
	sent := Reveal(want).(map[string]any)
	spec := sent["spec"].(map[string]any)
	if spec["pin"] != int64(77010203) || spec["on"] != true || spec["share"] != 0.25 {
		t.Errorf("sent %v", spec)
	}
	spec["env"] = append([]any{map[string]any{"value": "other"}}, spec["env"].([]any)...)
	Conceal(sent)
	deleted := Change{ID: ID{Objects, "Pod", "a"}, Have: &Object{Spec: sent}}
	text := string(deleted.UnifiedDiff())
	if strings.Contains(text, "canary") || strings.Contains(text, "77010203") || strings.Contains(text, mark(NewSecret("canary"))) || !strings.Contains(text, "other") {
		t.Errorf("printed\n%s", text)
	}
	spec["env"] = spec["env"].([]any)[1:]
	if !reflect.DeepEqual(sent, want) {
		t.Errorf("got %#v", sent)
	}
	secret := map[string]any{"kind": "Secret", "metadata": map[string]any{}, "data": map[string]any{"a": NewSecret("b")}}
	if MarkSecrets(secret); IsMarked(secret) {
		t.Error("a Secret needs no mark")
	}
	clear := Change{ID: deleted.ID, Have: &Object{Spec: map[string]any{"a": map[string]any{"b": "canary"}}}, Want: &Object{Spec: map[string]any{"a": NewSecret("x")}}}
	if text := string(clear.UnifiedDiff()); strings.Contains(text, "canary") {
		t.Errorf("what becomes a secret shows what it was:\n%s", text)
	}
	sealed := Object{Spec: map[string]any{"a": []any{NewSecret("ENC[AES256_GCM,data:")}}}
	if f := sealed.Sealed(); f == nil || f.Code != SealedValues {
		t.Errorf("got %v", f)
	}
}
