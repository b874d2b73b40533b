package mysql

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-mysql-org/go-mysql/replication"
	"golang.org/x/sys/unix"

	respaldo "github.com/respaldo-backup/respaldo"
)

const (
	// probeEvery is how often a StallProbe looks. It costs a system call each time, and a turn
	// of the processor.
	probeEvery = 2 * time.Millisecond
	// probeLead is how long it watches a server that is written to before the lock, to know
	// what is usual there; probeIdle, one that is not.
	probeLead = time.Second
	probeIdle = 250 * time.Millisecond
	// probeTail is how long after the release the first commit is waited for at the least and
	// at the most; in between, twice what is usual.
	probeTailMin = 100 * time.Millisecond
	probeTailMax = time.Second
)

// StallProbe measures from outside for how long nobody could commit around a snapshot: it
// watches the current binlog grow. That needs no statement, no privilege and no table, the
// server does not notice, and it counts what writers really waited for, whoever was to
// blame: the lock, the volume, a disk that was busy.
//
// Intervals run from the last look before a growth to the look that saw the next one: they
// are never too short, and at most two looks too long. How long these were is in what it says.
//
// A nil probe measures nothing.
type StallProbe struct {
	why  string // there is nothing to watch; empty while there is
	quit chan struct{}
	stop sync.Once

	mu      sync.Mutex
	binlog  *binlogGrowth
	started time.Time
	looked  time.Time // last
	since   gap       // begins where the last growth was
	grown   time.Time // when that was seen; zero: not yet
	gaps    []gap
	asked   time.Time // when the lock was asked for; zero before that
}

// gap is a time between two growths, or from the start to the first, that is at most so much
// shorter.
type gap struct {
	from, to time.Time
	slack    time.Duration
}

func (g gap) length() time.Duration { return g.to.Sub(g.from) }

// until ends a gap.
func (g gap) until(to time.Time, slack time.Duration) gap {
	return gap{from: g.from, to: to, slack: g.slack + slack}
}

// ProbeStall begins to watch. Close ends it.
func (f *Facts) ProbeStall() *StallProbe {
	p := &StallProbe{quit: make(chan struct{})}
	p.binlog, p.why = f.watchBinlog()
	p.started = time.Now()
	p.looked, p.since.from = p.started, p.started
	if p.binlog != nil {
		go p.run()
	}
	return p
}

// Close ends the watch. It may be called again. It waits for nothing: on a volume that a
// failed command has left suspended a look may hang until that is resumed.
func (p *StallProbe) Close() {
	if p != nil {
		p.stop.Do(func() { close(p.quit) })
	}
}

func (p *StallProbe) run() {
	defer p.binlog.close()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-tick.C:
			p.look()
		}
	}
}

func (p *StallProbe) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	grown := p.binlog.grown()
	now := time.Now()
	before := p.looked
	p.looked = now
	if !grown {
		return
	}
	if p.asked.IsZero() { // a moment without long statements may be long in coming
		p.forget(now.Add(-2 * probeLead))
	}
	p.gaps = append(p.gaps, p.since.until(now, now.Sub(before)))
	p.since, p.grown = gap{from: before, slack: now.Sub(before)}, now
}

// forget drops the gaps that ended before, from time to time.
func (p *StallProbe) forget(before time.Time) {
	if len(p.gaps) < 4096 {
		return
	}
	for i, g := range p.gaps {
		if g.to.After(before) {
			p.gaps = append(p.gaps[:0], p.gaps[i:]...)
			return
		}
	}
	p.gaps = p.gaps[:0]
}

// lead waits until enough has been seen to know what is usual. Nobody waits for us.
func (p *StallProbe) lead(ctx context.Context) error {
	if p == nil || p.binlog == nil {
		return nil
	}
	if err := p.wait(ctx, p.started.Add(probeIdle), func() bool { return !p.grown.IsZero() }); err != nil {
		return err
	}
	p.mu.Lock()
	idle := p.grown.IsZero()
	p.mu.Unlock()
	if idle {
		return nil
	}
	return p.wait(ctx, p.started.Add(probeLead), func() bool { return false })
}

