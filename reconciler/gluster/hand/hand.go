package hand

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
)

// Hand works on one machine. All but Every are required.
type Hand struct {
	Host    *host.Host
	Connect func() (dynamic.Interface, error) // to the API, as the machine's Node
	Machine string                            // name of the Machine and of the Node
	Address string                            // by which the pool knows the machine
	Log     *slog.Logger
	Every   time.Duration // between two rounds; 0 is 5 s

	client   dynamic.Interface // nil: to be made
	site     *site             // as last heard; nil is never
	told     map[string]bool   // troubles, since all was well
	disk     task[disk]
	daemon   task[string]
	asked    time.Time                 // when glusterd answered last
	answered string                    // the process that did
	started  time.Time                 // when the daemon's task last started glusterd
	mounts   map[string]*task[outcome] // by volume: mounting, or taking away
	leaving  map[string]time.Time      // by volume: since when it is to be taken away
	reported report

	mu      sync.Mutex
	uuid    string          // of glusterd, as it answered last
	serving map[string]int  // by volume: process that served its mount when that was well
	once    map[string]bool // what was logged for good

	statfs func(path string, into *unix.Statfs_t) error // nil is the kernel's; tests have no FUSE and no XFS
}

// How long a round waits for what may hang. What takes longer goes on, and counts
// for nothing until it has ended.
const (
	diskPatience   = 10 * time.Second
	daemonPatience = 20 * time.Second
	mountPatience  = 15 * time.Second
)

// askAgain is how long one that answered, and that runs still, is taken to answer.
const askAgain = time.Minute

// site is what the API says of volumes.
type site struct {
	Volumes []volume             `json:"volumes,omitempty"`
	Peers   []gluster.PeerStatus `json:"-"` // of the pool; never by an older word

	served bool // the site has volumes at all
}

// volume is a Volume as the API has it.
type volume struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec   gluster.Placed       `json:"spec"`
	Status gluster.VolumeStatus `json:"status"`
}

// goes reports whether a volume is to be mounted nowhere any more.
func (v *volume) goes() bool { return v.Spec.Delete || v.Status.Phase == gluster.Removed }

// Run is at work until ctx ends.
func (h *Hand) Run(ctx context.Context) error {
	for {
		h.note(ctx, h.round(ctx))
		timer := time.NewTimer(cmp.Or(h.Every, 5*time.Second))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// UUID is that of this machine's glusterd, "" while none answers.
func (h *Hand) UUID() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.uuid
}

func (h *Hand) setUUID(uuid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.uuid = uuid
}

// note logs what is new of a round's troubles.
func (h *Hand) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		if len(h.told) > 0 {
			h.Log.InfoContext(ctx, "bricks and volumes are well again")
		}
		h.told = nil
		return
	}
	if h.told == nil {
		h.told = map[string]bool{}
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if !h.told[line] {
			h.told[line] = true
			h.Log.WarnContext(ctx, "bricks and volumes", "error", line)
		}
	}
}

// round looks at everything once, and does what is missing.
func (h *Hand) round(ctx context.Context) error {
	away := h.listen(ctx)
	if h.site == nil || !h.site.served {
		h.setUUID("")
		return away
	}
	fresh := away == nil
	brick, err := h.lookBrick(ctx, fresh)
	h.setUUID(brick.Glusterd)
	ready := h.keepMounts(ctx, &brick)
	if !fresh {
		return errors.Join(away, err)
	}
	// The label goes first, so that no Pod comes where a mount is about to go.
	labelled := h.label(ctx, ready)
	if labelled == nil {
		labelled = h.dropMounts(ctx)
	}
	return errors.Join(err, labelled, h.report(ctx, brick))
}

// listen hears what the site says. Without an answer the last one stays.
func (h *Hand) listen(ctx context.Context) (err error) {
	if h.client == nil {
		if h.client, err = h.Connect(); err != nil {
			h.client = nil
		}
	}
	if err == nil {
		var s *site
		if s, err = hear(ctx, h.client); err == nil {
			h.site = s
			if err := h.remember(s); err != nil {
				h.logOnce(ctx, "what the site says of volumes is not kept for a time without it", "error", err)
			}
			return nil
		}
		h.client = nil // perhaps it speaks with what is no longer good
	}
	if h.site == nil {
		h.site = h.remembered()
	}
	return fmt.Errorf("what the site says of volumes is not known, the last stays good: %w", err)
}

// hear asks the API.
func hear(ctx context.Context, client dynamic.Interface) (*site, error) {
	s := &site{}
	list, err := client.Resource(gluster.Resource()).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return s, nil // a site without that kind
	}
	if err != nil {
		return nil, err
	}
	s.served = true
	for i := range list.Items {
		var v volume
		if err := gluster.Decode(&list.Items[i], &v); err != nil {
			return nil, err
		}
		v.Spec.Homes = nil // the steward's, and there may be thousands
		s.Volumes = append(s.Volumes, v)
	}
	o, err := client.Resource(gluster.PoolResource()).Get(ctx, gluster.PoolName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return s, nil
	}
	var pool struct{ Status gluster.PoolStatus }
	if err == nil {
		err = gluster.Decode(o, &pool)
	}
	s.Peers = pool.Status.Peers
	return s, err
}

// heardFile is what was heard last, for a noded that is started while the API is away.
const heardFile = host.StateDir + "/volumes.json"

// remember keeps what decides about mounts: not what changes by the minute.
func (h *Hand) remember(s *site) error {
	if !s.served {
		return h.Host.Remove(heardFile)
	}
	var kept site
	for _, v := range s.Volumes {
		v.Status = gluster.VolumeStatus{ID: v.Status.ID, Prepared: v.Status.Prepared, Phase: v.Status.Phase}
		if v.Status.Phase != gluster.Removed {
			v.Status.Phase = ""
		}
		kept.Volumes = append(kept.Volumes, v)
	}
	text, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	if text = append(text, '\n'); h.Host.Same(heardFile, text, 0o600) {
		return nil // it wears no disk out
	}
	return h.Host.Write(heardFile, text, 0o600)
}

// remembered is nil where there is nothing of use.
func (h *Hand) remembered() *site {
	text, err := h.Host.Read(heardFile)
	if err != nil {
		return nil
	}
	s := &site{served: true}
	if json.Unmarshal(text, s) != nil {
		return nil
	}
	return s
}

// logOnce logs what stays as it is.
func (h *Hand) logOnce(ctx context.Context, text string, args ...any) {
	key := fmt.Sprint(append([]any{text}, args...)...)
	h.mu.Lock()
	first := !h.once[key]
	if h.once == nil {
		h.once = map[string]bool{}
	}
	h.once[key] = true
	h.mu.Unlock()
	if first {
		h.Log.WarnContext(ctx, text, args...)
	}
}

func (h *Hand) stat(path string, into *unix.Statfs_t) error {
	if h.statfs != nil {
		return h.statfs(path, into)
	}
	return unix.Statfs(path, into)
}

// run carries a command out that must not take longer than that.
func run(ctx context.Context, h *host.Host, longest time.Duration, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	_, err := h.Run(ctx, name, args...)
	return err
}

// CLI is the gluster of a machine, of which no command may take longer than that.
func CLI(h *host.Host, longest time.Duration) gluster.CLI {
	return func(ctx context.Context, args ...string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, longest)
		defer cancel()
		return h.Run(ctx, "gluster", append([]string{"--mode=script", "--xml"}, args...)...)
	}
}
