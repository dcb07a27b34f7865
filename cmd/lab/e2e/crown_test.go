//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
)

// What the site promises when a master dies, in this lab. How soon it is healed is
// checked by the long tests, which have the machine to themselves.
const (
	healed  = 150 * time.Second // from the kill to as many masters as declared
	gapMost = 5 * time.Second   // during which no machine gets an answer of the API
	growing = 10 * time.Minute  // the longest wait for as many masters as declared
)

// quick is the soonest that a dead master may be replaced.
const quick = "1m"

// TestCrown: a site grows to three masters by itself; the one that leads etcd, and
// runs the reconciler that works, dies; another machine takes its place while the
// API answers and no write is lost; and the dead one comes back as a worker.
func TestCrown(t *testing.T) {
	calm(t)
	victim := leaderOfAll(t)
	k := killAndHeal(t, victim)
	t.Log(k.table())
	comeBack(t, victim)
	calm(t)
}

// TestTenKills: the same ten times, each time another master.
func TestTenKills(t *testing.T) {
	long(t)
	calm(t)
	var kills []*kill
	defer func() { t.Log(table(kills)) }()
	for range 10 {
		victim := leastKilled(t)
		k := killAndHeal(t, victim)
		kills = append(kills, k)
		inTime(t, k.took)
		comeBack(t, victim)
		calm(t)
	}
}

// TestReturningVictim: a master that comes back before it is removed stays one, and
// its heir is a worker again.
func TestReturningVictim(t *testing.T) {
	long(t)
	calm(t)
	declare(t, 3, "3m") // it has to boot while the crown is under way
	t.Cleanup(func() { declare(t, 3, quick) })
	victim := leastKilled(t)
	before := membersOf(t)
	last := lastCrown(t)
	cutPower(t, victim)
	c := awaitCrown(t, 5*time.Minute, "the heir to be prepared", func(c *crown) bool {
		return c.Spec.Number > last && c.Spec.Victim == victim && c.has("Drain", "Reset", "DeleteNode")
	})
	if c.has("RemoveMember") {
		t.Fatalf("too late: %s", c)
	}
	power(t, victim)
	c = awaitCrown(t, 5*time.Minute, "the crown to be cancelled", func(n *crown) bool { return n.Spec.Number == c.Spec.Number && n.Status.Outcome != "" })
	t.Log(c)
	if c.Status.Outcome != "cancelled" || c.has("RemoveMember") {
		t.Errorf("the victim came back, and the crown ended as %s", c)
	}
	calm(t)
	if after := membersOf(t); !slices.Equal(before, after) {
		t.Errorf("the members were %v, and are %v", before, after)
	}
	awaitReady(t, 3*time.Minute, c.Spec.Heir)
	if m, err := getMachine(c.Spec.Heir); err != nil || m.Spec.Role != "worker" {
		t.Errorf("the heir is %+v %v", m, err)
	}
}

// pinned runs one Pod, on a machine while that is there: at another one if it must.
const pinned = `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: pinned, namespace: default}
spec:
  replicas: 1
  serviceName: pinned
  selector: {matchLabels: {app: pinned}}
  template:
    metadata: {labels: {app: pinned}}
    spec:
      terminationGracePeriodSeconds: 1 # with 0 Kubernetes deletes it without waiting for its kubelet
      tolerations:
        - {key: node-role.kubernetes.io/control-plane, operator: Exists} # else the worker next door scores higher
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 30}
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 30}
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [MACHINE]}]}
      containers:
        - {name: probe, image: "kingmaker.dev/probe:e2e", imagePullPolicy: Never, args: [pinned]}
`

