// Package keeper carries out what package session decides. The Keeper watches Sessions,
// Pods and templates, and makes, ends and releases the Pods of desktops; one portal at a
// time runs it, and it would be safe if two did. The Renewer renews their leases; every
// portal runs one. What they rest on is told in package session.
//
// It keeps nothing in its head that another could not find out: whoever takes over
// begins with a look at the API. What takes time, the desktops' own word and the events
// of their Pods, is asked beside the loop (attend.go).
package keeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// Keeper is the controller. Cluster, Person and Log are required.
type Keeper struct {
	Cluster *cluster.Cluster
	// Person is who a user is, as the directory has him now; ErrUnknown where it does not.
	Person func(ctx context.Context, user string) (session.Person, error)
	Log    *slog.Logger
	// Release of Kingmaker; see session.Order.
	Release string
	Now     func() time.Time // nil: time.Now

	wake    chan struct{}
	lists   lists
	since   map[string]time.Time // by UID of a Pod: when its generation was first seen to be over
	attends attendants
	refused time.Time // when the directory last did not answer
	brought time.Time // when the images of templates were last looked after
}

// ErrUnknown says that the directory has no such person, or that he is locked.
var ErrUnknown = errors.New("no such person")

// lists are the caches: each as old as its watch.
type lists struct {
	sessions, templates, pods cache.GenericLister
}

// interval is how long nothing may happen before all is looked at again: for what
// comes with time alone.
const interval = 2 * time.Second

// Run works until ctx is over.
func (k *Keeper) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := k.Cluster.Authority(ctx, cluster.DesktopAuthority, true, k.now()); err != nil {
		return err
	}
	k.wake = make(chan struct{}, 1)
	k.since = map[string]time.Time{}
	k.attends = attendants{keeper: k, notes: map[string]*note{}}
	defer k.attends.crew.end()
	if err := k.watch(ctx); err != nil {
		return err
	}
	timer := time.NewTicker(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-k.wake:
		}
		k.round(ctx)
	}
}

func (k *Keeper) now() time.Time {
	if k.Now != nil {
		return k.Now().UTC()
	}
	return time.Now().UTC()
}

