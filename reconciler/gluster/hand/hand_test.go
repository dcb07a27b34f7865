package hand

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host/hosttest"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
)

const homesID = "0d9ab1ab-7f4c-4f3c-9d6a-000000000001"

// TestUnitNames has names of systemd-escape --path --suffix=mount.
func TestUnitNames(t *testing.T) {
	for volume, want := range map[string]string{
		"homes":      `var-lib-kingmaker-volumes-homes.mount`,
		"my-vol.x_y": `var-lib-kingmaker-volumes-my\x2dvol.x_y.mount`,
		"ü":          `var-lib-kingmaker-volumes-\xc3\xbc.mount`,
	} {
		if got := unitOf(volume); got != want {
			t.Errorf("%s: %s, want %s", volume, got, want)
		}
		if got, ok := volumeOf(want); !ok || got != volume {
			t.Errorf("%s: %q %v", want, got, ok)
		}
	}
	for _, other := range []string{"var-lib-kingmaker-volumes.mount", "var-lib-kingmaker-volumes-a-b.mount", "var-lib-kingmaker-volumes-.mount",
		"srv-brick.mount", "var-lib-kingmaker-volumes-homes.mount.d", `var-lib-kingmaker-volumes-a\x2fb.mount`} {
		if got, ok := volumeOf(other); ok {
			t.Errorf("%s is taken for volume %q", other, got)
		}
	}
	if got := escape("/.a/.b"); got != `\x2ea-.b` {
		t.Error(got)
	}
}

func TestUnitText(t *testing.T) {
	v := volume{Spec: gluster.Placed{Bricks: []gluster.PlacedBrick{{Machine: "pc-01", Address: "10.0.0.1"}, {Machine: "pc-02", Address: "10.0.0.2"}, {Machine: "pc-03", Address: "10.0.0.3"}}}}
	v.Metadata.Name, v.Status.ID = "my-vol", homesID
	want := `# Written by noded, and again whenever it should be otherwise. noded starts it.
[Unit]
Description=Volume my-vol of the site

[Mount]
What=10.0.0.2:/my-vol
Where=/var/lib/kingmaker/volumes/my-vol
Type=glusterfs
Options=backup-volfile-servers=10.0.0.1:10.0.0.3,log-level=WARNING,attribute-timeout=1,entry-timeout=1
TimeoutSec=30
`
	if got := unitText(wishes([]volume{v}, "pc-02")[0]); got != want {
		t.Errorf("got\n%s", got)
	}
	v.Spec.Access = gluster.Homes
	if got := unitText(wishes([]volume{v}, "pc-02")[0]); !strings.Contains(got, "attribute-timeout=5,entry-timeout=5,negative-timeout=5\n") {
		t.Errorf("homes: got\n%s", got)
	}
	if got := wishes([]volume{v}, "pc-09")[0].Servers; !slices.Equal(got, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}) {
		t.Error(got)
	}
	v.Status.Phase = gluster.Removed
	if got := wishes([]volume{v}, "pc-02"); got != nil {
		t.Error(got)
	}
}

func TestNext(t *testing.T) {
	right := &mounted{Type: fuseType, Source: "10.0.0.1:/homes"}
	for _, c := range []struct {
		m      *mounted
		asked  error
		served bool
		want   act
	}{
		{nil, nil, false, start},
		{nil, syscall.ENOTCONN, true, start},
		{right, nil, false, prove},
		{right, os.ErrPermission, false, prove},
		{right, &os.PathError{Err: syscall.ENOTCONN}, false, detach},
		{right, &os.PathError{Err: syscall.EIO}, false, detach},
		{right, &os.PathError{Err: syscall.ENOTCONN}, true, wait},
		{&mounted{Type: fuseType, Source: "10.0.0.1:/other-homes"}, syscall.ENOTCONN, false, refuse},
		{&mounted{Type: "ext4", Source: "/dev/sdb:/homes"}, nil, false, refuse},
	} {
		if got := next("homes", c.m, c.asked, c.served); got != c.want {
			t.Errorf("%+v %v %v: %s, want %s", c.m, c.asked, c.served, got, c.want)
		}
	}
}

