package git

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// canary stands for every secret of these tests. No error may hold it.
const canary = "c4n4ry-Tr1ll"

// run runs git, or another program, in a folder.
func run(t testing.TB, dir, program string, args ...string) string {
	t.Helper()
	c := exec.Command(program, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "HOME=/nonexistent",
		"GIT_AUTHOR_NAME=T", "GIT_AUTHOR_EMAIL=t@example.org", "GIT_COMMITTER_NAME=T", "GIT_COMMITTER_EMAIL=t@example.org", "GIT_TERMINAL_PROMPT=0")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// site is a bare repository, and a work tree that is pushed to it.
type site struct {
	t          testing.TB
	bare, work string
}

func newSite(t testing.TB) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t, filepath.Join(dir, "site.git"), filepath.Join(dir, "work")}
	run(t, dir, "git", "init", "-q", "--bare", "-b", "main", s.bare)
	run(t, dir, "git", "init", "-q", "-b", "main", s.work)
	run(t, s.bare, "git", "config", "receive.denyDeleteCurrent", "ignore")
	s.git("remote", "add", "origin", s.bare)
	return s
}

func (s *site) git(args ...string) string { s.t.Helper(); return run(s.t, s.work, "git", args...) }

// write saves files: path, content, path, content.
func (s *site) write(pairs ...string) {
	s.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		write(s.t, filepath.Join(s.work, pairs[i]), pairs[i+1])
	}
}

func write(t testing.TB, at, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// commit saves files, commits and returns the hash.
func (s *site) commit(pairs ...string) string {
	s.t.Helper()
	s.write(pairs...)
	s.git("add", "-A")
	s.git("commit", "-q", "--allow-empty", "-m", "m")
	return s.git("rev-parse", "HEAD")
}

// push commits files and pushes them to main, whatever is there.
func (s *site) push(pairs ...string) string {
	s.t.Helper()
	hash := s.commit(pairs...)
	s.git("push", "-q", "-f", "origin", "HEAD:refs/heads/main")
	return hash
}

// open opens a repository and closes it after the test.
func open(t testing.TB, o Options) Repository {
	t.Helper()
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// newest is the head commit and its tree.
func newest(t testing.TB, r Repository) (string, *tree.Dir) {
	t.Helper()
	commit, err := r.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := r.Tree(t.Context(), commit)
	if err != nil {
		t.Fatal(err)
	}
	return commit, d
}

// wantHead checks commit and files: path, content, path, content.
func wantHead(t testing.TB, r Repository, commit string, pairs ...string) {
	t.Helper()
	got, d := newest(t, r)
	if commit != "" && got != commit {
		t.Fatalf("head %s, want %s", got, commit)
	}
	wantFiles(t, d, pairs...)
}

func wantFiles(t testing.TB, d *tree.Dir, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		f := d.File(pairs[i])
		if f == nil {
			t.Fatalf("no file %s", pairs[i])
		}
		content, err := f.Read()
		if err != nil || string(content) != pairs[i+1] {
			t.Fatalf("%s holds %.80q, %v, want %.80q", pairs[i], content, err, pairs[i+1])
		}
	}
}

// wantFault checks the code of an error, that it tells what to do, and that it
// tells no secret.
func wantFault(t testing.TB, err error, code plan.Code, words ...string) {
	t.Helper()
	var f *plan.Fault
	if !errors.As(err, &f) {
		t.Fatalf("error %v is no fault, want %s", err, code)
	}
	if f.Code != code {
		t.Fatalf("fault %s: %v, want %s", f.Code, f, code)
	}
	for _, w := range words {
		if !strings.Contains(f.Error(), w) {
			t.Errorf("%q does not say %q", f, w)
		}
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", f, f, *f), canary) || strings.Contains(f.Error(), "failed to") {
		t.Errorf("%q tells too much", f)
	}
	t.Log(f)
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s did not come about", what)
}

// backend serves all repositories below a folder, as git does over http.
func backend(t testing.TB, root string) http.Handler {
	at := strings.TrimSpace(run(t, ".", "git", "--exec-path")) + "/git-http-backend"
	if _, err := os.Stat(at); err != nil {
		t.Skip("no git-http-backend here")
	}
	return &cgi.Handler{Path: at, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=/nonexistent", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}, Stderr: io.Discard}
}

// basic asks for a name and password in front of a handler.
func basic(user, password string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != password {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, "no: %s %s:%s %s", r.Header.Get("Authorization"), u, p, r.URL) // some servers do quote
			return
		}
		next.ServeHTTP(w, r)
	})
}

