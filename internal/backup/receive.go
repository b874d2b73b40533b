package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/target"
	"github.com/respaldo-backup/respaldo/internal/transfer"
)

// Receive is the other end of Clone: this program on the other node, started by ssh, at its
// standard input and output. It has neither server nor repository, and needs no
// configuration; losing the connection ends it.
func (s *Site) Receive(ctx context.Context, in io.Reader, out io.Writer) error {
	r := &transfer.Receiver{Program: s.Program, Refuse: s.refuseTarget, Calls: map[string]transfer.Handler{
		callLook: answering(s.lookAround), callStop: answering(s.stopClone),
		callFinish: answering(s.receiveAll), callFollow: answering(s.follow),
	}}
	return r.Serve(ctx, in, out)
}

// answering decodes a call's arguments, and reports to the sender what happens meanwhile.
func answering[A any](do func(context.Context, *transfer.Peer, A) (any, error)) transfer.Handler {
	return func(ctx context.Context, p *transfer.Peer, text json.RawMessage) (any, error) {
		var args A
		if err := json.Unmarshal(text, &args); err != nil {
			return nil, err
		}
		return do(ctx, p, args)
	}
}

// toSender is a Reporter on the other node.
type toSender struct{ peer *transfer.Peer }

func (t toSender) Step(name, detail string)   { t.peer.Note(transfer.Note{Step: name, More: detail}) }
func (t toSender) Warn(message string)        { t.peer.Note(transfer.Note{Warn: message}) }
func (t toSender) Progress(respaldo.Progress) {}

// refuseTarget is asked right before a directory is changed.
func (s *Site) refuseTarget(dir string) error {
	for _, ours := range []string{s.StateDir, s.RunDir} {
		if within(dir, ours) || within(ours, dir) {
			return &respaldo.Error{Kind: respaldo.Refused, What: dir + " and respaldo's own " + ours + " are one directory, or one lies in the other", Hint: "name a directory that has nothing else in it"}
		}
	}
	return refuseInUse(dir)
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
	Replica  bool                 `json:"replica,omitempty"`
}

const cloneRecordFormat = 1

// lookAround refuses early what could not be done, and finds out what was left open.
func (s *Site) lookAround(ctx context.Context, p *transfer.Peer, a arrival) (any, error) {
	dir := a.Targets[dataName]
	if err := s.checkRefresh(a); err != nil {
		return nil, err
	}
	d, err := cloneDaemon(a)
	if err != nil {
		return nil, err
	}
	ours := d.PID()
	switch {
	case ours != 0 && !a.Refresh:
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the server of an earlier clone runs on %s (process %d)", dir, ours),
			Hint: "give --refresh, which stops it, or choose another directory"}
	case ours != 0 && !a.Start:
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("the server of the earlier clone runs on %s (process %d)", dir, ours),
			Hint: "give --start or --replica too, so that it is started again, or stop it first"}
	case ours == 0:
		for _, at := range sortedDirs(a.Targets) {
			if err := s.refuseTarget(at); err != nil {
				return nil, err
			}
			if !a.Force && !a.Refresh && !target.Incomplete(at) {
				if err := refuseFull(at); err != nil {
					return nil, err
				}
			}
		}
	}
	if !a.Start {
		return looked{}, nil
	}
	if a.Manifest.Encrypted {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "the origin has encrypted tables, and a server on the clone would need its keys",
			Hint: "clone without --start and --replica; what is printed at the end says what its options must be"}
	}
	if d.Binary, err = mysql.FindProgram(ctx, a.Server.Mysqld, a.Manifest); err != nil {
		return nil, err
	}
	if len(d.Socket) > longestSocket {
		return nil, &respaldo.Error{Kind: respaldo.Refused, What: "the path of the socket would be too long: " + d.Socket, Hint: "give a shorter one with --socket"}
	}
	if ours == 0 {
		if err := portFree(a.Server.Bind, a.Server.Port); err != nil {
			return nil, err
		}
	}
	if a.Replica != nil {
		if a.Replica.Host == "" {
			from := strings.Fields(os.Getenv("SSH_CONNECTION"))
			if len(from) == 0 {
				return nil, &respaldo.Error{Kind: respaldo.Usage, What: "nobody says where the origin is reached from here", Hint: "give --replica-host"}
			}
			a.Replica.Host = from[0]
		}
		if err := a.Replica.Check(ctx, a.Manifest); err != nil {
			return nil, err
		}
	}
	return looked{Replica: a.Replica}, nil
}