// TestCut: a master that is cut off and runs on is replaced, and never are there
// two clusters, or two of what may run only once.
func TestCut(t *testing.T) {
	long(t)
	calm(t)
	victim := leastKilled(t)
	image := probeImage(t)
	all := five()
	for _, m := range all {
		out, err := exit(m, image, "ctr", "--namespace", "k8s.io", "images", "import", "-")
		must(t, out, err)
	}
	first := master(t)
	out, err := exit(first, strings.Replace(pinned, "MACHINE", victim, 1), "kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "apply", "-f", "-")
	must(t, out, err)
	t.Cleanup(func() { _, _ = kubectl("delete", "statefulset", "pinned", "--wait=false") })
	await(t, 2*time.Minute, "the Pod to run on "+victim, func() (string, bool) {
		where := pinnedAt(all)
		return fmt.Sprint(where), slices.Equal(where, []string{victim})
	})
	twice := everySecond(t, "a StatefulSet's Pod runs twice", func() (string, bool) {
		where := pinnedAt(all)
		return fmt.Sprint(where), len(where) < 2
	})
	last := lastCrown(t)
	tally(victim)
	do(t, "cut", victim)
	began := time.Now()
	took := awaitReplaced(t, victim, began)
	t.Logf("replaced %.0f s after the cut", took.Seconds())
	inTime(t, took)
	t.Log(awaitCrown(t, 2*time.Minute, "the crown to end", func(c *crown) bool {
		return c.Spec.Number > last && c.Spec.Victim == victim && c.Status.Outcome == "done"
	}))
	if where := pinnedAt(all); !slices.Equal(where, []string{victim}) {
		t.Errorf("the Pod of the machine that is cut off runs at %v", where)
	}
	do(t, "heal", victim)
	comeBack(t, victim)
	calm(t)
	oneCluster(t)
	await(t, 3*time.Minute, "the Pod to run again", func() (string, bool) {
		where := pinnedAt(all)
		return fmt.Sprint(where), len(where) == 1
	})
	twice()
}

// pinnedAt are the machines on which the Pod of the StatefulSet runs, those that
// nobody reaches included.
func pinnedAt(machines []string) (where []string) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, m := range machines {
		all.Go(func() {
			if _, _, err := apart(m, "pgrep", "--full", "^/probe pinned"); err == nil {
				mu.Lock()
				defer mu.Unlock()
				where = append(where, m)
			}
		})
	}
	all.Wait()
	slices.Sort(where)
	return where
}

// everySecond watches for what must never be; the func that it gives ends that.
func everySecond(t *testing.T, never string, ok func() (seen string, ok bool)) (end func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if seen, ok := ok(); !ok {
				t.Errorf("%s: %s", never, seen)
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
			}
		}
	}()
	end = sync.OnceFunc(func() { close(stop); <-done })
	t.Cleanup(end)
	return end
}

// TestKillDaemon: the reconciler is killed at each step of one crown, and then at
// random moments of another. Both come to an end.
func TestKillDaemon(t *testing.T) {
	long(t)
	calm(t)
	const within = 15 * time.Minute // each kill costs the lease, and starts the timers afresh
	for _, how := range []string{"at each step", "at random moments"} {
		t.Run(how, func(t *testing.T) {
			victim := leastKilled(t)
			last := lastCrown(t)
			cutPower(t, victim)
			killed := map[string]bool{}
			next := time.Now()
			var ended *crown
			await(t, within, "the crown to end", func() (string, bool) {
				c, err := newestCrown(last)
				if err != nil || c == nil {
					return fmt.Sprint(err), false
				}
				if c.Status.Outcome != "" {
					ended = c
					_, work := mastersWork(victim) // one that failed is followed by another, if it must
					return c.String(), c.Status.Outcome == "done" || work
				}
				step := fmt.Sprintf("%d %s %s", c.Spec.Number, c.Status.Step, c.Status.Machine)
				due := !killed[step]
				if how == "at random moments" {
					due = len(killed) < 10 && time.Now().After(next)
					step = fmt.Sprint(len(killed), " ", step)
				}
				if due {
					killed[step] = true
					next = time.Now().Add(time.Duration(2+rand.IntN(28)) * time.Second)
					t.Logf("killed at %s: %v", step, killDaemon())
				}
				return c.String(), false
			})
			t.Logf("%d kills; %s", len(killed), ended)
			if o := ended.Status.Outcome; o != "done" && o != "failed" {
				t.Errorf("it ended as %s", o)
			}
			awaitReplaced(t, victim, time.Now())
			comeBack(t, victim)
			calm(t)
		})
	}
}

