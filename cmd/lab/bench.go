package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// runBench measures what the issues ask for, in one run on one machine, with
// kubectl diff as the other side. It is a report: a target that is missed is
// said to be, and is no error.
func runBench(ctx context.Context, flags *flag.FlagSet, args []string) (err error) {
	b := &bench{ctx: ctx}
	quick := false
	flags.IntVar(&b.objects, "objects", 4000, "measure a site of `N` objects, and for the proportion one of a quarter and one of ten quarters of it")
	flags.BoolVar(&quick, "quick", false, "a smoke test: 500 objects, and each thing once or twice")
	flags.BoolVar(&b.skipKubectl, "skip-kubectl", false, "leave out kubectl diff, which takes longest")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return errUsage
	}
	if b.objects < 100 {
		return errors.New("bench: -objects is at least 100: less is noise")
	}
	b.runs, b.kubectlRuns, b.rounds, b.pushes, b.renders = 5, 3, 6, 5, 3
	if quick {
		b.objects, b.runs, b.kubectlRuns, b.rounds, b.pushes, b.renders = 500, 2, 1, 2, 2, 1
	}
	if b.dir, err = os.MkdirTemp("", "kingmaker-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	b.bare, b.work, b.reconcile = filepath.Join(b.dir, "site.git"), filepath.Join(b.dir, "work"), filepath.Join(b.dir, "reconcile")
	load := found("/proc/loadavg", `(.*)`)
	if b.plane, err = controlplane.Start(ctx, controlplane.Options{AuditLog: filepath.Join(b.dir, "audit.log"), Progress: os.Stderr}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.plane.Stop()) }()
	if err := b.prepare(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	var sizes []*size
	for _, objects := range []int{b.objects / 4, b.objects, b.objects * 10 / 4} {
		at := &size{objects: objects, main: objects == b.objects}
		if err := b.measure(at); err != nil {
			return fmt.Errorf("bench: %d objects: %w", objects, err)
		}
		sizes = append(sizes, at)
	}
	if err := b.measureRender(b.objects * 10 / 4); err != nil {
		return fmt.Errorf("bench: render: %w", err)
	}

	fmt.Printf("%s, %d CPUs; Linux %s; %s; load before %s\n\n", found("/proc/cpuinfo", `model name\s*: (.*)`), runtime.NumCPU(),
		found("/proc/sys/kernel/osrelease", `(.*)`), runtime.Version(), load)
	b.report(os.Stdout, sizes[0], sizes[1], sizes[2])
	fmt.Printf("\nnoise: the same work took %s through the run; load after %s\n", figures(b.spins, "s"), found("/proc/loadavg", `(.*)`))
	return nil
}

// bench is one run of it.
type bench struct {
	ctx                                        context.Context
	objects                                    int
	skipKubectl                                bool
	runs, kubectlRuns, rounds, pushes, renders int // how often each thing is measured
	dir, bare, work, reconcile                 string
	plane                                      *controlplane.Plane
	api                                        *http.Client
	audit                                      *auditLog
	spins                                      []float64
	renderCold, packageCold, packageOne        []float64 // seconds
	renderPeak                                 float64
}

// size is what was found at one size of the site.
type size struct {
	objects, added int
	main           bool // the size that the targets are about

	once                sample
	dry, fresh, kubectl []sample  // fresh: with an empty cache for git too
	settle              float64   // seconds from the daemon's start to the end of its first round
	rounds              []float64 // seconds of each round without work
	requests, leases    float64   // a round
	cpu, server         float64   // seconds a round, all that the process does
	memory, peak, later float64   // MB: after those rounds, at most, after the pushes
	arrivals            []float64 // seconds from the push
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
	b.spins = append(b.spins, spin())
}

