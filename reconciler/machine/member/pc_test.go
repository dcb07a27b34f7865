package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// pc is a machine in a folder: its commands do to files, services and to the
// cluster what the real ones would, as far as this package can tell.
type pc struct {
	*host.Host
	t    *testing.T
	log  *strings.Builder
	site string // that reconcile render prints

	commands []string // with arguments, as they were run
	configs  []string // that kubeadm was given
	stdins   []string
	running  map[string]bool
	rules    string // of iptables
	told     []string

	// fault is asked before a command takes effect, and after.
	fault func(n int, command string, after bool) error

	mu        sync.Mutex // over the cluster
	cluster   bool       // the API server is up
	node      map[string]any
	daemonSet map[string]any
	objects   map[string]map[string]any // by path
	patched   []string                  // requests
	soon      int                       // looks after which the Node is Ready
	api       *httptest.Server
	render    func() error // nil is well
	once      []error      // what reconcile --once says, one after another; then well
}

// killed is the death of noded itself: nothing of it runs any more.
type killed struct{}

const schoolSite = `# site.yaml
apiVersion: kingmaker.dev/v1alpha1
kind: Site
metadata:
  name: lab
spec:
  masters: 1
  network:
    pods: 10.42.0.0/16
    services: 10.43.0.0/16
---
# machines/pc-01.yaml
apiVersion: kingmaker.dev/v1alpha1
kind: Machine
metadata:
  name: pc-01
spec:
  address: 10.0.0.11
---
# machines/pc-02.yaml
apiVersion: kingmaker.dev/v1alpha1
kind: Machine
metadata:
  name: pc-02
spec:
  address: 10.0.0.12
  master: never
---
# built-in base/namespace.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: kingmaker-system
`

