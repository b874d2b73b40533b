package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/host"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/volume"
)

// Move is one directory of the server's and where it goes. Dir keeps leading to the data at
// any instant: to the directory itself before, through a link to the volume after.
type Move struct {
	What  string `json:"what"`
	Dir   string `json:"dir"` // links resolved
	To    string `json:"to"`
	Aside string `json:"aside"` // what Dir was is called so afterwards
	Bytes int64  `json:"bytes"` // that it takes on disk
}

// Preparation is how a server is made snapshot-capable, with everything decided, and how
// far that has come. Its journal is this as JSON.
type Preparation struct {
	Format  int            `json:"format"`
	Server  string         `json:"server"`
	Program string         `json:"program"`
	Request PrepareRequest `json:"request"`
	State   PrepareState   `json:"state"`

	Volume     volume.Making     `json:"volume"`
	Mount      host.Mount        `json:"mount"`
	MadeMount  bool              `json:"made_mount"` // the directory was not there
	Moves      []Move            `json:"moves"`
	Unit       string            `json:"unit,omitempty"` // of systemd; empty: the configured commands
	Profile    *host.Profile     `json:"profile,omitempty"`
	SELinux    bool              `json:"selinux,omitempty"`
	Files      mysql.ServerFiles `json:"server_files,omitempty"`
	OptionFile string            `json:"option_file,omitempty"`
	Notes      []string          `json:"notes,omitempty"` // for people

	Tables []string `json:"tables,omitempty"` // that the server had when it was stopped
	Begun  string   `json:"begun,omitempty"`
	Done   []string `json:"done,omitempty"` // steps, in order
	// Tried tells that the server was started on the volume, Lives that it worked there or
	// may have: from then on what is there is the present, and what was set aside the past.
	Tried bool `json:"tried,omitempty"`
	Lives bool `json:"lives,omitempty"`
	// Stays tells that the volume is left as it is by an undo: it held the present once.
	Stays bool `json:"stays,omitempty"`
}

// PrepareState is how far a preparation is.
type PrepareState string

// The states: planned is not on disk. A later run that sees one of a run under way knows
// that it was interrupted.
const (
	PreparePlanned PrepareState = "planned"
	PrepareForward PrepareState = "under way"
	PrepareDone    PrepareState = "prepared"
	PrepareBack    PrepareState = "being undone"
	PrepareUndone  PrepareState = "undone"
)

const preparationFormat = 1

func (p *Preparation) has(step string) bool { return slices.Contains(p.Done, step) }

func (s *Site) journalOf() string { return filepath.Join(s.StateDir, s.Server+".prepare.json") }

// warnOfPreparation says that one is waiting to be gone on with.
func (s *Site) warnOfPreparation() {
	if p, err := s.loadPreparation(); err == nil && p != nil && p.State != PrepareDone {
		s.Report.Warn("respaldo prepare was interrupted (" + string(p.State) + "): call it again to go on, or with --undo to go back")
	}
}

// loadPreparation reads the journal; nil where there is none.
func (s *Site) loadPreparation() (*Preparation, error) {
	text, err := os.ReadFile(s.journalOf())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var p Preparation
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		return nil, &respaldo.Error{Kind: respaldo.Failed, What: "cannot read " + s.journalOf() + ", the journal of respaldo prepare", Err: err,
			Hint: "run as root; if it is damaged: it is plain JSON, and says what was done"}
	}
	if p.Format > preparationFormat {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s was written by a newer respaldo (%s)", s.journalOf(), p.Program), Hint: "use that one"}
	}
	return &p, nil
}

// save returns when the journal is on disk.
func (w *preparing) save() error {
	text, err := json.MarshalIndent(w.Preparation, "", "  ")
	if err != nil {
		return err
	}
	if err := writeDurably(w.journalOf(), append(text, '\n')); err != nil {
		return &respaldo.Error{Kind: respaldo.Failed, What: "cannot note what is being done in " + w.journalOf(), Hint: "make room on that filesystem", Err: err}
	}
	return nil
}
