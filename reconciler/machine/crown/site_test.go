package crown_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/cmd/lab/etcdtest"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/crown"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/etcd"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// speed of the clock of these tests: a minute is six seconds.
const speed = 10

// room is a site of real parts but for the machines: an API server, an etcd of real
// processes for the masters, and agents that are goroutines.
type room struct {
	*testing.T
	config  *rest.Config
	dynamic dynamic.Interface
	core    core.CoreV1Interface
	leases  coordination.CoordinationV1Interface
	etcd    *etcdtest.Site
	began   time.Time
	pcs     map[string]*pc
	joining sync.Mutex // etcdtest is for one at a time
}

func (r *room) now() time.Time { return r.began.Add(time.Since(r.began) * speed) }

// pc is a machine: its disk, and whether it is switched on.
type pc struct {
	name string
	on   atomic.Bool
	mu   sync.Mutex // held for a beat

	boot             int
	blank            bool
	member           bool // etcd's data are there
	reached, tried   int64
	failed           int64
	done             machine.Orders
	fenced, rebooted int
}

// newRoom has these machines, of which the first is a master.
func newRoom(t *testing.T, names ...string) *room {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a control plane, and runs etcd")
	}
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plane.Stop() })
	for _, args := range [][]string{
		{"apply", "-f", "../../../manifests/base/crd-crowns.yaml", "-f", "../../../manifests/base/crd-machines.yaml", "-f", "../../../manifests/base/crd-sites.yaml", "-f", "../../../manifests/base/namespace.yaml"},
		{"wait", "--for=condition=Established", "crd/crowns.kingmaker.dev", "crd/machines.kingmaker.dev", "crd/sites.kingmaker.dev"},
	} {
		cmd := exec.CommandContext(t.Context(), plane.Bin("kubectl"), args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+plane.Kubeconfig)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	r := &room{T: t, began: time.Now(), pcs: map[string]*pc{}}
	if r.config, err = clientcmd.BuildConfigFromFlags("", plane.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	r.config.QPS = -1
	r.dynamic, r.core, r.leases = dynamic.NewForConfigOrDie(r.config), core.NewForConfigOrDie(r.config), coordination.NewForConfigOrDie(r.config)
	r.etcd = etcdtest.Start(t, names[0])
	secret := map[string][]byte{}
	for _, name := range []string{"ca.crt", "tls.crt", "tls.key"} {
		if secret[name], err = os.ReadFile(r.etcd.File(name)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = r.core.Secrets(crown.CredentialsNamespace).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: crown.CredentialsName}, Data: secret}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.apply("sites", "lab", map[string]any{"masters": 1, "failover": map[string]any{"after": "1m", "crownsPerDay": 100}})
	for i, name := range names {
		role := roles.Worker
		if i == 0 {
			role = roles.Master
		} else {
			r.etcd.Plug(name)
		}
		p := &pc{name: name, boot: 1, member: i == 0, reached: 1}
		r.pcs[name] = p
		r.apply("machines", name, map[string]any{"role": role, "roleGeneration": 1})
		p.on.Store(true)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var agents sync.WaitGroup
	for _, p := range r.pcs {
		agents.Go(func() {
			for ctx.Err() == nil {
				if p.on.Load() {
					p.mu.Lock()
					r.beat(ctx, p)
					p.mu.Unlock()
				}
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
	t.Cleanup(func() { stop(); agents.Wait() })
	return r
}

// apply gives an object of ours a spec, or a part of one.
func (r *room) apply(resource, name string, spec map[string]any) {
	r.Helper()
	gvr := machine.Resource()
	gvr.Resource = resource
	kind := map[string]string{"sites": "Site", "machines": "Machine"}[resource]
	body, err := json.Marshal(map[string]any{"apiVersion": gvr.GroupVersion().String(), "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec})
	if err == nil {
		_, err = r.dynamic.Resource(gvr).Patch(r.Context(), name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: "test", Force: new(true)})
	}
	if err != nil {
		r.Fatal(err)
	}
}

// beat is what agent, kubelet and kubeadm do on one machine.
func (r *room) beat(ctx context.Context, p *pc) {
	fail := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			r.Errorf("%s: %s: %v", p.name, what, err)
		}
	}
	o, err := r.dynamic.Resource(machine.Resource()).Get(ctx, p.name, metav1.GetOptions{})
	if err != nil {
		fail("read its Machine", err)
		return
	}
	var m struct{ Spec machine.Assigned }
	text, _ := o.MarshalJSON()
	fail("read", json.Unmarshal(text, &m))
	reset := func() {
		if p.member {
			r.power(p, false)
		}
		p.member, p.blank = false, true
		p.boot++
		p.rebooted++
	}
	switch {
	case m.Spec.Role == roles.Worker && p.member:
		p.fenced++
		reset()
	case m.Spec.Role == roles.Worker && m.Spec.Orders.Reset != "" && m.Spec.Orders.Reset != p.done.Reset:
		p.done.Reset = m.Spec.Orders.Reset
		reset()
	case m.Spec.Role == roles.Worker:
		p.reached = m.Spec.RoleGeneration
		if t := r.ticket(ctx, p); p.blank && t != nil && t.CertificateKey.Value() == "" {
			p.blank = false
		}
	case m.Spec.RoleGeneration > p.reached && p.tried != m.Spec.RoleGeneration && p.blank:
		if t := r.ticket(ctx, p); t != nil && t.CertificateKey.Value() != "" {
			p.tried = m.Spec.RoleGeneration
			if err := r.join(ctx, p); err != nil {
				r.Logf("%s: join: %v", p.name, err)
				p.failed = p.tried
				break
			}
			p.member, p.blank, p.reached = true, false, p.tried
		}
	}
	if word := m.Spec.Orders.UploadCerts; word != p.done.UploadCerts {
		_, err := r.core.Secrets(machine.TicketNamespace).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "kubeadm-certs"}}, metav1.CreateOptions{})
		if err == nil || apierrors.IsAlreadyExists(err) {
			p.done.UploadCerts = word
		}
	}
	p.done.Snapshot, p.done.Prepull = m.Spec.Orders.Snapshot, m.Spec.Orders.Prepull
	status := machine.Status{
		Heartbeat: r.now().UTC(), RoleGeneration: p.reached, FailedGeneration: p.failed, Blank: p.blank, Keys: p.member, Images: true, Done: p.done,
		Inventory: machine.Inventory{CPU: 4, Memory: "8192Mi", Address: r.etcd.Members[p.name].Address, BootID: fmt.Sprint("boot-", p.boot), FsyncP99: "1ms"},
	}
	body, _ := json.Marshal([]map[string]any{{"op": "add", "path": "/status", "value": status}})
	_, err = r.dynamic.Resource(machine.Resource()).Patch(ctx, p.name, types.JSONPatchType, body, metav1.PatchOptions{}, "status")
	fail("report", err)
	if !p.blank {
		fail("kubelet", r.kubelet(ctx, p))
	}
}

// kubelet registers and renews.
func (r *room) kubelet(ctx context.Context, p *pc) error {
	n, err := r.core.Nodes().Get(ctx, p.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		labels := map[string]string{}
		if p.member {
			labels[machine.MasterLabel] = ""
		}
		n, err = r.core.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: p.name, Labels: labels}}, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	if len(n.Status.Conditions) == 0 {
		_, err = r.core.Nodes().Patch(ctx, p.name, types.MergePatchType, []byte(`{"status":{"nodeInfo":{"kubeletVersion":"v1.36.3"},"conditions":[{"type":"Ready","status":"True"}]}}`), metav1.PatchOptions{}, "status")
		if err != nil {
			return err
		}
	}
	leases := r.leases.Leases("kube-node-lease")
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: p.name}, Spec: coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: r.now()}}}
	body, err := json.Marshal(map[string]any{"spec": lease.Spec})
	if err != nil {
		return err
	}
	if _, err = leases.Patch(ctx, p.name, types.MergePatchType, body, metav1.PatchOptions{}); apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, lease, metav1.CreateOptions{})
	}
	return err
}

