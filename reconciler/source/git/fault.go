package git

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of what goes wrong with a repository.
const (
	URLRefused            plan.Code = "URLRefused"            // an address that is not dialled
	NameRefused           plan.Code = "NameRefused"           // a branch, revision or path that is not looked for
	CredentialsInvalid    plan.Code = "CredentialsInvalid"    // credentials that cannot be read, or do not go together
	AuthenticationFailed  plan.Code = "AuthenticationFailed"  // the server wants others, or some
	HostKeyUnknown        plan.Code = "HostKeyUnknown"        // known_hosts does not have the ssh server
	HostKeyMismatch       plan.Code = "HostKeyMismatch"       // known_hosts has another key for it
	TLSUntrusted          plan.Code = "TLSUntrusted"          // the https server's certificate is not trusted
	RedirectRefused       plan.Code = "RedirectRefused"       // the server points to another one
	RepositoryUnreachable plan.Code = "RepositoryUnreachable" // no answer, or none of a git server
	RepositoryNotFound    plan.Code = "RepositoryNotFound"    // the server has none there, or does not show it
	RepositoryEmpty       plan.Code = "RepositoryEmpty"       // no commit was pushed yet
	BranchNotFound        plan.Code = "BranchNotFound"        // deleted, renamed, or never there
	RevisionNotFound      plan.Code = "RevisionNotFound"      // no such branch, tag or commit
	PathNotFound          plan.Code = "PathNotFound"          // the commit has no such folder
	TreeInvalid           plan.Code = "TreeInvalid"           // a commit with names that no file system could hold
	TooLarge              plan.Code = "TooLarge"              // more than Limits allow
	CacheFailed           plan.Code = "CacheFailed"           // what was fetched could not be stored
	FolderChanged         plan.Code = "FolderChanged"         // a file was saved while the folder was read
	WatchLimited          plan.Code = "WatchLimited"          // too many folders for the kernel to watch
)

func fault(code plan.Code, cause, hint string) *plan.Fault {
	return &plan.Fault{Code: code, Cause: cause, Hint: hint}
}

func isFault(err error) bool {
	var f *plan.Fault
	return errors.As(err, &f)
}

// tooLarge is the fault of a limit.
func tooLarge(what string, limit any) *plan.Fault {
	return fault(TooLarge, fmt.Sprintf("%s: more than %v", what, limit), "keep what is no part of the site elsewhere")
}

// mebibytes prints a limit of bytes.
func mebibytes(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// withTime bounds a call. Ended tells the two ways apart in which its context
// ends: given up by the caller, or late, which is a fault of the repository.
func withTime(ctx context.Context, l Limits) (bounded context.Context, cancel func(), ended func(deed string) error) {
	bounded, cancel = context.WithTimeout(ctx, l.Time)
	return bounded, cancel, func(deed string) error {
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", deed, context.Cause(ctx))
		case bounded.Err() != nil:
			return fault(RepositoryUnreachable, fmt.Sprintf("%s: not done within %s", deed, l.Time), "it is tried again; see whether the server is overloaded")
		}
		return nil
	}
}

// userinfo is what stands before the host of an address, wherever in a text.
var userinfo = regexp.MustCompile(`//[^/\s@]*@`)

// clean makes one short line of a text that came from elsewhere, without the
// secrets: servers like to quote what they were sent.
func clean(text string, secrets []string) string {
	for _, s := range secrets {
		if len(s) > 2 {
			text = strings.ReplaceAll(text, s, "(secret)")
		}
	}
	text = userinfo.ReplaceAllString(text, "//")
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), " ")
	if runes := []rune(text); len(runes) > 300 {
		text = string(runes[:300]) + "..."
	}
	return text
}
