package stall

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// probe writes a byte into a file on a volume again and again, into memory only: it waits for
// nobody but whoever holds the filesystem.
type probe struct {
	file    *os.File
	stop    chan struct{}
	done    chan struct{}
	mu      sync.Mutex
	longest time.Duration
	err     error
}

const probePace = 2 * time.Millisecond

func startProbe(dir string) (*probe, error) {
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		return nil, err
	}
	p := &probe{file: f, stop: make(chan struct{}), done: make(chan struct{})}
	go p.write()
	return p, nil
}

func (p *probe) write() {
	defer close(p.done)
	tick := time.NewTicker(probePace)
	defer tick.Stop()
	for {
		begun := time.Now()
		_, err := p.file.WriteAt([]byte{1}, 0)
		took := time.Since(begun)
		p.mu.Lock()
		p.longest, p.err = max(p.longest, took), errors.Join(p.err, err)
		p.mu.Unlock()
		select {
		case <-tick.C:
		case <-p.stop:
			return
		}
	}
}

// take is the longest write that has ended since the last call.
func (p *probe) take() (time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	longest := p.longest
	p.longest = 0
	return longest, p.err
}

func (p *probe) halt() error {
	close(p.stop)
	<-p.done
	return errors.Join(p.file.Close(), os.Remove(p.file.Name()))
}
