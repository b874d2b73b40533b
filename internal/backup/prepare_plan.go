package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/run"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// decide looks at the server, the machine and the storage, and decides everything. It
// changes nothing; what cannot be done is refused now.
func (op *operation) decide(ctx context.Context, r PrepareRequest) (*preparing, error) {
	if r.Wipe != "" && r.Wipe != r.Device {
		return nil, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("--wipe names %s, and --device %q", r.Wipe, r.Device), Hint: "name the same device in both, to be sure"}
	}
	server, err := mysql.Connect(ctx, op.MySQL, op.Log)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	facts, err := server.Facts(ctx)
	if err != nil {
		return nil, err
	}
	w := &preparing{operation: op, host: &host.Host{Run: op.Run, Log: op.Log},
		Preparation: &Preparation{Format: preparationFormat, Server: op.Server, Program: op.Program, Request: r, State: PreparePlanned}}
	data := facts.Layout.Of(respaldo.DataRole)[0]
	if on, err := op.volumes.Find(ctx, data.Real); err == nil && !r.asked() {
		d := on.Describe()
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s lies on %s (%s), which can be snapshotted as it is", data.Path, d.Name, d.Kind),
			Hint: "respaldo check says more; to give it a volume of its own all the same, name --device or --vg"}
	}
	if !r.asked() {
		return nil, &respaldo.Error{Kind: respaldo.Usage, What: "prepare needs a place for the volume", Hint: "give a blank --device (lsblk lists them), or a volume group with room: --vg (vgs lists them)"}
	}
	if w.service, err = w.host.Service(ctx, facts.Process.PID, op.Service); err != nil {
		return nil, err
	}
	w.Unit = w.service.Unit
	if err := w.chooseMount(r.Mount); err != nil {
		return nil, err
	}
	if err := w.chooseMoves(ctx, facts); err != nil {
		return nil, err
	}
	needed := w.bytes() + w.bytes()/10 + 16<<20
	w.Volume, err = op.volumes.PlanMaking(ctx, volume.MakeRequest{Server: op.Server, Kind: r.Kind, Device: r.Device, Group: r.Group, Name: r.Name,
		FSType: r.FSType, Wipe: r.Wipe != "", Bytes: r.Bytes, Free: r.Free, Needed: needed})
	if err != nil {
		return nil, err
	}
	w.mountLine()
	if err := w.host.RefuseMount(w.Mount); err != nil {
		return nil, err
	}
	if w.Profile, err = w.host.Profile(); err != nil {
		return nil, err
	}
	if w.SELinux = w.host.SELinux(); w.SELinux {
		if _, err := w.Run.Run(ctx, run.Cmd{Argv: []string{"semanage", "fcontext", "--list", "--locallist"}, Quiet: true}); run.NotInstalled(err) {
			return nil, &respaldo.Error{Kind: respaldo.Refused, What: "SELinux must be told of the new directory, and semanage is not installed", Hint: "install policycoreutils-python-utils"}
		}
	}
	return w, w.chooseOptionFile(facts)
}

// chooseMount takes a directory that is empty or absent.
func (w *preparing) chooseMount(asked string) error {
	dir := asked
	if dir == "" {
		if dir = "/srv/mysql"; w.Server != "main" {
			dir += "-" + w.Server
		}
	}
	refuse := func(format string, args ...any) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf(format, args...), Hint: "give a new or empty directory: --mount"}
	}
	if !filepath.IsAbs(dir) {
		return &respaldo.Error{Kind: respaldo.Usage, What: "--mount " + dir + " is not an absolute path", Hint: "give one, such as /srv/mysql"}
	}
	if strings.ContainsFunc(dir, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune("\"'\\#%;:,$*?[]{}", r) }) {
		return &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("--mount %q has characters that fstab, systemd or an option file would read in another way", dir), Hint: "give a plain path, such as /srv/mysql"}
	}
	dir = filepath.Clean(dir)
	w.Mount.Dir = dir
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		w.MadeMount = true
	case err != nil:
		return refuse("cannot look at %s: %v", dir, err)
	case len(entries) > 0:
		return refuse("%s is not empty, and cannot be the mount point", dir)
	case resolved(dir) != dir:
		return refuse("%s is reached through a link, by which fstab would not know it", dir)
	}
	if points, err := w.volumes.MountsUnder(dir); err != nil || len(points) > 0 {
		return errors.Join(refuse("something is mounted at %s already", dir), err)
	}
	return nil
}

func (w *preparing) mountLine() {
	w.Mount.Source, w.Mount.Type, w.Mount.Options = w.Volume.Node(), w.Volume.FSType, "noatime"
	if w.Unit != "" { // which waits for the mount: nobody else would, with nofail
		w.Mount.Options += ",nofail"
	}
	switch w.Volume.FSType {
	case "btrfs": // its devices have no names that last; its snapshots have other subvolumes' names
		w.Mount.Source = "UUID=" + w.Volume.FSUUID
		w.Mount.Options += ",subvol=" + w.Volume.Name
	case "ext4":
		w.Mount.Pass = 2
	}
}

// roleNames are the names of the directories on the volume.
var roleNames = map[respaldo.Role]string{
	respaldo.DataRole: "data", respaldo.RedoRole: "redo", respaldo.UndoRole: "undo", respaldo.DoublewriteRole: "doublewrite",
	respaldo.BinlogRole: "binlog", respaldo.RelayLogRole: "relay-log", respaldo.AriaLogRole: "aria-log", respaldo.KeyringRole: "keyring",
	respaldo.SecureFileRole: "files", respaldo.TablespaceRole: "tablespace", respaldo.DatabaseRole: "database", respaldo.SystemRole: "system",
}

