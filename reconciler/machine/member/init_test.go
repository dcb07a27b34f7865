package member

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// become checks and runs.
func become(ctx context.Context, m interface {
	Check(context.Context) error
	Run(context.Context) error
}) error {
	if err := m.Check(ctx); err != nil {
		return err
	}
	return m.Run(ctx)
}

func TestInit(t *testing.T) {
	p := newPC(t)
	const canary = "c4n4ry-of-git"
	p.put("/etc/site-git/password", canary)
	p.put("/etc/site-git/username", "robot")
	p.put("/etc/site-git/.hidden/password", "no")
	before := p.files()
	i := p.init()
	i.Source.Credentials, i.Source.Path = "/etc/site-git", "sites/lab"
	p.once = []error{&host.Exit{Code: 1}, &host.Exit{Code: 2, Stderr: "reconcile: the API server was too busy"}, &host.Exit{Code: 1}}
	if err := i.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, "a look changes nothing", p.files(), before)
	todo, err := host.Look(t.Context(), i.Steps())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"configure the kubelet for this machine: cgroupDriver systemd",
		"make the certificate authority of site lab",
		"keep the site's certificate authority in /etc/kingmaker/ca.crt",
		"lead https://api.lab.internal:7443 of this machine to 10.0.0.11:6443",
		"start the control plane of site lab: Kubernetes v1.36.3 on 10.0.0.11, machine pc-01",
		"tell the cluster where the site repo is: https://git.school.example/site.git, branch main",
		"give the reconciler a certificate for etcd",
		"bring up the network, the rules and the reconciler of the site",
		"start noded.service",
		"wait until it works: machine pc-01, reconciler",
	}
	if !slices.Equal(todo, want) {
		t.Errorf("todo\n%s\nwant\n%s", strings.Join(todo, "\n"), strings.Join(want, "\n"))
	}
	same(t, "a second look changes nothing", p.files(), before)
	if err := i.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := Read(p.Host)
	if err != nil || *m != (Membership{"lab", "pc-01", netip.MustParseAddr("10.0.0.11"), "api.lab.internal:7443", "master"}) {
		t.Errorf("membership %+v, %v", m, err)
	}
	for _, line := range []string{
		"reconcile render https://git.school.example/site.git --branch main --cache /var/lib/kingmaker/git --path sites/lab --credentials /etc/site-git",
		"kubeadm init phase certs ca --config /run/kingmaker/kubeadm.yaml",
		"kubeadm init --skip-token-print --config /run/kingmaker/kubeadm.yaml",
		"kubectl --kubeconfig /etc/kubernetes/admin.conf apply --server-side --field-manager noded --force-conflicts -f -",
		"reconcile --once --kubeconfig /etc/kubernetes/admin.conf --repo https://git.school.example/site.git --branch main --cache /var/lib/kingmaker/git --path sites/lab --credentials /etc/site-git",
		"systemctl restart noded.service",
	} {
		if !slices.Contains(p.commands, line) {
			t.Errorf("not run: %s", line)
		}
	}
	if got := fmt.Sprint(p.objects["configmaps/site-source"]["data"]); got != "map[branch:main path:sites/lab repo:https://git.school.example/site.git]" {
		t.Errorf("source %s", got)
	}
	base, err := os.ReadFile("../../../manifests/base/namespace.yaml")
	if err != nil {
		t.Fatal(err)
	}
	labels := p.objects["namespaces/kingmaker-system"]["metadata"].(map[string]any)["labels"].(map[string]any)
	for key, value := range labels {
		if line := fmt.Sprintf("    %s: %s\n", key, value); !strings.Contains(string(base), line) {
			t.Errorf("manifests/base/namespace.yaml lacks %q: the reconciler would find it foreign", line)
		}
	}
	if len(labels) == 0 {
		t.Error("the namespace has no labels")
	}
	password := base64.StdEncoding.EncodeToString([]byte(canary))
	if got := fmt.Sprint(p.objects["secrets/site-credentials"]["data"]); got != "map[password:"+password+" username:"+base64.StdEncoding.EncodeToString([]byte("robot"))+"]" {
		t.Errorf("credentials %s", got)
	}
	for _, secret := range []string{canary, password} {
		if strings.Contains(p.log.String()+strings.Join(p.commands, "\n")+strings.Join(p.told, "\n"), secret) {
			t.Error("the password of the site repo is in a log, on a command line or on the screen")
		}
	}
	after := p.files()
	for _, gone := range []string{configFile, markFile} {
		if _, ok := after[gone]; ok {
			t.Errorf("%s is left", gone)
		}
	}
	if got := strings.Join(p.told, "\n"); !strings.Contains(got, "control plane: up after 0 s") || !strings.Contains(got, "reconciler: works after 0 s") {
		t.Errorf("told\n%s", got)
	}

	// Each step again changes nothing, and has nothing to say.
	n := len(p.commands)
	if todo, err := host.Look(t.Context(), i.Steps()); err != nil || len(todo) > 0 {
		t.Errorf("still to do: %q %v", todo, err)
	}
	for _, s := range i.Steps() {
		if s.Name == "control plane" || s.Name == "authority" || s.Name == "leftovers" {
			continue // kubeadm itself cannot be run again, and is not
		}
		if err := s.Do(t.Context()); err != nil {
			t.Errorf("%s again: %v", s.Name, err)
		}
	}
	if slices.ContainsFunc(p.commands[n:], func(c string) bool { return strings.HasPrefix(c, "kubeadm") }) {
		t.Errorf("again: %q", p.commands[n:])
	}
	same(t, "again", p.files(), after)
	refused(t, p.init().Check(t.Context()), AlreadyMember, "this machine is pc-01 of site lab, a master, already (noded reset leaves the site)")
}

func TestInitRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		setup func(p *pc, i *Init)
		code  plan.Code
		says  string
	}{
		{"not installed", func(p *pc, _ *Init) { p.Remove(host.BundleFile) }, NotInstalled, "bundle.json is missing (run noded install"},
		{"half installed", func(p *pc, _ *Init) { p.Remove("/usr/local/bin/kubeadm") }, NotInstalled, "/usr/local/bin/kubeadm is missing"},
		{"images missing", func(p *pc, _ *Init) { p.put(host.BundleFile, `{"images":[{"name":"kingmaker.dev/pause:9"}]}`) }, NotInstalled, "the image kingmaker.dev/pause:9 is missing"},
		{"containerd down", func(p *pc, _ *Init) { p.running["containerd.service"] = false }, NotInstalled, "containerd.service does not run"},
		{"somebody's cluster", func(p *pc, _ *Init) { p.put(adminConf, "") }, ForeignCluster, "part of a cluster that noded did not make: it has /etc/kubernetes/admin.conf"},
		{"no site", func(_ *pc, i *Init) { i.Source.Repo = "" }, SiteRefused, "--site is missing"},
		{"a folder", func(_ *pc, i *Init) { i.Source.Repo = "/srv/site" }, SiteRefused, "is a folder of this machine"},
		{"a file URL", func(_ *pc, i *Init) { i.Source.Repo = "file:///srv/site.git" }, SiteRefused, "is a folder of this machine"},
		{"a password in the URL", func(_ *pc, i *Init) { i.Source.Repo = "https://me:secret@git.school.example/site.git" }, SiteRefused, "has a password in it"},
		{"a token in the URL", func(_ *pc, i *Init) { i.Source.Repo = "https://token@git.school.example/site.git" }, SiteRefused, "has a password in it"},
		{"a repo that is not reached", func(p *pc, _ *Init) {
			p.render = func() error {
				return &host.Exit{Code: 2, Stderr: "reconcile: warning: old [Old]\nreconcile: git.school.example: no such host [RepositoryUnreachable]\n"}
			}
		}, SiteRefused, "git.school.example: no such host [RepositoryUnreachable]"},
		{"no Site", func(p *pc, _ *Init) { p.site = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n" }, SiteRefused, "has no Site document"},
		{"not managed", func(p *pc, _ *Init) {
			p.site = strings.Replace(p.site, "spec:\n", "spec:\n  kubernetes: {managed: false}\n", 1)
		}, SiteRefused, "its cluster is made by somebody else"},
		{"another version", func(p *pc, _ *Init) {
			p.site = strings.Replace(p.site, "spec:\n", "spec:\n  kubernetes: {version: v1.35.1}\n", 1)
		}, VersionDiffers, "wants Kubernetes v1.35.1, and this machine's bundle has v1.36.3"},
		{"not declared", func(_ *pc, i *Init) { i.Name = "pc-99" }, NotDeclared, "does not declare a machine pc-99, and admits only those that it lists (add machines/pc-99.yaml, or give the right name with --name (declared: pc-01, pc-02))"},
		{"never a master", func(_ *pc, i *Init) { i.Name = "pc-02" }, NotDeclared, "master: never"},
		{"a bad name", func(_ *pc, i *Init) { i.Name = "PC 1" }, machine.LineInvalid, `the --name "PC 1" is no name of a machine`},
		{"another's address", func(p *pc, _ *Init) { p.site = strings.Replace(p.site, "10.0.0.11", "10.0.0.99", 1) }, NotDeclared, "has the address 10.0.0.99 for this machine, which has 10.0.0.11"},
		{"another's card", func(p *pc, _ *Init) {
			p.site = strings.Replace(p.site, "address: 10.0.0.11", "mac: 02-4B-4D-00-00-99", 1)
		}, NotDeclared, "has the network card 02-4B-4D-00-00-99 for this machine, which has 02:4b:4d:00:00:01"},
		{"an address that is not here", func(_ *pc, i *Init) { i.Address = netip.MustParseAddr("10.0.0.98") }, NoAddress, "--address 10.0.0.98 is not an address of this machine"},
		{"a master answers", func(_ *pc, i *Init) {
			i.Answers = func(_ context.Context, m netip.AddrPort) (string, bool) { return "", m.String() == "10.0.0.12:6443" }
		}, SiteExists, "site lab has a master already: 10.0.0.12:6443 answers"},
		{"a master answers where nobody is declared", func(p *pc, i *Init) {
			p.site = strings.Replace(p.site, "address: 10.0.0.12", "mac: 02:4b:4d:00:00:02", 1)
			i.Answers = func(_ context.Context, m netip.AddrPort) (string, bool) {
				switch m.Addr().String() {
				case "10.0.0.20":
					return "", true // somebody's cluster
				case "10.0.0.30":
					return "lab", true
				}
				return "", false
			}
		}, SiteExists, "site lab has a master already: 10.0.0.30:6443 answers"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPC(t)
			i := p.init()
			test.setup(p, i)
			before := p.files()
			refused(t, i.Check(t.Context()), test.code, test.says)
			same(t, "refused", p.files(), before)
			for _, c := range p.commands {
				if !strings.HasPrefix(c, "systemctl is-active") && !strings.HasPrefix(c, "ctr ") && !strings.HasPrefix(c, "reconcile render") {
					t.Errorf("run: %s", c)
				}
			}
		})
	}
}

