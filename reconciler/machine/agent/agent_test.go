package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/cmd/lab/logtest"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// patience is only used up where a test fails.
const patience = 30 * time.Second

// world is a real API server, a machine in a folder, and the agent on it.
type world struct {
	*testing.T
	plane   *controlplane.Plane
	admin   dynamic.Interface
	machine *hosttest.Debian
	log     *logtest.Buffer
	kubelet atomic.Bool // is well
	alive   atomic.Int64
	roleGen int64 // of the role that is declared

	mu      sync.Mutex
	answers []error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Progress: os.Stderr, AuditLog: filepath.Join(t.TempDir(), "audit")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plane.Stop() })
	config, err := clientcmd.BuildConfigFromFlags("", plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, plane: plane, machine: hosttest.NewDebian(t), log: &logtest.Buffer{}, roleGen: 3}
	if w.admin, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	w.machine.Put(t, "/etc/systemd/system/"+host.BalancerUnit, "") // as noded install leaves it
	w.machine.Log = slog.New(slog.NewTextHandler(w.log, nil))
	// With the rules that a site has, so that the agent does not need more.
	for _, args := range [][]string{{"apply", "-f", "../../../manifests/base/crd-machines.yaml"}, {"apply", "-k", "../../../manifests/machines"},
		{"wait", "--for=condition=Established", "crd/machines.kingmaker.dev"}} {
		if out, err := exec.Command(plane.Bin("kubectl"), append([]string{"--kubeconfig", plane.Kubeconfig}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("kubectl %v: %v\n%s", args, err, out)
		}
	}
	return w
}

// run starts the agent, quick as a test wants it, until stop or the end of the test.
func (w *world) run() (stop func()) {
	healthz := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		if !w.kubelet.Load() {
			out.WriteHeader(http.StatusInternalServerError)
			io.WriteString(out, "PLEG is not healthy")
		}
	}))
	w.Cleanup(healthz.Close)
	a := &Agent{
		Host: w.machine.Host, Version: "0.1.0-test", Log: w.machine.Log, Healthz: healthz.URL,
		Beat: 200 * time.Millisecond, Retry: 100 * time.Millisecond, Membership: 50 * time.Millisecond, Settle: time.Millisecond,
		Alive: func() { w.alive.Add(1) },
		Answered: func(err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.answers = append(w.answers, err)
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				w.Errorf("the agent ended with %v", err)
			}
		case <-time.After(patience):
			w.Error("the agent does not end")
		}
		if w.Failed() {
			w.Logf("the agent's log\n%s", w.log)
		}
	})
	w.Cleanup(stop)
	return stop
}

func (w *world) last() (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.answers) == 0 {
		return 0, errors.New("none yet")
	}
	return len(w.answers), w.answers[len(w.answers)-1]
}

// until waits for something to be so.
func (w *world) until(what string, ok func() bool) {
	w.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			_, err := w.last()
			w.Fatalf("waited too long for %s; the last beat: %v; the Machine: %+v", what, err, w.status("pc-01"))
		}
	}
}

// join makes the machine a member, as kubeadm and noded would.
func (w *world) join(role string) {
	w.Helper()
	m := fmt.Sprintf("site: lab\nname: pc-01\naddress: 10.0.0.12\nendpoint: %s\nrole: %s\n", strings.TrimPrefix(w.plane.URL, "https://"), role)
	w.machine.Put(w.T, host.CAFile, "the CA\n")
	w.machine.Put(w.T, member.KubeletConf, w.kubeconfig("system:node:pc-01", "system:nodes"))
	w.machine.Put(w.T, host.MachineFile, m)
}

// kubeconfig is a user's, with a certificate of the plane's authority.
func (w *world) kubeconfig(user, group string) string {
	w.Helper()
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(w.plane.Dir, "pki", name))
		if err != nil {
			w.Fatal(err)
		}
		return text
	}
	caPEM := read("ca.crt")
	ca, err := tls.X509KeyPair(caPEM, read("ca.key"))
	if err != nil {
		w.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: user, Organization: []string{group}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Leaf, &key.PublicKey, ca.PrivateKey)
	if err != nil {
		w.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.Fatal(err)
	}
	// As kubeadm leaves it, the server is one that need not be up.
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1', certificate-authority-data: %s}}]\n"+
		"contexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u, user: {client-certificate-data: %s, client-key-data: %s}}]\n",
		b64(caPEM), b64(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), b64(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

func nodesResource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
}

