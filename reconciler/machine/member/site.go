package member

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Source is where the site repo is.
type Source struct {
	Repo        string // URL: https, ssh
	Branch      string // "" is main
	Path        string // folder of the site in the repo; "" is its root
	Credentials string // folder with files as `reconcile --credentials` reads them; "" is none
}

// Declared is what a site repo says that the first machine of a site must know.
type Declared struct {
	Name     string
	Spec     plan.SiteSpec
	Machines map[string]machine.Machine // by name
}

// args are the flags of reconcile that lead to the site repo.
func (s *Source) args(h *host.Host) []string {
	args := []string{"--branch", s.branch(), "--cache", h.Path(host.StateDir + "/git")}
	if s.Path != "" {
		args = append(args, "--path", s.Path)
	}
	if s.Credentials != "" {
		args = append(args, "--credentials", h.Path(s.Credentials))
	}
	return args
}

func (s *Source) branch() string {
	if s.Branch == "" {
		return "main"
	}
	return s.Branch
}

// check refuses a repo that the reconciler in the cluster could not read, or
// would have to show a password of.
func (s *Source) check() error {
	if s.Repo == "" {
		return fault(SiteRefused, "such as --site https://git.school.example/site.git", "--site is missing: it says where the site repo is")
	}
	u, err := url.Parse(s.Repo)
	if err != nil {
		u = &url.URL{} // user@host:path is none
	}
	_, password := u.User.Password()
	password = password || u.User != nil && (u.Scheme == "https" || u.Scheme == "http") // a name alone is often a token
	remote := strings.Contains(s.Repo, "://") && u.Scheme != "file" || !strings.Contains(s.Repo, "://") && strings.Contains(s.Repo, "@")
	switch {
	case password:
		return fault(SiteRefused, "put it into a file password, and name the folder with --credentials", "--site has a password in it, which everybody could read")
	case !remote:
		return fault(SiteRefused, "want https://host/path, ssh://user@host/path or user@host:path", "--site %s is a folder of this machine, which the reconciler in the cluster cannot read", s.Repo)
	}
	return nil
}

// read has reconcile render the site: what it refuses, the site would refuse
// later, and would have half a control plane by then.
func (s *Source) read(ctx context.Context, h *host.Host) (*Declared, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	// A whole site is too much for the log: who runs the command sees it.
	c := host.Command{Name: "reconcile", Args: append([]string{"render", s.Repo}, s.args(h)...)}
	text, err := h.Runner.Run(ctx, c)
	h.Log.DebugContext(ctx, "command", "line", c.String(), "bytes of stdout", len(text), "error", err)
	var exit *host.Exit
	if errors.As(err, &exit) {
		var all error
		for line := range strings.Lines(exit.Stderr) {
			if line = strings.TrimPrefix(strings.TrimSpace(line), "reconcile: "); line != "" && !strings.HasPrefix(line, "warning: ") {
				all = errors.Join(all, fault(SiteRefused, "correct it in the site repo, or see to the way there", "%s", line))
			}
		}
		if all == nil {
			all = fault(SiteRefused, "run that command to see", "%s ends with code %d", exit.Command, exit.Code)
		}
		return nil, all
	}
	if err != nil {
		return nil, fmt.Errorf("read the site repo: %w", err)
	}
	return declared(text)
}

// declared reads what `reconcile render` printed.
func declared(text []byte) (*Declared, error) {
	d := &Declared{Machines: map[string]machine.Machine{}}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		doc, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read what the site repo declares: %w", err)
		}
		var head struct {
			APIVersion, Kind string
			Metadata         struct{ Name string }
		}
		if err := yaml.Unmarshal(doc, &head); err != nil {
			return nil, fmt.Errorf("read what the site repo declares: %w", err)
		}
		if head.APIVersion != plan.APIVersion {
			continue
		}
		switch head.Kind {
		case "Site":
			var site struct{ Spec plan.SiteSpec }
			err = yaml.Unmarshal(doc, &site)
			d.Name, d.Spec = head.Metadata.Name, site.Spec
		case "Machine":
			var m struct{ Spec machine.Machine }
			err = yaml.Unmarshal(doc, &m)
			d.Machines[head.Metadata.Name] = m.Spec
		}
		if err != nil {
			return nil, fmt.Errorf("read %s %s of the site repo: %w", head.Kind, head.Metadata.Name, err)
		}
	}
	if d.Name == "" {
		return nil, fault(SiteRefused, "see --site, --branch and --path", "the site repo has no Site document")
	}
	return d, nil
}

// suits refuses a site that this machine cannot be the first of.
func (d *Declared) suits(name string, b *host.Bundle) error {
	if m := d.Spec.Kubernetes.Managed; m != nil && !*m {
		return fault(SiteRefused, "take spec.kubernetes.managed out of the Site, or let its owners make the cluster", "site %s says that its cluster is made by somebody else (spec.kubernetes.managed: false)", d.Name)
	}
	if v := d.Spec.Kubernetes.Version; v != "" && v != b.Kubernetes {
		return fault(VersionDiffers, "install from a bundle of that version, or correct spec.kubernetes.version", "site %s wants Kubernetes %s, and this machine's bundle has %s", d.Name, v, b.Kubernetes)
	}
	m, listed := d.Machines[name]
	switch {
	case !listed && d.Spec.Admission != "open":
		return fault(NotDeclared, fmt.Sprintf("add machines/%s.yaml, or give the right name with --name (declared: %s)", name, orNone(keys(d.Machines))),
			"site %s does not declare a machine %s, and admits only those that it lists", d.Name, name)
	case listed && !m.Eligible():
		return fault(NotDeclared, "begin with another machine, or change it", "site %s says of machine %s: master: never", d.Name, name)
	}
	return nil
}

// objects are what the reconciler in the cluster finds the site repo by:
// namespace, ConfigMap and, where there are credentials, Secret.
func (s *Source) objects(h *host.Host) ([]object, error) {
	all := []object{
		{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": systemNamespace,
			"labels": object{"pod-security.kubernetes.io/enforce": "baseline"}}}, // as manifests/base has it, so that there is nothing to correct
		{"apiVersion": "v1", "kind": "ConfigMap", "metadata": object{"name": sourceName, "namespace": systemNamespace}, "data": s.data()},
	}
	if s.Credentials == "" {
		return all, nil
	}
	files, err := s.secrets(h)
	if err != nil {
		return nil, err
	}
	return append(all, object{"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
		"metadata": object{"name": credentialsName, "namespace": systemNamespace}, "data": files}), nil
}

const (
	systemNamespace = "kingmaker-system"
	sourceName      = "site-source"
	credentialsName = "site-credentials"
	reconcilerName  = "reconcile"
)

func (s *Source) data() map[string]string {
	return map[string]string{"repo": s.Repo, "branch": s.branch(), "path": s.Path}
}

// secrets are the files of the credentials, as a Secret holds them.
func (s *Source) secrets(h *host.Host) (map[string]string, error) {
	dir := h.Path(s.Credentials)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the credentials: %w", err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, entry.Name())) // a link is as good as a file
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("read the credentials: %w", err)
		}
		files[entry.Name()] = base64.StdEncoding.EncodeToString(content)
	}
	return files, nil
}
