package machine_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
	"github.com/kingmaker-io/kingmaker/reconciler/systemtest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

var (
	machines = schema.GroupVersionResource{Group: plan.Group, Version: "v1alpha1", Resource: "machines"}
	nodes    = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	secrets  = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
)

// cluster is a real API server with a real etcd behind it, and what the
// manifests bring for machines. There are no machines: tests make the Nodes.
type cluster struct {
	*controlplane.Plane
	config   *rest.Config
	dynamic  dynamic.Interface
	requests *atomic.Int64 // by what open gives
}

func start(t *testing.T, o controlplane.Options) cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	o.Progress = os.Stderr
	plane, err := controlplane.Start(t.Context(), o)
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
	c := cluster{plane, config, client, &atomic.Int64{}}
	c.kubectl(t, "", "apply", "-f", "../../manifests/base/crd-machines.yaml")
	c.kubectl(t, "", "apply", "-k", "../../manifests/machines")
	c.kubectl(t, "", "wait", "--for=condition=Established", "crd/machines.kingmaker.dev")
	return c
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

func (c cluster) open(t *testing.T, notify func()) *machine.System {
	t.Helper()
	config := rest.CopyConfig(c.config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			c.requests.Add(1)
			return next.RoundTrip(r)
		})
	})
	system, err := machine.New(t.Context(), machine.Options{Config: config, Notify: notify})
	if err != nil {
		t.Fatal(err)
	}
	return system
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// site makes a site of machines in a text: NAME: {spec}, a line each.
func site(t *testing.T, commit, text string) *plan.Site {
	t.Helper()
	var specs map[string]map[string]any
	if err := yaml.Unmarshal([]byte(text), &specs); err != nil {
		t.Fatal(err)
	}
	var documents []map[string]any
	for name, spec := range specs {
		documents = append(documents, map[string]any{"apiVersion": plan.APIVersion, "kind": "Machine", "metadata": map[string]any{"name": name}, "spec": spec})
	}
	s := plantest.Site(t, documents...)
	s.Commit = commit
	for id, o := range s.Objects {
		o.Origin = "machines/" + id.Name + ".yaml"
		s.Objects.Add(o)
	}
	return s
}

func id(name string) plan.ID {
	return plan.ID{System: plan.Machines, Kind: "Machine", Name: name}
}

// join makes a Node as a kubelet does when its machine joins.
func (c cluster) join(t *testing.T, name string, master bool) {
	t.Helper()
	node := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{"name": name, "labels": map[string]any{"kubernetes.io/hostname": name}},
		"spec":     map[string]any{"taints": []any{map[string]any{"key": machine.UnlistedTaint, "effect": "NoSchedule"}}}}}
	if master {
		node.SetLabels(map[string]string{"node-role.kubernetes.io/control-plane": ""})
		delete(node.Object, "spec")
	}
	if _, err := c.dynamic.Resource(nodes).Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// merge patches an object as somebody else.
func (c cluster) merge(t *testing.T, gvr schema.GroupVersionResource, name, body string, sub ...string) {
	t.Helper()
	if _, err := c.dynamic.Resource(gvr).Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "somebody"}, sub...); err != nil {
		t.Fatal(err)
	}
}

func TestContract(t *testing.T) {
	c := start(t, controlplane.Options{})
	c.join(t, "pc-01", true)
	c.join(t, "pc-02", false)
	c.join(t, "pc-03", false)
	c.join(t, "pc-04", false) // never listed
	c.merge(t, nodes, "pc-02", `{"metadata":{"labels":{"theirs":"1"}}}`)
	c.kubectl(t, "", "taint", "node", "pc-03", "theirs=1:NoExecute")
	const first = `
pc-01: {address: 10.0.0.11, circuit: a}
pc-02: {address: 10.0.0.12, circuit: a, disk: {system: 40Gi, brick: false}, labels: {room: "12", gpu: ""}, taints: [{key: room, value: "12", effect: NoSchedule}, {key: gpu, effect: NoExecute}]}
pc-05: {mac: "52:54:00:00:00:05", labels: {}, taints: []}
`
	second := strings.NewReplacer("circuit: a, disk", "circuit: b, disk", `room: "12", gpu: ""`, `room: "13"`, `value: "12"`, `value: "13"`, ", {key: gpu, effect: NoExecute}", "").Replace(first) +
		"pc-03: {address: 10.0.0.13, taints: [{key: room, effect: PreferNoSchedule}]}\n"
	third := strings.Replace(second, "pc-05:", "pc-06:", 1)
	sites := []*plan.Site{site(t, "first", first), site(t, "second", second), site(t, "third", third)}
	for _, meddling := range []struct {
		name, body string
		resource   schema.GroupVersionResource
	}{
		{"with the Machine", `{"spec":{"circuit":"c-%d"}}`, machines},
		{"with the Node", `{"metadata":{"labels":{"room":"x-%[1]d"}},"spec":{"taints":[
			{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"},{"key":"kingmaker.dev/unlisted","effect":"NoSchedule","value":"x-%[1]d"}]}}`, nodes},
	} {
		t.Run(meddling.name, func(t *testing.T) {
			meddled := 0
			systemtest.Run(t, systemtest.World{
				Open:     func(t *testing.T) reconciler.System { return c.open(t, nil) },
				Sites:    sites,
				Snapshot: func(t *testing.T) string { return c.snapshot(t) },
				Meddled:  id("pc-02"),
				Meddle: func(t *testing.T, id plan.ID) {
					meddled++
					c.merge(t, meddling.resource, id.Name, fmt.Sprintf(meddling.body, meddled))
				},
				Refuse: func(t *testing.T) func() { return c.deny(t, meddling.resource) },
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
		})
	}
}

// snapshot is all Machines and Nodes, but for what the server keeps for itself.
// The order of taints is nobody's.
func (c cluster) snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, gvr := range []schema.GroupVersionResource{machines, nodes} {
		list, err := c.dynamic.Resource(gvr).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			for _, field := range []string{"resourceVersion", "managedFields", "uid", "generation", "creationTimestamp"} {
				delete(o.Object["metadata"].(map[string]any), field)
			}
			delete(o.Object, "status")
			if taints, _, _ := unstructured.NestedSlice(o.Object, "spec", "taints"); taints != nil {
				slices.SortFunc(taints, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
				unstructured.SetNestedSlice(o.Object, taints, "spec", "taints")
			}
			text, _ := yaml.Marshal(o.Object)
			b.Write(text)
			b.WriteString("---\n")
		}
	}
	return b.String()
}

// deny has the API server refuse updates of a resource by a policy, until undone.
func (c cluster) deny(t *testing.T, gvr schema.GroupVersionResource) (undo func()) {
	t.Helper()
	policy := fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: deny}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [%q], apiVersions: ["*"], operations: [UPDATE], resources: [%s]}]
  validations: [{expression: "false", message: "not today"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: deny}
spec: {policyName: deny, validationActions: [Deny]}
`, gvr.Group, gvr.Resource)
	c.kubectl(t, policy, "apply", "-f", "-")
	probe := func() error {
		_, err := c.dynamic.Resource(gvr).Patch(context.WithoutCancel(t.Context()), "pc-02", types.MergePatchType,
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
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
