package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// duty is one thing that the site, or the machine's own past, wants done now.
type duty string

const (
	none           duty = ""
	fence          duty = "fence"           // it serves or has keys, and is no master: reset, wipe, reboot
	reset          duty = "reset"           // it was ordered: reset and reboot
	arrived        duty = "arrived"         // it works in the role that it was given
	joinMaster     duty = "join as master"  // with a ticket of this boot
	joinFailed     duty = "join failed"     // the join was cut short by a reboot
	joinWorker     duty = "join as worker"  // with a ticket of this boot
	prepull        duty = "prepull"         // and so on: orders
	restartKubelet duty = "restart kubelet" //
	snapshot       duty = "snapshot"        //
	uploadCerts    duty = "upload certs"    //
)

// facts of the disk, and of what is heard, that decide which duty is next.
type state struct {
	part    member.Part
	heard   *machine.Assigned // the newest spec; nil: the site was not heard in this run
	serves  bool              // a control plane runs, or would at the next boot
	keys    bool              // the site's private keys are there
	blank   bool              // it is reset
	kubelet bool              // it has a kubelet's word: it is a Node
	ready   bool              // its Node is Ready, as last reported
	ticket  *machine.Ticket   // for this machine, boot and moment; nil is none
}

// next is the next duty. It is the behaviour that the planner of roles was proved
// against: see `turn` and `join` of the simulated site in package roles.
func next(s state) duty {
	p := s.part
	worker := p.Role == machine.Worker
	switch {
	case worker && (s.serves || s.keys):
		return fence
	case s.heard == nil:
		return none // what follows needs the site
	case worker && s.heard.Orders.Reset != "" && s.heard.Orders.Reset != p.Done.Reset:
		return reset
	case p.Role == machine.Master && p.Generation > p.Reached:
		switch {
		case s.serves && s.kubelet && s.ready:
			return arrived // also one that got there in its last moment
		case p.Tried == p.Generation && p.Failed != p.Generation:
			return joinFailed
		case p.Tried == p.Generation:
			return none // it will be made a worker
		case !s.blank && !s.serves:
			return fence // installed anew, and joined by hand: what it was is lost, and it says so when it is blank
		case s.blank && s.ticket != nil && s.ticket.CertificateKey.Value() != "":
			return joinMaster
		}
		return none
	case worker && p.Reached != p.Generation:
		return arrived
	case worker && s.blank && s.ticket != nil && s.ticket.CertificateKey.Value() == "":
		return joinWorker
	}
	// Those that a crown waits for go first; each is tried until it is done or withdrawn,
	// and what fails must not be in the way of what is more.
	o, done := s.heard.Orders, p.Done
	switch {
	case o.UploadCerts != "" && o.UploadCerts != done.UploadCerts && s.serves:
		return uploadCerts
	case o.RestartKubelet != "" && o.RestartKubelet != done.RestartKubelet:
		return restartKubelet
	case o.Prepull != "" && o.Prepull != done.Prepull:
		return prepull
	case o.Snapshot != "" && o.Snapshot != done.Snapshot && s.serves:
		return snapshot
	}
	return none
}

