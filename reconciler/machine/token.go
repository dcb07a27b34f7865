package machine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
	bootstrap "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"
)

const (
	// Joiners is the group that a token makes its bearer a member of; kubeadm
	// init lets it ask for a node's certificate, and little else.
	Joiners = "system:bootstrappers:kubeadm:default-node-token"

	maxMasters = 3 // in an invitation: one may be off, and the line must fit a screen
)

// Invite makes a token that machines can join with from now on, for a time. An
// expired token is removed by Kubernetes.
func Invite(ctx context.Context, config *rest.Config, now time.Time, valid time.Duration) (Invitation, error) {
	i := Invitation{Expires: now.Add(valid).UTC().Truncate(time.Second)}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return i, fmt.Errorf("connect to the cluster: %w", err)
	}
	if i.Masters, err = mastersOf(ctx, client); err != nil {
		return i, err
	}
	if i.CAHash, err = caHash(ctx, client, config); err != nil {
		return i, err
	}
	token, err := bootstraputil.GenerateBootstrapToken()
	if err != nil {
		return i, fmt.Errorf("make a token: %w", err)
	}
	i.Token = plan.NewSecret(token)
	_, err = client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(metav1.NamespaceSystem).Create(ctx,
		&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Secret",
			"metadata": map[string]any{"name": bootstraputil.BootstrapTokenSecretName(i.TokenID())},
			"type":     string(bootstrap.SecretTypeBootstrapToken),
			"stringData": map[string]any{
				bootstrap.BootstrapTokenIDKey:               i.TokenID(),
				bootstrap.BootstrapTokenSecretKey:           i.TokenSecret(),
				bootstrap.BootstrapTokenExpirationKey:       i.Expires.Format(time.RFC3339),
				bootstrap.BootstrapTokenDescriptionKey:      "made by reconcile token, for machines to join",
				bootstrap.BootstrapTokenExtraGroupsKey:      Joiners,
				bootstrap.BootstrapTokenUsageAuthentication: "true",
				bootstrap.BootstrapTokenUsageSigningKey:     "true", // kube-public/cluster-info, for the machine to know the site by
			},
		}}, metav1.CreateOptions{FieldManager: manager})
	if apierrors.IsForbidden(err) {
		return i, errors.New("make a token: this account may not write Secrets of kube-system; use a kubeconfig of an administrator, such as /etc/kubernetes/admin.conf of a master")
	}
	if err != nil {
		return i, fmt.Errorf("make a token: %w", err)
	}
	return i, nil
}

// mastersOf are the addresses of the masters' API servers, those of masters that
// work first.
func mastersOf(ctx context.Context, client dynamic.Interface) (addresses []netip.AddrPort, err error) {
	list, err := client.Resource(nodesResource()).List(ctx, metav1.ListOptions{LabelSelector: MasterLabel})
	if err != nil {
		return nil, fmt.Errorf("look for the masters: %w", err)
	}
	var masters []node
	for _, item := range list.Items {
		n := readNode(&item)
		if _, err := netip.ParseAddr(n.address); err == nil {
			masters = append(masters, n)
		}
	}
	slices.SortFunc(masters, func(a, b node) int {
		return cmp.Or(-compareBools(a.ready == "True", b.ready == "True"), cmp.Compare(a.name, b.name))
	})
	for _, n := range masters[:min(len(masters), maxMasters)] {
		addresses = append(addresses, netip.AddrPortFrom(netip.MustParseAddr(n.address), APIPort))
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("look for the masters: no Node has the label %s and an address; was this cluster made by noded init?", MasterLabel)
	}
	return addresses, nil
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// caHash is the hash of the CA that a joining machine will be shown: the one in
// kube-public/cluster-info, else, where kubeadm has not been, the one that we
// trust ourselves.
func caHash(ctx context.Context, client dynamic.Interface, config *rest.Config) (string, error) {
	const deed = "find the site's CA"
	info, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).
		Namespace(metav1.NamespacePublic).Get(ctx, bootstrap.ConfigMapClusterInfo, metav1.GetOptions{})
	var ca []byte
	switch {
	case err == nil:
		text, _, _ := unstructured.NestedString(info.Object, "data", bootstrap.KubeConfigKey)
		shown, err := clientcmd.Load([]byte(text))
		if err != nil {
			return "", fmt.Errorf("%s: read ConfigMap kube-public/cluster-info: %w", deed, err)
		}
		for _, cluster := range shown.Clusters { // there is one
			ca = cluster.CertificateAuthorityData
		}
	case apierrors.IsNotFound(err):
		trusted := rest.CopyConfig(config)
		if err := rest.LoadTLSFiles(trusted); err != nil {
			return "", fmt.Errorf("%s: %w", deed, err)
		}
		ca = trusted.CAData
	default:
		return "", fmt.Errorf("%s: %w", deed, err)
	}
	certificates, err := cert.ParseCertsPEM(ca)
	if err != nil {
		return "", fmt.Errorf("%s: neither kube-public/cluster-info nor the kubeconfig has it: %w", deed, err)
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(certificates[0].RawSubjectPublicKeyInfo)), nil
}
