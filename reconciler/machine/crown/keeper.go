package crown

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/etcd"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	rbac "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"
)

const manager = "kingmaker"

// Where the daemon's word for etcd is: a client certificate that etcd's CA signed,
// made by noded init.
const (
	CredentialsNamespace = "kingmaker-system"
	CredentialsName      = "etcd-client"
)

// Options of a Keeper. Config is required.
type Options struct {
	Config *rest.Config

	// Suspended says why a Site is suspended that does not say so in its spec; ""
	// where it is not. Nil is never.
	Suspended func(site *unstructured.Unstructured) string
	// Told is called for each thing that people should know, when it is news: a step,
	// or what holds back. Nil is nobody.
	Told func(ctx context.Context, site string, warning bool, reason plan.Code, note string)
	// Changed is called where what is done, or what holds back, is another than before.
	// Nil is nobody.
	Changed func()
	// Limits of heirs and steps; the zero value is what a site should have.
	Limits roles.Limits

	Every time.Duration    // between two turns; 0 is 5 s
	Etcd  time.Duration    // that a member may take to answer; 0 is 1.5 s
	Log   *slog.Logger     // nil is silent
	Now   func() time.Time // nil is time.Now
}

// Keeper keeps the masters of a site: it looks, asks package roles, writes the
// record, and carries the one step out. All that it knows from before is whose
// signs it noticed. Make one with New; it is for one goroutine.
type Keeper struct {
	Options
	dynamic dynamic.Interface
	core    core.CoreV1Interface
	leases  coordination.CoordinationV1Interface
	rbac    rbac.RbacV1Interface
	records *Store

	siteName string
	ailing   string // what is the matter with etcd, as told last
	memory   roles.Memory
	stuck    map[string]string // what kept Pods of a machine from being evicted last

	cluster  *etcd.Cluster
	password string // version of the Secret that cluster was opened with

	mu   sync.Mutex
	last roles.Decision
	told map[string]time.Time
}

