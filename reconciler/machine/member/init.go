package member

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"golang.org/x/sync/errgroup"
	bootstrap "k8s.io/cluster-bootstrap/token/api"
)

// Init makes a machine the first master of a site. Check, then Run; both are
// repeatable, and Run completes what an interrupted one began.
type Init struct {
	Host     *host.Host
	Needs    host.Needs
	Source   Source
	Name     string            // "" is the one that is declared for this hardware, or the host name
	Address  netip.Addr        // invalid is the declared one, or the machine's only one
	Net      Net               // zero is the machine's own
	Progress func(line string) // required: what people see

	// Answers reports whether a master answers at an address, and of which site;
	// nil asks it.
	Answers func(ctx context.Context, master netip.AddrPort) (site string, ok bool)
	// Patience is how long the cluster may take to come up after kubeadm; 0 is 5 minutes.
	Patience time.Duration
	// Pause between two looks at it; 0 is a second.
	Pause time.Duration

	// What Check found.
	Site   *Declared
	bundle *host.Bundle
}

// Check refuses everything that a first master must not be, and changes nothing.
// After it Name, Address and Site are known.
func (i *Init) Check(ctx context.Context) error {
	now, err := standing(i.Host)
	if err != nil {
		return err
	}
	if err := now.free("init"); err != nil {
		return err
	}
	if i.bundle, err = Installed(ctx, i.Host); err != nil {
		return err
	}
	if i.Site, err = i.Source.read(ctx, i.Host); err != nil {
		return err
	}
	if i.Name, err = i.Net.chooseName(i.Name, i.Site.Machines); err != nil {
		return err
	}
	if err := i.Site.suits(i.Name, i.bundle); err != nil {
		return err
	}
	pods, _ := i.Site.Spec.Network.Ranges()
	if i.Address, err = i.Net.chooseAddress(i.Address, i.Site.Machines[i.Name], netip.Addr{}, pods); err != nil {
		return err
	}
	if now.member != nil {
		return now.same(i.Site.Name, i.Name, i.Address)
	}
	return i.checkAlone(ctx)
}

// checkAlone refuses to make a second site of the name beside a first: any
// machine of the site may have become its master since. Where the site repo does
// not say by which address they are reached, it looks at the whole network.
func (i *Init) checkAlone(ctx context.Context) error {
	declared := map[netip.Addr]bool{}
	complete := true
	for name, m := range i.Site.Machines {
		a := addressOf(m)
		if a.IsValid() {
			declared[a] = true
		}
		complete = complete && (a.IsValid() || name == i.Name)
	}
	ask := slices.Collect(maps.Keys(declared))
	if !complete {
		neighbours, err := i.Net.neighbours(i.Address)
		if err != nil {
			return err
		}
		ask = append(ask, slices.DeleteFunc(neighbours, func(a netip.Addr) bool { return declared[a] })...)
	}
	ask = slices.DeleteFunc(ask, func(a netip.Addr) bool { return a == i.Address })
	slices.SortFunc(ask, netip.Addr.Compare)

	answers := i.Answers
	if answers == nil {
		answers = siteAt
	}
	found := make([]error, len(ask))
	all, limited := errgroup.WithContext(ctx)
	all.SetLimit(256)
	for n, a := range ask {
		all.Go(func() error {
			master := netip.AddrPortFrom(a, machine.APIPort)
			// One who is none of ours may have a cluster of his own.
			if site, ok := answers(limited, master); ok && (declared[a] || site == i.Site.Name) {
				found[n] = fault(SiteExists, "join it: reconcile token there prints the line to paste here; if that site is to end, noded reset there",
					"site %s has a master already: %s answers", i.Site.Name, master)
			}
			return nil
		})
	}
	all.Wait()
	return cmp.Or(ctx.Err(), firstOf(found))
}

