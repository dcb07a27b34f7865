// Package cluster is what the portal has and finds in Kubernetes: Sessions, desktop
// templates, the Secrets of desktops, and how the site is. It decides nothing. The
// pages (web) and the controller (keeper) both work on it, each through the interface
// or the methods that it needs.
//
// It promises that an address of a desktop comes from the Session of the user alone,
// that it is one of a Pod, and that who answers there is that very desktop; and that no
// error quotes a Secret.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// Namespace is the portal's own: its visits and keys. Nobody else has Secrets here.
const Namespace = "kingmaker-portal"

// Cluster is one. Both clients are required.
type Cluster struct {
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	// Pods is the range of the Pods' addresses. The zero value is the Site's.
	Pods netip.Prefix
	// Site is the name of the Site object; "" is the only one there is.
	Site string

	pods      lately[netip.Prefix]
	authority lately[session.Authority] // of desktops
}

// lately is what every way to a desktop needs, and hardly ever changes: it is read anew
// once a minute.
type lately[T any] struct {
	mu    sync.Mutex
	value T
	until time.Time
}

func (l *lately[T]) get(read func() (T, error)) (T, error) {
	l.mu.Lock()
	value, until := l.value, l.until
	l.mu.Unlock()
	if time.Now().Before(until) {
		return value, nil
	}
	value, err := read()
	if err == nil {
		l.mu.Lock()
		l.value, l.until = value, time.Now().Add(time.Minute)
		l.mu.Unlock()
	}
	return value, err
}

// defaultPods is what Site.spec.network.pods is by default.
var defaultPods = netip.MustParsePrefix("10.244.0.0/16")

// Desk is a Session as it is stored.
type Desk struct {
	Name   string
	UID    string
	Spec   session.Spec
	Status session.Status

	object *unstructured.Unstructured
}

// Shows reports whether there is a screen to look at, of the generation that is wanted.
func (d Desk) Shows() bool { return d.Status.Generation == d.Spec.Generation && d.Status.PodIP != "" }

// ReadDesk is the Desk of an object, which it keeps.
func ReadDesk(o *unstructured.Unstructured) (Desk, error) {
	d := Desk{Name: o.GetName(), UID: string(o.GetUID()), object: o}
	if err := decode(o, &struct {
		Spec   *session.Spec   `json:"spec"`
		Status *session.Status `json:"status"`
	}{&d.Spec, &d.Status}); err != nil {
		return d, fmt.Errorf("read Session %s: %w", o.GetName(), err)
	}
	return d, nil
}

func decode(o *unstructured.Unstructured, to any) error {
	text, err := o.MarshalJSON()
	if err != nil {
		return err
	}
	return json.Unmarshal(text, to)
}

func (c *Cluster) sessions() dynamic.ResourceInterface {
	return c.Dynamic.Resource(session.Resource()).Namespace(session.Namespace)
}

// Get is the Desk of that name; ok is false where there is none.
func (c *Cluster) Get(ctx context.Context, name string) (d Desk, ok bool, err error) {
	o, err := c.sessions().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return d, false, nil
	}
	if err != nil {
		return d, false, fmt.Errorf("read Session %s: %w", name, err)
	}
	d, err = ReadDesk(o)
	return d, err == nil, err
}

// ErrLate says that a Session was changed since it was read.
var ErrLate = errors.New("the Session was changed meanwhile")

// PutSpec stores the spec over the very version that was read.
func (c *Cluster) PutSpec(ctx context.Context, d Desk, spec session.Spec) (Desk, error) {
	return c.put(d, "spec", spec, func(o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		return c.sessions().Update(ctx, o, metav1.UpdateOptions{FieldManager: "kingmaker-portal", FieldValidation: metav1.FieldValidationStrict})
	})
}

// PutStatus is the same for the status.
func (c *Cluster) PutStatus(ctx context.Context, d Desk, status session.Status) (Desk, error) {
	return c.put(d, "status", status, func(o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		return c.sessions().UpdateStatus(ctx, o, metav1.UpdateOptions{FieldManager: "kingmaker-portal"})
	})
}

