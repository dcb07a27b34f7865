package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

func secret(s string) plan.Secret { return plan.NewSecret(s) }

func TestHTTPS(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	commit := s.push("site.yaml", "one")
	git := backend(t, filepath.Dir(s.bare))
	protected, ca := serveTLS(t, basic("anna", canary, git))

	look := func(url string, c Credentials) error {
		r := open(t, Options{URL: url, Credentials: c})
		got, err := r.Head(t.Context())
		if err == nil {
			_, err = r.Tree(t.Context(), got)
		}
		if err == nil && got != commit {
			t.Errorf("head %s, want %s", got, commit)
		}
		return err
	}
	good := Credentials{Username: secret("anna"), Password: secret(canary), CA: ca}
	if err := look(protected+"/site.git", good); err != nil {
		t.Error(err)
	}
	wantFault(t, look(protected+"/site.git", Credentials{CA: ca}), AuthenticationFailed, "wants credentials", "--credentials")
	wantFault(t, look(protected+"/site.git", Credentials{Username: secret("anna"), Password: secret("wrong" + canary), CA: ca}), AuthenticationFailed, "refuses")
	wantFault(t, look(protected+"/site.git", Credentials{Token: secret(canary), CA: ca}), AuthenticationFailed)
	wantFault(t, look(protected+"/nothing.git", good), RepositoryNotFound)
	wantFault(t, look(protected+"/site.git", Credentials{Username: good.Username, Password: good.Password}), TLSUntrusted, "ca.crt")
	wantFault(t, look(protected+"/site.git", Credentials{Username: good.Username, Password: good.Password, CA: otherCA(t)}), TLSUntrusted)
	wantFault(t, look(protected+"/site.git", Credentials{CA: secret("nonsense")}), CredentialsInvalid)
	wantFault(t, look(strings.Replace(protected, "127.0.0.1", "localhost", 1)+"/site.git", good), TLSUntrusted)

	t.Run("bearer", func(t *testing.T) {
		url, ca := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+canary {
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprint(w, "no: ", r.Header)
				return
			}
			git.ServeHTTP(w, r)
		}))
		if err := look(url+"/site.git", Credentials{Token: secret(canary), CA: ca}); err != nil {
			t.Error(err)
		}
		wantFault(t, look(url+"/site.git", Credentials{Token: secret("x" + canary), CA: ca}), AuthenticationFailed)
	})
	t.Run("other answers", func(t *testing.T) {
		for _, status := range []int{200, 204, 500, 503, 429, 418} {
			url, ca := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(status)
				fmt.Fprint(w, "<html>", r.Header)
			}))
			wantFault(t, look(url+"/site.git", Credentials{Username: secret("anna"), Password: secret(canary), CA: ca}), RepositoryUnreachable)
		}
	})
	t.Run("no one there", func(t *testing.T) {
		l, _ := net.Listen("tcp", "127.0.0.1:0")
		l.Close()
		wantFault(t, look("https://"+l.Addr().String()+"/site.git", good), RepositoryUnreachable, "refused")
	})
}

// Whoever answers must not send us, and our credentials, elsewhere.
func TestRedirects(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	commit := s.push("site.yaml", "one")
	var stolen []string
	trap, _ := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stolen = append(stolen, r.Header.Get("Authorization"))
	}))
	git := backend(t, filepath.Dir(s.bare))
	to := func(target string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/site.git") {
				git.ServeHTTP(w, r)
				return
			}
			http.Redirect(w, r, target+strings.Replace(r.URL.String(), "/old", "/site.git", 1), http.StatusMovedPermanently)
		})
	}
	for _, target := range []string{trap, "http://169.254.169.254/latest", "http://127.0.0.1:1", "file:///etc/passwd", "ssh://git@elsewhere.example"} {
		url, ca := serveTLS(t, to(target))
		_, err := open(t, Options{URL: url + "/old", Credentials: Credentials{Username: secret("anna"), Password: secret(canary), CA: ca}}).Head(t.Context())
		wantFault(t, err, RedirectRefused)
	}
	if len(stolen) > 0 {
		t.Errorf("the trap got %q", stolen)
	}
	url, ca := serveTLS(t, to(""))
	wantHead(t, open(t, Options{URL: url + "/old", Credentials: Credentials{CA: ca}}), commit, "site.yaml", "one")
}