// declare makes a Machine as the daemon does, or changes its role.
func (w *world) declare(name, role, address string) {
	w.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": plan.APIVersion, "kind": "Machine", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"role": role, "roleGeneration": w.roleGen, "address": address}}}
	if _, err := w.admin.Resource(machine.Resource()).Apply(w.Context(), name, o, metav1.ApplyOptions{FieldManager: "test", Force: true}); err != nil {
		w.Fatal(err)
	}
}

// node makes a Node, and says whether it is ready.
func (w *world) node(name, ready string) {
	w.Helper()
	nodes := w.admin.Resource(nodesResource())
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name}}}
	if _, err := nodes.Apply(w.Context(), name, o, metav1.ApplyOptions{FieldManager: "test", Force: true}); err != nil {
		w.Fatal(err)
	}
	status := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q,"message":"says the test"}]}}`, ready)
	if _, err := nodes.Patch(w.Context(), name, types.StrategicMergePatchType, []byte(status), metav1.PatchOptions{}, "status"); err != nil {
		w.Fatal(err)
	}
}

// status is what the API has of a Machine; zero where it has none.
func (w *world) status(name string) machine.Status {
	w.Helper()
	o, err := w.admin.Resource(machine.Resource()).Get(w.Context(), name, metav1.GetOptions{})
	if err != nil {
		return machine.Status{}
	}
	mc, err := read(o)
	if err != nil {
		w.Fatal(err)
	}
	return mc.Status
}

// is reports whether a condition of pc-01 has a status and a reason.
func (w *world) is(kind, status string, reason plan.Code) bool {
	return slices.ContainsFunc(w.status("pc-01").Conditions, func(c plan.Condition) bool { return c.Type == kind && c.Status == status && c.Reason == reason })
}

func (w *world) masters() string {
	w.Helper()
	list, err := host.Masters(w.machine.Host)
	if err != nil {
		w.Fatal(err)
	}
	return fmt.Sprint(list)
}

func TestAgent(t *testing.T) {
	w := newWorld(t)
	w.run()

	// No member: it waits, and is alive.
	w.until("a sign of life", func() bool { return w.alive.Load() > 3 })
	if n, _ := w.last(); n > 0 {
		t.Errorf("%d beats of a machine that is no member", n)
	}

	// A member whose Machine is not there yet.
	w.join(machine.Worker)
	w.until("a look for the Machine", func() bool {
		n, err := w.last()
		return n > 0 && err != nil && strings.Contains(err.Error(), "the site has no Machine pc-01 yet: the reconciler makes it")
	})
	if hosts := w.machine.Get("/etc/hosts"); !strings.Contains(hosts, "127.0.0.1 api.lab.internal") {
		t.Errorf("/etc/hosts\n%s", hosts)
	}

	// Somebody else writes to /etc/hosts.
	w.machine.Put(t, "/etc/hosts", "127.0.0.1 localhost\n")
	w.until("the API's name to be back", func() bool { return strings.Contains(w.machine.Get("/etc/hosts"), "127.0.0.1 api.lab.internal") })

	// The Machine is there, and its Node is not.
	w.declare("pc-01", machine.Worker, "")
	w.until("Joining", func() bool {
		return w.status("pc-01").Phase == machine.Joining && w.is(machine.ConditionReady, "False", KubeletDown)
	})
	w.kubelet.Store(true)
	w.until("what the site says of the Node", func() bool { return w.is(machine.ConditionReady, "False", NodeNotReady) })
	w.node("pc-01", "False")
	w.until("Joining still", func() bool { return w.status("pc-01").Phase == machine.Joining })
	w.node("pc-01", "True")
	w.until("Ready", func() bool { return w.status("pc-01").Phase == machine.Ready })
	w.until("all conditions", func() bool {
		return w.is(machine.ConditionReady, "True", NodeReady) && w.is(machine.ConditionClockInStep, "True", InStep) &&
			w.is(machine.ConditionAPIReachable, "True", MasterFound) && !w.is(machine.ConditionDiskFit, "Unknown", NotMeasured)
	})
	s := w.status("pc-01")
	if off := time.Since(s.Heartbeat); off.Abs() > 10*time.Second {
		t.Errorf("heartbeat %s ago", off)
	}
	if s.RoleGeneration != 3 || s.ObservedGeneration != 1 {
		t.Errorf("generations %d, %d", s.RoleGeneration, s.ObservedGeneration)
	}
	v := s.Inventory
	if v.CPU == 0 || v.Memory == "" || v.Architecture == "" || v.Address != "10.0.0.12" || v.MachineID == "" || v.BootID == "" || len(v.Disks) == 0 || v.FsyncP99 == "" ||
		v.Versions.Noded != "0.1.0-test" || v.Versions.Containerd == "" || v.Versions.Kernel == "" || v.Versions.Debian == "" {
		t.Errorf("inventory %+v", v)
	}

	// What goes away, and comes back.
	w.kubelet.Store(false)
	w.until("NotReady", func() bool {
		return w.status("pc-01").Phase == machine.NotReady && w.is(machine.ConditionReady, "False", KubeletDown)
	})
	w.kubelet.Store(true)
	w.until("Ready again", func() bool { return w.status("pc-01").Phase == machine.Ready })

	// The masters.
	w.declare("pc-10", machine.Master, "10.0.0.10")
	w.until("a master", func() bool { return w.masters() == "[10.0.0.10:6443]" })
	w.declare("pc-11", machine.Master, "10.0.0.99")
	if _, err := w.admin.Resource(machine.Resource()).Patch(t.Context(), "pc-11", types.MergePatchType, []byte(`{"status":{"inventory":{"address":"10.0.0.11"}}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	w.until("two masters, where they say they are", func() bool { return w.masters() == "[10.0.0.10:6443 10.0.0.11:6443]" })
	w.declare("pc-10", machine.Worker, "10.0.0.10")
	w.until("one that was retired", func() bool { return w.masters() == "[10.0.0.11:6443]" })
	if err := w.admin.Resource(machine.Resource()).Delete(t.Context(), "pc-11", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	n, _ := w.last()
	w.until("five beats", func() bool { now, _ := w.last(); return now > n+5 })
	if got := w.masters(); got != "[10.0.0.11:6443]" {
		t.Errorf("an empty list took the last good one away: %s", got)
	}

	// The API goes away, and comes back.
	before := w.status("pc-01")
	if err := w.plane.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	w.until("the API to be missed", func() bool { _, err := w.last(); return err != nil })
	n, _ = w.last()
	begin := time.Now()
	w.until("ten tries", func() bool { now, _ := w.last(); return now >= n+10 })
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("ten tries in %s: that is no way to treat a server that is starting", took)
	}
	if _, err := w.last(); !strings.Contains(err.Error(), "no master answers: connection refused") || strings.Contains(err.Error(), "http") {
		t.Errorf("the beat's error: %v", err)
	}
	if err := w.plane.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	w.until("a heartbeat", func() bool { return w.status("pc-01").Heartbeat.After(before.Heartbeat.Add(time.Second)) })
	if took := time.Since(back); took > 10*time.Second {
		t.Errorf("back only after %s", took)
	}
	for _, c := range w.status("pc-01").Conditions {
		if c.Type == machine.ConditionAPIReachable && !c.LastTransitionTime.After(before.Heartbeat) {
			t.Errorf("nobody would know that the API was away: %+v", c)
		}
		if c.Type == machine.ConditionClockInStep && c.LastTransitionTime.After(before.Heartbeat) {
			t.Errorf("moved without reason: %+v", c)
		}
	}
	w.declare("pc-12", machine.Master, "10.0.0.14")
	w.until("the masters after that", func() bool { return w.masters() == "[10.0.0.14:6443]" })

	// It leaves, and is a member of nothing.
	if err := w.machine.Remove(host.MachineFile); err != nil {
		t.Fatal(err)
	}
	w.until("the end of the membership", func() bool { return strings.Contains(w.log.String(), "no member any more") })
	n, _ = w.last()
	lives := w.alive.Load()
	w.until("a sign of life", func() bool { return w.alive.Load() > lives+3 })
	if now, _ := w.last(); now > n+1 {
		t.Errorf("%d beats of a machine that has left", now-n)
	}
	w.onlyOwnStatus()
}

