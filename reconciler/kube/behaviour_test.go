package kube_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

var (
	configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	services   = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	secrets    = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	claims     = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
)

// merge patches an object of namespace wiki as somebody else.
func (c cluster) merge(t *testing.T, gvr schema.GroupVersionResource, name, manager, body string) {
	t.Helper()
	if _, err := c.dynamic.Resource(gvr).Namespace("wiki").Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: manager}); err != nil {
		t.Fatal(err)
	}
}

func (c cluster) converge(t *testing.T, s *plan.Site) reconciler.Round {
	t.Helper()
	r := &reconciler.Reconciler{Systems: []reconciler.System{c.open(t)}}
	round, _ := r.Converge(t.Context(), s)
	return round
}

func (c cluster) plan(t *testing.T, s *plan.Site) *plan.Plan {
	t.Helper()
	r := &reconciler.Reconciler{Systems: []reconciler.System{c.open(t)}}
	p, err := r.Plan(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// settle converges and fails the test where that does not go all the way.
func (c cluster) settle(t *testing.T, s *plan.Site) {
	t.Helper()
	if round := c.converge(t, s); !round.Settled() {
		t.Fatalf("not settled:\n%s", text(round.Plan, round.Err))
	}
}

func text(p *plan.Plan, err error) string {
	var b strings.Builder
	if p != nil {
		p.WriteDiff(&b, false)
	}
	if err != nil {
		b.WriteString(err.Error())
	}
	return b.String()
}

// wants checks that a text has all parts.
func wants(t *testing.T, got string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(got, part) {
			t.Errorf("lacks %q:\n%s", part, got)
		}
	}
}

const namespace = `
apiVersion: v1
kind: Namespace
metadata: {name: wiki}
`

func settings(data string) string {
	return namespace + "\n---\n" + `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: wiki}
data: ` + data + "\n"
}

// TestBehaviour goes through what people and other tools do to objects of ours.
// One cluster and one site serve all; each part begins by converging.
func TestBehaviour(t *testing.T) {
	c := start(t, controlplane.Options{Controllers: true}) // who else would let go of a claim

	t.Run("hand edits are all seen: changed, removed and added", func(t *testing.T) {
		s := site(t, "edits", base)
		c.settle(t, s)
		c.merge(t, deployments, "web", "kubectl-edit", `{"spec":{"replicas":7}}`)
		c.merge(t, configMaps, "settings", "kubectl-edit", `{"data":{"color":null}}`)
		c.merge(t, services, "web", "kubectl-label", `{"metadata":{"labels":{"by":"hand"}}}`)
		p := c.plan(t, s)
		wants(t, text(p, nil),
			"update objects/Deployment.apps/wiki/web: drift: changed in the cluster by kubectl-edit", "-  replicas: 7", "+  replicas: 2",
			"update objects/ConfigMap/wiki/settings: drift: changed in the cluster", "+  color: blue",
			`Service wiki/web: others hold fields that git does not know: kubectl-label: metadata.labels.by`)
		if len(p.Changes) != 2 {
			t.Errorf("%d changes", len(p.Changes))
		}
		c.settle(t, s)
	})

	t.Run("an equal object that is not ours is adopted, and then follows git", func(t *testing.T) {
		c.settle(t, site(t, "before", settings(`{a: "1"}`)))
		c.mustApply(t, configMaps, "wiki", `
apiVersion: v1
kind: ConfigMap
metadata: {name: found, namespace: wiki}
data: {keep: "1", drop: "1"}
`)
		found := func(data string) *plan.Site {
			return site(t, "adopt", settings(`{a: "1"}`)+"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: found, namespace: wiki}\ndata: "+data+"\n")
		}
		both := found(`{keep: "1", drop: "1"}`)
		wants(t, text(c.plan(t, both), nil), "update objects/ConfigMap/wiki/found: not ours yet", "applyset.kubernetes.io/part-of")
		c.settle(t, both)
		c.settle(t, found(`{keep: "1"}`))
		c.settle(t, site(t, "after", settings(`{a: "1"}`)))
		if _, err := c.dynamic.Resource(configMaps).Namespace("wiki").Get(t.Context(), "found", metav1.GetOptions{}); err == nil {
			t.Error("it was not deleted with its declaration")
		}
	})

	t.Run("what kubectl apply had applied is taken over whole", func(t *testing.T) {
		declared := func(data string) *plan.Site {
			return site(t, "csa", settings(`{a: "1"}`)+"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: old, namespace: wiki}\ndata: "+data+"\n")
		}
		kubectl(t, c, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: old, namespace: wiki}\ndata: {a: '1', b: '2'}\n", "apply", "-f", "-")
		c.settle(t, declared(`{a: "1"}`))
		at, err := c.dynamic.Resource(configMaps).Namespace("wiki").Get(t.Context(), "old", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if data := at.Object["data"].(map[string]any); len(data) != 1 {
			t.Errorf("what git never had is still there: %v", data)
		}
	})

	t.Run("others' objects are refused", func(t *testing.T) {
		c.mustApply(t, configMaps, "wiki", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: theirs\n  namespace: wiki\n  labels: {applyset.kubernetes.io/part-of: applyset-other-v1}\n")
		c.mustApply(t, configMaps, "wiki", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: chart\n  namespace: wiki\n  labels: {app.kubernetes.io/managed-by: Helm}\n  annotations: {meta.helm.sh/release-name: chart}\n")
		s := site(t, "theirs", settings(`{a: "1"}`)+"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: theirs, namespace: wiki}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: chart, namespace: wiki}\n")
		wants(t, text(c.plan(t, s), nil), "belongs to another ApplySet (applyset-other-v1)", "belongs to the Helm release chart", "0 to create, 0 to update", "2 waiting")
	})

	t.Run("one bad object never blocks the others, and all are told", func(t *testing.T) {
		s := site(t, "bad", settings(`{a: "2"}`)+`
---
apiVersion: v1
kind: Service
metadata: {name: bad, namespace: wiki}
spec: {ports: [{port: 99999}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: typo, namespace: wiki}
dta: {a: b}
---
apiVersion: example.com/v1
kind: Unknown
metadata: {name: what, namespace: wiki}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: nowhere}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: lost, namespace: missing}
---
apiVersion: v1
kind: Namespace
metadata: {name: strange, namespace: wiki}
---
apiVersion: v1
kind: Secret
metadata: {name: odd, namespace: wiki}
data: {password: "canary-9b2d not base64"}
---
apiVersion: v1
kind: Secret
metadata: {name: number, namespace: wiki}
stringData: {password: 12345}
`)
		round := c.converge(t, s)
		got := text(round.Plan, round.Err)
		wants(t, got, "Service wiki/bad:", "between 1 and 65535", "[Invalid]", "dta", "the cluster serves no kind Unknown of example.com/v1", "[NoKind]",
			"ConfigMap nowhere: metadata.namespace: the kind lives in namespaces, and none is given", "[NamespaceUnknown]", "[NamespaceUnwanted]", "Secret wiki/odd: the server refuses it")
		if strings.Contains(got, "canary-9b2d") {
			t.Errorf("a secret shows:\n%s", got)
		}
		at, _ := c.dynamic.Resource(configMaps).Namespace("wiki").Get(t.Context(), "settings", metav1.GetOptions{})
		if got := fmt.Sprint(at.Object["data"]); got != "map[a:2]" {
			t.Errorf("the good object is %s", got)
		}
	})

	t.Run("an immutable field is a replacement, and one that loses data is withheld", func(t *testing.T) {
		documents := func(app, size string) string {
			return namespace + `
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: wiki}
spec:
  selector: {matchLabels: {app: ` + app + `}}
  template:
    metadata: {labels: {app: ` + app + `}}
    spec: {containers: [{name: web, image: "wiki:1"}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: wiki}
spec: {accessModes: [ReadWriteOnce], storageClassName: ` + size + `, resources: {requests: {storage: 1Gi}}}
`
		}
		c.settle(t, site(t, "immutable-1", documents("one", "slow")))
		before, _ := c.dynamic.Resource(deployments).Namespace("wiki").Get(t.Context(), "web", metav1.GetOptions{})
		round := c.converge(t, site(t, "immutable-2", documents("two", "fast")))
		wants(t, text(round.Plan, round.Err), "withheld: replace objects/PersistentVolumeClaim/wiki/data: to replace it loses the claim on its data",
			"add objects/PersistentVolumeClaim/wiki/data to spec.confirm")
		after, _ := c.dynamic.Resource(deployments).Namespace("wiki").Get(t.Context(), "web", metav1.GetOptions{})
		if before.GetUID() == after.GetUID() || after.GetUID() == "" {
			t.Error("the Deployment was not replaced")
		}
		claim, _ := c.dynamic.Resource(claims).Namespace("wiki").Get(t.Context(), "data", metav1.GetOptions{})
		if claim.GetDeletionTimestamp() != nil {
			t.Error("the claim was deleted without consent")
		}
		p := c.plan(t, site(t, "immutable-3", documents("three", "slow")))
		wants(t, text(p, nil), "± replace objects/Deployment.apps/wiki/web: cannot be changed in place: spec.selector", "-      app: two", "+      app: three")
	})

	t.Run("namespaces and claims are not deleted without consent", func(t *testing.T) {
		got := text(c.plan(t, site(t, "gone", "")), nil)
		wants(t, got, "withheld: delete objects/Namespace/wiki", "withheld: delete objects/PersistentVolumeClaim/wiki/data", "- delete objects/Deployment.apps/wiki/web")
	})

	t.Run("a secret's value is applied, and shown nowhere", func(t *testing.T) {
		secret := func(value string) *plan.Site {
			return site(t, "secret", namespace+"---\napiVersion: v1\nkind: Secret\nmetadata: {name: key, namespace: wiki}\nstringData: {password: "+value+"}\n",
				"objects/PersistentVolumeClaim/wiki/data")
		}
		c.converge(t, secret("canary-one"))
		got := text(c.plan(t, secret("canary-two")), nil)
		wants(t, got, "-  password: (secret, before)", "+  password: (secret, after)")
		if strings.Contains(got, "canary") || strings.Contains(got, "Y2FuYXJ5") {
			t.Errorf("a secret shows:\n%s", got)
		}
		c.converge(t, secret("canary-two"))
		at, _ := c.dynamic.Resource(secrets).Namespace("wiki").Get(t.Context(), "key", metav1.GetOptions{})
		if got := fmt.Sprint(at.Object["data"]); got != "map[password:Y2FuYXJ5LXR3bw==]" {
			t.Errorf("data is %s", got)
		}
	})

	t.Run("an autoscaler keeps its replicas", func(t *testing.T) {
		deployment := namespace + "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: scaled, namespace: wiki}\nspec: {replicas: 2, selector: {matchLabels: {app: s}}, template: {metadata: {labels: {app: s}}, spec: {containers: [{name: s, image: s}]}}}\n"
		s := site(t, "scaled", deployment)
		c.converge(t, s)
		_, err := c.dynamic.Resource(deployments).Namespace("wiki").Patch(t.Context(), "scaled", types.MergePatchType, []byte(`{"spec":{"replicas":9}}`),
			metav1.PatchOptions{FieldManager: "kube-controller-manager"}, "scale")
		if err != nil {
			t.Fatal(err)
		}
		round := c.converge(t, s)
		wants(t, text(round.Plan, round.Err), "spec.replicas: an autoscaler holds it", "[ScaledElsewhere]")
		at, _ := c.dynamic.Resource(deployments).Namespace("wiki").Get(t.Context(), "scaled", metav1.GetOptions{})
		if got := at.Object["spec"].(map[string]any)["replicas"]; got != int64(9) {
			t.Errorf("replicas %v", got)
		}
	})

	t.Run("a fight is reported, not fought", func(t *testing.T) {
		s := site(t, "fight", settings(`{a: "1"}`))
		now := time.Now()
		system, err := kube.New(t.Context(), kube.Options{Config: c.config, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		r := &reconciler.Reconciler{Systems: []reconciler.System{system}}
		r.Converge(t.Context(), s)
		corrected := 0
		for i := range 8 {
			c.merge(t, configMaps, "settings", "other-operator", fmt.Sprintf(`{"data":{"a":"other %d"}}`, i))
			corrected += r.Round(t.Context(), s).Applied
			now = now.Add(time.Second)
		}
		if corrected != 5 {
			t.Errorf("corrected %d times", corrected)
		}
		round := r.Round(t.Context(), s)
		wants(t, text(round.Plan, round.Err), "corrected 5 times within a minute and changed again each time by other-operator", "[Fight]")
		now = now.Add(time.Minute)
		if round := r.Round(t.Context(), s); round.Applied != 1 {
			t.Errorf("not corrected again after a minute:\n%s", text(round.Plan, round.Err))
		}
	})

	t.Run("a kind that comes later is waited for", func(t *testing.T) {
		object := "apiVersion: late.example/v1\nkind: Guest\nmetadata: {name: g, namespace: wiki}\nspec: {a: 1}\n"
		definition := "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: guests.late.example}\nspec:\n  group: late.example\n  scope: Namespaced\n  names: {kind: Guest, plural: guests, singular: guest, listKind: GuestList}\n  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]\n"
		system := c.open(t)
		r := &reconciler.Reconciler{Systems: []reconciler.System{system}}
		s := site(t, "late", namespace+"---\n"+object)
		if round, _ := r.Converge(t.Context(), s); len(round.Plan.Waiting) != 1 || round.Plan.Waiting[0].Code != kube.NoKind {
			t.Fatalf("want one that waits:\n%s", text(round.Plan, round.Err))
		}
		c.mustApply(t, schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, "", definition)
		await(t, "the object to be created", func() bool { r.Round(t.Context(), s); return r.Round(t.Context(), s).Settled() })
	})
}

// TestInSyncIsCheap counts requests: what is proved in sync is not asked for
// again, not even by a fresh process, and is asked for when the proof lapses.
func TestInSyncIsCheap(t *testing.T) {
	audit := t.TempDir() + "/audit.log"
	c := start(t, controlplane.Options{AuditLog: audit})
	s := site(t, "cheap", base)
	c.settle(t, s)
	fresh := c.open(t)
	r := &reconciler.Reconciler{Systems: []reconciler.System{fresh}}
	r.Round(t.Context(), s)
	status, _, err := fresh.ReadStatus(t.Context(), s.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.WriteStatus(t.Context(), s.Name, status); err != nil {
		t.Fatal(err)
	}

	counted := func(do func()) (reads, lists, trials, writes int) {
		from := len(requests(t, audit))
		do()
		for _, q := range requests(t, audit)[from:] {
			switch {
			case strings.Contains(q.RequestURI, "dryRun="):
				trials++
			case slices.Contains([]string{"create", "update", "patch", "delete"}, q.Verb):
				writes++
			case q.Verb == "list":
				lists++
			case q.Verb == "get" && q.ObjectRef.Name != "":
				reads++
			}
		}
		return
	}
	reads, lists, trials, writes := counted(func() {
		if p := c.plan(t, s); !p.Settled() {
			t.Errorf("not settled:\n%s", text(p, nil))
		}
	})
	if trials != 0 || writes != 0 || reads > 1 || lists > 14 {
		t.Errorf("a fresh process: %d reads, %d lists, %d trials, %d writes", reads, lists, trials, writes)
	}
	reads, lists, trials, writes = counted(func() { r.Round(t.Context(), s) })
	if trials != 0 || writes != 0 || reads > 1 || lists > 0 {
		t.Errorf("a warm one: %d reads, %d lists, %d trials, %d writes", reads, lists, trials, writes)
	}
	// Proofs grow old where that was asked for.
	now := time.Now()
	aging, err := kube.New(t.Context(), kube.Options{Config: c.config, Recheck: time.Hour, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	old := &reconciler.Reconciler{Systems: []reconciler.System{aging}}
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{0, 0}, {2 * time.Hour, len(s.Objects)}, {time.Minute, 0}} {
		now = now.Add(step.after)
		if _, _, trials, _ := counted(func() { old.Round(t.Context(), s) }); trials != step.want {
			t.Errorf("%s later: %d trials, want %d", step.after, trials, step.want)
		}
	}
	// A webhook configuration could change what the server makes of anything.
	c.mustApply(t, schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}, "",
		"apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: nobody}\n")
	_, _, trials, writes = counted(func() { c.plan(t, s) })
	if trials != len(s.Objects) || writes != 0 {
		t.Errorf("after a new webhook: %d trials for %d objects, %d writes", trials, len(s.Objects), writes)
	}
}

// TestDriftIsNoticed has the watch tell of a hand edit, and not of a status.
func TestDriftIsNoticed(t *testing.T) {
	c := start(t, controlplane.Options{})
	s := site(t, "watched", base)
	told := make(chan struct{}, 100)
	system, err := kube.New(t.Context(), kube.Options{Config: c.config, Notify: func() { told <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	r := &reconciler.Reconciler{Systems: []reconciler.System{system}}
	r.Converge(t.Context(), s)
	r.Round(t.Context(), s)
	for len(told) > 0 {
		<-told
	}
	_, err = c.dynamic.Resource(deployments).Namespace("wiki").Patch(t.Context(), "web", types.MergePatchType,
		[]byte(`{"status":{"replicas":1,"observedGeneration":1}}`), metav1.PatchOptions{FieldManager: "kube-controller-manager"}, "status")
	if err != nil {
		t.Fatal(err)
	}
	c.merge(t, configMaps, "settings", "kubectl-edit", `{"data":{"color":"green"}}`)
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody told of the drift")
	}
	if round := r.Round(t.Context(), s); round.Applied != 1 {
		t.Errorf("applied %d:\n%s", round.Applied, text(round.Plan, round.Err))
	}
	unhealthy := system.Examine(t.Context(), s)
	if len(unhealthy) != 1 || unhealthy[0].ID.Kind != "Deployment.apps" {
		t.Errorf("unhealthy: %v", unhealthy)
	}
}

// TestStrikes has the parent forget a kind only after its last object is gone.
func TestStrikes(t *testing.T) {
	c := start(t, controlplane.Options{})
	kinds := func() string {
		at, err := c.dynamic.Resource(schema.GroupVersionResource{Group: "kingmaker.dev", Version: "v1alpha1", Resource: "sites"}).Get(t.Context(), "school", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return at.GetAnnotations()["applyset.kubernetes.io/contains-group-kinds"]
	}
	r := &reconciler.Reconciler{}
	system := c.open(t)
	r.Systems = []reconciler.System{system}
	round := func(s *plan.Site) {
		t.Helper()
		r.Round(t.Context(), s)
		if err := system.WriteStatus(t.Context(), "school", plan.SiteStatus{}); err != nil {
			t.Fatal(err)
		}
	}
	with, without := site(t, "with", settings(`{a: "1"}`)), site(t, "without", namespace)
	round(with)
	wants(t, kinds(), "ConfigMap", "Namespace", "Site.kingmaker.dev", "CustomResourceDefinition.apiextensions.k8s.io")
	round(without)
	wants(t, kinds(), "ConfigMap")
	round(without)
	if got := kinds(); strings.Contains(got, "ConfigMap") {
		t.Errorf("still there: %s", got)
	}
}
