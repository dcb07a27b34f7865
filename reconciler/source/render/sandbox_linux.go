package render

import (
	"fmt"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childAttributes put a child in a process group of its own, and end it with
// its parent.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// enclose takes from the process what a render does not need: files, network,
// programs, core dumps (they would hold secrets), and memory well beyond the cap,
// for a single allocation can be faster than the watch. There is no limit on
// processes: it would count the user's other ones, and the filter refuses exec.
func enclose(l limits) error {
	caps := []struct {
		resource int
		limit    uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_FSIZE, 0}, // pipes are not files
		{unix.RLIMIT_NOFILE, 16},
	}
	if !raced { // the race detector shadows each byte with several
		caps = append(caps, struct {
			resource int
			limit    uint64
		}{unix.RLIMIT_DATA, 2*uint64(l.Memory) + 256<<20})
	}
	for _, c := range caps {
		if err := unix.Setrlimit(c.resource, &unix.Rlimit{Cur: c.limit, Max: c.limit}); err != nil {
			return fmt.Errorf("limit resource %d to %d: %w", c.resource, c.limit, err)
		}
	}
	return filterCalls()
}

// limitCPU is for a child whose parent is gone: it may use the time of one more
// unit, on all processors.
func limitCPU(more time.Duration) {
	var used unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &used) != nil {
		return
	}
	seconds := uint64(used.Utime.Sec+used.Stime.Sec) + uint64(more/time.Second+1)*uint64(runtime.NumCPU())
	unix.Setrlimit(unix.RLIMIT_CPU, &unix.Rlimit{Cur: seconds, Max: unix.RLIM_INFINITY})
}

// refused are the system calls that no render needs: what opens files, dials,
// starts programs, or reaches into other processes.
var refused = append([]uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_IO_URING_SETUP,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD,
	unix.SYS_MOUNT, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_BPF, unix.SYS_KEYCTL,
	unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_FCHMODAT,
}, refusedHere...)

// filterCalls has the kernel refuse them, for all threads and for good. A
// kernel without seccomp is left at that: the filter is the last of the walls.
func filterCalls() error {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		atOrUp = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		ret    = unix.BPF_RET | unix.BPF_K

		number, arch = 0, 4       // offsets in struct seccomp_data
		otherABI     = 0x40000000 // x32: the same calls under other numbers
	)
	n := uint8(len(refused))
	program := []unix.SockFilter{
		{Code: load, K: arch},
		{Code: equal, K: thisArch, Jf: n + 3},
		{Code: load, K: number},
		{Code: atOrUp, K: otherABI, Jt: n + 1},
	}
	for i, call := range refused {
		program = append(program, unix.SockFilter{Code: equal, K: call, Jt: n - uint8(i)})
	}
	program = append(program,
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 && errno != unix.ENOSYS && errno != unix.EINVAL {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}
