//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testSite: the site that lab up made works, and says so.
func testSite(t *testing.T) {
	all := getMachines(t)
	if len(all) < 5 { // more in a lab that was kept: two of the tests add one
		t.Fatalf("%d machines, want 5", len(all))
	}
	awaitMasters(t, growing)
	for _, m := range all {
		awaitReady(t, 3*time.Minute, m.Metadata.Name)
	}
	await(t, 2*time.Minute, "every Pod to run", func() (string, bool) {
		out, err := kubectl("get", "pods", "-A", "--no-headers")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) < 4 || f[3] != "Running" {
				return line, false
			}
		}
		return out, err == nil
	})
	out, err := commandIn(site.repo, "", "git", "rev-parse", "HEAD")
	awaitReached(t, time.Minute, strings.TrimSpace(must(t, out, err)))

	page, err := kubectl("get", "machines")
	for _, column := range []string{"ROLE", "READY", "CIRCUIT", "CPU", "MEMORY", "PHASE", "AGE"} {
		if !strings.Contains(strings.SplitN(must(t, page, err), "\n", 2)[0], column) {
			t.Errorf("kubectl get machines has no column %s:\n%s", column, page)
		}
	}
}

// testPush: what is pushed arrives, and what is taken out goes.
func testPush(t *testing.T) {
	const file = "services/bell/bell.yaml"
	commit := push(t, "a bell", map[string]string{file: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bell, namespace: default}\ndata: {rings: \"8:00\"}\n"})
	t.Logf("reached %.1f s after the push", awaitReached(t, 90*time.Second, commit).Seconds())
	if out, _ := kubectl("get", "configmap", "bell", "-o", "jsonpath={.data.rings}"); !strings.Contains(out, "8:00") {
		t.Errorf("the bell is %q", out)
	}
	awaitReached(t, 90*time.Second, push(t, "no bell", map[string]string{"services/bell": ""}))
	if out, err := kubectl("get", "configmap", "bell", "--ignore-not-found"); strings.TrimSpace(must(t, out, err)) != "" {
		t.Errorf("the bell is still there: %s", out)
	}
}

// probes is a Pod on each machine, and three ways to them.
const probes = `apiVersion: v1
kind: Namespace
metadata: {name: probe}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe, namespace: probe}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers:
        - name: probe
          image: kingmaker.dev/probe:e2e
          imagePullPolicy: Never
          env:
            - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: probe, namespace: probe}
spec:
  type: NodePort
  selector: {app: probe}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

// testNetwork: a Pod on each machine reaches a Pod on each other, a Service and
// DNS, and a NodePort of every machine answers from outside.
func testNetwork(t *testing.T) {
	machines := getMachines(t)
	image := probeImage(t)
	for _, m := range machines {
		out, err := exit(m.Metadata.Name, image, "ctr", "--namespace", "k8s.io", "images", "import", "-")
		must(t, out, err)
	}
	awaitReached(t, 2*time.Minute, push(t, "probes", map[string]string{"services/probe/probe.yaml": probes}))
	checkNetwork(t, machines)
}

// testVXLAN: the same over a network that routers may lie in.
func testVXLAN(t *testing.T) {
	file := filepath.Join(site.repo, "site.yaml")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	turn := func(content string) {
		t.Helper()
		awaitReached(t, 2*time.Minute, push(t, "another backend", map[string]string{"site.yaml": content}))
		out, err := kubectl("rollout", "status", "-n", "kube-flannel", "daemonset/kube-flannel-ds", "--timeout", "3m")
		must(t, out, err)
	}
	turn(strings.Replace(string(before), "backend: host-gw", "backend: vxlan", 1))
	for _, m := range getMachines(t) {
		on(t, m.Metadata.Name, "ip", "link", "show", "flannel.1")
	}
	checkNetwork(t, getMachines(t))
	turn(string(before))
	checkNetwork(t, getMachines(t))
}

type pod struct{ name, ip, node string }

// checkNetwork tries every way there is between the probes, and to them.
func checkNetwork(t *testing.T, machines []machine) {
	t.Helper()
	var pods []pod
	await(t, 2*time.Minute, "a probe on each machine", func() (string, bool) {
		out, err := kubectl("get", "pods", "-n", "probe", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName} {.status.containerStatuses[0].ready}{"\n"}{end}`)
		pods = nil
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			if f := strings.Fields(line); len(f) == 4 && f[3] == "true" {
				pods = append(pods, pod{f[0], f[1], f[2]})
			}
		}
		return out, err == nil && len(pods) == len(machines)
	})
	seen := map[string]bool{}
	for _, p := range pods {
		if seen[p.ip] {
			t.Errorf("%s is the address of two Pods", p.ip)
		}
		seen[p.ip] = true
	}
	ask := func(from pod, query string) (string, error) {
		return kubectl("get", "--raw", fmt.Sprintf("/api/v1/namespaces/probe/pods/%s:8080/proxy%s", from.name, query))
	}
	for _, from := range pods {
		for _, to := range pods {
			// Routes follow a change of the backend within seconds.
			await(t, 30*time.Second, from.node+" to reach "+to.node, func() (string, bool) {
				out, err := ask(from, "/get?url=http://"+to.ip+":8080/")
				return out, err == nil && strings.Contains(out, to.name)
			})
		}
		if out, err := ask(from, "/get?url=http://probe.probe.svc.cluster.local/"); err != nil || !strings.Contains(out, "probe-") {
			t.Errorf("%s does not reach the Service by name: %s %v", from.node, out, err)
		}
		if out, err := ask(from, "/lookup?name=kubernetes.default.svc.cluster.local"); err != nil || !strings.Contains(out, "10.96.0.1") {
			t.Errorf("%s does not find kubernetes: %s %v", from.node, out, err)
		}
	}
	for _, m := range machines {
		url := "http://" + m.Status.Inventory.Address + ":30080/"
		await(t, 20*time.Second, "the NodePort of "+m.Metadata.Name, func() (string, bool) {
			answer, err := (&http.Client{Timeout: 3 * time.Second}).Get(url)
			if err != nil {
				return err.Error(), false
			}
			defer answer.Body.Close()
			text, _ := io.ReadAll(answer.Body)
			return string(text), strings.Contains(string(text), "probe-")
		})
	}
}

