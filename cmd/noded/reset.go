package main

import (
	"fmt"
	"slices"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster/hand"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"github.com/spf13/cobra"
)

func resetCommand(s *surroundings) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "reset",
		Short: "Take this machine out of its site",
		Long: `Reset ends everything that the site runs on this machine and removes what it kept
here, so that the machine can join again, or another site. What noded install
brought stays, and a brick is never touched. It drains nothing: Pods are ended.

A master is reset only with --yes, for with the last one the site ends.`,
		Example: "  noded reset",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			h, done, err := s.change("reset")
			if err != nil {
				return err
			}
			defer done()
			clock := s.clock()
			r := &member.Reset{Host: h, Sure: yes, Progress: clock.say}
			lost, remains, err := r.Check(ctx)
			for _, line := range lost {
				fmt.Fprintln(s.err, "lost is", line)
			}
			if err != nil {
				h.Log.InfoContext(ctx, "refused", "error", err)
				return err
			}
			// Once the agent has stopped, which would mount them again, and while their
			// Pods can still end.
			steps := slices.Insert(r.Steps(), 1, hand.Leave(h))
			todo, err := host.Look(ctx, steps)
			if err != nil {
				return err
			}
			if len(todo) == 0 {
				fmt.Fprintln(s.out, "this machine is no member of a site, and nothing of one is left on it")
				return nil
			}
			if err := s.agree(ctx, "reset", todo, yes); err != nil {
				return err
			}
			if err := host.Do(ctx, steps, clock.say); err != nil {
				h.Log.ErrorContext(ctx, "broke", "error", err)
				return err
			}
			fmt.Fprintln(s.out, "this machine is no member of a site any more")
			for _, line := range remains {
				fmt.Fprintln(s.out, "what remains to be done, on a master:", line)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask; reset a master too")
	return c
}
