package machine

import (
	"cmp"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Machine is the spec of kind Machine: one PC of the room, as the site repo
// declares it. Its metadata.name is the name that the PC goes by everywhere.
// Absent is not empty: labels and taints that are left out are left alone,
// {} and [] take them away.
type Machine struct {
	// Address is the fixed IP address of the PC. A machine that is known by its mac alone gets it from DHCP, which must always give the same one.
	Address string `json:"address,omitempty"`
	// MAC is the hardware address of the network card, such as 52:54:00:12:34:56.
	MAC string `json:"mac,omitempty" jsonschema:"pattern=^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$"`
	// Master says whether the machine may become one: allowed (default), preferred (chosen before others) or never.
	Master string `json:"master,omitempty" jsonschema:"enum=allowed,enum=preferred,enum=never,default=allowed"`
	// Circuit names what fails with this machine: its power circuit or switch. Masters and bricks are spread over circuits. Absent: a circuit of its own.
	Circuit string `json:"circuit,omitempty" jsonschema:"maxLength=63"`
	// Disk says what the machine may use of its disk.
	Disk Disk `json:"disk,omitzero"`
	// Labels of the machine's Node, for selectors of volumes and Pods.
	Labels map[string]string `json:"labels,omitempty"`
	// Taints of the machine's Node keep Pods away that do not tolerate them.
	Taints []Taint `json:"taints,omitempty"`
	// Kiosk is true where the machine's own screen shows the portal's login. Default false.
	Kiosk bool `json:"kiosk,omitempty"`
	// Paused is true while nothing about the machine is to be changed, a dead master's replacement included. Default false.
	Paused bool `json:"paused,omitempty"`
}

// The values of Machine.Master.
const (
	Allowed   = "allowed"
	Preferred = "preferred"
	Never     = "never"
)

// Eligible reports whether the machine may become a master.
func (m *Machine) Eligible() bool { return m.Role() != Never }

// Role is Master with its default.
func (m *Machine) Role() string { return cmp.Or(m.Master, Allowed) }

// Disk is split in two: a small partition for the system, and a big one, the brick.
type Disk struct {
	// Device such as /dev/disk/by-id/ata-WDC_WD10EZEX. Default: the machine's only disk.
	Device string `json:"device,omitempty" jsonschema:"pattern=^/dev/.+"`
	// System is the size of the system partition: at least 16Gi. Default 40Gi.
	System plan.Quantity `json:"system,omitempty"`
	// Brick is false where volumes must not use the machine: then the system gets the whole disk. Default true.
	Brick *bool `json:"brick,omitempty" jsonschema:"default=true"`
}

// Taint is a taint of the machine's Node.
type Taint struct {
	// Key such as room or example.org/gpu.
	Key string `json:"key" jsonschema:"required,minLength=1"`
	// Value may be absent.
	Value string `json:"value,omitempty"`
	// Effect on Pods without a toleration.
	Effect string `json:"effect" jsonschema:"required,enum=NoSchedule,enum=PreferNoSchedule,enum=NoExecute"`
}
