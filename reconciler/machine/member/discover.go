package member

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
	bootstrap "k8s.io/cluster-bootstrap/token/api"
	"k8s.io/cluster-bootstrap/token/jws"
)

// Discovery finds the site of an Invitation, as kubeadm does: it reads what the
// masters tell everybody, believes it only when the CA has the hash of the line
// and the token's secret has signed it, and then reads it again from a server
// that the CA vouches for. Only then is the token shown to anyone. Each way in
// which that can fail is a refusal of its own, for each wants another remedy.
type Discovery struct {
	Invitation machine.Invitation
	Now        func() time.Time // nil is time.Now
	Timeout    time.Duration    // of one request; 0 is 5 s
	Patience   time.Duration    // how long a new token may take to be announced; 0 is 5 s, as the signer needs a moment
}

// Site is what a machine knows of a site before it is in.
type Site struct {
	Name       string           // "school", of the endpoint api.school.internal
	Endpoint   string           // "api.school.internal:7443"
	CA         []byte           // PEM
	Kubernetes string           // version of the API server: "v1.36.3"
	Masters    []netip.AddrPort // those of the line that are masters of the site, or do not answer now
	Doubts     []string         // what was wrong with the others, a line each

	client *http.Client // trusts the CA alone
	via    string       // URL of a master that answered
}

func (d *Discovery) now() time.Time {
	if d.Now == nil {
		return time.Now()
	}
	return d.Now()
}

// Find asks all masters of the line at once. One that is what the line says is
// enough: the others may be down, or be no masters any more. The error is a
// *plan.Fault of a code that is declared here, or the context's.
func (d *Discovery) Find(ctx context.Context) (*Site, error) {
	type answer struct {
		site *Site
		err  error
	}
	answers := make([]answer, len(d.Invitation.Masters))
	var all sync.WaitGroup
	for i, master := range d.Invitation.Masters {
		all.Go(func() { answers[i].site, answers[i].err = d.ask(ctx, master) })
	}
	all.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var found *Site
	var silent []netip.AddrPort
	var doubts []string
	var worst error // the first that is more than silence
	for i, a := range answers {
		var unreachable *silence
		switch {
		case a.err == nil && found == nil:
			found = a.site
			found.Masters = append(silent, d.Invitation.Masters[i])
		case a.err == nil || errors.As(a.err, &unreachable):
			if found != nil {
				found.Masters = append(found.Masters, d.Invitation.Masters[i])
			} else {
				silent = append(silent, d.Invitation.Masters[i])
			}
			if a.err != nil {
				doubts = append(doubts, a.err.Error())
			}
		default:
			if worst == nil {
				worst = a.err
			}
			doubts = append(doubts, a.err.Error())
		}
	}
	switch {
	case found != nil:
		found.Doubts = doubts
		return found, nil
	case worst != nil:
		return nil, worst
	}
	return nil, fault(NoMasterAnswers, "see that a master is on, that this machine is on its network, and that the line is not from yesterday: reconcile token prints a new one",
		"no master answers: %s", strings.Join(doubts, "; "))
}

// silence is a master that did not answer.
type silence struct {
	master netip.AddrPort
	cause  string
}

func (s *silence) Error() string { return fmt.Sprintf("%s: %s", s.master, s.cause) }

