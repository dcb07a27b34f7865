//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/kingmaker-io/kingmaker/cmd/lab/bundle"
	"github.com/kingmaker-io/kingmaker/cmd/lab/room"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
)

// What the site promises of desktops, in this lab.
const (
	started  = 90 * time.Second // from the sign-in to a desktop on the screen, on two cores that are at work
	followed = 4 * time.Minute  // until the next one is, when the machine of the first dies
)

// secret is the password of everybody in examples/desktops.
const secret = "kingmaker lab"

// desk is a Session as the tests read it.
type desk struct {
	Metadata struct{ Name string }
	Spec     session.Spec
	Status   session.Status
}

func deskOf(user string) (d desk, err error) {
	all, err := objects[desk]("sessions.v1alpha1.kingmaker.dev", session.Namespace)
	for _, one := range all {
		if one.Spec.User == user {
			return one, nil
		}
	}
	return d, err
}

// awaitDesk waits for a phase of the newest generation.
func awaitDesk(t *testing.T, within time.Duration, user, phase string) (d desk) {
	t.Helper()
	await(t, within, "the desktop of "+user+" to be "+phase, func() (string, bool) {
		var err error
		d, err = deskOf(user)
		return fmt.Sprintf("%+v %v", d, err), err == nil && d.Status.Phase == phase && d.Status.Generation == d.Spec.Generation
	})
	return d
}

// inside runs something in the desktop of a user, as that user.
func inside(user string, args ...string) (string, error) {
	d, err := deskOf(user)
	if err != nil {
		return "", err
	}
	return kubectl(append([]string{"exec", "-n", session.Namespace, session.PodName(d.Metadata.Name, d.Spec.Generation), "--"}, args...)...)
}

// TestDesktops: people sign in with a browser at any machine, and find their own
// computer, with their files and those that they share, whichever machine it runs on and
// whichever dies.
func TestDesktops(t *testing.T) {
	d, _, end := openDesktops(t)
	defer end()
	machines := allMachines(t)

	ada := d.open(t, machines[0])
	ada.do("open the portal", chromedp.Navigate(ada.at), chromedp.WaitVisible("#user"))
	ada.shot("1-sign-in")
	ada.submit("ada", "not "+secret)
	ada.says(time.Minute, "The user name or the password is wrong")
	began := time.Now()
	ada.submit("ada", secret)
	await(t, 30*time.Second, "the progress", func() (string, bool) {
		return ada.text(), eval[bool](ada, `document.querySelector('#progress, #screen canvas') !== null`)
	})
	ada.shot("2-progress")
	ada.painted(started)
	t.Logf("ada sees her desktop %.1f s after she signed in", time.Since(began).Seconds())
	first := awaitDesk(t, time.Minute, "ada", session.Ready)
	// Fontconfig says when it makes a cache, which without the image's each program does.
	out, err := inside("ada", "env", "XDG_CACHE_HOME=/tmp/fonts", "FC_DEBUG=16", "fc-match", "sans")
	if must(t, out, err); strings.Contains(out, "FcDirCacheWriteDir") || !strings.Contains(out, "DejaVu") {
		t.Errorf("the image has no cache of its fonts: %s", out)
	}
	// What programs write anew at each start, over the network; see the image's settings.
	out, err = inside("ada", "find", "/home/ada/.config", "-name", "accels.scm", "-path", "*/desktop/*", "-o", "-name", "keyfile")
	if must(t, out, err); strings.TrimSpace(out) != "" {
		t.Errorf("a start has written %s", out)
	}

	const note, greeting = "the quick brown fox", "hello to all in the house"
	edit(ada, "ada", "note.txt", "/home/ada/note.txt", note)
	edit(ada, "ada", "/srv/exchange/hello.txt", "/srv/exchange/hello.txt", greeting)
	if got := on(t, first.Status.Node, "cat", gluster.DataPath("homes")+"/ada/note.txt"); !strings.Contains(got, note) {
		t.Errorf("the home has %q", got)
	}

	t.Run("nobody else", func(t *testing.T) { testForeign(t, d, machines[1], first) })
	t.Run("administrators", func(t *testing.T) { testAdministrators(t, d, machines[2]) })

	ada.do("sign out", chromedp.Click(`form[action="/logout"] button`), chromedp.WaitVisible("#user"))
	if d := awaitDesk(t, 10*time.Second, "ada", session.Ready); d.Spec.Generation != first.Spec.Generation {
		t.Errorf("signing out ended it: %+v", d)
	}
	began = time.Now()
	ada.submit("ada", secret)
	ada.painted(started)
	t.Logf("ada sees her desktop, which still runs, %.1f s after she signed in", time.Since(began).Seconds())
	ada.do("sign out", chromedp.Click(`form[action="/logout"] button`), chromedp.WaitVisible("#user"))

	began = cutPower(t, first.Status.Node)
	at := slices.DeleteFunc(slices.Clone(machines), func(m string) bool { return m == first.Status.Node })[0]
	again := d.open(t, at)
	again.signIn("ada", secret)
	awaitDesk(t, followed, "ada", session.Fenced)
	again.shot("4-former-has-to-end")
	again.painted(followed)
	second := awaitDesk(t, time.Minute, "ada", session.Ready)
	t.Logf("ada sees her desktop on %s %.0f s after %s died", second.Status.Node, time.Since(began).Seconds(), first.Status.Node)
	if second.Status.Node == first.Status.Node {
		t.Error("the machine is dead")
	}
	for file, want := range map[string]string{"/home/ada/note.txt": note, "/srv/exchange/hello.txt": greeting} {
		out, err := inside("ada", "cat", file)
		if must(t, out, err); !strings.Contains(out, want) {
			t.Errorf("%s has %q", file, out)
		}
	}
	power(t, first.Status.Node)
	awaitReady(t, 3*time.Minute, first.Status.Node)
	if out, err := kubectl("get", "pods", "-n", session.Namespace, "-l", session.Label+"=ada", "-o", "name"); strings.TrimSpace(must(t, out, err)) != "pod/"+second.Status.Pod {
		t.Errorf("Pods of ada: %s", out)
	}
}

