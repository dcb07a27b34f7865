package member

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// What a fenced machine keeps of its past.
const (
	// AgentConf is the kubeconfig with which a machine without a kubelet speaks to
	// its site: as the Node that it was.
	AgentConf = host.StateDir + "/agent.conf"
	// Quarantine has the etcd data of a former master, the newest only: of no use to
	// a site that lives, and perhaps the last copy for one that does not.
	Quarantine = host.StateDir + "/quarantine/etcd"
	// DirectoryQuarantine has the same of its replica of the directory, which only
	// masters hold: perhaps it took a change that no other has.
	DirectoryQuarantine = host.StateDir + "/quarantine/directory"
)

// DirectoryData is the folder of a master's replica of the directory, as
// manifests/directory has it.
const DirectoryData = host.StateDir + "/directory"

// etcdDir is the folder of etcd's data; it may be a mount, and stays.
const etcdDir = "/var/lib/etcd"

// staticPods are the manifests by which a kubelet runs a control plane.
func staticPods() (files []string) {
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		files = append(files, manifests+"/"+name+".yaml")
	}
	return files
}

// keys are what makes a machine root of its site: the CAs' private keys, what
// signs the accounts of Pods, and the kubeconfigs of administrators.
func keyFiles() (files []string) {
	for _, name := range []string{"pki/ca.key", "pki/etcd/ca.key", "pki/front-proxy-ca.key", "pki/sa.key",
		"admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf"} {
		files = append(files, "/etc/kubernetes/"+name)
	}
	return files
}

// present are those of the files that are there.
func present(h *host.Host, files []string) (found []string) {
	for _, file := range files {
		if h.Exists(file) {
			found = append(found, file)
		}
	}
	return found
}

// Serves reports whether the machine runs a control plane, or would at its next
// boot.
func Serves(h *host.Host) bool { return len(present(h, staticPods())) > 0 || h.Exists(etcdData) }

// HasKeys reports whether whoever has the machine's disk has the site.
func HasKeys(h *host.Host) bool { return len(present(h, keyFiles())) > 0 }

// Blank reports whether nothing of a cluster is on the machine: it waits to be told
// what it is.
func Blank(h *host.Host) bool { return len(traces(h)) == 0 && !HasKeys(h) && !Serves(h) }

// Fence makes a blank machine of a member: it serves and runs nothing any more, has
// no key of the site's, and waits to join again in the role that the site gives it.
// It stays a member, with the way to the API and the word of the Node that it was.
//
// A former master's etcd data is put aside, not deleted; a brick is not touched.
// Interrupted at any point, it is completed by the next one: what makes the machine
// serve goes first, and what tells that it served goes last. It asks nobody, for it
// is needed just when nobody answers; whether it is called for is its caller's to
// know.
type Fence struct {
	Host     *host.Host
	Progress func(line string) // required
}

// Steps are what Run does, in order.
func (f *Fence) Steps() []host.Step {
	h := f.Host
	return []host.Step{
		f.remember(), // while there is a kubelet's word to take over
		f.remove("control plane", "no longer serve", staticPods()), // whatever starts now, starts no control plane
		f.remove("keys", "wipe", keyFiles()),                       //
		f.reset(),                                                  // ends the kubelet and all containers, etcd's among them
		f.quarantine(),                                             // nobody writes there any more
		directoryAside(h),                                          //
		network(h),                                                 //
	}
}

// Run carries the steps out.
func (f *Fence) Run(ctx context.Context) error { return host.Do(ctx, f.Steps(), f.Progress) }

// Disarm is the part of Fence that needs no systemd: the next kubelet starts no
// control plane, and the keys are gone. The whole follows.
func (f *Fence) Disarm(ctx context.Context) error {
	return host.Do(ctx, f.Steps()[:3], f.Progress)
}

// remember keeps the kubelet's word, with the certificate itself and not the name
// of its file, and leads it through the balancer.
func (f *Fence) remember() host.Step {
	h := f.Host
	make := func() ([]byte, error) {
		m, err := Read(h)
		if err != nil || m == nil || !h.Exists(KubeletConf) {
			return nil, err
		}
		config, err := clientcmd.LoadFromFile(h.Path(KubeletConf))
		if err == nil {
			err = clientcmdapi.FlattenConfig(config)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", KubeletConf, err)
		}
		for _, cluster := range config.Clusters {
			cluster.Server = "https://" + m.Endpoint
		}
		return clientcmd.Write(*config)
	}
	return host.Step{
		Name: "word",
		Look: func(context.Context) ([]string, error) {
			text, err := make()
			if err != nil || text == nil || h.Same(AgentConf, text, 0o600) {
				return nil, nil // one that cannot be read must not keep a machine from being fenced
			}
			return []string{"keep the certificate of its Node, to speak to the site with"}, nil
		},
		Do: func(context.Context) error {
			text, err := make()
			if err != nil || text == nil {
				return err
			}
			return h.Write(AgentConf, text, 0o600)
		},
	}
}

