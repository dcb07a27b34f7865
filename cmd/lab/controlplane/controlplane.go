// Package controlplane runs a Kubernetes control plane on this computer: etcd and
// kube-apiserver, and where asked for kube-controller-manager and kube-scheduler.
// The demo, the tests and the benchmarks use it; a site never does.
//
//	plane, err := controlplane.Start(ctx, controlplane.Options{})
//	...
//	defer plane.Stop()
//	kubectl := exec.Command(plane.Bin("kubectl"), "--kubeconfig", plane.Kubeconfig, "get", "namespaces")
//
// It is the real thing, set up as kubeadm would: TLS everywhere, a certificate
// authority of its own for etcd, Node and RBAC authorization, default admission.
// What is missing are machines, so that Pods stay pending; and the endpoints of
// the service "kubernetes", which nobody could reach. Without controllers no
// service accounts are made, so that Pods are refused altogether.
//
// The programs are built from Go modules (see package build), for neither an image
// registry nor a release server need answer where tests run. envtest of
// controller-runtime, the obvious choice, downloads its programs, has no scheduler
// and controller manager, and looks for free ports in a way that loses races.
//
// It promises: only 127.0.0.1 is listened on; planes do not disturb each other;
// Start returns when the API can be used and not before; no process outlives the
// one that started it, not even when that is killed. Linux only, as kingmaker is.
package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/build"
	"github.com/kingmaker-io/kingmaker/cmd/lab/lock"
)

// Options say how a plane differs from the smallest one. The zero value is etcd
// and an API server whose data vanish with Stop.
type Options struct {
	// Dir keeps the data; it is made where it is missing. A later plane with the
	// same Dir has the same objects, but new credentials and ports. Empty means a
	// temporary folder, which Stop removes, and an etcd that does not wait for the
	// disk.
	Dir string

	// Controllers adds kube-controller-manager and kube-scheduler.
	Controllers bool

	// AuditLog is a file to which the API server appends one line of JSON for each
	// request at level Metadata, when it has been answered (a watch has a line when
	// it begins and one when it ends). Empty means none. It is what tests count
	// requests and writes by.
	AuditLog string

	// ExtraAPIServerArgs go to the end of kube-apiserver's command line.
	ExtraAPIServerArgs []string

	// Bin is a folder with the programs. Empty means the one that package
	// build gives.
	Bin string

	// Progress is told what is being done. Nil means quiet.
	Progress io.Writer
}

// A Plane is a running control plane. Its methods may be called at once.
type Plane struct {
	// Dir holds everything: data, keys, and log/NAME.log of each component.
	Dir string
	// URL of the API server. It stays the same when the API server is restarted.
	URL string
	// Kubeconfig is the file with the credentials of a cluster administrator.
	Kubeconfig string
	// AuditLog is the file asked for in Options, as an absolute path.
	AuditLog string

	options Options
	lock    *os.File     // on Dir
	admin   *http.Client // speaks to Kubernetes as administrator
	store   *http.Client // speaks to etcd as the API server
	ports   map[string]reservation
	failed  chan error

	mu        sync.Mutex // held while something is started or stopped
	stopped   bool
	processes map[string]*process
}

const (
	etcd              = "etcd"
	apiserver         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"

	etcdPeer = "etcd peer" // a port without a process of its own
)

// Start starts a plane and returns when it can be used: the API server is ready
// and so is etcd, the namespaces that every cluster has exist, and discovery
// answers; with controllers these are healthy and Pods can be created. ctx limits
// the start alone: to end the plane is what Stop is for. When something fails,
// nothing is left running, and the error quotes the log of who failed.
func Start(ctx context.Context, o Options) (plane *Plane, err error) {
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Bin == "" {
		if o.Bin, err = build.Programs(ctx, build.ControlPlane, o.Progress); err != nil {
			return nil, err
		}
	}
	p := &Plane{
		options:   o,
		ports:     map[string]reservation{},
		processes: map[string]*process{},
		failed:    make(chan error, 1),
	}
	defer func() {
		if err != nil {
			p.Stop()
		}
	}()
	for _, step := range []struct {
		deed string
		do   func() error
	}{
		{"make the folder of the control plane", p.makeDir},
		{"reserve ports", p.reservePorts}, // before the certificates: kubeconfigs name the port
		{"make certificates", p.makeCertificates},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.deed, err)
		}
	}
	for _, c := range p.components() {
		if err := p.start(ctx, c); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Stop ends all components, the last started first, and removes a temporary
// folder. To call it again does nothing. The error says what had to be killed or
// stayed behind; nothing runs any more in either case.
func (p *Plane) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil
	}
	p.stopped = true
	var errs []error
	all := p.components()
	for i := range all {
		errs = append(errs, p.processes[all[len(all)-1-i].name].stop(patience))
	}
	for _, c := range []*http.Client{p.admin, p.store} {
		if c != nil {
			c.CloseIdleConnections()
		}
	}
	for _, r := range p.ports {
		r.release()
	}
	if p.options.Dir == "" && p.Dir != "" {
		errs = append(errs, os.RemoveAll(p.Dir))
	}
	if p.lock != nil {
		p.lock.Close()
	}
	return errors.Join(errs...)
}