func (c *Cluster) put(d Desk, field string, value any, write func(*unstructured.Unstructured) (*unstructured.Unstructured, error)) (Desk, error) {
	tree, err := toTree(value)
	if err != nil {
		return d, err
	}
	o := d.object.DeepCopy()
	o.Object[field] = tree
	o, err = write(o)
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return d, fmt.Errorf("write the %s of Session %s: %w", field, d.Name, ErrLate)
	case err != nil:
		return d, fmt.Errorf("write the %s of Session %s: %w", field, d.Name, err)
	}
	return ReadDesk(o)
}

func toTree(value any) (tree map[string]any, err error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	o := &unstructured.Unstructured{}
	// Whole numbers stay whole, as the API has them.
	if err := o.UnmarshalJSON([]byte(`{"apiVersion":"v1","kind":"X","of":` + string(text) + `}`)); err != nil {
		return nil, err
	}
	tree, _ = o.Object["of"].(map[string]any)
	return tree, nil
}

// Look is the Desk of a user; ok is false of one who never had any.
func (c *Cluster) Look(ctx context.Context, user string) (d Desk, ok bool, err error) {
	d, ok, err = c.Get(ctx, session.Name(user))
	if ok && d.Spec.User != user { // a name is one user's; written by hand, then
		return Desk{}, false, fmt.Errorf("read Session %s: it is another user's", d.Name)
	}
	return d, ok, err
}

// All Desks, by user.
func (c *Cluster) All(ctx context.Context) (all []Desk, err error) {
	list, err := c.sessions().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Sessions: %w", err)
	}
	for i := range list.Items {
		d, err := ReadDesk(&list.Items[i])
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b Desk) int { return strings.Compare(a.Spec.User, b.Spec.User) })
	return all, nil
}

// Start has the desktop of a user run, from a template and with a screen of that size;
// zero is the template's. One that is wanted already, from the same, is left as it is.
func (c *Cluster) Start(ctx context.Context, user, template string, screen session.Size) error {
	err := c.change(ctx, user, func(s *session.Spec) bool {
		if s.Wanted && s.Template == template {
			return false
		}
		s.Template, s.Wanted, s.Screen, s.Generation = template, true, screen, s.Generation+1
		return true
	})
	if !errors.Is(err, errNoSession) {
		return err
	}
	tree, err := toTree(session.Spec{User: user, Template: template, Generation: 1, Wanted: true, Screen: screen})
	if err != nil {
		return err
	}
	_, err = c.sessions().Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": session.Version, "kind": "Session",
		"metadata": map[string]any{"name": session.Name(user), "labels": map[string]any{session.OwnerLabel: session.Owner}},
		"spec":     tree,
	}}, metav1.CreateOptions{FieldManager: "kingmaker-portal", FieldValidation: metav1.FieldValidationStrict})
	if err != nil && !apierrors.IsAlreadyExists(err) { // another browser of the user was faster
		return fmt.Errorf("make a Session: %w", err)
	}
	return nil
}

// Restart has the desktop of a user made anew.
func (c *Cluster) Restart(ctx context.Context, user string) error {
	return c.change(ctx, user, func(s *session.Spec) bool { s.Wanted, s.Generation = true, s.Generation+1; return true })
}

// Stop ends the desktop of a user. The home stays.
func (c *Cluster) Stop(ctx context.Context, user string) error {
	return c.change(ctx, user, func(s *session.Spec) bool { was := s.Wanted; s.Wanted = false; return was })
}

var errNoSession = errors.New("the user has no Session")

func (c *Cluster) change(ctx context.Context, user string, change func(*session.Spec) bool) error {
	for range 10 {
		d, ok, err := c.Look(ctx, user)
		if err != nil {
			return err
		}
		if !ok {
			return errNoSession
		}
		spec := d.Spec
		if !change(&spec) {
			return nil
		}
		if _, err = c.PutSpec(ctx, d, spec); !errors.Is(err, ErrLate) {
			return err
		}
	}
	return ErrLate
}

