package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
)

// report is what `noded status -o json` prints.
type report struct {
	Member     *member.Membership    `json:"member,omitempty"`   // absent: no member
	UnderWay   string                `json:"underWay,omitempty"` // an init or join that is not complete
	Role       *member.Part          `json:"role,omitempty"`     // what the machine remembers; absent: it was given none yet
	Blank      bool                  `json:"blank,omitempty"`    // it was reset, and waits to join again
	PutAside   []string              `json:"putAside,omitempty"`
	Units      []unitState           `json:"units"`
	Masters    []string              `json:"masters,omitempty"` // that the balancer leads to
	API        apiState              `json:"api"`
	Machine    *machine.Status       `json:"machine,omitempty"` // as the site has it; absent: not known
	Brick      *gluster.MachineBrick `json:"brick,omitempty"`   // the same, with the volumes that are mounted
	LastError  string                `json:"lastError,omitempty"`
	Version    string                `json:"version"`              // of this noded
	Installed  string                `json:"installed,omitempty"`  // bundle
	Kubernetes string                `json:"kubernetes,omitempty"` // of the bundle
}

type unitState struct {
	Unit  string `json:"unit"`
	State string `json:"state"` // as systemctl is-active says it
}

type apiState struct {
	Reachable bool      `json:"reachable"`
	Error     string    `json:"error,omitempty"`
	Since     time.Time `json:"since,omitzero"` // it has been so, by the agent's word
}

func statusCommand(s *surroundings) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show how this machine is",
		Long:    "Status shows which site this machine is a member of, and what works. It needs no API.",
		Example: "  noded status\n  noded status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.uid != 0 {
				return errNotRoot
			}
			if output != "text" && output != "json" {
				return fmt.Errorf("-o %s: there is no such form; want text or json", output)
			}
			h := &host.Host{Root: s.host.Root, Runner: s.host.Runner, Log: slog.New(slog.DiscardHandler)}
			r, err := look(cmd.Context(), h)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(s.out)
				enc.SetIndent("", "  ")
				return enc.Encode(r)
			}
			return r.write(s.out, time.Now())
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

