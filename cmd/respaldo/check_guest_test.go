//go:build guest

package main

import (
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/backup"
)

// choosesLock checks that check says for each condition of an image without a lock whether
// it holds, and what follows: with a table that knows no transactions a lock, without it none.
func (s *stand) choosesLock(t *testing.T) {
	s.t = t
	var o backup.Outlook
	s.into(&o, "check")
	if o.Lock != respaldo.LockBackup || !strings.Contains(o.LockReason, "MyISAM (shop.notes)") {
		t.Errorf("the lock is %s: %s", o.Lock, o.LockReason)
	}
	for _, c := range o.Conditions {
		if c.OK == strings.Contains(c.Why, "MyISAM") {
			t.Errorf("%s: %t, %s", c.What, c.OK, c.Why)
		}
	}
	s.refuses(t, respaldo.Refused, []string{"--lock=none is not safe here", "MyISAM (shop.notes)", "--lock=backup"}, "backup", "--lock", "none")

	s.server.Exec(t, "ALTER TABLE shop.notes ENGINE=InnoDB")
	text := s.ok("check").stdout
	for _, words := range []string{"none: ", "FOR NO LOCK", "all files in one snapshot", "innodb_doublewrite = ON"} {
		if !strings.Contains(text, words) {
			t.Errorf("check does not say %q:\n%s", words, text)
		}
	}
	if strings.Contains(text, "  NO  ") {
		t.Errorf("a condition does not hold:\n%s", text)
	}
	t.Log("\n" + text)
	s.server.Exec(t, "ALTER TABLE shop.notes ENGINE=MyISAM")
}
