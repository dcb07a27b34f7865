// Package plan holds the nouns that every other room speaks in: what a site
// wants, what there is, and the ordered list of changes from one to the other.
//
// The whole of Kingmaker is one path:
//
//	git commit -> Site -> per system: Have and Want (State) -> Plan -> print, or apply
//
// A Plan is a value. The plan that is printed is the value that is applied, so
// what a person reviewed is what runs.
//
// The package is pure: it opens no file, dials nothing, reads no clock and logs
// nothing. The same input gives the same bytes.
package plan
