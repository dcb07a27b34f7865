// Command portal is the door of a site: people sign in from any browser, and find their
// own desktop, wherever it runs.
//
// Two or more run (manifests/portal). None knows anything that the others do not: who
// has signed in is in Secrets, whose desktop is how far in Sessions, who people are in
// the directory. So a restart changes nothing, and any of them serves anybody.
//
//	browser ──TLS──► web ──► signin ──► the directory     may he?
//	                  │ ───► visit                        who is behind this cookie?
//	                  │ ───► cluster ──► Sessions         which desktop is his, how far is it?
//	                  └────► cluster ──TLS──► desktop     its screen
//	one of them:  keeper ──► cluster ──► Pods             what session decides
//
// The story, from top to bottom: main.go connects the rooms; session says what the life
// of a desktop is, and is pure; keeper carries it out; signin, visit, cluster and web are
// as above; lead.go says which portal is the keeper, and keys.go has the certificate.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/keeper"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
	"github.com/kingmaker-io/kingmaker/cmd/portal/signin"
	"github.com/kingmaker-io/kingmaker/cmd/portal/visit"
	"github.com/kingmaker-io/kingmaker/cmd/portal/web"
)

// stamp is the version; the linker sets it.
var stamp string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot(os.Stderr).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "portal:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	listen, health   string
	directory        string // address
	accountNamespace string
	accountSecret    string
	log              *slog.Logger
}

func newRoot(errOut io.Writer) *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "portal",
		Short: "Where people sign in, and find their desktops",
		Long: `Portal serves a site's people: they sign in with the password that the directory
has of them, and get their desktop in the browser.

It is the entry point of an image and of no use outside of a cluster.`,
		Example:       "  portal --listen :8443",
		Version:       stamp,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := rest.InClusterConfig()
			if err != nil {
				return fmt.Errorf("find the cluster: %w", err)
			}
			o.log = slog.New(slog.NewJSONHandler(errOut, nil))
			return run(cmd.Context(), config, o)
		},
	}
	flags := root.Flags()
	flags.StringVar(&o.listen, "listen", ":8443", "address of the pages, over TLS")
	flags.StringVar(&o.health, "health", ":8080", "address of /healthz and /readyz")
	flags.StringVar(&o.directory, "directory", "directory.kingmaker-directory.svc:636", "address of the site's directory, of LDAP over TLS")
	flags.StringVar(&o.accountNamespace, "account-namespace", "kingmaker-directory", "namespace of the Secret with the account")
	flags.StringVar(&o.accountSecret, "account", "directory-portal", "Secret with the portal's account in the directory: username, password, base, ca.crt")
	return root
}

