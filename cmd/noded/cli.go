package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// newRoot is the command line.
func newRoot(s *surroundings) *cobra.Command {
	root := &cobra.Command{
		Use:   "noded",
		Short: "Make a PC a machine of a site, and look after it",
		Long: `Noded turns a PC with nothing but Debian into a machine of a site: it installs
what is needed from the bundle (install), makes the first machine a master
(init), lets every further one join (join), and is the agent on each (run).

Whatever changes the machine is listed first, and asked for. Every command can
be run again: it goes on where it was.

Exit codes: 0 done, 2 refused or broken. The log has each command in full, and
what it said: ` + logFile,
		Example: `  /media/usb/kingmaker/bin/noded install
  noded init --site https://git.school.example/site.git --credentials /root/git
  noded join 10.0.0.11:6443 --ca-hash sha256:... <<< abcdef.0123456789abcdef
  noded status`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())
	})
	root.AddCommand(
		installCommand(s),
		initCommand(s),
		joinCommand(s),
		runCommand(s), fenceCommand(s),
		resetCommand(s),
		statusCommand(s),
		versionCommand(s),
	)
	return root
}

func versionCommand(s *surroundings) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  noded version",
		Args:    cobra.NoArgs,
		Run:     func(*cobra.Command, []string) { fmt.Fprintln(s.out, "noded", version()) },
	}
}