// look asks the machine, and the API where it answers. Only a machine that
// cannot be read is an error.
func look(ctx context.Context, h *host.Host) (r *report, err error) {
	r = &report{Version: version()}
	if r.Member, err = member.Read(h); err != nil {
		return nil, err
	}
	r.UnderWay = member.UnderWay(h)
	var bundle struct{ Version, Kubernetes string }
	if text, err := h.Read(host.BundleFile); err == nil && json.Unmarshal(text, &bundle) == nil {
		r.Installed, r.Kubernetes = bundle.Version, bundle.Kubernetes
	}
	for _, unit := range []string{host.ContainerdUnit, host.BalancerUnit, host.KubeletUnit, host.NodedUnit} {
		said, err := h.Run(ctx, "systemctl", "is-active", unit)
		state := strings.TrimSpace(string(said))
		var exit *host.Exit
		if state == "" && err != nil && !errors.As(err, &exit) {
			return nil, err
		}
		r.Units = append(r.Units, unitState{unit, state})
	}
	masters, err := host.Masters(h)
	if err != nil {
		return nil, err
	}
	for _, m := range masters {
		r.Masters = append(r.Masters, m.String())
	}
	if r.Member == nil {
		return r, nil
	}
	part, err := member.ReadPart(h)
	if err != nil {
		return nil, err
	}
	if part.Generation > 0 {
		r.Role = &part
	}
	r.Blank = member.Blank(h)
	for _, place := range []string{member.Quarantine, member.DirectoryQuarantine} {
		if h.Exists(place) {
			r.PutAside = append(r.PutAside, place)
		}
	}
	r.API, r.Machine, r.Brick = ask(ctx, h, r.Member)
	if text, err := h.Read(lastBeatFile); err == nil {
		var b beat
		if json.Unmarshal(text, &b) == nil {
			r.LastError = b.Error
			if (b.Error == "") == r.API.Reachable {
				r.API.Since = b.Since
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return r, nil
}

// ask asks the API about this machine, as this machine.
func ask(ctx context.Context, h *host.Host, m *member.Membership) (apiState, *machine.Status, *gluster.MachineBrick) {
	config, err := member.Connect(h, member.KubeletConf)
	if err != nil {
		return apiState{Error: err.Error()}, nil, nil
	}
	config.Host = "https://" + m.Endpoint
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return apiState{Error: err.Error()}, nil, nil
	}
	o, err := client.Resource(machine.Resource()).Get(ctx, m.Name, metav1.GetOptions{})
	var answer apierrors.APIStatus
	switch {
	case errors.As(err, &answer):
		return apiState{Reachable: true, Error: err.Error()}, nil, nil
	case err != nil:
		return apiState{Error: "no master answers: " + member.Plain(err)}, nil, nil
	}
	var mc struct{ Status machine.Status }
	var hands struct {
		Status struct{ Brick *gluster.MachineBrick } // which the agent knows nothing of
	}
	text, err := o.MarshalJSON()
	if err == nil {
		err = errors.Join(json.Unmarshal(text, &mc), json.Unmarshal(text, &hands))
	}
	if err != nil {
		return apiState{Reachable: true, Error: err.Error()}, nil, nil
	}
	return apiState{Reachable: true}, &mc.Status, hands.Status.Brick
}

// write is the report for people.
func (r *report) write(w io.Writer, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what, format string, args ...any) { fmt.Fprintf(t, what+"\t"+format+"\n", args...) }
	if r.Installed == "" {
		row("installed", "nothing (noded install)")
	} else {
		row("installed", "Kingmaker %s, Kubernetes %s; this is noded %s", r.Installed, r.Kubernetes, r.Version)
	}
	switch m := r.Member; {
	case m == nil:
		row("site", "none: noded init or noded join makes this machine a member")
	default:
		row("site", "%s", m.Site)
		row("machine", "%s, a %s, at %s", m.Name, m.Role, m.Address)
	}
	if r.UnderWay != "" {
		row("not complete", "noded %s: run it again, or noded reset", r.UnderWay)
	}
	if p := r.Role; p != nil {
		row("role", "%s, generation %d%s", p.Role, p.Generation, r.pending())
		if p.Failure != "" {
			row("join failed", "generation %d: %s", p.Failed, p.Failure)
		}
	}
	if r.PutAside != nil {
		row("put aside", "%s: data of the time as a master; once the site works without, it can be deleted", strings.Join(r.PutAside, ", "))
	}
	if r.Machine != nil {
		row("phase", "%s", orDash(r.Machine.Phase))
		row("heartbeat", "%s ago", age(now, r.Machine.Heartbeat))
	}
	for _, u := range r.Units {
		row(strings.TrimSuffix(u.Unit, ".service"), "%s", u.State)
	}
	if r.Member != nil {
		state := "reachable"
		if !r.API.Reachable {
			state = "not reachable"
		}
		if !r.API.Since.IsZero() {
			state += " for " + age(now, r.API.Since)
		}
		if r.API.Error != "" {
			state += ": " + r.API.Error
		}
		row("API", "%s", state)
		row("masters", "%s", orDash(strings.Join(r.Masters, ", ")))
	}
	if r.Machine != nil {
		for _, c := range r.Machine.Conditions {
			if c.Status != "True" {
				row(strings.ToLower(c.Type), "%s for %s: %s (%s)", c.Status, age(now, c.LastTransitionTime), c.Message, c.Reason)
			}
		}
		v := r.Machine.Inventory.Versions
		row("versions", "kubelet %s, containerd %s, Debian %s, Linux %s", orDash(v.Kubelet), orDash(v.Containerd), orDash(v.Debian), orDash(v.Kernel))
	}
	if r.Brick != nil {
		row("brick", "%s", brickWords(r.Brick))
		for _, m := range r.Brick.Mounts {
			row("volume "+m.Volume, "%s", mountWords(m))
		}
	}
	if r.LastError != "" && r.LastError != r.API.Error {
		row("last error", "%s", r.LastError)
	}
	return t.Flush()
}

// brickWords is a brick in a line.
func brickWords(b *gluster.MachineBrick) string {
	words := b.Unfit
	if b.Size > 0 {
		const gib = 1 << 30
		size := fmt.Sprintf("%.1f of %.1f GiB free", float64(b.Free)/gib, float64(b.Size)/gib)
		words = strings.TrimSuffix(size+"; "+words, "; ")
	}
	switch {
	case b.Glusterd != "":
		words += ", glusterd answers"
	case b.Unfit == "":
		words += ", glusterd does not answer"
	}
	return words
}

func mountWords(m gluster.Mount) string {
	if m.Ready {
		return "ready"
	}
	return "not ready: " + m.Message
}

// pending is what is still to be done for the machine to be what it was told to be.
func (r *report) pending() string {
	switch p := r.Role; {
	case r.Blank:
		return ": it was reset, and waits for the site to let it join again"
	case p.Reached == p.Generation:
		return ""
	case p.Reached == 0:
		return ": not reached yet"
	default:
		return fmt.Sprintf(": not reached yet, it is as of generation %d", p.Reached)
	}
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
