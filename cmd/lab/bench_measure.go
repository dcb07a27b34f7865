package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sample is what one run of a program cost.
type sample struct {
	wall, cpu float64 // seconds; cpu is that of its children too
	server    float64 // seconds of CPU of etcd and the API server meanwhile
	peak      float64 // MB of memory of its largest process
	requests  int     // to the API server
	code      int
}

// values are one field of some samples.
func values(samples []sample, field func(sample) float64) (all []float64) {
	for _, s := range samples {
		all = append(all, field(s))
	}
	return all
}

func wall(s sample) float64   { return s.wall }
func cpu(s sample) float64    { return s.cpu }
func server(s sample) float64 { return s.server }
func total(s sample) float64  { return s.cpu + s.server }

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// figures tells median, extremes and number of some values.
func figures(all []float64, unit string) string {
	if len(all) == 0 {
		return "-"
	}
	digits := 2
	if slices.Max(all) < 1 {
		digits = 3
	} else if slices.Max(all) >= 100 {
		digits = 0
	}
	return fmt.Sprintf("%.*f %s (%.*f–%.*f, n=%d)", digits, median(all), unit, digits, slices.Min(all), digits, slices.Max(all), len(all))
}

// command is a program of this bench's: it talks to the bench's cluster and its
// git reads nobody's settings.
func (b *bench) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+b.plane.Kubeconfig, "KUBECACHEDIR="+b.cache("kubectl"), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@school.example", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@school.example")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return cmd
}

// run runs a program and returns what it printed. Any exit code but those
// allowed, and 0, is an error.
func (b *bench) run(allowed []int, cmd *exec.Cmd) (output string, s sample, err error) {
	out, err := os.Create(filepath.Join(b.dir, "output")) // a file, for to read a pipe would cost us CPU
	if err != nil {
		return "", s, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	b.audit.take()
	before, began := b.serverCPU(), time.Now()
	err = cmd.Run()
	s.wall, s.server = time.Since(began).Seconds(), b.serverCPU()-before
	time.Sleep(50 * time.Millisecond) // a request's line is written after its answer
	for _, r := range b.audit.take() {
		if !strings.HasPrefix(r.UserAgent, benchAgent) && !strings.HasPrefix(r.UserAgent, "kube-apiserver") {
			s.requests++
		}
	}
	text, _ := os.ReadFile(out.Name())
	var exit *exec.ExitError
	if errors.As(err, &exit) && slices.Contains(allowed, exit.ExitCode()) {
		err = nil
	}
	if err != nil {
		return string(text), s, fmt.Errorf("%s %s: %w\n%s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, text[max(0, len(text)-2000):])
	}
	s.code = cmd.ProcessState.ExitCode()
	s.cpu = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	s.peak = float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) * 1024 / 1e6
	return string(text), s, nil
}

// serverCPU is what etcd and the API server have used so far, in seconds.
func (b *bench) serverCPU() (seconds float64) {
	for _, pid := range b.plane.PIDs() {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, after, _ := bytes.Cut(stat, []byte(") ")) // the name may hold blanks
		if fields := strings.Fields(string(after)); len(fields) > 12 {
			user, _ := strconv.ParseFloat(fields[11], 64)
			system, _ := strconv.ParseFloat(fields[12], 64)
			seconds += (user + system) / 100 // USER_HZ
		}
	}
	return seconds
}

// memory reads a figure of /proc/PID/status, in MB.
func memory(pid int, name string) float64 {
	kib, _ := strconv.ParseFloat(found(fmt.Sprintf("/proc/%d/status", pid), name+`:\s*(\d+) kB`), 64)
	return kib * 1024 / 1e6
}

// auditLog reads the API server's audit log, as it grows.
type auditLog struct {
	lines *bufio.Reader
	begun []byte // of a line that is not whole yet
}

// request is a line of it.
type request struct {
	Stage, Verb, UserAgent string
	ObjectRef              struct{ Resource string }
}

// take is the requests that were answered since the last call. A watch counts
// when it begins, and not again when it ends.
func (a *auditLog) take() (all []request) {
	for {
		line, err := a.lines.ReadBytes('\n')
		a.begun = append(a.begun, line...)
		if err != nil {
			return all
		}
		var r request
		line, a.begun = a.begun, nil
		if json.Unmarshal(line, &r) == nil && (r.Stage == "ResponseStarted") == (r.Verb == "watch") {
			all = append(all, r)
		}
	}
}

// parseMetrics reads what Prometheus would. Each series is there by its whole
// name, and all of a name together by the name without labels.
func parseMetrics(text string) map[string]float64 {
	all := map[string]float64{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		blank := strings.LastIndex(line, " ") // a label may hold others
		value, err := strconv.ParseFloat(line[blank+1:], 64)
		if err != nil || blank < 0 || line[0] == '#' {
			continue
		}
		series := line[:blank]
		all[series] = value
		if name, _, labelled := strings.Cut(series, "{"); labelled {
			all[name] += value
		}
	}
	return all
}

var benchLine = regexp.MustCompile(`(?m)^Benchmark(\w+?)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op`)

// parseBenchmarks reads what go test -bench prints: seconds, by benchmark.
func parseBenchmarks(text string) map[string][]float64 {
	all := map[string][]float64{}
	for _, m := range benchLine.FindAllStringSubmatch(text, -1) {
		ns, _ := strconv.ParseFloat(m[2], 64)
		all[m[1]] = append(all[m[1]], ns/1e9)
	}
	return all
}

// spin takes the same work each time, so that its spread is the machine's noise.
func spin() float64 {
	began := time.Now()
	block := make([]byte, 1<<20)
	for range 100 {
		sum := sha256.Sum256(block)
		copy(block, sum[:])
	}
	return time.Since(began).Seconds()
}

// get reads a page; what is not there is empty.
func get(client *http.Client, url string) string {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return ""
	}
	request.Header.Set("User-Agent", benchAgent)
	response, err := client.Do(request)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	return string(text)
}

// benchAgent is how the bench's own requests are told from those it counts.
const benchAgent = "kingmaker-bench"

// found is the part of a file that a pattern tells.
func found(file, pattern string) string {
	text, _ := os.ReadFile(file)
	if m := regexp.MustCompile(pattern).FindSubmatch(text); m != nil {
		return string(m[1])
	}
	return "unknown"
}
