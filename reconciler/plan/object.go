package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The systems of a site: the value of ID.System.
const (
	Machines  = "machines"  // PCs and their roles
	Volumes   = "volumes"   // GlusterFS volumes over the machines' bricks
	Objects   = "objects"   // Kubernetes objects
	Directory = "directory" // people and groups in LDAP
)

// APIVersion of every site document, and Group its API group.
const (
	Group      = "kingmaker.dev"
	APIVersion = Group + "/v1alpha1"
)

// ID names one object of one system. It is comparable; the zero ID names nothing.
type ID struct {
	System string // one of Machines, Volumes, Objects, Directory
	Kind   string // "Volume"; for Kubernetes objects with the API group, where there is one: "Service", "Deployment.apps"
	Name   string // "homes"; "namespace/name" where there is a namespace
}

// String is the form that people write in Site.spec.confirm:
// "objects/Deployment.apps/wiki/web".
// The ID of a whole system is the system's name.
func (id ID) String() string {
	if id.Kind == "" {
		return id.System
	}
	return id.System + "/" + id.Kind + "/" + id.Name
}

// MarshalText makes an ID a string in JSON, as a value and as a key.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (id *ID) UnmarshalText(text []byte) (err error) {
	if !strings.Contains(string(text), "/") {
		*id = ID{System: string(text)}
		return nil
	}
	*id, err = ParseID(string(text))
	return err
}

// Compare orders IDs by system, kind and name.
func (id ID) Compare(other ID) int {
	return cmp.Or(
		cmp.Compare(id.System, other.System),
		cmp.Compare(id.Kind, other.Kind),
		cmp.Compare(id.Name, other.Name))
}

// ParseID reads what ID.String writes.
func ParseID(s string) (ID, error) {
	part := strings.SplitN(s, "/", 3)
	if len(part) != 3 || slices.Contains(part, "") {
		return ID{}, fmt.Errorf("%q is not an ID: want system/kind/name, such as objects/Deployment.apps/wiki/web", s)
	}
	id := ID{part[0], part[1], part[2]}
	if !slices.Contains([]string{Machines, Volumes, Objects, Directory}, id.System) {
		return ID{}, fmt.Errorf("%q is not an ID: there is no system %q (want machines, volumes, objects or directory)", s, id.System)
	}
	return id, nil
}

// Object is one thing in one state: as the site repo declares it, as a system
// was found to have it, or as a system would store it.
type Object struct {
	ID ID

	// Spec is the content as a tree of map[string]any, []any, string, bool,
	// int64, float64, nil and Secret: what is compared and printed.
	Spec map[string]any

	// Needs are the objects that must be there before this one.
	Needs []ID

	// Origin is the place in the site repo that declares the object, relative
	// to the site's root: "services/wiki/web.yaml", with ":LINE" where it is
	// known. Empty for what was observed.
	Origin string

	// Identity is the system's own name for this very thing (a UID): where it
	// differs between Have and Want, Want cannot be reached in place and the
	// change is a replacement.
	Identity string

	// Precious says in a few words what is lost with the object ("the data of
	// the claim"). Its deletion and its replacement are withheld until the
	// site repo confirms them. Empty where nothing is lost.
	Precious string

	// Rank orders objects of one system among which no need decides: lower first.
	Rank int

	// Why is one sentence for people: why the thing should become so or, on an
	// object that is to go, why it goes. Empty says that the site repo wants it.
	Why string

	// Notes are what people should know of the object and what holds nothing back.
	Notes []*Fault

	// Handle is for the system that made the object and for nobody else: what
	// Apply needs beyond Spec. It is neither compared nor printed.
	Handle any
}

// State is a set of objects by ID.
type State map[ID]Object

// Add puts an object in, under its own ID.
func (s State) Add(o Object) { s[o.ID] = o }

// IDs are the IDs of the state in order.
func (s State) IDs() []ID { return slices.SortedFunc(maps.Keys(s), ID.Compare) }

// Of is the part of the state that belongs to one system.
func (s State) Of(system string) State {
	part := State{}
	for id, o := range s {
		if id.System == system {
			part[id] = o
		}
	}
	return part
}

// Identify derives the ID of a document from its apiVersion, kind and metadata.
// Site documents belong to their systems, all others to Objects; Site and
// Desktop are applied as Kubernetes objects too. The error says which field is
// missing.
func Identify(document map[string]any) (ID, error) {
	apiVersion, _ := document["apiVersion"].(string)
	kind, _ := document["kind"].(string)
	metadata, _ := document["metadata"].(map[string]any)
	name, _ := metadata["name"].(string)
	namespace, _ := metadata["namespace"].(string)
	switch {
	case apiVersion == "":
		return ID{}, fmt.Errorf("the document has no apiVersion")
	case kind == "":
		return ID{}, fmt.Errorf("the document (%s) has no kind", apiVersion)
	case name == "" && metadata["generateName"] != nil:
		return ID{}, fmt.Errorf("%s has generateName and no name: what git declares must have a name that stays", kind)
	case name == "":
		return ID{}, fmt.Errorf("%s has no metadata.name", kind)
	}
	if system := siteSystem(apiVersion, kind); system != "" {
		return ID{system, kind, name}, nil
	}
	if group, _, ok := strings.Cut(apiVersion, "/"); ok {
		kind += "." + group
	}
	if namespace != "" {
		name = namespace + "/" + name
	}
	return ID{Objects, kind, name}, nil
}

// siteSystem is the system, other than Objects, that a site kind belongs to.
func siteSystem(apiVersion, kind string) string {
	if apiVersion != APIVersion {
		return ""
	}
	switch kind {
	case "Machine":
		return Machines
	case "Volume":
		return Volumes
	case "Group", "Roster":
		return Directory
	}
	return ""
}