func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// siteAt asks whether an API server is at an address, and of which site; "" is
// that it does not say, or another kind of cluster.
func siteAt(ctx context.Context, master netip.AddrPort) (site string, ok bool) {
	d := &Discovery{Timeout: time.Second}
	c := d.client(&tls.Config{InsecureSkipVerify: true}) // to refuse, anybody's word is enough
	defer c.CloseIdleConnections()
	where := "https://" + master.String()
	reply, err := d.clusterInfo(ctx, c, where)
	if err == nil {
		if s, err := siteOf(reply.data[bootstrap.KubeConfigKey], nil); err == nil {
			return s.Name, true
		}
	}
	var status *badStatus
	return "", err == nil || errors.As(err, &status)
}

// Steps are what Run does, in order. Check must have gone well.
func (i *Init) Steps() []host.Step {
	h := i.Host
	return []host.Step{
		leftovers(h),                           // first: kubeadm begins on clean ground only
		kubeletPatch(h, i.Needs),               // kubeadm reads it
		i.authority(),                          // before the balancer, which believes nobody else
		siteCA(h, i.ownCA),                     //
		endpoint(h, i.Site.Name, i.ownMasters), // before kubeadm, which asks through it whether the API is up
		i.controlPlane(),                       //
		i.source(),                             // before the reconciler, which reads it
		i.etcdClient(),                         // before the reconciler too; after the source, which makes the namespace
		i.converge(),                           // brings network and rules, without which no machine is Ready
		agentService(h),                        // after its rules, or it would be refused at first
		i.settled(),
	}
}

// Run carries the steps out.
func (i *Init) Run(ctx context.Context) error {
	m := mark{Verb: "init", Site: i.Site.Name, Name: i.Name}
	if err := begin(ctx, i.Host, m, i.Steps(), i.Progress); err != nil {
		return err
	}
	return i.Host.Remove(markFile)
}

func (i *Init) config() []byte { return initConfig(i.Site, i.Name, i.Address, i.bundle, i.Needs) }

func (i *Init) ownCA() ([]byte, error) { return i.Host.Read(clusterCA) }

func (i *Init) ownMasters() []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(i.Address, machine.APIPort)}
}

// member is whether kubeadm init has come to its end.
func (i *Init) member() bool {
	m, err := Read(i.Host)
	return err == nil && m != nil
}

// authority makes the site's CA, and nothing else yet.
func (i *Init) authority() host.Step {
	return host.Step{
		Name: "authority",
		Look: func(context.Context) ([]string, error) {
			if i.Host.Exists(clusterCA) {
				return nil, nil
			}
			return []string{"make the certificate authority of site " + i.Site.Name}, nil
		},
		Do: func(ctx context.Context) error {
			return kubeadm(ctx, i.Host, i.config(), "init", "phase", "certs", "ca")
		},
	}
}

// controlPlane is kubeadm init. Not before it has ended well is the machine a
// member.
func (i *Init) controlPlane() host.Step {
	return host.Step{
		Name: "control plane",
		Look: func(context.Context) ([]string, error) {
			if i.member() {
				return nil, nil
			}
			return []string{fmt.Sprintf("start the control plane of site %s: Kubernetes %s on %s, machine %s", i.Site.Name, i.bundle.Kubernetes, i.Address, i.Name)}, nil
		},
		Do: func(ctx context.Context) error {
			begin := time.Now()
			if err := kubeadm(ctx, i.Host, i.config(), "init", "--skip-token-print"); err != nil {
				return err
			}
			i.Progress("control plane: up after " + seconds(begin))
			return save(i.Host, host.MachineFile, Membership{
				Site: i.Site.Name, Name: i.Name, Address: i.Address, Role: machine.Master,
				Endpoint: fmt.Sprintf("%s:%d", host.Endpoint(i.Site.Name), host.BalancerPort),
			})
		},
	}
}