func (k *Keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// watch fills the caches, and returns when they are full.
func (k *Keeper) watch(ctx context.Context) error {
	desks := dynamicinformer.NewFilteredDynamicSharedInformerFactory(k.Cluster.Dynamic, 0, session.Namespace, nil)
	site := dynamicinformer.NewDynamicSharedInformerFactory(k.Cluster.Dynamic, 0)
	ours := desktopPods(k.Cluster)
	pods, err := ours.ForResource(corev1.SchemeGroupVersion.WithResource("pods"))
	if err != nil {
		return err
	}
	all := []informers.GenericInformer{desks.ForResource(session.Resource()), site.ForResource(session.TemplateResource()), pods}
	k.lists = lists{sessions: all[0].Lister(), templates: all[1].Lister(), pods: all[2].Lister()}
	for _, i := range all {
		if _, err := i.Informer().AddEventHandler(pokes(k.poke)); err != nil {
			return err
		}
	}
	desks.Start(ctx.Done())
	site.Start(ctx.Done())
	ours.Start(ctx.Done())
	for _, i := range all {
		if !cache.WaitForCacheSync(ctx.Done(), i.Informer().HasSynced) {
			return ctx.Err()
		}
	}
	return nil
}

// round is one look at every Session, at Pods whose Session is gone, and at the images.
func (k *Keeper) round(ctx context.Context) {
	if err := k.bring(ctx); err != nil && ctx.Err() == nil {
		k.Log.Warn("images of desktops may not be on all machines", "error", err)
	}
	names := map[string]bool{}
	objects, _ := k.lists.sessions.List(labels.Everything())
	for _, o := range objects {
		names[o.(*unstructured.Unstructured).GetName()] = true
	}
	pods, _ := k.lists.pods.List(labels.Everything())
	there := map[string]bool{}
	var all []*corev1.Pod
	for _, o := range pods {
		pod := o.(*corev1.Pod)
		names[pod.Labels[session.Label]], there[string(pod.UID)] = true, true
		all = append(all, pod)
	}
	k.attends.crew.tend(ctx, all, k.attends.attend)
	k.attends.forget(there)
	maps.DeleteFunc(k.since, func(uid string, _ time.Time) bool { return !there[uid] })
	for name := range names {
		if ctx.Err() != nil {
			return
		}
		// What was done has a consequence, and often a next thing: five are enough for
		// all that do not wait for anybody.
		for range 5 {
			again, err := k.step(ctx, name)
			if errors.Is(err, cluster.ErrLate) {
				continue
			}
			if err != nil {
				k.Log.Warn("a desktop could not be looked after", "session", name, "error", err)
			}
			if !again {
				break
			}
		}
	}
}

// step is one decision about one Session, and its deed. It reports whether there may
// be another at once.
func (k *Keeper) step(ctx context.Context, name string) (again bool, err error) {
	l, err := k.glance(name)
	if err != nil {
		return false, err
	}
	d := session.Decide(l.Observed, k.now())
	if d.Do == session.Recheck {
		if l, err = k.look(ctx, name); err != nil {
			return false, err
		}
		if d = session.Decide(l.Observed, k.now()); d.Do == session.Recheck {
			return false, nil // a Pod came while we looked; its event wakes us
		}
	}
	if d.Do == session.Create {
		if d, err = k.order(ctx, &l, d); err != nil {
			return false, err
		}
	}
	for _, p := range l.Pods {
		if p.Generation == l.Spec.Generation {
			k.attends.watch(p.UID, !d.Status.Warned.IsZero())
		}
	}
	if l.There && changed(l.Status, d.Status) {
		if l.desk, err = k.Cluster.PutStatus(ctx, l.desk, d.Status); err != nil {
			if errors.Is(err, cluster.ErrLate) && !l.Fresh {
				return false, nil // the cache is behind; its event wakes us
			}
			return false, err
		}
	}
	if d.Do == session.Nothing {
		return false, nil
	}
	k.Log.Info("desktop", "do", string(d.Do), "session", name, "pod", d.Pod.Name, "generation", l.Spec.Generation, "why", d.Why)
	return k.act(ctx, l, d)
}

// act does what was decided. Each deed names by UID or version what it is about.
func (k *Keeper) act(ctx context.Context, l look, d session.Decision) (again bool, err error) {
	pods := k.Cluster.Client.CoreV1().Pods(session.Namespace)
	uid := types.UID(d.Pod.UID)
	switch d.Do {
	case session.Raise:
		// Where no Pod was made, nobody else takes the Secret away.
		former := session.PodName(l.desk.Name, l.Spec.Generation)
		if !slices.ContainsFunc(l.Pods, func(p session.Pod) bool { return p.Name == former }) {
			if err := k.forget(ctx, former); err != nil {
				return false, err
			}
		}
		spec := l.Spec
		spec.Generation = d.Generation
		_, err = k.Cluster.PutSpec(ctx, l.desk, spec)
		return false, err // the caches have to see it
	case session.Stop:
		spec := l.Spec
		spec.Wanted = false
		_, err = k.Cluster.PutSpec(ctx, l.desk, spec)
		return false, err
	case session.Create:
		return true, k.create(ctx, l)
	case session.Delete:
		err = pods.Delete(ctx, d.Pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	case session.Release:
		return false, k.release(ctx, d.Pod)
	case session.Warn:
		// Beside: it may take its time, and the page says it too.
		k.attends.warn(ctx, d.Pod)
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return false, nil // it is another's by now, or gone; its event wakes us
	}
	if err != nil {
		return false, fmt.Errorf("%s %s: %w", d.Do, d.Pod.Name, err)
	}
	return false, nil
}

// release takes a Pod out of the API, of which nothing runs any more.
func (k *Keeper) release(ctx context.Context, p session.Pod) error {
	// First: when the Pod is gone nobody looks for it any more.
	if err := k.forget(ctx, p.Name); err != nil {
		return err
	}
	pods := k.Cluster.Client.CoreV1().Pods(session.Namespace)
	uid := types.UID(p.UID)
	// At once: its kubelet may never answer again.
	err := pods.Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete Pod %s: %w", p.Name, err)
	}
	pod, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
	if err == nil && pod.UID == uid {
		pod.Finalizers = slices.DeleteFunc(pod.Finalizers, func(f string) bool { return f == session.Finalizer })
		_, err = pods.Update(ctx, pod, metav1.UpdateOptions{FieldManager: "kingmaker-portal"})
	}
	if apierrors.IsConflict(err) {
		return cluster.ErrLate
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("release Pod %s: %w", p.Name, err)
	}
	return nil
}

// forget deletes the Secret of a Pod.
func (k *Keeper) forget(ctx context.Context, pod string) error {
	err := k.Cluster.Client.CoreV1().Secrets(session.Namespace).Delete(ctx, pod, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the Secret of Pod %s: %s", pod, apierrors.ReasonForError(err))
	}
	return nil
}

// order gathers what a Pod is made from. Where something is missing, the Session says
// so, and nothing is made.
func (k *Keeper) order(ctx context.Context, l *look, d session.Decision) (session.Decision, error) {
	missing := func(reason, message string) (session.Decision, error) {
		d.Do = session.Nothing
		d.Status.Phase, d.Status.Reason, d.Status.Message = session.Failed, reason, message
		return d, nil
	}
	// A directory that is away must not hold up the desktops of all others.
	const away = "the directory does not answer"
	if k.now().Sub(k.refused) < 5*time.Second {
		return missing(session.NoPerson, away)
	}
	asked, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	person, err := k.Person(asked, l.Spec.User)
	if errors.Is(err, ErrUnknown) {
		return missing(session.NoPerson, "the directory does not know the user, or he is locked")
	}
	if err != nil {
		k.refused = k.now()
		k.Log.Warn("the directory does not say who somebody is", "session", l.desk.Name, "error", err)
		return missing(session.NoPerson, away)
	}
	var groups []string
	for _, g := range person.Groups {
		groups = append(groups, g.Name)
	}
	if !l.Template.For(groups) {
		return missing(session.NoTemplate, fmt.Sprintf("the desktop template %q is not for this user", l.Template.Name))
	}
	claims := []string{}
	if l.Template.Home != nil {
		claims = append(claims, l.Template.Home.Volume)
	}
	for _, s := range l.Template.Shared {
		claims = append(claims, s.Volume)
	}
	affinity, err := k.Cluster.Affinity(ctx, claims)
	if apierrors.IsNotFound(err) {
		return missing(session.NoVolume, err.Error())
	}
	if err != nil {
		return d, err
	}
	template := *l.Template
	template.Screen = cmp.Or(l.Spec.Screen, template.Screen)
	l.order = session.Order{Session: l.desk.Name, UID: l.UID, Generation: l.Spec.Generation, Person: person, Template: template, Release: k.Release, Affinity: affinity}
	if _, err := l.order.Pod(); err != nil {
		return missing(session.NoTemplate, err.Error())
	}
	return d, nil
}

// create makes the Secret and the Pod.
func (k *Keeper) create(ctx context.Context, l look) error {
	pod, err := l.order.Pod()
	if err != nil {
		return err
	}
	authority, err := k.Cluster.Authority(ctx, cluster.DesktopAuthority, true, k.now())
	if err != nil {
		return err
	}
	certificate, key, err := authority.Issue([]string{session.Host}, k.now())
	if err != nil {
		return err
	}
	secret := l.order.Secret(session.NewToken(), certificate, key)
	_, err = k.Cluster.Client.CoreV1().Secrets(session.Namespace).Create(ctx, secret, metav1.CreateOptions{FieldManager: "kingmaker-portal"})
	if err != nil && !apierrors.IsAlreadyExists(err) { // one that was made before the Pod could be will do
		return fmt.Errorf("make the Secret of %s: %s", pod.Name, apierrors.ReasonForError(err))
	}
	_, err = k.Cluster.Client.CoreV1().Pods(session.Namespace).Create(ctx, pod, metav1.CreateOptions{FieldManager: "kingmaker-portal"})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make Pod %s: %w", pod.Name, err)
	}
	return nil
}

func changed(a, b session.Status) bool {
	same := a.Since.Equal(b.Since) && a.LastInput.Equal(b.LastInput) && a.Warned.Equal(b.Warned) && a.FailedAt.Equal(b.FailedAt)
	a.Since, a.LastInput, a.Warned, a.FailedAt = b.Since, b.LastInput, b.Warned, b.FailedAt
	return !same || a != b
}

// generationOf a Pod, as its annotation has it.
func generationOf(pod *corev1.Pod) int64 {
	n, _ := strconv.ParseInt(pod.Annotations[session.NumberNote], 10, 64)
	return n
}
