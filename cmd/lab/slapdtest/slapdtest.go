// Package slapdtest is a real slapd on loopback, for tests: with TLS by a CA of its
// own, the schemas of people and groups as RFC 2307bis has them, ppolicy, and
// argon2. Nothing of the machine's own directory is touched, and all of it ends
// with the test.
package slapdtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	goldap "github.com/go-ldap/ldap/v3"
)

// What is there at the beginning.
const (
	Base     = "dc=school,dc=internal"
	BindDN   = "cn=daemon,ou=services," + Base // may do everything
	Password = "the daemon's own"
)

//go:embed rfc2307bis.schema
var rfc2307bis []byte

// Server is one slapd.
type Server struct {
	T       testing.TB
	URL     string // ldaps://127.0.0.1:PORT
	Address string // of the same
	CA      string // file of the CA's certificate
	TLS     *tls.Config

	dir string
	cmd *exec.Cmd // nil: it does not run
	// said is read after the end.
	said *bytes.Buffer
}

// Start runs a slapd with the base, the policy of passwords and nobody in it, and
// returns when it answers. It skips the test where there is no slapd, or where it is
// to be short.
func Start(t testing.TB) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("runs slapd")
	}
	for _, program := range []string{slapd, slapadd} {
		if _, err := os.Stat(program); err != nil {
			t.Skipf("%s is not installed: .ci/packages slapd slapd-contrib ldap-utils", program)
		}
	}
	s := &Server{T: t, dir: t.TempDir()}
	s.certify()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = listener.Addr().String()
	listener.Close()
	s.URL = "ldaps://" + s.Address
	s.write("rfc2307bis.schema", rfc2307bis)
	s.write("slapd.conf", []byte(strings.NewReplacer("DIR", s.dir, "BASE", Base, "DAEMON", BindDN, "SECRET", Password).Replace(config)))
	s.Wipe()
	s.Begin()
	t.Cleanup(s.Off)
	return s
}

// By their paths: Debian keeps them from the paths of users.
const (
	slapd   = "/usr/sbin/slapd"
	slapadd = "/usr/sbin/slapadd"
)

// config has the rules of access that the site's own server has: nobody looks without
// a name, nobody reads a hash, and a person changes the own one.
const config = `
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include DIR/rfc2307bis.schema
pidfile DIR/pid
argsfile DIR/args
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload ppolicy
moduleload argon2
TLSCACertificateFile DIR/ca.crt
TLSCertificateFile DIR/tls.crt
TLSCertificateKeyFile DIR/tls.key
security simple_bind=128
disallow bind_anon
password-hash {ARGON2}
sizelimit 500

database config
rootdn cn=config
rootpw "SECRET"

database mdb
suffix "BASE"
rootdn "DAEMON"
rootpw "SECRET"
directory DIR/data
maxsize 4294967296
index objectClass eq
index uid eq
index uidNumber eq
index gidNumber eq
index member eq
index entryUUID eq
access to attrs=userPassword by self =xw by anonymous auth by * none
access to * by users read by * none
overlay ppolicy
ppolicy_default "cn=passwords,ou=policies,BASE"
`

const beginning = `
dn: ` + Base + `
objectClass: dcObject
objectClass: organization
dc: school
o: school

dn: ou=policies,` + Base + `
objectClass: organizationalUnit
ou: policies

dn: cn=passwords,ou=policies,` + Base + `
objectClass: device
objectClass: pwdPolicy
cn: passwords
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 10
pwdFailureCountInterval: 900
pwdLockoutDuration: 300
pwdMinLength: 12
pwdCheckQuality: 2
`

func (s *Server) write(name string, content []byte) {
	s.T.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
		s.T.Fatal(err)
	}
}

// certify makes a CA, and a certificate for 127.0.0.1.
func (s *Server) certify() {
	s.T.Helper()
	newKey := func() (*ecdsa.PrivateKey, []byte) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			s.T.Fatal(err)
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			s.T.Fatal(err)
		}
		return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	}
	sign := func(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
		if err != nil {
			s.T.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	caKey, _ := newKey()
	key, keyPEM := newKey()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "site-ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "ldap"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	caPEM := sign(ca, ca, caKey, caKey)
	s.write("ca.crt", caPEM)
	s.write("tls.crt", sign(leaf, ca, key, caKey))
	s.write("tls.key", keyPEM)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(caPEM)
	s.CA, s.TLS = filepath.Join(s.dir, "ca.crt"), &tls.Config{RootCAs: roots}
}

// On starts slapd, and returns when it answers.
func (s *Server) On() {
	s.T.Helper()
	s.said = &bytes.Buffer{}
	s.cmd = exec.Command(slapd, "-d", "0", "-h", s.URL, "-f", filepath.Join(s.dir, "slapd.conf"))
	s.cmd.Stdout, s.cmd.Stderr = s.said, s.said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.T.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := s.dial()
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			s.Off()
			s.T.Fatalf("slapd does not answer: %v\n%s", err, s.said)
		}
	}
}

