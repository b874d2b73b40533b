package volume

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// suspensions watches whether a device-mapper device is suspended, from outside: the file
// in sysfs neither waits for the device nor hangs with it.
//
// It is exact to lookEvery at either end, less on a machine that does not keep up, and a
// suspension shorter than that may not be seen. The kernel says suspended when everything
// under way has been written: the filesystem's own flush, during which writers wait
// already, comes before, and is short after Settle.
type suspensions struct {
	over chan struct{} // gets an item, without waiting, at the end of each
	stop atomic.Bool
	done sync.WaitGroup

	mu  sync.Mutex
	all []span
}

type span struct{ from, to time.Time }

// watchSuspensions begins to watch a device; nil when it cannot be watched.
func (s *System) watchSuspensions(device string) *suspensions {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("%s/dev/block/%d:%d/dm/suspended", s.sys(), unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return nil
	}
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2) // one for watch, and one for everything else
	}
	w := &suspensions{over: make(chan struct{}, 1)}
	w.done.Go(func() {
		defer f.Close()
		w.watch(f)
	})
	return w
}

// watch has a thread of its own, before all others: LVM raises its commands' priority while
// a volume is suspended, and on a machine with one processor we would see nothing of it. For
// the same reason it sleeps without Go's knowledge, which would give its turn to threads of
// ordinary priority, and not get it back from them in time.
func (w *suspensions) watch(f *os.File) {
	runtime.LockOSThread() // and never unlocked: the thread ends with us
	if unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0) != nil {
		unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
	}
	state := make([]byte, 1)
	running := false // was seen not to be suspended: one whose begin was not seen is not noted
	var from time.Time
	pause := unix.NsecToTimespec(lookEvery.Nanoseconds())
	for !w.stop.Load() {
		if n, _ := f.ReadAt(state, 0); n == 0 {
			return
		}
		switch suspended := state[0] == '1'; {
		case suspended && running:
			running, from = false, time.Now()
		case !suspended && !running:
			running = true
			w.note(span{from, time.Now()})
		}
		unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
	}
}

func (w *suspensions) note(s span) {
	if s.from.IsZero() {
		return
	}
	w.mu.Lock()
	w.all = append(w.all, s)
	w.mu.Unlock()
	select {
	case w.over <- struct{}{}:
	default:
	}
}

// since are those that began at a time or later and are over.
func (w *suspensions) since(t time.Time) (spans []span) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.all {
		if !s.from.Before(t) {
			spans = append(spans, s)
		}
	}
	return spans
}

func (w *suspensions) end() {
	w.stop.Store(true)
	w.done.Wait()
}
