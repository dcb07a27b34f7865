package git

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Credentials are what a server wants to see of us, and what we want to see of
// the server. The zero value is none.
type Credentials struct {
	Username plan.Secret // https
	Password plan.Secret // https; the passphrase of Identity where that has one
	Token    plan.Secret // https, sent as a bearer token in place of name and password

	Identity   plan.Secret // ssh: a private key, PEM
	KnownHosts plan.Secret // ssh: the server's keys, as in ~/.ssh/known_hosts

	CA plan.Secret // https: certificates to trust beside the system's, PEM

	// folder is read again before each dial: tokens are short-lived, and
	// whoever renews them writes a file.
	folder string
}

// maxCredential is more than any key or list of hosts needs.
const maxCredential = 1 << 20

// LoadCredentials reads a folder with files named like the keys of Flux's
// secrets: username, password, bearerToken (or token), identity, known_hosts,
// ca.crt. A Kubernetes Secret mounted as a folder is one; where the Secret is
// not there (yet) the folder is empty, and that is no credentials. It is read
// again before each dial.
func LoadCredentials(dir string) (Credentials, error) {
	c := Credentials{folder: dir}
	found := false
	for _, file := range []struct {
		name string
		into *plan.Secret
		text bool // a line, which editors end with a newline
	}{
		{"username", &c.Username, true}, {"password", &c.Password, true},
		{"token", &c.Token, true}, {"bearerToken", &c.Token, true},
		{"identity", &c.Identity, false}, {"known_hosts", &c.KnownHosts, false}, {"ca.crt", &c.CA, false},
	} {
		value, err := readCredential(filepath.Join(dir, file.name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Credentials{}, fault(CredentialsInvalid, "read credentials: "+err.Error(), "see whether the user of this process may read it")
		}
		if file.text {
			value = strings.TrimRight(value, "\r\n")
		}
		*file.into, found = plan.NewSecret(value), true
	}
	if !found && !isEmpty(dir) {
		return Credentials{}, fault(CredentialsInvalid, "read credentials: "+dir+" holds none",
			"want files named username and password, or bearerToken, or identity and known_hosts")
	}
	return c, nil
}

// isEmpty reports whether a folder is there and holds no files, but for the
// kubelet's own, the key of webhooks and age keys, which are not ours.
func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return !strings.HasPrefix(e.Name(), "..") && e.Name() != "webhook-secret" && filepath.Ext(e.Name()) != ".agekey"
	})
}

func readCredential(at string) (string, error) {
	f, err := os.Open(at)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	if err == nil && len(data) > maxCredential {
		err = fmt.Errorf("%s is too large", at)
	}
	return string(data), err
}

// current are the credentials as of now.
func (c Credentials) current() (Credentials, error) {
	if c.folder == "" {
		return c, nil
	}
	return LoadCredentials(c.folder)
}

// secrets are all forms in which credentials may come back in a text.
func (c Credentials) secrets() (forms []string) {
	for _, s := range []plan.Secret{c.Password, c.Token, c.Username} {
		if s.Value() != "" {
			forms = append(forms, s.Value(), base64.StdEncoding.EncodeToString([]byte(c.Username.Value()+":"+s.Value())))
		}
	}
	for line := range strings.Lines(c.Identity.Value()) {
		if line = strings.TrimSpace(line); len(line) > 20 {
			forms = append(forms, line)
		}
	}
	return forms
}

// signer is the key of an ssh client.
func (c Credentials) signer() (ssh.Signer, error) {
	if c.Identity.Value() == "" {
		return nil, fault(AuthenticationFailed, "there is no ssh key", "put one, and the server's key, into files identity and known_hosts of the folder that --credentials names")
	}
	pem := []byte(c.Identity.Value())
	key, err := ssh.ParsePrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		if c.Password.Value() == "" {
			return nil, fault(CredentialsInvalid, "the ssh key has a passphrase", "put it into a file password beside identity")
		}
		key, err = ssh.ParsePrivateKeyWithPassphrase(pem, []byte(c.Password.Value()))
	}
	if err != nil {
		return nil, fault(CredentialsInvalid, "the ssh key cannot be read", "identity is a private key as ssh-keygen writes it; password holds its passphrase") // err may quote it
	}
	return key, nil
}

// hostKeys knows the servers of known_hosts.
func (c Credentials) hostKeys() (*knownhosts.HostKeyDB, error) {
	if strings.TrimSpace(c.KnownHosts.Value()) == "" {
		return nil, fault(HostKeyUnknown, "there is no known_hosts, so any server could pose as this one",
			"put what ssh-keyscan prints into a file known_hosts beside identity, once you have compared it with what the server's keeper says")
	}
	// The library reads files only. It is not a secret, and gone at once.
	f, err := os.CreateTemp("", "known_hosts-")
	if err != nil {
		return nil, fault(CacheFailed, "read known_hosts: "+err.Error(), "it needs a temporary folder to write in")
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteString(c.KnownHosts.Value()); err != nil {
		return nil, fault(CacheFailed, "read known_hosts: "+err.Error(), "")
	}
	db, err := knownhosts.NewDB(f.Name())
	if err != nil {
		return nil, fault(CredentialsInvalid, "read known_hosts: "+strings.ReplaceAll(err.Error(), f.Name(), "line"), "each line is: host type key")
	}
	return db, nil
}
