// Package slapd says how OpenLDAP's server holds a site's directory: which schema,
// who may see what, how passwords are kept, how servers follow each other, and what
// a new directory begins with. The server itself is Debian's.
//
//	config := slapd.Config{...}
//	err := config.Write()
//	err = config.Load(ctx, first)        // into an empty folder
//	cmd := config.Command(ctx, "ldaps://:1636")
//
// It knows nothing of Kubernetes, nor of what happens to servers: that is the
// program directory, which uses it; tests use it too.
package slapd

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// DefaultBase is the root of a site's directory. It has none of the site's names,
// for these may change.
const DefaultBase = "dc=site,dc=internal"

// Services are the accounts that are no person's.
const (
	Daemon     = "daemon"     // may do everything; reconcile's
	Replicator = "replicator" // reads everything, hashes included; the other servers', and the backup's
	Portal     = "portal"     // finds people and their groups
)

// DN is the name of a service.
func DN(service, base string) string { return "cn=" + service + ",ou=services," + base }

// MaxPeers is how many other servers one follows: a site has up to seven masters.
const MaxPeers = 6

// Where Debian has things.
const (
	schemas = "/etc/ldap/schema"
	modules = "/usr/lib/ldap"
	server  = "/usr/sbin/slapd"
	adder   = "/usr/sbin/slapadd"
)

// Installed says what is missing of slapd on this computer.
func Installed() error {
	for _, file := range []string{server, adder, modules + "/argon2.so", schemas + "/inetorgperson.schema"} {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("%w: Debian's package slapd has it", err)
		}
	}
	return nil
}

// Config is one server.
type Config struct {
	Base string // default DefaultBase

	// DataDir has the databases, Dir what is written anew at each start, secrets
	// among it: the configuration, ca.crt, tls.crt and tls.key, which the caller puts
	// there.
	DataDir, Dir string

	// ServerID is in all changes that this server is told of first: 1 to 4095, and
	// never that of another.
	ServerID int

	// Peers are UNIX sockets behind which other servers may be. Nobody need listen.
	Peers []string

	// ReadOnly takes no changes but from other servers.
	ReadOnly bool

	// DaemonPassword and ReplicatorPassword are those of the services.
	DaemonPassword, ReplicatorPassword plan.Secret

	// MaxSize is that of the database in bytes; the file grows with what is in it.
	// Default 4 GiB.
	MaxSize int64
}

//go:embed slapd.conf
var confText string

//go:embed first.ldif
var firstText string

//go:embed rfc2307bis.schema
var schema []byte

func (c Config) base() string {
	if c.Base == "" {
		return DefaultBase
	}
	return c.Base
}

func (c Config) conf() string { return filepath.Join(c.Dir, "slapd.conf") }

// settings are what the template asks for.
type settings struct {
	Config
	Base, Schemas, Modules     string
	Daemon, Replicator, Portal string
	RootHash, Secret           string
	MaxSize                    int64
}

func (s settings) File(name string) string { return filepath.Join(s.Config.Dir, name) }
func (s settings) Data(name string) string { return filepath.Join(s.DataDir, name) }

// Write writes the configuration, and makes the folders that it names.
func (c Config) Write() error {
	base := c.base()
	s := settings{Config: c, Base: base, Schemas: schemas, Modules: modules,
		Daemon: DN(Daemon, base), Replicator: DN(Replicator, base), Portal: DN(Portal, base),
		RootHash: Hash(c.DaemonPassword), Secret: c.ReplicatorPassword.Value(), MaxSize: c.MaxSize}
	if s.MaxSize == 0 {
		s.MaxSize = 4 << 30
	}
	functions := template.FuncMap{
		"inc":   func(n int) int { return n + 1 },
		"ldapi": Socket,
	}
	var text bytes.Buffer
	if err := template.Must(template.New("").Funcs(functions).Parse(confText)).Execute(&text, s); err != nil {
		return fmt.Errorf("write slapd's configuration: %w", err)
	}
	for _, dir := range []string{c.Dir, s.Data("main")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("write slapd's configuration: %w", err)
		}
	}
	if err := errors.Join(
		os.WriteFile(s.File("rfc2307bis.schema"), schema, 0o600),
		os.WriteFile(c.conf(), text.Bytes(), 0o600),
	); err != nil {
		return fmt.Errorf("write slapd's configuration: %w", err)
	}
	return nil
}

// Socket is the URL of a UNIX socket.
func Socket(file string) string { return "ldapi://" + url.QueryEscape(file) }

// Hash is what slapd compares a service's password with. These are 256 random bits:
// to make guesses slow would only slow the services.
func Hash(password plan.Secret) string {
	salt := make([]byte, 8)
	_, _ = rand.Read(salt) // never fails
	sum := sha1.Sum(append([]byte(password.Value()), salt...))
	return "{SSHA}" + base64.StdEncoding.EncodeToString(append(sum[:], salt...))
}

// First is the LDIF of a new directory: the branches, the policies of passwords, and
// the services. ID becomes the entryUUID of its root, and says which directory this
// is wherever it is copied to.
func First(base, id string, passwords map[string]plan.Secret) (string, error) {
	if base == "" {
		base = DefaultBase
	}
	component, ok := strings.CutPrefix(base, "dc=")
	if !ok {
		return "", fmt.Errorf("base %s: want one that begins with dc=", base)
	}
	component, _, _ = strings.Cut(component, ",")
	type service struct{ Name, DN, Hash string }
	var services []service
	for _, name := range []string{Replicator, Portal} { // the daemon is in the configuration
		services = append(services, service{name, DN(name, base), Hash(passwords[name])})
	}
	var text strings.Builder
	err := template.Must(template.New("").Parse(firstText)).Execute(&text, map[string]any{
		"Base": base, "Component": component, "ID": id, "Services": services,
	})
	return text.String(), err
}

// Load puts LDIF into the databases, which are empty and not in use. A fresh one has
// no CSN yet, and gets it.
func (c Config) Load(ctx context.Context, ldif io.Reader, fresh bool) error {
	args := []string{"-q", "-f", c.conf(), "-b", c.base()}
	if fresh {
		args = append(args, "-w", "-S", fmt.Sprint(c.ServerID))
	}
	cmd := exec.CommandContext(ctx, adder, args...)
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = ldif, &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("load the directory: slapadd: %w: %s", err, lastLines(said.String(), 5))
	}
	return nil
}

// Command is slapd in the foreground, at these URLs. It says what is worth a line
// to its standard error.
func (c Config) Command(urls ...string) *exec.Cmd {
	return exec.Command(server, "-d", "none", "-h", strings.Join(urls, " "), "-f", c.conf())
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
