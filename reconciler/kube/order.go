package kube

import (
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	crdKind  = "CustomResourceDefinition.apiextensions.k8s.io"
	siteKind = "Site." + plan.Group
)

// siteCRD is the definition of our own parent: the first object of a new site,
// and the last of an old one.
var siteCRD = plan.ID{System: plan.Objects, Kind: crdKind, Name: "sites." + plan.Group}

// rank orders objects among which no need decides: what others build on first,
// what could refuse the others last. Deletions run the other way around.
func rank(id plan.ID) int {
	switch id.Kind {
	case crdKind:
		if id == siteCRD {
			return -50
		}
		return -30
	case siteKind:
		return -40
	case "Namespace":
		return -30
	case "PriorityClass.scheduling.k8s.io", "StorageClass.storage.k8s.io", "RuntimeClass.node.k8s.io", "IngressClass.networking.k8s.io":
		return -25
	case "ResourceQuota", "LimitRange", "NetworkPolicy.networking.k8s.io", "PodDisruptionBudget.policy":
		return -20
	case "ServiceAccount", "Secret", "ConfigMap", "PersistentVolume", "PersistentVolumeClaim",
		"Role.rbac.authorization.k8s.io", "ClusterRole.rbac.authorization.k8s.io":
		return -15
	case "RoleBinding.rbac.authorization.k8s.io", "ClusterRoleBinding.rbac.authorization.k8s.io", "Service":
		return -10
	case "APIService.apiregistration.k8s.io":
		return 10
	case "ValidatingWebhookConfiguration.admissionregistration.k8s.io", "MutatingWebhookConfiguration.admissionregistration.k8s.io",
		"ValidatingAdmissionPolicy.admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding.admissionregistration.k8s.io",
		"MutatingAdmissionPolicy.admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding.admissionregistration.k8s.io":
		return 20
	}
	return 0
}

// precious says what is lost when an object is deleted, "" for nothing that
// git does not have.
func precious(id plan.ID, spec map[string]any) string {
	switch id.Kind {
	case "Namespace":
		return "everything in the namespace"
	case "PersistentVolumeClaim":
		return "the claim on its data"
	case "PersistentVolume":
		return "the way to its data"
	case crdKind:
		return "all objects of its kind"
	case siteKind:
		return "the record of what belongs to the site"
	case "StatefulSet.apps":
		if policy, _, _ := unstructured.NestedString(spec, "spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted"); policy == "Delete" {
			return "its claims and their data (whenDeleted: Delete)"
		}
	}
	return ""
}

// catalog knows which objects of a state others build on.
type catalog struct {
	state plan.State
	kinds map[string]definition // by "Kind.group"
}

// definition is what a CRD says of its kind.
type definition struct {
	crd        plan.ID
	namespaced bool
}

func newCatalog(state plan.State) catalog {
	c := catalog{state, map[string]definition{}}
	for id, o := range state {
		if id.Kind != crdKind {
			continue
		}
		kind, _, _ := unstructured.NestedString(o.Spec, "spec", "names", "kind")
		group, _, _ := unstructured.NestedString(o.Spec, "spec", "group")
		scope, _, _ := unstructured.NestedString(o.Spec, "spec", "scope")
		c.kinds[kind+"."+group] = definition{id, scope == "Namespaced"}
	}
	return c
}

// needs are the namespace and the CRD of an object, where the state has them.
func (c catalog) needs(id plan.ID, namespace string) (needs []plan.ID) {
	if namespace != "" {
		need := plan.ID{System: plan.Objects, Kind: "Namespace", Name: namespace}
		if _, ok := c.state[need]; ok {
			needs = append(needs, need)
		}
	}
	if d, ok := c.kinds[id.Kind]; ok {
		needs = append(needs, d.crd)
	}
	return needs
}

func kindOf(id plan.ID) schema.GroupKind { return schema.ParseGroupKind(id.Kind) }