// TestWhoAmI finds a machine in the site repo by what it is made of.
func TestWhoAmI(t *testing.T) {
	declared := map[string]machine.Machine{
		"pc-07": {MAC: "02-4B-4D-00-00-01"},
		"pc-08": {Address: "10.0.0.18"},
		"pc-09": {MAC: "02:4b:4d:00:00:02"},
	}
	cards := func(cards ...Card) Net {
		return Net{Cards: func() ([]Card, error) { return cards, nil }, Hostname: func() (string, error) { return "Debian.school.example", nil },
			Toward: func(netip.Addr) (netip.Addr, error) { return netip.MustParseAddr("10.0.0.19"), nil }}
	}
	addresses := func(all ...string) (list []netip.Prefix) {
		for _, a := range all {
			list = append(list, netip.PrefixFrom(netip.MustParseAddr(a), 24))
		}
		return list
	}
	bridge := Card{"02:42:00:00:00:01", addresses("172.17.0.1")}
	for _, test := range []struct {
		name          string
		net           Net
		asked, master string
		want, address string // address "" is not clear
	}{
		{"by its card", cards(bridge, Card{"02:4b:4d:00:00:01", addresses("10.0.0.17", "fe80::2")}), "", "", "pc-07", "10.0.0.17"},
		{"by its card, which has IPv6 too", cards(Card{"02:4b:4d:00:00:01", addresses("2001:db8::17", "10.0.0.17", "2001:db8::42")}), "", "", "pc-07", "10.0.0.17"},
		{"its only one, but for IPv6", cards(Card{"02:4b:4d:00:00:0a", addresses("2001:db8::19", "10.0.0.19")}), "", "", "debian", "10.0.0.19"},
		{"by its address", cards(bridge, Card{"02:4b:4d:00:00:0a", addresses("10.0.0.18")}), "", "", "pc-08", "10.0.0.18"},
		{"by its host name", cards(Card{"02:4b:4d:00:00:0a", addresses("10.0.0.19")}), "", "", "debian", "10.0.0.19"},
		{"by what is asked", cards(Card{"02:4b:4d:00:00:02", addresses("10.0.0.19")}), "pc-09", "", "pc-09", "10.0.0.19"},
		{"two addresses", cards(bridge, Card{"02:4b:4d:00:00:0a", addresses("10.0.0.19")}), "", "", "debian", ""},
		{"two addresses, and a master", cards(bridge, Card{"02:4b:4d:00:00:0a", addresses("10.0.0.19")}), "", "10.0.0.11", "debian", "10.0.0.19"},
		{"two on the card", cards(Card{"02:4b:4d:00:00:01", addresses("10.0.0.17", "10.1.0.17")}), "", "", "pc-07", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			name, err := test.net.chooseName(test.asked, declared)
			if err != nil || name != test.want {
				t.Errorf("name %q, %v, want %q", name, err, test.want)
			}
			master, _ := netip.ParseAddr(test.master)
			address, err := test.net.chooseAddress(netip.Addr{}, declared[name], master, netip.MustParsePrefix("10.42.0.0/16"))
			if test.address == "" {
				refused(t, err, NoAddress, "it is not clear by which address")
			} else if err != nil || address.String() != test.address {
				t.Errorf("address %s, %v, want %s", address, err, test.address)
			}
		})
	}
}