// killDaemon kills the process of the reconciler that has the lease, at once and
// without a word, and has another Pod begin afresh: Kubernetes would let one that
// dies often wait for minutes.
func killDaemon() error {
	machine, pod, err := leaseHolder()
	if err != nil {
		return err
	}
	if _, said, err := apart(machine, "pkill", "-KILL", "-x", "reconcile"); err != nil {
		return fmt.Errorf("%s: %w %s", machine, err, said)
	}
	if out, err := kubectl("delete", "pod", "-n", "kingmaker-system", pod, "--grace-period=0", "--force", "--wait=false"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// TestGitDown: without the site repo the masters are kept all the same.
func TestGitDown(t *testing.T) {
	long(t)
	calm(t)
	do(t, "kill", room.Git)
	t.Cleanup(func() { do(t, "start", room.Git) })
	time.Sleep(30 * time.Second) // until the reconciler has noticed
	victim := leastKilled(t)
	k := killAndHeal(t, victim)
	t.Log(k.table())
	inTime(t, k.took)
	comeBack(t, victim)
	do(t, "start", room.Git)
	calm(t)
	awaitReached(t, 3*time.Minute, push(t, "after the git server was away", nil))
}

// TestCircuit: machines that share a power circuit and go down together are not
// replaced, and people are told why.
func TestCircuit(t *testing.T) {
	long(t)
	calm(t)
	masters, err := mastersOf()
	if err != nil {
		t.Fatal(err)
	}
	var pair []string // the first circuit with one master: with two the site would be without a quorum
	for _, p := range [][]string{{"pc-01", "pc-02"}, {"pc-03", "pc-04"}} {
		if slices.Contains(masters, p[0]) != slices.Contains(masters, p[1]) {
			pair = p
			break
		}
	}
	quorum := pair != nil
	if !quorum {
		pair = []string{"pc-01", "pc-02"}
		quorum = !slices.Contains(masters, pair[0])
	}
	t.Logf("masters %v, and the power of %v fails", masters, pair)
	last, since := lastCrown(t), time.Now()
	for _, m := range pair {
		cutPower(t, m)
	}
	if quorum && slices.ContainsFunc(pair, func(m string) bool { return slices.Contains(masters, m) }) {
		await(t, 4*time.Minute, "an event with the reason", func() (string, bool) {
			said, err := eventOf("CircuitDown", since)
			return fmt.Sprint(said, err), said != ""
		})
		said, _ := eventOf("CircuitDown", since)
		t.Log(said)
		await(t, time.Minute, "reconcile status to say why", func() (string, bool) {
			status, _ := reconcile(t, "status")
			return status, strings.Contains(status, "CircuitDown")
		})
	}
	if left := 150*time.Second - time.Since(since); left > 0 {
		time.Sleep(left) // past the moment at which a single one would be replaced
	}
	if quorum {
		if now := lastCrown(t); now != last {
			t.Errorf("crown-%d was begun", now)
		}
	}
	for _, m := range pair {
		power(t, m)
	}
	calm(t)
	if now := lastCrown(t); now != last {
		t.Errorf("crown-%d was begun", now)
	}
	if after, err := mastersOf(); !slices.Equal(after, masters) {
		t.Errorf("the masters were %v, and are %v %v", masters, after, err)
	}
}

// TestGrowShrink: the number of masters follows the commit, and one that would be
// no better than one less is refused.
func TestGrowShrink(t *testing.T) {
	long(t)
	calm(t)
	before := five()
	t.Cleanup(func() { declare(t, 3, quick) })
	declare(t, 5, quick)
	t.Logf("five masters after %.0f s", awaitMasters(t, growing).Seconds())
	declare(t, 3, quick)
	t.Logf("three masters after %.0f s", awaitMasters(t, growing).Seconds())
	masters, err := mastersOf()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range before {
		if !slices.Contains(masters, m) {
			comeBack(t, m)
		}
	}
	calm(t)
	last := lastCrown(t)
	commit := commitMasters(t, 4, quick)
	await(t, 2*time.Minute, "four masters to be refused", func() (string, bool) {
		out, err := kubectl("get", "sites", "-o", "jsonpath={.items[0].spec.masters} {.items[0].status.commit} {.items[0].status.conditions} {.items[0].status.errors}")
		return out, err == nil && strings.HasPrefix(out, "3 ") && strings.Contains(out, "4 is none of 1, 3, 5, 7")
	})
	status, _ := reconcile(t, "status")
	if !strings.Contains(status, "4 is none of 1, 3, 5, 7") {
		t.Errorf("reconcile status does not say what is wrong with commit %s:\n%s", commit, status)
	}
	time.Sleep(20 * time.Second)
	if now := lastCrown(t); now != last {
		t.Errorf("crown-%d was begun", now)
	}
	awaitReached(t, 3*time.Minute, declare(t, 3, quick))
	calm(t)
}

// long is of the tests that make e2e has no time for.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("KINGMAKER_E2E_LONG") != "1" {
		t.Skip("takes long: make e2e-long")
	}
}

