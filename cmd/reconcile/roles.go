package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/crown"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// newKeeper makes the keeper of roles. It goes by what the cluster has of the site,
// and so works on while git cannot be reached.
func newKeeper(config *rest.Config, objects *kube.System, changed func(), log *slog.Logger) (*crown.Keeper, error) {
	return crown.New(crown.Options{
		Config:    config,
		Suspended: suspended,
		Changed:   changed,
		Told: func(ctx context.Context, site string, warning bool, reason plan.Code, note string) {
			if err := objects.Event(ctx, site, warning, reason, note); err != nil {
				log.Warn("an event was not recorded", "error", err)
			}
		},
		// Three of the kubelet's and the agent's signs are missed, and no answer of etcd
		// for as long: then an heir is prepared, which can be taken back.
		Limits: roles.Limits{Silent: 30 * time.Second},
		Log:    log,
	})
}

// suspended is why a person suspended a Site, "" where nobody did.
func suspended(site *unstructured.Unstructured) string {
	s := kube.SuspensionOf(site)
	if s == nil {
		return ""
	}
	return "suspended by " + cmp.Or(s.By, "hand") + ": " + s.Reason
}

// together runs all until the last has ended.
func together(all ...func(context.Context)) func(context.Context) {
	return func(ctx context.Context) {
		var group sync.WaitGroup
		for _, run := range all {
			group.Go(func() { run(ctx) })
		}
		group.Wait()
	}
}

// withRoles is the system of machines with what is to be done about roles besides.
// Carrying that out is the keeper's, who does not wait for rounds: here it is shown.
//
// In a plan that is only printed (live nil) it is a change of the object Crown, with
// the masters before and after and the steps between. A round of the daemon has it
// among what waits, so that a site is not called reached while it has too few
// masters.
type withRoles struct {
	*machine.System
	keeper *crown.Keeper
	live   func() roles.Decision

	outlook crown.Outlook // by the last Observe
	unseen  error
}

// Observe has the masters that there are, where they are to be others.
func (w *withRoles) Observe(ctx context.Context, site *plan.Site) (plan.State, error) {
	have, err := w.System.Observe(ctx, site)
	if err != nil || w.live != nil || !site.Spec.Kubernetes.IsManaged() {
		return have, err
	}
	w.outlook, w.unseen = w.keeper.Forecast(ctx, site)
	if len(w.outlook.Ahead) > 0 {
		have.Add(plan.Object{ID: crownID(cmp.Or(w.outlook.Crown, "next")), Spec: map[string]any{"masters": texts(w.outlook.Masters)}})
	}
	return have, nil
}

// Desire has the masters that there are to be.
func (w *withRoles) Desire(ctx context.Context, site *plan.Site, have plan.State) (plan.State, error) {
	want, err := w.System.Desire(ctx, site, have)
	faults, rest := plan.Split(err)
	if rest != nil || !site.Spec.Kubernetes.IsManaged() {
		return want, err
	}
	if w.live != nil {
		return want, plan.Join(append(faults, waiting(w.live())...))
	}
	switch err := w.unseen; {
	case apierrors.IsNotFound(err), errors.Is(err, crown.ErrNoSite): // a cluster in which nothing was applied yet
	case err != nil:
		faults = append(faults, &plan.Fault{Code: reconciler.Unread, ID: crownID("next"), Cause: err.Error(), Hint: seeCluster})
	default:
		if len(w.outlook.Ahead) > 0 {
			want.Add(crownObject(w.outlook))
		}
		faults = append(faults, waiting(roles.Decision{Holds: w.outlook.Decision.Holds, Waits: w.outlook.Decision.Waits})...)
	}
	return want, plan.Join(faults)
}

func crownID(name string) plan.ID { return plan.ID{System: plan.Machines, Kind: "Crown", Name: name} }

