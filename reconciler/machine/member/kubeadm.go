package member

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"sigs.k8s.io/yaml"
)

// object is a document of Kubernetes'.
type object = map[string]any

const (
	kubeadmAPI = "kubeadm.k8s.io/v1beta4"
	criSocket  = "unix:///run/containerd/containerd.sock"

	// images is where every image of a site seems to come from; nothing is ever
	// pulled from there, for noded install has brought them all.
	images = "kingmaker.dev"

	// patchesDir holds what of the kubelet's configuration is this machine's
	// own. It stays: kubeadm upgrade reads it again.
	patchesDir = "/etc/kingmaker/kubeadm"
	patchFile  = patchesDir + "/kubeletconfiguration+merge.yaml"

	// configFile is what kubeadm is told. It is in memory and is removed after
	// use, for that of a join has the token.
	configFile = "/run/kingmaker/kubeadm.yaml"
)

// masterTaint is what masters register with. It keeps work off them while there
// are other machines: rooms are small, and a master that idles is a PC lost.
const masterTaint = machine.MasterLabel

// patch is the part of the kubelet's configuration that depends on the machine.
// A site has one configuration for all, and its machines differ.
func patch(n host.Needs) []byte {
	p := object{
		"cgroupDriver": n.CgroupDriver,
		"failCgroupV1": n.FailCgroupV1,
	}
	if len(n.FeatureGates) > 0 {
		p["featureGates"] = n.FeatureGates
	}
	return document(p)
}

// words are what the patch says, for people.
func words(n host.Needs) string {
	text := "cgroupDriver " + n.CgroupDriver
	if !n.FailCgroupV1 {
		text += ", failCgroupV1 false"
	}
	for _, gate := range keys(n.FeatureGates) {
		text += ", " + gate
	}
	return text
}

// excused are the checks of kubeadm that the machine need not pass, and works
// without.
func excused(n host.Needs) []string {
	checks := []string{"Swap"} // see failSwapOn
	if !n.FailCgroupV1 {
		checks = append(checks, "SystemVerification") // wants cgroup v2
	}
	return checks
}

// registration is how a machine comes to be a Node.
func registration(name string, address netip.Addr, n host.Needs, taints ...object) object {
	return object{
		"name":      name,
		"criSocket": criSocket,
		"taints":    taints,
		// With any other policy the preflight asks a registry, for 50 s an image,
		// where one is not there. Pods are not touched by this.
		"imagePullPolicy":       "Never",
		"kubeletExtraArgs":      []object{{"name": "node-ip", "value": address.String()}},
		"ignorePreflightErrors": excused(n),
	}
}

// initConfig is what `kubeadm init` is told: documents of the first machine, of
// the control plane, and of kubelet and kube-proxy of all machines.
func initConfig(site *Declared, name string, address netip.Addr, b *host.Bundle, n host.Needs) []byte {
	pods, services := site.Spec.Network.Ranges()
	endpoint := host.Endpoint(site.Name)
	proxy := object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
		"kind":       "KubeProxyConfiguration",
		"mode":       "iptables",
	}
	if n.KeepConntrack {
		proxy["conntrack"] = object{"maxPerCore": 0, "min": 0}
	}
	return documents(
		object{
			"apiVersion": kubeadmAPI,
			"kind":       "InitConfiguration",
			// Without an entry kubeadm makes a token that lets machines in for a
			// day. Nobody is told this one, and it is good for a minute.
			"bootstrapTokens":  []object{{"ttl": "1m0s", "description": "of kubeadm init; nobody knows it"}},
			"localAPIEndpoint": object{"advertiseAddress": address.String(), "bindPort": machine.APIPort},
			"nodeRegistration": registration(name, address, n, object{"key": masterTaint, "effect": "PreferNoSchedule"}),
			"patches":          object{"directory": patchesDir},
		},
		object{
			"apiVersion":  kubeadmAPI,
			"kind":        "ClusterConfiguration",
			"clusterName": site.Name,
			// Nothing renews the masters' certificates yet, and kubeadm's year would
			// end a site that nobody upgrades. The CA's are good for ten.
			"certificateValidityPeriod": "43800h0m0s",
			"kubernetesVersion":         b.Kubernetes,
			"imageRepository":           images,
			"controlPlaneEndpoint":      fmt.Sprintf("%s:%d", endpoint, host.BalancerPort),
			"networking":                object{"podSubnet": pods.String(), "serviceSubnet": services.String()},
			"apiServer": object{
				"certSANs": []string{endpoint, "127.0.0.1", address.String()},
				// By default an API server that is told to end waits for its
				// watches, and machines for it.
				"extraArgs": []object{{"name": "shutdown-watch-termination-grace-period", "value": "5s"}},
			},
			"etcd": object{"local": object{"imageTag": b.Etcd, "dataDir": "/var/lib/etcd"}},
			"dns":  object{"imageTag": b.CoreDNS},
		},
		object{
			"apiVersion": "kubelet.config.k8s.io/v1beta1",
			"kind":       "KubeletConfiguration",
			// No machine starts a kubelet without the patch of its own.
			"cgroupDriver":       "systemd",
			"serverTLSBootstrap": false,
			// Swap is other people's, and may be switched on at any time: a kubelet
			// that minds would not start at the next boot. Pods do not get any, for
			// memorySwap NoSwap is the kubelet's default.
			"failSwapOn": false,
			// As the kubelet has them, but for the disk: of that it keeps 15 % free,
			// a sixth of a PC's small system partition and forty gigabytes of the
			// disk that a lab's machines share.
			"evictionHard": object{
				"memory.available": "100Mi", "nodefs.available": "2Gi", "nodefs.inodesFree": "5%",
				"imagefs.available": "2Gi", "imagefs.inodesFree": "5%",
			},
		},
		proxy,
	)
}

