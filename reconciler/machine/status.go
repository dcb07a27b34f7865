package machine

import (
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// The roles of a machine.
const (
	Master = "master"
	Worker = "worker"
)

// Assigned is the spec of a Machine in the cluster: what the site repo declares,
// and the role that the daemon gave it. Only the daemon writes it.
type Assigned struct {
	Machine `json:",inline"`

	// Role is master or worker.
	Role string `json:"role,omitempty" jsonschema:"enum=master,enum=worker"`
	// RoleGeneration grows by one with each change of role, and never shrinks. The first is 1.
	RoleGeneration int64 `json:"roleGeneration,omitempty" jsonschema:"minimum=1"`
	// Orders to the machine's agent.
	Orders Orders `json:"orders,omitzero"`
}

// Orders are what the daemon tells the agent of one machine to do, beside the
// role that it assigns. Each is a word: a new word is a new order, which the agent
// carries out once and then repeats in its status (Done). An old word stays until
// the next one, and means nothing any more.
type Orders struct {
	// Reset has a worker made blank and rebooted. The word is the name of a crown.
	Reset string `json:"reset,omitempty"`
	// Prepull has the images of a control plane looked for, and brought where they are missing.
	Prepull string `json:"prepull,omitempty"`
	// RestartKubelet has the kubelet restarted.
	RestartKubelet string `json:"restartKubelet,omitempty"`
	// Snapshot has a master write a snapshot of etcd onto its own disk.
	Snapshot string `json:"snapshot,omitempty"`
	// UploadCerts has a master encrypt the keys of the site for a machine that is to become one. The word is the name of that machine, a slash, and what makes it differ from the last.
	UploadCerts string `json:"uploadCerts,omitempty"`
}

// The phases of a machine.
const (
	Joining  = "Joining"  // it is a Node, and something that it needs is not there yet
	Ready    = "Ready"    // it works
	NotReady = "NotReady" // something that it needs went away
	Leaving  = "Leaving"  // it is being reset
)

// The conditions that an agent reports.
const (
	ConditionReady        = "Ready"        // the kubelet is up and its Node is Ready
	ConditionClockInStep  = "ClockInStep"  // the clock differs from the masters' by less than MaxSkew
	ConditionDiskFit      = "DiskFit"      // etcd could work on the disk: fsync p99 is under the limit
	ConditionAPIReachable = "APIReachable" // the balancer finds at least one healthy master
	ConditionKiosk        = "Kiosk"        // the machine's own screen shows the portal; only where the site wants that
)

// Status is what the agent of a machine reports. Only that agent writes it.
type Status struct {
	// Phase is one of Joining, Ready, NotReady and Leaving.
	Phase string `json:"phase,omitempty" jsonschema:"enum=Joining,enum=Ready,enum=NotReady,enum=Leaving"`
	// Heartbeat is when the agent last reported: every ten seconds.
	Heartbeat time.Time `json:"heartbeat,omitzero"`
	// ObservedGeneration is the generation of the spec that the agent has seen.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// RoleGeneration is the generation of the role that the machine has reached.
	RoleGeneration int64 `json:"roleGeneration,omitempty"`
	// FailedGeneration is the generation of the role for which a join failed: each is tried once.
	FailedGeneration int64 `json:"failedGeneration,omitempty"`
	// Failure is why.
	Failure string `json:"failure,omitempty"`
	// Blank is true of a machine that was reset and waits to join: no kubelet, no control plane, no etcd data, no keys.
	Blank bool `json:"blank,omitempty"`
	// Keys is true where the private keys of the site are on the disk.
	Keys bool `json:"keys,omitempty"`
	// Images is true where the images of a control plane are there.
	Images bool `json:"images,omitempty"`
	// ClockAhead is by how much the clock is ahead of a master's, such as -1.5s; to about a second.
	ClockAhead string `json:"clockAhead,omitempty"`
	// UnorderedBoots is how often the machine started without being told to, within 30 days.
	UnorderedBoots int `json:"unorderedBoots,omitempty"`
	// Done are the orders that were carried out last.
	Done Orders `json:"done,omitzero"`
	// Inventory is what the machine is made of.
	Inventory Inventory `json:"inventory,omitzero"`
	// Conditions are Ready, ClockInStep, DiskFit and APIReachable.
	Conditions []plan.Condition `json:"conditions,omitempty" jsonschema_extras:"x-kubernetes-list-type=map,x-kubernetes-list-map-keys=type"`
}

// Inventory is what a machine is made of, as it found itself.
type Inventory struct {
	// CPU is the number of processors.
	CPU int `json:"cpu,omitempty"`
	// Memory is its size, such as 7898Mi.
	Memory plan.Quantity `json:"memory,omitempty"`
	// Architecture as Go calls it: amd64, arm64.
	Architecture string `json:"architecture,omitempty"`
	// Address is the one by which the site reaches the machine.
	Address string `json:"address,omitempty"`
	// Addresses are all of them.
	Addresses []string `json:"addresses,omitempty"`
	// MACs are the hardware addresses of its network cards.
	MACs []string `json:"macs,omitempty"`
	// MachineID is that of /etc/machine-id: one for each installation.
	MachineID string `json:"machineID,omitempty"`
	// BootID changes with each boot.
	BootID string `json:"bootID,omitempty"`
	// Disks are the block devices that hold or could hold data.
	Disks []DiskFound `json:"disks,omitempty"`
	// FsyncP99 is how long a write to the disk below etcd takes at most, in 99 of 100 cases.
	FsyncP99 string `json:"fsyncP99,omitempty"`
	// Versions of what runs on it.
	Versions Versions `json:"versions,omitzero"`
}

// DiskFound is one block device.
type DiskFound struct {
	// Name such as sda.
	Name string `json:"name"`
	// Size such as 931Gi.
	Size plan.Quantity `json:"size,omitempty"`
	// Model as the device gives it.
	Model string `json:"model,omitempty"`
	// Rotational is true for disks that turn.
	Rotational bool `json:"rotational,omitempty"`
}

// Versions of what runs on a machine.
type Versions struct {
	Noded      string `json:"noded,omitempty"`
	Kubelet    string `json:"kubelet,omitempty"`
	Containerd string `json:"containerd,omitempty"`
	Kernel     string `json:"kernel,omitempty"`
	Debian     string `json:"debian,omitempty"`
}
