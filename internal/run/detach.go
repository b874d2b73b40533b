package run

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Detach starts a program that is to outlive us: in a session of its own, without our
// terminal, with its output in a file. exited is closed should it end while we live.
func Detach(c Cmd, out *os.File) (pid int, exited <-chan struct{}, err error) {
	cmd := exec.Command(program(c.Argv[0]), c.Argv[1:]...)
	cmd.Env, cmd.Dir = c.Env, c.Dir // nothing of ours, which may be secret
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if c.SysProcAttr != nil {
		*cmd.SysProcAttr = *c.SysProcAttr
	}
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	return cmd.Process.Pid, ended, nil
}

// End asks a process that is not our child to end, by SIGTERM, and waits as long as it is
// still there and done is not closed.
func End(done <-chan struct{}, pid int, still func() bool) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for still() {
		select {
		case <-tick.C:
		case <-done:
			return errors.New("it does not end")
		}
	}
	return nil
}
