package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// cluster is the API of a site, as seen with one of the kubeconfigs that kubeadm
// left on the machine.
type cluster struct{ client dynamic.Interface }

// errNoCluster says that the machine has no such kubeconfig.
var errNoCluster = errors.New("there is no cluster here yet")

// Connect reads a kubeconfig of the machine. No proxy stands between it and its
// site, and a connection that hangs takes no other request with it.
func Connect(h *host.Host, kubeconfig string) (*rest.Config, error) {
	if !h.Exists(kubeconfig) {
		return nil, errNoCluster
	}
	config, err := clientcmd.BuildConfigFromFlags("", h.Path(kubeconfig))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	config.Proxy = http.ProxyURL(nil)
	config.NextProtos = []string{"http/1.1"}
	config.Timeout = 5 * time.Second
	config.QPS = -1 // one look a second needs no brake
	return config, nil
}

// Speak is how noded of some version speaks to the site, as the machine's Node and
// through the balancer: kubeadm gives a master's kubelet its own API server alone,
// and the machine must be heard when just that one is down. client-go reads the
// certificate again when the kubelet has renewed it.
func (m *Membership) Speak(h *host.Host, version string) (*rest.Config, error) {
	config, err := Connect(h, Word(h))
	if err != nil {
		return nil, err
	}
	config.Host = "https://" + m.Endpoint
	config.UserAgent = "kingmaker-noded/" + version
	return config, nil
}

func openCluster(h *host.Host, kubeconfig string) (*cluster, error) {
	config, err := Connect(h, kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	return &cluster{client}, nil
}

// Resources that are looked at.
func core(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: resource}
}

// get reads an object; a missing one is left as it is, and found is false.
func (c *cluster) get(ctx context.Context, resource schema.GroupVersionResource, namespace, name string, into any) (found bool, err error) {
	o, err := c.client.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	text, err := o.MarshalJSON()
	if err != nil {
		return false, err
	}
	return true, json.Unmarshal(text, into)
}

// ready reports whether a Node is, and if not what it says of itself.
func (c *cluster) ready(ctx context.Context, node string) (ok bool, why string, err error) {
	var n struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	found, err := c.get(ctx, core("nodes"), "", node, &n)
	if err != nil {
		return false, "", err
	}
	if !found {
		return false, "it is not known yet", nil
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True", condition.Message, nil
		}
	}
	return false, "its kubelet has not reported yet", nil
}

// reconciler reports whether the DaemonSet is there, whether it works, and if not
// why. One that works is enough: it has the lease, or takes it.
func (c *cluster) reconciler(ctx context.Context) (exists, works bool, why string, err error) {
	var d struct {
		Metadata struct{ Generation int64 }
		Status   struct {
			ObservedGeneration                      int64
			DesiredNumberScheduled, NumberAvailable int
		}
	}
	daemonSets := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	exists, err = c.get(ctx, daemonSets, systemNamespace, reconcilerName, &d)
	if err != nil || !exists {
		return exists, false, "it is not there", err
	}
	switch s := d.Status; {
	case s.ObservedGeneration < d.Metadata.Generation:
		return true, false, "its Pods are not planned yet", nil
	case s.DesiredNumberScheduled == 0:
		return true, false, "no Node is a master's", nil
	default:
		return true, s.NumberAvailable > 0, fmt.Sprintf("%d of %d Pods work", s.NumberAvailable, s.DesiredNumberScheduled), nil
	}
}

// has reports whether the cluster has ConfigMaps and Secrets with these data.
func (c *cluster) has(ctx context.Context, objects []object) bool {
	resources := map[string]string{"ConfigMap": "configmaps", "Secret": "secrets"}
	for _, o := range objects {
		resource := resources[o["kind"].(string)]
		if resource == "" {
			continue // a namespace is there when what is in it is
		}
		var have struct{ Data map[string]string }
		found, err := c.get(ctx, core(resource), systemNamespace, o["metadata"].(object)["name"].(string), &have)
		if err != nil || !found {
			return false
		}
		for key, value := range o["data"].(map[string]string) {
			if have.Data[key] != value {
				return false
			}
		}
	}
	return true
}

// goodbye tells the site at once what it would notice only when the heartbeat
// stays away for a while: that the kubelet is gone, and its machine with it. It
// speaks with the node's own certificate, and is a courtesy: a site that cannot
// be reached notices by itself.
func (c *cluster) goodbye(ctx context.Context, node string, now time.Time) error {
	const left = "noded reset: the machine left the site"
	at := now.UTC().Format(time.RFC3339)
	say := func(resource schema.GroupVersionResource, form types.PatchType, status object) error {
		text, err := json.Marshal(object{"status": status})
		if err != nil {
			return err
		}
		_, err = c.client.Resource(resource).Patch(ctx, node, form, text, metav1.PatchOptions{FieldManager: "noded"}, "status")
		return err
	}
	err := say(core("nodes"), types.StrategicMergePatchType, object{"conditions": []object{{
		"type": "Ready", "status": "False", "reason": "Left", "message": left, "lastHeartbeatTime": at, "lastTransitionTime": at,
	}}})
	var mc struct{ Status machine.Status }
	if found, e := c.get(ctx, machine.Resource(), "", node, &mc); e != nil || !found {
		return errors.Join(err, e)
	}
	for i := range mc.Status.Conditions {
		if c := &mc.Status.Conditions[i]; c.Type == machine.ConditionReady {
			c.Status, c.Reason, c.Message, c.LastTransitionTime = "False", "Left", left, now.UTC().Truncate(time.Second)
		}
	}
	return errors.Join(err, say(machine.Resource(), types.MergePatchType, object{"phase": machine.Leaving, "conditions": mc.Status.Conditions}))
}
