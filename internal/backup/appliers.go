package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"strconv"

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
	note := func(channels []string, pause func() error, resume func(context.Context) error) error {
		list, err := json.Marshal(channels)
		if err != nil {
			return err
		}
		server := o.facts.Process
		held, err = op.ledger.Acquire(ctx, kindApplier, map[string]string{"channels": string(list),
			"server_pid": strconv.Itoa(server.PID), "server_started": strconv.FormatUint(server.Started, 10)},
			func(*ledger.Held) error { return pause() }, resume)
		return err
	}
	q, err := o.server.QuiesceReplica(ctx, request, note, fn)
	if held != nil {
		err = joinErrors(err, held.Release(ctx))
	}
	return q, err
}

// resumeAppliers starts the appliers that a dead operation had stopped, if its server's own
// guard has not. A server that was started since has started them itself, or was told not to.
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
		var channels []string
		if err := json.Unmarshal([]byte(e.Attrs["channels"]), &channels); err != nil {
			return err
		}
		server, err := mysql.Connect(ctx, op.MySQL, op.Log)
		if err != nil {
			return err
		}
		resumed, err := server.ResumeAppliers(ctx, channels)
		server.Close()
		if err != nil {
			return err
		}
		for _, channel := range resumed {
			swept.removed("stop of the applier", cmp.Or(channel, "(unnamed)"))
		}
	}
	return nil
}
