package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/run"
)

// The steps that others ask about.
const (
	stepStop   = "stop"
	stepCopy   = "copy"
	stepSwitch = "switch"
	stepStart  = "start"
)

// kindMaking is a volume command that makes something.
const kindMaking ledger.Kind = "making"

// step is one thing that prepare does. Both functions can be called again after a crash in
// the middle of themselves. From this one list come what --dry-run prints, what is done,
// where a run that was interrupted goes on, and what an undo takes back.
type step struct {
	name  string   // in the journal, the same in every release
	says  string   // "could not …"
	shows []string // commands that do the same
	do    func(ctx context.Context, begun bool) error
	undo  func(ctx context.Context) error // nil: nothing to take back
	backs []string                        // commands that do the same as undo
	// holds tells that it goes with the volume, which stays once the present lay on it.
	holds bool
}

// steps are in such an order that each path of the server leads to its present data at any
// instant, whoever starts the server then: copies are made while it is stopped, each
// directory is exchanged for a link to its copy at one instant, and only then do the
// options name the new place, to which the old path leads by now.
func (w *preparing) steps() []step {
	var steps []step
	for _, t := range w.volumes.Tasks(w.Volume) {
		steps = append(steps, step{name: t.Name, says: t.Says, shows: []string{shown(t.Argv)},
			do:   func(ctx context.Context, begun bool) error { return w.make(ctx, t.Do, begun) },
			undo: t.Back, backs: shownIf(t.Undo), holds: true})
	}
	steps = append(steps, w.mountSteps()...)
	if w.Profile != nil {
		steps = append(steps, step{name: "apparmor", says: "let AppArmor's profile " + w.Profile.Name + " allow " + w.Mount.Dir,
			shows: []string{appended(w.Profile.Local, strings.Split(strings.TrimSuffix(w.Profile.Rules(w.Mount.Dir), "\n"), "\n")...), shown(w.Profile.Load())},
			backs: []string{"sed -i '\\#" + w.Mount.Dir + "#d' " + run.Quote(w.Profile.Local), shown(w.Profile.Load())},
			do:    func(ctx context.Context, _ bool) error { return w.host.Allow(ctx, w.Profile, w.Mount.Dir) },
			undo:  func(ctx context.Context) error { return w.host.Disallow(ctx, w.Profile, w.Mount.Dir) }})
	}
	steps = append(steps, w.moveSteps()...)
	return steps
}

// make runs a volume command, noted so that the next run waits for it if this one dies.
func (w *preparing) make(ctx context.Context, do func(context.Context, bool, func(int)) error, begun bool) error {
	held, err := w.ledger.Intend(kindMaking, nil)
	if err != nil {
		return err
	}
	return joinErrors(do(ctx, begun, func(pid int) { noteProcess(w.operation, held, pid) }), held.Released())
}

func (w *preparing) mountSteps() []step {
	m := w.Mount
	steps := []step{{name: "fstab", says: "have it mounted at " + m.Dir + " at boot",
		shows: []string{shown([]string{"mkdir", "-p", m.Dir}), appended(host.Fstab, m.Line())},
		do: func(ctx context.Context, _ bool) error {
			if err := os.MkdirAll(m.Dir, 0o755); err != nil {
				return err
			}
			return joinErrors(w.host.AddMount(m), w.host.Reload(ctx))
		},
		backs: []string{"sed -i '\\#^" + m.Source + " " + m.Dir + " #d' " + host.Fstab + "  # and our mark above it"},
		undo: func(ctx context.Context) error {
			err := joinErrors(w.host.RemoveMount(m), w.host.Reload(ctx))
			if w.MadeMount {
				os.Remove(m.Dir) // only if empty
			}
			return err
		}}}
	steps = append(steps, step{name: "mount", says: "mount it", shows: []string{shown([]string{"mount", m.Dir})}, backs: []string{shown([]string{"umount", m.Dir})},
		do: func(ctx context.Context, _ bool) error {
			if mounted, err := w.volumes.MountedFrom(ctx, m.Dir, w.Volume); err != nil || mounted {
				return err
			}
			if _, err := w.Run.Run(ctx, run.Cmd{Argv: []string{"mount", m.Dir}, Uninterruptible: true}); err != nil {
				return err
			}
			mounted, err := w.volumes.MountedFrom(ctx, m.Dir, w.Volume)
			if err == nil && !mounted {
				err = fmt.Errorf("mount %s did not mount %s there", m.Dir, w.Volume.Node())
			}
			return err
		},
		undo: func(ctx context.Context) error {
			mounted, err := w.volumes.MountedFrom(ctx, m.Dir, w.Volume)
			if err != nil || !mounted {
				return ignoreMissing(err)
			}
			if err := w.volumes.Unmount(ctx, m.Dir); err != nil {
				return err
			}
			if !w.MadeMount {
				return os.MkdirAll(m.Dir, 0o755) // Unmount removes an empty directory
			}
			return nil
		}})
	if w.SELinux {
		label := host.LabelCommands(m.Dir)
		steps = append(steps, step{name: "selinux", says: "tell SELinux what " + m.Dir + " is for", shows: []string{shown(label[0]), shown(label[1])}, backs: []string{shown(host.UnlabelCommand(m.Dir))},
			do: func(ctx context.Context, begun bool) error {
				if begun { // it may have been told already
					w.Run.Run(ctx, run.Cmd{Argv: host.UnlabelCommand(m.Dir), Quiet: true})
				}
				for _, argv := range label {
					if _, err := w.Run.Run(ctx, run.Cmd{Argv: argv}); err != nil {
						return err
					}
				}
				return nil
			},
			undo: func(ctx context.Context) error {
				w.Run.Run(ctx, run.Cmd{Argv: host.UnlabelCommand(m.Dir), Quiet: true})
				return nil
			}})
	}
	if w.Unit != "" {
		path, text := w.dropIn()
		steps = append(steps, step{name: "unit", says: "have " + w.Unit + " start only when " + m.Dir + " is mounted",
			shows: []string{written(path, strings.TrimSuffix(text, "\n")), "systemctl daemon-reload"},
			backs: []string{shown([]string{"rm", path}), "systemctl daemon-reload"},
			do: func(ctx context.Context, _ bool) error {
				return joinErrors(w.host.WriteOwn(path, text), w.host.Reload(ctx))
			},
			undo: func(ctx context.Context) error {
				return joinErrors(w.host.RemoveOwn(path), w.host.Reload(ctx))
			}})
	}
	return steps
}

