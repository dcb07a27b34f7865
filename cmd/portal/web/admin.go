package web

import (
	"errors"
	"net/http"
	"sync"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
)

// admins serves members of the group that git names, as the directory has them now.
func (p *Portal) admins(serve func(http.ResponseWriter, *http.Request, visitor)) http.HandlerFunc {
	return p.own(func(w http.ResponseWriter, r *http.Request, v visitor) {
		is, err := p.isAdmin(r, v)
		switch {
		case err != nil:
			p.trouble(w, r, err)
		case !is:
			p.audit(r, "administration refused", v.User)
			p.problem(w, r, http.StatusForbidden, "error.forbidden")
		default:
			serve(w, r, v)
		}
	})
}

// adminPage shows what can be read: what cannot says so, and hides nothing else.
func (p *Portal) adminPage(w http.ResponseWriter, r *http.Request, v visitor) {
	var o overview
	var errs [4]error
	var all sync.WaitGroup
	all.Go(func() { o.Site, errs[0] = p.Site.ReadSite(r.Context()) })
	all.Go(func() { o.Machines, errs[1] = p.Site.Machines(r.Context()) })
	all.Go(func() { o.Volumes, errs[2] = p.Site.Volumes(r.Context()); o.VolumesUnknown = errs[2] != nil })
	all.Go(func() {
		var desks []cluster.Desk
		desks, errs[3] = p.Site.All(r.Context())
		o.DesksUnknown = errs[3] != nil
		for _, d := range desks {
			if d.Spec.Wanted || d.Status.Pod != "" {
				o.Desks = append(o.Desks, d)
			}
		}
	})
	all.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		p.Log.Warn("the overview is not complete", "error", err)
	}
	p.show(w, r, http.StatusOK, "admin", page{Title: "admin.title", Overview: o, visitor: v, Admin: true})
}

func (p *Portal) adminEnd(w http.ResponseWriter, r *http.Request, v visitor) {
	user := r.PostFormValue("user")
	p.did(w, r, v, "desktop ended by an administrator", p.Desks.Stop(r.Context(), user), "/admin", "of", user)
}

func (p *Portal) adminRestart(w http.ResponseWriter, r *http.Request, v visitor) {
	user := r.PostFormValue("user")
	p.did(w, r, v, "desktop restarted by an administrator", p.Desks.Restart(r.Context(), user), "/admin", "of", user)
}
