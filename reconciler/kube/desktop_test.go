package kube_test

import (
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
)

func TestValidateDesktops(t *testing.T) {
	plantest.Golden(t, "testdata/desktops.txt", kube.Validate)
}
