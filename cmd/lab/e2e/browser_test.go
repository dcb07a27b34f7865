//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
)

// What a person does: with Debian's chromium, at the portal of any machine.

// shots is the folder of pictures: $KINGMAKER_SCREENSHOTS, or dist/screenshots, which
// CI keeps.
func shots(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("KINGMAKER_SCREENSHOTS")
	if dir == "" {
		dir = "../../../dist/screenshots"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// door is the portal's, as every browser has to find it: over TLS, and known by the
// authority that the site has made.
type door struct {
	authority *x509.Certificate
}

func openDoor(t *testing.T) door {
	t.Helper()
	var d door
	await(t, 3*time.Minute, "the portal's authority", func() (string, bool) {
		text, err := kubectl("get", "configmap", "-n", "kingmaker-portal", "portal", "-o", `jsonpath={.data.ca\.crt}`)
		if block, _ := pem.Decode([]byte(text)); err == nil && block != nil {
			d.authority, err = x509.ParseCertificate(block.Bytes)
		}
		return fmt.Sprint(text, err), err == nil && d.authority != nil
	})
	for _, m := range allMachines(t) { // any machine's address reaches it
		client := d.client(m)
		await(t, 3*time.Minute, "the portal over "+m, func() (string, bool) {
			answer, err := client.Get(at(m) + "/login")
			if err != nil {
				return err.Error(), false
			}
			answer.Body.Close()
			return answer.Status, answer.StatusCode == http.StatusOK
		})
	}
	return d
}

// at is where the portal is on a machine.
func at(machine string) string {
	m, _ := getMachine(machine)
	return "https://" + m.Status.Inventory.Address + ":30443"
}

// client is a browser without a screen: it keeps cookies, and follows no redirection.
func (d door) client(machine string) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(d.authority)
	jar, _ := cookiejar.New(nil)
	return &http.Client{Jar: jar, Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// post sends a form as a page of the portal does.
func post(client *http.Client, address string, fields ...string) (*http.Response, error) {
	form := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	r, err := http.NewRequest(http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	answer, err := client.Do(r)
	if err == nil {
		answer.Body.Close()
	}
	return answer, err
}

// browser is a window of chromium.
type browser struct {
	t   *testing.T
	ctx context.Context
	at  string // the portal's address
}

// open has a browser of its own, which knows nobody.
func (d door) open(t *testing.T, machine string) *browser {
	t.Helper()
	// It trusts this authority, and no other that it does not know.
	key := sha256.Sum256(d.authority.RawSubjectPublicKeyInfo)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.WindowSize(1280, 860), chromedp.Flag("lang", "en"),
		// It shares two cores with the site: it does not do as if there were a GPU, which
		// costs more than to draw, and has no process ready for a page that may come.
		chromedp.Flag("disable-gpu", true),
		chromedp.Flag("disable-features", "Translate,BlinkGenPropertyTrees,SpareRendererForSitePerProcess,AutofillServerCommunication"),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // chromium has none for root; what it is shown is ours
	}
	// Nor does it keep passwords, or ask others whether they are known.
	profile, err := os.MkdirTemp("", "chromium-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(profile) }) // it may be writing yet
	settings := filepath.Join(profile, "Default", "Preferences")
	if err := os.MkdirAll(filepath.Dir(settings), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(settings, []byte(`{"credentials_enable_service": false, "profile": {"password_manager_leak_detection": false}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	options = append(options, chromedp.UserDataDir(profile))
	ctx, stop := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx)
	t.Cleanup(stop)
	b := &browser{t, ctx, at(machine)}
	if err := chromedp.Do(ctx); err != nil { // it starts, and lives as long as the test
		t.Fatalf("start chromium: %v", err)
	}
	return b
}

// do has it do something, within half a minute.
func (b *browser) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.shot("failed")
		b.t.Fatalf("%s: %v; the page says: %s", what, err, b.text())
	}
}

// shot keeps a picture of the page.
func (b *browser) shot(name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Errorf("picture of %s: %v", name, err)
		return
	}
	if err := os.WriteFile(filepath.Join(shots(b.t), name+".png"), picture, 0o644); err != nil {
		b.t.Error(err)
	}
}

// eval is what a piece of JavaScript says; the zero value where the page is between two.
func eval[T any](b *browser, script string, options ...chromedp.EvaluateOption) (v T) {
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
	defer cancel()
	v, _ = chromedp.Run(ctx, chromedp.Evaluate[T](script, options...))
	return v
}

func (b *browser) text() string { return eval[string](b, "document.body.innerText") }

// signIn types name and password into the page.
func (b *browser) signIn(user, password string) {
	b.t.Helper()
	b.do("open the sign-in", chromedp.Navigate(b.at+"/login"), chromedp.WaitVisible("#user"))
	b.submit(user, password)
}

func (b *browser) submit(user, password string) {
	b.t.Helper()
	b.fill(user, password)
	b.do("sign in", chromedp.SendKeys("#password", "\r"))
}

// fill types them, and no more.
func (b *browser) fill(user, password string) {
	b.t.Helper()
	_ = eval[bool](b, "(document.querySelector('#user').value = '', true)")
	b.do("type them", chromedp.SendKeys("#user", user), chromedp.SendKeys("#password", password))
}

// says waits until the page has a text.
func (b *browser) says(within time.Duration, text string) {
	b.t.Helper()
	await(b.t, within, "the page to say "+text, func() (string, bool) {
		said := b.text()
		return said, strings.Contains(said, text)
	})
}

// hasDesktop says whether XFCE is to be seen: nothing is above the screen any more, and
// its lower end, where the panel is, has hundreds of colours, and a black screen one.
func (b *browser) hasDesktop() bool { return eval[bool](b, "("+shows+")()") }

const shows = `() => {
	const c = document.querySelector('#screen canvas');
	if (!c || c.height < 50 || document.querySelector('#progress')) return false;
	const d = c.getContext('2d').getImageData(0, c.height - 40, c.width, 40).data, seen = new Set();
	for (let i = 0; i < d.length; i += 4) seen.add(d[i] << 16 | d[i+1] << 8 | d[i+2]);
	return seen.size > 50;
}`

// hears is hasDesktop where time counts: the page looks itself, twenty times a second
// and for some seconds at most, for to be asked that often costs what is measured. It is
// false where the page went to another one meanwhile.
func (b *browser) hears() bool {
	return eval[bool](b, "new Promise((tell) => { const shows = "+shows+`, end = performance.now() + 4000;
		const look = () => { if (shows()) tell(true); else if (performance.now() > end) tell(false); else setTimeout(look, 50); };
		look(); })`, chromedp.EvalAwaitPromise)
}

// painted waits until XFCE is to be seen.
func (b *browser) painted(within time.Duration) time.Duration {
	b.t.Helper()
	return await(b.t, within, "a desktop on the canvas", func() (string, bool) {
		has := b.hasDesktop()
		return b.text(), has
	})
}

// chord presses keys together, as Control, Alt and t.
func (b *browser) chord(keys ...string) {
	b.t.Helper()
	named := map[string]struct {
		key, code string
		number    int64
		bit       int64
	}{"Control": {"Control", "ControlLeft", 17, 2}, "Alt": {"Alt", "AltLeft", 18, 1},
		"t": {"t", "KeyT", 84, 0}, "s": {"s", "KeyS", 83, 0}}
	var actions []chromedp.Action[chromedp.Void]
	var held int64
	press := func(p input.DispatchKeyEventParams) {
		actions = append(actions, chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			_, err := cdp.Call(ctx, t, input.DispatchKeyEvent, p)
			return err
		}))
	}
	for _, name := range keys {
		k := named[name]
		held |= k.bit
		press(input.DispatchKeyEventParams{Type: "rawKeyDown", Key: k.key, Code: k.code, WindowsVirtualKeyCode: k.number, Modifiers: held})
	}
	for i := len(keys) - 1; i >= 0; i-- {
		k := named[keys[i]]
		held &^= k.bit
		press(input.DispatchKeyEventParams{Type: "keyUp", Key: k.key, Code: k.code, WindowsVirtualKeyCode: k.number, Modifiers: held})
	}
	b.do(strings.Join(keys, "+"), actions...)
}

// write types, into whatever has the focus.
func (b *browser) write(text string) {
	b.t.Helper()
	b.do("type", chromedp.KeyEvent(text))
}
