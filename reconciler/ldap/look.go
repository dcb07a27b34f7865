package ldap

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// view is all that there is of people and groups at one moment.
type view struct {
	tree   tree
	users  map[string]held // ours, by login name
	groups map[string]held
	others []string          // DNs right below ou=people and ou=groups that are not ours
	uids   map[int64]string  // numbers of accounts that are not ours, anywhere below the base -> DN
	gids   map[int64]string  // the same of groups
	folded map[string]string // DN, folded, of users and groups of anybody -> as it is

	spec   map[string]any // of the tree, nil where there is nothing of it
	record record
	known  string // what the site remembers the record by, "" for nothing
}

// held is one entry of ours.
type held struct {
	number int64 // uidNumber or gidNumber
	spec   map[string]any
}

// record is the entry that the directory itself remembers by.
type record struct {
	id            string // entryUUID, "" where there is no such entry
	csn           string
	users, groups int              // that were there once
	uids, gids    map[int64]string // that were given and are not in use any more -> to whom
	lines         []string         // all of it as it stands there
}

// look reads the directory. Hashes it asks only of the managed accounts that it is
// given: those of people are nobody's business, and whether there is one at all is
// asked by a filter.
func (s *System) look(conn *goldap.Conn, managed []string) (*view, error) {
	v := &view{tree: s.tree, users: map[string]held{}, groups: map[string]held{}, folded: map[string]string{},
		uids: map[int64]string{}, gids: map[int64]string{}}
	if err := v.readTree(conn); err != nil {
		return nil, err
	}
	if v.spec == nil {
		return v, nil
	}
	attributes := append(userAttributes(), "description", "member")
	r := goldap.NewSearchRequest(string(s.tree), goldap.ScopeWholeSubtree, goldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", attributes, nil)
	if err := search(conn, r, v.add); err != nil {
		return nil, fmt.Errorf("read all below %s: %w", s.tree, err)
	}
	if err := v.readPasswords(conn, managed); err != nil {
		return nil, fmt.Errorf("look who has a password: %w", err)
	}
	return v, nil
}

// add takes in one entry.
func (v *view) add(e *goldap.Entry) {
	user, group := nameIn(e.DN, "uid", v.tree.people()), nameIn(e.DN, "cn", v.tree.groups())
	marks := valuesOf(e, "labeledURI")
	switch {
	case user != "" && markIn(marks, userMarks) != "":
		spec := readUser(e)
		spec["password"] = passwordSet // until it is known that there is none
		number, _ := spec["uidNumber"].(int64)
		v.users[strings.Clone(user)] = held{number, spec}
	case group != "" && markIn(marks, groupMarks) != "":
		spec := v.tree.readGroup(e)
		number, _ := spec["gidNumber"].(int64)
		v.groups[strings.Clone(group)] = held{number, spec}
	default:
		if number, ok := numberOf(e, "uidNumber"); ok {
			v.uids[number] = e.DN
		} else if number, ok := numberOf(e, "gidNumber"); ok {
			v.gids[number] = e.DN
		}
		if !v.tree.below(e.DN) {
			return
		}
		v.others = append(v.others, e.DN)
	}
	v.folded[strings.ToLower(e.DN)] = e.DN
}

// below reports whether an entry lies where people and groups do.
func (t tree) below(dn string) bool {
	_, people := cutSuffixFold(dn, ","+t.people())
	_, groups := cutSuffixFold(dn, ","+t.groups())
	return people || groups
}

func valuesOf(e *goldap.Entry, attribute string) []string {
	for _, a := range e.Attributes {
		if a.Name == attribute {
			return a.Values
		}
	}
	return nil
}

func numberOf(e *goldap.Entry, attribute string) (n int64, ok bool) {
	values := valuesOf(e, attribute)
	if len(values) == 0 {
		return 0, false
	}
	n, err := strconv.ParseInt(values[0], 10, 64)
	return n, err == nil
}

// readTree reads what people and groups hang on. A directory that has nothing of
// it, not even the base, is an empty one.
func (v *view) readTree(conn *goldap.Conn) error {
	spec := map[string]any{}
	for field, dn := range map[string]string{"people": v.tree.people(), "groups": v.tree.groups(), "record": v.tree.record()} {
		e, err := readEntry(conn, dn, "entryUUID", "entryCSN", "description")
		if err != nil {
			return fmt.Errorf("read %s: %w", dn, err)
		}
		if e == nil {
			continue
		}
		spec[field] = dn
		if field == "record" {
			v.record = readRecord(e)
			spec["counted"] = counted(v.record.users, v.record.groups)
		}
	}
	if len(spec) > 0 {
		v.spec = spec
	}
	return nil
}

func counted(users, groups int) map[string]any {
	return map[string]any{"users": int64(users), "groups": int64(groups)}
}

// readEntry is one entry, nil where there is none.
func readEntry(conn *goldap.Conn, dn string, attributes ...string) (*goldap.Entry, error) {
	r := goldap.NewSearchRequest(dn, goldap.ScopeBaseObject, goldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", attributes, nil)
	result, err := conn.Search(r)
	if goldap.IsErrorWithCode(err, goldap.LDAPResultNoSuchObject) {
		return nil, nil
	}
	if err != nil || len(result.Entries) == 0 {
		return nil, err
	}
	return result.Entries[0], nil
}

// The lines of a record: "users 300", "groups 12", "uid 12001 was anna".
func readRecord(e *goldap.Entry) record {
	r := record{id: first(valuesOf(e, "entryUUID")), csn: first(valuesOf(e, "entryCSN")), lines: valuesOf(e, "description"),
		uids: map[int64]string{}, gids: map[int64]string{}}
	for _, line := range r.lines {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		n, err := strconv.ParseInt(words[1], 10, 64)
		switch {
		case err != nil:
		case words[0] == "users":
			r.users = int(n)
		case words[0] == "groups":
			r.groups = int(n)
		case words[0] == "uid" && len(words) == 4:
			r.uids[n] = words[3]
		case words[0] == "gid" && len(words) == 4:
			r.gids[n] = words[3]
		}
	}
	return r
}

func countLine(kind string, n int) string { return fmt.Sprintf("%s %d", kind, n) }

func retiredLine(kind string, number int64, name string) string {
	return fmt.Sprintf("%s %d was %s", kind, number, name)
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// readPasswords finds out who has none, and reads those of the managed accounts.
func (v *view) readPasswords(conn *goldap.Conn, managed []string) error {
	people := func(filter string, attribute string) *goldap.SearchRequest {
		return goldap.NewSearchRequest(v.tree.people(), goldap.ScopeSingleLevel, goldap.NeverDerefAliases, 0, 0, false, filter, []string{attribute}, nil)
	}
	err := search(conn, people("(!(userPassword=*))", "1.1"), func(e *goldap.Entry) {
		if u, ok := v.users[nameIn(e.DN, "uid", v.tree.people())]; ok {
			delete(u.spec, "password")
		}
	})
	if goldap.IsErrorWithCode(err, goldap.LDAPResultNoSuchObject) {
		return nil // there is no ou=people
	}
	for names := range slices.Chunk(managed, 100) {
		if err != nil {
			return err
		}
		var filter strings.Builder
		for _, name := range names {
			filter.WriteString("(uid=" + goldap.EscapeFilter(name) + ")")
		}
		err = search(conn, people("(|"+filter.String()+")", "userPassword"), func(e *goldap.Entry) {
			u, ok := v.users[nameIn(e.DN, "uid", v.tree.people())]
			if values := valuesOf(e, "userPassword"); ok && len(values) == 1 {
				u.spec["password"] = plan.NewSecret(values[0])
			}
		})
	}
	return err
}

// requirements is a fault where the server lacks what we cannot do without.
func requirements(conn *goldap.Conn) error {
	e, err := readEntry(conn, "", "supportedControl")
	if err != nil {
		return fmt.Errorf("ask what the server can do: %w", err)
	}
	if e == nil {
		return fmt.Errorf("ask what the server can do: it does not say")
	}
	can := valuesOf(e, "supportedControl")
	for _, need := range []struct{ control, lack, hint string }{
		{goldap.ControlTypePaging, "gives no results by pages", ""},
		{controlAssertion, "cannot change an entry only if it is unchanged (RFC 4528)", ""},
		{goldap.ControlTypeBeheraPasswordPolicy, "has no password policy: who is disabled could still log in",
			"load the overlay ppolicy, with a default policy that has pwdLockout: TRUE"},
	} {
		if !slices.Contains(can, need.control) {
			return &plan.Fault{Code: Unfit, ID: plan.ID{System: plan.Directory}, Cause: "the server " + need.lack, Hint: need.hint}
		}
	}
	return nil
}

// emptied is why a directory is not to be worked on: it had more in it. An empty
// directory and one of which nobody knows that it was ever filled look alike, so
// its record is remembered outside of it, too.
func (v *view) emptied(site *plan.Site) *plan.Fault {
	hint := "restore the backup, or see that the right server answers; if it is meant to begin anew, confirm " + TreeID().String() + " in spec.confirm of the Site"
	f := &plan.Fault{Code: Emptied, ID: plan.ID{System: plan.Directory}, Hint: hint}
	lost := func(had, has int) bool { return had-has > site.Spec.Deletes.Limit(had) }
	switch {
	case slices.Contains(site.Spec.Confirm, TreeID().String()):
		return nil
	case v.known != "" && v.record.id == "":
		f.Cause = fmt.Sprintf("the directory has lost its content: %s is gone", v.tree.record())
	case v.known != "" && v.record.id != v.known:
		f.Cause = fmt.Sprintf("it is another directory than it was: %s is not the one of entryUUID %s", v.tree.record(), v.known)
	case lost(v.record.users, len(v.users)), v.record.users > 0 && len(v.users) == 0:
		f.Cause = fmt.Sprintf("the directory has lost people: it had %d, and has %d", v.record.users, len(v.users))
	case lost(v.record.groups, len(v.groups)):
		f.Cause = fmt.Sprintf("the directory has lost groups: it had %d, and has %d", v.record.groups, len(v.groups))
	default:
		return nil
	}
	return f
}

// observe reads everything under the link.
func (s *System) observe(ctx context.Context, managed []string) (v *view, err error) {
	err = s.link.do(ctx, func(conn *goldap.Conn) error {
		if err := requirements(conn); err != nil {
			return err
		}
		v, err = s.look(conn, managed)
		return err
	})
	return v, err
}
