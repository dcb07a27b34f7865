package session

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Person is whose desktop it is, as the directory has him.
type Person struct {
	Name     string
	FullName string
	UID, GID int64
	Groups   []Membership // all of them, the primary one among them
	Shell    string
}

// Membership is a group that a person is in.
type Membership struct {
	Name string
	GID  int64
}

// Order is all that the Pod of one desktop is made from. None of it is text that a
// user wrote into a Pod: each field goes to its own place in a struct of ours.
type Order struct {
	Session    string // name of the object
	UID        string
	Generation int64
	Person     Person
	Template   Template
	// Release is the tag of an image of Kingmaker's own: a template names it without.
	Release string
	// Affinity are the demands of the volumes on the machine: all must be met.
	Affinity []corev1.NodeSelectorRequirement
}

// Name of the Pod, and of its Secret.
func (o Order) Name() string { return PodName(o.Session, o.Generation) }

// OwnImage is the bundle's, which a template names without a tag: it is as old as the
// portal, and changes with it.
const OwnImage = "kingmaker.dev/desktop"

func (o Order) image() string {
	if o.Template.Image == OwnImage && o.Release != "" {
		return OwnImage + ":" + o.Release
	}
	return o.Template.Image
}

// Where a desktop finds things.
const (
	secretDir = "/run/kingmaker/session"
	usersDir  = "/var/lib/extrausers"
)

// minUID is below no person's number: a desktop never runs as root or a service, even
// if the directory says so.
const minUID = 1000

func (o Order) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace:   Namespace,
		Name:        o.Name(),
		Labels:      map[string]string{Label: o.Session, OwnerLabel: Owner, "app.kubernetes.io/name": "desktop", "app.kubernetes.io/part-of": "kingmaker"},
		Annotations: map[string]string{NumberNote: strconv.FormatInt(o.Generation, 10)},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: Version, Kind: "Session", Name: o.Session, UID: typesUID(o.UID),
			Controller: ptr(true), BlockOwnerDeletion: ptr(false)}},
	}
}

// Pod is the desktop.
func (o Order) Pod() (*corev1.Pod, error) {
	p, t := o.Person, o.Template
	if p.UID < minUID || p.GID < 1 {
		return nil, fmt.Errorf("make the Pod of %s: uid %d and gid %d are no person's", p.Name, p.UID, p.GID)
	}
	home := "/home/" + p.Name
	cpu, err := resource.ParseQuantity(cmp.Or(string(t.Resources.CPU), "500m"))
	if err != nil {
		return nil, fmt.Errorf("read resources.cpu of Desktop %s: %w", t.Name, err)
	}
	memory, err := resource.ParseQuantity(cmp.Or(string(t.Resources.Memory), "2Gi"))
	if err != nil {
		return nil, fmt.Errorf("read resources.memory of Desktop %s: %w", t.Name, err)
	}
	// An idle desktop takes a quarter of what one with a browser does: a room of PCs
	// has more of the former.
	request := resource.MustParse("512Mi")
	if memory.Cmp(request) < 0 {
		request = memory
	}
	pod := &corev1.Pod{ObjectMeta: o.meta(), Spec: corev1.PodSpec{
		RestartPolicy:                 corev1.RestartPolicyNever, // the next one is another generation's
		TerminationGracePeriodSeconds: ptr(int64(20)),
		AutomountServiceAccountToken:  ptr(false),
		EnableServiceLinks:            ptr(false),
		ServiceAccountName:            "desktop",
		Hostname:                      "desktop",
		PriorityClassName:             "kingmaker-desktop",
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: ptr(true), RunAsUser: ptr(p.UID), RunAsGroup: ptr(p.GID), SupplementalGroups: supplementary(p),
			// No fsGroup: the kubelet would walk through the homes.
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Tolerations: []corev1.Toleration{
			// A kubelet that says that it is not ready is at home, and works on it. Of one
			// that says nothing for so long that Kubernetes gives it up, nobody waits longer.
			{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr(int64(60))},
			{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr(int64(5))},
		},
		Containers: []corev1.Container{{
			Name: "desktop", Image: o.image(), ImagePullPolicy: corev1.PullIfNotPresent,
			Command: []string{"/usr/local/bin/desktop", "run"}, // which keeps the lease; see the package
			Env:     environment(p, t),
			Ports:   []corev1.ContainerPort{{Name: "https", ContainerPort: Port}},
			ReadinessProbe: &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: corev1.URISchemeHTTPS, Path: "/readyz", Port: intstr.FromInt32(Port)}},
				PeriodSeconds: 5, TimeoutSeconds: 3, FailureThreshold: 2,
			},
			// Its home is gone when a mount has died: only the next one finds the new mount.
			LivenessProbe: &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: corev1.URISchemeHTTPS, Path: "/healthz", Port: intstr.FromInt32(Port)}},
				PeriodSeconds: 20, TimeoutSeconds: 10, FailureThreshold: 3, // slow is not dead
			},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: request},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: memory},
			},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true), Privileged: ptr(false),
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
		}},
	}}
	if len(o.Affinity) > 0 {
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: o.Affinity}}}}}
	}
	pod.Finalizers = []string{Finalizer}

	mount := func(v corev1.Volume, mounts ...corev1.VolumeMount) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, v)
		for _, m := range mounts {
			m.Name = v.Name
			pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, m)
		}
	}
	if t.Home != nil {
		mount(claim("home", t.Home.Volume), corev1.VolumeMount{MountPath: home, SubPath: p.Name})
	} else {
		mount(empty("home", "", "2Gi"), corev1.VolumeMount{MountPath: home})
	}
	// The browser's cache does not belong on three disks of three machines.
	mount(empty("cache", "", "2Gi"), corev1.VolumeMount{MountPath: home + "/.cache"})
	mount(empty("tmp", "", "4Gi"), corev1.VolumeMount{MountPath: "/tmp"})
	mount(empty("run", corev1.StorageMediumMemory, "64Mi"), corev1.VolumeMount{MountPath: "/run/desktop"}) // of cmd/desktop, XDG_RUNTIME_DIR in it
	mount(empty("shm", corev1.StorageMediumMemory, "512Mi"), corev1.VolumeMount{MountPath: "/dev/shm"})
	for i, s := range t.Shared {
		mount(claim("shared-"+strconv.Itoa(i), s.Volume), corev1.VolumeMount{MountPath: s.Path})
	}
	// The files are root's, and the user reads them: they are about nobody else. All are
	// in both places, for each volume in memory is one more to wait for.
	mount(corev1.Volume{Name: "session", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
		SecretName: o.Name(), DefaultMode: ptr(int32(0o444))}}},
		corev1.VolumeMount{MountPath: secretDir, ReadOnly: true}, corev1.VolumeMount{MountPath: usersDir, ReadOnly: true})
	return pod, nil
}