// kill is one master's death, and what came of it.
type kill struct {
	victim, heir             string
	took                     time.Duration // to as many Ready masters as before
	waiting, preparing, join time.Duration
	gap                      time.Duration // the longest without an answer of the API
	gapAt                    string
	writes                   int
	writeGap                 time.Duration
	journal                  string
}

// killAndHeal cuts the power of a master, and waits until another one has taken its
// place; all the while everybody asks the API, and writes.
func killAndHeal(t *testing.T, victim string) *kill {
	t.Helper()
	last := lastCrown(t)
	probes := startWatches(t, five())
	writes := startWriter(t)
	time.Sleep(3 * time.Second) // so that both have begun
	began := cutPower(t, victim)
	k := &kill{victim: victim, took: awaitReplaced(t, victim, began)}
	// It is closed when a snapshot is written, too.
	c := awaitCrown(t, 2*time.Minute, "the crown to end", func(c *crown) bool {
		return c.Spec.Number > last && c.Spec.Victim == victim && c.Status.Outcome == "done"
	})
	k.heir = c.Spec.Heir
	k.writes, k.writeGap = writes.finish(t)
	k.gap, k.gapAt = probes.finish(t, victim, k.heir)
	k.split(t, began, last)
	if k.gap > gapMost {
		t.Errorf("%s: for %s there was no answer of the API, want %s", k.gapAt, round(k.gap), gapMost)
	}
	return k
}

// inTime is whether a master was replaced as soon as is promised.
func inTime(t *testing.T, took time.Duration) {
	t.Helper()
	if took > healed {
		t.Errorf("healed after %s, want %s", round(took), healed)
	}
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }

// split reads from the records what the time was needed for.
func (k *kill) split(t *testing.T, began time.Time, last int) {
	t.Helper()
	all, err := crowns()
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(c crown) bool { return c.Spec.Number <= last })
	if len(all) == 0 {
		return
	}
	first, final := all[0], all[len(all)-1]
	k.waiting = first.Spec.Begun.Sub(began)
	if at, ok := final.at("RemoveMember", "IssueKey", "Join"); ok {
		k.preparing = at.Sub(first.Spec.Begun)
		k.join = final.Status.Ended.Sub(at)
	}
	var b strings.Builder
	for _, c := range all {
		fmt.Fprintf(&b, "%s %s: %s -> %s, %s\n", c.Metadata.Name, c.Spec.Kind, c.Spec.Victim, c.Spec.Heir, c.Status.Outcome)
		for _, e := range c.Status.Journal {
			fmt.Fprintf(&b, "  %6.1f s  %s %s  %s\n", e.At.Sub(began).Seconds(), e.Step, e.Machine, e.Note)
		}
	}
	k.journal = b.String()
}

func (k *kill) table() string { return table([]*kill{k}) + "\n" + k.journal }