// run is the portal, until ctx is over.
func run(ctx context.Context, config *rest.Config, o options) error {
	// What visitors do must not hold up what desktops live by: the lease of the keeper, and
	// theirs. So these have a way of their own to the API, which nobody fills.
	outer, inner := rest.CopyConfig(config), rest.CopyConfig(config)
	outer.QPS, outer.Burst = 50, 200 // a class signs in at once
	inner.QPS = -1
	site, err := open(outer)
	if err != nil {
		return err
	}
	desktops, err := open(inner)
	if err != nil {
		return err
	}
	client := site.Client
	directory := signin.New(o.directory, account(client, o))
	visits := &visit.Store{Client: client.CoreV1().Secrets(cluster.Namespace)}
	shared := &addresses{}
	portal := &web.Portal{
		Directory: directory, Visits: visits, Desks: site, Site: site, Log: o.log,
		Limits: &signin.Limits{Shared: shared.has},
		Screens: func(ctx context.Context, user string) (*websocket.Conn, error) {
			desktop, err := site.Reach(ctx, user)
			if err != nil {
				return nil, err
			}
			return desktop.Screen(ctx)
		},
	}
	pages, err := portal.Handler()
	if err != nil {
		return err
	}
	keys := &keys{secrets: client.CoreV1().Secrets(cluster.Namespace), maps: client.CoreV1().ConfigMaps(cluster.Namespace), names: names(site), log: o.log,
		authority: func(ctx context.Context) (session.Authority, error) {
			return site.Authority(ctx, cluster.PortalAuthority, true, time.Now())
		}}
	if err := keys.load(ctx); err != nil {
		return err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var works sync.WaitGroup
	begin := func(what string, work func() error) {
		works.Go(func() {
			if err := work(); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	begin("keep desktops", func() error {
		return lead(ctx, desktops.Client, o.log, func(ctx context.Context) error {
			go each(ctx, 5*time.Minute, func() { tell(ctx, o.log, "sweep visits", visits.Sweep(ctx)) })
			k := keeper.Keeper{Cluster: desktops, Log: o.log, Release: stamp, Person: func(ctx context.Context, user string) (session.Person, error) {
				p, err := directory.Person(ctx, user)
				if errors.Is(err, signin.ErrUnknown) {
					err = keeper.ErrUnknown
				}
				return p.Person, err
			}}
			return k.Run(ctx)
		})
	})
	begin("renew leases", func() error { return (&keeper.Renewer{Cluster: desktops, Log: o.log}).Run(ctx) })
	go each(ctx, time.Minute, func() { tell(ctx, o.log, "read the certificate", keys.load(ctx)) })
	go each(ctx, 30*time.Second, func() { tell(ctx, o.log, "read the machines' addresses", shared.load(ctx, site)) })
	health := &http.Server{Addr: o.health, Handler: healthPages(keys), ReadHeaderTimeout: 5 * time.Second}
	begin("serve health", health.ListenAndServe)
	server := &http.Server{
		Addr: o.listen, Handler: pages, BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 90 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: keys.get},
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // a browser that dislikes the certificate
	}
	begin("serve pages", func() error { return server.ListenAndServeTLS("", "") })
	o.log.Info("the portal is open", "address", o.listen, "version", stamp)

	<-ctx.Done()
	// Screens are cut; the browsers connect again, to another.
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	_ = server.Shutdown(ending)
	_ = health.Shutdown(ending)
	works.Wait() // for the keeper's lease to be given back
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func open(config *rest.Config) (*cluster.Cluster, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	objects, err := dynamic.NewForConfig(config)
	return &cluster.Cluster{Client: client, Dynamic: objects}, err
}

// account reads the portal's own in the directory, each time anew: it may be renewed.
func account(client kubernetes.Interface, o options) func(context.Context) (signin.Account, error) {
	return func(ctx context.Context) (a signin.Account, err error) {
		secret, err := client.CoreV1().Secrets(o.accountNamespace).Get(ctx, o.accountSecret, metav1.GetOptions{})
		if err != nil {
			return a, fmt.Errorf("read Secret %s/%s: %s", o.accountNamespace, o.accountSecret, apierrors.ReasonForError(err))
		}
		host, _, err := net.SplitHostPort(o.directory)
		if err != nil {
			return a, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(secret.Data["ca.crt"]) {
			return a, fmt.Errorf("read Secret %s/%s: ca.crt holds no certificate", o.accountNamespace, o.accountSecret)
		}
		return signin.Account{DN: string(secret.Data["username"]), Password: string(secret.Data["password"]), Base: string(secret.Data["base"]),
			TLS: &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12}}, nil
	}
}

// addresses are those that stand for many people: machines, over which a NodePort leads,
// and the bridges of Pods.
type addresses struct {
	all atomic.Pointer[map[netip.Addr]bool]
	pod atomic.Pointer[netip.Prefix]
}

func (a *addresses) has(address netip.Addr) bool {
	if pods := a.pod.Load(); pods != nil && pods.Contains(address) {
		return true
	}
	all := a.all.Load()
	return all != nil && (*all)[address]
}

func (a *addresses) load(ctx context.Context, site *cluster.Cluster) error {
	pods, err := site.PodRange(ctx)
	if err != nil {
		return err
	}
	machines, err := site.Machines(ctx)
	if err != nil {
		return err
	}
	all := map[netip.Addr]bool{}
	for _, m := range machines {
		for _, text := range append(m.Inventory.Addresses, m.Inventory.Address) {
			if address, err := netip.ParseAddr(text); err == nil {
				all[address.Unmap()] = true
			}
		}
	}
	a.all.Store(&all)
	a.pod.Store(&pods)
	return nil
}

// names are what a certificate of our own is for: whatever browsers may call us.
func names(site *cluster.Cluster) func(context.Context) []string {
	return func(ctx context.Context) []string {
		all := []string{"localhost", "127.0.0.1", "portal." + cluster.Namespace + ".svc"}
		if s, err := site.ReadSite(ctx); err == nil && s.Domain != "" {
			all = append(all, s.Domain, "portal."+s.Domain)
		}
		machines, _ := site.Machines(ctx)
		for _, m := range machines {
			all = append(append(all, m.Name), m.Inventory.Address)
		}
		return all
	}
}

// healthPages are for the kubelet. The directory is not part of it: without it nobody
// signs in, and those who have go on.
func healthPages(k *keys) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := k.get(nil); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	return mux
}

// each does something now, and then so often.
func each(ctx context.Context, interval time.Duration, do func()) {
	timer := time.NewTicker(interval)
	defer timer.Stop()
	for ctx.Err() == nil {
		do()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

func tell(ctx context.Context, log *slog.Logger, deed string, err error) {
	if err != nil && ctx.Err() == nil {
		log.Warn("could not "+deed, "error", err)
	}
}
