package gluster

import (
	"strconv"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Claims are the Kubernetes objects by which Pods get at the volumes of a site: of
// each a PersistentVolume and the PersistentVolumeClaim that it is for. Volumes that
// do not decode have none; Validate tells of them.
//
// Both say only what nobody else writes. Of claimRef the binder fills in the rest,
// and the two are made for each other from the start, so that no other claim can
// take the volume.
func Claims(site *plan.Site) []plan.Object {
	var objects []plan.Object
	for _, v := range plan.Documents[Volume](site, plan.Volumes, "Volume", &plan.Report{}) {
		volume, claim := persistentVolume(site, v), persistentVolumeClaim(v)
		volume.Origin, claim.Origin = site.Objects[v.ID].Origin, site.Objects[v.ID].Origin
		objects = append(objects, volume, claim)
	}
	return objects
}

// manifest is a part of a Kubernetes object.
type manifest = map[string]any

// capacity has to be there, and says nothing: no one measures a hostPath, and all
// volumes share the space of the bricks.
const capacity = "1Gi"

// persistentVolumeName is the name of a volume's PersistentVolume. They are in no
// namespace, so that it says whose it is.
func persistentVolumeName(volume string) string { return "kingmaker-" + volume }

func persistentVolume(site *plan.Site, v plan.Document[Volume]) plan.Object {
	name := v.ID.Name
	metadata := manifest{"name": persistentVolumeName(name), "labels": manifest{VolumeLabel: name}}
	if gid := supplementalGID(site, &v.Spec); gid != 0 {
		// The kubelet adds it to the groups of each Pod that mounts the volume.
		metadata["annotations"] = manifest{"pv.beta.kubernetes.io/gid": strconv.FormatInt(gid, 10)}
	}
	return plan.Object{
		ID:    plan.ID{System: plan.Objects, Kind: "PersistentVolume", Name: persistentVolumeName(name)},
		Needs: []plan.ID{v.ID},
		Spec: manifest{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": manifest{
			// No storageClassName: that is the empty one, which no provisioner serves.
			"capacity":                      manifest{"storage": capacity},
			"accessModes":                   []any{"ReadWriteMany"},
			"persistentVolumeReclaimPolicy": "Retain",
			// Directory: where the volume is not mounted there is none, see DataPath.
			"hostPath": manifest{"path": DataPath(name), "type": "Directory"},
			"claimRef": manifest{"namespace": v.Spec.ClaimNamespace(), "name": name},
			"nodeAffinity": manifest{"required": manifest{"nodeSelectorTerms": []any{
				manifest{"matchExpressions": []any{manifest{"key": ReadyLabel(name), "operator": "In", "values": []any{ReadyValue}}}},
			}}},
		}},
	}
}

// persistentVolumeClaim needs its PersistentVolume, so that it is deleted before it.
func persistentVolumeClaim(v plan.Document[Volume]) plan.Object {
	name, namespace := v.ID.Name, v.Spec.ClaimNamespace()
	return plan.Object{
		ID:    plan.ID{System: plan.Objects, Kind: "PersistentVolumeClaim", Name: namespace + "/" + name},
		Needs: []plan.ID{v.ID, {System: plan.Objects, Kind: "PersistentVolume", Name: persistentVolumeName(name)}},
		Spec: manifest{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": manifest{"name": name, "namespace": namespace}, "spec": manifest{
			"accessModes":      []any{"ReadWriteMany"},
			"resources":        manifest{"requests": manifest{"storage": capacity}},
			"storageClassName": "", // absent would be the cluster's default class
			"volumeName":       persistentVolumeName(name),
		}},
	}
}

// supplementalGID is the group that whoever mounts a volume has to be in; 0 is
// none: homes belong to their users alone.
func supplementalGID(site *plan.Site, v *Volume) int64 {
	switch v.For() {
	case Homes:
		return 0
	case Shared:
		return gidOf(site, v.Group)
	}
	return SharedGID
}
