package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/user"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

func validateCommand(f *flags, s streams) *cobra.Command {
	c := &cobra.Command{
		Use:     "validate [DIR]",
		Short:   "Check a site repo: every fault with file and line",
		Long:    "Validate renders a site and checks all of it, without a cluster. Exit codes: 0 valid, 2 not.",
		Example: "  reconcile validate\n  reconcile validate examples/school",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			site, err := siteOf(cmd.Context(), f, s, args)
			if err != nil {
				return err
			}
			fmt.Fprintf(s.out, "site %s is valid: %s\n", site.Name, census(site))
			return nil
		},
	}
	repo(c, f)
	return c
}

func renderCommand(f *flags, s streams) *cobra.Command {
	c := &cobra.Command{
		Use:     "render [DIR]",
		Short:   "Print what a site repo declares, as YAML",
		Long:    "Render prints every document of a site after kustomize, the built-in manifests included. Secrets are masked.",
		Example: "  reconcile render examples/school | less",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			site, err := siteOf(cmd.Context(), f, s, args)
			if err != nil {
				return err
			}
			for i, id := range site.Objects.IDs() {
				text, err := yaml.Marshal(site.Objects[id].Spec) // a Secret masks itself
				if err != nil {
					return fmt.Errorf("print %s: %w", id, err)
				}
				if i > 0 {
					fmt.Fprintln(s.out, "---")
				}
				fmt.Fprintf(s.out, "# %s\n%s", site.Objects[id].Origin, text)
			}
			return nil
		},
	}
	repo(c, f)
	return c
}

// siteOf is the site in a folder, this one by default.
func siteOf(ctx context.Context, f *flags, s streams, args []string) (*plan.Site, error) {
	if f.repo = "."; len(args) > 0 {
		f.repo = args[0]
	}
	return readSite(ctx, f, s, "", true)
}

// census counts what a site declares, by system.
func census(site *plan.Site) string {
	var parts []string
	for _, system := range []string{plan.Machines, plan.Volumes, plan.Objects, plan.Directory} {
		parts = append(parts, fmt.Sprintf("%d %s", len(site.Objects.Of(system)), system))
	}
	return strings.Join(parts, ", ")
}

// statusPatience is how long a cluster may take for all that status asks of it.
const statusPatience = 20 * time.Second

func statusCommand(f *flags, s streams) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show how far the site has come",
		Long:    "Status shows which commit is wanted and reached, and what stands in the way, as the daemon recorded it in the cluster; the machines and volumes, as they are, and the last changes of roles. Where the API does not answer, a machine of the site tells which masters are missing.",
		Example: "  reconcile status\n  reconcile status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), statusPatience)
			defer cancel()
			in, name, err := openSite(ctx, f, s)
			if err != nil {
				return errors.Join(err, writeAway(cmd.Context(), s.err))
			}
			status, suspension, err := in.objects.ReadStatus(ctx, name)
			if err != nil {
				return errors.Join(err, writeAway(cmd.Context(), s.err))
			}
			machines, unseen := machine.Lines(ctx, in.config) // the rest is worth showing without
			crowns, err := lastCrowns(ctx, in.config)
			volumes, away := in.volumes.Lines(ctx)
			replicas, silent := in.people.replicas(ctx)
			unseen = errors.Join(unseen, err, away, silent)
			switch output {
			case "text":
				now := time.Now()
				return errors.Join(writeStatus(s.out, name, status, suspension, now), writeMachines(s.out, machines, now), writeVolumes(s.out, volumes, now), writeReplicas(s.out, replicas), writeCrowns(s.out, crowns, now), unseen)
			case "json":
				enc := json.NewEncoder(s.out)
				enc.SetIndent("", "  ")
				return errors.Join(unseen, enc.Encode(struct {
					Site       string           `json:"site"`
					Status     plan.SiteStatus  `json:"status"`
					Suspension *kube.Suspension `json:"suspension,omitempty"`
					Machines   []machine.Line   `json:"machines,omitempty"`
					Volumes    []gluster.Line   `json:"volumes,omitempty"`
					Directory  []replica        `json:"directory,omitempty"`
					Crowns     []crownLine      `json:"crowns,omitempty"`
				}{name, status, suspension, machines, volumes, replicas, crowns}))
			}
			return fmt.Errorf("-o %s: there is no such form; want text or json", output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

// openSite is the cluster and the name of its one site.
func openSite(ctx context.Context, f *flags, s streams) (*cluster, string, error) {
	c, err := openCluster(ctx, f, s, nil)
	if err != nil {
		return nil, "", err
	}
	name, err := siteName(ctx, c.objects)
	return c, name, err
}

// siteName is the name of the one site of a cluster.
func siteName(ctx context.Context, objects *kube.System) (string, error) {
	names, err := objects.SiteNames(ctx)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w; %s", err, seeCluster)
	case len(names) == 0:
		return "", errors.New("the cluster has no Site: reconcile has not worked on it yet")
	case len(names) > 1:
		return "", fmt.Errorf("the cluster has more than one Site (%s): a site was renamed; delete the old one when its objects are gone", strings.Join(names, ", "))
	}
	return names[0], nil
}

