package host

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"
)

// KioskUnit is the service that shows the portal on the machine's own screen.
const KioskUnit = "kingmaker-kiosk.service"

// KioskPackages are the Debian packages that it needs, with what they depend on: cage
// gives the screen to one program and to no other, and firefox-esr is that program. With
// libpam-systemd logind gives it to cage.
func KioskPackages() []string {
	return []string{"cage", "dbus", "firefox-esr", "fonts-dejavu-core", "libpam-systemd"}
}

// Kiosk is a screen that shows one site, and lets nobody out of it.
type Kiosk struct {
	Portal    string // host and port, such as 10.20.1.14:30443
	Authority []byte // PEM of who signed the portal's certificate, where Debian does not know it; may be nil
}

// The files of a kiosk.
const (
	kioskUser      = "kingmaker-kiosk"
	kioskHome      = "/run/" + kioskUser // made anew with each start
	kioskAuthority = "/etc/kingmaker/portal-ca.crt"
	kioskPAM       = "/etc/pam.d/" + kioskUser
	kioskUnitFile  = "/etc/systemd/system/" + KioskUnit
	kioskPolicies  = "/etc/firefox/policies/policies.json"
	kioskOwn       = StateDir + "/kiosk" // is there where the policies are ours
)

// hostPort is what may stand in a unit.
var hostPort = regexp.MustCompile(`^[0-9A-Za-z.:\[\]-]+$`)

// Steps make the machine's screen a kiosk.
func (k Kiosk) Steps(h *Host) ([]Step, error) {
	if _, _, err := net.SplitHostPort(k.Portal); err != nil || !hostPort.MatchString(k.Portal) {
		return nil, fmt.Errorf("make the screen a kiosk: %q is no address of a portal", k.Portal)
	}
	policies := Step{"policies of firefox", func(context.Context) ([]string, error) {
		if h.Exists(kioskPolicies) && !h.Exists(kioskOwn) {
			return nil, fmt.Errorf("%s is somebody's: move it away, or take kiosk from the Machine", kioskPolicies)
		}
		return nil, nil
	}, nil}
	account := Step{"account", func(ctx context.Context) ([]string, error) {
		out, err := h.ask(ctx, "getent", "passwd", kioskUser)
		if err != nil || len(out) > 0 {
			return nil, err
		}
		return []string{"make the account " + kioskUser}, nil
	}, func(ctx context.Context) error {
		_, err := h.Run(ctx, "useradd", "--system", "--no-create-home", "--home-dir", kioskHome, "--shell", "/usr/sbin/nologin", kioskUser)
		return err
	}}
	return []Step{policies, h.debs("packages", KioskPackages(), h.lastSource), account,
		h.step("kiosk", func() (unit, error) { return k.unit(), nil })}, nil
}

// lastSource is the bundle of which the machine was installed, where that is still to
// be found; else the machine's own sources.
func (h *Host) lastSource() (source, error) {
	list, err := h.Read(sourceList)
	if m := regexp.MustCompile(`\] (file:\S+)/debian `).FindSubmatch(list); err == nil && m != nil {
		if where, err := url.Parse(string(m[1])); err == nil {
			if _, err := os.Stat(where.Path + "/debian/Packages"); err == nil {
				release, err := h.release()
				if err != nil {
					return source{}, err
				}
				return h.source(where.Path, release.codename)
			}
		}
	}
	return source{words: "the machine's own sources (the bundle of which it was installed is not there any more)"}, nil
}

