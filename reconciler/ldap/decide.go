package ldap

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of what the directory has to say.
const (
	Emptied       plan.Code = "DirectoryEmptied" // it had more in it than it has
	Unfit         plan.Code = "ServerUnfit"      // the server lacks something that we cannot do without
	Foreign       plan.Code = "NotOurs"          // an entry that somebody else made
	NumberChanged plan.Code = "NumberChanged"    // a uid or gid that is another one than it was
	NumberTaken   plan.Code = "NumberTaken"      // a uid or gid that is, or was, somebody else's
	Vanished      plan.Code = "PersonVanished"   // an account of ours that no Roster names
)

// Ranks: people hang on the tree and have groups. A group's members may not be there
// yet for a moment, which nobody minds; a person's group may not.
const (
	treeRank = iota
	groupRank
	userRank
)

// observed is what there is of ours.
func observed(v *view) plan.State {
	have := make(plan.State, len(v.users)+len(v.groups)+1)
	needs := []plan.ID{TreeID()}
	for name, u := range v.users {
		have.Add(plan.Object{ID: userID(name), Spec: u.spec, Needs: needs, Rank: userRank,
			Precious: "the account of " + name + " (the home is not touched)"})
	}
	for name, g := range v.groups {
		have.Add(plan.Object{ID: groupID(name), Spec: g.spec, Needs: needs, Rank: groupRank})
	}
	if v.spec != nil {
		have.Add(plan.Object{ID: TreeID(), Spec: v.spec, Rank: treeRank, Why: "the site has neither people nor groups any more",
			Precious: "the memory of which numbers were given to whom"})
	}
	return have
}

// desired is what a site wants, given what there is. It may take what it wants to
// stay as it is from there.
func desired(site *plan.Site, v *view, remembers bool) (plan.State, []*plan.Fault) {
	d := &decision{Report: &plan.Report{}, site: site, view: v, want: make(plan.State, len(v.users)+len(v.groups)+1), primary: map[string][]string{},
		leftAlone: map[string]bool{}, declared: map[string]bool{}, kept: map[string]bool{}}
	groups := plan.Documents[Group](site, plan.Directory, groupKind, d.Report)
	rosters := plan.Documents[Roster](site, plan.Directory, "Roster", d.Report)
	if len(d.Faults) > 0 {
		// Whom a document that cannot be read names, nobody knows: they have not vanished.
		return nil, []*plan.Fault{{Code: d.Faults[0].Code, ID: plan.ID{System: plan.Directory}, Cause: d.Faults[0].Error()}}
	}
	d.groups = map[string]int64{}
	for _, g := range groups {
		d.groups[g.ID.Name] = g.Spec.GID
	}
	d.index()
	for _, r := range rosters {
		d.roster(r)
	}
	d.vanished()
	for _, g := range groups {
		d.group(g)
	}
	wanted := len(d.want) > 0 || len(groups)+len(rosters) > 0
	if wanted || v.spec != nil && !d.confirmed(TreeID()) {
		d.tree(remembers, wanted)
	}
	return d.want, d.Faults
}

// decision is what is wanted while it is made out.
type decision struct {
	*plan.Report
	site *plan.Site
	view *view
	want plan.State

	groups    map[string]int64    // gids of the declared groups
	uids      map[int64]string    // -> the person of ours who has it
	gids      map[int64]string    // the same of groups
	declared  map[string]bool     // login names that Rosters name
	leftAlone map[string]bool     // Rosters that are there and name nobody
	kept      map[string]bool     // login names that stay as they are, though no Roster names them
	primary   map[string][]string // group -> those whose primary group it is
}

func (d *decision) confirmed(id plan.ID) bool {
	return slices.Contains(d.site.Spec.Confirm, id.String())
}

func (d *decision) index() {
	d.uids, d.gids = map[int64]string{}, map[int64]string{}
	for name, u := range d.view.users {
		d.uids[u.number] = name
	}
	for name, g := range d.view.groups {
		d.gids[g.number] = name
	}
}