func TestSiteAt(t *testing.T) {
	m := &master{ca: newCA(t, time.Now().Add(-time.Hour))}
	if site, ok := siteAt(t.Context(), where(m.start(t))); site != "lab" || !ok {
		t.Errorf("a master of lab: %q %v", site, ok)
	}
	other := &master{ca: m.ca, server: "https://10.0.0.1:6443"}
	if site, ok := siteAt(t.Context(), where(other.start(t))); site != "" || !ok {
		t.Errorf("somebody's cluster: %q %v", site, ok)
	}
	if site, ok := siteAt(t.Context(), nobody(t)); site != "" || ok {
		t.Errorf("nobody: %q %v", site, ok)
	}
	all, err := pcNet.neighbours(netip.MustParseAddr("10.0.0.11"))
	if err != nil || len(all) != 255 || all[0].String() != "10.0.0.0" || slices.Contains(all, netip.MustParseAddr("10.0.0.11")) {
		t.Errorf("neighbours %v %v", all, err)
	}
	wide := Net{Cards: func() ([]Card, error) { return []Card{{"", []netip.Prefix{netip.MustParsePrefix("10.0.0.11/8")}}}, nil }}
	if all, err := wide.neighbours(netip.MustParseAddr("10.0.0.11")); err != nil || len(all) > 0 {
		t.Errorf("%d neighbours", len(all))
	}
}

// breaks are the ways in which a command can go wrong, or noded with it.
var breaks = []struct {
	name  string
	after bool
	kill  bool
}{{"fails", false, false}, {"fails when it is done", true, false}, {"noded is killed before", false, true}, {"noded is killed after", true, true}}

// TestInitBroken breaks a first try at each of its commands. A second one, and a
// reset with another, must both end as if nothing had been.
func TestInitBroken(t *testing.T) {
	clean := newPC(t)
	fresh := clean.files()
	if err := become(t.Context(), clean.init()); err != nil {
		t.Fatal(err)
	}
	want := clean.files()
	for n, command := range clean.commands {
		for _, how := range breaks {
			for _, reset := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d %s %s, reset %v", n, command, how.name, reset), func(t *testing.T) {
					p := newPC(t)
					p.fault = func(at int, _ string, after bool) error {
						if at != n || after != how.after {
							return nil
						}
						if how.kill {
							panic(killed{})
						}
						return errInjected
					}
					err, dead := dies(func() error { return become(t.Context(), p.init()) })
					if err == nil && !dead && !strings.HasPrefix(command, "reconcile --once") && !strings.Contains(command, "tables-save") {
						t.Error("nobody noticed")
					}
					p.fault = nil
					if reset {
						r := &Reset{Host: p.Host, Sure: true, Progress: p.tell}
						if _, _, err := r.Check(t.Context()); err != nil {
							t.Fatal(err)
						}
						if err := r.Run(t.Context()); err != nil {
							t.Fatal(err)
						}
						same(t, "after a reset", asInstalled(p.files()), asInstalled(fresh))
					}
					if m, err := Read(p.Host); err == nil && m != nil && !p.Exists(markFile) {
						refused(t, p.init().Check(t.Context()), AlreadyMember, "already")
					} else if err := become(t.Context(), p.init()); err != nil {
						t.Fatal(err)
					}
					same(t, "in the end", p.files(), want)
					if !p.running[host.NodedUnit] || !p.running[host.KubeletUnit] {
						t.Errorf("running: %v", p.running)
					}
				})
			}
		}
	}
}

