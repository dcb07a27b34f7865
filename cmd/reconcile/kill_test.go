package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// TestKilledAtEveryStep kills reconcile with -9 where it hurts most, and then
// runs it again: the site must converge, with nothing orphaned and nothing
// deleted that should stay. A proxy in front of the API server does the killing,
// so that the program itself has no part in it.
func TestKilledAtEveryStep(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Controllers: true, Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plane.Stop() })
	config, err := clientcmd.BuildConfigFromFlags("", plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}

	dryRun := func(r *http.Request) bool { return strings.Contains(r.URL.RawQuery, "dryRun=") }
	write := func(r *http.Request) bool { return r.Method != http.MethodGet && !dryRun(r) }
	nth := func(n int, is func(*http.Request) bool) func(*http.Request) bool {
		return func(r *http.Request) bool {
			if is(r) {
				n--
			}
			return n == 0 && is(r)
		}
	}
	isDelete := func(r *http.Request) bool { return r.Method == http.MethodDelete }
	isStatus := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/status") && write(r) }
	steps := []struct {
		name  string
		at    func(*http.Request) bool
		after bool // kill when the server has done it, and the answer is on its way
	}{
		{"rendered: before the cluster is asked anything", nth(1, func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/version") }), false},
		{"planned: before the first write", nth(1, write), false},
		{"the first write done, and not known", nth(1, write), true},
		{"the kinds recorded, and nothing of them written", nth(1, func(r *http.Request) bool { return write(r) && strings.Contains(r.URL.RawQuery, "applyset") }), true},
		{"half applied", nth(6, write), false},
		{"half applied, the last write not known", nth(6, write), true},
		{"applied, and the status not recorded", nth(1, isStatus), false},
		{"half pruned", nth(2, isDelete), false},
		{"half pruned, the last delete not known", nth(2, isDelete), true},
	}
	// Each site takes things from the one before and brings others, so that
	// every step has something to apply and something to prune.
	for i, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			repo := killSite(t, i)
			proxy := newKiller(t, config, step.at, step.after)
			proxied := proxy.kubeconfig(t)
			killed := proxy.run(t, reconcileCommand(t, proxied, repo))
			if !killed {
				t.Fatal("it was not killed: the step did not come")
			}
			for range 3 { // a first round may wait for something to end
				if out, err := reconcileCommand(t, plane.Kubeconfig, repo).CombinedOutput(); err == nil {
					break
				} else if code := err.(*exec.ExitError).ExitCode(); code != 1 {
					t.Fatalf("the next start ended with %d:\n%s", code, out)
				}
			}
			if got, want := ours(t, client), killNames(i); got != want {
				t.Errorf("in the cluster\n got %s\nwant %s", got, want)
			}
		})
	}
}

// killNames are the objects of site i, "kind/name": half of the ConfigMaps stay
// from the last site, and every other site has a kind that the last one had not.
func killNames(i int) string {
	var names []string
	for n := i * 4; n < i*4+8; n++ {
		names = append(names, fmt.Sprintf("ConfigMap/settings-%02d", n))
	}
	if i%2 == 1 {
		names = append(names, "ServiceAccount/robot")
	}
	return strings.Join(names, " ")
}

// killSite writes the site repo number i.
func killSite(t *testing.T, i int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	files := map[string]string{
		"site.yaml":             "apiVersion: kingmaker.dev/v1alpha1\nkind: Site\nmetadata: {name: killed}\nspec: {masters: 1, kubernetes: {managed: false}, admission: open, deletes: {max: 50, share: 90%}}\n",
		"services/wiki/ns.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: wiki}\n",
	}
	for _, id := range strings.Fields(killNames(i)) {
		kind, name, _ := strings.Cut(id, "/")
		files["services/wiki/"+name+".yaml"] = fmt.Sprintf("apiVersion: v1\nkind: %s\nmetadata: {name: %s, namespace: wiki, annotations: {round: \"%d\"}}\n", kind, name, i)
	}
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// ours are the objects that carry the label of a site, as killNames has them.
func ours(t *testing.T, client dynamic.Interface) string {
	t.Helper()
	var names []string
	for _, resource := range []string{"configmaps", "serviceaccounts"} {
		list, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource}).Namespace("wiki").
			List(t.Context(), metav1.ListOptions{LabelSelector: "applyset.kubernetes.io/part-of"})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			names = append(names, o.GetKind()+"/"+o.GetName())
		}
	}
	return strings.Join(names, " ")
}

func reconcileCommand(t *testing.T, kubeconfig, repo string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "--kubeconfig", kubeconfig, "--repo", repo, "--cache", t.TempDir(), "--once")
	cmd.Env = append(os.Environ(), asReconcile+"=1")
	return cmd
}

// killer stands between reconcile and the API server. It kills reconcile at one
// request: before the server sees it, or after the server has carried it out.
type killer struct {
	*httptest.Server
	mu     sync.Mutex
	victim *os.Process
	dead   bool
}

func newKiller(t *testing.T, config *rest.Config, at func(*http.Request) bool, after bool) *killer {
	t.Helper()
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	k := &killer{}
	forward := &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, ErrorLog: nil,
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(upstream) }}
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		hit := !k.dead && at(r)
		if k.dead = k.dead || hit; !k.dead {
			k.mu.Unlock()
			forward.ServeHTTP(w, r)
			return
		}
		defer k.mu.Unlock()
		if !hit {
			return // what was on its way with the fatal request is lost with it
		}
		if after {
			body, _ := io.ReadAll(r.Body)
			again := r.Clone(context.WithoutCancel(r.Context()))
			again.Body = io.NopCloser(bytes.NewReader(body))
			forward.ServeHTTP(httptest.NewRecorder(), again)
		}
		k.victim.Kill()
	}))
	t.Cleanup(k.Close)
	return k
}

// kubeconfig leads to the proxy, which is on loopback and speaks for us.
func (k *killer) kubeconfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u, user: {}}]\n", k.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// run runs reconcile and reports whether it was killed.
func (k *killer) run(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	k.mu.Lock()
	err := cmd.Start()
	k.victim = cmd.Process
	k.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != -1 {
		t.Logf("reconcile: %v\n%s", err, out.String())
	}
	return cmd.ProcessState.ExitCode() == -1
}
