package git

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// remote is the origin behind a server.
type remote struct {
	at          location
	credentials Credentials
	limits      Limits
}

// session is one conversation with git-upload-pack, whatever carries it.
type session struct {
	transport.UploadPackSession
	meter     *meter
	secrets   []string
	anonymous bool
}

func (r *remote) open(ctx context.Context) (*session, error) {
	credentials, err := r.credentials.current()
	if err != nil {
		return nil, err
	}
	s := &session{secrets: credentials.secrets(), anonymous: len(credentials.secrets()) == 0,
		meter: &meter{refs: int64(r.limits.Refs)*256 + 1<<20, pack: r.limits.Bytes + r.limits.Bytes/16 + 1<<20}}
	if r.at.scheme == "ssh" {
		s.UploadPackSession, err = dialSSH(ctx, r.at, credentials, s.meter)
	} else {
		s.UploadPackSession, err = r.openHTTP(credentials, s.meter)
	}
	if err != nil {
		return s, err
	}
	return s, nil
}

func (r *remote) refs(ctx context.Context, _ string) (refs, error) {
	s, err := r.open(ctx)
	if err != nil {
		return refs{}, r.explain("look at", s, err)
	}
	defer s.Close()
	advertised, err := s.AdvertisedReferencesContext(ctx)
	if err != nil {
		return refs{}, r.explain("look at", s, err)
	}
	if len(advertised.References) > r.limits.Refs {
		return refs{}, tooLarge("look at "+r.at.String()+": branches and tags", r.limits.Refs)
	}
	found := refs{heads: map[string]plumbing.Hash{}, tags: map[string]plumbing.Hash{}}
	if advertised.Head != nil {
		found.head = *advertised.Head
	}
	for name, hash := range advertised.References {
		if peeled, ok := advertised.Peeled[name]; ok {
			hash = peeled
		}
		found.add(plumbing.ReferenceName(name), hash)
	}
	return found, nil
}

// pack asks for one commit without its history, less what is there already.
func (r *remote) pack(ctx context.Context, commit plumbing.Hash, have *generation, w io.Writer) error {
	s, err := r.open(ctx)
	if err != nil {
		return r.explain("fetch", s, err)
	}
	defer s.Close()
	advertised, err := s.AdvertisedReferencesContext(ctx)
	if err != nil {
		return r.explain("fetch", s, err)
	}
	request := packp.NewUploadPackRequestFromCapabilities(advertised.Capabilities)
	request.Wants = []plumbing.Hash{wanted(advertised, commit)}
	if advertised.Capabilities.Supports(capability.Shallow) { // if not, all history comes along, within the limits
		request.Capabilities.Set(capability.Shallow)
		request.Depth = packp.DepthCommits(1)
		if old := have.head(); !old.IsZero() {
			request.Haves, request.Shallows = []plumbing.Hash{old}, []plumbing.Hash{old}
		}
	}
	response, err := s.UploadPack(ctx, request)
	if err != nil {
		return r.explain("fetch", s, err)
	}
	defer response.Close()
	var pack io.Reader = response
	switch {
	case request.Capabilities.Supports(capability.Sideband64k):
		pack = sideband.NewDemuxer(sideband.Sideband64k, response)
	case request.Capabilities.Supports(capability.Sideband):
		pack = sideband.NewDemuxer(sideband.Sideband, response)
	}
	if _, err = io.Copy(w, pack); err != nil && !isCacheError(err) {
		return r.explain("fetch", s, err)
	}
	return err
}

// wanted is what to ask for to get a commit: a server may refuse objects that
// it did not advertise, and of a tag it advertises the tag.
func wanted(advertised *packp.AdvRefs, commit plumbing.Hash) plumbing.Hash {
	want := commit
	for name, hash := range advertised.References {
		if hash == commit {
			return commit
		}
		if advertised.Peeled[name] == commit {
			want = hash
		}
	}
	return want
}

// openHTTP makes a session over http or https. It dials at the first request.
func (r *remote) openHTTP(c Credentials, m *meter) (transport.UploadPackSession, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if ca := c.CA.Value(); ca != "" && !roots.AppendCertsFromPEM([]byte(ca)) {
		return nil, fault(CredentialsInvalid, "ca.crt holds no certificate that can be read", "want PEM, beginning with -----BEGIN CERTIFICATE-----")
	}
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		ForceAttemptHTTP2:     true,
		DisableKeepAlives:     true, // sessions are minutes apart
	}
	client := githttp.NewClient(&http.Client{Transport: metered{base, m}, CheckRedirect: r.checkRedirect})
	// Host and path only: an endpoint prints all that it holds.
	port, _ := strconv.Atoi(r.at.port)
	at := r.at
	at.port = ""
	endpoint := &transport.Endpoint{Protocol: at.scheme, Host: at.authority(), Port: port, Path: strings.TrimSuffix(at.path, "/")}
	switch {
	case c.Token.Value() != "":
		return client.NewUploadPackSession(endpoint, &githttp.TokenAuth{Token: c.Token.Value()})
	case c.Password.Value() != "" || c.Username.Value() != "":
		return client.NewUploadPackSession(endpoint, &githttp.BasicAuth{Username: cmp.Or(c.Username.Value(), "git"), Password: c.Password.Value()})
	}
	return client.NewUploadPackSession(endpoint, nil)
}

