// Package signin knows who people are: it asks the site's directory whether a password
// is theirs, which groups they are in, and changes their passwords, as them.
//
// What it promises:
//
//   - Who is unknown, has another password or is locked gets one answer, ErrRefused, in
//     one way: where there is nobody to bind as, a decoy is bound, whose hash costs as
//     much.
//   - No name reaches the directory that is not one, and none unescaped; no empty
//     password, which LDAP would take for a visitor without a name.
//   - At most four passwords are checked at once: each takes the directory a core for
//     some 30 ms, and memory.
//   - No password is in an error, or kept.
//
// LDAP is the site's directory; web defines the interface that it needs of it, and
// has a fake for its tests. Limits are in limits.go.
package signin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// The answers.
var (
	ErrRefused = errors.New("the name or the password is wrong")
	ErrUnknown = errors.New("the directory has nobody of that name, or he is locked")
	ErrWeak    = errors.New("the directory refuses the new password: it is too short, too simple, or one that was used before")
	ErrBusy    = errors.New("too many people sign in at once")
)

// Refused is an ErrRefused that knows, for the log alone, whom it is about. A name that
// is nobody's stays out of logs: people type passwords into the wrong field.
type Refused struct{ User string }

func (*Refused) Error() string { return ErrRefused.Error() }

// Is makes it an ErrRefused.
func (*Refused) Is(target error) bool { return target == ErrRefused }

// Person is somebody who signed in.
type Person struct {
	session.Person
	// MustChange is true of one whose password an administrator knows.
	MustChange bool
}

// GroupNames are those of all groups, the primary one first.
func (p Person) GroupNames() (names []string) {
	for _, g := range p.Groups {
		names = append(names, g.Name)
	}
	return names
}

// userName is the grammar of kind Roster, anchored.
var userName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)

// maxPassword is as much as anybody remembers; a hash of a megabyte is an attack.
const maxPassword = 256

// maxGroups is what FUSE carries; see the rules of kind Group.
const maxGroups = 31

// Account is the portal's own in the directory.
type Account struct {
	DN, Password string
	Base         string
	TLS          *tls.Config
}

// LDAP is the site's directory. Address and Account are required.
type LDAP struct {
	// Address such as directory.kingmaker-directory.svc:636.
	Address string
	// Account is asked before each connection: it may be renewed.
	Account func(context.Context) (Account, error)

	binds chan struct{}
}

// New is a directory.
func New(address string, account func(context.Context) (Account, error)) *LDAP {
	return &LDAP{Address: address, Account: account, binds: make(chan struct{}, 4)}
}

// How long the directory may take, and how long one waits for his turn.
const (
	dialTimeout = 5 * time.Second
	askTimeout  = 10 * time.Second
	turnTimeout = 15 * time.Second
)

// SignIn is who has this name and this password.
func (l *LDAP) SignIn(ctx context.Context, user, password string) (Person, error) {
	a, conn, err := l.open(ctx)
	if err != nil {
		return Person{}, err
	}
	defer conn.Close()
	// One question and one bind for everybody; the rest only for those who may.
	p, dn, err := l.find(conn, a, user)
	if err != nil && !errors.Is(err, ErrUnknown) {
		return Person{}, err
	}
	known := err == nil
	if !known {
		dn = a.DN
	}
	if password == "" || len(password) > maxPassword {
		known, password = false, session.NewToken() // the same way, to the same end
	}
	err = l.bind(ctx, a, dn, password)
	switch {
	case err != nil && !errors.Is(err, ErrRefused):
		return Person{}, err
	case err != nil || !known:
		return Person{}, &Refused{p.Name}
	}
	return l.grouped(conn, a, p, dn)
}

