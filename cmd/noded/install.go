package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
)

func installCommand(s *surroundings) *cobra.Command {
	var bundle, disk, system string
	var yes bool
	c := &cobra.Command{
		Use:   "install [--bundle DIR] [--disk DEVICE [--system SIZE]]",
		Short: "Put in place what every machine needs, from the bundle",
		Long: `Install makes a fresh Debian machine ready to become a member of a site: packages,
programs, images, services and kernel settings, all from the bundle.

A disk is split into the system's partition and the brick only where --disk
names it, and never one with data on it. Without --disk all disks stay as they
are, and are listed.`,
		Example: `  /media/usb/kingmaker/bin/noded install
  noded install --bundle /srv/kingmaker-0.1.0-linux-amd64 --disk /dev/sdb --system 40Gi`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			h, done, err := s.change("install", "bundle", bundle, "disk", disk, "system", system)
			if err != nil {
				return err
			}
			defer done()
			o := host.Options{Disk: disk}
			if o.System, err = sizeOf(system, disk); err != nil {
				return err
			}
			if bundle == "" {
				if bundle, err = bundleAround(); err != nil {
					return err
				}
			}
			if o.Bundle, err = host.OpenBundle(bundle); err != nil {
				return err
			}
			if o.Needs, err = host.Detect(ctx, h); err != nil {
				return err
			}
			for _, words := range o.Needs.Words {
				fmt.Fprintln(s.err, words)
			}
			steps := host.Install(h, o)
			todo, err := host.Look(ctx, steps)
			if err != nil {
				h.Log.InfoContext(ctx, "refused", "error", err)
				return err
			}
			if disk == "" {
				if disks, err := host.Disks(ctx, h); err == nil && len(disks) > 0 {
					fmt.Fprintln(s.err, "disks, which stay as they are without --disk:")
					for _, line := range host.DiskLines(disks, o.System) {
						fmt.Fprintln(s.err, " ", line)
					}
				}
			}
			if len(todo) == 0 {
				fmt.Fprintln(s.out, "everything is installed already; nothing was changed")
				return nil
			}
			if err := s.agree(ctx, "install", todo, yes); err != nil {
				return err
			}
			if err := host.Do(ctx, steps, s.clock().say); err != nil {
				h.Log.ErrorContext(ctx, "broke", "error", err)
				return err
			}
			fmt.Fprintf(s.out, `installed Kingmaker %s with Kubernetes %s
next, one of
  noded init --site URL      makes this machine the first master of a site
  noded join ...             joins a site: paste the line that reconcile token prints on a master
`, o.Bundle.Version, o.Bundle.Kubernetes)
			return nil
		},
	}
	own := c.Flags()
	own.StringVar(&bundle, "bundle", "", "folder of the bundle (default: the one that this noded is in)")
	own.StringVar(&disk, "disk", "", "device to split into system and brick; it must be empty")
	own.StringVar(&system, "system", "", "size of the system's partition of --disk (default 40Gi)")
	own.BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// sizeOf reads --system.
func sizeOf(text, disk string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	if disk == "" {
		return 0, errors.New("--system is the size of a partition of --disk: name the disk as well")
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Value() <= 0 {
		return 0, fmt.Errorf("--system %s: this is not a size, such as 40Gi", text)
	}
	return q.Value(), nil
}

// bundleAround is the bundle that this program is part of.
func bundleAround() (string, error) {
	program, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(filepath.Dir(program))
	if _, err := os.Stat(filepath.Join(dir, "bundle.json")); err != nil {
		return "", fmt.Errorf("%s is not in a bundle: run the noded in bin/ of an unpacked bundle, or name its folder with --bundle", program)
	}
	return dir, nil
}
