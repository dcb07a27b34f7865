package keeper

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// look is what was seen of one Session, with the object behind it.
type look struct {
	session.Observed
	desk  cluster.Desk
	order session.Order
}

// glance is a look at the caches.
func (k *Keeper) glance(name string) (look, error) {
	o, err := k.lists.sessions.ByNamespace(session.Namespace).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return look{}, err
	}
	var desk cluster.Desk
	if err == nil {
		if desk, err = cluster.ReadDesk(o.(*unstructured.Unstructured)); err != nil {
			return look{}, err
		}
	}
	objects, _ := k.lists.pods.ByNamespace(session.Namespace).List(labels.SelectorFromSet(labels.Set{session.Label: name}))
	var pods []*corev1.Pod
	for _, o := range objects {
		pods = append(pods, o.(*corev1.Pod))
	}
	return k.assemble(desk, pods, false), nil
}

// look asks the API: the Pods, then the Session, then the Pods again. What package
// session proves rests on this order.
func (k *Keeper) look(ctx context.Context, name string) (l look, err error) {
	list := func() (*corev1.PodList, error) {
		pods, err := k.Cluster.Client.CoreV1().Pods(session.Namespace).List(ctx, metav1.ListOptions{LabelSelector: session.Label + "=" + name})
		if err != nil {
			return nil, fmt.Errorf("list the Pods of Session %s: %w", name, err)
		}
		return pods, nil
	}
	before, err := list()
	if err != nil {
		return l, err
	}
	desk, _, err := k.Cluster.Get(ctx, name)
	if err != nil {
		return l, err
	}
	after, err := list()
	if err != nil {
		return l, err
	}
	var pods []*corev1.Pod
	fresh := true
	for i := range after.Items {
		pod := &after.Items[i]
		fresh = fresh && slices.ContainsFunc(before.Items, func(p corev1.Pod) bool { return p.UID == pod.UID })
		pods = append(pods, pod)
	}
	l = k.assemble(desk, pods, fresh)
	return l, nil
}

func (k *Keeper) assemble(desk cluster.Desk, pods []*corev1.Pod, fresh bool) look {
	l := look{desk: desk, Observed: session.Observed{Fresh: fresh, There: desk.UID != "", UID: desk.UID, Spec: desk.Spec, Status: desk.Status}}
	if o, err := k.lists.templates.Get(desk.Spec.Template); err == nil {
		if t, err := cluster.ReadTemplate(o.(*unstructured.Unstructured)); err == nil {
			l.Template = &t
		}
	}
	for _, pod := range pods {
		p := podOf(pod)
		k.attends.say(&p)
		p.Past = k.past(p, l.Observed)
		l.Pods = append(l.Pods, p)
	}
	slices.SortFunc(l.Pods, func(a, b session.Pod) int { return strings.Compare(a.Name, b.Name) })
	return l
}

// past is for how long we have known that the generation of a Pod is over. Other
// portals may have known it before; what they knew went with them. The caches are two,
// and one may be behind: of a Session that they do not have, or have another of, only
// the API itself is believed.
func (k *Keeper) past(p session.Pod, o session.Observed) time.Duration {
	same := o.There && p.Session == o.UID
	if same && p.Generation >= o.Spec.Generation {
		delete(k.since, p.UID)
		return 0
	}
	since, known := k.since[p.UID]
	if !known {
		if !same && !o.Fresh {
			return 0
		}
		since = k.now()
		k.since[p.UID] = since
	}
	return k.now().Sub(since)
}

// podOf is a Pod as package session sees it.
func podOf(pod *corev1.Pod) session.Pod {
	p := session.Pod{Name: pod.Name, UID: string(pod.UID), Generation: generationOf(pod), Node: pod.Spec.NodeName, IP: pod.Status.PodIP,
		Deleting: pod.DeletionTimestamp != nil}
	if owner := metav1.GetControllerOf(pod); owner != nil && owner.Kind == "Session" {
		p.Session = string(owner.UID)
	}
	for _, c := range pod.Status.Conditions {
		p.Ready = p.Ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	}
	for _, c := range pod.Status.ContainerStatuses {
		p.Begun = p.Begun || c.State.Running != nil || c.State.Terminated != nil
	}
	p.Ended = ended(pod)
	p.Ready = p.Ready && !p.Ended && !p.Deleting
	p.Reason, p.Trouble = trouble(pod, nil)
	return p
}

// ended reports whether nothing of a Pod runs, or will: by its kubelet's word, or
// because it was deleted before it had a machine, after which none can get it.
func ended(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil && pod.Spec.NodeName == "" {
		return true
	}
	all := len(pod.Status.ContainerStatuses) > 0
	for _, c := range pod.Status.ContainerStatuses {
		all = all && c.State.Terminated != nil
	}
	if all {
		return true
	}
	// A kubelet that refuses a Pod says only this. Kubernetes' garbage collector writes
	// the same of a Pod whose Node is gone, and knows nothing about it.
	if pod.Status.Phase != corev1.PodFailed && pod.Status.Phase != corev1.PodSucceeded {
		return false
	}
	return !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason != corev1.PodReasonTerminationByKubelet && c.Reason != corev1.PodReasonPreemptionByScheduler
	}) && pod.Status.Reason != "NodeLost"
}

// trouble is what keeps a Pod from running, in Kubernetes' own words and with a code.
func trouble(pod *corev1.Pod, events []corev1.Event) (reason, message string) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			if strings.Contains(c.Message, "volume") && !strings.Contains(c.Message, "Insufficient") {
				return session.NoVolume, c.Message
			}
			return session.NoRoom, c.Message
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && (strings.Contains(w.Reason, "Image")) {
			return session.NoImage, strings.TrimSpace(w.Reason + ": " + w.Message)
		}
	}
	if len(events) == 0 || pod.Spec.NodeName == "" {
		return "", ""
	}
	last := slices.MaxFunc(events, func(a, b corev1.Event) int { return eventTime(a).Compare(eventTime(b)) })
	switch {
	case last.Type != corev1.EventTypeWarning || last.Reason == "Unhealthy" || last.Reason == "FailedScheduling": // it starts
		return "", ""
	case strings.Contains(last.Reason, "Mount") || strings.Contains(last.Reason, "Volume"):
		return session.NoVolume, last.Message
	case strings.Contains(strings.ToLower(last.Message), "image"):
		return session.NoImage, last.Message
	}
	return session.Trouble, last.Reason + ": " + last.Message
}

func eventTime(e corev1.Event) time.Time {
	latest := e.LastTimestamp.Time
	for _, t := range []time.Time{e.EventTime.Time, e.CreationTimestamp.Time} {
		if t.After(latest) {
			latest = t
		}
	}
	return latest
}
