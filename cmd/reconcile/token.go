package main

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/spf13/cobra"
)

// maxTTL is how long a token may be good: whoever has the line can join.
const maxTTL = 24 * time.Hour

func tokenCommand(f *flags, s streams) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "token",
		Short: "Print the line with which machines join",
		Long: `Token prints one line. Pasted on a machine where noded install has run, it makes
the machine a worker of the site. The line is good for any number of machines,
for a quarter of an hour. For that time whoever has it can join, and in the
place of a machine that is down: keep it as you would a key. Under admission:
listed a machine of a name of its own gets work only when the site repo lists it.

It needs a kubeconfig of an administrator, such as the one on a master:
/etc/kubernetes/admin.conf.`,
		Example: "  reconcile token\n  reconcile token --ttl 1h --kubeconfig /etc/kubernetes/admin.conf",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Minute || ttl > maxTTL {
				return fmt.Errorf("--ttl %s: want 1m to 24h", ttl)
			}
			config, err := clusterConfig(f)
			if err != nil {
				return err
			}
			invitation, err := machine.Invite(cmd.Context(), config, time.Now(), ttl)
			if unanswered := (*url.Error)(nil); errors.As(err, &unanswered) {
				return fmt.Errorf("%w; %s", err, seeCluster)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(s.out, invitation.Line())
			fmt.Fprintf(s.err, "reconcile: paste it on each machine that is to join, as root; it is good until %s, for %s\n",
				invitation.Expires.Local().Format("15:04 MST"), ttl)
			return nil
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 15*time.Minute, "how long the line is good")
	return c
}
