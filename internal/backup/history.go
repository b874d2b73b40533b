package backup

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"path/filepath"

	"os"

	"github.com/respaldo-backup/respaldo"
)

// history is the last image that was taken of a server on this machine: what the next
// one's timeline is compared with, and what its snapshot cost the writers. Losing it
// begins a new timeline, and nothing worse.
type history struct {
	Timeline    string               `json:"timeline"`
	ServerUUID  string               `json:"server_uuid,omitempty"`
	Coordinates respaldo.Coordinates `json:"coordinates"`
	Volume      string               `json:"volume"`       // its ID
	HeldSeconds float64              `json:"held_seconds"` // by our clock, as max_lock counts it
}

func (s *Site) historyPath() string { return filepath.Join(s.StateDir, s.Server+".history.json") }

// lastImage is the zero history when there is none that can be read.
func (s *Site) lastImage() (h history) {
	if content, err := os.ReadFile(s.historyPath()); err == nil && json.Unmarshal(content, &h) != nil {
		return history{}
	}
	return h
}

func (s *Site) noteImage(m respaldo.Manifest) {
	err := s.saveHistory(history{Timeline: m.Timeline, ServerUUID: m.ServerUUID, Coordinates: m.Quiesced.Coordinates,
		Volume: m.Volume.ID, HeldSeconds: m.Quiesced.HeldSeconds})
	if err != nil {
		s.Report.Warn("the next backup will begin a new timeline: " + err.Error())
	}
}

func (s *Site) saveHistory(h history) error {
	content, err := json.Marshal(h)
	if err == nil {
		err = writeDurably(s.historyPath(), append(content, '\n'))
	}
	return err
}

// timeline continues the last image's while the server's history does: same server,
// coordinates that moved forward or stood still. After a restore, a rollback or a RESET
// the same binlog names mean something else, and a new timeline begins.
func (h history) timeline(serverUUID string, now respaldo.Coordinates) string {
	if h.Timeline != "" && h.ServerUUID == serverUUID && !before(now, h.Coordinates) {
		return h.Timeline
	}
	b := make([]byte, 8)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// before tells that a lies before b in one sequence of binlogs, or that the two belong to
// none: one has coordinates and the other has not.
func before(a, b respaldo.Coordinates) bool {
	switch {
	case (a.File == "") != (b.File == ""):
		return true
	case a.File == b.File:
		return a.Position < b.Position
	case len(a.File) != len(b.File): // binlog.999999 is followed by binlog.1000000
		return len(a.File) < len(b.File)
	}
	return a.File < b.File
}
