package host

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// Inventory is what a machine is made of, as it finds itself.
type Inventory struct {
	CPU          int          // processors that are switched on
	Memory       int64        // bytes, as the kernel has them
	Architecture string       // as Go calls it
	Addresses    []netip.Addr // by which others may reach it, sorted
	MACs         []string     // of its network cards, sorted
	MachineID    string       // one for each installation
	BootID       string       // one for each boot
	Disks        []Disk       // with what lsblk tells: sizes and models
	Kubelet      string       // v1.36.3; "" where it is not installed
	Containerd   string       // 1.7.24~ds1; "" where it is not installed
	Kernel       string       // 6.12.48+deb13-amd64
	Debian       string       // 13.1
}

// TakeInventory asks the kernel, and the programs for their versions. It reads
// nothing from disks, and takes some tens of milliseconds.
func TakeInventory(ctx context.Context, h *Host) (Inventory, error) {
	v := Inventory{Architecture: runtime.GOARCH}
	if err := h.inventory(ctx, &v); err != nil {
		return v, fmt.Errorf("take inventory: %w", err)
	}
	return v, nil
}

func (h *Host) inventory(ctx context.Context, v *Inventory) (err error) {
	text := func(name string) string {
		content, e := h.Read(name)
		if err == nil {
			err = e
		}
		return strings.TrimSpace(string(content))
	}
	v.CPU = count(text("/sys/devices/system/cpu/online"))
	kib, _ := strconv.ParseInt(field([]byte(text("/proc/meminfo")), "MemTotal:"), 10, 64)
	v.Memory = kib << 10
	v.MachineID = text("/etc/machine-id")
	v.BootID = BootID(h)
	v.Kernel = text("/proc/sys/kernel/osrelease")
	v.Debian = text("/etc/debian_version")
	if err != nil {
		return err
	}
	if v.Disks, err = h.disks(ctx); err != nil {
		return err
	}
	// The kubelet takes half a second to say its version, and is the bundle's.
	v.Kubelet = h.installed().Kubernetes
	// "containerd github.com/containerd/containerd 1.7.24~ds1 ..."; or not there.
	if out, err := h.Run(ctx, "containerd", "--version"); err == nil {
		if words := strings.Fields(string(out)); len(words) > 2 {
			v.Containerd = words[2]
		}
	}
	return h.network(ctx, v)
}

// count is how many a list of the kernel has: 0-3,6 are five.
func count(list string) (n int) {
	for part := range strings.SplitSeq(list, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		low, err := strconv.Atoi(first)
		high, err2 := strconv.Atoi(last)
		if err == nil && err2 == nil {
			n += high - low + 1
		}
	}
	return n
}

// link is a network interface, as ip shows it.
type link struct {
	Name    string `json:"ifname"`
	Kind    string `json:"link_type"` // ether, loopback, none
	MAC     string `json:"address"`
	Master  string `json:"master"` // the bridge that it is part of
	Details struct {
		Kind string `json:"info_kind"` // veth, bridge, vxlan, ...; "" is a card
	} `json:"linkinfo"`
	Addresses []struct {
		Local netip.Addr `json:"local"`
		Scope string     `json:"scope"` // global, link, host
	} `json:"addr_info"`
}

// network finds the cards and the addresses of the machine, among those of Pods
// and containers.
func (h *Host) network(ctx context.Context, v *Inventory) error {
	out, err := h.Run(ctx, "ip", "-json", "-details", "address", "show")
	if err != nil {
		return err
	}
	var links []link
	if err := json.Unmarshal(out, &links); err != nil {
		return fmt.Errorf("read what ip says: %w", err)
	}
	for _, l := range links {
		if l.Kind != "ether" || l.ofContainers() {
			continue
		}
		if l.card() {
			v.MACs = append(v.MACs, l.MAC)
		}
		for _, a := range l.Addresses {
			if a.Scope == "global" && l.reaches() {
				v.Addresses = append(v.Addresses, a.Local)
			}
		}
	}
	slices.Sort(v.MACs)
	v.MACs = slices.Compact(v.MACs)
	slices.SortFunc(v.Addresses, netip.Addr.Compare)
	return nil
}

// ofContainers reports whether an interface exists for containers on the
// machine: their bridges, the flannel network, their ends of a cable.
func (l link) ofContainers() bool {
	for _, prefix := range []string{"cni", "flannel", "veth", "docker", "br-", "virbr", "kube-", "lxc", "podman"} {
		if strings.HasPrefix(l.Name, prefix) {
			return true
		}
	}
	return false
}

// reaches reports whether others on the network are behind an interface: a card,
// or what is made of cards.
func (l link) reaches() bool {
	return l.card() || slices.Contains([]string{"bridge", "bond", "team", "vlan", "macvlan", "ipvlan"}, l.Details.Kind)
}

// card reports whether an interface is a network card: real hardware, or what a
// container has in its place.
func (l link) card() bool { return l.Details.Kind == "" || l.Details.Kind == "veth" && l.Master == "" }

// BootID differs from one boot of the machine to the next. Of a container, which
// shares its kernel with others, it is the kernel's with the moment at which its
// first process began. "" is not known.
func BootID(h *Host) string {
	text, err := h.Read("/proc/sys/kernel/random/boot_id")
	id := strings.TrimSpace(string(text))
	if err != nil || h.container() == "" {
		return id
	}
	first, err := h.Process("1")
	if err != nil {
		return id
	}
	return id + "." + strconv.FormatUint(first.Began, 10)
}
