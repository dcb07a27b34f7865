package slapdtest_test

import (
	"testing"

	goldap "github.com/go-ldap/ldap/v3"
	"github.com/kingmaker-io/kingmaker/cmd/lab/slapdtest"
)

// TestStart: it answers over TLS to who has the password, and to nobody else; and
// after a power cut, too.
func TestStart(t *testing.T) {
	s := slapdtest.Start(t)
	s.Off()
	s.On()
	if err := s.Bind(slapdtest.BindDN, slapdtest.Password); err != nil {
		t.Error(err)
	}
	if err := s.Bind(slapdtest.BindDN, "wrong"); !goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials) {
		t.Errorf("a wrong password: %v", err)
	}
	undo := s.ReadOnly()
	r := goldap.NewModifyRequest(slapdtest.Base, nil)
	r.Replace("description", []string{"changed"})
	if err := s.Root().Modify(r); !goldap.IsErrorWithCode(err, goldap.LDAPResultUnwillingToPerform) {
		t.Errorf("a change where nothing may be: %v", err)
	}
	undo()
	if err := s.Root().Modify(r); err != nil {
		t.Error(err)
	}
	if s.Dump() == "" {
		t.Error("there is nothing in it")
	}
}
