package gluster_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
	"github.com/kingmaker-io/kingmaker/reconciler/systemtest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// cluster is a real API server with a real etcd behind it, the kinds of this room, and
// five Machines whose bricks are reported as well.
type cluster struct {
	*controlplane.Plane
	config *rest.Config
	client dynamic.Interface
}

func startCluster(t *testing.T) cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plane.Stop() })
	config, err := clientcmd.BuildConfigFromFlags("", plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c := cluster{plane, config, client}
	for _, crd := range []string{"machines", "volumes", "pools"} {
		c.kubectl(t, "", "apply", "-f", "../../manifests/base/crd-"+crd+".yaml")
		c.kubectl(t, "", "wait", "--for=condition=Established", "crd/"+crd+".kingmaker.dev")
	}
	for i := range 5 {
		c.addMachine(t, i+1)
	}
	return c
}

// addMachine makes a Machine that reports a brick.
func (c cluster) addMachine(t *testing.T, n int) {
	t.Helper()
	name, now := fmt.Sprintf("pc-%02d", n), time.Now().UTC().Format(time.RFC3339)
	c.kubectl(t, fmt.Sprintf("apiVersion: kingmaker.dev/v1alpha1\nkind: Machine\nmetadata: {name: %s}\nspec: {address: 10.99.0.%d, role: worker, roleGeneration: 1}\n", name, n), "apply", "-f", "-")
	status := fmt.Sprintf(`{"status":{"heartbeat":%q,"inventory":{"address":"10.99.0.%d"},"brick":{"heartbeat":%[1]q,"size":%d,"free":900,"glusterd":"u%[2]d"}}}`, now, n, 1000+n)
	if _, err := c.client.Resource(gluster.MachineResource()).Patch(t.Context(), name, types.MergePatchType, []byte(status), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

func (c cluster) kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command(c.Bin("kubectl"), append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (c cluster) open(t *testing.T) *gluster.System {
	t.Helper()
	s, err := gluster.New(c.config)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// schoolSite is a site of five machines with volumes in a text, NAME: {spec}, a line each,
// and a class of two.
func schoolSite(t *testing.T, commit, volumes string) *plan.Site {
	t.Helper()
	document := func(kind, name string, spec map[string]any) map[string]any {
		return map[string]any{"apiVersion": plan.APIVersion, "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec}
	}
	documents := []map[string]any{
		document("Group", "class", map[string]any{"gid": int64(2001)}),
		document("Roster", "class", map[string]any{"group": "class", "users": []any{
			map[string]any{"name": "mary", "uid": int64(3002)}, map[string]any{"name": "ada", "uid": int64(3001)}}}),
	}
	for i := range 5 {
		documents = append(documents, document("Machine", fmt.Sprintf("pc-%02d", i+1), map[string]any{"address": fmt.Sprintf("10.99.0.%d", i+1)}))
	}
	var specs map[string]map[string]any
	if err := yaml.Unmarshal([]byte(volumes), &specs); err != nil {
		t.Fatal(err)
	}
	for name, spec := range specs {
		documents = append(documents, document("Volume", name, spec))
	}
	s := plantest.Site(t, documents...)
	s.Commit = commit
	return s
}

// snapshot is all Volumes, but for what the server keeps for itself.
func (c cluster) snapshot(t *testing.T) string {
	t.Helper()
	list, err := c.client.Resource(gluster.Resource()).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, o := range list.Items {
		for _, field := range []string{"resourceVersion", "managedFields", "uid", "generation", "creationTimestamp"} {
			delete(o.Object["metadata"].(map[string]any), field)
		}
		text, _ := yaml.Marshal(o.Object)
		b.Write(text)
	}
	return b.String()
}

func TestContract(t *testing.T) {
	c := startCluster(t)
	const first = `
homes: {access: homes, replicas: 3}
shared: {access: shared, replicas: 3, options: {performance.cache-size: 256MB}}
old: {replicas: 1}
`
	second := strings.NewReplacer("homes, replicas: 3", "homes, replicas: 5", "256MB", "128MB", "old:", "new:").Replace(first)
	meddled := 0
	systemtest.Run(t, systemtest.World{
		Open:     func(t *testing.T) reconciler.System { return c.open(t) },
		Sites:    []*plan.Site{schoolSite(t, "first", first), schoolSite(t, "second", second)},
		Snapshot: c.snapshot,
		Meddled:  plan.ID{System: plan.Volumes, Kind: "Volume", Name: "shared"},
		Meddle: func(t *testing.T, id plan.ID) {
			meddled++
			c.patch(t, id.Name, fmt.Sprintf(`{"spec":{"options":{"performance.cache-size":"%dMB"}}}`, meddled))
		},
		Refuse: func(t *testing.T) func() { return c.deny(t, "shared") },
		Break: func(t *testing.T) func() {
			if err := c.StopAPIServer(); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := c.StartAPIServer(context.WithoutCancel(t.Context())); err != nil {
					t.Fatal(err)
				}
			}
		},
	})
}

// patch changes a Volume as somebody else.
func (c cluster) patch(t *testing.T, name, body string, sub ...string) {
	t.Helper()
	if _, err := c.client.Resource(gluster.Resource()).Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "somebody"}, sub...); err != nil {
		t.Fatal(err)
	}
}

// deny has the API server refuse updates of Volumes by a policy, until undone.
func (c cluster) deny(t *testing.T, name string) (undo func()) {
	t.Helper()
	const policy = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: deny}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [kingmaker.dev], apiVersions: ["*"], operations: [UPDATE], resources: [volumes]}]
  validations: [{expression: "false", message: "not today"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: deny}
spec: {policyName: deny, validationActions: [Deny]}
`
	c.kubectl(t, policy, "apply", "-f", "-")
	probe := func() error {
		_, err := c.client.Resource(gluster.Resource()).Patch(context.WithoutCancel(t.Context()), name, types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"probe":"x"}}}`), metav1.PatchOptions{DryRun: []string{"All"}})
		return err
	}
	await(t, "the policy to act", func() bool { return probe() != nil })
	return func() {
		c.kubectl(t, policy, "delete", "-f", "-")
		await(t, "the policy to end", func() bool { return probe() == nil })
	}
}

