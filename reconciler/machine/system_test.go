package machine_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/systemtest"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// fixed is a source that has one site for ever.
type fixed struct{ site *plan.Site }

func (f fixed) Head(context.Context) (string, error)             { return f.site.Commit, nil }
func (f fixed) Site(context.Context, string) (*plan.Site, error) { return f.site, nil }

// get is a Machine; nil for none.
func (c cluster) get(t *testing.T, name string) *unstructured.Unstructured {
	t.Helper()
	m, err := c.dynamic.Resource(machines).Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// admitted reports whether a Node gets Pods, and has the labels of its Machine.
func (c cluster) admitted(t *testing.T, name string) bool {
	t.Helper()
	n, err := c.dynamic.Resource(nodes).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	taints, _, _ := unstructured.NestedSlice(n.Object, "spec", "taints")
	return !strings.Contains(fmt.Sprint(taints), machine.UnlistedTaint) && n.GetLabels()[machine.RoleLabel] != "" && n.GetLabels()["room"] == "12"
}

// TestDaemon has a reconciler run, which looks at nothing but what it is told:
// its next round of its own accord is an hour away.
func TestDaemon(t *testing.T) {
	c := start(t, controlplane.Options{})
	r := &reconciler.Reconciler{Source: fixed{site(t, "c0ffee", `pc-02: {address: 10.0.0.12, labels: {room: "12"}}`)}, Interval: time.Hour}
	var rounds, told atomic.Int64
	r.Observer = func(context.Context, reconciler.Round) { rounds.Add(1) }
	r.Systems = []reconciler.System{c.open(t, func() { told.Add(1); r.Nudge() })}
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		r.Run(ctx)
		close(ended)
	}()
	defer func() { cancel(); <-ended }()
	await(t, "the Machine", func() bool { return c.get(t, "pc-02") != nil })

	admit := func(what string) {
		t.Helper()
		begin := time.Now()
		await(t, what, func() bool { return c.admitted(t, "pc-02") })
		took := time.Since(begin)
		t.Logf("%s: after %s", what, took.Round(time.Millisecond))
		if took > 5*time.Second { // about a second is promised, on a computer that does nothing else
			t.Errorf("%s took %s", what, took)
		}
	}
	c.join(t, "pc-02", false)
	admit("a machine that joins is admitted")
	c.kubectl(t, "", "label", "node", "pc-02", "room-")
	admit("a label that somebody took off is there again")
	c.kubectl(t, "", "taint", "node", "pc-02", "kingmaker.dev/unlisted=:NoSchedule")
	admit("a taint that somebody put on is gone again")
	c.kubectl(t, "", "delete", "node", "pc-02")
	c.join(t, "pc-02", false)
	admit("a Node that was deleted and registers anew gets everything again")
	c.kubectl(t, "", "delete", "machine", "pc-02")
	await(t, "the Machine to come back", func() bool {
		m := c.get(t, "pc-02")
		return m != nil && strings.Contains(fmt.Sprint(m.Object["spec"]), "worker")
	})

	// Quiet: until nothing is told any more, and then while agents and kubelets
	// report.
	quiet := func() (at int64) {
		for at = told.Load(); ; {
			time.Sleep(200 * time.Millisecond) // nothing is what is waited for
			if now := told.Load(); now == at {
				return at
			} else {
				at = now
			}
		}
	}
	at := quiet()
	requests := c.requests.Load()
	for i := range 20 {
		c.merge(t, machines, "pc-02", fmt.Sprintf(`{"status":{"phase":"Ready","heartbeat":"2026-01-01T00:00:%02dZ","inventory":{"cpu":%d}}}`, i, i), "status")
		c.merge(t, nodes, "pc-02", fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","lastHeartbeatTime":"2026-01-01T00:00:%02dZ"}]}}`, i), "status")
		c.merge(t, nodes, "pc-02", fmt.Sprintf(`{"metadata":{"annotations":{"theirs":"%d"}}}`, i))
	}
	if now := quiet(); now != at {
		t.Errorf("heartbeats were told %d times", now-at)
	}
	before := rounds.Load()
	for range 3 {
		r.Nudge()
		await(t, "a round", func() bool { return rounds.Load() > before })
		before = rounds.Load()
	}
	if made := c.requests.Load() - requests; made != 0 {
		t.Errorf("%d requests of three rounds in which nothing was to be done", made)
	}
}

// TestReportsInBetween has an agent and a kubelet report as fast as they can
// while the site changes: what they write is no reason to refuse.
func TestReportsInBetween(t *testing.T) {
	c := start(t, controlplane.Options{})
	c.join(t, "pc-02", false)
	converge := func(s *plan.Site) {
		t.Helper()
		r := &reconciler.Reconciler{Systems: []reconciler.System{c.open(t, nil)}}
		if round, _ := r.Converge(t.Context(), s); !round.Settled() {
			t.Fatalf("not settled: %v", round.Err)
		}
	}
	converge(site(t, "0", `pc-02: {address: 10.0.0.12}`))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ctx.Err() == nil; i++ {
			c.dynamic.Resource(machines).Patch(ctx, "pc-02", types.MergePatchType, fmt.Appendf(nil, `{"status":{"inventory":{"cpu":%d}}}`, i), metav1.PatchOptions{}, "status")
			c.dynamic.Resource(nodes).Patch(ctx, "pc-02", types.MergePatchType, fmt.Appendf(nil, `{"status":{"nodeInfo":{"bootID":"%d"}}}`, i), metav1.PatchOptions{}, "status")
		}
	}()
	for i := range 10 {
		converge(site(t, fmt.Sprint(i), fmt.Sprintf(`pc-02: {address: 10.0.0.12, circuit: c-%[1]d, labels: {room-%[1]d: "1"}}`, i)))
	}
	cancel()
	<-ended
	labels := c.kubectl(t, "", "get", "node", "pc-02", "-o", "jsonpath={.metadata.labels}")
	if !strings.Contains(labels, `"room-9"`) || strings.Contains(labels, `"room-8"`) {
		t.Errorf("labels %s", labels)
	}
}

