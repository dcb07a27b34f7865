package ldap_test

import (
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
)

func TestValidate(t *testing.T) {
	plantest.Golden(t, "testdata/validate.txt", ldap.Validate)
}
