package session

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ImageLabel is on what brings an image to every machine.
const ImageLabel = Group + "/desktop-image"

// Images are the DaemonSets that bring the images of templates to every machine before
// somebody waits for them, and keep them there: the kubelet removes none that is used.
// The bundle's own is there without.
func Images(templates []Template) (sets []*appsv1.DaemonSet) {
	var images []string
	for _, t := range templates {
		if t.Image != OwnImage {
			images = append(images, t.Image)
		}
	}
	slices.Sort(images)
	for _, image := range slices.Compact(images) {
		sum := sha256.Sum256([]byte(image))
		name := "images-" + hex.EncodeToString(sum[:6])
		labels := map[string]string{ImageLabel: name, OwnerLabel: Owner, "app.kubernetes.io/name": "desktop-images", "app.kubernetes.io/part-of": "kingmaker"}
		sets = append(sets, &appsv1.DaemonSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name, Labels: labels},
			Spec: appsv1.DaemonSetSpec{
				Selector:       &metav1.LabelSelector{MatchLabels: map[string]string{ImageLabel: name}},
				UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
					ServiceAccountName: "desktop", AutomountServiceAccountToken: ptr(false), EnableServiceLinks: ptr(false),
					TerminationGracePeriodSeconds: ptr(int64(0)),
					SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: ptr(true), RunAsUser: ptr(int64(65532)), RunAsGroup: ptr(int64(65532)),
						SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
					Containers: []corev1.Container{{
						Name: "image", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
						Command:   []string{"sleep", "infinity"}, // nothing of it is wanted but to be there
						Resources: corev1.ResourceRequirements{Requests: small("1m", "4Mi"), Limits: small("100m", "32Mi")},
						SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true),
							Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
					}},
				}},
			},
		})
	}
	return sets
}

func small(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}
