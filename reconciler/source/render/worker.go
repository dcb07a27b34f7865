package render

import (
	"bufio"
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// What parent and child say to each other, by gob over the child's standard
// input and output: the parent its limits, then requests; the child a greeting,
// then an answer to each request.
type (
	limits struct {
		Memory    int64
		Time      time.Duration
		Bytes     int64
		Documents int
	}
	request struct {
		Parts       []part // what to build, in order
		Files       []file // all that the build may read
		InspectOnly bool   // build nothing; say what is wrong with the files
	}
	file struct {
		Path      string
		Role      role
		Content   []byte
		Rewritten bool // by the scan, and checked there
	}
	answer struct {
		Documents []document
		Faults    []fault
	}
	document struct {
		Origin string
		JSON   []byte
	}
	fault struct { // a plan.Fault that gob can carry
		Code                      plan.Code
		Where, Field, Cause, Hint string
	}
)

// ChildName is os.Args[0] of a child.
const ChildName = "kingmaker-render"

// greeting proves that the program at the other end is a child.
const greeting = ChildName + " 1\n"

// startTime is how long a child may take to greet, on a computer that is busy
// with other things.
const startTime = 20 * time.Second

// worker builds units one after the other. It starts a child for the first, and
// another wherever one has died.
type worker struct {
	renderer *Renderer
	child    *process
}

// process is a running child.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	send   *gob.Encoder
	answer *gob.Decoder
	stderr tail
	late   atomic.Bool // it was killed since it took too long
	mu     sync.Mutex
	gone   bool // its number may be another process's by now
}

// ask has a unit built. A child that dies costs its unit a fault, and nothing else.
func (w *worker) ask(ctx context.Context, u Unit, q *request) (*answer, *plan.Fault, error) {
	if w.child == nil {
		child, err := w.renderer.start(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("start the renderer: %w", err)
		}
		w.child = child
	}
	p := w.child
	stopTimer := time.AfterFunc(w.renderer.options.Time, func() { p.late.Store(true); p.kill() }).Stop
	stopWatch := context.AfterFunc(ctx, p.kill)
	a := new(answer)
	err := p.send.Encode(q)
	if err == nil {
		err = p.answer.Decode(a)
	}
	inTime, alive := stopTimer(), stopWatch()
	if err == nil && inTime && alive {
		return a, nil, nil
	}
	w.stop()
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	return nil, w.renderer.autopsy(p, u), nil
}

// stop ends the child, if there is one. It has nothing left to say.
func (w *worker) stop() {
	if w.child != nil {
		w.child.end()
		w.child = nil
	}
}

func (p *process) end() {
	p.kill()
	p.mu.Lock()
	p.gone = true
	p.mu.Unlock()
	p.in.Close()
	p.out.Close()
	p.cmd.Wait()
}

// autopsy says what a dead child died of.
func (r *Renderer) autopsy(p *process, u Unit) *plan.Fault {
	f := &plan.Fault{Where: path.Clean(u.Path)}
	const split = "split the unit, or look for what grows in it"
	switch {
	case p.late.Load():
		f.Code, f.Cause, f.Hint = RenderTime, fmt.Sprintf("the render of unit %s took more than %v", u.Name, r.options.Time), split
	case p.cmd.ProcessState.ExitCode() == exitMemory, bytes.Contains(p.stderr.text, []byte("out of memory")), bytes.Contains(p.stderr.text, []byte("cannot allocate")):
		f.Code, f.Cause, f.Hint = RenderMemory, fmt.Sprintf("the render of unit %s took more than %d MiB of memory", u.Name, r.options.Memory>>20), split
	default:
		// Its last words may hold anything, so they are not passed on.
		f.Code, f.Cause = RenderCrashed, fmt.Sprintf("the render of unit %s died (%v)", u.Name, p.cmd.ProcessState)
	}
	return f
}

// start runs a child: no environment and so no PATH, no files but its two pipes,
// a process group of its own.
func (r *Renderer) start(ctx context.Context) (*process, error) {
	if os.Args[0] == ChildName {
		return nil, fmt.Errorf("a child does not render: main must call render.Child where os.Args[0] is %q", ChildName)
	}
	p := &process{cmd: &exec.Cmd{
		Path: r.options.Program, Args: []string{ChildName}, Env: []string{}, Dir: "/",
		SysProcAttr: childAttributes(),
	}}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	defer context.AfterFunc(ctx, p.kill)()
	p.send = gob.NewEncoder(p.in)
	out := bufio.NewReaderSize(p.out, 1<<16)
	p.answer = gob.NewDecoder(out)
	o := r.options
	if err := p.send.Encode(limits{o.Memory, o.Time, o.Bytes, o.Documents}); err == nil {
		hello := make([]byte, len(greeting))
		if _, err := io.ReadFull(out, hello); err == nil && string(hello) == greeting {
			if r.started != nil {
				r.started(p.cmd.Process.Pid)
			}
			return p, nil
		}
	}
	p.end()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, fmt.Errorf("%s does not greet as a child (%v): main must call render.Child where os.Args[0] is %q", r.options.Program, p.cmd.ProcessState, ChildName)
}

// kill ends a child and all that it might have started.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.gone {
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// tail keeps the beginning of what a child writes to its standard error: the Go
// runtime says first what it dies of.
type tail struct{ text []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b[:min(len(b), 4096-len(t.text))]...)
	return len(b), nil
}