func table(kills []*kill) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-3s %-6s %-6s %8s %8s %8s %8s %8s %7s %9s\n", "", "victim", "heir", "healed", "waiting", "prepare", "join", "API gap", "writes", "write gap")
	var sum time.Duration
	for i, k := range kills {
		fmt.Fprintf(&b, "%-3d %-6s %-6s %7.1fs %7.1fs %7.1fs %7.1fs %7.1fs %7d %8.1fs\n", i+1, k.victim, k.heir,
			k.took.Seconds(), k.waiting.Seconds(), k.preparing.Seconds(), k.join.Seconds(), k.gap.Seconds(), k.writes, k.writeGap.Seconds())
		if k.gap > 0 {
			fmt.Fprintf(&b, "    the gap: %s\n", k.gapAt)
		}
		sum += k.took
	}
	if len(kills) > 1 {
		fmt.Fprintf(&b, "on average healed after %.1f s\n", sum.Seconds()/float64(len(kills)))
	}
	return b.String()
}

// cutPower is the kill itself; it is counted, for the site takes one that dies again
// and again for flapping.
func cutPower(t *testing.T, machine string) time.Time {
	t.Helper()
	tally(machine)
	r := theRoom(t)
	began := time.Now()
	if err := r.Kill(t.Context(), machine); err != nil {
		t.Fatal(err)
	}
	return began
}

func power(t *testing.T, machine string) {
	t.Helper()
	if err := theRoom(t).Start(context.WithoutCancel(t.Context()), machine); err != nil {
		t.Fatal(err)
	}
}

// deaths are how often, and in which order, machines died.
var deaths []string

func tally(machine string) { deaths = append(deaths, machine) }

// leastKilled is the master that died least often, and of those the one whose death
// is longest ago.
func leastKilled(t *testing.T) string {
	t.Helper()
	masters, err := mastersOf()
	if err != nil || len(masters) == 0 {
		t.Fatalf("the masters are %v %v", masters, err)
	}
	count := func(m string) (n, last int) {
		for i, d := range deaths {
			if d == m {
				n, last = n+1, i
			}
		}
		return n, last
	}
	return slices.MinFunc(masters, func(a, b string) int {
		na, la := count(a)
		nb, lb := count(b)
		if na != nb {
			return na - nb
		}
		return la - lb
	})
}

// comeBack waits until a machine that was a master is a worker: fenced, joined
// again, Ready.
func comeBack(t *testing.T, victim string) {
	t.Helper()
	r := theRoom(t)
	if m, err := r.Machine(t.Context(), victim); err != nil {
		t.Fatal(err)
	} else if !m.On {
		power(t, victim)
	}
	took := await(t, 5*time.Minute, victim+" to be a Ready worker", func() (string, bool) {
		m, err := getMachine(victim)
		ready, failed := readyNodes()
		return fmt.Sprintf("%+v %v; Ready Nodes %v %v", m, err, ready, failed),
			err == nil && m.Spec.Role == "worker" && m.Status.RoleGeneration == m.Spec.RoleGeneration && m.ready() && slices.Contains(ready, victim)
	})
	t.Logf("%s is a Ready worker after %.0f s", victim, took.Seconds())
	for _, file := range []string{
		"/etc/kubernetes/manifests/etcd.yaml", "/etc/kubernetes/manifests/kube-apiserver.yaml", "/var/lib/etcd/member",
		"/etc/kubernetes/pki/ca.key", "/etc/kubernetes/pki/etcd/ca.key", "/etc/kubernetes/pki/sa.key", "/etc/kubernetes/admin.conf",
	} {
		if _, err := exit(victim, "", "test", "-e", file); err == nil {
			t.Errorf("%s is a worker, and has %s", victim, file)
		}
	}
	if out, err := exit(victim, "", "test", "-d", "/var/lib/kingmaker/quarantine/etcd"); err != nil {
		t.Errorf("%s has no etcd data put aside: %s", victim, out)
	}
}

