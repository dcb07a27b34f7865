package gluster

import (
	"path"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Where things are on a machine.
const (
	BrickDir = "/srv/brick"                 // where the brick's file system is mounted
	AsideDir = BrickDir + "/.aside"         // in it: folders of former copies, which are somebody's still
	MountDir = "/var/lib/kingmaker/volumes" // in it: a mount point for each volume
	Sentinel = ".kingmaker-volume"          // in a volume's root: the volume's UUID and a line feed
	dataDir  = "data"                       // in a volume's root: what Pods get to see
	skelDir  = ".skel"                      // in the data of homes: what a new home begins with; without it the machine's /etc/skel
)

// BrickPath is a volume's folder on a machine's brick.
func BrickPath(volume string) string { return path.Join(BrickDir, volume) }

// MountPath is where machines mount a volume.
func MountPath(volume string) string { return path.Join(MountDir, volume) }

// DataPath is the folder in a mounted volume that Pods get to see. It is not the
// mount point: where the mount is away there is no such folder, and the kubelet
// refuses to start a Pod on it.
func DataPath(volume string) string { return path.Join(MountDir, volume, dataDir) }

// ReadyLabel is the label of a Node on which a volume is mounted and has proved
// itself; its value is Ready.
func ReadyLabel(volume string) string { return plan.Group + "/volume-" + volume }

// The label's value, and the label of a PersistentVolume that names its volume.
const (
	ReadyValue  = "ready"
	VolumeLabel = plan.Group + "/volume"
)

// DesktopsNamespace is where desktops run.
const DesktopsNamespace = "kingmaker-desktops"

// DirectoryBackup is the one volume that may be the system's own, in the namespace of
// the directory: a site that declares it has the directory's nightly backups there.
const (
	DirectoryBackup    = "directory-backup"
	DirectoryNamespace = "kingmaker-directory"
)

// SharedGID is Debian's group users, to which a shared volume belongs that names
// no group of its own.
const SharedGID = 100

// PoolName is the name of the one Pool of a site.
const PoolName = "site"

// Resource is where the cluster serves the Volumes.
func Resource() schema.GroupVersionResource { return resource("volumes") }

// PoolResource is where the cluster serves the Pool.
func PoolResource() schema.GroupVersionResource { return resource("pools") }

// MachineResource is where the cluster serves the Machines, of which status.brick
// is this room's.
func MachineResource() schema.GroupVersionResource { return resource("machines") }

func resource(plural string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: plan.Group, Version: "v1alpha1", Resource: plural}
}

// Placed is the spec of a Volume in the cluster: what the site repo declares, with
// every choice made. Only the daemon writes it; the steward of the pool carries it
// out.
type Placed struct {
	// Bricks of the volume, a copy each.
	Bricks []PlacedBrick `json:"bricks,omitempty" jsonschema_extras:"x-kubernetes-list-type=map,x-kubernetes-list-map-keys=machine"`
	// Options of the site repo.
	Options map[string]string `json:"options,omitempty"`
	// Access is homes, shared or private.
	Access string `json:"access,omitempty" jsonschema:"enum=homes,enum=shared,enum=private"`
	// GID is the group to which a shared volume belongs.
	GID int64 `json:"gid,omitempty"`
	// Arbiter is true where the last of three copies holds names only.
	Arbiter bool `json:"arbiter,omitempty"`
	// Homes are the folders that a volume of homes has.
	Homes []Home `json:"homes,omitempty" jsonschema_extras:"x-kubernetes-list-type=map,x-kubernetes-list-map-keys=name"`
	// Delete is true when the volume is to be stopped and deleted, with consent. What its bricks hold stays on them.
	Delete bool `json:"delete,omitempty"`
}

// PlacedBrick is where a copy is to be.
type PlacedBrick struct {
	// Machine that has it.
	Machine string `json:"machine" jsonschema:"required"`
	// Address by which the pool knows the machine.
	Address string `json:"address" jsonschema:"required"`
}

// Home is one user's folder.
type Home struct {
	// Name of the user, and of the folder.
	Name string `json:"name" jsonschema:"required"`
	// UID of the user.
	UID int64 `json:"uid" jsonschema:"required"`
	// GID of the user's primary group.
	GID int64 `json:"gid" jsonschema:"required"`
}

// The phases of a volume.
const (
	Pending  = "Pending"    // it does not exist yet
	Started  = "Started"    // all copies are there and equal
	Catching = "Healing"    // all copies are there, and some catch up
	Degraded = "Degraded"   // a copy is away; what is written is on most of them
	Split    = "SplitBrain" // copies contradict each other
	Stopped  = "Stopped"    // it exists, and cannot be used
	Removing = "Deleting"   // with consent
	Removed  = "Deleted"    // the pool has it no more
)

