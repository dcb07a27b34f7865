package ldap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of what the server can answer to a change.
const (
	Forbidden   plan.Code = "Forbidden"   // our account lacks a right
	Unavailable plan.Code = "Unavailable" // the server did not answer
	Invalid     plan.Code = "Invalid"     // the server refuses the content
	Refused     plan.Code = "Refused"     // the server does not want to
)

// Options of a System. Dial and Base are required.
type Options struct {
	// Dial connects and logs in: Server.Dial, for one.
	Dial func(ctx context.Context) (*goldap.Conn, error)

	// Base is the DN under which ou=people and ou=groups lie, such as
	// dc=school,dc=internal.
	Base string

	// Timeout of one request. Default 10s.
	Timeout time.Duration

	// Recall and Remember keep, outside of the directory, the name of the one that
	// the site filled: "" is none. Without them a directory that lost everything
	// looks like one that is new, and is filled anew. A site that has no people
	// and recalls no directory does not ask for one.
	Recall   func(ctx context.Context) (id string, err error)
	Remember func(ctx context.Context, id string) error
}

// System is the system of people and groups. Make one with New.
//
// An object of its plans is an entry, in words of LDAP where LDAP has any:
//
//	directory/User/anna: {cn: Anna Arnold, uidNumber: 12001, roster: class-5a, password: set, ...}
//	directory/Group/pupils: {gidNumber: 10001, members: [anna, ben]}
//	directory/Tree/kingmaker: what they hang on
type System struct {
	Options
	tree tree
	link link
	seen *view // by the last Observe; nil where it gave an error
}

// New makes a System, without asking the server anything yet.
func New(o Options) (*System, error) {
	base, err := goldap.ParseDN(o.Base)
	if err != nil || len(base.RDNs) == 0 {
		return nil, fmt.Errorf("%q is not the base of a directory (want a DN such as dc=school,dc=internal)", o.Base)
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	return &System{Options: o, tree: tree(base.String()), link: link{dial: o.Dial, timeout: o.Timeout}}, nil
}

// Close ends the connection. The next use of the System makes a new one.
func (s *System) Close() { s.link.close() }

// Name is plan.Directory.
func (s *System) Name() string { return plan.Directory }

// Observe is all that is ours. A directory that had more in it is an error.
func (s *System) Observe(ctx context.Context, site *plan.Site) (plan.State, error) {
	s.seen = nil
	known, err := s.recall(ctx)
	if err != nil {
		return nil, err
	}
	if s.Recall != nil && known == "" && len(site.Objects.Of(plan.Directory)) == 0 {
		s.seen = &view{tree: s.tree}
		return plan.State{}, nil
	}
	v, err := s.observe(ctx, managed(site))
	if err != nil {
		return nil, err
	}
	v.know(s.Recall != nil, known)
	if f := v.emptied(site); f != nil {
		return nil, f
	}
	s.seen = v
	return observed(v), nil
}

// recall is what the site remembers the directory by.
func (s *System) recall(ctx context.Context) (id string, err error) {
	if s.Recall == nil {
		return "", nil
	}
	if id, err = s.Recall(ctx); err != nil {
		return "", fmt.Errorf("recall which directory is the site's: %w", err)
	}
	return id, nil
}

// know adds to a view what the site remembers.
func (v *view) know(remembers bool, known string) {
	if v.known = known; remembers && v.spec != nil {
		v.spec["remembered"] = known != "" && known == v.record.id
	}
}

// Desire is what the site wants, given what the last Observe saw.
func (s *System) Desire(_ context.Context, site *plan.Site, _ plan.State) (plan.State, error) {
	if s.seen == nil {
		return nil, nil
	}
	want, faults := desired(site, s.seen, s.Recall != nil)
	return want, plan.Join(faults)
}

// attempts is how often a change is begun again because somebody wrote while we did.
const attempts = 5

// errChanged says that somebody wrote between our reading and our writing.
var errChanged = errors.New("it changes all the time")

// Apply carries out one change, by one modification that holds nothing but what
// differs, and that the server makes only to the entry that we have looked at.
func (s *System) Apply(ctx context.Context, c plan.Change) (err error) {
	for range attempts {
		err = s.link.do(ctx, func(conn *goldap.Conn) error {
			if c.ID.Kind == treeKind {
				return s.applyTree(ctx, conn, c)
			}
			return s.applyEntry(conn, c)
		})
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, errChanged):
			return refused(c.ID, err)
		}
	}
	return plan.StaleChange(c.ID, err.Error())
}

