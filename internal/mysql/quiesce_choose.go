package mysql

import (
	"fmt"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// ChooseLock says which lock makes a snapshot of this server exact, and why, for people.
// LockAuto (or "") takes the lightest that is safe; a stricter one can be asked for; a
// weaker one than is safe is refused by name, never silently replaced.
func ChooseLock(f *Facts, asked respaldo.LockMode) (mode respaldo.LockMode, reason string, err error) {
	lightest, reason := lightestLock(f)
	switch asked {
	case "", respaldo.LockAuto:
		return lightest, reason, nil
	case respaldo.LockGlobal:
		if lightest == respaldo.LockGlobal {
			return lightest, reason, nil
		}
		return asked, "asked for; " + string(lightest) + " would do", nil
	case respaldo.LockBackup:
		if lightest == respaldo.LockGlobal {
			return "", "", &respaldo.Error{Kind: respaldo.Refused, What: "--lock=backup is not safe here: " + reason, Hint: "use --lock=global, or auto"}
		}
		return asked, reason, nil
	case respaldo.LockNone:
		return "", "", &respaldo.Error{Kind: respaldo.Refused, What: "--lock=none: images without a lock are not supported yet", Hint: fmt.Sprintf("use --lock=%s, or auto", lightest)}
	}
	return "", "", &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("unknown lock %q", asked), Hint: "the locks are auto, backup and global"}
}

// lightestLock is the one place that decides; a lock-free way is one more answer here.
func lightestLock(f *Facts) (respaldo.LockMode, string) {
	switch {
	case f.Version.Flavor == respaldo.MySQL:
		return respaldo.LockGlobal, "MySQL has no lighter lock that stops the binlog: FLUSH TABLES WITH READ LOCK"
	case !f.Version.AtLeast(respaldo.MariaDB, 10, 4, 1):
		return respaldo.LockGlobal, "MariaDB before 10.4 has no BACKUP STAGE: FLUSH TABLES WITH READ LOCK"
	}
	for _, e := range f.Engines {
		if !backupStageEngines[strings.ToLower(e.Engine)] {
			return respaldo.LockGlobal, fmt.Sprintf("whether BACKUP STAGE covers the engine %s (%s) is not known: FLUSH TABLES WITH READ LOCK", e.Engine, e.names())
		}
	}
	return respaldo.LockBackup, "MariaDB's BACKUP STAGE stops commits and the binlog without waiting for reads"
}