// VolumeStatus is what the steward sees of a volume. Only the steward writes it.
type VolumeStatus struct {
	// ObservedGeneration is the generation of the spec that the steward acts on.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Phase is one of Pending, Started, Healing, Degraded, SplitBrain, Stopped, Deleting and Deleted.
	Phase string `json:"phase,omitempty"`
	// ID is the UUID that GlusterFS gave the volume; absent while it was never made.
	ID string `json:"id,omitempty"`
	// Copies that run and those there are, such as 3/3.
	Copies string `json:"copies,omitempty"`
	// Bricks as they are.
	Bricks []BrickStatus `json:"bricks,omitempty"`
	// Pending is how many entries the copies have to catch up with, as far as they say so; about: each copy counts those of others.
	Pending int `json:"pending"`
	// SplitBrain is how many entries the copies contradict each other in.
	SplitBrain int `json:"splitBrain,omitempty"`
	// SplitFiles names them: the first hundred.
	SplitFiles []string `json:"splitFiles,omitempty"`
	// Eras are the sets of bricks that the volume has had since its copies were last all equal, the present one not among them. An acknowledged write is on most bricks of one of them.
	Eras [][]string `json:"eras,omitempty"`
	// Aside are the machines that are to put a folder of this volume aside: a former copy.
	Aside []string `json:"aside,omitempty"`
	// Prepared is true when the volume has its sentinel and folders, so that it can be mounted.
	Prepared bool `json:"prepared,omitempty"`
	// Homes is how many homes there are of those declared.
	Homes int `json:"homes,omitempty"`
	// Step is what the steward did last for the volume, or does.
	Step string `json:"step,omitempty"`
	// Message is why the volume is not as declared; absent where it is.
	Message string `json:"message,omitempty"`
	// Conditions: Ready.
	Conditions []plan.Condition `json:"conditions,omitempty" jsonschema_extras:"x-kubernetes-list-type=map,x-kubernetes-list-map-keys=type"`
}

// BrickStatus is one copy of a volume.
type BrickStatus struct {
	// Machine that has it; absent where the pool knows it by an address that is no declared machine's.
	Machine string `json:"machine,omitempty"`
	// Brick as GlusterFS has it: address:path.
	Brick string `json:"brick"`
	// Online is true where its process runs.
	Online bool `json:"online"`
	// Since is since when it does not run; absent where it does.
	Since time.Time `json:"since,omitzero"`
	// Pending is how many entries it has for others to catch up with; -1 is not known.
	Pending int `json:"pending"`
}

// PoolStatus is the status of the Pool, of which a site has one: the trusted pool of
// GlusterFS. It has no spec: the Machines say who belongs to it. It holds the
// steward's lease too, for a node may write no Lease but its own.
type PoolStatus struct {
	// Steward is the lease of the machine that works on the pool.
	Steward Lease `json:"steward,omitzero"`
	// Peers are those who belong to the pool.
	Peers []PeerStatus `json:"peers,omitempty"`
	// Message is what holds the pool back; absent where nothing does.
	Message string `json:"message,omitempty"`
}

// PeerStatus is one machine's glusterd.
type PeerStatus struct {
	// Machine's name; absent for one that the site repo does not declare.
	Machine string `json:"machine,omitempty"`
	// Address by which the pool knows it.
	Address string `json:"address,omitempty"`
	// UUID of its glusterd. A machine that was installed anew takes it again.
	UUID string `json:"uuid"`
	// Connected is true where it answers.
	Connected bool `json:"connected"`
}

// Lease is a LeaderElectionRecord of client-go.
type Lease struct {
	// Holder is the steward's machine; empty is nobody.
	Holder string `json:"holder,omitempty"`
	// Seconds that it holds without renewal.
	Seconds int `json:"seconds,omitempty"`
	// Acquired is since when.
	Acquired time.Time `json:"acquired,omitzero"`
	// Renewed is when it was last said so.
	Renewed time.Time `json:"renewed,omitzero"`
	// Transitions is how often it changed hands.
	Transitions int `json:"transitions,omitempty"`
}

// MachineBrick is status.brick of a Machine: what its hand (package hand) reports of
// the brick, and of the volumes that it mounts. Absent is a machine whose hand
// never reported.
type MachineBrick struct {
	// Heartbeat is when it was last looked at: at most a minute ago where the machine works.
	Heartbeat time.Time `json:"heartbeat,omitzero"`
	// Size of the file system in bytes; 0 is no brick.
	Size int64 `json:"size,omitempty"`
	// Free bytes of it.
	Free int64 `json:"free,omitempty"`
	// FileSystem such as xfs.
	FileSystem string `json:"fileSystem,omitempty"`
	// Unfit is why it can hold no copy, such as: its file system is not mounted. Absent where it can.
	Unfit string `json:"unfit,omitempty"`
	// Glusterd is the UUID of the glusterd that answers here; absent where none does.
	Glusterd string `json:"glusterd,omitempty"`
	// Holds are the folders that are, or were, copies.
	Holds []Held `json:"holds,omitempty" jsonschema_extras:"x-kubernetes-list-type=map,x-kubernetes-list-map-keys=volume"`
	// Mounts are the volumes that the machine is to mount.
	Mounts []Mount `json:"mounts,omitempty" jsonschema_extras:"x-kubernetes-list-type=map,x-kubernetes-list-map-keys=volume"`
}

// Held is a folder on a brick that belongs to a volume.
type Held struct {
	// Volume is the name of the folder.
	Volume string `json:"volume" jsonschema:"required"`
	// ID is the UUID of the volume it belongs to.
	ID string `json:"id"`
}

// Mount is a volume as a machine has it mounted.
type Mount struct {
	// Volume's name.
	Volume string `json:"volume" jsonschema:"required"`
	// Ready is true where it is mounted and has proved itself.
	Ready bool `json:"ready"`
	// Message is why not.
	Message string `json:"message,omitempty"`
}
