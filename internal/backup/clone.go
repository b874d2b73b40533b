package backup

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
	"github.com/respaldo-backup/respaldo/internal/transfer"
)

// CloneRequest says what goes where, and what runs there then.
type CloneRequest struct {
	Image  string // "now", a kept snapshot, or a backup: an ID, the beginning of one, "latest"
	Of     string // the server whose backups are looked among; "" is every server's
	Node   transfer.Node
	To     string            // becomes the data directory there
	Places map[string]string // as RestoreRequest's
	// Program is respaldo's path on the other node; "" has Self, this program's file, carried
	// there unless it is there already.
	Program, Self string
	Force         bool // the directories need not be empty
	Refresh       bool // an earlier clone of this server is brought up to date

	Parallel  int   // connections
	Bandwidth int64 // bytes per second over all of them; 0 is no limit

	Start  bool // a server on it
	Server CloneServer
	// Replica has it follow the origin. An empty Host is the origin's report_host, or where ssh
	// came from; Port 0 is the origin's.
	Replica *mysql.Source
}

// CloneServer is what the server on a clone is told.
type CloneServer struct {
	Bind    string   `json:"bind"`
	Port    int      `json:"port"`
	Socket  string   `json:"socket"` // "" is mysqld.sock in the data directory
	Mysqld  []string `json:"mysqld,omitempty"`
	Options []string `json:"options,omitempty"` // more lines of the option file
}

// Cloned is a copy of an image on another node.
type Cloned struct {
	Node    string               `json:"node"`
	Image   string               `json:"image"`
	Taken   time.Time            `json:"taken"`
	At      respaldo.Coordinates `json:"coordinates"`
	Program string               `json:"program"` // respaldo's path there
	transfer.Sent
	Seconds float64 `json:"seconds"`
	Received
	// Following is how far the replica had applied the origin when it was waited for.
	Following *respaldo.Coordinates `json:"following,omitempty"`
}

// Received is what the other node says of a clone that is complete.
type Received struct {
	Targets  map[string]string `json:"targets"`
	Options  []string          `json:"options"`
	Warnings []string          `json:"warnings,omitempty"`
	Running  *RunningClone     `json:"running,omitempty"`
}

// RunningClone is a server on a clone that lives on by itself.
type RunningClone struct {
	PID        int    `json:"pid"`
	Bind       string `json:"bind"`
	Port       int    `json:"port"`
	Socket     string `json:"socket"`
	OptionFile string `json:"option_file"`
	Log        string `json:"log"`
	Command    string `json:"command"` // what starts it
}

// Clone sends an image to another node, where this program receives it, and starts a server
// on it if asked. What was cut short is resumed by the same call: until it is complete the
// directory there carries a mark. Nothing stays here.
func (s *Site) Clone(ctx context.Context, request CloneRequest) (done Cloned, err error) {
	if err := request.Server.checkOptions(); err != nil {
		return done, err
	}
	op, err := s.beginSide(ctx, "clone")
	if err != nil {
		return done, err
	}
	defer op.close(ctx, &err)
	done.Node = request.Node.String()
	// The other node first: one that cannot be reached costs no snapshot.
	if done.Program = request.Program; done.Program == "" {
		carried, err := request.Node.Carry(ctx, request.Self)
		if err != nil {
			return done, err
		}
		done.Program = carried.Program
		if carried.Bytes > 0 {
			op.Report.Step("carried", fmt.Sprintf("respaldo to %s on %s, %s", carried.Program, request.Node, FormatBytes(carried.Bytes)))
		}
	}
	err = op.withImage(ctx, imageRequest{Ref: request.Image, Of: request.Of}, func(ctx context.Context, img openedImage) error {
		return op.sendImage(ctx, img, request, &done)
	})
	if err != nil || request.Replica == nil {
		return done, err
	}
	done.Following, err = op.awaitReplica(ctx, request, done)
	return done, err
}

// arrival is all that the receiver is told, at each of its calls.
type arrival struct {
	Manifest respaldo.Manifest `json:"manifest"`
	Targets  map[string]string `json:"targets"`
	Image    string            `json:"image"`
	Force    bool              `json:"force,omitempty"`
	Refresh  bool              `json:"refresh,omitempty"`
	Start    bool              `json:"start,omitempty"`
	Server   CloneServer       `json:"server"`
	Replica  *mysql.Source     `json:"replica,omitempty"`
	Session  string            `json:"session"` // this run of the sender
}

// looked is what the receiver found before anything is sent.
type looked struct {
	Replica *mysql.Source `json:"replica,omitempty"` // with what it found out
}

// The calls that a receiver answers besides the transfer's own.
const (
	callLook   = "look"   // can it be done? Nothing is touched
	callStop   = "stop"   // ends the server of an earlier clone
	callFinish = "finish" // everything is there
	callFollow = "follow" // wait for the replica

	callComplete = "complete" // is this sender's clone complete?
)

