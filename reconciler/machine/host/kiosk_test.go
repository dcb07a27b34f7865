package host_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
)

const policies = "/etc/firefox/policies/policies.json"

// TestKiosk: the screen shows the portal and nothing else, moves with it, and is given
// back as it was.
func TestKiosk(t *testing.T) {
	m, b := hosttest.NewDebian(t), hosttest.Bundle(t)
	if err := host.Do(t.Context(), host.Install(m.Host, options(t, m, b)), func(string) {}); err != nil {
		t.Fatal(err)
	}
	plain := m.Tree(t, "/")
	become := func(k host.Kiosk) (todo []string) {
		t.Helper()
		steps, err := k.Steps(m.Host)
		if err == nil {
			err = host.Do(t.Context(), steps, func(line string) { todo = append(todo, line) })
		}
		if err != nil {
			t.Fatal(err)
		}
		if left := look(t, steps); len(left) > 0 {
			t.Errorf("done, and would do %q", left)
		}
		return todo
	}
	m.Runner.Forget()
	become(host.Kiosk{Portal: "10.20.1.14:30443", Authority: []byte("-----BEGIN CERTIFICATE-----\n")})
	if !m.Enabled[host.KioskUnit] || !m.Active[host.KioskUnit] || !slices.Contains(m.Accounts, "kingmaker-kiosk") {
		t.Error("it does not run")
	}
	installed := slices.IndexFunc(m.Runner.Lines(), func(line string) bool {
		return strings.Contains(line, " install ") && strings.HasSuffix(line, strings.Join(host.KioskPackages(), " ")) && strings.Contains(line, "sources.list")
	})
	if installed < 0 {
		t.Errorf("the packages do not come from the bundle: %q", m.Runner.Changes())
	}
	var written struct {
		Policies struct {
			Certificates  struct{ Install []string }
			WebsiteFilter struct{ Block, Exceptions []string }
		}
	}
	if err := json.Unmarshal([]byte(m.Get(policies)), &written); err != nil {
		t.Fatal(err)
	}
	p := written.Policies
	if !slices.Equal(p.WebsiteFilter.Block, []string{"<all_urls>"}) || !slices.Equal(p.WebsiteFilter.Exceptions, []string{"https://10.20.1.14/*"}) || !slices.Equal(p.Certificates.Install, []string{"/etc/kingmaker/portal-ca.crt"}) {
		t.Errorf("%+v", p)
	}
	if text := m.Get("/etc/systemd/system/" + host.KioskUnit); !strings.Contains(text, " https://10.20.1.14:30443/\n") || !strings.Contains(text, "\nUser=kingmaker-kiosk\n") {
		t.Error(text)
	}

	// The site has a name and a certificate that everybody trusts; the stick is gone.
	if err := os.Remove(filepath.Join(b.Dir, "debian", "Packages")); err != nil {
		t.Fatal(err)
	}
	todo := become(host.Kiosk{Portal: "portal.school.example:30443"})
	if !slices.Contains(todo, "restart "+host.KioskUnit) || strings.Contains(m.Get(policies), "Certificates") {
		t.Errorf("%q\n%s", todo, m.Get(policies))
	}
	delete(m.Packages, "cage")
	m.Runner.Forget()
	become(host.Kiosk{Portal: "portal.school.example:30443"})
	if !slices.ContainsFunc(m.Runner.Changes(), func(line string) bool {
		return strings.HasSuffix(line, " cage") && !strings.Contains(line, "sources.list")
	}) {
		t.Errorf("%q", m.Runner.Changes())
	}

	for range 2 {
		if err := host.Do(t.Context(), []host.Step{host.NoKiosk(m.Host)}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		if m.Enabled[host.KioskUnit] || m.Active[host.KioskUnit] {
			t.Error("it still runs")
		}
		if after := m.Tree(t, "/"); !maps.Equal(plain, after) {
			t.Error("it has left something behind, or taken something away")
		}
	}
}

// TestKioskRefuses: what is somebody's stays, and no text gets into a unit.
func TestKioskRefuses(t *testing.T) {
	m := hosttest.NewDebian(t)
	for _, portal := range []string{"", "portal", "a b:1", "x:1\nExecStart=/bin/sh", "x%n:1", "x\"y:1", "$(id):1"} {
		if _, err := (host.Kiosk{Portal: portal}).Steps(m.Host); err == nil {
			t.Errorf("%q is taken", portal)
		}
	}
	if _, err := (host.Kiosk{Portal: "[fd00::1]:30443"}).Steps(m.Host); err != nil {
		t.Error(err)
	}
	m.Put(t, policies, "{}")
	steps, err := host.Kiosk{Portal: "10.20.1.14:30443"}.Steps(m.Host)
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Do(t.Context(), steps, func(string) {}); err == nil || !strings.Contains(err.Error(), policies) {
		t.Errorf("somebody's policies: %v", err)
	}
	if err := host.Do(t.Context(), []host.Step{host.NoKiosk(m.Host)}, func(string) {}); err != nil || m.Get(policies) != "{}" {
		t.Errorf("%v, %q", err, m.Get(policies))
	}
	if changes := m.Runner.Changes(); len(changes) > 0 {
		t.Errorf("it did %q", changes)
	}
}
