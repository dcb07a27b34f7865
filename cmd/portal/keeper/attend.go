package keeper

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// attendants ask desktops how they are and renew their leases, and ask Kubernetes what it
// says of those that do not start: each Pod has one of its own, so that none waits for
// another.
type attendants struct {
	keeper *Keeper

	mu sync.Mutex
	of map[string]*attendant // by UID of the Pod
	wg sync.WaitGroup
}

type attendant struct {
	stop context.CancelFunc
	pod  *corev1.Pod

	heard           time.Time // when it last answered
	idle            time.Duration
	stage           string
	reason, trouble string
	wake            chan struct{}
}

// How often one asks, and for how long an answer is good.
const (
	askFirst    = 100 * time.Millisecond // until it answers at all
	askStarting = time.Second
	askReady    = 10 * time.Second
	heardFor    = 45 * time.Second
)

// warning is in both languages: who reads it may be anybody.
const warning = "Nobody has used this desktop for a while. It stops in a minute; move the mouse to keep it. — " +
	"Dieser Arbeitsplatz wird lange nicht benutzt. Er endet in einer Minute; bewegen Sie die Maus, wenn er bleiben soll."

// visit gives a Pod its attendant, where it needs one.
func (a *attendants) visit(ctx context.Context, pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil || ended(pod) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if one := a.of[string(pod.UID)]; one != nil {
		if one.pod.Status.PodIP != pod.Status.PodIP {
			one.hurry()
		}
		one.pod = pod
		return true
	}
	ctx, stop := context.WithCancel(ctx)
	one := &attendant{stop: stop, pod: pod, wake: make(chan struct{}, 1)}
	a.of[string(pod.UID)] = one
	a.wg.Go(func() { a.attend(ctx, one) })
	return true
}

// keep ends those whose Pods are gone.
func (a *attendants) keep(alive map[string]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, one := range a.of {
		if !alive[uid] {
			one.stop()
			delete(a.of, uid)
		}
	}
}

func (a *attendants) end() {
	a.keep(nil)
	a.wg.Wait()
}

// say adds what an attendant knows.
func (a *attendants) say(p *session.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.of[p.UID]
	if one == nil {
		return
	}
	now := a.keeper.now()
	if p.Stage = one.stage; !one.heard.IsZero() && now.Sub(one.heard) < heardFor {
		p.Heard, p.Idle = true, one.idle+now.Sub(one.heard)
	}
	if p.Reason == "" {
		p.Reason, p.Trouble = one.reason, one.trouble
	}
}

func (a *attendants) attend(ctx context.Context, one *attendant) {
	var way *cluster.Desktop
	answers := false
	for {
		a.mu.Lock()
		pod := one.pod
		a.mu.Unlock()
		ready := podOf(pod).Ready
		if pod.Status.PodIP != "" && way == nil {
			way, _ = a.keeper.Cluster.ReachPod(ctx, pod.Name, pod.Status.PodIP)
		}
		if way != nil {
			if s, err := way.State(ctx); err != nil {
				a.note(one, func() { one.stage = "" })
			} else {
				answers = true
				if err := a.renew(ctx, pod, way, s.Clock); err != nil {
					a.keeper.Log.Warn("the lease of a desktop could not be renewed", "pod", pod.Name, "error", err)
				}
				a.note(one, func() {
					one.stage = s.Stage
					if s.IdleSeconds != nil && *s.IdleSeconds >= 0 {
						one.heard, one.idle = a.keeper.now(), time.Duration(*s.IdleSeconds)*time.Second
					}
				})
			}
		}
		if ready {
			a.note(one, func() { one.reason, one.trouble = "", "" })
		} else if pod.Spec.NodeName != "" && a.keeper.now().Sub(pod.CreationTimestamp.Time) > 3*time.Second {
			list, err := a.keeper.Cluster.Client.CoreV1().Events(session.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(pod.UID), Limit: 50})
			if err == nil {
				reason, message := trouble(pod, list.Items)
				a.note(one, func() { one.reason, one.trouble = reason, message })
			}
		}
		wait := askStarting
		switch {
		case ready:
			wait = askReady
		case way != nil && !answers:
			wait = askFirst
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-one.wake:
			timer.Stop()
		}
	}
}

// renew renews the lease of a desktop, if its generation is the one that is wanted. Its
// clock was read before that is asked, and the lease is until LeaseFor after that
// reading: whoever raised the generation since knows when it ends; see package session.
func (a *attendants) renew(ctx context.Context, pod *corev1.Pod, way *cluster.Desktop, clock int64) error {
	desk, there, err := a.keeper.Cluster.Get(ctx, pod.Labels[session.Label])
	if err != nil {
		return err
	}
	if p := podOf(pod); !there || desk.UID != p.Session || desk.Spec.Generation != p.Generation || !desk.Spec.Wanted {
		return nil
	}
	return way.Renew(ctx, clock+session.LeaseFor.Milliseconds())
}

func (one *attendant) hurry() {
	select {
	case one.wake <- struct{}{}:
	default:
	}
}

// note changes what is known, and wakes the loop where the stage or the trouble is new.
func (a *attendants) note(one *attendant, change func()) {
	a.mu.Lock()
	stage, message := one.stage, one.trouble
	change()
	changed := stage != one.stage || message != one.trouble
	a.mu.Unlock()
	if changed {
		a.keeper.poke()
	}
}

// warn tells the user of a desktop that it will stop, and asks how it is at once.
func (a *attendants) warn(ctx context.Context, p session.Pod) {
	a.wg.Go(func() {
		way, err := a.keeper.Cluster.ReachPod(ctx, p.Name, p.IP)
		if err == nil {
			err = way.Warn(ctx, warning)
		}
		if err != nil {
			a.keeper.Log.Warn("a user could not be warned", "pod", p.Name, "error", err)
		}
	})
}
