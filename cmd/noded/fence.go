package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
)

// askFor is how long a master asks the others at its start whether it still is one.
// Where nobody answers it is what it was: after a power cut all of them start.
const askFor = 8 * time.Second

func fenceCommand(s *surroundings) *cobra.Command {
	return &cobra.Command{
		Use:     "fence",
		Short:   "See that a former master does not start as one (kubelet.service does that)",
		Hidden:  true,
		Args:    cobra.NoArgs,
		Example: "  systemctl cat kubelet",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.uid != 0 {
				return errNotRoot
			}
			h := &host.Host{Root: s.host.Root, Runner: s.host.Runner, Log: slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: slog.LevelInfo}))}
			return fenced(cmd.Context(), h, askFor)
		},
	}
}

// fenced is nil where the kubelet may start. Else the machine is disarmed, and its
// agent, which runs beside, resets it and reboots.
func fenced(ctx context.Context, h *host.Host, patience time.Duration) error {
	if !member.Serves(h) && !member.HasKeys(h) || member.UnderWay(h) != "" {
		return nil
	}
	m, err := member.Read(h)
	if m == nil || err != nil {
		return nil // whose it is, is not ours to say
	}
	p, err := member.ReadPart(h)
	if err != nil {
		h.Log.WarnContext(ctx, "what was last known of the role cannot be read", "error", err)
	}
	if p.Role != machine.Worker && othersThan(h, m) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if told, err := roleOf(ctx, h, m); err == nil {
			p = p.Learn(told.Metadata.UID, told.Spec.Role, told.Spec.RoleGeneration)
			if err := member.SavePart(h, p); err != nil {
				h.Log.WarnContext(ctx, "the role was not noted", "error", err)
			}
		} else {
			h.Log.InfoContext(ctx, "nobody says what this machine is; it starts as what it was", "error", member.Plain(err))
		}
	}
	if p.Role != machine.Worker {
		return nil
	}
	f := &member.Fence{Host: h, Progress: func(line string) { h.Log.InfoContext(ctx, "fence", "now", line) }}
	if err := f.Disarm(ctx); err != nil {
		return fmt.Errorf("this machine is a master no more, and could not be disarmed: %w", err)
	}
	return fmt.Errorf("this machine is a master no more (role generation %d): its agent resets it", p.Generation)
}

// othersThan reports whether there are masters to ask besides the machine itself.
func othersThan(h *host.Host, m *member.Membership) bool {
	masters, err := host.Masters(h)
	for _, a := range masters {
		if a.Addr() != m.Address {
			return true
		}
	}
	return err != nil
}

// assigned is what a Machine object says of the role.
type assigned struct {
	Metadata struct{ UID string }
	Spec     machine.Assigned
}

// roleOf asks the site until it answers or ctx ends.
func roleOf(ctx context.Context, h *host.Host, m *member.Membership) (told assigned, err error) {
	if _, err := host.EnsureHosts(h, m.Site); err != nil {
		return told, err
	}
	config, err := member.Connect(h, member.KubeletConf)
	if err != nil {
		return told, err
	}
	config.Host, config.Timeout = "https://"+m.Endpoint, 2*time.Second
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return told, err
	}
	for {
		o, err := client.Resource(machine.Resource()).Get(ctx, m.Name, metav1.GetOptions{})
		if err == nil {
			text, err := o.MarshalJSON()
			if err == nil {
				err = json.Unmarshal(text, &told)
			}
			return told, err
		}
		if member.Wait(ctx, 500*time.Millisecond) != nil {
			return told, err
		}
	}
}
