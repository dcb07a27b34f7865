package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// watchFor is how long one watch lasts. A connection that died without a word
// is found out by its end.
const watchFor = time.Minute

// follow keeps the balancer's list of masters equal to the site's. While nobody
// tells it of any master, the last good list stays.
func (a *Agent) follow(ctx context.Context, m *member.Membership) {
	var client dynamic.Interface
	var word string
	var told troubles
	retry := cmp.Or(a.Retry, 3*time.Second)
	for {
		var err error
		began := time.Now()
		if now := member.Word(a.Host); client == nil || now != word {
			word = now
			client, err = a.watcher(m)
		}
		if err == nil {
			err = a.followOnce(ctx, client, m)
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			told = nil
			if time.Since(began) > retry {
				continue // the watch has ended, as watches do
			}
		} else if told.new(err.Error()) {
			a.Log.WarnContext(ctx, "the masters are not known; the last ones stay", "error", err)
		}
		if member.Wait(ctx, jitter(retry)) != nil {
			return
		}
	}
}

func (a *Agent) watcher(m *member.Membership) (dynamic.Interface, error) {
	config, err := m.Speak(a.Host, a.Version)
	if err != nil {
		return nil, err
	}
	config.Timeout = 0 // of a watch; its end is set below
	return dynamic.NewForConfig(config)
}

// followOnce lists the Machines and watches them until the watch ends.
func (a *Agent) followOnce(ctx context.Context, client dynamic.Interface, m *member.Membership) error {
	ctx, cancel := context.WithTimeout(ctx, watchFor+15*time.Second)
	defer cancel()
	machines := client.Resource(machine.Resource())
	list, err := machines.List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	var answer apierrors.APIStatus
	if errors.As(err, &answer) { // it has no Machines yet, or does not show them
		return errors.Join(err, a.set(ctx, client, m, nil))
	}
	if err != nil {
		return unanswered(err)
	}
	known := map[string]netip.AddrPort{}
	for i := range list.Items {
		if err := a.note(known, m, &list.Items[i]); err != nil {
			return err
		}
	}
	if err := a.set(ctx, client, m, known); err != nil {
		return err
	}
	seconds := int64(watchFor / time.Second)
	w, err := machines.Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion(), TimeoutSeconds: &seconds})
	if err != nil {
		return unanswered(err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		o, ok := event.Object.(*unstructured.Unstructured)
		switch {
		case event.Type == watch.Error:
			return apierrors.FromObject(event.Object)
		case !ok:
			continue
		case event.Type == watch.Deleted:
			delete(known, o.GetName())
		default:
			if err := a.note(known, m, o); err != nil {
				return err
			}
		}
		if err := a.set(ctx, client, m, known); err != nil {
			return err
		}
	}
	return nil
}

// note keeps of a Machine what matters here: where its API server is; and of the own
// one what it is told to do.
func (a *Agent) note(known map[string]netip.AddrPort, m *member.Membership, o *unstructured.Unstructured) error {
	mc, err := read(o)
	if err != nil {
		return err
	}
	if o.GetName() == m.Name {
		a.hear(m.Name, mc)
	}
	delete(known, o.GetName())
	address := addressOf(mc.Status.Inventory.Address)
	if !address.IsValid() {
		address = addressOf(mc.Spec.Address)
	}
	if mc.Spec.Role == machine.Master && address.IsValid() {
		known[o.GetName()] = netip.AddrPortFrom(address, machine.APIPort)
	}
	return nil
}

// set gives the balancer the masters that are known; where none is, those that
// Kubernetes calls so. A balancer that has them already is left alone.
func (a *Agent) set(ctx context.Context, client dynamic.Interface, m *member.Membership, known map[string]netip.AddrPort) error {
	masters := sorted(slices.Collect(maps.Values(known)))
	if len(masters) == 0 {
		var err error
		if masters, err = a.controlPlane(ctx, client); err != nil || len(masters) == 0 {
			return err
		}
	}
	changed, err := host.SetMasters(ctx, a.Host, m.Site, masters)
	if changed && err == nil {
		a.Log.InfoContext(ctx, "masters", "now", masters)
	}
	return err
}

// controlPlane asks Kubernetes, which does not let every Node see that.
func (a *Agent) controlPlane(ctx context.Context, client dynamic.Interface) (masters []netip.AddrPort, err error) {
	nodes := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"})
	list, err := nodes.List(ctx, metav1.ListOptions{LabelSelector: machine.MasterLabel})
	if apierrors.IsForbidden(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the Nodes of masters: %w", unanswered(err))
	}
	for _, node := range list.Items {
		addresses, _, _ := unstructured.NestedSlice(node.Object, "status", "addresses")
		for _, entry := range addresses {
			if e, ok := entry.(map[string]any); ok && e["type"] == "InternalIP" {
				text, _ := e["address"].(string)
				if address := addressOf(text); address.IsValid() {
					masters = append(masters, netip.AddrPortFrom(address, machine.APIPort))
				}
			}
		}
	}
	return sorted(masters), nil
}
