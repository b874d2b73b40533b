// Package job is what the host and the guest's first process tell each other, through
// files in a folder that both see.
package job

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// Job is what a guest is booted for.
type Job struct {
	Name   string
	Argv   []string
	Env    []string
	Dir    string  // working directory
	Mounts []Mount // of host folders
	// StockLVM leaves the distribution's lvm.conf; without it the tools wait for neither
	// udev, which the guest has not, nor for memory to be locked.
	StockLVM bool
	// Systemd is the first process, with udev, and runs the job as a unit.
	Systemd bool
	// Terminal runs the job on the console as a login shell would be: with job control.
	Terminal bool
	Term     string
	Rows     uint16
	Cols     uint16
	Address  string // of the network link, "10.9.0.1/24"; empty without one
}

// Mount shows a host folder in the guest.
type Mount struct {
	Host, Guest string
	Writable    bool
}

// Kernel arguments, which reach the first process as its environment.
const (
	DirArg  = "LAB_DIR"  // the host folder that holds the job and becomes /out
	RootArg = "LAB_ROOT" // the disk that holds what is written to the root; in memory without it
)

const jobFile, exitFile = "job.json", "exit"

// Write leaves a job in the folder for the guest to read.
func Write(dir string, j Job) error {
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, exitFile)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.WriteFile(filepath.Join(dir, jobFile), text, 0o644)
}

// Read is Write's counterpart.
func Read(dir string) (Job, error) {
	var j Job
	text, err := os.ReadFile(filepath.Join(dir, jobFile))
	if err != nil {
		return j, err
	}
	return j, json.Unmarshal(text, &j)
}

// Exit is how a job ended. Problem is set when it never ran.
type Exit struct {
	Code    int
	Problem string
}

// WriteExit is the guest's last word.
func WriteExit(dir string, e Exit) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, exitFile), text, 0o644)
}

// ReadExit fails with os.ErrNotExist when the guest died before its job ended.
func ReadExit(dir string) (Exit, error) {
	var e Exit
	text, err := os.ReadFile(filepath.Join(dir, exitFile))
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(text, &e)
}