// asInstalled leaves out what package host remembers of the balancer.
func asInstalled(files map[string]string) map[string]string {
	kept := maps.Clone(files)
	maps.DeleteFunc(kept, func(name, _ string) bool {
		return strings.HasPrefix(name, host.StateDir+"/begun/") || name == host.BalancerFile+".new"
	})
	return kept
}

func TestInitThatDoesNotSettle(t *testing.T) {
	p := newPC(t)
	i := p.init()
	i.Patience = 1 // ns
	err := become(t.Context(), i)
	refused(t, err, NotReached, "within 1ns")
	if err := become(t.Context(), p.init()); err != nil {
		t.Errorf("the next: %v", err)
	}
}

func TestKubeadmConfigs(t *testing.T) {
	lab := host.Needs{CgroupDriver: "cgroupfs", FeatureGates: map[string]bool{"KubeletInUserNamespace": true}, KeepConntrack: true}
	site, err := declared([]byte(schoolSite))
	if err != nil {
		t.Fatal(err)
	}
	line, err := machine.ParseInvitation("10.0.0.11:6443", "sha256:"+strings.Repeat("ab", 32), tokenID+"."+tokenSecret)
	if err != nil {
		t.Fatal(err)
	}
	have := &host.Bundle{Kubernetes: "v1.36.3", Etcd: "v3.6.16", CoreDNS: "v1.14.2"}
	address := netip.MustParseAddr("10.0.0.11")
	for name, needs := range map[string]host.Needs{"pc": plainNeeds, "lab": lab} {
		for file, got := range map[string][]byte{
			"init":    initConfig(site, "pc-01", address, have, needs),
			"join":    joinConfig(&line, &Site{Name: "lab", Endpoint: "api.lab.internal:7443"}, "pc-01", address, needs),
			"kubelet": patch(needs),
		} {
			golden := "testdata/" + file + "-" + name + ".yaml"
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || string(want) != string(got) {
				t.Errorf("%s (UPDATE_GOLDEN=1 writes it): %v\n%s", golden, err, got)
			}
		}
	}
}

// TestReconcilerWorks reads the reconciler's DaemonSet as its controller leaves it.
func TestReconcilerWorks(t *testing.T) {
	p := newPC(t)
	p.put(adminConf, kubeconfigHere(p.api.URL))
	p.cluster = true
	for _, test := range []struct {
		have          map[string]any
		exists, works bool
		why           string
	}{
		{nil, false, false, "it is not there"},
		{aDaemonSet(1, 0, 0, 0), true, false, "its Pods are not planned yet"},
		{aDaemonSet(2, 1, 1, 1), true, false, "its Pods are not planned yet"}, // what is available is of before
		{aDaemonSet(1, 1, 0, 0), true, false, "no Node is a master's"},
		{aDaemonSet(1, 1, 1, 0), true, false, "0 of 1 Pods work"},
		{aDaemonSet(1, 1, 3, 1), true, true, "1 of 3 Pods work"},
	} {
		p.daemonSet = test.have
		c, err := openCluster(p.Host, adminConf)
		if err != nil {
			t.Fatal(err)
		}
		exists, works, why, err := c.reconciler(t.Context())
		if err != nil || exists != test.exists || works != test.works || why != test.why {
			t.Errorf("%v: exists %v, works %v: %s %v", test.have, exists, works, why, err)
		}
	}
}
