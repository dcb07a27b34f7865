package crown

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/etcd"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// CordonedBy is the annotation of a Node that we cordoned: the name of the crown.
const CordonedBy = plan.Group + "/cordoned-by"

// ErrNoSite says that no site was applied to the cluster yet.
var ErrNoSite = errors.New("the cluster has no Site yet")

const leasesNamespace = "kube-node-lease"

func sitesResource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: plan.Group, Version: "v1alpha1", Resource: "sites"}
}

// reading is what there is at one moment, read for one decision: from the API
// server's own store and not from its cache, and from each member of etcd.
type reading struct {
	declared roles.Declared
	observed roles.Observed
	managed  bool // false: whose control plane this is, is not our affair

	machines map[string]kept
	nodes    map[string]*corev1.Node
	tickets  []ticket
	masters  []string // client URLs of etcd
}

// kept is a Machine as the API has it.
type kept struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     machine.Assigned  `json:"spec"`
	Status   machine.Status    `json:"status"`
}

// address by which the site reaches the machine; "" is not known yet.
func (k kept) address(n *corev1.Node) string {
	for _, text := range []string{k.Status.Inventory.Address, addressOf(n), k.Spec.Address} {
		if a, err := netip.ParseAddr(text); err == nil {
			return a.Unmap().String()
		}
	}
	return ""
}

func addressOf(n *corev1.Node) string {
	if n != nil {
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				return a.Address
			}
		}
	}
	return ""
}

// look reads everything afresh: the objects, the members of etcd, and the work on
// the machines where it matters.
func (k *Keeper) look(ctx context.Context) (r *reading, err error) {
	if r, err = k.objects(ctx); err != nil || !r.managed {
		return r, err
	}
	if err = k.members(ctx, r); err != nil {
		return nil, err
	}
	return r, k.work(ctx, r)
}

// objects are what the API server has.
func (k *Keeper) objects(ctx context.Context) (*reading, error) {
	r := &reading{machines: map[string]kept{}, nodes: map[string]*corev1.Node{}}
	o := &r.observed
	o.At, o.Fresh = k.Now(), true
	managed, err := k.site(ctx, &r.declared)
	if err != nil || !managed {
		return r, err
	}
	r.managed = true
	list, err := k.dynamic.Resource(machine.Resource()).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	for i := range list.Items {
		m, err := readKept(&list.Items[i])
		if err != nil {
			return nil, err
		}
		r.machines[m.Metadata.Name] = m
		r.declared.Machines = append(r.declared.Machines, roles.Declaration{
			Name: m.Metadata.Name, Master: m.Spec.Machine.Role(), Circuit: m.Spec.Circuit, Paused: m.Spec.Paused,
		})
	}
	nodes, err := k.core.Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for i := range nodes.Items {
		r.nodes[nodes.Items[i].Name] = &nodes.Items[i]
	}
	leases, err := k.leases.Leases(leasesNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the leases of nodes: %w", err)
	}
	renewed := map[string]time.Time{}
	for _, l := range leases.Items {
		if l.Spec.RenewTime != nil {
			renewed[l.Name] = l.Spec.RenewTime.Time
		}
	}
	if o.Crowns, err = k.records.List(ctx); err != nil {
		return nil, err
	}
	if r.tickets, err = k.readTickets(ctx); err != nil {
		return nil, err
	}
	if o.Version, err = k.version(ctx); err != nil {
		return nil, err
	}
	for name, m := range r.machines {
		o.Machines = append(o.Machines, r.machine(name, m, renewed[name]))
	}
	for name := range r.nodes {
		if _, ok := r.machines[name]; !ok {
			o.Machines = append(o.Machines, r.machine(name, kept{}, renewed[name]))
		}
	}
	slices.SortFunc(o.Machines, func(a, b roles.Machine) int { return strings.Compare(a.Name, b.Name) })
	o.Key = r.key()
	r.snapshot()
	return r, nil
}

func readKept(item *unstructured.Unstructured) (m kept, err error) {
	text, err := item.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return m, fmt.Errorf("read Machine %s: %w", item.GetName(), err)
	}
	return m, nil
}

// site reads what the cluster's Site says. It is the committed one, put there by
// the rounds: so the roles are kept also while git cannot be reached.
func (k *Keeper) site(ctx context.Context, d *roles.Declared) (managed bool, err error) {
	list, err := k.dynamic.Resource(sitesResource()).List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, fmt.Errorf("list the sites of the cluster: %w", err)
	}
	if len(list.Items) == 0 {
		return false, ErrNoSite
	}
	if len(list.Items) > 1 {
		return false, fmt.Errorf("the cluster has %d Sites, and roles are kept for one", len(list.Items))
	}
	var site struct {
		Spec plan.SiteSpec `json:"spec"`
	}
	text, err := list.Items[0].MarshalJSON()
	if err == nil {
		err = json.Unmarshal(text, &site)
	}
	if err != nil {
		return false, fmt.Errorf("read Site %s: %w", list.Items[0].GetName(), err)
	}
	k.siteName = list.Items[0].GetName()
	declare(d, site.Spec)
	if d.Suspended == "" && k.Suspended != nil {
		d.Suspended = k.Suspended(&list.Items[0])
	}
	return site.Spec.Kubernetes.IsManaged(), nil
}

