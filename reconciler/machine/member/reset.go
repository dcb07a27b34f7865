package member

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// Reset takes a machine out of its site: afterwards it is as noded install left
// it, with all images. It drains nothing, and touches no brick.
type Reset struct {
	Host     *host.Host
	Sure     bool              // the person has read what is lost (--yes)
	Progress func(line string) // required: what people see

	// What Check found; nil where the machine is no member.
	Member *Membership
}

// Check says what is lost, a line each, and what remains to be done elsewhere.
// The error refuses to take a master away from those who did not ask for just
// that. It changes nothing.
func (r *Reset) Check(context.Context) (lost, remains []string, err error) {
	m, err := Read(r.Host)
	if err != nil {
		// It cannot be told what this machine is: cleaning up is all the more wanted.
		r.Host.Log.Warn("reset of a machine that cannot be read", "error", err)
	}
	r.Member = m
	if m == nil {
		if r.Host.Exists(manifests + "/etcd.yaml") {
			lost = append(lost, "the control plane and its etcd data on this machine, whoever made them")
		}
		return lost, nil, nil
	}
	lost = append(lost, "what runs on this machine now: its Pods are ended, not moved first (kubectl drain "+m.Name+" moves them)")
	remains = append(remains, "kubectl delete node "+m.Name+", unless the machine is to join again")
	if m.Role != machine.Master {
		return lost, remains, nil
	}
	all, err := host.Masters(r.Host)
	if err != nil {
		return nil, nil, err
	}
	others := 0
	for _, a := range all {
		if a.Addr() != m.Address {
			others++
		}
	}
	if others == 0 {
		lost = append(lost, fmt.Sprintf("site %s: this is its only master, and everything that is in the cluster and not in the site repo is gone with it; data on bricks stay", m.Site))
		if !r.Sure {
			return lost, remains, fault(LastMaster, "if the site is to end, add --yes", "this machine is the only master of site %s", m.Site)
		}
		remains = append(remains[:0], "noded reset on each other machine of the site")
		return lost, remains, nil
	}
	lost = append(lost, fmt.Sprintf("one of %d masters of site %s: until there is another, the site survives one failure less", others+1, m.Site))
	if !r.Sure {
		return lost, remains, fault(LastMaster, "let the reconciler retire it (master: never in the site repo), or add --yes", "this machine is a master of site %s", m.Site)
	}
	return lost, remains, nil
}

// Steps are what Run does, in order.
func (r *Reset) Steps() []host.Step {
	h := r.Host
	return []host.Step{
		stopAgent(h),            // it would put the balancer back
		r.leave(),               //
		directoryAside(h),       // people's passwords, which no git has
		network(h),              // after the Pods, which use it
		rules(h),                //
		forgetEndpoint(h),       // after kubeadm, which speaks to the site by it
		forget(h, "membership"), // last: until then this reset can be run again and knows of whom
	}
}

// Run carries the steps out.
func (r *Reset) Run(ctx context.Context) error { return host.Do(ctx, r.Steps(), r.Progress) }

// leave is kubeadm reset, after a goodbye.
func (r *Reset) leave() host.Step {
	s := leave(r.Host)
	do := s.Do
	s.Do = func(ctx context.Context) error {
		if r.Member == nil {
			return do(ctx)
		}
		// The kubelet first: it would say the contrary ten seconds later.
		if _, err := r.Host.Run(ctx, "systemctl", "stop", host.KubeletUnit); err != nil {
			return broke(err)
		}
		if c, err := openCluster(r.Host, KubeletConf); err == nil {
			if err := c.goodbye(ctx, r.Member.Name, time.Now()); err != nil {
				r.Host.Log.InfoContext(ctx, "the site was not told, and will notice within a minute", "error", err)
			}
		}
		return do(ctx)
	}
	return s
}

