package mysql

import (
	"maps"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// What a killed server leaves is what a snapshot without a lock holds. Its coordinates as
// the files say them are those that it states once it has recovered.
func TestCoordinatesOfAnImageAreTheRecoveredServers(t *testing.T) {
	t.Parallel()
	for name := range origins {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			m := o.crashed.manifest
			m.Quiesced = respaldo.Quiesced{Mode: respaldo.LockNone, FromImage: true}
			m.Variables = maps.Clone(m.Variables)
			m.Variables["gtid_executed"] = "" // it was read after the crash, and would give it away
			at, err := CoordinatesOf(t.Context(), m, map[string]string{o.data: o.crashed.copy, o.outside: o.crashed.outside})
			if err != nil {
				t.Fatal(err)
			}
			if before := o.clean.manifest.Quiesced.Coordinates; at.File == "" || at.File == before.File {
				t.Errorf("the image is at %s, and the server was stopped at %s before it was killed", at, before)
			}
			m.Quiesced.Coordinates = at
			moment := o.crashed
			moment.manifest = m
			i := startInstance(t, moment.request(t))
			recovered, err := i.Coordinates(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if recovered.String() != at.String() || recovered.GTIDSet != at.GTIDSet {
				t.Errorf("read in the image: %s %s, stated by the recovered server: %s %s", at, at.GTIDSet, recovered, recovered.GTIDSet)
			}
			if problems, err := i.compare(t.Context(), recovered); err != nil || len(problems) > 0 {
				t.Errorf("%q, %v", problems, err)
			}
			i.request.Manifest.Quiesced.Coordinates.Position -= 5
			i.request.Manifest.Quiesced.Coordinates.GTIDSet = o.earlier.GTIDSet
			problems, err := i.compare(t.Context(), recovered)
			if text := strings.Join(problems, "\n"); err != nil || !strings.Contains(text, "not exact: before it was started the image was at "+at.File) ||
				!strings.Contains(text, "had GTID set "+o.earlier.GTIDSet+", the recovered image has "+recovered.GTIDSet) {
				t.Errorf("coordinates that the recovered server does not confirm: %s, %v", text, err)
			}
			if m.Version.Flavor == respaldo.MariaDB {
				return
			}
			// A replica without log_replica_updates has executed more than its binlogs say.
			i.request.Manifest.Variables["log_replica_updates"] = "OFF"
			server, _, _ := strings.Cut(recovered.GTIDSet, ":")
			for set, want := range map[string]bool{o.earlier.GTIDSet: true, server + ":1-100000": false} {
				if same, err := i.sameSet(t.Context(), set, recovered.GTIDSet); same != want || err != nil {
					t.Errorf("%s in the binlogs, %s executed: %t, %v", set, recovered.GTIDSet, same, err)
				}
			}
		})
	}
}
