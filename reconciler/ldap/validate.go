package ldap

import (
	"fmt"
	"net/mail"
	"path"
	"regexp"
	"strings"
	"unicode"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of the rules of this room.
const (
	RefusedPassword plan.Code = "RefusedPassword" // not a hash, or one that anybody can turn back
	WeakPassword    plan.Code = "WeakPassword"    // a hash that is accepted for old users' sake
	TooManyGroups   plan.Code = "TooManyGroups"   // more groups than Gluster and FUSE carry
	ReservedNumber  plan.Code = "ReservedNumber"  // a uid or gid that the machines use themselves
	NotIncluded     plan.Code = "NotIncluded"     // a CSV file that nobody has read
)

// MaxGroups is how many groups a user may be in, the primary one included:
// Gluster and FUSE carry 32 and fewer safely, and drop the others in silence.
const MaxGroups = 30

// name is a POSIX-portable user or group name.
var name = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)

// Validate checks every Group and Roster of a site, and who is in what.
func Validate(site *plan.Site) (faults, warnings []*plan.Fault) {
	d := &directory{Report: &plan.Report{}, site: site, users: map[string]string{}, groupsOf: map[string][]string{}}
	groups := plan.Documents[Group](site, plan.Directory, "Group", d.Report)
	rosters := plan.Documents[Roster](site, plan.Directory, "Roster", d.Report)
	d.checkGroups(groups)
	d.checkRosters(rosters)
	// A roster that could not be read has users that nobody knows: then a
	// member whom we do not find may well be one of them.
	d.whole = d.whole && len(rosters) == countKind(site, "Roster")
	d.checkMembers(groups)
	return d.Faults, d.Warnings
}

// directory is what is known while the documents are read.
type directory struct {
	*plan.Report
	site     *plan.Site
	whole    bool                // all users are known
	users    map[string]string   // login name, folded -> as written
	groupsOf map[string][]string // login name, folded -> groups
}

func countKind(site *plan.Site, kind string) (n int) {
	for id := range site.Objects.Of(plan.Directory) {
		if id.Kind == kind {
			n++
		}
	}
	return n
}

func (d *directory) checkGroups(groups []plan.Document[Group]) {
	names, gids := make(plan.Taken[string]), make(plan.Taken[int64])
	for _, g := range groups {
		f := plan.Fault{ID: g.ID, Field: "metadata.name"}
		if owner := names.Claim(strings.ToLower(g.ID.Name), g.ID.Name); owner != "" {
			f.Code, f.Cause = plan.Duplicate, fmt.Sprintf("the directory cannot tell %s from %s", g.ID.Name, owner)
			f.Hint = "names differ in more than capital letters"
			d.Fault(f)
		}
		d.checkName(g.ID, "metadata.name", g.ID.Name, systemGroup)
		d.checkNumber(g.ID, "spec.gid", g.Spec.GID)
		if owner := gids.Claim(g.Spec.GID, g.ID.Name); owner != "" {
			d.Fault(plan.Fault{Code: plan.Duplicate, ID: g.ID, Field: "spec.gid",
				Cause: fmt.Sprintf("%d is the gid of Group %s too", g.Spec.GID, owner)})
		}
	}
}

