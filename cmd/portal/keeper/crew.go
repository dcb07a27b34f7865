package keeper

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// crew is one goroutine for each Pod that may run, so that none waits for another.
type crew struct {
	mu sync.Mutex
	of map[string]*charge // by UID of the Pod
	wg sync.WaitGroup
}

// charge is a Pod that somebody looks after.
type charge struct {
	stop context.CancelFunc
	wake chan struct{}

	mu  sync.Mutex
	pod *corev1.Pod // as it was last seen
}

// tend has somebody look after these Pods, as far as they may run, and after no others.
func (c *crew) tend(ctx context.Context, pods []*corev1.Pod, work func(context.Context, *charge)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	alive := map[string]bool{}
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil || ended(pod) {
			continue
		}
		uid := string(pod.UID)
		alive[uid] = true
		if one := c.of[uid]; one != nil {
			one.see(pod)
			continue
		}
		if c.of == nil {
			c.of = map[string]*charge{}
		}
		working, stop := context.WithCancel(ctx)
		one := &charge{stop: stop, wake: make(chan struct{}, 1), pod: pod}
		c.of[uid] = one
		c.wg.Go(func() { work(working, one) })
	}
	for uid, one := range c.of {
		if !alive[uid] {
			one.stop()
			delete(c.of, uid)
		}
	}
}

// hurry wakes whoever looks after a Pod.
func (c *crew) hurry(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one := c.of[uid]; one != nil {
		one.hurry()
	}
}

func (c *crew) end() {
	c.tend(context.Background(), nil, nil)
	c.wg.Wait()
}

// see is told of a newer version, and hurries where the Pod can be reached from now on.
func (c *charge) see(pod *corev1.Pod) {
	c.mu.Lock()
	moved := c.pod.Status.PodIP != pod.Status.PodIP
	c.pod = pod
	c.mu.Unlock()
	if moved {
		c.hurry()
	}
}

func (c *charge) look() *corev1.Pod {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pod
}

func (c *charge) hurry() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// wait reports false when nobody looks after the Pod any more.
func (c *charge) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-c.wake:
	}
	return true
}
