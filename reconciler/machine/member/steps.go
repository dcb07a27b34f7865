package member

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// The steps that Init and Join share.

// kubeletPatch writes what of the kubelet's configuration is this machine's own.
func kubeletPatch(h *host.Host, n host.Needs) host.Step {
	return host.Step{
		Name: "kubelet",
		Look: func(context.Context) ([]string, error) {
			if h.Same(patchFile, patch(n), 0o644) {
				return nil, nil
			}
			return []string{"configure the kubelet for this machine: " + words(n)}, nil
		},
		Do: func(context.Context) error { return h.Write(patchFile, patch(n), 0o644) },
	}
}

// siteCA keeps the site's CA where the balancer and the agent look for it.
func siteCA(h *host.Host, ca func() ([]byte, error)) host.Step {
	return host.Step{
		Name: "ca",
		Look: func(context.Context) ([]string, error) {
			todo := []string{"keep the site's certificate authority in " + host.CAFile}
			text, err := ca()
			if errors.Is(err, fs.ErrNotExist) {
				return todo, nil // it is made in a moment
			}
			if err != nil || h.Same(host.CAFile, text, 0o644) {
				return nil, err
			}
			return todo, nil
		},
		Do: func(context.Context) error {
			text, err := ca()
			if err != nil {
				return err
			}
			return h.Write(host.CAFile, text, 0o644)
		},
	}
}

// endpoint leads the name of the site's API to its masters, by way of this
// machine's balancer. The list of a member is kept by its agent, which knows
// better.
func endpoint(h *host.Host, site string, masters func() []netip.AddrPort) host.Step {
	return host.Step{
		Name: "endpoint",
		Look: func(context.Context) ([]string, error) {
			have, err := host.Masters(h)
			if err != nil {
				return nil, err
			}
			m, err := Read(h)
			if err != nil {
				return nil, err
			}
			want := slices.SortedFunc(slices.Values(masters()), netip.AddrPort.Compare)
			if (m != nil || slices.Equal(have, want)) && len(have) > 0 && inHosts(h, host.Endpoint(site)) {
				return nil, nil
			}
			var words []string
			for _, m := range want {
				words = append(words, m.String())
			}
			return []string{fmt.Sprintf("lead https://%s:%d of this machine to %s", host.Endpoint(site), host.BalancerPort, strings.Join(words, ", "))}, nil
		},
		Do: func(ctx context.Context) error {
			if _, err := host.EnsureHosts(h, site); err != nil {
				return err
			}
			_, err := host.SetMasters(ctx, h, site, masters())
			return err
		},
	}
}

// inHosts reports whether /etc/hosts leads a name to this machine; one that ends
// like a site's endpoint will do for "".
func inHosts(h *host.Host, name string) bool {
	text, err := h.Read("/etc/hosts")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "127.0.0.1" && slices.ContainsFunc(fields[1:], func(have string) bool {
			return have == name || name == "" && strings.HasPrefix(have, "api.") && strings.HasSuffix(have, ".internal")
		}) {
			return true
		}
	}
	return false
}

// agentService starts noded run. The unit is there since noded install, and
// waits for the machine to be a member.
func agentService(h *host.Host) host.Step {
	return host.Step{
		Name: "agent",
		Look: func(ctx context.Context) ([]string, error) {
			if active, err := h.Active(ctx, host.NodedUnit); err != nil || active {
				return nil, broke(err)
			}
			return []string{"start " + host.NodedUnit}, nil
		},
		Do: func(ctx context.Context) error {
			_, err := h.Run(ctx, "systemctl", "restart", host.NodedUnit)
			return broke(err)
		},
	}
}

// awaited is a thing that must come to be.
type awaited struct {
	what    string // "machine pc-01"
	is, not string // "Ready", "is not Ready"
	so      func(ctx context.Context, c *cluster) (ok bool, why string, err error)
}

// await waits for things one after another, and says what each waits for when
// that changes.
func await(h *host.Host, kubeconfig string, patience, pause time.Duration, progress func(string), all ...awaited) host.Step {
	names := make([]string, len(all))
	for i, a := range all {
		names[i] = a.what
	}
	return host.Step{
		Name: "ready",
		Look: func(ctx context.Context) ([]string, error) {
			todo := []string{"wait until it works: " + strings.Join(names, ", ")}
			c, err := openCluster(h, kubeconfig)
			if err != nil {
				return todo, nil
			}
			for _, a := range all {
				if ok, _, err := a.so(ctx, c); err != nil || !ok {
					return todo, nil
				}
			}
			return nil, nil
		},
		Do: func(ctx context.Context) error {
			begin := time.Now()
			c, err := openCluster(h, kubeconfig)
			if err != nil {
				return err
			}
			limited, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			for _, a := range all {
				last := ""
				for {
					ok, why, err := a.so(limited, c)
					if ok {
						progress(a.what + ": " + a.is + " after " + seconds(begin))
						break
					}
					if err != nil {
						why = err.Error()
					}
					if limited.Err() == nil && why != "" {
						last = why
					}
					if Wait(limited, pause) != nil {
						if ctx.Err() != nil {
							return context.Cause(ctx)
						}
						return fault(NotReached, "it may still come: noded status, and kubectl get pods -A on a master; the log is "+Log,
							"%s %s after %s: %s", a.what, a.not, patience, last)
					}
				}
			}
			return nil
		},
	}
}
