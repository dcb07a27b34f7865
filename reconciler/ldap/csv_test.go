package ldap_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
)

func roster(csv string) map[string]any {
	return map[string]any{
		"apiVersion": plan.APIVersion, "kind": "Roster",
		"metadata": map[string]any{"name": "class-5a"},
		"spec":     map[string]any{"group": "pupils", "csv": csv},
	}
}

// include reads a file that is all that there is.
func include(document map[string]any, content string) (map[string]string, []*plan.Fault) {
	return ldap.Include(document, "people/class-5a.yaml:3", func(file string) ([]byte, error) {
		if file != "people/class-5a.csv" {
			return nil, errors.New("no such file")
		}
		return []byte(content), nil
	})
}

func TestInclude(t *testing.T) {
	content := "\ufeff# class list of 2026\r\n" +
		"name,uid,fullName,mail,passwordInitial,passwordManaged,passwordGeneration,shell,disabled\r\n" +
		"anna , 12001, \"Arnold, Anna\",anna@school.example,\"{ARGON2}a,b\",,2,/bin/zsh,TRUE\r\n" +
		"\r\n" +
		"bjørn,12002,,,,{CRYPT}x,,,\r\n"
	document := roster("class-5a.csv")
	places, faults := include(document, content)
	if faults != nil {
		t.Fatal(plantest.Lines(faults, nil))
	}
	want := map[string]any{"group": "pupils", "users": []any{
		map[string]any{"name": "anna", "uid": int64(12001), "fullName": "Arnold, Anna", "mail": "anna@school.example",
			"password": map[string]any{"initial": plan.NewSecret("{ARGON2}a,b")}, "passwordGeneration": int64(2), "shell": "/bin/zsh", "disabled": true},
		map[string]any{"name": "bjørn", "uid": int64(12002), "password": map[string]any{"managed": plan.NewSecret("{CRYPT}x")}},
	}}
	if !reflect.DeepEqual(document["spec"], want) {
		t.Errorf("have %v", plan.Reveal(document["spec"]))
	}
	if want := map[string]string{"spec.users[0]": "people/class-5a.csv:3", "spec.users[1]": "people/class-5a.csv:5"}; !reflect.DeepEqual(places, want) {
		t.Errorf("places %v", places)
	}
}

func TestIncludeSeparators(t *testing.T) {
	for _, content := range []string{"name;uid;fullName\nanna;12001;\n", "name\tuid\tfullName\nanna\t12001\t\n", "uid,name\n12001,anna"} {
		document := roster("class-5a.csv")
		_, faults := include(document, content)
		users := document["spec"].(map[string]any)["users"]
		if faults != nil || !reflect.DeepEqual(users, []any{map[string]any{"name": "anna", "uid": int64(12001)}}) {
			t.Errorf("%q: %v %v", content, users, faults)
		}
	}
}

func TestIncludeLeavesOthersAlone(t *testing.T) {
	for _, document := range []map[string]any{
		{"apiVersion": "v1", "kind": "Roster", "metadata": map[string]any{"name": "x"}, "spec": map[string]any{"csv": "a.csv"}},
		{"apiVersion": plan.APIVersion, "kind": "Roster", "metadata": map[string]any{"name": "x"}, "spec": map[string]any{"users": []any{}}},
		{"apiVersion": plan.APIVersion, "kind": "Roster", "metadata": map[string]any{"name": "x"}, "spec": map[string]any{"csv": int64(3)}},
		{"kind": "Roster"},
	} {
		before := fmt.Sprint(document)
		if places, faults := include(document, "x"); places != nil || faults != nil || fmt.Sprint(document) != before {
			t.Errorf("%s: %v %v", before, places, faults)
		}
	}
}

// TestIncludeEmpties: a header alone is an empty list, which is not an absent one.
func TestIncludeEmpties(t *testing.T) {
	document := roster("class-5a.csv")
	_, faults := include(document, "name,uid\n")
	if users, ok := document["spec"].(map[string]any)["users"].([]any); faults != nil || !ok || len(users) != 0 {
		t.Errorf("%v %v", document, faults)
	}
}

