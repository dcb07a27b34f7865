package gluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// lease is the steward's lease: a resourcelock.Interface of client-go on the status
// of the Pool. A Lease of Kubernetes would be the usual place, but the admission
// plugin NodeRestriction lets a node write no Lease but its own.
type lease struct {
	client  dynamic.Interface
	holder  string // this machine
	version string // of the Pool as it was last seen
}

func (l *lease) pools() dynamic.ResourceInterface { return l.client.Resource(PoolResource()) }

// Get reads the lease; one that nobody ever had is empty.
func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	o, err := l.pools().Get(ctx, PoolName, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	return l.read(o)
}

func (l *lease) read(o *unstructured.Unstructured) (*resourcelock.LeaderElectionRecord, []byte, error) {
	status, err := readPool(o)
	if err != nil {
		return nil, nil, err
	}
	l.version = o.GetResourceVersion()
	at := status.Steward
	record := &resourcelock.LeaderElectionRecord{HolderIdentity: at.Holder, LeaseDurationSeconds: at.Seconds, LeaderTransitions: at.Transitions,
		AcquireTime: metav1.NewTime(at.Acquired), RenewTime: metav1.NewTime(at.Renewed)}
	raw, err := json.Marshal(record)
	return record, raw, err
}

// Create makes the Pool, and takes the lease.
func (l *lease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	o, err := l.pools().Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": plan.APIVersion, "kind": "Pool", "metadata": map[string]any{"name": PoolName}}}, metav1.CreateOptions{FieldManager: steward})
	if err != nil {
		return err
	}
	l.version = o.GetResourceVersion()
	return l.Update(ctx, record)
}

// Update writes the lease in the version that was last seen, or fails.
func (l *lease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": l.version},
		"status": map[string]any{"steward": Lease{record.HolderIdentity, record.LeaseDurationSeconds,
			record.AcquireTime.UTC().Truncate(time.Second), record.RenewTime.UTC().Truncate(time.Second), record.LeaderTransitions}},
	})
	if err != nil {
		return err
	}
	o, err := l.pools().Patch(ctx, PoolName, types.MergePatchType, body, metav1.PatchOptions{FieldManager: steward}, "status")
	if err != nil {
		return err
	}
	l.version = o.GetResourceVersion()
	return nil
}

// RecordEvent is told by nobody: the lease itself shows it.
func (l *lease) RecordEvent(string) {}

// Identity is this machine.
func (l *lease) Identity() string { return l.holder }

// Describe names the lock in messages of client-go.
func (l *lease) Describe() string { return "pool/" + PoolName }

// readPool is the status of a Pool.
func readPool(o *unstructured.Unstructured) (PoolStatus, error) {
	var into struct{ Status PoolStatus }
	err := Decode(o, &into)
	return into.Status, err
}

// getPool is the Pool of the site; none is empty.
func getPool(ctx context.Context, client dynamic.Interface) (PoolStatus, error) {
	o, err := client.Resource(PoolResource()).Get(ctx, PoolName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return PoolStatus{}, nil
	}
	if err != nil {
		return PoolStatus{}, fmt.Errorf("read the pool: %w", err)
	}
	return readPool(o)
}
