package ldap_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/systemtest"
)

func TestContract(t *testing.T) {
	d := start(t)
	way := systemtest.NewWay(t, d.Address)
	d.login.URL = "ldaps://" + way.Address
	managed := hash("of a printer")
	first := site(t, class(`
  {name: anna, uid: 12001, fullName: Anna Arnold, mail: anna@school.example, password: {initial: "`+hash("anna's own")+`"}},
  {name: ben, uid: 12002, disabled: true},
  {name: Printer, uid: 12003, password: {managed: "`+managed+`"}},
  {name: gone, uid: 12004}`)+`
---
apiVersion: kingmaker.dev/v1alpha1
kind: Group
metadata: {name: choir}
spec: {gid: 10002, description: Who sings, members: [anna, ben]}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Group
metadata: {name: old}
spec: {gid: 10003, members: []}
`)
	first.Commit = "first"
	second := site(t, class(`
  {name: anna, uid: 12001, fullName: Anna Berg, password: {initial: "`+hash("never written")+`"}},
  {name: ben, uid: 12002},
  {name: Printer, uid: 12003, password: {managed: "`+managed+`"}, shell: /usr/sbin/nologin},
  {name: cleo, uid: 12005, disabled: true}`)+`
---
apiVersion: kingmaker.dev/v1alpha1
kind: Group
metadata: {name: choir}
spec: {gid: 10002, members: [cleo]}
`+confirm("directory/User/gone"))
	second.Commit = "second"
	var within []plan.ID
	for _, name := range []string{"anna", "ben", "Printer", "cleo"} {
		within = append(within, plan.ID{System: plan.Directory, Kind: "User", Name: name})
	}
	meddled := 0
	systemtest.Run(t, systemtest.World{
		Open:   func(t *testing.T) reconciler.System { return d.open(t) },
		Sites:  []*plan.Site{first, second},
		Within: append(within, ldap.TreeID()),
		Snapshot: func(t *testing.T) string {
			return fmt.Sprintf("%sremembered: %v\n", d.Dump(), d.known != "")
		},
		Meddled: within[0],
		Meddle: func(t *testing.T, id plan.ID) {
			meddled++
			d.modify(t, user(id.Name), "mail", fmt.Sprintf("%d@elsewhere.example", meddled))
		},
		Refuse: func(t *testing.T) func() { return d.ReadOnly() },
		Break: func(t *testing.T) func() {
			way.Cut()
			return func() { way.Mend(t) }
		},
	})
	if left := d.Dump(); strings.Contains(left, "kingmaker") {
		t.Errorf("left:\n%s", left)
	}
}