func TestSSH(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	commit := s.push("site.yaml", "one")
	server := serveSSH(t)
	good := server.options(s.bare)
	wantHead(t, open(t, good), commit, "site.yaml", "one")

	look := func(url string, change func(*Credentials)) error {
		o := good
		if url != "" {
			o.URL = url
		}
		change(&o.Credentials)
		_, err := open(t, o).Head(t.Context())
		if err == nil {
			t.Fatal("no error")
		}
		return err
	}
	_, stranger := newKey(t, "")
	strangerHost, locked := newKey(t, canary)
	wantFault(t, look("", func(c *Credentials) { c.Identity = plan.Secret{} }), AuthenticationFailed, "identity")
	wantFault(t, look("", func(c *Credentials) { c.Identity = stranger }), AuthenticationFailed, "deploy key")
	wantFault(t, look("", func(c *Credentials) { c.Identity = secret("-----BEGIN OPENSSH PRIVATE KEY-----\n" + canary) }), CredentialsInvalid)
	wantFault(t, look("", func(c *Credentials) { c.Identity = locked }), CredentialsInvalid, "passphrase")
	wantFault(t, look("", func(c *Credentials) { c.Identity, c.Password = locked, secret("x"+canary) }), CredentialsInvalid)
	wantFault(t, look("", func(c *Credentials) { c.Identity, c.Password = locked, secret(canary) }), AuthenticationFailed, "refuses")
	wantFault(t, look("", func(c *Credentials) { c.KnownHosts = plan.Secret{} }), HostKeyUnknown, "ssh-keyscan")
	wantFault(t, look("", func(c *Credentials) { c.KnownHosts = secret("nonsense\n") }), CredentialsInvalid)
	wantFault(t, look("", func(c *Credentials) {
		c.KnownHosts = secret(knownhosts.Line([]string{"elsewhere.example"}, server.hostKey.PublicKey()))
	}), HostKeyUnknown, "SHA256:")
	wantFault(t, look("", func(c *Credentials) {
		c.KnownHosts = secret(knownhosts.Line([]string{knownhosts.Normalize(server.address)}, strangerHost.PublicKey()))
	}), HostKeyMismatch, "posing")
	wantFault(t, look("ssh://root@"+server.address+s.bare, func(*Credentials) {}), AuthenticationFailed)
	wantFault(t, look("ssh://git@"+server.address+"/nothing'; touch /tmp/x; echo '!", func(*Credentials) {}), RepositoryNotFound)
	hashed := good
	hashed.Credentials.KnownHosts = secret(knownhosts.Line([]string{knownhosts.HashHostname(knownhosts.Normalize(server.address))}, server.hostKey.PublicKey()))
	wantHead(t, open(t, hashed), commit)
}

// A server that takes the call and then says nothing, or never ends.
func TestSilentServers(t *testing.T) {
	t.Parallel()
	_, ca := serveTLS(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() }) // and keeps it from being collected
		}
	}()
	key, identity := newKey(t, "")
	c := Credentials{Identity: identity, KnownHosts: secret(knownhosts.Line([]string{l.Addr().String()}, key.PublicKey())), CA: ca}
	for _, url := range []string{"https://" + l.Addr().String() + "/x", "ssh://git@" + l.Addr().String() + "/x"} {
		_, err := open(t, Options{URL: url, Credentials: c, Limits: Limits{Time: 50 * time.Millisecond}}).Head(t.Context())
		wantFault(t, err, RepositoryUnreachable, "not done within")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err = open(t, Options{URL: url, Credentials: c}).Head(ctx)
		if cancel(); !errors.Is(err, context.DeadlineExceeded) || isFault(err) {
			t.Errorf("given up: %v", err)
		}
	}
	endless, ca := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		io.WriteString(w, "001e# service=git-upload-pack\n0000")
		for i := 0; r.Context().Err() == nil; i++ {
			line := fmt.Sprintf("%040x refs/heads/b%d\n", i+1, i)
			if i == 0 {
				line = fmt.Sprintf("%040x refs/heads/b\x00\n", 1)
			}
			fmt.Fprintf(w, "%04x%s", len(line)+4, line)
		}
	}))
	_, err = open(t, Options{URL: endless + "/x", Credentials: Credentials{CA: ca}, Limits: Limits{Refs: 1000}}).Head(t.Context())
	wantFault(t, err, TooLarge)
}

