package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Status is what a replica says of itself, to whoever asks: nothing secret.
type Status struct {
	Ready  bool         `json:"ready"`  // complete, and once as far as all others that could be reached
	Writer bool         `json:"writer"` // takes changes
	Reason string       `json:"reason,omitempty"`
	ID     string       `json:"id,omitempty"`
	Server int          `json:"server,omitempty"`
	Behind int          `json:"behind"` // of how many servers' changes others have seen more
	CSNs   []string     `json:"csns,omitempty"`
	Peers  []PeerStatus `json:"peers,omitempty"`
}

// PeerStatus is another replica, seen from this one.
type PeerStatus struct {
	Address string `json:"address"`
	Fault   string `json:"fault,omitempty"`
}

func (p peer) status(id string) PeerStatus {
	s := PeerStatus{Address: p.address}
	switch {
	case p.err != nil:
		s.Fault = p.err.Error()
	case p.root.ID != id:
		s.Fault = "holds another directory: " + p.root.ID
	}
	return s
}

// highest is the highest server ID that has changed anything.
func (s Status) highest() (n int) {
	for _, csn := range s.CSNs {
		if parts := strings.Split(csn, "#"); len(parts) == 4 {
			if id, err := strconv.ParseUint(parts[2], 16, 16); err == nil {
				n = max(n, int(id))
			}
		}
	}
	return n
}

// serveHealth serves the pages that Kubernetes and people look at.
func (r *Replica) serveHealth() (stop func(), err error) {
	listener, err := net.Listen("tcp", r.Health)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	show := func(w http.ResponseWriter, _ *http.Request) {
		s := r.Status()
		w.Header().Set("Content-Type", "application/json")
		if !s.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(s)
	}
	mux.HandleFunc("GET /readyz", show)
	mux.HandleFunc("GET /status", show)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	go func() { _ = server.Serve(listener) }()
	return func() { _ = server.Close() }, nil
}

// askReady asks the replica on this machine, and prints what it says.
func askReady(ctx context.Context, address string, out io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(out, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the replica is not ready")
	}
	return nil
}
