// Package etcd is the membership of a site's etcd, as an executor of roles needs
// it: who is a member, who answers, and the two changes that are made by hand,
// the removal of a member and the move of the leadership. Adding is kubeadm's.
//
// It speaks etcd's own protocol to each master by itself, never through a
// balancer and never through the API server, which is what may have to be
// repaired. What it tells is read for the question: nothing is kept.
//
//   - A member answers where a linearizable read through it comes back: then it
//     is in touch with a quorum. A process that only accepts connections is none.
//   - A removal names a member by ID and by peer URL, goes through another member
//     that answers, and is not done before the list, read anew, lacks it.
//   - Each change done twice is done once.
package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// ClientPort is where a master's etcd answers, as kubeadm has it.
const ClientPort = 2379

// Cluster is the etcd of a site. Make one with Open, and Close it.
type Cluster struct {
	tls     *tls.Config
	timeout time.Duration

	mu      sync.Mutex
	clients map[string]*clientv3.Client // by client URL; each speaks to that member alone
}

// Open connects to nobody yet. The certificate of t is one that etcd's own CA
// signed, and its roots are that CA. A timeout of 0 is 3 s: what a member may take
// for one answer.
func Open(t *tls.Config, timeout time.Duration) *Cluster {
	return &Cluster{tls: t, timeout: cmp.Or(timeout, 3*time.Second), clients: map[string]*clientv3.Client{}}
}

// Close ends all connections.
func (c *Cluster) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for url, client := range c.clients {
		errs = append(errs, client.Close())
		delete(c.clients, url)
	}
	return errors.Join(errs...)
}

// Membership is what the members say of themselves.
type Membership struct {
	Members []roles.Member // in the order of their IDs
	// Agree is true where every member that answers gives this same list.
	Agree bool
}

// voice is what one member said.
type voice struct {
	at      string // its client URL
	self    uint64 // its ID
	leader  uint64 // whom it follows; 0 is nobody
	learner bool   // it is up as one; such a member lists nobody
	answers bool   // a linearizable read through it came back
	list    []roles.Member
	clients []string // client URLs of all members, as it has them
	err     error
}

// Look asks the masters at these client URLs, such as https://10.0.0.11:2379, and
// the members that they name besides. Where no member is in touch with a quorum,
// the list is the last one of a member that is up, and Answers says who is up: good
// for telling people who is missing, and for nothing else. The error is that nobody
// is up, or that members are up and yet have no quorum.
func (c *Cluster) Look(ctx context.Context, masters []string) (Membership, error) {
	voices := c.ask(ctx, masters)
	var named []string
	for _, v := range voices {
		named = append(named, v.clients...)
	}
	slices.Sort(named)
	named = slices.DeleteFunc(slices.Compact(named), func(at string) bool { return slices.Contains(masters, at) })
	return merge(append(voices, c.ask(ctx, named)...))
}

// merge makes one membership of what the members said.
func merge(voices []voice) (m Membership, err error) {
	slices.SortStableFunc(voices, func(a, b voice) int { return cmp.Compare(b.rank(), a.rank()) })
	if len(voices) == 0 {
		return m, errors.New("ask the members of etcd: no master is known")
	}
	best := voices[0]
	if best.list == nil {
		return m, fmt.Errorf("ask the members of etcd: %w", best.err)
	}
	m.Members, m.Agree = slices.Clone(best.list), best.answers
	voters, up := 0, 0
	for i := range m.Members {
		e := &m.Members[i]
		if !e.Learner {
			voters++
		}
		e.Leader = best.answers && e.ID == best.leader
		is := func(v voice) bool { return v.self == e.ID && (v.list != nil || v.learner) }
		said := slices.IndexFunc(voices, is) // the best that it said, where it was asked by two names
		if said < 0 {
			continue
		}
		if !e.Learner {
			up++
		}
		// Of a learner, and without a quorum, that it is up is all there is to know.
		e.Answers = voices[said].answers || voices[said].learner || !best.answers
	}
	for _, v := range voices {
		if v.answers && !slices.Equal(v.list, best.list) {
			m.Agree = false
		}
	}
	if !best.answers && up > voters/2 {
		return m, fmt.Errorf("ask the members of etcd: %d of %d are up, and no quorum of them is in touch", up, voters)
	}
	return m, nil
}

// rank orders voices: those in touch with a quorum, those that are up, the rest.
func (v voice) rank() int {
	switch {
	case v.answers:
		return 2
	case v.list != nil:
		return 1
	}
	return 0
}

// ask asks members at the same time, each for itself.
func (c *Cluster) ask(ctx context.Context, urls []string) []voice {
	voices := make([]voice, len(urls))
	var all sync.WaitGroup
	for i, at := range urls {
		all.Go(func() { voices[i] = c.askOne(ctx, at) })
	}
	all.Wait()
	return voices
}