// applyEntry makes, changes or removes one user or group.
func (s *System) applyEntry(conn *goldap.Conn, c plan.Change) error {
	k := s.kindOf(c.ID)
	if c.Have == nil { // the only answer that is worth a second trip is that it is there
		want := k.attributes(*c.Want)
		err := conn.Add(addition(k.dn, k.classes, k.naming, c.ID.Name, want))
		if !goldap.IsErrorWithCode(err, goldap.LDAPResultEntryAlreadyExists) {
			return err
		}
	}
	live, csn, err := k.read(conn, secretly(c))
	switch {
	case err != nil:
		return err
	case live == nil && c.Want == nil:
		return nil
	case live == nil && c.Have == nil:
		return errChanged
	case live == nil:
		return plan.StaleChange(c.ID, "it is gone")
	case c.Want != nil && reflect.DeepEqual(live, c.Want.Spec):
		return nil
	case c.Have == nil:
		return plan.StaleChange(c.ID, "somebody has made one since it was planned")
	case !reflect.DeepEqual(live, c.Have.Spec):
		return plan.StaleChange(c.ID, "it changed since it was planned")
	case c.Want == nil:
		return s.remove(conn, c, k, csn)
	}
	have := k.attributes(plan.Object{Spec: live})
	return changed(conn.Modify(difference(k.dn, have, k.attributes(*c.Want), unchanged{csn})))
}

// secretly reports whether a change looks at a password itself.
func secretly(c plan.Change) bool {
	for _, o := range []*plan.Object{c.Have, c.Want} {
		if o != nil {
			if _, ok := o.Spec["password"].(plan.Secret); ok {
				return true
			}
		}
	}
	return false
}

// remove writes down whose the number was, and then takes the entry away: not the
// other way around, because a number that is forgotten may be given again.
func (s *System) remove(conn *goldap.Conn, c plan.Change, k entryKind, csn string) error {
	number, _ := c.Have.Spec[k.number].(int64)
	r := goldap.NewModifyRequest(s.tree.record(), nil)
	r.Add("description", []string{retiredLine(strings.TrimSuffix(k.number, "Number"), number, c.ID.Name)})
	err := conn.Modify(r)
	if err != nil && !goldap.IsErrorWithCode(err, goldap.LDAPResultAttributeOrValueExists) {
		return fmt.Errorf("write down that the number %d was given: %w", number, err)
	}
	err = changed(conn.Del(goldap.NewDelRequest(k.dn, []goldap.Control{unchanged{csn}})))
	if goldap.IsErrorWithCode(err, goldap.LDAPResultNoSuchObject) {
		return nil
	}
	return err
}

// changed turns the refusal of a server to touch a newer version into errChanged.
func changed(err error) error {
	if goldap.IsErrorWithCode(err, goldap.LDAPResultAssertionFailed) {
		return errChanged
	}
	return err
}

// entryKind is how one kind of object is an entry.
type entryKind struct {
	dn         string
	naming     string // attribute of the name
	number     string // attribute of the number
	mark       string // that ours begin with
	classes    []string
	attributes func(plan.Object) map[string][]string
	read       func(conn *goldap.Conn, secretly bool) (spec map[string]any, csn string, err error)
}

