// Package web is the portal as browsers see it: its pages, the progress of a desktop
// that starts, and the way to its screen.
//
//	/login /logout /language /password    web.go, pages.go
//	/desk ...                             desk.go: which desktop, its progress, its end
//	/desk/ws                              screen.go: the stream of the screen
//	/admin ...                            admin.go, for the administrators' group
//	/assets/                              assets.go: style, scripts, noVNC's library
//
// What it promises:
//
//   - No address names a user, a Pod or a machine: /desk is that of the cookie's owner,
//     and nothing in a request says where a desktop is.
//   - Nothing is changed by a GET, nor by a request that another site's page made: the
//     standard library's CrossOriginProtection sees to the former, and the handshake of
//     the screen, which is a GET, needs our own Origin.
//   - Nothing that comes out of a desktop is ever a page of ours: only the screen's bytes
//     go through.
//   - Passwords and cookies are in no log, and no name that is nobody's.
//
// Pages are html/template; the words are data, a file for each language (text/).
package web

import (
	"bytes"
	"context"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
	"github.com/kingmaker-io/kingmaker/cmd/portal/signin"
	"github.com/kingmaker-io/kingmaker/cmd/portal/visit"
)

// Directory knows who people are: signin.LDAP. Its errors are signin's.
type Directory interface {
	SignIn(ctx context.Context, user, password string) (signin.Person, error)
	Person(ctx context.Context, user string) (signin.Person, error)
	ChangePassword(ctx context.Context, user, old, password string) error
}

// Visits remembers who has signed in: visit.Store. Its ErrNone is in the error where a
// cookie stands for nobody.
type Visits interface {
	Begin(ctx context.Context, user string, mustChange bool) (cookie string, err error)
	Get(ctx context.Context, cookie string) (visit.Visit, error)
	Touch(ctx context.Context, cookie string) (noted bool, err error)
	Changed(ctx context.Context, cookie string) error
	End(ctx context.Context, cookie string) error
	EndOthers(ctx context.Context, user, keep string) error
}

// Desks are the desktops of users: cluster.Cluster.
type Desks interface {
	Look(ctx context.Context, user string) (d cluster.Desk, ok bool, err error)
	Watch(ctx context.Context, user string) <-chan cluster.Desk
	Templates(ctx context.Context) ([]session.Template, error)
	Start(ctx context.Context, user, template string, screen session.Size) error
	Restart(ctx context.Context, user string) error
	Stop(ctx context.Context, user string) error
}

// Screens leads to the screen of a user's desktop. cluster.ErrAway is in the error where
// none runs.
type Screens func(ctx context.Context, user string) (*websocket.Conn, error)

// Site is what administrators see: cluster.Cluster.
type Site interface {
	ReadSite(ctx context.Context) (cluster.Site, error)
	Machines(ctx context.Context) ([]cluster.Machine, error)
	Volumes(ctx context.Context) ([]cluster.Volume, error)
	All(ctx context.Context) ([]cluster.Desk, error)
}

// Portal is the site's door. All fields but Now are required.
type Portal struct {
	Directory Directory
	Visits    Visits
	Desks     Desks
	Screens   Screens
	Site      Site
	Limits    *signin.Limits
	Log       *slog.Logger
	Now       func() time.Time // nil: time.Now

	pages  map[string]*template.Template
	words  *words
	assets assets
	pulse  time.Duration // of screens; 0 is defaultPulse
}

// sid is the cookie. With this prefix browsers take it only over TLS, from us, and for
// all of our paths.
const (
	sid          = "__Host-sid"
	languageName = "__Host-language"
)

// maxForm is more than a name and two passwords.
const maxForm = 16 << 10

