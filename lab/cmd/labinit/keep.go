package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// keep runs a guest's kernel until it ends or until whoever started us is gone, however
// that happened: our standard input is a pipe that its death closes. Killing the kernel's
// first process alone would leave one process behind for each of the guest's, so the
// whole group is killed, and what escaped from it comes to us as the reaper.
//
// The guest's standard input is descriptor 3; descriptors from 4 on are handed through
// under their own numbers.
func keep(argv []string) int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "labinit:", err)
		return 1
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = os.NewFile(3, "stdin")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{cmd.Stdin.(*os.File)}
	for fd := 4; ; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || fd > 5 {
			break
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), "extra"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "labinit:", err)
		return 1
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	}()
	err := cmd.Wait()
	unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if errors.Is(err, unix.ECHILD) {
			break
		}
		if err == nil {
			unix.Kill(-pid, unix.SIGKILL)
		}
	}
	if err != nil {
		return 1
	}
	return 0
}
