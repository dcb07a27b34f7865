package machine_test

import (
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
)

func TestValidate(t *testing.T) {
	plantest.Golden(t, "testdata/validate.txt", machine.Validate)
}
