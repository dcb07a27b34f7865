// Package source turns a commit of a site repo into a plan.Site: whole, valid,
// and with the built-in manifests in it.
//
//	git       a commit's file tree, from a server, a repository or a folder
//	tree      that file tree, read-only
//	render    units of the tree -> documents, in a sandbox
//	validate  documents against the schemas of their kinds
//
// All that is wrong with a commit is found in one run, each fault with the file
// and line that it is about. A commit with a fault gives no site.
package source

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/render"
	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
	"github.com/kingmaker-io/kingmaker/reconciler/source/validate"
	"sigs.k8s.io/yaml"
)

// Codes of what is wrong with a site as a whole.
const (
	PathNotFound plan.Code = "PathNotFound" // --path names no folder
	NoSite       plan.Code = "NoSite"       // there is no Site document
	ManySites    plan.Code = "ManySites"    // there is more than one
	NoDocument   plan.Code = "NoDocument"   // something that is no Kubernetes object
)

// Repository is where commits come from: a git.Repository, which says what the
// methods promise.
type Repository interface {
	Head(ctx context.Context) (commit string, err error)
	LastGood() (commit string, ok bool)
	Tree(ctx context.Context, commit string) (*tree.Dir, error)
	Watch(ctx context.Context) (<-chan struct{}, error)
	Close() error
}

// Rules are what a room says of the documents that it owns, and of what they
// refer to.
type Rules func(*plan.Site) (faults, warnings []*plan.Fault)

// Options of a Source. Repository, Renderer, Platform and Endpoint are required.
type Options struct {
	Repository Repository
	Renderer   *render.Renderer

	// Path is the folder of the site in the repository. Default its root. What
	// the folder refers to may be anywhere in the repository.
	Path string

	// Platform holds the built-in manifests, as package manifests lays them out.
	Platform fs.FS

	// Images are the tags of the images in Platform, by name.
	Images map[string]string

	// Endpoint is where every machine of a managed site reaches the API, before
	// there is a network and Services: host and port.
	Endpoint func(site string) (host string, port int)

	// Include adds to a document what lies beside it in files of its own, and
	// says where it found each part, by field; see ldap.Include.
	Include func(document map[string]any, origin string, read func(file string) ([]byte, error)) (places map[string]string, faults []*plan.Fault)

	// Derive makes the objects that follow from what a site declares: they belong to
	// it as if the site repo declared them, each with the Origin of what it follows
	// from. It is asked before the Rules, and leaves out what follows from a mistake;
	// see gluster.Claims. Nil is none.
	Derive func(*plan.Site) []plan.Object

	// Rules of the rooms.
	Rules []Rules

	// Warn is told once for each commit of what is doubtful. Nil is nobody.
	Warn func([]*plan.Fault)
}

// Source reads sites. It is a reconciler.Source.
type Source struct {
	Options
	validator *validate.Validator
	platform  *tree.Dir
}

// New makes a Source, without reading anything of the repository yet.
func New(o Options) (*Source, error) {
	validator, err := validate.New()
	if err != nil {
		return nil, err
	}
	platform, err := tree.FromFS(o.Platform)
	if err != nil {
		return nil, fmt.Errorf("read the built-in manifests: %w", err)
	}
	if o.Warn == nil {
		o.Warn = func([]*plan.Fault) {}
	}
	return &Source{o, validator, platform}, nil
}

// Head is the newest commit of the repository. Where the repository cannot be
// asked, it is the last one that was fetched, beside the error.
func (s *Source) Head(ctx context.Context) (string, error) {
	commit, err := s.Repository.Head(ctx)
	if err != nil {
		commit, _ = s.Repository.LastGood()
	}
	return commit, err
}

// Close gives the repository up.
func (s *Source) Close() error { return s.Repository.Close() }

// Watch tells when the repository may have changed; a nil channel where it has
// to be polled.
func (s *Source) Watch(ctx context.Context) (<-chan struct{}, error) { return s.Repository.Watch(ctx) }