// testReboot: a machine that is rebooted comes back by itself.
func testReboot(t *testing.T) {
	worker := workers(t, 1)[0]
	before, err := getMachine(worker)
	if err != nil {
		t.Fatal(err)
	}
	do(t, "reboot", worker)
	await(t, 2*time.Minute, "another boot of "+worker, func() (string, bool) {
		m, err := getMachine(worker)
		return fmt.Sprint(m, err), err == nil && m.Status.Inventory.BootID != before.Status.Inventory.BootID
	})
	t.Logf("Ready %.0f s after it reported again", awaitReady(t, 2*time.Minute, worker).Seconds())
}

// testPower: a machine whose power is cut comes back by itself.
func testPower(t *testing.T) {
	worker := workers(t, 1)[0]
	do(t, "kill", worker)
	await(t, 2*time.Minute, "the site to miss "+worker, func() (string, bool) {
		out, _ := kubectl("get", "node", worker, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		return out, strings.TrimSpace(out) == "Unknown"
	})
	do(t, "start", worker)
	t.Logf("Ready again after %.0f s", awaitReady(t, 2*time.Minute, worker).Seconds())
}

// testCut: a machine whose network cable was out comes back by itself.
func testCut(t *testing.T) {
	worker := workers(t, 1)[0]
	do(t, "cut", worker)
	await(t, 2*time.Minute, "the site to miss "+worker, func() (string, bool) {
		out, _ := kubectl("get", "node", worker, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		return out, strings.TrimSpace(out) == "Unknown"
	})
	do(t, "heal", worker)
	t.Logf("Ready again after %.0f s", awaitReady(t, 2*time.Minute, worker).Seconds())
}

// testAPIAway: a machine that boots while no master answers works as soon as one
// does; and the masters come back from a power cut by themselves.
func testAPIAway(t *testing.T) {
	worker := workers(t, 1)[0]
	masters, err := mastersOf()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range masters {
		do(t, "kill", m)
	}
	do(t, "reboot", worker)
	await(t, time.Minute, "the balancer of "+worker, func() (string, bool) {
		out, _ := exit(worker, "", "systemctl", "is-active", "kingmaker-balancer", "noded")
		return out, strings.TrimSpace(out) == "active\nactive"
	})
	for _, m := range masters {
		do(t, "start", m)
	}
	for _, m := range []string{"pc-01", "pc-02", "pc-03", "pc-04", "pc-05"} {
		t.Logf("%s Ready after %.0f s more", m, awaitReady(t, 3*time.Minute, m).Seconds())
	}
	awaitMasters(t, 5*time.Minute)
	awaitReached(t, 2*time.Minute, push(t, "after the power cut", nil))
}
