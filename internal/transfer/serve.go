package transfer

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// silence is how long the receiver waits for a sign of the sender, which pings it, before it
// takes the connection for lost.
const silence = 5 * time.Minute

// Handler answers a call. It may tell how it goes by notes meanwhile.
type Handler func(ctx context.Context, p *Peer, args json.RawMessage) (any, error)

// Receiver is the program at the other end of a sender's connection.
type Receiver struct {
	Program string
	Calls   map[string]Handler
	// Refuse, if set, is asked about each target right before anything in it is removed or
	// written.
	Refuse func(dir string) error
}

// Peer is the sender, as a Handler sees it, and the targets that it has begun.
type Peer struct {
	receiver *Receiver
	wire     *wire
	tree     *tree
	unpack   *unpacker
}

// Note tells the sender how a call goes.
func (p *Peer) Note(n Note) { p.wire.say(frameNote, n) } // a sender that is gone ends the context

// Finish completes the targets: owners, modes and times are set, last is called (the caller's
// own changes, on files that belong to whom they should), everything is brought to the disk,
// and the marks are taken away.
func (p *Peer) Finish(ctx context.Context, last func() error) error {
	if p.tree == nil || !p.tree.prepared {
		return errors.New("nothing has been received")
	}
	return p.tree.finish(ctx, last)
}

// Serve answers one connection until its end. Losing it cancels whatever is under way; so
// does ctx. The error is for nobody but a log: the sender has been told.
func (r *Receiver) Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &Peer{receiver: r, wire: newWire(in, out)}
	defer func() {
		if p.tree != nil {
			p.tree.close()
		}
	}()
	var err error
	if p.unpack, err = newUnpacker(); err != nil {
		return err
	}
	frames := p.read(ctx, cancel)
	if err := p.wire.say(frameHello, hello{Protocol: Protocol, Program: r.Program}); err != nil {
		return err
	}
	err = p.answer(ctx, frames)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if ctx.Err() == nil {
		p.wire.say(frameFail, failureOf(err))
	}
	return err
}

type frame struct {
	kind    kind
	content []byte
}

// errGone is the cause of a context that ended with the connection.
var errGone = &respaldo.Error{Kind: respaldo.Interrupted, What: "the sender is gone"}