// canStay are roles that a snapshot need not cover: a backup copies them, or fetches them
// again.
var canStay = []respaldo.Role{respaldo.KeyringRole, respaldo.SecureFileRole, respaldo.RelayLogRole}

// chooseMoves finds the directories that go onto the volume: the data directory, and each
// one beside it that holds something of the server's.
func (w *preparing) chooseMoves(ctx context.Context, facts *mysql.Facts) error {
	names := map[string]int{}
	for _, p := range facts.Layout.Places {
		name, moves := roleNames[p.Role]
		if !moves || p.Inside || !exists(p.Real) {
			continue
		}
		dir, err := w.movable(ctx, p, facts.Process)
		if err != nil && slices.Contains(canStay, p.Role) {
			w.Notes = append(w.Notes, fmt.Sprintf("%s (%s) stays where it is: %v; a backup copies it all the same", p.Path, p.Role, err))
			continue
		}
		if err != nil {
			return err
		}
		if slices.ContainsFunc(w.Moves, func(m Move) bool { return within(dir, m.Dir) }) {
			continue
		}
		if inside := slices.IndexFunc(w.Moves, func(m Move) bool { return within(m.Dir, dir) }); inside >= 0 {
			return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s (%s) contains %s", dir, p.Role, w.Moves[inside].Dir), Hint: "give each a directory of its own"}
		}
		if names[name]++; names[name] > 1 {
			name = fmt.Sprintf("%s-%d", name, names[name])
		}
		m := Move{What: string(p.Role), Dir: dir, To: filepath.Join(w.Mount.Dir, name), Aside: freeName(dir + asideSuffix)}
		if m.Bytes, err = host.Occupied(dir); err != nil {
			return err
		}
		if exists(m.fresh()) {
			return &respaldo.Error{Kind: respaldo.Refused, What: m.fresh() + " is in the way", Hint: "move it elsewhere"}
		}
		w.Moves = append(w.Moves, m)
	}
	for _, m := range w.Moves {
		if within(w.Mount.Dir, m.Dir) || within(m.Dir, w.Mount.Dir) {
			return &respaldo.Error{Kind: respaldo.Refused, What: w.Mount.Dir + " and " + m.Dir + " lie inside each other", Hint: "give another --mount"}
		}
	}
	return nil
}

// movable is the directory to be moved for a place. It must be the server's own: /tmp or
// /var/log hold what others need there.
func (w *preparing) movable(ctx context.Context, p respaldo.Place, process mysql.Process) (string, error) {
	dir := p.Real
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !info.IsDir() || p.Role == respaldo.RedoRole && filepath.Base(dir) == redoFolder {
		dir = filepath.Dir(dir)
		if info, err = os.Stat(dir); err != nil {
			return "", err
		}
	}
	refuse := func(hint, format string, args ...any) (string, error) {
		return "", &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s (%s) ", dir, p.Role) + fmt.Sprintf(format, args...), Hint: hint}
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != process.UID {
		return refuse("give it a directory that belongs to the user whom the server runs as", "is not the server's own: it belongs to user %d", owner)
	}
	at, err := w.volumes.Locate(ctx, dir)
	if err != nil {
		return "", err
	}
	if at.MountPoint == at.Real || at.Inner == "/" {
		return refuse("mount it one level higher, so that the server's files lie in a directory of it, and name that in the server's options",
			"is itself a mount point, which cannot be set aside by another name")
	}
	nested, err := w.volumes.Nested(ctx, dir)
	if err != nil {
		return "", err
	}
	if len(nested) > 0 {
		return refuse("move that into the directory's own filesystem first", "has other filesystems or subvolumes in it: %s", strings.Join(nested, ", "))
	}
	return dir, nil
}

// asideSuffix is what the old directories' names end in.
const asideSuffix = ".before-respaldo"

// freeName is a name that nothing has.
func freeName(path string) string {
	name := path
	for n := 2; exists(name); n++ {
		name = fmt.Sprintf("%s-%d", path, n)
	}
	return name
}

// chooseOptionFile finds the directory from which the server reads option files last. Where
// there is none, or a file there would be heard by another server or not by this one, the
// link at the old path does by itself. Nothing of the administrator's is edited.
func (w *preparing) chooseOptionFile(facts *mysql.Facts) error {
	w.Files = facts.ServerFiles()
	why := "the server's option files include no directory"
	if dir := w.Files.IncludeDir(); dir != "" {
		path := filepath.Join(dir, "zz-respaldo-"+w.Server+".cnf")
		var err error
		if why, err = w.whyNoFile(facts, path); err != nil {
			return err
		}
		if why == "" {
			w.OptionFile = path
			return nil
		}
	}
	w.Notes = append(w.Notes, fmt.Sprintf("no option file is written (%s): the server's datadir stays %s, a link to %s from then on", why, w.Moves[0].Dir, w.Moves[0].To))
	return nil
}

func (w *preparing) whyNoFile(facts *mysql.Facts, path string) (string, error) {
	others, err := filepath.Glob(filepath.Join(filepath.Dir(path), "zz-respaldo-*.cnf"))
	if err != nil {
		return "", err
	}
	for _, other := range others {
		if other != path {
			return "there is " + other + ", another server's", nil
		}
	}
	if why, err := facts.SharedWith(filepath.Dir(path)); err != nil || why != "" {
		return why, err
	}
	_, where, err := w.Files.Beats(path, "datadir")
	if err != nil || where == "" {
		return "", err
	}
	return "datadir in " + where + " would beat it", nil
}
