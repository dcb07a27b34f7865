package keeper

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// attendants ask desktops how they are, and Kubernetes what it says of those that do
// not start.
type attendants struct {
	keeper *Keeper
	crew   crew

	mu    sync.Mutex
	notes map[string]*note // by UID of the Pod
}

// note is what is known of a desktop beside its Pod.
type note struct {
	begun           time.Time // when somebody began to ask
	heard           time.Time // when it last answered; zero: never
	idle            time.Duration
	stage           string // "" while it does not answer
	reason, trouble string
	warned          bool // its user was, and may have come back
}

// How often one asks, and for how long an answer is good.
const (
	askStarting = 50 * time.Millisecond
	askWarned   = time.Second
	askReady    = 10 * time.Second
	heardFor    = 45 * time.Second
)

// warning is in both languages: who reads it may be anybody.
const warning = "Nobody has used this desktop for a while. It stops in a minute; move the mouse to keep it. — " +
	"Dieser Arbeitsplatz wird lange nicht benutzt. Er endet in einer Minute; bewegen Sie die Maus, wenn er bleiben soll."

// of is the note about a Pod, as long as mu is held.
func (a *attendants) of(uid string) *note {
	n := a.notes[uid]
	if n == nil {
		n = &note{begun: a.keeper.now()}
		a.notes[uid] = n
	}
	return n
}

// forget drops the notes about Pods that are gone.
func (a *attendants) forget(there map[string]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid := range a.notes {
		if !there[uid] {
			delete(a.notes, uid)
		}
	}
}

// say adds what an attendant knows.
func (a *attendants) say(p *session.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.notes[p.UID]
	if one == nil {
		return
	}
	now := a.keeper.now()
	if p.Stage = one.stage; !one.heard.IsZero() && now.Sub(one.heard) < heardFor {
		p.Heard, p.Idle = one.heard, one.idle
	} else if since := later(one.begun, one.heard); p.Begun && now.Sub(since) > heardFor {
		p.Silent = now.Sub(since)
	}
	// Its own word is a second younger than what its kubelet has told of it.
	p.Ready = p.Ready || one.stage == session.Painted && p.IP != "" && !p.Ended && !p.Deleting
	if p.Reason == "" {
		p.Reason, p.Trouble = one.reason, one.trouble
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func (a *attendants) attend(ctx context.Context, one *charge) {
	way := reach{cluster: a.keeper.Cluster}
	stage := ""
	var read time.Time // when events were
	for {
		pod := one.look()
		uid, wait, ready := string(pod.UID), askStarting, podOf(pod).Ready
		if ready {
			stage = "" // it does not wait for the next one
		}
		if pod.Status.PodIP == "" {
			_ = way.unlock(ctx, pod) // who errs will again
		} else {
			s, err := way.state(ctx, pod, stage)
			a.note(uid, func(n *note) {
				if n.stage = s.Stage; err == nil {
					n.heard, n.idle = a.keeper.now(), time.Duration(s.IdleSeconds)*time.Second
				}
			})
			stage = s.Stage
		}
		if now := a.keeper.now(); ready {
			wait = askReady
			a.note(uid, func(n *note) {
				if n.reason, n.trouble = "", ""; n.warned {
					wait = askWarned
				}
			})
		} else if pod.Spec.NodeName != "" && now.Sub(pod.CreationTimestamp.Time) > 3*time.Second && now.Sub(read) >= time.Second {
			read = now // Kubernetes has no more to say in a tenth of one
			list, err := a.keeper.Cluster.Client.CoreV1().Events(session.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.uid=" + uid, Limit: 50})
			if err == nil {
				reason, message := trouble(pod, list.Items)
				a.note(uid, func(n *note) { n.reason, n.trouble = reason, message })
			}
		}
		if !one.wait(ctx, wait) {
			return
		}
	}
}

// note changes what is known, and wakes the loop where the stage or the trouble is new.
func (a *attendants) note(uid string, change func(*note)) {
	a.mu.Lock()
	n := a.of(uid)
	stage, message := n.stage, n.trouble
	change(n)
	changed := stage != n.stage || message != n.trouble
	a.mu.Unlock()
	if changed {
		a.keeper.poke()
	}
}

// watch has a desktop asked every second while its user may come back, or no more.
func (a *attendants) watch(uid string, warned bool) {
	a.mu.Lock()
	n := a.of(uid)
	begins := warned && !n.warned
	n.warned = warned
	a.mu.Unlock()
	if begins {
		a.crew.hurry(uid)
	}
}

// warn tells the user of a desktop that it will stop.
func (a *attendants) warn(ctx context.Context, p session.Pod) {
	a.crew.wg.Go(func() {
		way, err := a.keeper.Cluster.ReachPod(ctx, p.Name, p.IP)
		if err == nil {
			err = way.Warn(ctx, warning)
		}
		if err != nil {
			a.keeper.Log.Warn("a user could not be warned", "pod", p.Name, "error", err)
		}
	})
}
