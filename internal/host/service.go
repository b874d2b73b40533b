package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// Commands stop and start a server: those of the configuration, or of a Service that was
// found before. Both or none is set.
type Commands struct {
	Stop, Start []string // argv, run as root and without a shell
	Unit        string   `json:",omitempty"` // of systemd, if they are that one's
}

// Service is whoever starts and stops one server: a systemd unit, or the commands of the
// configuration.
type Service struct {
	host *Host
	// Unit is the systemd unit, "mariadb.service"; empty where commands are configured.
	Unit     string
	commands Commands
	sockets  []string // units that would start it again at the next connection, where they are active
}

// knownUnits are tried for a server that does not run, which nobody can be asked about.
var knownUnits = []string{"mariadb.service", "mysql.service", "mysqld.service"}

// Service finds out who starts and stops a server: the configured commands if there are
// any, else the systemd unit whose server the process is. For a server that does not run
// (pid 0) it is the one unit of a usual name that is installed, however often it is linked;
// one that runs is another server's. Where none or several can be meant the error is Refused
// and says what to configure.
func (h *Host) Service(ctx context.Context, pid int, commands Commands) (*Service, error) {
	s := &Service{host: h, commands: commands}
	if len(commands.Start) > 0 {
		s.Unit = commands.Unit
		return s, nil
	}
	if _, err := os.Stat(h.path("/run/systemd/system")); err != nil { // sd_booted(3)
		return nil, refuseService("systemd does not run here")
	}
	var err error
	if pid > 0 {
		s.Unit, err = h.unitOf(ctx, pid)
	} else {
		s.Unit, err = h.installedUnit(ctx)
	}
	if err != nil {
		return nil, err
	}
	return s, s.findSockets(ctx, func(socket string) (bool, error) { return h.is(ctx, "ActiveState", socket, "active") })
}

// UnitService is the service of a unit that is known already. It may have been stopped with
// its sockets meanwhile: those count that come with the next boot, too.
func (h *Host) UnitService(ctx context.Context, unit string) (*Service, error) {
	s := &Service{host: h, Unit: unit}
	return s, s.findSockets(ctx, func(socket string) (bool, error) {
		if active, err := h.is(ctx, "ActiveState", socket, "active"); err != nil || active {
			return active, err
		}
		return h.is(ctx, "UnitFileState", socket, "enabled")
	})
}

// findSockets keeps those sockets of the unit that are used: distributions install some
// that nobody has enabled, and starting these would open doors.
func (s *Service) findSockets(ctx context.Context, used func(socket string) (bool, error)) error {
	triggers, err := s.host.show(ctx, "TriggeredBy", s.Unit)
	if err != nil {
		return err
	}
	for _, unit := range triggers {
		if !strings.HasSuffix(unit, ".socket") {
			continue
		}
		is, err := used(unit)
		if err != nil {
			return err
		}
		if is {
			s.sockets = append(s.sockets, unit)
		}
	}
	return nil
}

func refuseService(why string) error {
	return &respaldo.Error{Kind: respaldo.Refused, What: "cannot tell how the server is stopped and started: " + why,
		Hint: `give the commands in the configuration, stop = ["…"] and start = ["…"] in [server.NAME]`}
}

func (h *Host) installedUnit(ctx context.Context) (string, error) {
	var found []string
	for _, unit := range knownUnits {
		id, err := h.show(ctx, "Id", unit)
		if err != nil {
			return "", err
		}
		loaded, err := h.is(ctx, "LoadState", unit, "loaded")
		if err != nil {
			return "", err
		}
		// Distributions link the usual names to each other: Id is the unit's own.
		if loaded && len(id) == 1 && !slices.Contains(found, id[0]) {
			found = append(found, id[0])
		}
	}
	switch len(found) {
	case 0:
		return "", refuseService("it does not run, and there is no " + strings.Join(knownUnits, ", "))
	case 1:
		return found[0], h.refuseRunning(ctx, found[0])
	}
	return "", refuseService("it does not run, and may be any of " + strings.Join(found, ", "))
}

