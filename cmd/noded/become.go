package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"github.com/spf13/cobra"
)

// becoming is what init and join have in common.
type becoming interface {
	Check(context.Context) error
	Steps() []host.Step
	Run(context.Context) error
}

// become checks, lists, asks and does. Refused or declined, nothing was changed.
func (s *surroundings) become(ctx context.Context, h *host.Host, verb string, b becoming, yes bool) error {
	if err := b.Check(ctx); err != nil {
		h.Log.InfoContext(ctx, "refused", "error", err)
		return err
	}
	todo, err := host.Look(ctx, b.Steps())
	if err != nil {
		h.Log.InfoContext(ctx, "refused", "error", err)
		return err
	}
	if len(todo) > 0 { // else all but the last word of an earlier try is done
		if err := s.agree(ctx, verb, todo, yes); err != nil {
			return err
		}
	}
	if err := b.Run(ctx); err != nil {
		h.Log.ErrorContext(ctx, "broke", "error", err)
		return err
	}
	h.Log.InfoContext(ctx, "done", "verb", verb)
	return nil
}

func initCommand(s *surroundings) *cobra.Command {
	var source member.Source
	var name, address string
	var yes bool
	c := &cobra.Command{
		Use:   "init --site URL",
		Short: "Make this machine the first master of a site",
		Long: `Init brings up a site from its site repo: the control plane on this machine, the
network, and the reconciler, which does everything else. The site repo must be
valid, and declare this machine; and no master of the site may answer yet.`,
		Example: `  noded init --site https://git.school.example/site.git --credentials /root/git
  noded init --site git@git.school.example:site.git --credentials /root/git --name pc-01`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			a, err := parseAddress(address)
			if err != nil {
				return err
			}
			if source.Credentials != "" {
				if source.Credentials, err = filepath.Abs(source.Credentials); err != nil {
					return err
				}
			}
			h, done, err := s.change("init", "branch", source.Branch, "path", source.Path, "name", name, "address", address)
			if err != nil {
				return err
			}
			defer done()
			i := &member.Init{Host: h, Source: source, Name: name, Address: a}
			if i.Needs, err = host.Detect(ctx, h); err != nil {
				return err
			}
			clock := s.clock()
			i.Progress = clock.say
			if err := s.become(ctx, h, "init", i, yes); err != nil {
				return err
			}
			fmt.Fprintf(s.out, `site %s has its first master: %s at %s
next
  reconcile token --kubeconfig /etc/kubernetes/admin.conf      prints the line to paste on each further machine
  kubectl --kubeconfig /etc/kubernetes/admin.conf get machines shows the site's machines
  reconcile status --kubeconfig /etc/kubernetes/admin.conf     shows how far the site has come
`, i.Site.Name, i.Name, i.Address)
			return nil
		},
	}
	own := c.Flags()
	own.StringVar(&source.Repo, "site", "", "URL of the site repo (https, ssh)")
	own.StringVar(&source.Branch, "branch", "main", "branch of the site repo")
	own.StringVar(&source.Path, "path", "", "folder of the site in the repo")
	own.StringVar(&source.Credentials, "credentials", "", "folder with files username, password, bearerToken, identity, known_hosts, ca.crt")
	who(c, &name, &address, &yes)
	return c
}

func joinCommand(s *surroundings) *cobra.Command {
	var caHash, name, address string
	var yes bool
	c := &cobra.Command{
		Use:   "join ADDRESS[,ADDRESS...] --ca-hash HASH <<< TOKEN",
		Short: "Make this machine a worker of a site",
		Long: `Join makes this machine a member of a site, with the line that "reconcile token"
prints on a master. The token is read from standard input, or asked for: an
argument could be read by every user of the machine.`,
		Example: `  noded join 10.0.0.11:6443 --ca-hash sha256:... <<< abcdef.0123456789abcdef`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			a, err := parseAddress(address)
			if err != nil {
				return err
			}
			h, done, err := s.change("join", "masters", args[0], "caHash", caHash, "name", name, "address", address)
			if err != nil {
				return err
			}
			defer done()
			token, err := s.token(ctx)
			if err != nil {
				return err
			}
			j := &member.Join{Host: h, Name: name, Address: a}
			if j.Invitation, err = machine.ParseInvitation(args[0], caHash, token); err != nil {
				return err
			}
			if j.Needs, err = host.Detect(ctx, h); err != nil {
				return err
			}
			clock := s.clock()
			j.Progress = clock.say
			if err := s.become(ctx, h, "join", j, yes); err != nil {
				return err
			}
			fmt.Fprintf(s.out, "%s is a worker of site %s, at %s\n", j.Name, j.Site.Name, j.Address)
			return nil
		},
	}
	c.Flags().StringVar(&caHash, "ca-hash", "", "hash of the public key of the site's certificate authority: sha256:HEX")
	who(c, &name, &address, &yes)
	return c
}

// who adds the flags that say which machine this is.
func who(c *cobra.Command, name, address *string, yes *bool) {
	own := c.Flags()
	own.StringVar(name, "name", "", "name of this machine, as the site repo has it (default: init finds it by network card or address; else the host name)")
	own.StringVar(address, "address", "", "address by which the site reaches this machine (default: the declared one, the one that leads to the master, or the only one)")
	own.BoolVar(yes, "yes", false, "do not ask")
}

// parseAddress reads --address; nothing is the invalid one.
func parseAddress(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, fmt.Errorf("--address %s: this is not an IP address, such as 10.0.0.12", text)
	}
	return a.Unmap(), nil
}