func newPC(t *testing.T) *pc {
	t.Helper()
	p := &pc{t: t, site: schoolSite, log: &strings.Builder{}, running: map[string]bool{"containerd.service": true, host.BalancerUnit: true},
		objects: map[string]map[string]any{}, rules: "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n"}
	p.Host = &host.Host{Root: inMemory(t), Runner: p, Log: slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	p.put("/etc/hosts", "127.0.0.1 localhost\n")
	p.put("/etc/machine-id", "5e1f000000000000000000000000cafe\n")
	p.put(host.BundleFile, `{"version":"0.1.0-cafe","kubernetes":"v1.36.3","etcd":"v3.6.16","coredns":"v1.14.2","images":[{"name":"kingmaker.dev/pause:3.10.2"},{"name":"kingmaker.dev/etcd:v3.6.16"}]}`)
	p.put(host.BalancerFile, string(host.BalancerConfig("", nil)))
	for _, program := range []string{"kubelet", "kubeadm", "kubectl", "reconcile"} {
		p.put("/usr/local/bin/"+program, "")
	}
	p.api = httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(p.api.Close)
	return p
}

// inMemory is a folder that takes no time, where there is one: becoming a member
// waits for the disk many times.
func inMemory(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "member-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (p *pc) put(name, content string) {
	p.t.Helper()
	if err := p.Write(name, []byte(content), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// Run implements host.Runner.
func (p *pc) Run(ctx context.Context, c host.Command) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	line := strings.ReplaceAll(c.String(), p.Root, "")
	p.commands = append(p.commands, line)
	n := len(p.commands) - 1
	if p.fault != nil {
		if err := p.fault(n, line, false); err != nil {
			return nil, err
		}
	}
	stdin := ""
	if c.Stdin != nil {
		text, err := io.ReadAll(c.Stdin)
		if err != nil {
			return nil, err
		}
		stdin = string(text)
		p.stdins = append(p.stdins, stdin)
	}
	out, err := p.act(c, line, stdin)
	var exit *host.Exit
	if errors.As(err, &exit) && c.Stderr != nil {
		io.WriteString(c.Stderr, exit.Stderr)
	}
	if p.fault != nil {
		if err := p.fault(n, line, true); err != nil {
			return nil, err
		}
	}
	return []byte(out), err
}

func (p *pc) exit(c host.Command, code int, stderr string) error {
	return &host.Exit{Command: c, Code: code, Stderr: stderr}
}

// act is what commands do.
func (p *pc) act(c host.Command, line, stdin string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	words := strings.Fields(line)
	switch {
	case strings.HasPrefix(line, "systemctl is-active"):
		if !p.running[words[len(words)-1]] {
			return "inactive\n", p.exit(c, 3, "")
		}
		return "active\n", nil
	case strings.HasPrefix(line, "systemctl "):
		p.running[words[len(words)-1]] = words[1] != "stop"
		return "", nil
	case strings.HasPrefix(line, "ctr "):
		return "kingmaker.dev/etcd:v3.6.9\nkingmaker.dev/etcd:v3.6.16\nkingmaker.dev/pause:3.10.2\n", nil
	case strings.HasPrefix(line, "reconcile render "):
		if p.render != nil {
			return "", p.render()
		}
		return p.site, nil
	case strings.HasPrefix(line, "reconcile --once "):
		if !p.cluster {
			return "", p.exit(c, 2, "reconcile: the cluster does not answer")
		}
		if len(p.once) > 0 {
			err := p.once[0]
			p.once = p.once[1:]
			return "", err
		}
		p.daemonSet = aDaemonSet(2, 2, 1, 1)
		p.soon = 3
		return "0 changes made\n", nil
	case strings.HasPrefix(line, "kubectl "):
		var list struct{ Items []map[string]any }
		if err := json.Unmarshal([]byte(stdin), &list); err != nil {
			return "", err
		}
		for _, o := range list.Items {
			m := o["metadata"].(map[string]any)
			p.objects[strings.ToLower(o["kind"].(string))+"s/"+m["name"].(string)] = o
		}
		return "applied\n", nil
	case strings.HasPrefix(line, "kubeadm "):
		return p.kubeadm(c, words)
	case strings.HasPrefix(line, "iptables-save"):
		return p.rules, nil
	case strings.HasPrefix(line, "iptables-restore"):
		p.rules = stdin
		return "", nil
	case strings.HasPrefix(line, "ip link delete"):
		return "", os.RemoveAll(p.Path("/sys/class/net/" + words[3]))
	}
	return "", nil // haproxy -c, ip route flush, ip6tables-save
}

func (p *pc) kubeadm(c host.Command, words []string) (string, error) {
	if words[1] == "reset" {
		files := []string{"/etc/kubernetes", "/var/lib/kubelet"}
		if p.Exists(manifests+"/etcd.yaml") && !slices.Contains(words, "remove-etcd-member") { // else it takes etcd for somebody else's
			files = append(files, "/var/lib/etcd")
		}
		for _, file := range files {
			os.RemoveAll(p.Path(file))
		}
		p.running[host.KubeletUnit], p.cluster = false, false
		return "", nil
	}
	config, err := os.ReadFile(c.Args[len(c.Args)-1])
	if err != nil {
		return "", err
	}
	p.configs = append(p.configs, string(config))
	if slices.Contains(words, "certs") {
		p.put(clusterCA, "CA of lab\n")
		return "", nil
	}
	for _, file := range traces(p.Host) { // the preflight
		if file != clusterCA || words[1] == "join" {
			return "", p.exit(c, 1, "[preflight] Some fatal errors occurred:\n\t[ERROR FileAvailable]: "+file+" already exists\n")
		}
	}
	if !p.Exists(patchFile) || !p.Exists(host.CAFile) || !inHosts(p.Host, "api.lab.internal") {
		return "", p.exit(c, 1, "it lacks what comes before")
	}
	p.put(kubeletWork, "")
	p.put(KubeletConf, kubeconfigHere(p.api.URL))
	if words[1] == "init" {
		p.put(adminConf, kubeconfigHere(p.api.URL))
		p.put(manifests+"/etcd.yaml", "")
		p.put(manifests+"/kube-apiserver.yaml", "")
		p.put(etcdData+"/wal", "")
		p.put(etcdCA, anEtcdCA().crt)
		p.put(etcdCAKey, anEtcdCA().key)
		p.rules += "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n"
		p.objects, p.daemonSet = map[string]map[string]any{}, nil // a new cluster
	} else {
		p.soon = 3
	}
	p.node = aNode("False", "5e1f", "")
	p.put("/run/flannel/subnet.env", "FLANNEL_NETWORK=10.42.0.0/16\n")
	p.put("/etc/cni/net.d/10-flannel.conflist", "{}")
	p.put("/sys/class/net/cni0/address", "")
	p.running[host.KubeletUnit], p.cluster = true, true
	return "", nil
}

// anEtcdCA is the one that each kubeadm here makes, so that two machines can be
// compared.
var anEtcdCA = sync.OnceValue(newEtcdCA)

func kubeconfigHere(url string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u, user: {}}]\n", url)
}

