package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

// BenchmarkProxy carries the same bytes through the desktop's pipe and through
// Debian's websockify, both with TLS, to the same fake screen, and reports one beside
// the other. It is no test: the figures are those of this computer and of this
// minute.
//
//	.ci/packages websockify; go test -run '^$' -bench Proxy -benchtime 5x ./cmd/desktop
func BenchmarkProxy(b *testing.B) {
	if _, err := exec.LookPath("websockify"); err != nil {
		b.Skipf("%v: .ci/packages websockify", err)
	}
	dir, err := os.MkdirTemp("/tmp", "pipe-") // sockets have short paths
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	roots := secrets(b, dir, "desktop")
	if err := os.Mkdir(filepath.Join(dir, "session"), 0o700); err != nil {
		b.Fatal(err)
	}
	screen := filepath.Join(dir, "session", "rfb")
	fakeScreen(b, screen)
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	free := func() string {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer listener.Close()
		return listener.Addr().String()
	}
	ours, theirs := &proxy{b: b, address: free(), path: "/vnc"}, &proxy{b: b, address: free(), path: "/websockify"}
	for _, p := range []*proxy{ours, theirs} {
		p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "desktop"}}}
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "KINGMAKER_TEST_DESKTOP=pipe", "LISTEN="+ours.address, "HOME="+dir)
	ours.start(cmd)
	theirs.start(exec.Command("websockify", "--ssl-only", "--cert="+filepath.Join(dir, "tls.crt"), "--key="+filepath.Join(dir, "tls.key"),
		"--unix-target="+screen, theirs.address))

	const megabytes, sessions, each, rounds = 400, 50, 20, 2000
	direct := median(roundTrips(b, func() io.ReadWriteCloser {
		nc, err := net.Dial("unix", screen)
		if err != nil {
			b.Fatal(err)
		}
		return nc
	}, rounds))
	for _, p := range []*proxy{ours, theirs} {
		p.memory = p.idle(sessions) // first: a heap that has grown hides what is new
	}
	for b.Loop() {
		for _, p := range []*proxy{ours, theirs} {
			p.flow(1, 20, bulk) // warm
			p.one.add(p.flow(1, megabytes, bulk))
			p.many.add(p.flow(sessions, each, bulk))
			p.small.add(p.flow(sessions, each/2, inUpdates))
			p.asked.add(p.updates(sessions), 0)
			apart := p.apart()
			p.core.add(p.flow(sessions, each, bulk))
			apart()
			p.trip = append(p.trip, roundTrips(b, func() io.ReadWriteCloser { return p.dial() }, rounds)...)
		}
	}
	b.StopTimer()
	out := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(out, "\n\tdesktop\twebsockify\tratio\twanted\n")
	row := func(what, format string, a, b float64, wanted string) {
		fmt.Fprintf(out, "%s\t"+format+"\t"+format+"\t%.2f\t%s\n", what, a, b, a/b, wanted)
	}
	added := func(p *proxy) float64 { return float64(median(p.trip)-direct) / 1e6 }
	row("one session, MB/s", "%.0f", median(ours.one.speed), median(theirs.one.speed), "at least 1")
	row("50 sessions, MB/s", "%.0f", median(ours.many.speed), median(theirs.many.speed), "at least 3")
	row("the same, with one core of its own", "%.0f", median(ours.core.speed), median(theirs.core.speed), "at least 3")
	row("50 sessions of updates of 8 KB, MB/s", "%.0f", median(ours.small.speed), median(theirs.small.speed), "at least 3")
	row("50 sessions that ask for each, updates/s", "%.0f", median(ours.asked.speed), median(theirs.asked.speed), "")
	row("CPU of one session, ms per MB", "%.2f", 1000*median(ours.one.cpu), 1000*median(theirs.one.cpu), "below 1")
	row("CPU of 50 sessions, ms per MB", "%.2f", 1000*median(ours.many.cpu), 1000*median(theirs.many.cpu), "below 1")
	row("CPU of 50 sessions of updates, ms per MB", "%.2f", 1000*median(ours.small.cpu), 1000*median(theirs.small.cpu), "below 1")
	row("added latency, median, ms", "%.3f", added(ours), added(theirs), "below 1 ms")
	row("latency, 99 of 100, ms", "%.3f", float64(quantile(ours.trip, 0.99))/1e6, float64(quantile(theirs.trip, 0.99))/1e6, "")
	row("memory of an idle session, KB", "%.0f", ours.memory, theirs.memory, "below 200 KB")
	fmt.Fprintf(out, "medians of %d; 50 sessions, least and most:\t%.0f-%.0f\t%.0f-%.0f\n", b.N,
		slices.Min(ours.many.speed), slices.Max(ours.many.speed), slices.Min(theirs.many.speed), slices.Max(theirs.many.speed))
	out.Flush()
	b.ReportMetric(median(ours.one.speed)/median(theirs.one.speed), "x-one")
	b.ReportMetric(median(ours.many.speed)/median(theirs.many.speed), "x-fifty")
	b.ReportMetric(added(ours), "ms-added")
	b.ReportMetric(ours.memory, "KB/session")
}

