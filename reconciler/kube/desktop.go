package kube

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Desktop is the spec of kind Desktop: a desktop template, from which the
// portal makes one user's running graphical container. Its metadata.name is
// what users and the portal call it.
type Desktop struct {
	// Title that users see. Default: the name.
	Title string `json:"title,omitempty"`
	// Image of the container, such as registry.school.example/desktops/xfce:13.2; or kingmaker.dev/desktop, without a version: the one that machines have of the bundle.
	Image string `json:"image" jsonschema:"required,minLength=1"`
	// Groups whose members may use the desktop. Absent: everybody. []: nobody.
	Groups []string `json:"groups,omitempty" jsonschema:"uniqueItems=true"`
	// Resources of one user's desktop.
	Resources Resources `json:"resources,omitzero"`
	// Home is where users' files are. Absent: a desktop that forgets everything when it stops.
	Home *Home `json:"home,omitempty"`
	// Shared volumes that the desktop mounts. Absent or []: none.
	Shared []SharedVolume `json:"shared,omitempty"`
	// IdleAfter is how long nobody touches a desktop before it is stopped: at least 1m. Default 4h.
	IdleAfter plan.Duration `json:"idleAfter,omitzero"`
	// Screen that the desktop begins with; it follows the size of the user's window.
	Screen Screen `json:"screen,omitzero"`
	// Environment variables of the session. A password does not belong here: users can read them.
	Environment map[string]string `json:"environment,omitempty"`
	// Default is true for the desktop that users of its groups get without choosing. Default false.
	Default bool `json:"default,omitempty"`
}

// Resources are what one desktop may use.
type Resources struct {
	// CPU cores that are set aside; while others are idle a desktop may use more. Default 500m.
	CPU plan.Quantity `json:"cpu,omitempty"`
	// Memory that the desktop may use at most: at least 256Mi. Default 2Gi.
	Memory plan.Quantity `json:"memory,omitempty"`
}

// Home says where users' files are.
type Home struct {
	// Volume with access: homes.
	Volume string `json:"volume" jsonschema:"required,minLength=1"`
}

// SharedVolume is a volume that all users of a desktop see.
type SharedVolume struct {
	// Volume with access: shared.
	Volume string `json:"volume" jsonschema:"required,minLength=1"`
	// Path in the desktop, such as /srv/exchange.
	Path string `json:"path" jsonschema:"required,pattern=^/"`
}

// Screen is a size in pixels.
type Screen struct {
	// Width in pixels. Default 1920.
	Width int `json:"width,omitempty" jsonschema:"minimum=640,maximum=7680,default=1920"`
	// Height in pixels. Default 1080.
	Height int `json:"height,omitempty" jsonschema:"minimum=480,maximum=4320,default=1080"`
}

// Codes of the rules of desktops.
const (
	AmbiguousDefault plan.Code = "AmbiguousDefault" // a group has two default desktops
	MovingImage      plan.Code = "MovingImage"      // an image that can be another one tomorrow
	WrongVolume      plan.Code = "WrongVolume"      // a volume that is meant for something else
	ReservedVariable plan.Code = "ReservedVariable" // a variable that the session sets itself
)

// minMemory is what an idle session uses, and a little: less is a slip of the
// pen, such as 2 for 2Gi.
const minMemory = "256Mi"

// ownImage is as old as the portal that starts it, and needs no version.
const ownImage = "kingmaker.dev/desktop"