// serve is the API server of the site that the machine makes or joins.
func (p *pc) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var body map[string]any
	switch path := r.URL.Path; {
	case !p.cluster:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case r.Method == http.MethodPatch:
		text, _ := io.ReadAll(r.Body)
		p.patched = append(p.patched, path+" "+string(text))
		body = map[string]any{}
	case strings.HasPrefix(path, "/api/v1/nodes/"):
		if body = p.node; p.soon > 0 {
			if p.soon--; p.soon == 0 {
				p.node = aNode("True", "5e1f", "")
			}
		}
	case strings.Contains(path, "/machines/"):
		body = map[string]any{"status": map[string]any{"phase": "Ready", "conditions": []any{map[string]any{"type": "Ready", "status": "True", "reason": "NodeReady", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}}}}
	case strings.HasSuffix(path, "/daemonsets/reconcile"):
		body = p.daemonSet
	case strings.Contains(path, "/kingmaker-system/"):
		_, name, _ := strings.Cut(path, "/kingmaker-system/")
		body = p.objects[name]
	}
	w.Header().Set("Content-Type", "application/json")
	if body == nil {
		w.WriteHeader(http.StatusNotFound)
		body = map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
	} else {
		copied := map[string]any{"kind": "Thing", "apiVersion": "v1"}
		for key, value := range body {
			copied[key] = value
		}
		body = copied
	}
	json.NewEncoder(w).Encode(body)
}

// aDaemonSet is the reconciler's, as the cluster has it.
func aDaemonSet(generation, observed, desired, available int) map[string]any {
	return map[string]any{"metadata": map[string]any{"generation": generation},
		"status": map[string]any{"observedGeneration": observed, "desiredNumberScheduled": desired, "numberAvailable": available}}
}

func (p *pc) tell(line string) { p.told = append(p.told, line) }

var pcNet = Net{
	Cards: func() ([]Card, error) {
		return []Card{
			{"", []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}},
			{"02:4b:4d:00:00:01", []netip.Prefix{netip.MustParsePrefix("10.0.0.11/24"), netip.MustParsePrefix("fe80::1/64")}},
		}, nil
	},
	Toward:   func(netip.Addr) (netip.Addr, error) { return netip.MustParseAddr("10.0.0.11"), nil },
	Hostname: func() (string, error) { return "pc-01", nil },
}

var plainNeeds = host.Needs{CgroupDriver: "systemd", FailCgroupV1: true, SystemdCgroup: true, Snapshotter: "overlayfs"}

func (p *pc) init() *Init {
	return &Init{
		Host: p.Host, Needs: plainNeeds, Source: Source{Repo: "https://git.school.example/site.git"}, Net: pcNet, Progress: p.tell,
		Answers: func(context.Context, netip.AddrPort) (string, bool) { return "", false }, Pause: time.Microsecond, Patience: 10 * time.Second,
	}
}

// files are all files of the machine with their content.
func (p *pc) files() map[string]string {
	p.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(p.Root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, p.Root)] = strings.ReplaceAll(string(content), p.api.URL, "URL")
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return all
}

// same compares two states of a machine.
func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for name, content := range want {
		if have, ok := got[name]; !ok {
			t.Errorf("%s: %s is missing", what, name)
		} else if have != content {
			t.Errorf("%s: %s is %q, want %q", what, name, have, content)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s is left", what, name)
		}
	}
}

// dies runs a thing that may be killed.
func dies(do func() error) (err error, dead bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(killed); !ok {
				panic(r)
			}
			dead = true
		}
	}()
	return do(), false
}

var errInjected = errors.New("injected")
