package member

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"sigs.k8s.io/yaml"
)

// Membership is what a machine knows of itself as a member of a site. It is kept
// in host.MachineFile; a machine without one is no member.
type Membership struct {
	Site     string     `json:"site"`     // "school"
	Name     string     `json:"name"`     // of the Machine and of the Node
	Address  netip.Addr `json:"address"`  // by which the site reaches the machine
	Endpoint string     `json:"endpoint"` // of the API: "api.school.internal:7443"
	Role     string     `json:"role"`     // machine.Master or machine.Worker
}

// Read is the machine's membership, nil where it has none.
func Read(h *host.Host) (*Membership, error) {
	m := &Membership{}
	if found, err := load(h, host.MachineFile, m); !found {
		return nil, err
	}
	if m.Site == "" || m.Name == "" || m.Endpoint == "" || !m.Address.IsValid() {
		return nil, fmt.Errorf("read %s: it is not whole; noded reset clears up", host.MachineFile)
	}
	return m, nil
}

// Installed is the bundle that noded install has put on the machine: its programs
// are there, its services run, and containerd has all images, for nothing can be
// fetched later. What is missing is a refusal.
func Installed(ctx context.Context, h *host.Host) (*host.Bundle, error) {
	missing := func(what string, args ...any) error {
		return fault(NotInstalled, "run noded install, and see that it ends well", "Kingmaker is not installed here, or not wholly: "+what, args...)
	}
	b := &host.Bundle{}
	if found, err := load(h, host.BundleFile, b); err != nil {
		return nil, err
	} else if !found {
		return nil, missing("%s is missing", host.BundleFile)
	}
	for _, program := range []string{"kubelet", "kubeadm", "kubectl", "reconcile"} {
		if file := "/usr/local/bin/" + program; !h.Exists(file) {
			return nil, missing("%s is missing", file)
		}
	}
	for _, unit := range []string{host.ContainerdUnit, host.BalancerUnit} {
		active, err := h.Active(ctx, unit)
		if err != nil {
			return nil, broke(err)
		}
		if !active {
			return nil, missing("%s does not run", unit)
		}
	}
	absent, err := MissingImages(ctx, h)
	if err != nil {
		return nil, err
	}
	if len(absent) > 0 {
		return nil, missing("the image %s is missing", absent[0])
	}
	return b, nil
}

// MissingImages are the images of the installed bundle that containerd does not have.
func MissingImages(ctx context.Context, h *host.Host) (missing []string, err error) {
	b := &host.Bundle{}
	if _, err := load(h, host.BundleFile, b); err != nil {
		return nil, err
	}
	list, err := h.Run(ctx, "ctr", "--namespace", "k8s.io", "images", "list", "--quiet")
	if err != nil {
		return nil, broke(err)
	}
	have := strings.Fields(string(list))
	for _, image := range b.Images {
		if !slices.Contains(have, image.Name) {
			missing = append(missing, image.Name)
		}
	}
	return missing, nil
}

// mark is left by an Init or Join that has not come to its end. It is
// written before the first change and removed after the last.
type mark struct {
	Verb string `json:"verb"` // "init" or "join"
	Site string `json:"site"`
	Name string `json:"name"`
}

const markFile = host.StateDir + "/underway.yaml"

// underWay is the mark, nil where none stands.
func underWay(h *host.Host) (*mark, error) {
	b := &mark{}
	if found, err := load(h, markFile, b); !found {
		return nil, err
	}
	return b, nil
}

// load reads a small YAML file; found is false for a missing one.
func load(h *host.Host, file string, into any) (found bool, err error) {
	text, err := h.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = yaml.Unmarshal(text, into)
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", file, err)
	}
	return true, nil
}

// save writes what load reads, for root alone.
func save(h *host.Host, file string, from any) error {
	text, err := yaml.Marshal(from)
	if err != nil {
		return err
	}
	return h.Write(file, text, 0o600)
}

// KubeletConf is the kubeconfig with which a machine speaks as its Node.
const KubeletConf = "/etc/kubernetes/kubelet.conf"

// Word is the kubeconfig with which a machine speaks: its kubelet's, and of one that
// was reset what it kept of that.
func Word(h *host.Host) string {
	if h.Exists(KubeletConf) {
		return KubeletConf
	}
	return AgentConf
}

// Where kubeadm and what it starts keep their things.
const (
	adminConf   = "/etc/kubernetes/admin.conf"
	bootConf    = "/etc/kubernetes/bootstrap-kubelet.conf"
	clusterCA   = "/etc/kubernetes/pki/ca.crt"
	manifests   = "/etc/kubernetes/manifests"
	etcdData    = "/var/lib/etcd/member"
	kubeletWork = "/var/lib/kubelet/config.yaml"
)

// traces are the things of a cluster that are on the machine, whoever made them.
func traces(h *host.Host) (found []string) {
	for _, file := range []string{adminConf, KubeletConf, bootConf, clusterCA, kubeletWork, etcdData,
		manifests + "/kube-apiserver.yaml", manifests + "/etcd.yaml"} {
		if h.Exists(file) {
			found = append(found, file)
		}
	}
	return found
}

// stand is how a machine stands to sites.
type stand struct {
	member *Membership // nil: it is in none
	begun  *mark       // nil: nothing is under way
	traces []string    // of a cluster
}

func standing(h *host.Host) (s stand, err error) {
	if s.member, err = Read(h); err != nil {
		return s, err
	}
	if s.begun, err = underWay(h); err != nil {
		return s, err
	}
	s.traces = traces(h)
	return s, nil
}

// free refuses a machine that belongs to something. What an earlier try of the
// verb left is no hindrance: where it came so far that the machine is a member,
// it is completed.
func (s stand) free(verb string) error {
	switch {
	case s.member != nil && s.begun == nil:
		return fault(AlreadyMember, "noded reset leaves the site", "this machine is %s of site %s, a %s, already", s.member.Name, s.member.Site, s.member.Role)
	case s.member != nil && s.begun.Verb != verb:
		return fault(AlreadyMember, "run that again to complete it, or noded reset to leave",
			"noded %s of site %s, machine %s, is not complete here", s.begun.Verb, s.begun.Site, s.begun.Name)
	case s.member == nil && s.begun == nil && len(s.traces) > 0:
		return fault(ForeignCluster, "noded reset removes that, with all that it holds",
			"this machine is part of a cluster that noded did not make: it has %s", s.traces[0])
	}
	return nil
}

// same refuses to complete as another what was begun as one.
func (s stand) same(site, name string, address netip.Addr) error {
	m := s.member
	if m.Site == site && m.Name == name && m.Address == address {
		return nil
	}
	return fault(AlreadyMember, "run that again to complete it, or noded reset to leave",
		"what was begun here is machine %s of site %s at %s, and this is %s of %s at %s", m.Name, m.Site, m.Address, name, site, address)
}

// UnderWay names an init or join that is not complete: "join of machine pc-02,
// site lab"; "" is none.
func UnderWay(h *host.Host) string {
	m, err := underWay(h)
	if err != nil || m == nil {
		return ""
	}
	return fmt.Sprintf("%s of machine %s, site %s", m.Verb, m.Name, m.Site)
}

// Save keeps what the machine is.
func Save(h *host.Host, m Membership) error { return save(h, host.MachineFile, m) }