func (op *operation) sendImage(ctx context.Context, img openedImage, request CloneRequest, done *Cloned) error {
	roots := rootsOf(&img)
	targets, err := targets(img.Manifest, RestoreRequest{To: request.To, Places: request.Places})
	if err != nil {
		return err
	}
	done.Image, done.Taken, done.At = img.Name, img.Manifest.Taken, img.Manifest.Quiesced.Coordinates
	a := arrival{Manifest: img.Manifest, Targets: targets, Image: img.What, Force: request.Force, Refresh: request.Refresh,
		Start: request.Start || request.Replica != nil, Server: request.Server, Replica: request.Replica, Session: op.ledger.Run()}
	if a.Replica != nil {
		if err := mysql.Followable(img.Manifest); err != nil {
			return err
		}
		source := *a.Replica
		if source.Host == "" {
			source.Host = img.Manifest.Variables["report_host"]
		}
		if source.Port == 0 {
			source.Port, _ = strconv.Atoi(img.Manifest.Variables["port"])
		}
		a.Replica = &source
	}
	opener := op.opener(request, done.Program)
	if err := op.askFirst(ctx, opener, &a); err != nil {
		return err
	}
	if a.Replica != nil {
		op.Report.Step("checked", fmt.Sprintf("%s reaches the origin at %s:%d as %s", request.Node, a.Replica.Host, a.Replica.Port, a.Replica.User))
	}
	listing, err := transfer.List(ctx, roots)
	if err != nil {
		return contextCause(ctx, err)
	}
	start, finishing := time.Now(), false
	ledger.Point("clone.send")
	done.Sent, err = transfer.Send(ctx, transfer.Request{
		Opener: opener, Program: op.Program, Listing: listing, Parallel: request.Parallel,
		Begin: transfer.Begin{Session: op.ledger.Run(), Targets: targets, Main: dataName, Force: request.Force || request.Refresh,
			From: img.What + " of server " + op.Server + " on " + op.Host},
		Progress: op.midway("clone.sending"), Notes: op.told,
		Finish: func(c *transfer.Client) error {
			op.Report.Step("sent", fmt.Sprintf("%d files, %s", listing.Files, FormatBytes(listing.Bytes)))
			ledger.Point("clone.finish")
			finishing = true
			return c.Call(callFinish, a, &done.Received)
		},
	})
	if err != nil && finishing && ctx.Err() == nil {
		err = op.finishAgain(ctx, opener, a, done, err)
	}
	if err != nil {
		return contextCause(ctx, err)
	}
	done.Seconds = time.Since(start).Seconds()
	op.Report.Step("complete", fmt.Sprintf("%s on %s; %s differed, %s went over the wire", targets[dataName], request.Node, FormatBytes(done.Changed), FormatBytes(done.Carried)))
	return nil
}

// finishAgain is for a connection that was cut at the very end. A clone that is complete
// cannot be sent again, as its directory is not empty, or its server runs: what remains is
// done. Else the error stays what it was.
func (op *operation) finishAgain(ctx context.Context, o transfer.Opener, a arrival, done *Cloned, cause error) error {
	c, err := o.Dial(ctx, op.Program, op.told)
	if err != nil {
		return cause
	}
	defer c.Close()
	var complete bool
	if err := c.Call(callComplete, a, &complete); err != nil || !complete {
		return cause
	}
	return c.Call(callFinish, a, &done.Received)
}

// rootsOf are the image's places under their stored names. One of which there is no copy
// loses that name.
func rootsOf(img *openedImage) []transfer.Root {
	var roots []transfer.Root
	img.Manifest.Layout.Places = slices.Clone(img.Manifest.Layout.Places)
	for i, p := range img.Manifest.Layout.Places {
		if p.Stored == "" || slices.ContainsFunc(roots, func(r transfer.Root) bool { return r.Name == p.Stored }) {
			continue
		}
		if path, ok := img.Dirs[p.Real]; ok {
			roots = append(roots, transfer.Root{Name: p.Stored, Path: path})
		} else {
			img.Manifest.Layout.Places[i].Stored = ""
		}
	}
	return roots
}

func (op *operation) opener(request CloneRequest, program string) transfer.Opener {
	return transfer.Opener{Node: request.Node.String(), Limit: transfer.Limit(request.Bandwidth),
		Open: func(ctx context.Context) (transfer.Conn, error) { return request.Node.Open(ctx, program) }}
}

// told passes on what the other node tells.
func (op *operation) told(n transfer.Note) {
	if n.Warn != "" {
		op.Report.Warn(n.Warn)
	}
	if n.Step != "" {
		op.Report.Step(n.Step, n.More)
	}
}

// askFirst has the other node look whether all can be done, and makes it ready.
func (op *operation) askFirst(ctx context.Context, o transfer.Opener, a *arrival) error {
	c, err := o.Dial(ctx, op.Program, op.told)
	if err != nil {
		return contextCause(ctx, err)
	}
	defer c.Close()
	var found looked
	if err := c.Call(callLook, a, &found); err != nil {
		return contextCause(ctx, err)
	}
	a.Replica = found.Replica
	if !a.Refresh {
		return nil
	}
	return contextCause(ctx, c.Call(callStop, a, nil))
}

// following is what the receiver waits for.
type following struct {
	Socket  string               `json:"socket"`
	Account mysql.Account        `json:"account"`
	Version respaldo.Version     `json:"version"`
	Until   respaldo.Coordinates `json:"until"`
}

// awaitReplica takes the origin's position now, after the start, and waits until the replica
// has applied it.
func (op *operation) awaitReplica(ctx context.Context, request CloneRequest, done Cloned) (*respaldo.Coordinates, error) {
	server, err := mysql.Connect(ctx, op.MySQL, op.Log)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	at, err := server.Coordinates(ctx)
	if err != nil {
		return nil, err
	}
	account, err := mysql.LoginFor(op.MySQL)
	if err != nil {
		return nil, err
	}
	c, err := op.opener(request, done.Program).Dial(ctx, op.Program, op.told)
	if err != nil {
		return nil, contextCause(ctx, err)
	}
	defer c.Close()
	if err := c.Call(callFollow, following{Socket: done.Running.Socket, Account: account, Version: server.Version(), Until: at}, nil); err != nil {
		return nil, contextCause(ctx, err)
	}
	op.Report.Step("follows", fmt.Sprintf("has applied everything up to %s, where the origin stood after its start", at))
	return &at, nil
}

func sortedDirs(targets map[string]string) []string { return slices.Sorted(maps.Values(targets)) }