func (f *Fence) remove(name, deed string, files []string) host.Step {
	h := f.Host
	return host.Step{
		Name: name,
		Look: func(context.Context) ([]string, error) {
			if found := present(h, files); len(found) > 0 {
				return []string{deed + ": " + strings.Join(found, ", ")}, nil
			}
			return nil, nil
		},
		Do: func(context.Context) error {
			for _, file := range files {
				if err := h.Remove(file); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// reset is kubeadm reset without a word to etcd: who is a member there is not this
// machine's to say, and kubeadm would wipe the data even where it is not heard.
func (f *Fence) reset() host.Step {
	h := f.Host
	left := func() (found []string) {
		for _, file := range traces(h) {
			if file != etcdData {
				found = append(found, file)
			}
		}
		return found
	}
	return host.Step{
		Name: "cluster",
		Look: func(context.Context) ([]string, error) {
			if len(left()) == 0 {
				return nil, nil
			}
			return []string{"end the kubelet and all containers, and remove what they kept here (kubeadm reset)"}, nil
		},
		Do: func(ctx context.Context) error {
			_, err := h.Do(ctx, host.Command{Name: "kubeadm", Args: []string{"reset", "--force", "--cleanup-tmp-dir", "--skip-phases", "remove-etcd-member", "--cri-socket", criSocket}, Env: noProxy()})
			if err != nil {
				return broke(err)
			}
			for _, file := range append(left(), "/var/log/pods", "/var/log/containers") {
				if err := h.Remove(file); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// quarantine puts etcd's data aside: whole, or it stays where it is.
func (f *Fence) quarantine() host.Step {
	h := f.Host
	return host.Step{
		Name: "quarantine",
		Look: func(context.Context) ([]string, error) {
			if h.Exists(etcdData) || h.Exists(arriving(Quarantine)) {
				return []string{"put etcd's data aside, into " + Quarantine}, nil
			}
			return nil, nil
		},
		Do: func(context.Context) error {
			if err := putAside(h, etcdData, Quarantine); err != nil {
				return fmt.Errorf("put etcd's data aside: %w", err)
			}
			// What else etcd or kubeadm left there: kubeadm joins over an empty folder only.
			entries, err := os.ReadDir(h.Path(etcdDir))
			for _, entry := range entries {
				err = errors.Join(err, h.Remove(filepath.Join(etcdDir, entry.Name())))
			}
			return err
		},
	}
}

// directoryAside puts the directory's data aside.
func directoryAside(h *host.Host) host.Step {
	return host.Step{
		Name: "directory",
		Look: func(context.Context) ([]string, error) {
			if h.Exists(DirectoryData) || h.Exists(arriving(DirectoryQuarantine)) {
				return []string{"put the directory's data aside, into " + DirectoryQuarantine}, nil
			}
			return nil, nil
		},
		Do: func(context.Context) error {
			if err := putAside(h, DirectoryData, DirectoryQuarantine); err != nil {
				return fmt.Errorf("put the directory's data aside: %w", err)
			}
			return nil
		},
	}
}

// arriving is a copy that is not in its place yet: whole where what it is a copy of is
// gone, for that goes last.
func arriving(place string) string { return place + ".new" }

// putAside moves a folder, where there is one, in the place of an older copy of its
// kind, which goes only when the new one is whole.
func putAside(h *host.Host, folder, place string) error {
	if !h.Exists(folder) && !h.Exists(arriving(place)) {
		return nil
	}
	from, through, to := h.Path(folder), h.Path(arriving(place)), h.Path(place)
	if h.Exists(folder) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.RemoveAll(through)); err != nil {
			return err
		}
		err := os.Rename(from, through)
		if errors.Is(err, syscall.EXDEV) {
			err = copyWhole(through, from)
		}
		if err != nil {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(to), os.Rename(through, to)); err != nil {
		return err
	}
	return os.RemoveAll(from)
}

// copyWhole copies a folder onto another disk, and returns when it is there.
func copyWhole(to, from string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	dir, err := os.Open(to)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close())
}