// Handler is the portal, complete.
func (p *Portal) Handler() (http.Handler, error) {
	var err error
	if p.pages, err = readPages(); err != nil {
		return nil, err
	}
	if p.words, err = readWords(); err != nil {
		return nil, err
	}
	if p.assets, err = newAssets(); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { see(w, r, "/desk") })
	mux.HandleFunc("GET /login", p.loginPage)
	mux.HandleFunc("POST /login", p.login)
	mux.HandleFunc("POST /logout", p.logout)
	mux.HandleFunc("POST /language", p.language)
	mux.HandleFunc("GET /password", p.visited(p.passwordPage))
	mux.HandleFunc("POST /password", p.visited(p.password))
	mux.HandleFunc("GET /desk", p.own(p.desk))
	mux.HandleFunc("POST /desk/start", p.own(p.start))
	mux.HandleFunc("POST /desk/restart", p.own(p.restart))
	mux.HandleFunc("POST /desk/stop", p.own(p.stop))
	mux.HandleFunc("GET /desk/state", p.state)
	mux.HandleFunc("GET /desk/progress", p.progress)
	mux.HandleFunc("GET /desk/ws", p.screen)
	mux.HandleFunc("GET /admin", p.admins(p.adminPage))
	mux.HandleFunc("POST /admin/end", p.admins(p.adminEnd))
	mux.HandleFunc("POST /admin/restart", p.admins(p.adminRestart))
	mux.Handle("GET /assets/{version}/{file...}", p.assets)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		p.problem(w, r, http.StatusNotFound, "error.notfound")
	})
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.audit(r, "cross-origin request refused", "")
		p.problem(w, r, http.StatusForbidden, "error.crossorigin")
	}))
	return p.recovered(strict(guard.Handler(mux))), nil
}

// strict gives every answer the headers that say what browsers must not do with it.
func strict(next http.Handler) http.Handler {
	const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Strict-Transport-Security", "max-age=31536000")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=(), clipboard-read=(self), clipboard-write=(self), fullscreen=(self)")
		h.Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		next.ServeHTTP(w, r)
	})
}

// recovered answers a fault of ours with a page, and logs where it was, and not what
// was asked.
func (p *Portal) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if fault := recover(); fault != nil {
				if fault == http.ErrAbortHandler {
					panic(fault)
				}
				p.Log.Error("a page failed", "path", r.URL.Path, "fault", fault)
				p.problem(w, r, http.StatusInternalServerError, "error.trouble")
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// visitor is one who has signed in.
type visitor struct {
	visit.Visit
	cookie string
}

// who is behind a request. It counts as something that he did where active is true.
func (p *Portal) who(r *http.Request, active bool) (v visitor, err error) {
	c, err := r.Cookie(sid)
	if err != nil {
		return v, visit.ErrNone
	}
	if v.Visit, err = p.Visits.Get(r.Context(), c.Value); err != nil {
		return v, err
	}
	v.cookie = c.Value
	if active {
		err = p.goesOn(r, v)
	}
	return v, err
}

// goesOn notes that a visit does. Once a minute that is a look at the directory, too:
// who was locked there is out here, and his desktop ends.
func (p *Portal) goesOn(r *http.Request, v visitor) error {
	noted, err := p.Visits.Touch(r.Context(), v.cookie)
	if err != nil || !noted {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second) // and no page waits for one that is away
	defer cancel()
	if _, err := p.Directory.Person(ctx, v.User); errors.Is(err, signin.ErrUnknown) {
		p.audit(r, "visit ended: locked or gone", v.User)
		if err := errors.Join(p.Visits.EndOthers(r.Context(), v.User, ""), p.Desks.Stop(r.Context(), v.User)); err != nil {
			p.Log.Warn("somebody who was locked could not be put out", "error", err)
		}
		return visit.ErrNone
	}
	return nil // a directory that is away ends nobody's visit
}

// visited serves those who have signed in, and sends others to do so.
func (p *Portal) visited(serve func(http.ResponseWriter, *http.Request, visitor)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := p.who(r, true)
		switch {
		case errors.Is(err, visit.ErrNone):
			to := "/login"
			if _, err := r.Cookie(sid); err == nil {
				to = "/login?over" // he was in once
			}
			see(w, r, to)
		case err != nil:
			p.trouble(w, r, err)
		default:
			serve(w, r, v)
		}
	}
}

// own is for those whose password is their own.
func (p *Portal) own(serve func(http.ResponseWriter, *http.Request, visitor)) http.HandlerFunc {
	return p.visited(func(w http.ResponseWriter, r *http.Request, v visitor) {
		if v.MustChange {
			see(w, r, "/password")
			return
		}
		serve(w, r, v)
	})
}