// dropIn ties the unit to the mount: with nofail the machine boots without the volume, and
// the server must not.
func (w *preparing) dropIn() (path, text string) {
	return filepath.Join("/etc/systemd/system", w.Unit+".d", "respaldo.conf"), "[Unit]\nRequiresMountsFor=" + w.Mount.Dir + "\n"
}

func (w *preparing) moveSteps() []step {
	var copies, switches, switchesBack []string
	for _, m := range w.Moves {
		copies = append(copies, shown(copyArgv(m.Dir, m.To)), "# then every file is read back and compared: content, owner, mode, times, links, attributes")
		switches = append(switches, shown([]string{"mv", m.Dir, m.Aside})+" && "+shown([]string{"ln", "-s", m.To, m.Dir})+"  # at one instant")
		from := m.Aside
		if w.Lives {
			from = m.fresh()
			switchesBack = append(switchesBack, shown(copyArgv(m.To, from)), "# then every file is read back and compared")
		}
		switchesBack = append(switchesBack, shown([]string{"rm", m.Dir})+" && "+shown([]string{"mv", from, m.Dir})+"  # at one instant")
	}
	steps := []step{
		{name: stepStop, says: "stop the server", shows: []string{shown(w.service.StopCommand())},
			do:   func(ctx context.Context, _ bool) error { return w.stop(ctx) },
			undo: w.startAgain, backs: []string{shown(w.service.StartCommand())}},
		{name: stepCopy, says: fmt.Sprintf("copy %s of files, and compare each", FormatBytes(w.bytes())), shows: copies,
			do: func(ctx context.Context, _ bool) error { return w.copyAll(ctx) }},
		{name: stepSwitch, says: "put links to the copies in the place of the directories, which are kept under another name", shows: switches,
			do:   func(context.Context, bool) error { return w.setAside() },
			undo: w.switchBack, backs: switchesBack},
	}
	if w.OptionFile != "" {
		steps = append(steps, step{name: "options", says: "name the new data directory in the server's options", shows: []string{written(w.OptionFile, strings.TrimSuffix(w.options(), "\n"))},
			do:   func(context.Context, bool) error { return w.writeOptions() },
			undo: func(context.Context) error { return w.host.RemoveOwn(w.OptionFile) }, backs: []string{shown([]string{"rm", w.OptionFile})}})
	}
	return append(steps,
		step{name: stepStart, says: "start the server on the volume", shows: []string{shown(w.service.StartCommand())},
			do:   func(ctx context.Context, _ bool) error { return w.startHere(ctx) },
			undo: w.stop, backs: []string{shown(w.service.StopCommand())}},
		step{name: "check", says: "see that all its tables are there, and that the volume can be snapshotted", shows: []string{"respaldo check"},
			do: func(ctx context.Context, _ bool) error { return w.check(ctx) }})
}

func (w *preparing) options() string { return "[mysqld]\ndatadir=" + w.Moves[0].To + "\n" }

// writeOptions also asks whether the server would hear of it: somebody may have set datadir
// elsewhere since this was planned. The link does it then.
func (w *preparing) writeOptions() error {
	_, where, err := w.Files.Beats(w.OptionFile, "datadir")
	if err != nil {
		return err
	}
	if where != "" {
		w.Report.Warn(fmt.Sprintf("%s is not written: datadir in %s would beat it", w.OptionFile, where))
		return w.host.RemoveOwn(w.OptionFile)
	}
	return w.host.WriteOwn(w.OptionFile, w.options())
}

func (p *Preparation) bytes() (sum int64) {
	for _, m := range p.Moves {
		sum += m.Bytes
	}
	return sum
}

// copyArgv keeps owners, modes, times, links, attributes and access lists, and holes.
func copyArgv(from, to string) []string {
	return []string{"cp", "--archive", "--sparse=auto", "--reflink=auto", "--no-target-directory", from, to}
}

func shownIf(argv []string) []string {
	if argv == nil {
		return nil
	}
	return []string{shown(argv)}
}

func shown(argv []string) string { return run.Cmd{Argv: argv}.String() }

func appended(path string, lines ...string) string {
	return printed(lines) + " >> " + run.Quote(path)
}

func written(path, text string) string {
	return printed(strings.Split(text, "\n")) + " > " + run.Quote(path)
}

func printed(lines []string) string {
	words := []string{"printf", `%s\n`}
	return shown(append(words, lines...))
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
