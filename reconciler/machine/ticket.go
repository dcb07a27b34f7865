package machine

import (
	"fmt"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Ticket is what lets one machine join again that was reset: as a worker, and with
// a certificate key as a master. It is a Secret of kube-system that only the
// machine itself can read, and for the time of an upload the master that encrypts
// the site's keys with the certificate key. It lives for minutes.
type Ticket struct {
	// Token is a bootstrap token, ID.SECRET.
	Token plan.Secret
	// CertificateKey decrypts the keys of the site, in hex; empty for a worker.
	CertificateKey plan.Secret
	// Boot is the one in which the machine may use it, by its boot ID. A machine that
	// was restarted meanwhile must not begin again: its member may be listed already.
	Boot string
	// Until is when the token ends.
	Until time.Time
	// Upload is the order for which a master uploads the keys (Orders.UploadCerts).
	Upload string
}

// TicketNamespace is where tickets are.
const TicketNamespace = "kube-system"

// TicketName is the name of the Secret of a machine's ticket.
func TicketName(machine string) string { return "kingmaker-join-" + machine }

// The keys in the Secret of a ticket.
const (
	ticketToken, ticketKey, ticketBoot, ticketUntil, ticketUpload = "token", "certificateKey", "boot", "until", "upload"
)

// Data is the ticket as its Secret has it.
func (t Ticket) Data() map[string]string {
	data := map[string]string{
		ticketToken: t.Token.Value(), ticketBoot: t.Boot, ticketUntil: t.Until.UTC().Format(time.RFC3339),
	}
	if key := t.CertificateKey.Value(); key != "" {
		data[ticketKey], data[ticketUpload] = key, t.Upload
	}
	return data
}

// ReadTicket is the inverse of Data, from the data of the Secret.
func ReadTicket(secret map[string][]byte) (t Ticket, err error) {
	data := map[string]string{}
	for key, value := range secret {
		data[key] = string(value)
	}
	if data[ticketToken] == "" {
		return t, fmt.Errorf("read a ticket: it has no token")
	}
	if t.Until, err = time.Parse(time.RFC3339, data[ticketUntil]); err != nil {
		return t, fmt.Errorf("read a ticket: %w", err)
	}
	t.Token, t.Boot, t.Upload = plan.NewSecret(data[ticketToken]), data[ticketBoot], data[ticketUpload]
	if key := data[ticketKey]; key != "" {
		t.CertificateKey = plan.NewSecret(key)
	}
	return t, nil
}