// ask asks one master everything.
func (d *Discovery) ask(ctx context.Context, master netip.AddrPort) (*Site, error) {
	stranger := d.client(&tls.Config{InsecureSkipVerify: true}) // until CA and signature are checked
	defer stranger.CloseIdleConnections()
	where := "https://" + master.String()
	var info map[string]string
	var ca []*x509.Certificate
	var caPEM []byte
	for deadline := time.Now().Add(cmp.Or(d.Patience, 5*time.Second)); ; {
		reply, err := d.clusterInfo(ctx, stranger, where)
		if err != nil {
			return nil, untold(master, err)
		}
		info = reply.data
		if caPEM, ca, err = authority(info[bootstrap.KubeConfigKey]); err != nil {
			return nil, fault(NotAMaster, machine.PasteLine, "%s answers, and is no master of a site: %v", master, err)
		}
		// First the CA: of a stranger nothing else matters. Then the clock,
		// which may be why the rest fails.
		if !pinned(ca, d.Invitation.CAHash) {
			return nil, fault(CADiffers, "see that the address is a master's of this site, and make a new line there with reconcile token",
				"%s shows the CA %s, and the line has %s: somebody else answers, or the line is of another site", master, hash(ca[0]), d.Invitation.CAHash)
		}
		if err := d.checkClock(master, ca[0], reply); err != nil {
			return nil, err
		}
		if info[bootstrap.JWSSignatureKeyPrefix+d.Invitation.TokenID()] != "" {
			break
		}
		if time.Now().After(deadline) {
			return nil, fault(TokenUnknown, "make a new line with reconcile token; each is good for 15 minutes",
				"%s does not know the token %s: it has expired, or never existed here", master, d.Invitation.TokenID())
		}
		if err := Wait(ctx, time.Second/2); err != nil {
			return nil, err
		}
	}
	told := info[bootstrap.KubeConfigKey]
	if !jws.DetachedTokenIsValid(info[bootstrap.JWSSignatureKeyPrefix+d.Invitation.TokenID()], told, d.Invitation.TokenID(), d.Invitation.TokenSecret()) {
		return nil, fault(TokenWrong, machine.PasteLine+"; if that was done, somebody between changes what the master says",
			"the second half of token %s is not the one that %s knows: it was mistyped", d.Invitation.TokenID(), master)
	}

	// Again, from a server that the CA vouches for.
	site, err := siteOf(told, caPEM)
	if err != nil {
		return nil, fault(NotAMaster, "only sites that noded init made can be joined", "%s is a master of something else: %v", master, err)
	}
	pool := x509.NewCertPool()
	for _, c := range ca {
		pool.AddCert(c)
	}
	site.client, site.via = d.client(&tls.Config{RootCAs: pool, Time: d.now}), where
	reply, err := d.clusterInfo(ctx, site.client, where)
	if err != nil {
		return nil, d.untrusted(master, err)
	}
	if reply.data[bootstrap.KubeConfigKey] != told {
		return nil, fault(CADiffers, "find out who is between this machine and "+master.String(), "%s says other things over a verified connection than before: somebody between changes them", master)
	}
	version, err := d.get(ctx, site.client, where+"/version", nil)
	if err != nil {
		return nil, untold(master, err)
	}
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := json.Unmarshal(version.body, &v); err != nil {
		return nil, fault(NotAMaster, machine.PasteLine, "%s: its version is not readable: %v", master, err)
	}
	site.Kubernetes = v.GitVersion
	return site, nil
}

// siteOf reads the name of the site out of the endpoint that it goes by.
func siteOf(kubeconfig string, ca []byte) (*Site, error) {
	config, err := clientcmd.Load([]byte(kubeconfig))
	if err != nil {
		return nil, err
	}
	for _, cluster := range config.Clusters {
		u, err := url.Parse(cluster.Server)
		if err != nil {
			return nil, err
		}
		name, ok := strings.CutPrefix(u.Hostname(), "api.")
		name, ok2 := strings.CutSuffix(name, ".internal")
		if !ok || !ok2 || name == "" || u.Hostname() != host.Endpoint(name) || u.Port() != fmt.Sprint(host.BalancerPort) {
			return nil, fmt.Errorf("its endpoint is %s, not https://api.SITE.internal:%d", cluster.Server, host.BalancerPort)
		}
		return &Site{Name: name, Endpoint: u.Host, CA: ca}, nil
	}
	return nil, errors.New("its kubeconfig names no cluster")
}

// authority is the CA in what a master tells everybody.
func authority(kubeconfig string) (asPEM []byte, parsed []*x509.Certificate, err error) {
	if kubeconfig == "" {
		return nil, nil, errors.New("it announces no site")
	}
	config, err := clientcmd.Load([]byte(kubeconfig))
	if err != nil {
		return nil, nil, err
	}
	for _, cluster := range config.Clusters {
		parsed, err = cert.ParseCertsPEM(cluster.CertificateAuthorityData)
		return cluster.CertificateAuthorityData, parsed, err
	}
	return nil, nil, errors.New("it announces no CA")
}

// hash is how the line names a CA: by its public key.
func hash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func pinned(ca []*x509.Certificate, want string) bool {
	for _, c := range ca {
		if hash(c) == want {
			return true
		}
	}
	return false
}

