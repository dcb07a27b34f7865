package member

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// aMasterPC is a played machine that is a master, with keys, data and a brick.
func aMasterPC(t *testing.T) *pc {
	t.Helper()
	p := newPC(t)
	if err := become(t.Context(), p.init()); err != nil {
		t.Fatal(err)
	}
	for _, file := range slices.Concat(keyFiles(), staticPods()) {
		if !p.Exists(file) {
			p.put(file, "of the site")
		}
	}
	p.put(etcdData+"/snap/db", "all secrets of the site")
	p.put(DirectoryData+"/data-1/main/data.mdb", "everybody's passwords")
	p.put("/srv/brick/of/a/volume", "homes")
	return p
}

func (p *pc) fence() error {
	return (&Fence{Host: p.Host, Progress: p.tell}).Run(context.WithoutCancel(p.t.Context()))
}

// fenced checks what a machine is after a fence.
func fenced(t *testing.T, p *pc) {
	t.Helper()
	if !Blank(p.Host) || Serves(p.Host) || HasKeys(p.Host) || p.running[host.KubeletUnit] {
		t.Errorf("it is not blank: traces %v, serves %v, keys %v, running %v", traces(p.Host), Serves(p.Host), HasKeys(p.Host), p.running)
	}
	files := p.files()
	for name, want := range map[string]string{
		Quarantine + "/snap/db":                       "all secrets of the site",
		"/srv/brick/of/a/volume":                      "homes",
		DirectoryQuarantine + "/data-1/main/data.mdb": "everybody's passwords",
		host.BalancerFile:                             string(host.BalancerConfig("lab", (&Init{Address: netip.MustParseAddr("10.0.0.11")}).ownMasters())),
	} {
		if files[name] != want {
			t.Errorf("%s is %q, want %q", name, files[name], want)
		}
	}
	if _, left := files["/sys/class/net/cni0/address"]; left {
		t.Error("the Pods' network is left")
	}
	if entries, err := os.ReadDir(p.Path(etcdDir)); err == nil && len(entries) > 0 {
		t.Errorf("in %s is %v left, and kubeadm wants it empty", etcdDir, entries)
	}
	if p.Exists(DirectoryData) {
		t.Errorf("%s is left", DirectoryData)
	}
	if p.Exists(arriving(Quarantine)) {
		t.Errorf("%s is left", arriving(Quarantine))
	}
	m, err := Read(p.Host)
	if err != nil || m == nil || m.Name != "pc-01" || !inHosts(p.Host, "api.lab.internal") || !p.Exists(host.CAFile) {
		t.Errorf("it is no member any more, or does not find its site: %+v %v", m, err)
	}
	// The word of the Node that it was, for root alone, and through the balancer.
	info, err := os.Stat(p.Path(AgentConf))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v %v", AgentConf, info, err)
	}
	if !strings.Contains(files[AgentConf], "server: https://api.lab.internal:7443") {
		t.Errorf("%s leads elsewhere:\n%s", AgentConf, files[AgentConf])
	}
	if dir, err := os.Stat(p.Path(Quarantine + "/..")); err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("others may look into the quarantine: %v %v", dir, err)
	}
}

func TestFence(t *testing.T) {
	p := aMasterPC(t)
	begin := len(p.commands)
	if err := p.fence(); err != nil {
		t.Fatal(err)
	}
	fenced(t, p)
	if did := p.commands[begin:]; !slices.Contains(did, "kubeadm reset --force --cleanup-tmp-dir --skip-phases remove-etcd-member --cri-socket unix:///run/containerd/containerd.sock") {
		t.Errorf("did %q", did)
	}
	// Once more, it does nothing.
	before := p.files()
	f := &Fence{Host: p.Host, Progress: p.tell}
	if todo, err := host.Look(t.Context(), f.Steps()); err != nil || len(todo) > 0 {
		t.Errorf("still to do: %q %v", todo, err)
	}
	for _, s := range f.Steps()[:6] { // network flushes routes each time
		if err := s.Do(t.Context()); err != nil {
			t.Errorf("%s again: %v", s.Name, err)
		}
	}
	same(t, "again", p.files(), before)

	// It may be a master once more, and be fenced once more: the newest data stay.
	p.put(etcdData+"/snap/db", "newer")
	p.put(Quarantine+"/old", "")
	if err := p.fence(); err != nil {
		t.Fatal(err)
	}
	if files := p.files(); files[Quarantine+"/snap/db"] != "newer" || p.Exists(Quarantine+"/old") {
		t.Errorf("quarantined is %v", files)
	}
}

