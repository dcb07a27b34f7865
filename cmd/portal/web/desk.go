package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
	"github.com/kingmaker-io/kingmaker/cmd/portal/signin"
	"github.com/kingmaker-io/kingmaker/cmd/portal/visit"
)

// patience is how long a desktop may take to start before the page says that it does not.
const patience = 90 * time.Second

// desk is the one place of a user: his desktop, with how far it is while it starts, or
// the choice of one.
func (p *Portal) desk(w http.ResponseWriter, r *http.Request, v visitor) {
	d, ok, err := p.Desks.Look(r.Context(), v.User)
	if err != nil {
		p.trouble(w, r, err)
		return
	}
	if !ok || !d.Spec.Wanted {
		p.choose(w, r, v, d)
		return
	}
	s := p.shownOf(d)
	p.show(w, r, http.StatusOK, "desk", page{Title: "nav.desk", Class: "desk", Script: "desk.js", Refresh: !s.Ready, visitor: v, Admin: p.maybeAdmin(r, v), Progress: s})
}

func (p *Portal) choose(w http.ResponseWriter, r *http.Request, v visitor, d cluster.Desk) {
	choice, err := p.choice(r, v)
	if err != nil {
		p.trouble(w, r, err)
		return
	}
	shown := page{Title: "choose.title", Choice: choice, visitor: v, Admin: p.maybeAdmin(r, v)}
	if d.Status.Reason == session.Idle {
		shown.Note = "choose.idle"
	}
	p.show(w, r, http.StatusOK, "choose", shown)
}

// choice are the templates that a user may have now.
func (p *Portal) choice(r *http.Request, v visitor) ([]session.Template, error) {
	person, err := p.Directory.Person(r.Context(), v.User)
	if err != nil {
		return nil, err
	}
	all, err := p.Desks.Templates(r.Context())
	if err != nil {
		return nil, err
	}
	return session.Choice(all, person.GroupNames()), nil
}

func (p *Portal) start(w http.ResponseWriter, r *http.Request, v visitor) {
	name := r.PostFormValue("template")
	choice, err := p.choice(r, v)
	if err != nil {
		p.trouble(w, r, err)
		return
	}
	if !slices.ContainsFunc(choice, func(t session.Template) bool { return t.Name == name }) {
		p.problem(w, r, http.StatusForbidden, "reason.NoTemplate")
		return
	}
	p.did(w, r, v, "desktop started", p.Desks.Start(r.Context(), v.User, name, screenOf(r)), "/desk")
}

// screenName is the cookie in which desk.js notes how large it shows a desktop. What it
// says is the visitor's own to say; one that begins in that size is drawn once.
const screenName = "screen"

// screenOf is the size in which the browser showed a desktop last; zero where it never did.
func screenOf(r *http.Request) session.Size {
	c, err := r.Cookie(screenName)
	if err != nil {
		return session.Size{}
	}
	return session.ParseSize(c.Value)
}

func (p *Portal) restart(w http.ResponseWriter, r *http.Request, v visitor) {
	p.did(w, r, v, "desktop restarted", p.Desks.Restart(r.Context(), v.User), "/desk")
}

func (p *Portal) stop(w http.ResponseWriter, r *http.Request, v visitor) {
	p.did(w, r, v, "desktop stopped", p.Desks.Stop(r.Context(), v.User), "/desk")
}

// did ends what changed something.
func (p *Portal) did(w http.ResponseWriter, r *http.Request, v visitor, event string, err error, to string, more ...any) {
	if err != nil {
		p.trouble(w, r, err)
		return
	}
	p.audit(r, event, v.User, more...)
	see(w, r, to)
}

// state is for the page of the screen, which asks before it connects again: 401 is the
// sign-in, 404 no desktop that runs. It is asked by a clock, and so no sign of a person.
func (p *Portal) state(w http.ResponseWriter, r *http.Request) {
	v, err := p.who(r, false)
	switch {
	case errors.Is(err, visit.ErrNone):
		w.WriteHeader(http.StatusUnauthorized)
		return
	case err != nil:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case v.MustChange:
		w.WriteHeader(http.StatusForbidden)
		return
	}
	d, ok, err := p.Desks.Look(r.Context(), v.User)
	switch {
	case err != nil:
		w.WriteHeader(http.StatusServiceUnavailable)
	case !ok || !d.Spec.Wanted || !d.Shows():
		w.WriteHeader(http.StatusNotFound)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]bool{"warned": !d.Status.Warned.IsZero()})
	}
}

