//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// What the site promises of its people, in this lab.
const (
	enrolled  = 2 * time.Minute // from the push of a Roster until its people can log in
	takenOver = time.Minute     // without a replica that takes changes, when that which did vanishes
	equal     = 2 * time.Minute // until all replicas are equal again
)

const (
	directorySpace = "kingmaker-directory"
	peopleFile     = "people/directory.yaml"
	caFile         = "/run/e2e-directory-ca.crt"
	loginFile      = "/run/e2e-directory-login"
)

// carla is a Roster of one, with an initial password.
func carla(password string, disabled bool) string {
	return fmt.Sprintf(`apiVersion: kingmaker.dev/v1alpha1
kind: Group
metadata: {name: singers}
spec: {gid: 2101}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Roster
metadata: {name: singers}
spec:
  group: singers
  users:
    - {name: carla, uid: 3101, fullName: Carla Ørsted, disabled: %t, password: {initial: "%s"}}
`, disabled, slapd.Hash(plan.NewSecret(password)))
}

// TestDirectory: people that a commit declares can log in, and those whom it locks
// cannot; the replica that takes changes may vanish at any moment, and nothing that
// was acknowledged with it; and what is backed up can be brought back.
func TestDirectory(t *testing.T) {
	calm(t)
	installProbe(t)
	at := workers(t, 1)[0]
	const first, second = "correct horse battery", "staple in the attic"
	t.Cleanup(func() { push(t, "no singers", map[string]string{peopleFile: ""}) })

	commit := push(t, "singers", map[string]string{peopleFile: carla(first, false)})
	pushed := time.Now()
	d := openDirectory(t, at)
	login := "uid=carla,ou=people," + slapd.DefaultBase
	await(t, enrolled, "carla to log in", func() (string, bool) { return d.bind(login, first) })
	t.Logf("carla logs in %.1f s after the push", time.Since(pushed).Seconds())
	awaitReached(t, enrolled, commit)
	if said, ok := d.bind(login, second); ok || !strings.Contains(said, "Invalid Credentials") {
		t.Errorf("another password is good, too: %s", said)
	}

	t.Run("dry run from outside", func(t *testing.T) { testDryRun(t, carla(first, false), carla(first, true)) })
	t.Run("disabled", func(t *testing.T) {
		push(t, "carla is locked", map[string]string{peopleFile: carla(first, true)})
		t.Logf("refused %.1f s after the push", await(t, enrolled, "carla to be refused", func() (string, bool) {
			said, ok := d.bind(login, first)
			return said, !ok && strings.Contains(said, "Invalid Credentials")
		}).Seconds())
		push(t, "carla is not locked", map[string]string{peopleFile: carla(first, false)})
		await(t, enrolled, "carla to log in again", func() (string, bool) { return d.bind(login, first) })
	})
	t.Run("cable of the writer", func(t *testing.T) {
		long(t)
		testWriterAway(t, d)
	})
	t.Run("backup", func(t *testing.T) {
		long(t)
		testBackup(t, d, login, first, second)
	})
}

// directory is the site's, seen from one machine.
type directory struct {
	machine, service string
	logins           map[string]string // by account: the DN and the password, a line each
}

// openDirectory waits for a directory that answers.
func openDirectory(t *testing.T, machine string) *directory {
	t.Helper()
	d := &directory{machine: machine, logins: map[string]string{}}
	type secret struct {
		Metadata struct{ Name string }
		Data     map[string]string
	}
	await(t, 5*time.Minute, "the directory to be made", func() (string, bool) {
		if d.replicas() == nil {
			return "no replica", false
		}
		secrets, err := objects[secret]("secrets.v1.", directorySpace)
		for _, s := range secrets {
			name, ours := strings.CutPrefix(s.Metadata.Name, "directory-")
			login := ""
			for _, key := range []string{"username", "password"} {
				text, _ := base64.StdEncoding.DecodeString(s.Data[key])
				login += string(text) + "\n"
			}
			if ours {
				d.logins[name] = login
			}
			if name == slapd.Daemon {
				ca, _ := base64.StdEncoding.DecodeString(s.Data["ca.crt"])
				put(t, machine, caFile, string(ca))
			}
		}
		return fmt.Sprint(len(secrets), err), len(d.logins) >= 4
	})
	out, err := kubectl("get", "service", "directory", "-n", directorySpace, "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}")
	d.service = strings.TrimSpace(must(t, out, err))
	return d
}

