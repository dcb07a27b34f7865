package main

import (
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/agent"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
)

func runCommand(s *surroundings) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Be the agent of this machine (noded.service does that)",
		Long: `Run reports on this machine to its site every ten seconds, and keeps the way to
the site's masters open. It looks after the machine's brick, mounts the site's
volumes, and makes the machine's own screen a kiosk where the site wants that. It
works on while the API is away.`,
		Example: "  systemctl status noded",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The journal has what matters; the file has the commands besides.
			h, done, err := s.open(slog.NewTextHandler(s.err, nil), "verb", "run")
			if err != nil {
				return err
			}
			defer done()
			klog.SetLogger(logr.Discard()) // what client-go cannot do is told by the agent
			notify("READY=1")
			last := &lastBeat{host: h, now: time.Now}
			own := &screen{host: h}
			a := &agent.Agent{Host: h, Version: version(), Log: h.Log, Alive: func() { notify("WATCHDOG=1") }, Answered: last.note, Screen: own.trouble}
			// Beside the agent: neither a mount that hangs nor a mirror that is slow may keep
			// it from reporting.
			var beside sync.WaitGroup
			beside.Go(func() { keepVolumes(cmd.Context(), h) })
			beside.Go(func() { own.keep(cmd.Context()) })
			err = a.Run(cmd.Context())
			beside.Wait()
			return err
		},
	}
}

// notify tells systemd how the service is, where it wants to know: a datagram to
// a socket of its choice, which is all that there is to sd_notify.
func notify(state string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return // the watchdog will tell
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}

// lastBeatFile is where the agent leaves what `noded status` tells when the API
// is away. It ends with the boot.
const lastBeatFile = "/run/kingmaker/agent.json"

// beat is how the agent fares with the API.
type beat struct {
	Since time.Time `json:"since"`           // it has been so
	Error string    `json:"error,omitempty"` // why nothing can be reported; "" is well
}

// lastBeat writes it down whenever it changes.
type lastBeat struct {
	host *host.Host
	now  func() time.Time
	last *beat
}

func (l *lastBeat) note(err error) {
	b := &beat{Since: l.now().UTC().Truncate(time.Second)}
	if err != nil {
		b.Error = err.Error()
	}
	if l.last != nil && l.last.Error == b.Error {
		return
	}
	if l.last != nil && l.last.Error != "" && b.Error != "" {
		b.Since = l.last.Since // away is away, whatever the network makes of it
	}
	l.last = b
	text, err := json.Marshal(b)
	if err == nil {
		err = l.host.Write(lastBeatFile, append(text, '\n'), 0o644)
	}
	if err != nil {
		l.host.Log.Warn("the state for noded status was not written", "error", err)
	}
}
