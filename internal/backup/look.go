package backup

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
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// Source says where a backup takes a place from.
type Source string

const (
	FromSnapshot Source = "snapshot" // it lies on the volume
	FromTail     Source = "copy up to the coordinates"
	FromLive     Source = "copy" // small files that do not change: options, keyring
	NotNeeded    Source = "not needed"
)

// Cover is how one place of the layout gets into a backup.
type Cover struct {
	Place respaldo.Place `json:"place"`
	From  Source         `json:"from"`
	// inside is where the place lies below the root of a mounted snapshot.
	inside string
}

// Outlook is what would happen, and whether it can: the result of check, and what a
// backup acts upon.
type Outlook struct {
	Server     string            `json:"server"`
	Version    respaldo.Version  `json:"version"`
	Volume     respaldo.Volume   `json:"volume"`
	Space      volume.Space      `json:"space"`
	Lock       respaldo.LockMode `json:"lock"`
	LockReason string            `json:"lock_reason"`
	// Conditions must all hold for the lock to be none.
	Conditions []mysql.Condition `json:"conditions"`
	MaxLock    float64           `json:"max_lock_seconds"`
	Pause      float64           `json:"expected_pause_seconds"` // that this volume's snapshot is expected to need
	PauseFrom  string            `json:"expected_pause_from"`
	Engines    []string          `json:"engines"`
	Covers     []Cover           `json:"covers"`
	Warnings   []string          `json:"warnings,omitempty"`
	Refusals   []Refusal         `json:"refusals,omitempty"`
	facts      *mysql.Facts
	server     *mysql.Server
	volume     volume.Volume
}

// Refusal is one reason why a backup would not begin.
type Refusal struct {
	What string `json:"what"`
	Hint string `json:"hint,omitempty"`
	err  error
}

// OK tells that a backup would begin.
func (o *Outlook) OK() bool { return len(o.Refusals) == 0 }

func (o *Outlook) close() {
	if o.server != nil {
		o.server.Close()
		o.server = nil
	}
}

func (o *Outlook) refuse(err error) {
	if err == nil {
		return
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range many.Unwrap() {
			o.refuse(one)
		}
		return
	}
	o.Refusals = append(o.Refusals, Refusal{What: err.Error(), Hint: strings.Join(respaldo.HintsOf(err), "; "), err: err})
}

// Refusal is everything that stands against a backup, as one error.
func (o *Outlook) Refusal() error {
	var errs []error
	for _, r := range o.Refusals {
		errs = append(errs, r.err)
	}
	return errors.Join(errs...)
}

// Check looks without touching anything: no lock, no snapshot, no ledger.
func (s *Site) Check(ctx context.Context) (*Outlook, error) {
	op := &operation{Site: s, scope: s.Server, volumes: s.volumes()}
	outlook, err := op.look(ctx)
	if err != nil {
		return nil, err
	}
	outlook.close()
	if outlook.volume == nil {
		return outlook, nil
	}
	err = outlook.volume.Refusal(ctx, volume.Request{Server: op.Server, Bytes: op.SnapshotBytes, PoolData: op.PoolData, PoolMetadata: op.PoolMetadata})
	if errors.Is(err, volume.ErrNoRoom) {
		if left := op.leftSnapshots(ctx); len(left) > 0 {
			outlook.Warnings = append(outlook.Warnings, fmt.Sprintf("%v; but the next backup first removes what an earlier operation has left: %s", err, strings.Join(left, ", ")))
			err = nil
		}
	}
	outlook.refuse(err)
	return outlook, nil
}

// leftSnapshots names those that a sweep would remove.
func (op *operation) leftSnapshots(ctx context.Context) (names []string) {
	found, _ := op.volumes.Leftovers(ctx, op.Server)
	for _, snapshot := range found {
		if d := snapshot.Describe(); !d.Kept {
			names = append(names, d.Name)
		}
	}
	return names
}

// look asks the server what it is and where its files lie, and the machine on what volume.
// The outlook keeps the connection open until its close. Whatever stands against a backup
// is among the refusals; an error means that not even looking was possible.
func (op *operation) look(ctx context.Context) (*Outlook, error) {
	server, err := mysql.Connect(ctx, op.MySQL, op.Log)
	if err != nil {
		return nil, err
	}
	facts, err := server.Facts(ctx)
	if err != nil {
		server.Close()
		return nil, err
	}
	o := &Outlook{Server: op.Server, Engines: engineNames(facts), Version: facts.Version, MaxLock: op.MaxLock.Seconds(), facts: facts, server: server}
	o.Warnings = slices.Concat(server.Warnings(), facts.Warnings, facts.Lost)
	o.refuse(errors.Join(facts.Refusals()...))
	if err := op.lookAtVolume(ctx, o); err != nil {
		o.refuse(err)
	} else {
		facts.Coverage = o.coverage()
	}
	o.Conditions = facts.Conditions()
	if o.Lock, o.LockReason, err = mysql.ChooseLock(facts, op.Lock); err != nil {
		o.refuse(err)
	}
	return o, nil
}

// coverage is what the one snapshot will not hold, of what changes with the data. What
// could not be covered at all is among it.
func (o *Outlook) coverage() *mysql.Coverage {
	c := &mysql.Coverage{Volume: o.Volume.Name}
	for _, p := range o.facts.Layout.Places {
		covered := slices.ContainsFunc(o.Covers, func(c Cover) bool { return c.Place == p && c.From != FromTail })
		if !covered {
			c.Outside = append(c.Outside, p)
		}
	}
	return c
}