// joinConfig is what `kubeadm join` is told. It has the token.
func joinConfig(i *machine.Invitation, s *Site, name string, address netip.Addr, n host.Needs) []byte {
	return documents(object{
		"apiVersion": kubeadmAPI,
		"kind":       "JoinConfiguration",
		"discovery": object{"bootstrapToken": object{
			"token":             i.Token.Value(),
			"apiServerEndpoint": s.Endpoint,
			"caCertHashes":      []string{i.CAHash},
		}},
		// It keeps all work off the machine until the daemon has admitted it.
		"nodeRegistration": registration(name, address, n, object{"key": machine.UnlistedTaint, "effect": "NoSchedule"}),
		"patches":          object{"directory": patchesDir},
		"timeouts":         object{"discovery": "1m0s", "tlsBootstrap": "2m0s", "kubeletHealthCheck": "2m0s"},
	})
}

// masterConfig is what `kubeadm join` is told where the machine becomes a master.
// It has the token and the key to the keys of the site.
func masterConfig(i *machine.Invitation, s *Site, name string, address netip.Addr, n host.Needs, certificateKey string) []byte {
	return documents(object{
		"apiVersion": kubeadmAPI,
		"kind":       "JoinConfiguration",
		"discovery": object{"bootstrapToken": object{
			"token":             i.Token.Value(),
			"apiServerEndpoint": s.Endpoint,
			"caCertHashes":      []string{i.CAHash},
		}},
		"controlPlane": object{
			"localAPIEndpoint": object{"advertiseAddress": address.String(), "bindPort": machine.APIPort},
			"certificateKey":   certificateKey,
		},
		"nodeRegistration": registration(name, address, n, object{"key": masterTaint, "effect": "PreferNoSchedule"}),
		"patches":          object{"directory": patchesDir},
		"timeouts": object{"discovery": "1m0s", "tlsBootstrap": "2m0s", "kubeletHealthCheck": "2m0s",
			"controlPlaneComponentHealthCheck": "4m0s", "etcdAPICall": "2m0s", "kubernetesAPICall": "1m0s"},
	})
}

// document writes YAML with keys in order, so that the same input is the same file.
func document(o object) []byte {
	text, err := yaml.Marshal(o)
	if err != nil {
		panic(err) // of maps, lists and text
	}
	return text
}

func documents(all ...object) []byte {
	texts := make([][]byte, len(all))
	for i, o := range all {
		texts[i] = document(o)
	}
	return bytes.Join(texts, []byte("---\n"))
}

// kubeadm runs kubeadm with a configuration, which is gone afterwards.
func kubeadm(ctx context.Context, h *host.Host, config []byte, args ...string) error {
	if err := h.Write(configFile, config, 0o600); err != nil {
		return err
	}
	_, err := h.Do(ctx, host.Command{Name: "kubeadm", Args: append(args, "--config", h.Path(configFile)), Env: noProxy()})
	return errors.Join(broke(err), h.Remove(configFile))
}

// noProxy takes the proxies of whoever types the command away: a site is on the
// spot, and kubeadm would write them into the control plane.
func noProxy() (env []string) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"} {
		env = append(env, name+"=", strings.ToLower(name)+"=")
	}
	return env
}

// broke says in a line what a command said in many.
func broke(err error) error {
	var exit *host.Exit
	if !errors.As(err, &exit) {
		return err
	}
	var lines []string
	for line := range strings.Lines(exit.Stderr) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "[WARNING") || strings.HasPrefix(line, "To see the stack trace") ||
			strings.HasPrefix(line, "[preflight] If you know what") || strings.HasPrefix(line, "W") && strings.Contains(line, "] ") {
			continue
		}
		lines = append(lines, line)
	}
	said := []rune(strings.Join(lines, " "))
	if most := 400; len(said) > most {
		said = append([]rune("..."), said[len(said)-most:]...)
	}
	return fault(CommandBroke, "the log has all that it said: "+Log, "%s %s: exit code %d: %s",
		exit.Command.Name, first(exit.Command.Args), exit.Code, string(said))
}

func first(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return words[0]
}

// Log is where noded writes each command and what it said.
const Log = "/var/log/kingmaker/noded.log"

// sorted keys, for messages.
func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