// TestFenced is the way of a master that the site has replaced: it stops to serve,
// reboots, says that it is blank, and joins again with the ticket of that boot.
func TestFenced(t *testing.T) {
	w := newWorld(t)
	done := func(host.Command, []byte) (string, error) { return "", nil }
	w.machine.Runner.Answers["systemctl reboot"] = done
	w.machine.Runner.Answers["kubeadm reset"] = done
	w.join(machine.Master)
	w.machine.Put(t, host.CAFile, w.ca())
	word := w.machine.Get(member.KubeletConf)
	w.machine.Runner.Answers["kubeadm join"] = func(host.Command, []byte) (string, error) {
		w.machine.Put(t, member.KubeletConf, word)
		w.kubelet.Store(true)
		return "", nil
	}
	serving := []string{"/etc/kubernetes/manifests/etcd.yaml", "/etc/kubernetes/manifests/kube-apiserver.yaml", "/etc/kubernetes/pki/ca.key", "/etc/kubernetes/admin.conf"}
	for _, file := range serving {
		w.machine.Put(t, file, "of the site")
	}
	w.machine.Put(t, "/var/lib/etcd/member/snap/db", "the site")
	w.declare("pc-01", machine.Master, "")
	w.node("pc-01", "True")
	w.kubelet.Store(true)
	stop := w.run()
	w.until("a master", func() bool {
		s := w.status("pc-01")
		return s.Phase == machine.Ready && s.RoleGeneration == 3 && s.Keys && !s.Blank
	})

	w.kubelet.Store(false) // what follows ends it
	w.roleGen = 4
	w.declare("pc-01", machine.Worker, "")
	w.until("a reboot", func() bool { return w.ran("systemctl reboot") == 1 })
	for _, file := range append(serving, "/var/lib/etcd/member") {
		if w.machine.Exists(file) {
			t.Errorf("a worker has %s", file)
		}
	}
	if kept := w.machine.Get(member.Quarantine + "/snap/db"); kept != "the site" {
		t.Errorf("put aside is %q", kept)
	}
	stop()

	w.boot("22222222-1111-4222-8333-444455556666")
	stop = w.run()
	w.until("a blank machine that says so", func() bool {
		s := w.status("pc-01")
		return s.Blank && !s.Keys && s.RoleGeneration == 4 && s.UnorderedBoots == 0
	})

	// A ticket that was meant for the time before the reboot is none.
	w.ticket("0e5ad2b1-1111-4222-8333-444455556666")
	n, _ := w.last()
	w.until("five beats", func() bool { now, _ := w.last(); return now > n+5 })
	if joins := w.ran("kubeadm join"); joins > 0 {
		t.Errorf("%d joins with the ticket of another boot", joins)
	}
	w.ticket("22222222-1111-4222-8333-444455556666")
	w.until("a worker", func() bool { s := w.status("pc-01"); return !s.Blank && s.Phase == machine.Ready })
	if w.ran("kubeadm join") != 1 || w.ran("systemctl reboot") != 1 {
		t.Errorf("it ran %q", w.machine.Runner.Lines())
	}
	stop()

	w.boot("33333333-1111-4222-8333-444455556666")
	w.run()
	w.until("a boot that nobody ordered to be told", func() bool { return w.status("pc-01").UnorderedBoots == 1 })
	w.onlyOwnStatus()
	if said := w.log.String(); strings.Contains(said, "abcdef0123456789") {
		t.Errorf("the log has the secret of the token:\n%s", said)
	}
}