func (d *decision) roster(r plan.Document[Roster]) {
	if r.Spec.Users == nil {
		d.leftAlone[r.ID.Name] = true
		return
	}
	gid, ok := d.groups[r.Spec.Group]
	needs := []plan.ID{TreeID(), groupID(r.Spec.Group)}
	origin := d.site.Objects[r.ID].Origin
	for _, u := range r.Spec.Users {
		d.declared[u.Name] = true
		have, there := d.view.users[u.Name]
		f := d.conflict(userID(u.Name), d.view.tree.user(u.Name), there, "uid", u.UID, have.number, d.uids, d.view.uids, d.view.record.uids)
		if f == nil && !ok {
			f = &plan.Fault{Code: plan.UnknownReference, ID: userID(u.Name), Cause: fmt.Sprintf("there is no Group %q", r.Spec.Group)}
		}
		if f == nil || there {
			d.primary[r.Spec.Group] = append(d.primary[r.Spec.Group], u.Name)
		}
		if f != nil {
			d.Fault(*f)
			continue
		}
		o := plan.Object{ID: userID(u.Name), Needs: needs, Origin: origin, Rank: userRank}
		o.Spec, o.Handle = wantUser(r.ID.Name, gid, u, have, there)
		if initial, ok := o.Handle.(plan.Secret); ok && initial.Sealed() { // a managed one is in the spec, where plan sees it
			d.Fault(*plan.SealedObject(userID(u.Name)))
			continue
		}
		if there && have.spec["passwordGeneration"] != nil && have.spec["passwordGeneration"] != o.Spec["passwordGeneration"] {
			o.Why = fmt.Sprintf("passwordGeneration was raised to %d: the initial password is set again", u.PasswordGeneration)
		}
		if reflect.DeepEqual(o.Spec, have.spec) {
			o.Spec = have.spec // thousands are as they should be: one copy is enough
		}
		d.want.Add(o)
	}
}

// wantUser is a user as the directory would have it. The handle is the hash that is
// to be written where anything is: an initial password, which the spec never shows,
// because once it is there it belongs to the user.
func wantUser(roster string, gid int64, u User, have held, there bool) (spec map[string]any, handle any) {
	full := cmp.Or(strings.TrimSpace(u.FullName), u.Name)
	spec = map[string]any{"cn": full, "sn": surname(full), "uidNumber": u.UID, "gidNumber": gid,
		"homeDirectory": "/home/" + u.Name, "loginShell": cmp.Or(u.Shell, "/bin/bash"), "roster": roster}
	if u.Mail != "" {
		spec["mail"] = u.Mail
	}
	if u.Disabled {
		spec["disabled"] = true
	}
	for _, field := range []string{"password", "passwordGeneration"} {
		if value := have.spec[field]; value != nil {
			spec[field] = value
		}
	}
	switch none := (plan.Secret{}); {
	case u.Password == nil:
	case u.Password.Managed != none:
		spec["password"] = u.Password.Managed
	case !there || have.spec["password"] == nil || u.PasswordGeneration > generation(have):
		spec["password"], spec["passwordGeneration"] = passwordSet, max(u.PasswordGeneration, generation(have))
		handle = u.Password.Initial
	}
	return spec, handle
}

// generation of the initial password that a user was given, 0 where none was.
func generation(have held) int64 {
	n, _ := have.spec["passwordGeneration"].(int64)
	return n
}

// surname is what LDAP wants of every person: the last word, or what is before a comma.
func surname(full string) string {
	if before, _, ok := strings.Cut(full, ","); ok && strings.TrimSpace(before) != "" {
		return strings.TrimSpace(before)
	}
	words := strings.Fields(full)
	return words[len(words)-1]
}

