package gluster_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/plan/plantest"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func claims(t *testing.T, documents string) (objects []plan.Object) {
	t.Helper()
	site := plantest.Site(t, plantest.Documents(t, documents)...)
	for id, o := range site.Objects {
		o.Origin = "volumes/" + id.Name + ".yaml"
		site.Objects.Add(o)
	}
	return gluster.Claims(site)
}

// as reads an object as Kubernetes does, and refuses fields that it does not have.
func as[T any](t *testing.T, o plan.Object) (typed T) {
	t.Helper()
	text, err := yaml.Marshal(o.Spec)
	if err == nil {
		err = yaml.UnmarshalStrict(text, &typed)
	}
	if err != nil {
		t.Fatalf("%s: %v", o.ID, err)
	}
	return typed
}

func TestClaims(t *testing.T) {
	objects := claims(t, `
apiVersion: kingmaker.dev/v1alpha1
kind: Group
metadata: {name: teachers}
spec: {gid: 5000}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Volume
metadata: {name: exchange}
spec: {access: shared}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Volume
metadata: {name: homes}
spec: {access: homes}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Volume
metadata: {name: marks}
spec: {access: shared, group: teachers}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Volume
metadata: {name: unreadable}
spec: {replica: 3}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Volume
metadata: {name: wiki}
spec: {namespace: wiki}
`)
	var got []string
	for i := 0; i+1 < len(objects); i += 2 {
		volume, claim := as[corev1.PersistentVolume](t, objects[i]), as[corev1.PersistentVolumeClaim](t, objects[i+1])
		got = append(got, strings.Join([]string{volume.Name, claim.Namespace, claim.Name, volume.Annotations["pv.beta.kubernetes.io/gid"]}, " "))

		name := claim.Name
		if ref := volume.Spec.ClaimRef; ref.Namespace != claim.Namespace || ref.Name != name || claim.Spec.VolumeName != volume.Name {
			t.Errorf("%s and its claim are not for each other: %v, %s", name, ref, claim.Spec.VolumeName)
		}
		if path := volume.Spec.HostPath; path.Path != "/var/lib/kingmaker/volumes/"+name+"/data" || *path.Type != corev1.HostPathDirectory {
			t.Errorf("%s is at %+v", name, path)
		}
		term := volume.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
		if term.Key != "kingmaker.dev/volume-"+name || term.Operator != corev1.NodeSelectorOpIn || !slices.Equal(term.Values, []string{"ready"}) {
			t.Errorf("%s is reached from nodes with %+v", name, term)
		}
		if volume.Labels["kingmaker.dev/volume"] != name || volume.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain ||
			volume.Spec.StorageClassName != "" || claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName != "" {
			t.Errorf("%s: %+v %+v", name, volume, claim)
		}
		id := plan.ID{System: plan.Volumes, Kind: "Volume", Name: name}
		for _, o := range objects[i : i+2] {
			identified, err := plan.Identify(o.Spec)
			if err != nil || identified != o.ID || o.Needs[0] != id || o.Origin != "volumes/"+name+".yaml" {
				t.Errorf("%s is %s, needs %v and comes from %s; %v", o.ID, identified, o.Needs, o.Origin, err)
			}
		}
		if !slices.Contains(objects[i+1].Needs, objects[i].ID) {
			t.Errorf("the claim of %s needs %v", name, objects[i+1].Needs)
		}
	}
	want := []string{
		"kingmaker-exchange kingmaker-desktops exchange 100",
		"kingmaker-homes kingmaker-desktops homes ",
		"kingmaker-marks kingmaker-desktops marks 5000",
		"kingmaker-wiki wiki wiki 100",
	}
	if !slices.Equal(got, want) {
		t.Errorf("have %q\nwant %q", got, want)
	}
}
