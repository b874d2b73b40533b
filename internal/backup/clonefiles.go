package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/target"
)

// besideOf are the files that belong to a clone and lie beside its data directory.
func besideOf(dir string) (optionFile, log, record string) {
	dir = filepath.Clean(dir)
	return dir + ".cnf", dir + ".err", dir + ".respaldo.json"
}

// cloneRecord lies beside a clone: what it is, for the next refresh.
type cloneRecord struct {
	Format   int                  `json:"format"`
	Server   string               `json:"server"`
	ServerID string               `json:"server_id"`
	Host     string               `json:"host"`
	Image    string               `json:"image"`
	Taken    time.Time            `json:"taken"`
	At       respaldo.Coordinates `json:"coordinates"`
	Replica  bool                 `json:"replica,omitempty"` // so is its option file
	Session  string               `json:"session"`           // the sender's run that completed it
}

const cloneRecordFormat = 1

// writeRecord says what a clone is. The option file is there by then.
func (a arrival) writeRecord() error {
	_, _, path := besideOf(a.Targets[dataName])
	m := a.Manifest
	text, err := json.MarshalIndent(cloneRecord{Format: cloneRecordFormat, Server: m.Server, ServerID: m.ServerID, Host: m.Host, Image: a.Image,
		Taken: m.Taken, At: m.Quiesced.Coordinates, Replica: a.Replica != nil, Session: a.Session}, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(path, append(text, '\n'))
}

// record reads what lies beside the directory; fs.ErrNotExist is of one that is no clone.
func (a arrival) record() (r cloneRecord, err error) {
	_, _, path := besideOf(a.Targets[dataName])
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil || r.Format == 0 || r.ServerID == "" {
		return r, &respaldo.Error{Kind: respaldo.Refused, What: path + " is not what respaldo writes there", Hint: "move it away, or choose another directory", Err: err}
	}
	if r.Format > cloneRecordFormat {
		return r, &respaldo.Error{Kind: respaldo.Refused, What: path + " was written by a newer respaldo", Hint: "use that version"}
	}
	return r, nil
}

// complete tells that this very sender's files are all there already: only its connection
// was cut since.
func (a arrival) complete() bool {
	r, err := a.record()
	return err == nil && a.Session != "" && r.Session == a.Session && !target.Incomplete(a.Targets[dataName])
}

// keeps tells whether the option file that is there stays as it is: a refresh leaves it to
// its user. One that was no replica's lacks what makes it one.
func (a arrival) keeps() bool {
	optionFile, _, _ := besideOf(a.Targets[dataName])
	r, err := a.record()
	if err != nil || !exists(optionFile) {
		return false
	}
	return a.Session != "" && r.Session == a.Session || a.Refresh && (r.Replica || a.Replica == nil)
}

// checkRefresh refuses to bring up to date what is no earlier clone of the same server.
func (a arrival) checkRefresh() error {
	if !a.Refresh {
		return nil
	}
	dir := a.Targets[dataName]
	r, err := a.record()
	switch {
	case errors.Is(err, fs.ErrNotExist) && target.Incomplete(dir):
		return nil // of a first clone that was cut short
	case errors.Is(err, fs.ErrNotExist):
		return &respaldo.Error{Kind: respaldo.NotFound, What: dir + " holds no earlier clone", Hint: "leave --refresh out to make one; --force replaces what is there, and sends only what differs as well"}
	case err != nil:
		return err
	case r.ServerID != a.Manifest.ServerID:
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is a clone of another server (%s on %s)", dir, r.Server, r.Host), Hint: "choose another directory, or replace it with --force"}
	case r.Replica && a.Replica == nil:
		return &respaldo.Error{Kind: respaldo.Refused, What: dir + " is a replica's, and would be none any more", Hint: "give --replica too; or replace it with --force"}
	}
	return nil
}

// refuseBeside refuses to replace files beside the directory that are not ours.
func (a arrival) refuseBeside() error {
	if a.Force {
		return nil
	}
	if _, err := a.record(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	optionFile, _, _ := besideOf(a.Targets[dataName])
	if !a.Start || a.keeps() || !exists(optionFile) {
		return nil
	}
	if text, err := os.ReadFile(optionFile); err != nil || !strings.HasPrefix(string(text), optionFileHead) {
		return &respaldo.Error{Kind: respaldo.Refused, What: optionFile + " is there, where the server's option file would be, and respaldo did not write it", Err: err,
			Hint: "move it away, choose another directory, or give --force: then it is renamed"}
	}
	return nil
}

// cloneDaemon is the server of a clone: its paths, and where it listens, which an option
// file that stays says for itself.
func cloneDaemon(a arrival) (d mysql.Daemon, at CloneServer, err error) {
	d, at = mysql.Daemon{DataDir: a.Targets[dataName]}, a.Server
	d.OptionFile, d.Log, _ = besideOf(d.DataDir)
	if at.Socket == "" {
		at.Socket = filepath.Join(d.DataDir, "mysqld.sock")
	}
	if a.keeps() {
		if err := at.asTold(d); err != nil {
			return d, at, err
		}
	}
	d.Socket = at.Socket
	if !filepath.IsAbs(d.Socket) {
		return d, at, &respaldo.Error{Kind: respaldo.Usage, What: d.Socket + " is no absolute path", Hint: "name the socket from the root"}
	}
	return d, at, nil
}

// asTold takes from an option file that stays where its server listens.
func (c *CloneServer) asTold(d mysql.Daemon) error {
	told, err := d.Told()
	if err != nil {
		return err
	}
	wrong := func(what, hint string) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: d.OptionFile + " " + what, Hint: hint}
	}
	if told["socket"] == "" {
		return wrong("says no socket, so the server could not be asked whether it runs", "add socket="+c.Socket+" below [mysqld]")
	}
	if resolved(told["datadir"]) != resolved(d.DataDir) {
		return wrong("is of another data directory ("+told["datadir"]+")", "correct datadir there, or move the file away for a new one")
	}
	if port := told["port"]; port != "" {
		if c.Port, err = strconv.Atoi(port); err != nil {
			return wrong("says port="+port+", which is no number", "correct the line")
		}
	}
	c.Socket = told["socket"]
	if bind := told["bind_address"]; bind != "" {
		c.Bind = bind
	}
	return nil
}

const longestSocket = 107 // unix(7)

// refuseSocket refuses a path that cannot be the server's socket, or is somebody else's. A
// server would take it away from them without a word.
func (a arrival) refuseSocket(path string) error {
	if len(path) > longestSocket {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the path of the socket would be too long: " + path, Hint: "give a shorter one with --socket"}
	}
	for _, dir := range sortedDirs(a.Targets) {
		if within(path, dir) {
			return nil
		}
	}
	if !exists(path) {
		return nil
	}
	if a.keeps() { // what a killed server has left, perhaps
		conn, err := net.Dial("unix", path)
		if err != nil {
			return nil
		}
		conn.Close()
	}
	return &respaldo.Error{Kind: respaldo.Refused, What: path + ", which would be the socket, is there already", Hint: "give another --socket, or remove it if nobody uses it"}
}

// writeOptions writes the server's option file. One that was there is set aside.
func (op *operation) writeOptions(a arrival) error {
	d, _, err := cloneDaemon(a)
	if err != nil {
		return err
	}
	if exists(d.OptionFile) {
		old := d.OptionFile + ".old"
		if err := os.Rename(d.OptionFile, old); err != nil {
			return err
		}
		op.Report.Warn("the option file that was there is now " + old + "; a new one is written")
	}
	return disk.Replace(d.OptionFile, []byte(cloneOptions(a, d)), 0o644) // the server reads it as its own user
}
