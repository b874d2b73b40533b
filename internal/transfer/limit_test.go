package transfer

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// wrote counts what is written to all connections.
type wrote struct {
	io.Writer
	bytes *atomic.Int64
}

func (w wrote) Write(b []byte) (int, error) {
	w.bytes.Add(int64(len(b)))
	return w.Writer.Write(b)
}

// interrupting calls when a large part is written, which an allowance of a megabyte has room
// for a few times.
type interrupting struct {
	io.Writer
	call func()
}

func (w interrupting) Write(b []byte) (int, error) {
	if len(b) > 100<<10 {
		w.call()
	}
	return w.Writer.Write(b)
}

// Whatever is sent, over whichever connection, is taken from the one allowance.
func TestLimitIsAskedForEachByte(t *testing.T) {
	const allowance = 1 << 30
	from, to := newTree(t), filepath.Join(t.TempDir(), "data")
	var bytes atomic.Int64
	o := here(finisher()).meddled(func(w io.Writer) io.Writer { return wrote{w, &bytes} })
	o.Limit = rate.NewLimiter(rate.Every(24*time.Hour), allowance) // nothing is added while the test runs
	sent, err := Send(t.Context(), request(t, o, from, to, "one"))
	must(t, err)
	if taken := allowance - int64(o.Limit.Tokens()); taken != bytes.Load() || sent.Changed < 30<<20 {
		t.Errorf("%d bytes were taken from the limit, and %d sent", taken, bytes.Load())
	}
	sameTree(t, from, to)

	// Who waits for an allowance that comes in years can be interrupted.
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	o = here(finisher()).meddled(func(w io.Writer) io.Writer { return interrupting{w, func() { cancel(enough) }} })
	o.Limit = rate.NewLimiter(rate.Every(24*time.Hour), 1<<20)
	if _, err := Send(ctx, request(t, o, from, filepath.Join(t.TempDir(), "data"), "two")); !errors.Is(err, enough) {
		t.Errorf("interrupted while it waits: %v", err)
	}
}
