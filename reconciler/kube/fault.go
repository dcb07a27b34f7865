package kube

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Codes of what can hold back an object, or is worth knowing of it.
const (
	NoKind            plan.Code = "NoKind"            // the cluster has no such kind, and the site brings no CRD for it
	KindUnreadable    plan.Code = "KindUnreadable"    // the objects of a kind could not be listed
	NamespaceMissing  plan.Code = "NamespaceMissing"  // a namespaced object has no namespace
	NamespaceUnwanted plan.Code = "NamespaceUnwanted" // an object of the cluster has a namespace
	NamespaceUnknown  plan.Code = "NamespaceUnknown"  // its namespace neither exists nor is declared
	Invalid           plan.Code = "Invalid"           // the server refuses the content
	Forbidden         plan.Code = "Forbidden"         // we lack a right
	Denied            plan.Code = "Denied"            // an admission webhook or policy refuses it
	Unavailable       plan.Code = "Unavailable"       // the server, or a webhook it calls, did not answer
	Terminating       plan.Code = "Terminating"       // deleted, and not gone yet
	OwnedByOther      plan.Code = "OwnedByOther"      // another tool owns it
	Fight             plan.Code = "Fight"             // something undoes our corrections again and again
	ForeignFields     plan.Code = "ForeignFields"     // fields that git does not know
	ScaledElsewhere   plan.Code = "ScaledElsewhere"   // an autoscaler owns the replica count
	NotEstablished    plan.Code = "NotEstablished"    // a CRD was accepted and does not serve its kind yet
)

// fault turns an error of the API server into a reason that a person can act
// on. What the server says of a Secret is not repeated: it quotes values.
func fault(id plan.ID, err error) *plan.Fault {
	f := &plan.Fault{ID: id, Code: Invalid, Cause: err.Error()}
	switch {
	case apierrors.IsForbidden(err) && isAdmission(err):
		f.Code, f.Hint = Denied, "change the object, or the policy that refuses it"
	case apierrors.IsForbidden(err):
		f.Code, f.Hint = Forbidden, "grant the right to the account that reconcile uses"
	case apierrors.IsUnauthorized(err):
		f.Code, f.Hint = Forbidden, "the credentials of the kubeconfig are not accepted: renew them"
	case apierrors.IsConflict(err):
		f.Code, f.Hint = plan.Stale, "the next round plans again"
	case apierrors.IsInternalError(err) && strings.Contains(err.Error(), "webhook"):
		f.Code, f.Hint = Unavailable, "see why the webhook does not answer"
	case apierrors.IsInternalError(err), apierrors.IsServiceUnavailable(err), apierrors.IsTooManyRequests(err),
		apierrors.IsTimeout(err), apierrors.IsServerTimeout(err), !isStatus(err):
		f.Code, f.Hint = Unavailable, "the next round tries again"
	case isAdmission(err):
		f.Code, f.Hint = Denied, "change the object, or the policy that refuses it"
	}
	if id.Kind == "Secret" {
		f.Cause = secretCause(err)
	}
	f.Cause = strings.Join(strings.Fields(f.Cause), " ")
	if len(f.Cause) > 600 {
		f.Cause = f.Cause[:600] + "…"
	}
	return f
}

// hush takes away what the server says of objects with secrets outside the data of
// a Secret: it quotes values.
func hush(f *plan.Fault, about ...*plan.Object) *plan.Fault {
	switch f.Code {
	case Invalid, Denied, Unavailable:
	default:
		return f
	}
	if f.ID.Kind == "Secret" || !slices.ContainsFunc(about, (*plan.Object).HidesValues) {
		return f
	}
	hushed := *f
	hushed.Cause = "the server refuses it, or does not answer; what it says is withheld, since the object holds values that are encrypted in git"
	return &hushed
}

// secretCause tells what is wrong with a Secret by reason and field only.
func secretCause(err error) string {
	cause := "the server refuses it"
	if reason := apierrors.ReasonForError(err); reason != metav1.StatusReasonUnknown {
		cause += fmt.Sprintf(" (%s)", reason)
	}
	for _, field := range causes(err) {
		if field.Field != "" {
			cause += ", field " + field.Field
		}
	}
	return cause
}

func isStatus(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}

func isAdmission(err error) bool {
	text := err.Error()
	return strings.Contains(text, "denied the request") || strings.Contains(text, "ValidatingAdmissionPolicy")
}

func causes(err error) []metav1.StatusCause {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		return status.Status().Details.Causes
	}
	return nil
}

// immutableText is how the validation of the API server says that a field
// cannot be changed in place (k8s.io/kubernetes pkg/apis/*/validation).
const immutableText = `(?i)immutable|updates to .* (is|are) forbidden|may not (be changed|change|be updated)|cannot (be )?change|fields other than`

// immutable names the fields that keep a change from being made in place, and
// reports whether they are the only trouble.
func immutable(err error) (fields []string, ok bool) {
	if !apierrors.IsInvalid(err) {
		return nil, false
	}
	says := regexp.MustCompile(immutableText)
	for _, cause := range causes(err) {
		if !says.MatchString(cause.Message) {
			return nil, false
		}
		fields = append(fields, cause.Field)
	}
	return fields, len(fields) > 0
}
