package mysql

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	respaldo "github.com/respaldo-backup/respaldo"
)

// How long starting the appliers again may take before that is called a failure.
const resumePatience = 15 * time.Second

// Pause is what a later run needs in order to start again what this one has stopped.
type Pause struct {
	Channels []string `json:"channels"`
	// Starts is how often anything of replication had been started on the server before.
	Starts int64 `json:"starts"`
}

// applierStatement is START or STOP of one channel's applier, in the server's dialect.
func applierStatement(v respaldo.Version, verb, channel string) string {
	switch {
	case v.Flavor == respaldo.MariaDB:
		return verb + " SLAVE " + quoteText(channel) + " SQL_THREAD"
	case v.AtLeast(respaldo.MySQL, 8, 0, 22):
		return verb + " REPLICA SQL_THREAD FOR CHANNEL " + quoteText(channel)
	case v.AtLeast(respaldo.MySQL, 5, 7, 6):
		return verb + " SLAVE SQL_THREAD FOR CHANNEL " + quoteText(channel)
	}
	return verb + " SLAVE SQL_THREAD"
}

func ofChannel(channel string) string {
	if channel == "" {
		return ""
	}
	return " of channel " + channel
}

// ResumeAppliers starts the appliers that a pause had stopped, and that nobody has started
// since: what a cleanup does for an operation that died. An applier that stands still
// although something was started since is in left: that may be somebody's wish. A channel
// that is no more is no error.
func (s *Server) ResumeAppliers(ctx context.Context, p Pause) (resumed, left []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, resumePatience)
	defer cancel()
	starts, err := s.countStarts(ctx)
	if err != nil {
		return nil, nil, s.explain(err, "reading the replica's status")
	}
	if starts != p.Starts {
		left, err = s.standing(ctx, p.Channels)
		return nil, left, err
	}
	resumed, err = s.startAppliers(ctx, p.Channels)
	return resumed, nil, err
}

// startAppliers starts those that do not run.
func (s *Server) startAppliers(ctx context.Context, channels []string) (started []string, err error) {
	standing, err := s.standing(ctx, channels)
	for _, channel := range standing {
		start := applierStatement(s.version, "START", channel)
		if _, err := s.db.ExecContext(ctx, start); err != nil {
			return started, &respaldo.Error{Kind: respaldo.Leftovers, What: "the replica's applier" + ofChannel(channel) + " was stopped for the snapshot and could not be started again", Hint: start, Err: err}
		}
		started = append(started, channel)
	}
	return started, err
}

// standing are those of the channels whose appliers do not run.
func (s *Server) standing(ctx context.Context, channels []string) (standing []string, err error) {
	if len(channels) == 0 {
		return nil, nil
	}
	status, err := queryRows(ctx, s.db, replicaStatusStatement(s.version))
	for _, a := range appliersOf(status) {
		if !a.Running && slices.Contains(channels, a.Channel) {
			standing = append(standing, a.Channel)
		}
	}
	return standing, s.explain(err, "reading the replica's status")
}

// startCounter counts START SLAVE and its like; each server has some of the names.
var startCounter = regexp.MustCompile(`^com_((slave|replica)_start|start_(all_)?(slave|replica)s?)$`)

func (s *Server) countStarts(ctx context.Context) (n int64, err error) {
	status, err := queryRows(ctx, s.db, "SHOW GLOBAL STATUS LIKE 'Com%start%'")
	if err != nil {
		return 0, err
	}
	counted := false
	for _, r := range status {
		if startCounter.MatchString(strings.ToLower(r["variable_name"])) {
			one, err := strconv.ParseInt(r["value"], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", r["variable_name"], err)
			}
			n, counted = n+one, true
		}
	}
	if !counted {
		return 0, errors.New("the server does not show how often its replication was started (SHOW GLOBAL STATUS)")
	}
	return n, nil
}