// wait looks until the condition holds, which is asked under the probe's own lock, or a
// time has come.
func (p *StallProbe) wait(ctx context.Context, until time.Time, holds func() bool) error {
	tick := time.NewTicker(5 * probeEvery)
	defer tick.Stop()
	for {
		p.mu.Lock()
		held := holds()
		p.mu.Unlock()
		if held || !time.Now().Before(until) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// begin is called right before the lock is asked for.
func (p *StallProbe) begin() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = time.Now()
}

// end is called when the lock has been given back. It waits for the first commit after that,
// for a second at most, and puts down what was measured.
func (p *StallProbe) end(ctx context.Context, q *respaldo.Quiesced) {
	if p == nil {
		return
	}
	released := time.Now()
	if p.binlog == nil {
		p.byOurClock(q)
		return
	}
	p.mu.Lock()
	tail := min(max(2*p.usual(), probeTailMin), probeTailMax)
	p.mu.Unlock()
	p.wait(ctx, released.Add(tail), func() bool { return p.grown.After(released) })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum(q, released)
}

// byOurClock is an upper bound: no writer can have been held by the lock before it was asked
// for or after it was given back.
func (p *StallProbe) byOurClock(q *respaldo.Quiesced) {
	if q.Mode == respaldo.LockNone {
		q.Stall = "not measured: " + p.why
		return
	}
	q.StalledSeconds = q.WaitedSeconds + q.HeldSeconds
	q.Stall = "by our own clock, waiting for the lock included: " + p.why
}

// usual is the longest gap that ended before the lock was asked for.
func (p *StallProbe) usual() (longest time.Duration) {
	for _, g := range p.gaps {
		if g.to.Before(p.asked) && g.to.After(p.asked.Add(-2*probeLead)) {
			longest = max(longest, g.length())
		}
	}
	return longest
}

// sum puts into words and figures what was seen.
func (p *StallProbe) sum(q *respaldo.Quiesced, released time.Time) {
	usual, about := p.usual(), ""
	if p.grown.Before(released) {
		if usual == 0 {
			q.Stall = "idle: nobody wrote"
			return
		}
		p.gaps = append(p.gaps, p.since.until(p.looked, 0))
		about = fmt.Sprintf("; nobody wrote in the %d ms after it", p.looked.Sub(released).Milliseconds())
	}
	if usual == 0 {
		about = fmt.Sprintf("; nobody wrote in the %d ms before it", p.asked.Sub(p.started).Milliseconds())
	}
	var longest gap
	for _, g := range p.gaps {
		if g.to.Before(p.asked) || g.from.After(released) {
			continue
		}
		if usual == 0 && g.from.Before(p.asked) {
			g.from, g.slack = p.asked, 0 // who comes then has not waited before
		}
		if g.length() > longest.length() {
			longest = g
		}
	}
	q.StalledSeconds, q.UsualSeconds = longest.length().Seconds(), usual.Seconds()
	q.Stall = fmt.Sprintf("seen by the binlog's growth, at most %.1f ms too long%s", longest.slack.Seconds()*1000, about)
}

// binlogGrowth follows the binlog that is being written, over rotations.
type binlogGrowth struct {
	facts *Facts
	file  *os.File
	size  int64
	index fs.FileInfo
	// turned tells that the file was seen to end, and quiet is how often in a row nothing was
	// seen: when to look whether there is another.
	turned bool
	quiet  int
}

// indexEvery is after how many quiet looks the index is looked at, in case that the end of a
// binlog was missed.
const indexEvery = 100

// watchBinlog opens the current binlog, or says why watching it would tell nothing.
func (f *Facts) watchBinlog() (b *binlogGrowth, why string) {
	switch {
	case !f.BinlogOn:
		return nil, "the server keeps no binlog to watch"
	case f.Replica && !f.On("log_slave_updates") && !f.On("log_replica_updates"):
		return nil, "what the replica applies is not in its binlog (log_slave_updates is off)"
	}
	b = &binlogGrowth{facts: f}
	var err error
	if b.index, err = os.Stat(f.BinlogIndex); err == nil {
		err = b.open()
	}
	if err != nil {
		return nil, "the binlog cannot be watched: " + err.Error()
	}
	return b, ""
}

// open opens the file that the index names last.
func (b *binlogGrowth) open() error {
	path, err := lastBinlog(b.facts.BinlogIndex)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(b.facts.Layout.DataDir, path)
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return err
	}
	b.close()
	b.file, b.size = file, info.Size()
	return nil
}

func (b *binlogGrowth) close() {
	if b.file != nil {
		b.file.Close()
	}
}

// grown tells that something was written to the binlog since the last call, housekeeping
// aside: somebody may rotate it, even under a lock.
func (b *binlogGrowth) grown() bool {
	var now unix.Stat_t
	if err := unix.Fstat(int(b.file.Fd()), &now); err == nil && now.Size != b.size {
		at := b.size
		b.size, b.quiet = now.Size, 0
		return b.commits(at)
	}
	b.quiet++
	if !b.turned && now.Nlink > 0 && !b.facts.BinlogEncrypted && b.quiet%indexEvery != 0 {
		return false
	}
	index, err := os.Stat(b.facts.BinlogIndex)
	if err != nil || os.SameFile(index, b.index) && index.Size() == b.index.Size() && index.ModTime().Equal(b.index.ModTime()) {
		return false
	}
	if b.open() != nil {
		return false // it is being rewritten: the next look will do
	}
	b.index, b.turned = index, false
	return b.commits(int64(len(binlogMagic)))
}

// commits tells that there is more than housekeeping from a position on. What is encrypted
// cannot be told apart.
func (b *binlogGrowth) commits(at int64) (found bool) {
	if b.facts.BinlogEncrypted {
		return true
	}
	header := make([]byte, eventHeaderSize)
	for at < b.size {
		if _, err := b.file.ReadAt(header, at); err != nil {
			return true // written in part
		}
		e, size := event{kind: replication.EventType(header[4])}, int64(binary.LittleEndian.Uint32(header[9:]))
		if size < eventHeaderSize {
			return true // we are in the midst of one that was written in part
		}
		b.turned = b.turned || e.kind == replication.ROTATE_EVENT
		found = found || !e.housekeeping()
		at += size
	}
	return found
}

// lastBinlog is the last line of a binlog index, which may have thousands.
func lastBinlog(index string) (string, error) {
	file, err := os.Open(index)
	if err != nil {
		return "", err
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	end := make([]byte, min(size, 8192))
	if _, err := file.ReadAt(end, size-int64(len(end))); err != nil && err != io.EOF {
		return "", err
	}
	end = bytes.TrimSpace(end)
	if len(end) == 0 {
		return "", errors.New(index + " is empty")
	}
	return string(end[bytes.LastIndexByte(end, '\n')+1:]), nil
}