// desktopVolumes are those of examples/desktops, and how many bricks each has.
var desktopVolumes = map[string]int{"homes": 3, "exchange": 3, "staff": 3}

// openDesktops makes the site of examples/desktops, until end. Desktops run on two
// machines only: to unpack the image takes each half a minute. They are workers, for
// one of them is to die, and no crown is wanted then.
func openDesktops(t *testing.T) (d door, machines []string, end func()) {
	t.Helper()
	clean := volumeTest(t)
	machines = workers(t, 2)
	installDesktop(t, machines)
	uncordon := cordon(t, slices.DeleteFunc(allMachines(t), func(m string) bool { return slices.Contains(machines, m) }))
	const folder = "../../../examples/desktops"
	files := map[string]string{}
	err := filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		name, _ := filepath.Rel(folder, path)
		if name == "volumes/volumes.yaml" {
			name = volumesFile // so that clearVolumes finds it
		}
		files[name] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	commit := push(t, "desktops", files)
	end = func() {
		if t.Failed() {
			out, _ := kubectl("get", "sessions,pods", "-n", session.Namespace, "-o", "yaml")
			log, _ := kubectl("logs", "-n", "kingmaker-portal", "daemonset/portal", "--all-pods", "--prefix", "--tail", "200")
			t.Log(out, log)
		}
		for _, user := range []string{"ada", "ben", "tess"} { // the volumes are to be free
			if one, err := deskOf(user); err == nil && one.Spec.Wanted {
				stopDesk(t, d, master(t), user)
			}
		}
		// What refers to something goes before it; and volumes and people need consent.
		gone := func(folder string, confirm ...string) (commit string) {
			away := map[string]string{"site.yaml": storingNow(t, confirm)}
			for name := range files {
				if strings.HasPrefix(name, folder) {
					away[name] = ""
				}
			}
			return push(t, "no "+folder, away)
		}
		gone("desktops/")
		uncordon()
		clean()
		awaitReached(t, enrolled, gone("people/", "directory/User/ada", "directory/User/ben", "directory/User/tess"))
		push(t, "nothing to confirm", map[string]string{"site.yaml": storingNow(t, nil)})
	}
	awaitVolumes(t, 3*time.Minute, desktopVolumes)
	awaitReached(t, enrolled, commit) // and everybody can sign in
	return openDoor(t), machines, end
}