func writeStatus(w io.Writer, name string, status plan.SiteStatus, suspension *kube.Suspension, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what, format string, args ...any) { fmt.Fprintf(t, what+"\t"+format+"\n", args...) }
	row("site", "%s", name)
	row("commit wanted", "%s", orDash(status.Commit.Wanted))
	row("commit reached", "%s", orDash(status.Commit.Reached))
	for _, c := range status.Conditions {
		row(strings.ToLower(c.Type), "%s for %s: %s (%s)", c.Status, age(now, c.LastTransitionTime), c.Message, c.Reason)
	}
	if suspension != nil {
		row("suspended", "by %s for %s: %s", suspension.By, age(now, suspension.Since), suspension.Reason)
	}
	n := status.Counts
	row("objects", "%d declared, %d changes pending, %d withheld, %d waiting, %d not working", n.Objects, n.Changes, n.Withheld, n.Waiting, n.Unhealthy)
	row("last round", "%s ago, by reconcile %s", age(now, status.LastRound), orDash(status.Reconciler))
	for _, f := range status.Errors {
		row(string(f.Code), "%s", f.Error())
	}
	return t.Flush()
}

// writeMachines prints a line for each machine, those that joined without being
// listed among them.
func writeMachines(w io.Writer, machines []machine.Line, now time.Time) error {
	if len(machines) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nMACHINE\tROLE\tREADY\tPHASE\tSEEN")
	for _, m := range machines {
		phase, seen := orDash(m.Phase), "-"
		switch {
		case !m.Listed:
			phase = "not listed"
		case !m.Joined:
			phase = "not joined"
		}
		if !m.Seen.IsZero() {
			seen = age(now, m.Seen) + " ago"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", m.Name, orDash(m.Role), orDash(m.Ready), phase, seen)
	}
	return t.Flush()
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func age(now, then time.Time) string {
	if then.IsZero() {
		return "ever"
	}
	return now.Sub(then).Round(time.Second).String()
}

func suspendCommand(f *flags, s streams) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:     "suspend --reason TEXT",
		Short:   "Stop all changes to the site, at once",
		Long:    "Suspend is the emergency stop: no daemon changes the site until reconcile resume. Who did it, when and why is shown wherever the state of the site is.",
		Example: `  reconcile suspend --reason "exams until noon"`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if reason == "" {
				return errors.New("--reason is missing: those who find the site stopped will want to know")
			}
			in, name, err := openSite(cmd.Context(), f, s)
			if err != nil {
				return err
			}
			by, err := in.objects.WhoAmI(cmd.Context())
			if err != nil {
				return err
			}
			if u, err := user.Current(); err == nil {
				by += " (" + u.Username + ")"
			}
			if err := in.objects.Suspend(cmd.Context(), name, &kube.Suspension{By: by, Reason: reason, Since: time.Now().UTC().Truncate(time.Second)}); err != nil {
				return err
			}
			fmt.Fprintf(s.out, "site %s is suspended; reconcile resume lets it go on\n", name)
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for everybody to see")
	return c
}

func resumeCommand(f *flags, s streams) *cobra.Command {
	return &cobra.Command{
		Use:     "resume",
		Short:   "Let changes to the site go on",
		Example: "  reconcile resume",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, name, err := openSite(cmd.Context(), f, s)
			if err != nil {
				return err
			}
			if err := in.objects.Suspend(cmd.Context(), name, nil); err != nil {
				return err
			}
			fmt.Fprintf(s.out, "site %s goes on\n", name)
			return nil
		},
	}
}

func versionCommand(s streams) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  reconcile version",
		Args:    cobra.NoArgs,
		Run:     func(*cobra.Command, []string) { fmt.Fprintln(s.out, "reconcile", version()) },
	}
}

// stamp is the version of a bundle. It is set by the linker (-X main.stamp=...),
// and never at run time.
var stamp string

// version is the stamp, and without one what the Go toolchain recorded in the
// binary. It is fit for the tag of an image.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if stamp != "" || !ok {
		return cmp.Or(stamp, "unknown")
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return plan.Short(setting.Value)
		}
	}
	return cmp.Or(strings.Trim(info.Main.Version, "()"), "devel") // a test has no version
}
