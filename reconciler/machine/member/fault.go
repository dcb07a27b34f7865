package member

import (
	"fmt"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of what stands in the way of a member to be.
const (
	NoMasterAnswers  plan.Code = "NoMasterAnswers"  // none of the masters can be reached
	NotAMaster       plan.Code = "NotAMaster"       // something answers that is no master of a site
	CADiffers        plan.Code = "CADiffers"        // the CA is not the one of the line
	TokenUnknown     plan.Code = "TokenUnknown"     // the token has expired, or never was
	TokenWrong       plan.Code = "TokenWrong"       // the token's secret is another
	ClockDiffers     plan.Code = "ClockDiffers"     // this clock and a master's are too far apart
	CertificateDates plan.Code = "CertificateDates" // a master's certificate is not valid yet, or no more
	NameTaken        plan.Code = "NameTaken"        // another machine of the name is at work
	VersionDiffers   plan.Code = "VersionDiffers"   // the site has another version of Kubernetes
	AlreadyMember    plan.Code = "AlreadyMember"    // this machine belongs to a site
	ForeignCluster   plan.Code = "ForeignCluster"   // something that is not ours made this machine a part of a cluster
	NotInstalled     plan.Code = "NotInstalled"     // noded install was not run, or not to its end
	NoAddress        plan.Code = "NoAddress"        // it is not clear by which address the site reaches this machine
	NotDeclared      plan.Code = "NotDeclared"      // the site repo does not know this machine, or wants it otherwise
	SiteExists       plan.Code = "SiteExists"       // the site has a master already
	SiteRefused      plan.Code = "SiteRefused"      // the site repo cannot be read, or does not make a site
	LastMaster       plan.Code = "LastMaster"       // the site ends with this machine
	CommandBroke     plan.Code = "CommandBroke"     // kubeadm, or another program, gave up
	NotReached       plan.Code = "NotReached"       // done, and what should come of it did not within its time
)

// fault is a refusal: what is wrong, and what to do next.
func fault(code plan.Code, hint, cause string, args ...any) *plan.Fault {
	return &plan.Fault{Code: code, Cause: fmt.Sprintf(cause, args...), Hint: hint}
}