// waiting is what of a decision is to be told: each under the name of the machine that
// it is about, as a Crown, for the Machine itself is not held back by it.
func waiting(d roles.Decision) (faults []*plan.Fault) {
	for _, f := range append(d.Holds[:len(d.Holds):len(d.Holds)], d.Waits...) {
		told := *f
		told.ID = crownID(cmp.Or(f.ID.Name, "next"))
		faults = append(faults, &told)
	}
	if d.Step != nil {
		faults = append(faults, &plan.Fault{Code: roles.InProgress, ID: crownID(cmp.Or(d.Step.Crown, d.Step.Machine)), Cause: d.Step.String()})
	}
	return faults
}

// crownObject is a change of roles as a plan shows it.
func crownObject(o crown.Outlook) plan.Object {
	var steps, heirs []string
	for _, a := range o.Ahead {
		step := a.Step.String()
		if a.In > 0 {
			step += fmt.Sprintf(" (in %s)", a.In.Round(time.Second))
		}
		steps = append(steps, step)
	}
	for _, s := range o.Decision.Scores {
		line := fmt.Sprintf("%s %.2f", s.Machine, s.Total)
		if s.Out != "" {
			line = s.Machine + ": " + s.Out
		}
		heirs = append(heirs, line)
	}
	spec := map[string]any{"masters": texts(o.After), "steps": texts(steps)}
	if len(heirs) > 0 {
		spec["heirs"] = texts(heirs)
	}
	object := plan.Object{ID: crownID(cmp.Or(o.Crown, "next")), Spec: spec, Why: o.Decision.Why}
	if object.Why == "" {
		object.Why = o.Ahead[0].Step.String() + ": " + o.Ahead[0].Step.Why
	}
	if o.Assumed != "" {
		object.Notes = append(object.Notes, &plan.Fault{Code: roles.Unreadable, ID: object.ID, Cause: "etcd was not asked, and its members are those that the API calls masters: " + o.Assumed})
	}
	return object
}

// texts is a list as a plan has it.
func texts(list []string) []any {
	all := make([]any, len(list))
	for i, text := range list {
		all[i] = text
	}
	return all
}

// crownLine is one change of roles for people.
type crownLine struct {
	Name    string    `json:"name"`
	Kind    string    `json:"kind"`
	Victim  string    `json:"victim,omitempty"`
	Heir    string    `json:"heir,omitempty"`
	Why     string    `json:"why,omitempty"`
	Step    string    `json:"step,omitempty"`    // of an open one: what is being done
	Since   time.Time `json:"since,omitzero"`    // it has been so
	Outcome string    `json:"outcome,omitempty"` // of one that is over
	Cause   string    `json:"cause,omitempty"`   // what went wrong
}

// shownCrowns is how many are shown, the newest.
const shownCrowns = 3

// lastCrowns are the newest changes of roles, the newest first. A cluster that knows
// no such kind has none.
func lastCrowns(ctx context.Context, config *rest.Config) (lines []crownLine, err error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	crowns, err := (&crown.Store{Client: client}).List(ctx)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	for _, c := range slices.Backward(crowns) {
		l := crownLine{Name: c.Name(), Kind: string(c.Kind), Victim: c.Victim, Heir: c.Heir, Why: c.Why, Step: string(c.Step), Since: c.Since, Outcome: string(c.Outcome), Cause: cmp.Or(c.Cause, c.Error)}
		if !c.Open() {
			l.Step, l.Since = "", c.Ended
		}
		if lines = append(lines, l); len(lines) == shownCrowns {
			break
		}
	}
	return lines, nil
}

func writeCrowns(w io.Writer, lines []crownLine, now time.Time) error {
	if len(lines) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nCROWN\tIS\tSINCE\tWHY")
	for _, l := range lines {
		why := l.Why
		if l.Cause != "" {
			why += "; " + l.Cause
		}
		fmt.Fprintf(t, "%s\t%s\t%s ago\t%s\n", l.Name, cmp.Or(l.Outcome, l.Step), age(now, l.Since), why)
	}
	return t.Flush()
}
