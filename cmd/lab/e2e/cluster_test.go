//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
	labsite "github.com/kingmaker-io/kingmaker/cmd/lab/room/site"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Ways into the site that lead to a master that answers, whoever that is now: to
// look without kubectl, which takes long on a computer that is busy with a lab.

func theRoom(t *testing.T) *room.Room {
	t.Helper()
	r, err := room.New(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// apart runs a command on a machine, and keeps what it prints and what it says of
// errors apart.
func apart(machine string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := room.New(name, nil)
	if err != nil {
		return "", "", err
	}
	out, err := r.Run(ctx, machine, nil, args...)
	var exit *room.Exit
	if errors.As(err, &exit) {
		stderr = exit.Stderr
	}
	return string(out), stderr, err
}

// led guards the kubeconfig, which is written anew where another master leads.
var led sync.Mutex

// lead is the configuration of a client of a master that answers.
func lead() (*rest.Config, error) {
	led.Lock()
	defer led.Unlock()
	r, err := room.New(name, nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	file, err := (&labsite.Site{Room: r, Progress: func(string) {}}).Kubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return nil, err
	}
	config.Timeout, config.QPS = 5*time.Second, -1
	config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	return config, nil
}

// leading is a machine whose API server answers, and where that is.
func leading() (machine, server string, err error) {
	config, err := lead()
	if err != nil {
		return "", "", err
	}
	r, err := room.New(name, nil)
	if err != nil {
		return "", "", err
	}
	machines, err := r.Machines(context.Background())
	if err != nil {
		return "", "", err
	}
	for _, m := range machines {
		if config.Host == "https://"+netip.AddrPortFrom(m.Address, 6443).String() {
			return m.Name, config.Host, nil
		}
	}
	return "", "", fmt.Errorf("no machine is at %s", config.Host)
}

func connect() (dynamic.Interface, error) {
	config, err := lead()
	if err != nil {
		return nil, err
	}
	return dynamic.NewForConfig(config)
}

// reader is the client of the last answer, for as long as it gets some: to ask
// Docker for another one each time would cost more than what is asked.
var reader struct {
	sync.Mutex
	client dynamic.Interface
}

// objects are all of a resource, written as resource.version.group; of all
// namespaces for "".
func objects[T any](of, namespace string) (all []T, err error) {
	resource, _ := schema.ParseResourceArg(of)
	if resource == nil {
		return nil, fmt.Errorf("%q is no resource", of)
	}
	reader.Lock()
	defer reader.Unlock()
	if reader.client == nil {
		if reader.client, err = connect(); err != nil {
			reader.client = nil
			return nil, err
		}
	}
	list, err := reader.client.Resource(*resource).Namespace(namespace).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		reader.client = nil
		return nil, err
	}
	for _, item := range list.Items {
		text, err := item.MarshalJSON()
		if err != nil {
			return nil, err
		}
		var one T
		if err := json.Unmarshal(text, &one); err != nil {
			return nil, fmt.Errorf("read %s %s: %w", of, item.GetName(), err)
		}
		all = append(all, one)
	}
	return all, nil
}

// etcdctl asks the etcd of a master, as that master itself.
func etcdctl(machine string, args ...string) (stdout, stderr string, err error) {
	const pki = "/etc/kubernetes/pki/etcd/"
	return apart(machine, append([]string{"etcdctl", "--endpoints", "https://127.0.0.1:2379", "--command-timeout", "5s",
		"--cacert", pki + "ca.crt", "--cert", pki + "healthcheck-client.crt", "--key", pki + "healthcheck-client.key"}, args...)...)
}

// member of etcd.
type member struct {
	ID        uint64
	Name      string
	PeerURLs  []string
	IsLearner bool
}

type memberList struct {
	Header struct {
		ClusterID uint64 `json:"cluster_id"`
	}
	Members []member
}

// names of the members with their IDs, in order: a machine that comes back is
// another member.
func (l *memberList) names() (names []string) {
	for _, m := range l.Members {
		names = append(names, fmt.Sprintf("%s=%x", m.Name, m.ID))
	}
	slices.Sort(names)
	return names
}

func listMembers() (list memberList, err error) {
	machine, _, err := leading()
	if err != nil {
		return list, err
	}
	out, said, err := etcdctl(machine, "member", "list", "-w", "json")
	if err != nil {
		return list, fmt.Errorf("%w: %s", err, said)
	}
	return list, json.Unmarshal([]byte(out), &list)
}

func members() ([]member, error) {
	list, err := listMembers()
	return list.Members, err
}

func membersOf(t *testing.T) (names []string) {
	t.Helper()
	await(t, time.Minute, "the members of etcd", func() (string, bool) {
		list, err := listMembers()
		names = list.names()
		return fmt.Sprint(err), err == nil
	})
	return names
}

// healthy is how many members can carry a write through.
func healthy() (count int, err error) {
	machine, _, err := leading()
	if err != nil {
		return 0, err
	}
	out, said, ran := etcdctl(machine, "endpoint", "health", "--cluster", "-w", "json")
	var all []struct{ Health bool }
	if err := json.Unmarshal([]byte(out), &all); err != nil { // with one that is not, it ends with an error, and a list
		return 0, errors.Join(ran, err, errors.New(said))
	}
	for _, e := range all {
		if e.Health {
			count++
		}
	}
	return count, nil
}

// etcdLeader is the machine that leads etcd.
func etcdLeader() (string, error) {
	machine, _, err := leading()
	if err != nil {
		return "", err
	}
	out, said, ran := etcdctl(machine, "endpoint", "status", "-w", "json")
	var all []struct{ Status struct{ Leader uint64 } }
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
		return "", errors.Join(ran, err, errors.New(said))
	}
	list, err := members()
	for _, m := range list {
		if m.ID == all[0].Status.Leader {
			return m.Name, nil
		}
	}
	return "", errors.Join(fmt.Errorf("etcd is led by nobody that is known: %x", all[0].Status.Leader), err)
}

