package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"

	goldap "github.com/go-ldap/ldap/v3"
	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
)

// What cmd/directory has made in the cluster, and what we remember beside it.
const (
	directoryNamespace = "kingmaker-directory"
	directoryAccount   = "directory-daemon" // Secret
	directoryService   = "directory"        // Service, and EndpointSlice with the writer alone
	directoryFilled    = "directory-filled" // ConfigMap; see ldap.Options.Recall
)

// NoDirectory is the code of a site whose directory is not there, or not yet.
const NoDirectory plan.Code = "NoDirectory"

// people are a site's users and groups. Their directory runs on the site's own
// cluster (manifests/directory), so one that keeps no cluster has none.
type people struct {
	*ldap.System
	directory
}

// Observe is empty where the site has no directory of its own.
func (p people) Observe(ctx context.Context, site *plan.Site) (plan.State, error) {
	if !site.Spec.Kubernetes.IsManaged() {
		return plan.State{}, nil
	}
	return p.System.Observe(ctx, site)
}

// Desire is empty where the site has no directory of its own.
func (p people) Desire(ctx context.Context, site *plan.Site, have plan.State) (plan.State, error) {
	if !site.Spec.Kubernetes.IsManaged() {
		return nil, nil
	}
	return p.System.Desire(ctx, site, have)
}

// notePeople says what of a site nobody carries out, so that a settled plan is not
// taken for more than it is.
func notePeople(w io.Writer, site *plan.Site) {
	if n := len(site.Objects.Of(plan.Directory)); n > 0 && !site.Spec.Kubernetes.IsManaged() {
		fmt.Fprintf(w, "reconcile: note: the site's %d documents of people are valid and not carried out: a directory is where spec.kubernetes.managed is true\n", n)
	}
}

// openPeople is the directory of a cluster. Nothing is asked yet.
func openPeople(config *rest.Config) (people, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return people{}, err
	}
	d := directory{config, client}
	system, err := ldap.New(ldap.Options{Dial: d.dial, Base: slapd.DefaultBase, Recall: d.recall, Remember: d.remember})
	return people{system, d}, err
}

// directory is the way to the site's directory.
type directory struct {
	config *rest.Config
	client kubernetes.Interface
}

// dial connects to the replica that takes changes, with the account that the
// directory has made for us.
func (d directory) dial(ctx context.Context) (*goldap.Conn, error) {
	account, err := d.client.CoreV1().Secrets(directoryNamespace).Get(ctx, directoryAccount, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, &plan.Fault{Code: NoDirectory, ID: plan.ID{System: plan.Directory},
			Cause: fmt.Sprintf("the site's directory has not started yet: there is no Secret %s/%s", directoryNamespace, directoryAccount),
			Hint:  "it starts on the masters once the site's objects are applied: see kubectl -n " + directoryNamespace + " get pods"}
	}
	if err != nil {
		return nil, fmt.Errorf("read the account of the directory: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(account.Data["ca.crt"]) {
		return nil, fmt.Errorf("read Secret %s/%s: ca.crt holds no certificate", directoryNamespace, directoryAccount)
	}
	name := directoryService + "." + directoryNamespace + ".svc"
	return ldap.Server{
		URL: "ldaps://" + name, TLS: &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS12},
		BindDN: string(account.Data["username"]), Password: plan.NewSecret(string(account.Data["password"])),
		Connect: d.connect,
	}.Dial(ctx)
}

