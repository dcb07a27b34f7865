// Command flanneld gives the Pods of one machine their network: it tells the
// other machines, by annotations of its own Node, how the Pods here are reached;
// keeps a route to the Pods of each other machine; and writes what the CNI plugin
// named flannel reads. It is the program of the image kingmaker.dev/flannel.
//
// It is flannel without its main package. That one imports all backends of
// flannel, one of which needs a module that the Go module proxy does not have, so
// that it cannot be built. This one follows it step by step (main.go of flannel
// v0.28) and keeps its flags' names and meanings, file names and annotations, so
// that flannel's documentation holds; the work is done by flannel's own packages.
// What is left out: the backends but host-gw and vxlan, etcd as the store of
// subnets, choosing the interface by pattern, blackhole routes, and Windows.
// What is different: it ends with an error where flannel logs one and goes on
// half-working, so that the kubelet starts it again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/backend/hostgw"
	"github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
	"github.com/flannel-io/flannel/pkg/version"
	"github.com/joho/godotenv"
	"k8s.io/klog/v2"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	o, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2) // the flags have said it
	case o.version:
		fmt.Println(version.Version)
		return
	}
	if err := run(ctx, o); err != nil && ctx.Err() == nil {
		klog.Error(err)
		klog.Flush()
		os.Exit(1)
	}
	klog.Info("told to end; routes and rules stay, so that Pods keep their network")
	klog.Flush()
}

// options are the flags, which are called as flannel's own.
type options struct {
	version      bool
	netConf      string // file with the network's range and backend
	subnetFile   string // what the CNI plugin reads
	apiURL       string // empty: what the kubeconfig or the Pod's service account says
	kubeconfig   string
	iface        string // address or name; empty: the interface of the default route
	publicIP     string // empty: the interface's first address
	ipMasq       bool
	forwardRules bool
	resync       int // seconds
	healthzIP    string
	healthzPort  int // 0: none
}