// calm has a site of three masters where nothing is wrong and nothing under way,
// whatever a test before left.
func calm(t *testing.T) {
	t.Helper()
	r, ctx := theRoom(t), context.WithoutCancel(t.Context()) // it is called when a test is over, too
	machines, err := r.Machines(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		if !m.On {
			power(t, m.Name)
		}
		if !m.Cable {
			if err := r.Heal(ctx, m.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	settle(t, 3)
}

// settle declares so many masters, and waits until nothing is under way.
func settle(t *testing.T, masters int) {
	t.Helper()
	declare(t, masters, quick)
	awaitMasters(t, growing)
	await(t, 5*time.Minute, "no crown to be open, and every machine to be Ready", func() (string, bool) {
		all, err := crowns()
		if err != nil {
			return err.Error(), false
		}
		for _, c := range all {
			if c.Status.Outcome == "" {
				return c.String(), false
			}
		}
		machines, err := objects[machine]("machines.v1alpha1.kingmaker.dev", "")
		if err != nil {
			return err.Error(), false
		}
		for _, m := range machines {
			if !m.ready() || m.Status.RoleGeneration != m.Spec.RoleGeneration {
				return fmt.Sprintf("%+v", m), false
			}
		}
		nodes, err := readyNodes()
		return fmt.Sprint(nodes, err), err == nil && len(nodes) >= len(machines)
	})
}

// five are the machines that the lab began with.
func five() (names []string) {
	for n := 1; n <= 5; n++ {
		names = append(names, room.MachineName(n))
	}
	return names
}

// awaitMasters waits until the site has as many masters as it declares, all of them
// at work.
func awaitMasters(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	return await(t, within, "the declared masters", func() (string, bool) { return mastersWork("") })
}

// awaitReplaced waits for the same without the dead one.
func awaitReplaced(t *testing.T, dead string, since time.Time) time.Duration {
	t.Helper()
	await(t, growing, dead+" to be replaced", func() (string, bool) { return mastersWork(dead) })
	return time.Since(since)
}

// mastersWork reports whether all masters are Ready machines, and voters of etcd
// that are well; and as many as are declared, and nobody else is a voter.
func mastersWork(dead string) (seen string, ok bool) {
	sites, err := objects[declaredSite]("sites.v1alpha1.kingmaker.dev", "")
	if err != nil || len(sites) != 1 {
		return fmt.Sprint(len(sites), " sites ", err), false
	}
	masters, err := mastersOf()
	if err != nil || len(masters) != max(1, sites[0].Spec.Masters) || slices.Contains(masters, dead) {
		return fmt.Sprintf("masters %v %v", masters, err), false
	}
	ready, err := readyNodes()
	for _, m := range masters {
		if !slices.Contains(ready, m) {
			return fmt.Sprintf("masters %v, Ready are %v %v", masters, ready, err), false
		}
	}
	members, err := members()
	var voters []string
	for _, m := range members {
		voters = append(voters, m.Name)
		if m.IsLearner || m.Name == "" {
			return fmt.Sprintf("members %+v", members), false
		}
	}
	slices.Sort(voters)
	if err != nil || !slices.Equal(voters, masters) {
		return fmt.Sprintf("masters %v, members %v %v", masters, voters, err), false
	}
	well, err := healthy()
	return fmt.Sprintf("masters %v, healthy members %d %v", masters, well, err), err == nil && well == len(masters)
}

// mastersOf are the machines that the site wants to be masters, in order.
func mastersOf() (names []string, err error) {
	machines, err := objects[machine]("machines.v1alpha1.kingmaker.dev", "")
	for _, m := range machines {
		if m.Spec.Role == "master" {
			names = append(names, m.Metadata.Name)
		}
	}
	slices.Sort(names)
	return names, err
}

func readyNodes() (names []string, err error) {
	nodes, err := objects[struct {
		Metadata struct{ Name string }
		Status   struct {
			Conditions []struct{ Type, Status string }
		}
	}]("nodes.v1.", "")
	for _, n := range nodes {
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				names = append(names, n.Metadata.Name)
			}
		}
	}
	return names, err
}

// crown is what the tests look at of a Crown.
type crown struct {
	Metadata struct{ Name string }
	Spec     struct {
		Number                  int
		Kind, Victim, Heir, Why string
		Begun                   time.Time
	}
	Status struct {
		Step, Machine, Error, Undo, Cause, Outcome string
		Attempts                                   int
		Ended                                      time.Time
		Journal                                    []struct {
			At                  time.Time
			Step, Machine, Note string
		}
	}
}

func (c *crown) String() string {
	if c == nil {
		return "no crown"
	}
	var steps []string
	for _, e := range c.Status.Journal {
		steps = append(steps, e.Step)
	}
	text := fmt.Sprintf("%s %s %s -> %s: %s", c.Metadata.Name, c.Spec.Kind, c.Spec.Victim, c.Spec.Heir, strings.Join(steps, " "))
	for _, more := range []string{c.Status.Outcome, c.Status.Cause, c.Status.Error} {
		if more != "" {
			text += "; " + more
		}
	}
	return text
}

// at is when the first of the steps began, tried in order.
func (c *crown) at(steps ...string) (at time.Time, ok bool) {
	for _, step := range steps {
		for _, e := range c.Status.Journal {
			if e.Step == step {
				return e.At, true
			}
		}
	}
	return at, false
}

func (c *crown) has(steps ...string) bool {
	_, ok := c.at(steps...)
	return ok
}

// crowns are all records, in order.
func crowns() ([]crown, error) {
	all, err := objects[crown]("crowns.v1alpha1.kingmaker.dev", "")
	slices.SortFunc(all, func(a, b crown) int { return a.Spec.Number - b.Spec.Number })
	return all, err
}

// newestCrown after one of a number, nil for none.
func newestCrown(after int) (*crown, error) {
	all, err := crowns()
	if err != nil || len(all) == 0 || all[len(all)-1].Spec.Number <= after {
		return nil, err
	}
	return &all[len(all)-1], nil
}

func lastCrown(t *testing.T) (number int) {
	t.Helper()
	await(t, time.Minute, "the records of crowns", func() (string, bool) {
		c, err := newestCrown(0)
		if c != nil {
			number = c.Spec.Number
		}
		return fmt.Sprint(err), err == nil
	})
	return number
}

func awaitCrown(t *testing.T, within time.Duration, what string, is func(c *crown) bool) (found *crown) {
	t.Helper()
	await(t, within, what, func() (string, bool) {
		all, err := crowns()
		for i := range all {
			if is(&all[i]) {
				found = &all[i]
				return "", true
			}
		}
		if len(all) == 0 {
			return fmt.Sprint("no crown ", err), false
		}
		return all[len(all)-1].String(), false
	})
	return found
}

// eventOf is what an Event about the site says, with a reason and after a moment.
func eventOf(reason string, since time.Time) (note string, err error) {
	events, err := objects[struct {
		Reason, Note string
		EventTime    time.Time
	}]("events.v1.events.k8s.io", "default")
	for _, e := range events {
		if e.Reason == reason && !e.EventTime.Before(since) {
			return e.Note, nil
		}
	}
	return "", err
}

// leaseHolder is the machine of the reconciler that works, and its Pod.
func leaseHolder() (machine, pod string, err error) {
	leases, err := objects[struct {
		Metadata struct{ Name string }
		Spec     struct{ HolderIdentity string }
	}]("leases.v1.coordination.k8s.io", "kube-system")
	if err != nil {
		return "", "", err
	}
	for _, l := range leases {
		if l.Metadata.Name == "kingmaker-reconcile" {
			pod, _, _ = strings.Cut(l.Spec.HolderIdentity, "_")
		}
	}
	pods, err := objects[struct {
		Metadata struct{ Name string }
		Spec     struct{ NodeName string }
	}]("pods.v1.", "kingmaker-system")
	for _, p := range pods {
		if p.Metadata.Name == pod {
			return p.Spec.NodeName, pod, nil
		}
	}
	return "", "", fmt.Errorf("nobody has the lease: its holder is %q %v", pod, err)
}

// leaderOfAll makes the master of the reconciler that works lead etcd too: the worst
// one to lose.
func leaderOfAll(t *testing.T) (victim string) {
	t.Helper()
	await(t, time.Minute, "one machine to lead all", func() (string, bool) {
		holder, _, err := leaseHolder()
		if err != nil {
			return err.Error(), false
		}
		leader, err := etcdLeader()
		if err != nil {
			return err.Error(), false
		}
		if leader == holder {
			victim = holder
			return "", true
		}
		all, err := members()
		if err != nil {
			return err.Error(), false
		}
		for _, m := range all {
			if m.Name == holder {
				_, said, err := etcdctl(leader, "move-leader", fmt.Sprintf("%x", m.ID))
				return fmt.Sprint("etcd was led by ", leader, ": ", said, err), false
			}
		}
		return holder + " is no member", false
	})
	return victim
}

// declare commits a number of masters, and when dead ones are replaced, and waits
// until the cluster knows of it.
func declare(t *testing.T, masters int, after string) (commit string) {
	t.Helper()
	commit = commitMasters(t, masters, after)
	await(t, 3*time.Minute, "the cluster's Site to be the committed one", func() (string, bool) {
		all, err := objects[declaredSite]("sites.v1alpha1.kingmaker.dev", "")
		return fmt.Sprint(all, err), err == nil && len(all) == 1 && all[0].Spec.Masters == masters && strings.HasPrefix(all[0].Spec.Failover.After, after)
	})
	return commit
}

type declaredSite struct {
	Spec struct {
		Masters  int
		Failover struct{ After string }
	}
}

// commitMasters pushes it, whatever becomes of it; the last commit where it is so
// already.
func commitMasters(t *testing.T, masters int, after string) (commit string) {
	t.Helper()
	const file = "site.yaml"
	before, err := os.ReadFile(filepath.Join(site.repo, file))
	if err != nil {
		t.Fatal(err)
	}
	text, err := declaring(string(before), masters, after)
	if err != nil {
		t.Fatal(err)
	}
	if text == string(before) {
		out, err := commandIn(site.repo, "", "git", "rev-parse", "HEAD")
		return strings.TrimSpace(must(t, out, err))
	}
	return push(t, fmt.Sprintf("%d masters, replaced after %s", masters, after), map[string]string{file: text})
}

// declaring rewrites two fields of a Site as the lab's example has it. A test must
// not be held back by the number of its own kills.
func declaring(text string, masters int, after string) (string, error) {
	var out []string
	replaced, old := 0, false
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "  masters:"):
			line = fmt.Sprintf("  masters: %d\n", masters)
			replaced++
		case strings.HasPrefix(line, "  failover:"):
			line, old = fmt.Sprintf("  failover: {after: %s, crownsPerDay: 100}\n", after), true
			replaced++
		case old && strings.HasPrefix(line, "    "): // of the policy before
			continue
		default:
			old = false
		}
		out = append(out, line)
	}
	if replaced != 2 {
		return "", fmt.Errorf("site.yaml has masters and failover %d times, want each once", replaced)
	}
	return strings.Join(out, ""), nil
}