// clear takes back everything of a try that did not make a member.
func clear(ctx context.Context, h *host.Host) error {
	quiet := func(string) {}
	return host.Do(ctx, []host.Step{stopAgent(h), leave(h), network(h), rules(h), forgetEndpoint(h), forget(h, "mark")}, quiet)
}

// leftovers clears up after a try that was interrupted before the machine was a
// member. All of it: of no single thing can be told how far it came.
func leftovers(h *host.Host) host.Step {
	return host.Step{
		Name: "leftovers",
		Look: func(context.Context) ([]string, error) {
			m, err := Read(h)
			if err != nil || m != nil || len(traces(h)) == 0 && !h.Exists(markFile) {
				return nil, err
			}
			return []string{"clear up what an earlier try left here"}, nil
		},
		Do: func(ctx context.Context) error {
			// A control plane that never was is not worth asking; kubeadm would,
			// for minutes.
			return errors.Join(h.Remove(adminConf), clear(ctx, h))
		},
	}
}

// begin clears up first and then sets the mark, so that a next try knows.
func begin(ctx context.Context, h *host.Host, m mark, steps []host.Step, progress func(string)) error {
	if err := host.Do(ctx, steps[:1], progress); err != nil {
		return err
	}
	if err := save(h, markFile, m); err != nil {
		return err
	}
	return host.Do(ctx, steps[1:], progress)
}

// stopAgent ends noded run.
func stopAgent(h *host.Host) host.Step {
	return host.Step{
		Name: "agent",
		Look: func(ctx context.Context) ([]string, error) {
			if active, err := h.Active(ctx, host.NodedUnit); err != nil || !active {
				return nil, broke(err)
			}
			return []string{"stop " + host.NodedUnit}, nil
		},
		Do: func(ctx context.Context) error {
			_, err := h.Run(ctx, "systemctl", "stop", host.NodedUnit)
			return broke(err)
		},
	}
}