func (w *world) boot(id string) {
	w.Helper()
	w.machine.Put(w.T, "/proc/sys/kernel/random/boot_id", id+"\n")
}

// ran is how often a command was run.
func (w *world) ran(prefix string) (n int) {
	for _, line := range w.machine.Runner.Lines() {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

func (w *world) ca() string {
	w.Helper()
	text, err := os.ReadFile(filepath.Join(w.plane.Dir, "pki", "ca.crt"))
	if err != nil {
		w.Fatal(err)
	}
	return string(text)
}

// ticket lets pc-01 join as a worker in a boot, as the keeper of roles does.
func (w *world) ticket(boot string) {
	w.Helper()
	name := machine.TicketName("pc-01")
	data := map[string]any{}
	for key, value := range (machine.Ticket{Token: plan.NewSecret("abcdef.abcdef0123456789"), Boot: boot, Until: time.Now().Add(time.Hour)}).Data() {
		data[key] = value
	}
	for resource, o := range map[string]map[string]any{
		"secrets":      {"apiVersion": "v1", "kind": "Secret", "stringData": data},
		"roles":        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": []any{map[string]any{"apiGroups": []any{""}, "resources": []any{"secrets"}, "resourceNames": []any{name}, "verbs": []any{"get"}}}},
		"rolebindings": {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "roleRef": map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}, "subjects": []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:node:pc-01"}}},
	} {
		o["metadata"] = map[string]any{"name": name}
		group, version, _ := strings.Cut(o["apiVersion"].(string), "/")
		if version == "" {
			group, version = "", group
		}
		_, err := w.admin.Resource(schema.GroupVersionResource{Group: group, Version: version, Resource: resource}).Namespace(machine.TicketNamespace).
			Apply(w.Context(), name, &unstructured.Unstructured{Object: o}, metav1.ApplyOptions{FieldManager: "test", Force: true})
		if err != nil {
			w.Fatal(err)
		}
	}
}

// onlyOwnStatus looks at everything that the agent has written.
func (w *world) onlyOwnStatus() {
	w.Helper()
	text, err := os.ReadFile(w.plane.AuditLog)
	if err != nil {
		w.Fatal(err)
	}
	writes := 0
	for line := range bytes.Lines(text) {
		var event struct {
			Verb, RequestURI string
			User             struct{ Username string }
		}
		if err := json.Unmarshal(line, &event); err != nil {
			w.Fatal(err)
		}
		if event.User.Username != "system:node:pc-01" || slices.Contains([]string{"get", "list", "watch"}, event.Verb) {
			continue
		}
		writes++
		if event.Verb != "patch" || !strings.HasPrefix(event.RequestURI, "/apis/kingmaker.dev/v1alpha1/machines/pc-01/status?") {
			w.Errorf("the agent wrote: %s %s", event.Verb, event.RequestURI)
		}
	}
	if writes < 10 {
		w.Errorf("only %d writes are in the audit log", writes)
	}
}

// TestStartWithoutAPI is a boot while all masters are down: the machine's way to
// them is put right from what is on the machine.
func TestStartWithoutAPI(t *testing.T) {
	m := hosttest.NewDebian(t)
	m.Put(t, "/etc/systemd/system/"+host.BalancerUnit, "")
	m.Put(t, host.CAFile, "the CA\n")
	if _, err := host.SetMasters(t.Context(), m.Host, "lab", []netip.AddrPort{netip.MustParseAddrPort("10.0.0.11:6443")}); err != nil {
		t.Fatal(err)
	}
	m.Put(t, "/etc/hosts", "127.0.0.1 localhost\n") // as Docker writes it at each start
	m.Put(t, member.KubeletConf, "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u, user: {}}]\n")
	m.Put(t, host.MachineFile, "site: lab\nname: pc-01\naddress: 10.0.0.12\nendpoint: 127.0.0.1:1\nrole: worker\n")
	ctx, cancel := context.WithCancel(t.Context())
	beats := 0
	a := &Agent{Host: m.Host, Log: m.Log, Retry: time.Millisecond, Answered: func(err error) {
		if err == nil {
			t.Error("somebody answered")
		}
		if beats++; beats == 3 {
			cancel()
		}
	}}
	if err := a.Run(ctx); err != nil {
		t.Error(err)
	}
	if hosts := m.Get("/etc/hosts"); !strings.Contains(hosts, "127.0.0.1 api.lab.internal") {
		t.Errorf("/etc/hosts\n%s", hosts)
	}
	if list, err := host.Masters(m.Host); err != nil || fmt.Sprint(list) != "[10.0.0.11:6443]" {
		t.Errorf("masters %v %v", list, err)
	}
}

func TestClock(t *testing.T) {
	c := &clock{}
	if got := c.condition(); got.Status != "Unknown" {
		t.Errorf("before anybody told the time: %+v", got)
	}
	for _, test := range []struct {
		ahead  time.Duration
		status string
		says   string
	}{
		{0, "True", "within 30s"},
		{-20 * time.Second, "True", ""},
		{time.Hour, "False", "slow"}, // the master is ahead: this clock is slow
		{-time.Hour, "False", "fast"},
	} {
		there := roundTripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{Header: http.Header{"Date": {time.Now().Add(test.ahead).UTC().Format(http.TimeFormat)}}}, nil
		})
		if _, err := c.listen(there).RoundTrip(nil); err != nil {
			t.Fatal(err)
		}
		if got := c.condition(); got.Status != test.status || !strings.Contains(got.Message, test.says) {
			t.Errorf("%s ahead: %+v", test.ahead, got)
		}
	}
}

