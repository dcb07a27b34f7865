//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// line is what reconcile token prints: what to run, and what to give it to read.
type line struct{ address, hash, token string }

func (l line) join(machine string, flags ...string) (string, error) {
	return exit(machine, l.token+"\n", append([]string{"noded", "join", l.address, "--ca-hash", l.hash, "--yes"}, flags...)...)
}

func newToken(t *testing.T, flags ...string) line {
	t.Helper()
	out := on(t, master(t), append([]string{"reconcile", "token", "--kubeconfig", "/etc/kubernetes/admin.conf"}, flags...)...)
	m := regexp.MustCompile(`noded join (\S+) --ca-hash (\S+) <<< (\S+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("reconcile token printed %q", out)
	}
	return line{m[1], m[2], m[3]}
}

// add buys a PC, and installs it from the stick as a person would.
func add(t *testing.T) (machine string) {
	t.Helper()
	out, err := command(site.binary, "add", "--name", name)
	lines := strings.Fields(must(t, out, err))
	machine = lines[len(lines)-1]
	on(t, machine, "/media/kingmaker/bin/noded", "install", "--yes")
	return machine
}

// nothingJoined checks that a machine is as it was before it was refused.
func nothingJoined(t *testing.T, machine string) {
	t.Helper()
	for _, file := range []string{"/etc/kubernetes/kubelet.conf", "/etc/kubernetes/bootstrap-kubelet.conf", "/etc/kingmaker/machine.yaml", "/etc/kubernetes/pki/ca.crt", "/var/lib/kubelet/config.yaml"} {
		if _, err := exit(machine, "", "test", "-e", file); err == nil {
			t.Errorf("%s was refused, and has %s", machine, file)
		}
	}
	if out, err := exit(machine, "", "grep", "internal", "/etc/hosts"); err == nil {
		t.Errorf("%s was refused, and /etc/hosts has %s", machine, out)
	}
}

// testJoin: what is wrong with a join is told, and leaves nothing behind; then the
// pasted line makes the machine a part of the site within a minute.
func testJoin(t *testing.T) {
	expired := newToken(t, "--ttl", "1m") // until the machine is there
	machine := add(t)
	good := newToken(t)

	refused := func(what string, l line, want string, flags ...string) {
		t.Helper()
		out, err := l.join(machine, flags...)
		if err == nil {
			t.Fatalf("%s: joined", what)
		}
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s: it says\n%s\nwant %s", what, out, want)
		}
		if strings.Contains(out, strings.SplitN(l.token, ".", 2)[1]) {
			t.Errorf("%s: the token is in the answer:\n%s", what, out)
		}
		t.Logf("%s: %s", what, strings.TrimSpace(out))
		nothingJoined(t, machine)
	}
	id, secret, _ := strings.Cut(good.token, ".")
	wrong := good
	wrong.token = id + "." + strings.Repeat("x", len(secret))
	refused("a wrong token", wrong, `token`)
	wrong.token = "nobody." + secret
	refused("an unknown token", wrong, `15 minutes`)

	await(t, 3*time.Minute, "the token to expire", func() (string, bool) {
		out, _ := kubectl("get", "secret", "-n", "kube-system", "bootstrap-token-"+strings.SplitN(expired.token, ".", 2)[0], "--ignore-not-found")
		return out, strings.TrimSpace(out) == ""
	})
	refused("an expired token", expired, `15 minutes`)

	wrong = good
	sum := sha256.Sum256([]byte("another site"))
	wrong.hash = "sha256:" + hex.EncodeToString(sum[:])
	refused("a wrong CA hash", wrong, `another site`)

	refused("a second machine with the name", good, `pc-02`, "--name", "pc-02")

	late := clockAhead(t, time.Hour)
	refused("a clock that is off by an hour", late, `(?i)clock`)

	// The disk that has data: refused, and as it was.
	on(t, machine, "sh", "-c", "truncate -s 20G /var/lib/disk && mkfs.ext4 -q -L photos /var/lib/disk && losetup -f /var/lib/disk")
	device := strings.TrimSpace(on(t, machine, "sh", "-c", "losetup -j /var/lib/disk | cut -d: -f1"))
	before := on(t, machine, "sha256sum", "/var/lib/disk")
	out, err := exit(machine, "", "/media/kingmaker/bin/noded", "install", "--yes", "--disk", device)
	if err == nil || !strings.Contains(out, "ext4") {
		t.Errorf("a disk with data: %v\n%s", err, out)
	}
	t.Logf("a disk with data: %s", strings.TrimSpace(out))
	if after := on(t, machine, "sha256sum", "/var/lib/disk"); after != before {
		t.Error("the disk with data was changed")
	}
	on(t, machine, "sh", "-c", "losetup -d "+device+" && rm /var/lib/disk")

	// Reset of what never joined is no error; then the line works.
	on(t, machine, "noded", "reset", "--yes")
	push(t, "one more", map[string]string{"machines/" + machine + ".yaml": fmt.Sprintf(
		"apiVersion: kingmaker.dev/v1alpha1\nkind: Machine\nmetadata: {name: %s}\nspec: {mac: %q, circuit: late}\n", machine, mac(t, machine))})
	l := newToken(t)
	began := time.Now()
	out, err = l.join(machine)
	must(t, out, err)
	awaitReady(t, 60*time.Second, machine)
	await(t, 60*time.Second-time.Since(began), "work to be let on "+machine, func() (string, bool) {
		out, err := kubectl("get", "node", machine, "-o", "jsonpath={.spec.taints}")
		return out, err == nil && !strings.Contains(out, "unlisted")
	})
	took := time.Since(began)
	t.Logf("%s joined in %.0f s", machine, took.Seconds())
	if took > 60*time.Second {
		t.Errorf("%s joined in %s, want 60 s", machine, took)
	}
	if out, err := exit(machine, "", "grep", "-r", strings.SplitN(l.token, ".", 2)[1], "/etc", "/var/log", "/var/lib/kingmaker", "/run/kubeadm"); err == nil {
		t.Errorf("the token stays on the machine:\n%s", out)
	}

	// It leaves, and comes again.
	on(t, machine, "noded", "reset", "--yes")
	nothingJoined(t, machine)
	out, err = kubectl("delete", "node", machine)
	must(t, out, err)
	out, err = newToken(t).join(machine)
	must(t, out, err)
	awaitReady(t, 90*time.Second, machine)
}

func mac(t *testing.T, machine string) string {
	t.Helper()
	return strings.TrimSpace(on(t, machine, "cat", "/sys/class/net/eth0/address"))
}

// testUnlisted: a machine that git does not know joins and gets no work, and is
// shown; listed, it gets work.
func testUnlisted(t *testing.T) {
	machine := add(t)
	out, err := newToken(t).join(machine)
	must(t, out, err)
	await(t, time.Minute, "the Node", func() (string, bool) {
		out, err := kubectl("get", "node", machine, "-o", "jsonpath={.spec.taints}")
		return out, err == nil && strings.Contains(out, "kingmaker.dev/unlisted")
	})
	await(t, time.Minute, "the plan to show it", func() (string, bool) {
		out, _ := reconcile(t, "status")
		return out, strings.Contains(out, machine)
	})
	push(t, "listed now", map[string]string{"machines/" + machine + ".yaml": fmt.Sprintf(
		"apiVersion: kingmaker.dev/v1alpha1\nkind: Machine\nmetadata: {name: %s}\nspec: {mac: %q}\n", machine, mac(t, machine))})
	awaitReady(t, 2*time.Minute, machine)
	await(t, time.Minute, "work to be let on it", func() (string, bool) {
		out, err := kubectl("get", "node", machine, "-o", "jsonpath={.spec.taints}")
		return out, err == nil && !strings.Contains(out, "unlisted")
	})
}

// testOwnMachine: a node's certificate is good for its own status, and for nothing
// else of the site.
func testOwnMachine(t *testing.T) {
	two := workers(t, 2) // not a master: its kubelet reads what the reconciler's Pod there mounts
	self, other := two[0], two[1]
	can := func(want bool, args ...string) {
		t.Helper()
		out, err := exit(self, "", append([]string{"kubectl", "--kubeconfig", "/etc/kubernetes/kubelet.conf"}, args...)...)
		if (err == nil) != want || !want && !strings.Contains(out, "(Forbidden)") { // and not for another reason
			t.Errorf("kubectl %s by %s: %s %v", strings.Join(args, " "), self, out, err)
		}
	}
	status := `{"status":{"phase":"Ready"}}`
	can(true, "patch", "machine", self, "--subresource=status", "--type=merge", "-p", status)
	can(false, "patch", "machine", other, "--subresource=status", "--type=merge", "-p", status)
	can(false, "patch", "machine", self, "--type=merge", "-p", `{"spec":{"role":"master"}}`)
	can(false, "delete", "machine", self)
	can(false, "get", "secret", "-n", "kingmaker-system", "site-credentials")
	can(false, "get", "secret", "-n", "kingmaker-system", "etcd-client")
	can(false, "get", "secrets", "-A")
}