// Site is the site as of a commit that Head returned.
func (s *Source) Site(ctx context.Context, commit string) (*plan.Site, error) {
	root, err := s.Repository.Tree(ctx, commit)
	if err != nil {
		return nil, err
	}
	units, err := s.units(root)
	if err != nil {
		return nil, err
	}
	documents, err := s.Renderer.Render(ctx, units)
	faults, err := plan.Split(err)
	if err != nil {
		return nil, err
	}
	r := &reading{Source: s, root: root, faults: faults, places: map[plan.ID]map[string]string{},
		site: &plan.Site{Commit: commit, Objects: make(plan.State, len(documents))}}
	r.add(documents, "")
	whole := !slices.ContainsFunc(faults, func(f *plan.Fault) bool { return f.ID.Kind == "" })
	if !whole || !r.findSite() {
		return nil, r.error() // what refers to the missing part would be called a fault too
	}
	if err := r.addPlatform(ctx); err != nil {
		return nil, err
	}
	r.derive()
	warnings := render.Warnings(documents)
	r.check(func(site *plan.Site) (faults, warnings []*plan.Fault) { return site.Validate() }, &warnings)
	for _, rules := range s.Rules {
		r.check(rules, &warnings)
	}
	if len(r.faults) > 0 {
		return nil, r.error()
	}
	s.Warn(r.placed(warnings))
	return r.site, nil
}

// units are those of the site's folder.
func (s *Source) units(root *tree.Dir) ([]render.Unit, error) {
	at := root.Sub(s.Path)
	if at == nil {
		return nil, &plan.Fault{Code: PathNotFound, Cause: "the repository has no folder " + s.Path, Hint: "correct --path"}
	}
	units := render.Units(at)
	for i := range units {
		units[i].Root, units[i].Path = root, path.Join(s.Path, units[i].Path)
	}
	return units, nil
}

// reading is the making of one site.
type reading struct {
	*Source
	root   *tree.Dir
	site   *plan.Site
	faults []*plan.Fault
	places map[plan.ID]map[string]string // where parts of an object stand that came from another file
}

// add takes rendered documents into the site. Origin stands before the path of
// each document's file.
func (r *reading) add(documents []render.Document, origin string) {
	for _, d := range documents {
		id, err := plan.Identify(d.Content)
		if err != nil {
			r.faults = append(r.faults, &plan.Fault{Code: NoDocument, Where: origin + d.Origin, Cause: err.Error()})
			continue
		}
		o := plan.Object{ID: id, Spec: d.Content, Origin: origin + d.Origin}
		if other, twice := r.site.Objects[id]; twice {
			r.faults = append(r.faults, &plan.Fault{Code: plan.Duplicate, ID: id, Where: r.locate(o, ""),
				Cause: "it is declared in " + other.Origin + " too", Hint: "keep one of them"})
			continue
		}
		r.include(&o)
		r.faults = plan.MergeFaults(r.faults, r.validator.Structure(id, o.Spec))
		r.site.Objects.Add(o)
	}
}

// derive adds what follows from the documents. One that stands in its way is at
// fault, and not the one that it follows from: that has no other name to give.
func (r *reading) derive() {
	if r.Derive == nil {
		return
	}
	for _, o := range r.Derive(r.site) {
		if other, twice := r.site.Objects[o.ID]; twice {
			r.faults = append(r.faults, &plan.Fault{Code: plan.Duplicate, ID: o.ID, Where: r.locate(other, ""),
				Cause: "Kingmaker makes it itself, of what " + o.Origin + " declares", Hint: "take it out, or give it another name"})
			continue
		}
		r.site.Objects.Add(o)
	}
}

// include adds what lies beside a document in files of its own.
func (r *reading) include(o *plan.Object) {
	if r.Include == nil || o.ID.System != plan.Directory {
		return
	}
	private := copyTree(o.Spec)
	places, faults := r.Include(private, o.Origin, func(file string) ([]byte, error) {
		f := r.root.File(file)
		if f == nil || f.Kind != tree.Regular {
			return nil, fmt.Errorf("%s: there is no such file", file)
		}
		return f.Read()
	})
	o.Spec, r.places[o.ID] = private, places
	r.faults = append(r.faults, faults...)
}

// copyTree is a deep copy of a document; Secrets stay Secrets.
func copyTree(document map[string]any) map[string]any {
	private := make(map[string]any, len(document))
	for key, value := range document {
		switch v := value.(type) {
		case map[string]any:
			value = copyTree(v)
		case []any:
			list := make([]any, len(v))
			for i, item := range v {
				if list[i] = item; isMap(item) {
					list[i] = copyTree(item.(map[string]any))
				}
			}
			value = list
		}
		private[key] = value
	}
	return private
}

