package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/target"
)

// In a process that ssh started, we are the receiver.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "receive" {
		finisher().Serve(context.Background(), os.Stdin, os.Stdout)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// pipes is a connection to a receiver in this process.
type pipes struct {
	io.Reader
	io.Writer
	close func()
}

func (p pipes) Close() error { p.close(); return nil }

func here(receiver *Receiver) Opener {
	return Opener{Node: "here", Open: func(ctx context.Context) (Conn, error) {
		in, theirOut, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		theirIn, out, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		ended := make(chan struct{})
		go func() {
			receiver.Serve(ctx, theirIn, theirOut)
			theirIn.Close()
			theirOut.Close()
			close(ended)
		}()
		return pipes{in, out, func() { out.Close(); <-ended; in.Close() }}, nil
	}}
}

// meddled wraps what is written to each connection.
func (o Opener) meddled(with func(io.Writer) io.Writer) Opener {
	open := o.Open
	o.Open = func(ctx context.Context) (Conn, error) {
		c, err := open(ctx)
		if err != nil {
			return nil, err
		}
		return pipes{c, with(c), func() { c.Close() }}, nil
	}
	return o
}

func content(seed uint64, n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(data)
	return data
}

// newTree is a data directory as far as files go: large and small, half empty, sparse.
func newTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte, mode fs.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o750))
		must(t, os.WriteFile(path, data, 0o600))
		must(t, os.Chmod(path, mode))
		must(t, os.Chtimes(path, time.Time{}, time.Unix(1_700_000_000, 123456789)))
	}
	write("ibdata1", content(1, pieceSize+5*blockSize+77), 0o660)
	write("shop/orders.ibd", append(content(2, 3*blockSize), make([]byte, 2*blockSize)...), 0o640)
	write("shop/empty", nil, 0o600)
	write("shop/text.frm", []byte(strings.Repeat("a table ", 1000)), 0o604)
	for i := range 40 {
		write(fmt.Sprintf("many/t%d.MYI", i), content(uint64(100+i), 1024), 0o660)
	}
	sparse, err := os.Create(filepath.Join(dir, "undo_001"))
	must(t, err)
	_, err = sparse.WriteAt(content(3, 4096), 8<<20)
	must(t, errors.Join(err, sparse.Truncate(16<<20), sparse.Close()))
	must(t, os.Symlink("/elsewhere/db", filepath.Join(dir, "linked")))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func request(t *testing.T, o Opener, from, to, session string) Request {
	t.Helper()
	listing, err := List(t.Context(), []Root{{Name: "data", Path: from}})
	must(t, err)
	return Request{Opener: o, Program: "test", Listing: listing, Parallel: 3,
		Begin:   Begin{Session: session, Targets: map[string]string{"data": to}, Main: "data", From: "a test"},
		Backoff: func(int) time.Duration { return time.Millisecond },
		Finish:  func(c *Client) error { return c.Call("finish", nil, nil) }}
}

func sameTree(t *testing.T, want, got string) {
	t.Helper()
	seen := map[string]bool{}
	must(t, filepath.WalkDir(want, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		rel, _ := filepath.Rel(want, path)
		seen[rel] = true
		other := filepath.Join(got, rel)
		a, _ := os.Lstat(path)
		b, err := os.Lstat(other)
		if err != nil {
			t.Errorf("%s is missing: %v", rel, err)
			return nil
		}
		if a.Mode() != b.Mode() && a.Mode()&fs.ModeSymlink == 0 {
			t.Errorf("%s has mode %s, not %s", rel, b.Mode(), a.Mode())
		}
		switch {
		case d.Type().IsRegular():
			x, _ := os.ReadFile(path)
			y, _ := os.ReadFile(other)
			if string(x) != string(y) {
				t.Errorf("%s differs", rel)
			}
			if !a.ModTime().Equal(b.ModTime()) {
				t.Errorf("%s is of %s, not %s", rel, b.ModTime(), a.ModTime())
			}
		case d.Type() == fs.ModeSymlink:
			x, _ := os.Readlink(path)
			if y, _ := os.Readlink(other); x != y {
				t.Errorf("%s leads to %s, not %s", rel, y, x)
			}
		}
		return nil
	}))
	must(t, filepath.WalkDir(got, func(path string, _ fs.DirEntry, err error) error {
		must(t, err)
		if rel, _ := filepath.Rel(got, path); !seen[rel] {
			t.Errorf("%s is there, and should not be", rel)
		}
		return nil
	}))
}

func finisher() *Receiver {
	return &Receiver{Program: "test", Calls: map[string]Handler{
		"finish": func(ctx context.Context, p *Peer, _ json.RawMessage) (any, error) { return nil, p.Finish(ctx, nil) },
	}}
}