// do is at work until ctx ends: one duty after the other, at once where the site
// changes its mind, and else every few seconds.
func (a *Agent) do(ctx context.Context) {
	var told troubles
	for {
		again, err := a.dutyOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			told = nil
		} else if told.new(err.Error()) {
			a.Log.WarnContext(ctx, "duty", "error", err)
		}
		if again && err == nil {
			continue
		}
		timer := time.NewTimer(cmp.Or(a.Membership, 5*time.Second))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-a.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// dutyOnce looks, and does what is next. Again is true where something was done.
func (a *Agent) dutyOnce(ctx context.Context) (again bool, err error) {
	h := a.Host
	m, err := member.Read(h)
	if m == nil || err != nil || member.UnderWay(h) != "" {
		return false, err
	}
	p, err := member.ReadPart(h)
	if err != nil {
		return false, err
	}
	before := p
	p = p.Started(host.BootID(h), time.Now())
	uid, heard, ready := a.heardOf(m.Name)
	if heard != nil {
		if p.Generation == 0 {
			p.Done = heard.Orders // of an earlier life, before it was installed anew
		}
		p = p.Learn(uid, heard.Role, heard.RoleGeneration)
	}
	s := state{part: p, heard: heard, ready: ready,
		serves: member.Serves(h), keys: member.HasKeys(h), blank: member.Blank(h), kubelet: h.Exists(member.KubeletConf)}
	if p.Reached == 0 && p.Tried == 0 && p.Role == m.Role && !s.blank {
		p.Reached = p.Generation // as noded init and join made it
		s.part = p
	}
	if !same(before, p) {
		if err := member.SavePart(h, p); err != nil {
			return false, err
		}
	}
	if s.blank && heard != nil {
		if s.ticket, err = a.ticket(ctx, m); err != nil {
			a.Log.DebugContext(ctx, "no ticket", "error", err)
			s.ticket = nil
		}
	}
	d := next(s)
	a.tellPart(p, s)
	if d == none {
		return false, nil
	}
	a.Log.InfoContext(ctx, "duty", "is", string(d), "role", p.Role, "generation", p.Generation)
	p, err = a.carry(ctx, d, m, s)
	if !same(p, s.part) {
		err = errors.Join(err, member.SavePart(h, p))
	}
	a.tellPart(p, s)
	if err != nil {
		return false, fmt.Errorf("%s: %w", d, err)
	}
	poke(a.due)
	return true, nil
}

func same(a, b member.Part) bool {
	return a.Machine == b.Machine && a.Role == b.Role && a.Generation == b.Generation && a.Reached == b.Reached && a.Tried == b.Tried && a.Failed == b.Failed && a.Failure == b.Failure &&
		a.Done == b.Done && a.Boot == b.Boot && a.Ordered == b.Ordered && slices.Equal(a.Boots, b.Boots)
}

// carry carries one duty out, and returns what is to be remembered.
func (a *Agent) carry(ctx context.Context, d duty, m *member.Membership, s state) (p member.Part, err error) {
	h, p := a.Host, s.part
	o := machine.Orders{}
	if s.heard != nil {
		o = s.heard.Orders
	}
	progress := func(line string) { a.Log.InfoContext(ctx, string(d), "now", line) }
	switch d {
	case fence, reset:
		if err := (&member.Fence{Host: h, Progress: progress}).Run(ctx); err != nil {
			return p, err
		}
		m.Role = machine.Worker
		if err := member.Save(h, *m); err != nil {
			return p, err
		}
		// Remembered before the reboot, or it would be done again after it.
		p.Done.Reset, p.Ordered = cmp.Or(o.Reset, p.Done.Reset), true
		if err := member.SavePart(h, p); err != nil {
			return p, err
		}
		_, err = h.Run(ctx, "systemctl", "reboot")
		if err == nil {
			<-ctx.Done() // systemd ends us
		}
		return p, err
	case arrived:
		if m.Role != p.Role {
			m.Role = p.Role
			if err := member.Save(h, *m); err != nil {
				return p, err
			}
		}
		p.Reached = p.Generation
	case joinFailed:
		p.Failed, p.Failure = p.Generation, "it was cut short by a restart of the machine"
	case joinMaster:
		p.Tried = p.Generation
		if err := member.SavePart(h, p); err != nil {
			return p, err
		}
		if err := a.rejoin(ctx, m, s, progress); err != nil {
			p.Failed, p.Failure = p.Generation, err.Error()
			return p, err
		}
		p.Reached = p.Generation
	case joinWorker:
		if err := a.rejoin(ctx, m, s, progress); err != nil {
			return p, errors.Join(err, (&member.Fence{Host: h, Progress: progress}).Run(ctx))
		}
	case prepull:
		missing, err := member.MissingImages(ctx, h)
		if err == nil && len(missing) > 0 {
			err = fmt.Errorf("%s and %d more are missing: run noded install from the site's bundle", missing[0], len(missing)-1)
		}
		if err != nil {
			return p, err
		}
		a.mu.Lock()
		a.facts.images = true
		a.mu.Unlock()
		p.Done.Prepull = o.Prepull
	case restartKubelet:
		if _, err := h.Run(ctx, "systemctl", "restart", host.KubeletUnit); err != nil {
			return p, err
		}
		p.Done.RestartKubelet = o.RestartKubelet
	case snapshot:
		if err := save(ctx, h, time.Now()); err != nil {
			return p, err
		}
		p.Done.Snapshot = o.Snapshot
	case uploadCerts:
		name, _, _ := strings.Cut(o.UploadCerts, "/")
		t, err := a.readTicket(ctx, m, name)
		if err == nil && t.Upload == o.UploadCerts {
			err = member.UploadCerts(ctx, h, *m, *t)
		}
		// A ticket that is gone, or another one by now: the order is of no use any more.
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
			return p, err
		}
		p.Done.UploadCerts = o.UploadCerts
	}
	return p, nil
}

