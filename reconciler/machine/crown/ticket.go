package crown

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/roles"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	bootstrap "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"
)

// A ticket is four objects of kube-system: the bootstrap token, which Kubernetes
// removes when it ends, and owned by it, so that they go with it, the Secret that
// the machine reads, and the Role and RoleBinding that let it.

const (
	ticketLabel = plan.Group + "/ticket" // the machine's name
	ticketValid = 15 * time.Minute
	spare       = 2 * time.Minute // that a ticket must have left to be of use

	// uploaded is where kubeadm leaves the encrypted keys of the site.
	uploaded = "kubeadm-certs"
)

// ticket is one that exists.
type ticket struct {
	machine.Ticket
	machine string
	uid     types.UID
}

func (k *Keeper) readTickets(ctx context.Context) (tickets []ticket, err error) {
	list, err := k.core.Secrets(machine.TicketNamespace).List(ctx, metav1.ListOptions{LabelSelector: ticketLabel})
	if err != nil {
		return nil, fmt.Errorf("list the tickets of machines: %w", err)
	}
	for _, s := range list.Items {
		if s.Type == corev1.SecretTypeBootstrapToken {
			continue
		}
		t, err := machine.ReadTicket(s.Data)
		if err != nil {
			// Spoiled by another hand: it is of no use, and is replaced by the next.
			t = machine.Ticket{CertificateKey: plan.NewSecret("unreadable")}
		}
		tickets = append(tickets, ticket{t, s.Labels[ticketLabel], s.UID})
	}
	return tickets, nil
}

// key is for whom a certificate key exists. It has no boot, and so is good for
// nobody, until a master has reported that the keys are there for it.
func (r *reading) key() (key roles.Key) {
	for _, t := range r.tickets {
		if t.CertificateKey.Value() == "" {
			continue
		}
		key = roles.Key{For: t.machine, Until: t.Until}
		for _, m := range r.machines {
			if t.Upload != "" && m.Status.Done.UploadCerts == t.Upload {
				key.Boot = t.Boot
			}
		}
	}
	return key
}

// issueKey lets a machine join as a master: a ticket with a certificate key, and a
// master that encrypts the site's keys with it. Done again it goes on where it was.
func (k *Keeper) issueKey(ctx context.Context, r *reading, name, boot string) error {
	at := slices.IndexFunc(r.tickets, func(t ticket) bool {
		return t.machine == name && k.usable(t.Ticket, boot, true)
	})
	var upload string
	if at >= 0 {
		upload = r.tickets[at].Upload
	}
	uploader := r.uploader(upload)
	if uploader == "" {
		return fmt.Errorf("no master is there whose agent could upload the keys of the site")
	}
	if at < 0 {
		if err := k.cleanup(ctx, r); err != nil { // one key at a time
			return err
		}
		var err error
		if upload, err = k.issue(ctx, name, boot, true); err != nil {
			return err
		}
	}
	if err := k.admit(ctx, name, name, uploader); err != nil {
		return err
	}
	if m := r.machines[uploader]; m.Spec.Orders.UploadCerts != upload {
		return k.order(ctx, m, func(o *machine.Orders) { o.UploadCerts = upload })
	}
	return nil
}

// uploader is the master who has the order, as long as it lives; else the first
// that does.
func (r *reading) uploader(upload string) string {
	var first string
	for _, m := range r.observed.Members {
		if k, ok := r.machines[m.Name]; ok && m.Answers && !m.Learner && k.Spec.Role == roles.Master && r.observed.At.Sub(k.Status.Heartbeat) < time.Minute {
			if upload != "" && k.Spec.Orders.UploadCerts == upload {
				return m.Name
			}
			if first == "" {
				first = m.Name
			}
		}
	}
	return first
}

// invite lets a machine that was reset join again as a worker.
func (k *Keeper) invite(ctx context.Context, name, boot string) error {
	if _, err := k.issue(ctx, name, boot, false); err != nil {
		return err
	}
	return k.admit(ctx, name, name)
}

