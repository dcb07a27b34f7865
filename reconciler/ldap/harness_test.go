package ldap_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	goldap "github.com/go-ldap/ldap/v3"
	"golang.org/x/crypto/argon2"

	"github.com/kingmaker-io/kingmaker/cmd/lab/slapdtest"
	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
)

// directory is a real slapd, and what the site remembers of it.
type directory struct {
	*slapdtest.Server
	known string
	login ldap.Server // of the daemon
}

func start(t testing.TB) *directory {
	t.Helper()
	s := slapdtest.Start(t)
	return &directory{Server: s, login: ldap.Server{URL: s.URL, TLS: s.TLS, BindDN: slapdtest.BindDN, Password: plan.NewSecret(slapdtest.Password)}}
}

// open is a System with no memory, as a fresh process has.
func (d *directory) open(t testing.TB, change ...func(*ldap.Options)) *ldap.System {
	t.Helper()
	o := ldap.Options{Dial: d.login.Dial, Base: slapdtest.Base, Timeout: 10 * time.Second,
		Recall:   func(context.Context) (string, error) { return d.known, nil },
		Remember: func(_ context.Context, id string) error { d.known = id; return nil },
	}
	for _, c := range change {
		c(&o)
	}
	s, err := ldap.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func (d *directory) reconciler(t testing.TB) *reconciler.Reconciler {
	t.Helper()
	return &reconciler.Reconciler{Systems: []reconciler.System{d.open(t)}}
}

// converge makes the directory what a site says, and fails where that cannot be.
func (d *directory) converge(t testing.TB, documents string) {
	t.Helper()
	round, _ := d.reconciler(t).Converge(t.Context(), site(t, documents))
	if !round.Settled() {
		t.Fatalf("not settled: %v\n%s", round.Err, lines(round.Plan))
	}
}

// plan is what would be done.
func (d *directory) plan(t testing.TB, documents string) *plan.Plan {
	t.Helper()
	p, err := d.reconciler(t).Plan(t.Context(), site(t, documents))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// modify changes an entry as somebody else does.
func (d *directory) modify(t testing.TB, dn, attribute string, values ...string) {
	t.Helper()
	r := goldap.NewModifyRequest(dn, nil)
	r.Replace(attribute, values)
	if err := d.Root().Modify(r); err != nil {
		t.Fatal(err)
	}
}

// values of an attribute of an entry, nil where there is no such entry.
func (d *directory) values(t testing.TB, dn, attribute string) []string {
	t.Helper()
	r := goldap.NewSearchRequest(dn, goldap.ScopeBaseObject, goldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", []string{attribute}, nil)
	result, err := d.Root().Search(r)
	if err != nil {
		return nil
	}
	return result.Entries[0].GetAttributeValues(attribute)
}

func user(name string) string  { return "uid=" + name + ",ou=people," + slapdtest.Base }
func group(name string) string { return "cn=" + name + ",ou=groups," + slapdtest.Base }

// site is a site of documents in YAML, and a group of pupils.
func site(t testing.TB, documents string) *plan.Site {
	t.Helper()
	return plantest.Site(t, plantest.Documents(t, pupils+"\n---\n"+documents)...)
}

const pupils = `
apiVersion: kingmaker.dev/v1alpha1
kind: Group
metadata: {name: pupils}
spec: {gid: 10001}`

// class is a Roster of pupils in YAML.
func class(users string) string {
	return "apiVersion: kingmaker.dev/v1alpha1\nkind: Roster\nmetadata: {name: class}\nspec: {group: pupils, users: [" + users + "]}\n"
}

// confirm is a Site document that consents.
func confirm(ids string) string {
	return "---\napiVersion: kingmaker.dev/v1alpha1\nkind: Site\nmetadata: {name: school}\nspec: {confirm: [" + ids + "]}\n"
}

// hash is what a Roster holds of a password, as cheap as slapd can check it.
func hash(password string) string {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	enc := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("{ARGON2}$argon2id$v=19$m=1024,t=1,p=1$%s$%s", enc(salt), enc(argon2.IDKey([]byte(password), salt, 1, 1024, 1, 32)))
}

// lines are a plan as a person reads it, a line a change.
func lines(p *plan.Plan) (text string) {
	if p == nil {
		return ""
	}
	for _, c := range p.Changes {
		text += fmt.Sprintf("%s %s: %s\n", c.Action(), c.ID, c.Why)
	}
	for _, w := range p.Withheld {
		text += fmt.Sprintf("withheld: %s: %s\n", w.Reason.Code, w.Reason)
	}
	return text + plantest.Lines(p.Waiting, p.Notes)
}
