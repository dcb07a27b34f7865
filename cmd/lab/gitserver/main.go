// Gitserver serves one git repository over HTTPS, to whoever knows user and
// password. It is the site repo of a lab, in a container on the lab's network,
// and nothing that a school should use.
//
//	gitserver -config /etc/gitserver -repo /srv/site.git
//
// The folder of the configuration holds tls.crt, tls.key, username and password.
// The repository is made, empty, where it does not exist. Git itself does the
// work (git http-backend); this program is the web server around it.
package main

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	config := flag.String("config", "/etc/gitserver", "`folder` with tls.crt, tls.key, username, password")
	repo := flag.String("repo", "/srv/site.git", "the repository")
	listen := flag.String("listen", ":443", "`address` to serve at")
	flag.Parse()
	if err := run(ctx, *config, *repo, *listen, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, "gitserver:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, config, repo, listen string, log *slog.Logger) error {
	user, err := os.ReadFile(filepath.Join(config, "username"))
	if err != nil {
		return err
	}
	password, err := os.ReadFile(filepath.Join(config, "password"))
	if err != nil {
		return err
	}
	if err := makeRepo(ctx, repo); err != nil {
		return err
	}
	// Debian 12's git pushes with curl 7.88, which spoils what it uploads over HTTP/2
	// now and then (curl/curl#10525 and others): "inflate: data stream error".
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	server := &http.Server{
		Addr:              listen,
		Protocols:         &protocols,
		Handler:           handler(repo, strings.TrimSpace(string(user)), strings.TrimSpace(string(password)), log),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelInfo),
	}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	log.Info("serving", "repo", repo, "address", listen)
	err = server.ListenAndServeTLS(filepath.Join(config, "tls.crt"), filepath.Join(config, "tls.key"))
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// makeRepo makes the repository where it does not exist.
func makeRepo(ctx context.Context, repo string) error {
	if _, err := os.Stat(filepath.Join(repo, "HEAD")); err == nil {
		return nil
	}
	for _, args := range [][]string{
		{"init", "--quiet", "--bare", "--initial-branch=main", repo},
		{"-C", repo, "config", "gc.auto", "0"}, // nobody would wait for the end of such a process
	} {
		if out, err := exec.CommandContext(ctx, "git", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// maxPush is the most that a push may hold, in bytes.
const maxPush = 256 << 20

func handler(repo, user, password string, log *slog.Logger) http.Handler {
	git := &cgi.Handler{
		Path:   "/usr/lib/git-core/git-http-backend",
		Stderr: os.Stderr,
		Env: []string{
			"GIT_PROJECT_ROOT=" + filepath.Dir(repo),
			"GIT_HTTP_EXPORT_ALL=1",
			"REMOTE_USER=" + user, // who is somebody may push
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		u, p, _ := req.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(u), []byte(user))&subtle.ConstantTimeCompare([]byte(p), []byte(password)) == 0 {
			w.Header().Set("WWW-Authenticate", `Basic realm="site repo"`)
			http.Error(w, "user or password is wrong", http.StatusUnauthorized)
			return
		}
		if !strings.HasPrefix(req.URL.Path, "/"+filepath.Base(repo)+"/") {
			http.NotFound(w, req)
			return
		}
		// CGI must know the length, and git does not tell it of a big push.
		if req.ContentLength < 0 {
			body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxPush))
			if err != nil {
				http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
				return
			}
			req.Body, req.ContentLength, req.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		}
		log.Info("request", "method", req.Method, "path", req.URL.Path, "service", req.URL.Query().Get("service"), "from", req.RemoteAddr)
		git.ServeHTTP(w, req)
	})
}
