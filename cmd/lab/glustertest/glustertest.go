// Package glustertest is a room of real glusterd, for tests: each in a machine made
// of namespaces, with a network card, a brick on a file system of its own, and a
// power switch. Nothing of it is seen outside, and all of it ends with the test.
package glustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
)

// BrickDir is where every machine has the file system of its brick.
const BrickDir = "/srv/brick"

// Room is the machines and the switch between them.
type Room struct {
	T        testing.TB
	Machines []*Machine
	hub      *exec.Cmd // has the network that the switch is in
}

// Machine is one PC that runs glusterd.
type Machine struct {
	Name, Address string

	room *Room
	dir  string
	init *exec.Cmd // nil: it is off
	said *bytes.Buffer
}

// Start makes a room of n machines, pc-01 and so on, and returns when each glusterd
// answers. It needs root, for namespaces and file systems.
func Start(t testing.TB, n int) *Room {
	t.Helper()
	if testing.Short() {
		t.Skip("needs glusterd")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: machines are made of namespaces")
	}
	r := &Room{T: t}
	r.hub = exec.Command("sleep", "infinity")
	r.hub.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := r.hub.Start(); err != nil {
		t.Fatalf("make a network: %v", err)
	}
	t.Cleanup(func() { _ = r.hub.Process.Kill(); _ = r.hub.Wait() })
	r.ip("link add switch type bridge")
	r.ip("link set switch up")
	for i := range n {
		m := &Machine{Name: fmt.Sprintf("pc-%02d", i+1), Address: fmt.Sprintf("10.99.0.%d", i+1), room: r, dir: t.TempDir()}
		for _, name := range []string{"lib", "log", "run", "brick"} {
			if err := os.Mkdir(filepath.Join(m.dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		m.NewDisk()
		r.Machines = append(r.Machines, m)
		t.Cleanup(m.Off)
		m.On()
	}
	return r
}

// Machine of a name.
func (r *Room) Machine(name string) *Machine {
	r.T.Helper()
	i := slices.IndexFunc(r.Machines, func(m *Machine) bool { return m.Name == name })
	if i < 0 {
		r.T.Fatalf("there is no machine %s", name)
	}
	return r.Machines[i]
}

// ipCommand is ip where the switch is.
func (r *Room) ipCommand(line string) *exec.Cmd {
	args := append([]string{"--target", strconv.Itoa(r.hub.Process.Pid), "--net", "ip"}, strings.Fields(line)...)
	return exec.Command("nsenter", args...)
}

// ip runs it.
func (r *Room) ip(line string) {
	r.T.Helper()
	if out, err := r.ipCommand(line).CombinedOutput(); err != nil {
		r.T.Fatalf("ip %s: %v %s", line, err, out)
	}
}

// NewDisk puts an empty disk in the place of the machine's brick, as XFS. The machine
// is off.
func (m *Machine) NewDisk() {
	m.room.T.Helper()
	disk := filepath.Join(m.dir, "disk")
	for _, args := range [][]string{{"rm", "-f", disk}, {"truncate", "--size", "512M", disk}, {"mkfs.xfs", "-q", "-i", "size=512", disk}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			m.room.T.Fatalf("%s: %v %s", strings.Join(args, " "), err, out)
		}
	}
}

// boot is process 1 of a machine: it mounts what is the machine's own, and takes in
// those whose parents have ended.
const boot = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -o loop "$1/disk" "$1/brick"
mkdir -p /srv /var/lib/glusterd /var/log/glusterfs
cp -r /var/lib/glusterd/groups "$1/lib/" 2>/dev/null || true
mount -t tmpfs tmpfs /srv
mkdir /srv/brick
mount --bind "$1/brick" /srv/brick
mount --bind "$1/lib" /var/lib/glusterd
mount --bind "$1/log" /var/log/glusterfs
mount --bind "$1/run" /run
hostname "$2"
read ready
ip link set lo up
ip address add "$3/24" dev eth0
ip link set eth0 up
rm -rf /run/gluster*
# It writes into /tmp under fixed names: that is its own.
unshare --mount bash -c 'mount -t tmpfs tmpfs /tmp && exec glusterd -N --log-level WARNING' &
sleep infinity &
while true; do wait -n || true; done
`

// On switches the machine on, and returns when glusterd answers.
func (m *Machine) On() {
	t := m.room.T
	t.Helper()
	m.said = &bytes.Buffer{}
	m.init = exec.Command("bash", "-c", boot, "boot", m.dir, m.Name, m.Address)
	m.init.Stdout, m.init.Stderr = m.said, m.said
	m.init.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC}
	in, err := m.init.StdinPipe()
	if err == nil {
		err = m.init.Start()
	}
	if err != nil {
		t.Fatalf("switch %s on: %v", m.Name, err)
	}
	m.room.ip(fmt.Sprintf("link add %s type veth peer name eth0 netns %d", m.Name, m.init.Process.Pid))
	m.room.ip(fmt.Sprintf("link set %s master switch up", m.Name))
	if _, err := in.Write([]byte("ready\n")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := m.CLI()(t.Context(), "pool", "list")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(m.dir, "log/glusterd.log"))
			t.Fatalf("glusterd of %s does not answer: %v\n%s\n%s", m.Name, err, m.said, log)
		}
	}
}

// Off cuts the power: everything on the machine ends at once.
func (m *Machine) Off() {
	if m.init == nil {
		return
	}
	_ = m.init.Process.Kill()
	_ = m.init.Wait()
	m.init = nil
	// Its card goes with its namespace, which the kernel takes down a little later.
	_ = m.room.ipCommand("link delete " + m.Name).Run()
}

// Cut pulls the network cable; Heal puts it in again.
func (m *Machine) Cut()  { m.room.T.Helper(); m.room.ip("link set " + m.Name + " down") }
func (m *Machine) Heal() { m.room.T.Helper(); m.room.ip("link set " + m.Name + " up") }

// Run runs a command on the machine.
func (m *Machine) Run(ctx context.Context, args ...string) ([]byte, error) {
	if m.init == nil {
		return nil, errors.New(m.Name + " is off")
	}
	in := []string{"--target", strconv.Itoa(m.init.Process.Pid), "--mount", "--net", "--uts", "--pid", "--ipc"}
	cmd := exec.CommandContext(ctx, "nsenter", append(in, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s: %s: %w: %s", m.Name, args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// CLI is the machine's gluster.
func (m *Machine) CLI() gluster.CLI {
	return func(ctx context.Context, args ...string) ([]byte, error) {
		return m.Run(ctx, append([]string{"gluster", "--mode=script", "--xml"}, args...)...)
	}
}
