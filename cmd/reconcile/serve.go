package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what Prometheus sees of a daemon.
type metrics struct {
	registry *prometheus.Registry
	rounds   *prometheus.CounterVec
	duration prometheus.Histogram
	changes  prometheus.Counter
	pending  *prometheus.GaugeVec
	objects  prometheus.Gauge
	settled  prometheus.Gauge
	leader   prometheus.Gauge
	requests *prometheus.CounterVec
	ready    atomic.Bool // a round is over, or another daemon works
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kingmaker_rounds_total",
			Help: "Rounds, by what came of them: settled, applied, waiting, held or failed."}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kingmaker_round_duration_seconds",
			Help: "How long a round took.", Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300}}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{Name: "kingmaker_changes_total", Help: "Changes carried out."}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kingmaker_pending",
			Help: "What the last round left: withheld, waiting or unhealthy objects."}, []string{"kind"}),
		objects: prometheus.NewGauge(prometheus.GaugeOpts{Name: "kingmaker_objects", Help: "Objects that the site declares."}),
		settled: prometheus.NewGauge(prometheus.GaugeOpts{Name: "kingmaker_settled", Help: "1 when the site equals its newest commit, else 0."}),
		leader:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "kingmaker_leader", Help: "1 in the daemon that works, 0 in one that stands by."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kingmaker_api_requests_total",
			Help: "Requests to the API server."}, []string{"method"}),
	}
	m.registry.MustRegister(m.rounds, m.duration, m.changes, m.pending, m.objects, m.settled, m.leader, m.requests,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe takes a round in.
func (m *metrics) observe(round reconciler.Round) {
	result := "waiting"
	switch {
	case round.Err != nil:
		result = "failed"
	case round.Held != nil:
		result = "held"
	case round.Applied > 0:
		result = "applied"
	case round.Settled():
		result = "settled"
	}
	m.rounds.WithLabelValues(result).Inc()
	m.duration.Observe(round.Took.Seconds())
	m.changes.Add(float64(round.Applied))
	m.settled.Set(0)
	if round.Settled() {
		m.settled.Set(1)
	}
	if round.Site != nil {
		m.objects.Set(float64(len(round.Site.Objects)))
	}
	if round.Plan != nil {
		m.pending.WithLabelValues("withheld").Set(float64(len(round.Plan.Withheld)))
		m.pending.WithLabelValues("waiting").Set(float64(len(round.Plan.Waiting)))
	}
	m.pending.WithLabelValues("unhealthy").Set(float64(len(round.Unhealthy)))
	m.ready.Store(true)
}

// countRequests counts what goes to the API server.
func (m *metrics) countRequests(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		m.requests.WithLabelValues(request.Method).Inc()
		return next.RoundTrip(request)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// maxHook is the size of a webhook's body: what it says is not used, so that
// there is no reason to take more.
const maxHook = 1 << 20

// serve answers on --listen until the context ends.
//
//	/healthz  200 while the process runs
//	/readyz   200 when the first round is over, or another daemon works
//	/metrics  for Prometheus
//	/webhook  POST, signed as GitHub, Gitea and Forgejo sign: look at the site repo now
func serve(ctx context.Context, address string, m *metrics, poll func(), secret plan.Secret, log *slog.Logger) error {
	if address == "" {
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !m.ready.Load() {
			http.Error(w, "no round is over yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("POST /webhook", webhook(secret, poll))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; choose another address with --listen", address, err)
	}
	log.Info("listening", "address", listener.Addr().String())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", address, err)
	}
	return nil
}

// webhookSecret is the key that webhooks are signed with: the file
// webhook-secret in the folder of --credentials. None where there is none.
func webhookSecret(credentials string) (plan.Secret, error) {
	if credentials == "" {
		return plan.Secret{}, nil
	}
	value, err := os.ReadFile(filepath.Join(credentials, "webhook-secret"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return plan.Secret{}, fmt.Errorf("read the key of webhooks: %w", err)
	}
	return plan.NewSecret(strings.TrimSpace(string(value))), nil
}

// webhook takes a signed hint that the site repo moved. Polls that come close
// together are one.
func webhook(secret plan.Secret, poll func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if secret.Value() == "" {
			http.Error(w, "no webhook: put a file webhook-secret into the folder of --credentials", http.StatusNotFound)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxHook))
		if err != nil {
			http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
			return
		}
		signature, err := hex.DecodeString(strings.TrimPrefix(r.Header.Get("X-Hub-Signature-256"), "sha256="))
		mac := hmac.New(sha256.New, []byte(secret.Value()))
		mac.Write(body)
		if err != nil || !hmac.Equal(signature, mac.Sum(nil)) {
			http.Error(w, "the signature is wrong", http.StatusForbidden)
			return
		}
		poll()
		w.WriteHeader(http.StatusAccepted)
	}
}
