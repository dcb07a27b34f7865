package room

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
)

// gitUser may read and push.
const gitUser = "lab"

// URL is the address of the site repo, for reading and pushing.
func (r *Room) URL(ctx context.Context) (string, error) {
	n, err := r.network(ctx)
	if err != nil {
		return "", err
	}
	return gitURL(n), nil
}

func gitURL(n network) string { return fmt.Sprintf("https://%s/site.git", n.git()) }

// WorkTree is a clone of the site repo on this computer, from which "git push"
// works.
func (r *Room) WorkTree() string { return filepath.Join(r.Dir, "site") }

// Credentials is a folder with what the site repo asks for: username, password
// and ca.crt. Only its owner can read them.
func (r *Room) Credentials() string { return filepath.Join(r.Dir, "site-credentials") }

// startGit starts the git server, and waits until it answers.
func (r *Room) startGit(ctx context.Context, image string, n network) error {
	checkout, err := here.Checkout()
	if err != nil {
		return err
	}
	config := filepath.Join(r.Dir, "git")
	for _, dir := range []string{config, r.Credentials(), filepath.Join(r.Dir, "ca")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	serverCert, caCert, key, err := certificates(n.git())
	if err != nil {
		return err
	}
	password := rand.Text()
	for _, f := range []struct {
		file string
		text []byte
	}{
		{filepath.Join(config, "tls.crt"), serverCert},
		{filepath.Join(config, "tls.key"), key},
		{filepath.Join(config, "username"), []byte(gitUser)},
		{filepath.Join(config, "password"), []byte(password)},
		{filepath.Join(r.Dir, "ca", "ca.crt"), caCert},
		{filepath.Join(r.Credentials(), "ca.crt"), caCert},
		{filepath.Join(r.Credentials(), "username"), []byte(gitUser)},
		{filepath.Join(r.Credentials(), "password"), []byte(password)},
		{r.credentialStore(), fmt.Appendf(nil, "https://%s:%s@%s\n", gitUser, password, n.git())},
	} {
		if err := os.WriteFile(f.file, f.text, 0o600); err != nil {
			return err
		}
	}
	// Static, for the container's libraries need not be this computer's.
	if _, err := r.Runner.Run(ctx, Command{
		Args: []string{"go", "build", "-trimpath", "-o", filepath.Join(config, "gitserver"), "./cmd/lab/gitserver"},
		Dir:  checkout,
		Env:  []string{"CGO_ENABLED=0"},
	}); err != nil {
		return err
	}
	if _, err := r.docker(ctx, runGit(r.Name, n, image, config)...); err != nil {
		return err
	}
	client := clientOf(caCert)
	defer client.CloseIdleConnections()
	return await(ctx, 30*time.Second, func(ctx context.Context) error { return answersHTTP(ctx, client, gitURL(n)) })
}

// runGit gives the arguments of docker that start the git server. The repository
// lies in the container's own files, which live as long as it does.
func runGit(lab string, n network, image, config string) []string {
	return []string{
		"run", "--detach", "--name", lab + "-" + Git, "--hostname", Git,
		"--label", labelLab + "=" + lab, "--label", labelMachine + "=" + Git,
		"--network", lab, "--ip", n.git().String(),
		"--restart", "unless-stopped", "--log-opt", "max-size=1m",
		"--mount", "type=bind,src=" + config + ",dst=/etc/gitserver,readonly",
		image, "/etc/gitserver/gitserver",
	}
}

// certificates are a server's, for an address, that of the authority that vouches
// for it, and the server's key; all PEM.
func certificates(address netip.Addr) (server, ca, key []byte, err error) {
	chain, key, err := cert.GenerateSelfSignedCertKeyWithOptions(cert.SelfSignedCertKeyOptions{
		Host:   address.String(),
		MaxAge: 10 * 365 * 24 * time.Hour, // longer than any lab
	})
	if err != nil {
		return nil, nil, nil, err
	}
	first, rest := pem.Decode(chain)
	if first == nil {
		return nil, nil, nil, errors.New("there is no certificate")
	}
	return pem.EncodeToMemory(first), rest, key, nil
}

func clientOf(ca []byte) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{ // without a proxy: nobody else knows the lab's network
			TLSClientConfig: &tls.Config{RootCAs: pool},
			DialContext:     (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		},
	}
}

// answersHTTP has no error when a server answers, whatever it says.
func answersHTTP(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (r *Room) credentialStore() string { return filepath.Join(r.Dir, "git-credentials") }

// makeRepo makes the working clone, and pushes its first commit.
func (r *Room) makeRepo(ctx context.Context, site string) error {
	url, err := r.URL(ctx)
	if err != nil {
		return err
	}
	tree := r.WorkTree()
	if err := os.CopyFS(tree, os.DirFS(site)); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(tree, ".git")); err != nil { // it may be a clone, with an origin of its own
		return err
	}
	steps := [][]string{
		{"init", "--quiet", "--initial-branch=main"},
		{"remote", "add", "origin", url},
		{"config", "http.sslCAInfo", filepath.Join(r.Credentials(), "ca.crt")},
		{"config", "http.sslCAPath", filepath.Join(r.Dir, "ca")}, // where GIT_SSL_CAINFO is set, git ignores the line before
		{"config", "http.proxy", ""},                             // nobody else knows the lab's network
		{"config", "credential.helper", ""},
		{"config", "--add", "credential.helper", "store --file=" + r.credentialStore()},
	}
	for key, value := range map[string]string{"user.name": "Ada", "user.email": "ada@school.example"} {
		if out, _ := r.run(ctx, "git", "config", "--global", key); strings.TrimSpace(string(out)) == "" {
			steps = append(steps, []string{"config", key, value}) // git commits for nobody unknown
		}
	}
	steps = append(steps,
		[]string{"add", "--all"},
		[]string{"-c", "commit.gpgSign=false", "commit", "--quiet", "--message=The site as it begins"},
		[]string{"push", "--quiet", "--set-upstream", "origin", "main"},
	)
	for _, args := range steps {
		if _, err := r.Runner.Run(ctx, Command{
			Args: append([]string{"git", "-C", tree}, args...),
			Env:  []string{"GIT_TERMINAL_PROMPT=0"}, // rather an error than a question
		}); err != nil {
			return err
		}
	}
	return nil
}
