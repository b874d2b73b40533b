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

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/target"
	"github.com/respaldo-backup/respaldo/internal/transfer"
)

// Receivers is whose operations those of receivers are. No server can have that name.
const Receivers = "_clone"

// Receive is the other end of Clone: this program on the other node, started by ssh, at its
// standard input and output. It has neither server nor repository, and needs no
// configuration; losing the connection ends it.
func (s *Site) Receive(ctx context.Context, in io.Reader, out io.Writer) error {
	r := &transfer.Receiver{Program: s.Program, Refuse: s.refuseTarget, Calls: map[string]transfer.Handler{
		callLook: answering(s.lookAround), callStop: answering(s.stopClone),
		callFinish: answering(s.receiveAll), callFollow: answering(s.follow),
		callComplete: answering(func(_ context.Context, _ *transfer.Peer, a arrival) (any, error) { return a.complete(), nil }),
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

// lookAround refuses early what could not be done, and finds out what was left open.
func (s *Site) lookAround(ctx context.Context, p *transfer.Peer, a arrival) (any, error) {
	dir := a.Targets[dataName]
	if err := a.checkRefresh(); err != nil {
		return nil, err
	}
	if err := a.refuseBeside(); err != nil {
		return nil, err
	}
	d, at, err := cloneDaemon(a)
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
		if err := s.refuseTargets(a); err != nil {
			return nil, err
		}
	}
	if a.Start {
		if err := a.refuseServer(ctx, d, at, ours != 0); err != nil {
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

// refuseTargets refuses directories that are used, or hold something else.
func (s *Site) refuseTargets(a arrival) error {
	for _, at := range sortedDirs(a.Targets) {
		if err := s.refuseTarget(at); err != nil {
			return err
		}
		if a.Force || a.Refresh || target.Incomplete(at) {
			continue
		}
		if err := refuseFull(at); err != nil {
			return err
		}
	}
	return nil
}

// refuseServer refuses to promise a server that could not be started on the clone. One of an
// earlier clone that runs is stopped first: what it has is free by then.
func (a arrival) refuseServer(ctx context.Context, d mysql.Daemon, at CloneServer, runs bool) error {
	if a.Manifest.Encrypted {
		return &respaldo.Error{Kind: respaldo.Refused, What: "the origin has encrypted tables, and a server on the clone would need its keys",
			Hint: "clone without --start and --replica; what is printed at the end says what its options must be"}
	}
	if _, err := mysql.FindProgram(ctx, a.Server.Mysqld, a.Manifest); err != nil {
		return err
	}
	if !runs {
		if err := portFree(at.Bind, at.Port); err != nil {
			return err
		}
		return a.refuseSocket(d.Socket)
	}
	told, err := d.Told()
	if err != nil || told["socket"] == d.Socket {
		return err
	}
	return a.refuseSocket(d.Socket)
}

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
	if net.ParseIP(bind) == nil {
		return nil // several, or what only the server understands
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(bind, strconv.Itoa(port)))
	if err != nil {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("port %d of %s is not to be had", port, bind), Hint: "give another --port", Err: err}
	}
	return listener.Close()
}

func (s *Site) stopClone(ctx context.Context, p *transfer.Peer, a arrival) (any, error) {
	d := mysql.Daemon{DataDir: a.Targets[dataName]}
	d.OptionFile, d.Log, _ = besideOf(d.DataDir)
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
	wrote := false // the option file
	if !a.complete() {
		err = p.Finish(ctx, func() (err error) {
			wrote, err = op.finishClone(ctx, a)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	told := a.Manifest
	if a.Start { // which proves it; and the option file sees to the rest
		told.Proof.OK, told.Quiesced.Coordinates.Upstream = true, nil
	}
	got := Received{Targets: a.Targets, Options: optionsFor(told, a.Targets),
		Warnings: slices.Concat(warningsFor(told), keyNotes(told, a.Targets), adviceFor("/", a.Targets))}
	if a.Start {
		got.Running, err = op.startClone(ctx, a, program, wrote)
	}
	return got, err
}

// finishClone makes of the files what was asked for, and writes down what they are: all that
// must be before the mark goes, so that a start can be repeated.
func (op *operation) finishClone(ctx context.Context, a arrival) (wrote bool, err error) {
	if a.Replica != nil {
		if err := op.makeReplica(ctx, a); err != nil {
			return false, err
		}
	}
	if err := op.relocate(ctx, a.Manifest, a.Targets); err != nil {
		return false, err
	}
	if a.Start {
		// Two servers of one UUID are one to whoever replicates from them.
		if err := os.Remove(filepath.Join(a.Targets[dataName], "auto.cnf")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if wrote = !a.keeps(); wrote {
			if err := op.writeOptions(a); err != nil {
				return false, err
			}
		}
	}
	return wrote, a.writeRecord()
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

// startClone starts the server, unless that has been done before the connection was cut.
func (op *operation) startClone(ctx context.Context, a arrival, program respaldo.Binary, wrote bool) (*RunningClone, error) {
	d, at, err := cloneDaemon(a)
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
	pid := d.Running(ctx)
	if pid == 0 {
		if _, err := d.Stop(ctx); err != nil { // one that was starting, or is ending
			return nil, err
		}
		pid, err = d.Start(ctx)
	}
	if err != nil {
		op.Report.Warn("the files are complete; once this is solved, the same command with --refresh starts the server")
		if wrote && ctx.Err() == nil {
			// Moved aside, so that other settings are not left out next time.
			op.Report.Warn("the option file written for it is now " + d.OptionFile + ".failed")
			err = joinErrors(err, os.Rename(d.OptionFile, d.OptionFile+".failed"))
		}
		return nil, err
	}
	command := strings.Join(append(slices.Clone(program.Argv), "--defaults-file="+d.OptionFile), " ")
	op.Report.Step("started", fmt.Sprintf("process %d, port %d, socket %s", pid, at.Port, d.Socket))
	return &RunningClone{PID: pid, Bind: at.Bind, Port: at.Port, Socket: d.Socket, OptionFile: d.OptionFile, Log: d.Log, Command: command}, nil
}

func (s *Site) follow(ctx context.Context, _ *transfer.Peer, f following) (any, error) {
	return nil, mysql.AwaitFollowing(ctx, f.Socket, f.Account, f.Version, f.Until)
}
