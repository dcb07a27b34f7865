package machine

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Invitation is what a machine needs to join: whom to ask, how to know that it
// is he, and what to show him. Between the two machines it is a line of text.
type Invitation struct {
	Masters []netip.AddrPort // at least one
	CAHash  string           // "sha256:" and, in hex, the hash of the public key of the site's CA
	Token   plan.Secret      // good for one site: "abcdef.0123456789abcdef"
	Expires time.Time        // the Token; zero where the line was read, which does not say
}

// LineInvalid says that the line was not pasted whole.
const LineInvalid plan.Code = "LineInvalid"

// PasteLine is the hint where an Invitation cannot be right.
const PasteLine = "paste the whole line that reconcile token prints"

var tokenPattern = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)

// Line is what to paste on the machine. It holds the token in the open, on
// standard input: an argument could be read by every user of the machine.
func (i Invitation) Line() string {
	masters := make([]string, len(i.Masters))
	for n, master := range i.Masters {
		masters[n] = master.String()
	}
	return fmt.Sprintf("noded join %s --ca-hash %s <<< %s", strings.Join(masters, ","), i.CAHash, i.Token.Value())
}

// ParseInvitation reads what Line wrote, as the shell takes it apart. The token
// is never quoted.
func ParseInvitation(masters, caHash, token string) (Invitation, error) {
	i := Invitation{CAHash: strings.ToLower(strings.TrimSpace(caHash))}
	invalid := func(hint, cause string, args ...any) error {
		return &plan.Fault{Code: LineInvalid, Cause: fmt.Sprintf(cause, args...), Hint: hint}
	}
	for text := range strings.SplitSeq(masters, ",") {
		text = strings.TrimSpace(text)
		master, err := netip.ParseAddrPort(text)
		if address, e := netip.ParseAddr(text); e == nil {
			master, err = netip.AddrPortFrom(address, APIPort), nil
		}
		if err != nil {
			return i, invalid(PasteLine, "%q is not the address of a master, such as 10.0.0.11:6443", text)
		}
		i.Masters = append(i.Masters, master)
	}
	if sum, ok := strings.CutPrefix(i.CAHash, "sha256:"); !ok || hex.DecodedLen(len(sum)) != 32 || !isHex(sum) {
		return i, invalid(PasteLine, "--ca-hash %q is not sha256: and 64 digits", caHash)
	}
	token = strings.TrimSpace(token)
	if token == "" {
		return i, invalid(PasteLine+", with <<< and the token at its end", "there is no token on standard input")
	}
	if !tokenPattern.MatchString(token) {
		return i, invalid(PasteLine, "what is on standard input is not a token, such as abcdef.0123456789abcdef")
	}
	i.Token = plan.NewSecret(token)
	return i, nil
}

func isHex(text string) bool {
	_, err := hex.DecodeString(text)
	return err == nil
}

// TokenID is the part of the token that is no secret.
func (i Invitation) TokenID() string {
	id, _, _ := strings.Cut(i.Token.Value(), ".")
	return id
}

// TokenSecret is the part that is.
func (i Invitation) TokenSecret() string {
	_, secret, _ := strings.Cut(i.Token.Value(), ".")
	return secret
}
