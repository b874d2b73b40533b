package mysql

import (
	"testing"

	"github.com/respaldo-backup/respaldo"
)

// A server whose packages were upgraded since it started, to a later release of its
// series, is proved with the new program, which upgrades the image. What that program
// cannot be expected to read says nothing about the image.
func TestImageAndServerProgramOfDifferentVersions(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mariadb-11.8", "mysql-9.7"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := theOrigin(t, name)
			r := o.clean.request(t)
			installed := r.Manifest.Version
			r.Manifest.Version.Patch--
			if proof, err := Prove(t.Context(), r, respaldo.ProveQuick); err != nil || !proof.OK {
				t.Errorf("image of the release before: %+v, %v", proof, err)
			}
			for _, change := range []func(*respaldo.Version){
				func(v *respaldo.Version) { v.Patch++ },
				func(v *respaldo.Version) { v.Minor-- },
				func(v *respaldo.Version) { v.Major++ },
				func(v *respaldo.Version) {
					v.Flavor = map[respaldo.Flavor]respaldo.Flavor{respaldo.MySQL: respaldo.MariaDB, respaldo.MariaDB: respaldo.MySQL}[v.Flavor]
				},
			} {
				r.Manifest.Version = installed
				change(&r.Manifest.Version)
				_, err := StartInstance(t.Context(), r)
				mustBe(t, err, respaldo.Refused, r.Manifest.Version.String(), installed.String())
			}
		})
	}
}