// TestDesktopFaults: whatever is missing, the page says so in plain words, and when it is
// there again the desktop comes by itself.
func TestDesktopFaults(t *testing.T) {
	long(t)
	d, machines, end := openDesktops(t)
	defer end()
	at := allMachines(t)[0]
	b := d.open(t, at)
	b.signIn("ben", secret)
	b.painted(started)
	again := func() {
		b.do("stop", chromedp.Navigate(b.at+"/desk"))
		stopDesk(t, d, at, "ben")
		b.do("choose", chromedp.Navigate(b.at+"/desk"), chromedp.WaitVisible(`form[action="/desk/start"] button`))
	}
	start := func() { b.do("start", chromedp.Click(`form[action="/desk/start"] button`)) }

	t.Run("no room", func(t *testing.T) {
		again()
		there := cordon(t, machines)
		start()
		b.says(time.Minute, "No computer has room for it")
		b.shot("6-no-room")
		there()
		b.painted(started)
	})
	t.Run("no image", func(t *testing.T) {
		again()
		const file = "../../../examples/desktops/desktops/desktops.yaml"
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		has := func(nowhere bool) {
			t.Helper()
			await(t, time.Minute, "the template to have it", func() (string, bool) {
				out, err := kubectl("get", "desktop", "classroom", "-o", "jsonpath={.spec.image}")
				return out, err == nil && strings.HasSuffix(strings.TrimSpace(out), ":nowhere") == nowhere
			})
		}
		push(t, "an image that is not there", map[string]string{"desktops/desktops.yaml": strings.ReplaceAll(string(content), "image: kingmaker.dev/desktop\n", "image: kingmaker.dev/desktop:nowhere\n")})
		has(true)
		start()
		b.says(time.Minute, "(its image) are not there")
		push(t, "the image that is there", map[string]string{"desktops/desktops.yaml": string(content)})
		has(false)
		again()
		start()
		b.painted(started)
	})
	t.Run("no directory", func(t *testing.T) {
		b.do("sign out", chromedp.Navigate(b.at+"/desk"), chromedp.Click(`form[action="/logout"] button`), chromedp.WaitVisible("#user"))
		out, err := reconcile(t, "suspend", "--reason", "a test without a directory") // else it is back in a second
		must(t, out, err)
		resume := func() {
			out, err := reconcile(t, "resume")
			must(t, out, err)
		}
		defer resume()
		out, err = kubectl("delete", "daemonset", "-n", directorySpace, "directory", "--cascade=foreground", "--timeout=90s")
		must(t, out, err)
		b.submit("ben", secret)
		b.says(time.Minute, "directory of users does not answer")
		resume()
		await(t, 4*time.Minute, "ben to be let in again", func() (string, bool) {
			if eval[bool](b, "document.querySelector('#user') !== null") {
				b.submit("ben", secret)
			}
			return b.text(), b.hasDesktop()
		})
	})
	t.Run("cut off", func(t *testing.T) {
		again()
		start()
		b.painted(started)
		testCutDesktop(t, b)
	})
	if log, err := kubectl("logs", "-n", "kingmaker-portal", "daemonset/portal", "--all-pods"); err != nil || strings.Contains(log, secret) || strings.Contains(log, "PRIVATE KEY") {
		t.Errorf("the log has a secret, or %v", err)
	}
}

