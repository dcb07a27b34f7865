package main

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/prometheus/client_golang/prometheus"
)

// writeVolumes prints a line for each volume, with what is the matter below it.
func writeVolumes(w io.Writer, volumes []gluster.Line, now time.Time) error {
	if len(volumes) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nVOLUME\tACCESS\tCOPIES\tPHASE\tTO HEAL\tMESSAGE")
	for _, v := range volumes {
		s := v.Status
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", v.Name, orDash(v.Access), orDash(s.Copies), orDash(s.Phase), s.Pending, orDash(s.Message))
		for _, b := range s.Bricks {
			if !b.Online {
				fmt.Fprintf(t, "\t\t\t\t\t%s is away for %s\n", b.Brick, age(now, b.Since))
			}
		}
		for _, file := range s.SplitFiles {
			fmt.Fprintf(t, "\t\t\t\t\tsplit-brain: %s\n", file)
		}
	}
	return t.Flush()
}

// volumeMetrics are the volumes as Prometheus sees them, by the last look.
type volumeMetrics struct{ last func() []gluster.Line }

func volumeGauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("kingmaker_volume_"+name, help, append([]string{"volume"}, labels...), nil)
}

// Describe is empty: which volumes there are is known when they are collected.
func (volumeMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect gives a volume's copies, what they have to heal, and how it is.
func (m volumeMetrics) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, v := range m.last() {
		s := v.Status
		gauge(volumeGauge("phase", "1 for the phase that the volume is in.", "phase"), 1, v.Name, s.Phase)
		gauge(volumeGauge("heal_entries", "Entries that copies have to catch up with."), float64(s.Pending), v.Name)
		gauge(volumeGauge("split_brain_entries", "Entries that copies contradict each other in."), float64(s.SplitBrain), v.Name)
		gauge(volumeGauge("homes", "Homes that are there."), float64(s.Homes), v.Name)
		for _, b := range s.Bricks {
			online := 0.
			if b.Online {
				online = 1
			}
			gauge(volumeGauge("brick_online", "1 where the process of a copy runs, else 0.", "machine"), online, v.Name, cmp.Or(b.Machine, b.Brick))
		}
	}
}