// connect goes to the writer itself, whose address the API has: that needs neither
// the cluster's DNS nor its Services, which a site that heals may lack. From outside
// of the cluster it goes through the API server, as kubectl port-forward does.
func (d directory) connect(ctx context.Context, _ string) (net.Conn, error) {
	slice, err := d.client.DiscoveryV1().EndpointSlices(directoryNamespace).Get(ctx, directoryService, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask which replica takes changes: %w", err)
	}
	if len(slice.Endpoints) != 1 || len(slice.Endpoints[0].Addresses) == 0 || len(slice.Ports) != 1 || slice.Ports[0].Port == nil {
		return nil, errors.New("no replica takes changes")
	}
	address, port := slice.Endpoints[0].Addresses[0], int(*slice.Ports[0].Port)
	if d.config.BearerTokenFile == podToken {
		return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	}
	pods, err := d.client.CoreV1().Pods(directoryNamespace).List(ctx, metav1.ListOptions{FieldSelector: "status.podIP=" + address})
	if err != nil {
		return nil, fmt.Errorf("find the replica at %s: %w", address, err)
	}
	for _, pod := range pods.Items {
		if pod.Status.Phase == corev1.PodRunning {
			return d.forward(ctx, pod.Name, port)
		}
	}
	return nil, fmt.Errorf("the replica that takes changes, at %s, does not run", address)
}

// podToken is where a Pod has its token, and so what a configuration names that was
// found in a Pod (rest.InClusterConfig).
const podToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// forward connects to a port of a Pod through the API server. The way has a port of
// this computer, on loopback, while it lasts; what goes through it is TLS.
func (d directory) forward(ctx context.Context, pod string, port int) (net.Conn, error) {
	url := d.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(directoryNamespace).Name(pod).SubResource("portforward").URL()
	dialer, err := portforward.NewSPDYOverWebsocketDialer(url, d.config)
	if err != nil {
		return nil, err
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:" + strconv.Itoa(port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return nil, err
	}
	go func() { ended <- forwarder.ForwardPorts() }()
	fail := func(err error) (net.Conn, error) {
		close(stop)
		return nil, fmt.Errorf("forward a port to Pod %s: %w", pod, err)
	}
	select {
	case <-ready:
	case err := <-ended:
		return fail(err)
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return fail(err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		return fail(err)
	}
	return &forwarded{Conn: conn, stop: stop}, nil
}

// forwarded is a connection that takes its way along when it ends.
type forwarded struct {
	net.Conn
	stop chan struct{}
	once sync.Once
}

func (f *forwarded) Close() error {
	f.once.Do(func() { close(f.stop) })
	return f.Conn.Close()
}

// recall is which directory the site filled; "" is none.
func (d directory) recall(ctx context.Context) (string, error) {
	m, err := d.client.CoreV1().ConfigMaps(directoryNamespace).Get(ctx, directoryFilled, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return m.Data["id"], nil
}

func (d directory) remember(ctx context.Context, id string) error {
	maps := d.client.CoreV1().ConfigMaps(directoryNamespace)
	want := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: directoryFilled}, Data: map[string]string{"id": id}}
	_, err := maps.Update(ctx, want, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(ctx, want, metav1.CreateOptions{})
	}
	return err
}

// replica is a line of reconcile status.
type replica struct {
	Machine string `json:"machine"`
	Ready   bool   `json:"ready"`
	Writer  bool   `json:"writer"` // takes changes
}

// replicas are the directory's, by machine; none where there is no directory.
func (d directory) replicas(ctx context.Context) (lines []replica, err error) {
	pods, err := d.client.CoreV1().Pods(directoryNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + directoryService})
	if err != nil || len(pods.Items) == 0 {
		return nil, err
	}
	slice, err := d.client.DiscoveryV1().EndpointSlices(directoryNamespace).Get(ctx, directoryService, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	for _, pod := range pods.Items {
		line := replica{Machine: pod.Spec.NodeName}
		for _, c := range pod.Status.Conditions {
			line.Ready = line.Ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}
		for _, e := range slice.Endpoints {
			line.Writer = line.Writer || slices.Contains(e.Addresses, pod.Status.PodIP)
		}
		lines = append(lines, line)
	}
	slices.SortFunc(lines, func(a, b replica) int { return strings.Compare(a.Machine, b.Machine) })
	return lines, nil
}

// writeReplicas prints a line for each replica of the directory.
func writeReplicas(w io.Writer, lines []replica) error {
	if len(lines) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nDIRECTORY\tREADY\tTAKES CHANGES")
	for _, r := range lines {
		fmt.Fprintf(t, "%s\t%t\t%t\n", orDash(r.Machine), r.Ready, r.Writer)
	}
	return t.Flush()
}