// shown is how far a desktop is, as the page shows it: keys, and what Kubernetes says.
type shown struct {
	Text   string `json:"text"`
	Step   int    `json:"step"`
	Reason string `json:"reason"`
	Detail string `json:"detail"`
	Screen bool   `json:"screen"` // there is one to look at
	Ready  bool   `json:"ready"`
	Failed bool   `json:"failed"`
	Gone   bool   `json:"gone"` // not wanted any more
}

// stages in their order.
var stages = []string{session.Queued, session.Placed, session.Begun, session.Screen, session.Painted}

func (p *Portal) shownOf(d cluster.Desk) shown {
	s := shown{Text: "progress." + session.Queued, Gone: !d.Spec.Wanted}
	if d.Status.Generation != d.Spec.Generation { // the controller has not seen it yet
		return s
	}
	if step := slices.Index(stages, d.Status.Stage); step >= 0 {
		s.Text, s.Step = "progress."+d.Status.Stage, step+1
	}
	if d.Status.Phase == session.Fenced || d.Status.Phase == session.Stopping {
		s.Text = "progress.fenced"
	}
	s.Screen = d.Shows()
	s.Ready = s.Screen && d.Status.Phase == session.Ready
	// The one before takes some seconds to end, and nothing is wrong.
	ordinary := d.Status.Reason == session.FormerAlive && p.now().Sub(d.Status.Since) < 25*time.Second
	if d.Status.Reason != "" && !s.Ready && !ordinary {
		s.Reason, s.Detail = "reason."+d.Status.Reason, d.Status.Message
	}
	if !d.Status.Since.IsZero() && p.now().Sub(d.Status.Since) > patience && !s.Ready {
		s.Failed = true
		if s.Reason == "" {
			s.Reason = "progress.failed"
		}
	}
	return s
}

// progress tells the page how far it is, as it happens. After a hard error it goes on:
// a machine may come back.
func (p *Portal) progress(w http.ResponseWriter, r *http.Request) {
	v, err := p.who(r, false)
	if err != nil || v.MustChange {
		w.WriteHeader(http.StatusUnauthorized) // an EventSource does not ask again
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	language := p.words.choose(r)
	var last []byte
	tell := func(d cluster.Desk) (done bool, err error) {
		s := p.shownOf(d)
		done = s.Ready || s.Gone
		s.Text = p.words.text(language, s.Text)
		if s.Reason != "" {
			s.Reason = p.words.text(language, s.Reason)
		}
		text, err := json.Marshal(s)
		if err != nil || slices.Equal(text, last) {
			return done, err
		}
		last = text
		if _, err := fmt.Fprintf(w, "event: progress\ndata: %s\n\n", text); err != nil {
			return true, err
		}
		return done, control.Flush()
	}
	var desk cluster.Desk
	timer := time.NewTicker(5 * time.Second) // for what comes with time alone, and for those who left
	defer timer.Stop()
	for watch := p.Desks.Watch(r.Context(), v.User); ; {
		select {
		case d, open := <-watch:
			if !open {
				return
			}
			desk = d
		case <-timer.C:
			if _, err := fmt.Fprint(w, ":\n\n"); err != nil || control.Flush() != nil {
				return
			}
			if _, err := p.who(r, false); errors.Is(err, visit.ErrNone) {
				return
			}
		}
		if desk.Name == "" {
			continue
		}
		if done, err := tell(desk); done || err != nil {
			return
		}
	}
}

// maybeAdmin decides about a link; the page behind it asks again.
func (p *Portal) maybeAdmin(r *http.Request, v visitor) bool {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second) // no desktop waits for a directory that is away
	defer cancel()
	is, err := p.isAdmin(r.WithContext(ctx), v)
	return is && err == nil
}

func (p *Portal) isAdmin(r *http.Request, v visitor) (bool, error) {
	site, err := p.Site.ReadSite(r.Context())
	if err != nil || site.Admins == "" {
		return false, err
	}
	person, err := p.Directory.Person(r.Context(), v.User)
	if errors.Is(err, signin.ErrUnknown) {
		return false, nil
	}
	return err == nil && slices.Contains(person.GroupNames(), site.Admins), err
}