func isMap(value any) bool {
	_, ok := value.(map[string]any)
	return ok
}

// findSite takes the one Site document in, and reports whether there is one.
func (r *reading) findSite() bool {
	kind := "Site." + plan.Group
	var found []plan.Object
	for _, id := range r.site.Objects.IDs() {
		if id.Kind == kind {
			found = append(found, r.site.Objects[id])
		}
	}
	if len(found) != 1 {
		f := &plan.Fault{Code: NoSite, Where: "site.yaml", Cause: "there is no document of kind Site",
			Hint: "a site repo has exactly one; --path names the folder where it is not at the root"}
		if len(found) > 1 {
			f.Code, f.Where = ManySites, r.locate(found[1], "")
			f.Cause, f.Hint = "there is more than one Site: "+found[0].Origin+" has one too", "keep one of them"
		}
		r.faults = append(r.faults, f)
		return false
	}
	r.site.Name = found[0].ID.Name
	spec, err := plan.Decode[plan.SiteSpec](found[0])
	if err != nil && len(r.faults) == 0 {
		r.faults = append(r.faults, &plan.Fault{Code: plan.Unreadable, ID: found[0].ID, Field: "spec", Cause: err.Error()})
	}
	r.site.Spec = spec
	return true
}

// builtIn stands before the paths of the built-in manifests.
const builtIn = "built-in "

// addPlatform renders the built-in manifests: those that the site is to have,
// with what its spec says of them, in a folder of its own, and over that the
// site's patches, which have the last word.
func (r *reading) addPlatform(ctx context.Context) error {
	chosen, err := r.choose()
	if err != nil {
		return fmt.Errorf("set up the built-in manifests: %w", err)
	}
	dirs := maps.Clone(r.platform.Dirs)
	if dirs[chosenFolder], err = kustomization(chosen); err != nil {
		return err
	}
	patches := r.site.Spec.Platform.Patches
	top, err := kustomization(map[string]any{"resources": []string{chosenFolder}, "patches": patches})
	if err != nil {
		return err
	}
	top.Dirs = dirs
	documents, err := r.Renderer.Render(ctx, []render.Unit{{Name: "platform", Root: top.Seal()}})
	if faults, rest := plan.Split(err); rest != nil {
		return rest
	} else if len(faults) > 0 {
		at := builtIn
		if len(patches) > 0 { // ours render without them, as tests prove
			at = r.siteFile() + ": spec.platform.patches: "
		}
		for _, f := range faults {
			f.Where = at + f.Where
		}
		return plan.Join(faults)
	}
	r.add(documents, builtIn)
	return nil
}

// chosenFolder is where the manifests of one site are put together, beside the
// folders of Platform.
const chosenFolder = "site"

// choose is the kustomization of the built-in manifests that the site is to
// have. What the Site has that cannot be read is told as a fault elsewhere; the
// default stands in for it.
func (r *reading) choose() (map[string]any, error) {
	if !r.site.Spec.Kubernetes.IsManaged() {
		return map[string]any{"resources": []string{"../base"}}, nil
	}
	network := "network/" + plan.DefaultBackend
	if named := "network/" + r.site.Spec.Network.BackendName(); r.platform.File(named+"/net-conf.json") != nil {
		network = named
	}
	settings, err := r.networkSettings(network)
	if err != nil {
		return nil, err
	}
	type image struct {
		Name   string `json:"name"`
		NewTag string `json:"newTag"`
	}
	var images []image
	for _, name := range slices.Sorted(maps.Keys(r.Images)) {
		images = append(images, image{name, r.Images[name]})
	}
	direct, err := r.direct()
	if err != nil {
		return nil, err
	}
	resources := []string{"../base", "../machines", "../" + network, "../reconciler", "../directory", "../portal"}
	if r.backsUp() {
		resources = append(resources, "../directory/backup")
	}
	return map[string]any{
		"resources": resources,
		"patches":   []any{map[string]any{"patch": direct}},
		"configMapGenerator": []any{map[string]any{
			"name": "kube-flannel-cfg", "namespace": "kube-flannel", "behavior": "merge",
			"literals": []string{"net-conf.json=" + settings},
		}},
		"images": images,
	}, nil
}

