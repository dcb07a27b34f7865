package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// network is the wiring of a room: a bridge of this computer.
type network struct {
	bridge string       // name of the network interface
	subnet netip.Prefix // a /24
}

// at is an address in the network: the computer itself is .1, the git server .2,
// pc-01 is .11.
func (n network) at(last int) netip.Addr {
	a := n.subnet.Masked().Addr().As4()
	a[3] = byte(last)
	return netip.AddrFrom4(a)
}

func (n network) git() netip.Addr             { return n.at(2) }
func (n network) machine(num int) netip.Addr  { return n.at(10 + num) }
func (n network) isZero() bool                { return !n.subnet.IsValid() }
func bridgeOf(networkID string) (name string) { return "br-" + networkID[:min(12, len(networkID))] }

// subnets are those that a room can have, the first choice first, without those
// that overlap with what is taken or with what the clusters inside use.
func subnets(taken []netip.Prefix) (free []netip.Prefix) {
	taken = append(slices.Clip(taken), netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.96.0.0/12"))
	for _, base := range [][2]byte{{10, 181}, {172, 30}, {192, 168}} {
		for third := range 254 {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{base[0], base[1], byte(third + 1), 0}), 24)
			if !slices.ContainsFunc(taken, p.Overlaps) {
				free = append(free, p)
			}
		}
	}
	return free
}

// makeNetwork makes the network of the room: a bridge without a way out, as of a
// school without internet.
func (r *Room) makeNetwork(ctx context.Context) (network, error) {
	taken, err := r.taken(ctx)
	if err != nil {
		return network{}, err
	}
	err = errors.New("no range of addresses is free")
	for _, subnet := range subnets(taken) {
		_, err = r.docker(ctx, "network", "create", "--internal", "--subnet", subnet.String(),
			"--label", labelLab+"="+r.Name, r.Name)
		var exit *Exit
		if errors.As(err, &exit) && strings.Contains(exit.Stderr, "overlap") { // somebody was faster
			continue
		}
		break
	}
	if err != nil {
		return network{}, err
	}
	n, err := r.network(ctx)
	if err != nil {
		return network{}, err
	}
	return n, r.openNetwork(ctx)
}

// taken are the ranges that this computer uses already.
func (r *Room) taken(ctx context.Context) (taken []netip.Prefix, err error) {
	out, err := r.run(ctx, "ip", "-4", "-json", "route", "show", "table", "all")
	if err != nil {
		return nil, err
	}
	if taken, err = routed(out); err != nil {
		return nil, err
	}
	// Docker keeps ranges for networks that have no bridge at the moment, too.
	ids, err := r.lines(ctx, "network", "ls", "--quiet")
	if err != nil || len(ids) == 0 {
		return taken, err
	}
	networks, err := r.inspectNetworks(ctx, ids...)
	for _, n := range networks {
		for _, c := range n.IPAM.Config {
			if p, err := netip.ParsePrefix(c.Subnet); err == nil {
				taken = append(taken, p)
			}
		}
	}
	return taken, err
}