func TestFormer(t *testing.T) {
	vs := []volume{{}, {}, {}, {}}
	vs[0].Metadata.Name = "stays"
	vs[1].Metadata.Name, vs[1].Spec.Delete = "deleted", true
	vs[2].Metadata.Name, vs[2].Status.Phase = "gone", gluster.Removed
	vs[3].Metadata.Name = "elsewhere"
	got := former(vs, []string{"deleted", "gone", "never", "stays"})
	if !slices.Equal(got, []string{"deleted", "gone", "never"}) {
		t.Error(got)
	}
}

func TestParseMounts(t *testing.T) {
	table := parseMounts(`22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 8:16 / /srv/brick rw shared:5 master:3 - xfs /dev/sdb1 rw,attr2
31 22 0:50 / /mnt/with\040space rw - fuse.glusterfs 10.0.0.1:/homes rw
32 22 0:51 / /mnt/with\040space rw - tmpfs tmpfs rw
nonsense
`)
	if len(table) != 4 || at(table, "/srv/brick").Type != "xfs" || at(table, "/mnt/with space").Type != "tmpfs" || at(table, "/mnt") != nil {
		t.Errorf("%+v", table)
	}
}

func TestUnfit(t *testing.T) {
	root := &mounted{Device: "254:0", Type: "ext4"}
	for _, c := range []struct {
		m    mounted
		ro   bool
		want string
	}{
		{mounted{Device: "8:1", Type: "xfs"}, false, ""},
		{mounted{Device: "8:1", Type: "xfs"}, true, "it is read-only"},
		{mounted{Device: "8:1", Type: "ext4"}, false, "its file system is ext4, and a brick wants xfs"},
		{mounted{Device: "254:0", Type: "xfs"}, false, "it is on the file system of the system itself, which a volume could fill"},
	} {
		if got := unfit(&c.m, root, c.ro); got != c.want {
			t.Errorf("%+v: %q", c.m, got)
		}
	}
}