// checkClock compares this clock with the master's. Certificates, leases and
// etcd all rest on clocks that agree.
func (d *Discovery) checkClock(master netip.AddrPort, ca *x509.Certificate, r *reply) error {
	if r.date.IsZero() {
		return nil // it does not say
	}
	ahead := r.at.Sub(r.date).Round(time.Second)
	if ahead.Abs() <= host.MaxSkew {
		return nil
	}
	direction := "ahead of"
	if ahead < 0 {
		direction = "behind"
	}
	hint := "set the one that is wrong (timedatectl shows this one's), and try again"
	switch {
	case r.at.Before(ca.NotBefore) && !r.date.Before(ca.NotBefore):
		hint = fmt.Sprintf("it is this one that is wrong, for the site was made on %s: set it, and try again", stamp(ca.NotBefore))
	case r.date.Before(ca.NotBefore) && !r.at.Before(ca.NotBefore):
		hint = fmt.Sprintf("it is the master's that is wrong, for the site was made on %s: set it there, and try again", stamp(ca.NotBefore))
	}
	return fault(ClockDiffers, hint, "this machine's clock is %s %s that of master %s (here %s, there %s)",
		about(ahead.Abs()), direction, master.Addr(), stamp(r.at), stamp(r.date))
}

// about rounds what was measured in whole seconds: 1h0m, 40s.
func about(d time.Duration) string {
	if d > 2*time.Minute {
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return d.String()
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// untold is what a request without trust can fail of.
func untold(master netip.AddrPort, err error) error {
	var status *badStatus
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &status) && status.code >= 500:
		return &silence{master, status.Error()} // it is starting
	case errors.As(err, &status):
		return fault(NotAMaster, machine.PasteLine, "%s answers, and is no master of a site: %v", master, status)
	case errors.As(err, &record):
		return fault(NotAMaster, machine.PasteLine, "%s answers, and does not speak TLS: it is no master", master)
	}
	return &silence{master, Plain(err)}
}

// untrusted is what a request with trust can fail of, when the same without
// trust went well a moment ago.
func (d *Discovery) untrusted(master netip.AddrPort, err error) error {
	var dates x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &dates) && dates.Reason == x509.Expired:
		// The clocks agree: that was looked at before.
		if now := d.now(); now.Before(dates.Cert.NotBefore) {
			return fault(CertificateDates, "see which clock is wrong; a master's certificates are renewed there with kubeadm certs renew all",
				"a certificate of master %s is not valid before %s, and it is %s by the clocks of both: they are behind, or the master's was ahead when it was made",
				master.Addr(), stamp(dates.Cert.NotBefore), stamp(now))
		}
		return fault(CertificateDates, "renew it there with kubeadm certs renew all, or set the clocks if they are ahead",
			"a certificate of master %s was valid until %s, and it is %s by the clocks of both", master.Addr(), stamp(dates.Cert.NotAfter), stamp(d.now()))
	case errors.As(err, &unknown):
		return fault(CADiffers, "find out who is between this machine and the master", "%s tells of the right CA, and shows a certificate of another: somebody else answers", master)
	case errors.As(err, &name):
		return fault(CADiffers, "use the address that reconcile token prints", "the certificate of %s is not for this address: %v", master, name)
	}
	return untold(master, err)
}

// Plain is the end of a network error: what happened, without the URL and the
// system call.
func Plain(err error) string {
	var op *net.OpError
	var late net.Error
	switch {
	case errors.As(err, &late) && late.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &op):
		var call interface{ Unwrap() error }
		if errors.As(op.Err, &call) && call.Unwrap() != nil {
			return call.Unwrap().Error() // "connection refused", without the name of the system call
		}
		return op.Err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection ended before an answer"
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}

// reply is the answer to one request.
type reply struct {
	body []byte
	data map[string]string // of a ConfigMap
	date time.Time         // by the other's clock; zero where it does not say
	at   time.Time         // the same moment by this clock, half-way between request and answer
}

// badStatus is an answer that is none.
type badStatus struct {
	code int
}

func (b *badStatus) Error() string {
	return fmt.Sprintf("it answers %d %s", b.code, http.StatusText(b.code))
}

