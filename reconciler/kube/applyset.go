package kube

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// Labels and annotations of an ApplySet's parent (KEP-3659).
const (
	applySetID    = "applyset.kubernetes.io/id"
	applySetTool  = "applyset.kubernetes.io/tooling"
	applySetKinds = "applyset.kubernetes.io/contains-group-kinds"
	applySetSpace = "applyset.kubernetes.io/additional-namespaces"
	tooling       = "kingmaker/v1alpha1"

	// parentManager holds the parent's book-keeping, apart from the Site as
	// git declares it.
	parentManager = Manager + "-applyset"
)

// sitesResource is where Site objects are.
func sitesResource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: plan.Group, Version: "v1alpha1", Resource: "sites"}
}

// applySetOf is the ID of the ApplySet whose parent is the Site of a name, as
// KEP-3659 derives it.
func applySetOf(site string) string {
	sum := sha256.Sum256([]byte(site + "..Site." + plan.Group))
	return "applyset-" + base64.RawURLEncoding.EncodeToString(sum[:]) + "-v1"
}

// parent is what the Site object in the cluster remembers.
type parent struct {
	kinds      map[schema.GroupKind]bool // that we may have objects of
	namespaces map[string]bool           // that we may have objects in
	verified   map[string]string         // epoch by kind in which all of it was proved, see System.epoch
	status     plan.SiteStatus
	suspension *Suspension // nil while changes may be made
}

// readParent reads the Site object. A cluster without one gives an empty parent.
func readParent(ctx context.Context, client dynamic.Interface, site string) (*parent, error) {
	p := &parent{kinds: map[schema.GroupKind]bool{}, namespaces: map[string]bool{}, verified: map[string]string{}}
	live, err := client.Resource(sitesResource()).Get(ctx, site, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Site %s: %w", site, err)
	}
	for _, kind := range split(live.GetAnnotations()[applySetKinds]) {
		p.kinds[schema.ParseGroupKind(kind)] = true
	}
	for _, namespace := range split(live.GetAnnotations()[applySetSpace]) {
		p.namespaces[namespace] = true
	}
	if p.status, p.suspension, err = decodeStatus(live); err != nil {
		return nil, err
	}
	maps.Copy(p.verified, p.status.Verified)
	return p, nil
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

// add lists the kind and the namespace of an object.
func (p *parent) add(id plan.ID, namespace string) {
	p.kinds[kindOf(id)] = true
	if namespace != "" {
		p.namespaces[namespace] = true
	}
}

// has reports whether the parent already lists a kind and a namespace.
func (p *parent) has(kind schema.GroupKind, namespace string) bool {
	return p.kinds[kind] && (namespace == "" || p.namespaces[namespace])
}

// write records the kinds and namespaces on the Site object, which it creates
// where there is none.
func (p *parent) write(ctx context.Context, client dynamic.Interface, site string) error {
	kinds := make([]string, 0, len(p.kinds))
	for kind := range p.kinds {
		kinds = append(kinds, kind.String())
	}
	slices.Sort(kinds)
	body, err := json.Marshal(map[string]any{
		"apiVersion": plan.APIVersion, "kind": "Site",
		"metadata": map[string]any{
			"name":   site,
			"labels": map[string]any{applySetID: applySetOf(site)},
			"annotations": map[string]any{
				applySetTool:  tooling,
				applySetKinds: strings.Join(kinds, ","),
				applySetSpace: strings.Join(slices.Sorted(maps.Keys(p.namespaces)), ","),
			},
		},
	})
	if err != nil {
		return err
	}
	force := true
	_, err = client.Resource(sitesResource()).Patch(ctx, site, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: parentManager, Force: &force})
	if err != nil {
		return fmt.Errorf("record the kinds of the site on Site %s: %w", site, err)
	}
	return nil
}
