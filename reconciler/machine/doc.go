// Package machine is the room of the PCs: which of them are masters, how one
// is crowned and retired, and what one machine does to itself.
//
// It owns the kind Machine of the site repo. For now it parses and validates
// it; the planner of roles and the System come with their own issues.
package machine
