package ldap

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of faults in a CSV file.
const (
	InvalidCSV    plan.Code = "InvalidCSV"    // a line or file that cannot be read as a table
	UnknownColumn plan.Code = "UnknownColumn" // a column that is no field of a user
)

// csvColumns are the columns that a class list may have: the fields of a user.
func csvColumns() []string {
	return []string{"name", "uid", "fullName", "mail", "passwordInitial", "passwordManaged", "passwordGeneration", "shell", "disabled"}
}

// Include reads the users of a Roster from the CSV file that spec.csv names and
// puts them in as spec.users, passwords as Secrets. Other documents, and Rosters
// without a CSV file, it leaves as they are. The document is changed in place.
//
// Origin is the place of the document (plan.Object.Origin): the file lies
// beside it. Read gets its path relative to the site's root.
//
// Places says where each user stands, for faults that are found later:
// "spec.users[3]" is "people/class-5a.csv:5". What can be read is taken even
// where there are faults, so that one bad line does not make faults of all that
// refer to the others.
func Include(document map[string]any, origin string, read func(file string) ([]byte, error)) (places map[string]string, faults []*plan.Fault) {
	id, err := plan.Identify(document)
	if err != nil || id.System != plan.Directory || id.Kind != "Roster" {
		return nil, nil
	}
	spec, _ := document["spec"].(map[string]any)
	name, ok := spec["csv"].(string)
	if !ok {
		return nil, nil // absent, or no text: then the schema says so
	}
	refuse := func(code plan.Code, cause, hint string) (map[string]string, []*plan.Fault) {
		return nil, []*plan.Fault{{Code: code, ID: id, Field: "spec.csv", Cause: cause, Hint: hint}}
	}
	if _, both := spec["users"]; both {
		return refuse(plan.Contradiction, "csv and users exclude each other", "put all users in one of them")
	}
	if name == "" || strings.ContainsAny(name, `/\`) || path.Ext(name) != ".csv" {
		return refuse(plan.InvalidValue, fmt.Sprintf("%q is not the name of a CSV file beside the document", name), "such as class-5a.csv")
	}
	beside, _, _ := strings.Cut(origin, ":")
	file := path.Join(path.Dir(beside), name)
	data, err := read(file)
	if err != nil {
		return refuse(plan.UnknownReference, fmt.Sprintf("read %s: %v", file, err), "the file lies in the folder of the Roster that names it")
	}
	t := &table{id: id, file: file, places: map[string]string{}, users: []any{}}
	if !t.read(data) {
		return nil, t.faults
	}
	delete(spec, "csv")
	spec["users"] = t.users
	return t.places, t.faults
}

// table is one CSV file while it is read.
type table struct {
	id     plan.ID
	file   string
	users  []any
	places map[string]string
	faults []*plan.Fault
}

// fault adds one at a line. Causes never quote a cell: it may hold a password.
func (t *table) fault(line int, code plan.Code, cause, hint string) {
	t.faults = append(t.faults, &plan.Fault{Code: code, ID: t.id, Where: fmt.Sprintf("%s:%d", t.file, line), Cause: cause, Hint: hint})
}

// cell adds a fault of one field of the user that is being read.
func (t *table) cell(line int, column, cause string) {
	t.fault(line, plan.InvalidValue, cause, "")
	t.faults[len(t.faults)-1].Field = plan.Field("spec", "users", len(t.users), column)
}

// read is false where no users could be made out.
func (t *table) read(data []byte) bool {
	data, ok := t.decode(data)
	if !ok {
		return false
	}
	r := csv.NewReader(bytes.NewReader(data))
	r.Comma, r.Comment, r.FieldsPerRecord = separator(data), '#', -1
	r.TrimLeadingSpace = r.Comma != '\t' // else it would trim empty fields away
	header, err := r.Read()
	if err != nil {
		if err == io.EOF {
			t.fault(1, InvalidCSV, "the file is empty", "want a header line such as name,uid,fullName; a header alone means that the list has no users")
		} else {
			t.syntax(err)
		}
		return false
	}
	line, _ := r.FieldPos(0)
	columns, ok := t.header(line, header)
	if !ok {
		return false
	}
	for {
		row, err := r.Read()
		if err == io.EOF {
			return true
		}
		if err != nil {
			t.syntax(err)
			continue // at the next line
		}
		line, _ := r.FieldPos(0)
		if len(row) != len(columns) {
			t.fault(line, InvalidCSV, fmt.Sprintf("the line has %d fields, and the header has %d", len(row), len(columns)),
				`a field that holds the separator stands in double quotes, as every {ARGON2} hash must: "..."`)
			continue
		}
		t.places[plan.Field("spec", "users", len(t.users))] = fmt.Sprintf("%s:%d", t.file, line)
		t.users = append(t.users, t.user(line, columns, row))
	}
}

// decode refuses what is not UTF-8, and takes the mark off that Excel begins
// UTF-8 with.
func (t *table) decode(data []byte) ([]byte, bool) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if bytes.IndexByte(data, 0) >= 0 || bytes.HasPrefix(data, []byte{0xff, 0xfe}) || bytes.HasPrefix(data, []byte{0xfe, 0xff}) {
		t.fault(1, InvalidCSV, "the file is not text in UTF-8", "save it as CSV UTF-8")
		return nil, false
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			t.fault(1+bytes.Count(data[:i], []byte("\n")), InvalidCSV, "the line holds a letter that is not UTF-8", "save the file as CSV UTF-8")
			return nil, false
		}
		i += size
	}
	return data, true
}

// separator is a comma, or what spreadsheets write instead where the comma is
// the decimal sign. No name of a column holds any of them, so the first one in
// the header is it.
func separator(data []byte) rune {
	for line := range bytes.Lines(data) {
		if bytes.HasPrefix(line, []byte("#")) || len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		if i := bytes.IndexAny(line, ",;\t"); i >= 0 {
			return rune(line[i])
		}
		break
	}
	return ','
}

// header checks the names of the columns; ok is false where the lines below
// would make no sense.
func (t *table) header(line int, header []string) (columns []string, ok bool) {
	ok = true
	for i, column := range header {
		column = strings.TrimSpace(column)
		switch {
		case !slices.Contains(csvColumns(), column):
			t.fault(line, UnknownColumn, fmt.Sprintf("there is no column %q", column), "want some of "+strings.Join(csvColumns(), ", "))
			ok = false
		case slices.Contains(columns, column):
			t.fault(line, plan.Duplicate, fmt.Sprintf("column %d is a second %s", i+1, column), "")
			ok = false
		}
		columns = append(columns, column)
	}
	for _, needed := range []string{"name", "uid"} {
		if !slices.Contains(columns, needed) {
			t.fault(line, plan.MissingField, "there is no column "+needed, "the first line names the columns: name and uid, and others as needed")
			ok = false
		}
	}
	return columns, ok
}

// syntax reports what encoding/csv stumbled over. Its errors hold no content.
func (t *table) syntax(err error) {
	line, cause := 1, err.Error()
	var p *csv.ParseError
	if errors.As(err, &p) {
		line, cause = p.StartLine, p.Err.Error()
	}
	switch {
	case errors.Is(err, csv.ErrBareQuote):
		cause = "there is a double quote in the middle of a field"
	case errors.Is(err, csv.ErrQuote):
		cause = "a field that begins with a double quote does not end with one"
	}
	t.fault(line, InvalidCSV, cause, `a double quote inside a field is written twice, and the field stands in double quotes`)
}

// user is the content of one line. An empty field is absent.
func (t *table) user(line int, columns, row []string) map[string]any {
	user, password := map[string]any{}, map[string]any{}
	for i, column := range columns {
		cell := strings.TrimSpace(row[i])
		if cell == "" {
			continue
		}
		switch column {
		case "uid", "passwordGeneration":
			n, err := strconv.ParseInt(cell, 10, 64)
			if err != nil {
				t.cell(line, column, "is not a whole number")
				continue
			}
			user[column] = n
		case "disabled":
			disabled, err := strconv.ParseBool(strings.ToLower(cell)) // spreadsheets write TRUE
			if err != nil {
				t.cell(line, column, "is neither true nor false")
				continue
			}
			user[column] = disabled
		case "passwordInitial":
			password["initial"] = plan.NewSecret(cell)
		case "passwordManaged":
			password["managed"] = plan.NewSecret(cell)
		default:
			user[column] = cell
		}
	}
	if len(password) > 0 {
		user["password"] = password
	}
	return user
}
