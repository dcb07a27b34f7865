package member

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

func TestResetWorker(t *testing.T) {
	p := newPC(t)
	fresh := p.files()
	_, line := aMaster(t)
	if err := become(t.Context(), p.join(line)); err != nil {
		t.Fatal(err)
	}
	p.put("/srv/brick/of/a/volume", "homes")
	p.rules = "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FORWARD - [0:0]\n:FLANNEL-FWD - [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n" +
		"-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\nCOMMIT\n"
	r := &Reset{Host: p.Host, Progress: p.tell}
	lost, remains, err := r.Check(t.Context())
	if err != nil || len(lost) != 1 || !strings.Contains(lost[0], "its Pods are ended, not moved first (kubectl drain pc-01") || len(remains) != 1 || !strings.Contains(remains[0], "kubectl delete node pc-01") {
		t.Errorf("lost %q, remains %q, %v", lost, remains, err)
	}
	n := len(p.commands)
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh["/srv/brick/of/a/volume"] = "homes"
	same(t, "after a reset", asInstalled(p.files()), asInstalled(fresh))
	if want := "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n"; p.rules != want {
		t.Errorf("rules\n%s", p.rules)
	}
	if masters, err := host.Masters(p.Host); err != nil || len(masters) > 0 {
		t.Errorf("masters %v %v", masters, err)
	}
	var did []string
	for _, c := range p.commands[n:] {
		if !strings.Contains(c, "is-active") && !strings.Contains(c, "-save") {
			did = append(did, c)
		}
	}
	if want := []string{
		"systemctl stop noded.service",
		"systemctl stop kubelet.service",
		"kubeadm reset --force --cleanup-tmp-dir --cri-socket unix:///run/containerd/containerd.sock",
		"ip route flush root 10.42.0.0/16",
		"ip link delete cni0",
		"iptables-restore",
		"haproxy -c -q -f /etc/kingmaker/balancer.cfg.new",
		"systemctl reload-or-restart kingmaker-balancer.service",
	}; !slices.Equal(did, want) {
		t.Errorf("did\n%s\nwant\n%s", strings.Join(did, "\n"), strings.Join(want, "\n"))
	}
	// The site hears of it at once, by the machine's own word.
	if len(p.patched) != 2 || !strings.HasPrefix(p.patched[0], "/api/v1/nodes/pc-01/status ") || !strings.Contains(p.patched[0], `"reason":"Left","status":"False","type":"Ready"`) ||
		!strings.Contains(p.patched[1], `{"status":{"conditions":[{"type":"Ready","status":"False","lastTransitionTime":`) || !strings.HasSuffix(p.patched[1], `"reason":"Left","message":"noded reset: the machine left the site"}],"phase":"Leaving"}}`) {
		t.Errorf("patched %q", p.patched)
	}
	if todo, err := host.Look(t.Context(), r.Steps()); err != nil || len(todo) > 0 {
		t.Errorf("still to do: %q %v", todo, err)
	}
	for _, s := range r.Steps() {
		if err := s.Do(t.Context()); err != nil {
			t.Errorf("%s again: %v", s.Name, err)
		}
	}
	same(t, "again", asInstalled(p.files()), asInstalled(fresh))
}

func TestResetMaster(t *testing.T) {
	p := newPC(t)
	if err := become(t.Context(), p.init()); err != nil {
		t.Fatal(err)
	}
	before := p.files()
	_, _, err := (&Reset{Host: p.Host, Progress: p.tell}).Check(t.Context())
	refused(t, err, LastMaster, "the only master of site lab (if the site is to end, add --yes)")
	same(t, "refused", p.files(), before)

	r := &Reset{Host: p.Host, Sure: true, Progress: p.tell}
	lost, _, err := r.Check(t.Context())
	if err != nil || !strings.Contains(strings.Join(lost, "\n"), "everything that is in the cluster and not in the site repo is gone with it; data on bricks stay") {
		t.Errorf("lost %q, %v", lost, err)
	}

	three := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.11:6443"), netip.MustParseAddrPort("10.0.0.12:6443"), netip.MustParseAddrPort("10.0.0.13:6443")}
	if _, err := host.SetMasters(t.Context(), p.Host, "lab", three); err != nil {
		t.Fatal(err)
	}
	_, _, err = (&Reset{Host: p.Host, Progress: p.tell}).Check(t.Context())
	refused(t, err, LastMaster, "let the reconciler retire it")
	if lost, _, err := r.Check(t.Context()); err != nil || !strings.Contains(strings.Join(lost, "\n"), "one of 3 masters") {
		t.Errorf("lost %q, %v", lost, err)
	}
}

// TestResetBroken breaks a reset at each of its commands; a second one completes it.
func TestResetBroken(t *testing.T) {
	member := func() (*pc, map[string]string) {
		p := newPC(t)
		fresh := p.files()
		if err := become(t.Context(), p.init()); err != nil {
			t.Fatal(err)
		}
		return p, fresh
	}
	reset := func(p *pc) error {
		r := &Reset{Host: p.Host, Sure: true, Progress: p.tell}
		if _, _, err := r.Check(t.Context()); err != nil {
			return err
		}
		return r.Run(context.WithoutCancel(t.Context()))
	}
	clean, _ := member()
	begin := len(clean.commands)
	if err := reset(clean); err != nil {
		t.Fatal(err)
	}
	for n := begin; n < len(clean.commands); n++ {
		for _, how := range breaks {
			t.Run(clean.commands[n]+" "+how.name, func(t *testing.T) {
				p, fresh := member()
				p.fault = func(at int, _ string, after bool) error {
					if at == n && after == how.after {
						if how.kill {
							panic(killed{})
						}
						return errInjected
					}
					return nil
				}
				dies(func() error { return reset(p) })
				p.fault = nil
				if err := reset(p); err != nil {
					t.Fatal(err)
				}
				same(t, "in the end", asInstalled(p.files()), asInstalled(fresh))
				if p.running[host.NodedUnit] || p.running[host.KubeletUnit] {
					t.Errorf("running: %v", p.running)
				}
			})
		}
	}
}

func TestResetOfNothing(t *testing.T) {
	p := newPC(t)
	r := &Reset{Host: p.Host, Progress: p.tell}
	if lost, remains, err := r.Check(t.Context()); err != nil || len(lost)+len(remains) > 0 {
		t.Errorf("%q %q %v", lost, remains, err)
	}
	if todo, err := host.Look(t.Context(), r.Steps()); err != nil || len(todo) > 0 {
		t.Errorf("to do: %q %v", todo, err)
	}
}