// declare is what a Site says of roles.
func declare(d *roles.Declared, spec plan.SiteSpec) {
	d.Masters, d.Failover = spec.MasterCount(), spec.Failover
	if spec.Suspend != nil {
		d.Suspended = spec.Suspend.Reason
	}
}

// machine is what the planner is told of one.
func (r *reading) machine(name string, k kept, lease time.Time) roles.Machine {
	n, s := r.nodes[name], k.Status
	m := roles.Machine{
		Name: name, Lease: lease,
		Role: k.Spec.Role, Generation: k.Spec.RoleGeneration, Ordered: k.Spec.Orders.Reset, ResetFor: s.Done.Reset,
		Heartbeat: s.Heartbeat, Reached: s.RoleGeneration, Blank: s.Blank, Keys: s.Keys, Failed: s.FailedGeneration,
		Boot: s.Inventory.BootID, Address: k.address(n), CPU: s.Inventory.CPU, Images: s.Images, Restarts: s.UnorderedBoots,
	}
	// What an agent reports has been checked by the CRD, but for the form of these;
	// one that cannot be read is one that is not measured.
	if q, err := resource.ParseQuantity(string(s.Inventory.Memory)); err == nil {
		m.Memory = q.Value()
	}
	m.Fsync, _ = time.ParseDuration(s.Inventory.FsyncP99)
	m.Skew, _ = time.ParseDuration(s.ClockAhead)
	for _, t := range r.tickets {
		m.Invited = m.Invited || t.machine == name && t.CertificateKey.Value() == "" && t.Boot == m.Boot && t.Until.After(r.observed.At)
	}
	if n == nil {
		return m
	}
	m.Joined, m.Version = true, n.Status.NodeInfo.KubeletVersion
	_, m.Labelled = n.Labels[machine.MasterLabel]
	m.Cordoned = n.Spec.Unschedulable
	m.Ours = n.Annotations[CordonedBy] != ""
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			m.Ready = c.Status == corev1.ConditionTrue
		}
	}
	return m
}

// snapshot is dated by us, and by the order that it was written for: the clocks of
// machines differ.
func (r *reading) snapshot() {
	for i := range r.observed.Crowns {
		c := &r.observed.Crowns[i]
		for _, m := range r.machines {
			if c.Open() && m.Status.Done.Snapshot == c.Name() {
				r.observed.Snapshot = r.observed.At
			}
		}
	}
}

// members asks etcd. Members that do not answer are no error, nor is a lost quorum:
// the planner is told of it.
func (k *Keeper) members(ctx context.Context, r *reading) error {
	addresses := map[string]bool{}
	for _, m := range r.observed.Machines {
		if (m.Role == roles.Master || m.Labelled) && m.Address != "" {
			addresses[m.Address] = true
		}
	}
	for _, c := range r.observed.Crowns {
		if c.Open() && c.Address != "" {
			addresses[c.Address] = true
		}
	}
	for a := range addresses {
		r.masters = append(r.masters, "https://"+net.JoinHostPort(a, strconv.Itoa(etcd.ClientPort)))
	}
	slices.Sort(r.masters)
	cluster, err := k.etcd(ctx)
	if err != nil {
		return err
	}
	found, err := cluster.Look(ctx, r.masters)
	if text := fmt.Sprint(err); err != nil && text != k.ailing {
		k.Log.WarnContext(ctx, "etcd", "error", err)
		k.ailing = text
	} else if err == nil {
		k.ailing = ""
	}
	r.observed.Members, r.observed.Agree = found.Members, found.Agree
	return nil
}

// assume makes members of those that the API has as masters, where etcd cannot be
// asked, as from a person's own PC: for showing, and never for doing.
func (r *reading) assume() {
	o := &r.observed
	o.Agree = true
	ready := 0
	for i, m := range o.Machines {
		if m.Role == roles.Master && m.Labelled {
			o.Members = append(o.Members, roles.Member{ID: uint64(i + 1), Leader: len(o.Members) == 0, Name: m.Name, PeerURL: "https://" + net.JoinHostPort(m.Address, strconv.Itoa(etcd.ClientPort+1)), Answers: m.Ready})
			if m.Ready {
				ready++
			}
		}
	}
	// The API answered, so there is a quorum, whatever the Nodes say.
	if 2*ready <= len(o.Members) {
		for i := range o.Members {
			o.Members[i].Answers = true
		}
	}
}

// version of the control plane.
func (k *Keeper) version(ctx context.Context) (string, error) {
	text, err := k.core.RESTClient().Get().AbsPath("/version").DoRaw(ctx)
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		return "", fmt.Errorf("ask for the version of the control plane: %w", err)
	}
	return v.GitVersion, nil
}