func (s *System) kindOf(id plan.ID) (k entryKind) {
	if id.Kind == groupKind {
		k = entryKind{dn: s.tree.group(id.Name), naming: "cn", number: "gidNumber", mark: groupMarks, classes: groupClasses()}
		k.attributes = func(o plan.Object) map[string][]string { return s.tree.writeGroup(id.Name, o.Spec) }
		k.read = func(conn *goldap.Conn, _ bool) (spec map[string]any, csn string, err error) {
			e, err := readEntry(conn, k.dn, "gidNumber", "description", "member", "labeledURI", "entryCSN")
			if e == nil {
				return nil, "", err
			}
			return ours(e, k.mark, s.tree.readGroup(e))
		}
		return k
	}
	k = entryKind{dn: s.tree.user(id.Name), naming: "uid", number: "uidNumber", mark: userMarks, classes: userClasses()}
	k.attributes = func(o plan.Object) map[string][]string {
		attributes := writeUser(o.Spec)
		if hash, ok := o.Handle.(plan.Secret); ok {
			attributes["userPassword"] = []string{hash.Value()}
		}
		return attributes
	}
	k.read = func(conn *goldap.Conn, secretly bool) (spec map[string]any, csn string, err error) {
		e, err := readEntry(conn, k.dn, append(userAttributes(), "userPassword", "entryCSN")...)
		if e == nil {
			return nil, "", err
		}
		spec = readUser(e)
		if values := valuesOf(e, "userPassword"); secretly && len(values) == 1 {
			spec["password"] = plan.NewSecret(values[0])
		} else if len(values) > 0 {
			spec["password"] = passwordSet
		}
		return ours(e, k.mark, spec)
	}
	return k
}

// ours passes on what was read of an entry of ours.
func ours(e *goldap.Entry, mark string, spec map[string]any) (map[string]any, string, error) {
	if markIn(valuesOf(e, "labeledURI"), mark) == "" {
		return nil, "", plan.StaleChange(plan.ID{}, fmt.Sprintf("the entry %s is not ours", e.DN))
	}
	return spec, first(valuesOf(e, "entryCSN")), nil
}

// applyTree makes what people and groups hang on, brings the record up to date, or
// takes all of it away.
func (s *System) applyTree(ctx context.Context, conn *goldap.Conn, c plan.Change) error {
	v := &view{tree: s.tree}
	if err := v.readTree(conn); err != nil {
		return err
	}
	known, err := s.recall(ctx)
	if err != nil {
		return err
	}
	v.know(s.Recall != nil, known)
	switch {
	case c.Want == nil && v.spec == nil:
		return s.remember(ctx, "")
	case c.Want != nil && reflect.DeepEqual(v.spec, c.Want.Spec):
		return nil
	case c.Have != nil && !reflect.DeepEqual(v.spec, c.Have.Spec),
		c.Have == nil && v.record.id != "" && !reflect.DeepEqual(v.spec["counted"], c.Want.Spec["counted"]):
		return plan.StaleChange(c.ID, "it changed since it was planned")
	case c.Want == nil:
		return s.fell(ctx, conn)
	}
	if err := s.plant(conn); err != nil {
		return err
	}
	if err := v.readTree(conn); err != nil {
		return err
	}
	if err := s.count(conn, v.record, c.Want.Spec["counted"]); err != nil {
		return err
	}
	return s.remember(ctx, v.record.id)
}

// plant makes the entries of the tree that are not there, from the root on.
func (s *System) plant(conn *goldap.Conn) error {
	for _, r := range s.entries() {
		err := conn.Add(r)
		if err != nil && !goldap.IsErrorWithCode(err, goldap.LDAPResultEntryAlreadyExists) {
			return fmt.Errorf("make %s: %w", r.DN, err)
		}
	}
	return nil
}