func (d *Discovery) client(config *tls.Config) *http.Client {
	config.MinVersion = tls.VersionTLS12
	// No proxy: a site is on the spot. No redirects: a master makes none.
	return &http.Client{
		Timeout:       cmp.Or(d.Timeout, 5*time.Second),
		Transport:     &http.Transport{TLSClientConfig: config, Proxy: nil},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (d *Discovery) clusterInfo(ctx context.Context, c *http.Client, where string) (*reply, error) {
	r, err := d.get(ctx, c, where+"/api/v1/namespaces/kube-public/configmaps/"+bootstrap.ConfigMapClusterInfo, nil)
	if err != nil {
		return nil, err
	}
	var object struct {
		Data map[string]string `json:"data"`
	}
	if err := json.Unmarshal(r.body, &object); err != nil {
		return nil, &badStatus{http.StatusOK}
	}
	r.data = object.Data
	return r, nil
}

func (d *Discovery) get(ctx context.Context, c *http.Client, url string, header http.Header) (*reply, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	for key, values := range header {
		request.Header[key] = values
	}
	begin := d.now()
	response, err := c.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	r := &reply{at: begin.Add(d.now().Sub(begin) / 2)}
	if r.body, err = io.ReadAll(io.LimitReader(response.Body, 1<<20)); err != nil {
		return nil, err
	}
	r.date, _ = http.ParseTime(response.Header.Get("Date"))
	if response.StatusCode != http.StatusOK {
		return r, &badStatus{response.StatusCode}
	}
	return r, nil
}

// Identity tells installations and computers apart, as kubelets report them.
type Identity struct {
	MachineID  string // of /etc/machine-id: one for each installation
	SystemUUID string // of the mainboard; "" where it has none. Containers share their host's.
}

// same reports whether two machines are one. A copied disk has the machine-id
// of its original, and another mainboard.
func (i Identity) same(o Identity) bool {
	board := i.SystemUUID == "" || o.SystemUUID == "" || strings.EqualFold(i.SystemUUID, o.SystemUUID)
	return i.MachineID == o.MachineID && board
}

// Named is the Node that has a name already.
type Named struct {
	Identity
	Ready   bool
	Address string
}

// Named asks a master, with the token, who has a name; nil is nobody.
func (d *Discovery) Named(ctx context.Context, s *Site, name string) (*Named, error) {
	r, err := d.get(ctx, s.client, s.via+"/api/v1/nodes/"+url.PathEscape(name), http.Header{"Authorization": {"Bearer " + d.Invitation.Token.Value()}})
	var status *badStatus
	if errors.As(err, &status) {
		switch status.code {
		case http.StatusNotFound:
			return nil, nil
		case http.StatusUnauthorized:
			return nil, fault(TokenUnknown, "make a new line with reconcile token", "the token %s is known, and lets nobody in: it has just expired, or is for something else", d.Invitation.TokenID())
		case http.StatusForbidden:
			return nil, fault(TokenUnknown, "make a new line with reconcile token", "the token %s does not let machines in: it was not made by reconcile token", d.Invitation.TokenID())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("ask who is %s: %s", name, Plain(err))
	}
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status string }
			Addresses  []struct{ Type, Address string }
			NodeInfo   struct {
				MachineID  string `json:"machineID"`
				SystemUUID string `json:"systemUUID"`
			} `json:"nodeInfo"`
		}
	}
	if err := json.Unmarshal(r.body, &node); err != nil {
		return nil, fmt.Errorf("ask who is %s: %w", name, err)
	}
	n := &Named{Identity: Identity{node.Status.NodeInfo.MachineID, node.Status.NodeInfo.SystemUUID}}
	for _, c := range node.Status.Conditions {
		n.Ready = n.Ready || c.Type == "Ready" && c.Status == "True"
	}
	for _, a := range node.Status.Addresses {
		if a.Type == "InternalIP" {
			n.Address = a.Address
		}
	}
	return n, nil
}

// CheckName refuses a name that another machine is at work under. A machine of
// the name that is down was repaired, or its place is taken by this one. One
// that is this very machine left the site a moment ago, which the site notices
// when its heartbeat stays away: that is waited for, of which progress is told.
func (d *Discovery) CheckName(ctx context.Context, s *Site, name string, self Identity, progress func(string)) error {
	for deadline, told := time.Now().Add(90*time.Second), false; ; {
		n, err := d.Named(ctx, s, name)
		if err != nil || n == nil || !n.Ready {
			return err
		}
		if !n.same(self) {
			return fault(NameTaken, fmt.Sprintf("give this one its own name with --name; if it is to take the place of the other, switch that off or run noded reset there, and see that kubectl get node %s is not Ready", name),
				"a second machine of the name %s: the one with address %s and machine-id %.8s is at work, and this one has %.8s", name, n.Address, n.MachineID, self.MachineID)
		}
		if time.Now().After(deadline) {
			return fault(NameTaken, "see that no other kubelet runs here, or kubectl delete node "+name, "the Node %s is this machine, and is still Ready", name)
		}
		if !told {
			progress("waiting until the site notices that this machine had left it: up to a minute")
			told = true
		}
		if err := Wait(ctx, time.Second); err != nil {
			return err
		}
	}
}

// Wait waits, unless the context ends: then its cause is the error.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
