package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/trafficmngr"
)

func TestParse(t *testing.T) {
	o, err := parse(strings.Fields("--ip-masq --kube-subnet-mgr --iface=10.0.0.11 -v 2"), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	want := options{netConf: "/etc/kube-flannel/net-conf.json", subnetFile: "/run/flannel/subnet.env",
		iface: "10.0.0.11", ipMasq: true, forwardRules: true, resync: 5, healthzIP: "0.0.0.0"}
	if o != want {
		t.Errorf("have %+v\nwant %+v", o, want)
	}
	for args, want := range map[string]string{
		"--kube-subnet-mgr=false":            "-kube-subnet-mgr=false: this flanneld gets subnets from Kubernetes alone\n",
		"--iptables-resync=0":                "-iptables-resync=0: must be at least 1\n",
		"host-gw":                            "flanneld takes flags only, not \"host-gw\"\n",
		"--etcd-endpoints=http://10.0.0.1:1": "flag provided but not defined: -etcd-endpoints\n",
	} {
		var stderr bytes.Buffer
		if _, err := parse(strings.Fields(args), &stderr); err == nil || !strings.HasPrefix(stderr.String(), want) {
			t.Errorf("%s: %v, and says %q, want %q", args, err, stderr.String(), want)
		}
	}
	if _, err := parse([]string{"-help"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help: %v", err)
	}
}

func TestCheck(t *testing.T) {
	proc := procWithBridge(t)
	for text, want := range map[string]string{
		`{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}`:                                                                "",
		`{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`:                                                                  "",
		`{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}`:                                                              `backend "wireguard" is none of host-gw and vxlan, which this flanneld has`,
		`{"Network": "10.244.0.0/16"}`:                                                                                                `backend "udp" is none of host-gw and vxlan, which this flanneld has`,
		`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan"}}`:                         proc + "/sys/net/bridge/bridge-nf-call-ip6tables is missing; load the kernel module br_netfilter",
		`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}`: "",
	} {
		config, err := subnet.ParseConfig(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := (daemon{proc: proc}).check(config); err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// procWithBridge stands for the /proc of a machine with br_netfilter for IPv4.
func procWithBridge(t *testing.T) string {
	proc := t.TempDir()
	if err := os.MkdirAll(filepath.Join(proc, "sys/net/bridge"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, "sys/net/bridge/bridge-nf-call-iptables"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return proc
}

func TestReadSubnetFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subnet.env")
	if r := readSubnetFile(file); !r.network.Empty() || !r.subnet.Empty() || !r.network6.Empty() || !r.subnet6.Empty() {
		t.Errorf("of a missing file: %v", r)
	}
	// As flannel itself writes it.
	config, err := subnet.ParseConfig(`{"EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:1::/48", "Backend": {"Type": "vxlan"}}`)
	if err != nil {
		t.Fatal(err)
	}
	_, subnet6, _ := net.ParseCIDR("fd00:1:0:3::/64")
	if err := subnet.WriteSubnetFile(file, config, true, cidr("10.244.3.0/24"), ip.FromIP6Net(subnet6), 1500); err != nil {
		t.Fatal(err)
	}
	r := readSubnetFile(file)
	if r.network != cidr("10.244.0.0/16") || r.subnet != cidr("10.244.3.0/24") ||
		r.network6.String() != "fd00:1::/48" || r.subnet6.String() != "fd00:1:0:3::/64" {
		t.Errorf("have %v %v %v %v", r.network, r.subnet, r.network6, r.subnet6)
	}
	if err := os.WriteFile(file, []byte("FLANNEL_NETWORK=fd00::/48\nFLANNEL_SUBNET=nonsense\nFLANNEL_IPV6_NETWORK=10.0.0.0/8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := readSubnetFile(file); !r.network.Empty() || !r.subnet.Empty() || !r.network6.Empty() {
		t.Errorf("of a file with nonsense: %v", r)
	}
}

// TestServe tells the story with nothing of the kernel's and no API server.
func TestServe(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- f.daemon.serve(ctx) }()
	<-f.running
	<-f.completed
	if have, want := f.deeds, []string{
		"register at host-gw",
		"clean up nftables",
		"init iptables",
		"masquerade 10.244.0.0/16 as 10.244.3.0/24, before 10.244.0.0/16 as 10.244.9.0/24, every 5 s",
		"forward 10.244.0.0/16, every 5 s",
		"run",
		"say that the network is there",
	}; !slices.Equal(have, want) {
		t.Errorf("have %q\nwant %q", have, want)
	}
	text, err := os.ReadFile(f.daemon.subnetFile)
	if want := "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n"; err != nil || string(text) != want {
		t.Errorf("subnet file: %v\n%s", err, text)
	}
	answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", f.daemon.healthzPort))
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("healthz: %v %v", answer, err)
	} else {
		answer.Body.Close()
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("told to end, and yet: %v", err)
	}
	if _, err := os.Stat(f.daemon.subnetFile); err != nil {
		t.Errorf("the subnet file does not stay, and Pods cannot start: %v", err)
	}
}

// TestServeFails: the kubelet starts flanneld again, so that it must end, and say
// why.
func TestServeFails(t *testing.T) {
	broken := errors.New("broken")
	for want, breakIt := range map[string]func(*fake){
		"register at backend host-gw: broken":                                                  func(f *fake) { f.registerFails = broken },
		"clean up rules that are not used: broken":                                             func(f *fake) { f.cleanUpFails = broken },
		"set up masquerading: broken":                                                          func(f *fake) { f.masqFails = broken },
		"say on the Node that the network is there: broken":                                    func(f *fake) { f.completeFails = broken },
		"backend host-gw ended by itself":                                                      func(f *fake) { close(f.end) },
		`/net-conf.json: backend "ipip" is none of host-gw and vxlan, which this flanneld has`: func(f *fake) { f.config.BackendType = "ipip" },
		"write /dev/null/subnet.env: ":                                                         func(f *fake) { f.daemon.subnetFile = "/dev/null/subnet.env" },
		"listen tcp: address 1000000: invalid port":                                            func(f *fake) { f.daemon.healthzPort = 1000000 },
	} {
		f := newFake(t)
		breakIt(f)
		if err := f.daemon.serve(t.Context()); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// A fake is what flanneld needs of the kernel and the API server. It writes down
// what it is told to do.
type fake struct {
	daemon                                                daemon
	config                                                *subnet.Config
	registerFails, cleanUpFails, masqFails, completeFails error
	running, completed                                    chan struct{} // closed when that has come
	end                                                   chan struct{} // ends the backend

	mu    sync.Mutex
	deeds []string
}

func newFake(t *testing.T) *fake {
	config, err := subnet.ParseConfig(`{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}`)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "subnet.env")
	if err := subnet.WriteSubnetFile(file, config, true, cidr("10.244.9.0/24"), ip.IP6Net{}, 1500); err != nil {
		t.Fatal(err)
	}
	f := &fake{config: config, running: make(chan struct{}), completed: make(chan struct{}), end: make(chan struct{})}
	f.daemon = daemon{
		options: options{netConf: "/net-conf.json", subnetFile: file, ipMasq: true, forwardRules: true, resync: 5,
			healthzIP: "127.0.0.1", healthzPort: freePort(t)},
		proc:    procWithBridge(t),
		subnets: fakeSubnets{fake: f},
		traffic: func(nft bool) trafficmngr.TrafficManager {
			if nft {
				return fakeTraffic{f, "nftables"}
			}
			return fakeTraffic{f, "iptables"}
		},
		register: func(_ context.Context, _ *sync.WaitGroup, config *subnet.Config) (backend.Network, error) {
			f.do("register at %s", config.BackendType)
			return fakeNetwork{f}, f.registerFails
		},
	}
	return f
}

func (f *fake) do(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deeds = append(f.deeds, fmt.Sprintf(format, args...))
}

type fakeSubnets struct {
	subnet.Manager // no more than what is below is called
	*fake
}

func (f fakeSubnets) GetNetworkConfig(context.Context) (*subnet.Config, error) { return f.config, nil }

func (f fakeSubnets) HandleSubnetFile(path string, config *subnet.Config, masq bool, s ip.IP4Net, s6 ip.IP6Net, mtu int) error {
	return subnet.WriteSubnetFile(path, config, masq, s, s6, mtu)
}

func (f fakeSubnets) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error {
	<-f.running // so that the order of the deeds is one
	f.do("say that the network is there")
	close(f.completed)
	return f.completeFails
}

type fakeNetwork struct{ *fake }

func (fakeNetwork) MTU() int            { return 1500 }
func (fakeNetwork) Lease() *lease.Lease { return &lease.Lease{Subnet: cidr("10.244.3.0/24")} }

func (f fakeNetwork) Run(ctx context.Context) {
	f.do("run")
	close(f.running)
	select {
	case <-ctx.Done():
	case <-f.end:
	}
}

type fakeTraffic struct {
	*fake
	kind string
}

func (f fakeTraffic) Init(context.Context) error {
	f.do("init %s", f.kind)
	return nil
}

func (f fakeTraffic) CleanUp(context.Context) error {
	f.do("clean up %s", f.kind)
	return f.cleanUpFails
}

func (f fakeTraffic) SetupAndEnsureForwardRules(_ context.Context, network ip.IP4Net, _ ip.IP6Net, resync int) {
	f.do("forward %s, every %d s", network, resync)
}

func (f fakeTraffic) SetupAndEnsureMasqRules(_ context.Context, network, beforeSubnet, before ip.IP4Net, _, _, _ ip.IP6Net, l *lease.Lease, resync int, _ bool) error {
	f.do("masquerade %s as %s, before %s as %s, every %d s", network, l.Subnet, before, beforeSubnet, resync)
	return f.masqFails
}

func cidr(text string) ip.IP4Net {
	_, parsed, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	return ip.FromIPNet(parsed)
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
