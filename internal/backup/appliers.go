package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// kindApplier is a replica's appliers, stopped for the instant of a snapshot.
const kindApplier ledger.Kind = "applier"

// quiesce is Server.Quiesce, also for a replica whose appliers stop for it: that is an
// acquisition like others. What cannot be released is tried again at the operation's end,
// and stays noted for the next one.
func (op *operation) quiesce(ctx context.Context, o *Outlook, request mysql.QuiesceRequest, fn func(context.Context, respaldo.Coordinates) error) (respaldo.Quiesced, error) {
	var held *ledger.Held
	note := func(p mysql.Pause, stop func() error, resume func(context.Context) error) error {
		if held != nil { // it is not the first time: they ran again meanwhile
			if err := held.Release(ctx); err != nil {
				return err
			}
		}
		what, err := json.Marshal(p)
		if err != nil {
			return err
		}
		server := o.facts.Process
		held, err = op.ledger.Acquire(ctx, kindApplier, map[string]string{"name": applierNames(p.Channels), "pause": string(what),
			"server_pid": strconv.Itoa(server.PID), "server_started": strconv.FormatUint(server.Started, 10)},
			func(*ledger.Held) error { return stop() }, resume)
		return err
	}
	q, err := o.server.QuiesceReplica(ctx, request, note, fn)
	if held != nil {
		err = joinErrors(err, held.Release(ctx))
	}
	return q, err
}

// resumeAppliers starts the appliers that a dead operation had stopped, if its server's own
// guard has not. A server that was started since has started them itself, or was told not to;
// and what was started since, and stands still now, somebody else has stopped.
func (op *operation) resumeAppliers(ctx context.Context, entries []ledger.Entry, swept *Swept) error {
	for _, e := range entries {
		if e.Kind != kindApplier {
			continue
		}
		pid, _ := strconv.Atoi(e.Attrs["server_pid"])
		started, _ := strconv.ParseUint(e.Attrs["server_started"], 10, 64)
		if !(mysql.Process{PID: pid, Started: started}).Alive() {
			continue
		}
		var pause mysql.Pause
		if err := json.Unmarshal([]byte(e.Attrs["pause"]), &pause); err != nil {
			return err
		}
		server, err := mysql.Connect(ctx, op.MySQL, op.Log)
		if err != nil {
			return err
		}
		resumed, left, err := server.ResumeAppliers(ctx, pause)
		server.Close()
		if err != nil {
			return err
		}
		for _, channel := range resumed {
			swept.removed("stop of the applier", applierNames([]string{channel}))
		}
		if len(left) > 0 {
			op.Report.Warn("the replica's applier " + applierNames(left) + " stands still; an operation that ended abruptly had stopped it, but replication was started since, so that is left to who has stopped it again")
		}
	}
	return nil
}

// applierNames names channels; most replicas have one, without a name.
func applierNames(channels []string) string {
	return cmp.Or(strings.Join(channels, ", "), "(unnamed)")
}
