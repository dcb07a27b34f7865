package hand

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

// unitDir has the units that mount volumes. None is enabled: noded starts them, for
// a mount that systemd waits for would hold up a boot without a network.
const unitDir = "/etc/systemd/system"

// unitOf is the name that systemd wants the unit of a mount point to have.
func unitOf(volume string) string { return escape(gluster.MountPath(volume)) + ".mount" }

func unitFile(volume string) string { return path.Join(unitDir, unitOf(volume)) }

// escape is systemd-escape --path of a clean absolute path.
func escape(name string) string {
	var b strings.Builder
	for i, c := range []byte(strings.Trim(name, "/")) {
		switch {
		case c == '/':
			b.WriteByte('-')
		case c == '.' && i == 0, !plainByte(c):
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func plainByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(":_.", c) >= 0
}

// volumeOf is the volume whose unit has that name.
func volumeOf(unit string) (volume string, ok bool) {
	name, ok := strings.CutPrefix(unit, escape(gluster.MountDir)+"-")
	name, is := strings.CutSuffix(name, ".mount")
	if !ok || !is || name == "" || strings.Contains(name, "-") {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if strings.HasPrefix(name[i:], `\x`) && i+3 < len(name) {
			if n, err := strconv.ParseUint(name[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(name[i])
	}
	volume = b.String()
	return volume, unitOf(volume) == unit && !strings.Contains(volume, "/")
}

// unitText is the unit. One second is how long a machine may not know that another one
// changed a file. Of homes it is more: a desktop begins with a thousand looks for files,
// most of which are not there, and nobody comes back to a machine so soon from another.
func unitText(w wish) string {
	remember := "attribute-timeout=1,entry-timeout=1"
	if w.Homes {
		remember = "attribute-timeout=5,entry-timeout=5,negative-timeout=5"
	}
	options := "log-level=WARNING," + remember
	if len(w.Servers) > 1 {
		options = "backup-volfile-servers=" + strings.Join(w.Servers[1:], ":") + "," + options
	}
	return `# Written by noded, and again whenever it should be otherwise. noded starts it.
[Unit]
Description=Volume ` + w.Volume + ` of the site

[Mount]
What=` + w.Servers[0] + ":/" + w.Volume + `
Where=` + gluster.MountPath(w.Volume) + `
Type=glusterfs
Options=` + options + `
TimeoutSec=30
`
}

// writeUnit makes the unit be so. A mount that works is not made anew for it: its
// process hears of moved bricks from glusterd.
func writeUnit(ctx context.Context, h *host.Host, w wish) error {
	file, content := unitFile(w.Volume), []byte(unitText(w))
	if h.Same(file, content, 0o644) {
		return nil
	}
	if err := h.Write(file, content, 0o644); err != nil {
		return err
	}
	return run(ctx, h, stopPatience, "systemctl", "daemon-reload")
}