// patience is how long a component may take to end by itself.
const patience = 15 * time.Second

// StopAPIServer ends the API server alone. To call it again does nothing. While
// it is down its port refuses connections.
func (p *Plane) StopAPIServer() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.processes[apiserver].stop(patience)
}

// StartAPIServer starts the API server after StopAPIServer, or after a test has
// killed it, with the same port, credentials and data, and returns when it is
// ready. It does nothing where one runs.
func (p *Plane) StartAPIServer(ctx context.Context) error {
	for _, c := range p.components() {
		if c.name == apiserver {
			return p.start(ctx, c)
		}
	}
	return nil
}

// RestartAPIServer is StopAPIServer and StartAPIServer.
func (p *Plane) RestartAPIServer(ctx context.Context) error {
	if err := p.StopAPIServer(); err != nil {
		return err
	}
	return p.StartAPIServer(ctx)
}

// Failed delivers an error when a component ends that nobody asked to.
func (p *Plane) Failed() <-chan error { return p.failed }

// Bin gives the path of one of the programs, such as kubectl or etcdctl.
func (p *Plane) Bin(name string) string { return filepath.Join(p.options.Bin, name) }

// PIDs gives the process of each component that runs, by the component's name.
func (p *Plane) PIDs() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	pids := map[string]int{}
	for name, proc := range p.processes {
		if proc.running() {
			pids[name] = proc.cmd.Process.Pid
		}
	}
	return pids
}

// A component is a program of the plane: how it is called, and how it is known to
// be ready.
type component struct {
	name  string
	args  []string
	ready func(context.Context) error
}

func (p *Plane) start(ctx context.Context, c component) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return fmt.Errorf("start %s: the control plane was stopped", c.name)
	}
	if p.processes[c.name].running() {
		return nil
	}
	begin := time.Now()
	proc, err := spawn(c.name, p.Bin(c.name), filepath.Join(p.Dir, "log", c.name+".log"), c.args)
	if err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	p.processes[c.name] = proc
	go func() {
		<-proc.done
		if !proc.dismissed.Load() {
			select {
			case p.failed <- fmt.Errorf("%s ended by itself (%v); its last words:\n%s", c.name, proc.err, proc.tail()):
			default: // one is enough
			}
		}
	}()
	const most = 2 * time.Minute
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("not ready after %s", most))
	defer cancel()
	if err := proc.await(ctx, c.ready); err != nil {
		proc.stop(0)
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	fmt.Fprintf(p.options.Progress, "%s is ready after %s\n", c.name, time.Since(begin).Round(10*time.Millisecond))
	return nil
}

// tmpPattern names temporary folders.
const tmpPattern = "kingmaker-controlplane-*"

func (p *Plane) makeDir() (err error) {
	dir := p.options.Dir
	if dir == "" {
		sweep()
		dir, err = os.MkdirTemp("", tmpPattern)
	} else {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return err
	}
	p.Dir = dir
	for _, sub := range []string{"log", "pki", "pki/etcd", "pki/front-proxy"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	// The lock tells others that the folder is in use: a plane that wants the same,
	// and sweep.
	if p.lock, err = lock.Try(filepath.Join(dir, "lock")); err != nil {
		return err
	}
	p.Kubeconfig = filepath.Join(dir, "kubeconfig")
	if p.options.AuditLog == "" {
		return nil
	}
	if p.AuditLog, err = filepath.Abs(p.options.AuditLog); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "audit-policy.yaml"), []byte(`apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`), 0o600)
}

// sweep removes the temporary folders of planes whose process was killed. Each is
// more than 100 MB, and a test that times out leaves one behind.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), tmpPattern))
	for _, dir := range dirs {
		// A young one may not have come to be locked.
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		if held, err := lock.Try(filepath.Join(dir, "lock")); err == nil {
			os.RemoveAll(dir)
			held.Close()
		}
	}
}