const longestSocket = 107 // unix(7)

func refuseFull(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range list {
		if e.Name() != target.LostFound {
			return target.NotEmpty(dir, e.Name())
		}
	}
	return err
}

func portFree(bind string, port int) error {
	listener, err := net.Listen("tcp", net.JoinHostPort(bind, strconv.Itoa(port)))
	if err != nil {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("port %d of %s is not to be had", port, bind), Hint: "give another --port", Err: err}
	}
	return listener.Close()
}

// checkRefresh refuses to bring up to date what is no earlier clone of the same server.
func (s *Site) checkRefresh(a arrival) error {
	if !a.Refresh {
		return nil
	}
	dir := a.Targets[dataName]
	_, _, path := besideOf(dir)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if target.Incomplete(dir) {
			return nil // of a first clone that was cut short
		}
		return &respaldo.Error{Kind: respaldo.NotFound, What: dir + " holds no earlier clone", Hint: "leave --refresh out to make one; --force replaces what is there, and sends only what differs as well"}
	}
	var r cloneRecord
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	switch {
	case err != nil:
		return err
	case r.Format > cloneRecordFormat:
		return &respaldo.Error{Kind: respaldo.Refused, What: path + " was written by a newer respaldo", Hint: "use that version"}
	case r.ServerID != a.Manifest.ServerID:
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("%s is a clone of another server (%s on %s)", dir, r.Server, r.Host), Hint: "choose another directory, or replace it with --force"}
	case r.Replica && a.Replica == nil:
		return &respaldo.Error{Kind: respaldo.Refused, What: dir + " is a replica's, and would be none any more", Hint: "give --replica too; or replace it with --force"}
	}
	return nil
}

// cloneDaemon is the server of a clone, as far as its paths go.
func cloneDaemon(a arrival) (mysql.Daemon, error) {
	d := mysql.Daemon{DataDir: a.Targets[dataName], Socket: a.Server.Socket}
	d.OptionFile, d.Log, _ = besideOf(d.DataDir)
	if d.Socket == "" {
		d.Socket = filepath.Join(d.DataDir, "mysqld.sock")
	}
	if !filepath.IsAbs(d.Socket) {
		return d, &respaldo.Error{Kind: respaldo.Usage, What: d.Socket + " is no absolute path", Hint: "name the socket from the root"}
	}
	return d, nil
}

func (s *Site) stopClone(ctx context.Context, p *transfer.Peer, a arrival) (any, error) {
	d, err := cloneDaemon(a)
	if err != nil {
		return nil, err
	}
	stopped, err := d.Stop(ctx)
	if stopped && err == nil {
		toSender{p}.Step("stopped", "the server of the earlier clone")
	}
	return nil, err
}