// source tells the cluster where the site repo is, and how to read it.
func (i *Init) source() host.Step {
	return host.Step{
		Name: "source",
		Look: func(ctx context.Context) ([]string, error) {
			todo := []string{fmt.Sprintf("tell the cluster where the site repo is: %s, branch %s", i.Source.Repo, i.Source.branch())}
			objects, err := i.Source.objects(i.Host)
			if err != nil {
				return nil, err
			}
			if c, err := openCluster(i.Host, adminConf); err == nil && i.member() && c.has(ctx, objects) {
				return nil, nil
			}
			return todo, nil
		},
		Do: func(ctx context.Context) error {
			objects, err := i.Source.objects(i.Host)
			if err != nil {
				return err
			}
			return i.apply(ctx, objects...)
		},
	}
}

// apply writes objects into the cluster. They may be secret: they are read by
// kubectl, and are on no command line and in no log.
func (i *Init) apply(ctx context.Context, objects ...object) error {
	list, err := json.Marshal(object{"apiVersion": "v1", "kind": "List", "items": objects})
	if err != nil {
		return err
	}
	_, err = i.Host.Do(ctx, host.Command{
		Name:  "kubectl",
		Args:  []string{"--kubeconfig", i.Host.Path(adminConf), "apply", "--server-side", "--field-manager", "noded", "--force-conflicts", "-f", "-"},
		Stdin: bytes.NewReader(list),
		Env:   noProxy(),
	})
	return broke(err)
}

// converge has this machine's reconcile bring up what the one in the cluster
// needs in order to live. What then remains, machines that have not joined yet
// above all, is that one's.
func (i *Init) converge() host.Step {
	return host.Step{
		Name: "site",
		Look: func(ctx context.Context) ([]string, error) {
			if c, err := openCluster(i.Host, adminConf); err == nil && i.member() {
				if exists, _, _, err := c.reconciler(ctx); err == nil && exists {
					return nil, nil
				}
			}
			return []string{"bring up the network, the rules and the reconciler of the site"}, nil
		},
		Do: func(ctx context.Context) error {
			begin := time.Now()
			limited, cancel := context.WithTimeout(ctx, i.patience())
			defer cancel()
			args := append([]string{"--once", "--kubeconfig", i.Host.Path(adminConf), "--repo", i.Source.Repo}, i.Source.args(i.Host)...)
			for broken := 0; ; {
				_, err := i.Host.Run(limited, "reconcile", args...)
				var exit *host.Exit
				switch {
				case err == nil:
					i.Progress("site: as declared after " + seconds(begin))
					return nil
				case limited.Err() != nil: // told below
				case !errors.As(err, &exit):
					return err
				case exit.Code == 1: // something waits; for machines that are not here, often
					if c, err := openCluster(i.Host, adminConf); err == nil {
						if exists, _, _, err := c.reconciler(limited); err == nil && exists {
							i.Progress("site: the reconciler is in the cluster after " + seconds(begin) + ", and does the rest")
							return nil
						}
					}
				default:
					if broken++; broken == 3 {
						return broke(err)
					}
				}
				if Wait(limited, 2*i.pause()) != nil {
					if ctx.Err() != nil {
						return context.Cause(ctx)
					}
					return fault(NotReached, "the log has why: "+Log+"; noded init goes on from here", "the site does not become as declared within %s", i.patience())
				}
			}
		},
	}
}

// settled waits until machine and reconciler work.
func (i *Init) settled() host.Step {
	machineReady := awaited{"machine " + i.Name, "Ready", "is not Ready", func(ctx context.Context, c *cluster) (bool, string, error) { return c.ready(ctx, i.Name) }}
	reconciler := awaited{"reconciler", "works", "does not work", func(ctx context.Context, c *cluster) (bool, string, error) {
		_, ok, why, err := c.reconciler(ctx)
		return ok, why, err
	}}
	return await(i.Host, adminConf, i.patience(), i.pause(), i.Progress, machineReady, reconciler)
}

func (i *Init) patience() time.Duration {
	if i.Patience == 0 {
		return 5 * time.Minute
	}
	return i.Patience
}

func (i *Init) pause() time.Duration {
	if i.Pause == 0 {
		return time.Second
	}
	return i.Pause
}

// seconds since a moment, for people.
func seconds(begin time.Time) string {
	return fmt.Sprintf("%.0f s", time.Since(begin).Seconds())
}
