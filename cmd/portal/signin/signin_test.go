package signin_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/slapdtest"
	"github.com/kingmaker-io/kingmaker/cmd/portal/signin"
)

const people = `dn: ou=people,` + slapdtest.Base + `
objectClass: organizationalUnit
ou: people

dn: ou=groups,` + slapdtest.Base + `
objectClass: organizationalUnit
ou: groups

dn: ou=services,` + slapdtest.Base + `
objectClass: organizationalUnit
ou: services

dn: cn=portal,ou=services,` + slapdtest.Base + `
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: portal
userPassword: the portal's own

dn: uid=anna,ou=people,` + slapdtest.Base + `
objectClass: inetOrgPerson
objectClass: posixAccount
uid: anna
cn: Anna Arnold
sn: Arnold
uidNumber: 12001
gidNumber: 5000
homeDirectory: /home/anna
loginShell: /bin/bash
userPassword: correct horse battery

dn: uid=ben,ou=people,` + slapdtest.Base + `
objectClass: inetOrgPerson
objectClass: posixAccount
uid: ben
cn: Ben
sn: Ben
uidNumber: 12002
gidNumber: 5000
homeDirectory: /home/ben
userPassword: correct horse battery

dn: cn=pupils,ou=groups,` + slapdtest.Base + `
objectClass: groupOfNames
objectClass: posixGroup
cn: pupils
gidNumber: 5000
member: uid=anna,ou=people,` + slapdtest.Base + `

dn: cn=band,ou=groups,` + slapdtest.Base + `
objectClass: groupOfNames
objectClass: posixGroup
cn: band
gidNumber: 5001
member: uid=anna,ou=people,` + slapdtest.Base + `
`

// TestDirectory is the contract with a real slapd.
func TestDirectory(t *testing.T) {
	s := slapdtest.Start(t)
	s.Run(people, "ldapadd")
	s.Run("dn: uid=ben,ou=people,"+slapdtest.Base+"\nchangetype: modify\nadd: pwdAccountLockedTime\npwdAccountLockedTime: 000001010000Z\n", "ldapmodify")
	d := signin.New(s.Address, func(context.Context) (signin.Account, error) {
		return signin.Account{DN: "cn=portal,ou=services," + slapdtest.Base, Password: "the portal's own", Base: slapdtest.Base, TLS: s.TLS}, nil
	})
	ctx := t.Context()

	p, err := d.SignIn(ctx, "anna", "correct horse battery")
	if err != nil || p.Name != "anna" || p.FullName != "Anna Arnold" || p.UID != 12001 || p.GID != 5000 || strings.Join(p.GroupNames(), " ") != "pupils band" {
		t.Fatalf("%+v, %v", p, err)
	}
	if p, err := d.SignIn(ctx, "ANNA", "correct horse battery"); err != nil || p.Name != "anna" {
		t.Errorf("a name in capitals: %+v, %v", p, err)
	}
	// All of these are one answer.
	for _, try := range [][2]string{
		{"anna", "wrong"}, {"anna", ""}, {"nobody", "correct horse battery"}, {"ben", "correct horse battery"}, {"", "x"}, {"*", "correct horse battery"},
		{"anna)(uid=*", "correct horse battery"}, {"anna\x00", "correct horse battery"}, {"nobody", "the portal's own"}, {"anna", strings.Repeat("x", 1000)},
		{strings.Repeat("a", 33), "correct horse battery"},
	} {
		if _, err := d.SignIn(ctx, try[0], try[1]); !errors.Is(err, signin.ErrRefused) || err.Error() != signin.ErrRefused.Error() {
			t.Errorf("%q: %v", try[0], err)
		}
	}
	if _, err := d.Person(ctx, "ben"); !errors.Is(err, signin.ErrUnknown) {
		t.Errorf("who is locked: %v", err)
	}

	if err := d.ChangePassword(ctx, "anna", "correct horse battery", "short"); !errors.Is(err, signin.ErrWeak) {
		t.Errorf("a short one: %v", err)
	}
	if err := d.ChangePassword(ctx, "anna", "wrong", "a new password that is long"); !errors.Is(err, signin.ErrRefused) {
		t.Errorf("without the old one: %v", err)
	}
	if err := d.ChangePassword(ctx, "anna", "correct horse battery", "a new password that is long"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.SignIn(ctx, "anna", "a new password that is long"); err != nil {
		t.Error(err)
	}
	if _, err := d.SignIn(ctx, "anna", "correct horse battery"); !errors.Is(err, signin.ErrRefused) {
		t.Error("the old one still works")
	}

	s.Off()
	if _, err := d.SignIn(ctx, "anna", "a canary of a password"); err == nil || errors.Is(err, signin.ErrRefused) || strings.Contains(fmt.Sprint(err), "canary") {
		t.Errorf("a directory that is away: %v", err)
	}
}

// TestLimits: the room waits, the attacker is sent away, nobody is locked out.
func TestLimits(t *testing.T) {
	now := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	l := &signin.Limits{Now: func() time.Time { return now }, Shared: func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.1") }}
	attacker, anna := netip.MustParseAddr("10.20.1.66"), netip.MustParseAddr("10.20.1.7")
	refused, slowed := 0, 0
	for range 1000 {
		delay, ok := l.Enter("anna", attacker)
		if !ok {
			refused++
			continue
		}
		if delay > 0 {
			slowed++
		}
		l.Leave("anna", attacker, delay, false)
	}
	if refused != 970 || slowed != 25 {
		t.Errorf("%d sent away, %d slowed", refused, slowed)
	}
	delay, ok := l.Enter("anna", anna)
	if !ok || delay > 8*time.Second || delay == 0 {
		t.Errorf("anna herself: %s, %v", delay, ok)
	}
	l.Leave("anna", anna, delay, true)
	ben := netip.MustParseAddr("10.20.1.8")
	for range 20 { // who knows his password does not guess it
		delay, ok := l.Enter("ben", ben)
		if !ok || delay != 0 {
			t.Fatalf("ben, beside: %s, %v", delay, ok)
		}
		l.Leave("ben", ben, delay, true)
	}
	for i := range 6 { // but before it is known which of them he is
		if delay, ok := l.Enter("carl", netip.MustParseAddr("10.20.1.9")); !ok || (delay > 0) != (i == 5) {
			t.Errorf("the %dth of carl's at once: %s, %v", i, delay, ok)
		}
	}
	for i := range 300 {
		if _, ok := l.Enter(fmt.Sprint("u", i), netip.MustParseAddr("10.0.0.1")); !ok {
			t.Fatalf("a class that comes over one machine: the %dth is sent away", i)
		}
	}
	now = now.Add(11 * time.Minute)
	if delay, ok := l.Enter("anna", attacker); !ok || delay != 0 {
		t.Errorf("later: %s, %v", delay, ok)
	}
}
