package kube_test

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// kubectl runs kubectl against the cluster, with a text on its standard input.
func kubectl(t *testing.T, c cluster, stdin string, args ...string) {
	t.Helper()
	cmd := exec.Command(c.Bin("kubectl"), append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// request is a line of the audit log.
type request struct {
	Verb, RequestURI, UserAgent string
	ObjectRef                   struct{ Resource, Name string }
}

// requests are those of this test's own client.
func requests(t *testing.T, audit string) (all []request) {
	t.Helper()
	f, err := os.Open(audit)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		if json.Unmarshal(lines.Bytes(), &r) == nil && strings.HasPrefix(r.UserAgent, "kube.test") {
			all = append(all, r)
		}
	}
	return all
}