func (d *directory) checkRosters(rosters []plan.Document[Roster]) {
	d.whole = true
	uids := make(plan.Taken[int64])
	names, mails := make(plan.Taken[string]), make(plan.Taken[string])
	for _, roster := range rosters {
		plan.CheckName(roster.ID, d.Report)
		f := plan.Fault{ID: roster.ID}
		if !d.site.Has(groupID(roster.Spec.Group)) {
			f.Code, f.Field = plan.UnknownReference, "spec.group"
			f.Cause, f.Hint = fmt.Sprintf("there is no Group %q", roster.Spec.Group), "declare it, or name one that is declared"
			d.Fault(f)
		}
		if file := roster.Spec.CSV; file != "" {
			d.whole = false
			f.Code, f.Field = NotIncluded, "spec.csv"
			f.Cause, f.Hint = fmt.Sprintf("%s was not read", file), ""
			d.Fault(f)
		}
		for i, user := range roster.Spec.Users {
			who := fmt.Sprintf("user %s of Roster %s", user.Name, roster.ID.Name)
			at := func(field string) string { return plan.Field("spec", "users", i, field) }
			d.checkUser(roster.ID, at, user)
			folded := strings.ToLower(user.Name)
			f := plan.Fault{Code: plan.Duplicate, ID: roster.ID}
			if owner := names.Claim(folded, who); owner != "" {
				f.Field, f.Cause = at("name"), fmt.Sprintf("%s is there already: %s", user.Name, owner)
				f.Hint = "login names differ in more than capital letters; a person who is in two groups stands in one Roster, and in members of the other Group"
				d.Fault(f)
			} else {
				d.users[folded] = user.Name
				d.groupsOf[folded] = []string{roster.Spec.Group}
			}
			f.Hint = ""
			if owner := uids.Claim(user.UID, who); owner != "" {
				f.Field, f.Cause = at("uid"), fmt.Sprintf("%d is the uid of %s too", user.UID, owner)
				d.Fault(f)
			}
			if user.Mail == "" {
				continue
			}
			if owner := mails.Claim(strings.ToLower(user.Mail), who); owner != "" {
				// Brothers and sisters may share their parents' address.
				f.Field, f.Cause = at("mail"), fmt.Sprintf("%s is the mail address of %s too", user.Mail, owner)
				d.Warn(f)
			}
		}
	}
}

func (d *directory) checkUser(id plan.ID, at func(string) string, user User) {
	d.checkName(id, at("name"), user.Name, systemUser)
	d.checkNumber(id, at("uid"), user.UID)
	f := plan.Fault{Code: plan.InvalidValue, ID: id}
	if strings.ContainsFunc(user.FullName, isControl) {
		f.Field, f.Cause = at("fullName"), "holds a line break or another invisible character"
		d.Fault(f)
	}
	if user.Mail != "" {
		if a, err := mail.ParseAddress(user.Mail); err != nil || a.Address != user.Mail {
			f.Field, f.Cause, f.Hint = at("mail"), fmt.Sprintf("%q is not a mail address", user.Mail), "such as anna@school.example"
			d.Fault(f)
		} else if !isASCII(user.Mail) {
			f.Field, f.Cause, f.Hint = at("mail"), fmt.Sprintf("%q holds letters that LDAP cannot keep in a mail address", user.Mail), "write the domain as xn--..."
			d.Fault(f)
		}
	}
	if user.Shell != "" && (!path.IsAbs(user.Shell) || path.Clean(user.Shell) != user.Shell || strings.ContainsFunc(user.Shell, isControl) || !isASCII(user.Shell)) {
		f.Field, f.Cause, f.Hint = at("shell"), fmt.Sprintf("%q is not the path of a program", user.Shell), "such as /bin/bash"
		d.Fault(f)
	}
	if user.PasswordGeneration < 0 {
		f.Field, f.Cause, f.Hint = at("passwordGeneration"), "want 0 or more", ""
		d.Fault(f)
	}
	if user.Password != nil {
		d.checkPassword(id, at("password"), *user.Password, user.PasswordGeneration)
	}
}

func (d *directory) checkPassword(id plan.ID, field string, p Password, generation int64) {
	f := plan.Fault{Code: plan.Contradiction, ID: id, Field: field}
	none := plan.Secret{}
	switch {
	case p.Initial == none && p.Managed == none:
		f.Code, f.Cause = plan.MissingField, "holds no hash"
		f.Hint = "write initial or managed, or leave password out"
		d.Fault(f)
		return
	case p.Initial != none && p.Managed != none:
		f.Cause, f.Hint = "initial and managed exclude each other", "initial belongs to the user after the first login, managed never does"
		d.Fault(f)
	case p.Managed != none && generation != 0:
		f.Cause, f.Hint = "passwordGeneration resets an initial password, and this one is managed", "take passwordGeneration out"
		d.Fault(f)
	}
	for _, one := range []struct {
		field string
		hash  plan.Secret
	}{{"initial", p.Initial}, {"managed", p.Managed}} {
		if one.hash == none {
			continue
		}
		fault, warning := checkHash(one.hash.Value())
		if fault != nil {
			fault.ID, fault.Field = id, field+"."+one.field
			d.Fault(*fault)
		}
		if warning != nil {
			warning.ID, warning.Field = id, field+"."+one.field
			d.Warn(*warning)
		}
	}
}