func serveTLS(t testing.TB, h http.Handler) (url string, ca plan.Secret) {
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return s.URL, plan.NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
}

// otherCA is a certificate that nobody uses.
func otherCA(t testing.TB) plan.Secret {
	public, private, _ := ed25519.GenerateKey(rand.Reader)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, NotAfter: time.Now().Add(time.Hour), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return plan.NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

// sshServer runs git-upload-pack for whoever has the key.
type sshServer struct {
	address    string
	identity   plan.Secret // a key that it lets in
	knownHosts plan.Secret
	hostKey    ssh.Signer
}

func newKey(t testing.TB, passphrase string) (ssh.Signer, plan.Secret) {
	t.Helper()
	_, private, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return signer, plan.NewSecret(string(pem.EncodeToMemory(block)))
}

func serveSSH(t testing.TB) *sshServer {
	s := &sshServer{}
	var client ssh.Signer
	client, s.identity = newKey(t, "")
	s.hostKey, _ = newKey(t, "")
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != "git" || !bytes.Equal(key.Marshal(), client.PublicKey().Marshal()) {
			return nil, errors.New("no")
		}
		return nil, nil
	}}
	config.AddHostKey(s.hostKey)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	s.knownHosts = plan.NewSecret(knownhosts.Line([]string{knownhosts.Normalize(s.address)}, s.hostKey.PublicKey()) + "\n")
	var group sync.WaitGroup
	t.Cleanup(func() { l.Close(); group.Wait() })
	group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { serveConn(conn, config) })
		}
	})
	return s
}

func serveConn(conn net.Conn, config *ssh.ServerConfig) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go func() {
			defer channel.Close()
			for r := range requests {
				if r.Type != "exec" {
					r.Reply(false, nil)
					continue
				}
				r.Reply(true, nil)
				command := exec.Command("sh", "-c", string(r.Payload[4:]))
				command.Env = append(os.Environ(), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
				command.Stdout, command.Stderr = channel, channel.Stderr()
				stdin, _ := command.StdinPipe()
				go func() { io.Copy(stdin, channel); stdin.Close() }()
				status := byte(0)
				if command.Run() != nil {
					status = 1
				}
				channel.SendRequest("exit-status", false, []byte{0, 0, 0, status})
				return
			}
		}()
	}
}

func (s *sshServer) options(path string) Options {
	return Options{URL: "ssh://git@" + s.address + path, Credentials: Credentials{Identity: s.identity, KnownHosts: s.knownHosts}}
}

// ways are all ways to one bare repository.
func ways(t testing.TB, bare string) map[string]Options {
	https, ca := serveTLS(t, basic("anna", canary, backend(t, filepath.Dir(bare))))
	return map[string]Options{
		"path":  {URL: bare},
		"file":  {URL: "file://" + bare},
		"https": {URL: https + "/" + filepath.Base(bare), Credentials: Credentials{Username: plan.NewSecret("anna"), Password: plan.NewSecret(canary), CA: ca}},
		"ssh":   serveSSH(t).options(bare),
	}
}

// eachWay runs a test over all of them, some in memory and some with a cache.
func eachWay(t *testing.T, test func(t *testing.T, s *site, o Options)) {
	for name, cached := range map[string]bool{"path": true, "file": false, "https": true, "ssh": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			o := ways(t, s.bare)[name]
			if cached {
				o.Cache = t.TempDir()
			}
			test(t, s, o)
		})
	}
}