// routed reads the routes that ip prints as JSON. The default route is none: it
// is for all that nobody uses.
func routed(text []byte) (taken []netip.Prefix, err error) {
	var routes []struct{ Dst string }
	if err := json.Unmarshal(text, &routes); err != nil {
		return nil, fmt.Errorf("read the routes: %w", err)
	}
	for _, route := range routes {
		if p, err := netip.ParsePrefix(route.Dst); err == nil {
			if p.Bits() > 0 {
				taken = append(taken, p)
			}
		} else if a, err := netip.ParseAddr(route.Dst); err == nil {
			taken = append(taken, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return taken, nil
}

// dockerNetwork is what is read of docker network inspect.
type dockerNetwork struct {
	ID   string `json:"Id"`
	IPAM struct{ Config []struct{ Subnet string } }
}

func (r *Room) inspectNetworks(ctx context.Context, ids ...string) (networks []dockerNetwork, err error) {
	out, err := r.docker(ctx, append([]string{"network", "inspect"}, ids...)...)
	if err != nil {
		return nil, err
	}
	return networks, json.Unmarshal(out, &networks)
}

// find is the room's network, the zero one where there is none.
func (r *Room) find(ctx context.Context) (network, error) {
	ids, err := r.lines(ctx, "network", "ls", "--quiet", "--no-trunc", "--filter", "label="+labelLab+"="+r.Name)
	if err != nil || len(ids) == 0 {
		return network{}, err
	}
	found, err := r.inspectNetworks(ctx, ids[0])
	if err != nil {
		return network{}, err
	}
	if len(found) != 1 || len(found[0].IPAM.Config) != 1 {
		return network{}, fmt.Errorf("network %s is not as the lab makes one", r.Name)
	}
	subnet, err := netip.ParsePrefix(found[0].IPAM.Config[0].Subnet)
	return network{bridgeOf(found[0].ID), subnet}, err
}

// network is find for a room that must be there.
func (r *Room) network(ctx context.Context) (network, error) {
	n, err := r.find(ctx)
	if err == nil && n.isZero() {
		err = fmt.Errorf("%s is not there: `lab up --name %[1]s` makes it", r.Name)
	}
	return n, err
}

// rules are what the computer is told of packets that come from machines, in
// DOCKER-USER: the chain that Docker leaves to others, and asks first.
//
// The first lets through all that goes from one machine to another. Docker drops
// on an internal network what is neither from nor to its own range, even between
// two containers, where the computer filters bridged packets (br_netfilter). And
// packets of Pods are just that: with host-gw they go from machine to machine with
// the Pods' addresses.
//
// The second refuses what would leave the room, as the router of a school without
// internet does, where Docker would drop it: who asks for the world then learns at
// once that there is none, and does not wait for half a minute.
func (n network) rules() [][]string {
	return [][]string{
		{"DOCKER-USER", "-i", n.bridge, "-o", n.bridge, "-j", "ACCEPT"},
		{"DOCKER-USER", "-i", n.bridge, "!", "-o", n.bridge, "-j", "REJECT", "--reject-with", "icmp-net-unreachable"},
	}
}

// openNetwork sees to it that the rules are there: they go when this computer
// boots, and the room does not.
func (r *Room) openNetwork(ctx context.Context) error {
	n, err := r.network(ctx)
	if err != nil {
		return err
	}
	var exit *Exit
	if _, err := r.run(ctx, "iptables", "--wait", "--list-rules", "DOCKER-USER"); errors.As(err, &exit) {
		return nil // Docker filters nothing here
	} else if err != nil {
		return err
	}
	for _, rule := range n.rules() {
		_, err := r.run(ctx, append([]string{"iptables", "--wait", "--check"}, rule...)...)
		if errors.As(err, &exit) {
			_, err = r.run(ctx, append([]string{"iptables", "--wait", "--insert"}, rule...)...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// removeNetwork takes the network away, and the rules with it.
func (r *Room) removeNetwork(ctx context.Context) error {
	n, err := r.find(ctx)
	if err != nil || n.isZero() {
		return err
	}
	for _, rule := range n.rules() {
		var err error
		for err == nil { // as often as it is there
			_, err = r.run(ctx, append([]string{"iptables", "--wait", "--delete"}, rule...)...)
		}
		var exit *Exit
		if !errors.As(err, &exit) {
			return err
		}
	}
	_, err = r.docker(ctx, "network", "rm", r.Name)
	return err
}

// Cut pulls a machine's network cable: the far end of its link goes down, so the
// machine sees no carrier, and keeps its own configuration. A machine that Start
// or Reboot brings up again stays cut; one that reboots by itself does not.
func (r *Room) Cut(ctx context.Context, machine string) error { return r.plug(ctx, machine, false) }

// Heal puts it back.
func (r *Room) Heal(ctx context.Context, machine string) error { return r.plug(ctx, machine, true) }

func (r *Room) plug(ctx context.Context, machine string, in bool) error {
	c, err := r.container(ctx, machine)
	if err != nil {
		return err
	}
	mark := r.cutMark(machine)
	if in {
		if err := errors.Join(ignoreMissing(os.Remove(mark)), r.openNetwork(ctx)); err != nil {
			return err
		}
	} else if err := errors.Join(os.MkdirAll(filepath.Dir(mark), 0o700), os.WriteFile(mark, nil, 0o600)); err != nil {
		return err
	}
	if !c.State.Running {
		return nil // no power, no link; Start looks at the mark
	}
	far, err := farEnd(c.State.Pid)
	if err != nil {
		return fmt.Errorf("find the cable of %s: %w", machine, err)
	}
	state := "down"
	if in {
		state = "up"
	}
	_, err = r.run(ctx, "ip", "link", "set", "dev", far, state)
	return err
}

func (r *Room) cutMark(machine string) string { return filepath.Join(r.Dir, "cut", machine) }

func (r *Room) isCut(machine string) bool {
	_, err := os.Stat(r.cutMark(machine))
	return err == nil
}

// recut cuts again after a start, for which Docker lays a new cable.
func (r *Room) recut(ctx context.Context, machine string) error {
	if !r.isCut(machine) {
		return nil
	}
	return r.Cut(ctx, machine)
}

// farEnd is the name of the computer's end of the link of a container, which is
// known by the process ID of its init. The machine's own /sys says which index it
// has.
func farEnd(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/sys/class/net/eth0/iflink", pid))
	if err != nil {
		return "", err
	}
	index, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return "", err
	}
	far, err := net.InterfaceByIndex(index)
	if err != nil {
		return "", err
	}
	return far.Name, nil
}
