package transfer

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"sync"

	"github.com/respaldo-backup/respaldo"
)

// Protocol is the number of what sender and receiver speak. Both must speak the same.
const Protocol = 1

// kind is what a frame is.
type kind byte

const (
	frameHello   kind = iota + 1 // both ways, the first: hello
	frameCall                    // to the receiver: call
	frameReply                   // its result
	frameFail                    // or why there is none: failure; answers whatever was asked
	frameNote                    // from the receiver, at any time: Note
	frameEntries                 // to the receiver: []Entry, more of the listing
	frameWant                    // to the receiver: []piece, a batch
	frameHave                    // for each piece: the hashes of its blocks; nothing where it is one hole
	frameBlock                   // to the receiver: a block that differs
	frameEnd                     // the batch is complete: the hash of each piece
	frameDone                    // it is written
	framePing                    // to the receiver: still there
)

// largestFrame bounds what the other side can make us keep in memory.
const largestFrame = 16 << 20

// hello is each side's first word.
type hello struct {
	Protocol int    `json:"protocol"`
	Program  string `json:"program"`
}

type call struct {
	Name string          `json:"name"`
	Args json.RawMessage `json:"args,omitempty"`
}

// Note is what the receiver tells of a call while that is under way.
type Note struct {
	Warn string `json:"warn,omitempty"`
	Step string `json:"step,omitempty"` // with its detail
	More string `json:"more,omitempty"`
}

// failure is an error on its way to the sender.
type failure struct {
	Kind  respaldo.Kind `json:"kind"`
	What  string        `json:"what"`
	Hints []string      `json:"hints,omitempty"`
	// Damaged tells that what arrived is not what was sent: trying again may help.
	Damaged bool `json:"damaged,omitempty"`
}

var errDamaged = errors.New("what arrived is not what was sent")

func failureOf(err error) failure {
	return failure{Kind: respaldo.KindOf(err), What: err.Error(), Hints: respaldo.HintsOf(err), Damaged: errors.Is(err, errDamaged)}
}

// Failure is what the other node said. It is final: the connection works.
type Failure struct{ Cause *respaldo.Error }

func (f *Failure) Error() string { return f.Cause.Error() }
func (f *Failure) Unwrap() error { return f.Cause }

func (f failure) err(node string) error {
	if f.Damaged {
		return fmt.Errorf("on %s: %s", node, f.What)
	}
	return &Failure{&respaldo.Error{Kind: f.Kind, What: "on " + node + ": " + f.What, Hint: strings.Join(f.Hints, "; ")}}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// wire carries frames: kind, length and checksum, then the content. SSH protects what is on
// the way; the checksum is for the machines at both ends.
type wire struct {
	in  *bufio.Reader
	mu  sync.Mutex // of out
	out *bufio.Writer
}

func newWire(in io.Reader, out io.Writer) *wire {
	return &wire{in: bufio.NewReaderSize(in, 256<<10), out: bufio.NewWriterSize(out, 256<<10)}
}

// frameHeader is the kind, the content's length and checksum, and a checksum of these three: a
// damaged length would have us wait for what never comes.
const frameHeader = 1 + 4 + 4 + 4

// send queues a frame whose content is the parts together; flush lets it go.
func (w *wire) send(k kind, parts ...[]byte) error {
	var head [frameHeader]byte
	length, sum := 0, uint32(0)
	for _, p := range parts {
		length += len(p)
		sum = crc32.Update(sum, castagnoli, p)
	}
	head[0] = byte(k)
	binary.LittleEndian.PutUint32(head[1:], uint32(length))
	binary.LittleEndian.PutUint32(head[5:], sum)
	binary.LittleEndian.PutUint32(head[9:], crc32.Checksum(head[:9], castagnoli))
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.out.Write(head[:])
	for _, p := range parts {
		if err == nil {
			_, err = w.out.Write(p)
		}
	}
	return err
}

func (w *wire) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Flush()
}

// say sends a value as JSON, at once.
func (w *wire) say(k kind, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := w.send(k, text); err != nil {
		return err
	}
	return w.flush()
}

// receive waits for a frame. The content is the caller's.
func (w *wire) receive() (kind, []byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(w.in, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.LittleEndian.Uint32(head[1:])
	if crc32.Checksum(head[:9], castagnoli) != binary.LittleEndian.Uint32(head[9:]) || length > largestFrame {
		return 0, nil, errDamaged
	}
	content := make([]byte, length)
	if _, err := io.ReadFull(w.in, content); err != nil {
		return 0, nil, err
	}
	if crc32.Checksum(content, castagnoli) != binary.LittleEndian.Uint32(head[5:]) {
		return 0, nil, errDamaged
	}
	return kind(head[0]), content, nil
}
