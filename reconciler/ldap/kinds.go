package ldap

import "github.com/kingmaker-io/kingmaker/reconciler/plan"

// Group is the spec of kind Group: a POSIX group. Its metadata.name is the
// group's name.
type Group struct {
	// GID is the group's number, for ever: it is never changed and never used again. From 1000.
	GID int64 `json:"gid" jsonschema:"required,minimum=1000,maximum=2147483646"`
	// Description says who belongs to the group.
	Description string `json:"description,omitempty"`
	// Members are users beyond those whose Roster names the group. Absent leaves them alone, [] takes them all out.
	Members []string `json:"members,omitempty" jsonschema:"uniqueItems=true"`
}

// Roster is the spec of kind Roster: a list of users of one group, such as a
// class. The users stand in the document, or in a CSV file beside it.
type Roster struct {
	// Group is the primary group of all users of the list.
	Group string `json:"group" jsonschema:"required,minLength=1"`
	// Users of the list. Absent leaves them alone, [] takes them all out.
	Users []User `json:"users,omitempty"`
	// CSV is the name of a file beside this document that holds the users: a header line with the names of the fields, then one line a user.
	CSV string `json:"csv,omitempty" jsonschema:"pattern=^[^/]+\\.csv$"`
}

// User is one person, or one service that logs in.
type User struct {
	// Name is the login name: letters, digits, dots, dashes and underscores, at most 32 of them.
	Name string `json:"name" jsonschema:"required,maxLength=32,pattern=^[A-Za-z_][A-Za-z0-9_.-]*$"`
	// UID is the user's number, for ever: it is never changed and never used again. From 1000.
	UID int64 `json:"uid" jsonschema:"required,minimum=1000,maximum=2147483646"`
	// FullName as people write it. Default: the login name.
	FullName string `json:"fullName,omitempty"`
	// Mail address.
	Mail string `json:"mail,omitempty"`
	// Password as a hash. Absent: the user cannot log in until an administrator gives a password.
	Password *Password `json:"password,omitempty"`
	// PasswordGeneration writes password.initial once more whenever it is raised: that is how a forgotten password is reset. Default 0.
	PasswordGeneration int64 `json:"passwordGeneration,omitempty" jsonschema:"minimum=0,default=0"`
	// Shell is the path of the login shell. Default /bin/bash.
	Shell string `json:"shell,omitempty" jsonschema:"pattern=^/,default=/bin/bash"`
	// Disabled is true for a user who must not log in, and whose files are kept. Default false.
	Disabled bool `json:"disabled,omitempty"`
}

// Password is a hash that slapd accepts: {ARGON2}$argon2id$... or
// {CRYPT}$y$... (yescrypt). {CRYPT}$6$... and {SSHA}... are accepted with a
// warning. Exactly one of its fields is set.
type Password struct {
	// Initial is written when the user is created, or when passwordGeneration is raised; then it is the user's own affair.
	Initial plan.Secret `json:"initial,omitzero"`
	// Managed is enforced: whatever the user sets is put back. For services.
	Managed plan.Secret `json:"managed,omitzero"`
}
