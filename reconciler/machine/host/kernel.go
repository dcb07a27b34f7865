package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A module of the kernel, and a file that is there when the kernel has it,
// whether as a module or built in.
type module struct{ name, sign, use string }

func modules() []module {
	return []module{
		{"overlay", "/sys/module/overlay", "containerd's images"},
		{"br_netfilter", "/proc/sys/net/bridge", "Services between Pods of one machine"},
		{"nf_conntrack", "/proc/sys/net/netfilter/nf_conntrack_max", "kube-proxy"},
	}
}

// A setting of the kernel that must be at least so much.
type setting struct {
	name  string
	least int
	use   string
}

func settings() []setting {
	return []setting{
		{"net.ipv4.ip_forward", 1, "Pods reach other machines"},
		{"net.bridge.bridge-nf-call-iptables", 1, "Services between Pods of one machine"},
		{"net.bridge.bridge-nf-call-ip6tables", 1, "the same over IPv6"},
		// The defaults are for one person at one desk. kubelet, containerd and
		// many desktops on one machine watch more.
		{"fs.inotify.max_user_instances", 8192, "many containers that watch files"},
		{"fs.inotify.max_user_watches", 524288, "many containers that watch files"},
	}
}

func (s setting) path() string { return "/proc/sys/" + strings.ReplaceAll(s.name, ".", "/") }

const (
	modulesFile  = "/etc/modules-load.d/kingmaker.conf"
	settingsFile = "/etc/sysctl.d/90-kingmaker.conf"
)

// kernel loads modules and raises settings, now and at each boot. A kernel that
// has no such switch is borne where only convenience hangs on it.
func (i *install) kernel() Step {
	h := i.h
	look := func(ctx context.Context) (todo []string, err error) {
		if !h.Same(modulesFile, modulesConf(), 0o644) {
			todo = append(todo, "write "+modulesFile)
		}
		if !h.Same(settingsFile, settingsConf(), 0o644) {
			todo = append(todo, "write "+settingsFile)
		}
		for _, m := range modules() {
			if !h.Exists(m.sign) && !h.tried(m.name) {
				todo = append(todo, "load kernel module "+m.name+" ("+m.use+")")
			}
		}
		for _, s := range settings() {
			if have, ok := h.setting(s); ok && have < s.least {
				todo = append(todo, fmt.Sprintf("set %s from %d to %d (%s)", s.name, have, s.least, s.use))
			}
		}
		return todo, nil
	}
	do := func(ctx context.Context) error {
		err := errors.Join(h.Write(modulesFile, modulesConf(), 0o644), h.Write(settingsFile, settingsConf(), 0o644))
		if err != nil {
			return err
		}
		for _, m := range modules() {
			if h.Exists(m.sign) || h.tried(m.name) {
				continue
			}
			if _, err := h.Run(ctx, "modprobe", m.name); err != nil {
				// A container has the kernel of its host, and cannot load: what is
				// missing there is missing for good, until the next boot.
				if i.h.container() == "" {
					return fmt.Errorf("%w; %s needs it", err, m.use)
				}
				h.Log.WarnContext(ctx, "the kernel has no such module, and a container cannot load it", "module", m.name, "without", m.use)
				if err := h.Write(tried(m.name), h.boot(), 0o644); err != nil {
					return err
				}
			}
		}
		for _, s := range settings() {
			have, ok := h.setting(s)
			if !ok {
				h.Log.WarnContext(ctx, "this kernel has no such setting", "setting", s.name, "without", s.use)
				continue
			}
			if have >= s.least {
				continue
			}
			if _, err := h.Run(ctx, "sysctl", "--write", fmt.Sprintf("%s=%d", s.name, s.least)); err != nil {
				return fmt.Errorf("%w; where a container may not set it, set it on the computer around it", err)
			}
		}
		return nil
	}
	return Step{"kernel", look, do}
}

// tried remembers for one boot that a module cannot be had.
func tried(module string) string { return StateDir + "/no-module/" + module }

func (h *Host) tried(module string) bool { return h.Same(tried(module), h.boot(), 0o644) }

func (h *Host) boot() []byte {
	id, _ := h.Read("/proc/sys/kernel/random/boot_id")
	return id
}

func modulesConf() []byte {
	var text bytes.Buffer
	text.WriteString(header)
	for _, m := range modules() {
		fmt.Fprintf(&text, "%s\n", m.name)
	}
	return text.Bytes()
}

// A line that begins with - may fail: the setting may come with a module, later.
func settingsConf() []byte {
	var text bytes.Buffer
	text.WriteString(header)
	for _, s := range settings() {
		fmt.Fprintf(&text, "-%s = %d\n", s.name, s.least)
	}
	return text.Bytes()
}

// header is the first line of every file of ours.
const header = "# Written by noded install, which writes it again.\n"

// setting is a value of the kernel; not ok where it has no such thing.
func (h *Host) setting(s setting) (value int, ok bool) {
	text, err := h.Read(s.path())
	if err != nil {
		return 0, false
	}
	value, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return value, err == nil
}
