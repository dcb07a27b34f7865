// Package schema holds the JSON Schemas of the kinds of a site repo, for editors
// and for the reconciler's own check, and that of a plan's JSON.
//
// They are generated from the Go types and their comments, so that there is one
// place to say what a field is. After a change of a type:
//
//	go test ./schema -update
//
// The test without -update fails where a file here, or a CRD of the built-in
// manifests, is not what the types give.
package schema

import (
	"embed"
	"slices"
	"strings"
)

//go:embed *.json
var files embed.FS

// Kinds are the kinds of a site repo.
func Kinds() []string {
	return []string{"Site", "Machine", "Volume", "Group", "Roster", "Desktop"}
}

// For is the schema of the documents of a kind.
func For(kind string) ([]byte, bool) {
	if !slices.Contains(Kinds(), kind) {
		return nil, false
	}
	return read(kind), true
}

// Plan is the schema of what `reconcile --dry-run --output json` prints.
func Plan() []byte { return read("plan") }

func read(name string) []byte {
	data, err := files.ReadFile(strings.ToLower(name) + ".json")
	if err != nil {
		panic(err) // a file that was embedded is there
	}
	return data
}
