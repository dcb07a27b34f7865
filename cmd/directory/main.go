// Command directory is the server of a site's people and groups: it runs OpenLDAP's
// slapd, and knows what slapd does not.
//
// One runs on each master (manifests/directory), with its data on the machine's own
// disk. One at a time takes changes, and each follows all others. What must hold:
//
//   - A change that was acknowledged is on disk, and reaches the others as soon as
//     they can be reached: replicas are equal again after whatever happened to them.
//     (It is not on two disks by then: who loses the writer's disk at that moment
//     loses the last of them.)
//   - Never two take changes, on no side of a cut cable: see office.go.
//   - A directory is made once. Whoever has no data copies that of another, and
//     serves nobody, and is nobody's source, before it has all of it. That everything
//     is lost is told, and not taken for an empty directory: restore is for people.
//   - Nobody but those who hold a secret learns anything, see package slapd.
//
// The story, from top to bottom: main.go reads the command line; replica.go is the
// life of one replica, and state.go what all of them agree on, which kube.go keeps in
// the cluster; office.go says which one takes changes; peers.go connects slapd to the others; keys.go makes certificates and
// passwords; health.go tells how it goes; backup.go and restore.go save and bring
// back.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
)

// stamp is the version; the linker sets it.
var stamp string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(os.Stdin, os.Stdout, os.Stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "directory:", err)
		os.Exit(1)
	}
}

func newRoot(in io.Reader, out, errOut io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "directory",
		Short: "The people and groups of a site, in LDAP",
		Long: `Directory runs one replica of a site's LDAP directory, and what belongs to it.

It is the entry point of an image and of no use outside of one, but for
restore, which people run in it.`,
		Example: `  kubectl -n kingmaker-directory exec ds/directory -- directory ready
  kubectl -n kingmaker-directory exec -i ds/directory -- directory restore < directory-20260728T031700Z.ldif.gz`,
		Version:       cmp.Or(stamp, "devel"),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	root.AddCommand(runCommand(errOut), prepareCommand(), readyCommand(), backupCommand(), restoreCommand())
	return root
}

// place adds the flags that say where a replica's data and its site's state are.
func place(cmd *cobra.Command) *Options {
	o := &Options{}
	flags := cmd.Flags()
	flags.StringVar(&o.Base, "base", slapd.DefaultBase, "root of the directory")
	flags.StringVar(&o.Data, "data", "/var/lib/kingmaker/directory", "folder of this machine's data")
	flags.StringVar(&o.Machine, "machine", os.Getenv("MACHINE"), "name of this machine (default $MACHINE)")
	return o
}

func runCommand(errOut io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "run",
		Short:   "Run a replica",
		Example: "  directory run --peers directory-peers",
		Args:    cobra.NoArgs,
	}
	o := place(cmd)
	var namespace, peers, service string
	flags := cmd.Flags()
	flags.StringVar(&o.Listen, "listen", ":1636", "address of LDAP over TLS")
	flags.StringVar(&o.Health, "health", ":1680", "address of /healthz, /readyz and /status")
	flags.StringVar(&o.Runtime, "runtime", "/run/directory", "folder for what is made anew at each start")
	flags.StringVar(&namespace, "namespace", os.Getenv("NAMESPACE"), "namespace of state and secrets (default $NAMESPACE)")
	flags.StringVar(&peers, "peers", "directory-peers", "DNS name that has the addresses of all replicas")
	flags.StringVar(&service, "service", "directory", "name of the Service, for the certificate")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		o.Log = slog.New(slog.NewJSONHandler(errOut, nil))
		own := os.Getenv("POD_IP")
		o.Names = []string{service, service + "." + namespace, service + "." + namespace + ".svc",
			service + "." + namespace + ".svc.cluster.local", "localhost", "127.0.0.1", own}
		o.Address = own
		o.Discover = lookup(peers, own, o.Listen)
		if o.Store, err = inCluster(namespace); err != nil {
			return err
		}
		return New(*o).Run(cmd.Context())
	}
	return cmd
}

// prepareCommand is the one thing that root does.
func prepareCommand() *cobra.Command {
	var user int
	cmd := &cobra.Command{
		Use:     "prepare FOLDER",
		Short:   "Make a folder that belongs to the server alone",
		Example: "  directory prepare /var/lib/kingmaker/directory",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o700); err != nil {
				return err
			}
			// Its mode first: afterwards it is another's.
			return errors.Join(os.Chmod(args[0], 0o700), os.Chown(args[0], user, user))
		},
	}
	cmd.Flags().IntVar(&user, "user", 65532, "number of the server's user and group")
	return cmd
}

func readyCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:     "ready",
		Short:   "Say whether the replica here is complete, and what it knows of the others",
		Example: "  directory ready",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			return askReady(ctx, address, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&address, "health", "127.0.0.1:1680", "address that run was given")
	return cmd
}

func backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "backup",
		Short:   "Write all of the directory into a file, and remove the oldest of many",
		Example: "  directory backup --to /backup",
		Args:    cobra.NoArgs,
	}
	b := &backup{now: time.Now}
	flags := cmd.Flags()
	flags.StringVar(&b.base, "base", slapd.DefaultBase, "root of the directory")
	flags.StringVar(&b.address, "server", "directory:636", "address of a replica")
	flags.StringVar(&b.account, "account", "/etc/directory/account", "folder with password and ca.crt of the replicator")
	flags.StringVar(&b.to, "to", "/backup", "folder for the files")
	flags.IntVar(&b.keep, "keep", 14, "how many files stay")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		file, entries, err := b.make(cmd.Context())
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "%d entries in %s\n", entries, filepath.Base(file))
		}
		return err
	}
	return cmd
}

func restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Put a backup from standard input in the directory's place, on all machines",
		Long: `Restore puts a backup, or what slapcat wrote, in the place of the directory. It
runs on one machine; all replicas follow within a minute. Whatever was changed
since the backup is gone from the directory; the data before stays on each
machine for 30 days, in its folder data-*.`,
		Example: "  kubectl -n kingmaker-directory exec -i ds/directory -- directory restore < directory-20260728T031700Z.ldif.gz",
		Args:    cobra.NoArgs,
	}
	o := place(cmd)
	var namespace string
	cmd.Flags().StringVar(&namespace, "namespace", os.Getenv("NAMESPACE"), "namespace of state and secrets (default $NAMESPACE)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if o.Store, err = inCluster(namespace); err != nil {
			return err
		}
		entries, err := restore(cmd.Context(), *o, cmd.InOrStdin())
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "%d entries; the replicas change over within a minute\n", entries)
		}
		return err
	}
	return cmd
}