// checkRedirect lets a server send us to another path of itself. Anywhere else
// could be a trap for credentials, or an address that only we can reach.
func (r *remote) checkRedirect(to *http.Request, via []*http.Request) error {
	if to.URL.Scheme != via[0].URL.Scheme || to.URL.Host != via[0].URL.Host || len(via) > 3 {
		return fault(RedirectRefused, fmt.Sprintf("the server points to %.100q", to.URL.Scheme+"://"+to.URL.Host), "if the repository moved there, give that address")
	}
	return nil
}

// meter stops servers that send more than there can be.
type meter struct {
	refs, pack int64 // bytes
	over       string
}

// of is a reader that ends with an error after so many bytes.
func (m *meter) of(r io.Reader, left int64, what string) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if left <= 0 {
			m.over = what
			return 0, errTooMuch
		}
		n, err := r.Read(p[:min(int64(len(p)), left)])
		left -= int64(n)
		return n, err
	})
}

var errTooMuch = errors.New("too much")

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// metered puts a meter on the answers to requests.
type metered struct {
	http.RoundTripper
	meter *meter
}

func (m metered) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := m.RoundTripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	left, what := m.meter.refs, "what it says of its branches and tags"
	switch {
	case response.StatusCode >= 300:
		left = 1 << 16 // a page for people
	case request.Method == http.MethodPost:
		left, what = m.meter.pack, "the pack"
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{m.meter.of(response.Body, left, what), response.Body}
	return response, nil
}

// explain turns what went wrong in a session into a fault. Texts of libraries
// and servers pass through clean.
func (r *remote) explain(deed string, s *session, err error) error {
	deed += " " + r.at.String() + ": "
	var f *plan.Fault
	for { // go-git wraps some errors in a way that errors.As cannot see
		var u *plumbing.UnexpectedError
		var p *plumbing.PermanentError
		if errors.As(err, &f) {
			return &plan.Fault{Code: f.Code, Cause: deed + f.Cause, Hint: f.Hint}
		} else if errors.As(err, &u) {
			err = u.Err
		} else if errors.As(err, &p) {
			err = p.Err
		} else {
			break
		}
	}
	var status *githttp.Err
	var untrusted *tls.CertificateVerificationError
	var text string
	if s != nil {
		text = clean(err.Error(), s.secrets)
	}
	switch {
	case s != nil && s.meter.over != "":
		return fault(TooLarge, deed+s.meter.over+" does not end within the limits", "see whether this is the repository of the site")
	case errors.Is(err, transport.ErrEmptyRemoteRepository):
		return emptyRepository(r.at)
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		cause := "the server refuses these credentials"
		if s.anonymous {
			cause = "the server wants credentials"
		}
		return fault(AuthenticationFailed, deed+cause, "put username and password into the folder that --credentials names; GitHub, GitLab and Gitea take a token as the password")
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return fault(RepositoryNotFound, deed+"there is no such repository, or it is not shown to these credentials", "compare the address, and see whether the credentials may read it")
	case strings.Contains(text, "http redirect: "): // go-git's own refusals come before checkRedirect
		return fault(RedirectRefused, deed+"the server points to an address of another kind", "if the repository moved there, give that address")
	case errors.As(err, &untrusted):
		return fault(TLSUntrusted, deed+clean(untrusted.Err.Error(), s.secrets), "put the certificate of your own authority into ca.crt of the folder that --credentials names")
	case errors.As(err, &status):
		return fault(RepositoryUnreachable, fmt.Sprintf("%sthe server answers %d %s", deed, status.StatusCode(), http.StatusText(status.StatusCode())), "it is tried again")
	case strings.Contains(text, "not our ref"), strings.Contains(text, "unadvertised object"):
		return fault(RevisionNotFound, deed+"the commit is not there, or not shown", "a newer one is taken at the next look; of older ones a server shows those with a branch or tag")
	}
	return fault(RepositoryUnreachable, deed+text, "it is tried again; see whether the address is right and the server runs")
}