var (
	// imageReference is the grammar of distribution/reference, anchored: domain, path,
	// tag and digest. It is here because the module brings nothing else we need.
	imageReference = regexp.MustCompile(`^(?:([a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?)/)?[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?$`)

	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// Validate checks every Desktop of a site, and what it refers to.
func Validate(site *plan.Site) (faults, warnings []*plan.Fault) {
	r := &plan.Report{}
	desktops := plan.Documents[Desktop](site, plan.Objects, "Desktop."+plan.Group, r)
	for _, d := range desktops {
		plan.CheckName(d.ID, r)
		checkImage(d, r)
		checkGroups(site, d, r)
		checkResources(d, r)
		checkVolumes(site, d, r)
		checkEnvironment(d, r)
		if after := d.Spec.IdleAfter.Duration; after != 0 && after < time.Minute {
			r.Fault(plan.Fault{Code: plan.InvalidValue, ID: d.ID, Field: "spec.idleAfter",
				Cause: fmt.Sprintf("%s is too short: a desktop would stop while its user thinks", after), Hint: "want 1m or more; 4h is the default"})
		}
	}
	checkDefaults(desktops, r)
	return r.Faults, r.Warnings
}

func checkImage(d plan.Document[Desktop], r *plan.Report) {
	if d.Spec.Image == ownImage {
		return
	}
	f := plan.Fault{ID: d.ID, Field: "spec.image"}
	m := imageReference.FindStringSubmatch(d.Spec.Image)
	switch {
	case m == nil:
		f.Code, f.Cause = plan.InvalidValue, fmt.Sprintf("%q is not the reference of an image", d.Spec.Image)
		f.Hint = "such as registry.school.example/desktops/xfce:13.2; the path has small letters only"
		r.Fault(f)
	case m[3] == "" && (m[2] == "" || m[2] == ":latest"):
		f.Code, f.Cause = MovingImage, "the image can be another one tomorrow, and on some machines today"
		f.Hint = "name a version, or a digest (@sha256:...)"
		r.Warn(f)
	}
}

func checkGroups(site *plan.Site, d plan.Document[Desktop], r *plan.Report) {
	taken := make(plan.Taken[string])
	for i, group := range d.Spec.Groups {
		f := plan.Fault{ID: d.ID, Field: plan.Field("spec", "groups", i)}
		if taken.Claim(group, f.Field) != "" {
			f.Code, f.Cause = plan.Duplicate, fmt.Sprintf("%s is named twice", group)
			r.Fault(f)
		} else if !site.Has(plan.ID{System: plan.Directory, Kind: "Group", Name: group}) {
			f.Code, f.Cause, f.Hint = plan.UnknownReference, fmt.Sprintf("there is no Group %q", group), "declare it, or name one that is declared"
			r.Fault(f)
		}
	}
}

func checkResources(d plan.Document[Desktop], r *plan.Report) {
	check := func(field string, amount plan.Quantity, least, most, example string) {
		if amount == "" {
			return
		}
		f := plan.Fault{Code: plan.InvalidValue, ID: d.ID, Field: field, Hint: example}
		q, err := resource.ParseQuantity(string(amount))
		switch {
		case err != nil:
			f.Cause = fmt.Sprintf("%q is not an amount", amount)
		case q.Cmp(resource.MustParse(least)) < 0:
			f.Cause = fmt.Sprintf("%s is too little: want %s or more", amount, least)
		case q.Cmp(resource.MustParse(most)) > 0:
			f.Cause = fmt.Sprintf("%s is more than any PC has", amount)
		default:
			return
		}
		r.Fault(f)
	}
	check("spec.resources.cpu", d.Spec.Resources.CPU, "10m", "1024", "such as 500m for half a core, or 2 for two")
	check("spec.resources.memory", d.Spec.Resources.Memory, minMemory, "64Ti", "such as 2Gi; a number without a unit is bytes")
}

func checkVolumes(site *plan.Site, d plan.Document[Desktop], r *plan.Report) {
	if home := d.Spec.Home; home != nil {
		checkVolume(site, d.ID, "spec.home.volume", home.Volume, "homes", r)
	}
	var paths []string
	for i, shared := range d.Spec.Shared {
		checkVolume(site, d.ID, plan.Field("spec", "shared", i, "volume"), shared.Volume, "shared", r)
		f := plan.Fault{Code: plan.InvalidValue, ID: d.ID, Field: plan.Field("spec", "shared", i, "path")}
		top, _, _ := strings.Cut(strings.TrimPrefix(shared.Path, "/"), "/")
		switch {
		case !path.IsAbs(shared.Path) || path.Clean(shared.Path) != shared.Path:
			f.Cause, f.Hint = fmt.Sprintf("%q is not a whole path", shared.Path), "such as /srv/exchange"
		case shared.Path == "/" || shared.Path == "/srv" || shared.Path == "/mnt" || shared.Path == "/media" || shared.Path == "/opt" ||
			slices.Contains([]string{"bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"}, top):
			f.Cause, f.Hint = fmt.Sprintf("%s belongs to the desktop's own system", shared.Path), "take a path below /srv, such as /srv/exchange"
		default:
			for _, other := range paths {
				if shared.Path == other {
					f.Code, f.Cause = plan.Duplicate, fmt.Sprintf("%s is the path of another volume too", other)
				} else if strings.HasPrefix(shared.Path, other+"/") || strings.HasPrefix(other, shared.Path+"/") {
					f.Code, f.Cause = plan.Overlap, fmt.Sprintf("%s and %s lie in each other", other, shared.Path)
				} else {
					continue
				}
				f.Hint = "mount shared volumes side by side"
				break
			}
			paths = append(paths, shared.Path)
			if f.Cause == "" {
				continue
			}
		}
		r.Fault(f)
	}
}

// checkVolume looks a volume up, and what it is for. This room does not know
// the type of a Volume, and need not: the document is the contract.
func checkVolume(site *plan.Site, id plan.ID, field, name, access string, r *plan.Report) {
	f := plan.Fault{ID: id, Field: field}
	volume, ok := site.Objects[plan.ID{System: plan.Volumes, Kind: "Volume", Name: name}]
	if !ok {
		f.Code, f.Cause, f.Hint = plan.UnknownReference, fmt.Sprintf("there is no Volume %q", name), "declare it, or name one that is declared"
		r.Fault(f)
		return
	}
	spec, _ := volume.Spec["spec"].(map[string]any)
	if spec["access"] != access {
		f.Code, f.Cause, f.Hint = WrongVolume, fmt.Sprintf("Volume %s does not have access: %s", name, access), "set it there, or name a volume that has"
		r.Fault(f)
	}
}

func checkEnvironment(d plan.Document[Desktop], r *plan.Report) {
	for _, key := range slices.Sorted(maps.Keys(d.Spec.Environment)) {
		f := plan.Fault{ID: d.ID, Field: plan.Field("spec", "environment", key)}
		switch {
		case !variableName.MatchString(key):
			f.Code, f.Cause, f.Hint = plan.InvalidName, fmt.Sprintf("%q cannot be the name of a variable", key), "want letters, digits and underscores, with no digit first"
		case slices.Contains([]string{"HOME", "USER", "LOGNAME", "SHELL", "DISPLAY", "XDG_RUNTIME_DIR"}, key):
			f.Code, f.Cause, f.Hint = ReservedVariable, fmt.Sprintf("the session sets %s itself, for each user", key), "take it out"
		default:
			continue
		}
		r.Fault(f)
	}
}

// checkDefaults reports groups that have two default desktops. A user of
// several groups gets the default of the primary one, so that groups can be
// judged one by one.
func checkDefaults(desktops []plan.Document[Desktop], r *plan.Report) {
	var defaults []plan.Document[Desktop]
	for _, d := range desktops {
		if !d.Spec.Default {
			continue
		}
		for _, other := range defaults {
			if who := bothFor(d.Spec.Groups, other.Spec.Groups); who != "" {
				r.Fault(plan.Fault{Code: AmbiguousDefault, ID: d.ID, Field: "spec.default",
					Cause: fmt.Sprintf("Desktop %s is the default of %s already", other.ID.Name, who),
					Hint:  "a group has one default desktop: take one of them out, or part their groups"})
			}
		}
		defaults = append(defaults, d)
	}
}

// bothFor names the groups that are in both lists, a nil list being everybody;
// "" where there are none.
func bothFor(a, b []string) string {
	switch {
	case a == nil && b == nil:
		return "everybody"
	case a == nil:
		return strings.Join(b, ", ")
	case b == nil:
		return strings.Join(a, ", ")
	}
	return strings.Join(slices.DeleteFunc(slices.Clone(a), func(g string) bool { return !slices.Contains(b, g) }), ", ")
}
