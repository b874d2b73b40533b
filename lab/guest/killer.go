package guest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const dmType = 0xfd // of device-mapper's ioctls

// dmChanges are the device-mapper ioctls that change something (linux/dm-ioctl.h).
var dmChanges = map[uint64]string{3: "create", 4: "remove", 6: "suspend", 9: "load", 10: "clear", 14: "message"}

// beTraced in the environment makes this program the one that KillWhen traces.
const beTraced = "LAB_BE_TRACED"

// init becomes the program that our arguments name, under a filter that stops it for
// whoever traces it at the calls that matter only: stopping at every call takes many times
// as long.
func init() {
	if os.Getenv(beTraced) == "" {
		return
	}
	os.Unsetenv(beTraced)
	const number, request = 0, 24 // in struct seccomp_data; the request is the second argument
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IO_SUBMIT, Jt: 5},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IOCTL, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: request},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xff00},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: dmType << 8, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_TRACE},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	}
	path, lookErr := exec.LookPath(os.Args[0])
	if err == nil && lookErr == nil {
		err = syscall.Exec(path, os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, os.Args[0], err, lookErr)
	os.Exit(127)
}

// KillWhen runs a volume command under ptrace and kills it right after a call by which it
// changes a device or writes metadata, as soon as enough says so of all those calls so
// far ("suspend vg0-data", "write"). It returns them; killed tells whether enough ever did.
func KillWhen(t T, argv []string, enough func(calls []string) bool) (calls []string, killed bool) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := os.StartProcess("/proc/self/exe", argv, &os.ProcAttr{Files: []*os.File{null, null, null}, Env: append(os.Environ(), "LC_ALL=C", beTraced+"=1"),
		Sys: &syscall.SysProcAttr{Ptrace: true}})
	if err != nil {
		t.Fatal(err)
	}
	pid := p.Pid
	peek := func(register uintptr) (v uint64) { // PTRACE_GETREGS is not to be had in user-mode Linux
		if _, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, syscall.PTRACE_PEEKUSR, uintptr(pid), register*8, uintptr(unsafe.Pointer(&v)), 0, 0); errno != 0 {
			t.Fatal(errno)
		}
		return v
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := syscall.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL|unix.PTRACE_O_TRACESECCOMP|unix.PTRACE_O_TRACEEXEC); err != nil {
		t.Fatal(err)
	}
	signal, calling := 0, false
	for {
		resume := syscall.PtraceCont // to the next call that the filter picks out
		if calling {
			resume = syscall.PtraceSyscall // to this one's return
		}
		if err := resume(pid, signal); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
			t.Fatal(err)
		}
		signal = 0
		if status.Exited() || status.Signaled() {
			if status.Signaled() || status.ExitStatus() != 0 {
				t.Fatalf("%v ended by itself (%v) after %q", argv, status, calls)
			}
			return calls, false
		}
		switch {
		case status.TrapCause() > 0: // an event: the filter's, or the program's begin
			calling = status.TrapCause() == unix.PTRACE_EVENT_SECCOMP
			continue
		case status.StopSignal() != syscall.SIGTRAP|0x80:
			signal = int(status.StopSignal())
			continue
		}
		calling = false
		what := ""
		switch number, request := peek(15), peek(13); { // orig_rax, rsi
		case number == unix.SYS_IO_SUBMIT:
			what = "write"
		case number == unix.SYS_IOCTL && request>>8&0xff == dmType && dmChanges[request&0xff] != "":
			head := make([]byte, 48+128) // struct dm_ioctl: flags at 28, name at 48
			if _, err := syscall.PtracePeekData(pid, uintptr(peek(12)), head); err != nil {
				t.Fatal(err)
			}
			what = dmChanges[request&0xff]
			if what == "suspend" && head[28]&2 == 0 { // DM_SUSPEND_FLAG
				what = "resume"
			}
			name, _, _ := strings.Cut(string(head[48:]), "\x00")
			what += " " + name
		default:
			continue
		}
		if calls = append(calls, what); !enough(calls) {
			continue
		}
		syscall.Kill(pid, syscall.SIGKILL)
		for {
			if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
				t.Fatal(err)
			}
			if status.Exited() || status.Signaled() {
				return calls, true
			}
		}
	}
}
