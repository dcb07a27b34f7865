package member

import (
	"bytes"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Net is the machine's network, as far as a member needs to know it. The zero
// value is the machine's own; tests set the fields.
type Net struct {
	// Cards are the network interfaces.
	Cards func() ([]Card, error)
	// Toward is the address from which packets to another leave. Nothing is sent.
	Toward func(to netip.Addr) (netip.Addr, error)
	// Hostname is the machine's own name for itself.
	Hostname func() (string, error)
}

// Card is a network interface.
type Card struct {
	MAC       string // "02:4b:4d:00:00:01"; "" of one that has none
	Addresses []netip.Prefix
}

// has reports whether the card has an address.
func (c Card) has(a netip.Addr) bool {
	return a.IsValid() && slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

func (n Net) cards() (cards []Card, err error) {
	if n.Cards != nil {
		return n.Cards()
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		addresses, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		card := Card{MAC: i.HardwareAddr.String()}
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				card.Addresses = append(card.Addresses, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()))
			}
		}
		cards = append(cards, card)
	}
	return cards, nil
}

func (n Net) toward(to netip.Addr) (netip.Addr, error) {
	if n.Toward != nil {
		return n.Toward(to)
	}
	c, err := net.Dial("udp", netip.AddrPortFrom(to, machine.APIPort).String()) // looks at routes only
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func (n Net) hostname() (string, error) {
	name, err := os.Hostname()
	if n.Hostname != nil {
		name, err = n.Hostname()
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return name, err
}

// chooseName is the name of the machine: the one that was asked for; the one that
// the site repo gives to a machine with this address or network card; or the
// host's own.
func (n Net) chooseName(asked string, declared map[string]machine.Machine) (name string, err error) {
	name, from := asked, "--name"
	if name == "" {
		if name, err = n.known(declared); err != nil || name != "" {
			return name, err
		}
		if name, err = n.hostname(); err != nil {
			return "", err
		}
		from = "host name"
	}
	if len(validation.IsDNS1123Label(name)) > 0 {
		return "", fault(machine.LineInvalid, "give it with --name, as the site repo has it", "the %s %q is no name of a machine: want letters, digits and dashes", from, name)
	}
	return name, nil
}

// known is the declared machine that this one is by its hardware; "" is none.
func (n Net) known(declared map[string]machine.Machine) (string, error) {
	cards, err := n.cards()
	if err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		m := declared[name]
		for _, c := range cards {
			if c.is(m.MAC) || c.has(addressOf(m)) {
				return name, nil
			}
		}
	}
	return "", nil
}

// is compares hardware addresses, however they are written.
func (c Card) is(mac string) bool {
	a, err := net.ParseMAC(mac)
	b, err2 := net.ParseMAC(c.MAC)
	return err == nil && err2 == nil && bytes.Equal(a, b)
}

// addressOf is where the site repo says that a machine is; invalid where it does not.
func addressOf(m machine.Machine) netip.Addr {
	a, _ := netip.ParseAddr(m.Address)
	return a.Unmap()
}

// chooseAddress is the address of the machine: the one that was asked for, the
// one that is declared, that of the declared network card, the one that leads to
// a master, or the only one. Declared, master and pods may be zero. Where nobody
// says which, only those count that are of IPv4 or IPv6 as the Pods' range is:
// most networks give a PC some of either.
func (n Net) chooseAddress(asked netip.Addr, declared machine.Machine, master netip.Addr, pods netip.Prefix) (netip.Addr, error) {
	cards, err := n.cards()
	if err != nil {
		return netip.Addr{}, err
	}
	var have, fit, onCard []netip.Addr
	var words, macs []string
	found := false
	for _, c := range cards {
		for _, p := range c.Addresses {
			a := p.Addr()
			if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
				continue
			}
			have, words = append(have, a), append(words, a.String())
			if pods.IsValid() && pods.Addr().Is4() != a.Is4() {
				continue
			}
			fit = append(fit, a)
			if c.is(declared.MAC) {
				onCard = append(onCard, a)
			}
		}
		found = found || c.is(declared.MAC)
		if c.MAC != "" {
			macs = append(macs, c.MAC)
		}
	}
	const another = "this may be another machine than you think (--name says which it is); or correct the site repo"
	want := addressOf(declared)
	switch {
	case declared.MAC != "" && !found:
		return want, fault(NotDeclared, another, "the site repo has the network card %s for this machine, which has %s", declared.MAC, orNone(macs))
	case want.IsValid() && !slices.Contains(have, want):
		return want, fault(NotDeclared, "give it that address; "+another, "the site repo has the address %s for this machine, which has %s", want, orNone(words))
	case asked.IsValid() && !slices.Contains(have, asked):
		return asked, fault(NoAddress, "give one of them", "--address %s is not an address of this machine, which has %s", asked, orNone(words))
	case asked.IsValid() && want.IsValid() && asked != want:
		return asked, fault(NotDeclared, "correct the one that is wrong", "--address is %s, and the site repo has %s", asked, want)
	case asked.IsValid():
		return asked, nil
	case want.IsValid():
		return want, nil
	case len(onCard) == 1:
		return onCard[0], nil
	case master.IsValid():
		if a, err := n.toward(master); err == nil && slices.Contains(have, a) {
			return a, nil
		}
	case len(fit) == 1:
		return fit[0], nil
	}
	return netip.Addr{}, fault(NoAddress, "say which with --address", "it is not clear by which address the site is to reach this machine: it has %s", orNone(words))
}

// neighbours are all who could be on the machine's own network, given one of its
// addresses: none where that is too many to knock at each door.
func (n Net) neighbours(own netip.Addr) (all []netip.Addr, err error) {
	cards, err := n.cards()
	if err != nil {
		return nil, err
	}
	for _, c := range cards {
		for _, p := range c.Addresses {
			if p.Addr() != own || p.Addr().BitLen()-p.Bits() > 10 { // 1024
				continue
			}
			for a := p.Masked().Addr(); p.Contains(a); a = a.Next() {
				if a != own {
					all = append(all, a)
				}
			}
		}
	}
	return all, nil
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

// identity is what the kubelet will report of this machine.
func identity(h *host.Host) (Identity, error) {
	id, err := h.Read("/etc/machine-id")
	if err != nil {
		return Identity{}, err
	}
	if len(bytes.TrimSpace(id)) == 0 {
		return Identity{}, errors.New("/etc/machine-id is empty; systemd-machine-id-setup makes one")
	}
	board, _ := h.Read("/sys/class/dmi/id/product_uuid") // some boards have none
	return Identity{string(bytes.TrimSpace(id)), string(bytes.TrimSpace(board))}, nil
}