// prepare makes what everything else needs.
func (b *bench) prepare() error {
	config, err := clientcmd.BuildConfigFromFlags("", b.plane.Kubeconfig)
	if err != nil {
		return err
	}
	if b.api, err = rest.HTTPClientFor(config); err != nil {
		return err
	}
	log, err := os.Open(b.plane.AuditLog) // ends with us
	if err != nil {
		return err
	}
	b.audit = &auditLog{lines: bufio.NewReaderSize(log, 1<<20)}
	b.say("building reconcile")
	for _, args := range [][]string{
		{"env", "CGO_ENABLED=0", "go", "build", "-o", b.reconcile, "./cmd/reconcile"},
		{"git", "init", "--quiet", "--bare", "--initial-branch=main", b.bare},
		{"git", "clone", "--quiet", b.bare, b.work},
	} {
		if _, _, err := b.run(nil, b.command(args[0], args[1:]...)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) git(args ...string) error {
	_, _, err := b.run(nil, b.command("git", append([]string{"-C", b.work}, args...)...))
	return err
}

// commit commits all that the work tree holds.
func (b *bench) commit(message string) error {
	return errors.Join(b.git("add", "--all"), b.git("commit", "--quiet", "--message="+message))
}

// measure grows the site to a size, and measures everything there.
func (b *bench) measure(at *size) error {
	site := benchSite{at.objects, 100}
	if err := site.write(b.work); err != nil {
		return err
	}
	if err := errors.Join(b.commit(fmt.Sprint(at.objects, " objects")), b.git("push", "--quiet", "origin", "HEAD:main")); err != nil {
		return err
	}
	b.say("%d objects: converging", at.objects)
	text, s, err := b.run(nil, b.command(b.reconcile, "--repo", b.bare, "--cache", b.cache("kept"), "--once"))
	if err != nil {
		return err
	}
	at.once = s
	lines := strings.Split(strings.TrimSpace(text), "\n")
	fmt.Sscanf(lines[len(lines)-1], "%d changes made", &at.added)

	manifest := filepath.Join(b.dir, "all.yaml")
	if err := os.WriteFile(manifest, []byte(site.manifest()), 0o644); err != nil {
		return err
	}
	for i := range b.runs {
		b.say("%d objects: dry-run %d of %d", at.objects, i+1, b.runs)
		for _, run := range []struct {
			into  *[]sample
			cache string
		}{{&at.fresh, b.cache(fmt.Sprintf("fresh-%d-%d", at.objects, i))}, {&at.dry, b.cache("kept")}} {
			_, s, err := b.run(nil, b.command(b.reconcile, "--repo", b.bare, "--cache", run.cache, "--dry-run", "--output", "summary"))
			if err != nil {
				return err
			}
			*run.into = append(*run.into, s)
		}
		if at.main && !b.skipKubectl && i < b.kubectlRuns {
			b.say("%d objects: kubectl diff %d of %d", at.objects, i+1, b.kubectlRuns)
			_, s, err := b.run([]int{1}, b.command(b.plane.Bin("kubectl"), "diff", "--server-side", "--force-conflicts", "-f", manifest))
			if err != nil {
				return err
			}
			at.kubectl = append(at.kubectl, s)
		}
	}
	b.say("%d objects: the daemon's rounds", at.objects)
	if err := b.measureRounds(at); err != nil || !at.main {
		return err
	}
	b.say("%d objects: commits of one object", at.objects)
	return b.measurePushes(at)
}

func (b *bench) cache(name string) string { return filepath.Join(b.dir, "cache", name) }

// running is a daemon.
type running struct {
	*bench
	cmd *exec.Cmd
	log string // file
	url string
}

var listening = regexp.MustCompile(`msg=listening address=(\S+)`)

// daemon starts a daemon, and returns when it found the site settled.
func (b *bench) daemon(interval string) (*running, error) {
	d := &running{bench: b, log: filepath.Join(b.dir, "daemon.log")}
	d.cmd = b.command(b.reconcile, "--repo", b.bare, "--cache", b.cache("kept"), "--listen", "127.0.0.1:0", "--interval", interval)
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	if err = d.await("settle", 50*time.Millisecond, func() bool {
		if text, _ := os.ReadFile(d.log); d.url == "" {
			if m := listening.FindSubmatch(text); m != nil {
				d.url = "http://" + string(m[1]) + "/metrics"
			}
		}
		return d.url != "" && d.metrics()["kingmaker_settled"] == 1
	}); err != nil {
		d.stop()
	}
	return d, err
}

func (d *running) metrics() map[string]float64 { return parseMetrics(get(http.DefaultClient, d.url)) }

func (d *running) memory(name string) float64 { return memory(d.cmd.Process.Pid, name) }

// await waits for something to come of the daemon. To look too often would cost
// the daemon, or its server, CPU that is not the daemon's own.
func (d *running) await(what string, every time.Duration, ok func() bool) error {
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(every) {
		if d.ctx.Err() != nil {
			return d.ctx.Err()
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(d.log)
			return fmt.Errorf("waited two minutes for the daemon to %s; it said:\n%s", what, text[max(0, len(text)-2000):])
		}
	}
	return nil
}

func (d *running) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
}

// measureRounds lets a daemon make rounds in which there is nothing to do.
func (b *bench) measureRounds(at *size) error {
	began := time.Now()
	d, err := b.daemon("2s")
	if err != nil {
		return err
	}
	defer d.stop()
	at.settle = time.Since(began).Seconds()
	const sum, count = "kingmaker_round_duration_seconds_sum", "kingmaker_round_duration_seconds_count"
	last := d.metrics()
	next := func() error {
		before := last
		return d.await("make a round", 500*time.Millisecond, func() bool {
			last = d.metrics()
			if last[count] > before[count] {
				at.rounds = append(at.rounds, (last[sum]-before[sum])/(last[count]-before[count]))
			}
			return last[count] > before[count]
		})
	}
	for range 2 { // not counted: the watches begin, and garbage of the start goes
		if err := next(); err != nil {
			return err
		}
	}
	at.rounds = nil
	b.audit.take()
	first, server := last, b.serverCPU()
	for range b.rounds {
		if err := next(); err != nil {
			return err
		}
	}
	n := last[count] - first[count]
	for _, r := range b.audit.take() {
		switch {
		case !strings.HasPrefix(r.UserAgent, "kingmaker-reconcile"):
		case r.ObjectRef.Resource == "leases":
			at.leases += 1 / n
		default:
			at.requests += 1 / n
		}
	}
	at.cpu = (last["process_cpu_seconds_total"] - first["process_cpu_seconds_total"]) / n
	at.server = (b.serverCPU() - server) / n
	at.memory, at.peak = d.memory("VmRSS"), d.memory("VmHWM")
	if settled := `kingmaker_rounds_total{result="settled"}`; last[settled]-first[settled] != n {
		return fmt.Errorf("%g rounds, of which %g found nothing to do", n, last[settled]-first[settled])
	}
	return nil
}

// measurePushes pushes commits that change one object, and waits for each to be
// seen in the cluster. The daemon looks by itself so rarely that only its watch
// of the repository can be the reason.
func (b *bench) measurePushes(at *size) error {
	d, err := b.daemon("10m")
	if err != nil {
		return err
	}
	defer d.stop()
	object := b.plane.URL + "/api/v1/namespaces/unit-00/configmaps/app-0000"
	for i := range b.pushes {
		time.Sleep(time.Second) // people do not push at once
		old, revision := fmt.Sprintf("revision: r%d", i), fmt.Sprintf("r%d", i+1)
		if err := errors.Join(replaceIn(filepath.Join(b.work, changedConfigMap), old, "revision: "+revision), b.commit(revision)); err != nil {
			return err
		}
		began := time.Now()
		if err := b.command("git", "-C", b.work, "push", "--quiet", "origin", "HEAD:main").Run(); err != nil {
			return err
		}
		if err := d.await("apply "+revision, 10*time.Millisecond, func() bool {
			return strings.Contains(get(b.api, object), `"revision":"`+revision+`"`)
		}); err != nil {
			return err
		}
		at.arrivals = append(at.arrivals, time.Since(began).Seconds())
	}
	at.later = d.memory("VmRSS")
	return nil
}

// measureRender renders ten large units: as a process from nothing, and, since
// only a process that lives remembers, by the render's own benchmarks.
func (b *bench) measureRender(objects int) error {
	dir := filepath.Join(b.dir, "large")
	if err := (benchSite{objects, objects / 10}).write(dir); err != nil {
		return err
	}
	for i := range b.renders {
		b.say("render: validate %d of %d", i+1, b.renders)
		_, s, err := b.run(nil, b.command(b.reconcile, "validate", dir))
		if err != nil {
			return err
		}
		b.renderCold, b.renderPeak = append(b.renderCold, s.wall), max(b.renderPeak, s.peak)
	}
	b.say("render: benchmarks of the package")
	text, _, err := b.run(nil, b.command("go", "test", "./reconciler/source/render", "-run", "^$", "-bench", "^Benchmark(Cold|OneOf)10x1000Labels$",
		"-benchtime", "1x", "-count", fmt.Sprint(b.renders)))
	if err != nil {
		return err
	}
	found := parseBenchmarks(text)
	b.packageCold, b.packageOne = found["Cold10x1000Labels"], found["OneOf10x1000Labels"]
	return nil
}

// report prints the table.
func (b *bench) report(w io.Writer, small, main, large *size) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer table.Flush()
	fmt.Fprintln(table, "what\ttarget\tmeasured: median (min–max)\tmet")
	row := func(what, target, measured string, met ...bool) {
		verdict := ""
		if len(met) > 0 {
			if verdict = "MISSED"; met[0] {
				verdict = "yes"
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", what, target, measured, verdict)
	}
	seconds := func(what, target string, limit float64, all []float64) {
		row(what, target, figures(all, "s"), len(all) > 0 && median(all) <= limit)
	}
	spent := func(what string, all []sample) {
		row("    "+what, "", fmt.Sprintf("%.1f s CPU, %.1f s of the server, %.0f MB, %.0f requests", median(values(all, cpu)), median(values(all, server)),
			median(values(all, func(s sample) float64 { return s.peak })), median(values(all, func(s sample) float64 { return float64(s.requests) }))))
	}

	n, dry := main.objects, median(values(main.dry, wall))
	seconds(fmt.Sprintf("(a) round without work, %d objects, warm daemon", n), "≤ 0.5 s", 0.5, main.rounds)
	row("    requests a round, without renewals of the lease", "≤ 10", fmt.Sprintf("%.1f (with: %.1f, at a round in 2 s)", main.requests, main.requests+main.leases), main.requests <= 10)
	row("    memory after these rounds (VmRSS)", "≤ 150 MB", fmt.Sprintf("%.0f MB (at most so far: %.0f; after %d commits: %.0f)", main.memory, main.peak, len(main.arrivals), main.later), main.memory <= 150)
	row("    CPU in 2 s: a round, and all else", "", fmt.Sprintf("%.3f s (of the server: %.3f s)", main.cpu, main.server))

	row(fmt.Sprintf("(b) reconcile --dry-run, %d objects in sync", n), "", figures(values(main.dry, wall), "s"))
	spent("its cost", main.dry)
	row("    the same with an empty cache of git", "", figures(values(main.fresh, wall), "s"))
	if len(main.kubectl) > 0 {
		theirs := median(values(main.kubectl, wall))
		row("    kubectl diff --server-side --force-conflicts", "", figures(values(main.kubectl, wall), "s"))
		spent(fmt.Sprintf("its cost (exit code %d)", main.kubectl[0].code), main.kubectl)
		row("    times faster", "≥ 15", fmt.Sprintf("%.2f (with an empty cache of git: %.2f; CPU, the server's too: %.2f)", theirs/dry,
			theirs/median(values(main.fresh, wall)), median(values(main.kubectl, total))/median(values(main.dry, total))), theirs/dry >= 15)
	}

	seconds(fmt.Sprintf("(c) commit of one object among %d, from push to cluster", n), "≤ 2 s", 2, main.arrivals)

	seconds(fmt.Sprintf("(d) reconcile validate, %d objects in 10 units, cold", large.objects), "≤ 5 s", 5, b.renderCold)
	row("    memory of its largest process", "", fmt.Sprintf("%.0f MB", b.renderPeak))
	seconds("    the render alone, cold (its benchmark: 10,000 objects)", "≤ 5 s", 5, b.packageCold)
	seconds("    the render alone, one unit changed (its benchmark)", "≤ 0.3 s", 0.3, b.packageOne)

	for _, at := range []*size{small, main, large} {
		per := func(seconds float64) float64 { return seconds * 1e6 / float64(at.objects) }
		row(fmt.Sprintf("(e) a thousand objects of %d: cold dry-run", at.objects), "", fmt.Sprintf("%.0f ms; CPU %.0f ms, of the server %.0f ms",
			per(median(values(at.dry, wall))), per(median(values(at.dry, cpu))), per(median(values(at.dry, server)))))
		row("    round without work; memory of all", "", fmt.Sprintf("%.1f ms; %.0f MB", per(median(at.rounds)), at.memory))
		row("    first converge", "", fmt.Sprintf("%d changes in %.1f s: %.0f a second, %.1f requests each; daemon settled after %.1f s",
			at.added, at.once.wall, float64(at.added)/at.once.wall, float64(at.once.requests)/float64(at.added), at.settle))
	}
	// What a run costs at any size would hide growth, so that steps are compared;
	// by CPU, which other work on the machine disturbs least.
	step := func(from, to *size) float64 {
		return (median(values(to.dry, total)) - median(values(from.dry, total))) * 1e6 / float64(to.objects-from.objects)
	}
	growth := step(main, large) / step(small, main)
	row(fmt.Sprintf("    CPU of a thousand more: %d to %d, %d to %d", small.objects, n, n, large.objects), "≤ 1.25 times",
		fmt.Sprintf("%.0f ms, %.0f ms: %.2f times", step(small, main), step(main, large), growth), growth <= 1.25)
}