// New makes a Keeper, without asking anybody anything yet.
func New(o Options) (k *Keeper, err error) {
	config := rest.CopyConfig(o.Config)
	config.QPS = -1
	config.Timeout = 10 * time.Second // an API server that hangs is one that is gone
	o.Every, o.Etcd = cmp.Or(o.Every, 5*time.Second), cmp.Or(o.Etcd, 1500*time.Millisecond)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	k = &Keeper{Options: o, stuck: map[string]string{}, told: map[string]time.Time{}}
	if k.dynamic, err = dynamic.NewForConfig(config); err == nil {
		if k.core, err = core.NewForConfig(config); err == nil {
			if k.leases, err = coordination.NewForConfig(config); err == nil {
				k.rbac, err = rbac.NewForConfig(config)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	k.records = &Store{Client: k.dynamic, Manager: manager}
	return k, nil
}

// deadline of a turn. Whoever leads has led for certain until the lease could have
// gone to another: what was decided is done by then, or not any more.
const deadline = 15 * time.Second

// Run keeps the roles until ctx ends. It begins knowing nobody's silence.
func (k *Keeper) Run(ctx context.Context) {
	k.memory = roles.Memory{}
	var told string
	well := k.Now()
	for {
		again, err := k.Turn(ctx)
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); err != nil && text != told {
			k.Log.WarnContext(ctx, "roles", "error", err)
			told = text
		} else if err == nil {
			told, well = "", k.Now()
		}
		if err != nil && k.Now().Sub(well) > blind {
			k.blinded(ctx, err)
		}
		pause := k.Every
		if again {
			pause = 200 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// blind is how long the roles may not be kept before people are told.
const blind = time.Minute

// blinded tells that nobody keeps the roles.
func (k *Keeper) blinded(ctx context.Context, err error) {
	d := roles.Decision{Holds: []*plan.Fault{{Code: roles.Unreadable, ID: plan.ID{System: plan.Machines},
		Cause: "nobody keeps the roles of machines: " + err.Error(), Hint: "a master that dies now is not replaced"}}}
	k.remember(d)
	k.tell(ctx, d)
}

// remember keeps a decision for Last, and returns the one before.
func (k *Keeper) remember(d roles.Decision) (before roles.Decision) {
	k.mu.Lock()
	before, k.last = k.last, d
	k.mu.Unlock()
	if k.Changed != nil && gist(before) != gist(d) {
		k.Changed()
	}
	return before
}

// gist is what of a decision is news where it changes: for how long is none.
func gist(d roles.Decision) string {
	var b strings.Builder
	for _, f := range append(d.Holds[:len(d.Holds):len(d.Holds)], d.Waits...) {
		fmt.Fprintln(&b, f.Code, f.ID.Name)
	}
	if d.Step != nil {
		fmt.Fprintln(&b, d.Step.Do, d.Step.Machine)
	}
	return b.String()
}

// Turn is one look, one decision and at most one step. Again is true where
// something was done, so that the next one may be due at once.
func (k *Keeper) Turn(ctx context.Context) (again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	r, err := k.look(ctx)
	if err != nil || !r.managed {
		return false, err
	}
	r.declared.Limits = k.Limits
	d := roles.Plan(r.declared, r.observed, k.Now(), k.memory)
	k.memory = d.Memory
	before := k.remember(d)
	k.tell(ctx, d)
	if d.Step == nil {
		return false, k.records.Prune(ctx, r.observed.Crowns, k.Now())
	}
	if d.Record != nil && !same(d.Record, r.observed.Crowns) {
		if err := k.records.Put(ctx, d.Record); err != nil {
			return false, err
		}
	}
	news := before.Step == nil || before.Step.Do != d.Step.Do || before.Step.Machine != d.Step.Machine
	if news {
		k.Log.InfoContext(ctx, "step", "do", d.Step.String(), "crown", d.Step.Crown, "why", d.Step.Why)
	}
	err = k.act(ctx, r, d.Step)
	if err != nil && ctx.Err() == nil && d.Record != nil && !passing(err) {
		failed := *d.Record
		failed.Attempts++
		failed.Error = err.Error()
		err = errors.Join(err, k.records.Put(ctx, &failed))
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", d.Step, err)
	}
	return news, nil
}

// same reports whether a record is stored as it is already.
func same(c *roles.Crown, stored []roles.Crown) bool {
	return slices.ContainsFunc(stored, func(s roles.Crown) bool {
		return s.Number == c.Number && s.Step == c.Step && s.Machine == c.Machine && s.Undo == c.Undo && s.Outcome == c.Outcome &&
			s.Address == c.Address && s.Attempts == c.Attempts && s.Error == c.Error && s.Cause == c.Cause && len(s.Journal) == len(c.Journal)
	})
}

// passing reports whether an error says nothing of the step: the API server was
// away or busy, or somebody wrote meanwhile.
func passing(err error) bool {
	var answer apierrors.APIStatus
	switch {
	case !errors.As(err, &answer):
		return !errors.Is(err, etcd.ErrOtherMember)
	case apierrors.IsConflict(err), apierrors.IsTooManyRequests(err), apierrors.IsTimeout(err), apierrors.IsServerTimeout(err):
		return true
	}
	return answer.Status().Code >= 500
}

// tell tells what is news of a decision, and each again after an hour.
func (k *Keeper) tell(ctx context.Context, d roles.Decision) {
	now := k.Now()
	say := func(key string, warning bool, reason plan.Code, note string) {
		if at, ok := k.told[key]; ok && now.Sub(at) < time.Hour {
			return
		}
		for old, at := range k.told {
			if now.Sub(at) >= time.Hour {
				delete(k.told, old)
			}
		}
		k.told[key] = now
		if warning {
			k.Log.WarnContext(ctx, "held", "code", reason, "reason", note)
		}
		if k.Told != nil {
			k.Told(ctx, k.siteName, warning, reason, note)
		}
	}
	for _, f := range d.Holds {
		say(string(f.Code)+f.ID.Name, true, f.Code, f.Error()) // its text may tell for how long
	}
	if s := d.Step; s != nil {
		note := s.String()
		if s.Why != "" {
			note += ": " + s.Why
		}
		say(note, false, plan.Code(s.Do), strings.TrimSpace(note))
	}
}

// Last is the last decision: what is under way, and what holds back.
func (k *Keeper) Last() roles.Decision {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// Close ends the connections to etcd.
func (k *Keeper) Close() error {
	if k.cluster == nil {
		return nil
	}
	return k.cluster.Close()
}

// etcd is the way to the members, with the certificate that the cluster keeps for
// us. It is read each time, and so known to be good before it is needed.
func (k *Keeper) etcd(ctx context.Context) (*etcd.Cluster, error) {
	deed := fmt.Sprintf("read the certificate for etcd, Secret %s/%s", CredentialsNamespace, CredentialsName)
	s, err := k.core.Secrets(CredentialsNamespace).Get(ctx, CredentialsName, metav1.GetOptions{})
	if err != nil {
		if k.cluster != nil {
			return k.cluster, nil // the API server may be what is to be repaired
		}
		return nil, fmt.Errorf("%s: %w", deed, err)
	}
	if k.cluster != nil && k.password == s.ResourceVersion {
		return k.cluster, nil
	}
	pair, err := tls.X509KeyPair(s.Data["tls.crt"], s.Data["tls.key"])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", deed, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(s.Data["ca.crt"]) {
		return nil, fmt.Errorf("%s: ca.crt has no certificate", deed)
	}
	if k.cluster != nil {
		_ = k.cluster.Close()
	}
	k.cluster = etcd.Open(&tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS12}, k.Etcd)
	k.password = s.ResourceVersion
	return k.cluster, nil
}

// Outlook is what is to be done about roles, for people.
type Outlook struct {
	Crown    string // the record: the open one, else the next
	Decision roles.Decision
	Ahead    []roles.Ahead  // the steps, if all goes well
	End      roles.Decision // what stops it there
	Masters  []string       // now
	After    []string       // after the steps
	Assumed  string         // why etcd was not asked, and its members are taken from the API; "" where it was
}

// Forecast is what would be done from here on for a site as declared, by a brain
// that had looked all the while. It changes nothing. A cluster that is not managed,
// or has no Site yet, has none.
func (k *Keeper) Forecast(ctx context.Context, site *plan.Site) (o Outlook, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*deadline)
	defer cancel()
	r, err := k.objects(ctx)
	if err != nil || !r.managed {
		return o, err
	}
	if err := k.members(ctx, r); err != nil {
		o.Assumed = err.Error()
	} else if len(r.observed.Members) == 0 {
		o.Assumed = "no member of etcd could be reached from here"
	}
	if o.Assumed != "" {
		r.assume()
	}
	if err := k.work(ctx, r); err != nil {
		return o, err
	}
	r.declared = intended(site, r)
	r.declared.Limits = k.Limits
	memory, now := roles.Assume(r.observed), k.Now()
	o.Decision = roles.Plan(r.declared, r.observed, now, memory)
	if o.Assumed != "" { // whose etcd answers is not known
		o.Decision.Holds = slices.DeleteFunc(o.Decision.Holds, func(f *plan.Fault) bool { return f.Code == roles.AgentAway || f.Code == roles.EtcdAway })
	}
	o.Ahead, o.End = roles.Forecast(r.declared, r.observed, now, memory)
	masters := map[string]bool{}
	for _, m := range r.observed.Members {
		if m.Name != "" && !m.Learner {
			masters[m.Name] = true
		}
	}
	o.Masters = slices.Sorted(maps.Keys(masters))
	for _, a := range o.Ahead {
		switch a.Step.Do {
		case roles.RemoveMember:
			delete(masters, a.Step.Machine)
		case roles.Join:
			masters[a.Step.Machine] = true
		}
		o.Crown = cmp.Or(o.Crown, a.Step.Crown)
	}
	o.After = slices.Sorted(maps.Keys(masters))
	return o, nil
}

// intended is what a site declares, with the machines that an open one admits
// besides.
func intended(site *plan.Site, r *reading) roles.Declared {
	d := roles.Declared{Suspended: r.declared.Suspended}
	declare(&d, site.Spec)
	known := map[string]bool{}
	for _, m := range plan.Documents[machine.Machine](site, plan.Machines, "Machine", &plan.Report{}) {
		known[m.ID.Name] = true
		d.Machines = append(d.Machines, roles.Declaration{Name: m.ID.Name, Master: m.Spec.Role(), Circuit: m.Spec.Circuit, Paused: m.Spec.Paused})
	}
	for _, m := range r.declared.Machines {
		if !known[m.Name] && site.Spec.Admission == "open" {
			d.Machines = append(d.Machines, m)
		}
	}
	return d
}