// testCutDesktop: a machine is cut off, and lives: its desktop freezes before the next
// one runs, and is gone when the cable is back.
func testCutDesktop(t *testing.T, b *browser) {
	first := awaitDesk(t, time.Minute, "ben", session.Ready)
	// One of his programs, which the machine itself sees.
	const program = "beats-of-ben"
	out, err := inside("ben", "sh", "-c", "while :; do sleep 0.1; done >/dev/null 2>&1 & : "+program)
	must(t, out, err)
	state := func() string { // as ps has it: T is frozen; "" is gone
		out, err := exit(first.Status.Node, "", "sh", "-c", "ps -eo stat=,args= | grep '[b]eats-of-ben' | cut -c1")
		if err != nil {
			return "unknown: " + err.Error()
		}
		return strings.TrimSpace(out)
	}
	if s := state(); s == "" || s == "T" {
		t.Fatalf("his program is %q", s)
	}
	began := time.Now()
	do(t, "cut", first.Status.Node)
	var frozen time.Duration
	await(t, followed, "the next desktop", func() (string, bool) {
		before := state() // first, for it can only become T in between
		next, err := deskOf("ben")
		runs := err == nil && next.Spec.Generation > first.Spec.Generation && next.Status.Generation == next.Spec.Generation && next.Status.Phase == session.Ready
		if before == "T" && frozen == 0 {
			frozen = time.Since(began)
		}
		if runs && before != "T" && before != "" {
			t.Errorf("the next desktop runs, and the former one's program is %q", before)
		}
		return fmt.Sprintf("%s %+v %v", before, next.Status, err), runs
	})
	next := awaitDesk(t, time.Minute, "ben", session.Ready)
	t.Logf("frozen %.0f s after the cut; the next one, on %s, is ready after %.0f s", frozen.Seconds(), next.Status.Node, time.Since(began).Seconds())
	b.painted(started)
	do(t, "heal", first.Status.Node)
	await(t, 3*time.Minute, "the former one to go", func() (string, bool) { s := state(); return s, s == "" })
	awaitReady(t, 3*time.Minute, first.Status.Node)
}

// TestDesktopSpeed is how long people wait: twenty times each for a desktop that is
// started, and for one that runs; with the share of each stage. It measures this lab as
// it is, where three control planes share the cores with the desktop and the browser,
// and then with one.
func TestDesktopSpeed(t *testing.T) {
	long(t)
	d, _, end := openDesktops(t)
	defer end()
	machine := allMachines(t)[0]
	b := d.open(t, machine)
	b.signIn("ada", secret)
	b.painted(started)
	for _, masters := range []int{3, 1} {
		settle(t, masters)
		awaitVolumes(t, 3*time.Minute, desktopVolumes)
		t.Logf("with %d masters:", masters)
		measureDesktop(t, b, func() { stopDesk(t, d, machine, "ada") })
	}
}

// measureDesktop has ada sign in again and again, and logs how long each step took.
func measureDesktop(t *testing.T, b *browser, stop func()) {
	t.Helper()
	const rounds = 20
	var started, returned stages
	leave := func() {
		b.do("sign out", chromedp.Click(`form[action="/logout"] button`), chromedp.WaitVisible("#user"))
	}
	signIn := func() (began time.Time, took time.Duration) {
		b.fill("ada", secret)
		began = time.Now()
		b.do("sign in", chromedp.SendKeys("#password", "\r"))
		for !b.hears() {
			if time.Since(began) > 2*time.Minute {
				t.Fatalf("no desktop: %s", b.text())
			}
			time.Sleep(20 * time.Millisecond) // the page is between two
		}
		return began, time.Since(began)
	}
	for range rounds {
		leave()
		stop()
		atRest(t)
		seen := watchDesk(t, "ada")
		began, took := signIn()
		started.add("all of it", took)
		moments := seen()
		names := []string{"sign-in", session.Queued, session.Placed, session.Begun, session.Screen, session.Painted}
		for i, name := range names { // a stage lasts until the next that was seen
			at, seen := moments[name]
			if i == 0 {
				at, seen = began, true
			}
			next := began.Add(took)
			for _, later := range names[i+1:] {
				if at, ok := moments[later]; ok {
					next = at
					break
				}
			}
			if seen {
				started.add(name, next.Sub(at))
			}
		}
		leave()
		atRest(t)
		_, took = signIn()
		returned.add("all of it", took)
		// As the browser counts, since the form was sent.
		load := eval[struct{ Now, SignIn, Page, Scripts float64 }](b, `(() => { const n = performance.getEntriesByType('navigation')[0];
			return {Now: performance.now(), SignIn: n.redirectEnd, Page: n.responseEnd, Scripts: n.domContentLoadedEventEnd} })()`)
		ms := func(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }
		returned.add("sign-in", ms(load.SignIn))
		returned.add("page", ms(load.Page-load.SignIn))
		returned.add("scripts", ms(load.Scripts-load.Page))
		returned.add("picture", ms(load.Now-load.Scripts))
	}
	// The browser has said how large it shows a desktop, and so it has begun.
	shown := eval[string](b, `(() => { const c = document.querySelector('#screen canvas'); return c.width + 'x' + c.height })()`)
	if begun, err := inside("ada", "printenv", "SCREEN"); strings.TrimSpace(must(t, begun, err)) != shown {
		t.Errorf("it has begun with %s, and is shown with %s", begun, shown)
	}
	t.Logf("from the sign-in to a painted desktop, %d times:\n%s", rounds, started.table())
	t.Logf("to one that runs, %d times:\n%s", rounds, returned.table())
}