// await waits for a condition.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// TestDeletion is the way of a volume that exists: nothing goes without consent, then
// the pool is told, and once it has the volume no more the object goes, too.
func TestDeletion(t *testing.T) {
	c := startCluster(t)
	r := &reconciler.Reconciler{Systems: []reconciler.System{c.open(t)}}
	with, without := schoolSite(t, "with", "homes: {access: homes, replicas: 3}"), schoolSite(t, "without", "")
	if round, _ := r.Converge(t.Context(), with); !round.Settled() {
		t.Fatalf("not settled: %v", round.Err)
	}
	out := c.kubectl(t, "", "get", "volumes.kingmaker.dev", "homes", "-o", "jsonpath={.spec.bricks[*].machine} {.spec.homes[*].name} {.spec.homes[0].gid}")
	if want := "pc-05 pc-04 pc-03 ada mary 2001"; out != want { // the biggest bricks, and the people in order
		t.Errorf("placed %q, want %q", out, want)
	}
	c.patch(t, "homes", `{"status":{"id":"0-1","phase":"Started","pending":0}}`, "status")

	p, err := r.Plan(t.Context(), without)
	if err != nil || len(p.Changes) != 0 || len(p.Withheld) != 1 || p.Withheld[0].Reason.Code != plan.NeedsConsent {
		t.Fatalf("without consent: %v %v %v", err, p.Changes, p.Withheld)
	}
	without.Spec.Confirm = append(without.Spec.Confirm, "volumes/Volume/homes")
	round, _ := r.Converge(t.Context(), without)
	if faults, _ := plan.Split(round.Err); len(faults) == 0 || faults[0].Code != gluster.Deleting {
		t.Fatalf("with consent: %v", round.Err)
	}
	if out := c.kubectl(t, "", "get", "volumes.kingmaker.dev", "homes", "-o", "jsonpath={.spec.delete}"); out != "true" {
		t.Fatalf("the steward is told %q", out)
	}
	c.patch(t, "homes", `{"status":{"phase":"Deleted"}}`, "status")
	if round, _ := r.Converge(t.Context(), without); !round.Settled() {
		t.Fatalf("not settled: %v", round.Err)
	}
	if left := c.snapshot(t); left != "" {
		t.Errorf("left:\n%s", left)
	}
}
