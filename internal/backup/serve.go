package backup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/disk"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// ServeRequest says what is served, and how it is reached.
type ServeRequest struct {
	Image    string // "now", a kept snapshot, or a backup: an ID, the beginning of one, "latest"
	Of       string // the server whose backups are looked among; "" is every server's
	Bind     string // an IP address of this machine; "" is 127.0.0.1
	Port     int    // 0 chooses one that is free
	Socket   string // a path of the user's for the socket, besides our own; "" for none
	Writable bool
	Memory   int64         // bytes, roughly; 0 as little as the image lets
	TTL      time.Duration // 0: until it is stopped
	// Ready is called once, when it can be used. Its error ends it.
	Ready func(Served) error
}

// Served is a private server on an image, alive.
type Served struct {
	Name     string               `json:"name"` // what stop wants
	Server   string               `json:"server"`
	Image    string               `json:"image"`
	Taken    time.Time            `json:"taken"` // what it shows is of then
	At       respaldo.Coordinates `json:"coordinates"`
	Version  respaldo.Version     `json:"version"`
	Bind     string               `json:"bind"`
	Port     int                  `json:"port"`
	Socket   string               `json:"socket"`
	Login    string               `json:"login"` // option file with an account that may do all; for root only
	Writable bool                 `json:"writable"`
	Since    time.Time            `json:"since"`
	Until    time.Time            `json:"until,omitzero"`
	PID      int                  `json:"pid"`           // of respaldo, not of the server
	Log      string               `json:"log,omitempty"` // where what it says goes, in the background
}

// Serve runs a private server on an image until ctx ends, the time has passed, or it cannot
// go on: its snapshot was lost, it crashed. Only the last is an error. Nothing of it reaches
// the origin, and nothing is left of it.
func (s *Site) Serve(ctx context.Context, request ServeRequest) (err error) {
	if err := request.settle(); err != nil {
		return err
	}
	op, err := s.beginSide(ctx, "serve")
	if err != nil {
		return err
	}
	defer op.close(ctx, &err)
	return op.withImage(ctx, imageRequest{Ref: request.Image, Of: request.Of, Writable: true}, func(ctx context.Context, img openedImage) error {
		return op.serve(ctx, img, request)
	})
}

// settle chooses what was left open, and refuses early what cannot be had.
func (r *ServeRequest) settle() error {
	if r.Bind == "" {
		r.Bind = "127.0.0.1"
	}
	if net.ParseIP(r.Bind) == nil {
		return &respaldo.Error{Kind: respaldo.Usage, What: r.Bind + " is no IP address", Hint: "give one of this machine's, or 0.0.0.0 for all of them"}
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(r.Bind, strconv.Itoa(r.Port)))
	if err != nil {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("port %d of %s is not to be had", r.Port, r.Bind), Err: err,
			Hint: "give another --port, or none and let respaldo choose one"}
	}
	r.Port = listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		return err
	}
	if r.Socket == "" {
		return nil
	}
	if r.Socket, err = filepath.Abs(r.Socket); err == nil && exists(r.Socket) {
		err = &respaldo.Error{Kind: respaldo.Refused, What: r.Socket + " exists", Hint: "give a path for --socket where nothing is"}
	}
	return err
}

// serve runs the server in an image that is open.
func (op *operation) serve(ctx context.Context, img openedImage, request ServeRequest) error {
	socketDir, err := op.public(ctx)
	if err != nil {
		return err
	}
	noted, err := op.ledger.Intend(kindServed, map[string]string{"image": img.Name})
	if err != nil {
		return err
	}
	err = op.instance(ctx, img.Manifest, img.Dirs, func(ir mysql.InstanceRequest) error {
		ir.Memory, ir.SocketDir = request.Memory, socketDir
		instance, account, err := mysql.Serve(ctx, ir, mysql.ServeOptions{Bind: request.Bind, Port: request.Port, Writable: request.Writable})
		if err != nil {
			return contextCause(ctx, err)
		}
		defer op.dismiss(ctx, instance)
		served := Served{Name: sideName(op.scope), Server: op.Server, Image: img.Name, Taken: img.Manifest.Taken, At: img.Manifest.Quiesced.Coordinates,
			Version: img.Manifest.Version, Bind: request.Bind, Port: request.Port, Socket: instance.Socket(), Login: filepath.Join(op.servedDir(), "root.cnf"),
			Writable: request.Writable, Since: time.Now(), PID: os.Getpid()}
		if request.TTL > 0 {
			served.Until = served.Since.Add(request.TTL)
		}
		if err := op.announce(ctx, &served, account, noted, request); err != nil {
			return err
		}
		return op.attend(ctx, instance, request.TTL)
	})
	return joinErrors(err, noted.Released())
}

