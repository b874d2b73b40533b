package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/respaldo-backup/respaldo"
)

// Request is what Send does.
type Request struct {
	Opener
	Program  string
	Begin    Begin // without Users and Groups, which the listing has
	Listing  *Listing
	Parallel int                         // connections that carry files
	Backoff  func(try int) time.Duration // before each try of a connection that broke; nil: seconds to half a minute
	Progress func(respaldo.Progress)     // from several goroutines, not concurrently
	Notes    func(Note)
	// Finish makes the last call or calls, on the connection that prepared the targets. A
	// connection lost in there starts all over, and sends what has changed since.
	Finish func(c *Client) error
}

// Sent is what a transfer took.
type Sent struct {
	Bytes   int64 `json:"bytes"` // of the files
	Files   int   `json:"files"`
	Changed int64 `json:"changed"` // bytes of the blocks that differed
	Carried int64 `json:"carried"` // bytes that went over the connections
	Retries int   `json:"retries,omitempty"`
}

// tries is how often a broken connection is tried again without any progress in between.
const tries = 6

func backoff(try int) time.Duration { return min(time.Second<<try, 30*time.Second) }

// Send brings the listed files into the targets at the receiver. A connection that breaks is
// made again a few times; an error of the other node's own is final. Whatever the error, the
// same again sends what is missing.
func Send(ctx context.Context, r Request) (Sent, error) {
	s := &sending{Request: r, batches: r.Listing.batches()}
	s.Begin.Users, s.Begin.Groups = r.Listing.Users, r.Listing.Groups
	s.sent.Bytes, s.sent.Files = r.Listing.Bytes, r.Listing.Files
	s.Open = func(ctx context.Context) (Conn, error) {
		conn, err := r.Open(ctx)
		return counted{conn, &s.carried}, err
	}
	if s.Backoff == nil {
		s.Backoff = backoff
	}
	err := s.persist(ctx, func() error { return s.all(ctx) })
	s.sent.Carried, s.sent.Changed = s.carried.Load(), s.changed.Load()
	return s.sent, err
}

type sending struct {
	Request
	batches [][]piece
	boot    string
	carried atomic.Int64
	changed atomic.Int64

	mu   sync.Mutex // of what follows
	done map[int]bool
	at   respaldo.Progress
	sent Sent
}

// persist does it again after a connection broke, as long as that gets on.
func (s *sending) persist(ctx context.Context, do func() error) error {
	for try := 0; ; try++ {
		before := s.changed.Load()
		err := do()
		var final *Failure
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &final), isLocal(err):
			return err
		}
		if s.changed.Load() > before {
			try = 0
		}
		if try == tries || s.boot == "" { // never was there
			return err
		}
		s.retried(err)
		select {
		case <-time.After(s.Backoff(try)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *sending) retried(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent.Retries++
	if s.Notes != nil {
		s.Notes(Note{Warn: err.Error() + "; trying again"})
	}
}

// localError is one that another connection does not help: a file here that cannot be read,
// or a connection that was tried often enough.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

func isLocal(err error) bool {
	var local *localError
	return errors.As(err, &local)
}

// all is the whole transfer. What an earlier try has finished is not done again.
func (s *sending) all(ctx context.Context) error {
	control, err := s.Dial(ctx, s.Program, s.Notes)
	if err != nil {
		return err
	}
	defer control.Close()
	if err := s.begin(control); err != nil {
		return err
	}
	if err := s.files(ctx); err != nil {
		return err
	}
	if s.Finish == nil {
		return nil
	}
	err = s.Finish(control)
	if err != nil {
		s.forget() // it may have begun to change the files
	}
	return err
}

func (s *sending) begin(c *Client) error {
	var begun begun
	if err := c.Call(callBegin, s.Begin, &begun); err != nil {
		return err
	}
	if s.boot != begun.Boot {
		s.forget()
	}
	s.boot = begun.Boot
	for some := range slices.Chunk(s.Listing.Entries, 4096) {
		text, err := json.Marshal(some)
		if err != nil {
			return err
		}
		if err := c.wire.send(frameEntries, text); err != nil {
			return c.broken(err)
		}
	}
	return c.Call(callPrepare, nil, nil)
}

// forget takes nothing for sent.
func (s *sending) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = map[int]bool{}
	s.at = respaldo.Progress{Phase: "send", Total: s.Listing.Bytes, Files: s.at.Files}
}