// What arrives is what was sent, holes included; sent again, nothing is; after changes,
// little is, and what is gone goes.
func TestSendAndRefresh(t *testing.T) {
	from, to := newTree(t), filepath.Join(t.TempDir(), "new", "data")
	r := request(t, here(finisher()), from, to, "one")
	sent, err := Send(t.Context(), r)
	must(t, err)
	sameTree(t, from, to)
	if target.Incomplete(to) {
		t.Error("the mark is still there")
	}
	if sent.Changed > r.Listing.Bytes-16<<20 {
		t.Errorf("%d bytes sent of %d, a hole of 16 MiB among them", sent.Changed, r.Listing.Bytes)
	}
	if used := blocksOf(t, filepath.Join(to, "undo_001")); used > 2<<20 {
		t.Errorf("the holes take %d bytes", used)
	}

	if _, err := Send(t.Context(), r); respaldo.KindOf(err) != respaldo.Refused || target.Incomplete(to) {
		t.Errorf("into what is not empty: %v", err)
	}
	r.Begin.Force = true
	if sent, err = Send(t.Context(), r); err != nil || sent.Changed != 0 {
		t.Errorf("unchanged: %+v, %v", sent, err)
	}
	sameTree(t, from, to)

	f, err := os.OpenFile(filepath.Join(from, "ibdata1"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("changed"), pieceSize-3) // over the border of two pieces
	must(t, errors.Join(err, f.Close(), os.RemoveAll(filepath.Join(from, "many")), os.WriteFile(filepath.Join(from, "many"), []byte("a file now"), 0o600),
		os.Truncate(filepath.Join(from, "shop/text.frm"), 10), os.WriteFile(filepath.Join(from, "shop/orders.ibd"), make([]byte, 5*blockSize), 0o640)))
	r = request(t, here(finisher()), from, to, "two")
	r.Begin.Force = true
	if sent, err = Send(t.Context(), r); err != nil || sent.Changed > 7*blockSize || sent.Carried > 4*blockSize {
		t.Errorf("after small changes: %+v, %v", sent, err)
	}
	sameTree(t, from, to)
}

func blocksOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return allocated(info)
}

// limitedWriter lets some bytes through, and then breaks.
type limitedWriter struct {
	io.Writer
	left *atomic.Int64
}

func (w limitedWriter) Write(b []byte) (int, error) {
	if w.left.Add(-int64(len(b))) < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return w.Writer.Write(b)
}

// A connection that breaks is made again, and what is sent in the end is little more than
// what had to be.
func TestCutConnection(t *testing.T) {
	from, to := newTree(t), filepath.Join(t.TempDir(), "data")
	broken := atomic.Int32{}
	o := here(finisher()).meddled(func(w io.Writer) io.Writer {
		left := &atomic.Int64{}
		left.Store(1 << 40)
		if broken.Add(1) <= 4 {
			left.Store(10 << 20)
		}
		return limitedWriter{w, left}
	})
	sent, err := Send(t.Context(), request(t, o, from, to, "one"))
	must(t, err)
	sameTree(t, from, to)
	if sent.Retries == 0 || sent.Carried > 55<<20 {
		t.Errorf("not what a resumed transfer of 33 MiB takes: %+v", sent)
	}
}

// A sender that ends midway leaves a target that says so; the next one sends the rest.
func TestLaterRunResumes(t *testing.T) {
	from, to := newTree(t), filepath.Join(t.TempDir(), "data")
	left := &atomic.Int64{}
	left.Store(20 << 20)
	o := here(finisher())
	cut := o.meddled(func(w io.Writer) io.Writer { return limitedWriter{w, left} })
	first, err := Send(t.Context(), request(t, cut, from, to, "one"))
	if err == nil || !target.Incomplete(to) {
		t.Fatalf("the first run ended with %v", err)
	}
	second, err := Send(t.Context(), request(t, o, from, to, "two"))
	must(t, err)
	sameTree(t, from, to)
	if second.Changed > 33<<20-first.Changed/2 {
		t.Errorf("first %+v, then %+v", first, second)
	}
}

// flipping changes one bit of what passes, once.
type flipping struct {
	io.Writer
	at, passed int
	once       *atomic.Bool
}

func (w *flipping) Write(b []byte) (int, error) {
	if i := w.at - w.passed; i >= 0 && i < len(b) && w.once.CompareAndSwap(false, true) {
		b = append([]byte{}, b...)
		b[i] ^= 4
	}
	w.passed += len(b)
	return w.Writer.Write(b)
}

func TestFlippedBitIsNoticed(t *testing.T) {
	for _, at := range []int{3, 100, 1 << 20} {
		from, to := newTree(t), filepath.Join(t.TempDir(), "data")
		once := &atomic.Bool{}
		n := atomic.Int32{}
		o := here(finisher()).meddled(func(w io.Writer) io.Writer {
			if n.Add(1) == 1 { // the one that prepares must work
				return w
			}
			return &flipping{Writer: w, at: at, once: once}
		})
		sent, err := Send(t.Context(), request(t, o, from, to, "one"))
		if err != nil {
			t.Errorf("bit of byte %d: %v", at, err)
			continue
		}
		if !once.Load() || sent.Retries == 0 {
			t.Errorf("the flipped bit of byte %d was not noticed", at)
		}
		sameTree(t, from, to)
	}
}