// Secret of the Pod. Nobody but the portal and this one Pod gets it.
func (o Order) Secret(token string, certificate, key []byte) *corev1.Secret {
	meta := o.meta()
	meta.Annotations = nil
	return &corev1.Secret{ObjectMeta: meta, Immutable: ptr(true), Type: corev1.SecretTypeOpaque, Data: map[string][]byte{
		"token": []byte(token), "tls.crt": certificate, "tls.key": key,
		"passwd": []byte(passwd(o.Person)), "group": []byte(group(o.Person)),
	}}
}

// passwd is the person's line; without one, ssh, git and the session know no name.
func passwd(p Person) string {
	return strings.Join([]string{p.Name, "x", strconv.FormatInt(p.UID, 10), strconv.FormatInt(p.GID, 10),
		clean(p.FullName), "/home/" + p.Name, clean(cmp.Or(p.Shell, "/bin/bash"))}, ":") + "\n"
}

// group are the lines of the person's groups. Other members are not his affair.
func group(p Person) string {
	var b strings.Builder
	for _, g := range p.Groups {
		fmt.Fprintf(&b, "%s:x:%d:%s\n", clean(g.Name), g.GID, p.Name)
	}
	return b.String()
}

// clean keeps a field from becoming two, or a line from becoming two.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == ':' || r == ',' || r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

func supplementary(p Person) (all []int64) {
	for _, g := range p.Groups {
		if g.GID != p.GID && g.GID > 0 {
			all = append(all, g.GID)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// reserved are the variables that we or the session set.
var reserved = []string{"HOME", "USER", "LOGNAME", "SHELL", "DISPLAY", "XDG_RUNTIME_DIR", "SCREEN"}

func environment(p Person, t Template) (env []corev1.EnvVar) {
	for _, name := range slices.Sorted(maps.Keys(t.Environment)) {
		if !slices.Contains(reserved, name) {
			// A dollar is one: the kubelet expands $(NAME).
			env = append(env, corev1.EnvVar{Name: name, Value: strings.ReplaceAll(t.Environment[name], "$(", "$$(")})
		}
	}
	return append(env,
		corev1.EnvVar{Name: "HOME", Value: "/home/" + p.Name},
		corev1.EnvVar{Name: "USER", Value: p.Name},
		corev1.EnvVar{Name: "LOGNAME", Value: p.Name},
		corev1.EnvVar{Name: "SHELL", Value: cmp.Or(p.Shell, "/bin/bash")},
		corev1.EnvVar{Name: "SCREEN", Value: fmt.Sprintf("%dx%d", cmp.Or(t.Screen.Width, 1920), cmp.Or(t.Screen.Height, 1080))},
	)
}

func claim(name, volume string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: volume}}}
}

func empty(name string, medium corev1.StorageMedium, size string) corev1.Volume {
	limit := resource.MustParse(size)
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: medium, SizeLimit: &limit}}}
}