// Person is who has this name; ErrUnknown is nobody, or somebody who is locked.
func (l *LDAP) Person(ctx context.Context, user string) (Person, error) {
	a, conn, err := l.open(ctx)
	if err != nil {
		return Person{}, err
	}
	defer conn.Close()
	p, dn, err := l.find(conn, a, user)
	if err != nil {
		return Person{}, err
	}
	return l.grouped(conn, a, p, dn)
}

// ChangePassword is done as the user: the directory decides what it takes, and hashes.
func (l *LDAP) ChangePassword(ctx context.Context, user, old, password string) error {
	a, conn, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, dn, err := l.find(conn, a, user)
	if errors.Is(err, ErrUnknown) || old == "" || len(old) > maxPassword {
		return ErrRefused
	}
	if err != nil {
		return err
	}
	if password == "" || len(password) > maxPassword {
		return ErrWeak
	}
	turn, err := l.turn(ctx)
	if err != nil {
		return err
	}
	defer turn()
	own, err := l.dial(ctx, a)
	if err != nil {
		return err
	}
	defer own.Close()
	if err := verdict(own.Bind(dn, old)); err != nil {
		return err
	}
	// With the old one, which pwdSafeModify wants.
	_, err = own.PasswordModify(goldap.NewPasswordModifyRequest("", old, password))
	switch {
	case goldap.IsErrorWithCode(err, goldap.LDAPResultConstraintViolation):
		return ErrWeak
	case goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials):
		return ErrRefused
	case err != nil:
		return fmt.Errorf("change a password: %w", scrub(err))
	}
	return nil
}

// open connects as the portal.
func (l *LDAP) open(ctx context.Context) (Account, *goldap.Conn, error) {
	a, err := l.Account(ctx)
	if err != nil {
		return a, nil, fmt.Errorf("read the portal's account of the directory: %w", err)
	}
	conn, err := l.dial(ctx, a)
	if err != nil {
		return a, nil, err
	}
	if err := conn.Bind(a.DN, a.Password); err != nil {
		conn.Close()
		return a, nil, fmt.Errorf("sign in to the directory as the portal: %w", scrub(err))
	}
	return a, conn, nil
}

func (l *LDAP) dial(asked context.Context, a Account) (*goldap.Conn, error) {
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: a.TLS}
	ctx, cancel := context.WithTimeout(asked, dialTimeout)
	defer cancel()
	raw, err := dialer.DialContext(ctx, "tcp", l.Address)
	if err != nil {
		return nil, fmt.Errorf("connect to the directory: %w", err)
	}
	conn := goldap.NewConn(raw, true)
	patience := askTimeout
	if end, ok := asked.Deadline(); ok { // the library knows no context
		patience = min(patience, max(time.Until(end), time.Millisecond))
	}
	conn.SetTimeout(patience)
	conn.Start()
	return conn, nil
}

// find reads an entry of a person, on a connection of the portal's.
func (l *LDAP) find(conn *goldap.Conn, a Account, user string) (p Person, dn string, err error) {
	if !userName.MatchString(user) {
		return p, "", ErrUnknown
	}
	result, err := conn.Search(goldap.NewSearchRequest("ou=people,"+a.Base, goldap.ScopeSingleLevel, goldap.NeverDerefAliases, 2, 5, false,
		"(&(objectClass=posixAccount)(uid="+goldap.EscapeFilter(user)+"))",
		[]string{"uid", "cn", "uidNumber", "gidNumber", "loginShell", "pwdReset", "pwdAccountLockedTime"}, nil))
	if err != nil {
		if goldap.IsErrorWithCode(err, goldap.LDAPResultNoSuchObject) { // a directory without people
			return p, "", ErrUnknown
		}
		return p, "", fmt.Errorf("look a person up: %w", scrub(err))
	}
	if len(result.Entries) != 1 {
		return p, "", ErrUnknown
	}
	e := result.Entries[0]
	// As the directory spells it: LDAP takes Anna for anna, and both have one home.
	p.Name = e.GetAttributeValue("uid")
	p.FullName, p.Shell = e.GetAttributeValue("cn"), e.GetAttributeValue("loginShell")
	p.MustChange = strings.EqualFold(e.GetAttributeValue("pwdReset"), "TRUE")
	p.UID, _ = strconv.ParseInt(e.GetAttributeValue("uidNumber"), 10, 64)
	p.GID, _ = strconv.ParseInt(e.GetAttributeValue("gidNumber"), 10, 64)
	if !userName.MatchString(p.Name) || e.GetAttributeValue("pwdAccountLockedTime") == lockedForEver {
		return p, "", ErrUnknown
	}
	return p, e.DN, nil
}

