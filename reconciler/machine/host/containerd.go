package host

import (
	"bytes"
	"context"
	"text/template"
)

const containerdConfig = "/etc/containerd/config.toml"

// containerd is the distribution's, with settings of ours. What its
// administrator had set is kept beside.
func (i *install) containerd() Step {
	s := i.h.step("containerd", func() (unit, error) {
		config, err := i.containerdConfig()
		return unit{name: ContainerdUnit, verb: restart, files: []file{{containerdConfig, config, 0o644}}}, err
	})
	do := s.Do
	s.Do = func(ctx context.Context) error {
		const kept = containerdConfig + ".before-kingmaker"
		if have, err := i.h.Read(containerdConfig); err == nil && !bytes.HasPrefix(have, []byte(header)) && !i.h.Exists(kept) {
			if err := i.h.Write(kept, have, 0o644); err != nil {
				return err
			}
		}
		return do(ctx)
	}
	return s
}

// containerdConfig is of version 2, which containerd 1.7 has and 2 still reads.
//
// Containers are made by crun, which is in C: runc starts itself twice for each, and a
// program in Go that does takes a good part of a second of an old PC. People wait for
// their desktop meanwhile.
func (i *install) containerdConfig() ([]byte, error) {
	pause, err := i.Bundle.pause()
	if err != nil {
		return nil, err
	}
	text := template.Must(template.New("").Parse(header + `version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Pause}}"
  restrict_oom_score_adj = {{.RestrictOOMScoreAdj}}

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin" # Debian's own is /usr/lib/cni
    conf_dir = "/etc/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{{.Snapshotter}}"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "/usr/bin/crun"
        SystemdCgroup = {{.SystemdCgroup}}
`))
	var config bytes.Buffer
	err = text.Execute(&config, struct {
		Needs
		Pause string
	}{i.Needs, pause})
	return config.Bytes(), err
}
