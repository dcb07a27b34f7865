package kube_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
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

// cluster is a real API server with a real etcd behind it.
type cluster struct {
	*controlplane.Plane
	config  *rest.Config
	dynamic dynamic.Interface
}

// start brings up a cluster for one test.
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
	return cluster{plane, config, client}
}

func (c cluster) open(t *testing.T) *kube.System {
	t.Helper()
	system, err := kube.New(t.Context(), kube.Options{Config: c.config})
	if err != nil {
		t.Fatal(err)
	}
	return system
}

// siteCRD is as much of our own definition as these tests need.
const siteCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: sites.kingmaker.dev
  labels: {applyset.kubernetes.io/is-parent-type: "true"}
spec:
  group: kingmaker.dev
  scope: Cluster
  names: {kind: Site, plural: sites, singular: site, listKind: SiteList}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Site
metadata: {name: school}
spec: {masters: 1}
`

// site makes a site of the documents in a text, with our own definitions.
func site(t *testing.T, commit, text string, confirm ...string) *plan.Site {
	t.Helper()
	s := &plan.Site{Name: "school", Commit: commit, Objects: plan.State{}}
	s.Spec.Confirm = append(confirm, "objects/CustomResourceDefinition.apiextensions.k8s.io/printers.example.org")
	for _, document := range strings.Split(siteCRD+"\n---\n"+text, "\n---\n") {
		var content map[string]any
		if err := yaml.Unmarshal([]byte(document), &content); err != nil {
			t.Fatal(err)
		}
		if content == nil {
			continue
		}
		id, err := plan.Identify(content)
		if err != nil {
			t.Fatal(err)
		}
		plan.Conceal(content)
		s.Objects.Add(plan.Object{ID: id, Spec: content, Origin: "services/test.yaml"})
	}
	return s
}

func id(text string) plan.ID {
	id, err := plan.ParseID(text)
	if err != nil {
		panic(err)
	}
	return id
}

const base = `
apiVersion: v1
kind: Namespace
metadata: {name: wiki}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: wiki}
data: {title: Wiki, color: blue}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: wiki}
stringData: {password: canary-7f3a}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: wiki}
spec:
  selector: {app: wiki}
  ports: [{port: 80}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: wiki}
spec:
  replicas: 2
  selector: {matchLabels: {app: wiki}}
  template:
    metadata: {labels: {app: wiki}}
    spec: {containers: [{name: web, image: "wiki:1"}]}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: printers.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {kind: Printer, plural: printers, singular: printer, listKind: PrinterList}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {color: {type: boolean, default: true}, room: {type: string}}}}
---
apiVersion: example.org/v1
kind: Printer
metadata: {name: laser, namespace: wiki}
spec: {room: "12"}
`

func TestContract(t *testing.T) {
	c := start(t, controlplane.Options{Controllers: true}) // who else would empty a namespace
	changed := strings.NewReplacer("color: blue", "color: red, motto: new", "replicas: 2", "replicas: 3", `room: "12"`, `room: "13"`).Replace(base)
	fewer := strings.Replace(changed, "kind: Service\nmetadata: {name: web,", "kind: Service\nmetadata: {name: other,", 1)
	meddled := 0
	systemtest.Run(t, systemtest.World{
		Open:     func(t *testing.T) reconciler.System { return c.open(t) },
		Sites:    []*plan.Site{site(t, "first", base), site(t, "second", changed), site(t, "third", fewer)},
		Snapshot: func(t *testing.T) string { return c.snapshot(t) },
		Meddled:  id("objects/Deployment.apps/wiki/web"),
		Meddle: func(t *testing.T, id plan.ID) {
			meddled++
			body := fmt.Sprintf(`{"spec":{"replicas":%d}}`, 10+meddled)
			_, err := c.dynamic.Resource(deployments).Namespace("wiki").Patch(t.Context(), "web", types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "kubectl-edit"})
			if err != nil {
				t.Fatal(err)
			}
		},
		Refuse: func(t *testing.T) func() { return c.deny(t, "apps", "deployments", "UPDATE") },
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

var deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}

// deny has the API server refuse an operation by a policy, until undone.
func (c cluster) deny(t *testing.T, group, resource, operation string) (undo func()) {
	t.Helper()
	admission := schema.GroupVersion{Group: "admissionregistration.k8s.io", Version: "v1"}
	ctx := context.WithoutCancel(t.Context())
	policies, bindings := admission.WithResource("validatingadmissionpolicies"), admission.WithResource("validatingadmissionpolicybindings")
	c.mustApply(t, policies, "", fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: deny}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [%q], apiVersions: ["*"], operations: [%s], resources: [%s]}]
  validations: [{expression: "false", message: "not today"}]
`, group, operation, resource))
	c.mustApply(t, bindings, "", `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: deny}
spec: {policyName: deny, validationActions: [Deny]}
`)
	probe := func() error {
		_, err := c.dynamic.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource}).Namespace("wiki").
			Patch(ctx, "web", types.MergePatchType, []byte(`{"metadata":{"labels":{"probe":"x"}}}`), metav1.PatchOptions{DryRun: []string{"All"}})
		return err
	}
	await(t, "the policy to act", func() bool { return probe() != nil })
	return func() {
		for _, r := range []schema.GroupVersionResource{bindings, policies} {
			if err := c.dynamic.Resource(r).Delete(ctx, "deny", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		await(t, "the policy to end", func() bool { return probe() == nil })
	}
}

func (c cluster) mustApply(t *testing.T, gvr schema.GroupVersionResource, namespace, text string) {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var named struct{ Metadata struct{ Name string } }
	if err := yaml.Unmarshal(data, &named); err != nil {
		t.Fatal(err)
	}
	var r dynamic.ResourceInterface = c.dynamic.Resource(gvr)
	if namespace != "" {
		r = c.dynamic.Resource(gvr).Namespace(namespace)
	}
	if _, err := r.Patch(t.Context(), named.Metadata.Name, types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: "test"}); err != nil {
		t.Fatal(err)
	}
}

// snapshot is all objects of the kinds that these tests use, but for what the
// server and its controllers keep for themselves.
func (c cluster) snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, gvr := range []schema.GroupVersionResource{
		{Version: "v1", Resource: "namespaces"}, {Version: "v1", Resource: "configmaps"}, {Version: "v1", Resource: "secrets"},
		{Version: "v1", Resource: "services"}, deployments,
		{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
		{Group: "example.org", Version: "v1", Resource: "printers"}, {Group: "kingmaker.dev", Version: "v1alpha1", Resource: "sites"},
	} {
		list, err := c.dynamic.Resource(gvr).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			continue // not served: there are none
		}
		for _, o := range list.Items {
			if o.GetDeletionTimestamp() != nil || o.GetName() == "kube-root-ca.crt" || strings.HasPrefix(o.GetNamespace(), "kube-") || o.GetNamespace() == "default" {
				continue
			}
			if spec := o.Object["spec"]; gvr.Resource == "services" {
				delete(spec.(map[string]any), "clusterIP")
				delete(spec.(map[string]any), "clusterIPs")
			}
			delete(o.Object, "status")
			unstructured.RemoveNestedField(o.Object, "metadata", "annotations", "deployment.kubernetes.io/revision")
			for _, field := range []string{"resourceVersion", "managedFields", "uid", "generation", "creationTimestamp"} {
				delete(o.Object["metadata"].(map[string]any), field)
			}
			text, _ := yaml.Marshal(o.Object)
			b.Write(text)
			b.WriteString("---\n")
		}
	}
	return b.String()
}

// await waits for a condition.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
