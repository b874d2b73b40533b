package backup

import (
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/host"
)

// The usual unit may be that of a server which runs.
func TestServiceOfOneOfSeveral(t *testing.T) {
	op := &operation{Site: &Site{Server: "shop", Several: true}}
	_, err := op.findService(t.Context(), 0)
	if respaldo.KindOf(err) != respaldo.Refused || !strings.Contains(strings.Join(respaldo.HintsOf(err), ""), "[server.shop]") {
		t.Errorf("%v", err)
	}
	op.Service = host.Commands{Stop: []string{"stop-shop"}, Start: []string{"start-shop"}}
	if s, err := op.findService(t.Context(), 0); err != nil || s.String() != "start-shop" {
		t.Errorf("%v, %v", s, err)
	}
}
