package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// dryRun makes a plan and prints it.
func dryRun(ctx context.Context, f *flags, s streams) error {
	print, err := printer(f.output, s)
	if err != nil {
		return err
	}
	site, err := readSite(ctx, f, s, "", true)
	if err != nil {
		return err
	}
	var systems []reconciler.System
	switch {
	case f.offline:
		systems = recordedSystems(plan.State{})
	case f.against != "":
		before, err := readSite(ctx, f, s, f.against, true)
		if err != nil {
			return err
		}
		systems = recordedSystems(before.Objects)
	default:
		c, err := openCluster(ctx, f, s, nil)
		if err != nil {
			return err
		}
		keeper, err := newKeeper(c.config, c.objects, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer keeper.Close()
		c.roles = &withRoles{System: c.machines, keeper: keeper}
		systems = c.systems()
		notePeople(s.err, site)
	}
	s.doing("comparing %d documents with the site", len(site.Objects))
	p, err := (&reconciler.Reconciler{Systems: systems}).Plan(ctx, site)
	s.done()
	if err != nil {
		return err
	}
	if err := print(p); err != nil {
		return err
	}
	if err := unread(p); err != nil {
		return err
	}
	if !p.Settled() {
		return code(exitPending)
	}
	return nil
}

// unread is the error of a plan in which whole systems are missing.
func unread(p *plan.Plan) error {
	var systems []string
	var cause string // most often they have one
	for _, waits := range p.Waiting {
		if waits.Code == reconciler.Unread || waits.Code == reconciler.Panicked {
			systems, cause = append(systems, waits.ID.System), cmp.Or(cause, waits.Cause)
		}
	}
	if systems == nil {
		return nil
	}
	return fmt.Errorf("%s could not be compared: %s; %s", strings.Join(systems, ", "), cause, seeCluster)
}

// seeCluster is what to do where the cluster does not answer.
const seeCluster = "see whether the cluster answers kubectl, and name its kubeconfig with --kubeconfig"

// printer is the way of printing that --output names.
func printer(output string, s streams) (func(*plan.Plan) error, error) {
	switch output {
	case "diff":
		return func(p *plan.Plan) error { return p.WriteDiff(s.out, s.outTerminal) }, nil
	case "summary":
		return func(p *plan.Plan) error { return p.WriteSummary(s.out, s.outTerminal) }, nil
	case "json":
		return func(p *plan.Plan) error { return p.WriteJSON(s.out) }, nil
	case "markdown":
		return func(p *plan.Plan) error { return p.WriteMarkdown(s.out, 0) }, nil
	}
	return nil, fmt.Errorf("--output %s: there is no such form; want diff, summary, json or markdown", output)
}

// recordedSystems stand in for a real site of which all that is known is what it
// should have: nothing for --offline, the render of another revision for
// --against.
func recordedSystems(have plan.State) (systems []reconciler.System) {
	for _, name := range []string{plan.Machines, plan.Volumes, plan.Objects, plan.Directory} {
		systems = append(systems, recorded{name, have})
	}
	return systems
}

type recorded struct {
	name string
	have plan.State
}

func (r recorded) Name() string { return r.name }

func (r recorded) Observe(context.Context, *plan.Site) (plan.State, error) {
	return r.arrange(r.have), nil
}

func (r recorded) Desire(_ context.Context, site *plan.Site, _ plan.State) (plan.State, error) {
	return r.arrange(site.Objects), nil
}

func (r recorded) arrange(state plan.State) plan.State {
	if r.name == plan.Objects {
		return kube.Arrange(state.Of(r.name))
	}
	return state.Of(r.name)
}

func (r recorded) Apply(context.Context, plan.Change) error {
	return errors.New("what was recorded cannot be changed")
}
