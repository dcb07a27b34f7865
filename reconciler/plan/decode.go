package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Decode reads the spec of a site document into a T and refuses fields that T
// does not have; what could be read comes beside the error. Secrets of the document stay Secrets where T says so.
//
// Nil and empty stay apart: a list that the document leaves out is nil, and one
// that it empties is not.
func Decode[T any](o Object) (T, error) {
	var into T
	spec, ok := o.Spec["spec"].(map[string]any)
	if !ok {
		return into, errors.New("there is no spec")
	}
	// A Secret shows nothing of itself when it is encoded, so the values go
	// through JSON in the open, and Secret.UnmarshalJSON wraps them again. They
	// touch no error: encoding/json names types and fields, never texts.
	data, err := json.Marshal(Reveal(spec))
	if err != nil {
		return into, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&into); err != nil {
		return into, errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := dec.Token(); err != io.EOF {
		return into, errors.New("more than one document")
	}
	return into, nil
}

// UnmarshalJSON wraps a text. It is the way of a Secret into a decoded spec.
func (s *Secret) UnmarshalJSON(data []byte) error {
	var value string
	if err := json.Unmarshal(data, &value); err != nil {
		return errors.New("a secret is text") // err could quote it
	}
	*s = NewSecret(value)
	return nil
}

// Quantity is an amount as Kubernetes writes it: 500m, 2Gi, "0.5", or a whole
// number. It is kept as it was written. Empty is absent.
type Quantity string

// UnmarshalJSON reads text and whole numbers.
func (q *Quantity) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil {
		*q = Quantity(text)
		return nil
	}
	var number int64
	if err := json.Unmarshal(data, &number); err != nil {
		return fmt.Errorf("an amount is text such as \"500m\" or a whole number, not %s", data)
	}
	*q = Quantity(data)
	return nil
}

// Document is one decoded document of a site.
type Document[T any] struct {
	ID   ID
	Spec T
}

// Documents decodes all documents of one kind, in the order of their names. One
// that does not decode is reported as Unreadable and left out.
func Documents[T any](site *Site, system, kind string, r *Report) []Document[T] {
	var documents []Document[T]
	for _, id := range site.Objects.IDs() {
		if id.System != system || id.Kind != kind {
			continue
		}
		spec, err := Decode[T](site.Objects[id])
		if err != nil {
			r.Fault(Fault{Code: Unreadable, ID: id, Field: "spec", Cause: err.Error()})
			continue
		}
		documents = append(documents, Document[T]{id, spec})
	}
	return documents
}
