// Package visit remembers who has signed in, in which browser: a visit is what a
// cookie stands for. Visits are Secrets of the portal's namespace, so that every
// replica knows them and a restart forgets none.
//
// A cookie is 256 random bits. Only its SHA-256 is kept, as the name of the Secret: who
// reads them all can visit as nobody. A visit ends after 30 minutes in which its
// person did nothing, and after 12 hours in any case.
package visit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
)

// How long a visit lasts, and how often it is noted that it goes on.
const (
	Idle     = 30 * time.Minute
	Absolute = 12 * time.Hour
	step     = time.Minute
)

// ErrNone says that a cookie stands for no visit, or for none any more.
var ErrNone = errors.New("no visit, or it is over")

// Visit is one.
type Visit struct {
	User       string    `json:"user"`
	Begun      time.Time `json:"begun"`
	Seen       time.Time `json:"seen"`
	MustChange bool      `json:"mustChange,omitempty"` // the password, before anything else
}

// Over reports whether it has ended by itself.
func (v Visit) Over(now time.Time) bool {
	return now.Sub(v.Seen) >= Idle || now.Sub(v.Begun) >= Absolute
}

// Store keeps visits. Client is required.
type Store struct {
	Client typed.SecretInterface
	Now    func() time.Time // nil: time.Now
}

const (
	label   = "kingmaker.dev/visit"
	visitor = "kingmaker.dev/visitor" // a hash of the name, to find all visits of one
)

// cookie is what a value must look like before anybody is asked about it.
var cookie = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)

func nameOf(value string) string {
	sum := sha256.Sum256([]byte(value))
	return "visit-" + hex.EncodeToString(sum[:])
}

func visitorOf(user string) string {
	sum := sha256.Sum256([]byte(user))
	return hex.EncodeToString(sum[:16])
}

func (s *Store) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// Begin makes a visit, and returns its cookie, which nobody else ever learns.
func (s *Store) Begin(ctx context.Context, user string, mustChange bool) (value string, err error) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it never fails
	value = base64.RawURLEncoding.EncodeToString(b[:])
	now := s.now().UTC()
	text, err := json.Marshal(Visit{User: user, Begun: now, Seen: now, MustChange: mustChange})
	if err != nil {
		return "", err
	}
	_, err = s.Client.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: nameOf(value), Labels: map[string]string{label: "true", visitor: visitorOf(user), "kingmaker.dev/owner": "portal"}},
		Type:       "kingmaker.dev/visit", Data: map[string][]byte{"visit": text},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("begin a visit: %w", quiet(err))
	}
	return value, nil
}

// Get is the visit of a cookie. ErrNone is in the error where there is none.
func (s *Store) Get(ctx context.Context, value string) (Visit, error) {
	v, _, err := s.get(ctx, value)
	return v, err
}

func (s *Store) get(ctx context.Context, value string) (v Visit, secret *corev1.Secret, err error) {
	if !cookie.MatchString(value) {
		return v, nil, ErrNone
	}
	secret, err = s.Client.Get(ctx, nameOf(value), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return v, nil, ErrNone
	}
	if err != nil {
		return v, nil, fmt.Errorf("read a visit: %w", quiet(err))
	}
	if json.Unmarshal(secret.Data["visit"], &v) != nil || v.User == "" || v.Over(s.now()) {
		return Visit{}, nil, ErrNone
	}
	return v, secret, nil
}

// Touch notes that a visit goes on, once a minute, and reports whether it did.
func (s *Store) Touch(ctx context.Context, value string) (noted bool, err error) {
	v, secret, err := s.get(ctx, value)
	if err != nil || s.now().Sub(v.Seen) < step {
		return false, err
	}
	v.Seen = s.now().UTC()
	if err = s.put(ctx, secret, v); errors.Is(err, errLate) { // which has noted it
		err = nil
	}
	return true, err
}

// Changed notes that the person has a password of his own.
func (s *Store) Changed(ctx context.Context, value string) error {
	for range 5 {
		v, secret, err := s.get(ctx, value)
		if err != nil {
			return err
		}
		v.MustChange = false
		if err := s.put(ctx, secret, v); !errors.Is(err, errLate) {
			return err
		}
	}
	return errLate
}

var errLate = errors.New("note a visit: another request is always faster")

func (s *Store) put(ctx context.Context, secret *corev1.Secret, v Visit) (err error) {
	secret.Data["visit"], err = json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = s.Client.Update(ctx, secret, metav1.UpdateOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return ErrNone
	case apierrors.IsConflict(err):
		return errLate
	case err != nil:
		return fmt.Errorf("note a visit: %w", quiet(err))
	}
	return nil
}

// End ends a visit; one that is over already is fine.
func (s *Store) End(ctx context.Context, value string) error {
	if !cookie.MatchString(value) {
		return nil
	}
	return s.remove(ctx, nameOf(value))
}

// EndOthers ends all visits of a person but one, as after a change of password.
func (s *Store) EndOthers(ctx context.Context, user, keep string) error {
	list, err := s.Client.List(ctx, metav1.ListOptions{LabelSelector: visitor + "=" + visitorOf(user)})
	if err != nil {
		return fmt.Errorf("list visits: %w", quiet(err))
	}
	var errs []error
	for _, secret := range list.Items {
		if keep == "" || secret.Name != nameOf(keep) {
			errs = append(errs, s.remove(ctx, secret.Name))
		}
	}
	return errors.Join(errs...)
}

// Sweep removes those that are over. One replica calls it now and then.
func (s *Store) Sweep(ctx context.Context) error {
	list, err := s.Client.List(ctx, metav1.ListOptions{LabelSelector: label + "=true"})
	if err != nil {
		return fmt.Errorf("list visits: %w", quiet(err))
	}
	var errs []error
	for _, secret := range list.Items {
		var v Visit
		if json.Unmarshal(secret.Data["visit"], &v) != nil || v.Over(s.now()) {
			errs = append(errs, s.remove(ctx, secret.Name))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) remove(ctx context.Context, name string) error {
	if err := s.Client.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("end a visit: %w", quiet(err))
	}
	return nil
}

// quiet is an error about a Secret without what it may quote of it: a validation error
// repeats the object.
func quiet(err error) error {
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		return fmt.Errorf("the API answered %s", status.Status().Reason)
	}
	return err
}
