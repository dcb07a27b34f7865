//go:build e2e

package room

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRoom builds rooms out of real containers, which needs root and Docker.
func TestRoom(t *testing.T) {
	guard(t)
	first := build(t, "e2e-room", 2)
	for _, test := range []struct {
		name string
		run  func(t *testing.T, r *Room)
	}{
		{"machines are PCs", testMachines},
		{"machines are on one LAN, and nowhere else", testNetwork},
		{"power", testPower},
		{"reboot", testReboot},
		{"cable", testCable},
		{"site repo", testSiteRepo},
		{"one more machine", testAdd},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, first) })
	}
	t.Run("a room beside it", func(t *testing.T) {
		second := build(t, "e2e-room-2", 1)
		a, b := machine(t, first, "pc-01"), machine(t, second, "pc-01")
		if a.Address == b.Address {
			t.Errorf("both machines have the address %s", a.Address)
		}
		if err := ping(t, first, "pc-01", b.Address.String()); err == nil {
			t.Error("a machine reaches one of the other room")
		}
		down(t, second)
		if err := ping(t, first, "pc-01", machine(t, first, "pc-02").Address.String()); err != nil {
			t.Errorf("after the other room went down: %v", err)
		}
	})
	down(t, first)
}

// guard is a folder as of one room more: Docker stays to be asked what the others
// left behind, where it was started for them and would end with the last.
func guard(t *testing.T) {
	t.Helper()
	r, err := New("e2e-room-guard", func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func build(t *testing.T, name string, machines int) *Room {
	t.Helper()
	r, err := New(name, func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	site := t.TempDir()
	if err := os.WriteFile(filepath.Join(site, "site.yaml"), []byte("kind: Site\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	media := t.TempDir()
	if err := os.WriteFile(filepath.Join(media, "VERSION"), []byte("0.1.0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.Down(t.Context()); err != nil { // of a test that was killed
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	begin := time.Now()
	o := Options{Machines: machines, Media: media, Site: site}
	if err := r.Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: built in %s", name, time.Since(begin).Round(100*time.Millisecond))
	if err := r.Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "lab down") {
		t.Errorf("built a second time: %v", err)
	}
	return r
}

// down takes a room away and looks for remains.
func down(t *testing.T, r *Room) {
	t.Helper()
	n, err := r.network(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]string{{"ps", "--all"}, {"volume", "ls"}, {"network", "ls"}} {
		left, err := r.lines(t.Context(), append(list, "--quiet", "--filter", "label="+labelLab+"="+r.Name)...)
		if err != nil || len(left) > 0 {
			t.Errorf("docker %s: left behind: %v %v", list[0], left, err)
		}
	}
	rules, err := r.run(t.Context(), "iptables", "--list-rules")
	if err != nil || strings.Contains(string(rules), n.bridge) {
		t.Errorf("rules left behind: %v\n%s", err, rules)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), r.Dir) {
		t.Errorf("mounts left behind: %v\n%s", err, mounts)
	}
	if _, err := os.Stat(r.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the state folder: %v", err)
	}
	if err := r.Down(t.Context()); err != nil {
		t.Errorf("down a second time: %v", err)
	}
	if _, err := r.Machines(t.Context()); err == nil || !strings.Contains(err.Error(), "lab up") {
		t.Errorf("asked for machines: %v", err)
	}
}

func machine(t *testing.T, r *Room, name string) Machine {
	t.Helper()
	m, err := r.Machine(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// sh runs a script on a machine that must not fail, and returns what it printed.
func sh(t *testing.T, r *Room, machine, script string) string {
	t.Helper()
	out, err := r.Run(t.Context(), machine, nil, "sh", "-ec", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func ping(t *testing.T, r *Room, machine, address string) error {
	t.Helper()
	_, err := r.Run(t.Context(), machine, nil, "ping", "-c", "1", "-W", "1", address)
	return err
}

func testMachines(t *testing.T, r *Room) {
	seen := map[string]string{}
	for _, name := range []string{"pc-01", "pc-02"} {
		if got := sh(t, r, name, "systemctl is-system-running"); got != "running" {
			t.Errorf("%s is %s:\n%s", name, got, sh(t, r, name, "systemctl --failed"))
		}
		for _, test := range []struct{ script, want string }{
			{"cat /etc/hostname; hostname", name + "\n" + name},
			{"cat /sys/class/net/eth0/address", "02:4b:4d:00:00:" + name[3:]},
			{"cat /media/kingmaker/VERSION", "0.1.0"},
			{"touch /media/kingmaker/x 2>/dev/null || echo refused", "refused"},
			{"findmnt --noheadings --output fstype --target /etc/hosts", "overlay"},
			{"grep -c " + name + " /etc/hosts", "1"},
			{"findmnt --noheadings --output fstype --mountpoint /srv/brick", "xfs"},
			{"lsblk --nodeps --noheadings --output name --exclude 7", ""},
			{"ls /sys/block | grep -v loop || echo none", "none"},
			{"date --set 2030-01-01 >/dev/null 2>&1 || echo refused", "refused"},
			{"findmnt --noheadings --output propagation / | grep -o shared", "shared"},
		} {
			if got := sh(t, r, name, test.script); got != test.want {
				t.Errorf("%s: %s: %q, want %q", name, test.script, got, test.want)
			}
		}
		for _, own := range []string{"/etc/machine-id", "/proc/sys/kernel/random/boot_id"} {
			id := sh(t, r, name, "cat "+own)
			if len(id) < 32 || seen[id] != "" {
				t.Errorf("%s of %s: %s, which is %s", own, name, id, seen[id])
			}
			seen[id] = own + " of " + name
		}
	}
}

func testNetwork(t *testing.T, r *Room) {
	a, b := machine(t, r, "pc-01").Address.String(), machine(t, r, "pc-02").Address.String()
	if err := ping(t, r, "pc-01", b); err != nil {
		t.Error(err)
	}
	for _, away := range []string{"192.0.2.1", "10.96.0.1"} { // somewhere, and a Service that does not exist
		out, err := r.Run(t.Context(), "pc-01", nil, "ping", "-c", "1", "-W", "1", away)
		if err == nil || !strings.Contains(string(out), "Net Unreachable") {
			t.Errorf("there is a way out to %s, or none that says no: %s", away, out)
		}
	}
	// As Pods do with host-gw: neither address is of the room's range.
	sh(t, r, "pc-01", "ip addr add 10.244.1.1/24 dev lo; ip route add 10.244.2.0/24 via "+b)
	sh(t, r, "pc-02", "ip addr add 10.244.2.1/24 dev lo; ip route add 10.244.1.0/24 via "+a)
	if _, err := r.Run(t.Context(), "pc-01", nil, "ping", "-c", "1", "-W", "1", "-I", "10.244.1.1", "10.244.2.1"); err != nil {
		t.Errorf("from Pod to Pod: %v", err)
	}
}

func testPower(t *testing.T, r *Room) {
	sh(t, r, "pc-02", "echo kept >/root/file; echo kept >/var/lib/etcd/file; echo kept >/srv/brick/file; echo 10.0.0.1 x >>/etc/hosts; sync")
	ids := sh(t, r, "pc-02", "cat /etc/machine-id")
	for range 2 { // dead is dead
		if err := r.Kill(t.Context(), "pc-02"); err != nil {
			t.Fatal(err)
		}
	}
	if machine(t, r, "pc-02").On {
		t.Error("it has power")
	}
	if err := ping(t, r, "pc-01", machine(t, r, "pc-02").Address.String()); err == nil {
		t.Error("it answers")
	}
	if err := r.Reboot(t.Context(), "pc-02"); err == nil || !strings.Contains(err.Error(), "lab start pc-02") {
		t.Errorf("reboot of a dead machine: %v", err)
	}
	for range 2 {
		if err := r.Start(t.Context(), "pc-02"); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Booted(t.Context(), "pc-02"); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, r, "pc-02", "cat /root/file /var/lib/etcd/file /srv/brick/file; tail -n 1 /etc/hosts; cat /etc/machine-id"); got != "kept\nkept\nkept\n10.0.0.1 x\n"+ids {
		t.Errorf("after the power came back: %q", got)
	}
	for _, unknown := range []error{r.Kill(t.Context(), "pc-09"), r.Start(t.Context(), "pc-09"), r.Reboot(t.Context(), "pc-09"), r.Cut(t.Context(), "pc-09")} {
		if unknown == nil || !strings.Contains(unknown.Error(), `no machine "pc-09" in e2e-room: there are pc-01, pc-02, git`) {
			t.Errorf("unknown machine: %v", unknown)
		}
	}
}

func testReboot(t *testing.T, r *Room) {
	const ids = "cat /etc/machine-id /proc/sys/kernel/random/boot_id; cat /root/file"
	before := strings.Fields(sh(t, r, "pc-02", ids))
	if err := r.Reboot(t.Context(), "pc-02"); err != nil {
		t.Fatal(err)
	}
	after := strings.Fields(sh(t, r, "pc-02", ids))
	if after[0] != before[0] || after[1] == before[1] || after[2] != before[2] {
		t.Errorf("before %v, after %v", before, after)
	}
	// It went down in order: units were stopped.
	if said := sh(t, r, "pc-02", "journalctl --boot -1 --no-pager"); !strings.Contains(said, "Journal stopped") {
		t.Errorf("the journal of the boot before ends otherwise:\n%s", said)
	}
}

func testCable(t *testing.T, r *Room) {
	address := machine(t, r, "pc-02").Address.String()
	carrier := func() string {
		return sh(t, r, "pc-02", "cat /sys/class/net/eth0/carrier; ip -brief -4 addr show eth0 | grep -o "+address)
	}
	for _, test := range []struct {
		name string
		do   func(ctx context.Context, machine string) error
		in   bool
	}{
		{"cut", r.Cut, false},
		{"cut again", r.Cut, false},
		{"reboot", r.Reboot, false},
		{"heal", r.Heal, true},
		{"heal again", r.Heal, true},
	} {
		if err := test.do(t.Context(), "pc-02"); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		want := "0\n" + address
		if test.in {
			want = "1\n" + address
		}
		if got := carrier(); got != want || machine(t, r, "pc-02").Cable != test.in {
			t.Errorf("after %s: carrier and address %q, want %q; %+v", test.name, got, want, machine(t, r, "pc-02"))
		}
		if err := ping(t, r, "pc-01", address); (err == nil) != test.in {
			t.Errorf("after %s: ping: %v", test.name, err)
		}
	}
}

func testSiteRepo(t *testing.T, r *Room) {
	git := func(args ...string) error {
		_, err := r.Runner.Run(t.Context(), Command{Args: append([]string{"git"}, args...), Dir: r.WorkTree(), Env: []string{"GIT_TERMINAL_PROMPT=0"}})
		return err
	}
	// A big file makes git push without telling the length.
	if err := os.WriteFile(filepath.Join(r.WorkTree(), "noise"), []byte(noise(3<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"add", "--all"}, {"commit", "--quiet", "--message=Noise"}, {"push", "--quiet"}} {
		if err := git(args...); err != nil {
			t.Fatal(err)
		}
	}
	// The server's files live as long as the server, with or without power.
	for _, do := range []func(context.Context, string) error{r.Kill, r.Start, r.Reboot, r.Cut, r.Heal} {
		if err := do(t.Context(), Git); err != nil {
			t.Fatal(err)
		}
	}
	url, err := r.URL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	clone := filepath.Join(t.TempDir(), "clone")
	err = await(t.Context(), 10*time.Second, func(context.Context) error {
		return git("-c", "http.sslCAPath="+filepath.Join(r.Dir, "ca"), "-c", "credential.helper=store --file="+r.credentialStore(), "clone", "--quiet", "--depth=1", url, clone)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"site.yaml", "noise"} {
		if _, err := os.Stat(filepath.Join(clone, file)); err != nil {
			t.Error(err)
		}
	}

	if _, err := http.Get(url); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("the certificate is good for those who do not know the authority: %v", err)
	}
	if err := git("-c", "credential.helper=", "ls-remote", url); err == nil {
		t.Error("somebody without a password reads the site repo")
	}
	for _, secret := range []string{r.Credentials(), filepath.Join(r.Credentials(), "password"), r.credentialStore(), filepath.Join(r.Dir, "git", "tls.key")} {
		if info, err := os.Stat(secret); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is not for its owner alone: %v %v", secret, info, err)
		}
	}
}

func testAdd(t *testing.T, r *Room) {
	name, err := r.Add(t.Context())
	if err != nil || name != "pc-03" {
		t.Fatal(name, err)
	}
	if err := ping(t, r, name, machine(t, r, "pc-01").Address.String()); err != nil {
		t.Error(err)
	}
	if got := sh(t, r, name, "cat /media/kingmaker/VERSION"); got != "0.1.0" {
		t.Errorf("the stick has %q", got)
	}
}

// noise is text that does not compress.
func noise(n int) string {
	var b strings.Builder
	for x := uint64(1); b.Len() < n; x = x*6364136223846793005 + 1442695040888963407 {
		b.WriteByte(byte(x >> 56))
	}
	return b.String()
}
