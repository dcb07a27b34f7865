package machine

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of the rules of this room.
const (
	TooFewMachines plan.Code = "TooFewMachines" // fewer machines may be masters than the site wants masters
	OneCircuit     plan.Code = "OneCircuit"     // one circuit takes too many masters with it
	ReservedLabel  plan.Code = "ReservedLabel"  // a label or taint that Kubernetes or Kingmaker writes
	UnstableDevice plan.Code = "UnstableDevice" // a device name that can mean another disk after a reboot
	NoFixedAddress plan.Code = "NoFixedAddress" // a machine that may be a master has no address of its own
)

// MinSystem is the smallest system partition that holds a master with its images.
const MinSystem = "16Gi"

// Validate checks every Machine of a site, and whether the site has as many
// machines that may be masters as it wants masters.
func Validate(site *plan.Site) (faults, warnings []*plan.Fault) {
	r := &plan.Report{}
	machines := plan.Documents[Machine](site, plan.Machines, "Machine", r)
	addresses, macs := make(plan.Taken[netip.Addr]), make(plan.Taken[string])
	for _, m := range machines {
		plan.CheckName(m.ID, r)
		checkAddress(site, m, addresses, r)
		checkMAC(m, macs, r)
		checkDisk(m, r)
		checkCircuit(m, r)
		checkLabels(m, r)
		checkTaints(m, r)
	}
	checkMasters(site, machines, r)
	return r.Faults, r.Warnings
}

func checkAddress(site *plan.Site, m plan.Document[Machine], taken plan.Taken[netip.Addr], r *plan.Report) {
	f := plan.Fault{Code: plan.InvalidValue, ID: m.ID, Field: "spec.address"}
	if m.Spec.Address == "" {
		if m.Spec.MAC == "" {
			f.Code, f.Cause, f.Hint = plan.MissingField, "neither address nor mac says which PC this is", "add its address, or its mac where DHCP gives the address"
			r.Fault(f)
		} else if m.Spec.Role() == Preferred {
			f.Code, f.Cause = NoFixedAddress, "a preferred master has no address here: etcd finds its members by address"
			f.Hint = "give it an address, or see that DHCP always gives it the same one"
			r.Warn(f)
		}
		return
	}
	address, err := netip.ParseAddr(m.Spec.Address)
	pods, services := site.Spec.Network.Ranges()
	switch address = address.Unmap(); {
	case err != nil:
		f.Cause, f.Hint = fmt.Sprintf("%q is not an IP address", m.Spec.Address), "such as 10.20.1.17; names are not looked up"
	case address.IsUnspecified() || address.IsLoopback() || address.IsMulticast() || address.Zone() != "":
		f.Cause, f.Hint = fmt.Sprintf("%s is not the address of one PC in a network", address), ""
	case pods.Contains(address):
		f.Code, f.Cause = plan.Overlap, fmt.Sprintf("%s lies in the Pods' range %s", address, pods)
		f.Hint = "set spec.network.pods of the Site to a range that the room does not use"
	case services.Contains(address):
		f.Code, f.Cause = plan.Overlap, fmt.Sprintf("%s lies in the Services' range %s", address, services)
		f.Hint = "set spec.network.services of the Site to a range that the room does not use"
	default:
		if owner := taken.Claim(address, m.ID.Name); owner != "" {
			f.Code, f.Cause = plan.Duplicate, fmt.Sprintf("%s is the address of Machine %s too", address, owner)
			r.Fault(f)
		}
		return
	}
	r.Fault(f)
}

func checkMAC(m plan.Document[Machine], taken plan.Taken[string], r *plan.Report) {
	if m.Spec.MAC == "" {
		return
	}
	mac, err := net.ParseMAC(m.Spec.MAC)
	if err != nil || len(mac) != 6 {
		r.Fault(plan.Fault{Code: plan.InvalidValue, ID: m.ID, Field: "spec.mac",
			Cause: fmt.Sprintf("%q is not a hardware address", m.Spec.MAC), Hint: "such as 52:54:00:12:34:56"})
	} else if owner := taken.Claim(mac.String(), m.ID.Name); owner != "" {
		r.Fault(plan.Fault{Code: plan.Duplicate, ID: m.ID, Field: "spec.mac",
			Cause: fmt.Sprintf("%s is the hardware address of Machine %s too", mac, owner)})
	}
}

func checkDisk(m plan.Document[Machine], r *plan.Report) {
	disk := m.Spec.Disk
	if strings.HasPrefix(disk.Device, "/dev/sd") || strings.HasPrefix(disk.Device, "/dev/nvme") {
		r.Warn(plan.Fault{Code: UnstableDevice, ID: m.ID, Field: "spec.disk.device",
			Cause: fmt.Sprintf("%s can be another disk after a reboot", disk.Device), Hint: "take the name below /dev/disk/by-id"})
	}
	if disk.System == "" {
		return
	}
	f := plan.Fault{Code: plan.InvalidValue, ID: m.ID, Field: "spec.disk.system", Hint: "such as 40Gi"}
	size, err := resource.ParseQuantity(string(disk.System))
	switch {
	case err != nil:
		f.Cause = fmt.Sprintf("%q is not a size", disk.System)
	case size.Cmp(resource.MustParse(MinSystem)) < 0:
		f.Cause = fmt.Sprintf("%s is too small: system and images need %s", disk.System, MinSystem)
	default:
		return
	}
	r.Fault(f)
}

