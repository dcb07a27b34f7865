package hand

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// manager is whose the fields are that a machine writes.
const manager = "noded"

// heartbeat is how long nothing is reported where nothing changed.
const heartbeat = 30 * time.Second

func nodes() schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
}

// report is what the site was told last.
type report struct {
	brick gluster.MachineBrick
	at    time.Time // zero is never, or that it failed
}

// due reports whether the site is to be told again.
func (r report) due(brick gluster.MachineBrick, now time.Time) bool {
	return r.at.IsZero() || now.Sub(r.at) >= heartbeat || differ(r.brick, brick)
}

// differ ignores when it was looked, and less than a hundredth of free space.
func differ(a, b gluster.MachineBrick) bool {
	if delta := a.Free - b.Free; max(delta, -delta) >= max(b.Size/100, 1) {
		return true
	}
	a.Free, a.Heartbeat = b.Free, b.Heartbeat
	return !reflect.DeepEqual(a, b)
}

// report tells the site of the brick and the mounts, where there is something to tell.
func (h *Hand) report(ctx context.Context, brick gluster.MachineBrick) error {
	now := time.Now()
	if !h.reported.due(brick, now) {
		return nil
	}
	h.reported.at = time.Time{}
	brick.Heartbeat = now.UTC().Truncate(time.Second)
	found, err := h.client.Resource(gluster.MachineResource()).Get(ctx, h.Machine, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // the reconciler makes it when the site repo declares it
	}
	if err != nil {
		return fmt.Errorf("report on the brick: %w", err)
	}
	var have struct {
		Status struct {
			Brick json.RawMessage `json:"brick"`
		} `json:"status"`
	}
	if err := gluster.Decode(found, &have); err != nil {
		return err
	}
	body, err := brickPatch(have.Status.Brick, brick)
	if err != nil {
		return fmt.Errorf("report on the brick: %w", err)
	}
	if _, err := h.client.Resource(gluster.MachineResource()).Patch(ctx, h.Machine, types.MergePatchType, body, metav1.PatchOptions{FieldManager: manager}, "status"); err != nil {
		return fmt.Errorf("report on the brick: %w", err)
	}
	h.reported = report{brick, now}
	return nil
}

// brickPatch is the merge patch that makes status.brick another: what is absent now
// is taken out by name.
func brickPatch(have json.RawMessage, want gluster.MachineBrick) ([]byte, error) {
	after, err := json.Marshal(want)
	if err != nil {
		return nil, err
	}
	if len(have) == 0 || string(have) == "null" {
		have = json.RawMessage("{}")
	}
	patch, err := jsonpatch.CreateMergePatch(have, after)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"status": map[string]any{"brick": json.RawMessage(patch)}})
}

// label makes the Node say which volumes are ready on it, and no others.
func (h *Hand) label(ctx context.Context, ready []string) error {
	node, err := h.client.Resource(nodes()).Get(ctx, h.Machine, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // then no Pod comes
	}
	if err != nil {
		return fmt.Errorf("label the Node: %w", err)
	}
	changes := labels(node.GetLabels(), ready)
	if len(changes) == 0 {
		return nil
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": changes}})
	if err != nil {
		return err
	}
	if _, err := h.client.Resource(nodes()).Patch(ctx, h.Machine, types.MergePatchType, body, metav1.PatchOptions{FieldManager: manager}); err != nil {
		return fmt.Errorf("label the Node: %w", err)
	}
	h.Log.InfoContext(ctx, "volumes ready for Pods", "volumes", ready)
	return nil
}

// labels are the changes that make a Node's labels right; nil takes one away.
func labels(have map[string]string, ready []string) map[string]any {
	want := map[string]any{}
	for key := range have {
		if strings.HasPrefix(key, gluster.ReadyLabel("")) {
			want[key] = nil
		}
	}
	for _, volume := range ready {
		key := gluster.ReadyLabel(volume)
		if have[key] == gluster.ReadyValue {
			delete(want, key)
		} else {
			want[key] = gluster.ReadyValue
		}
	}
	return want
}
