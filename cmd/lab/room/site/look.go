package site

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
)

func (s *Site) kubeconfig() string { return filepath.Join(s.Room.Dir, "kubeconfig") }

// takeKubeconfig fetches the administrator's kubeconfig from a master.
func (s *Site) takeKubeconfig(ctx context.Context, master string) error {
	text, err := s.Room.Run(ctx, master, nil, "cat", adminConf)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.kubeconfig(), text, 0o600); err != nil {
		return err
	}
	_, err = s.Kubeconfig(ctx)
	return err
}

// Kubeconfig is the path of a kubeconfig for the site's administrator. It leads
// to a master that answers, another one than before where that one is dead; where
// none answers, it is an error.
func (s *Site) Kubeconfig(ctx context.Context) (string, error) {
	file := s.kubeconfig()
	config, err := clientcmd.LoadFromFile(file)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := s.Room.Machines(ctx); err != nil {
			return "", err
		}
		return "", fmt.Errorf("%s has no master yet: noded init makes one", s.Room.Name)
	} else if err != nil {
		return "", err
	}
	machines, err := s.Room.Machines(ctx)
	if err != nil {
		return "", err
	}
	current := config.Contexts[config.CurrentContext]
	if current == nil || config.Clusters[current.Cluster] == nil {
		return "", fmt.Errorf("%s has no current context", file)
	}
	cluster := config.Clusters[current.Cluster]
	var candidates []string
	for _, m := range machines {
		if m.Name != room.Git && m.On && m.Cable {
			candidates = append(candidates, server(m.Address))
		}
	}
	// The one of before comes first, so that the file changes only where it must.
	slices.SortStableFunc(candidates, func(a, b string) int { return boolRank(a == cluster.Server) - boolRank(b == cluster.Server) })
	answers := make([]chan bool, len(candidates))
	for i, candidate := range candidates {
		answers[i] = make(chan bool, 1)
		go func() { answers[i] <- ready(ctx, file, candidate) }()
	}
	for i, candidate := range candidates {
		if !<-answers[i] {
			continue
		}
		if candidate == cluster.Server {
			return file, nil
		}
		cluster.Server = candidate
		return file, clientcmd.WriteToFile(*config, file)
	}
	return "", fmt.Errorf("no master of %s answers: each is off, cut, or still starting", s.Room.Name)
}

func server(a netip.Addr) string { return "https://" + netip.AddrPortFrom(a, 6443).String() }

func boolRank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// ready asks one master.
func ready(ctx context.Context, kubeconfig, server string) bool {
	c, err := open(kubeconfig, server)
	if err != nil {
		return false
	}
	defer c.http.CloseIdleConnections()
	_, err = c.get(ctx, "/readyz")
	return err == nil
}

// api is the API of a site.
type api struct {
	http   *http.Client
	server string
}

// open connects to the server of a kubeconfig, or to another with its
// credentials.
func open(kubeconfig, server string) (api, error) {
	config, err := clientcmd.BuildConfigFromFlags(server, kubeconfig)
	if err != nil {
		return api{}, err
	}
	config.Timeout = 3 * time.Second
	config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // nobody else knows the lab's network
	client, err := rest.HTTPClientFor(config)
	return api{client, config.Host}, err
}

func (a api) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("get %s: %s", path, resp.Status)
	}
	return text, err
}

// object is what is read of Nodes, Machines, Pods and Sites.
type object struct {
	Metadata struct{ Namespace, Name string }
	Spec     struct{ Role string }
	Status   struct {
		Phase      string
		Heartbeat  time.Time
		Conditions []struct{ Type, Status, Message string }
		Commit     struct{ Wanted, Reached string }
	}
}

// is reports whether a condition is True.
func (o *object) is(condition string) bool {
	for _, c := range o.Status.Conditions {
		if c.Type == condition {
			return c.Status == "True"
		}
	}
	return false
}

func (a api) list(ctx context.Context, path string) ([]object, error) {
	text, err := a.get(ctx, path)
	if err != nil {
		return nil, err
	}
	var list struct{ Items []object }
	return list.Items, json.Unmarshal(text, &list)
}

// found is what matters of a site, as its API shows it.
type found struct{ nodes, machines, pods, sites []object }

// system are the namespaces of what a site itself consists of.
func system() []string { return []string{"kube-system", "kube-flannel", "kingmaker-system"} }

const ours = "/apis/kingmaker.dev/v1alpha1/"

