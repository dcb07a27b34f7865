package session_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/kube"
)

// TestTemplate: the portal reads of a Desktop what the reconciler writes.
func TestTemplate(t *testing.T) {
	ours, theirs := reflect.TypeFor[session.Template](), reflect.TypeFor[kube.Desktop]()
	fields := map[string]bool{}
	for i := range ours.NumField() {
		name, _, _ := strings.Cut(ours.Field(i).Tag.Get("json"), ",")
		fields[name] = true
	}
	for i := range theirs.NumField() {
		if name, _, _ := strings.Cut(theirs.Field(i).Tag.Get("json"), ","); !fields[name] {
			t.Errorf("the portal does not know %s", name)
		}
	}
	var have session.Template
	text := `{"image":"a:1","groups":[],"resources":{"cpu":1,"memory":"2Gi"},"home":{"volume":"homes"},"shared":[{"volume":"s","path":"/srv/s"}],"idleAfter":"2h","screen":{"width":1},"environment":{"A":"b"},"default":true}`
	if err := json.Unmarshal([]byte(text), &have); err != nil || have.Resources.CPU != "1" || time.Duration(have.IdleAfter) != 2*time.Hour || have.Groups == nil || have.For([]string{"x"}) {
		t.Errorf("%+v, %v", have, err)
	}
	if session.Namespace != gluster.DesktopsNamespace {
		t.Error("desktops and the claims of volumes are in two namespaces")
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]session.Size{
		"1280x618": {Width: 1280, Height: 618}, "100x100": {Width: 100, Height: 100}, "7680x4320": {Width: 7680, Height: 4320},
		"": {}, "x": {}, "1280": {}, "1280x": {}, "99x500": {}, "500x99": {}, "7681x500": {}, "500x4321": {}, "-500x500": {}, "1280x618x3": {}, "1280.5x618": {}, "1280x618 -rfbport 1": {},
	} {
		if got := session.ParseSize(text); got != want {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// TestNames: two users never have one name, and all are names of Kubernetes objects.
func TestNames(t *testing.T) {
	seen := map[string]string{}
	for _, user := range []string{"anna", "Anna", "anna.a", "anna-a", "anna_a", "ANNA", "_", "a", "-", strings.Repeat("x", 32), strings.Repeat("X", 32), "anna.1f", "o_o", "a-"} {
		name := session.Name(user)
		if other := seen[name]; other != "" {
			t.Errorf("%s and %s are both %s", user, other, name)
		}
		seen[name] = user
		if pod := session.PodName(name, 1<<40); len(pod) > 200 || pod != strings.ToLower(pod) || strings.ContainsAny(pod, "_ ") {
			t.Errorf("%s is %s", user, pod)
		}
	}
}

func TestChoice(t *testing.T) {
	all := []session.Template{{Name: "z", Groups: &[]string{"pupils"}}, {Name: "any"}, {Name: "nobody", Groups: &[]string{}}, {Name: "club", Groups: &[]string{"band"}, Default: true}, {Name: "class", Groups: &[]string{"pupils"}, Default: true}}
	names := func(groups ...string) (s string) {
		for _, t := range session.Choice(all, groups) {
			s += " " + t.Name
		}
		return s
	}
	for groups, want := range map[string]string{"pupils band": " class club any z", "band pupils": " club class any z", "other": " any"} {
		if got := names(strings.Fields(groups)...); got != want {
			t.Errorf("%s: %s, not %s", groups, got, want)
		}
	}
}

// TestPersons: whoever the directory says a desktop is for, it is no root's.
func TestPersons(t *testing.T) {
	for _, p := range []session.Person{{Name: "x"}, {Name: "x", UID: 999, GID: 5}, {Name: "x", UID: 1000}, {Name: "x", UID: -1, GID: 5}} {
		if _, err := (session.Order{Session: "x", Person: p}).Pod(); err == nil {
			t.Errorf("%+v gets one", p)
		}
	}
	if _, err := (session.Order{Session: "x", Person: session.Person{Name: "x", UID: 1000, GID: 100}}).Pod(); err != nil {
		t.Error(err)
	}
}

// TestOwnImage: the bundle's image is that of the portal's own release.
func TestOwnImage(t *testing.T) {
	for image, want := range map[string]string{session.OwnImage: session.OwnImage + ":0.1.0", session.OwnImage + ":0.0.9": session.OwnImage + ":0.0.9", "registry.example/xfce:1": "registry.example/xfce:1"} {
		pod, err := session.Order{Session: "x", Release: "0.1.0", Template: session.Template{Image: image}, Person: session.Person{Name: "x", UID: 1000, GID: 100}}.Pod()
		if err != nil || pod.Spec.Containers[0].Image != want {
			t.Errorf("%s: %v, want %s", image, err, want)
		}
	}
}

// TestImages: each image that no bundle brings is brought once.
func TestImages(t *testing.T) {
	sets := session.Images([]session.Template{{Image: "registry.example/b:1"}, {Image: session.OwnImage}, {Image: "registry.example/a:1"}, {Image: "registry.example/b:1"}})
	var images []string
	for _, d := range sets {
		images = append(images, d.Spec.Template.Spec.Containers[0].Image)
	}
	if !slices.Equal(images, []string{"registry.example/a:1", "registry.example/b:1"}) || sets[0].Name == sets[1].Name {
		t.Errorf("%v", images)
	}
}

// TestTrust: a desktop that has a certificate of the authority, and not this one, is
// another's.
func TestTrust(t *testing.T) {
	a, err := session.NewAuthority("desktops", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mine, _, err := a.Issue([]string{session.Host}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if c, err := session.Trust(a.Certificate, mine); err != nil || c.ServerName != session.Host || c.InsecureSkipVerify {
		t.Errorf("%v", err)
	}
	if _, err := session.Trust(a.Certificate, []byte("x")); err == nil {
		t.Error("no certificate is trusted")
	}
}

// TestIdle: a minute's notice, and whoever moves the mouse keeps his desktop.
func TestIdle(t *testing.T) {
	now := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	o := session.Observed{Fresh: true, There: true, UID: "u", Spec: session.Spec{User: "anna", Template: "x", Generation: 1, Wanted: true}, Status: session.Status{Generation: 1, Since: now},
		Template: &session.Template{IdleAfter: session.Duration(time.Hour)},
		Pods:     []session.Pod{{Name: "desk-anna-1", UID: "p", Session: "u", Generation: 1, Node: "pc-1", Ready: true, IP: "10.244.0.9"}}}
	step := func(after, idle time.Duration, heard bool, want session.Do) {
		t.Helper()
		o.Pods[0].Idle, o.Pods[0].Heard = idle, time.Time{}
		if heard {
			o.Pods[0].Heard = now.Add(after)
		}
		d := session.Decide(o, now.Add(after))
		if d.Do != want {
			t.Errorf("after %s, idle for %s: %q, not %q", after, idle, d.Do, want)
		}
		o.Status = d.Status
	}
	step(10*time.Minute, 5*time.Minute, true, session.Nothing)
	step(2*time.Hour, 58*time.Minute, true, session.Nothing)
	step(2*time.Hour, 3*time.Hour, false, session.Nothing) // unknown is not idle
	step(2*time.Hour+time.Minute, 59*time.Minute, true, session.Warn)
	step(2*time.Hour+90*time.Second, 59*time.Minute+30*time.Second, true, session.Nothing)
	step(2*time.Hour+100*time.Second, time.Second, true, session.Nothing) // a mouse
	step(3*time.Hour+100*time.Second, time.Hour, true, session.Warn)
	step(3*time.Hour+130*time.Second, time.Hour+30*time.Second, true, session.Nothing)
	step(3*time.Hour+160*time.Second, time.Hour+time.Minute, true, session.Stop)
	if o.Status.Reason != session.Idle {
		t.Errorf("%+v", o.Status)
	}
	o.Spec.Wanted = false
	o.Pods = nil
	if d := session.Decide(o, now); d.Status.Phase != session.Stopped || d.Status.Reason != session.Idle {
		t.Errorf("why it stopped is not said: %+v", d.Status)
	}
}
