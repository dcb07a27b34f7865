package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/etcd"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// writeAway says, on a machine of the site whose API does not answer, which masters
// are there and which are missing. It goes by the machine's own list of them and
// knocks: nobody can be asked any more. Elsewhere it says nothing.
func writeAway(ctx context.Context, w io.Writer) error {
	masters, err := host.Masters(&host.Host{Log: slog.New(slog.DiscardHandler)})
	if err != nil || len(masters) == 0 {
		return nil
	}
	up := make([]bool, len(masters))
	var all sync.WaitGroup
	for i, m := range masters {
		all.Go(func() { up[i] = opens(ctx, m.Addr(), etcd.ClientPort) })
	}
	all.Wait()
	var there, missing []string
	for i, m := range masters {
		if up[i] {
			there = append(there, m.Addr().String())
		} else {
			missing = append(missing, m.Addr().String())
		}
	}
	_, err = io.WriteString(w, away(there, missing))
	return err
}

// away is what to know, and to do, where these masters' etcds are there and missing.
func away(there, missing []string) string {
	n := len(there) + len(missing)
	quorum := n/2 + 1
	var b strings.Builder
	fmt.Fprintf(&b, "the API does not answer; of the %d masters that this machine knows\n", n)
	if len(there) > 0 {
		fmt.Fprintf(&b, "  there    %s\n", strings.Join(there, ", "))
	}
	if len(missing) > 0 {
		fmt.Fprintf(&b, "  missing  %s\n", strings.Join(missing, ", "))
	}
	if short := quorum - len(there); short > 0 {
		fmt.Fprintf(&b, "the quorum is lost: %d are needed. Nothing is done automatically, and nothing in the cluster can be changed; what runs goes on.\n", quorum)
		fmt.Fprintf(&b, "start %d of the missing ones, and all goes on by itself. Where their disks are lost, keep the others running and do not reset them: each has the data, and snapshots in /var/lib/kingmaker/snapshots.\n", short)
	} else {
		fmt.Fprintf(&b, "the quorum of %d is there: see journalctl -u kubelet on them, and crictl ps -a for etcd and kube-apiserver\n", quorum)
	}
	return b.String()
}

// opens reports whether something listens.
func opens(ctx context.Context, at netip.Addr, port int) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(at.String(), strconv.Itoa(port)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}