// parse reads the flags, and tells stderr what is wrong with them.
func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("flanneld", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.BoolVar(&o.version, "version", false, "print the version of flannel and end")
	f.StringVar(&o.netConf, "net-config-path", "/etc/kube-flannel/net-conf.json", "read the network from `FILE`")
	f.StringVar(&o.subnetFile, "subnet-file", "/run/flannel/subnet.env", "write to `FILE` what the CNI plugin needs to know")
	f.StringVar(&o.apiURL, "kube-api-url", "", "`URL` of the API server, where not run in a Pod")
	f.StringVar(&o.kubeconfig, "kubeconfig-file", "", "kubeconfig `FILE`, where not run in a Pod")
	f.StringVar(&o.iface, "iface", "", "reach other machines by the interface with this `ADDRESS` or name (default: that of the default route)")
	f.StringVar(&o.publicIP, "public-ip", "", "`ADDRESS` at which other machines reach this one (default: that of the interface)")
	f.BoolVar(&o.ipMasq, "ip-masq", false, "masquerade what Pods send to outside of their network")
	f.BoolVar(&o.forwardRules, "iptables-forward-rules", true, "accept to forward what Pods send and get")
	f.IntVar(&o.resync, "iptables-resync", 5, "mend the rules every so many `SECONDS`")
	f.StringVar(&o.healthzIP, "healthz-ip", "0.0.0.0", "listen for /healthz on `ADDRESS`")
	f.IntVar(&o.healthzPort, "healthz-port", 0, "listen for /healthz on `PORT` (0: do not)")
	kubeSubnets := f.Bool("kube-subnet-mgr", true, "get subnets from the Nodes; there is no other way")
	logging := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(logging)
	f.Var(logging.Lookup("v").Value, "v", "log more, the higher the `NUMBER`")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	switch {
	case f.NArg() > 0:
		err = fmt.Errorf("flanneld takes flags only, not %q", f.Arg(0))
	case !*kubeSubnets:
		err = errors.New("-kube-subnet-mgr=false: this flanneld gets subnets from Kubernetes alone")
	case o.resync <= 0:
		err = fmt.Errorf("-iptables-resync=%d: must be at least 1", o.resync)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return o, err
}

// run wires flannel's packages together and serves until ctx ends. The kubelet
// starts it again after an error, such as that of a Node without a range yet.
func run(ctx context.Context, o options) error {
	klog.Infof("flanneld %s %+v", version.Version, o)
	subnets, err := kube.NewSubnetManager(ctx, o.apiURL, o.kubeconfig, "flannel.alpha.coreos.com", o.netConf, true)
	if err != nil {
		return fmt.Errorf("get subnets from Kubernetes: %w", err)
	}
	d := daemon{
		options: o,
		proc:    "/proc",
		subnets: subnets,
		traffic: func(nft bool) trafficmngr.TrafficManager {
			if nft {
				return &nftables.NFTablesManager{}
			}
			return &iptables.IPTablesManager{}
		},
		register: func(ctx context.Context, wg *sync.WaitGroup, config *subnet.Config) (backend.Network, error) {
			link, err := findLink(ctx, o, subnets, config)
			if err != nil {
				return nil, err
			}
			// By name and not through the registry that their init functions fill:
			// there is one backend, and it is made once.
			create := hostgw.New
			if config.BackendType == "vxlan" {
				create = vxlan.New
			}
			b, err := create(subnets, link)
			if err != nil {
				return nil, err
			}
			return b.RegisterNetwork(ctx, wg, config)
		},
	}
	return d.serve(ctx)
}

// findLink finds the interface by which other machines are reached, and the
// address at which they reach this one.
func findLink(ctx context.Context, o options, subnets subnet.Manager, config *subnet.Config) (*backend.ExternalInterface, error) {
	family, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return nil, err
	}
	public := ipmatch.PublicIPOpts{PublicIP: o.publicIP}
	if v4, v6 := subnets.GetStoredPublicIP(ctx); v4 != "" || v6 != "" { // an annotation of the Node's, by hand
		public = ipmatch.PublicIPOpts{PublicIP: v4, PublicIPv6: v6}
	}
	wanted := o.iface
	if wanted == "" {
		wanted = public.PublicIP
	}
	link, err := ipmatch.LookupExtIface(wanted, "", "", family, public)
	if err != nil {
		return nil, fmt.Errorf("find the interface to other machines (-iface names one): %w", err)
	}
	return link, nil
}

// A daemon is flanneld but for what it takes from the kernel and the API server.
type daemon struct {
	options
	proc     string // where proc(5) is mounted
	subnets  subnet.Manager
	register func(context.Context, *sync.WaitGroup, *subnet.Config) (backend.Network, error)
	traffic  func(nft bool) trafficmngr.TrafficManager
}

// serve does what flannel's main function does, in its order. It returns nil when
// ctx has ended, and an error when something else ended first.
func (d daemon) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	healthFailed, err := d.serveHealth(ctx, &wg)
	if err != nil {
		return err
	}
	config, err := d.subnets.GetNetworkConfig(ctx)
	if err != nil {
		return fmt.Errorf("read the network's configuration: %w", err)
	}
	if err := d.check(config); err != nil {
		return fmt.Errorf("%s: %w", d.netConf, err)
	}

	// Telling the other machines comes before anything that depends on the range
	// of this one.
	network, err := d.register(ctx, &wg, config)
	if err != nil {
		return fmt.Errorf("register at backend %s: %w", config.BackendType, err)
	}
	lease := network.Lease()

	// The other kind of rules may be left of an earlier configuration.
	if err := d.traffic(!config.EnableNFTables).CleanUp(ctx); err != nil {
		return fmt.Errorf("clean up rules that are not used: %w", err)
	}
	rules := d.traffic(config.EnableNFTables)
	if err := rules.Init(ctx); err != nil {
		return fmt.Errorf("prepare packet rules: %w", err)
	}
	if d.ipMasq {
		before := readSubnetFile(d.subnetFile)
		if err := rules.SetupAndEnsureMasqRules(ctx, config.Network, before.subnet, before.network,
			config.IPv6Network, before.subnet6, before.network6, lease, d.resync, false); err != nil {
			return fmt.Errorf("set up masquerading: %w", err)
		}
	}
	if d.forwardRules {
		rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, d.resync)
	}
	if err := d.subnets.HandleSubnetFile(d.subnetFile, config, d.ipMasq, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return fmt.Errorf("write %s: %w", d.subnetFile, err)
	}
	klog.Infof("Pods here are in %s; wrote %s", lease.Subnet, d.subnetFile)

	ended := make(chan struct{})
	wg.Go(func() { // follows the other machines' Nodes
		defer close(ended)
		network.Run(ctx)
	})
	// A range from Kubernetes needs no renewal: this only says on the Node that
	// its network is there.
	if err := d.subnets.CompleteLease(ctx, lease, &wg); err != nil {
		return fmt.Errorf("say on the Node that the network is there: %w", err)
	}
	select {
	case err = <-healthFailed:
		return fmt.Errorf("answer /healthz: %w", err)
	case <-ended:
		if ctx.Err() == nil {
			return fmt.Errorf("backend %s ended by itself", config.BackendType)
		}
	case <-ctx.Done():
	}
	return nil
}