// conflict is why an entry cannot be what the site wants: somebody else has the name
// or the number, or had it, or it would change.
func (d *decision) conflict(id plan.ID, dn string, there bool, kind string, number, has int64, ours, others, retired map[int64]string) *plan.Fault {
	f := &plan.Fault{ID: id, Code: NumberTaken, Hint: "a " + kind + " is for ever: take one that nobody ever had"}
	as, taken := d.view.folded[strings.ToLower(dn)]
	owner, inUse := ours[number]
	switch {
	case taken && !there && slices.Contains(d.view.others, as):
		f.Code, f.Cause = Foreign, fmt.Sprintf("there is an entry %s that is not ours", as)
		f.Hint = "rename it or take it away; to hand it over, give it the labeledURI " + handedOver(id)
	case taken && !there:
		f.Code, f.Cause, f.Hint = plan.Duplicate, fmt.Sprintf("the directory cannot tell it from %s", as), "write the name as it is there"
	case there && has != number:
		f.Code, f.Cause = NumberChanged, fmt.Sprintf("its %s is %d in the directory, and %d in the site repo", kind, has, number)
		f.Hint = fmt.Sprintf("a %s is for ever, because files have it: put %d back", kind, has)
	case inUse && owner != id.Name:
		f.Cause = fmt.Sprintf("%s %d is that of %s", kind, number, owner)
	case others[number] != "":
		f.Cause = fmt.Sprintf("%s %d is that of %s", kind, number, others[number])
	case retired[number] != "" && retired[number] != id.Name:
		f.Cause = fmt.Sprintf("%s %d was that of %s", kind, number, retired[number])
	default:
		return nil
	}
	return f
}

// handedOver is a mark that makes an entry of others ours.
func handedOver(id plan.ID) string {
	if id.Kind == groupKind {
		return groupMarks + id.Name
	}
	return userMarks + "handed-over"
}

// vanished locks those whom no Roster names any more. Who is locked and not wanted
// stays so, until git confirms that the entry goes. Where too many vanish at once,
// that is not meant, and all of them are left as they are.
func (d *decision) vanished() {
	var newly []string
	for _, name := range slices.Sorted(maps.Keys(d.view.users)) {
		have := d.view.users[name]
		roster, _ := have.spec["roster"].(string)
		switch {
		case d.declared[name] || d.confirmed(userID(name)):
		case d.leftAlone[roster] || d.declaredFolded(name):
			d.keep(name)
		case have.spec["disabled"] == nil:
			newly = append(newly, name)
		default:
			d.lock(name)
		}
	}
	limit := d.site.Spec.Deletes.Limit(len(d.view.users))
	for _, name := range newly {
		if len(newly) <= limit {
			d.lock(name)
			continue
		}
		d.keep(name)
		d.Fault(plan.Fault{Code: plan.OverBudget, ID: userID(name),
			Cause: fmt.Sprintf("no Roster names it any more, nor %d others of %d people, and the site allows %d to be locked at once", len(newly)-1, len(d.view.users), limit),
			Hint:  "if that is meant, raise spec.deletes of the Site"})
	}
}

// keep leaves a person of ours as the entry is, in the primary group, too.
func (d *decision) keep(name string) {
	have := d.view.users[name]
	d.kept[name] = true
	d.want.Add(plan.Object{ID: userID(name), Spec: have.spec, Needs: []plan.ID{TreeID()}, Rank: userRank})
	for group, gid := range d.groups {
		if have.spec["gidNumber"] == gid {
			d.primary[group] = append(d.primary[group], name)
		}
	}
}

func (d *decision) lock(name string) {
	o := plan.Object{ID: userID(name), Spec: d.view.users[name].spec, Needs: []plan.ID{TreeID()}, Rank: userRank}
	if o.Spec["disabled"] == nil {
		o.Spec = maps.Clone(o.Spec)
		o.Spec["disabled"] = true
		o.Why = "no Roster names " + name + " any more: the account is locked"
	}
	o.Notes = []*plan.Fault{{Code: Vanished, ID: o.ID, Cause: "no Roster names it any more, and the account is kept locked",
		Hint: fmt.Sprintf("to remove it, add %s to spec.confirm of the Site; the home is not touched", o.ID)}}
	d.want.Add(o)
}

// declaredFolded reports whether a Roster names a user whom the directory cannot tell
// from this one: a fault of that user, and no reason to lock this one.
func (d *decision) declaredFolded(name string) bool {
	for other := range d.declared {
		if strings.EqualFold(name, other) {
			return true
		}
	}
	return false
}