// files sends what the receiver lacks of all files.
func (s *sending) files(ctx context.Context) error {
	var todo []int
	for i := range s.batches {
		if !s.done[i] {
			todo = append(todo, i)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	queue := make(chan int)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(queue)
		for _, i := range todo {
			select {
			case queue <- i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range min(max(s.Parallel, 1), len(todo)) {
		group.Go(func() error {
			w := &worker{sending: s}
			defer w.close()
			for i := range queue {
				if err := s.persist(ctx, func() error { return w.send(ctx, i) }); err != nil {
					return &localError{err}
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// worker is one connection that carries files.
type worker struct {
	*sending
	client *Client
	packer *packer
}

func (w *worker) close() {
	if w.client != nil {
		w.client.Close()
		w.client = nil
	}
}

func (w *worker) send(ctx context.Context, batch int) error {
	var err error
	if w.packer == nil {
		if w.packer, err = newPacker(); err != nil {
			return &localError{err}
		}
	}
	if w.client == nil {
		if w.client, err = w.Dial(ctx, w.Program, w.Notes); err == nil {
			err = w.client.Call(callJoin, w.Begin, nil)
		}
	}
	var counted int64
	if err == nil {
		counted, err = w.batch(ctx, w.batches[batch])
	}
	if err != nil {
		w.count(-counted)
		w.close()
		return err
	}
	w.mu.Lock()
	w.done[batch] = true
	w.mu.Unlock()
	return nil
}

func (s *sending) count(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at.Done += n
	if s.Progress != nil {
		s.Progress(s.at)
	}
}

// batch compares and sends one batch. It returns what it has counted as done.
func (w *worker) batch(ctx context.Context, pieces []piece) (counted int64, err error) {
	c := w.client
	if err := c.wire.say(frameWant, pieces); err != nil {
		return 0, c.broken(err)
	}
	have := make([][]byte, len(pieces))
	for i, p := range pieces {
		if have[i], err = c.await(frameHave); err != nil {
			return 0, err
		}
		if len(have[i]) != 0 && len(have[i]) != p.blocks()*len(hash{}) {
			return 0, c.broken(errDamaged)
		}
	}
	var roots []byte
	for i, p := range pieces {
		root, err := w.piece(ctx, i, p, have[i])
		if err != nil {
			return counted, err
		}
		roots = append(roots, root[:]...)
		counted += p.Length
		w.count(p.Length)
	}
	err = c.wire.send(frameEnd, roots)
	if err == nil {
		err = c.wire.flush()
	}
	if err != nil {
		return counted, c.broken(err)
	}
	_, err = c.await(frameDone)
	return counted, err
}

// piece reads a piece of a file once and sends the blocks that the receiver has not.
func (w *worker) piece(ctx context.Context, number int, p piece, have []byte) (root hash, err error) {
	f, err := os.Open(p.path)
	if err != nil {
		return root, &localError{err}
	}
	defer f.Close()
	hashes := make([]hash, p.blocks())
	buffer := make([]byte, blockSize)
	for i := range hashes {
		if ctx.Err() != nil {
			return root, context.Cause(ctx)
		}
		offset, length := p.block(i)
		data := buffer[:length]
		if _, err := f.ReadAt(data, offset); err != nil {
			return root, &localError{shortRead(p.path, err)}
		}
		hashes[i] = sumOf(data)
		there := hashOfZeros(length)
		if len(have) > 0 {
			there = hash(have[i*len(hash{}):])
		}
		if there == hashes[i] {
			continue
		}
		head, content := w.packer.pack(number, i, hashes[i], data)
		if err := w.client.wire.send(frameBlock, head, content); err != nil {
			return root, w.client.broken(err)
		}
		w.changed.Add(int64(length))
	}
	// The origin's cache is for its server.
	unix.Fadvise(int(f.Fd()), p.Offset, p.Length, unix.FADV_DONTNEED)
	return rootOf(hashes), nil
}

func sumOf(data []byte) hash {
	if len(data) == blockSize && [blockSize]byte(data) == zeros {
		return zeroHash
	}
	return blake3.Sum256(data)
}

// counted counts what goes over a connection, both ways.
type counted struct {
	Conn
	bytes *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.bytes.Add(int64(n))
	return n, err
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}
