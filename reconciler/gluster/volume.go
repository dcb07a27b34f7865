package gluster

import "cmp"

// Volume is the spec of kind Volume: one GlusterFS volume over the bricks of
// the site's machines. Its metadata.name is the name of the volume.
type Volume struct {
	// Replicas is how many bricks hold each file: 1, 3, 5 or 7. Default: storage.replicas of the Site, else 5 with five bricks or more, else 3.
	Replicas int `json:"replicas,omitempty" jsonschema:"enum=1,enum=3,enum=5,enum=7"`
	// Machines whose bricks the volume may use. Absent: all, chosen by spread over circuits.
	Machines *Machines `json:"machines,omitempty"`
	// Options of GlusterFS, such as performance.cache-size: 256MB. Absent options are left alone.
	Options map[string]string `json:"options,omitempty"`
	// Access says what the volume is for: homes (a folder for each user), shared (one tree for many users) or private (services only; default).
	Access string `json:"access,omitempty" jsonschema:"enum=homes,enum=shared,enum=private,default=private"`
	// Arbiter is true where the third of three replicas holds names only: as safe against a split as three copies, at the space of two. Default false.
	Arbiter bool `json:"arbiter,omitempty"`
	// Group of people that a shared volume belongs to. Absent: all of them (Debian's group users, gid 100).
	Group string `json:"group,omitempty"`
	// Namespace in which the volume's PersistentVolumeClaim is made. Default: kingmaker-desktops. The directory's nightly backups are on the volume directory-backup of kingmaker-directory.
	Namespace string `json:"namespace,omitempty" jsonschema:"maxLength=63"`
}

// The values of Volume.Access.
const (
	Homes   = "homes"
	Shared  = "shared"
	Private = "private"
)

// For is Access with its default.
func (v *Volume) For() string { return cmp.Or(v.Access, Private) }

// ClaimNamespace is Namespace with its default.
func (v *Volume) ClaimNamespace() string { return cmp.Or(v.Namespace, DesktopsNamespace) }

// Machines chooses machines by name or by label; not both.
type Machines struct {
	// Names of Machines.
	Names []string `json:"names,omitempty"`
	// Selector holds the labels that a Machine must all have.
	Selector map[string]string `json:"selector,omitempty"`
}
