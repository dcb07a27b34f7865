package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/kingmaker-io/kingmaker/cmd/directory/slapd"
)

// TestReplicas: three begin at once and are one directory; what one is told all know,
// whichever of them dies, is cut off, or comes with a new disk.
func TestReplicas(t *testing.T) {
	s := newSite(t, 3)
	for _, m := range s.machines {
		m.on()
	}
	all := s.machines
	s.ready(all...)
	if st, _ := s.store.State(t.Context()); st.Founder != "" || st.Servers != 3 {
		t.Errorf("state %+v", st)
	}
	s.equal(60*time.Second, all...)

	n := 0
	acknowledged := map[string]bool{}
	add := func(count int) {
		t.Helper()
		for range count {
			n++
			uid := fmt.Sprintf("u%04d", n)
			s.write(func(conn *goldap.Conn) error {
				err := addPerson(conn, uid, 10000+n, "")
				if goldap.IsErrorWithCode(err, goldap.LDAPResultEntryAlreadyExists) {
					err = nil // the answer was lost, and not the change
				}
				return err
			})
			acknowledged[uid] = true
		}
	}
	none := func(content string) {
		t.Helper()
		for uid, there := range acknowledged {
			if strings.Contains(content, "\ndn: "+person(uid)+"\n") != there {
				t.Errorf("%s is there: %v; want %v", uid, !there, there)
			}
		}
	}
	add(50)
	none(s.equal(30*time.Second, all...))

	w := s.writer()
	for _, m := range all {
		if m == w {
			continue
		}
		if err := set(m.service(slapd.Daemon), person("u0001"), "description", "x"); !goldap.IsErrorWithCode(err, goldap.LDAPResultUnwillingToPerform) {
			t.Errorf("%s takes a change beside the writer: %v", m.name, err)
		}
	}

	t.Log("one that follows dies, and misses much")
	other := all[(w.n+1)%3]
	other.kill()
	add(60)
	s.write(func(conn *goldap.Conn) error { return conn.Del(goldap.NewDelRequest(person("u0002"), nil)) })
	acknowledged["u0002"] = false
	other.on()
	s.ready(other)
	none(s.equal(30*time.Second, all...))

	t.Log("the writer's slapd dies over changes")
	w = s.writer()
	w.replica.mu.Lock()
	p := w.replica.slapd
	w.replica.mu.Unlock()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	add(20)
	s.ready(all...)
	none(s.equal(30*time.Second, all...))

	t.Log("the writer's machine dies with changes that only it knows, and is replaced")
	w = s.writer()
	for _, m := range all { // the links and not the store: it is still the writer
		if m != w {
			s.links[[2]int{m.n, w.n}].set(true)
		}
	}
	add(10)
	w.kill()
	s.cut(w, false)
	add(40)
	if now := s.writer(); now == w {
		t.Error("a dead machine is the writer")
	}
	w.on()
	s.ready(all...)
	none(s.equal(30*time.Second, all...))

	t.Log("one comes back with a new disk")
	w = s.writer()
	other = all[(w.n+2)%3]
	before, _ := s.store.State(t.Context())
	other.kill()
	other.wipe()
	add(10)
	other.on()
	s.ready(other)
	none(s.equal(30*time.Second, all...))
	if after, _ := s.store.State(t.Context()); after.ID != before.ID || after.Servers != before.Servers+1 {
		t.Errorf("state %+v and then %+v", before, after)
	}

	t.Log("an empty one is alone, and serves nobody")
	for _, m := range all {
		m.kill()
	}
	other.wipe()
	other.on()
	s.eventually("it says so", 20*time.Second, func() error {
		if st := other.replica.Status(); !strings.Contains(st.Reason, "restore a backup") {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	time.Sleep(patient)
	if conn, err := other.dial(); err == nil {
		conn.Close()
		t.Error("it answers")
	}
	for _, m := range all {
		if m != other {
			m.on()
		}
	}
	s.ready(all...)
	none(s.equal(30*time.Second, all...))
	add(10)
	// Who loses the writer's disk loses what it has acknowledged and not told yet.
	none(s.equal(30*time.Second, all...))

	t.Log("the cluster forgets which directory it has")
	known, _ := s.store.State(t.Context())
	s.store.mu.Lock()
	s.store.state = State{}
	s.store.mu.Unlock()
	other.kill()
	other.wipe()
	other.on()
	s.ready(all...)
	add(10)
	none(s.equal(30*time.Second, all...))
	if st, _ := s.store.State(t.Context()); st.ID != known.ID || st.Servers <= known.Servers {
		t.Errorf("state %+v, and before %+v", st, known)
	}
}

// TestCut: the writer's cable is pulled. It takes no more changes before another
// does, and those that it took are there afterwards.
func TestCut(t *testing.T) {
	s := newSite(t, 3)
	for _, m := range s.machines {
		m.on()
	}
	s.ready(s.machines...)
	old := s.writer()
	daemon := old.service(slapd.Daemon)
	want := map[string]bool{}
	for n := range 10 {
		if err := addPerson(daemon, fmt.Sprintf("before-%d", n), 10000+n, ""); err != nil {
			t.Fatal(err)
		}
		want[fmt.Sprintf("before-%d", n)] = true
	}
	s.equal(20*time.Second, s.machines...)

	s.cut(old, true)
	took, since := 0, time.Now()
	for n := 0; time.Since(since) < 3*lease; n++ { // a client on its side of the cut, which asks it alone
		uid := fmt.Sprintf("left-%d", n)
		conn, err := old.as(slapd.DN(slapd.Daemon, base), string(s.store.secrets["directory-daemon"]["password"]))
		if err == nil {
			err = addPerson(conn, uid, 20000+n, "")
			conn.Close()
		}
		if err == nil {
			took++
			want[uid] = true
			for _, m := range s.machines {
				if m != old && m.replica.Status().Writer {
					t.Fatalf("%s and %s take changes at once", m.name, old.name)
				}
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	if old.replica.Status().Writer {
		t.Errorf("%s took %d changes, and is still the writer", old.name, took)
	}
	heir := s.writer(old)
	daemon = heir.service(slapd.Daemon)
	for n := range 10 {
		if err := addPerson(daemon, fmt.Sprintf("right-%d", n), 30000+n, ""); err != nil {
			t.Fatal(err)
		}
		want[fmt.Sprintf("right-%d", n)] = true
		if err := set(daemon, person(fmt.Sprintf("before-%d", n)), "description", "seen on the right"); err != nil {
			t.Fatal(err)
		}
	}
	s.cut(old, false)
	content := s.equal(60*time.Second, s.machines...)
	for uid := range want {
		if !strings.Contains(content, "\ndn: "+person(uid)+"\n") {
			t.Errorf("%s is lost", uid)
		}
	}
	if got := strings.Count(content, "seen on the right"); got != 10 {
		t.Errorf("%d of 10 changes of an entry are there", got)
	}
}

// A slapd that ends by itself is started again, also where nothing is left to start it
// from; and a replica that is told to end just then does.
func TestSlapdEnds(t *testing.T) {
	s := newSite(t, 1)
	m := s.machines[0]
	slapdDies := func() {
		t.Helper()
		m.replica.mu.Lock()
		defer m.replica.mu.Unlock()
		if err := m.replica.slapd.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	ended := func() {
		t.Helper()
		s.eventually("its end is seen", 10*time.Second, func() error {
			if st := m.replica.Status(); st.Ready {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
	}
	m.on()
	s.ready(m)
	slapdDies()
	ended()
	s.ready(m)

	if err := os.RemoveAll(m.replica.Runtime); err != nil {
		t.Fatal(err)
	}
	slapdDies()
	ended()
	s.ready(m)

	slapdDies()
	ended()
	m.cancel()
	select {
	case err := <-m.done:
		m.done <- err // for whoever asks next
	case <-time.After(20 * time.Second):
		m.replica = nil // kill would wait as well
		t.Fatal("the replica does not end")
	}
}

// TestAccess: who sees and changes what.
func TestAccess(t *testing.T) {
	s := newSite(t, 1)
	m := s.machines[0]
	m.on()
	s.ready(m)
	s.writer()
	daemon := m.service(slapd.Daemon)
	const old, fresh = "the old password of ada", "the new password of ada"
	for n, uid := range []string{"ada", "bob"} {
		if err := addPerson(daemon, uid, 10001+n, old); err != nil {
			t.Fatal(err)
		}
	}
	group := func(name string, gid int, members ...string) {
		r := goldap.NewAddRequest("cn="+name+",ou=groups,"+base, nil)
		r.Attribute("objectClass", []string{"groupOfNames", "posixGroup"})
		r.Attribute("cn", []string{name})
		r.Attribute("gidNumber", []string{fmt.Sprint(gid)})
		r.Attribute("member", members)
		if err := daemon.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	group("class-1", 5001, person("ada"))
	group("class-2", 5002, person("bob"))

	find := func(conn *goldap.Conn, at, filter string, attributes ...string) ([]*goldap.Entry, error) {
		r, err := conn.Search(goldap.NewSearchRequest(at, goldap.ScopeWholeSubtree, goldap.NeverDerefAliases, 0, 0, false, filter, attributes, nil))
		if r == nil {
			return nil, err
		}
		return r.Entries, err
	}
	hash := func(uid string) string {
		entries, err := find(m.service(slapd.Replicator), person(uid), "(objectClass=*)", "userPassword")
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v", entries, err)
		}
		return entries[0].GetAttributeValue("userPassword")
	}

	t.Run("nobody", func(t *testing.T) {
		conn, err := m.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, at := range []string{"", base, "cn=config", "cn=Subschema"} {
			if entries, err := find(conn, at, "(objectClass=*)"); err == nil || len(entries) > 0 {
				t.Errorf("%q: %d entries, %v", at, len(entries), err)
			}
		}
		if err := conn.UnauthenticatedBind(""); err == nil {
			t.Error("may bind without a name")
		}
		if err := conn.UnauthenticatedBind(person("ada")); err == nil {
			t.Error("may bind without a password")
		}
		if err := addPerson(conn, "eve", 10009, ""); err == nil {
			t.Error("may add")
		}
	})
	t.Run("in clear", func(t *testing.T) {
		if conn, err := goldap.DialURL("ldap://" + m.listen); err == nil {
			defer conn.Close()
			conn.SetTimeout(3 * time.Second)
			if err := conn.Bind(person("ada"), old); err == nil {
				t.Error("it takes a password")
			}
		}
	})
	t.Run("a person", func(t *testing.T) {
		ada, err := m.as(person("ada"), old)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := find(ada, person("ada"), "(objectClass=*)", "*", "+")
		if err != nil || len(entries) != 1 || entries[0].GetAttributeValue("uidNumber") != "10001" {
			t.Fatalf("the own entry: %v, %v", entries, err)
		}
		for _, a := range entries[0].Attributes {
			if strings.EqualFold(a.Name, "userPassword") || strings.EqualFold(a.Name, "pwdHistory") {
				t.Errorf("reads the own %s", a.Name)
			}
		}
		if entries, _ := find(ada, base, "(objectClass=*)"); len(entries) != 2 { // and the class
			t.Errorf("sees %d entries", len(entries))
		}
		if entries, _ := find(ada, base, "(userPassword=*)"); len(entries) != 0 {
			t.Errorf("may ask for hashes")
		}
		if entries, _ := find(ada, base, "(member="+person("ada")+")", "cn"); len(entries) != 1 || entries[0].GetAttributeValue("cn") != "class-1" {
			t.Errorf("groups %v", entries)
		}
		for what, err := range map[string]error{
			"the own number":    set(ada, person("ada"), "uidNumber", "0"),
			"the own home":      set(ada, person("ada"), "homeDirectory", "/root"),
			"another's hash":    set(ada, person("bob"), "userPassword", "taken over by ada"),
			"a group":           set(ada, "cn=class-2,ou=groups,"+base, "member", person("ada")),
			"the policy":        set(ada, "cn=passwords,ou=policies,"+base, "pwdMinLength", "1"),
			"the own lock":      set(ada, person("ada"), "pwdAccountLockedTime", "000001010000Z"),
			"the own policy":    set(ada, person("ada"), "pwdPolicySubentry", "cn=services,ou=policies,"+base),
			"a hash of her own": set(ada, person("ada"), "userPassword", slapd.Hash(s.password())),
		} {
			if err == nil {
				t.Errorf("changes %s", what)
			}
		}
		change := func(from, to string) error {
			_, err := ada.PasswordModify(goldap.NewPasswordModifyRequest("", from, to))
			return err
		}
		if change("a wrong password", fresh) == nil {
			t.Error("changes the password without the old one")
		}
		if change(old, "short") == nil {
			t.Error("may have a short one")
		}
		if err := change(old, fresh); err != nil {
			t.Fatal(err)
		}
		if h := hash("ada"); !strings.HasPrefix(h, "{ARGON2}$argon2") || !strings.Contains(h, "m=19456,t=2,p=1") {
			t.Errorf("hash %s", h)
		}
		if _, err := m.as(person("ada"), fresh); err != nil {
			t.Error(err)
		}
		if _, err := m.as(person("ada"), old); err == nil {
			t.Error("the old password is still good")
		}
	})
	t.Run("the portal", func(t *testing.T) {
		portal := m.service(slapd.Portal)
		entries, err := find(portal, "ou=people,"+base, "(uid=bob)")
		if err != nil || len(entries) != 1 || entries[0].GetAttributeValue("cn") == "" || entries[0].GetAttributeValue("userPassword") != "" {
			t.Errorf("%v, %v", entries, err)
		}
		if entries, err := find(portal, base, "(member="+person("bob")+")"); err != nil || len(entries) != 1 {
			t.Errorf("%v, %v", entries, err)
		}
		if entries, _ := find(portal, "ou=services,"+base, "(objectClass=*)"); len(entries) != 0 {
			t.Errorf("sees %v", entries)
		}
		if set(portal, person("bob"), "description", "x") == nil {
			t.Error("may change people")
		}
	})
	t.Run("the replicator", func(t *testing.T) {
		replicator := m.service(slapd.Replicator)
		if set(replicator, person("bob"), "description", "x") == nil {
			t.Error("may change people")
		}
		if entries, err := find(replicator, "ou=people,"+base, "(uid=bob)", "userPassword"); err != nil || len(entries) != 1 {
			t.Errorf("%v, %v", entries, err)
		}
	})
	t.Run("guesses", func(t *testing.T) {
		for n := range 500 {
			if _, err := m.as(person("bob"), fmt.Sprint("guess ", n)); !goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials) {
				t.Fatalf("guess %d: %v", n, err)
			}
		}
		if _, err := m.as(person("bob"), old); !goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials) {
			t.Errorf("not locked: %v", err)
		}
		if _, err := m.as(person("ada"), fresh); err != nil {
			t.Errorf("the others are: %v", err)
		}
		for n := range 12 {
			_, _ = m.as(slapd.DN(slapd.Portal, base), fmt.Sprint("guess ", n))
		}
		m.service(slapd.Portal) // nobody locks a service out
		r := goldap.NewModifyRequest(person("bob"), nil)
		r.Delete("pwdAccountLockedTime", nil)
		if err := daemon.Modify(r); err != nil {
			t.Fatal(err)
		}
		if _, err := m.as(person("bob"), old); err != nil {
			t.Errorf("unlocked by the daemon: %v", err)
		}
	})
	t.Run("the daemon", func(t *testing.T) {
		// {ARGON2} of "correct horse battery", made elsewhere, as from a roster.
		if err := set(daemon, person("bob"), "userPassword", slapd.Hash(s.password())); err != nil {
			t.Errorf("cannot set a hash: %v", err)
		}
		if err := set(daemon, person("bob"), "pwdAccountLockedTime", "000001010000Z"); err != nil {
			t.Errorf("cannot disable: %v", err)
		}
		if _, err := m.as(person("bob"), s.password().Value()); !goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials) {
			t.Errorf("disabled, and yet: %v", err)
		}
	})
}

// TestRestore: a backup holds everything, and comes back on all machines; secrets
// that were made anew since are the ones that count.
func TestRestore(t *testing.T) {
	s := newSite(t, 2)
	s.machines[0].on()
	s.machines[1].on()
	s.ready(s.machines...)
	a := s.writer()
	b := s.machines[1-a.n]
	daemon := a.service(slapd.Daemon)
	names := []string{"ada", "Zoë", "имя", "o'neil, jr"}
	for n, name := range names {
		if err := addPerson(daemon, goldap.EscapeDN(name), 10001+n, "a password of some length"); err != nil {
			t.Fatal(err)
		}
		if err := set(daemon, person(goldap.EscapeDN(name)), "description", " "+name+" \U0001F600"+strings.Repeat("long ", 300)); err != nil {
			t.Fatal(err)
		}
	}
	whole := s.equal(20*time.Second, a, b)

	account := t.TempDir()
	for _, name := range []string{"password", "ca.crt"} {
		writeFile(t, account, name, s.store.secrets["directory-replicator"][name])
	}
	day := time.Date(2026, 7, 28, 3, 17, 0, 0, time.UTC)
	saver := backup{base: base, address: a.listen, account: account, to: t.TempDir(), keep: 3, now: func() time.Time { day = day.Add(24 * time.Hour); return day }}
	var file string
	for range 5 {
		var entries int
		var err error
		if file, entries, err = saver.make(t.Context()); err != nil || entries != strings.Count("\n"+whole, "\ndn: ") {
			t.Fatalf("%d entries, %v", entries, err)
		}
	}
	if have := files(t, saver.to, "*"); len(have) != 3 || have[2] != file {
		t.Errorf("files %v", have)
	}
	if left := files(t, saver.to, ".*"); len(left) != 0 {
		t.Errorf("left behind %v", left)
	}

	// Much happens, and then it is all to be as it was.
	if err := daemon.Del(goldap.NewDelRequest(person("ada"), nil)); err != nil {
		t.Fatal(err)
	}
	if err := addPerson(daemon, "eve", 10666, ""); err != nil {
		t.Fatal(err)
	}
	s.equal(20*time.Second, a, b)
	content := readFile(t, file)
	cutShort := content[:len(content)/2]
	before, _ := s.store.State(t.Context())
	o := a.replica.Options
	if _, err := restore(t.Context(), o, strings.NewReader(cutShort)); err == nil {
		t.Error("half a backup was taken")
	}
	if _, err := restore(t.Context(), o, strings.NewReader("")); err == nil {
		t.Error("no backup was taken")
	}
	if after, _ := s.store.State(t.Context()); after.ID != before.ID {
		t.Errorf("state %+v", after)
	}
	s.store.mu.Lock()
	delete(s.store.secrets, "directory-portal")
	s.store.mu.Unlock()
	if _, err := restore(t.Context(), o, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	after, _ := s.store.State(t.Context())
	s.eventually("all serve what was restored", 60*time.Second, func() error {
		for _, m := range s.machines {
			if st := m.replica.Status(); st.ID != after.ID || !st.Ready {
				return fmt.Errorf("%s: %+v", m.name, st)
			}
		}
		return nil
	})
	again := s.equal(30*time.Second, a, b)
	if strings.Contains(again, person("eve")) || !strings.Contains(again, "dn: "+person("ada")+"\n") {
		t.Error("it is not as it was")
	}
	// But for the ID, and the portal's account.
	if d := difference(whole, again); strings.Contains(d, "uid=") {
		t.Errorf("differs: %s", d)
	}
	s.writer()
	s.eventually("the portal has its new password", 30*time.Second, func() error {
		_, err := a.as(slapd.DN(slapd.Portal, base), string(s.store.secrets["directory-portal"]["password"]))
		return err
	})
	if _, err := b.as(person("ada"), "a password of some length"); err != nil {
		t.Error(err)
	}
	if aside := files(t, a.data, "data-"+before.ID); len(aside) != 1 {
		t.Error("what was there before is gone")
	}
	s.write(func(conn *goldap.Conn) error { return addPerson(conn, "fay", 10007, "") })
	s.equal(20*time.Second, a, b)
}
