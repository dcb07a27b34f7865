package host_test

import (
	"bytes"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
)

// Each fact decides about its own settings, whatever the others are.
func TestNeeds(t *testing.T) {
	pc := host.Facts{Cgroup: 2, Resources: true, Conntrack: true, KernelLog: true, Overlay: true}
	usual := host.Needs{CgroupDriver: "systemd", SystemdCgroup: true, FailCgroupV1: true, Snapshotter: "overlayfs"}
	for _, test := range []struct {
		name  string
		fact  func(*host.Facts)
		need  func(*host.Needs)
		words string
	}{
		{"a PC", func(*host.Facts) {}, func(*host.Needs) {}, "cgroup v2: kubelet with cgroupDriver systemd, containerd with SystemdCgroup"},
		{"cgroup v1", func(f *host.Facts) { f.Cgroup = 1 },
			func(n *host.Needs) { n.CgroupDriver, n.SystemdCgroup, n.FailCgroupV1 = "cgroupfs", false, false },
			"cgroup v1: kubelet with failCgroupV1 false and cgroupDriver cgroupfs"},
		{"no CAP_SYS_RESOURCE", func(f *host.Facts) { f.Resources = false }, func(n *host.Needs) { n.RestrictOOMScoreAdj = true },
			"no CAP_SYS_RESOURCE: containerd with restrict_oom_score_adj"},
		{"user namespace", func(f *host.Facts) { f.UserNamespace = true }, func(n *host.Needs) { n.FeatureGates = map[string]bool{"KubeletInUserNamespace": true} },
			"user namespace: kubelet with feature gate KubeletInUserNamespace"},
		{"connection table", func(f *host.Facts) { f.Conntrack = false }, func(n *host.Needs) { n.KeepConntrack = true },
			"connection table cannot be sized here: kube-proxy with conntrack.maxPerCore 0"},
		{"no overlayfs", func(f *host.Facts) { f.Overlay = false }, func(n *host.Needs) { n.Snapshotter = "native" },
			"no overlayfs in this kernel: containerd with snapshotter native, which copies and is slow"},
		{"overlayfs on overlayfs", func(f *host.Facts) { f.StoreOnOverlay = true }, func(n *host.Needs) { n.Snapshotter = "native" },
			"/var/lib/containerd lies on overlayfs: containerd with snapshotter native, which copies and is slow"},
		{"a container", func(f *host.Facts) { f.Container = "docker" }, func(*host.Needs) {}, "runs in a container (docker)"},
	} {
		facts, want := pc, usual
		test.fact(&facts)
		test.need(&want)
		got := facts.Needs()
		if !slices.Contains(got.Words, test.words) {
			t.Errorf("%s: nothing said of it: %q", test.name, got.Words)
		}
		got.Words = nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v\nwant %+v", test.name, got, want)
		}
	}
}

// The same from the files of a machine, both ways; and the choice is in the log.
func TestDetect(t *testing.T) {
	pc, lab := hosttest.NewDebian(t), hosttest.NewDebian(t)
	for name, content := range map[string]string{
		"/run/systemd/container": "docker\n",
		"/proc/self/status":      "Uid:\t0\t0\t0\t0\nCapEff:\t000001fffeffffff\n",
		"/proc/filesystems":      "nodev\tsysfs\n\text4\n",
		"/proc/self/uid_map":     "         0     100000      65536\n",
	} {
		lab.Put(t, name, content)
	}
	if err := os.Remove(lab.Path("/sys/fs/cgroup/cgroup.controllers")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		m     *hosttest.Debian
		facts host.Facts
	}{
		{pc, host.Facts{Cgroup: 2, Resources: true, Conntrack: true, Overlay: true}},
		{lab, host.Facts{Cgroup: 1, Container: "docker", UserNamespace: true}},
	} {
		var log bytes.Buffer
		test.m.Log = slog.New(slog.NewTextHandler(&log, nil))
		got, err := host.Detect(t.Context(), test.m.Host)
		if err != nil {
			t.Fatal(err)
		}
		if want := test.facts.Needs(); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
		for _, line := range got.Words {
			if !strings.Contains(log.String(), line) {
				t.Errorf("not in the log: %s\n%s", line, &log)
			}
		}
	}
	if err := os.Remove(pc.Path("/proc/self/status")); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Detect(t.Context(), pc.Host); err == nil || !strings.HasPrefix(err.Error(), "detect what this machine needs: ") {
		t.Error(err)
	}
}
