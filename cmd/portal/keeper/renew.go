package keeper

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// Renewer renews the leases of desktops. Every portal runs one, and each desktop is
// renewed by all that reach it: one portal that is cut off freezes nobody.
type Renewer struct {
	Cluster *cluster.Cluster
	Log     *slog.Logger
}

// How often a lease is renewed: the first one again and again, for the desktop begins with
// it; and later, where it could not be.
const (
	renewFirst = 50 * time.Millisecond
	renewEvery = 10 * time.Second
	renewAgain = 500 * time.Millisecond
)

// Run works until ctx is over.
func (r *Renewer) Run(ctx context.Context) error {
	pods := desktopPods(r.Cluster)
	wake := make(chan struct{}, 1)
	poke := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	informer := pods.Core().V1().Pods()
	if _, err := informer.Informer().AddEventHandler(pokes(poke)); err != nil {
		return err
	}
	pods.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.Informer().HasSynced) {
		return ctx.Err()
	}
	var all crew
	defer all.end()
	for {
		list, _ := informer.Lister().List(labels.Everything())
		all.tend(ctx, list, r.renew)
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
	}
}

// renew keeps one desktop's lease.
func (r *Renewer) renew(ctx context.Context, one *charge) {
	way := reach{cluster: r.Cluster}
	told := ""
	well := time.Now() // when nothing was known to be wrong
	for again, wait := renewFirst, renewFirst; ; {
		pod := one.look()
		if !podOf(pod).Begun {
			well = time.Now() // nobody is there yet
		}
		if pod.Status.PodIP == "" {
			_ = way.unlock(ctx, pod) // who errs will again
		} else {
			err := r.once(ctx, pod, &way)
			if wait = again; err == nil {
				again, wait, told, well = renewAgain, renewEvery, "", time.Now()
			} else if text := err.Error(); time.Since(well) > slow && text != told && ctx.Err() == nil {
				r.Log.Warn("the lease of a desktop could not be renewed", "pod", pod.Name, "error", err)
				told = text
			}
		}
		if !one.wait(ctx, wait) {
			return
		}
	}
}

// slow is how long a desktop may take until it answers.
const slow = 2 * time.Second

// once renews a lease, if the generation of the desktop is the one that is wanted. Its
// clock was read before that is asked, and the lease is until LeaseFor after that
// reading: whoever raised the generation since knows when it ends; see package session.
func (r *Renewer) once(ctx context.Context, pod *corev1.Pod, way *reach) error {
	desktop, err := way.to(ctx, pod)
	if err != nil {
		return err
	}
	state, err := desktop.State(ctx, "")
	if err != nil {
		return err
	}
	desk, there, err := r.Cluster.Get(ctx, pod.Labels[session.Label])
	if err != nil {
		return err
	}
	if p := podOf(pod); !there || desk.UID != p.Session || desk.Spec.Generation != p.Generation || !desk.Spec.Wanted {
		return nil
	}
	return desktop.Renew(ctx, state.Clock+session.LeaseFor.Milliseconds())
}

// reach is the way to a Pod: its key is fetched while the Pod has no address yet, since
// somebody waits for what comes then; and the way is made anew where the Pod has another
// address, for its sandbox may have been.
type reach struct {
	cluster *cluster.Cluster
	key     *cluster.Key
	ip      string
	way     *cluster.Desktop
}

func (r *reach) unlock(ctx context.Context, pod *corev1.Pod) (err error) {
	if r.key == nil {
		r.key, err = r.cluster.Key(ctx, pod.Name)
	}
	return err
}

func (r *reach) to(ctx context.Context, pod *corev1.Pod) (_ *cluster.Desktop, err error) {
	if err := r.unlock(ctx, pod); err != nil {
		return nil, err
	}
	if ip := pod.Status.PodIP; r.way == nil || r.ip != ip {
		if r.way, err = r.key.Reach(ip); err != nil {
			r.way = nil
			return nil, err
		}
		r.ip = ip
	}
	return r.way, nil
}

// state asks the desktop; the zero State where it does not answer.
func (r *reach) state(ctx context.Context, pod *corev1.Pod, after string) (s cluster.State, err error) {
	desktop, err := r.to(ctx, pod)
	if err != nil {
		return s, err
	}
	return desktop.State(ctx, after)
}

// desktopPods watches the Pods of desktops.
func desktopPods(c *cluster.Cluster) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(c.Client, 0, informers.WithNamespace(session.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = session.Label }))
}

func pokes(poke func()) cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{AddFunc: func(any) { poke() }, UpdateFunc: func(_, _ any) { poke() }, DeleteFunc: func(any) { poke() }}
}