func (op *operation) lookAtVolume(ctx context.Context, o *Outlook) error {
	data := o.facts.Layout.Of(respaldo.DataRole)[0]
	v, err := op.volumes.Find(ctx, data.Real)
	if err != nil {
		return err
	}
	o.volume, o.Volume = v, v.Describe()
	if o.Space, err = v.Space(ctx); err != nil {
		return err
	}
	for _, place := range o.facts.Layout.Places {
		cover, err := op.cover(ctx, place, o.Volume)
		o.refuse(err)
		if err == nil {
			o.Covers = append(o.Covers, cover)
		}
	}
	if o.Volume.Kind != respaldo.LVMThick {
		if crowded := volume.Crowded(o.Volume.Kind, o.Volume.Name, o.Space.Fill, op.watchOptions(o.Volume.Kind, false)); crowded != "" {
			o.Warnings = append(o.Warnings, crowded)
		}
	}
	o.Pause, o.PauseFrom = op.expectedPause(o.Volume, o.Space)
	if o.Pause > op.MaxLock.Seconds() {
		o.Warnings = append(o.Warnings, fmt.Sprintf(
			"the snapshot is expected to take %.2f s, more than max_lock = %s allows: give --max-lock %s",
			o.Pause, op.MaxLock, time.Duration(2*o.Pause*float64(time.Second)).Round(100*time.Millisecond)))
	}
	return nil
}

// tailElsewhere tells that an image needs more than the snapshot: the binlogs' tail.
func (o *Outlook) tailElsewhere() bool {
	return slices.ContainsFunc(o.Covers, func(c Cover) bool { return c.From == FromTail })
}

// cover decides how a place gets into the backup. What InnoDB or a table needs must lie on
// the one volume whose snapshot is atomic; what only grows or never changes may be copied.
func (op *operation) cover(ctx context.Context, p respaldo.Place, v respaldo.Volume) (Cover, error) {
	c := Cover{Place: p, From: FromSnapshot}
	if _, err := os.Lstat(p.Real); errors.Is(err, fs.ErrNotExist) {
		c.From = NotNeeded // named by a variable, never made
		return c, nil
	}
	if p.Role == respaldo.OptionFileRole {
		c.From = FromLive
		return c, nil
	}
	at, err := op.volumes.Locate(ctx, p.Real)
	if err != nil {
		return c, err
	}
	same, err := op.liesOn(ctx, at, v)
	if err != nil {
		return c, err
	}
	if same {
		if c.inside, err = inside(at, v); err != nil || p.Inside {
			return c, err // the data directory is looked through once
		}
		return c, op.refuseNested(ctx, p)
	}
	switch p.Role {
	case respaldo.BinlogRole:
		c.From = FromTail
	case respaldo.RelayLogRole:
		c.From = NotNeeded // fetched again from the source, from the position applied
	case respaldo.KeyringRole, respaldo.SecureFileRole:
		c.From = FromLive
	default:
		return c, &respaldo.Error{Kind: respaldo.Refused,
			What: fmt.Sprintf("%s (%s) lies on %s, not on %s like the data directory: one snapshot cannot cover both", p.Path, p.Role, at.Source, v.Name),
			Hint: "move it onto the volume of the data directory; several volumes for the data itself are not supported"}
	}
	return c, nil
}

// liesOn tells whether a location is on the volume. Asking LVM for every place would take
// longer than the rest of the look; the mounted device says the same.
func (op *operation) liesOn(ctx context.Context, at volume.Location, v respaldo.Volume) (bool, error) {
	if v.Kind != respaldo.Btrfs {
		return at.Device == v.Device, nil
	}
	if at.FSType != "btrfs" {
		return false, nil
	}
	on, err := op.volumes.Find(ctx, at.Real)
	return err == nil && on.Describe().ID == v.ID, err
}

// refuseNested refuses what would be an empty folder in the snapshot.
func (op *operation) refuseNested(ctx context.Context, p respaldo.Place) error {
	nested, err := op.volumes.Nested(ctx, p.Real)
	if err != nil || len(nested) == 0 {
		return err
	}
	return &respaldo.Error{Kind: respaldo.Refused,
		What: fmt.Sprintf("%s lies below %s, but on a filesystem or subvolume of its own, which one snapshot does not cover", strings.Join(nested, ", "), p.Path),
		Hint: "move it onto the volume of the data directory"}
}

// inside is where a location lies below the root of its volume's mounted snapshot: of the
// filesystem, or of the Btrfs subvolume, whatever is bind-mounted where.
func inside(at volume.Location, v respaldo.Volume) (string, error) {
	root := "/"
	if v.Kind == respaldo.Btrfs {
		root = filepath.Join("/", v.Name)
	}
	return filepath.Rel(root, at.Inner)
}

// expectedPause is how long this volume's snapshot will stop writers: as long as last
// time, or what the volume's kind and this machine let one expect.
func (op *operation) expectedPause(v respaldo.Volume, s volume.Space) (seconds float64, from string) {
	if last := op.lastImage(); last.Volume == v.ID {
		return last.HeldSeconds, "measured at the last snapshot"
	}
	return s.Pause.Seconds(), "estimated"
}

// engineNames are the engines in use with their number of tables: "InnoDB (12)".
func engineNames(f *mysql.Facts) []string {
	names := []string{}
	for _, e := range f.Engines {
		names = append(names, fmt.Sprintf("%s (%d)", e.Engine, e.Tables))
	}
	return names
}