// issue sees to a token and the ticket that has it, in the place of an older ticket.
// Done again it goes on where it was: with the token that has no ticket yet.
func (k *Keeper) issue(ctx context.Context, name, boot string, key bool) (upload string, err error) {
	secrets := k.core.Secrets(machine.TicketNamespace)
	list, err := secrets.List(ctx, metav1.ListOptions{LabelSelector: ticketLabel + "=" + name})
	if err != nil {
		return "", fmt.Errorf("list the tokens of %s: %w", name, err)
	}
	t := machine.Ticket{Boot: boot}
	var owner *corev1.Secret
	for _, s := range list.Items {
		if s.Type == corev1.SecretTypeBootstrapToken {
			until, err := time.Parse(time.RFC3339, string(s.Data[bootstrap.BootstrapTokenExpirationKey]))
			if err == nil && until.Sub(k.Now()) > spare {
				owner, t.Until = &s, until
				t.Token = plan.NewSecret(string(s.Data[bootstrap.BootstrapTokenIDKey]) + "." + string(s.Data[bootstrap.BootstrapTokenSecretKey]))
			}
		} else if there, err := machine.ReadTicket(s.Data); err == nil && k.usable(there, boot, key) {
			return there.Upload, nil
		} else if err := k.takeBack(ctx, name); err != nil {
			return "", err
		} else {
			return k.issue(ctx, name, boot, key)
		}
	}
	if owner == nil {
		if owner, err = k.token(ctx, name, &t); err != nil {
			return "", err
		}
	}
	if key {
		random := make([]byte, 32) // as kubeadm has it: AES-256
		if _, err := rand.Read(random); err != nil {
			return "", fmt.Errorf("make a certificate key: %w", err)
		}
		id, _, _ := strings.Cut(t.Token.Value(), ".")
		t.CertificateKey, t.Upload = plan.NewSecret(hex.EncodeToString(random)), name+"/"+id
	}
	_, err = secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: machine.TicketName(name), Labels: owner.Labels, OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "v1", Kind: "Secret", Name: owner.Name, UID: owner.UID},
		}},
		StringData: t.Data(),
	}, metav1.CreateOptions{FieldManager: manager})
	if err != nil {
		return "", fmt.Errorf("make the ticket of %s: %w", name, err)
	}
	return t.Upload, nil
}

// usable reports whether a ticket lets its machine join in a boot, with a
// certificate key as a master, or without as a worker.
func (k *Keeper) usable(t machine.Ticket, boot string, key bool) bool {
	return t.Boot == boot && t.Until.Sub(k.Now()) > spare && (t.CertificateKey.Value() != "") == key
}

// token makes the bootstrap token of a ticket.
func (k *Keeper) token(ctx context.Context, name string, t *machine.Ticket) (*corev1.Secret, error) {
	token, err := bootstraputil.GenerateBootstrapToken()
	if err != nil {
		return nil, fmt.Errorf("make a token: %w", err)
	}
	id, secret, _ := strings.Cut(token, ".")
	t.Token, t.Until = plan.NewSecret(token), k.Now().Add(ticketValid)
	made, err := k.core.Secrets(machine.TicketNamespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: bootstraputil.BootstrapTokenSecretName(id), Labels: map[string]string{ticketLabel: name}},
		Type:       corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{
			bootstrap.BootstrapTokenIDKey:               id,
			bootstrap.BootstrapTokenSecretKey:           secret,
			bootstrap.BootstrapTokenExpirationKey:       t.Until.UTC().Format(time.RFC3339),
			bootstrap.BootstrapTokenDescriptionKey:      "made by reconcile, for " + name + " to join again",
			bootstrap.BootstrapTokenExtraGroupsKey:      machine.Joiners,
			bootstrap.BootstrapTokenUsageAuthentication: "true",
			bootstrap.BootstrapTokenUsageSigningKey:     "true",
		},
	}, metav1.CreateOptions{FieldManager: manager})
	if err != nil {
		return nil, fmt.Errorf("make a token for %s: %w", name, err)
	}
	return made, nil
}

