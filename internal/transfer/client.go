package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"
)

// Conn is a pair of pipes to a receiver. Close ends it; of a connection that broke, the error
// says why.
type Conn interface {
	io.Reader
	io.Writer
	Close() error
}

// Opener makes a connection to a new receiver on the other node.
type Opener struct {
	Node string // its name, for people
	Open func(ctx context.Context) (Conn, error)
	// Limit, if set, is of bytes per second, over all connections.
	Limit *rate.Limiter
}

// Limit is what Opener wants of a bandwidth; nil, for no limit, of 0.
func Limit(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(max(bytesPerSecond/10, 64<<10)))
}

// pingEvery is well below silence, and below what firewalls forget a connection after.
const pingEvery = 30 * time.Second

// Client is a connection to a receiver: one call at a time.
type Client struct {
	node  string
	conn  Conn
	wire  *wire
	notes func(Note)
	ended chan struct{}
	once  sync.Once
	why   error // of the connection's end
}

// Dial connects, and agrees on the protocol. The context's end closes the connection. notes
// is told what the receiver says of a call that is under way.
func (o Opener) Dial(ctx context.Context, program string, notes func(Note)) (*Client, error) {
	conn, err := o.Open(ctx)
	if err != nil {
		return nil, err
	}
	c := &Client{node: o.Node, conn: conn, notes: notes, ended: make(chan struct{})}
	c.wire = newWire(conn, limited{ctx, conn, o.Limit})
	stop := context.AfterFunc(ctx, func() { c.Close() })
	go func() {
		defer stop()
		c.ping()
	}()
	if err := c.greet(program); err != nil {
		return nil, c.broken(err)
	}
	return c, nil
}

func (c *Client) greet(program string) error {
	if err := c.wire.say(frameHello, hello{Protocol: Protocol, Program: program}); err != nil {
		return err
	}
	kind, content, err := c.wire.receive()
	if err != nil {
		return err
	}
	if err := checkHello(frame{kind, content}); err != nil {
		return &Failure{err}
	}
	return nil
}

func (c *Client) ping() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if c.wire.send(framePing) != nil || c.wire.flush() != nil {
				return
			}
		case <-c.ended:
			return
		}
	}
}

// Close ends the connection, and the receiver with it. It may be called again.
func (c *Client) Close() error {
	c.once.Do(func() {
		close(c.ended)
		c.why = c.conn.Close()
	})
	return c.why
}

// broken closes the connection after an error of it, and returns why: what the receiver
// said last, or what whoever made the connection says.
func (c *Client) broken(err error) error {
	var said *Failure
	if errors.As(err, &said) {
		c.Close()
		return err
	}
	// A receiver that gives up says so, and then whatever we are writing fails.
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		for {
			kind, content, readErr := c.wire.receive()
			if readErr != nil {
				break
			}
			if kind == frameFail {
				c.Close()
				return c.failed(content)
			}
		}
	}
	if why := c.Close(); why != nil {
		return why
	}
	return &cutError{c.node, err}
}

// cutError is a connection that ended, and nobody knows why.
type cutError struct {
	node string
	err  error
}

func (e *cutError) Error() string { return "the connection to " + e.node + " broke: " + e.err.Error() }
func (e *cutError) Unwrap() error { return e.err }

func (c *Client) failed(content []byte) error {
	var f failure
	if err := json.Unmarshal(content, &f); err != nil {
		return err
	}
	return f.err(c.node)
}

// Call asks the receiver for something and waits for the answer. After an error that is no
// *Failure the connection is closed.
func (c *Client) Call(name string, args, result any) error {
	text, err := json.Marshal(args)
	if err != nil {
		return err
	}
	if err := c.wire.say(frameCall, call{Name: name, Args: text}); err != nil {
		return c.broken(err)
	}
	content, err := c.await(frameReply)
	if err != nil {
		return err
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(content, result)
}

// await waits for a frame, and passes on what is told meanwhile.
func (c *Client) await(want kind) ([]byte, error) {
	for {
		kind, content, err := c.wire.receive()
		switch {
		case err != nil:
			return nil, c.broken(err)
		case kind == want:
			return content, nil
		case kind == frameNote:
			var n Note
			if json.Unmarshal(content, &n) == nil && c.notes != nil {
				c.notes(n)
			}
		case kind == frameFail:
			return nil, c.failed(content)
		default:
			return nil, c.broken(fmt.Errorf("unexpected frame %d", kind))
		}
	}
}

// limited lets through what the limit allows.
type limited struct {
	ctx   context.Context
	to    io.Writer
	limit *rate.Limiter
}

func (l limited) Write(b []byte) (int, error) {
	if l.limit == nil {
		return l.to.Write(b)
	}
	written := 0
	for written < len(b) {
		part := b[written:min(len(b), written+l.limit.Burst())]
		if err := l.limit.WaitN(l.ctx, len(part)); err != nil {
			return written, err
		}
		n, err := l.to.Write(part)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}