// refuseRunning refuses a unit that runs, for a server that does not.
func (h *Host) refuseRunning(ctx context.Context, unit string) error {
	active, err := h.is(ctx, "ActiveState", unit, "active")
	if err != nil {
		return err
	}
	pid, err := h.show(ctx, "MainPID", unit)
	if err != nil {
		return err
	}
	if active || len(pid) == 1 && pid[0] != "0" {
		return refuseService("it does not run, and " + unit + " does, so that must be another server's")
	}
	return nil
}

// is tells whether a unit's property is one word.
func (h *Host) is(ctx context.Context, property, unit, word string) (bool, error) {
	words, err := h.show(ctx, property, unit)
	return slices.Equal(words, []string{word}), err
}

// show returns the words of a unit's property.
func (h *Host) show(ctx context.Context, property, unit string) ([]string, error) {
	r, err := h.Run.Run(ctx, run.Cmd{Argv: []string{"systemctl", "show", "--property=" + property, "--", unit}})
	if err != nil {
		return nil, fmt.Errorf("asking systemd about %s: %w", unit, err)
	}
	_, value, _ := strings.Cut(strings.TrimSpace(string(r.Stdout)), "=")
	return strings.Fields(value), nil
}

// String is how a person would name it: the unit, or the command that starts the server.
func (s *Service) String() string {
	if s.Unit != "" {
		return s.Unit
	}
	return run.Cmd{Argv: s.commands.Start}.String()
}

// StopCommand is what Stop runs, StartCommand what Start runs.
func (s *Service) StopCommand() []string {
	if len(s.commands.Stop) > 0 {
		return s.commands.Stop
	}
	// The sockets in the same call: systemd would start the server at the next connection.
	return slices.Concat([]string{"systemctl", "stop", "--"}, s.sockets, []string{s.Unit})
}

// StartCommand is documented at StopCommand.
func (s *Service) StartCommand() []string {
	if len(s.commands.Start) > 0 {
		return s.commands.Start
	}
	return slices.Concat([]string{"systemctl", "start", "--"}, s.sockets, []string{s.Unit})
}

// Commands are what Host.Service finds this service by again: after a crash, too, when what
// was there to be found may be stopped.
func (s *Service) Commands() Commands {
	return Commands{Stop: s.StopCommand(), Start: s.StartCommand(), Unit: s.Unit}
}

// Stop stops the server and returns when gone says that its process has ended, however
// long its shutdown takes, or with an error of the kind of ctx's cause. A server that does not run is no error.
// The command, once begun, is not interrupted.
func (s *Service) Stop(ctx context.Context, gone func() bool) error {
	if err := s.do(ctx, "stop", s.StopCommand()); err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !gone() {
		select {
		case <-ctx.Done():
			return &respaldo.Error{Kind: respaldo.KindOf(context.Cause(ctx)), What: "the server (" + s.String() + ") was told to stop, and its process has not ended",
				Hint: "see its error log: a server with much to write may take long, one that was not told at all needs another stop command", Err: context.Cause(ctx)}
		case <-tick.C:
		}
	}
	return nil
}

// Start starts the server and returns when the service manager says that it is up; whether
// it answers is for the caller to find out.
func (s *Service) Start(ctx context.Context) error {
	if s.Unit != "" { // one that failed too often just now is not started again without it
		s.host.Run.Run(ctx, run.Cmd{Argv: []string{"systemctl", "reset-failed", "--", s.Unit}, Quiet: true})
	}
	return s.do(ctx, "start", s.StartCommand())
}

func (s *Service) do(ctx context.Context, verb string, argv []string) error {
	_, err := s.host.Run.Run(ctx, run.Cmd{Argv: argv, Uninterruptible: true})
	if err == nil {
		return nil
	}
	hint := "see why: run it by hand"
	if s.Unit != "" {
		hint = "see why: journalctl -u " + s.Unit + " -n 50"
	}
	return &respaldo.Error{Kind: respaldo.Failed, What: "could not " + verb + " the server (" + s.String() + ")", Hint: hint, Err: err}
}

// Reload makes systemd read its units and fstab anew; without systemd it does nothing.
func (h *Host) Reload(ctx context.Context) error {
	if _, err := os.Stat(h.path("/run/systemd/system")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err := h.Run.Run(ctx, run.Cmd{Argv: []string{"systemctl", "daemon-reload"}})
	return err
}

func (h *Host) path(p string) string { return filepath.Join("/", h.Root, p) }