func TestIdentity(t *testing.T) {
	pool := []gluster.PeerStatus{{Machine: "pc-01", UUID: "u1", Address: "10.0.0.1"}, {Machine: "pc-02", UUID: "u2", Address: "10.0.0.2"}, {UUID: "u3", Address: "10.0.0.3"}, {Machine: "pc-04", UUID: "u4"}}
	whole := map[string]string{
		infoFile:                     "UUID=u1\noperating-version=100000\n",
		"/var/lib/glusterd/peers/u2": "uuid=u2\nstate=3\nhostname1=10.0.0.2\n",
		"/var/lib/glusterd/peers/u3": "uuid=u3\nstate=3\nhostname1=10.0.0.3\n",
	}
	newer := maps.Clone(whole)
	newer[infoFile] = "UUID=u1\noperating-version=110000\n"
	for name, c := range map[string]struct {
		traces traces
		pool   []gluster.PeerStatus
		want   map[string]string
	}{
		"never ran":        {traces{}, pool, whole},
		"another one":      {traces{Info: "UUID=x\noperating-version=110000\n"}, pool, newer},
		"broken off":       {traces{Info: "UUID=u1\noperating-version=100000\n"}, pool, whole},
		"has peers":        {traces{Info: "UUID=x\n", Peers: true}, pool, nil},
		"has volumes":      {traces{Info: "UUID=x\n", Volumes: true}, pool, nil},
		"nobody knows it":  {traces{Info: "UUID=x\n"}, pool[1:], nil},
		"nobody else":      {traces{Info: "UUID=x\n"}, pool[:1], nil},
		"no pool is known": {traces{}, nil, nil},
	} {
		if got := identity(c.traces, "pc-01", c.pool); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestLabels(t *testing.T) {
	have := map[string]string{"a": "b", "kingmaker.dev/volume-old": "ready", "kingmaker.dev/volume-homes": "ready", "kingmaker.dev/volume-odd": "x", "kingmaker.dev/node": "1"}
	got := labels(have, []string{"homes", "new", "odd"})
	want := map[string]any{"kingmaker.dev/volume-old": nil, "kingmaker.dev/volume-new": "ready", "kingmaker.dev/volume-odd": "ready"}
	if !reflect.DeepEqual(got, want) {
		t.Error(got)
	}
}

func TestReport(t *testing.T) {
	now := time.Now()
	b := gluster.MachineBrick{Size: 1000, Free: 500, Holds: []gluster.Held{{Volume: "homes"}}}
	r := report{b, now}
	little, much, other := b, b, b
	little.Free, little.Heartbeat, much.Free, other.Unfit = 505, now, 510, "it is read-only"
	for _, c := range []struct {
		brick gluster.MachineBrick
		after time.Duration
		want  bool
	}{{b, 0, false}, {little, 0, false}, {much, 0, true}, {other, 0, true}, {b, heartbeat, true}} {
		if got := r.due(c.brick, now.Add(c.after)); got != c.want {
			t.Errorf("%+v after %s: %v", c.brick, c.after, got)
		}
	}
	if !(report{}).due(gluster.MachineBrick{}, now) {
		t.Error("the first is not reported")
	}
	patch, err := brickPatch([]byte(`{"size":1000,"unfit":"it is read-only","mounts":[{"volume":"x","ready":true}]}`), gluster.MachineBrick{Size: 1000, Free: 7})
	if want := `{"status":{"brick":{"free":7,"mounts":null,"unfit":null}}}`; err != nil || string(patch) != want {
		t.Errorf("%s %v", patch, err)
	}
}

// TestTask has work that hangs: it is not begun twice, and counts when it has ended.
func TestTask(t *testing.T) {
	var tk task[int]
	release, begun := make(chan struct{}), 0
	work := func() int { begun++; <-release; return 7 }
	tk.begin(work)
	if _, ok := tk.wait(t.Context(), time.Now().Add(10*time.Millisecond)); ok {
		t.Fatal("it had not ended")
	}
	tk.begin(work)
	before := time.Now()
	if _, ok := tk.wait(t.Context(), time.Now().Add(time.Minute)); ok || time.Since(before) > 10*time.Second {
		t.Fatal("a second round waited for it")
	}
	close(release)
	for {
		if got, ok := tk.wait(t.Context(), time.Now().Add(time.Minute)); ok {
			if got != 7 || begun != 1 {
				t.Fatal(got, begun)
			}
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// pc is a machine in a folder, with a systemd that mounts by writing mountinfo.
type pc struct {
	*testing.T
	*Hand
	runner *hosttest.Runner
	client *fake.FakeDynamicClient
	table  map[string]string // lines of mountinfo by mount point
	active bool              // glusterd
	busy   bool              // somebody uses the mount
	away   bool              // the API
	live   string            // bricks that glusterd has
}

func newPC(t *testing.T, objects ...runtime.Object) *pc {
	p := &pc{T: t, table: map[string]string{"/": "1 0 254:0 / / rw - ext4 /dev/vda rw"}}
	p.runner = &hosttest.Runner{Answers: map[string]hosttest.Answer{"systemctl": p.systemctl, "umount": p.umount, "gluster": p.gluster,
		"chattr": func(host.Command, []byte) (string, error) { return "", nil }}}
	h := &host.Host{Root: t.TempDir(), Runner: p.runner, Log: slog.New(slog.DiscardHandler)}
	p.client = fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		gluster.Resource(): "VolumeList", gluster.PoolResource(): "PoolList", gluster.MachineResource(): "MachineList", nodes(): "NodeList"}, objects...)
	p.Hand = &Hand{Host: h, Machine: "pc-01", Address: "10.0.0.1", Log: h.Log,
		Connect: func() (dynamic.Interface, error) {
			if p.away {
				return nil, errors.New("nobody there")
			}
			return p.client, nil
		},
		statfs: func(path string, into *unix.Statfs_t) error {
			*into = unix.Statfs_t{Type: unix.FUSE_SUPER_MAGIC, Blocks: 1000, Bavail: 500, Bsize: 4096}
			return nil
		}}
	p.tell()
	return p
}

func (p *pc) tell() {
	p.put("/proc/1/mountinfo", strings.Join(slices.Collect(maps.Values(p.table)), "\n")+"\n")
}

func (p *pc) put(name, content string) {
	p.Helper()
	if err := p.Host.Write(name, []byte(content), 0o644); err != nil {
		p.Fatal(err)
	}
}

func (p *pc) systemctl(c host.Command, _ []byte) (string, error) {
	verb, unit := c.Args[0], c.Args[len(c.Args)-1]
	if unit == glusterdUnit {
		switch verb {
		case "is-active":
			if !p.active {
				return "inactive\n", hosttest.Refuse(c, 3, "")
			}
			return "active\n", nil
		case "enable":
			p.active = true
		case "stop":
			p.active = false
		}
		return "", nil
	}
	v, ok := volumeOf(unit)
	switch point := gluster.MountPath(v); {
	case !ok:
	case verb == "start":
		text, err := p.Host.Read(unitFile(v))
		if err != nil {
			return "", hosttest.Refuse(c, 5, "no such unit")
		}
		_, what, _ := strings.Cut(string(text), "What=")
		what, _, _ = strings.Cut(what, "\n")
		p.table[point] = fmt.Sprintf("9 1 0:60 / %s rw - fuse.glusterfs %s rw", point, what)
	case verb == "stop" && p.busy:
		return "", hosttest.Refuse(c, 1, "target is busy")
	case verb == "stop":
		delete(p.table, point)
	}
	p.tell()
	return "", nil
}

func (p *pc) umount(c host.Command, _ []byte) (string, error) {
	delete(p.table, c.Args[len(c.Args)-1])
	p.tell()
	return "", nil
}

func (p *pc) gluster(c host.Command, _ []byte) (string, error) {
	switch strings.Join(c.Args[2:], " ") {
	case "pool list":
		return `<cliOutput><opRet>0</opRet><peerStatus><peer><uuid>u1</uuid><hostname>localhost</hostname><connected>1</connected><state>3</state></peer></peerStatus></cliOutput>`, nil
	case "volume info":
		return `<cliOutput><opRet>0</opRet><volInfo><volumes>` + p.live + `</volumes></volInfo></cliOutput>`, nil
	}
	return "", hosttest.Refuse(c, 1, "no such command")
}

// object of a kind, as the API has it.
func object(kind, version, name string, rest map[string]any) *unstructured.Unstructured {
	o := map[string]any{"apiVersion": version, "kind": kind, "metadata": map[string]any{"name": name}}
	maps.Copy(o, rest)
	return &unstructured.Unstructured{Object: o}
}

func site1(status map[string]any) []runtime.Object {
	const v = "kingmaker.dev/v1alpha1"
	return []runtime.Object{
		object("Volume", v, "homes", map[string]any{"status": status, "spec": map[string]any{
			"bricks": []any{map[string]any{"machine": "pc-01", "address": "10.0.0.1"}}, "homes": []any{map[string]any{"name": "ada", "uid": int64(1000), "gid": int64(1000)}}}}),
		object("Machine", v, "pc-01", map[string]any{"status": map[string]any{"phase": "Ready"}}),
		object("Node", "v1", "pc-01", nil),
	}
}

func (p *pc) get(resource schema.GroupVersionResource, name string) map[string]any {
	p.Helper()
	o, err := p.client.Resource(resource).Get(p.Context(), name, metav1.GetOptions{})
	if err != nil {
		p.Fatal(err)
	}
	return o.Object
}

// mount is what the site was told of the volume homes.
func (p *pc) mount() string {
	p.Helper()
	list, _, _ := unstructured.NestedSlice(p.get(gluster.MachineResource(), "pc-01"), "status", "brick", "mounts")
	if len(list) == 0 {
		return "none"
	}
	m := list[0].(map[string]any)
	if m["ready"] == true {
		return "ready"
	}
	return m["message"].(string)
}

func (p *pc) labelled() bool {
	p.Helper()
	value, _, _ := unstructured.NestedString(p.get(nodes(), "pc-01"), "metadata", "labels", gluster.ReadyLabel("homes"))
	return value == gluster.ReadyValue
}

// expect is a round, and what the site knows then.
func (p *pc) expect(mount string) {
	p.Helper()
	if err := p.round(p.Context()); err != nil && !p.away && !p.busy {
		p.Fatal(err)
	}
	if got := p.mount(); !strings.Contains(got, mount) || p.labelled() != (mount == "ready") {
		p.Fatalf("the site knows of %q, label %v; want %q", got, p.labelled(), mount)
	}
}

// TestMount is the life of a volume on a machine without a brick.
func TestMount(t *testing.T) {
	p := newPC(t, site1(map[string]any{})...)
	p.expect("none")
	volumes := p.client.Resource(gluster.Resource())
	status := func(s map[string]any) {
		o := object("Volume", "kingmaker.dev/v1alpha1", "homes", map[string]any{"spec": p.get(gluster.Resource(), "homes")["spec"], "status": s})
		if _, err := volumes.Update(t.Context(), o, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	status(map[string]any{"id": homesID})
	p.expect("its folders are not made yet")
	if info, err := os.Stat(p.Host.Path(gluster.MountPath("homes"))); err != nil || info.Mode().Perm() != 0 {
		t.Errorf("the mount point: %v %v", info, err)
	}
	if !slices.Contains(p.runner.Lines(), "chattr +i "+p.Host.Path(gluster.MountPath("homes"))) {
		t.Error("the mount point is not immutable")
	}
	os.Chmod(p.Host.Path(gluster.MountPath("homes")), 0o755) // what stands for the volume's root
	p.put(gluster.MountPath("homes")+"/"+gluster.Sentinel, "another\n")
	p.expect("it is another volume")
	p.put(gluster.MountPath("homes")+"/"+gluster.Sentinel, homesID+"\n")
	p.expect("its folders are not made yet")
	os.Mkdir(p.Host.Path(gluster.DataPath("homes")), 0o755)
	p.runner.Forget()
	p.expect("ready")
	p.expect("ready")
	for _, line := range p.runner.Lines() {
		if !strings.HasPrefix(line, "systemctl is-active") {
			t.Error("a mount that works was not left alone:", line)
		}
	}
	text, err := p.Host.Read(heardFile)
	if err != nil || strings.Contains(string(text), `"ada"`) {
		t.Errorf("%s %v", text, err)
	}

	// While the API is away, even after a start of noded, it is mounted again.
	p.away, p.site, p.Hand.client = true, nil, nil
	delete(p.table, gluster.MountPath("homes"))
	p.tell()
	if err := p.round(t.Context()); err == nil {
		t.Error("nobody noticed that the API is away")
	}
	if p.table[gluster.MountPath("homes")] == "" {
		t.Error("it was not mounted while the API is away")
	}
	p.away = false
	p.expect("ready")

	// Something else in its place.
	right := p.table[gluster.MountPath("homes")]
	p.table[gluster.MountPath("homes")] = strings.Replace(right, ":/homes", ":/other", 1)
	p.tell()
	p.expect("something else is mounted there")
	p.table[gluster.MountPath("homes")] = right
	p.tell()
	p.expect("ready")

	// It is deleted: the label goes though somebody uses it, and all of it later.
	if err := volumes.Delete(t.Context(), "homes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.busy = true
	p.expect("none")
	if p.table[gluster.MountPath("homes")] == "" {
		t.Error("it was taken from who uses it at once")
	}
	os.RemoveAll(p.Host.Path(gluster.DataPath("homes")))
	os.Remove(p.Host.Path(gluster.MountPath("homes") + "/" + gluster.Sentinel))
	p.leaving["homes"] = time.Now().Add(-2 * time.Minute)
	p.expect("none")
	if p.table[gluster.MountPath("homes")] != "" || p.Host.Exists(gluster.MountPath("homes")) || p.Host.Exists(unitFile("homes")) {
		t.Error("something of it is left")
	}
}

// TestUnserved is a site without the kind: nothing is done to its machines.
func TestUnserved(t *testing.T) {
	p := newPC(t)
	p.put(unitFile("homes"), "of another day")
	p.client.PrependReactor("list", "volumes", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(schema.GroupResource{}, "")
	})
	if err := p.round(t.Context()); err != nil || len(p.runner.Lines()) > 0 || !p.Host.Exists(unitFile("homes")) {
		t.Error(err, p.runner.Lines())
	}
}

func TestLeave(t *testing.T) {
	p := newPC(t, site1(map[string]any{"id": homesID})...)
	p.expect("its folders are not made yet")
	p.busy = true
	lost := gluster.MountPath("homes") + "/lost"
	os.Chmod(p.Host.Path(gluster.MountPath("homes")), 0o700)
	p.put(lost, "written where nothing was mounted")
	s := Leave(p.Host)
	todo, err := s.Look(t.Context())
	if err != nil || !slices.Equal(todo, []string{"unmount volume homes", "forget which volumes the site has"}) {
		t.Fatal(todo, err)
	}
	if err := s.Do(t.Context()); err != nil || len(p.table) != 1 {
		t.Fatal(err, p.table)
	}
	if !p.Host.Exists(lost) || p.Host.Exists(unitFile("homes")) {
		t.Error("a file was deleted that is on no brick, or the unit stayed")
	}
	p.Host.Remove(lost)
	if err := s.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	if todo, err = s.Look(t.Context()); err != nil || len(todo) > 0 || len(p.table) != 1 {
		t.Error(todo, err, p.table)
	}
}

// TestBrick has a glusterd started, and a former copy put aside when glusterd agrees.
func TestBrick(t *testing.T) {
	objects := site1(map[string]any{"aside": []any{"pc-01"}})
	p := newPC(t, objects...)
	p.table[gluster.BrickDir] = "3 1 8:16 / /srv/brick rw - xfs /dev/sdb1 rw"
	p.tell()
	folder := p.Host.Path(gluster.BrickPath("homes"))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(folder, volumeID, []byte("0123456789abcdef"), 0); err != nil {
		t.Skip("no trusted attributes here:", err)
	}
	p.put(volFile, "volume management\n    option ping-timeout 0\n    option event-threads 1\nend-volume\n")
	p.live = `<volume><name>homes</name><id>x</id><bricks><brick><name>10.0.0.1:/srv/brick/homes</name><hostUuid>u9</hostUuid></brick></bricks></volume>`
	if err := p.round(t.Context()); err == nil || !strings.Contains(err.Error(), "glusterd still has it as a brick") {
		t.Error(err)
	}
	brick := p.get(gluster.MachineResource(), "pc-01")["status"].(map[string]any)["brick"].(map[string]any)
	delete(brick, "heartbeat")
	want := map[string]any{"fileSystem": "xfs", "size": int64(4096000), "free": int64(2048000), "glusterd": "u1",
		"holds": []any{map[string]any{"volume": "homes", "id": "30313233-3435-3637-3839-616263646566"}}}
	if !reflect.DeepEqual(brick, want) || !p.active {
		t.Errorf("%v", brick)
	}
	if text, err := p.Host.Read(volFile); err != nil || !strings.Contains(string(text), "    option ping-timeout 20\n") {
		t.Errorf("glusterd looks after nobody: %s %v", text, err)
	}
	if !p.Host.Exists(gluster.BrickPath("homes")) {
		t.Fatal("a brick was put aside")
	}
	p.live = ""
	if err := p.round(t.Context()); err != nil {
		t.Error(err)
	}
	aside, err := filepath.Glob(p.Host.Path(gluster.AsideDir) + "/homes-*Z")
	if err != nil || len(aside) != 1 || p.Host.Exists(gluster.BrickPath("homes")) {
		t.Error(aside, err)
	}
	if err := p.round(t.Context()); err != nil {
		t.Error(err)
	}
}

// systemd is asked for glusterd when the process that answered is not there any more,
// and only then.
func TestGlusterdProcess(t *testing.T) {
	p := newPC(t, site1(nil)...)
	p.table[gluster.BrickDir] = "3 1 8:16 / /srv/brick rw - xfs /dev/sdb1 rw"
	p.tell()
	p.put(volFile, "")
	p.put(gluster.BrickDir+"/.keep", "")
	runs := func(pid, name, state, since string) {
		p.put(pidFile, pid+"\n")
		p.put("/proc/"+pid+"/stat", pid+" ("+name+") "+state+strings.Repeat(" 0", 18)+" "+since+" 0 0\n")
	}
	runs("7", "glusterd", "S", "100")
	for i, c := range []struct {
		name string
		do   func()
		asks bool
	}{
		{"nothing is known yet", func() {}, true},
		{"it answered", func() {}, false},
		{"it still runs", func() { runs("7", "glusterd", "R", "100") }, false},
		{"it has ended, and nobody took it away", func() { runs("7", "glusterd", "Z", "100") }, true},
		{"another has its number", func() { runs("7", "sshd", "S", "300") }, true},
		{"it was started again", func() { runs("8", "glusterd", "S", "400") }, true},
		{"its file is gone", func() { os.Remove(p.Host.Path(pidFile)) }, true},
	} {
		c.do()
		p.runner.Forget()
		if err := p.round(t.Context()); err != nil {
			t.Fatal(c.name, err)
		}
		if asks := slices.Contains(p.runner.Lines(), "systemctl is-active "+glusterdUnit); asks != c.asks {
			t.Errorf("%d: %s: systemctl is asked: %v, want %v", i, c.name, asks, c.asks)
		}
	}
}

// volumeRoot is a Roots that takes a folder for a mounted volume.
func volumeRoot(t *testing.T) (*Roots, string) {
	t.Helper()
	h := &host.Host{Root: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	h.Write("/proc/1/mountinfo", []byte("9 1 0:60 / "+gluster.MountPath("homes")+" rw - fuse.glusterfs 10.0.0.1:/homes rw\n"), 0o644)
	root := h.Path(gluster.MountPath("homes"))
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return &Roots{Host: h, statfs: func(_ string, into *unix.Statfs_t) error { into.Type = unix.FUSE_SUPER_MAGIC; return nil }}, root
}

func TestSetupTops(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: folders get owners")
	}
	for name, c := range map[string]struct {
		placed gluster.Placed
		gid    int
		mode   fs.FileMode
	}{
		"homes":        {gluster.Placed{Access: gluster.Homes}, 0, 0o755},
		"shared":       {gluster.Placed{Access: gluster.Shared}, 100, fs.ModeSetgid | 0o775},
		"of all users": {gluster.Placed{Access: gluster.Shared, GID: 100}, 100, fs.ModeSetgid | 0o775},
		"of a group":   {gluster.Placed{Access: gluster.Shared, GID: 5001}, 5001, fs.ModeSetgid | 0o770},
		"private":      {gluster.Placed{}, 100, fs.ModeSetgid | 0o770},
	} {
		r, root := volumeRoot(t)
		for range 2 {
			if _, err := r.Setup(t.Context(), "homes", homesID, c.placed); err != nil {
				t.Fatal(name, err)
			}
			info, err := os.Stat(filepath.Join(root, "data"))
			if err != nil {
				t.Fatal(err)
			}
			if uid, gid := owner(info); uid != 0 || gid != c.gid || info.Mode() != c.mode|fs.ModeDir {
				t.Errorf("%s: %d:%d %s", name, uid, gid, info.Mode())
			}
			os.Lchown(filepath.Join(root, "data"), 7, 7) // and the second time it is put right
		}
		if text, err := os.ReadFile(filepath.Join(root, gluster.Sentinel)); err != nil || string(text) != homesID+"\n" {
			t.Errorf("%s: %q %v", name, text, err)
		}
		if _, err := r.Setup(t.Context(), "homes", "another", c.placed); err == nil || !strings.Contains(err.Error(), "sentinel of another volume") {
			t.Error(err)
		}
	}
}

func TestSetupRefuses(t *testing.T) {
	for name, spoil := range map[string]func(r *Roots){
		"nothing is mounted": func(r *Roots) { r.Host.Write("/proc/1/mountinfo", nil, 0o644) },
		"no FUSE":            func(r *Roots) { r.statfs = unix.Statfs },
		"another volume": func(r *Roots) {
			r.Host.Write("/proc/1/mountinfo", []byte("9 1 0:60 / "+gluster.MountPath("homes")+" rw - fuse.glusterfs 10.0.0.1:/x/homes rw\n"), 0o644)
		},
	} {
		r, root := volumeRoot(t)
		spoil(r)
		if _, err := r.Setup(t.Context(), "homes", homesID, gluster.Placed{}); err == nil {
			t.Error(name, "was no hindrance")
		}
		if entries, _ := os.ReadDir(root); len(entries) > 0 {
			t.Error(name, entries)
		}
	}
}

func TestHomes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: homes get owners")
	}
	r, root := volumeRoot(t)
	data := filepath.Join(root, "data")
	placed := gluster.Placed{Access: gluster.Homes, Homes: []gluster.Home{{Name: "ada", UID: 1001, GID: 100}, {Name: "../eve", UID: 0}, {Name: "bob", UID: 1002, GID: 100}, {Name: "old", UID: 1003, GID: 100}}}
	put := func(name string, mode fs.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(name, []byte("of the skeleton\n"), 0o600), os.Chmod(name, mode)); err != nil {
			t.Fatal(err)
		}
	}
	skeleton := r.Host.Path("/etc/skel")
	put(skeleton+"/.bashrc", 0o644)
	put(skeleton+"/bin/tool", fs.ModeSetuid|0o755)
	put(r.Host.Path("/etc/shadow"), 0o600)
	if err := errors.Join(os.Symlink("/etc/shadow", skeleton+"/.link"), os.Symlink("bin", skeleton+"/Programs"), unix.Mkfifo(skeleton+"/pipe", 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Setup(t.Context(), "homes", homesID, gluster.Placed{Access: gluster.Homes}); err != nil {
		t.Fatal(err)
	}
	put(data+"/old/thesis", 0o600)
	os.Lchown(data+"/old", 4711, 100)
	put(data+"/.new-bob/half", 0o600)

	homes, err := r.Setup(t.Context(), "homes", homesID, placed)
	if homes != 3 || err == nil || !strings.Contains(err.Error(), "home old belongs to uid 4711, and the roster says 1003; it is left as it is") || !strings.Contains(err.Error(), `"../eve" can be no name of a home`) {
		t.Errorf("%d homes, %v", homes, err)
	}
	var got []string
	filepath.WalkDir(data, func(name string, _ fs.DirEntry, err error) error {
		info, e := os.Lstat(name)
		if err != nil || e != nil {
			t.Fatal(err, e)
		}
		uid, gid := owner(info)
		target, _ := os.Readlink(name)
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %d:%d %s", strings.TrimPrefix(name, data), info.Mode(), uid, gid, target)))
		return nil
	})
	var want []string
	want = append(want, "drwxr-xr-x 0:0")
	for i, user := range []string{"ada", "bob"} {
		uid := 1001 + i
		for _, line := range []string{" drwx------ %d:100", "/.bashrc -rw-r--r-- %d:100", "/.link Lrwxrwxrwx %d:100 /etc/shadow", "/Programs Lrwxrwxrwx %d:100 bin", "/bin drwxr-xr-x %d:100", "/bin/tool -rwxr-xr-x %d:100"} {
			want = append(want, "/"+user+fmt.Sprintf(line, uid))
		}
	}
	want = append(want, "/old drwxr-xr-x 4711:100", "/old/thesis -rw------- 0:0")
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	// The volume's own skeleton goes before the machine's; what is there stays.
	put(data+"/.skel/welcome", 0o644)
	placed.Homes = []gluster.Home{{Name: "ada", UID: 1001, GID: 100}, {Name: "cyd", UID: 1004, GID: 100}}
	homes, err = r.Setup(t.Context(), "homes", homesID, placed)
	if _, e := os.Stat(data + "/cyd/welcome"); homes != 2 || err != nil || e != nil {
		t.Error(homes, err, e)
	}
	if _, e := os.Stat(data + "/cyd/.bashrc"); e == nil {
		t.Error("a home has both skeletons")
	}
}

// TestSetupHangs has a mount that does not answer.
func TestSetupHangs(t *testing.T) {
	r, _ := volumeRoot(t)
	release := make(chan struct{})
	r.statfs = func(string, *unix.Statfs_t) error { <-release; return syscall.ENOTCONN }
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.Setup(ctx, "homes", homesID, gluster.Placed{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := r.Setup(t.Context(), "homes", homesID, gluster.Placed{}); err == nil || !strings.Contains(err.Error(), "does not answer since") {
		t.Error(err)
	}
	close(release)
}