// watches ask the API on machines, by the name and the balancer that everything
// there uses.
type watches struct{ machines []string }

const (
	probeUnit = "e2e-probe"
	probeFile = "/var/lib/e2e-probe" // outlives a reboot; the probe does not
)

var buildWatcher = sync.OnceValues(func() (program string, err error) {
	program = filepath.Join(filepath.Dir(site.binary), probeUnit)
	out, err := command("env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-o", program, "./probe")
	if err != nil {
		err = fmt.Errorf("build the probe: %w: %s", err, out)
	}
	return program, err
})

func startWatches(t *testing.T, machines []string) *watches {
	t.Helper()
	program, err := buildWatcher()
	if err != nil {
		t.Fatal(err)
	}
	r := theRoom(t)
	for _, m := range machines {
		_, _, _ = apart(m, "systemctl", "stop", probeUnit) // of a test that failed
		on(t, m, "rm", "-f", probeFile)
		if err := r.Copy(t.Context(), program, m, "/usr/local/bin/"+probeUnit); err != nil {
			t.Fatal(err)
		}
		on(t, m, "systemd-run", "--quiet", "--collect", "--unit", probeUnit, "/usr/local/bin/"+probeUnit,
			"watch", "https://api.lab.internal:7443/readyz", "/etc/kingmaker/ca.crt", probeFile)
	}
	return &watches{machines}
}

// finish is the longest time for which a machine had no answer. One that is dead
// does not count; one that reboots counts until then.
func (p *watches) finish(t *testing.T, dead, rebooted string) (gap time.Duration, at string) {
	t.Helper()
	for _, m := range p.machines {
		if m == dead {
			continue
		}
		_, _, _ = apart(m, "systemctl", "stop", probeUnit)
		out, said, err := apart(m, "cat", probeFile)
		if err != nil {
			t.Errorf("%s: the probe did not run: %v %s", m, err, said)
			continue
		}
		g, where, n := longestGap(out, m == rebooted)
		if n == 0 {
			t.Errorf("%s: the API never answered:\n%s", m, out)
		}
		if g > gap {
			gap, at = g, m+": "+where
		}
	}
	return gap, at
}

// longestGap is the longest time between two answers, and from the last one to the
// last question unless that was asked on the way down; answers are how many there
// were.
func longestGap(lines string, down bool) (gap time.Duration, where string, answers int) {
	var last time.Time // the last answer, or the first question
	var reason string
	count := func(now time.Time) {
		if g := now.Sub(last); g > gap {
			gap, where = g, last.Format("15:04:05.0")+" "+reason
		}
	}
	var now time.Time
	for line := range strings.Lines(lines) {
		stamp, said, _ := strings.Cut(strings.TrimSpace(line), " ")
		nanos, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil {
			continue // half a line, of a machine that went down
		}
		now = time.Unix(0, nanos)
		if last.IsZero() {
			last = now
		}
		if said != "ok" {
			reason = said
			continue
		}
		count(now)
		last, reason = now, ""
		answers++
	}
	if !down && !last.IsZero() {
		count(now)
	}
	return gap, where, answers
}

// TestLongestGap needs no lab, but runs where one is.
func TestLongestGap(t *testing.T) {
	lines := "1000000000 ok\n1500000000 ok\n2000000000 no \"refused\"\n4000000000 no \"refused\"\n4500000000 ok\n5000000000 no \"down\"\n9000000000 no \"down\"\n"
	if gap, where, n := longestGap(lines, false); gap != 4500*time.Millisecond || !strings.HasSuffix(where, `no "down"`) || n != 3 {
		t.Errorf("%s %s %d", gap, where, n)
	}
	if gap, where, n := longestGap(lines+"95000", true); gap != 3*time.Second || !strings.HasSuffix(where, `no "refused"`) || n != 3 {
		t.Errorf("on the way down: %s %s %d", gap, where, n)
	}
	if gap, _, n := longestGap("", false); gap != 0 || n != 0 {
		t.Errorf("nothing: %s %d", gap, n)
	}
}

