package signin

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits slow guessing down. They are soft: who guesses a colleague's password from
// the same room makes his sign-in slow, and does not lock him out. They are in memory,
// one set a replica; behind them the directory counts for itself (ppolicy).
//
//	bucket            tokens      when it is empty
//	user and network  5 a minute  a pause that doubles, to 8 s; three may wait at once, others are told to come back
//	address           30 a minute told to come back
//
// Of a user's only wrong passwords count: who goes from one machine to the next does not
// guess.
//
// A machine of the site stands for all whose way here led over it (a NodePort hides who
// asked), so that it has ten times as many.
type Limits struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Shared reports whether an address stands for many people. Nil: none does.
	Shared func(netip.Addr) bool

	mu      sync.Mutex
	buckets map[bucketKey]*bucket
	swept   time.Time
}

type bucketKey struct {
	user string // "" is a bucket of an address
	from netip.Prefix
}

type bucket struct {
	limiter *rate.Limiter
	misses  int // wrong passwords in a row
	looking int // passwords that are being looked at, and may be wrong
	waiting int
	used    time.Time
}

// maxBuckets is more than a site has people and addresses; beyond, the oldest are
// forgotten.
const maxBuckets = 20000

const maxDelay = 8 * time.Second

// Enter is called before a password is looked at. It returns how long to wait before,
// and false with how long to stay away.
func (l *Limits) Enter(user string, from netip.Addr) (delay time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.sweep(now)
	from = from.Unmap()
	size, burst := rate.Every(2*time.Second), 30
	if l.Shared != nil && l.Shared(from) {
		size, burst = rate.Every(200*time.Millisecond), 300
	}
	if !l.bucket(bucketKey{from: address(from)}, size, burst, now).limiter.AllowN(now, 1) {
		return time.Minute, false
	}
	b := l.bucket(bucketKey{user, network(from)}, rate.Every(12*time.Second), 5, now)
	if b.limiter.TokensAt(now) >= float64(b.looking+1) {
		b.looking++
		return 0, true
	}
	if b.waiting >= 3 {
		return 30 * time.Second, false
	}
	b.waiting++
	return min(maxDelay, 500*time.Millisecond<<min(max(b.misses-4, 0), 6)), true
}

// Leave is called after, with the delay that Enter gave and what came of it.
func (l *Limits) Leave(user string, from netip.Addr, delay time.Duration, right bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[bucketKey{user, network(from.Unmap())}]
	if b == nil {
		return
	}
	if delay > 0 {
		b.waiting = max(0, b.waiting-1)
	} else {
		b.looking = max(0, b.looking-1)
	}
	if right {
		b.misses = 0
		return
	}
	b.misses++
	if delay == 0 {
		b.limiter.AllowN(l.now(), 1)
	}
}

// Pause waits, unless the visitor leaves.
func Pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (l *Limits) now() time.Time {
	if l.Now != nil {
		return l.Now()
	}
	return time.Now()
}

func (l *Limits) bucket(key bucketKey, limit rate.Limit, burst int, now time.Time) *bucket {
	b := l.buckets[key]
	if b == nil {
		if l.buckets == nil {
			l.buckets = map[bucketKey]*bucket{}
		}
		b = &bucket{limiter: rate.NewLimiter(limit, burst)}
		l.buckets[key] = b
	}
	b.used = now
	return b
}

// sweep forgets those that nobody used for ten minutes: they are full again.
func (l *Limits) sweep(now time.Time) {
	if now.Sub(l.swept) < time.Minute && len(l.buckets) < maxBuckets {
		return
	}
	l.swept = now
	keep := 10 * time.Minute
	for {
		for key, b := range l.buckets {
			if now.Sub(b.used) > keep && b.waiting+b.looking == 0 {
				delete(l.buckets, key)
			}
		}
		if len(l.buckets) < maxBuckets || keep < time.Second {
			return
		}
		keep /= 2
	}
}

// network is a room of addresses: a /24, or what one house gets of IPv6.
func network(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// address is one, or of IPv6 all that one computer can make up.
func address(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}