// grouped adds a person's groups.
func (l *LDAP) grouped(conn *goldap.Conn, a Account, p Person, dn string) (Person, error) {
	groups, err := conn.Search(goldap.NewSearchRequest("ou=groups,"+a.Base, goldap.ScopeSingleLevel, goldap.NeverDerefAliases, 0, 5, false,
		fmt.Sprintf("(&(objectClass=posixGroup)(|(member=%s)(gidNumber=%d)))", goldap.EscapeFilter(dn), p.GID), []string{"cn", "gidNumber"}, nil))
	if err != nil && !goldap.IsErrorWithCode(err, goldap.LDAPResultNoSuchObject) {
		return Person{}, fmt.Errorf("look a person's groups up: %w", scrub(err))
	}
	if err == nil {
		for _, g := range groups.Entries {
			if gid, err := strconv.ParseInt(g.GetAttributeValue("gidNumber"), 10, 64); err == nil {
				p.Groups = append(p.Groups, session.Membership{Name: g.GetAttributeValue("cn"), GID: gid})
			}
		}
	}
	slices.SortFunc(p.Groups, func(a, b session.Membership) int {
		switch {
		case a.GID == p.GID && b.GID != p.GID:
			return -1
		case b.GID == p.GID && a.GID != p.GID:
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	p.Groups = p.Groups[:min(len(p.Groups), maxGroups)]
	return p, nil
}

// lockedForEver is how the reconciler locks somebody whom git disables. The directory
// refuses him too; here it ends what he had begun before.
const lockedForEver = "000001010000Z"

// turn waits for one of the few places.
func (l *LDAP) turn(ctx context.Context) (done func(), err error) {
	timer := time.NewTimer(turnTimeout)
	defer timer.Stop()
	select {
	case l.binds <- struct{}{}:
		return func() { <-l.binds }, nil
	case <-timer.C:
		return nil, ErrBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// bind tries a password, on a connection of its own.
func (l *LDAP) bind(ctx context.Context, a Account, dn, password string) error {
	turn, err := l.turn(ctx)
	if err != nil {
		return err
	}
	defer turn()
	conn, err := l.dial(ctx, a)
	if err != nil {
		return err
	}
	defer conn.Close()
	return verdict(conn.Bind(dn, password))
}

// verdict tells a refusal from a directory that is away.
func verdict(err error) error {
	switch {
	case err == nil:
		return nil
	case goldap.IsErrorAnyOf(err, goldap.LDAPResultInvalidCredentials, goldap.LDAPResultInappropriateAuthentication,
		goldap.LDAPResultUnwillingToPerform, goldap.LDAPResultInsufficientAccessRights, goldap.LDAPResultNoSuchObject, goldap.ErrorEmptyPassword):
		return ErrRefused
	}
	return fmt.Errorf("check a password: %w", scrub(err))
}

// scrub keeps what the directory says, and never what it was asked.
func scrub(err error) error {
	var e *goldap.Error
	if errors.As(err, &e) {
		if e.ResultCode == goldap.ErrorNetwork && e.Err != nil {
			return fmt.Errorf("the directory does not answer: %w", e.Err)
		}
		return fmt.Errorf("LDAP result %d %s", e.ResultCode, goldap.LDAPResultCodeMap[e.ResultCode])
	}
	return err
}