// A block that is not what its hash says is never written, whatever the frame's checksum says.
func TestBlockIsCheckedBeforeItIsWritten(t *testing.T) {
	u, err := newUnpacker()
	must(t, err)
	p, err := newPacker()
	must(t, err)
	data := content(9, blockSize)
	head, body := p.pack(0, 0, sumOf(data), data)
	body = append([]byte{}, body...)
	body[5] ^= 1
	if _, err := u.unpack(head[8], body, blockSize, hash(head[9:])); !errors.Is(err, errDamaged) {
		t.Errorf("a damaged block: %v", err)
	}
}

// What cannot fit is refused before anything is written.
func TestNoRoom(t *testing.T) {
	from, to := newTree(t), filepath.Join(t.TempDir(), "data")
	r := request(t, here(finisher()), from, to, "one")
	for i := range r.Listing.Entries {
		if r.Listing.Entries[i].Name == "data/undo_001" {
			r.Listing.Entries[i].Size, r.Listing.Entries[i].Sparse = 1<<43, false
		}
	}
	_, err := Send(t.Context(), r)
	if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), "has room for") {
		t.Errorf("more than fits: %v", err)
	}
	if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was made all the same: %v", err)
	}
	// What was there stays, whole and unmarked.
	must(t, os.Mkdir(to, 0o700))
	must(t, os.WriteFile(filepath.Join(to, "old"), []byte("old"), 0o600))
	r.Begin.Force = true
	if _, err := Send(t.Context(), r); respaldo.KindOf(err) != respaldo.Refused {
		t.Errorf("more than fits: %v", err)
	}
	if list, _ := os.ReadDir(to); len(list) != 1 || list[0].Name() != "old" {
		t.Errorf("a refusal leaves %v", list)
	}
}

// Two senders into one directory are one too many, and the caller has a say.
func TestBusyAndRefused(t *testing.T) {
	from, to := newTree(t), filepath.Join(t.TempDir(), "data")
	r := request(t, here(finisher()), from, to, "one")
	r.Finish = func(*Client) error {
		other := request(t, here(finisher()), from, to, "two")
		if _, err := Send(t.Context(), other); respaldo.KindOf(err) != respaldo.Busy {
			t.Errorf("a second sender: %v", err)
		}
		return &Failure{&respaldo.Error{Kind: respaldo.Failed, What: "no more"}}
	}
	if _, err := Send(t.Context(), r); err == nil || err.Error() != "no more" {
		t.Errorf("the first sender: %v", err)
	}
	busy := finisher()
	busy.Refuse = func(dir string) error {
		return &respaldo.Error{Kind: respaldo.Refused, What: dir + " is in use", Hint: "stop it"}
	}
	elsewhere := filepath.Join(t.TempDir(), "a", "b")
	_, err := Send(t.Context(), request(t, here(busy), from, elsewhere, "three"))
	if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), "on here: ") || strings.Join(respaldo.HintsOf(err), "") != "stop it" {
		t.Errorf("refused: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(elsewhere)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refusal leaves its directory: %v", err)
	}
}

// Nothing outside of the target is written to, whatever the sender says.
func TestReceiverStaysInside(t *testing.T) {
	outside := t.TempDir()
	to := filepath.Join(t.TempDir(), "data")
	from := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(from, "out")))
	for _, bad := range []Entry{{Name: "../x", Mode: 0o600}, {Name: "other/x", Mode: 0o600}, {Name: "data/../../x", Mode: 0o600},
		{Name: "data/dev", Mode: fs.ModeDevice}, {Name: "data/out/x", Mode: 0o600}} {
		r := request(t, here(finisher()), from, to, "one")
		r.Listing.Entries = append(r.Listing.Entries, bad)
		if _, err := Send(t.Context(), r); err == nil {
			t.Errorf("%s was taken", bad.Name)
		}
	}
	if list, _ := os.ReadDir(outside); len(list) > 0 {
		t.Errorf("written outside: %v", list)
	}
}

func TestOtherProtocolIsRefused(t *testing.T) {
	r, w, _ := os.Pipe()
	r2, w2, _ := os.Pipe()
	go func() {
		wire := newWire(r, w2)
		wire.say(frameHello, hello{Protocol: Protocol + 1, Program: "9.9"})
		wire.receive()
	}()
	o := Opener{Node: "there", Open: func(context.Context) (Conn, error) { return pipes{r2, w, func() { w.Close() }}, nil }}
	if _, err := o.Dial(t.Context(), "test", nil); respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), "9.9") {
		t.Errorf("another protocol: %v", err)
	}
}

func allocated(info fs.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks * 512 }

// What is mounted into a target would be removed too, whatever device it is of.
func TestMountsInATarget(t *testing.T) {
	if err := refuseMounts("/"); respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(err.Error(), "mount point") {
		t.Errorf("the root: %v", err)
	}
	if err := refuseMounts("/proc/self/fd"); err != nil { // below a mount point, and a link
		t.Error(err)
	}
	if err := refuseMounts(t.TempDir()); err != nil {
		t.Error(err)
	}
}
