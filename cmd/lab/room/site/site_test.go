package site

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
)

func TestPasted(t *testing.T) {
	for _, test := range []struct {
		text, args, token, err string
	}{
		{"noded join 10.0.0.11:6443 --ca-hash sha256:12 <<< abcdef.0123456789abcdef\n", "noded join 10.0.0.11:6443 --ca-hash sha256:12", "abcdef.0123456789abcdef\n", ""},
		{"valid for 15 minutes; paste on the machine:\n\nnoded join a,b --ca-hash c <<< d.e\nthat is all\n", "noded join a,b --ca-hash c", "d.e\n", ""},
		{"", "", "", "no line with noded join"},
		{"rm -rf / <<< x\n", "", "", "no line with noded join"},
	} {
		args, token, err := pasted(test.text)
		if strings.Join(args, " ") != test.args || token != test.token || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%q: %q %q %v", test.text, args, token, err)
		}
	}
}

// sites are objects, as the API gives them.
const (
	readyOne  = `{"metadata":{"name":"pc-01"},"status":{"conditions":[{"type":"Ready","status":"True"}]}}`
	readyTwo  = `{"metadata":{"name":"pc-02"},"status":{"conditions":[{"type":"Ready","status":"True"}]}}`
	unready   = `{"metadata":{"name":"pc-02"},"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`
	pod       = `{"metadata":{"namespace":"%s","name":"x"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`
	podWaits  = `{"metadata":{"namespace":"kube-system","name":"coredns"},"status":{"phase":"Pending"}}`
	podFails  = `{"metadata":{"namespace":"kube-system","name":"coredns"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"False"}]}}`
	siteAt    = `{"status":{"commit":{"wanted":"1234567890","reached":"1234567890"}}}`
	siteNever = `{"status":{"commit":{"wanted":"1234567890"}}}`
)

