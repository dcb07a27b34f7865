package machine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// Line is one machine for people, as the cluster knows it. Texts are empty where
// nothing is known.
type Line struct {
	Name    string    `json:"name"`
	Role    string    `json:"role,omitempty"`
	Ready   string    `json:"ready,omitempty"` // of its Node: True, False or Unknown
	Phase   string    `json:"phase,omitempty"` // as its agent reports it
	Seen    time.Time `json:"seen,omitzero"`   // when its agent last reported
	Address string    `json:"address,omitempty"`
	Joined  bool      `json:"joined"` // it has a Node
	Listed  bool      `json:"listed"` // it has a Machine: the site admits it
}

// Lines are the machines of a cluster in the order of their names: those that
// joined, and those that are expected. A cluster without Machines has none: its
// Nodes are no affair of ours.
func Lines(ctx context.Context, config *rest.Config) ([]Line, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	machines, err := client.Resource(Resource()).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) || err == nil && len(machines.Items) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	nodes, err := client.Resource(nodesResource()).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	lines := map[string]Line{}
	for _, item := range machines.Items {
		m := readMachine(&item)
		lines[m.name] = Line{Name: m.name, Role: m.role(), Phase: m.status.Phase, Seen: m.status.Heartbeat, Address: m.status.Inventory.Address, Listed: true}
	}
	for _, item := range nodes.Items {
		n := readNode(&item)
		l := lines[n.name]
		l.Name, l.Joined, l.Ready, l.Address = n.name, true, n.ready, cmp.Or(l.Address, n.address)
		lines[n.name] = l
	}
	var all []Line
	for _, l := range lines {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Line) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}
