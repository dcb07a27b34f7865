package render

import (
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/sops"
)

// close takes an encrypted file apart and gives what kustomize reads in its
// place. A file that only looks so is given back.
func (s *scan) close(at string, as role, content []byte) []byte {
	if len(examine(content)) > 0 {
		return content // the child finds the same, and says so
	}
	f, fault := sops.Read(at, content)
	if fault != nil {
		s.fault(*fault)
	}
	if f == nil {
		return content
	}
	if as == opaque {
		s.fault(plan.Fault{Code: EncryptedField, Where: at, Cause: "the file is encrypted, and a generator would take it as it stands",
			Hint: "encrypt a document of kind Secret in place of the file that it is made of"})
		return content
	}
	s.encrypted = append(s.encrypted, f)
	for _, p := range f.Values() {
		switch p.Path[0] {
		case "apiVersion", "kind", "metadata":
			field := make([]any, len(p.Path))
			for i, key := range p.Path {
				field[i] = key
			}
			s.fault(plan.Fault{Code: EncryptedField, Where: place(at, p.Line), Field: plan.Field(field...),
				Cause: "is encrypted, and nobody could tell what the document is", Hint: "encrypt values only: " + onlyValues})
		}
	}
	return f.Clear
}

const onlyValues = "sops encrypt --encrypted-regex '^(data|stringData|initial|managed)$' FILE"

// sealedFaults finds encrypted values in a document where none may be, and those
// that no file can open.
func sealedFaults(content map[string]any, encrypted []*sops.File) (faults []*plan.Fault) {
	eachText(content, nil, func(text string, path []any) {
		if !plan.NewSecret(text).Sealed() {
			return
		}
		if !plan.MayHide(content, path) {
			faults = append(faults, &plan.Fault{Code: EncryptedField, Field: plan.Field(path...),
				Cause: "is encrypted, and it stands in every plan, so that it is no secret", Hint: "encrypt passwords only: " + onlyValues})
			return
		}
		for _, at := range sops.Find(text) {
			if !belongs(text[at[0]:at[1]], encrypted) {
				faults = append(faults, &plan.Fault{Code: NotDecrypted, Field: plan.Field(path...),
					Cause: "is encrypted with SOPS, and the document has no section sops that could open it", Hint: "copy encrypted files whole"})
				return
			}
		}
		if len(sops.Find(text)) == 0 {
			faults = append(faults, &plan.Fault{Code: NotDecrypted, Field: plan.Field(path...), Cause: "is a part of a value that is encrypted with SOPS",
				Hint: "does a replacement cut it up?"})
		}
	})
	return faults
}

func belongs(value string, encrypted []*sops.File) bool {
	for _, f := range encrypted {
		if _, ok := f.Values()[value]; ok {
			return true
		}
	}
	return false
}

func eachText(tree any, path []any, visit func(text string, path []any)) {
	switch t := tree.(type) {
	case map[string]any:
		for key, value := range t {
			eachText(value, append(path[:len(path):len(path)], key), visit)
		}
	case []any:
		for i, value := range t {
			eachText(value, append(path[:len(path):len(path)], i), visit)
		}
	case string:
		visit(t, path)
	case plan.Secret:
		visit(t.Value(), path)
	}
}

// open puts the values of encrypted files into the documents that were made of
// them, each as a plan.Secret. The documents that it is given stay as they are:
// they are remembered.
func (r *Renderer) open(u Unit, documents []Document, encrypted []*sops.File, keys sops.Keys) (opened []Document, faults []*plan.Fault) {
	o := opener{sealed: keys.Empty() && r.options.Sealed, values: map[string]plan.Secret{}}
	for _, f := range encrypted {
		if o.sealed {
			break
		}
		values, fault := f.Decrypt(keys)
		if fault != nil {
			faults = append(faults, fault)
		}
		for text, value := range values {
			o.values[text] = value
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	places := NewLocator(u.Root)
	for _, d := range documents {
		o.changed = false
		content := o.copy(d.Content).(map[string]any)
		if !o.changed {
			opened = append(opened, d)
			continue
		}
		d.Content, d.Sealed = content, o.sealed
		id, _ := plan.Identify(content)
		if id.System == plan.Objects {
			plan.MarkSecrets(content)
		}
		for _, f := range secretFaults(content) {
			f.ID, f.Where = id, places.Locate(d.Origin, id.Kind, id.Name, f.Field)
			faults = append(faults, f)
		}
		opened = append(opened, d)
	}
	return opened, faults
}

// opener copies trees and puts in what is encrypted.
type opener struct {
	sealed  bool
	values  map[string]plan.Secret
	changed bool // the last tree held something
}

func (o *opener) copy(tree any) any {
	switch t := tree.(type) {
	case map[string]any:
		m := make(map[string]any, len(t))
		for key, value := range t {
			m[key] = o.copy(value)
		}
		return m
	case []any:
		l := make([]any, len(t))
		for i, value := range t {
			l[i] = o.copy(value)
		}
		return l
	case plan.Secret:
		return o.value(t.Value(), t)
	case string:
		return o.value(t, t)
	}
	return tree
}

// value is what a text stands for; where nothing of it is encrypted, that is
// what it was.
func (o *opener) value(text string, was any) any {
	found := sops.Find(text)
	if len(found) == 0 {
		return was
	}
	o.changed = true
	if o.sealed {
		return plan.NewSecret(text)
	}
	if whole, ok := o.values[text]; ok {
		return whole
	}
	var b strings.Builder
	end := 0
	for _, at := range found {
		b.WriteString(text[end:at[0]] + o.values[text[at[0]:at[1]]].Value())
		end = at[1]
	}
	return plan.NewSecret(b.String() + text[end:])
}
