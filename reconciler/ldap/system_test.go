package ldap_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/cmd/lab/slapdtest"
	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// refusedLogin reports whether slapd turned somebody away.
func refusedLogin(err error) bool {
	return goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials)
}

// TestPasswords: an initial one belongs to the user once it is there, until git raises
// its generation; a managed one is enforced; who is disabled is refused.
func TestPasswords(t *testing.T) {
	d := start(t)
	service := hash("of the service")
	users := func(generation int, initial, rest string) string {
		return class(fmt.Sprintf(`{name: anna, uid: 12001, passwordGeneration: %d, password: {initial: "%s"}%s}, {name: scanner, uid: 12002, password: {managed: "%s"}}`,
			generation, hash(initial), rest, service))
	}
	login := func(what, name, password string, ok bool) {
		t.Helper()
		if err := d.Bind(user(name), password); ok && err != nil || !ok && !refusedLogin(err) {
			t.Errorf("%s: %s with %q: %v", what, name, password, err)
		}
	}
	d.converge(t, users(0, "the first one", ""))
	login("created", "anna", "the first one", true)
	login("created", "scanner", "of the service", true)

	change := goldap.NewPasswordModifyRequest("", "the first one", "what anna wants")
	if _, err := d.As(user("anna"), "the first one").PasswordModify(change); err != nil {
		t.Fatal(err)
	}
	d.modify(t, user("scanner"), "userPassword", hash("of somebody"))
	d.converge(t, users(0, "another one", ""))
	login("her own", "anna", "what anna wants", true)
	login("not git's", "anna", "another one", false)
	login("put back", "scanner", "of the service", true)

	d.converge(t, users(1, "a reset one", ""))
	login("reset", "anna", "a reset one", true)
	login("reset", "anna", "what anna wants", false)

	d.converge(t, users(1, "a reset one", ", disabled: true"))
	login("disabled", "anna", "a reset one", false)
	d.converge(t, users(1, "a reset one", ""))
	login("no longer disabled", "anna", "a reset one", true)

	// Wrong passwords lock for a while, which is neither drift nor for us to end.
	for range 10 {
		login("guessed", "anna", "guess", false)
	}
	login("locked out", "anna", "a reset one", false)
	if p := d.plan(t, users(1, "a reset one", "")); !p.Settled() {
		t.Errorf("a lock-out is something to do:\n%s", lines(p))
	}
	// Who is created disabled is refused from the beginning.
	d.converge(t, class(`{name: ben, uid: 12003, disabled: true, password: {initial: "`+hash("ben's own one")+`"}}`))
	login("created disabled", "ben", "ben's own one", false)
}

// TestVanished: locked at once and out of the groups, kept, and removed by consent;
// the number never goes to somebody else, and the same person may have it again.
func TestVanished(t *testing.T) {
	d := start(t)
	anna := `{name: anna, uid: 12001, password: {initial: "` + hash("anna's own") + `"}}`
	ben := `{name: ben, uid: 12002}`
	d.converge(t, class(anna+","+ben))
	d.converge(t, class(ben))
	if err := d.Bind(user("anna"), "anna's own"); !refusedLogin(err) {
		t.Errorf("she is not locked: %v", err)
	}
	if have := d.values(t, group("pupils"), "member"); !slices.Equal(have, []string{user("ben")}) {
		t.Errorf("members %v", have)
	}
	p := d.plan(t, class(ben))
	if len(p.Notes) != 1 || p.Notes[0].Code != ldap.Vanished || !strings.Contains(p.Notes[0].Hint, "directory/User/anna") {
		t.Errorf("notes:\n%s", lines(p))
	}
	d.converge(t, class(anna+","+ben))
	if err := d.Bind(user("anna"), "anna's own"); err != nil {
		t.Errorf("she came back: %v", err)
	}
	d.converge(t, class(ben))
	d.converge(t, class(ben)+confirm("directory/User/anna"))
	if have := d.values(t, user("anna"), "uid"); have != nil {
		t.Error("she is still there")
	}
	if p := d.plan(t, class(ben+`,{name: thief, uid: 12001}`)); len(p.Waiting) != 1 || p.Waiting[0].Code != ldap.NumberTaken {
		t.Errorf("her number is free:\n%s", lines(p))
	}
	d.converge(t, class(anna+","+ben))

	// All at once, and there is nothing left but the memory.
	everybody := confirm("directory/User/anna, directory/User/ben")
	d.converge(t, everybody)
	d.converge(t, everybody)
	if have := d.values(t, group("pupils"), "member"); !slices.Equal(have, []string{"cn=kingmaker," + slapdtest.Base}) {
		t.Errorf("members of a group of nobody: %v", have)
	}
}