// An update is what a screen sends at once where somebody works on it.
const update = 8 << 10

// How a screen sends: as much as it can at once, or updates, of which two may be on
// their way.
const (
	bulk      = ""
	inUpdates = "updates"
)

// fakeScreen sends as many bytes as it is asked for (a number, how, and a line's end),
// or says back what it hears (after a number of 0).
func fakeScreen(b *testing.B, socket string) {
	b.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { listener.Close() })
	// It costs next to nothing to send what the kernel has already (sendfile(2)): what is
	// measured shares the cores with it.
	pixels := bytes.Repeat([]byte("pixels, of an update "), 64<<10/21)
	fd, err := unix.MemfdCreate("pixels", unix.MFD_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Write(fd, pixels); err != nil {
		b.Fatal(err)
	}
	serve := func(nc *net.UnixConn) {
		defer nc.Close()
		raw, err := nc.SyscallConn()
		if err != nil {
			return
		}
		for lines := bufio.NewReader(nc); ; {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			number, how, _ := strings.Cut(strings.TrimSpace(line), " ")
			n, _ := strconv.Atoi(number)
			if n == 0 {
				_, _ = io.Copy(nc, lines)
				return
			}
			once := len(pixels)
			if how == inUpdates {
				// The kernel takes twice of it, and half of that for one write (unix_stream_sendmsg).
				_ = nc.SetWriteBuffer(update + 100)
				once = update
			}
			for n > 0 {
				sent, failed := 0, error(nil)
				err := raw.Write(func(to uintptr) bool {
					from := int64(0)
					sent, failed = unix.Sendfile(int(to), fd, &from, min(n, once))
					return failed != unix.EAGAIN
				})
				if errors.Join(err, failed) != nil {
					return
				}
				n -= sent
			}
		}
	}
	go func() {
		for {
			nc, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(nc.(*net.UnixConn))
		}
	}()
}

