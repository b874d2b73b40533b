package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/ledger"
)

// sideName is a scope as people know it: "serve-3f9a".
func sideName(scope string) string {
	_, name, _ := strings.Cut(scope, ".")
	return name
}

// noteServed writes what others need to know of a server into the ledger, which is where
// they look.
func noteServed(noted *ledger.Held, served Served) error {
	text, err := json.Marshal(served)
	if err != nil {
		return err
	}
	return noted.Note("served", string(text))
}

// Served lists the private servers of this server's images that can be used now.
func (s *Site) Served() ([]Served, error) {
	list := []Served{}
	scopes, err := ledger.Sides(s.Server, s.StateDir)
	if err != nil {
		return list, err
	}
	for _, scope := range scopes {
		entries, err := ledger.Peek(s.StateDir, scope)
		if err != nil {
			return list, err
		}
		for _, e := range entries {
			var served Served
			if e.Kind == kindServed && json.Unmarshal([]byte(e.Attrs["served"]), &served) == nil && ledger.Living(s.StateDir, scope) {
				list = append(list, served)
			}
		}
	}
	return list, nil
}

// ChooseServed picks one of a list by its name, or the only one where no name is given, or
// all of them.
func ChooseServed(list []Served, name string, all bool) ([]Served, error) {
	var names []string
	for _, served := range list {
		if served.Name == name {
			return []Served{served}, nil
		}
		names = append(names, served.Name)
	}
	switch {
	case name != "":
		return nil, &respaldo.Error{Kind: respaldo.NotFound, What: "nothing is served as " + name, Hint: "respaldo list --served shows what is"}
	case all || len(list) == 1:
		return list, nil
	case len(list) == 0:
		return nil, &respaldo.Error{Kind: respaldo.NotFound, What: "nothing is being served", Hint: "respaldo serve IMAGE starts a server on an image"}
	}
	return nil, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("%d are being served", len(list)),
		Hint: "say which: respaldo stop " + strings.Join(names, ", or respaldo stop ") + "; or all of them: respaldo stop --all"}
}

// StopServed asks one of this server's to end, and returns when nothing is left of it.
func (s *Site) StopServed(ctx context.Context, served Served) error {
	scope := s.Server + "." + served.Name
	if err := syscall.Kill(served.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return &respaldo.Error{Kind: respaldo.Refused, What: fmt.Sprintf("cannot end %s, process %d", served.Name, served.PID), Hint: "run respaldo as root", Err: err}
	}
	waiting, cancel := context.WithTimeout(ctx, stopFor)
	defer cancel()
	if err := waitUntil(waiting, func() bool { return !ledger.Living(s.StateDir, scope) }); err != nil {
		return &respaldo.Error{Kind: respaldo.Leftovers, What: fmt.Sprintf("%s, process %d, does not end", served.Name, served.PID),
			Hint: fmt.Sprintf("kill -9 %d, then run: respaldo cleanup --server %s", served.PID, s.Server), Err: err}
	}
	left, err := ledger.Peek(s.StateDir, scope)
	if err == nil && len(left) > 0 {
		err = &respaldo.Error{Kind: respaldo.Leftovers, What: fmt.Sprintf("%s has ended, and could not release everything", served.Name),
			Hint: "run: respaldo cleanup --server " + s.Server}
	}
	return err
}

// stopFor is how long all that a served image holds may take to be released.
const stopFor = 2 * time.Minute