// checkMembers looks up the members of all groups, and counts each user's groups.
func (d *directory) checkMembers(groups []plan.Document[Group]) {
	for _, g := range groups {
		taken := make(plan.Taken[string])
		for i, member := range g.Spec.Members {
			f := plan.Fault{ID: g.ID, Field: plan.Field("spec", "members", i)}
			folded := strings.ToLower(member)
			written, known := d.users[folded]
			switch {
			case taken.Claim(folded, member) != "":
				f.Code, f.Cause = plan.Duplicate, fmt.Sprintf("%s is named twice", member)
			case known && written != member:
				f.Code, f.Cause = plan.UnknownReference, fmt.Sprintf("there is no user %q", member)
				f.Hint = fmt.Sprintf("the Roster writes %s", written)
			case !known && d.whole:
				f.Code, f.Cause = plan.UnknownReference, fmt.Sprintf("there is no user %q", member)
				f.Hint = "members are users of a Roster, by their login names"
			case !known:
				continue
			default:
				if d.groupsOf[folded][0] != g.ID.Name {
					d.groupsOf[folded] = append(d.groupsOf[folded], g.ID.Name)
				}
				if n := len(d.groupsOf[folded]); n == MaxGroups+1 {
					f.Code, f.Cause = TooManyGroups, fmt.Sprintf("%s is in more than %d groups", member, MaxGroups)
					f.Hint = "Gluster and FUSE carry no more, and would drop the rest in silence"
					break
				}
				continue
			}
			d.Fault(f)
		}
	}
}

func (d *directory) checkName(id plan.ID, field, value string, system func(string) bool) {
	f := plan.Fault{Code: plan.InvalidName, ID: id, Field: field}
	switch {
	case !name.MatchString(value):
		f.Cause = fmt.Sprintf("%q cannot be a name of a user or group", value)
		f.Hint = "want at most 32 letters of a to z, digits, dots, dashes and underscores, with a letter first"
	case system(strings.ToLower(value)):
		f.Cause = fmt.Sprintf("%s is an account of every machine itself", value)
		f.Hint = "take another name"
	default:
		return
	}
	d.Fault(f)
}

// checkNumber refuses the numbers that no person can have.
func (d *directory) checkNumber(id plan.ID, field string, n int64) {
	f := plan.Fault{Code: plan.InvalidValue, ID: id, Field: field}
	switch {
	case n < 1000:
		f.Cause, f.Hint = fmt.Sprintf("%d is too low: numbers below 1000 are the machines' own", n), "10000 to 59999 is free on every machine"
	case n > 1<<31-2:
		f.Cause, f.Hint = fmt.Sprintf("%d is too high: not every program can hold it", n), "10000 to 59999 is free on every machine"
	case n == 65534 || n == 65535:
		f.Code, f.Cause, f.Hint = ReservedNumber, fmt.Sprintf("%d means nobody", n), "10000 to 59999 is free on every machine"
	case n >= 60000 && n < 65534:
		f.Code, f.Cause, f.Hint = ReservedNumber, fmt.Sprintf("Debian and systemd give out %d themselves", n), "10000 to 59999 is free on every machine"
		d.Warn(f)
		return
	default:
		return
	}
	d.Fault(f)
}

func groupID(name string) plan.ID { return plan.ID{System: plan.Directory, Kind: "Group", Name: name} }

func isASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII })
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 }

// systemUser reports whether Debian's base system has a user of that name.
func systemUser(name string) bool {
	switch name {
	case "root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "www-data",
		"backup", "list", "irc", "_apt", "nobody", "messagebus", "sshd", "systemd-network", "systemd-timesync", "gluster":
		return true
	}
	return false
}

// systemGroup reports whether Debian's base system has a group of that name.
func systemGroup(name string) bool {
	switch name {
	case "adm", "tty", "disk", "kmem", "dialout", "fax", "voice", "cdrom", "floppy", "tape", "sudo", "audio", "dip",
		"operator", "src", "shadow", "utmp", "video", "sasl", "plugdev", "staff", "users", "nogroup", "input", "sgx",
		"kvm", "render", "netdev", "crontab", "docker":
		return true
	}
	return systemUser(name)
}
