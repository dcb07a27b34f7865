package room

import (
	"context"
	"errors"
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kingmaker-io/kingmaker/cmd/lab/here"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestNew(t *testing.T) {
	t.Setenv("KINGMAKER_CACHE", t.TempDir())
	for name, ok := range map[string]bool{
		"": true, "lab": true, "lab-2": true, "a": true, "abcdefghijklmnopqrst": true,
		"abcdefghijklmnopqrstu": false, "Lab": false, "-lab": false, "lab-": false, "2lab": false, "../lab": false, "lab lab": false,
	} {
		if r, err := New(name, nil); (err == nil) != ok || ok && (filepath.Base(r.Dir) != r.Name || r.Name == "") {
			t.Errorf("%q: %+v, %v", name, r, err)
		}
	}
}

// TestSubnets: the first free range is taken, and none that overlaps.
func TestSubnets(t *testing.T) {
	for _, test := range []struct {
		name  string
		taken []string
		want  string // the first that is free
	}{
		{"nothing taken", nil, "10.181.1.0/24"},
		{"a lab beside it", []string{"10.181.1.0/24"}, "10.181.2.0/24"},
		{"an address in it", []string{"10.181.1.77/32", "10.181.2.0/25"}, "10.181.3.0/24"},
		{"a VPN with all of 10", []string{"10.0.0.0/8"}, "172.30.1.0/24"},
		{"that and Docker's own", []string{"10.0.0.0/8", "172.16.0.0/12"}, "192.168.1.0/24"},
		{"IPv6 is another world", []string{"::/0", "fd00::/8"}, "10.181.1.0/24"},
		{"all private ranges", []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}, ""},
	} {
		var taken []netip.Prefix
		for _, p := range test.taken {
			taken = append(taken, netip.MustParsePrefix(p))
		}
		got := ""
		if free := subnets(taken); len(free) > 0 {
			got = free[0].String()
		}
		if got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	for _, p := range subnets(nil) {
		for _, cluster := range []string{"10.244.0.0/16", "10.96.0.0/12"} {
			if p.Overlaps(netip.MustParsePrefix(cluster)) {
				t.Errorf("%s is in the range %s of a cluster", p, cluster)
			}
		}
	}
}

func TestRouted(t *testing.T) {
	got, err := routed([]byte(`[{"dst":"default","gateway":"192.0.2.1"},{"dst":"0.0.0.0/0"},{"dst":"192.0.2.0/24"},{"type":"local","dst":"192.0.2.2"},{"dst":"unreachable"}]`))
	want := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.2/32")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v, want %v", got, err, want)
	}
	if _, err := routed([]byte("Usage: ip")); err == nil || !strings.HasPrefix(err.Error(), "read the routes: ") {
		t.Errorf("no JSON: %v", err)
	}
}

// TestCommands compares the command lines that make a room with golden ones.
func TestCommands(t *testing.T) {
	n := network{"br-0123456789ab", netip.MustParsePrefix("10.181.1.0/24")}
	machine, git := recipes()
	machine.entry = nil // as it is, it would say nothing new
	var b strings.Builder
	for _, c := range []struct {
		name string
		args []string
	}{
		{"a machine on a common computer", runMachine("lab", 3, n.machine(3), "machine", "/stick", "/brick", computer{cgroups: 2, sysResource: true, modules: true})},
		{"a machine where much is missing", runMachine("lab", 3, n.machine(3), "machine", "/stick", "/brick", computer{cgroups: 1})},
		{"the git server", runGit("lab", n, "git", "/config")},
		{"what machines say to each other", n.rules()[0]},
		{"what they say to the world", n.rules()[1]},
		{"the image of a machine", machine.args()},
		{"the image of the git server", git.args()},
	} {
		b.WriteString("== " + c.name + "\n" + strings.Join(c.args, "\n") + "\n")
	}
	const file = "testdata/commands.txt"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || b.String() != string(want) {
		t.Errorf("not as in %s (-update writes it): %v\n%s", file, err, &b)
	}
}

