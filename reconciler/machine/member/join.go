package member

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Join makes a machine a worker of a site. Check, then Run; both are repeatable.
// Where Run breaks before the machine is a member, it takes back what it did.
type Join struct {
	Host       *host.Host
	Needs      host.Needs
	Invitation machine.Invitation
	Name       string            // "" is the host name
	Address    netip.Addr        // invalid is the one that leads to the master
	Net        Net               // zero is the machine's own
	Progress   func(line string) // required: what people see

	// Discovery may be set up otherwise by tests; its Invitation is overwritten.
	Discovery Discovery
	// Patience is how long the machine may take to be Ready after kubeadm; 0 is 3 minutes.
	Patience time.Duration
	// Pause between two looks at it; 0 is a second.
	Pause time.Duration

	// What Check found.
	Site   *Site
	bundle *host.Bundle
}

// Check asks the masters of the line, and refuses everything that would go wrong
// later. It changes nothing. After it Name, Address and Site are known.
func (j *Join) Check(ctx context.Context) error {
	now, err := standing(j.Host)
	if err != nil {
		return err
	}
	if err := now.free("join"); err != nil {
		return err
	}
	if j.Name, err = j.Net.chooseName(j.Name, nil); err != nil {
		return err
	}
	if j.bundle, err = Installed(ctx, j.Host); err != nil {
		return err
	}
	j.Discovery.Invitation = j.Invitation
	if j.Site, err = j.Discovery.Find(ctx); err != nil {
		return err
	}
	for _, doubt := range j.Site.Doubts {
		j.Progress("note: " + doubt)
	}
	if minor(j.Site.Kubernetes) != minor(j.bundle.Kubernetes) {
		return fault(VersionDiffers, "run noded install from the site's own bundle", "site %s runs Kubernetes %s, and this machine's bundle has %s", j.Site.Name, j.Site.Kubernetes, j.bundle.Kubernetes)
	}
	if j.Address, err = j.Net.chooseAddress(j.Address, machine.Machine{}, j.Site.Masters[0].Addr(), netip.Prefix{}); err != nil {
		return err
	}
	if now.member != nil {
		return now.same(j.Site.Name, j.Name, j.Address) // the Node of the name is this machine
	}
	self, err := identity(j.Host)
	if err != nil {
		return err
	}
	return j.Discovery.CheckName(ctx, j.Site, j.Name, self, j.Progress)
}

// minor is a version without its last number: v1.36.
func minor(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// Steps are what Run does, in order. Check must have gone well.
func (j *Join) Steps() []host.Step {
	h := j.Host
	return []host.Step{
		leftovers(h),                        // first: kubeadm begins on clean ground only
		kubeletPatch(h, j.Needs),            // kubeadm reads it
		siteCA(h, j.siteCA),                 // before the balancer, which believes nobody else
		endpoint(h, j.Site.Name, j.masters), // before kubeadm, which joins by it
		j.join(),
		agentService(h),
		j.settled(),
	}
}

// Run carries the steps out.
func (j *Join) Run(ctx context.Context) error {
	err := begin(ctx, j.Host, mark{Verb: "join", Site: j.Site.Name, Name: j.Name}, j.Steps(), j.Progress)
	if m, e := Read(j.Host); e == nil && m != nil {
		// It is a member. Where it is only not Ready yet, nothing is to be begun
		// again; where its agent did not start, say, another try completes it.
		var f *plan.Fault
		if err == nil || errors.As(err, &f) && f.Code == NotReached {
			err = errors.Join(err, j.Host.Remove(markFile))
		}
		return err
	}
	if err == nil {
		return errors.New("join: kubeadm ended well, and the machine is no member") // cannot be
	}
	// Taken back even where somebody pressed Ctrl-C, who will not wait for long.
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	j.Progress("taking back what was done")
	if e := clear(back, j.Host); e != nil {
		return errors.Join(err, fmt.Errorf("take back what was done: %w; noded reset tries again", e))
	}
	return err
}

func (j *Join) siteCA() ([]byte, error)   { return j.Site.CA, nil }
func (j *Join) masters() []netip.AddrPort { return j.Site.Masters }

// join is kubeadm join. Not before it has ended well is the machine a member.
func (j *Join) join() host.Step {
	return host.Step{
		Name: "join",
		Look: func(context.Context) ([]string, error) {
			if m, err := Read(j.Host); err != nil || m != nil {
				return nil, err
			}
			return []string{fmt.Sprintf("join site %s as worker %s with address %s", j.Site.Name, j.Name, j.Address)}, nil
		},
		Do: func(ctx context.Context) error {
			begin := time.Now()
			quiet := *j.Host
			quiet.Runner = masking{j.Host.Runner, j.Invitation.Token.Value(), j.Invitation.TokenSecret()}
			if err := kubeadm(ctx, &quiet, joinConfig(&j.Invitation, j.Site, j.Name, j.Address, j.Needs), "join"); err != nil {
				return err
			}
			j.Progress("kubelet: in the site after " + seconds(begin))
			return save(j.Host, host.MachineFile, Membership{
				Site: j.Site.Name, Name: j.Name, Address: j.Address, Role: machine.Worker, Endpoint: j.Site.Endpoint,
			})
		},
	}
}

// settled waits until the machine works. It asks as the Node that it is now.
func (j *Join) settled() host.Step {
	patience, pause := j.Patience, j.Pause
	if patience == 0 {
		patience = 3 * time.Minute
	}
	if pause == 0 {
		pause = time.Second
	}
	return await(j.Host, KubeletConf, patience, pause, j.Progress, awaited{"machine " + j.Name, "Ready", "is not Ready",
		func(ctx context.Context, c *cluster) (bool, string, error) { return c.ready(ctx, j.Name) }})
}

// masking hides words in what commands say, before anybody can log it. kubeadm
// does not say them today.
type masking struct {
	host.Runner
	word, part string
}

func (m masking) Run(ctx context.Context, c host.Command) ([]byte, error) {
	hide := func(text string) string {
		return strings.ReplaceAll(strings.ReplaceAll(text, m.word, "(secret)"), m.part, "(secret)")
	}
	// Hidden when all of it is there, for a word may come in two pieces.
	var stderr bytes.Buffer
	to := c.Stderr
	if to != nil {
		c.Stderr = &stderr
	}
	out, err := m.Runner.Run(ctx, c)
	if to != nil {
		if _, e := io.WriteString(to, hide(stderr.String())); e != nil {
			err = errors.Join(err, e)
		}
	}
	var exit *host.Exit
	if errors.As(err, &exit) {
		err = &host.Exit{Command: exit.Command, Code: exit.Code, Stderr: hide(exit.Stderr)}
	}
	return []byte(hide(string(out))), err
}