func TestRevisions(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.push("site.yaml", "one")
	s.git("tag", "light")
	s.git("tag", "-a", "-m", "m", "v1.0")
	s.git("tag", "both")
	second := s.push("site.yaml", "two")
	s.git("branch", "both")
	s.git("tag", "main", first) // the branch wins
	s.git("push", "-q", "origin", "refs/heads/both", "refs/tags/both", "light", "v1.0", "refs/tags/main")
	third := s.push("site.yaml", "three")
	s.git("fetch", "-q")
	for name, o := range ways(t, s.bare) {
		t.Run(name, func(t *testing.T) {
			for revision, want := range map[string]string{"": third, "main": third, "light": first, "v1.0": first, "both": second, second: second, "HEAD": third} {
				o.Revision = revision
				wantHead(t, open(t, o), want)
			}
			o.Revision = "nothing"
			_, err := open(t, o).Head(t.Context())
			wantFault(t, err, RevisionNotFound)
			o.Revision = strings.Repeat("1", 40)
			r := open(t, o)
			if _, err = r.Head(t.Context()); err != nil {
				t.Error(err)
			}
			_, err = r.Tree(t.Context(), o.Revision)
			if err == nil {
				t.Fatal("a tree of a commit that is not there")
			}
			t.Log(err)
		})
	}
	for revision, want := range map[string]string{"HEAD~1": second, "HEAD^": second, "main~2": first, third[:9]: third, "v1.0": first, "origin/main": third, "main~0": third} {
		wantHead(t, open(t, Options{URL: s.work, Revision: revision}), want)
	}
	for _, revision := range []string{"HEAD~9", "HEAD^2", "origin/nothing"} {
		_, err := open(t, Options{URL: s.work, Revision: revision}).Head(t.Context())
		wantFault(t, err, RevisionNotFound, "unshallow")
	}
	s.commit("sub/site.yaml", "four")
	wantHead(t, open(t, Options{URL: filepath.Join(s.work, "sub"), Revision: "HEAD"}), "", "site.yaml", "four")
	linked := filepath.Join(t.TempDir(), "linked")
	s.git("worktree", "add", "-q", linked, "HEAD~1")
	wantHead(t, open(t, Options{URL: linked, Revision: "HEAD"}), third, "site.yaml", "three")
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := LoadCredentials(dir + "/missing")
	wantFault(t, err, CredentialsInvalid, "holds none")
	// What the kubelet makes of an optional Secret that is not there, and of one
	// that has nothing for us.
	write(t, dir+"/..2026_01_01/webhook-secret", canary)
	for _, link := range [][2]string{{"..2026_01_01", "..data"}, {"..data/webhook-secret", "webhook-secret"}} {
		if err := os.Symlink(link[0], filepath.Join(dir, link[1])); err != nil {
			t.Fatal(err)
		}
	}
	c, err := LoadCredentials(dir)
	if err != nil || len(c.secrets()) != 0 {
		t.Errorf("%d secrets, %v", len(c.secrets()), err)
	}
	write(t, dir+"/user", "anna\n")
	_, err = LoadCredentials(dir)
	wantFault(t, err, CredentialsInvalid, "holds none")
	write(t, dir+"/username", "anna\n")
	write(t, dir+"/password", canary+"\r\n")
	c, err = LoadCredentials(dir)
	if err != nil || c.Username.Value() != "anna" || c.Password.Value() != canary {
		t.Errorf("%q, %v", c.Password.Value(), err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", c, c, Options{Credentials: c}, c.Password); strings.Contains(text, canary) {
		t.Error(text)
	}
	write(t, dir+"/known_hosts", strings.Repeat("x", maxCredential+1))
	_, err = LoadCredentials(dir)
	wantFault(t, err, CredentialsInvalid, "too large")
	os.Remove(dir + "/known_hosts")

	// A token that was renewed is taken up.
	s := newSite(t)
	commit := s.push("site.yaml", "one")
	url, ca := serveTLS(t, basic("anna", "new"+canary, backend(t, filepath.Dir(s.bare))))
	write(t, dir+"/ca.crt", ca.Value())
	c, _ = LoadCredentials(dir)
	r := open(t, Options{URL: url + "/site.git", Credentials: c})
	_, err = r.Head(t.Context())
	wantFault(t, err, AuthenticationFailed)
	write(t, dir+"/password", "new"+canary)
	wantHead(t, r, commit)
	os.RemoveAll(dir)
	_, err = r.Head(t.Context())
	wantFault(t, err, CredentialsInvalid)
}

// TestClean: what servers say goes into errors, but not all of it.
func TestClean(t *testing.T) {
	t.Parallel()
	c := Credentials{Username: secret("anna"), Password: secret(canary), Identity: secret("-----BEGIN-----\n" + strings.Repeat(canary, 3) + "\n")}
	said := "anna said " + canary + " and YW5uYTpjNG40cnktVHIxbGw= to https://u:p@host/ and https://u@host\x1b[31m\n" + strings.Repeat(canary, 3) + strings.Repeat("x", 1000)
	got := clean(said, c.secrets())
	for _, bad := range []string{canary, "YW5u", "u:p", "u@", "\x1b", "\n"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q has %q", got, bad)
		}
	}
	if len(got) > 320 {
		t.Errorf("%d bytes", len(got))
	}
}

// TestMain catches everything that any test, or library, logs.
func TestMain(m *testing.M) {
	var logged strings.Builder
	log.SetOutput(io.MultiWriter(os.Stderr, &logged))
	code := m.Run()
	if strings.Contains(logged.String(), canary) {
		fmt.Fprintln(os.Stderr, "a secret was logged")
		code = 1
	}
	os.Exit(code)
}