// TestPage is what kubectl makes of a Machine.
func TestPage(t *testing.T) {
	c := start(t, controlplane.Options{})
	c.kubectl(t, `
apiVersion: kingmaker.dev/v1alpha1
kind: Machine
metadata: {name: pc-02}
spec: {address: 10.0.0.12, circuit: b, role: worker, roleGeneration: 1}
`, "apply", "-f", "-")
	now := time.Now().UTC().Format(time.RFC3339)
	c.merge(t, machines, "pc-02", `{"status":{"phase":"Ready","heartbeat":"`+now+`","observedGeneration":1,"roleGeneration":1,"brick":{"heartbeat":"`+now+`","free":900000000000},
		"inventory":{"cpu":4,"memory":"7898Mi","address":"10.0.0.12","disks":[{"name":"sda","size":"931Gi"}],"versions":{"kubelet":"v1.36.3"}},
		"conditions":[{"type":"Ready","status":"True","reason":"Ready","message":"it works","lastTransitionTime":"`+now+`"}]}}`, "status")
	page := strings.Join(strings.Fields(c.kubectl(t, "", "get", "mc", "-o", "wide")), " ")
	t.Log(page)
	for _, part := range []string{"NAME ROLE READY CIRCUIT CPU MEMORY PHASE SEEN AGE ADDRESS BRICK KUBELET MESSAGE", "pc-02 worker True b 4 7898Mi Ready", "10.0.0.12 900000000000 v1.36.3 it works"} {
		if !strings.Contains(page, part) {
			t.Errorf("lacks %q: %s", part, page)
		}
	}
	for _, wrong := range []string{`{"spec":{"role":"king"}}`, `{"spec":{"roleGeneration":0}}`} {
		if _, err := c.dynamic.Resource(machines).Patch(t.Context(), "pc-02", types.MergePatchType, []byte(wrong), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

// TestMayWrite is who may do what: a machine reports on itself, and no more,
// also where somebody grants it more by mistake.
func TestMayWrite(t *testing.T) {
	c := start(t, controlplane.Options{})
	for _, name := range []string{"pc-01", "pc-02"} {
		c.kubectl(t, fmt.Sprintf("apiVersion: kingmaker.dev/v1alpha1\nkind: Machine\nmetadata: {name: %s}\nspec: {address: 10.0.0.1, role: worker, roleGeneration: 1}\n", name), "apply", "-f", "-")
	}
	c.join(t, "pc-01", true)
	c.join(t, "pc-02", false)
	for name, node := range map[string]string{"own": "pc-02", "others": "pc-01"} {
		c.kubectl(t, fmt.Sprintf(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: default}
---
apiVersion: v1
kind: Secret
metadata: {name: %[1]s, namespace: default}
stringData: {key: canary}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: default}
spec:
  nodeName: %[2]s
  automountServiceAccountToken: false
  containers: [{name: main, image: none, env: [{name: KEY, valueFrom: {secretKeyRef: {name: %[1]s, key: key}}}]}]
`, name, node), "apply", "-f", "-")
	}
	as := func(name string, groups ...string) dynamic.Interface {
		config := rest.CopyConfig(c.config)
		config.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + name, Groups: append(groups, "system:nodes", "system:authenticated")}
		client, err := dynamic.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	patch := func(client dynamic.Interface, gvr schema.GroupVersionResource, name, body string, sub ...string) error {
		_, err := client.Resource(gvr).Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	machine02, mighty := as("pc-02"), as("pc-02", "system:masters")
	await(t, "the policy to act", func() bool { return patch(mighty, machines, "pc-02", `{"spec":{"paused":true}}`) != nil })
	status := `{"status":{"phase":"Ready"}}`
	for _, test := range []struct {
		deed    string
		allowed bool
		err     error
	}{
		{"report on itself", true, patch(machine02, machines, "pc-02", status, "status")},
		{"report on another", false, patch(machine02, machines, "pc-01", status, "status")},
		{"change its own spec", false, patch(machine02, machines, "pc-02", `{"spec":{"role":"master"}}`)},
		{"delete itself", false, machine02.Resource(machines).Delete(t.Context(), "pc-02", metav1.DeleteOptions{})},
		{"make a machine", false, created(t, machine02, "pc-03")},
		{"put itself off the list of the unlisted", false, patch(machine02, nodes, "pc-02", `{"spec":{"taints":[]}}`)},
		{"call itself a master", false, patch(machine02, nodes, "pc-02", `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`)},
		{"change another Node", false, patch(machine02, nodes, "pc-01", `{"metadata":{"labels":{"x":"y"}}}`)},
		{"read the machines", true, listed(t, machine02, machines)},
		{"read a Secret of its own Pod", true, read(t, machine02, "own")},
		{"read a Secret of another machine's Pod", false, read(t, machine02, "others")},
		{"list Secrets", false, listed(t, machine02, secrets)},

		// The policy alone: RBAC would let it.
		{"with all rights: report on itself", true, patch(mighty, machines, "pc-02", status, "status")},
		{"with all rights: report on another", false, patch(mighty, machines, "pc-01", status, "status")},
		{"with all rights: change its own spec", false, patch(mighty, machines, "pc-02", `{"spec":{"role":"master"}}`)},
		{"with all rights: annotate itself", false, patch(mighty, machines, "pc-02", `{"metadata":{"annotations":{"kingmaker.dev/applied":"{}"}}}`)},
		{"with all rights: change its spec by way of its status", true, patch(mighty, machines, "pc-02", `{"spec":{"role":"master"},"metadata":{"annotations":{"x":"y"}},"status":{"phase":"Ready"}}`, "status")},
		{"with all rights: delete itself", false, mighty.Resource(machines).Delete(t.Context(), "pc-02", metav1.DeleteOptions{})},
		{"with all rights: delete all", false, mighty.Resource(machines).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})},
		{"with all rights: make a machine", false, created(t, mighty, "pc-02-b")},
		{"as administrator: change a spec", true, patch(c.dynamic, machines, "pc-01", `{"spec":{"paused":true}}`)},
	} {
		t.Logf("%s: %v", test.deed, test.err)
		if (test.err == nil) != test.allowed || test.err != nil && !apierrors.IsForbidden(test.err) {
			t.Errorf("%s: %v", test.deed, test.err)
		}
	}
	if m := c.get(t, "pc-02"); strings.Contains(fmt.Sprint(m.Object["spec"]), "master") || m.GetAnnotations()["x"] != "" {
		t.Errorf("a machine changed its own spec: %v", m.Object)
	}
}

func created(t *testing.T, client dynamic.Interface, name string) error {
	_, err := client.Resource(machines).Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": plan.APIVersion, "kind": "Machine", "metadata": map[string]any{"name": name}, "spec": map[string]any{}}}, metav1.CreateOptions{})
	return err
}

func listed(t *testing.T, client dynamic.Interface, gvr schema.GroupVersionResource) error {
	_, err := client.Resource(gvr).List(t.Context(), metav1.ListOptions{})
	return err
}

func read(t *testing.T, client dynamic.Interface, secret string) error {
	_, err := client.Resource(secrets).Namespace("default").Get(t.Context(), secret, metav1.GetOptions{})
	return err
}

// TestInvite makes an invitation, reads it as noded join does, and shows its
// token to the API server.
func TestInvite(t *testing.T) {
	c := start(t, controlplane.Options{})
	now := time.Now()
	if _, err := machine.Invite(t.Context(), c.config, now, time.Minute); err == nil || !strings.Contains(err.Error(), "node-role.kubernetes.io/control-plane") {
		t.Errorf("a cluster without masters: %v", err)
	}
	for i, name := range []string{"pc-01", "pc-02", "pc-03", "pc-04", "pc-05"} {
		c.join(t, name, i < 4)
		ready := "True"
		if name == "pc-01" {
			ready = "Unknown"
		}
		c.merge(t, nodes, name, fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1%d"}],"conditions":[{"type":"Ready","status":"%s"}]}}`, i+1, ready), "status")
	}
	made, err := machine.Invite(t.Context(), c.config, now, 15*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(made.Line())
	if len(words) != 7 || strings.Join(words[:2], " ") != "noded join" || words[3] != "--ca-hash" || words[5] != "<<<" {
		t.Fatalf("not the line: %q", words[:6])
	}
	if want := "10.0.0.12:6443,10.0.0.13:6443,10.0.0.14:6443"; words[2] != want { // not pc-01, which is off
		t.Errorf("masters %s, want %s", words[2], want)
	}
	read, err := machine.ParseInvitation(words[2], words[4], words[6])
	if err != nil {
		t.Fatal(err)
	}
	joiner, err := dynamic.NewForConfig(&rest.Config{Host: c.config.Host, BearerToken: read.Token.Value(), TLSClientConfig: rest.TLSClientConfig{CAFile: c.config.CAFile, CAData: c.config.CAData}})
	if err != nil {
		t.Fatal(err)
	}
	var who map[string]any
	await(t, "the token to be known", func() bool {
		answer, err := joiner.Resource(schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: "selfsubjectreviews"}).
			Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}}, metav1.CreateOptions{})
		if err != nil {
			return false
		}
		who, _, _ = unstructured.NestedMap(answer.Object, "status", "userInfo")
		return true
	})
	if text := fmt.Sprint(who); !strings.Contains(text, "system:bootstrap:") || !strings.Contains(text, "system:bootstrappers:kubeadm:default-node-token") {
		t.Errorf("the token makes its bearer %s", text)
	}
	if left := made.Expires.Sub(now); left > 15*time.Minute || left < 15*time.Minute-2*time.Second {
		t.Errorf("good for %s", left)
	}

	// Where kubeadm has been, it is the CA that it shows to those who join.
	c.kubectl(t, "", "-n", "kube-public", "create", "configmap", "cluster-info", "--from-file=kubeconfig="+c.Kubeconfig)
	again, err := machine.Invite(t.Context(), c.config, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if again.CAHash != made.CAHash || again.Token == made.Token {
		t.Errorf("the second invitation has hash %s and the same token: %v", again.CAHash, again.Token == made.Token)
	}
}

// TestOutage has the way to the API server go and come back, as when a balancer
// lost its masters for a moment. The server itself stays, and so may a watch
// that resumes: nobody lists again.
func TestOutage(t *testing.T) {
	c := start(t, controlplane.Options{})
	w := systemtest.NewWay(t, strings.TrimPrefix(c.URL, "https://"))
	config := rest.CopyConfig(c.config)
	config.Host = "https://" + w.Address
	system, err := machine.New(t.Context(), machine.Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	s := site(t, "c0ffee", `pc-02: {address: 10.0.0.12}`)
	r := &reconciler.Reconciler{Systems: []reconciler.System{system}}
	if round, _ := r.Converge(t.Context(), s); !round.Settled() {
		t.Fatal(round.Err)
	}
	w.Cut()
	await(t, "the outage to be noticed", func() bool {
		_, err := system.Observe(t.Context(), s)
		return err != nil
	})
	w.Mend(t)
	c.join(t, "pc-02", false)
	await(t, "the machine that joined meanwhile to be admitted", func() bool {
		round, _ := r.Converge(t.Context(), s)
		return round.Settled() && strings.Contains(fmt.Sprint(c.get(t, "pc-02").Object["spec"]), "worker")
	})
}