func TestIncludeFaults(t *testing.T) {
	both := roster("class-5a.csv")
	both["spec"].(map[string]any)["users"] = []any{}
	for _, c := range []struct {
		name     string
		document map[string]any
		content  string
		users    int // that are in the document afterwards; -1: none were put in
		want     string
	}{
		{"csv and users", both, "", 0, "Contradiction: Roster class-5a: spec.csv: csv and users exclude each other (put all users in one of them)"},
		{"another folder", roster("../secret.csv"), "", -1, `InvalidValue: Roster class-5a: spec.csv: "../secret.csv" is not the name of a CSV file beside the document (such as class-5a.csv)`},
		{"no CSV", roster("passwd"), "", -1, `InvalidValue: Roster class-5a: spec.csv: "passwd" is not the name of a CSV file beside the document (such as class-5a.csv)`},
		{"no file", roster("class-5b.csv"), "", -1, "UnknownReference: Roster class-5a: spec.csv: read people/class-5b.csv: no such file (the file lies in the folder of the Roster that names it)"},
		{"nothing", roster("class-5a.csv"), "", -1, "InvalidCSV: people/class-5a.csv:1: Roster class-5a: the file is empty (want a header line such as name,uid,fullName; a header alone means that the list has no users)"},
		{"Latin-1", roster("class-5a.csv"), "name,uid,fullName\nanna,12001,Anna\nbj,12002,Bj\xf8rn\n", -1, "InvalidCSV: people/class-5a.csv:3: Roster class-5a: the line holds a letter that is not UTF-8 (save the file as CSV UTF-8)"},
		{"UTF-16", roster("class-5a.csv"), "\xff\xfen\x00", -1, "InvalidCSV: people/class-5a.csv:1: Roster class-5a: the file is not text in UTF-8 (save it as CSV UTF-8)"},
		{"columns", roster("class-5a.csv"), "# x\nname,canary,name\nanna,1,2\n", -1,
			"UnknownColumn: people/class-5a.csv:2: Roster class-5a: there is no column \"canary\" (want some of name, uid, fullName, mail, passwordInitial, passwordManaged, passwordGeneration, shell, disabled)\n" +
				"Duplicate: people/class-5a.csv:2: Roster class-5a: column 3 is a second name\n" +
				"MissingField: people/class-5a.csv:2: Roster class-5a: there is no column uid (the first line names the columns: name and uid, and others as needed)"},
		{"lines", roster("class-5a.csv"), "name,uid,passwordInitial,disabled\nanna,12001,{ARGON2}m=1,t=canary,\nben,canary,x,\ncleo,12003,\"canary\"x\",\ndan,12004,,canary\neve,12005,,\nfay,12006,\"canary\n", 3,
			"InvalidCSV: people/class-5a.csv:2: Roster class-5a: the line has 5 fields, and the header has 4 (a field that holds the separator stands in double quotes, as every {ARGON2} hash must: \"...\")\n" +
				"InvalidValue: people/class-5a.csv:3: Roster class-5a: spec.users[0].uid: is not a whole number\n" +
				"InvalidCSV: people/class-5a.csv:4: Roster class-5a: a field that begins with a double quote does not end with one (a double quote inside a field is written twice, and the field stands in double quotes)\n" +
				"InvalidValue: people/class-5a.csv:5: Roster class-5a: spec.users[1].disabled: is neither true nor false\n" +
				"InvalidCSV: people/class-5a.csv:7: Roster class-5a: a field that begins with a double quote does not end with one (a double quote inside a field is written twice, and the field stands in double quotes)"},
		{"a quote in the middle", roster("class-5a.csv"), "name,uid\nan\"na,12001\n", 0,
			"InvalidCSV: people/class-5a.csv:2: Roster class-5a: there is a double quote in the middle of a field (a double quote inside a field is written twice, and the field stands in double quotes)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, faults := include(c.document, c.content)
			if have := strings.TrimSuffix(plantest.Lines(faults, nil), "\n"); have != c.want {
				t.Errorf("have:\n%s\nwant:\n%s", have, c.want)
			}
			users, ok := c.document["spec"].(map[string]any)["users"].([]any)
			if ok != (c.users >= 0) || ok && len(users) != c.users {
				t.Errorf("%d users, want %d", len(users), c.users)
			}
		})
	}
}

func FuzzCSV(f *testing.F) {
	f.Add("name,uid,passwordInitial\nanna,12001,\"{ARGON2}a,b\"\n")
	f.Add("\ufeffname;uid\r\n\"a\"\"b\";x\r\n#\n;\n")
	f.Add("name\tuid\tdisabled\na\t1\ttrue\n\n\"\n")
	f.Fuzz(func(t *testing.T, content string) {
		document := roster("class-5a.csv")
		places, faults := include(document, content)
		spec := document["spec"].(map[string]any)
		users, read := spec["users"].([]any)
		if _, kept := spec["csv"]; kept == read {
			t.Error("either the file is in, or its name is")
		}
		if !read && len(faults) == 0 {
			t.Error("nothing was read, and nothing said why")
		}
		if len(places) != len(users) {
			t.Errorf("%d users stand in %d places", len(users), len(places))
		}
		for _, fault := range faults {
			if !strings.HasPrefix(fault.Where, "people/class-5a.csv:") {
				t.Errorf("fault without a place: %v", fault)
			}
		}
		// Each user takes at least a line, and stands below the one before.
		if lines := strings.Count(content, "\n") + 1; len(users) > lines {
			t.Errorf("%d users in %d lines", len(users), lines)
		}
		if _, err := plan.Decode[ldap.Roster](plan.Object{Spec: document}); err != nil {
			t.Errorf("what was read does not decode: %v", err)
		}
	})
}