// TestRecipe: another recipe has another key, and so another image and tar.
func TestRecipe(t *testing.T) {
	machine, git := recipes()
	other := machine
	other.entry = append(slices.Clone(entry), '#')
	more := machine
	more.packages = append(slices.Clone(machine.packages), "vim")
	keys := map[string]bool{}
	for _, b := range []recipe{machine, git, other, more} {
		keys[b.key()] = true
	}
	if again, _ := recipes(); len(keys) != 4 || again.key() != machine.key() {
		t.Errorf("keys of four recipes: %v", keys)
	}
}

func TestHasCapability(t *testing.T) {
	for _, test := range []struct {
		status string
		has    bool
		err    string
	}{
		{"CapEff:\t0\nCapBnd:\t000001ffffffffff\nCapAmb:\t0\n", true, ""},
		{"CapBnd:\t000001fffeffffff\n", false, ""},
		{"Name:\tx\n", false, "read the capabilities: "},
	} {
		has, err := hasCapability([]byte(test.status), 24)
		if has != test.has || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%q: %v %v", test.status, has, err)
		}
	}
}

// fake is a Runner that answers by the beginning of a command.
type fake struct {
	answers map[string]string // "!TEXT" is an Exit that says TEXT
	ran     []string
}

func (f *fake) Run(_ context.Context, c Command) ([]byte, error) {
	f.ran = append(f.ran, c.String())
	best := ""
	for beginning := range f.answers {
		if strings.HasPrefix(c.String(), beginning) && len(beginning) > len(best) {
			best = beginning
		}
	}
	if said, ok := strings.CutPrefix(f.answers[best], "!"); ok {
		return nil, &Exit{c, 1, said}
	}
	return []byte(f.answers[best]), nil
}

