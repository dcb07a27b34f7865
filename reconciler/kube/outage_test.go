package kube_test

import (
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/systemtest"
	"k8s.io/client-go/rest"
)

// TestOutage has the way to the API server go and come back while the server
// stays, as when a balancer lost its masters for a moment: the watches resume,
// and nobody lists again.
func TestOutage(t *testing.T) {
	c := start(t, controlplane.Options{})
	w := systemtest.NewWay(t, strings.TrimPrefix(c.URL, "https://"))
	config := rest.CopyConfig(c.config)
	config.Host = "https://" + w.Address
	system, err := kube.New(t.Context(), kube.Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	s := site(t, "c0ffee", base)
	r := &reconciler.Reconciler{Systems: []reconciler.System{system}}
	if round, _ := r.Converge(t.Context(), s); !round.Settled() {
		t.Fatal(round.Err)
	}
	w.Cut()
	await(t, "the outage to be seen", func() bool {
		_, err := system.Observe(t.Context(), s)
		return err != nil
	})
	w.Mend(t)
	await(t, "the cluster to be read again", func() bool {
		_, err := system.Observe(t.Context(), s)
		return err == nil
	})
}
