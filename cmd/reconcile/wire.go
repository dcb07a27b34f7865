package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/go-logr/logr"
	"github.com/kingmaker-io/kingmaker/manifests"
	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source"
	"github.com/kingmaker-io/kingmaker/reconciler/source/git"
	"github.com/kingmaker-io/kingmaker/reconciler/source/render"
	"github.com/kingmaker-io/kingmaker/reconciler/source/sops"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// cluster is what a site is kept on, as its systems see it.
type cluster struct {
	config   *rest.Config
	machines *machine.System
	volumes  *gluster.System
	objects  *kube.System
	people   people
	roles    *withRoles // nil: what is to be done about roles is left out
}

// systems are those of a site in the order of building.
func (c *cluster) systems() []reconciler.System {
	var machines reconciler.System = c.machines
	if c.roles != nil {
		machines = c.roles
	}
	return []reconciler.System{
		machines,  // first: nothing runs before there are machines to run on
		c.volumes, // they lie on machines
		c.objects, // what runs needs machines and volumes
		c.people,  // last: their directory is one of the objects
	}
}

// openSource is the site repo of the command line. A revision, where there is
// one, stands in for the branch. Sealed lets it be read without the key of what
// is encrypted in it: by whoever will not apply it.
func openSource(f *flags, revision string, sealed bool, warn func([]*plan.Fault)) (*source.Source, error) {
	if f.repo == "" {
		return nil, errors.New("--repo is missing: say where the site repo is, a URL or a folder")
	}
	if f.path != "" && !filepath.IsLocal(f.path) {
		return nil, fmt.Errorf("--path %s: it leads out of the site repo: name a folder in it", f.path)
	}
	var credentials git.Credentials
	if f.credentials != "" {
		var err error
		if credentials, err = git.LoadCredentials(f.credentials); err != nil {
			return nil, err
		}
	}
	cache := f.cache
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a place for what is fetched: %w; name one with --cache", err)
		}
		cache = filepath.Join(user, "kingmaker", "git")
	}
	repository, err := git.Open(git.Options{
		URL: f.repo, Branch: f.branch, Revision: revision, Cache: cache, Credentials: credentials,
	})
	if err != nil {
		return nil, err
	}
	return source.New(source.Options{
		Repository: repository,
		Renderer:   render.New(render.Options{Keys: keys(f), Sealed: sealed}),
		Path:       f.path,
		Platform:   manifests.Files(),
		Images:     manifests.Images(version()),
		Endpoint:   func(site string) (string, int) { return host.Endpoint(site), host.BalancerPort },
		Include:    ldap.Include,
		Derive:     gluster.Claims,
		Rules:      []source.Rules{machine.Validate, gluster.Validate, ldap.Validate, kube.Validate},
		Warn:       warn,
	})
}

// keys are those in the folder of --credentials, as it is then: a Secret that is
// mounted there may change.
func keys(f *flags) func() (sops.Keys, error) {
	if f.credentials == "" {
		return nil
	}
	return func() (sops.Keys, error) { return sops.LoadKeys(f.credentials) }
}

// readSite is the newest site of the repo, or the one as of a revision; see
// openSource.
func readSite(ctx context.Context, f *flags, s streams, revision string, sealed bool) (*plan.Site, error) {
	src, err := openSource(f, revision, sealed, warner(s.err))
	if err != nil {
		return nil, err
	}
	defer src.Close()
	defer s.done()
	s.doing("looking at %s", f.repo)
	commit, err := src.Head(ctx)
	if err != nil {
		return nil, err
	}
	s.doing("rendering commit %s", plan.Short(commit))
	return src.Site(ctx, commit)
}

// warner prints warnings as tell prints errors.
func warner(w io.Writer) func([]*plan.Fault) {
	return func(warnings []*plan.Fault) {
		for _, f := range warnings {
			fmt.Fprintf(w, "reconcile: warning: %s [%s]\n", f, f.Code)
		}
	}
}

// openCluster is the cluster that kubectl would talk to. Notify is told of drift.
func openCluster(ctx context.Context, f *flags, s streams, notify func()) (*cluster, error) {
	config, err := clusterConfig(f)
	if err != nil {
		return nil, err
	}
	log, err := newLog(f, s)
	if err != nil {
		return nil, err
	}
	return openClusterWith(ctx, config, log, notify)
}

func openClusterWith(ctx context.Context, config *rest.Config, log *slog.Logger, notify func()) (*cluster, error) {
	machines, err := machine.New(ctx, machine.Options{Config: config, Notify: notify, Log: log})
	if err != nil {
		return nil, err
	}
	objects, err := kube.New(ctx, kube.Options{Config: config, Notify: notify, Recheck: time.Hour, Log: log})
	if err != nil {
		return nil, err
	}
	volumes, err := gluster.New(config)
	if err != nil {
		return nil, err
	}
	people, err := openPeople(config)
	if err != nil {
		return nil, err
	}
	return &cluster{config: config, machines: machines, volumes: volumes, objects: objects, people: people}, nil
}

func clusterConfig(f *flags) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		err = errors.New("there is none")
	}
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w; name one with --kubeconfig or KUBECONFIG, or plan with --offline", err)
	}
	config.UserAgent = "kingmaker-reconcile/" + version()
	return config, nil
}

// newLog is the log of the process. client-go writes into it too.
func newLog(f *flags, s streams) (*slog.Logger, error) {
	var handler slog.Handler
	switch f.logFormat {
	case "text":
		handler = slog.NewTextHandler(s.err, nil)
	case "json":
		handler = slog.NewJSONHandler(s.err, nil)
	default:
		return nil, fmt.Errorf("--log-format %s: there is no such form; want text or json", f.logFormat)
	}
	klog.SetLogger(logr.FromSlogHandler(quiet{handler}))
	return slog.New(handler), nil
}

// quiet lets through what client-go says only where it is an error that nobody
// returns to us; the failing of a watch is told by the plan.
type quiet struct{ slog.Handler }

func (quiet) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError+4 }

// Handle asks again, for logr does not ask for errors.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if !q.Enabled(ctx, r.Level) {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }

// hold says why nothing may be changed: a commit or a person suspended it.
func hold(objects *kube.System) func(context.Context, *plan.Site) *plan.Fault {
	return func(_ context.Context, site *plan.Site) *plan.Fault {
		if suspend := site.Spec.Suspend; suspend != nil {
			return &plan.Fault{Code: reconciler.Suspended, Cause: "the site repo suspends the site: " + suspend.Reason,
				Hint: "take spec.suspend out of the Site to go on"}
		}
		if _, s := objects.LastStatus(); s != nil {
			return &plan.Fault{Code: reconciler.Suspended,
				Cause: fmt.Sprintf("suspended by %s since %s: %s", s.By, s.Since.Format("2006-01-02 15:04 MST"), s.Reason),
				Hint:  "reconcile resume lets it go on"}
		}
		return nil
	}
}