func (c *Cluster) askOne(ctx context.Context, at string) (v voice) {
	v.at = at
	client, err := c.client(at)
	if err != nil {
		v.err = err
		return v
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	status, err := client.Status(ctx, at)
	if err != nil {
		v.err = fmt.Errorf("%s: %w", at, err)
		return v
	}
	v.self, v.leader, v.learner = status.Header.MemberId, status.Leader, status.IsLearner
	if v.learner {
		v.err = fmt.Errorf("%s: it is a learner, and knows no more", at)
		return v
	}
	list, err := client.MemberList(ctx) // linearizable
	if v.answers = err == nil; err != nil {
		// What is left of the time may be short, and this answer is local.
		local, done := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
		defer done()
		if list, err = client.MemberList(local, clientv3.WithSerializable()); err != nil {
			v.err = fmt.Errorf("%s: %w", at, err)
			return v
		}
	}
	v.list = []roles.Member{}
	for _, m := range list.Members {
		v.list = append(v.list, roles.Member{ID: m.ID, Name: m.Name, PeerURL: firstOf(m.PeerURLs), Learner: m.IsLearner})
		v.clients = append(v.clients, reachable(m.ClientURLs)...)
	}
	slices.SortFunc(v.list, func(a, b roles.Member) int { return cmp.Compare(a.ID, b.ID) })
	return v
}

// reachable is the client URL by which others reach a member: kubeadm's members
// have one, and listen on their own loopback besides, which they do not announce.
func reachable(urls []string) []string {
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil && u.Host != "" {
			if host, _, err := net.SplitHostPort(u.Host); err == nil && host != "" {
				return []string{text}
			}
		}
	}
	return nil
}

func firstOf(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	return urls[0]
}

// client is a connection to one member.
func (c *Cluster) client(at string) (*clientv3.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if client := c.clients[at]; client != nil {
		return client, nil
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{at}, TLS: c.tls, Logger: zap.NewNop(),
		// A member that was switched off is found out by this, and not by TCP.
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		// One member is asked, and its own answer is wanted: no second try elsewhere.
		MaxUnaryRetries: 1,
		DialOptions: []grpc.DialOption{
			grpc.WithNoProxy(), // a site is on the spot
			// One that was away is noticed when it is back: gRPC would wait for up to two minutes.
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: .2, MaxDelay: 3 * time.Second}, MinConnectTimeout: 3 * time.Second}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w", at, err)
	}
	c.clients[at] = client
	return client, nil
}

// ErrOtherMember says that the member of an ID is not the one that was meant.
var ErrOtherMember = errors.New("the member has another peer URL")

// Remove takes a member out, by ID and only if it has the peer URL, and returns
// when the list lacks it; one that is gone already is done. It goes through members
// that answer, the removed one last, for it answers nobody afterwards. Whether it
// may be removed is the caller's to decide, and etcd itself refuses what would leave
// no quorum.
func (c *Cluster) Remove(ctx context.Context, masters []string, id uint64, peerURL string) error {
	deed := fmt.Sprintf("remove member %x from etcd", id)
	voices := slices.DeleteFunc(c.ask(ctx, masters), func(v voice) bool { return !v.answers })
	slices.SortStableFunc(voices, func(a, b voice) int {
		return cmp.Compare(number(a.self == id), number(b.self == id))
	})
	if len(voices) == 0 {
		return fmt.Errorf("%s: no member is in touch with a quorum", deed)
	}
	through, err := c.client(voices[0].at)
	if err != nil {
		return fmt.Errorf("%s: %w", deed, err)
	}
	there := func() (found bool, err error) {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		list, err := through.MemberList(ctx)
		if err != nil {
			return false, err
		}
		for _, m := range list.Members {
			if m.ID == id {
				found = true
				if has := firstOf(m.PeerURLs); has != peerURL {
					return true, fmt.Errorf("%w: %s, and %s is meant", ErrOtherMember, has, peerURL)
				}
			}
		}
		return found, nil
	}
	found, err := there()
	if err != nil {
		return fmt.Errorf("%s: %w", deed, err)
	}
	if !found {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if _, err := through.MemberRemove(limited, id); err != nil {
		return fmt.Errorf("%s through %s: %w", deed, voices[0].at, err)
	}
	if found, err = there(); err == nil && found {
		err = errors.New("it is on the list still")
	}
	if err != nil {
		return fmt.Errorf("%s: see that it is gone: %w", deed, err)
	}
	return nil
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// MoveLeader gives the leadership to a member, and returns when it leads. Only the
// leader itself can give it away; one that leads already is done.
func (c *Cluster) MoveLeader(ctx context.Context, masters []string, to uint64) error {
	deed := fmt.Sprintf("move the leadership of etcd to member %x", to)
	for _, v := range c.ask(ctx, masters) {
		switch {
		case !v.answers || v.self != v.leader:
			continue
		case v.self == to:
			return nil
		}
		client, err := c.client(v.at)
		if err != nil {
			return fmt.Errorf("%s: %w", deed, err)
		}
		limited, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		if _, err := client.MoveLeader(limited, to); err != nil {
			return fmt.Errorf("%s from %s: %w", deed, v.at, err)
		}
		return nil // etcd answers when the other leads
	}
	return fmt.Errorf("%s: no leader answers", deed)
}
