//go:build guest

package volume_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/internal/volume"
	"github.com/respaldo-backup/respaldo/lab/guest"
)

// twins is a writer whose two files never differ by more than one in any single instant.
type twins struct {
	dir   string
	mu    sync.Mutex
	acked uint64
	begun uint64
	err   error // once done
	stop  chan struct{}
	done  chan struct{}
}

func startTwins(dir string) *twins {
	w := &twins{dir: dir, stop: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w
}

func (w *twins) run() {
	defer close(w.done)
	var files [2]*os.File
	for i := range files {
		if files[i], w.err = os.Create(filepath.Join(w.dir, fmt.Sprint("twin", i))); w.err != nil {
			return
		}
		defer files[i].Close()
	}
	record := make([]byte, 8)
	for n := uint64(1); ; n++ {
		select {
		case <-w.stop:
			return
		default:
		}
		w.mu.Lock()
		w.begun = n
		w.mu.Unlock()
		binary.LittleEndian.PutUint64(record, n)
		for _, f := range files {
			_, err := f.WriteAt(record, int64(n%512)*4096)
			if err = firstOf(err, f.Sync()); err != nil {
				w.err = err
				return
			}
		}
		w.mu.Lock()
		w.acked = n
		w.mu.Unlock()
	}
}

func (w *twins) at() (acked, begun uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked, w.begun
}

// moves waits until the writer has got on.
func (w *twins) moves(t *testing.T) {
	t.Helper()
	_, from := w.at()
	guest.Eventually(t, 20*time.Second, func() error {
		select {
		case <-w.done:
			t.Fatalf("the origin's writer failed: %v", w.err)
		default:
		}
		if acked, _ := w.at(); acked < from+5 {
			return fmt.Errorf("the writer stands at %d", acked)
		}
		return nil
	})
}

func (w *twins) end() error {
	close(w.stop)
	<-w.done
	return w.err
}

// taken takes a snapshot of the writer's volume as an operation does. The snapshot holds no
// less than the writes that were done and no more than those that had begun.
func (w *twins) taken(t *testing.T, origin volume.Volume, r volume.Request) (snap volume.Snapshot, p volume.Pending, done, begun uint64) {
	t.Helper()
	p, err := origin.Prepare(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.Settle(w.dir); err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.moves(t) // nobody waits for what is ready
	done, _ = w.at()
	start := time.Now()
	err = p.Take(t.Context())
	took := time.Since(start)
	_, begun = w.at() // whatever Finish has still to do: the instant has passed
	snap, finishErr := p.Finish()
	if err = firstOf(err, finishErr); err != nil {
		t.Fatal(err)
	}
	if pause := p.Pause(); pause > took { // none if it was not seen
		t.Errorf("the volume paused for %s, within %s", pause, took)
	}
	t.Logf("suspended %8.1f ms, lock %8.1f ms, finished after %.1f ms", ms(p.Pause()), ms(took), ms(time.Since(start)))
	return snap, p, done, begun
}

func ms(each ...time.Duration) (sum float64) {
	for _, d := range each {
		sum += float64(d.Microseconds()) / 1000
	}
	return sum
}

// lastTwin is the highest record in a file.
func lastTwin(t *testing.T, path string) uint64 {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	for ; len(text) >= 8; text = text[min(4096, len(text)):] {
		last = max(last, binary.LittleEndian.Uint64(text))
	}
	return last
}
