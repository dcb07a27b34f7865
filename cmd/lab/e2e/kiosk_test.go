//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKiosk: a commit makes a machine's own screen a browser at the portal's sign-in, in
// which the portal is trusted; and another one takes it away. The lab's machines have no
// screen: cage draws into memory.
func TestKiosk(t *testing.T) {
	long(t)
	calm(t)
	openDoor(t)
	m := workers(t, 1)[0]
	const beside = "/etc/systemd/system/kingmaker-kiosk.service.d"
	on(t, m, "mkdir", "--parents", beside)
	put(t, m, beside+"/lab.conf", `[Service]
TTYPath=
StandardInput=null
UtmpIdentifier=
Environment=WLR_BACKENDS=headless WLR_RENDERER=pixman WLR_LIBINPUT_NO_DEVICES=1
`)
	file := "machines/" + m + ".yaml"
	before, err := os.ReadFile(filepath.Join(site.repo, file))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	push(t, "a kiosk", map[string]string{file: strings.TrimRight(string(before), "\n") + "\n  kiosk: true\n"})
	defer push(t, "no kiosk", map[string]string{file: string(before)})
	await(t, 5*time.Minute, m+" to say that its screen shows the portal", func() (string, bool) {
		out, err := kubectl("get", "machine", m, "-o", `jsonpath={.status.conditions[?(@.type=="Kiosk")]}`)
		return out, err == nil && strings.Contains(out, `"True"`)
	})
	on(t, m, "systemctl", "cat", "kingmaker-kiosk.service") // and not before it is so
	// A browser that did not trust it would hang up at once.
	seen := func() (string, bool) {
		who, _ := exit(m, "", "sh", "-c", "ps -o user:20= -C firefox-esr | sort -u")
		talks, _ := exit(m, "", "ss", "-Htnp", "state", "established", "dport", "=", ":30443")
		state, _ := exit(m, "", "sh", "-c", "systemctl status --no-pager kingmaker-kiosk.service; journalctl -n 20 -u kingmaker-kiosk.service")
		return fmt.Sprintf("%s %s %s", who, talks, state), strings.TrimSpace(who) == "kingmaker-kiosk" && strings.Contains(talks, "firefox-esr")
	}
	await(t, 2*time.Minute, "a browser that talks to the portal", seen)
	t.Logf("the screen of %s shows the portal %.0f s after the push", m, time.Since(began).Seconds())

	push(t, "no kiosk", map[string]string{file: string(before)})
	await(t, 2*time.Minute, "the screen to be given back", func() (string, bool) {
		out, err := exit(m, "", "systemctl", "is-active", "kingmaker-kiosk.service")
		gone, _ := exit(m, "", "sh", "-c", "ls /etc/systemd/system/kingmaker-kiosk.service /etc/firefox/policies/policies.json 2>/dev/null; pgrep -x firefox-esr")
		return out + gone, err != nil && strings.TrimSpace(gone) == ""
	})
}
