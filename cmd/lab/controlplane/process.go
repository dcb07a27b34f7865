package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process is one component that has been started.
type process struct {
	name string
	log  string // file
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended; nobody reads it before done is closed

	dismissed atomic.Bool // its end is wanted
}

// spawn starts a component. Its output goes to the end of the file log.
func spawn(name, bin, log string, args []string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &process{name: name, log: log, cmd: exec.Command(bin, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		// However this program ends, nothing is left behind.
		Pdeathsig: syscall.SIGKILL,
		// An interrupt typed at the terminal is for this program, which then stops
		// the components in order.
		Setpgid: true,
	}
	started := make(chan error)
	go func() {
		// Linux sends Pdeathsig when the thread that forked ends, not when the
		// process does, and Go ends threads as it sees fit. So this goroutine keeps
		// its thread until the component has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		close(started)
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// running tells whether p was started and has not ended.
func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop ends p, with patience at first.
func (p *process) stop(patience time.Duration) error {
	if !p.running() {
		return nil
	}
	p.dismissed.Store(true)
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(patience):
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("stop %s: it took no notice for %s and was killed", p.name, patience)
	}
}

// await asks check until it agrees. It gives up when ctx ends or p does, and then
// says why check did not agree and what p wrote last.
func (p *process) await(ctx context.Context, check func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var doubt error
	for {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := check(one)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || doubt == nil {
			doubt = err // rather than that the time was up, which is said anyway
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended (%v); its last words:\n%s", p.err, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%w; not ready because: %v; its last words:\n%s", context.Cause(ctx), doubt, p.tail())
		case <-tick.C:
		}
	}
}

// tail quotes the end of the log.
func (p *process) tail() []byte {
	const most = 16 << 10
	f, err := os.Open(p.log)
	if err != nil {
		return []byte(err.Error())
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		f.Seek(max(0, end-most), io.SeekStart)
	}
	text, _ := io.ReadAll(io.LimitReader(f, most))
	return lastLines(text, 15)
}

// lastLines gives the last n lines, indented so that they stand apart as a quote.
func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	lines = lines[max(0, len(lines)-n):]
	return append([]byte("\t"), bytes.Join(lines, []byte("\n\t"))...)
}

// A reservation keeps a free port of 127.0.0.1 for the components, which can bind
// it because they share ports (SO_REUSEPORT, same user) while nobody else can. The
// socket never listens, so it takes no connections; and while a component is down,
// those that ask for it are refused. To look for a free port and let go of it was
// not enough: the port of an API server that restarts must still be free.
type reservation struct {
	fd   int
	port string
}

func reserve() (reservation, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return reservation{}, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)),
		// Port 0 never picks one that is bound already, shared or not.
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})),
	)
	name, nameErr := unix.Getsockname(fd)
	if err := errors.Join(err, os.NewSyscallError("getsockname", nameErr)); err != nil {
		unix.Close(fd)
		return reservation{}, err
	}
	return reservation{fd, strconv.Itoa(name.(*unix.SockaddrInet4).Port)}, nil
}

func (r reservation) release() { unix.Close(r.fd) }

func (r reservation) url() string { return "https://" + net.JoinHostPort("127.0.0.1", r.port) }
