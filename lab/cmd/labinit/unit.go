package main

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/respaldo-backup/respaldo/lab/job"
)

// unit is what systemd starts when the machine is up, the job, or when it cannot be brought
// up. It writes down how that ended and has the machine shut down.
func unit(name string) {
	exit := job.Exit{Code: 1, Problem: "systemd has put the guest into emergency mode"}
	if name == "job" {
		j, err := job.Read("/out")
		if err == nil {
			exit = run(j)
		} else {
			exit.Problem = "the guest cannot read its job: " + err.Error()
		}
	}
	if exit.Problem != "" {
		tell("lab: " + exit.Problem)
		journal, _ := exec.Command("journalctl", "--no-pager", "--boot", "--priority=warning", "--output=cat").CombinedOutput()
		tell(string(journal))
	}
	if err := job.WriteExit("/out", exit); err != nil {
		tell("lab: " + err.Error())
	}
	if out, err := exec.Command("systemctl", "--no-block", "poweroff").CombinedOutput(); err != nil {
		tell(fmt.Sprintf("lab: systemctl poweroff: %v: %s", err, out))
	}
}

// tell shows a text on the console.
func tell(text string) {
	tty, err := os.OpenFile("/dev/tty0", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer tty.Close()
	fmt.Fprintln(tty, text)
}