// Watch tells of the Desk of a user: as it is, and whenever it changes, until ctx is
// over. What it cannot read it leaves out; the next look will.
func (c *Cluster) Watch(ctx context.Context, user string) <-chan Desk {
	out := make(chan Desk, 1)
	go func() {
		defer close(out)
		last := ""
		tell := func(d Desk) {
			version := d.object.GetResourceVersion()
			if last != "" {
				if order, err := resourceversion.CompareResourceVersion(version, last); err != nil || order <= 0 {
					return
				}
			}
			last = version
			select {
			case out <- d:
			case <-ctx.Done():
			}
		}
		for ctx.Err() == nil {
			w, err := c.sessions().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + session.Name(user)})
			// A look at the beginning of each watch: what it begins with may be old.
			if d, ok, err := c.Look(ctx, user); err == nil && ok {
				tell(d)
			}
			if err != nil {
				pause(ctx, time.Second)
				continue
			}
			again := time.NewTimer(10 * time.Second)
			for open := true; open; {
				select {
				case event, more := <-w.ResultChan():
					open = more
					if d, ok := deskOf(event, user); ok {
						tell(d)
					}
				case <-again.C:
					open = false
				case <-ctx.Done():
					open = false
				}
			}
			again.Stop()
			w.Stop()
		}
	}()
	return out
}

// deskOf is the Desk that an event tells of.
func deskOf(event watch.Event, user string) (d Desk, ok bool) {
	o, ok := event.Object.(*unstructured.Unstructured)
	if !ok || event.Type != watch.Added && event.Type != watch.Modified {
		return d, false
	}
	d, err := ReadDesk(o)
	return d, err == nil && d.Spec.User == user
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Templates are all desktop templates. One that cannot be read is left out: the
// reconciler tells of it.
func (c *Cluster) Templates(ctx context.Context) (all []session.Template, err error) {
	list, err := c.Dynamic.Resource(session.TemplateResource()).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list desktop templates: %w", err)
	}
	for i := range list.Items {
		if t, err := ReadTemplate(&list.Items[i]); err == nil {
			all = append(all, t)
		}
	}
	return all, nil
}

// ReadTemplate is the template of an object.
func ReadTemplate(o *unstructured.Unstructured) (t session.Template, err error) {
	err = decode(o, &struct {
		Spec *session.Template `json:"spec"`
	}{&t})
	t.Name = o.GetName()
	return t, err
}

func resource(plural string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: session.Group, Version: "v1alpha1", Resource: plural}
}

// MachineResource is where the Machines are.
func MachineResource() schema.GroupVersionResource { return resource("machines") }

// Machine is one, as far as the portal knows it.
type Machine struct {
	Name      string
	Role      string    `json:"-"`
	Phase     string    `json:"phase"`
	Heartbeat time.Time `json:"heartbeat"`
	Inventory struct {
		Address   string   `json:"address"`
		Addresses []string `json:"addresses"`
	} `json:"inventory"`
	Conditions []condition `json:"conditions"`
}

type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

// Message is why it is not ready; "" where it is.
func (m Machine) Message() string {
	for _, c := range m.Conditions {
		if c.Type == "Ready" && c.Status != "True" {
			return c.Message
		}
	}
	return ""
}

// ReadMachine is the Machine of an object.
func ReadMachine(o *unstructured.Unstructured) (m Machine, err error) {
	var spec struct {
		Role string `json:"role"`
	}
	err = decode(o, &struct {
		Spec   any      `json:"spec"`
		Status *Machine `json:"status"`
	}{&spec, &m})
	m.Name, m.Role = o.GetName(), spec.Role
	return m, err
}

// Machines of the site, by name.
func (c *Cluster) Machines(ctx context.Context) (all []Machine, err error) {
	list, err := c.Dynamic.Resource(MachineResource()).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Machines: %w", err)
	}
	for i := range list.Items {
		m, err := ReadMachine(&list.Items[i])
		if err != nil {
			return nil, fmt.Errorf("read Machine %s: %w", list.Items[i].GetName(), err)
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Machine) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Volume is one, as its steward sees it.
type Volume struct {
	Name    string
	Phase   string `json:"phase"`
	Copies  string `json:"copies"`
	Pending int    `json:"pending"`
	Message string `json:"message"`
}

// Volumes of the site, by name.
func (c *Cluster) Volumes(ctx context.Context) (all []Volume, err error) {
	list, err := c.Dynamic.Resource(resource("volumes")).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Volumes: %w", err)
	}
	for i := range list.Items {
		v := Volume{Name: list.Items[i].GetName()}
		if err := decode(&list.Items[i], &struct {
			Status *Volume `json:"status"`
		}{&v}); err != nil {
			return nil, fmt.Errorf("read Volume %s: %w", v.Name, err)
		}
		v.Name = list.Items[i].GetName()
		all = append(all, v)
	}
	return all, nil
}