// receiveAll completes a clone: files find their places, the replica is told what to follow,
// everything is on disk; then the server starts.
func (s *Site) receiveAll(ctx context.Context, p *transfer.Peer, a arrival) (_ any, err error) {
	site := *s
	site.Report, site.Binary = toSender{p}, a.Server.Mysqld
	op, err := site.beginSide(ctx, "receive")
	if err != nil {
		return nil, err
	}
	defer op.close(ctx, &err)
	var program respaldo.Binary
	if a.Start {
		if program, err = mysql.FindProgram(ctx, a.Server.Mysqld, a.Manifest); err != nil {
			return nil, err
		}
		op.Binary = nil
		a.Manifest.Binary = program
	}
	err = p.Finish(ctx, func() error {
		if a.Replica != nil {
			if err := op.makeReplica(ctx, a); err != nil {
				return err
			}
		}
		if err := op.relocate(ctx, a.Manifest, a.Targets); err != nil {
			return err
		}
		if !a.Start {
			return nil
		}
		// Two servers of one UUID are one to whoever replicates from them.
		if err := os.Remove(filepath.Join(a.Targets[dataName], "auto.cnf")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	told := a.Manifest
	if a.Start { // which proves it; and the option file sees to the rest
		told.Proof.OK, told.Quiesced.Coordinates.Upstream = true, nil
	}
	got := Received{Targets: a.Targets, Options: optionsFor(told, a.Targets),
		Warnings: slices.Concat(warningsFor(told), keyNotes(told, a.Targets), adviceFor("/", a.Targets))}
	if err := writeRecord(a); err != nil {
		return nil, err
	}
	if a.Start {
		got.Running, err = op.startClone(ctx, a, program)
	}
	return got, err
}

func writeRecord(a arrival) error {
	_, _, path := besideOf(a.Targets[dataName])
	m := a.Manifest
	text, err := json.MarshalIndent(cloneRecord{Format: cloneRecordFormat, Server: m.Server, ServerID: m.ServerID, Host: m.Host, Image: a.Image,
		Taken: m.Taken, At: m.Quiesced.Coordinates, Replica: a.Replica != nil}, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(path, append(text, '\n'))
}

// makeReplica has a private server, which nobody reaches and which asks for no password,
// recover the files and write down whom to follow.
func (op *operation) makeReplica(ctx context.Context, a arrival) error {
	err := op.instance(ctx, a.Manifest, restoredDirs(a.Manifest.Layout, a.Targets), func(request mysql.InstanceRequest) error {
		request.Options = append(request.Options, mysql.ForReplica()...)
		instance, err := mysql.StartInstance(ctx, request)
		if err != nil {
			return err
		}
		return joinErrors(instance.Follow(ctx, *a.Replica), instance.Stop(ctx))
	})
	if err == nil {
		op.Report.Step("replica", fmt.Sprintf("is to follow %s:%d from %s", a.Replica.Host, a.Replica.Port, a.Manifest.Quiesced.Coordinates))
	}
	return err
}

// startClone writes the option file, unless an earlier clone left one, and starts the server.
func (op *operation) startClone(ctx context.Context, a arrival, program respaldo.Binary) (*RunningClone, error) {
	d, err := cloneDaemon(a)
	if err != nil {
		return nil, err
	}
	d.Binary = program
	info, err := os.Stat(d.DataDir)
	if err != nil {
		return nil, err
	}
	stat := info.Sys().(*syscall.Stat_t)
	d.UID, d.GID = int(stat.Uid), int(stat.Gid)
	if !a.Refresh || !exists(d.OptionFile) {
		text := cloneOptions(a, d)
		if err := writeDurably(d.OptionFile, []byte(text)); err != nil {
			return nil, err
		}
		if err := os.Chmod(d.OptionFile, 0o644); err != nil { // the server reads it as its own user
			return nil, err
		}
	}
	pid, err := d.Start(ctx)
	if err != nil {
		// Moved aside, so that other settings are not left out next time.
		op.Report.Warn("the files are complete; once this is solved, the same command with --refresh starts the server. Its option file is now " + d.OptionFile + ".failed")
		return nil, joinErrors(err, os.Rename(d.OptionFile, d.OptionFile+".failed"))
	}
	command := strings.Join(append(slices.Clone(program.Argv), "--defaults-file="+d.OptionFile), " ")
	op.Report.Step("started", fmt.Sprintf("process %d, port %d, socket %s", pid, a.Server.Port, d.Socket))
	return &RunningClone{PID: pid, Bind: a.Server.Bind, Port: a.Server.Port, Socket: d.Socket, OptionFile: d.OptionFile, Log: d.Log, Command: command}, nil
}

func (s *Site) follow(ctx context.Context, _ *transfer.Peer, f following) (any, error) {
	return nil, mysql.AwaitFollowing(ctx, f.Socket, f.Account, f.Version, f.Until)
}
