// Package apiwrite is how a room writes objects of kinds of its own to the API
// server, which others write too: it begins again where somebody was faster, and
// turns what the server says into a reason that a person can act on.
package apiwrite

import (
	"errors"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Codes of what the API server can answer to a change.
const (
	Forbidden   plan.Code = "Forbidden"   // we lack a right
	Denied      plan.Code = "Denied"      // an admission policy refuses it
	Unavailable plan.Code = "Unavailable" // the server did not answer
	Invalid     plan.Code = "Invalid"     // the server refuses the content
)

// attempts is how often a change is begun again because somebody wrote while we
// did: agents, kubelets and the steward report all the time.
const attempts = 10

// Try carries out a change of the thing that an ID names, such as "machine". Write
// looks at what there is and writes only in that version, so that it can be done
// again after a conflict; a *plan.Fault of its own is passed on, any other error is
// the API server's. The error is a *plan.Fault.
func Try(id plan.ID, thing string, write func() error) error {
	for range attempts {
		err := write()
		var f *plan.Fault
		switch {
		case err == nil:
			return nil
		case errors.As(err, &f):
			return f
		case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err):
			return refused(id, thing, err)
		}
	}
	return plan.StaleChange(id, "others write it all the time")
}

// refused is an error of the API server as a reason.
func refused(id plan.ID, thing string, err error) *plan.Fault {
	f := &plan.Fault{Code: Unavailable, ID: id, Cause: strings.Join(strings.Fields(err.Error()), " "), Hint: "the next round tries again"}
	switch {
	case strings.Contains(f.Cause, "denied the request") || strings.Contains(f.Cause, "ValidatingAdmissionPolicy"):
		f.Code, f.Hint = Denied, "change the "+thing+", or the policy that refuses it"
	case apierrors.IsForbidden(err):
		f.Code, f.Hint = Forbidden, "grant the right to the account that reconcile uses"
	case apierrors.IsUnauthorized(err):
		f.Code, f.Hint = Forbidden, "the credentials of the kubeconfig are not accepted: renew them"
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		f.Code, f.Hint = Invalid, "correct the "+thing+" in the site repo"
	}
	return f
}
