package ldap

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Kinds of the objects in plans. A Roster is none: its users are.
const (
	userKind  = "User"
	groupKind = "Group"
	treeKind  = "Tree" // what people and groups hang on, and what the directory must not forget
)

func userID(name string) plan.ID { return plan.ID{System: plan.Directory, Kind: userKind, Name: name} }

// TreeID names the directory as a whole: confirmed in git, one that has lost its
// content is filled anew, and one that the site no longer wants is taken away.
func TreeID() plan.ID { return plan.ID{System: plan.Directory, Kind: treeKind, Name: recordName} }

// recordName is the name of the entry that remembers.
const recordName = "kingmaker"

// tree is the base DN, in the form in which slapd writes DNs.
type tree string

func (t tree) people() string { return "ou=people," + string(t) }
func (t tree) groups() string { return "ou=groups," + string(t) }
func (t tree) record() string { return "cn=" + recordName + "," + string(t) }

func (t tree) user(name string) string  { return "uid=" + goldap.EscapeDN(name) + "," + t.people() }
func (t tree) group(name string) string { return "cn=" + goldap.EscapeDN(name) + "," + t.groups() }

// plain is a name that stands in a DN as it is. All that Validate lets pass are.
var plain = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// nameIn is the name of an entry right below a parent, and "" of any other.
func nameIn(dn, attribute, parent string) string {
	rest, ok := cutSuffixFold(dn, ","+parent)
	if !ok || len(rest) <= len(attribute) || !strings.EqualFold(rest[:len(attribute)], attribute) || rest[len(attribute)] != '=' {
		return ""
	}
	if name := rest[len(attribute)+1:]; plain.MatchString(name) {
		return name
	}
	return ""
}

func cutSuffixFold(s, suffix string) (string, bool) {
	at := len(s) - len(suffix)
	if at < 0 || !strings.EqualFold(s[at:], suffix) {
		return s, false
	}
	return s[:at], true
}

// The labeledURI of what is ours begins with one of these.
const (
	userMarks  = "kingmaker:Roster/"
	groupMarks = "kingmaker:Group/"
	treeMark   = "kingmaker:Tree/" + recordName
)

// userMark says which Roster declares a user, and which generation of the initial
// password was given; nil is none ever.
func userMark(roster string, generation any) string {
	if n, ok := generation.(int64); ok {
		return userMarks + roster + "?passwordGeneration=" + strconv.FormatInt(n, 10)
	}
	return userMarks + roster
}

// readUserMark is the inverse of userMark.
func readUserMark(value string) (roster string, generation any) {
	roster, query, _ := strings.Cut(strings.TrimPrefix(value, userMarks), "?")
	if text, ok := strings.CutPrefix(query, "passwordGeneration="); ok {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return roster, n
		}
	}
	return roster, nil
}

// markIn is the value that begins so, and "" where none does.
func markIn(values []string, mark string) string {
	for _, v := range values {
		if strings.HasPrefix(v, mark) {
			return v
		}
	}
	return ""
}

// lockedForEver is the value of pwdAccountLockedTime that no time ends. Others are
// locks that wrong passwords set, and not our affair.
const lockedForEver = "000001010000Z"

// passwordSet stands in specs for a password that is there and nobody's business.
const passwordSet = "set"

// plainAttributes are those of a user that stand in a spec under their own names.
// A spec has these very strings for keys, and not a copy of its own.
var plainAttributes = [...]string{"cn", "gidNumber", "homeDirectory", "loginShell", "mail", "sn", "uidNumber"}

// userAttributes are what a user's spec is read from, but for the password.
func userAttributes() []string {
	return append(plainAttributes[:], "labeledURI", "pwdAccountLockedTime")
}

func userClasses() []string  { return []string{"inetOrgPerson", "posixAccount"} }
func groupClasses() []string { return []string{"groupOfNames", "posixGroup", "labeledURIObject"} }

// readUser is the spec of a user as it is in the directory. The password is for the
// caller to add.
func readUser(e *goldap.Entry) map[string]any {
	spec := make(map[string]any, 12)
	for _, a := range e.Attributes {
		switch a.Name {
		case "labeledURI":
			roster, generation := readUserMark(markIn(a.Values, userMarks))
			spec["roster"] = roster
			if generation != nil {
				spec["passwordGeneration"] = generation
			}
		case "pwdAccountLockedTime":
			if slices.Contains(a.Values, lockedForEver) {
				spec["disabled"] = true
			}
		case "userPassword":
		default:
			for _, name := range plainAttributes {
				if name == a.Name && len(a.Values) > 0 {
					spec[name] = fromValues(name, a.Values)
				}
			}
		}
	}
	return spec
}