// backsUp reports whether the site declares the volume of the directory's backups.
func (r *reading) backsUp() bool {
	volume, ok := r.site.Objects[plan.ID{System: plan.Volumes, Kind: "Volume", Name: "directory-backup"}]
	if !ok {
		return false
	}
	spec, _ := volume.Spec["spec"].(map[string]any)
	return spec["namespace"] == "kingmaker-directory" // gluster.Validate has no other that is the system's
}

// direct is a patch that has flannel ask the API at the machine's own endpoint,
// and not through a Service: on a machine that starts, kube-proxy, which makes
// Services, starts together with flannel.
func (r *reading) direct() (string, error) {
	type object = map[string]any
	host, port := r.Endpoint(r.site.Name)
	text, err := yaml.Marshal(object{
		"apiVersion": "apps/v1", "kind": "DaemonSet",
		"metadata": object{"name": "kube-flannel-ds", "namespace": "kube-flannel"},
		"spec": object{"template": object{"spec": object{"containers": []object{{"name": "kube-flannel", "env": []object{
			{"name": "KUBERNETES_SERVICE_HOST", "value": host},
			{"name": "KUBERNETES_SERVICE_PORT", "value": strconv.Itoa(port)},
		}}}}}},
	})
	return string(text), err
}

// networkSettings are flannel's, as a base has them, with the range of the
// site's Pods.
func (r *reading) networkSettings(base string) (string, error) {
	file := base + "/net-conf.json"
	text, err := r.platform.File(file).Read()
	if err != nil {
		return "", err
	}
	var settings map[string]any
	if err := json.Unmarshal(text, &settings); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	switch pods, _ := r.site.Spec.Network.Ranges(); {
	case !pods.IsValid():
	case pods.Addr().Is4():
		settings["Network"] = pods.String()
	default:
		delete(settings, "Network")
		settings["EnableIPv4"], settings["EnableIPv6"], settings["IPv6Network"] = false, true, pods.String()
	}
	text, err = json.MarshalIndent(settings, "", "  ")
	return string(text), err
}

// kustomization is a folder that holds nothing but one, for now.
func kustomization(fields map[string]any) (*tree.Dir, error) {
	fields["apiVersion"], fields["kind"] = "kustomize.config.k8s.io/v1beta1", "Kustomization"
	text, err := yaml.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("write a kustomization of the built-in manifests: %w", err)
	}
	return &tree.Dir{Files: map[string]*tree.File{"kustomization.yaml": {
		Hash: tree.HashBlob(text), Size: int64(len(text)),
		Read: func() ([]byte, error) { return bytes.Clone(text), nil },
	}}}, nil
}

func (r *reading) siteFile() string {
	return r.site.Objects[plan.ID{System: plan.Objects, Kind: "Site." + plan.Group, Name: r.site.Name}].Origin
}

// check asks one set of rules.
func (r *reading) check(rules Rules, warnings *[]*plan.Fault) {
	faults, more := rules(r.site)
	r.faults = plan.MergeFaults(r.faults, faults)
	*warnings = append(*warnings, more...)
}

// error is all faults, each with its place, in the order of reading.
func (r *reading) error() error {
	return plan.Join(r.placed(r.faults))
}

func (r *reading) placed(faults []*plan.Fault) []*plan.Fault {
	locator := render.NewLocator(r.root)
	for _, f := range faults {
		if f.Where == "" {
			f.Where = r.locateWith(locator, r.site.Objects[f.ID], f.Field)
		}
	}
	plan.SortFaults(faults)
	return faults
}

func (r *reading) locate(o plan.Object, field string) string {
	return r.locateWith(render.NewLocator(r.root), o, field)
}

func (r *reading) locateWith(l *render.Locator, o plan.Object, field string) string {
	for at := field; at != ""; at = parent(at) {
		if place := r.places[o.ID][at]; place != "" {
			return place
		}
	}
	if strings.HasPrefix(o.Origin, builtIn) || o.Origin == "" {
		return o.Origin
	}
	kind, _, _ := strings.Cut(o.ID.Kind, ".")
	return l.Locate(o.Origin, kind, path.Base(o.ID.Name), field)
}

// parent is the path of the field that holds a field, "" at the top.
func parent(field string) string {
	return field[:max(0, strings.LastIndexAny(field, ".["))]
}
