package ldap

import (
	"encoding/base64"
	"regexp"
	"strconv"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// What OWASP asks of argon2id, and what slapd can still check 30 times a second
// on one core.
const (
	goodMemory = 19456 // KiB
	goodPasses = 2
)

// The forms of the hashes behind their scheme. Each is anchored at both ends, so
// that a hash of which the end was lost is found here and not at the login.
var (
	argon2   = regexp.MustCompile(`^\$argon2id?\$v=19\$m=([0-9]{1,9}),t=([0-9]{1,9}),p=[0-9]{1,9}\$[A-Za-z0-9+/]{8,}\$[A-Za-z0-9+/]{16,}$`)
	yescrypt = regexp.MustCompile(`^\$y\$[./0-9A-Za-z]+\$[./0-9A-Za-z]{1,86}\$[./0-9A-Za-z]{43}$`)
	sha512   = regexp.MustCompile(`^\$6\$(rounds=[0-9]{4,9}\$)?[^$:\s]{1,16}\$[./0-9A-Za-z]{86}$`)
)

// wantHash is the hint of every fault about a hash.
const wantHash = "want {ARGON2}$argon2id$... (m=19456,t=2,p=1) or {CRYPT}$y$..."

// checkHash judges a password hash. No part of the value is in the answer, but
// for the name of a scheme that is known.
func checkHash(value string) (fault, warning *plan.Fault) {
	refuse := func(cause string) (*plan.Fault, *plan.Fault) {
		return &plan.Fault{Code: RefusedPassword, Cause: cause, Hint: wantHash}, nil
	}
	warn := func(cause string) (*plan.Fault, *plan.Fault) {
		return nil, &plan.Fault{Code: WeakPassword, Cause: cause, Hint: wantHash}
	}
	scheme, hash := "", value
	if end := strings.IndexByte(value, '}'); end > 0 && value[0] == '{' {
		scheme, hash = strings.ToUpper(value[1:end]), value[end+1:] // slapd does not care for case
	}
	switch scheme {
	case "ARGON2":
		m := argon2.FindStringSubmatch(hash)
		if m == nil {
			return refuse("is not a whole {ARGON2} hash")
		}
		memory, _ := strconv.Atoi(m[1])
		passes, _ := strconv.Atoi(m[2])
		if memory < goodMemory || passes < goodPasses {
			return warn("is cheap to guess: its memory (m) or passes (t) are low")
		}
		return nil, nil
	case "CRYPT":
		switch {
		case yescrypt.MatchString(hash):
			return nil, nil
		case sha512.MatchString(hash):
			return warn("is a {CRYPT}$6$ hash, which is cheap to guess")
		case strings.HasPrefix(hash, "$y$") || strings.HasPrefix(hash, "$6$"):
			return refuse("is not a whole {CRYPT} hash")
		}
		return refuse("is a {CRYPT} hash of a kind that is not accepted")
	case "SSHA":
		// A digest of 20 bytes, and a salt.
		if raw, err := base64.StdEncoding.DecodeString(hash); err != nil || len(raw) <= 20 {
			return refuse("is not a whole {SSHA} hash")
		}
		return warn("is an {SSHA} hash, which is cheap to guess")
	case "MD5", "SMD5", "SHA", "SHA256", "SSHA256", "SHA384", "SSHA384", "SHA512", "SSHA512", "PBKDF2", "SASL", "LANMAN", "UNIX":
		return refuse("is a {" + scheme + "} hash, which is not accepted")
	}
	switch {
	case value == "":
		return refuse("is empty")
	case plan.NewSecret(value).Sealed():
		return nil, nil // there is no key here, and the source has said so
	case strings.HasPrefix(value, "$argon2"):
		return refuse("lacks {ARGON2} in front: slapd would take it for the password itself")
	case strings.HasPrefix(value, "$y$") || strings.HasPrefix(value, "$6$"):
		return refuse("lacks {CRYPT} in front: slapd would take it for the password itself")
	}
	return refuse("is not a hash: a password must not stand in git as it is")
}