// admit lets machines read the ticket of one, and nobody else.
func (k *Keeper) admit(ctx context.Context, name string, readers ...string) error {
	ticket, err := k.core.Secrets(machine.TicketNamespace).Get(ctx, machine.TicketName(name), metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read the ticket of %s: %w", name, err)
	}
	meta := metav1.ObjectMeta{Name: ticket.Name, Labels: ticket.Labels, OwnerReferences: ticket.OwnerReferences}
	role := &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{ticket.Name}, Verbs: []string{"get"}}}}
	binding := &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: ticket.Name}}
	slices.Sort(readers)
	for _, reader := range slices.Compact(readers) {
		binding.Subjects = append(binding.Subjects, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "system:node:" + reader})
	}
	if err := k.grant(ctx, role, binding); err != nil {
		return fmt.Errorf("let %s read the ticket of %s: %w", strings.Join(readers, " and "), name, err)
	}
	return nil
}

// grant sees to a role and who has it, and writes nothing that is so already.
func (k *Keeper) grant(ctx context.Context, role *rbacv1.Role, binding *rbacv1.RoleBinding) error {
	roles, bindings := k.rbac.Roles(machine.TicketNamespace), k.rbac.RoleBindings(machine.TicketNamespace)
	switch have, err := roles.Get(ctx, role.Name, metav1.GetOptions{}); {
	case apierrors.IsNotFound(err):
		if _, err := roles.Create(ctx, role, metav1.CreateOptions{FieldManager: manager}); err != nil {
			return err
		}
	case err != nil:
		return err
	case !equality.Semantic.DeepEqual([]any{have.Rules, have.OwnerReferences}, []any{role.Rules, role.OwnerReferences}):
		if _, err := roles.Update(ctx, role, metav1.UpdateOptions{FieldManager: manager}); err != nil {
			return err
		}
	}
	have, err := bindings.Get(ctx, binding.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = bindings.Create(ctx, binding, metav1.CreateOptions{FieldManager: manager})
	case err == nil && !equality.Semantic.DeepEqual([]any{have.Subjects, have.OwnerReferences}, []any{binding.Subjects, binding.OwnerReferences}):
		_, err = bindings.Update(ctx, binding, metav1.UpdateOptions{FieldManager: manager})
	}
	return err
}

// cleanup takes the site's uploaded keys and every ticket with a certificate key
// away, the tickets last: until then it is known that there is something to do.
func (k *Keeper) cleanup(ctx context.Context, r *reading) error {
	secrets := k.core.Secrets(machine.TicketNamespace)
	certs, err := secrets.Get(ctx, uploaded, metav1.GetOptions{})
	if err == nil {
		for _, owner := range certs.OwnerReferences { // a token that kubeadm made, to end with it
			if err := gone(secrets.Delete(ctx, owner.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &owner.UID}})); err != nil {
				return fmt.Errorf("take back the token of %s: %w", uploaded, err)
			}
		}
		err = secrets.Delete(ctx, uploaded, metav1.DeleteOptions{})
	}
	if err := gone(err); err != nil {
		return fmt.Errorf("take back %s: %w", uploaded, err)
	}
	for _, t := range r.tickets {
		if t.CertificateKey.Value() != "" {
			if err := k.takeBack(ctx, t.machine); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeBack ends a machine's ticket and all that belongs to it, the ticket last.
func (k *Keeper) takeBack(ctx context.Context, machineName string) error {
	secrets, name := k.core.Secrets(machine.TicketNamespace), machine.TicketName(machineName)
	tokens, err := secrets.List(ctx, metav1.ListOptions{LabelSelector: ticketLabel + "=" + machineName})
	if err != nil {
		return fmt.Errorf("list the tokens of %s: %w", machineName, err)
	}
	errs := []error{
		gone(k.rbac.RoleBindings(machine.TicketNamespace).Delete(ctx, name, metav1.DeleteOptions{})),
		gone(k.rbac.Roles(machine.TicketNamespace).Delete(ctx, name, metav1.DeleteOptions{})),
	}
	for _, s := range tokens.Items {
		if s.Type == corev1.SecretTypeBootstrapToken {
			errs = append(errs, gone(secrets.Delete(ctx, s.Name, metav1.DeleteOptions{})))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take back the ticket of %s: %w", machineName, err)
	}
	if err := gone(secrets.Delete(ctx, name, metav1.DeleteOptions{})); err != nil {
		return fmt.Errorf("take back the ticket of %s: %w", machineName, err)
	}
	return nil
}

// gone forgives that something is gone already.
func gone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
