package crown

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// Resource is where the cluster serves the records.
func Resource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: plan.Group, Version: "v1alpha1", Resource: "crowns"}
}

// ErrLate says that a record is not, or not any more, as it was read: another
// daemon decided meanwhile. Nothing was stored; look and decide again.
var ErrLate = errors.New("the record was written by another hand meanwhile")

// Store holds the records of a cluster. The zero value has no client; Client is
// required. It is for one daemon's loop, and not for several at once.
type Store struct {
	Client  dynamic.Interface
	Manager string // field manager; "" is kingmaker

	versions map[int]version // by number, as last read or written
}

type version struct {
	uid     types.UID
	version string
}

// object is a record as the API has it.
type object struct {
	Spec   Spec   `json:"spec"`
	Status Status `json:"status"`
}

// List reads all records as they are now, the oldest first: linearizable, from no
// cache. One that cannot be read is an error and not left out, for it may be open.
func (s *Store) List(ctx context.Context) (crowns []roles.Crown, err error) {
	list, err := s.Client.Resource(Resource()).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list crowns: %w", err)
	}
	versions := map[int]version{}
	for i := range list.Items {
		item := &list.Items[i]
		c, err := decode(item)
		if err == nil && item.GetName() != c.Name() {
			err = fmt.Errorf("its number is %d", c.Number)
		}
		if err != nil {
			return nil, fmt.Errorf("read Crown %s: %w; where it was written by hand, delete it", item.GetName(), err)
		}
		versions[c.Number] = version{item.GetUID(), item.GetResourceVersion()}
		crowns = append(crowns, c)
	}
	slices.SortFunc(crowns, func(a, b roles.Crown) int { return cmp.Compare(a.Number, b.Number) })
	s.versions = versions
	return crowns, nil
}

func decode(item *unstructured.Unstructured) (c roles.Crown, err error) {
	text, err := item.MarshalJSON()
	if err != nil {
		return c, err
	}
	var o object
	if err := json.Unmarshal(text, &o); err != nil {
		return c, err
	}
	return read(o.Spec, o.Status)
}

// Put stores a record: a new one where the last List had none of its number, else
// over the very version that was last read or written. ErrLate is in the error where
// that is not there any more.
func (s *Store) Put(ctx context.Context, c *roles.Crown) error {
	deed := "store " + c.Name()
	spec, status := write(c)
	if _, err := read(spec, status); err != nil {
		return fmt.Errorf("%s: %w", deed, err)
	}
	body, err := json.Marshal(map[string]any{"apiVersion": plan.APIVersion, "kind": "Crown", "metadata": map[string]any{"name": c.Name()}, "spec": spec, "status": status})
	if err != nil {
		return fmt.Errorf("%s: %w", deed, err)
	}
	record := &unstructured.Unstructured{}
	if err := record.UnmarshalJSON(body); err != nil {
		return fmt.Errorf("%s: %w", deed, err)
	}
	manager := cmp.Or(s.Manager, "kingmaker")
	client := s.Client.Resource(Resource())
	if last, ok := s.versions[c.Number]; ok {
		record.SetUID(last.uid)
		record.SetResourceVersion(last.version)
		record, err = client.Update(ctx, record, metav1.UpdateOptions{FieldManager: manager, FieldValidation: metav1.FieldValidationStrict})
	} else {
		record, err = client.Create(ctx, record, metav1.CreateOptions{FieldManager: manager, FieldValidation: metav1.FieldValidationStrict})
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
		return fmt.Errorf("%s: %w: %w", deed, ErrLate, err)
	case err != nil:
		return fmt.Errorf("%s: %w", deed, err)
	}
	if s.versions == nil {
		s.versions = map[int]version{}
	}
	s.versions[c.Number] = version{record.GetUID(), record.GetResourceVersion()}
	return nil
}

// What is kept of ended crowns: enough for the breakers, which look back a day, and
// for people who want to know what became of last week.
const (
	keepFor   = 30 * 24 * time.Hour
	keepCount = 100
)

// Prune deletes records that are over and of use to nobody. The newest stays: the
// next number comes from it.
func (s *Store) Prune(ctx context.Context, crowns []roles.Crown, now time.Time) error {
	var errs []error
	for _, c := range over(crowns, now) {
		last := s.versions[c.Number]
		err := s.Client.Resource(Resource()).Delete(ctx, c.Name(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &last.uid, ResourceVersion: &last.version}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			errs = append(errs, fmt.Errorf("delete %s: %w", c.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// over are the records to delete, of all in order.
func over(crowns []roles.Crown, now time.Time) (old []roles.Crown) {
	for i, c := range crowns {
		young := now.Sub(c.Ended) < keepFor && len(crowns)-i <= keepCount || now.Sub(c.Ended) < 24*time.Hour
		if !c.Open() && !young && i < len(crowns)-1 {
			old = append(old, c)
		}
	}
	return old
}