func fakeRoom(t *testing.T, answers map[string]string) (*Room, *fake) {
	t.Helper()
	t.Setenv("KINGMAKER_CACHE", t.TempDir())
	r, err := New("lab", nil)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{answers: answers}
	r.Runner, r.settings = f, t.TempDir()
	for key, value := range map[string]string{"fs/inotify/max_user_instances": "128", "fs/inotify/max_user_watches": "2000000", "vm/overcommit_memory": "0"} {
		file := filepath.Join(r.settings, key)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(value+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return r, f
}

const oneNetwork = `[{"Id":"0123456789abcdef","IPAM":{"Config":[{"Subnet":"10.181.1.0/24"}]}}]`

// TestOpenNetwork: the rule is set where it is missing, and only there.
func TestOpenNetwork(t *testing.T) {
	for _, test := range []struct {
		name     string
		list     string // what listing the chain answers
		check    string // what checking the rule answers
		inserted bool
	}{
		{"missing", "", "!Bad rule", true},
		{"there", "", "", false},
		{"Docker filters nothing", "!No chain", "!No chain", false},
	} {
		r, f := fakeRoom(t, map[string]string{
			"docker network ls":            "0123456789abcdef",
			"docker network inspect":       oneNetwork,
			"iptables --wait --list-rules": test.list,
			"iptables --wait --check":      test.check,
		})
		err := r.openNetwork(t.Context())
		for _, rule := range []string{
			"DOCKER-USER -i br-0123456789ab -o br-0123456789ab -j ACCEPT",
			"DOCKER-USER -i br-0123456789ab ! -o br-0123456789ab -j REJECT --reject-with icmp-net-unreachable",
		} {
			if inserted := slices.Contains(f.ran, "iptables --wait --insert "+rule); err != nil || inserted != test.inserted {
				t.Errorf("%s: %v, inserted %v:\n%s", test.name, err, inserted, strings.Join(f.ran, "\n"))
			}
		}
	}
}

// TestMakeNetwork: a range that somebody else takes at the same moment is no
// reason to give up.
func TestMakeNetwork(t *testing.T) {
	answers := map[string]string{
		"ip -4 -json route":                                       `[{"dst":"10.181.1.0/24"}]`,
		"docker network inspect":                                  `[{"Id":"x","IPAM":{"Config":[{"Subnet":"10.181.2.0/24"}]}}]`,
		"docker network ls --quiet":                               "x",
		"iptables --wait --check":                                 "",
		"docker network create":                                   "",
		"docker network create --internal --subnet 10.181.3.0/24": "!Error: Pool overlaps with other one on this address space",
	}
	r, f := fakeRoom(t, answers)
	if _, err := r.makeNetwork(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := "docker network create --internal --subnet 10.181.4.0/24 --label kingmaker.lab=lab lab"; !slices.Contains(f.ran, want) {
		t.Errorf("want %s, ran:\n%s", want, strings.Join(f.ran, "\n"))
	}
	answers["docker network create"] = "!Error: permission denied"
	answers["docker network create --internal --subnet 10.181.3.0/24"] = "!Error: permission denied"
	if _, err := r.makeNetwork(t.Context()); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a refusal: %v", err)
	}
}

// TestBootstrap: the mirror of a cloud image reaches mmdebstrap in a form that it
// takes.
func TestBootstrap(t *testing.T) {
	r, f := fakeRoom(t, map[string]string{"docker image inspect": "!No such image", "apt-get": "'mirror+file:/etc/apt/mirrors/debian.list/dists/trixie/main/binary-amd64/Packages.xz' x 0\n"})
	_, git := recipes()
	_ = r.baseImage(t.Context(), git, filepath.Join(t.TempDir(), "base.tar")) // fails: the fake makes no tar
	const want = "/made.tar deb [signed-by=" + here.Keyring + "] mirror+file:/etc/apt/mirrors/debian.list " + here.Suite + " main"
	if !slices.ContainsFunc(f.ran, func(ran string) bool { return strings.HasPrefix(ran, "mmdebstrap ") && strings.HasSuffix(ran, want) }) {
		t.Errorf("want %s, ran:\n%s", want, strings.Join(f.ran, "\n"))
	}
}

// TestMakeRepo: a site that is a clone comes without its history.
func TestMakeRepo(t *testing.T) {
	r, f := fakeRoom(t, map[string]string{"docker network ls": "x", "docker network inspect": oneNetwork})
	site := t.TempDir()
	for _, file := range []string{"site.yaml", ".git/config"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(site, filepath.Dir(file)), 0o755), os.WriteFile(filepath.Join(site, file), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.makeRepo(t.Context(), site); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(r.WorkTree()); err != nil || len(entries) != 1 || entries[0].Name() != "site.yaml" {
		t.Errorf("the clone has %v %v", entries, err)
	}
	if want := "git -C " + r.WorkTree() + " remote add origin https://10.181.1.2/site.git"; !slices.Contains(f.ran, want) {
		t.Errorf("want %s, ran:\n%s", want, strings.Join(f.ran, "\n"))
	}
}

const twoContainers = `[
{"Name":"/lab-git","Config":{"Labels":{"kingmaker.machine":"git"}},"State":{"Running":true},"NetworkSettings":{"Networks":{"lab":{"IPAMConfig":{"IPv4Address":"10.181.1.2"}}}}},
{"Name":"/lab-pc-10","Config":{"Labels":{"kingmaker.machine":"pc-10"}},"State":{"Running":true},"NetworkSettings":{"Networks":{"lab":{"IPAMConfig":{"IPv4Address":"10.181.1.20"}}}}},
{"Name":"/lab-pc-02","Config":{"Labels":{"kingmaker.machine":"pc-02"}},"State":{"Running":false},"NetworkSettings":{"Networks":{"lab":{"IPAMConfig":{"IPv4Address":"10.181.1.12"}}}}}]`

func TestMachines(t *testing.T) {
	r, f := fakeRoom(t, map[string]string{
		"docker ps": "a b c", "docker inspect": twoContainers,
		"docker network ls": "0123456789abcdef", "docker network inspect": oneNetwork,
	})
	if err := os.MkdirAll(filepath.Dir(r.Dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.Cut(t.Context(), "pc-02"); err != nil { // without power: remembered
		t.Fatal(err)
	}
	got, err := r.Machines(t.Context())
	at := netip.MustParseAddr
	want := []Machine{
		{"pc-02", at("10.181.1.12"), false, false},
		{"pc-10", at("10.181.1.20"), true, true},
		{"git", at("10.181.1.2"), true, true},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	// What is done already is not done again.
	for _, err := range []error{r.Kill(t.Context(), "pc-02"), r.Start(t.Context(), "pc-10")} {
		if err != nil {
			t.Error(err)
		}
	}
	for _, ran := range f.ran {
		if strings.HasPrefix(ran, "docker kill") || strings.HasPrefix(ran, "docker start") {
			t.Error(ran)
		}
	}
	if _, err := r.Machine(t.Context(), "pc-01"); err == nil || err.Error() != `there is no machine "pc-01" in lab: there are pc-02, pc-10, git` {
		t.Error(err)
	}
}

// TestBorrow: what is too low is raised, and everything is as before when the last
// room goes, whoever changed it.
func TestBorrow(t *testing.T) {
	r, _ := fakeRoom(t, nil)
	var said []string
	r.Progress = func(line string) { said = append(said, line) }
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	settings := func() string {
		var all []string
		for _, key := range []string{"fs.inotify.max_user_instances", "fs.inotify.max_user_watches", "vm.overcommit_memory"} {
			value, err := r.setting(key)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, value)
		}
		return strings.Join(all, " ")
	}
	for range 2 { // the second time it must not be remembered as it is now
		if err := r.borrow(); err != nil {
			t.Fatal(err)
		}
	}
	if got := settings(); got != "8192 2000000 0" || len(said) != 1 {
		t.Errorf("borrowed: %s; said %q", got, said)
	}
	if err := r.set("vm.overcommit_memory", "1"); err != nil { // a kubelet
		t.Fatal(err)
	}
	if err := r.last(t.Context()); err != nil || settings() != "8192 2000000 1" {
		t.Errorf("while there is a room: %s %v", settings(), err)
	}
	if err := os.RemoveAll(r.Dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.last(t.Context()); err != nil || settings() != "128 2000000 0" {
			t.Errorf("given back: %s %v", settings(), err)
		}
	}
}

// TestWake: only a Docker that the lab started, for a room that is there, is started
// again.
func TestWake(t *testing.T) {
	for _, test := range []struct {
		name                   string
		runs, room, ours, want bool
	}{
		{"after a boot", false, true, true, true},
		{"it runs", true, true, true, false},
		{"no such room", false, false, true, false},
		{"somebody else's", false, true, false, false},
	} {
		version := "!Cannot connect"
		if test.runs {
			version = "27"
		}
		r, f := fakeRoom(t, map[string]string{"docker version": version})
		dir := filepath.Dir(r.Dir)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if test.room {
			if err := os.Mkdir(r.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if test.ours {
			if err := os.WriteFile(filepath.Join(dir, "dockerd.pid"), []byte("service\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := r.Wake(t.Context())
		started := slices.ContainsFunc(f.ran, func(ran string) bool { return strings.HasSuffix(ran, "/.ci/docker start") })
		if err != nil || started != test.want {
			t.Errorf("%s: %v, started %v", test.name, err, started)
		}
	}
}

// TestStopDocker runs the real script, with a docker that is not: what the lab
// started stays while there is a container of any room.
func TestStopDocker(t *testing.T) {
	for containers, want := range map[string]bool{"": false, "0123456789ab": true} {
		r, _ := fakeRoom(t, nil)
		r.Runner = Computer{}
		bin := t.TempDir()
		pid := filepath.Join(filepath.Dir(r.Dir), "dockerd.pid")
		if err := errors.Join(
			os.WriteFile(filepath.Join(bin, "docker"), []byte("#!/bin/sh\necho "+containers+"\n"), 0o700),
			os.MkdirAll(filepath.Dir(pid), 0o700),
			os.WriteFile(pid, []byte("none\n"), 0o600), // no process, so that nothing can be hit
		); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
		err := r.stopDocker(t.Context())
		if _, statErr := os.Stat(pid); err != nil || (statErr == nil) != want {
			t.Errorf("containers %q: %v; still the lab's: %v", containers, err, statErr)
		}
	}
}

// TestNotThere: each question about a room that is not there says how to make one.
func TestNotThere(t *testing.T) {
	r, _ := fakeRoom(t, nil)
	_, err := r.Machines(t.Context())
	_, urlErr := r.URL(t.Context())
	_, addErr := r.Add(t.Context())
	for _, err := range []error{err, urlErr, addErr, r.Kill(t.Context(), "pc-01"), r.Heal(t.Context(), "pc-01")} {
		if err == nil || !strings.Contains(err.Error(), "lab is not there: `lab up --name lab` makes it") {
			t.Error(err)
		}
	}
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Machines(t.Context()); err == nil || !strings.Contains(err.Error(), "half made") {
		t.Error(err)
	}
	if rooms, err := Rooms(); err != nil || !slices.Equal(rooms, []string{"lab"}) {
		t.Errorf("rooms: %v %v", rooms, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	r, f := fakeRoom(t, map[string]string{"docker ps": "a"})
	site := t.TempDir()
	for _, test := range []struct {
		o    Options
		want string
	}{
		{Options{Machines: 0, Site: site}, "0 machines: want 1 to 89"},
		{Options{Machines: 90, Site: site}, "90 machines: want 1 to 89"},
		{Options{Machines: 1, Site: filepath.Join(site, "none")}, "read the site: "},
	} {
		if err := r.Build(t.Context(), test.o); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v", test.o, err)
		}
	}
	if len(f.ran) > 0 {
		t.Errorf("ran %v", f.ran)
	}
}

func TestExit(t *testing.T) {
	for _, test := range []struct {
		exit Exit
		want string
	}{
		{Exit{Command{Args: []string{"docker", "ps"}}, 1, "no daemon\n"}, "docker ps: no daemon"},
		{Exit{Command{Args: []string{"false"}}, 3, ""}, "false: exit code 3"},
		{Exit{Command{Args: []string{"x", strings.Repeat("y", 300)}}, 3, "z"}, "x " + strings.Repeat("y", 198) + "…: z"},
	} {
		if got := test.exit.Error(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// TestComputer runs real commands.
func TestComputer(t *testing.T) {
	out, err := Computer{}.Run(t.Context(), Command{Args: []string{"sh", "-c", "cat; pwd; echo $X; echo no >&2; exit 7"}, Stdin: strings.NewReader("in\n"), Dir: "/", Env: []string{"X=x"}})
	var exit *Exit
	if string(out) != "in\n/\nx\n" || !errors.As(err, &exit) || exit.Code != 7 || exit.Stderr != "no\n" {
		t.Errorf("%q %v", out, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if _, err := (Computer{}).Run(ctx, Command{Args: []string{"sleep", "1000"}}); !errors.Is(err, enough) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestCertificates(t *testing.T) {
	server, ca, key, err := certificates(netip.MustParseAddr("10.181.1.2"))
	for name, text := range map[string][]byte{"server": server, "ca": ca, "key": key} {
		if strings.Count(string(text), "-----BEGIN") != 1 {
			t.Errorf("%s: %s", name, text)
		}
	}
	if err != nil || string(server) == string(ca) {
		t.Errorf("one certificate for both: %v", err)
	}
}

// TestBrick works with real disks: what is on one stays when the computer boots,
// and Docker finds a machine's folder only while its disk is mounted.
func TestBrick(t *testing.T) {
	r, _ := fakeRoom(t, nil)
	r.Runner = Computer{}
	if os.Geteuid() != 0 {
		t.Skip("mounts are for root")
	}
	for _, program := range []string{"mkfs.xfs", "losetup"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s here", program)
		}
	}
	if out, err := exec.Command("losetup", "--find").CombinedOutput(); err != nil {
		t.Skipf("no loop devices here: %s", out)
	}
	t.Cleanup(func() {
		if err := r.removeBricks(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, machine := range []string{"pc-01", "pc-02", "pc-02"} { // the third as after a failure
		if err := r.makeBrick(t.Context(), machine); err != nil {
			t.Fatal(err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(r.brick("pc-02"), &fs); err != nil || fs.Type != unix.XFS_SUPER_MAGIC || int64(fs.Blocks)*fs.Bsize < 7<<30 {
		t.Errorf("%+v, %v", fs, err)
	}
	file := filepath.Join(r.brick("pc-02"), "file")
	if err := os.WriteFile(file, []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, machine := range []string{"pc-01", "pc-02"} {
		if _, err := r.run(t.Context(), "umount", filepath.Dir(r.brick(machine))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(r.brick("pc-02")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there while it is not mounted: %v", err)
	}
	for _, err := range []error{r.mountBrick(t.Context(), "pc-02"), r.mountBricks(t.Context()), r.mountBrick(t.Context(), Git)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	if mounted, err := isMount(filepath.Dir(r.brick("pc-01"))); !mounted {
		t.Error("the other one is not mounted", err)
	}
	for range 2 {
		if err := r.removeBricks(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), r.Dir) {
		t.Errorf("left behind: %v\n%s", err, mounts)
	}
	if _, err := os.Stat(r.bricks()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}
