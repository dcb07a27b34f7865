package member

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"k8s.io/client-go/util/cert"
)

// Rejoin makes a blank machine what its site wants it to be: a worker, or with a
// ticket that has a certificate key a master. It believes the site's CA that it has
// had all the while, and nobody else.
type Rejoin struct {
	Host     *host.Host
	Needs    host.Needs
	Member   Membership
	Ticket   machine.Ticket
	Progress func(line string) // required
}

// Run joins. A master's join is not to be begun twice: who calls sees to that.
func (j *Rejoin) Run(ctx context.Context) error {
	h, m := j.Host, j.Member
	ca, err := h.Read(host.CAFile)
	if err != nil {
		return fmt.Errorf("join: read the site's CA: %w", err)
	}
	certificates, err := cert.ParseCertsPEM(ca)
	if err != nil {
		return fmt.Errorf("join: read %s: %w", host.CAFile, err)
	}
	hash := fmt.Sprintf("sha256:%x", sha256.Sum256(certificates[0].RawSubjectPublicKeyInfo))
	i := &machine.Invitation{Token: j.Ticket.Token, CAHash: hash}
	s := &Site{Name: m.Site, Endpoint: m.Endpoint, CA: ca}
	config, role := joinConfig(i, s, m.Name, m.Address, j.Needs), machine.Worker
	if j.Ticket.CertificateKey.Value() != "" {
		config, role = masterConfig(i, s, m.Name, m.Address, j.Needs, j.Ticket.CertificateKey.Value()), machine.Master
	}
	j.Progress("join as a " + role)
	if err := host.Do(ctx, []host.Step{kubeletPatch(h, j.Needs)}, j.Progress); err != nil {
		return err
	}
	quiet := *h
	quiet.Runner = masking{masking{h.Runner, j.Ticket.Token.Value(), i.TokenSecret()}, orNothing(j.Ticket.CertificateKey.Value()), nothing}
	if err := kubeadm(ctx, &quiet, config, "join"); err != nil {
		return err
	}
	m.Role = role
	if err := save(h, host.MachineFile, m); err != nil {
		return err
	}
	if role == machine.Master {
		// Its own API server is the one that is near.
		masters, err := host.Masters(h)
		if err == nil {
			_, err = host.SetMasters(ctx, h, m.Site, append(masters, netip.AddrPortFrom(m.Address, machine.APIPort)))
		}
		return err
	}
	return nil
}

// nothing is a word that nobody says; masking looks for something.
const nothing = "\x00"

func orNothing(word string) string {
	if word == "" {
		return nothing
	}
	return word
}

// UploadCerts encrypts the keys of the site with the key of a ticket and leaves them
// in the cluster, for one machine to become a master with.
func UploadCerts(ctx context.Context, h *host.Host, m Membership, t machine.Ticket) error {
	key := t.CertificateKey.Value()
	if key == "" {
		return errors.New("upload the keys of the site: the ticket has no certificate key")
	}
	var b host.Bundle
	if _, err := load(h, host.BundleFile, &b); err != nil {
		return err
	}
	quiet := *h
	quiet.Runner = masking{h.Runner, key, nothing}
	config := documents(object{
		"apiVersion":       kubeadmAPI,
		"kind":             "InitConfiguration",
		"certificateKey":   key,
		"localAPIEndpoint": object{"advertiseAddress": m.Address.String(), "bindPort": machine.APIPort},
		"nodeRegistration": object{"name": m.Name, "criSocket": criSocket},
	}, object{
		"apiVersion":           kubeadmAPI,
		"kind":                 "ClusterConfiguration",
		"kubernetesVersion":    b.Kubernetes, // else it asks the internet
		"controlPlaneEndpoint": m.Endpoint,
	})
	return kubeadm(ctx, &quiet, config, "init", "phase", "upload-certs", "--upload-certs")
}