// writer counts in a ConfigMap, one write after another, each only over the one
// before. So whoever reads knows at once if one is lost.
type writer struct {
	object    string
	stop      chan struct{}
	done      chan struct{}
	acked     int // the last one that the API said is written
	tried     int // the last one that may be written
	faults    []string
	longest   time.Duration // between two that were acknowledged
	client    dynamic.Interface
	lastAcked time.Time
}

const every = 100 // writes a key is left behind

func configMaps() schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
}

func startWriter(t *testing.T) *writer {
	t.Helper()
	w := &writer{object: fmt.Sprintf("e2e-writer-%d", time.Now().UnixNano()), stop: make(chan struct{}), done: make(chan struct{})}
	client, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	first := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": w.object, "namespace": "default"}, "data": map[string]any{"count": "0"}}}
	if _, err := client.Resource(configMaps()).Namespace("default").Create(t.Context(), first, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.client, w.lastAcked = client, time.Now()
	go w.run()
	t.Cleanup(func() {
		w.end()
		if client, err := connect(); err == nil {
			_ = client.Resource(configMaps()).Namespace("default").Delete(context.Background(), w.object, metav1.DeleteOptions{})
		}
	})
	return w
}

func (w *writer) end() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	<-w.done
}

func (w *writer) run() {
	defer close(w.done)
	var have *unstructured.Unstructured // nil: it is not known what is written
	for {
		select {
		case <-w.stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		if w.client == nil {
			if w.client, _ = connect(); w.client == nil {
				continue
			}
		}
		if have == nil {
			if have = w.read(); have == nil {
				w.client = nil
				continue
			}
		}
		if have = w.write(have); have == nil {
			w.client = nil
		}
	}
}

// read is what is written, and is compared with what must be; nil where nobody
// says.
func (w *writer) read() *unstructured.Unstructured {
	o, err := w.client.Resource(configMaps()).Namespace("default").Get(context.Background(), w.object, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		w.faults = append(w.faults, fmt.Sprintf("all %d writes are lost", w.acked))
		return nil
	}
	if err != nil {
		return nil
	}
	text, _, _ := unstructured.NestedString(o.Object, "data", "count")
	n, err := strconv.Atoi(text)
	if err != nil || n < w.acked || n > w.tried {
		w.faults = append(w.faults, fmt.Sprintf("write %d was acknowledged, and %d tried, and what is there is %q", w.acked, w.tried, text))
	}
	w.acked, w.tried = n, max(w.tried, n) // what was tried and is not there may still come
	return o
}

// write adds one, and gives what is written then; nil where nobody says.
func (w *writer) write(have *unstructured.Unstructured) *unstructured.Unstructured {
	next := have.DeepCopy()
	w.tried = w.acked + 1
	data, _, _ := unstructured.NestedStringMap(next.Object, "data")
	data["count"] = strconv.Itoa(w.tried)
	if w.tried%every == 0 {
		data[hundred(w.tried)] = time.Now().Format(time.RFC3339Nano)
	}
	if err := unstructured.SetNestedStringMap(next.Object, data, "data"); err != nil {
		panic(err) // of a map
	}
	o, err := w.client.Resource(configMaps()).Namespace("default").Update(context.Background(), next, metav1.UpdateOptions{})
	if err != nil {
		return nil
	}
	w.acked = w.tried
	w.longest = max(w.longest, time.Since(w.lastAcked))
	w.lastAcked = time.Now()
	return o
}

func hundred(n int) string { return fmt.Sprintf("write-%06d", n) }

// finish ends the writing, and checks that nothing is lost.
func (w *writer) finish(t *testing.T) (writes int, gap time.Duration) {
	t.Helper()
	w.end()
	acked := w.acked
	var o *unstructured.Unstructured
	await(t, time.Minute, "what is written", func() (string, bool) {
		var err error
		if w.client, err = connect(); err != nil {
			return err.Error(), false
		}
		o = w.read()
		return "", o != nil
	})
	data, _, _ := unstructured.NestedStringMap(o.Object, "data")
	for n := every; n <= acked; n += every {
		if data[hundred(n)] == "" {
			t.Errorf("write %d of %d is lost", n, acked)
		}
	}
	for _, f := range w.faults {
		t.Error(f)
	}
	if w.acked == 0 {
		t.Error("nothing was written")
	}
	return w.acked, max(w.longest, time.Since(w.lastAcked))
}
