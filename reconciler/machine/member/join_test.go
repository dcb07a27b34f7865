package member

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// aMaster is a master that lets machines in, and the line to it.
func aMaster(t *testing.T) (*master, machine.Invitation) {
	t.Helper()
	m := &master{ca: newCA(t, time.Now().Add(-time.Hour)), token: tokenID + "." + tokenSecret}
	line, err := machine.ParseInvitation(where(m.start(t)).String(), hash(m.ca.cert), m.token)
	if err != nil {
		t.Fatal(err)
	}
	return m, line
}

func (p *pc) join(line machine.Invitation) *Join {
	return &Join{Host: p.Host, Needs: plainNeeds, Invitation: line, Net: pcNet, Progress: p.tell,
		Discovery: Discovery{Patience: time.Nanosecond}, Pause: time.Microsecond, Patience: 10 * time.Second}
}

func TestJoin(t *testing.T) {
	p := newPC(t)
	m, line := aMaster(t)
	before := p.files()
	j := p.join(line)
	if err := j.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	todo, err := host.Look(t.Context(), j.Steps())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "a look changes nothing", p.files(), before)
	want := []string{
		"configure the kubelet for this machine: cgroupDriver systemd",
		"keep the site's certificate authority in /etc/kingmaker/ca.crt",
		"lead https://api.lab.internal:7443 of this machine to " + line.Masters[0].String(),
		"join site lab as worker pc-01 with address 10.0.0.11",
		"start noded.service",
		"wait until it works: machine pc-01",
	}
	if !slices.Equal(todo, want) {
		t.Errorf("todo\n%s\nwant\n%s", strings.Join(todo, "\n"), strings.Join(want, "\n"))
	}
	if err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	member, err := Read(p.Host)
	if err != nil || *member != (Membership{"lab", "pc-01", netip.MustParseAddr("10.0.0.11"), "api.lab.internal:7443", "worker"}) {
		t.Errorf("membership %+v, %v", member, err)
	}
	if len(p.configs) != 1 || !strings.Contains(p.configs[0], "token: "+m.token) {
		t.Errorf("kubeadm was told %q", p.configs)
	}
	if got, _ := p.Read(host.CAFile); string(got) != string(m.ca.pem) {
		t.Errorf("CA %s", got)
	}
	noToken(t, p)
	after := p.files()
	if todo, err := host.Look(t.Context(), j.Steps()); err != nil || len(todo) > 0 {
		t.Errorf("still to do: %q %v", todo, err)
	}
	for _, s := range j.Steps() {
		if s.Name != "join" && s.Name != "leftovers" { // kubeadm itself cannot be run again, and is not
			if err := s.Do(t.Context()); err != nil {
				t.Errorf("%s again: %v", s.Name, err)
			}
		}
	}
	same(t, "again", p.files(), after)
	refused(t, p.join(line).Check(t.Context()), AlreadyMember, "this machine is pc-01 of site lab, a worker, already")
}

// noToken looks for the token's secret where people and programs could find it.
func noToken(t *testing.T, p *pc) {
	t.Helper()
	for what, text := range map[string]string{"the log": p.log.String(), "a command line": strings.Join(p.commands, "\n"), "the screen": strings.Join(p.told, "\n")} {
		if strings.Contains(text, tokenSecret) {
			t.Errorf("the token is in %s", what)
		}
	}
	for name, content := range p.files() {
		if strings.Contains(content, tokenSecret) {
			t.Errorf("the token is left in %s", name)
		}
	}
}

func TestJoinRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		setup func(p *pc, m *master, j *Join)
		code  plan.Code
		says  string
	}{
		{"not installed", func(p *pc, _ *master, _ *Join) { p.Remove("/usr/local/bin/kubelet") }, NotInstalled, "kubelet is missing"},
		{"somebody's cluster", func(p *pc, _ *master, _ *Join) { p.put(KubeletConf, "") }, ForeignCluster, "it has /etc/kubernetes/kubelet.conf"},
		{"a newer bundle", func(_ *pc, m *master, _ *Join) { m.version = "v1.35.9" }, VersionDiffers, "runs Kubernetes v1.35.9, and this machine's bundle has v1.36.3"},
		{"a wrong token", func(_ *pc, m *master, _ *Join) { m.token = tokenID + ".0123456789abcdef" }, TokenWrong, "mistyped"},
		{"an expired token", func(_ *pc, m *master, _ *Join) { m.token = "" }, TokenUnknown, "it has expired"},
		{"a wrong CA hash", func(_ *pc, _ *master, j *Join) { j.Invitation.CAHash = "sha256:" + strings.Repeat("0", 64) }, CADiffers, "the line is of another site"},
		{"a clock off by an hour", func(_ *pc, m *master, _ *Join) { m.clock = time.Hour }, ClockDiffers, "1h0m behind"},
		{"a second machine of the name", func(_ *pc, m *master, _ *Join) { m.node = aNode("True", "0123", "") }, NameTaken, "a second machine of the name pc-01"},
		{"a bad address", func(_ *pc, _ *master, j *Join) { j.Address = netip.MustParseAddr("10.9.9.9") }, NoAddress, "is not an address of this machine, which has 10.0.0.11"},
		{"no machine-id", func(p *pc, _ *master, _ *Join) { p.put("/etc/machine-id", "\n") }, "", "/etc/machine-id is empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPC(t)
			m, line := aMaster(t)
			j := p.join(line)
			healthy := p.files()
			test.setup(p, m, j)
			before := p.files()
			err := j.Check(t.Context())
			if test.code != "" {
				refused(t, err, test.code, test.says)
			} else if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v", err)
			}
			same(t, "refused", p.files(), before)
			noToken(t, p)
			// Once that is put right, the same machine joins.
			for name := range before {
				p.Remove(name)
			}
			for name, content := range healthy {
				p.put(name, content)
			}
			_, line = aMaster(t)
			if err := become(t.Context(), p.join(line)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestJoinBroken breaks a first try at each of its commands. What fails is taken
// back at once; after a death the next try clears up. A second try, and a reset
// with another, must both end as if nothing had been.
func TestJoinBroken(t *testing.T) {
	clean := newPC(t)
	fresh := clean.files()
	_, line := aMaster(t)
	if err := become(t.Context(), clean.join(line)); err != nil {
		t.Fatal(err)
	}
	want := clean.files()
	for n, command := range clean.commands {
		for _, how := range breaks {
			for _, reset := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d %s %s, reset %v", n, command, how.name, reset), func(t *testing.T) {
					p := newPC(t)
					broken := false
					p.fault = func(at int, _ string, after bool) error {
						if at != n || after != how.after {
							return nil
						}
						broken = true
						if how.kill {
							panic(killed{})
						}
						if strings.HasPrefix(command, "kubeadm") {
							return &host.Exit{Command: host.Command{Name: "kubeadm", Args: []string{"join"}}, Code: 1, Stderr: "error: cannot use " + line.Token.Value()}
						}
						return errInjected
					}
					err, _ := dies(func() error { return become(t.Context(), p.join(line)) })
					p.fault = nil
					if !broken {
						t.Error("nothing broke")
					}
					if err != nil && strings.Contains(err.Error(), tokenSecret) {
						t.Errorf("the token is in the error: %v", err)
					}
					if m, _ := Read(p.Host); m == nil && !how.kill {
						same(t, "taken back", asInstalled(p.files()), asInstalled(fresh))
						noToken(t, p)
					}
					if reset {
						r := &Reset{Host: p.Host, Progress: p.tell}
						if _, _, err := r.Check(t.Context()); err != nil {
							t.Fatal(err)
						}
						if err := r.Run(t.Context()); err != nil {
							t.Fatal(err)
						}
						same(t, "after a reset", asInstalled(p.files()), asInstalled(fresh))
					}
					if m, err := Read(p.Host); err == nil && m != nil && !p.Exists(markFile) {
						refused(t, p.join(line).Check(t.Context()), AlreadyMember, "already")
						if !p.running[host.NodedUnit] {
							t.Error("the agent does not run, and nobody would start it")
						}
					} else if err := become(t.Context(), p.join(line)); err != nil {
						t.Fatal(err)
					}
					got := p.files()
					delete(got, host.BalancerFile+".new")
					same(t, "in the end", got, want)
					noToken(t, p)
				})
			}
		}
	}
}

func TestJoinInterrupted(t *testing.T) {
	p := newPC(t)
	fresh := p.files()
	_, line := aMaster(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	p.fault = func(_ int, command string, after bool) error {
		if strings.HasPrefix(command, "kubeadm join") && after {
			cancel(enough)
			return enough
		}
		return nil
	}
	if err := become(ctx, p.join(line)); !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
	same(t, "taken back", asInstalled(p.files()), asInstalled(fresh))
	if !slices.Contains(p.told, "taking back what was done") {
		t.Errorf("told %q", p.told)
	}
}

// What kubeadm says reaches the log without the token, even where a word of it
// comes in two pieces.
func TestMasking(t *testing.T) {
	p := newPC(t)
	line, err := machine.ParseInvitation("10.0.0.11", "sha256:"+strings.Repeat("ab", 32), tokenID+"."+tokenSecret)
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("echo %[1]s; printf %[2]s >&2; sleep 0.1; echo %[3]s. >&2", tokenSecret, tokenID+"."+tokenSecret[:8], tokenSecret[8:])
	p.Runner = masking{host.System{}, line.Token.Value(), line.TokenSecret()}
	for _, code := range []string{"0", "1"} {
		out, err := p.Do(t.Context(), host.Command{Name: "sh", Stdin: strings.NewReader(script + "; exit " + code)})
		if (err != nil) != (code == "1") || string(out) != "(secret)\n" {
			t.Errorf("code %s: %q, %v", code, out, err)
		}
		if !strings.Contains(p.log.String(), `stderr="(secret).\n"`) {
			t.Errorf("logged %s", p.log)
		}
		noToken(t, p)
	}
}
