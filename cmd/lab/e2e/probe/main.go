// Probe is what the tests of the network run in a Pod on each machine: it says
// who it is, and asks others on behalf of the test.
//
//	/           the name of the Pod
//	/get?url=   what a GET of the URL gives
//	/lookup?name=   the addresses of a name
//
// On a machine itself, probe watch URL CA FILE asks a URL twice a second, and
// appends a line to a file each time: when it asked, in nanoseconds, and ok, or no
// and the reason.
//
// probe fetch URL says how a GET ends: with which status, and the first of the answer.
// It believes every certificate, as one would who looks for a way in.
//
// What it does with the files of a volume stands in files.go:
//
//	probe cat FILE
//	probe write FOLDER COUNT SEED PAUSE
//	probe read FOLDER
//	probe verify FOLDER
//
// What it does with people stands in people.go:
//
//	probe bind ADDRESS CA
//	probe change ADDRESS CA
//	probe enroll ADDRESS CA LOGIN BELOW COUNT
//	probe dump ADDRESS CA BASE
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(args []string) error {
	verb := ""
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	switch {
	case verb == "watch" && len(args) == 3:
		return watch(args[0], args[1], args[2])
	case verb == "fetch" && len(args) == 1:
		return fetch(args[0])
	case verb == "cat" && len(args) == 1:
		return cat(args[0])
	case verb == "write" && len(args) == 4:
		return write(args[0], args[1], args[2], args[3])
	case verb == "read" && len(args) == 1:
		return read(args[0])
	case verb == "verify" && len(args) == 1:
		return verify(args[0], os.Stdin)
	case verb == "bind" && len(args) == 2:
		return bind(args[0], args[1])
	case verb == "change" && len(args) == 2:
		return change(args[0], args[1])
	case verb == "enroll" && len(args) == 5:
		return enroll(args[0], args[1], args[2], args[3], args[4])
	case verb == "dump" && len(args) == 3:
		return dump(args[0], args[1], args[2])
	}
	return serve()
}

func fetch(url string) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 200))
	fmt.Printf("%d %s\n", answer.StatusCode, text)
	return err
}

func serve() error {
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, os.Getenv("POD"), "on", os.Getenv("NODE"))
	})
	http.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		answer, err := client.Get(r.FormValue("url"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		_, _ = io.Copy(w, answer.Body)
	})
	http.HandleFunc("/lookup", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		found, err := net.DefaultResolver.LookupHost(ctx, r.FormValue("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintln(w, strings.Join(found, "\n"))
	})
	return http.ListenAndServe(":8080", nil)
}

// watch asks until it is killed, over a new connection each time. A second one at
// the same file goes on with it.
func watch(url, ca, file string) error {
	text, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return fmt.Errorf("%s has no certificate", ca)
	}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	out, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	for tick := time.NewTicker(500 * time.Millisecond); ; <-tick.C {
		asked, said := time.Now(), "ok"
		if err := ask(client, url); err != nil {
			said = fmt.Sprintf("no %q", err)
		}
		if _, err := fmt.Fprintln(out, asked.UnixNano(), said); err != nil {
			return err
		}
	}
}

func ask(client *http.Client, url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	return nil
}