// pipeMain is the desktop's server alone, for a benchmark.
func pipeMain() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	home := os.Getenv("HOME")
	d, err := New(Options{User: "bench", Home: home, Secrets: home, Runtime: home, Listen: os.Getenv("LISTEN"), Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		_, err = d.serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-ctx.Done()
}

// A proxy is one of the two.
type proxy struct {
	b             *testing.B
	address, path string
	client        *http.Client
	cmd           *exec.Cmd

	one, many, core, small flows
	asked                  flows // in updates, not megabytes
	trip                   []time.Duration
	memory                 float64 // kilobytes of a session
}

// flows are what came of several, each in its order.
type flows struct {
	speed []float64 // megabytes a second
	cpu   []float64 // seconds for a megabyte
}

func (f *flows) add(speed, cpu float64) {
	f.speed, f.cpu = append(f.speed, speed), append(f.cpu, cpu)
}

func (p *proxy) start(cmd *exec.Cmd) {
	p.b.Helper()
	p.cmd = cmd
	if err := cmd.Start(); err != nil {
		p.b.Fatal(err)
	}
	p.b.Cleanup(func() {
		for _, child := range append(descendants(cmd.Process.Pid, 0), process{id: cmd.Process.Pid}) {
			_ = syscall.Kill(child.id, syscall.SIGKILL)
		}
		_ = cmd.Wait()
	})
	eventually(p.b, "it listens", func() bool {
		nc, err := net.Dial("tcp", p.address)
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
}

func (p *proxy) dial() net.Conn {
	p.b.Helper()
	ws, _, err := websocket.Dial(p.b.Context(), "https://"+p.address+p.path, &websocket.DialOptions{HTTPClient: p.client,
		HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}, Subprotocols: []string{"binary"}})
	if err != nil {
		p.b.Fatal(err)
	}
	ws.SetReadLimit(-1)
	return websocket.NetConn(context.Background(), ws, websocket.MessageBinary)
}

// raw is a connection of which bytes are read as they are encrypted: what the
// client's own work costs would be in the way.
func (p *proxy) raw() (secure *tls.Conn) {
	p.b.Helper()
	config := p.client.Transport.(*http.Transport).TLSClientConfig
	secure, err := tls.Dial("tcp", p.address, config)
	if err != nil {
		p.b.Fatal(err)
	}
	fmt.Fprintf(secure, "GET %s HTTP/1.1\r\nHost: desktop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: binary\r\nAuthorization: Bearer %s\r\n\r\n", p.path, token)
	var answer []byte
	for one := make([]byte, 1); !bytes.HasSuffix(answer, []byte("\r\n\r\n")); answer = append(answer, one[0]) {
		if _, err := secure.Read(one); err != nil {
			p.b.Fatal(err)
		}
	}
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 101 ")) {
		p.b.Fatalf("%s", answer)
	}
	return secure
}

// say sends a short message, with a mask that changes nothing.
func say(secure *tls.Conn, text string) {
	_, _ = secure.Write(append([]byte{0x82, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...))
}

// flow carries so many megabytes over each of some sessions.
func (p *proxy) flow(sessions, megabytes int, how string) (perSecond, cpu float64) {
	p.b.Helper()
	var conns []*tls.Conn
	for range sessions {
		conns = append(conns, p.raw())
	}
	before, begin := p.cpu(), time.Now()
	var all sync.WaitGroup
	for _, nc := range conns {
		all.Go(func() {
			say(nc, fmt.Sprintf("%d %s\n", megabytes<<20, how))
			if err := drop(nc.NetConn(), megabytes<<20); err != nil {
				p.b.Error(err)
			}
		})
	}
	all.Wait()
	took := time.Since(begin).Seconds()
	used := p.cpu() - before
	for _, nc := range conns {
		nc.NetConn().Close()
	}
	total := float64(sessions * megabytes)
	return total / took, used / total
}

// nowhere is where bytes go that are dropped; nothing is ever written there.
var nowhere = make([]byte, 1<<20)

// drop takes so many bytes from a connection, which the kernel does not even copy
// (MSG_TRUNC, tcp(7)).
func drop(nc net.Conn, left int) error {
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	for left > 0 {
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, _, failed = syscall.Recvfrom(int(fd), nowhere, syscall.MSG_TRUNC)
			return failed != syscall.EAGAIN
		})
		if err = errors.Join(err, failed); err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// updates asks for updates of 8 KB, the next when one is there, on each of some
// sessions, as VNC does; and says how many came a second.
func (p *proxy) updates(sessions int) (perSecond float64) {
	p.b.Helper()
	const rounds = 200
	var conns []*tls.Conn
	for range sessions {
		conns = append(conns, p.raw())
	}
	begin := time.Now()
	var all sync.WaitGroup
	for _, nc := range conns {
		all.Go(func() {
			records := bufio.NewReaderSize(nc.NetConn(), 32<<10)
			for range rounds {
				say(nc, fmt.Sprintf("%d\n", update))
				for left := update; left > 0; {
					n, err := skipRecord(records)
					if err != nil {
						p.b.Error(err)
						return
					}
					left -= n
				}
			}
		})
	}
	all.Wait()
	took := time.Since(begin).Seconds()
	for _, nc := range conns {
		nc.NetConn().Close()
	}
	return float64(sessions*rounds) / took
}

// skipRecord reads a record of TLS 1.3 past, and says how long what it carries is: the
// tag and the type come on top (RFC 8446, 5.2).
func skipRecord(from *bufio.Reader) (n int, err error) {
	const header, more = 5, 16 + 1
	start, err := from.Peek(header)
	if err != nil {
		return 0, err
	}
	n = int(binary.BigEndian.Uint16(start[3:]))
	_, err = from.Discard(header + n)
	return n - more, err
}

// idle opens sessions on which nothing happens.
func (p *proxy) idle(sessions int) (kilobytes float64) {
	p.b.Helper()
	time.Sleep(time.Second) // those before end
	before := p.pss()
	for range sessions {
		nc := p.dial()
		defer nc.Close()
		fmt.Fprintf(nc, "1\n")
		if _, err := nc.Read(make([]byte, 1)); err != nil {
			p.b.Fatal(err)
		}
	}
	return (p.pss() - before) / float64(sessions)
}

// apart gives it one core, and the screen and the clients the others, until it is
// ended. They are on other computers, or a decoder of pixels beside; what they cost
// would be measured with it where all are on the same cores.
func (p *proxy) apart() (end func()) {
	p.b.Helper()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		p.b.Fatal(err)
	}
	first := 0
	for !all.IsSet(first) {
		first++
	}
	var one unix.CPUSet
	one.Set(first)
	others := all
	if others.Clear(first); others.Count() == 0 {
		p.b.Log("there is one core for all of it")
		return func() {}
	}
	p.pin(p.processes(), one)
	p.pin([]int{os.Getpid()}, others)
	return func() { p.pin(append(p.processes(), os.Getpid()), all) }
}

// pin keeps all threads of processes on some cores.
func (p *proxy) pin(processes []int, cores unix.CPUSet) {
	p.b.Helper()
	for _, id := range processes {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", id))
		for _, thread := range threads {
			n, _ := strconv.Atoi(filepath.Base(thread))
			if err := unix.SchedSetaffinity(n, &cores); err != nil && err != unix.ESRCH {
				p.b.Fatal(err)
			}
		}
	}
}

func (p *proxy) processes() (ids []int) {
	for _, child := range append(descendants(p.cmd.Process.Pid, 0), process{id: p.cmd.Process.Pid}) {
		ids = append(ids, child.id)
	}
	return ids
}

// cpu is what its processes have used, in seconds.
func (p *proxy) cpu() (seconds float64) {
	for _, id := range p.processes() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		const user, system, ticks = 11, 12, 100
		for _, at := range []int{user, system} {
			n, _ := strconv.ParseFloat(fields[at], 64)
			seconds += n / ticks
		}
	}
	return seconds
}

// pss is the memory of its processes, in kilobytes, each page shared by two counted
// half.
func (p *proxy) pss() (kilobytes float64) {
	for _, id := range p.processes() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", id))
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.ParseFloat(strings.Fields(value)[0], 64)
				kilobytes += n
			}
		}
	}
	return kilobytes
}

// roundTrips are those of a pointer event's length.
func roundTrips(b *testing.B, dial func() io.ReadWriteCloser, rounds int) (all []time.Duration) {
	b.Helper()
	nc := dial()
	defer nc.Close()
	fmt.Fprintf(nc, "0\n")
	event := []byte("\x05\x01\x00\x10\x00\x20")
	for range rounds {
		begin := time.Now()
		if _, err := nc.Write(event); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(nc, make([]byte, len(event))); err != nil {
			b.Fatal(err)
		}
		all = append(all, time.Since(begin))
	}
	return all
}

func quantile[T cmp.Ordered](all []T, q float64) T {
	return slices.Sorted(slices.Values(all))[int(q*float64(len(all)-1))]
}

func median[T cmp.Ordered](all []T) T { return quantile(all, 0.5) }