// TestOthers: what somebody else made is left alone and reported, and what conflicts
// with it waits.
func TestOthers(t *testing.T) {
	d := start(t)
	d.converge(t, class(`{name: anna, uid: 12001}`))
	for _, r := range []struct{ dn, uid, number string }{
		{user("theirs"), "theirs", "20001"}, {`uid=a\2Cb \+ c,ou=people,` + slapdtest.Base, "a,b + c", "20002"}} {
		add := goldap.NewAddRequest(r.dn, nil)
		add.Attribute("objectClass", []string{"inetOrgPerson", "posixAccount"})
		for name, value := range map[string]string{"uid": r.uid, "cn": "x", "sn": "x", "uidNumber": r.number, "gidNumber": "1", "homeDirectory": "/"} {
			add.Attribute(name, []string{value})
		}
		if err := d.Root().Add(add); err != nil {
			t.Fatal(err)
		}
	}
	at := d.Dump()
	documents := class(`{name: anna, uid: 12001}, {name: theirs, uid: 12002}, {name: taken, uid: 20002}, {name: free, uid: 12003}`)
	round, _ := d.reconciler(t).Converge(t.Context(), site(t, documents))
	var codes []string
	for _, f := range append(round.Plan.Waiting, round.Plan.Notes...) {
		codes = append(codes, string(f.Code)+" "+f.ID.Name)
	}
	if want := []string{"NumberTaken taken", "NotOurs theirs", "NotOurs kingmaker"}; !slices.Equal(codes, want) {
		t.Errorf("have %v, want %v\n%s", codes, want, lines(round.Plan))
	}
	d.converge(t, class(`{name: anna, uid: 12001}`)+confirm("directory/User/free"))
	if now := d.Dump(); strings.ReplaceAll(now, "description: uid 12003 was free\n", "") != at {
		t.Errorf("before:\n%s\nafter:\n%s", at, now)
	}
	// Handed over as the hint says, it is ours.
	d.modify(t, user("theirs"), "labeledURI", "kingmaker:Roster/handed-over")
	d.converge(t, class(`{name: anna, uid: 12001}, {name: theirs, uid: 20001}`))
}

// TestOddNames: what people are called goes in and comes out as it is.
func TestOddNames(t *testing.T) {
	d := start(t)
	odd := []string{"Arnold, Anna", "Ana María Núñez-O'Connor", "王小明", "Zoë 🦊", strings.Repeat("long ", 60) + "x", `a\2Cb+c="d";<e>#`, "#hash", "*)(uid=*",
		"two  spaces", "dc=school", "a\u0301 combined", "שלום", "x\u202ey", "'; --", "=", ","}
	var users []string
	for i, full := range odd {
		users = append(users, fmt.Sprintf(`{name: user-%d.X_, uid: %d, fullName: %q}`, i, 12000+i, full))
	}
	choir := "\n---\napiVersion: kingmaker.dev/v1alpha1\nkind: Group\nmetadata: {name: choir}\nspec: {gid: 10002, description: %q, members: [user-3.X_]}\n"
	d.converge(t, class(strings.Join(users, ","))+fmt.Sprintf(choir, odd[3]+odd[5]))
	for i, full := range odd {
		if have := d.values(t, user(fmt.Sprintf("user-%d.X_", i)), "cn"); !slices.Equal(have, []string{full}) {
			t.Errorf("%q became %q", full, have)
		}
	}
	d.converge(t, class(strings.Join(users, ","))+fmt.Sprintf(choir, "  ")) // of nothing but spaces: none
}

// TestInjection: a name that never should have come so far is nothing but a name.
func TestInjection(t *testing.T) {
	d := start(t)
	d.converge(t, class(`{name: anna, uid: 12001, password: {managed: "`+hash("anna's own")+`"}}`))
	at := d.Dump()
	s := d.open(t)
	for _, name := range []string{"x,ou=services," + slapdtest.Base, "*", "*)(uid=anna", "anna)(|(uid=*", `\2a`, "anna+cn=x", " anna ", "#anna", "a\x00b", "ä"} {
		evil := site(t, "")
		roster := plan.ID{System: plan.Directory, Kind: "Roster", Name: "evil"}
		evil.Objects.Add(plan.Object{ID: roster, Spec: map[string]any{"spec": map[string]any{"group": "pupils", "users": []any{
			map[string]any{"name": name, "uid": int64(12009), "password": map[string]any{"managed": plan.NewSecret("x")}}}}}})
		evil.Objects.Add(plan.Object{ID: plan.ID{System: plan.Directory, Kind: "Roster", Name: "class"}, Spec: map[string]any{"spec": map[string]any{"group": "pupils"}}})
		have, err := s.Observe(t.Context(), evil)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		want, err := s.Desire(t.Context(), evil, have)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		}
		id := plan.ID{System: plan.Directory, Kind: "User", Name: name}
		o := want[id]
		if err := s.Apply(t.Context(), plan.Change{ID: id, Want: &o}); err == nil {
			found, err := d.Root().Search(goldap.NewSearchRequest("ou=people,"+slapdtest.Base, goldap.ScopeSingleLevel, goldap.NeverDerefAliases, 0, 0, false,
				"(uidNumber=12009)", []string{"uid"}, nil))
			if err != nil || len(found.Entries) != 1 || found.Entries[0].GetAttributeValue("uid") != name {
				t.Errorf("%q: %v %v", name, found.Entries, err)
				continue
			}
			if err := d.Root().Del(goldap.NewDelRequest(found.Entries[0].DN, nil)); err != nil {
				t.Fatal(err)
			}
		}
		if now := d.Dump(); now != at {
			t.Fatalf("%q changed something else:\nbefore:\n%s\nafter:\n%s", name, at, now)
		}
	}
}

