package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/kingmaker-io/kingmaker/cmd/lab/logtest"
)

// The tests' own program is the desktop too, so that it can be run as somebody who
// has no rights.
func TestMain(m *testing.M) {
	switch os.Getenv("KINGMAKER_TEST_DESKTOP") {
	case "":
		os.Exit(m.Run())
	case "pipe":
		pipeMain()
	default:
		main()
	}
}

// A real is a desktop that runs.
type real struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	url    string
	client *http.Client
	said   logtest.Buffer
	ended  chan error
}

// startReal runs a desktop as nobody, if this is root, and renews its lease.
func startReal(t *testing.T) *real {
	t.Helper()
	r := startWithout(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			r.renew(time.Minute)
			wait(ctx, 10*time.Second)
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	return r
}

// renew lets it run for a while from now on.
func (r *real) renew(d time.Duration) {
	if code, text := r.ask("POST", "/lease", "Bearer "+token, fmt.Sprintf(`{"until": %d}`, (clock()+d).Milliseconds())); code != http.StatusNoContent {
		r.t.Errorf("renew the lease: %d %s", code, text)
	}
}

// startWithout does not renew it. The session is XFCE, or another.
func startWithout(t *testing.T, session ...string) *real {
	t.Helper()
	if testing.Short() {
		t.Skip("runs XFCE")
	}
	for _, program := range []string{"Xvnc", "xfce4-session", "xfwm4", "xfdesktop", "xfce4-panel", "xfsettingsd", "dbus-daemon", "notify-send"} {
		if _, err := exec.LookPath(program); err != nil {
			const hint = "make test installs it, or .ci/packages with the packages that the Makefile names"
			if os.Getenv("CI") != "" {
				t.Fatalf("%v: %s", err, hint)
			}
			t.Skipf("%v: %s", err, hint)
		}
	}
	// Not t.TempDir: nobody else may enter that, and its path is too long for sockets.
	dir, err := os.MkdirTemp("/tmp", "desktop-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &real{t: t, dir: dir, ended: make(chan error, 1)}
	for _, name := range []string{"", "home", "run", "session", "cache"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Chmod(filepath.Join(dir, name), 0o755)
	}
	// What the image says of sessions, where nobody may read it.
	if err := os.CopyFS(filepath.Join(dir, "xdg"), os.DirFS("../lab/bundle/desktop/etc/xdg")); err != nil {
		t.Fatal(err)
	}
	roots := secrets(t, filepath.Join(dir, "session"), "desktop")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "desktop")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	r.cmd = exec.Command(program, "run", "--listen", "127.0.0.1:0", "--session", filepath.Join(dir, "session"), "--runtime", filepath.Join(dir, "run"), "--")
	r.cmd.Args = append(r.cmd.Args, session...)
	r.cmd.Env = []string{"KINGMAKER_TEST_DESKTOP=run", "PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(dir, "home"),
		"USER=nobody", "SCREEN=1024x768", "XDG_CACHE_HOME=" + filepath.Join(dir, "cache"), "XDG_CONFIG_DIRS=" + filepath.Join(dir, "xdg") + ":/etc/xdg", "GORACE=atexit_sleep_ms=0"}
	r.cmd.Stdout, r.cmd.Stderr = &r.said, &r.said
	if os.Getuid() == 0 {
		const nobody = 65534
		r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		for _, name := range []string{"home", "run", "cache"} {
			if err := os.Chown(filepath.Join(dir, name), nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.ended <- r.cmd.Wait() }()
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			r.stop()
		}
		if t.Failed() {
			t.Logf("the desktop said:\n%s", r.said.String())
		}
		if strings.Contains(r.said.String(), "canary") {
			t.Error("the log tells the token")
		}
	})
	r.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "desktop"}}}
	t.Cleanup(r.client.CloseIdleConnections)
	eventually(t, "it listens", func() bool {
		_, after, ok := strings.Cut(r.said.String(), `"msg":"listening","address":"`)
		address, _, whole := strings.Cut(after, `"`)
		r.url = "https://" + address
		return ok && whole
	})
	return r
}

// stop ends it as Kubernetes does.
func (r *real) stop() {
	r.t.Helper()
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Errorf("it ended with %v", err)
		}
	case <-time.After(60 * time.Second):
		_ = r.cmd.Process.Kill()
		r.t.Error("it does not end")
	}
}

