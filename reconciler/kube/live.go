package kube

import (
	"encoding/base64"
	"fmt"
	"maps"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// partOf is the ApplySet label of a member (KEP-3659).
const partOf = "applyset.kubernetes.io/part-of"

// declared is an object as git declares it, made ready to be sent.
type declared struct {
	manifest map[string]any // with our label, without our annotation; secrets revealed
	hash     string
}

// declare makes an object ready to be sent: our label is added, and the
// stringData of a Secret becomes data, because the server does so too and would
// then keep two owners for one value (kubernetes/kubernetes#99374).
func declare(o plan.Object, applySet string) (declared, error) {
	manifest := plan.Reveal(o.Spec).(map[string]any)
	metadata, _ := manifest["metadata"].(map[string]any)
	if metadata == nil {
		return declared{}, fmt.Errorf("metadata is missing")
	}
	labels, _ := metadata["labels"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
		metadata["labels"] = labels
	}
	labels[partOf] = applySet
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink"} {
		delete(metadata, field)
	}
	delete(manifest, "status")
	if o.ID.Kind == "Secret" {
		if err := stringDataToData(manifest); err != nil {
			return declared{}, err
		}
	}
	return declared{manifest, hashOf(manifest)}, nil
}

func stringDataToData(secret map[string]any) error {
	text, _ := secret["stringData"].(map[string]any)
	if text == nil {
		return nil
	}
	data, _ := secret["data"].(map[string]any)
	data = maps.Clone(data)
	if data == nil {
		data = map[string]any{}
	}
	for key, value := range text {
		s, ok := value.(string)
		if !ok {
			return fmt.Errorf("stringData.%s is not text: put it in quotes", key)
		}
		data[key] = base64.StdEncoding.EncodeToString([]byte(s))
	}
	secret["data"] = data
	delete(secret, "stringData")
	return nil
}

// with is a copy of the manifest that carries our record.
func (d declared) with(fields string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: annotated(d.manifest, d.hash+"."+fields)}
}

// annotated is a copy of an object that carries our record. The parts that are
// not copied are shared and must not be changed.
func annotated(object map[string]any, record string) map[string]any {
	object = maps.Clone(object)
	metadata := maps.Clone(object["metadata"].(map[string]any))
	annotations, _ := metadata["annotations"].(map[string]any)
	annotations = maps.Clone(annotations)
	if annotations == nil {
		annotations = map[string]any{}
	}
	annotations[appliedAnnotation] = record
	metadata["annotations"] = annotations
	object["metadata"] = metadata
	return object
}

// withoutReplicas leaves the replica count to whoever scales the object.
func (d declared) withoutReplicas() declared {
	spec, ok := d.manifest["spec"].(map[string]any)
	if !ok {
		return d
	}
	d.manifest = maps.Clone(d.manifest)
	spec = maps.Clone(spec)
	delete(spec, "replicas")
	d.manifest["spec"] = spec
	return d
}

// settle is a live object, or the server's answer to a dry-run, as it is
// compared and printed: without what the server and controllers write in it,
// and with secrets concealed.
func settle(live *unstructured.Unstructured) map[string]any {
	spec := maps.Clone(live.Object)
	delete(spec, "status")
	if metadata, ok := spec["metadata"].(map[string]any); ok {
		metadata = maps.Clone(metadata)
		for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp",
			"selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"} {
			delete(metadata, field)
		}
		if annotations, ok := metadata["annotations"].(map[string]any); ok {
			annotations = maps.Clone(annotations)
			delete(annotations, appliedAnnotation)
			if metadata["annotations"] = annotations; len(annotations) == 0 {
				delete(metadata, "annotations")
			}
		}
		spec["metadata"] = metadata
	}
	if spec["kind"] == "Secret" || plan.IsMarked(spec) { // only then is a deep copy worth its price
		spec = runtime.DeepCopyJSON(spec)
		plan.Conceal(spec)
	}
	return spec
}

// overlay is what an object would become if it could be changed in place: for
// a replacement, of which the server cannot say so itself.
func overlay(have, want any) any {
	h, okH := have.(map[string]any)
	w, okW := want.(map[string]any)
	if !okH || !okW {
		return want
	}
	merged := maps.Clone(h)
	for key, value := range w {
		merged[key] = overlay(h[key], value)
	}
	return merged
}
