package plan

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/go-multierror"
)

// Code is the stable name of a reason: the same thing that goes wrong has the
// same code in a plan, a condition, an event and a log line. CamelCase, as the
// reasons of Kubernetes conditions.
type Code string

// Stale is the code with which a system refuses a change, because the live
// object is no longer what the change was planned for. Planning again helps.
const Stale Code = "Stale"

// StaleChange is that refusal. The cause says what the live object is instead.
func StaleChange(id ID, cause string) *Fault {
	return &Fault{Code: Stale, ID: id, Cause: cause, Hint: "the next round plans again"}
}

// Fault is one thing that is wrong, or that holds something back, said so that
// a person can act on it. It is an error; several are joined by go-multierror.
type Fault struct {
	Code  Code   `json:"code"`
	ID    ID     `json:"id,omitzero"`     // the object it is about; zero where it is about none or, with only System set, about a whole system
	Where string `json:"where,omitempty"` // "file:line" in the site repo, where it is known
	Field string `json:"field,omitempty"` // path of the field in the object: "spec.users[3].uid"
	Cause string `json:"cause"`           // what is wrong
	Hint  string `json:"hint,omitempty"`  // what to do next
}

// Error is one line: where, what, the cause, what to do next.
func (f *Fault) Error() string {
	var b strings.Builder
	if f.Where != "" {
		b.WriteString(f.Where + ": ")
	}
	switch {
	case f.ID.Kind != "":
		fmt.Fprintf(&b, "%s %s: ", f.ID.Kind, f.ID.Name)
	case f.ID.System != "":
		b.WriteString(f.ID.System + ": ")
	}
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(f.Cause)
	if f.Hint != "" {
		b.WriteString(" (" + f.Hint + ")")
	}
	return b.String()
}

// Join is an error of all the faults, nil where there are none.
func Join(faults []*Fault) error {
	if len(faults) == 0 {
		return nil
	}
	all := &multierror.Error{ErrorFormat: list}
	for _, f := range faults {
		all.Errors = append(all.Errors, f)
	}
	return all
}

// list writes one fault a line, so that a terminal and an editor can follow each.
func list(errs []error) string {
	lines := make([]string, len(errs))
	for i, err := range errs {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Split takes an error apart: the faults in it, and what is left, which is nil
// where the error was made of faults only.
func Split(err error) (faults []*Fault, rest error) {
	switch e := err.(type) {
	case nil:
		return nil, nil
	case *Fault:
		return []*Fault{e}, nil
	case interface{ WrappedErrors() []error }: // *multierror.Error
		return splitAll(e.WrappedErrors())
	case interface{ Unwrap() []error }: // errors.Join
		return splitAll(e.Unwrap())
	}
	var f *Fault
	if errors.As(err, &f) {
		return []*Fault{f}, nil
	}
	return nil, err
}

func splitAll(errs []error) (faults []*Fault, rest error) {
	for _, err := range errs {
		f, r := Split(err)
		faults = append(faults, f...)
		rest = errors.Join(rest, r)
	}
	return faults, rest
}

// SortFaults orders faults by place, object and field, so that a list of them
// reads from the top of each file to its end.
func SortFaults(faults []*Fault) {
	slices.SortStableFunc(faults, func(a, b *Fault) int {
		if c := comparePlaces(a.Where, b.Where); c != 0 {
			return c
		}
		if c := a.ID.Compare(b.ID); c != 0 {
			return c
		}
		return strings.Compare(a.Field+a.Cause, b.Field+b.Cause)
	})
}

// comparePlaces compares "file:line" by file, then by line as a number.
func comparePlaces(a, b string) int {
	fileA, lineA, _ := strings.Cut(a, ":")
	fileB, lineB, _ := strings.Cut(b, ":")
	if c := strings.Compare(fileA, fileB); c != 0 {
		return c
	}
	if c := len(lineA) - len(lineB); c != 0 {
		return c
	}
	return strings.Compare(lineA, lineB)
}