// leave is kubeadm reset: it ends kubelet and containers, and removes what they
// kept. Of what it cannot remove it only warns, so that is looked at again.
func leave(h *host.Host) host.Step {
	return host.Step{
		Name: "cluster",
		Look: func(context.Context) ([]string, error) {
			if len(traces(h)) == 0 {
				return nil, nil
			}
			return []string{"end the kubelet and all containers, and remove what they kept here (kubeadm reset)"}, nil
		},
		Do: func(ctx context.Context) error {
			_, err := h.Do(ctx, host.Command{Name: "kubeadm", Args: []string{"reset", "--force", "--cleanup-tmp-dir", "--cri-socket", criSocket}, Env: noProxy()})
			if err != nil {
				return broke(err)
			}
			// Logs of Pods are the site's, and the next site's Pods would count from them.
			for _, file := range append(traces(h), "/var/log/pods", "/var/log/containers") {
				if err := h.Remove(file); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// network removes what CNI and flannel leave on a machine, which kubeadm does not
// know of.
func network(h *host.Host) host.Step {
	files := func() (found []string) {
		matches, _ := filepath.Glob(h.Path("/etc/cni/net.d/*flannel*"))
		for _, match := range matches {
			found = append(found, filepath.Join("/etc/cni/net.d", filepath.Base(match)))
		}
		for _, folder := range []string{"/run/flannel", "/var/lib/cni"} {
			if h.Exists(folder) {
				found = append(found, folder)
			}
		}
		return found
	}
	links := func() (found []string) {
		for _, link := range []string{"cni0", "flannel.1"} {
			if h.Exists("/sys/class/net/" + link) {
				found = append(found, link)
			}
		}
		return found
	}
	return host.Step{
		Name: "network",
		Look: func(context.Context) ([]string, error) {
			if all := append(files(), links()...); len(all) > 0 {
				return []string{"remove the Pods' network: " + strings.Join(all, ", ")}, nil
			}
			return nil, nil
		},
		Do: func(ctx context.Context) error {
			// Routes to the Pods of other machines, before what says which they are.
			if pods := podNetwork(h); pods != "" {
				if _, err := h.Run(ctx, "ip", "route", "flush", "root", pods); err != nil {
					return broke(err)
				}
			}
			for _, link := range links() {
				if _, err := h.Run(ctx, "ip", "link", "delete", link); err != nil {
					return broke(err)
				}
			}
			for _, file := range files() {
				if err := h.Remove(file); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// podNetwork is the range of the Pods of the whole site, as flannel noted it.
func podNetwork(h *host.Host) string {
	text, err := h.Read("/run/flannel/subnet.env")
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("FLANNEL_NETWORK=")); ok {
			return string(value)
		}
	}
	return ""
}

// rules takes the packet rules of Kubernetes away, and leaves everybody else's.
// kubeadm tells people to flush all of them, which a PC's own would not survive.
func rules(h *host.Host) host.Step {
	pairs := [][2]string{{"iptables-save", "iptables-restore"}, {"ip6tables-save", "ip6tables-restore"}}
	saved := func(ctx context.Context, command string) ([]byte, error) {
		rules, err := h.Run(ctx, command)
		if errors.Is(err, exec.ErrNotFound) {
			return nil, nil // then nobody has made any
		}
		return rules, broke(err)
	}
	return host.Step{
		Name: "rules",
		Look: func(ctx context.Context) ([]string, error) {
			for _, pair := range pairs {
				have, err := saved(ctx, pair[0])
				if err != nil {
					return nil, err
				}
				if !bytes.Equal(have, withoutRules(have)) {
					return []string{"remove the packet rules of Kubernetes, and no others"}, nil
				}
			}
			return nil, nil
		},
		Do: func(ctx context.Context) error {
			for _, pair := range pairs {
				have, err := saved(ctx, pair[0])
				if err != nil {
					return err
				}
				want := withoutRules(have)
				if bytes.Equal(have, want) {
					continue
				}
				// All of a table at once, or none: iptables-restore changes it in one go.
				if _, err := h.Do(ctx, host.Command{Name: pair[1], Stdin: bytes.NewReader(want)}); err != nil {
					return broke(err)
				}
			}
			return nil
		},
	}
}

// withoutRules is what iptables-save says, without chains of Kubernetes and of
// its network, what is in them and what leads to them.
func withoutRules(saved []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(saved) {
		ours := slices.ContainsFunc(strings.Fields(string(line)), func(word string) bool {
			word = strings.TrimPrefix(word, ":")
			return strings.HasPrefix(word, "KUBE-") || strings.HasPrefix(word, "FLANNEL-") || strings.HasPrefix(word, "CNI-")
		})
		if !ours {
			kept = append(kept, line...)
		}
	}
	return kept
}

// forgetEndpoint takes the site's masters out of the balancer, and its name out
// of /etc/hosts.
func forgetEndpoint(h *host.Host) host.Step {
	return host.Step{
		Name: "endpoint",
		Look: func(context.Context) ([]string, error) {
			// A list that cannot be read is all the more to be forgotten.
			if masters, err := host.Masters(h); err == nil && len(masters) == 0 && !inHosts(h, "") {
				return nil, nil
			}
			return []string{"forget the masters of the site"}, nil
		},
		Do: func(ctx context.Context) error {
			return errors.Join(host.ForgetMasters(ctx, h), host.RemoveHosts(h))
		},
	}
}

// forget removes what says that the machine is a member, or was to be one.
func forget(h *host.Host, name string) host.Step {
	files := []string{"/run/kingmaker", patchesDir, host.CAFile, markFile, AgentConf, partFile, host.MachineFile}
	return host.Step{
		Name: name,
		Look: func(context.Context) ([]string, error) {
			if slices.ContainsFunc(files, h.Exists) {
				return []string{"forget that this machine was a member"}, nil
			}
			return nil, nil
		},
		Do: func(context.Context) error {
			for _, file := range files {
				if err := h.Remove(file); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