// Site is what git says of the site, and how far it is.
type Site struct {
	Name            string
	Domain          string
	Admins          string // the group whose members administer; "" is nobody
	Pods            string
	Wanted, Reached string // commits
	Ready           string
	Message         string
	LastRound       time.Time
}

// ReadSite is the one Site; the zero value where there is none yet.
func (c *Cluster) ReadSite(ctx context.Context) (s Site, err error) {
	list, err := c.Dynamic.Resource(resource("sites")).List(ctx, metav1.ListOptions{})
	if err != nil {
		return s, fmt.Errorf("read the Site: %w", err)
	}
	for i := range list.Items {
		if c.Site == "" && len(list.Items) == 1 || list.Items[i].GetName() == c.Site {
			return readSite(&list.Items[i])
		}
	}
	return s, nil
}

func readSite(o *unstructured.Unstructured) (s Site, err error) {
	var tree struct {
		Spec struct {
			Domain  string `json:"domain"`
			Admins  string `json:"admins"`
			Network struct {
				Pods string `json:"pods"`
			} `json:"network"`
		} `json:"spec"`
		Status struct {
			Commit struct {
				Wanted  string `json:"wanted"`
				Reached string `json:"reached"`
			} `json:"commit"`
			LastRound  time.Time   `json:"lastRound"`
			Conditions []condition `json:"conditions"`
		} `json:"status"`
	}
	if err := decode(o, &tree); err != nil {
		return s, fmt.Errorf("read the Site: %w", err)
	}
	s = Site{Name: o.GetName(), Domain: tree.Spec.Domain, Admins: tree.Spec.Admins, Pods: tree.Spec.Network.Pods,
		Wanted: tree.Status.Commit.Wanted, Reached: tree.Status.Commit.Reached, LastRound: tree.Status.LastRound}
	for _, c := range tree.Status.Conditions {
		if c.Type == "Ready" {
			s.Ready, s.Message = c.Status, c.Message
		}
	}
	return s, nil
}

// Affinity are the demands that volumes have on a machine, by the names of their claims.
// The scheduler knows them too; in the Pod they say what it waits for.
func (c *Cluster) Affinity(ctx context.Context, claims []string) (all []corev1.NodeSelectorRequirement, err error) {
	demands := make([][]corev1.NodeSelectorRequirement, len(claims))
	errs := make([]error, len(claims))
	var asked sync.WaitGroup
	for i, name := range claims { // somebody waits
		asked.Go(func() { demands[i], errs[i] = c.demands(ctx, name) })
	}
	asked.Wait()
	for i := range claims {
		if errs[i] != nil {
			return nil, errs[i]
		}
		for _, r := range demands[i] {
			if !slices.ContainsFunc(all, func(have corev1.NodeSelectorRequirement) bool { return have.Key == r.Key }) {
				all = append(all, r)
			}
		}
	}
	return all, nil
}

// demands are those of one volume.
func (c *Cluster) demands(ctx context.Context, name string) ([]corev1.NodeSelectorRequirement, error) {
	claim, err := c.Client.CoreV1().PersistentVolumeClaims(session.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the claim of volume %s: %w", name, err)
	}
	if claim.Spec.VolumeName == "" {
		return nil, nil
	}
	volume, err := c.Client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read volume %s: %w", name, err)
	}
	a := volume.Spec.NodeAffinity
	if a == nil || a.Required == nil || len(a.Required.NodeSelectorTerms) != 1 { // one of several terms is none of ours
		return nil, nil
	}
	return a.Required.NodeSelectorTerms[0].MatchExpressions, nil
}