// atRest waits until the computer was at rest for three seconds, as it is before somebody
// comes: a desktop takes some seconds to be cleared away, and some after it is painted to
// be all there. With three masters the computer hardly ever is; then that long is enough.
func atRest(t *testing.T) {
	t.Helper()
	const long = 15 * time.Second
	quiet := 0
	for begin := time.Now(); quiet < 3 && time.Since(begin) < long; {
		allBefore, idleBefore := processorTime(t)
		time.Sleep(time.Second)
		if all, idle := processorTime(t); 2*(idle-idleBefore) > all-allBefore {
			quiet++
		} else {
			quiet = 0
		}
	}
}

// processorTime is that of all processors since the computer was started, and how much of
// it they did nothing (proc_stat(5)).
func processorTime(t *testing.T) (all, idle int) {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		const idles, waits, guests = 3, 4, 8
		if i < guests { // what guests used is in what was used
			all += n
		}
		if i == idles || i == waits {
			idle += n
		}
	}
	return all, idle
}

// stages are what was measured of each, in the order in which they were first seen.
type stages struct {
	names []string
	took  map[string][]time.Duration
}

func (s *stages) add(name string, took time.Duration) {
	if s.took == nil {
		s.took = map[string][]time.Duration{}
	}
	if s.took[name] == nil {
		s.names = append(s.names, name)
	}
	s.took[name] = append(s.took[name], took)
}

// table has a line for each: least, median, 95th percentile and most.
func (s *stages) table() string {
	var b strings.Builder
	for _, name := range s.names {
		sorted := slices.Sorted(slices.Values(s.took[name]))
		at := func(share float64) time.Duration {
			return sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)].Round(10 * time.Millisecond) // the nearest rank
		}
		fmt.Fprintf(&b, "%-12s least %6s  median %6s  95th %6s  most %6s  (%d)\n", name, at(0), at(0.5), at(0.95), at(1), len(sorted))
	}
	return b.String()
}

// watchDesk notes when each stage of a desktop was first seen, until stop.
func watchDesk(t *testing.T, user string) (stop func() map[string]time.Time) {
	t.Helper()
	config, err := lead()
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout = 0 // it would end the watch, too
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w, err := client.Resource(session.Resource()).Namespace(session.Namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + session.Name(user)})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]time.Time{}
	first := int64(-1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range w.ResultChan() {
			o, ok := event.Object.(*unstructured.Unstructured)
			if !ok {
				continue
			}
			generation, _, _ := unstructured.NestedInt64(o.Object, "spec", "generation")
			if first < 0 {
				first = generation // of the one before
			}
			if of, _, _ := unstructured.NestedInt64(o.Object, "status", "generation"); of == first {
				continue
			}
			for _, field := range []string{"stage", "phase"} {
				if value, _, _ := unstructured.NestedString(o.Object, "status", field); value != "" {
					if _, known := seen[value]; !known {
						seen[value] = time.Now()
					}
				}
			}
		}
	}()
	return func() map[string]time.Time {
		cancel()
		w.Stop()
		<-done
		return seen
	}
}

func cordon(t *testing.T, machines []string) (uncordon func()) {
	t.Helper()
	for _, m := range machines {
		out, err := kubectl("cordon", m)
		must(t, out, err)
	}
	return func() {
		for _, m := range machines {
			_, _ = kubectl("uncordon", m)
		}
	}
}