// Off kills slapd, as a power cut does.
func (s *Server) Off() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Freeze has slapd answer nothing until undone, with all its connections open.
func (s *Server) Freeze() (undo func()) {
	s.T.Helper()
	process := s.cmd.Process
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		s.T.Fatal(err)
	}
	for { // a signal is not there at once
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process.Pid))
		if err != nil {
			s.T.Fatal(err)
		}
		if bytes.Contains(stat, []byte(") T ")) {
			break
		}
	}
	return func() { _ = process.Signal(syscall.SIGCONT) }
}

// Wipe takes all data away. The server is off.
func (s *Server) Wipe() {
	s.T.Helper()
	data := filepath.Join(s.dir, "data")
	if err := os.RemoveAll(data); err != nil {
		s.T.Fatal(err)
	}
	if err := os.Mkdir(data, 0o700); err != nil {
		s.T.Fatal(err)
	}
}

// Begin fills in what is there at the beginning, and starts slapd. The data is empty.
func (s *Server) Begin() {
	s.T.Helper()
	s.Load(beginning)
	s.On()
}

// Load puts LDIF into the data. The server is off.
func (s *Server) Load(ldif string) {
	s.T.Helper()
	cmd := exec.Command(slapadd, "-q", "-f", filepath.Join(s.dir, "slapd.conf"))
	cmd.Stdin = strings.NewReader(ldif)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.T.Fatalf("slapadd: %v\n%s", err, out)
	}
}

// PID of slapd.
func (s *Server) PID() string { return fmt.Sprint(s.cmd.Process.Pid) }

// RSS is the memory of slapd in bytes.
func (s *Server) RSS() (bytes int) {
	text, _ := os.ReadFile("/proc/" + s.PID() + "/statm")
	_, _ = fmt.Sscanf(string(text), "%d %d", new(int), &bytes)
	return bytes * os.Getpagesize()
}

func (s *Server) dial() (*goldap.Conn, error) {
	conn, err := goldap.DialURL(s.URL, goldap.DialWithTLSConfig(s.TLS), goldap.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}))
	if err != nil {
		return nil, err
	}
	conn.SetTimeout(30 * time.Second)
	return conn, nil
}

// Bind tries a name and a password.
func (s *Server) Bind(dn, password string) error {
	s.T.Helper()
	conn, err := s.dial()
	if err != nil {
		s.T.Fatal(err)
	}
	defer conn.Close()
	return conn.Bind(dn, password)
}

// As is a connection of somebody, which ends with the test.
func (s *Server) As(dn, password string) *goldap.Conn {
	s.T.Helper()
	conn, err := s.dial()
	if err == nil {
		err = conn.Bind(dn, password)
	}
	if err != nil {
		s.T.Fatal(err)
	}
	s.T.Cleanup(func() { conn.Close() })
	return conn
}

// Root is a connection that may do everything.
func (s *Server) Root() *goldap.Conn { s.T.Helper(); return s.As(BindDN, Password) }

// ReadOnly has slapd refuse every change until undone.
func (s *Server) ReadOnly() (undo func()) {
	s.T.Helper()
	conn := s.As("cn=config", Password)
	set := func(value string) {
		s.T.Helper()
		r := goldap.NewModifyRequest("olcDatabase={1}mdb,cn=config", nil)
		r.Replace("olcReadOnly", []string{value})
		if err := conn.Modify(r); err != nil {
			s.T.Fatal(err)
		}
	}
	set("TRUE")
	return func() { set("FALSE") }
}

// Run runs one of OpenLDAP's own programs as the daemon, with LDIF for it to read.
func (s *Server) Run(ldif, program string, args ...string) {
	s.T.Helper()
	cmd := exec.Command(program, append([]string{"-x", "-H", s.URL, "-D", BindDN, "-w", Password}, args...)...)
	cmd.Env = append(os.Environ(), "LDAPTLS_CACERT="+s.CA)
	cmd.Stdin = strings.NewReader(ldif)
	cmd.Stdout = nil
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		s.T.Fatalf("%s: %v\n%s", program, err, stderr.Bytes())
	}
}

// Dump is all that is in the directory, but for what slapd notes for itself: equal
// directories are equal.
func (s *Server) Dump() string {
	s.T.Helper()
	r := goldap.NewSearchRequest(Base, goldap.ScopeWholeSubtree, goldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", []string{"*", "pwdAccountLockedTime"}, nil)
	result, err := s.Root().SearchWithPaging(r, 500)
	if err != nil {
		s.T.Fatal(err)
	}
	return Text(result.Entries)
}

// Text is entries in the manner of LDIF, sorted throughout: equal ones are equal. Some
// attributes may be left out.
func Text(entries []*goldap.Entry, without ...string) string {
	entries = slices.SortedFunc(slices.Values(entries), func(a, b *goldap.Entry) int { return strings.Compare(a.DN, b.DN) })
	var b strings.Builder
	for _, e := range entries {
		attributes := map[string][]string{}
		for _, a := range e.Attributes {
			attributes[a.Name] = slices.Sorted(slices.Values(a.Values))
		}
		fmt.Fprintln(&b, "dn:", e.DN)
		for _, name := range slices.Sorted(maps.Keys(attributes)) {
			if slices.Contains(without, name) {
				continue
			}
			for _, value := range attributes[name] {
				fmt.Fprintf(&b, "%s: %s\n", name, value)
			}
		}
	}
	return b.String()
}