// see leads on, with a GET.
func see(w http.ResponseWriter, r *http.Request, to string) {
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func (p *Portal) trouble(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // he left
	}
	p.Log.Warn("a page could not be served", "path", r.URL.Path, "error", err)
	p.problem(w, r, http.StatusServiceUnavailable, "error.trouble")
}

func (p *Portal) problem(w http.ResponseWriter, r *http.Request, status int, key string) {
	p.show(w, r, status, "error", page{Title: "error.title", Problem: key})
}

// audit is a line about who did what. User is as the directory spells it, or "".
func (p *Portal) audit(r *http.Request, event, user string, more ...any) {
	p.Log.Info("audit", append([]any{"event", event, "user", user, "from", from(r).String()}, more...)...)
}

// from is the address of the visitor's computer, or of the machine that he came over.
func from(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.IPv6Unspecified()
	}
	return a.Addr().Unmap()
}

func (p *Portal) now() time.Time {
	if p.Now != nil {
		return p.Now()
	}
	return time.Now()
}

// setCookie sets one that lives as long as the browser does, or ends it.
func setCookie(w http.ResponseWriter, name, value string, age int) {
	http.SetCookie(w, &http.Cookie{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: age})
}

func (p *Portal) loginPage(w http.ResponseWriter, r *http.Request) {
	if _, err := p.who(r, false); err == nil {
		see(w, r, "/desk")
		return
	}
	d := page{Title: "login.title"}
	if r.URL.RawQuery == "over" {
		d.Note = "login.over"
	}
	p.show(w, r, http.StatusOK, "login", d)
}

// login is the sign-in. Whoever may not learns no more than that.
func (p *Portal) login(w http.ResponseWriter, r *http.Request) {
	again := func(status int, key string) { p.show(w, r, status, "login", page{Title: "login.title", Problem: key}) }
	if err := r.ParseForm(); err != nil {
		again(http.StatusBadRequest, "login.refused")
		return
	}
	ctx, user, password := r.Context(), strings.TrimSpace(r.PostForm.Get("user")), r.PostForm.Get("password")
	if len(user) > 64 { // no name; the same way as any that is none, and a small key for the limits
		user = user[:64]
	}
	key := strings.ToLower(user) // the directory takes Anna for anna, and so does who guesses
	delay, ok := p.Limits.Enter(key, from(r))
	if !ok {
		p.audit(r, "sign-in put off", "")
		w.Header().Set("Retry-After", "60")
		again(http.StatusTooManyRequests, "login.slow")
		return
	}
	signin.Pause(ctx, delay)
	person, err := p.Directory.SignIn(ctx, user, password)
	p.Limits.Leave(key, from(r), delay, err == nil)
	var refused *signin.Refused
	switch {
	case errors.As(err, &refused):
		p.audit(r, "sign-in refused", refused.User)
		again(http.StatusUnauthorized, "login.refused")
		return
	case errors.Is(err, signin.ErrRefused):
		p.audit(r, "sign-in refused", "")
		again(http.StatusUnauthorized, "login.refused")
		return
	case errors.Is(err, signin.ErrBusy):
		w.Header().Set("Retry-After", "10")
		again(http.StatusServiceUnavailable, "login.busy")
		return
	case err != nil:
		if ctx.Err() == nil {
			p.Log.Warn("nobody can sign in", "error", err)
			again(http.StatusServiceUnavailable, "login.away")
		}
		return
	}
	if old, err := r.Cookie(sid); err == nil { // a cookie that was there before is none after
		if err := p.Visits.End(ctx, old.Value); err != nil {
			p.Log.Warn("a former visit could not be ended", "error", err)
		}
	}
	// A desktop that is there by default begins now: every tenth of a second counts.
	var begun sync.WaitGroup
	begun.Go(func() {
		if err := p.begin(ctx, person, screenOf(r)); err != nil {
			p.Log.Warn("a desktop could not be asked for", "error", err)
		}
	})
	cookie, err := p.Visits.Begin(ctx, person.Name, person.MustChange)
	begun.Wait()
	if err != nil {
		p.trouble(w, r, err)
		return
	}
	setCookie(w, sid, cookie, 0)
	p.audit(r, "signed in", person.Name)
	if person.MustChange {
		see(w, r, "/password")
		return
	}
	see(w, r, "/desk")
}