// edit opens a terminal, and in it an editor with a file, writes and saves.
func edit(b *browser, user, name, path, text string) {
	b.t.Helper()
	b.do("give it the focus", chromedp.Click("#screen canvas", chromedp.NodeVisible))
	runs := func(program string) bool {
		out, err := inside(user, "sh", "-c", "cat /proc/[0-9]*/comm")
		return err == nil && slices.Contains(strings.Split(out, "\n"), program)
	}
	await(b.t, time.Minute, "a terminal", func() (string, bool) {
		if !runs("xfce4-terminal") {
			b.chord("Control", "Alt", "t")
			time.Sleep(2 * time.Second) // it has no sign for us that it was seen
		}
		return b.text(), runs("xfce4-terminal")
	})
	await(b.t, time.Minute, "the editor", func() (string, bool) {
		if !runs("mousepad") {
			b.write("exec mousepad " + name + "\r")
			time.Sleep(3 * time.Second)
		}
		return "", runs("mousepad")
	})
	await(b.t, time.Minute, path+" to be saved", func() (string, bool) {
		b.write(text + "\r")
		b.chord("Control", "s")
		time.Sleep(time.Second)
		out, err := inside(user, "cat", path)
		return fmt.Sprint(out, err), err == nil && strings.Contains(out, text)
	})
	b.shot("3-desktop")
	_, _ = inside(user, "sh", "-c", `for p in /proc/[0-9]*; do case $(cat $p/comm) in mousepad|xfce4-terminal) kill ${p#/proc/};; esac; done`)
	await(b.t, time.Minute, "both to end", func() (string, bool) { return "", !runs("mousepad") && !runs("xfce4-terminal") })
}