// TestDeclaring needs no lab, but runs where one is.
func TestDeclaring(t *testing.T) {
	text, err := os.ReadFile("../../../examples/lab/site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	once, err := declaring(string(text), 5, quick)
	if err != nil {
		t.Fatal(err)
	}
	again, err := declaring(once, 5, quick)
	if err != nil || again != once || !strings.Contains(once, "\n  masters: 5\n") || !strings.Contains(once, "\n  failover: {after: 1m, crownsPerDay: 100}\n") || !strings.Contains(once, "\n  platform:\n    patches:\n") || strings.Contains(once, "\n    after:") {
		t.Errorf("%v\n%s", err, once)
	}
}

// oneCluster checks that every machine that serves is of one etcd, with the same
// members.
func oneCluster(t *testing.T) {
	t.Helper()
	seen := map[string][]string{}
	for _, m := range five() {
		if _, _, err := apart(m, "test", "-e", "/etc/kubernetes/manifests/etcd.yaml"); err != nil {
			continue
		}
		out, said, err := etcdctl(m, "member", "list", "-w", "json")
		var list memberList
		if err := json.Unmarshal([]byte(must(t, out+said, err)), &list); err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("%x %v", list.Header.ClusterID, list.names())
		seen[key] = append(seen[key], m)
	}
	if len(seen) != 1 {
		t.Errorf("there are %d clusters: %v", len(seen), seen)
	}
	for key, machines := range seen {
		if len(machines) != 3 {
			t.Errorf("cluster %s is served by %v", key, machines)
		}
	}
}