// TestFenceWorker: one that never served has nothing to put aside.
func TestFenceWorker(t *testing.T) {
	p := newPC(t)
	_, line := aMaster(t)
	if err := become(t.Context(), p.join(line)); err != nil {
		t.Fatal(err)
	}
	if err := p.fence(); err != nil {
		t.Fatal(err)
	}
	if !Blank(p.Host) || p.Exists(Quarantine) || !p.Exists(AgentConf) {
		t.Errorf("blank %v, quarantine %v, word %v", Blank(p.Host), p.Exists(Quarantine), p.Exists(AgentConf))
	}
}

// TestFenceBroken breaks a fence at each of its commands, and kills it there; the
// second one completes it. At no point does a machine whose manifests are still
// there lack its data, nor has one without manifests its keys for good.
func TestFenceBroken(t *testing.T) {
	clean := aMasterPC(t)
	begin := len(clean.commands)
	if err := clean.fence(); err != nil {
		t.Fatal(err)
	}
	if len(clean.commands) == begin {
		t.Fatal("a fence runs no command")
	}
	for n := begin; n < len(clean.commands); n++ {
		for _, how := range breaks {
			t.Run(clean.commands[n]+" "+how.name, func(t *testing.T) {
				p := aMasterPC(t)
				p.fault = func(at int, _ string, after bool) error {
					if at == n && after == how.after {
						if how.kill {
							panic(killed{})
						}
						return errInjected
					}
					return nil
				}
				dies(p.fence)
				p.fault = nil
				if len(present(p.Host, staticPods()))+len(present(p.Host, keyFiles())) > 0 {
					t.Error("it would serve, or has keys, and commands were run already")
				}
				if !p.Exists(etcdData+"/snap/db") && !p.Exists(Quarantine+"/snap/db") {
					t.Error("the data is lost")
				}
				if err := p.fence(); err != nil {
					t.Fatal(err)
				}
				fenced(t, p)
			})
		}
	}
}

// TestPutAside: killed between any two of its moves, it ends with one whole copy.
func TestPutAside(t *testing.T) {
	for name, left := range map[string]func(p *pc){
		"nothing":          func(*pc) {},
		"a part of a copy": func(p *pc) { p.put(arriving(Quarantine)+"/snap/db", "half") },
		"an older copy":    func(p *pc) { p.put(Quarantine+"/snap/db", "old") },
		"the copy is whole, not in place": func(p *pc) {
			os.MkdirAll(p.Path(host.StateDir+"/quarantine"), 0o700)
			os.Rename(p.Path(etcdData), p.Path(arriving(Quarantine)))
		},
		"in place, and the source is there": func(p *pc) { p.put(Quarantine+"/snap/db", "all secrets of the site") },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPC(t)
			p.put(etcdData+"/snap/db", "all secrets of the site")
			left(p)
			f := (&Fence{Host: p.Host, Progress: p.tell})
			if err := host.Do(t.Context(), []host.Step{f.quarantine()}, p.tell); err != nil {
				t.Fatal(err)
			}
			if files := p.files(); files[Quarantine+"/snap/db"] != "all secrets of the site" || p.Exists(arriving(Quarantine)) || p.Exists(etcdData) {
				t.Errorf("%v", files)
			}
		})
	}
}

// TestPutAsideElsewhere: where etcd has a disk of its own, as in the lab, the data
// are copied.
func TestPutAsideElsewhere(t *testing.T) {
	p := newPC(t)
	if !strings.HasPrefix(p.Root, "/dev/shm/") {
		t.Skip("there is only one file system to try it on")
	}
	p.put(etcdData+"/snap/db", "all secrets of the site")
	p.put(host.StateDir+"/x", "")
	elsewhere := t.TempDir()
	if err := os.Symlink(elsewhere, p.Path(host.StateDir+"/quarantine")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p.Path(host.StateDir+"/x"), elsewhere+"/x"); !errors.Is(err, syscall.EXDEV) {
		t.Skipf("%s and %s are one file system: %v", p.Root, elsewhere, err)
	}
	if err := putAside(p.Host, etcdData, Quarantine); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(elsewhere + "/etcd/snap/db"); string(text) != "all secrets of the site" || p.Exists(etcdData) {
		t.Errorf("%q %v, the source is there: %v", text, err, p.Exists(etcdData))
	}
}
