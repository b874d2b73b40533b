package guest

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dmChanges are the device-mapper ioctls that change something (linux/dm-ioctl.h).
var dmChanges = map[uint64]string{3: "create", 4: "remove", 6: "suspend", 9: "load", 10: "clear", 14: "message"}

// KillWhen runs a volume command under ptrace and kills it right after a call by which it
// changes a device or writes metadata, as soon as enough says so of all those calls so
// far ("suspend vg0-data", "write"). It returns them; killed tells whether enough ever did.
func KillWhen(t T, argv []string, enough func(calls []string) bool) (calls []string, killed bool) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := os.StartProcess(path, argv, &os.ProcAttr{Files: []*os.File{null, null, null}, Env: append(os.Environ(), "LC_ALL=C"),
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
	if err := syscall.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL); err != nil {
		t.Fatal(err)
	}
	signal, returning := 0, true
	for {
		if err := syscall.PtraceSyscall(pid, signal); err != nil {
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
		if status.StopSignal() != syscall.SIGTRAP|0x80 {
			signal = int(status.StopSignal())
			continue
		}
		if returning = !returning; !returning {
			continue
		}
		what := ""
		switch number, request := peek(15), peek(13); { // orig_rax, rsi
		case number == unix.SYS_IO_SUBMIT:
			what = "write"
		case number == unix.SYS_IOCTL && request>>8&0xff == 0xfd && dmChanges[request&0xff] != "":
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
