package ldap

import (
	"bytes"
	"strings"
	"testing"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
)

// TestDecide is the planner as a table; what there is of a case are the entries of the
// directory.
func TestDecide(t *testing.T) {
	plantest.Plans(t, "testdata/decide.txt", "people", "directory", func(t *testing.T, site *plan.Site, directory string) string {
		have := printed(t, site, viewOf(t, directory))
		if strings.Contains(have, "{ARGON2}") {
			t.Error("a hash is in the plan")
		}
		return have
	})
}

func printed(t *testing.T, site *plan.Site, v *view) string {
	part := plan.Part{System: plan.Directory}
	if f := v.emptied(site); f != nil {
		part.Faults = append(part.Faults, f)
	} else {
		part.Have = observed(v)
		part.Want, part.Faults = desired(site, v, false)
	}
	p, err := plan.Make(site, []plan.Part{part})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	p.WriteDiff(&b, false)
	return b.String()
}

// viewOf reads entries as LDIF has them, where "+ " begins one that stands for the
// usual tree, with the lines of its record behind it. An entry with a line
// "password: none" has none.
func viewOf(t *testing.T, text string) *view {
	t.Helper()
	v := &view{tree: "dc=school", users: map[string]held{}, groups: map[string]held{}, folded: map[string]string{},
		uids: map[int64]string{}, gids: map[int64]string{}}
	var now *goldap.Entry
	var without []string
	end := func() {
		if now != nil {
			v.add(now)
		}
		now = nil
	}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case key == "record":
			end()
			v.record = readRecord(&goldap.Entry{Attributes: []*goldap.EntryAttribute{
				{Name: "entryUUID", Values: []string{"1"}}, {Name: "description", Values: strings.Split(value, ", ")}}})
			v.spec = map[string]any{"people": v.tree.people(), "groups": v.tree.groups(), "record": v.tree.record(), "counted": counted(v.record.users, v.record.groups)}
		case key == "known":
			v.known = value
		case key == "dn":
			end()
			now = &goldap.Entry{DN: value}
		case !ok || now == nil:
		case key == "password":
			without = append(without, nameIn(now.DN, "uid", v.tree.people()))
		default:
			if n := len(now.Attributes) - 1; n >= 0 && now.Attributes[n].Name == key {
				now.Attributes[n].Values = append(now.Attributes[n].Values, value)
				continue
			}
			now.Attributes = append(now.Attributes, &goldap.EntryAttribute{Name: key, Values: []string{value}})
		}
	}
	end()
	for _, name := range without {
		delete(v.users[name].spec, "password")
	}
	return v
}

func TestMarks(t *testing.T) {
	for _, generation := range []any{nil, int64(0), int64(7)} {
		if roster, g := readUserMark(userMark("class-5a", generation)); roster != "class-5a" || g != generation {
			t.Errorf("%v: %s %v", generation, roster, g)
		}
	}
}

func TestSurname(t *testing.T) {
	for full, want := range map[string]string{"Anna Arnold": "Arnold", "anna": "anna", "Arnold, Anna": "Arnold", ", Anna": "Anna", "Ana María  Núñez": "Núñez", ",": ",", "王小明": "王小明"} {
		if have := surname(full); have != want {
			t.Errorf("%q: %q, want %q", full, have, want)
		}
	}
}

// TestNameIn: nothing that is not plainly right below a parent is taken for one of ours.
func TestNameIn(t *testing.T) {
	const parent = "ou=people,dc=school"
	for dn, want := range map[string]string{
		"uid=anna,ou=people,dc=school":         "anna",
		"UID=Anna,OU=People,DC=school":         "Anna",
		"uid=anna,ou=x,ou=people,dc=school":    "",
		"uid=anna+cn=x,ou=people,dc=school":    "",
		`uid=a\2Cou=people\2C,ou=people,dc=s`:  "",
		`uid=a\,b,ou=people,dc=school`:         "",
		"cn=anna,ou=people,dc=school":          "",
		"ou=people,dc=school":                  "",
		"uid=,ou=people,dc=school":             "",
		"uid=anna,ou=people,dc=school,dc=elsa": "",
	} {
		if have := nameIn(dn, "uid", parent); have != want {
			t.Errorf("%s: %q, want %q", dn, have, want)
		}
	}
}

// TestDifference: one modification, with nothing in it that stays.
func TestDifference(t *testing.T) {
	have := map[string][]string{"cn": {"Anna"}, "mail": {"a@x"}, "member": {"1", "2", "3"}, "sn": {"Same"}}
	want := map[string][]string{"cn": {"Anne"}, "member": {"2", "3", "4"}, "sn": {"Same"}, "loginShell": {"/bin/zsh"}}
	var text []string
	for _, c := range difference("uid=x", have, want).Changes {
		text = append(text, []string{"add", "delete", "replace"}[c.Operation]+" "+c.Modification.Type+" "+strings.Join(c.Modification.Vals, ","))
	}
	if have, want := strings.Join(text, "; "), "replace cn Anne; replace loginShell /bin/zsh; replace mail ; delete member 1; add member 4"; have != want {
		t.Errorf("%s\nwant %s", have, want)
	}
}