// writeUser is the inverse of readUser: the attributes by which an entry has a spec.
// A managed password is among them.
func writeUser(spec map[string]any) map[string][]string {
	roster, _ := spec["roster"].(string)
	attributes := map[string][]string{"labeledURI": {userMark(roster, spec["passwordGeneration"])}}
	for _, name := range plainAttributes {
		if v, ok := spec[name]; ok {
			attributes[name] = toValues(v)
		}
	}
	if spec["disabled"] == true {
		attributes["pwdAccountLockedTime"] = []string{lockedForEver}
	}
	if hash, ok := spec["password"].(plan.Secret); ok {
		attributes["userPassword"] = []string{hash.Value()}
	}
	return attributes
}

// readGroup is the spec of a group as it is in the directory. Its members are login
// names, and DNs where they are no people of the tree.
func (t tree) readGroup(e *goldap.Entry) map[string]any {
	spec := map[string]any{"members": []any{}}
	for _, a := range e.Attributes {
		switch a.Name {
		case "gidNumber", "description":
			spec[a.Name] = fromValues(a.Name, a.Values)
		case "member":
			members := make([]string, 0, len(a.Values))
			for _, dn := range a.Values {
				if name := nameIn(dn, "uid", t.people()); name != "" {
					dn = name
				} else if strings.EqualFold(dn, t.record()) {
					continue // there is nobody in it
				}
				members = append(members, dn)
			}
			spec["members"] = list(members)
		}
	}
	return spec
}

// writeGroup is the inverse of readGroup.
func (t tree) writeGroup(name string, spec map[string]any) map[string][]string {
	attributes := map[string][]string{"labeledURI": {groupMarks + name}, "gidNumber": toValues(spec["gidNumber"])}
	if description, ok := spec["description"]; ok {
		attributes["description"] = toValues(description)
	}
	members := toValues(spec["members"])
	for i, m := range members {
		if !strings.Contains(m, "=") {
			members[i] = t.user(m)
		}
	}
	if len(members) == 0 {
		members = []string{t.record()}
	}
	attributes["member"] = members
	return attributes
}

// fromValues is an attribute as it stands in a spec: a list only where somebody
// has made it one.
func fromValues(attribute string, values []string) any {
	if len(values) != 1 {
		return list(values)
	}
	if attribute == "uidNumber" || attribute == "gidNumber" {
		if n, err := strconv.ParseInt(values[0], 10, 64); err == nil {
			return n
		}
	}
	return values[0]
}

// toValues is the inverse of fromValues.
func toValues(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case int64:
		return []string{strconv.FormatInt(v, 10)}
	case []any:
		values := make([]string, len(v))
		for i := range v {
			values[i], _ = v[i].(string)
		}
		return values
	}
	return nil
}

// list is texts in order, as a spec has them.
func list(values []string) []any {
	values = slices.Sorted(slices.Values(values))
	l := make([]any, len(values))
	for i, v := range values {
		l[i] = v
	}
	return l
}

// byValue are the attributes that others may have values in, or that have many.
func byValue(attribute string) bool {
	return attribute == "member" || attribute == "labeledURI" || attribute == "description"
}

// difference is the one modification that turns some attributes into others, with
// nothing in it that stays as it is. The rest of the entry is left alone.
func difference(dn string, have, want map[string][]string, controls ...goldap.Control) *goldap.ModifyRequest {
	r := goldap.NewModifyRequest(dn, controls)
	names := slices.Sorted(maps.Keys(have))
	for name := range want {
		if _, ok := have[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		gone, added := without(have[name], want[name]), without(want[name], have[name])
		switch {
		case len(gone)+len(added) == 0:
		case !byValue(name):
			r.Replace(name, want[name])
		default:
			if len(gone) > 0 {
				r.Delete(name, gone)
			}
			if len(added) > 0 {
				r.Add(name, added)
			}
		}
	}
	return r
}

// without are the values that are not among some others.
func without(values, others []string) (rest []string) {
	among := make(map[string]bool, len(others))
	for _, v := range others {
		among[v] = true
	}
	for _, v := range values {
		if !among[v] {
			rest = append(rest, v)
		}
	}
	return rest
}

// addition is the request that makes an entry.
func addition(dn string, classes []string, naming, name string, attributes map[string][]string) *goldap.AddRequest {
	r := goldap.NewAddRequest(dn, nil)
	r.Attribute("objectClass", classes)
	r.Attribute(naming, []string{name})
	for _, attribute := range slices.Sorted(maps.Keys(attributes)) {
		r.Attribute(attribute, attributes[attribute])
	}
	return r
}