// begin starts the desktop that somebody gets without choosing, unless one is wanted.
func (p *Portal) begin(ctx context.Context, person signin.Person, screen session.Size) error {
	if person.MustChange { // the password first
		return nil
	}
	d, ok, err := p.Desks.Look(ctx, person.Name)
	if err != nil || ok && d.Spec.Wanted {
		return err
	}
	all, err := p.Desks.Templates(ctx)
	if err != nil {
		return err
	}
	if choice := session.Choice(all, person.GroupNames()); session.HasDefault(choice) {
		return p.Desks.Start(ctx, person.Name, choice[0].Name, screen)
	}
	return nil
}

// logout ends the visit. The desktop goes on: closing a door is not switching off.
func (p *Portal) logout(w http.ResponseWriter, r *http.Request) {
	v, err := p.who(r, false)
	if err == nil {
		if err := p.Visits.End(r.Context(), v.cookie); err != nil {
			p.trouble(w, r, err)
			return
		}
		p.audit(r, "signed out", v.User)
	}
	setCookie(w, sid, "", -1)
	see(w, r, "/login")
}

func (p *Portal) language(w http.ResponseWriter, r *http.Request) {
	if code := r.PostFormValue("language"); p.words.has(code) {
		setCookie(w, languageName, code, 365*24*3600)
	}
	see(w, r, "/")
}

func (p *Portal) passwordPage(w http.ResponseWriter, r *http.Request, v visitor) {
	d := page{Title: "password.title", visitor: v}
	if v.MustChange {
		d.Note = "password.must"
	}
	p.show(w, r, http.StatusOK, "password", d)
}

func (p *Portal) password(w http.ResponseWriter, r *http.Request, v visitor) {
	again := func(status int, key string) {
		p.show(w, r, status, "password", page{Title: "password.title", Problem: key, visitor: v})
	}
	old, password := r.PostFormValue("old"), r.PostFormValue("new")
	if password != r.PostFormValue("again") {
		again(http.StatusUnprocessableEntity, "password.differ")
		return
	}
	// A stolen cookie must not be a way to guess faster.
	key := strings.ToLower(v.User)
	delay, ok := p.Limits.Enter(key, from(r))
	if !ok {
		again(http.StatusTooManyRequests, "login.slow")
		return
	}
	signin.Pause(r.Context(), delay)
	err := p.Directory.ChangePassword(r.Context(), v.User, old, password)
	p.Limits.Leave(key, from(r), delay, !errors.Is(err, signin.ErrRefused))
	switch {
	case errors.Is(err, signin.ErrRefused):
		p.audit(r, "change of password refused", v.User)
		again(http.StatusForbidden, "password.refused")
		return
	case errors.Is(err, signin.ErrWeak):
		again(http.StatusUnprocessableEntity, "password.weak")
		return
	case errors.Is(err, signin.ErrBusy):
		again(http.StatusServiceUnavailable, "login.busy")
		return
	case err != nil:
		p.Log.Warn("a password could not be changed", "error", err)
		again(http.StatusServiceUnavailable, "login.away")
		return
	}
	p.audit(r, "password changed", v.User)
	if err := errors.Join(p.Visits.EndOthers(r.Context(), v.User, v.cookie), p.Visits.Changed(r.Context(), v.cookie)); err != nil {
		p.trouble(w, r, err)
		return
	}
	v.MustChange = false
	p.show(w, r, http.StatusOK, "password", page{Title: "password.title", Note: "password.done", visitor: v})
}

// show writes a page, whole or not at all.
func (p *Portal) show(w http.ResponseWriter, r *http.Request, status int, name string, d page) {
	d.assets, d.words, d.Lang = p.assets, p.words, p.words.choose(r)
	d.User = d.visitor.User
	d.now = p.now()
	var b bytes.Buffer
	if err := p.pages[name].ExecuteTemplate(&b, name+".html", d); err != nil {
		p.Log.Error("a page cannot be written", "page", name, "error", err)
		http.Error(w, "The page cannot be shown.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}