// TestLost: a server that does not answer, one that has lost everything, and one that
// has lost people are not filled anew.
func TestLost(t *testing.T) {
	d := start(t)
	documents := class(`{name: anna, uid: 12001}, {name: ben, uid: 12002}`)
	d.converge(t, documents)

	quick := d.open(t, func(o *ldap.Options) { o.Timeout = time.Second })
	if _, err := quick.Observe(t.Context(), site(t, documents)); err != nil {
		t.Fatal(err)
	}
	thaw := d.Freeze()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	if have, err := quick.Observe(ctx, site(t, documents)); err == nil {
		t.Errorf("a server that does not answer has %d objects", len(have))
	}
	cancel()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("that took %s", took)
	}
	thaw()
	for deadline := time.Now().Add(30 * time.Second); ; {
		_, err := quick.Observe(t.Context(), site(t, documents))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it answers again: %v", err)
		}
	}

	stopped := func(what string) {
		t.Helper()
		p := d.plan(t, documents)
		if len(p.Changes) != 0 || len(p.Waiting) != 1 || p.Waiting[0].Code != ldap.Emptied {
			t.Errorf("%s:\n%s", what, lines(p))
		}
	}
	for _, name := range []string{"anna", "ben"} {
		if err := d.Root().Del(goldap.NewDelRequest(user(name), nil)); err != nil {
			t.Fatal(err)
		}
	}
	stopped("no people")
	d.Off()
	d.Wipe()
	d.On()
	stopped("no data at all")
	d.converge(t, documents+confirm("directory/Tree/kingmaker"))
	d.converge(t, documents)
	if p := d.plan(t, documents); !p.Settled() {
		t.Errorf("begun anew:\n%s", lines(p))
	}
}

// TestOneModification: a changed user costs one modification, and it goes only to the
// version of the entry that was looked at.
func TestOneModification(t *testing.T) {
	d := start(t)
	d.converge(t, class(`{name: anna, uid: 12001, mail: a@school.example}, {name: ben, uid: 12002}`))
	p := d.plan(t, class(`{name: anna, uid: 12001, mail: b@school.example, shell: /bin/zsh}, {name: ben, uid: 12002}`))
	if len(p.Changes) != 1 {
		t.Fatalf("want one change:\n%s", lines(p))
	}
	before := d.values(t, user("anna"), "entryCSN")
	if err := d.open(t).Apply(t.Context(), p.Changes[0]); err != nil {
		t.Fatal(err)
	}
	if after := d.values(t, user("anna"), "entryCSN"); slices.Equal(before, after) {
		t.Error("nothing was written")
	}
	var f *plan.Fault
	d.modify(t, user("anna"), "mail", "c@school.example")
	if err := d.open(t).Apply(t.Context(), p.Changes[0]); !errors.As(err, &f) || f.Code != plan.Stale {
		t.Errorf("somebody else wrote meanwhile: %v", err)
	}
}

// TestServer: TLS is verified, both ways of it work, and an error says whom it could
// not log in.
func TestServer(t *testing.T) {
	d := start(t)
	ctx := t.Context()
	conn, err := d.login.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	strange := d.login
	strange.TLS = nil
	var unknown x509.UnknownAuthorityError
	if _, err := strange.Dial(ctx); !errors.As(err, &unknown) {
		t.Errorf("a CA that nobody trusts: %v", err)
	}
	wrong := d.login
	wrong.Password = plan.NewSecret("canary")
	if _, err := wrong.Dial(ctx); err == nil || strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), "cn=daemon") {
		t.Errorf("a wrong password: %v", err)
	}
	for _, url := range []string{"http://x", "ldap", "", "ldapi:///run/x"} {
		wrong.URL = url
		if _, err := wrong.Dial(ctx); err == nil {
			t.Errorf("%q is taken", url)
		}
	}
	if _, err := ldap.New(ldap.Options{Base: "school"}); err == nil {
		t.Error("a base that is no DN is taken")
	}
}

// TestNobody: a site without people that never had any asks no server.
func TestNobody(t *testing.T) {
	s, err := ldap.New(ldap.Options{Base: slapdtest.Base, Dial: func(context.Context) (*goldap.Conn, error) { return nil, errors.New("not to be asked") },
		Recall: func(context.Context) (string, error) { return "", nil }})
	if err != nil {
		t.Fatal(err)
	}
	empty := &plan.Site{Name: "school", Objects: plan.State{}}
	have, err := s.Observe(t.Context(), empty)
	if err != nil || len(have) > 0 {
		t.Errorf("%v %v", have, err)
	}
	if want, err := s.Desire(t.Context(), empty, have); err != nil || len(want) > 0 {
		t.Errorf("%v %v", want, err)
	}
}
