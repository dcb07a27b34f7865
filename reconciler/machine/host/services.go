package host

// The units of a member.
const (
	ContainerdUnit = "containerd.service" // the distribution's
	KubeletUnit    = "kubelet.service"
	NodedUnit      = "noded.service"
)

// kubelet is set up as kubeadm's own packages do it, but for two things: its
// folder is /usr/local/bin, and it waits for its configuration rather than to
// fail every ten seconds until a site has been joined.
func (i *install) kubelet() Step {
	return i.h.step("kubelet", func() (unit, error) {
		const text = header + `[Unit]
Description=kubelet: The Kubernetes Node Agent
Documentation=https://kubernetes.io/docs/
Wants=network-online.target
After=network-online.target containerd.service ` + BalancerUnit + `
ConditionPathExists=/var/lib/kubelet/config.yaml
StartLimitIntervalSec=0

[Service]
# A former master must not start its control plane: noded asks, for a few seconds,
# and a worker's kubelet starts at once.
ExecStartPre=/usr/local/bin/noded fence
ExecStart=/usr/local/bin/kubelet
Restart=always
RestartSec=3

[Install]
WantedBy=multi-user.target
`
		const kubeadm = header + `[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
# Written by kubeadm init and kubeadm join.
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
# For the administrator, as a last resort.
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/local/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`
		return unit{
			name: KubeletUnit,
			verb: tryRestart,
			uses: []string{i.Bundle.sums["bin/kubelet"]},
			files: []file{
				{"/etc/systemd/system/" + KubeletUnit, []byte(text), 0o644},
				{"/etc/systemd/system/" + KubeletUnit + ".d/10-kubeadm.conf", []byte(kubeadm), 0o644},
			},
		}, nil
	})
}

// noded's service is what it was installed for. Until the machine is a member it
// is not started at all.
//
// It runs as root for what it does: kubeadm, systemctl, apt-get, files all over
// /etc. What neither it nor these ever need is taken from it, as far as that works
// without a mount namespace of its own, in which mounts that it makes would stay.
func (i *install) noded() Step {
	return i.h.step("noded", func() (unit, error) {
		const text = header + `[Unit]
Description=Kingmaker's agent of this machine
Wants=network-online.target
After=network-online.target containerd.service ` + BalancerUnit + `
ConditionPathExists=` + MachineFile + `
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/usr/local/bin/noded run
WatchdogSec=60
Restart=always
RestartSec=2
NoNewPrivileges=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
`
		return unit{
			name:  NodedUnit,
			verb:  tryRestart,
			uses:  []string{i.Bundle.sums["bin/noded"]},
			files: []file{{"/etc/systemd/system/" + NodedUnit, []byte(text), 0o644}},
		}, nil
	})
}
