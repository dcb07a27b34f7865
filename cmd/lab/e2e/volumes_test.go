//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// What the site promises of its volumes, in this lab.
const (
	mounted   = 90 * time.Second // from the push of a new volume until every machine has it
	mended    = time.Minute      // until what somebody broke by hand is as it was
	pauseMost = 25 * time.Second // for which no file is acknowledged when a copy vanishes; GlusterFS waits for 10 s
	healing   = 10 * time.Minute // for all copies to be equal again
)

// pupils are the people whose homes there are.
const pupils = `apiVersion: kingmaker.dev/v1alpha1
kind: Group
metadata: {name: pupils}
spec: {gid: 2001}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Roster
metadata: {name: pupils}
spec:
  group: pupils
  users:
    - {name: ada, uid: 3001}
    - {name: ben, uid: 3002}
`

// TestVolumes: volumes that a commit declares are there on every machine, stay as
// declared whatever is done to them by hand, and go only with consent.
func TestVolumes(t *testing.T) {
	long(t)
	defer volumeTest(t)()
	machines := allMachines(t)
	worker := workers(t, 1)[0]
	began := time.Now()
	commitVolumes(t, "volumes", "", nil, volumeOf("homes", 3), volumeOf("shared", 3))
	awaitVolumes(t, mounted-time.Since(began), map[string]int{"homes": 3, "shared": 3})
	t.Logf("%d machines have both volumes %.0f s after the push", len(machines), time.Since(began).Seconds())

	const hello = "hello to all\n"
	file := gluster.DataPath("shared") + "/hello"
	put(t, machines[0], file, hello)
	for _, m := range machines {
		if got := on(t, m, "cat", file); got != hello {
			t.Errorf("%s reads %q", m, got)
		}
		for name, want := range map[string]string{"ada": "3001 2001 700", "ben": "3002 2001 700"} {
			// A machine remembers what it saw of a home, and what was not there, for five seconds.
			await(t, 10*time.Second, "the home of "+name+" on "+m+" to be of "+want, func() (string, bool) {
				got, err := exit(m, "", "stat", "--format", "%u %g %a", gluster.DataPath("homes")+"/"+name)
				return got, err == nil && strings.TrimSpace(got) == want
			})
		}
	}

	t.Run("drift", testDrift)
	t.Run("bare folder", func(t *testing.T) { testBareFolder(t, worker, file) })
	t.Run("dead mount", func(t *testing.T) { testDeadMount(t, worker, file) })
	t.Run("pods wait", func(t *testing.T) { testPodsWait(t, worker, file, hello) })
	t.Run("unshared volume deleted from git", func(t *testing.T) { testDeleted(t, machines, file, hello) })
}

// testDrift: what is changed by hand is put back, and a brick that dies runs again.
func testDrift(t *testing.T) {
	const option = "network.ping-timeout"
	holder := holders(t, "shared")[0]
	await(t, 30*time.Second, "gluster to take an option", func() (string, bool) { // the steward may have its lock
		out, err := exit(holder, "", "gluster", "--mode=script", "volume", "set", "homes", option, "42")
		return out, err == nil
	})
	t.Logf("the option is put back after %.0f s", await(t, mended, option+" to be 10 again", func() (string, bool) {
		out, err := exit(holder, "", "gluster", "--mode=script", "volume", "get", "homes", option)
		f := strings.Fields(out)
		at := slices.Index(f, option)
		return out, err == nil && at >= 0 && at+1 < len(f) && f[at+1] == "10"
	}).Seconds())

	pattern := "glusterfsd .*--brick-name " + gluster.BrickPath("shared") + " "
	before := killProcess(t, holder, pattern)
	t.Logf("the brick runs again after %.0f s", await(t, mended, "the brick of "+holder+" to run again", func() (string, bool) {
		now := processes(holder, pattern)
		v, err := getVolume("shared")
		return fmt.Sprint("process ", now, " ", v, err), now != "" && now != before && v.started(3)
	}).Seconds())
}

// testBareFolder: where a volume is not mounted, nothing can be written in its place.
func testBareFolder(t *testing.T, machine, file string) {
	takeMountAway(t, machine, "shared")
	for _, args := range [][]string{{"touch", gluster.MountPath("shared") + "/lost"}, {"mkdir", "--parents", gluster.DataPath("shared")}} {
		if out, err := exit(machine, "", args...); err == nil {
			t.Errorf("%v is possible on %s, where the volume is away: %s", args, machine, out)
		}
	}
	on(t, machine, "systemctl", "start", "noded")
	t.Logf("mounted again after %.0f s", awaitMounted(t, mended, machine, "shared", file).Seconds())
}

// testDeadMount: a mount whose process died is replaced.
func testDeadMount(t *testing.T, machine, file string) {
	pattern := "glusterfs .*" + gluster.MountPath("shared") + "( |$)"
	before := killProcess(t, machine, pattern)
	t.Logf("mounted again after %.0f s", await(t, mended, "another mount on "+machine, func() (string, bool) {
		now := processes(machine, pattern)
		return now, now != "" && now != before
	}).Seconds())
	awaitMounted(t, mended, machine, "shared", file)
}

