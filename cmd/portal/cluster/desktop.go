package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/coder/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "k8s.io/api/core/v1"

	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// Desktop is the way to one that runs.
type Desktop struct {
	base   string
	token  string
	client *http.Client
}

// ErrAway says that the user has no desktop that runs.
var ErrAway = errors.New("no desktop runs")

// Reach is the way to the desktop of a user, as his Session has it: there is something
// to see before it is Ready.
func (c *Cluster) Reach(ctx context.Context, user string) (*Desktop, error) {
	d, ok, err := c.Look(ctx, user)
	if err != nil {
		return nil, err
	}
	if !ok || !d.Spec.Wanted || !d.Shows() {
		return nil, ErrAway
	}
	return c.ReachPod(ctx, session.PodName(d.Name, d.Spec.Generation), d.Status.PodIP)
}

// PodRange has the addresses of all Pods, and of nothing else.
func (c *Cluster) PodRange(ctx context.Context) (netip.Prefix, error) {
	if c.Pods.IsValid() {
		return c.Pods, nil
	}
	return c.pods.get(func() (netip.Prefix, error) {
		site, err := c.ReadSite(ctx)
		if err != nil || site.Pods == "" {
			return defaultPods, err
		}
		pods, err := netip.ParsePrefix(site.Pods)
		if err != nil {
			return pods, fmt.Errorf("read network.pods of the Site: %w", err)
		}
		return pods, nil
	})
}

// Key opens one desktop: its token, and how it is known. It is there as soon as its Pod is.
type Key struct {
	pods  netip.Prefix
	token string
	trust *tls.Config
}

// Key is that of a Pod, of which the name comes from the API.
func (c *Cluster) Key(ctx context.Context, pod string) (*Key, error) {
	pods, err := c.PodRange(ctx)
	if err != nil {
		return nil, err
	}
	authority, err := c.authority.get(func() (session.Authority, error) {
		return c.Authority(ctx, DesktopAuthority, false, time.Now())
	})
	if err != nil {
		return nil, err
	}
	secret, err := c.Client.CoreV1().Secrets(session.Namespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the Secret of %s: %s", pod, apierrors.ReasonForError(err))
	}
	trust, err := session.Trust(authority.Certificate, secret.Data["tls.crt"])
	if err != nil {
		return nil, err
	}
	return &Key{pods: pods, token: string(secret.Data["token"]), trust: trust}, nil
}

// idle is how long a connection to a desktop is kept for the next question.
const idle = 15 * time.Second

// Reach is the way to the Pod at an address, which comes from the API, too.
func (k *Key) Reach(ip string) (*Desktop, error) {
	address, err := netip.ParseAddr(ip)
	if err != nil || !k.pods.Contains(address.Unmap()) {
		return nil, fmt.Errorf("reach a desktop: %q is no address of a Pod (%s)", ip, k.pods)
	}
	return newDesktop(net.JoinHostPort(address.String(), strconv.Itoa(session.Port)), k.token, &http.Transport{
		TLSClientConfig: k.trust, IdleConnTimeout: idle,
		DialContext: (&net.Dialer{Timeout: 3 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
			Control: userTimeout}).DialContext,
	}), nil
}

// ReachPod is the way to a Pod, of which the name and address come from the API.
func (c *Cluster) ReachPod(ctx context.Context, pod, ip string) (*Desktop, error) {
	key, err := c.Key(ctx, pod)
	if err != nil {
		return nil, err
	}
	return key.Reach(ip)
}

// userTimeout gives a peer 30 seconds to take what is sent: one whose machine died
// sends no word of it.
func userTimeout(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, 30_000)
	})
	return errors.Join(err, failed)
}

const tcpUserTimeout = 18 // TCP_USER_TIMEOUT, which package syscall lacks

func newDesktop(address, token string, transport *http.Transport) *Desktop {
	return &Desktop{base: "https://" + address, token: token, client: &http.Client{Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// State is what a desktop says of itself.
type State struct {
	Stage       string `json:"stage"` // starting, screen or painted
	IdleSeconds int64  `json:"idleSeconds"`
	Clock       int64  `json:"clock"` // ms, by which its lease counts
}

// State asks the desktop. It answers as soon as it is at another stage than the one
// given, or after a second; at once where that is "".
func (d *Desktop) State(ctx context.Context, after string) (s State, err error) {
	body, err := d.ask(ctx, http.MethodGet, "/status?after="+url.QueryEscape(after), nil)
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	if err != nil {
		return State{}, err
	}
	return s, nil
}

// Renew lets the desktop run its user's programs until then, by its own clock.
func (d *Desktop) Renew(ctx context.Context, until int64) error {
	body, err := json.Marshal(map[string]int64{"until": until})
	if err != nil {
		return err
	}
	_, err = d.ask(ctx, http.MethodPost, "/lease", body)
	return err
}

// Warn shows the user a text, on his desktop.
func (d *Desktop) Warn(ctx context.Context, text string) error {
	body, err := json.Marshal(map[string]string{"text": text})
	if err != nil {
		return err
	}
	_, err = d.ask(ctx, http.MethodPost, "/warn", body)
	return err
}

func (d *Desktop) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, d.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+d.token)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := d.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask the desktop: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
	if err == nil && answer.StatusCode/100 != 2 {
		err = fmt.Errorf("ask the desktop: %s answers %d", path, answer.StatusCode)
	}
	return text, err
}

// Screen opens the stream of the screen. Nothing of the visitor's own request goes
// along.
func (d *Desktop) Screen(ctx context.Context) (*websocket.Conn, error) {
	conn, _, err := websocket.Dial(ctx, d.base+"/vnc", &websocket.DialOptions{
		HTTPClient: d.client, HTTPHeader: http.Header{"Authorization": {"Bearer " + d.token}},
		Subprotocols: []string{"binary"}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return nil, fmt.Errorf("open the screen: %w", err)
	}
	return conn, nil
}

// The authorities, by the Secrets that they are in: of desktops, and of the portal itself.
const (
	DesktopAuthority = "desktop-ca"
	PortalAuthority  = "portal-ca"
)

// Authority signs certificates. It is made where it is missing and asked for; two
// portals that make it at once agree on one.
func (c *Cluster) Authority(ctx context.Context, name string, create bool, now time.Time) (a session.Authority, err error) {
	secrets := c.Client.CoreV1().Secrets(Namespace)
	for range 2 {
		secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return session.Authority{Certificate: secret.Data["tls.crt"], Key: secret.Data["tls.key"]}, nil
		}
		if !apierrors.IsNotFound(err) || !create {
			return a, fmt.Errorf("read the authority %s: %s", name, apierrors.ReasonForError(err))
		}
		if a, err = session.NewAuthority("Kingmaker "+name, now); err != nil {
			return a, err
		}
		_, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{session.OwnerLabel: session.Owner}},
			Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": a.Certificate, "tls.key": a.Key}}, metav1.CreateOptions{})
		if err == nil {
			return a, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return a, fmt.Errorf("keep the authority %s: %s", name, apierrors.ReasonForError(err))
		}
	}
	return a, fmt.Errorf("the authority %s comes and goes", name)
}