func objects(t *testing.T, texts ...string) (all []object) {
	t.Helper()
	for _, text := range texts {
		var o object
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

func TestPending(t *testing.T) {
	var pods []string
	for _, namespace := range system() {
		pods = append(pods, fmt.Sprintf(pod, namespace))
	}
	for _, test := range []struct {
		name                         string
		nodes, machines, pods, sites []string
		want                         []string
	}{
		{"all done", []string{readyOne, readyTwo}, []string{readyTwo, readyOne}, pods, []string{siteAt}, nil},
		{"a machine is missing", []string{readyOne}, []string{readyOne}, pods, []string{siteAt},
			[]string{"Node pc-02 is missing", "Machine pc-02 is missing"}},
		{"a machine does not work", []string{readyOne, unready}, []string{readyOne, readyTwo}, pods, []string{siteAt},
			[]string{"Node pc-02 is not Ready"}},
		{"a Pod waits", []string{readyOne, readyTwo}, []string{readyOne, readyTwo}, append(slices.Clone(pods), podWaits), []string{siteAt},
			[]string{"Pod kube-system/coredns is Pending, and not ready"}},
		{"a Pod fails", []string{readyOne, readyTwo}, []string{readyOne, readyTwo}, append(slices.Clone(pods), podFails), []string{siteAt},
			[]string{"Pod kube-system/coredns is Running, and not ready"}},
		{"no network", []string{readyOne, readyTwo}, []string{readyOne, readyTwo}, []string{pods[0], pods[2]}, []string{siteAt},
			[]string{"there is no Pod in " + system()[1]}},
		{"behind", []string{readyOne, readyTwo}, []string{readyOne, readyTwo}, pods, []string{siteNever},
			[]string{"the site is at commit (none), and its repo at 12345678"}},
		{"no Site", []string{readyOne, readyTwo}, []string{readyOne, readyTwo}, pods, nil,
			[]string{"there are 0 Sites"}},
	} {
		f := found{objects(t, test.nodes...), objects(t, test.machines...), objects(t, test.pods...), objects(t, test.sites...)}
		if got := f.pending([]string{"pc-01", "pc-02"}, "1234567890"); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestFit(t *testing.T) {
	names := func(dir string) (names []string) {
		entries, err := os.ReadDir(filepath.Join(dir, "machines"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
		}
		return names
	}
	for _, test := range []struct {
		machines int
		want     []string
	}{
		{1, []string{"pc-01"}},
		{5, []string{"pc-01", "pc-02", "pc-03", "pc-04", "pc-05"}},
		{7, []string{"pc-01", "pc-02", "pc-03", "pc-04", "pc-05", "pc-06", "pc-07"}},
	} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS("../../../../examples/lab")); err != nil {
			t.Fatal(err)
		}
		if err := Fit(dir, test.machines); err != nil {
			t.Fatal(err)
		}
		if got := names(dir); !slices.Equal(got, test.want) {
			t.Errorf("%d machines: %v", test.machines, got)
		}
		last, err := os.ReadFile(filepath.Join(dir, "machines", test.want[len(test.want)-1]+".yaml"))
		if err != nil || !strings.Contains(string(last), "name: "+room.MachineName(test.machines)+"\n") || !strings.Contains(string(last), "mac: "+room.MAC(test.machines)+"\n") {
			t.Errorf("%d machines: the last is %s %v", test.machines, last, err)
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../../../examples/school")); err != nil {
		t.Fatal(err)
	}
	if err := Fit(dir, 2); err != nil || !slices.Equal(names(dir), []string{"lab-a", "lab-b", "library"}) {
		t.Errorf("a site that declares its machines otherwise was changed: %v %v", names(dir), err)
	}
}

// machines is a Runner that answers as Docker does of a room with machines at
// 127.0.0.N; those that are off have no power.
type machines struct {
	last []byte // N of each
	off  []byte
	exec func(machine string, args []string, stdin string) (string, error)
}

func (m machines) Run(_ context.Context, c room.Command) ([]byte, error) {
	switch {
	case c.Args[0] == "git":
		return []byte("1234567890\n"), nil
	case c.Args[1] == "ps":
		return []byte("ids"), nil
	case c.Args[1] == "inspect":
		var all []string
		for i, n := range m.last {
			all = append(all, fmt.Sprintf(`{"Config":{"Labels":{"kingmaker.machine":"pc-%02d"}},"State":{"Running":%v},"NetworkSettings":{"Networks":{"lab":{"IPAMConfig":{"IPv4Address":"127.0.0.%d"}}}}}`,
				i+1, !slices.Contains(m.off, n), n))
		}
		return []byte("[" + strings.Join(all, ",") + "]"), nil
	case c.Args[1] == "network" && c.Args[2] == "ls":
		return []byte("0123456789abcdef"), nil
	case c.Args[1] == "network":
		return []byte(`[{"Id":"0123456789abcdef","IPAM":{"Config":[{"Subnet":"10.181.1.0/24"}]}}]`), nil
	case c.Args[1] == "cp":
		_, err := m.exec(c.Args[3], c.Args[2:3], "")
		return nil, err
	case c.Args[1] == "exec":
		stdin, err := io.ReadAll(c.Stdin)
		if err != nil {
			return nil, err
		}
		said, err := m.exec(c.Args[3], c.Args[4:], string(stdin))
		return []byte(said), err
	}
	return nil, fmt.Errorf("unexpected: %s", c)
}

// listen serves at port 6443 of 127.0.0.n, where a master would.
func listen(t *testing.T, n byte, handler http.HandlerFunc) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, n}), 6443).String())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(handler)
	s.Listener.Close()
	s.Listener = l
	s.StartTLS()
	t.Cleanup(s.Close)
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func newSite(t *testing.T) *Site {
	t.Helper()
	t.Setenv("KINGMAKER_CACHE", t.TempDir())
	r, err := room.New("lab", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return &Site{Room: r, Progress: func(string) {}}
}

// adminKubeconfig is one as kubeadm writes it, but for the certificates.
func adminKubeconfig(t *testing.T) []byte {
	t.Helper()
	text, err := clientcmd.Write(clientcmdapi.Config{
		CurrentContext: "lab",
		Contexts:       map[string]*clientcmdapi.Context{"lab": {Cluster: "lab"}},
		Clusters:       map[string]*clientcmdapi.Cluster{"lab": {Server: "https://api.lab.internal:7443", InsecureSkipTLSVerify: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestUp: what is run on which machine, and in which order.
func TestUp(t *testing.T) {
	listen(t, 71, func(w http.ResponseWriter, req *http.Request) {
		text := readyOne + "," + readyTwo
		switch path := strings.Split(req.URL.Path, "/"); path[len(path)-1] {
		case "pods":
			text = fmt.Sprintf(pod, path[len(path)-2])
		case "sites":
			text = siteAt
		}
		fmt.Fprintf(w, `{"items":[%s]}`, text)
	})
	s := newSite(t)
	config := string(adminKubeconfig(t))
	var mu sync.Mutex
	ran, broken := map[string][]string{}, ""
	exec := func(machine string, args []string, stdin string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		command := strings.TrimSpace(strings.Join(args, " ") + " " + stdin)
		ran[machine] = append(ran[machine], command)
		switch {
		case command == broken:
			return "one\ntwo\n", &room.Exit{Code: 2, Stderr: "three: it broke\n"}
		case args[0] == "tail":
			return "as the log has it\n", nil
		case args[0] == "reconcile":
			return "noded join 127.0.0.71:6443 --ca-hash sha256:12 <<< abcdef.0123456789abcdef\n", nil
		case args[0] == "cat":
			return config, nil
		}
		return "", nil
	}
	s.Room.Runner = machines{last: []byte{71, 72}, exec: exec}
	if err := s.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"lab-pc-01": {
			"/media/kingmaker/bin/noded install --yes",
			"noded init --site https://10.181.1.2/site.git --credentials /root/site-credentials --yes",
			"cat /etc/kubernetes/admin.conf",
			"reconcile token --kubeconfig /etc/kubernetes/admin.conf",
		},
		"lab-pc-01:/root/site-credentials": {s.Room.Credentials()},
		"lab-pc-02": {
			"/media/kingmaker/bin/noded install --yes",
			"noded join 127.0.0.71:6443 --ca-hash sha256:12 --yes abcdef.0123456789abcdef", // the token is read
		},
	}
	if !maps.EqualFunc(ran, want, slices.Equal) {
		t.Errorf("ran %q", ran)
	}

	broken = want["lab-pc-02"][1]
	err := s.Up(t.Context())
	const told = `the further machines: pc-02: noded join 127.0.0.71:6443 --ca-hash sha256:12 --yes: exit code 2; it said:
	one
	two
	three: it broke
and its log /var/log/kingmaker/noded.log ends with:
	as the log has it
` + "`lab exec --name lab pc-02 -- bash` leads there"
	if err == nil || err.Error() != told {
		t.Errorf("a machine does not join: %v", err)
	}
}

// TestKubeconfig: the file leads to a master that answers, whichever that is.
func TestKubeconfig(t *testing.T) {
	listen(t, 71, status(http.StatusOK))
	listen(t, 72, status(http.StatusInternalServerError))
	listen(t, 74, status(http.StatusOK))
	s := newSite(t)
	kubeconfig := func(last, off []byte) (server string, err error) {
		s.Room.Runner = machines{last: last, off: off}
		file, err := s.Kubeconfig(t.Context())
		if err != nil {
			return "", err
		}
		config, err := clientcmd.LoadFromFile(file)
		if err != nil {
			return "", err
		}
		return config.Clusters["lab"].Server, nil
	}
	if _, err := kubeconfig([]byte{71}, nil); err == nil || !strings.Contains(err.Error(), "lab has no master yet") {
		t.Errorf("before there is one: %v", err)
	}
	if err := os.WriteFile(s.kubeconfig(), adminKubeconfig(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		last, off []byte
		want      string
	}{
		{"the only one", []byte{71}, nil, "https://127.0.0.71:6443"},
		{"the one of before is kept", []byte{74, 71}, nil, "https://127.0.0.71:6443"},
		{"it is off", []byte{71, 72, 73, 74}, []byte{71}, "https://127.0.0.74:6443"},
		{"unready, and no master", []byte{72, 73}, nil, ""},
	} {
		got, err := kubeconfig(test.last, test.off)
		if got != test.want || (err == nil) != (test.want != "") || err != nil && !strings.Contains(err.Error(), "no master of lab answers") {
			t.Errorf("%s: %q %v, want %q", test.name, got, err, test.want)
		}
	}
	if info, err := os.Stat(s.kubeconfig()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the kubeconfig: %v %v", info, err)
	}
}

func TestLast(t *testing.T) {
	for text, want := range map[string]string{
		"a\nb\nc\n\n":                   "\tb\n\tc",
		strings.Repeat("é", 151) + "\n": "\t" + strings.Repeat("é", 150) + "…",
		"":                              "\t",
	} {
		if got := last(text, 2); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}