// checkCircuit sees to it that the circuit can be a label of the Node.
func checkCircuit(m plan.Document[Machine], r *plan.Report) {
	if validation.IsValidLabelValue(m.Spec.Circuit) != nil {
		r.Fault(plan.Fault{Code: plan.InvalidValue, ID: m.ID, Field: "spec.circuit", Cause: fmt.Sprintf("%q cannot be the value of a label", m.Spec.Circuit), Hint: labelHint})
	}
}

func checkLabels(m plan.Document[Machine], r *plan.Report) {
	for _, key := range slices.Sorted(maps.Keys(m.Spec.Labels)) {
		field := plan.Field("spec", "labels", key)
		checkPair(m.ID, field, field, key, m.Spec.Labels[key], r)
		checkReserved(m.ID, field, key, r)
	}
}

func checkTaints(m plan.Document[Machine], r *plan.Report) {
	type identity struct{ key, effect string } // as Kubernetes tells taints apart
	taken := make(plan.Taken[identity])
	for i, taint := range m.Spec.Taints {
		field := plan.Field("spec", "taints", i)
		checkPair(m.ID, field+".key", field+".value", taint.Key, taint.Value, r)
		if !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, taint.Effect) {
			r.Fault(plan.Fault{Code: plan.InvalidValue, ID: m.ID, Field: field + ".effect",
				Cause: fmt.Sprintf("%q is no effect", taint.Effect), Hint: "want NoSchedule, PreferNoSchedule or NoExecute"})
		}
		if taken.Claim(identity{taint.Key, taint.Effect}, field) != "" {
			r.Fault(plan.Fault{Code: plan.Duplicate, ID: m.ID, Field: field,
				Cause: fmt.Sprintf("there are two taints %s with effect %s", taint.Key, taint.Effect)})
		}
		checkReserved(m.ID, field+".key", taint.Key, r)
	}
}

const labelHint = "want at most 63 letters, digits, dashes, underscores and dots, with a letter or digit at both ends"

// checkPair asks Kubernetes about the key and the value of a label or taint. Its
// answers are right, and too long to read.
func checkPair(id plan.ID, keyField, valueField, key, value string, r *plan.Report) {
	f := plan.Fault{Code: plan.InvalidName, ID: id, Hint: labelHint}
	if validation.IsQualifiedName(key) != nil {
		f.Field, f.Cause = keyField, fmt.Sprintf("%q cannot be the name of a label or taint", key)
		r.Fault(f)
	}
	if validation.IsValidLabelValue(value) != nil {
		f.Code, f.Field, f.Cause = plan.InvalidValue, valueField, fmt.Sprintf("%q cannot be the value of a label or taint", value)
		r.Fault(f)
	}
}

// checkReserved refuses labels and taints that somebody else writes, and would
// write again after each of our changes. The kubelet may not set labels of
// kubernetes.io itself, but for those that its NodeRestriction leaves open.
func checkReserved(id plan.ID, field, key string, r *plan.Report) {
	domain, _, ok := strings.Cut(key, "/")
	if !ok || domain == "node-restriction.kubernetes.io" || domain == "topology.kubernetes.io" {
		return
	}
	for _, reserved := range []string{"kubernetes.io", "k8s.io", plan.Group} {
		if domain == reserved || strings.HasSuffix(domain, "."+reserved) {
			r.Fault(plan.Fault{Code: ReservedLabel, ID: id, Field: field,
				Cause: fmt.Sprintf("%s belongs to Kubernetes and Kingmaker, which write it themselves", key),
				Hint:  "take a name without a domain, or with a domain of your own"})
			return
		}
	}
}

// checkMasters compares the masters that the site wants with the machines that
// may be one.
func checkMasters(site *plan.Site, machines []plan.Document[Machine], r *plan.Report) {
	wanted, circuits := site.Spec.MasterCount(), map[string]int{}
	// A document that could not be read is another fault's already, and must not
	// count against the site too: it may well be a master, on its own circuit.
	eligible := len(site.Objects.Of(plan.Machines))
	circuits[""] = eligible - len(machines)
	for _, m := range machines {
		if m.Spec.Eligible() {
			circuits[m.Spec.Circuit]++
		} else {
			eligible--
		}
	}
	f := plan.Fault{Code: TooFewMachines, ID: site.SiteID(), Field: "spec.masters"}
	if wanted > eligible {
		f.Cause = fmt.Sprintf("%d masters are wanted, and %s may be one", wanted, machinesText(eligible))
		f.Hint = "declare more machines, set master: allowed on some, or want fewer masters"
		if site.Spec.Admission == "open" {
			f.Hint = "machines that join later may fill up; until then the site has fewer masters"
			r.Warn(f)
		} else {
			r.Fault(f)
		}
		return
	}
	if wanted < 3 {
		return
	}
	// The best spread that the circuits allow: does losing one leave a majority?
	safe := 0
	for circuit, n := range circuits {
		if circuit == "" {
			safe += n // each a circuit of its own
		} else {
			safe += min(n, (wanted-1)/2)
		}
	}
	if safe < wanted {
		f.Code = OneCircuit
		f.Cause = fmt.Sprintf("%d masters cannot be spread so that they survive the loss of any one circuit", wanted)
		f.Hint = "let machines of more circuits be masters"
		r.Warn(f)
	}
}

func machinesText(n int) string {
	switch n {
	case 0:
		return "no declared machine"
	case 1:
		return "1 declared machine"
	}
	return fmt.Sprintf("%d declared machines", n)
}