func (p *Plane) reservePorts() error {
	for _, name := range []string{etcd, etcdPeer, apiserver, controllerManager, scheduler} {
		r, err := reserve()
		if err != nil {
			return err
		}
		p.ports[name] = r
	}
	p.URL = p.ports[apiserver].url()
	return nil
}

func (p *Plane) pki(name string) string { return filepath.Join(p.Dir, "pki", name) }

// makeCertificates makes three authorities, as kubeadm does: whoever may speak to
// the API server must not thereby be able to speak to etcd, or for others.
func (p *Plane) makeCertificates() error {
	cas, pairs := map[string]authority{}, map[string]pair{}
	for _, folder := range []string{"", "etcd", "front-proxy"} {
		ca, err := newAuthority("kingmaker lab " + folder)
		if err != nil {
			return err
		}
		if err := ca.write(p.pki(folder), "ca"); err != nil {
			return err
		}
		cas[folder] = ca
	}
	for _, c := range []struct{ folder, file, user, group string }{
		{"", apiserver, apiserver, ""},
		{"", "admin", "kubernetes-admin", "system:masters"},
		{"", controllerManager, "system:kube-controller-manager", ""},
		{"", scheduler, "system:kube-scheduler", ""},
		{"", "service-account", "service-account", ""}, // only for its key, which signs tokens
		{"etcd", etcd, etcd, ""},
		{"etcd", apiserver, apiserver, ""},
		{"front-proxy", apiserver, "front-proxy-client", ""},
	} {
		pair, err := cas[c.folder].issue(c.user, c.group)
		if err != nil {
			return err
		}
		if err := pair.write(p.pki(c.folder), c.file); err != nil {
			return err
		}
		pairs[c.folder+"/"+c.file] = pair
	}
	for file, who := range map[string]string{
		p.Kubeconfig:                             "/admin",
		p.pki(controllerManager + ".kubeconfig"): "/" + controllerManager,
		p.pki(scheduler + ".kubeconfig"):         "/" + scheduler,
	} {
		if err := pairs[who].writeKubeconfig(file, p.URL, cas[""]); err != nil {
			return err
		}
	}
	p.admin = client(cas[""], pairs["/admin"])
	p.store = client(cas["etcd"], pairs["etcd/"+apiserver])
	return nil
}