// waits is a Pod of a pupil that wants a volume on one machine.
const waits = `apiVersion: v1
kind: Pod
metadata: {name: e2e-waits, namespace: kingmaker-desktops}
spec:
  nodeName: MACHINE
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - name: probe
      image: kingmaker.dev/probe:e2e
      imagePullPolicy: Never
      args: [cat, /shared/hello]
      securityContext: {runAsUser: 3001, runAsGroup: 2001, runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}
      volumeMounts: [{name: shared, mountPath: /shared}]
  volumes: [{name: shared, persistentVolumeClaim: {claimName: shared}}]
`

// testPodsWait: a Pod that wants a volume waits until its machine has it.
func testPodsWait(t *testing.T, machine, file, hello string) {
	out, err := exit(machine, probeImage(t), "ctr", "--namespace", "k8s.io", "images", "import", "-")
	must(t, out, err)
	takeMountAway(t, machine, "shared")
	const space = gluster.DesktopsNamespace
	out, err = exit(master(t), strings.Replace(waits, "MACHINE", machine, 1), "kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "apply", "-f", "-")
	must(t, out, err)
	t.Cleanup(func() { // or its claim would not go
		out, err := kubectl("delete", "pod", "e2e-waits", "-n", space, "--ignore-not-found")
		must(t, out, err)
	})
	phase := func() string {
		out, _ := kubectl("get", "pod", "e2e-waits", "-n", space, "-o", "jsonpath={.status.phase}")
		return strings.TrimSpace(out)
	}
	await(t, 2*time.Minute, "the Pod to say why it waits", func() (string, bool) {
		out, err := kubectl("get", "events", "-n", space, "--field-selector", "involvedObject.name=e2e-waits,type=Warning", "-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
		return phase() + " " + out, err == nil && strings.TrimSpace(out) != ""
	})
	if got := phase(); got != "Pending" {
		t.Errorf("the Pod is %s on %s, where its volume is away", got, machine)
	}
	on(t, machine, "systemctl", "start", "noded")
	awaitMounted(t, mended, machine, "shared", file)
	t.Logf("the Pod has run after %.0f s more", await(t, 3*time.Minute, "the Pod to run", func() (string, bool) {
		got := phase()
		return got, got == "Succeeded" || got == "Failed"
	}).Seconds())
	if out, err := kubectl("logs", "e2e-waits", "-n", space); err != nil || out != hello {
		t.Errorf("the Pod read %q %v", out, err)
	}
}

// testDeleted: a volume that a commit does not have any more stays until a commit
// says that it may go; and then its files stay on the bricks.
func testDeleted(t *testing.T, machines []string, file, hello string) {
	had := holders(t, "shared")
	commitVolumes(t, "no shared volume", "", nil, volumeOf("homes", 3))
	await(t, 2*time.Minute, "the deletion to be withheld", func() (string, bool) {
		status, _ := reconcile(t, "status")
		return status, strings.Contains(status, "add volumes/Volume/shared to spec.confirm")
	})
	if v, err := getVolume("shared"); err != nil || !v.started(3) {
		t.Errorf("nobody consented, and the volume is %s %v", v, err)
	}
	for _, m := range machines {
		if got := on(t, m, "cat", file); got != hello {
			t.Errorf("nobody consented, and %s reads %q", m, got)
		}
	}
	commit := commitVolumes(t, "the shared volume may go", "", consent("shared"), volumeOf("homes", 3))
	awaitDeleted(t, 3*time.Minute, "shared")
	awaitReached(t, 2*time.Minute, commit)
	for _, m := range had {
		if known, _ := exit(m, "", "gluster", "--mode=script", "volume", "list"); slices.Contains(strings.Fields(known), "shared") {
			t.Errorf("the volume is deleted, and gluster on %s has it: %s", m, known)
		}
		out, err := exit(m, "", "find", gluster.BrickDir, "-path", "*/data/hello", "-exec", "cat", "{}", "+")
		if err != nil || out != hello {
			t.Errorf("the volume is deleted, and its files on the brick of %s too: %q %v", m, out, err)
		}
	}
	for _, m := range machines {
		if isMounted(m, "shared") {
			t.Errorf("the volume is deleted, and %s has it mounted", m)
		}
	}
	if v, err := getVolume("homes"); err != nil || !v.started(3) {
		t.Errorf("the other volume is %s %v", v, err)
	}
}

// TestVolumeDeath: a machine with a copy vanishes while 20,000 files are written. It
// comes back and catches up; nothing that was acknowledged is lost, and every copy has
// all of it.
func TestVolumeDeath(t *testing.T) {
	d := startDeath(t)
	many := startFiles(t, d.from, "many", 20000, 0)
	many.await(t, 20*time.Minute, 5000)
	d.vanish(t)
	many.await(t, healing, many.acknowledged()+200) // which the dead one has to catch up with
	power(t, d.victim)
	if err := theRoom(t).Heal(t.Context(), d.victim); err != nil {
		t.Fatal(err)
	}
	d.list["many"] = many.all(t, 40*time.Minute)
	t.Logf("healed %.0f s after the last file", awaitVolumes(t, healing, d.copies).Seconds())
	d.reads.finish(t)
	verifyCopies(t, "shared", d.from, d.list)
}

// TestVolumeReplaced: a machine with a copy vanishes while files are written, and is
// replaced; it comes back to what was replaced.
func TestVolumeReplaced(t *testing.T) {
	d := startDeath(t)
	more := startFiles(t, d.from, "more", 3000, 50*time.Millisecond) // goes on while the copy is replaced
	more.await(t, healing, 1000)
	was := map[string]bool{}
	for name := range d.copies {
		was[name] = slices.Contains(holders(t, name), d.victim)
	}
	d.vanish(t)
	died := time.Now()
	// A new copy is filled at Gluster's own pace, some ten files a second on two cores.
	await(t, 2*time.Minute+3*healing, d.victim+" to be replaced, and the copies to be equal", func() (string, bool) {
		for name, n := range d.copies {
			v, err := getVolume(name)
			if err != nil || !v.started(n) || slices.Contains(v.machines(), d.victim) {
				return fmt.Sprint(v, err), false
			}
		}
		return "", true
	})
	t.Logf("replaced and equal %.0f s after the death: the copies are on %v", time.Since(died).Seconds(), holders(t, "shared"))
	d.list["more"] = more.all(t, healing)
	awaitStarted(t, healing, "shared", 3)
	d.reads.finish(t)
	verifyCopies(t, "shared", d.from, d.list)

	calm(t) // switches it on
	awaitVolumes(t, healing, d.copies)
	for name, had := range was {
		if !had {
			continue
		}
		await(t, 5*time.Minute, "what "+d.victim+" had of "+name+" to be put aside", func() (string, bool) {
			out, err := exit(d.victim, "", "ls", "--almost-all", gluster.AsideDir)
			return out, err == nil && strings.Contains(out, name)
		})
	}
	awaitVolumes(t, healing, d.copies)
	verifyCopies(t, "shared", d.from, d.list)
}

// death is two volumes of three copies, and who is to die.
type death struct {
	from, victim string            // who writes, and who dies
	copies       map[string]int    // by volume
	list         map[string]string // by folder: the files in it, and their checksums
	reads        *files
}

func startDeath(t *testing.T) *death {
	t.Helper()
	long(t)
	t.Cleanup(volumeTest(t))
	d := &death{copies: map[string]int{"homes": 3, "shared": 3}}
	// One of the workers dies, so that no master is replaced on the way; and a master
	// without a copy writes, so that it is not crowned while it does.
	masters, err := mastersOf()
	if err != nil || len(masters) == 0 {
		t.Fatalf("masters %v: %v", masters, err)
	}
	d.from = masters[0]
	bricks := others(t, masters[:1])
	commitVolumes(t, "volumes", "2m", nil, volumeOf("homes", 3, bricks...), volumeOf("shared", 3, bricks...))
	awaitVolumes(t, mounted, d.copies)
	copies := holders(t, "shared")
	for _, w := range workers(t, 1) {
		if slices.Contains(copies, w) {
			d.victim = w
		}
	}
	t.Logf("%s writes, and %s dies; the copies are on %v", d.from, d.victim, copies)
	d.list = map[string]string{"first": startFiles(t, d.from, "first", 200, 0).all(t, healing)}
	d.reads = startReads(t, d.from, "first")
	return d
}

// vanish cuts the cable before the power: else the dead one's kernel would tell all who
// have a connection.
func (d *death) vanish(t *testing.T) {
	t.Helper()
	if err := theRoom(t).Cut(t.Context(), d.victim); err != nil {
		t.Fatal(err)
	}
	cutPower(t, d.victim)
}

// TestVolumeReplicas: a volume that is written to has more copies, and then fewer.
func TestVolumeReplicas(t *testing.T) {
	long(t)
	defer volumeTest(t)()
	commitVolumes(t, "a volume", "", nil, volumeOf("shared", 3))
	awaitVolumes(t, mounted, map[string]int{"shared": 3})
	from := others(t, holders(t, "shared"))[0]
	list := map[string]string{"base": startFiles(t, from, "base", 2000, 0).all(t, healing)}
	had := holders(t, "shared")
	for _, n := range []int{5, 3} {
		folder := fmt.Sprintf("to-%d", n)
		live := startFiles(t, from, folder, 1000000, 100*time.Millisecond)
		live.await(t, time.Minute, 10)
		began := time.Now()
		commitVolumes(t, fmt.Sprintf("%d copies", n), "", nil, volumeOf("shared", n))
		await(t, healing, fmt.Sprintf("%d copies that run", n), func() (string, bool) {
			v, err := getVolume("shared")
			return fmt.Sprint(v, err), err == nil && v.running(n)
		})
		list[folder] = live.soFar(t)
		awaitVolumes(t, healing, map[string]int{"shared": n})
		t.Logf("%d equal copies after %.0f s", n, time.Since(began).Seconds())
		verifyCopies(t, "shared", from, list)
		now := holders(t, "shared")
		for _, m := range had {
			if slices.Contains(now, m) {
				continue
			}
			if out, err := exit(m, "", "find", gluster.BrickDir, "-path", "*/data/base/f-000000"); err != nil || strings.TrimSpace(out) == "" {
				t.Errorf("%s has no copy any more, and the files of its former one are gone: %s %v", m, out, err)
			}
		}
		had = now
	}
}

// TestVolumeTroubles: what is wrong is told, and nothing is lost by it.
func TestVolumeTroubles(t *testing.T) {
	long(t)
	defer volumeTest(t)()
	commitVolumes(t, "a volume", "", nil, volumeOf("shared", 3))
	awaitVolumes(t, mounted, map[string]int{"shared": 3})
	from := others(t, holders(t, "shared"))[0]
	list := map[string]string{"base": startFiles(t, from, "base", 500, 0).all(t, healing)}

	t.Run("full brick", func(t *testing.T) {
		full, file := others(t, holders(t, "shared"))[0], gluster.BrickDir+"/.e2e-full"
		on(t, full, "sh", "-c", "fallocate -l $(($(df --output=avail -B1 "+gluster.BrickDir+" | tail -n 1) - 40*1024*1024)) "+file)
		empty := func() { on(t, full, "rm", "-f", file) }
		t.Cleanup(empty)
		awaitBrick(t, full, "full", func(b gluster.MachineBrick) bool { return b.Size > 0 && b.Free*100 < b.Size })
		checkWaits(t, "second", full, "full", empty)
		verifyCopies(t, "shared", from, list)
	})

	t.Run("glusterd dead", func(t *testing.T) {
		dead := holders(t, "shared")[1]
		on(t, dead, "systemctl", "mask", "--now", "glusterd")
		alive := func() { on(t, dead, "sh", "-c", "systemctl unmask glusterd && systemctl start glusterd") }
		t.Cleanup(alive)
		await(t, 3*time.Minute, "the volume to be Degraded", func() (string, bool) {
			v, err := getVolume("shared")
			return fmt.Sprint(v, err), err == nil && v != nil && v.Status.Phase == gluster.Degraded
		})
		awaitTrouble(t, "shared", dead)
		add := startFiles(t, from, "degraded", 200, 0).all(t, healing)
		alive()
		awaitVolumes(t, healing, map[string]int{"shared": 3})
		list["degraded"] = add
		verifyCopies(t, "shared", from, list)
	})

	t.Run("steward dead", func(t *testing.T) {
		holder := steward(t)
		commitVolumes(t, "another volume", "", nil, volumeOf("shared", 3), volumeOf("extra", 3))
		await(t, 2*time.Minute, "the volume to be begun", func() (string, bool) {
			v, err := getVolume("extra")
			return fmt.Sprint(v, err), err == nil && v != nil
		})
		t.Cleanup(func() { _, _ = exit(holder, "", "systemctl", "start", "noded") })
		on(t, holder, "sh", "-c", "systemctl kill --signal KILL noded; systemctl stop noded")
		began := time.Now()
		await(t, 3*time.Minute, "another steward than "+holder, func() (string, bool) {
			now := stewardNow()
			return now, now != "" && now != holder
		})
		t.Logf("%s is steward after %.0f s", stewardNow(), time.Since(began).Seconds())
		on(t, holder, "systemctl", "start", "noded") // or, of a master, it would be replaced
		awaitVolumes(t, 5*time.Minute, map[string]int{"shared": 3, "extra": 3})
		verifyCopies(t, "shared", from, list)
		commitVolumes(t, "without the other volume", "", consent("extra"), volumeOf("shared", 3))
		awaitDeleted(t, 3*time.Minute, "extra")
	})

	t.Run("foreign file system", func(t *testing.T) {
		odd := others(t, holders(t, "shared"))[0]
		on(t, odd, "mount", "-t", "tmpfs", "tmpfs", gluster.BrickDir)
		t.Cleanup(func() { _, _ = exit(odd, "", "umount", gluster.BrickDir) })
		awaitBrick(t, odd, "unfit", func(b gluster.MachineBrick) bool { return b.Unfit != "" })
		checkWaits(t, "third", odd, "tmpfs", func() {
			if out := on(t, odd, "ls", "--almost-all", gluster.BrickDir); strings.Contains(out, "third") {
				t.Errorf("%s has a copy in memory: %s", odd, out)
			}
			await(t, time.Minute, "the foreign file system to go", func() (string, bool) { // somebody may look at it
				out, err := exit(odd, "", "umount", gluster.BrickDir)
				return out, err == nil
			})
		})
		verifyCopies(t, "shared", from, list)
	})
}

// checkWaits declares a volume with a copy on a machine that can have none: the site
// says why, and does not make it smaller; mended, it is made.
func checkWaits(t *testing.T, name, machine, word string, mend func()) {
	t.Helper()
	copies := holders(t, "shared")
	commitVolumes(t, name, "", nil, volumeOf("shared", 3), volumeOf(name, 3, machine, copies[0], copies[1]))
	awaitTrouble(t, name, name, machine, word)
	if v, err := getVolume(name); err != nil || v != nil && v.Status.ID != "" {
		t.Errorf("%s can have no copy, and the volume is %s %v", machine, v, err)
	}
	mend()
	awaitVolumes(t, healing, map[string]int{"shared": 3, name: 3})
	commitVolumes(t, "without "+name, "", consent(name), volumeOf("shared", 3))
	awaitDeleted(t, 3*time.Minute, name)
}

// volumeTest has a calm site without volumes, and bricks without former ones, before
// a test; the func that it gives does so after it.
func volumeTest(t *testing.T) (end func()) {
	t.Helper()
	calm(t)
	clearVolumes(t)
	await(t, 2*time.Minute, "every machine to report an empty brick", func() (string, bool) {
		bricks, err := bricksOf()
		for m, b := range bricks {
			if b.Size == 0 || b.Unfit != "" || len(b.Holds) > 0 {
				return fmt.Sprintf("%s: %+v", m, b), false
			}
		}
		return fmt.Sprint(err), err == nil
	})
	installProbe(t)
	return func() {
		if t.Failed() {
			seen, _ := kubectl("get", "volumes,pools,pv,pvc", "-A", "-o", "yaml")
			t.Log(everything(), seen)
		}
		calm(t)
		clearVolumes(t)
	}
}

// clearVolumes takes all volumes away, with consent, and then what is left of them
// on the bricks.
func clearVolumes(t *testing.T) {
	t.Helper()
	var names []string
	await(t, time.Minute, "the volumes", func() (string, bool) {
		all, err := objects[volume]("volumes.v1alpha1.kingmaker.dev", "")
		names = nil
		for _, v := range all {
			names = append(names, v.Metadata.Name)
		}
		return fmt.Sprint(err), err == nil
	})
	for _, m := range allMachines(t) {
		for _, verb := range []string{"write", "read"} { // of a test that failed: they would keep the mount busy
			(&files{machine: m, unit: probeUnit + "-" + verb}).stop()
		}
	}
	if _, err := os.Stat(filepath.Join(site.repo, volumesFile)); err == nil || len(names) > 0 {
		commit := commitVolumes(t, "no volumes", "", consent(names...))
		awaitDeleted(t, 5*time.Minute, names...)
		awaitReached(t, 3*time.Minute, commit)
		awaitReached(t, 3*time.Minute, commitVolumes(t, "nothing to confirm", "", nil))
	}
	for _, m := range allMachines(t) {
		on(t, m, "sh", "-c", "rm -rf "+gluster.BrickDir+"/*/ "+gluster.AsideDir+"/*")
	}
}

// volumeOf is a document that declares a volume; on chosen machines, where some are
// named.
func volumeOf(name string, replicas int, machines ...string) string {
	more := ", access: shared, group: pupils"
	if name == "homes" {
		more = ", access: homes"
	}
	if len(machines) > 0 {
		more += fmt.Sprintf(", machines: {names: [%s]}", strings.Join(machines, ", "))
	}
	return fmt.Sprintf("apiVersion: kingmaker.dev/v1alpha1\nkind: Volume\nmetadata: {name: %s}\nspec: {replicas: %d%s}\n", name, replicas, more)
}

// consent is what a Site confirms for volumes to go.
func consent(volumes ...string) (ids []string) {
	for _, v := range volumes {
		ids = append(ids, "volumes/Volume/"+v, "objects/PersistentVolume/kingmaker-"+v, "objects/PersistentVolumeClaim/"+gluster.DesktopsNamespace+"/"+v)
	}
	return ids
}

const volumesFile = "volumes/e2e.yaml"

// commitVolumes pushes exactly these volumes, and what the Site says of them.
func commitVolumes(t *testing.T, message, replaceAfter string, confirm []string, volumes ...string) (commit string) {
	t.Helper()
	before, err := os.ReadFile(filepath.Join(site.repo, "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	people := pupils
	if len(volumes) == 0 {
		people = ""
	}
	return push(t, message, map[string]string{
		"site.yaml":       storing(string(before), replaceAfter, confirm),
		volumesFile:       strings.Join(volumes, "---\n"),
		"people/e2e.yaml": people,
	})
}

// storing rewrites what a Site, as the lab's example has it, says of volumes.
func storing(text, replaceAfter string, confirm []string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "  storage:") && !strings.HasPrefix(line, "  confirm:") {
			fmt.Fprintln(&out, strings.TrimSuffix(line, "\n"))
		}
	}
	if replaceAfter != "" {
		fmt.Fprintf(&out, "  storage: {replaceAfter: %s}\n", replaceAfter)
	}
	if len(confirm) > 0 {
		fmt.Fprintf(&out, "  confirm: [%s]\n", strings.Join(confirm, ", "))
	}
	return out.String()
}

// TestStoring needs no lab, but runs where one is.
func TestStoring(t *testing.T) {
	text, err := os.ReadFile("../../../examples/lab/site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	once := storing(string(text), "2m", consent("shared"))
	if !strings.HasSuffix(once, "\n  storage: {replaceAfter: 2m}\n  confirm: [volumes/Volume/shared, objects/PersistentVolume/kingmaker-shared, objects/PersistentVolumeClaim/kingmaker-desktops/shared]\n") {
		t.Error(once)
	}
	if never := storing(once, "", nil); never != string(text) {
		t.Error(never)
	}
}

// volume is what the tests look at of a Volume.
type volume struct {
	Metadata struct {
		Name       string
		Generation int64
	}
	Spec   gluster.Placed
	Status gluster.VolumeStatus
}

// getVolume gives nil where there is none.
func getVolume(name string) (*volume, error) {
	all, err := objects[volume]("volumes.v1alpha1.kingmaker.dev", "")
	for i := range all {
		if all[i].Metadata.Name == name {
			return &all[i], nil
		}
	}
	return nil, err
}

func (v *volume) String() string {
	if v == nil {
		return "not there"
	}
	return fmt.Sprintf("%s at %d: wanted on %v, %+v", v.Metadata.Name, v.Metadata.Generation, v.machines(), v.Status)
}

// machines are those that are to have a copy.
func (v *volume) machines() (names []string) {
	for _, b := range v.Spec.Bricks {
		names = append(names, b.Machine)
	}
	return names
}

// running reports whether a volume has so many copies, where they are to be, and all
// of them run.
func (v *volume) running(copies int) bool {
	if v == nil || len(v.Spec.Bricks) != copies || len(v.Status.Bricks) != copies || v.Status.ObservedGeneration != v.Metadata.Generation {
		return false
	}
	for _, b := range v.Status.Bricks {
		if !b.Online || !slices.Contains(v.machines(), b.Machine) {
			return false
		}
	}
	return true
}

// started reports whether they are equal, too.
func (v *volume) started(copies int) bool {
	return v.running(copies) && v.Status.Phase == gluster.Started && v.Status.Prepared && v.Status.Pending == 0
}

// holders are the machines that have a copy of a volume.
func holders(t *testing.T, name string) (machines []string) {
	t.Helper()
	await(t, time.Minute, "the copies of "+name, func() (string, bool) {
		v, err := getVolume(name)
		if v == nil {
			return fmt.Sprint(v, err), false
		}
		machines = nil
		for _, b := range v.Status.Bricks {
			machines = append(machines, b.Machine)
		}
		return v.String(), len(machines) > 0
	})
	return machines
}

// allMachines are the site's, in order.
func allMachines(t *testing.T) (names []string) {
	t.Helper()
	for _, m := range getMachines(t) {
		names = append(names, m.Metadata.Name)
	}
	slices.Sort(names)
	return names
}

// others are the machines that are none of some; there has to be one.
func others(t *testing.T, than []string) []string {
	t.Helper()
	names := slices.DeleteFunc(allMachines(t), func(m string) bool { return slices.Contains(than, m) })
	if len(names) == 0 {
		t.Fatalf("all machines are among %v", than)
	}
	return names
}

func awaitStarted(t *testing.T, within time.Duration, name string, copies int) time.Duration {
	t.Helper()
	return await(t, within, fmt.Sprintf("volume %s to have %d equal copies", name, copies), func() (string, bool) {
		v, err := getVolume(name)
		return fmt.Sprint(v, err), err == nil && v.started(copies)
	})
}

// awaitVolumes waits until volumes have so many equal copies, every machine has them
// mounted, and their claims are bound.
func awaitVolumes(t *testing.T, within time.Duration, copies map[string]int) time.Duration {
	t.Helper()
	machines := allMachines(t)
	return await(t, within, fmt.Sprint("the volumes on every machine: ", copies), func() (string, bool) {
		claims, err := objects[struct {
			Metadata struct{ Name string }
			Status   struct{ Phase string }
		}]("persistentvolumeclaims.v1.", gluster.DesktopsNamespace)
		if err != nil {
			return err.Error(), false
		}
		bound := map[string]bool{}
		for _, c := range claims {
			bound[c.Metadata.Name] = c.Status.Phase == "Bound"
		}
		for name, n := range copies {
			v, err := getVolume(name)
			if err != nil || !v.started(n) {
				return fmt.Sprint(v, err), false
			}
			ready, err := readyOn(name)
			if err != nil || !slices.Equal(ready, machines) || !bound[name] {
				return fmt.Sprintf("%s is ready on %v %v; claims %+v", name, ready, err, claims), false
			}
		}
		return "", true
	})
}

// readyOn are the machines whose Node says that a volume is mounted, in order.
func readyOn(volume string) (machines []string, err error) {
	nodes, err := objects[struct {
		Metadata struct {
			Name   string
			Labels map[string]string
		}
	}]("nodes.v1.", "")
	for _, n := range nodes {
		if n.Metadata.Labels[gluster.ReadyLabel(volume)] == gluster.ReadyValue {
			machines = append(machines, n.Metadata.Name)
		}
	}
	slices.Sort(machines)
	return machines, err
}

// awaitDeleted waits until nothing but what is on the bricks is left of volumes.
func awaitDeleted(t *testing.T, within time.Duration, names ...string) {
	t.Helper()
	await(t, within, fmt.Sprint("the end of the volumes ", names), func() (string, bool) {
		for _, name := range names {
			if v, err := getVolume(name); v != nil || err != nil {
				return fmt.Sprint(v, err), false
			}
			if ready, err := readyOn(name); len(ready) > 0 || err != nil {
				return fmt.Sprintf("%s is mounted on %v %v", name, ready, err), false
			}
			out, err := kubectl("get", "pv/kingmaker-"+name, "--ignore-not-found", "-o", "name")
			claim, e := kubectl("get", "pvc/"+name, "-n", gluster.DesktopsNamespace, "--ignore-not-found", "-o", "name")
			if err != nil || e != nil || strings.TrimSpace(out+claim) != "" {
				return out + claim, false
			}
		}
		return "", true
	})
}

// put writes a file on a machine.
func put(t *testing.T, machine, file, content string) {
	t.Helper()
	out, err := exit(machine, content, "sh", "-c", "cat > "+file)
	must(t, out, err)
}

// processes are the IDs of those whose command line matches.
func processes(machine, pattern string) string {
	out, _, _ := apart(machine, "pgrep", "--full", pattern)
	return strings.TrimSpace(out)
}

// killProcess kills the one whose command line matches.
func killProcess(t *testing.T, machine, pattern string) (id string) {
	t.Helper()
	id = processes(machine, pattern)
	if _, err := strconv.Atoi(id); err != nil {
		t.Fatalf("on %s the processes %q are %q, want one", machine, pattern, id)
	}
	on(t, machine, "kill", "-KILL", id)
	return id
}

func isMounted(machine, volume string) bool {
	_, _, err := apart(machine, "grep", "--quiet", "--fixed-strings", " "+gluster.MountPath(volume)+" ", "/proc/self/mounts")
	return err == nil
}

// takeMountAway stops the agent of a machine, and unmounts a volume.
func takeMountAway(t *testing.T, machine, volume string) {
	t.Helper()
	t.Cleanup(func() { _, _ = exit(machine, "", "systemctl", "start", "noded") })
	on(t, machine, "systemctl", "stop", "noded")
	await(t, 30*time.Second, "no mount on "+machine, func() (string, bool) {
		out, _ := exit(machine, "", "umount", gluster.MountPath(volume)) // its process may be gone with the agent
		return out, !isMounted(machine, volume)
	})
}

// awaitMounted waits until a machine has a volume, says so, and reads a file of it.
func awaitMounted(t *testing.T, within time.Duration, machine, volume, file string) time.Duration {
	t.Helper()
	return await(t, within, volume+" to be mounted on "+machine, func() (string, bool) {
		out, err := exit(machine, "", "timeout", "5", "cat", file)
		ready, e := readyOn(volume)
		return fmt.Sprintf("%s; ready on %v %v", out, ready, e), err == nil && isMounted(machine, volume) && slices.Contains(ready, machine)
	})
}

// bricksOf are what the machines report of their bricks.
func bricksOf() (map[string]gluster.MachineBrick, error) {
	machines, err := objects[struct {
		Metadata struct{ Name string }
		Status   struct{ Brick gluster.MachineBrick }
	}]("machines.v1alpha1.kingmaker.dev", "")
	bricks := map[string]gluster.MachineBrick{}
	for _, m := range machines {
		bricks[m.Metadata.Name] = m.Status.Brick
	}
	return bricks, err
}

func awaitBrick(t *testing.T, machine, what string, ok func(gluster.MachineBrick) bool) {
	t.Helper()
	await(t, 2*time.Minute, fmt.Sprintf("the brick of %s to be %s", machine, what), func() (string, bool) {
		bricks, err := bricksOf()
		b := bricks[machine]
		return fmt.Sprintf("%+v %v", b, err), err == nil && ok(b)
	})
}

// awaitTrouble waits until the site says what is wrong: a line with all of the words,
// of the volume, of a machine's brick, or of what keeps the site from its commit.
func awaitTrouble(t *testing.T, name string, words ...string) {
	t.Helper()
	await(t, 3*time.Minute, fmt.Sprint("the site to tell of ", words), func() (string, bool) {
		var lines []string
		v, err := getVolume(name)
		if err == nil && v != nil {
			lines = append(lines, "the volume "+name+": "+v.Status.Message)
		}
		bricks, _ := bricksOf()
		for m, b := range bricks {
			if b.Unfit != "" {
				lines = append(lines, "the brick of "+m+": "+b.Unfit)
			}
		}
		sites, _ := objects[struct{ Status plan.SiteStatus }]("sites.v1alpha1.kingmaker.dev", "")
		for _, s := range sites {
			for i := range s.Status.Errors {
				lines = append(lines, "the site: "+s.Status.Errors[i].Error())
			}
		}
		for _, line := range lines {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				t.Log(line)
				return "", true
			}
		}
		return strings.Join(lines, "\n"), false
	})
}

// stewardNow is the machine that works on the pool, "" where it is not known.
func stewardNow() string {
	pools, err := objects[struct{ Status gluster.PoolStatus }]("pools.v1alpha1.kingmaker.dev", "")
	if err != nil || len(pools) != 1 {
		return ""
	}
	return pools[0].Status.Steward.Holder
}

func steward(t *testing.T) (holder string) {
	t.Helper()
	await(t, time.Minute, "a steward", func() (string, bool) {
		holder = stewardNow()
		return "", holder != ""
	})
	return holder
}

// installProbe puts the probe onto every machine.
func installProbe(t *testing.T) {
	t.Helper()
	program, err := buildWatcher()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range allMachines(t) {
		if err := theRoom(t).Copy(t.Context(), program, m, "/usr/local/bin/"+probeUnit); err != nil {
			t.Fatal(err)
		}
	}
}

// files is a probe that works on the files of the volume shared, or on entries of the
// directory, on a machine, and writes down what it does.
type files struct {
	machine, unit, log string
	count              int           // to be written
	most               time.Duration // for which nothing may be acknowledged
}

func startFiles(t *testing.T, machine, folder string, count int, pause time.Duration) *files {
	t.Helper()
	f := startProbe(t, machine, "write", gluster.DataPath("shared")+"/"+folder, strconv.Itoa(count), strconv.FormatInt(time.Now().UnixNano(), 10), pause.String())
	f.count = count
	return f
}

func startReads(t *testing.T, machine, folder string) *files {
	t.Helper()
	return startProbe(t, machine, "read", gluster.DataPath("shared")+"/"+folder)
}

func startProbe(t *testing.T, machine, verb string, args ...string) *files {
	t.Helper()
	f := &files{machine: machine, unit: probeUnit + "-" + verb, log: probeFile + "-" + verb, most: pauseMost}
	t.Cleanup(f.stop)
	f.stop()
	on(t, machine, append([]string{"systemd-run", "--quiet", "--collect", "--unit", f.unit, "--property", "StandardOutput=truncate:" + f.log,
		"/usr/local/bin/" + probeUnit, verb}, args...)...)
	return f
}

func (f *files) stop() { _, _, _ = apart(f.machine, "systemctl", "stop", f.unit) }

// acknowledged is how many files are written.
func (f *files) acknowledged() int {
	out, _, _ := apart(f.machine, "grep", "--count", " ok ", f.log)
	n, _ := strconv.Atoi(strings.TrimSpace(out))
	return n
}

func (f *files) await(t *testing.T, within time.Duration, count int) {
	t.Helper()
	// It is the machine that waits: to ask it over and over would cost more than the files.
	const wait = `until [ "$(grep --count ' ok ' "$0")" -ge "$1" ]; do sleep 1; done`
	await(t, within, fmt.Sprintf("%d files to be written on %s", count, f.machine), func() (string, bool) {
		_, _, _ = apart(f.machine, "timeout", "20", "sh", "-c", wait, f.log, strconv.Itoa(count))
		n := f.acknowledged()
		return fmt.Sprint(n), n >= count
	})
}

// all waits until the last file is written, and is the list of them.
func (f *files) all(t *testing.T, within time.Duration) (list string) {
	t.Helper()
	f.await(t, within, f.count)
	return f.soFar(t)
}

// soFar ends the writing, and is the list of what was acknowledged.
func (f *files) soFar(t *testing.T) (list string) {
	t.Helper()
	var b strings.Builder
	var times strings.Builder // as of a watch
	n := 0
	for line := range strings.Lines(f.end(t)) {
		if part := strings.Fields(line); len(part) == 4 && part[1] == "ok" {
			fmt.Fprintln(&b, part[2], part[3])
			line = part[0] + " ok\n"
			n++
		}
		times.WriteString(line)
	}
	f.judge(t, fmt.Sprintf("%d files were written", n), times.String())
	return b.String()
}

// finish ends the reading.
func (f *files) finish(t *testing.T) {
	t.Helper()
	f.judge(t, "files were read", f.end(t))
}

func (f *files) end(t *testing.T) (lines string) {
	t.Helper()
	f.stop()
	lines, said, err := apart(f.machine, "cat", f.log)
	return must(t, lines, err) + said
}

// judge compares the longest pause with what is promised.
func (f *files) judge(t *testing.T, what, times string) {
	t.Helper()
	gap, where, answers := longestGap(times, false)
	t.Logf("%s on %s; the longest pause: %s %s", what, f.machine, round(gap), where)
	if answers == 0 {
		t.Errorf("%s: none", what)
	}
	if gap > f.most {
		t.Errorf("%s on %s, and none for %s, want at most %s: %s", what, f.machine, round(gap), f.most, where)
	}
}

// verifyCopies checks that a machine reads all that was acknowledged, by folder, and
// that every copy of the volume has all of it.
func verifyCopies(t *testing.T, name, from string, lists map[string]string) {
	t.Helper()
	check := func(machine, data string) {
		for folder, list := range lists {
			if out, err := exit(machine, list, "/usr/local/bin/"+probeUnit, "verify", data+"/"+folder); err != nil {
				t.Errorf("%s on %s: %v\n%s", data+"/"+folder, machine, err, out)
			}
		}
	}
	check(from, gluster.DataPath(name))
	for _, machine := range holders(t, name) {
		check(machine, gluster.BrickPath(name)+"/data")
	}
}
