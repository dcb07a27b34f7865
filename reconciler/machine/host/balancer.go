package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"text/template"
)

// The balancer is the way to the API on each machine: what runs there speaks to
// it by a name that always means the machine itself, and it speaks to those
// masters that are healthy. It depends on nothing in the cluster, and its
// configuration is the list of masters for a boot without the API.
const (
	BalancerPort = 7443
	BalancerFile = "/etc/kingmaker/balancer.cfg"
	CAFile       = "/etc/kingmaker/ca.crt" // the site's CA, by which the balancer knows masters
	BalancerUnit = "kingmaker-balancer.service"
)

// Endpoint is the name of a site's API on each of its machines.
func Endpoint(site string) string { return "api." + site + ".internal" }

// BalancerConfig is haproxy's configuration for a site with these masters, in
// any order, with the port of their API servers. Without masters it is good for
// refusing connections at once.
//
// A master that is switched off is out within 4 seconds (a check each second
// that may take one to connect; the second that fails is sooner), one whose API
// server stops at once; whoever was connected to it is cut off then, and comes
// back to another. Connections that only wait, as watches do, last for an hour
// without a word; TCP itself finds within a minute who is gone.
func BalancerConfig(site string, masters []netip.AddrPort) []byte {
	masters = slices.Clone(masters)
	slices.SortFunc(masters, netip.AddrPort.Compare)
	text := template.Must(template.New("").Parse(`# Written by noded; the servers are the last masters that it knew.
global
    log stdout format raw daemon notice
    user haproxy
    group haproxy
    maxconn 1000
    # A reload leaves connections to the old process, which checks no master any more.
    hard-stop-after 30s

defaults
    log global
    mode tcp
    option dontlognull
    # In a room a kernel answers at once; one that does not is dead, and the next is asked.
    timeout connect 1s
    timeout check 2s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    option clitcpka
    clitcpka-idle 30s
    clitcpka-intvl 10s
    clitcpka-cnt 3
    option srvtcpka
    srvtcpka-idle 30s
    srvtcpka-intvl 10s
    srvtcpka-cnt 3
    retries 2
    option redispatch 1

frontend api
    bind 127.0.0.1:{{.Port}}
    default_backend masters

backend masters
    balance leastconn
{{- if .Masters}}
    option httpchk
    http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host {{.Endpoint}}
    http-check expect status 200
    default-server check check-ssl check-sni {{.Endpoint}} verify required verifyhost {{.Endpoint}} ca-file {{.CA}} inter 1s fastinter 500ms fall 2 rise 1 on-marked-down shutdown-sessions
{{- end}}
{{- range .Masters}}
    server {{.Addr}} {{.}}
{{- end}}
`))
	var config bytes.Buffer
	err := text.Execute(&config, map[string]any{
		"Port": BalancerPort, "CA": CAFile, "Endpoint": Endpoint(site), "Masters": slices.Compact(masters),
	})
	if err != nil {
		panic(err) // the template is ours, and writes to memory
	}
	return config.Bytes()
}

// Masters is the last good list; none where none was ever known.
func Masters(h *Host) (masters []netip.AddrPort, err error) {
	config, err := h.Read(BalancerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for line := range strings.Lines(string(config)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "server" {
			master, err := netip.ParseAddrPort(fields[2])
			if err != nil {
				return nil, fmt.Errorf("read masters from %s: %w", BalancerFile, err)
			}
			masters = append(masters, master)
		}
	}
	return masters, err
}

// SetMasters makes the balancer use these masters, and reports whether it did
// not before. It refuses an empty list when there is a good one: no masters at
// all are more likely not seen than not there. CAFile must be there.
func SetMasters(ctx context.Context, h *Host, site string, masters []netip.AddrPort) (changed bool, err error) {
	if len(masters) == 0 {
		if last, err := Masters(h); err != nil || len(last) > 0 {
			return false, errors.Join(fmt.Errorf("set the balancer's masters: the list is empty; it goes on with %v", last), err)
		}
	}
	changed, err = h.setBalancer(ctx, BalancerConfig(site, masters))
	if err != nil {
		return changed, fmt.Errorf("set the balancer's masters: %w", err)
	}
	return changed, nil
}

// ForgetMasters leaves the balancer without masters, as on a machine that is no
// member of a site.
func ForgetMasters(ctx context.Context, h *Host) error {
	if _, err := h.setBalancer(ctx, BalancerConfig("", nil)); err != nil {
		return fmt.Errorf("forget the balancer's masters: %w", err)
	}
	return nil
}

// setBalancer replaces the configuration by one that haproxy finds good, and has
// it read. What it read last is remembered, for a death in between.
func (h *Host) setBalancer(ctx context.Context, config []byte) (changed bool, err error) {
	same, what := h.Same(BalancerFile, config, 0o644), h.balancerSum(config)
	if same && h.begun(readBalancer, what) {
		return false, nil
	}
	if !same {
		const proposed = BalancerFile + ".new"
		if err := h.Write(proposed, config, 0o644); err != nil {
			return false, err
		}
		_, err := h.Run(ctx, "haproxy", "-c", "-q", "-f", h.Path(proposed))
		if err != nil {
			err = fmt.Errorf("%w; the last good list stays", err)
		} else {
			err = h.Write(BalancerFile, config, 0o644)
		}
		if err := errors.Join(err, h.Remove(proposed)); err != nil {
			return false, err
		}
	}
	if _, err := h.Run(ctx, "systemctl", "reload-or-restart", BalancerUnit); err != nil {
		return true, fmt.Errorf("%w; journalctl -u %s tells more", err, BalancerUnit)
	}
	return true, h.Write(begun(readBalancer), []byte(what), 0o644)
}

const readBalancer = "balancer.cfg"

// balancerSum stands for all that the balancer reads: another site may have
// masters of the same addresses.
func (h *Host) balancerSum(config []byte) string {
	ca, _ := h.Read(CAFile)
	return hexSum(append(config[:len(config):len(config)], ca...))
}

// balancer runs from the installation on, so that join finds it there. A list
// of masters that is there stays.
func (i *install) balancer() Step {
	h := i.h
	look := func(ctx context.Context) ([]string, error) {
		todo, err := h.lookUnit(ctx, balancerUnit())
		if !h.Exists(BalancerFile) {
			todo = append([]string{"write " + BalancerFile}, todo...)
		}
		return todo, err
	}
	do := func(ctx context.Context) error {
		if !h.Exists(BalancerFile) {
			config := BalancerConfig("", nil)
			err := errors.Join(h.Write(BalancerFile, config, 0o644), h.Write(begun(readBalancer), []byte(h.balancerSum(config)), 0o644))
			if err != nil {
				return err
			}
		}
		return h.doUnit(ctx, balancerUnit())
	}
	return Step{"balancer", look, do}
}

func balancerUnit() unit {
	const text = header + `[Unit]
Description=The way to the API of the site: 127.0.0.1:7443 to the masters that are healthy
After=network.target
Before=kubelet.service noded.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/usr/sbin/haproxy -Ws -f ` + BalancerFile + `
ExecReload=/usr/sbin/haproxy -c -q -f ` + BalancerFile + `
ExecReload=/bin/kill -USR2 $MAINPID
KillMode=mixed
SuccessExitStatus=143
Restart=always
RestartSec=1
# As root it reads its configuration, and then becomes the user haproxy.
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_KILL CAP_DAC_READ_SEARCH
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
`
	return unit{name: BalancerUnit, verb: restart, files: []file{{"/etc/systemd/system/" + BalancerUnit, []byte(text), 0o644}}}
}