// check says whether this flanneld can serve a network.
func (d daemon) check(config *subnet.Config) error {
	if config.BackendType != "host-gw" && config.BackendType != "vxlan" {
		return fmt.Errorf("backend %q is none of host-gw and vxlan, which this flanneld has", config.BackendType)
	}
	if config.EnableNFTables {
		return nil
	}
	// Without br_netfilter, rules do not see what goes over the bridge, and
	// Services work from other machines only.
	for name, needed := range map[string]bool{
		"bridge-nf-call-iptables":  config.EnableIPv4,
		"bridge-nf-call-ip6tables": config.EnableIPv6,
	} {
		file := filepath.Join(d.proc, "sys/net/bridge", name)
		if _, err := os.Stat(file); needed && errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is missing; load the kernel module br_netfilter", file)
		}
	}
	return nil
}

// serveHealth answers /healthz until ctx ends: the process lives, no more is said.
func (d daemon) serveHealth(ctx context.Context, wg *sync.WaitGroup) (failed <-chan error, err error) {
	if d.healthzPort == 0 {
		return nil, nil
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(d.healthzIP, strconv.Itoa(d.healthzPort)))
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "flanneld is running\n")
	})
	server := http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	wg.Go(func() { ended <- server.Serve(listener) })
	wg.Go(func() {
		<-ctx.Done()
		server.Close()
	})
	return ended, nil
}

// ranges is what an earlier flanneld wrote to the subnet file: the rules that it
// made are told by it, and replaced where the ranges differ now.
type ranges struct {
	network, subnet   ip.IP4Net
	network6, subnet6 ip.IP6Net
}

// readSubnetFile gives empty ranges where the file is missing or says something
// else: there is nothing to replace then.
func readSubnetFile(file string) ranges {
	said, err := godotenv.Read(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		klog.Warningf("what rules were made before is not known: %v", err)
	}
	parse := func(key string) *net.IPNet {
		value := strings.TrimSpace(said[key])
		if value == "" {
			return nil
		}
		_, cidr, err := net.ParseCIDR(value)
		if err != nil {
			klog.Warningf("%s in %s: %v", key, file, err)
		}
		return cidr
	}
	r := ranges{network6: ip.IP6Net{IP: new(ip.IP6)}, subnet6: ip.IP6Net{IP: new(ip.IP6)}}
	for key, set := range map[string]*ip.IP4Net{"FLANNEL_NETWORK": &r.network, "FLANNEL_SUBNET": &r.subnet} {
		if cidr := parse(key); cidr != nil && cidr.IP.To4() != nil {
			*set = ip.FromIPNet(cidr)
		}
	}
	for key, set := range map[string]*ip.IP6Net{"FLANNEL_IPV6_NETWORK": &r.network6, "FLANNEL_IPV6_SUBNET": &r.subnet6} {
		if cidr := parse(key); cidr != nil && cidr.IP.To4() == nil {
			*set = ip.FromIP6Net(cidr)
		}
	}
	return r
}
