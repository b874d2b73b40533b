package mysql

import (
	"fmt"
	"strings"

	respaldo "github.com/respaldo-backup/respaldo"
)

// ChooseLock says which lock makes a snapshot of this server exact, and why, for people.
// LockAuto (or "") takes the lightest that is safe; a stricter one can be asked for; a
// weaker one than is safe is refused by name, never silently replaced.
//
// Without f.Coverage it is not known what one snapshot would hold, and a lock is chosen.
func ChooseLock(f *Facts, asked respaldo.LockMode) (mode respaldo.LockMode, reason string, err error) {
	lightest, reason := lightestLock(f)
	switch asked {
	case "", respaldo.LockAuto, lightest:
		return lightest, reason, nil
	case respaldo.LockNone:
		return "", "", &respaldo.Error{Kind: respaldo.Refused, What: "--lock=none is not safe here: " + strings.Join(f.failing(), "; "),
			Hint: fmt.Sprintf("use --lock=%s, or auto; respaldo check shows every condition", lightest)}
	case respaldo.LockBackup:
		if stop, why := lightestStop(f); stop != respaldo.LockBackup {
			return "", "", &respaldo.Error{Kind: respaldo.Refused, What: "--lock=backup is not safe here: " + why, Hint: "use --lock=global, or auto"}
		}
	case respaldo.LockGlobal:
	default:
		return "", "", &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("unknown lock %q", asked), Hint: "the locks are auto, none, backup and global"}
	}
	return asked, "asked for; " + string(lightest) + " would do", nil
}

// Stricter is the next stricter lock than mode, and what it does, for people; ok is false
// for the strictest.
func Stricter(f *Facts, mode respaldo.LockMode) (stricter respaldo.LockMode, reason string, ok bool) {
	switch mode {
	case respaldo.LockNone:
		stricter, reason = lightestStop(f)
		return stricter, reason, true
	case respaldo.LockBackup:
		return respaldo.LockGlobal, "FLUSH TABLES WITH READ LOCK", true
	}
	return "", "", false
}

// lightestLock is the one place that decides.
func lightestLock(f *Facts) (respaldo.LockMode, string) {
	failing := f.failing()
	if len(failing) == 0 {
		return respaldo.LockNone, "recovery makes tables and binlog agree, so no commit has to wait; " + dmlGoesOn[f.wayWithoutLock()]
	}
	mode, reason := lightestStop(f)
	return mode, reason + "; not without a lock: " + strings.Join(failing, "; ")
}

// lightestStop is the lightest lock that stops commits and the binlog.
func lightestStop(f *Facts) (respaldo.LockMode, string) {
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

// way is how DDL is kept out of a snapshot that is taken without a lock.
type way int

const (
	byWatching      way = iota // nobody is kept out; what crossed the snapshot is found out
	byInstanceLock             // LOCK INSTANCE FOR BACKUP
	byStageBlockDDL            // BACKUP STAGE up to BLOCK_DDL
)

var dmlGoesOn = map[way]string{
	byWatching:      "DDL and account statements are watched, and a snapshot that one has crossed is discarded",
	byInstanceLock:  "LOCK INSTANCE FOR BACKUP keeps DDL out",
	byStageBlockDDL: "BACKUP STAGE BLOCK_DDL keeps DDL out",
}

func (f *Facts) wayWithoutLock() way {
	switch {
	case f.Version.AtLeast(respaldo.MariaDB, 10, 4, 1):
		return byStageBlockDDL
	case f.backupAdmin:
		return byInstanceLock
	}
	return byWatching
}
