package mysql

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/respaldo-backup/respaldo"
)

// The instance carries who it is in its environment, which it cannot lose and nobody else
// has by chance.
const (
	serverMark = "RESPALDO_INSTANCE_SERVER="
	runMark    = "RESPALDO_INSTANCE_RUN="
)

func (r InstanceRequest) identify() []string {
	owner := r.Owner
	if owner == "" {
		owner = r.Manifest.Server
	}
	return []string{serverMark + owner, runMark + r.Run}
}

// InstanceProcess is a live process of an instance: the server, or its setup.
type InstanceProcess struct {
	PID    int
	Server string // the request's Owner
	Run    string // ID of the operation that started it
}

// FindInstances lists the instances of a server ("" for all) that run on this machine,
// whoever started them. It sees those of other users only as root.
func FindInstances(server string) ([]InstanceProcess, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []InstanceProcess
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := instanceOf(pid); ok && (server == "" || p.Server == server) {
			found = append(found, p)
		}
	}
	return found, nil
}

// instanceOf reads the marks of a process. One that is gone, a zombie, or somebody else's
// has none to read.
func instanceOf(pid int) (InstanceProcess, bool) {
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return InstanceProcess{}, false
	}
	p := InstanceProcess{PID: pid}
	marked := false
	for variable := range bytes.SplitSeq(environment, []byte{0}) {
		if name, ok := bytes.CutPrefix(variable, []byte(serverMark)); ok {
			p.Server, marked = string(name), true
		}
		if id, ok := bytes.CutPrefix(variable, []byte(runMark)); ok {
			p.Run = string(id)
		}
	}
	return p, marked
}

// Kill ends the process at once, if it still is that instance. Its files are a copy that
// nobody needs; there is no reason to ask it politely. It does not wait for the end.
func (p InstanceProcess) Kill() error {
	process, err := os.FindProcess(p.PID) // from here on the number cannot be reused under us
	if err != nil {
		return err
	}
	defer process.Release()
	if now, ok := instanceOf(p.PID); !ok || now != p {
		return nil
	}
	if err := process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return &respaldo.Error{
			Kind: respaldo.Leftovers,
			What: fmt.Sprintf("cannot end the private server %d of %s", p.PID, p.Server),
			Hint: fmt.Sprintf("as root: kill -9 %d", p.PID),
			Err:  err,
		}
	}
	return nil
}

// Alive tells whether the process still is that instance.
func (p InstanceProcess) Alive() bool {
	now, ok := instanceOf(p.PID)
	return ok && now == p
}
