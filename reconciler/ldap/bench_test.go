package ldap_test

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/slapdtest"
	"github.com/kingmaker-io/kingmaker/reconciler"
	"github.com/kingmaker-io/kingmaker/reconciler/ldap"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// BenchmarkSchool is a site of 10,000 users in 300 groups, or of KINGMAKER_USERS:
// the first import, a plan with nothing to do, and one changed user; and beside each
// OpenLDAP's own programs with the same entries on the same slapd, emptied between.
//
//	go test -run XXX -bench School -benchtime 1x ./reconciler/ldap
func BenchmarkSchool(b *testing.B) {
	users := 10_000
	if n, err := strconv.Atoi(os.Getenv("KINGMAKER_USERS")); err == nil {
		users = n
	}
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // as the daemon has it
	d := start(b)
	// The site's own servers flush every change to the disk, and so does this one.
	r := &reconciler.Reconciler{Systems: []reconciler.System{d.open(b)}}
	school := schoolOf(users, 300, -1)
	// Where the machine has other work, the time of the processors tells more than that
	// of the clock.
	ours, theirs := cpu(b, "self"), cpu(b, d.PID())
	report := func(name string, took time.Duration, more ...any) {
		now, then := cpu(b, "self"), cpu(b, d.PID())
		b.Logf("%-36s %9s, CPU %8s and slapd's %8s  %s", name, took.Round(time.Millisecond), now-ours, max(0, then-theirs), fmt.Sprint(more...))
		ours, theirs = cpu(b, "self"), cpu(b, d.PID())
	}

	began := time.Now()
	round, applied := r.Converge(b.Context(), school)
	if !round.Settled() {
		b.Fatalf("not settled: %v", round.Err)
	}
	report("first import", time.Since(began), applied, " changes; slapd has ", d.RSS()>>20, " MB")
	b.ReportMetric(time.Since(began).Seconds(), "import-s")

	var plans []time.Duration
	peak := watchHeap()
	for range 3 {
		fresh := &reconciler.Reconciler{Systems: []reconciler.System{d.open(b)}}
		began = time.Now()
		p, err := fresh.Plan(b.Context(), school)
		plans = append(plans, time.Since(began))
		if err != nil || !p.Settled() {
			b.Fatal(err, lines(p))
		}
	}
	memory := peak()
	report("no-op plan (the fastest of 3)", slices.Min(plans), plans, "; heap at most ", memory>>20, " MB beyond the site's")
	b.ReportMetric(slices.Min(plans).Seconds(), "noop-s")
	b.ReportMetric(float64(memory>>20), "noop-MB")

	changed := schoolOf(users, 300, users/2)
	p, err := r.Plan(b.Context(), changed)
	if err != nil || len(p.Changes) != 1 {
		b.Fatal(err, lines(p))
	}
	began = time.Now()
	if n, err := r.Apply(b.Context(), p); n != 1 {
		b.Fatal(err)
	}
	report("one changed user", time.Since(began), "one modification")
	b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "change-ms")

	one := fmt.Sprintf("dn: %s\nchangetype: modify\nreplace: mail\nmail: other@school.example\n", user(fmt.Sprintf("user-%d", users/2)))
	began = time.Now()
	d.Run(one, "ldapmodify")
	report("ldapmodify of one user", time.Since(began), "with its login")

	began = time.Now()
	d.Run("", "ldapsearch", "-LLL", "-E", "pr=1000/noprompt", "-b", slapdtest.Base, "cn", "sn", "mail", "uidNumber", "gidNumber", "homeDirectory", "loginShell", "labeledURI", "pwdAccountLockedTime", "description", "member")
	report("ldapsearch of the same attributes", time.Since(began))

	ldif := ldifOf(d.Dump())
	d.Off()
	d.Wipe()
	d.Begin()
	ours, theirs = cpu(b, "self"), cpu(b, d.PID())
	began = time.Now()
	d.Run(ldif, "ldapadd")
	report("ldapadd of the same entries", time.Since(began))
	b.ReportMetric(time.Since(began).Seconds(), "ldapadd-s")
}

// schoolOf is a site of so many users, a thirtieth of a percent of them in each of the
// groups; one of them has another mail address.
func schoolOf(users, groups, other int) *plan.Site {
	s := &plan.Site{Name: "school", Commit: "c0ffee", Objects: plan.State{}}
	add := func(kind, name string, spec map[string]any) {
		id := plan.ID{System: plan.Directory, Kind: kind, Name: name}
		s.Objects.Add(plan.Object{ID: id, Spec: map[string]any{"apiVersion": plan.APIVersion, "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec}})
	}
	// One hash for all: what it costs to make one is not what is measured.
	secret := plan.NewSecret(hash("the first password"))
	for g := range groups {
		var list []any
		for u := g; u < users; u += groups {
			mail := "user-" + strconv.Itoa(u) + "@school.example"
			if u == other {
				mail = "new@school.example"
			}
			list = append(list, map[string]any{"name": "user-" + strconv.Itoa(u), "uid": int64(100_000 + u), "fullName": "Forename Surname-" + strconv.Itoa(u), "mail": mail,
				"password": map[string]any{"initial": secret}})
		}
		name := "class-" + strconv.Itoa(g)
		add("Group", name, map[string]any{"gid": int64(10_000 + g)})
		add("Roster", name, map[string]any{"group": name, "users": list})
	}
	return s
}

// cpu is the time that a process has had of the processors.
func cpu(b *testing.B, pid string) time.Duration {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	words := strings.Fields(rest)
	user, _ := strconv.Atoi(words[11])
	system, _ := strconv.Atoi(words[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// watchHeap tells, when asked, by how much the live heap grew at most.
func watchHeap() (peak func() uint64) {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() uint64 { metrics.Read(sample); return sample[0].Value.Uint64() }
	runtime.GC()
	before := read()
	var most atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			most.Store(max(most.Load(), read()))
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { close(stop); <-stopped; return most.Load() - min(before, most.Load()) }
}

// ldifOf is what ldapadd needs to make the people and groups of a dump anew.
func ldifOf(dump string) string {
	var tree, entries []string
	for entry := range strings.SplitSeq("\n"+dump, "\ndn: ") {
		dn, _, _ := strings.Cut(entry, "\n")
		switch {
		case strings.Contains(dn, ",ou=people,") || strings.Contains(dn, ",ou=groups,"):
			entries = append(entries, "dn: "+entry)
		case strings.HasPrefix(dn, "ou=people") || strings.HasPrefix(dn, "ou=groups") || strings.HasPrefix(dn, "cn=kingmaker"):
			tree = append(tree, "dn: "+entry)
		}
	}
	return strings.Join(append(tree, entries...), "\n\n")
}

var _ reconciler.System = (*ldap.System)(nil)