func TestPhase(t *testing.T) {
	m := &member.Membership{Name: "pc-01", Role: machine.Worker, Address: netip.MustParseAddr("10.0.0.12")}
	a := &Agent{}
	for _, test := range []struct{ last, ready, want string }{
		{"", "False", machine.Joining},
		{"", "True", machine.Ready},
		{machine.Joining, "False", machine.Joining},
		{machine.Joining, "True", machine.Ready},
		{machine.Ready, "False", machine.NotReady},
		{machine.Ready, "Unknown", machine.NotReady},
		{machine.NotReady, "False", machine.NotReady},
		{machine.NotReady, "True", machine.Ready},
		{machine.Leaving, "False", machine.Joining}, // it has come back
	} {
		own := &object{Status: machine.Status{Phase: test.last, RoleGeneration: 4}}
		own.Spec.Role, own.Spec.RoleGeneration = machine.Master, 5 // not reached: it is a worker
		got := a.status(own, m, []plan.Condition{{Type: machine.ConditionReady, Status: test.ready}}, time.Now())
		if got.Phase != test.want || got.RoleGeneration != 4 {
			t.Errorf("%s, and then ready %s: %s, role generation %d", test.last, test.ready, got.Phase, got.RoleGeneration)
		}
	}
}

func TestDisk(t *testing.T) {
	for _, test := range []struct {
		now    time.Duration
		last   string
		status string
		reason plan.Code
	}{
		{0, "", "Unknown", NotMeasured},
		{0, "2.8ms", "True", FastEnough}, // as it was before noded was started anew
		{0, "31ms", "False", TooSlow},
		{2 * time.Millisecond, "31ms", "True", FastEnough},
		{31 * time.Millisecond, "2.8ms", "False", TooSlow},
	} {
		a := &Agent{facts: facts{fsync: test.now}}
		if got := a.disk(machine.Inventory{FsyncP99: test.last}); got.Status != test.status || got.Reason != test.reason {
			t.Errorf("%s now and %q before: %+v", test.now, test.last, got)
		}
	}
}

func TestBusy(t *testing.T) {
	m := hosttest.NewDebian(t)
	if busy(m.Host) {
		t.Error("a kernel that does not count")
	}
	for text, want := range map[string]bool{
		"some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n":  false,
		"some avg10=55.10 avg60=0.00 avg300=0.00 total=1\n": true,
	} {
		m.Put(t, "/proc/pressure/io", text)
		if busy(m.Host) != want {
			t.Errorf("%s: %v", text, !want)
		}
	}
}
