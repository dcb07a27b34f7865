package session

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Where things are in the cluster.
const (
	Group     = "kingmaker.dev"
	Version   = Group + "/v1alpha1"
	Namespace = "kingmaker-desktops" // of Sessions, Pods and their Secrets
	Port      = 8443                 // of each desktop
	Host      = "desktop.kingmaker.internal"

	Label      = Group + "/session" // on a Pod: whose it is
	OwnerLabel = Group + "/owner"   // on all that the portal makes, and the reconciler leaves alone
	Owner      = "portal"           // its value
	Finalizer  = Group + "/fence"   // on a Pod; see the package
	NumberNote = Group + "/generation"
)

// Resource is where the cluster serves the Sessions.
func Resource() schema.GroupVersionResource { return served("sessions") }

// TemplateResource is where it serves the desktop templates.
func TemplateResource() schema.GroupVersionResource { return served("desktops") }

func served(plural string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: Group, Version: "v1alpha1", Resource: plural}
}

// Spec of kind Session: what a user wants of his desktop. The portal's pages write it,
// and its controller where a Pod was lost.
type Spec struct {
	// User whose desktop it is, as the directory spells the name.
	User string `json:"user" jsonschema:"required,minLength=1"`
	// Template is the name of a Desktop.
	Template string `json:"template" jsonschema:"required,minLength=1"`
	// Generation of the Pod; it only grows, and each has a Pod of its own.
	Generation int64 `json:"generation" jsonschema:"required,minimum=1"`
	// Wanted is false for a desktop that is stopped.
	Wanted bool `json:"wanted"`
	// Screen that it begins with, as large as the browser shows it that asked for it.
	// Absent is the template's.
	Screen Size `json:"screen,omitzero"`
}

// The phases of a Session.
const (
	Stopped  = "Stopped"  // nothing runs, nothing is wanted
	Stopping = "Stopping" // it runs, and is not wanted any more
	Fenced   = "Fenced"   // the Pod before is not known to be over
	Starting = "Starting"
	Ready    = "Ready"
	Failed   = "Failed" // it ended by itself, or cannot be made; it is tried again
)

// The stages of one that starts, in order.
const (
	Queued  = "queued" // no machine yet
	Placed  = "placed" // it has a machine, which brings volumes and image
	Begun   = "starting"
	Screen  = "screen"  // there is a screen
	Painted = "painted" // there is a desktop on it
)

// Status of kind Session: how the desktop is. The portal's controller writes it.
type Status struct {
	// Phase is one of Stopped, Stopping, Fenced, Starting, Ready and Failed.
	Phase string `json:"phase,omitempty" jsonschema:"enum=Stopped,enum=Stopping,enum=Fenced,enum=Starting,enum=Ready,enum=Failed"`
	// Generation that the status is about.
	Generation int64 `json:"generation,omitempty"`
	// Stage of one that starts: queued, placed, starting, screen or painted.
	Stage string `json:"stage,omitempty"`
	// Pod that runs, or is to end before the next one starts.
	Pod string `json:"pod,omitempty"`
	// Node that it is on.
	Node string `json:"node,omitempty"`
	// PodIP is its address; absent while there is no screen.
	PodIP string `json:"podIP,omitempty"`
	// Reason is a code, where something is not as it should be.
	Reason string `json:"reason,omitempty"`
	// Message says it for people.
	Message string `json:"message,omitempty"`
	// Since is when this generation began to start.
	Since time.Time `json:"since,omitzero"`
	// LastInput is when the user last touched keyboard or mouse; to a minute.
	LastInput time.Time `json:"lastInput,omitzero"`
	// Warned is when the user was told that the desktop will stop.
	Warned time.Time `json:"warned,omitzero"`
	// Failures is how many Pods ended by themselves, one after the other.
	Failures int `json:"failures,omitempty"`
	// FailedAt is when the last did.
	FailedAt time.Time `json:"failedAt,omitzero"`
}

// Codes of what keeps a desktop from running.
const (
	FormerAlive = "FormerAlive" // the Pod before may still run
	NoTemplate  = "NoTemplate"  // there is no Desktop of that name, or not for this user
	Ended       = "Ended"       // the last Pod ended by itself
	NoRoom      = "NoRoom"      // no machine takes it
	NoImage     = "NoImage"     // its image is not there
	NoVolume    = "NoVolume"    // a volume cannot be mounted
	NoPerson    = "NoPerson"    // the directory does not know the user, or does not answer
	Trouble     = "Trouble"     // something else that Kubernetes tells
	Silent      = "Silent"      // it does not answer the portal
	Idle        = "Idle"        // nobody touched it, so that it was stopped
)

// plain are names that can stand in those of Kubernetes' objects.
var plain = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// Name of a user's Session. Different users have different ones: a name that Kubernetes
// does not take gets a hash behind a dot, which no other has.
func Name(user string) string {
	if plain.MatchString(user) {
		return user
	}
	sum := sha256.Sum256([]byte(user))
	short := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(user), "-"), "-")
	if short == "" {
		short = "user"
	}
	return short + "." + hex.EncodeToString(sum[:6])
}

// PodName of a generation, and the name of its Secret.
func PodName(session string, generation int64) string {
	return "desk-" + session + "-" + strconv.FormatInt(generation, 10)
}