// bind logs in through the Service, as everybody does.
func (d *directory) bind(dn, password string) (said string, ok bool) {
	said, err := d.probe(dn+"\n"+password, "bind", d.service, caFile)
	return said, err == nil
}

func (d *directory) probe(in, verb string, args ...string) (out string, err error) {
	return exit(d.machine, in, append([]string{"/usr/local/bin/" + probeUnit, verb}, args...)...)
}

// directoryPod is what the tests look at of a replica.
type directoryPod struct {
	Metadata struct{ Labels map[string]string }
	Spec     struct{ NodeName string }
	Status   struct {
		PodIP      string
		Conditions []struct{ Type, Status string }
	}
}

func (p directoryPod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// replicas are the addresses of those that are ready, by machine; nil where they
// cannot be listed, or are not as many as masters.
func (d *directory) replicas() map[string]string {
	masters, err := mastersOf()
	if err != nil {
		return nil
	}
	pods, err := objects[directoryPod]("pods.v1.", directorySpace)
	if err != nil {
		return nil
	}
	found := map[string]string{}
	for _, p := range pods {
		if p.Metadata.Labels["app.kubernetes.io/name"] == "directory" && p.ready() {
			found[p.Spec.NodeName] = p.Status.PodIP
		}
	}
	if len(found) < len(masters) {
		return nil
	}
	return found
}

// writer is the machine whose replica takes changes.
func (d *directory) writer() (machine string, err error) {
	type configMap struct {
		Metadata struct{ Name string }
		Data     map[string]string
	}
	maps, err := objects[configMap]("configmaps.v1.", directorySpace)
	for _, m := range maps {
		if m.Metadata.Name == "directory" {
			machine = m.Data["writer"]
		}
	}
	return machine, err
}

// awaitEqual waits until all replicas have the same entries, in the same versions,
// and is the list of them.
func (d *directory) awaitEqual(t *testing.T, within time.Duration) (list string) {
	t.Helper()
	took := await(t, within, "all replicas to be equal", func() (string, bool) {
		all := d.replicas()
		var sizes []string
		same := len(all) > 0
		for machine, address := range all {
			out, err := d.probe(d.logins[slapd.Replicator], "dump", address+":1636", caFile, slapd.DefaultBase)
			if err != nil {
				return machine + ": " + out, false
			}
			sizes = append(sizes, fmt.Sprintf("%s: %d entries", machine, strings.Count(out, "\n")))
			same = same && (list == "" || list == out)
			list = out
		}
		if !same {
			list = ""
		}
		return strings.Join(sizes, ", "), same
	})
	t.Logf("all replicas are equal after %.1f s: %d entries", took.Seconds(), strings.Count(list, "\n"))
	return list
}

// testDryRun: people are in the plan that somebody makes who is not in the cluster.
func testDryRun(t *testing.T, is, wanted string) {
	out, err := command(site.binary, "kubeconfig", "--name", name)
	kubeconfig := strings.TrimSpace(must(t, out, err))
	file := filepath.Join(site.repo, peopleFile)
	for text, want := range map[string]string{is: "", wanted: "~ update directory/User/carla"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		// The plan has the two images, too, for this program has no version.
		out, _ := commandIn("../../..", "", "go", "run", "./cmd/reconcile", "--kubeconfig", kubeconfig, "--repo", site.repo, "--dry-run", "--output", "summary")
		var people []string
		for line := range strings.Lines(out) {
			if strings.Contains(line, " directory") && !strings.Contains(line, "objects/") {
				people = append(people, line)
			}
		}
		if !strings.Contains(out, "plan for") || (want == "") != (people == nil) || !strings.Contains(strings.Join(people, ""), want) {
			t.Errorf("want %q of people in the plan, got:\n%s", want, out)
		}
	}
	if err := os.WriteFile(file, []byte(is), 0o644); err != nil {
		t.Fatal(err)
	}
}

// testWriterAway: while people are enrolled, the replica that takes changes loses its
// cable. Another goes on, and when the first is back, all have all that was
// acknowledged.
func testWriterAway(t *testing.T, d *directory) {
	below := fmt.Sprintf("ou=e2e-%d,%s", time.Now().Unix(), slapd.DefaultBase)
	put(t, d.machine, loginFile, d.logins[slapd.Daemon])
	run := startProbe(t, d.machine, "enroll", d.service, caFile, loginFile, below, strconv.Itoa(1_000_000))
	run.await(t, time.Minute, 200)
	before, err := d.writer()
	if err != nil || before == "" {
		t.Fatalf("the writer is %q %v", before, err)
	}
	r := theRoom(t)
	if err := r.Cut(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { calm(t) })
	t.Logf("another takes changes %.1f s after the cable was pulled", await(t, takenOver+30*time.Second, "another writer", func() (string, bool) {
		now, err := d.writer()
		return fmt.Sprint(now, err), err == nil && now != "" && now != before
	}).Seconds())
	had := run.acknowledged()
	run.await(t, takenOver, had+200)
	if err := r.Heal(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	run.await(t, time.Minute, had+400)
	run.most = takenOver
	list := run.soFar(t)
	calm(t)
	all := d.awaitEqual(t, equal)
	for line := range strings.Lines(list) {
		entry, _, _ := strings.Cut(line, " ")
		if !strings.Contains(all, "cn="+entry+","+below+" ") {
			t.Errorf("%s was acknowledged, and is not there", entry)
		}
	}
}

// testBackup: the nightly backup, made now; then everything as it was by then.
func testBackup(t *testing.T, d *directory, login, first, second string) {
	const file = "volumes/directory.yaml"
	commit := push(t, "a volume for backups", map[string]string{file: `apiVersion: kingmaker.dev/v1alpha1
kind: Volume
metadata: {name: directory-backup}
spec: {replicas: 3, namespace: kingmaker-directory}
`})
	awaitStarted(t, 3*time.Minute, gluster.DirectoryBackup, 3)
	awaitReached(t, enrolled, commit)
	out, err := kubectl("create", "job", "--from=cronjob/directory-backup", "e2e-backup", "-n", directorySpace)
	must(t, out, err)
	await(t, 3*time.Minute, "the backup to be made", func() (string, bool) {
		out, err := kubectl("get", "job", "e2e-backup", "-n", directorySpace, "-o", "jsonpath={.status}")
		return out, err == nil && strings.Contains(out, `"succeeded":1`)
	})
	found := strings.Fields(on(t, master(t), "sh", "-c", "ls "+gluster.DataPath(gluster.DirectoryBackup)+"/directory-*.ldif.gz"))
	if len(found) != 1 {
		t.Fatalf("the backups are %q", found)
	}

	out, err = d.probe(login+"\n"+first+"\n"+second, "change", d.service, caFile)
	if err != nil {
		t.Fatalf("carla cannot change her password: %s %v", out, err)
	}
	if said, ok := d.bind(login, second); !ok {
		t.Fatalf("carla's new password is not good: %s", said)
	}
	on(t, master(t), "sh", "-c", "kubectl --kubeconfig /etc/kubernetes/admin.conf -n "+directorySpace+" exec -i ds/directory -c directory -- directory restore < "+filepath.Clean(found[0]))
	t.Logf("the password of the backup is good again after %.1f s", await(t, 3*time.Minute, "carla to log in with the password of the backup", func() (string, bool) { return d.bind(login, first) }).Seconds())
	d.awaitEqual(t, equal)

	out, err = kubectl("delete", "job", "e2e-backup", "-n", directorySpace)
	must(t, out, err)
	commit = push(t, "no volume for backups", map[string]string{file: "", "site.yaml": storingNow(t, []string{
		"volumes/Volume/directory-backup", "objects/PersistentVolume/kingmaker-directory-backup", "objects/PersistentVolumeClaim/" + directorySpace + "/directory-backup"})})
	awaitDeleted(t, 3*time.Minute, gluster.DirectoryBackup)
	awaitReached(t, enrolled, commit)
	push(t, "nothing to confirm", map[string]string{"site.yaml": storingNow(t, nil)})
}

// storingNow is the Site as it is, with other consents.
func storingNow(t *testing.T, confirm []string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(site.repo, "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return storing(string(text), "", confirm)
}
