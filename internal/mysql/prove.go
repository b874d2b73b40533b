package mysql

import (
	"context"
	"fmt"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// stopTimeout is how long a proved instance may take to shut down before it is killed.
// Nobody needs its files any more.
const stopTimeout = 30 * time.Second

// Prove starts the image, lets it recover, compares its coordinates with those of the
// lock, checks its tables and stops it. An image that fails yields both a Proof with OK
// false and its Problems, and a NotProved error; the log stays in Scratch. Any other
// error (cancelled, forbidden by the host) says nothing about the image. When ctx ends, the
// instance is killed at once: it must not go on writing into a snapshot that is about to
// overflow.
// respaldo.ProveNone does nothing and is recorded as unproved.
func Prove(ctx context.Context, request InstanceRequest, level respaldo.ProveLevel) (respaldo.Proof, error) {
	proof := respaldo.Proof{Level: level, At: time.Now().UTC()}
	if level == respaldo.ProveNone {
		return respaldo.Proof{Level: level}, nil
	}
	// Its data are thrown away: no reason to write them out before leaving.
	request.Options = append([]string{"--innodb-fast-shutdown=2"}, request.Options...)
	i, err := StartInstance(ctx, request)
	if respaldo.KindOf(err) == respaldo.NotProved && err != nil {
		proof.Problems = []string{err.Error()}
		return proof, err
	}
	if err != nil {
		return proof, err
	}
	killed := make(chan struct{})
	spare := context.AfterFunc(ctx, func() {
		i.end(ctx)
		close(killed)
	})
	problems, err := i.examine(ctx, level, &proof)
	died := false
	if err != nil && ctx.Err() == nil {
		var words string
		if words, died = i.diedOver(err); died {
			problems, err = append(problems, "the server started on the image ended: "+words), nil
		}
	}
	stopping, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	i.end(stopping)
	if !spare() {
		<-killed
		return proof, context.Cause(ctx)
	}
	if err != nil {
		return proof, err
	}
	if i.exitErr != nil && !i.killed && !died { // merely slow is no fault of the image
		problems = append(problems, "the server started on the image crashed when it was stopped: "+i.lastWords())
	}
	problems = append(problems, i.corruption()...)
	proof.Problems = problems
	proof.OK = len(problems) == 0
	if proof.OK {
		return proof, nil
	}
	return proof, &respaldo.Error{
		Kind: respaldo.NotProved,
		What: fmt.Sprintf("the image has %d problem(s), the first: %s", len(problems), problems[0]),
		Hint: "see CHECK TABLE on the origin, and the log of the server started on the image, " + i.LogPath() +
			"; a backup in spite of it: --prove none",
	}
}

// examine fills in what the running instance shows.
func (i *Instance) examine(ctx context.Context, level respaldo.ProveLevel, proof *respaldo.Proof) ([]string, error) {
	proof.RecoverySeconds = i.RecoverySeconds()
	at, err := i.Coordinates(ctx)
	if err != nil {
		return nil, err
	}
	proof.Coordinates = at
	problems, err := i.compare(ctx, at)
	if err != nil {
		return nil, err
	}
	seen, err := i.Check(ctx, level)
	proof.Tables, proof.TablesTotal, proof.NotChecked = seen.Tables, seen.Total, seen.NotChecked
	return append(problems, seen.Problems...), err
}
