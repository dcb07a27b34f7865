// Package ldap is the room of people and groups: what the directory holds.
//
// It owns the kinds Group and Roster of the site repo. For now it parses and
// validates them, and reads class lists from CSV files; the System comes with
// its own issue.
//
// Passwords are hashes that slapd checks. No value of one ever stands in a
// fault, a good one no more than a bad one: a clear-text password that was put
// where a hash belongs is exactly what must not reach a log.
package ldap