func (k Kiosk) unit() unit {
	address := "https://" + k.Portal + "/"
	site := k.Portal[:strings.LastIndexByte(k.Portal, ':')]
	text := header + `[Unit]
Description=The portal on this machine's own screen
Wants=dbus.socket systemd-logind.service network-online.target
After=dbus.socket systemd-logind.service systemd-user-sessions.service network-online.target getty@tty1.service
Conflicts=getty@tty1.service
StartLimitIntervalSec=0

[Service]
User=` + kioskUser + `
PAMName=` + kioskUser + `
TTYPath=/dev/tty1
TTYReset=yes
TTYVHangup=yes
TTYVTDisallocate=yes
StandardInput=tty-fail
StandardOutput=journal
StandardError=journal
UtmpIdentifier=tty1
UtmpMode=user
Environment=MOZ_ENABLE_WAYLAND=1 MOZ_CRASHREPORTER_DISABLE=1
# What one leaves behind is not for the next: the profile goes with each start, and
# there is one each night at least.
RuntimeDirectory=` + kioskUser + `
RuntimeDirectoryMode=0700
RuntimeMaxSec=12h
ExecStart=/usr/bin/cage -- /usr/bin/firefox-esr --kiosk --profile ` + kioskHome + ` --private-window ` + address + `
Restart=always
RestartSec=3
NoNewPrivileges=yes
ProtectSystem=strict
# Not ProtectHome: that takes /run/user too, where the screen's socket is.
InaccessiblePaths=-/home -/root -/srv
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
`
	const pam = `# Written by noded: a session of logind, which owns the screen.
auth     required pam_permit.so
account  required pam_permit.so
session  required pam_unix.so
session  required pam_systemd.so
`
	all := map[string]any{
		"BlockAboutAddons": true, "BlockAboutConfig": true, "BlockAboutProfiles": true, "BlockAboutSupport": true,
		"DisableDeveloperTools": true, "DisableFirefoxAccounts": true, "DisableFirefoxStudies": true, "DisableTelemetry": true, "DisableFormHistory": true,
		"DisableProfileImport": true, "DontCheckDefaultBrowser": true, "NoDefaultBookmarks": true, "OfferToSaveLogins": false, "PasswordManagerEnabled": false,
		"OverrideFirstRunPage": "", "OverridePostUpdatePage": "", "SanitizeOnShutdown": true, "SkipTermsOfUse": true, "PrintingEnabled": false, "DisableSetDesktopBackground": true,
		"Proxy": map[string]any{"Mode": "none", "Locked": true},
		// Its patterns have no port, and are of all ports; one with a port is of none.
		"WebsiteFilter": map[string]any{"Block": []string{"<all_urls>"}, "Exceptions": []string{"https://" + site + "/*"}},
	}
	files := []file{{kioskUnitFile, []byte(text), 0o644}, {kioskPAM, []byte(pam), 0o644}, {kioskOwn, nil, 0o644}}
	if len(k.Authority) > 0 {
		all["Certificates"] = map[string]any{"Install": []string{kioskAuthority}}
		files = append(files, file{kioskAuthority, k.Authority, 0o644})
	}
	policies, err := json.MarshalIndent(map[string]any{"policies": all}, "", "  ")
	if err != nil {
		panic(err) // it can be written
	}
	return unit{name: KioskUnit, verb: restart, files: append(files, file{kioskPolicies, append(policies, '\n'), 0o644})}
}

// NoKiosk gives the screen back to whoever is there. The packages stay: somebody may
// have come to use them.
func NoKiosk(h *Host) Step {
	look := func(context.Context) (todo []string, err error) {
		if h.Exists(kioskOwn) {
			todo = append(todo, "take the kiosk away")
		}
		return todo, nil
	}
	return Step{"kiosk", look, func(ctx context.Context) error {
		if h.Exists(kioskUnitFile) {
			if _, err := h.Run(ctx, "systemctl", "disable", "--now", KioskUnit); err != nil {
				return err
			}
		}
		for _, name := range []string{kioskUnitFile, kioskPAM, kioskPolicies, kioskAuthority, begun(KioskUnit)} {
			if err := h.Remove(name); err != nil {
				return err
			}
		}
		if _, err := h.Run(ctx, "systemctl", "daemon-reload"); err != nil {
			return err
		}
		if _, err := h.ask(ctx, "systemctl", "start", "getty@tty1.service"); err != nil { // where there is one
			return err
		}
		return h.Remove(kioskOwn)
	}}
}
