package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// flags are the command line, parsed.
type flags struct {
	repo, branch, path string
	credentials, cache string
	kubeconfig         string
	interval           time.Duration
	listen, logFormat  string

	dryRun, offline, once bool
	against, output       string
	noLeader              bool
}

// newRoot is the command line: reconcile itself and its verbs.
func newRoot(s streams) *cobra.Command {
	f := &flags{}
	root := &cobra.Command{
		Use:   "reconcile",
		Short: "Keep a site equal to its git repository",
		Long: `Reconcile pulls a site repo, renders it, compares it with the real site, and
changes the site until they are equal: for ever (no flag), once (--once), or
not at all (--dry-run prints the plan).

What SOPS encrypted in the repo is opened with the age key in the folder of
--credentials, a file age.agekey (any *.agekey). To make one:
  age-keygen -o age.agekey        prints the public side, age1...
  sops encrypt --in-place --age age1... \
    --encrypted-regex '^(data|stringData|initial|managed)$' FILE
--dry-run and the verbs do without the key: what is encrypted stays so.

Exit codes of --dry-run: 0 nothing to change, 1 changes pending, 2 an error.
Exit codes of --once: 0 converged, 1 changes remain or wait, 2 an error.`,
		Example: `  reconcile --repo https://git.school.example/site.git --credentials /etc/kingmaker/git
  reconcile --repo . --dry-run
  reconcile --repo . --dry-run --against origin/main --output markdown
  reconcile --repo /srv/site.git --once`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case f.dryRun && f.once:
				return fmt.Errorf("--dry-run and --once exclude each other: choose one")
			case (f.offline || f.against != "") && !f.dryRun:
				return fmt.Errorf("--offline and --against belong to --dry-run: add it")
			case f.offline && f.against != "":
				return fmt.Errorf("--against needs no cluster either: leave --offline out")
			case f.interval <= 0:
				return fmt.Errorf("--interval %s: want more than 0, such as 1m", f.interval)
			case f.dryRun:
				return dryRun(cmd.Context(), f, s)
			case f.once:
				return once(cmd.Context(), f, s)
			}
			return daemon(cmd.Context(), f, s)
		},
	}
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())
	})

	all := root.PersistentFlags()
	all.StringVar(&f.kubeconfig, "kubeconfig", "", "the cluster (default: as kubectl)")
	all.StringVar(&f.logFormat, "log-format", "text", "text or json")
	repo(root, f)
	own := root.Flags()
	own.StringVar(&f.repo, "repo", "", "site repo: URL (https, ssh, file) or folder")
	own.DurationVar(&f.interval, "interval", time.Minute, "time between two looks at the site repo")
	own.StringVar(&f.listen, "listen", "127.0.0.1:8080", "address for /metrics, /healthz, /readyz and /webhook; empty for none")
	own.BoolVar(&f.noLeader, "no-leader-election", false, "do not ask the cluster whether another reconcile works already")
	own.BoolVar(&f.dryRun, "dry-run", false, "print the plan and change nothing")
	own.BoolVar(&f.offline, "offline", false, "with --dry-run: without a cluster, so that everything is created")
	own.StringVar(&f.against, "against", "", "with --dry-run: compare with this revision of the site repo, without a cluster")
	own.StringVar(&f.output, "output", "diff", "with --dry-run: diff, summary, json or markdown")
	own.BoolVar(&f.once, "once", false, "converge once and exit")

	root.AddCommand(
		validateCommand(f, s),
		renderCommand(f, s),
		statusCommand(f, s),
		suspendCommand(f, s),
		resumeCommand(f, s),
		tokenCommand(f, s),
		versionCommand(s),
	)
	return root
}

// repo adds the flags that say where a site repo is.
func repo(cmd *cobra.Command, f *flags) {
	own := cmd.Flags()
	own.StringVar(&f.branch, "branch", "main", "branch of the site repo")
	own.StringVar(&f.path, "path", "", "folder of the site in the repo")
	own.StringVar(&f.credentials, "credentials", "", "folder with files username, password, bearerToken, identity, known_hosts, ca.crt; webhook-secret; age.agekey for what SOPS encrypted")
	own.StringVar(&f.cache, "cache", "", "folder for what was fetched (default: the user's cache folder)")
}