// read takes frames off the wire, so that the end of the connection is noticed while a call
// is under way.
func (p *Peer) read(ctx context.Context, cancel context.CancelCauseFunc) <-chan frame {
	frames := make(chan frame, 16)
	alive := time.AfterFunc(silence, func() { cancel(errGone) })
	go func() {
		defer close(frames)
		defer alive.Stop()
		for {
			kind, content, err := p.wire.receive()
			if err != nil {
				if errors.Is(err, errDamaged) {
					p.wire.say(frameFail, failureOf(err))
				}
				cancel(errGone)
				return
			}
			alive.Reset(silence)
			if kind == framePing {
				continue
			}
			select {
			case frames <- frame{kind, content}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return frames
}

// next waits for a frame of a kind; io.EOF tells that the sender is gone.
func next(ctx context.Context, frames <-chan frame) (frame, error) {
	select {
	case f, ok := <-frames:
		if !ok {
			return f, io.EOF
		}
		return f, nil
	case <-ctx.Done():
		if context.Cause(ctx) == errGone {
			return frame{}, io.EOF
		}
		return frame{}, context.Cause(ctx)
	}
}

// answer does what the sender asks for until its end, whose error is io.EOF.
func (p *Peer) answer(ctx context.Context, frames <-chan frame) error {
	first, err := next(ctx, frames)
	if err != nil {
		return err
	}
	if err := checkHello(first); err != nil {
		return err
	}
	for {
		f, err := next(ctx, frames)
		if err != nil {
			return err
		}
		switch f.kind {
		case frameCall:
			err = p.call(ctx, f.content)
		case frameEntries:
			err = p.entries(f.content)
		case frameWant:
			err = p.batch(ctx, f.content, frames)
		default:
			err = fmt.Errorf("unexpected frame %d: %w", f.kind, errDamaged)
		}
		if err != nil {
			return err
		}
	}
}

func checkHello(f frame) *respaldo.Error {
	var other hello
	if f.kind != frameHello || json.Unmarshal(f.content, &other) != nil {
		return &respaldo.Error{Kind: respaldo.Failed, What: "the other side does not speak respaldo's protocol",
			Hint: "does --remote-program name respaldo? Nothing may print to a login without a terminal there (see its shell's profile)"}
	}
	if other.Protocol != Protocol {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("respaldo %s speaks protocol %d, and this one %d", other.Program, other.Protocol, Protocol),
			Hint: "install the same version of respaldo on both nodes"}
	}
	return nil
}

// call answers one call. Its error is told, and the connection goes on.
func (p *Peer) call(ctx context.Context, content []byte) error {
	var c call
	if err := json.Unmarshal(content, &c); err != nil {
		return err
	}
	result, err := p.dispatch(ctx, c)
	if err != nil {
		return p.wire.say(frameFail, failureOf(err))
	}
	return p.wire.say(frameReply, result)
}

func (p *Peer) dispatch(ctx context.Context, c call) (any, error) {
	switch c.Name {
	case callBegin:
		var args Begin
		if err := json.Unmarshal(c.Args, &args); err != nil {
			return nil, err
		}
		if p.tree != nil {
			p.tree.close()
		}
		var err error
		p.tree, err = beginTree(args, p.receiver.Refuse)
		return begun{Boot: bootID()}, err
	case callJoin:
		var args Begin
		if err := json.Unmarshal(c.Args, &args); err != nil {
			return nil, err
		}
		var err error
		p.tree, err = joinTree(args)
		return nil, err
	case callPrepare:
		if p.tree == nil {
			return nil, errors.New("nothing has begun")
		}
		return nil, p.tree.prepare(ctx)
	}
	handler, ok := p.receiver.Calls[c.Name]
	if !ok {
		return nil, fmt.Errorf("there is no call %q", c.Name)
	}
	return handler(ctx, p, c.Args)
}

func (p *Peer) entries(content []byte) error {
	var more []Entry
	if err := json.Unmarshal(content, &more); err != nil {
		return err
	}
	if p.tree == nil {
		return errors.New("nothing has begun")
	}
	return p.tree.add(more)
}

// batch receives pieces of files: says what it has of them, takes what differs, and checks
// the whole.
func (p *Peer) batch(ctx context.Context, content []byte, frames <-chan frame) error {
	var pieces []piece
	if err := json.Unmarshal(content, &pieces); err != nil {
		return err
	}
	if p.tree == nil {
		return errors.New("nothing has begun")
	}
	if err := p.tree.stillOurs(); err != nil {
		return err
	}
	b := &incoming{peer: p, pieces: pieces}
	defer b.close()
	for _, one := range pieces {
		if err := b.open(one); err != nil {
			return p.tree.explain(one.Name, err)
		}
	}
	if err := p.wire.flush(); err != nil {
		return err
	}
	for {
		f, err := next(ctx, frames)
		if err != nil {
			return err
		}
		switch f.kind {
		case frameBlock:
			name, err := b.write(f.content)
			if err != nil {
				return p.tree.explain(name, err)
			}
		case frameEnd:
			if err := b.check(f.content); err != nil {
				return err
			}
			return p.wire.say(frameDone, nil)
		default:
			return fmt.Errorf("unexpected frame %d: %w", f.kind, errDamaged)
		}
	}
}

// incoming is a batch under way.
type incoming struct {
	peer   *Peer
	pieces []piece
	opened []openPiece
}

type openPiece struct {
	piece
	file   sparseFile
	hashes []hash // of what the file holds now
}

func (b *incoming) close() {
	for _, o := range b.opened {
		o.file.Close()
	}
}

func (b *incoming) open(p piece) error {
	f, err := b.peer.tree.open(p.Name)
	if err != nil {
		return err
	}
	b.opened = append(b.opened, openPiece{piece: p, file: sparseFile{f}})
	hashes, hole, err := hashesIn(f, p)
	if err != nil {
		return err
	}
	b.opened[len(b.opened)-1].hashes = hashes
	if hole {
		return b.peer.wire.send(frameHave)
	}
	return b.peer.wire.send(frameHave, joined(hashes))
}

func (b *incoming) write(content []byte) (name string, err error) {
	if len(content) < blockHeader {
		return "", errDamaged
	}
	number, index := int(binary.LittleEndian.Uint32(content)), int(binary.LittleEndian.Uint32(content[4:]))
	if number >= len(b.opened) || index >= b.opened[number].blocks() {
		return "", errDamaged
	}
	o := &b.opened[number]
	offset, length := o.block(index)
	want := hash(content[9:blockHeader])
	data, err := b.peer.unpack.unpack(content[8], content[blockHeader:], length, want)
	if err != nil {
		return o.Name, err
	}
	if data == nil {
		err = o.file.clear(offset, length, o.Sparse)
	} else {
		_, err = o.file.WriteAt(data, offset)
	}
	o.hashes[index] = want
	return o.Name, err
}

// check compares each piece as a whole: what was kept, and what was written.
func (b *incoming) check(roots []byte) error {
	if len(roots) != len(b.opened)*len(hash{}) {
		return errDamaged
	}
	for i, o := range b.opened {
		if root := rootOf(o.hashes); !bytes.Equal(root[:], roots[i*len(root):(i+1)*len(root)]) {
			return fmt.Errorf("%s: %w", o.Name, errDamaged)
		}
	}
	return nil
}

func joined(hashes []hash) []byte {
	all := make([]byte, 0, len(hashes)*len(hash{}))
	for _, h := range hashes {
		all = append(all, h[:]...)
	}
	return all
}