// public makes the directory that others may look into for the socket, and nothing else.
func (op *operation) public(ctx context.Context) (string, error) {
	dir := op.servedDir()
	socketDir := filepath.Join(dir, "socket")
	_, err := op.ledger.Acquire(ctx, kindScratch, map[string]string{"path": dir}, func(*ledger.Held) error {
		if err := os.MkdirAll(socketDir, 0o755); err != nil {
			return err
		}
		for _, d := range []string{op.RunDir, filepath.Dir(dir), dir, socketDir} {
			info, err := os.Stat(d)
			if err == nil {
				err = os.Chmod(d, info.Mode().Perm()|0o011) // passed through, not listed
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, func(context.Context) error { return os.RemoveAll(dir) })
	return socketDir, err
}

// servedDir is where people find what is served.
func (op *operation) servedDir() string { return filepath.Join(op.RunDir, "served", op.scope) }

// announce makes known that the server can be used.
func (op *operation) announce(ctx context.Context, served *Served, account mysql.Account, noted *ledger.Held, request ServeRequest) error {
	if err := disk.Create(served.Login, []byte(account.OptionFile(served.Socket)), 0o600); err != nil {
		return err
	}
	if request.Socket != "" {
		if err := op.link(ctx, served.Socket, request.Socket); err != nil {
			return err
		}
		served.Socket = request.Socket
	}
	if err := noteServed(noted, *served); err != nil {
		return err
	}
	ledger.Point("serve.ready")
	return request.Ready(*served)
}

// link makes the socket appear where the user wants it.
func (op *operation) link(ctx context.Context, socket, at string) error {
	_, err := op.ledger.Acquire(ctx, kindLink, map[string]string{"path": at, "to": socket},
		func(*ledger.Held) error { return os.Symlink(socket, at) },
		func(context.Context) error { return removeLink(at, socket) })
	if errors.Is(err, os.ErrExist) || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return &respaldo.Error{Kind: respaldo.Refused, What: "cannot make the socket " + at, Hint: "give another --socket", Err: err}
	}
	return err
}

// removeLink removes a link of ours, and nothing else that has come to be there.
func removeLink(at, to string) error {
	if now, err := os.Readlink(at); err != nil || now != to {
		return nil
	}
	return os.Remove(at)
}

// attend waits until it is over. Being stopped is no error: it is how serving ends.
func (op *operation) attend(ctx context.Context, instance *mysql.Instance, ttl time.Duration) error {
	var passed <-chan time.Time
	if ttl > 0 {
		timer := time.NewTimer(ttl)
		defer timer.Stop()
		passed = timer.C
	}
	select {
	case <-passed:
		op.Report.Step("ended", "its time has passed")
		return nil
	case <-instance.Exited():
		return &respaldo.Error{Kind: respaldo.Failed, What: "the private server ended by itself",
			Hint: "its log is " + instance.LogPath(), Err: instance.Stop(ctx)}
	case <-ctx.Done():
		cause := context.Cause(ctx)
		if respaldo.KindOf(cause) == respaldo.Interrupted {
			op.Report.Step("ended", "stopped")
			return nil
		}
		return cause
	}
}

// dismissFor is how long a server that nobody needs may take to end.
const dismissFor = 20 * time.Second

// dismiss ends the server. How it ends says nothing: its files are thrown away. One whose
// snapshot is about to overflow is killed, so that it writes no more.
func (op *operation) dismiss(ctx context.Context, instance *mysql.Instance) {
	ledger.Point("serve.stopping")
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), dismissFor)
	defer cancel()
	if respaldo.KindOf(context.Cause(ctx)) == respaldo.SnapshotLost {
		cancel()
	}
	instance.Stop(ending)
}