func (d *decision) group(g plan.Document[Group]) {
	have, there := d.view.groups[g.ID.Name]
	if f := d.conflict(g.ID, d.view.tree.group(g.ID.Name), there, "gid", g.Spec.GID, have.number, d.gids, d.view.gids, d.view.record.gids); f != nil {
		d.Fault(*f)
		return
	}
	members := map[string]bool{}
	for _, name := range d.primary[g.ID.Name] {
		members[name] = true
	}
	more := g.Spec.Members
	if more == nil {
		more = d.added(have)
	}
	for _, name := range more {
		_, wanted := d.want[userID(name)]
		_, exists := d.view.users[name]
		if wanted || exists || !d.declared[name] { // else it is one who cannot be made
			members[name] = true
		}
	}
	spec := map[string]any{"gidNumber": g.Spec.GID, "members": list(slices.Collect(maps.Keys(members)))}
	if description := strings.TrimSpace(g.Spec.Description); description != "" {
		spec["description"] = description
	}
	d.want.Add(plan.Object{ID: g.ID, Spec: spec, Needs: []plan.ID{TreeID()}, Origin: d.site.Objects[g.ID].Origin, Rank: groupRank})
}

// added are the members of a group that somebody else put there: they stay where git
// says nothing of members. Who was there by a Roster and is not any more, who is
// locked for having vanished, and who does not exist, goes.
func (d *decision) added(group held) (names []string) {
	members, _ := group.spec["members"].([]any)
	for _, m := range members {
		name, _ := m.(string)
		have, ours := d.view.users[name]
		_, others := d.view.folded[strings.ToLower(d.view.tree.user(name))]
		switch {
		case strings.Contains(name, "="): // a DN from elsewhere
		case !ours && !others:
			continue
		case ours && !d.kept[name] && (!d.declared[name] || have.spec["gidNumber"] == group.number):
			continue
		}
		names = append(names, name)
	}
	return names
}

// tree is what all of it hangs on. It counts what is there and stays, and so never
// more than there is: what is to be made is counted when it was seen.
func (d *decision) tree(remembers, wanted bool) {
	users, groups := 0, 0
	for id := range d.want {
		if _, ok := d.view.users[id.Name]; ok && id.Kind == userKind {
			users++
		}
		if _, ok := d.view.groups[id.Name]; ok && id.Kind == groupKind {
			groups++
		}
	}
	t := d.view.tree
	o := plan.Object{ID: TreeID(), Rank: treeRank, Why: "people and groups hang on it",
		Spec: map[string]any{"people": t.people(), "groups": t.groups(), "record": t.record(), "counted": counted(users, groups)}}
	if remembers {
		o.Spec["remembered"] = true
	}
	if d.view.spec != nil {
		o.Why = "it counts what there is"
	}
	if !wanted {
		o.Notes = []*plan.Fault{{Code: Vanished, ID: o.ID, Cause: "the site has neither people nor groups any more, and the memory of their numbers is kept",
			Hint: fmt.Sprintf("to remove it, too, add %s to spec.confirm of the Site", o.ID)}}
	}
	if n := len(d.view.others); n > 0 {
		names := strings.Join(d.view.others[:min(n, 5)], "; ")
		if n > 5 {
			names += fmt.Sprintf("; and %d more", n-5)
		}
		o.Notes = append(o.Notes, &plan.Fault{Code: Foreign, ID: o.ID, Cause: fmt.Sprintf("entries that are not ours are left alone (%d): %s", n, names)})
	}
	d.want.Add(o)
}

// managed are the login names of a site whose passwords are enforced.
func managed(site *plan.Site) (names []string) {
	for _, o := range site.Objects {
		spec, _ := o.Spec["spec"].(map[string]any)
		users, _ := spec["users"].([]any)
		if o.ID.System != plan.Directory || o.ID.Kind != "Roster" {
			continue
		}
		for _, u := range users {
			user, _ := u.(map[string]any)
			name, _ := user["name"].(string)
			if password, _ := user["password"].(map[string]any); password["managed"] != nil {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}