// components lists the parts in the order in which they start. Ports are shared
// with the reservation that keeps them.
func (p *Plane) components() []component {
	etcdArgs := []string{
		"--name=lab",
		"--data-dir=" + filepath.Join(p.Dir, "etcd"),
		"--listen-client-urls=" + p.ports[etcd].url(),
		"--advertise-client-urls=" + p.ports[etcd].url(),
		"--listen-peer-urls=" + p.ports[etcdPeer].url(),
		"--initial-advertise-peer-urls=" + p.ports[etcdPeer].url(),
		"--initial-cluster=lab=" + p.ports[etcdPeer].url(),
		"--socket-reuse-port",
		// A lone member elects itself when its patience is over, by default a second
		// after it started.
		"--heartbeat-interval=20",
		"--election-timeout=200",
		"--client-cert-auth",
		"--trusted-ca-file=" + p.pki("etcd/ca.crt"),
		"--cert-file=" + p.pki("etcd/etcd.crt"),
		"--key-file=" + p.pki("etcd/etcd.key"),
		"--peer-client-cert-auth",
		"--peer-trusted-ca-file=" + p.pki("etcd/ca.crt"),
		"--peer-cert-file=" + p.pki("etcd/etcd.crt"),
		"--peer-key-file=" + p.pki("etcd/etcd.key"),
	}
	if p.options.Dir == "" {
		etcdArgs = append(etcdArgs, "--unsafe-no-fsync") // nobody reads it after a crash
	}

	apiserverArgs := []string{
		"--etcd-servers=" + p.ports[etcd].url(),
		"--etcd-cafile=" + p.pki("etcd/ca.crt"),
		"--etcd-certfile=" + p.pki("etcd/kube-apiserver.crt"),
		"--etcd-keyfile=" + p.pki("etcd/kube-apiserver.key"),
		"--bind-address=127.0.0.1",
		"--secure-port=" + p.ports[apiserver].port,
		"--permit-port-sharing",
		// Without it the API server wants a route to the world, and with it the
		// reconciler of endpoints would complain, for no endpoint may be a loopback.
		"--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none",
		// Without it an API server that is told to end waits a minute for its watches.
		"--shutdown-watch-termination-grace-period=5s",
		"--tls-cert-file=" + p.pki("kube-apiserver.crt"),
		"--tls-private-key-file=" + p.pki("kube-apiserver.key"),
		"--client-ca-file=" + p.pki("ca.crt"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--enable-bootstrap-token-auth",
		"--allow-privileged",
		"--service-cluster-ip-range=10.96.0.0/12",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + p.pki("service-account.crt"),
		"--service-account-signing-key-file=" + p.pki("service-account.key"),
		"--requestheader-client-ca-file=" + p.pki("front-proxy/ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + p.pki("front-proxy/kube-apiserver.crt"),
		"--proxy-client-key-file=" + p.pki("front-proxy/kube-apiserver.key"),
	}
	if p.AuditLog != "" {
		apiserverArgs = append(apiserverArgs,
			"--audit-policy-file="+filepath.Join(p.Dir, "audit-policy.yaml"),
			"--audit-log-path="+p.AuditLog,
			"--audit-log-maxsize=100000") // MB; a log that is cut cannot be counted in
	}
	components := []component{
		{etcd, etcdArgs, func(ctx context.Context) error {
			return get(ctx, p.store, p.ports[etcd].url()+"/health")
		}},
		{apiserver, append(apiserverArgs, p.options.ExtraAPIServerArgs...), p.apiserverReady},
	}
	if !p.options.Controllers {
		return components
	}

	common := func(name string) []string {
		return []string{
			"--kubeconfig=" + p.pki(name+".kubeconfig"),
			"--authentication-kubeconfig=" + p.pki(name+".kubeconfig"),
			"--authorization-kubeconfig=" + p.pki(name+".kubeconfig"),
			"--bind-address=127.0.0.1",
			"--secure-port=" + p.ports[name].port,
			"--permit-port-sharing",
			"--tls-cert-file=" + p.pki(name+".crt"),
			"--tls-private-key-file=" + p.pki(name+".key"),
			"--leader-elect=false", // there is one
		}
	}
	return append(components,
		component{controllerManager, append(common(controllerManager),
			"--controllers=*,bootstrapsigner,tokencleaner",
			"--use-service-account-credentials",
			"--kube-api-qps=200", // by default it takes 5 s to make its own accounts
			"--kube-api-burst=400",
			"--root-ca-file="+p.pki("ca.crt"),
			"--service-account-private-key-file="+p.pki("service-account.key"),
			"--cluster-signing-cert-file="+p.pki("ca.crt"),
			"--cluster-signing-key-file="+p.pki("ca.key"),
		), func(ctx context.Context) error {
			return errors.Join(
				get(ctx, p.admin, p.ports[controllerManager].url()+"/healthz"),
				// made by a controller, and needed by every Pod
				get(ctx, p.admin, p.URL+"/api/v1/namespaces/default/serviceaccounts/default"))
		}},
		component{scheduler, common(scheduler), func(ctx context.Context) error {
			return get(ctx, p.admin, p.ports[scheduler].url()+"/readyz")
		}})
}

// apiserverReady asks for what the API server makes on its own soon after it calls
// itself ready, and for the documents that clients discover the API by.
func (p *Plane) apiserverReady(ctx context.Context) error {
	for _, path := range []string{
		"/readyz", // has a check that asks etcd
		"/api/v1/namespaces/default",
		"/api/v1/namespaces/kube-system",
		"/api/v1/namespaces/kube-public",
		"/api/v1/namespaces/kube-node-lease",
		"/api/v1/namespaces/default/services/kubernetes",
		"/apis/apps/v1",
		"/openapi/v3",
	} {
		if err := get(ctx, p.admin, p.URL+path); err != nil {
			return err
		}
	}
	return nil
}

// client makes a client that trusts ca alone and presents itself as who.
func client(ca authority, who pair) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs:      roots,
		Certificates: []tls.Certificate{{Certificate: [][]byte{who.der}, PrivateKey: who.key}},
	}}}
}

// get succeeds when the answer is 200.
func get(ctx context.Context, c *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body) // to the end, so that the connection is used again
	if err != nil {
		return fmt.Errorf("get %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s: %s", url, resp.Status, bytes.TrimSpace(body[:min(len(body), 500)]))
	}
	return nil
}
