package backup

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// operationBackup is what a backup is called in the ledger.
const operationBackup = "backup"

// LastRun is how the last backup went that was begun on this machine, whatever became of it.
type LastRun struct {
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"` // zero while it runs, and of one that was killed
	OK      bool      `json:"ok"`
	Backup  string    `json:"backup,omitempty"`
	Kind    int       `json:"kind,omitempty"` // of the error, as its exit code
	Error   string    `json:"error,omitempty"`
	Hints   []string  `json:"hints,omitempty"`
}

// records are what this machine remembers of its backups, for when the repository cannot be
// asked, and for what a repository cannot know: the runs that came to nothing.
type records struct {
	Last   *LastRun         `json:"last,omitempty"`
	Proved *respaldo.Backup `json:"proved,omitempty"` // the last one that was; without its variables
}

func (s *Site) recordsPath() string { return filepath.Join(s.StateDir, s.Server+".runs.json") }

// remembered is empty when there is nothing that can be read; an error is about rights.
func (s *Site) remembered() (r records, err error) {
	content, err := os.ReadFile(s.recordsPath())
	if os.IsNotExist(err) {
		return r, nil
	}
	if err == nil && json.Unmarshal(content, &r) != nil {
		r = records{}
	}
	return r, err
}

func (s *Site) note(change func(*records)) {
	r, err := s.remembered()
	var content []byte
	if err == nil {
		change(&r)
		content, err = json.Marshal(r)
	}
	if err == nil {
		err = writeDurably(s.recordsPath(), append(content, '\n'))
	}
	if err != nil {
		s.Report.Warn("respaldo status will not know of this run: " + err.Error())
	}
}

// noteStart comes first, so that a run that is killed is known to have been one.
func (op *operation) noteStart() {
	op.note(func(r *records) { r.Last = &LastRun{Started: time.Now().UTC()} })
}

// noteEnd writes down how a backup ended. One that did not begin because another was at it
// leaves the record to that one.
func (s *Site) noteEnd(started time.Time, made Made, err error) {
	if respaldo.KindOf(err) == respaldo.Busy {
		return
	}
	s.note(func(r *records) {
		r.Last = &LastRun{Started: started.UTC(), Ended: time.Now().UTC(), OK: err == nil, Backup: made.Backup.ID}
		if err != nil {
			r.Last.Kind, r.Last.Error = int(respaldo.KindOf(err)), s.redact(err.Error())
			for _, hint := range respaldo.HintsOf(err) {
				r.Last.Hints = append(r.Last.Hints, s.redact(hint))
			}
		}
		if b := made.Backup; b.ID != "" && b.Manifest.Proof.OK {
			b.Manifest.Variables = nil
			r.Proved = &b
		}
	})
}