// testForeign: what is another's cannot be reached: from a desktop, from another Pod,
// and from outside.
func testForeign(t *testing.T, d door, machine string, ada desk) {
	ben := d.open(t, machine)
	ben.signIn("ben", secret)
	ben.painted(started)
	awaitDesk(t, time.Minute, "ben", session.Ready)
	look := func(want, script string) {
		t.Helper()
		out, err := inside("ben", "sh", "-c", script)
		if got := strings.TrimSpace(must(t, out, err)); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	look("ben", "ls /home")
	look("3002 2001", "echo $(id -u) $(id -g)")
	look("hello.txt", "ls /srv/exchange")
	look("exchange", "ls /srv") // and not the teachers' folder
	look("no", "test -e /home/ben/../ada && echo yes || echo no")
	look("CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2", `echo $(grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status)`)
	look("no", "test -e /var/run/secrets/kubernetes.io && echo yes || echo no")
	look("no", "touch /usr/x 2>/dev/null && echo yes || echo no")

	// The probe is carried into his home: it speaks TLS, and believes every certificate.
	on(t, ada.Status.Node, "install", "-o", "3002", "-m", "0755", "/usr/local/bin/"+probeUnit, gluster.DataPath("homes")+"/ben/probe")
	for _, path := range []string{"/vnc", "/status", "/lease"} {
		url := fmt.Sprintf("https://%s:%d%s", ada.Status.PodIP, session.Port, path)
		out, err := inside("ben", "/home/ben/probe", "fetch", url)
		if must(t, out, err); !strings.HasPrefix(out, "401 ") {
			t.Errorf("%s from a desktop of another: %s", path, out)
		}
		if out := on(t, machine, "/usr/local/bin/"+probeUnit, "fetch", url); !strings.HasPrefix(out, "401 ") {
			t.Errorf("%s from a machine: %s", path, out)
		}
	}
	out, err := inside("ben", "/home/ben/probe", "fetch", "https://kubernetes.default.svc.cluster.local/api/v1/namespaces/"+session.Namespace+"/secrets")
	if must(t, out, err); !strings.HasPrefix(out, "40") {
		t.Errorf("the API from a desktop: %s", out)
	}

	// From outside: a cookie leads to its owner's, and nothing else leads anywhere.
	client := d.client(machine)
	answer, err := post(client, at(machine)+"/login", "user", "ben", "password", secret)
	if err != nil || answer.StatusCode != http.StatusSeeOther {
		t.Fatalf("%v %v", answer, err)
	}
	forged := d.client(machine)
	for about, one := range map[string]struct {
		client *http.Client
		origin string
		want   int
	}{
		"his own, from another site": {client, "https://elsewhere.example", http.StatusForbidden},
		"no cookie":                  {forged, at(machine), http.StatusUnauthorized},
	} {
		for _, query := range []string{"", "?user=ada&pod=" + ada.Status.Pod + "&host=" + ada.Status.PodIP} {
			r, _ := http.NewRequest(http.MethodGet, at(machine)+"/desk/ws"+query, nil)
			r.Header.Set("Origin", one.origin)
			if about == "no cookie" {
				r.AddCookie(&http.Cookie{Name: "__Host-sid", Value: strings.Repeat("a", 64)})
			}
			answer, err := one.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if answer.Body.Close(); answer.StatusCode != one.want {
				t.Errorf("%s: %d, want %d", about, answer.StatusCode, one.want)
			}
		}
	}
}

// testAdministrators: they see the site, and end a desktop; others do not.
func testAdministrators(t *testing.T, d door, machine string) {
	ben := d.client(machine)
	if answer, err := post(ben, at(machine)+"/login", "user", "ben", "password", secret); err != nil || answer.StatusCode != http.StatusSeeOther {
		t.Fatalf("%v %v", answer, err)
	}
	answer, err := ben.Get(at(machine) + "/admin")
	if err != nil {
		t.Fatal(err)
	}
	if answer.Body.Close(); answer.StatusCode != http.StatusForbidden {
		t.Errorf("ben sees the administrators' page: %d", answer.StatusCode)
	}
	vera := d.open(t, machine)
	vera.signIn("vera", secret)
	vera.says(time.Minute, "Site")
	vera.do("open the page", chromedp.Navigate(vera.at+"/admin"), chromedp.WaitVisible("#machines"))
	vera.says(time.Minute, "pc-05")
	vera.shot("5-administrators")
	vera.do("end ben's", chromedp.Click(`//tr[th="ben"]//form[@action="/admin/end"]/button`))
	awaitDesk(t, time.Minute, "ben", session.Stopped)
}

// stopDesk ends a desktop as its user does.
func stopDesk(t *testing.T, d door, machine, user string) {
	t.Helper()
	client := d.client(machine)
	for _, step := range [][]string{{"/login", "user", user, "password", secret}, {"/desk/stop"}} {
		if answer, err := post(client, at(machine)+step[0], step[1:]...); err != nil || answer.StatusCode != http.StatusSeeOther {
			t.Fatalf("%v: %v %v", step[0], answer, err)
		}
	}
	awaitDesk(t, time.Minute, user, session.Stopped)
}

// installDesktop brings the image of desktops to machines, as the installer does from a
// bundle that has it. The lab's has not: no other test needs it.
func installDesktop(t *testing.T, machines []string) {
	t.Helper()
	dir, err := bundle.Make(t.Context(), bundle.Options{}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	b, err := host.OpenBundle(dir)
	if err != nil {
		t.Fatal(err)
	}
	images := slices.DeleteFunc(slices.Clone(b.Images), func(i host.Image) bool { return !strings.HasPrefix(i.Name, session.OwnImage+":") })
	if len(images) != 1 {
		t.Fatalf("images of desktops: %v", images)
	}
	began := time.Now()
	for _, m := range machines {
		if have, err := exit(m, "", "ctr", "--namespace", "k8s.io", "images", "list", "--quiet", "name=="+images[0].Name); err == nil && strings.TrimSpace(have) == images[0].Name {
			continue
		}
		if err := importImage(t.Context(), theRoom(t), m, b, images); err != nil {
			t.Fatal(err)
		}
		on(t, m, "ctr", "--namespace", "k8s.io", "images", "label", images[0].Name, "io.cri-containerd.pinned=pinned")
	}
	t.Logf("the image of desktops is on %v after %.0f s", machines, time.Since(began).Seconds())
}

func importImage(ctx context.Context, r *room.Room, machine string, b *host.Bundle, images []host.Image) error {
	line := r.Exec(machine, false, "ctr", "--namespace", "k8s.io", "images", "import", "-")
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	failed := b.Archive(in, images)
	in.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("import images on %s: %w: %s", machine, err, said.String())
	}
	return failed
}