// ticket of a machine that is good for this boot.
func (r *room) ticket(ctx context.Context, p *pc) *machine.Ticket {
	s, err := r.core.Secrets(machine.TicketNamespace).Get(ctx, machine.TicketName(p.name), metav1.GetOptions{})
	if err != nil {
		return nil
	}
	t, err := machine.ReadTicket(s.Data)
	if err != nil || t.Boot != fmt.Sprint("boot-", p.boot) {
		return nil
	}
	return &t
}

// join is kubeadm's: add a learner, start it, promote it.
func (r *room) join(ctx context.Context, p *pc) error {
	r.joining.Lock()
	defer r.joining.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	found, err := r.etcd.Cluster.Look(ctx, r.etcd.Masters())
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: r.answering(found), TLS: r.etcd.TLS, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer client.Close()
	// As kubeadm does: etcd refuses while the last one to join is not long in touch.
	var added *clientv3.MemberAddResponse
	for {
		if added, err = client.MemberAddAsLearner(ctx, []string{r.etcd.Members[p.name].PeerURL}); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(250 * time.Millisecond):
		}
	}
	var initial []string
	for _, m := range added.Members {
		name := m.Name
		if m.ID == added.Member.ID {
			name = p.name
		}
		initial = append(initial, name+"="+m.PeerURLs[0])
	}
	r.etcd.Wipe(p.name)
	r.etcd.Run(p.name, "--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-state=existing")
	for {
		if _, err = client.MemberPromote(ctx, added.Member.ID); err == nil || ctx.Err() != nil {
			return err
		}
		select { // etcd says no until it is in sync
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (r *room) answering(m etcd.Membership) (urls []string) {
	for _, e := range m.Members {
		if e.Answers && !e.Learner {
			urls = append(urls, r.etcd.Members[e.Name].ClientURL)
		}
	}
	return urls
}

// power starts or kills a machine's etcd.
func (r *room) power(p *pc, on bool) {
	r.joining.Lock()
	defer r.joining.Unlock()
	if on {
		r.etcd.Run(p.name)
	} else {
		r.etcd.Kill(p.name)
	}
}

// kill is a power cut.
func (r *room) kill(name string) {
	p := r.pcs[name]
	p.on.Store(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.member {
		r.power(p, false)
	}
	n, err := r.core.Nodes().Get(r.Context(), name, metav1.GetOptions{})
	if err == nil { // which the node controller would find in a while
		_, err = r.core.Nodes().Patch(r.Context(), n.Name, types.MergePatchType, []byte(`{"status":{"conditions":null}}`), metav1.PatchOptions{}, "status")
	}
	if err != nil && !apierrors.IsNotFound(err) {
		r.Error(err)
	}
}

func (r *room) start(name string) {
	p := r.pcs[name]
	p.mu.Lock()
	defer p.mu.Unlock()
	p.boot++
	if p.member {
		r.power(p, true)
	}
	p.on.Store(true)
}

// keeper is a daemon that has just taken over.
func (r *room) keeper(wrap func(http.RoundTripper) http.RoundTripper) *crown.Keeper {
	r.Helper()
	config := rest.CopyConfig(r.config)
	config.WrapTransport = wrap
	k, err := crown.New(crown.Options{Config: config, Every: 100 * time.Millisecond, Etcd: 500 * time.Millisecond, Now: r.now, Log: slog.New(slog.NewTextHandler(r.Output(), nil))})
	if err != nil {
		r.Fatal(err)
	}
	return k
}

// run has a daemon at work until the returned function is called.
func (r *room) run() (stop func()) {
	k := r.keeper(nil)
	ctx, cancel := context.WithCancel(r.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); k.Run(ctx) }()
	return func() { cancel(); <-ended; k.Close() }
}

// state is who is what, as the API and etcd have it.
type state struct {
	masters []string // of the Machines
	voters  []string // that answer
	members int
	crowns  []roles.Crown
	agree   bool
}

func (r *room) state() (s state, err error) {
	list, err := r.dynamic.Resource(machine.Resource()).List(r.Context(), metav1.ListOptions{})
	if err != nil {
		return s, err
	}
	for _, item := range list.Items {
		if role, _, _ := unstructured.NestedString(item.Object, "spec", "role"); role == roles.Master {
			s.masters = append(s.masters, item.GetName())
		}
	}
	found, err := r.etcd.Cluster.Look(r.Context(), r.etcd.Masters())
	if err != nil {
		return s, err
	}
	s.members, s.agree = len(found.Members), found.Agree
	for _, m := range found.Members {
		if m.Answers && !m.Learner {
			s.voters = append(s.voters, m.Name)
		}
	}
	slices.Sort(s.masters)
	slices.Sort(s.voters)
	s.crowns, err = (&crown.Store{Client: r.dynamic}).List(r.Context())
	return s, err
}

// settled reports whether just these many masters are there, and no crown is open.
func (s state) settled(n int) bool {
	return len(s.masters) == n && slices.Equal(s.masters, s.voters) && s.members == n && s.agree &&
		!slices.ContainsFunc(s.crowns, func(c roles.Crown) bool { return c.Open() })
}

func (r *room) await(what string, ok func(state) bool) (s state) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Minute)
	defer cancel()
	for {
		s, err := r.state()
		if err == nil && ok(s) {
			return s
		}
		if r.Failed() {
			r.FailNow()
		}
		select {
		case <-ctx.Done():
			r.Fatalf("waited in vain for %s: %+v %v", what, s, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