// entries of the tree, from the root on. The base is there already, unless the
// directory is an empty one.
func (s *System) entries() (all []*goldap.AddRequest) {
	base := goldap.NewAddRequest(string(s.tree), nil)
	dn, _ := goldap.ParseDN(string(s.tree))
	switch top := dn.RDNs[0].Attributes[0]; strings.ToLower(top.Type) {
	case "dc":
		base.Attribute("objectClass", []string{"dcObject", "organization"})
		base.Attribute("dc", []string{top.Value})
		base.Attribute("o", []string{top.Value})
		all = append(all, base)
	case "o":
		base.Attribute("objectClass", []string{"organization"})
		base.Attribute("o", []string{top.Value})
		all = append(all, base)
	}
	ours := map[string][]string{"labeledURI": {treeMark}}
	for _, name := range []string{"people", "groups"} {
		all = append(all, addition("ou="+name+","+string(s.tree), []string{"organizationalUnit", "labeledURIObject"}, "ou", name, ours))
	}
	ours = maps.Clone(ours)
	ours["description"] = []string{countLine("users", 0), countLine("groups", 0)}
	return append(all, addition(s.tree.record(), []string{"organizationalRole", "labeledURIObject"}, "cn", recordName, ours))
}

// count writes down how many people and groups there are.
func (s *System) count(conn *goldap.Conn, r record, spec any) error {
	want, _ := spec.(map[string]any)
	lines := slices.DeleteFunc(slices.Clone(r.lines), func(line string) bool {
		return strings.HasPrefix(line, "users ") || strings.HasPrefix(line, "groups ")
	})
	for _, kind := range []string{"users", "groups"} {
		n, _ := want[kind].(int64)
		lines = append(lines, countLine(kind, int(n)))
	}
	m := difference(s.tree.record(), map[string][]string{"description": r.lines}, map[string][]string{"description": lines}, unchanged{r.csn})
	if len(m.Changes) == 0 {
		return nil
	}
	return changed(conn.Modify(m))
}

// fell takes the tree away, but for the base and for what somebody else made of it
// or in it.
func (s *System) fell(ctx context.Context, conn *goldap.Conn) error {
	for _, dn := range []string{s.tree.groups(), s.tree.people(), s.tree.record()} {
		e, err := readEntry(conn, dn, "labeledURI")
		if err != nil {
			return err
		}
		if e == nil || markIn(valuesOf(e, "labeledURI"), treeMark) == "" {
			continue
		}
		err = conn.Del(goldap.NewDelRequest(dn, nil))
		if err != nil && !goldap.IsErrorAnyOf(err, goldap.LDAPResultNotAllowedOnNonLeaf, goldap.LDAPResultNoSuchObject) {
			return fmt.Errorf("remove %s: %w", dn, err)
		}
	}
	return s.remember(ctx, "")
}

func (s *System) remember(ctx context.Context, id string) error {
	if s.Remember == nil {
		return nil
	}
	if err := s.Remember(ctx, id); err != nil {
		return fmt.Errorf("remember which directory is the site's: %w", err)
	}
	return nil
}

// refused turns an error of the server into a reason that a person can act on.
func refused(id plan.ID, err error) *plan.Fault {
	var f *plan.Fault
	if errors.As(err, &f) {
		f.ID = id
		return f
	}
	f = &plan.Fault{Code: Unavailable, ID: id, Cause: strings.Join(strings.Fields(err.Error()), " "), Hint: "the next round tries again"}
	var answer *goldap.Error
	if !errors.As(err, &answer) {
		return f
	}
	switch answer.ResultCode {
	case goldap.LDAPResultInsufficientAccessRights, goldap.LDAPResultInvalidCredentials, goldap.LDAPResultStrongAuthRequired:
		f.Code, f.Hint = Forbidden, "grant the right to the account that reconcile uses"
	case goldap.LDAPResultInvalidAttributeSyntax, goldap.LDAPResultObjectClassViolation, goldap.LDAPResultConstraintViolation,
		goldap.LDAPResultUndefinedAttributeType, goldap.LDAPResultInvalidDNSyntax, goldap.LDAPResultNamingViolation:
		f.Code, f.Hint = Invalid, "correct it in the site repo, or the schema of the server"
	case goldap.LDAPResultUnwillingToPerform, goldap.LDAPResultNotAllowedOnNonLeaf:
		f.Code, f.Hint = Refused, "see why the server does not want to"
	}
	return f
}