func (a *Agent) rejoin(ctx context.Context, m *member.Membership, s state, progress func(string)) error {
	needs, err := host.Detect(ctx, a.Host)
	if err != nil {
		return err
	}
	return (&member.Rejoin{Host: a.Host, Needs: needs, Member: *m, Ticket: *s.ticket, Progress: progress}).Run(ctx)
}

// ticket of this machine, if it is good for this boot and moment.
func (a *Agent) ticket(ctx context.Context, m *member.Membership) (*machine.Ticket, error) {
	t, err := a.readTicket(ctx, m, m.Name)
	switch {
	case err != nil:
		return nil, err
	case t.Boot != host.BootID(a.Host):
		return nil, errors.New("the ticket is for another boot")
	case !t.Until.After(time.Now()):
		return nil, errors.New("the ticket is over")
	}
	return t, nil
}

func (a *Agent) readTicket(ctx context.Context, m *member.Membership, of string) (*machine.Ticket, error) {
	config, err := m.Speak(a.Host, a.Version)
	if err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	secrets := schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	o, err := client.Resource(secrets).Namespace(machine.TicketNamespace).Get(ctx, machine.TicketName(of), metav1.GetOptions{})
	if err != nil {
		return nil, unanswered(err)
	}
	var secret corev1.Secret
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &secret); err != nil {
		return nil, err
	}
	t, err := machine.ReadTicket(secret.Data)
	return &t, err
}

// Snapshots is where a master keeps those of etcd, the newest few.
const (
	Snapshots     = host.StateDir + "/snapshots"
	keepSnapshots = 5
)

// save writes a snapshot of etcd, whole or not at all.
func save(ctx context.Context, h *host.Host, now time.Time) error {
	if err := os.MkdirAll(h.Path(Snapshots), 0o700); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	const pki = "/etc/kubernetes/pki/etcd/"
	file := filepath.Join(Snapshots, now.UTC().Format("20060102T150405Z")+".db")
	part := file + ".part"
	_, err := h.Run(ctx, "etcdctl", "--endpoints", "https://127.0.0.1:2379", "--cacert", h.Path(pki+"ca.crt"),
		"--cert", h.Path(pki+"healthcheck-client.crt"), "--key", h.Path(pki+"healthcheck-client.key"), "snapshot", "save", h.Path(part))
	if err == nil {
		err = errors.Join(os.Chmod(h.Path(part), 0o600), os.Rename(h.Path(part), h.Path(file)))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write a snapshot of etcd: %w", err), h.Remove(part))
	}
	all, err := filepath.Glob(h.Path(Snapshots) + "/*.db")
	if err != nil {
		return err
	}
	slices.Sort(all)
	for _, old := range all[:max(0, len(all)-keepSnapshots)] {
		err = errors.Join(err, os.Remove(old))
	}
	return err
}