func (r *real) ask(method, path, authorization, body string) (int, string) {
	r.t.Helper()
	request, _ := http.NewRequest(method, r.url+path, strings.NewReader(body))
	request.Header.Set("Authorization", authorization)
	answer, err := r.client.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func (r *real) status() (s Status) {
	r.t.Helper()
	code, text := r.ask("GET", "/status", "Bearer "+token, "")
	if err := json.Unmarshal([]byte(text), &s); err != nil || code != http.StatusOK {
		r.t.Fatalf("%d %s %v", code, text, err)
	}
	return s
}

// painted waits until it is, and says how long that took.
func (r *real) painted() time.Duration {
	r.t.Helper()
	begin := time.Now()
	for {
		if code, _ := r.ask("GET", "/readyz", "", ""); code == http.StatusOK {
			return time.Since(begin)
		}
		if time.Since(begin) > 3*time.Minute {
			r.t.Fatalf("it is not painted: %+v", r.status())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// soon is how long a desktop may take until it is painted: in CI it must be 30 s.
// The computer of whoever develops may be at work on ten other things.
func soon(took time.Duration) bool { return took < 30*time.Second || os.Getenv("CI") == "" }

// processes are those of the desktop with a name.
func (r *real) processes(name string) (ids []int) {
	for _, p := range descendants(r.cmd.Process.Pid, 0) {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.id)); strings.TrimSpace(string(comm)) == name {
			ids = append(ids, p.id)
		}
	}
	return ids
}

// TestDesktop runs the real thing.
func TestDesktop(t *testing.T) {
	r := startReal(t)
	took := r.painted()
	t.Logf("painted after %s", took.Round(10*time.Millisecond))
	if !soon(took) {
		t.Errorf("it took %s", took)
	}

	t.Run("nobody comes in without the token", func(t *testing.T) {
		for _, authorization := range []string{"", "Bearer x"} {
			if code, _ := r.ask("GET", "/vnc", authorization, ""); code != http.StatusUnauthorized {
				t.Errorf("with %q: %d", authorization, code)
			}
		}
	})
	t.Run("the X server listens to nothing on the network", func(t *testing.T) {
		servers := slices.Concat(r.processes("Xvnc"), r.processes("Xtigervnc"))
		if len(servers) != 1 {
			t.Fatalf("%d X servers", len(servers))
		}
		if sockets := listening(t, servers[0]); len(sockets) > 0 {
			t.Errorf("it listens: %v", sockets)
		}
		if sockets := listening(t, r.cmd.Process.Pid); len(sockets) != 1 {
			t.Errorf("the desktop listens on %v, which is not its one port", sockets)
		}
		info, err := os.Stat(filepath.Join(r.dir, "run", "session", "rfb"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("its socket: %v %v", info.Mode(), err)
		}
	})
	t.Run("the screen", func(t *testing.T) {
		v := r.look(t)
		defer v.Close()
		frame := v.frame(t)
		keep(t, "painted", frame)
		if n := colours(frame); n < 20 {
			t.Errorf("%d colours: there is nothing on it", n)
		}
		if s := r.status(); s.Clients != 1 {
			t.Errorf("status %+v", s)
		}
		// Each input is alone with updates for some seconds, before and after.
		for about, input := range map[string][]byte{
			"a key":       {4, 1, 0, 0, 0, 0, 0xff, 0xe1, 4, 0, 0, 0, 0, 0, 0xff, 0xe1}, // Shift
			"the pointer": {5, 0, 0, 100, 0, 100},
		} {
			eventually(t, "nobody does anything", func() bool { v.frame(t); return r.status().IdleSeconds >= 4 })
			begin := time.Now()
			v.send(t, input...)
			since := func() int { return int(time.Since(begin).Seconds()) }
			eventually(t, about+" is input", func() bool { return r.status().IdleSeconds <= min(since(), 3) })
			for since() < 3 {
				v.frame(t)
				time.Sleep(100 * time.Millisecond)
			}
			if want, s := since(), r.status(); s.IdleSeconds < want {
				t.Errorf("%s was %d s ago, and updates are taken for input: %+v", about, want, s)
			}
		}
	})
	t.Run("the screen takes the size of the window", func(t *testing.T) {
		v := r.look(t)
		defer v.Close()
		// As noVNC does, first to say that it knows of sizes (ExtendedDesktopSize). One
		// who does not makes TigerVNC 1.12 end.
		v.send(t, 2, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xfe, 0xcc)
		v.send(t, 251, 0, 3, 0x84, 2, 0x58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0x84, 2, 0x58, 0, 0, 0, 0) // 900x600
		eventually(t, "it has it", func() bool {
			after := r.look(t)
			defer after.Close()
			return after.image.Rect.Max == image.Pt(900, 600)
		})
	})
	t.Run("a warning is shown", func(t *testing.T) {
		if code, text := r.ask("POST", "/warn", "Bearer "+token, `{"text": "--help <b>This desktop</b> stops in a minute & comes back"}`); code != http.StatusNoContent {
			t.Errorf("%d %s", code, text)
		}
		v := r.look(t)
		defer v.Close()
		time.Sleep(500 * time.Millisecond)
		keep(t, "warned", v.frame(t))
	})
	t.Run("a session that ends begins anew", func(t *testing.T) {
		before := r.processes("xfce4-session")
		if len(before) != 1 {
			t.Fatalf("sessions %v", before)
		}
		v := r.look(t)
		defer v.Close()
		_ = syscall.Kill(before[0], syscall.SIGTERM)
		eventually(t, "it is not ready", func() bool { return !r.status().Ready })
		took := r.painted()
		t.Logf("painted again after %s", took.Round(10*time.Millisecond))
		if after := r.processes("xfce4-session"); len(after) != 1 || after[0] == before[0] || !soon(took) {
			t.Errorf("sessions %v, which were %v; after %s", after, before, took)
		}
		if managers := r.processes("xfwm4"); len(managers) != 1 {
			t.Errorf("window managers %v", managers)
		}
		eventually(t, "its settings are there", func() bool { return len(r.processes("xfsettingsd")) == 1 })
		if n := colours(v.frame(t)); n < 20 { // of a client who stayed
			t.Errorf("%d colours", n)
		}
	})
	t.Run("a program that people see and that fails begins anew", func(t *testing.T) {
		session := r.processes("xfce4-session")
		for _, name := range []string{"xfwm4", "xfdesktop", "xfce4-panel"} {
			before := r.processes(name)
			if len(before) != 1 {
				t.Fatalf("%s: %v", name, before)
			}
			_ = syscall.Kill(before[0], syscall.SIGKILL)
			eventually(t, name+" is there again", func() bool {
				after := r.processes(name)
				return len(after) == 1 && after[0] != before[0]
			})
		}
		if after := r.processes("xfce4-session"); !slices.Equal(after, session) {
			t.Errorf("sessions %v, which were %v", after, session)
		}
	})
	t.Run("a screen that ends begins anew", func(t *testing.T) {
		v := r.look(t)
		defer v.Close()
		for _, id := range slices.Concat(r.processes("Xvnc"), r.processes("Xtigervnc")) {
			_ = syscall.Kill(id, syscall.SIGKILL)
		}
		eventually(t, "it is not ready", func() bool { return !r.status().Ready })
		if _, err := io.Copy(io.Discard, v.Conn); websocket.CloseStatus(err) != websocket.StatusGoingAway && err != nil {
			t.Errorf("the client hears %v", err)
		}
		t.Logf("painted again after %s", r.painted().Round(10*time.Millisecond))
	})
	t.Run("nothing is left", func(t *testing.T) {
		all := descendants(r.cmd.Process.Pid, 0)
		r.stop()
		for _, p := range all {
			if alive(p.id) {
				t.Errorf("process %d is", p.id)
			}
		}
	})
}

// listening are the TCP sockets of a process on which it listens.
func listening(t *testing.T, id int) (found []string) {
	t.Helper()
	own := map[string]bool{}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", id))
	if err != nil || len(files) == 0 {
		t.Fatalf("files of process %d: %v", id, err)
	}
	for _, file := range files {
		to, _ := os.Readlink(file)
		if inode, ok := strings.CutPrefix(to, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			const local, state, listens, inode = 1, 3, "0A", 9
			if fields := strings.Fields(line); len(fields) > inode && fields[state] == listens && own[fields[inode]] {
				found = append(found, fields[local])
			}
		}
	}
	return found
}

// A viewer is a VNC client, as plain as can be.
type viewer struct {
	net.Conn
	image *image.RGBA
}

// look connects a viewer.
func (r *real) look(t *testing.T) *viewer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	ws, _, err := websocket.Dial(ctx, r.url+"/vnc", &websocket.DialOptions{HTTPClient: r.client,
		HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}, Subprotocols: []string{"binary"}})
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(-1)
	v := &viewer{Conn: websocket.NetConn(ctx, ws, websocket.MessageBinary)}
	if hello := v.read(t, 12); string(hello) != "RFB 003.008\n" {
		t.Fatalf("it says %q", hello)
	}
	v.send(t, []byte("RFB 003.008\n")...)
	if kinds := v.read(t, int(v.read(t, 1)[0])); string(kinds) != "\x01" {
		t.Fatalf("security types %v", kinds)
	}
	v.send(t, 1)
	if result := v.read(t, 4); !bytes.Equal(result, make([]byte, 4)) {
		t.Fatalf("result %v", result)
	}
	v.send(t, 0) // not shared, which is not to matter
	init := v.read(t, 24)
	v.read(t, int(binary.BigEndian.Uint32(init[20:])))
	v.image = image.NewRGBA(image.Rect(0, 0, int(binary.BigEndian.Uint16(init)), int(binary.BigEndian.Uint16(init[2:]))))
	v.send(t, 0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0) // four bytes each: blue, green, red
	v.send(t, 2, 0, 0, 1, 0, 0, 0, 0)                                              // raw
	return v
}

func (v *viewer) send(t *testing.T, b ...byte) {
	t.Helper()
	if _, err := v.Write(b); err != nil {
		t.Fatal(err)
	}
}

func (v *viewer) read(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(v, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// frame is the whole screen.
func (v *viewer) frame(t *testing.T) *image.RGBA {
	t.Helper()
	size := v.image.Rect.Size()
	v.send(t, 3, 0, 0, 0, 0, 0, byte(size.X>>8), byte(size.X), byte(size.Y>>8), byte(size.Y))
	for {
		switch kind := v.read(t, 1)[0]; kind {
		case 0:
			for range binary.BigEndian.Uint16(v.read(t, 3)[1:]) {
				head := v.read(t, 12)
				x, y := int(binary.BigEndian.Uint16(head)), int(binary.BigEndian.Uint16(head[2:]))
				w, h := int(binary.BigEndian.Uint16(head[4:])), int(binary.BigEndian.Uint16(head[6:]))
				pixels := v.read(t, 4*w*h)
				for i := range w * h {
					p := pixels[4*i:]
					v.image.SetRGBA(x+i%w, y+i/w, color.RGBA{p[2], p[1], p[0], 255})
				}
			}
			return v.image
		case 2: // bell
		case 3: // cut text
			v.read(t, int(binary.BigEndian.Uint32(v.read(t, 7)[3:])))
		default:
			t.Fatalf("message %d", kind)
		}
	}
}

func colours(i *image.RGBA) int {
	seen := map[string]bool{}
	for at := 0; at < len(i.Pix); at += 4 {
		seen[string(i.Pix[at:at+3])] = true
	}
	return len(seen)
}

// keep writes what was seen where somebody wants to look at it.
func keep(t *testing.T, name string, i image.Image) {
	t.Helper()
	dir := os.Getenv("KINGMAKER_SCREENSHOTS")
	if dir == "" {
		return
	}
	f, err := os.Create(filepath.Join(dir, "desktop-"+name+".png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := png.Encode(f, i); err != nil {
		t.Fatal(err)
	}
}

// TestRefused: what keeps a desktop from beginning is said at once.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_ = secrets(t, dir, "desktop")
	for _, c := range []struct {
		about string
		env   []string
		args  []string
		want  string
	}{
		{"no home", []string{"USER=anna"}, nil, "HOME and USER"},
		{"no volume", []string{"USER=anna", "HOME=" + dir + "/none"}, nil, "is its volume mounted?"},
		{"no secret", []string{"USER=anna", "HOME=" + dir}, []string{"--session", dir + "/none", "--runtime", dir}, "mount its Secret at"},
		{"no place", []string{"USER=anna", "HOME=" + dir}, []string{"--session", dir, "--runtime", "/proc/none"}, "mount an emptyDir at"},
	} {
		cmd := exec.Command(self, append([]string{"run", "--listen", "127.0.0.1:0"}, c.args...)...)
		cmd.Env = append([]string{"KINGMAKER_TEST_DESKTOP=run", "PATH=" + os.Getenv("PATH")}, c.env...)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v %s", c.about, err, out)
		}
	}
}
