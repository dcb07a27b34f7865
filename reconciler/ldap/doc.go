// Package ldap is the room of people and groups: what the directory holds.
//
// It owns the kinds Group and Roster of the site repo: it parses and validates
// them, reads class lists from CSV files, and its System keeps an LDAP directory
// equal to them. Seen from the root of the package:
//
//	look.go    what there is: one paged search, and never the hash of a person
//	decide.go  what is wanted, as a pure function of site and view
//	entry.go   objects of plans as entries of LDAP, and back
//	system.go  the contract: observe, desire, apply
//	server.go  the way to the server
//
// # Layout
//
//	ou=people,BASE     uid=NAME   inetOrgPerson + posixAccount
//	ou=groups,BASE     cn=NAME    groupOfNames + posixGroup, as in RFC 2307bis
//	cn=kingmaker,BASE             what the directory must not forget
//
// An entry is ours where its labeledURI begins with "kingmaker:" and then names
// the document that declares it: "kingmaker:Roster/class-5a?passwordGeneration=2".
// That attribute needs no schema of our own (RFC 2079; inetOrgPerson has it, and
// labeledURIObject brings it to all others), says what it is for to whoever reads
// the entry, and is free: description and employeeType are fields in which people
// write. All other entries are left alone and reported.
//
// groupOfNames wants a member. A group of nobody has cn=kingmaker,BASE, which
// cannot log in.
//
// # What is never lost
//
// A person who vanishes from git is locked. The entry goes only by consent, and
// its number then stays in cn=kingmaker, so that nobody else ever gets it; homes
// are not touched. The same entry counts people and groups: where many are missing,
// or where it is gone itself, the directory has lost its content and is not to be
// filled anew in silence.
//
// Passwords are hashes that slapd checks. No value of one ever stands in a
// fault, a good one no more than a bad one: a clear-text password that was put
// where a hash belongs is exactly what must not reach a log.
package ldap