func (a api) look(ctx context.Context) (f found, err error) {
	for _, kind := range []struct {
		path string
		into *[]object
	}{{"/api/v1/nodes", &f.nodes}, {ours + "machines", &f.machines}, {ours + "sites", &f.sites}} {
		if *kind.into, err = a.list(ctx, kind.path); err != nil {
			return f, err
		}
	}
	for _, namespace := range system() {
		pods, err := a.list(ctx, "/api/v1/namespaces/"+namespace+"/pods")
		if err != nil {
			return f, err
		}
		f.pods = append(f.pods, pods...)
	}
	return f, nil
}

// pending are the reasons why a site is not done yet, the first ones those that
// others wait for; none means that it works and equals the commit head.
func (f *found) pending(machines []string, head string) (reasons []string) {
	say := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	for _, name := range machines {
		for _, kind := range []struct {
			name string
			all  []object
		}{{"Node", f.nodes}, {"Machine", f.machines}} {
			i := slices.IndexFunc(kind.all, func(o object) bool { return o.Metadata.Name == name })
			switch {
			case i < 0:
				say("%s %s is missing", kind.name, name)
			case !kind.all[i].is("Ready"):
				say("%s %s is not Ready", kind.name, name)
			}
		}
	}
	for _, namespace := range system() {
		if !slices.ContainsFunc(f.pods, func(o object) bool { return o.Metadata.Namespace == namespace }) {
			say("there is no Pod in %s", namespace)
		}
	}
	for _, p := range f.pods {
		if p.Status.Phase != "Running" || !p.is("Ready") {
			say("Pod %s/%s is %s, and not ready", p.Metadata.Namespace, p.Metadata.Name, p.Status.Phase)
		}
	}
	switch {
	case len(f.sites) != 1:
		say("there are %d Sites", len(f.sites))
	case f.sites[0].Status.Commit.Reached != head:
		say("the site is at commit %.8s, and its repo at %.8s", cmp.Or(f.sites[0].Status.Commit.Reached, "(none)"), head)
	}
	return reasons
}

// Settled waits until all machines are Ready, all that the site consists of runs,
// and it equals the head of its repo.
func (s *Site) Settled(ctx context.Context, machines []string) error {
	const patience, news = 5 * time.Minute, 10 * time.Second
	head, err := s.Room.Runner.Run(ctx, room.Command{Args: []string{"git", "-C", s.Room.WorkTree(), "rev-parse", "@{upstream}"}})
	if err != nil {
		return err
	}
	file, err := s.Kubeconfig(ctx)
	if err != nil {
		return err
	}
	c, err := open(file, "")
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	begin, told := time.Now(), time.Now()
	for {
		f, err := c.look(ctx)
		reasons := []string{fmt.Sprint(err)}
		if err == nil {
			reasons = f.pending(machines, strings.TrimSpace(string(head)))
		}
		if len(reasons) == 0 {
			s.Progress(fmt.Sprintf("the site: settled after %.0f s more", time.Since(begin).Seconds()))
			return nil
		}
		if time.Since(begin) > patience {
			return fmt.Errorf("waited %s in vain:\n%s", patience, last(strings.Join(reasons, "\n"), 20))
		}
		if time.Since(told) > news {
			told = time.Now()
			s.Progress(fmt.Sprintf("the site: waiting, %s%s", reasons[0], more(len(reasons)-1)))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func more(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (and %d more)", n)
}

// Row is a machine of the room and what the site knows of it.
type Row struct {
	room.Machine
	Role, Phase string    // "" where the site does not know it, or does not answer
	Heartbeat   time.Time // when its agent last said so; zero for never
}

// Rows are all machines. Where the site does not answer, doubt says why, and the
// rows are of the room alone.
func (s *Site) Rows(ctx context.Context) (rows []Row, doubt, err error) {
	all, err := s.Room.Machines(ctx)
	if err != nil {
		return nil, nil, err
	}
	known, doubt := s.machines(ctx)
	for _, m := range all {
		row := Row{Machine: m}
		for _, k := range known {
			if k.Metadata.Name == m.Name {
				row.Role, row.Phase, row.Heartbeat = k.Spec.Role, k.Status.Phase, k.Status.Heartbeat
			}
		}
		rows = append(rows, row)
	}
	return rows, doubt, nil
}

func (s *Site) machines(ctx context.Context) ([]object, error) {
	file, err := s.Kubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	c, err := open(file, "")
	if err != nil {
		return nil, err
	}
	defer c.http.CloseIdleConnections()
	return c.list(ctx, ours+"machines")
}
