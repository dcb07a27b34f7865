package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"", 2, "usage: lab VERB"},
		{"help", 0, "controlplane"},
		{"demolish", 2, `there is no verb "demolish"`},
		{"controlplane -h", 0, "usage: lab controlplane [flags] [-- CMD ARGS...]"},
		{"controlplane -kontrollers", 2, "flag provided but not defined: -kontrollers"},
	} {
		var stderr bytes.Buffer
		if code := run(t.Context(), strings.Fields(test.args), &stderr); code != test.code || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("lab %s: exit code %d, want %d with %q:\n%s", test.args, code, test.code, test.want, &stderr)
		}
	}
}

// TestControlPlane runs commands that say how they were run.
func TestControlPlane(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a control plane")
	}
	for _, test := range []struct {
		script string
		code   int
		want   string
	}{
		{`kubectl get --raw /readyz; echo " $KUBECONFIG" >$OUT`, 0, "kubeconfig"},
		{`exit 7`, 7, ""},
		{`kill -KILL $$`, 128 + 9, ""},
	} {
		t.Setenv("PATH", os.Getenv("PATH")) // which lab changes, as well as KUBECONFIG
		t.Setenv("KUBECONFIG", "")
		out := filepath.Join(t.TempDir(), "out")
		t.Setenv("OUT", out)
		var stderr bytes.Buffer
		code := run(t.Context(), []string{"controlplane", "--", "sh", "-ec", test.script}, &stderr)
		said, _ := os.ReadFile(out)
		if code != test.code || !strings.Contains(string(said), test.want) || stderr.Len() > 0 {
			t.Errorf("%s: exit code %d, want %d; %s\n%s", test.script, code, test.code, said, &stderr)
		}
		if kubeconfig := strings.TrimSpace(string(said)); kubeconfig != "" {
			if _, err := os.Stat(kubeconfig); err == nil {
				t.Errorf("%s is still there", kubeconfig)
			}
		}
	}
}
