package volume

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// namePrefix begins every name that we choose.
const namePrefix = "respaldo-"

// dmNameMax is the kernel's DM_NAME_LEN less its terminating zero.
const dmNameMax = 127

// NewName makes a snapshot name that LVM and Btrfs accept, that says whose it is and
// when it was made, and that no other call returns: "respaldo-shop-20261123T143600-9f3a01".
func NewName(server string, at time.Time) string {
	legal := strings.Map(func(r rune) rune {
		if strings.ContainsRune(nameChars, r) {
			return r
		}
		return '_'
	}, server)
	if len(legal) > 30 { // twice that when every byte is a dash, which dm names double
		legal = legal[:30]
	}
	var salt [3]byte
	rand.Read(salt[:])
	return namePrefix + legal + "-" + at.UTC().Format("20060102T150405") + "-" + hex.EncodeToString(salt[:])
}

const nameChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-"

// Words that LVM keeps for its own volumes (lvm(8), "VALID NAMES").
var (
	reservedPrefixes = []string{"snapshot", "pvmove"}
	reservedParts    = []string{"_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mlog", "_mimage", "_pmspare",
		"_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_iorig", "_imeta"}
)

// checkName refuses what LVM would refuse, so that it is said before any lock is
// taken. Btrfs allows more, but one rule for all is easier to remember.
func checkName(name, vg string) error {
	problem := ""
	switch {
	case name == "" || name == "." || name == ".." || strings.HasPrefix(name, "-"):
		problem = "is not a legal name"
	case strings.Trim(name, nameChars) != "":
		problem = "has other characters than letters, digits and _ + . -"
	case vg != "" && len(dmName(vg, name)+"-cow") > dmNameMax:
		problem = "is too long for a volume of group " + vg
	case len(name) > dmNameMax:
		problem = "is too long"
	}
	for _, p := range reservedPrefixes {
		if strings.HasPrefix(name, p) {
			problem = fmt.Sprintf("begins with %q, which LVM keeps for itself", p)
		}
	}
	for _, p := range reservedParts {
		if strings.Contains(name, p) {
			problem = fmt.Sprintf("contains %q, which LVM keeps for itself", p)
		}
	}
	if problem == "" {
		return nil
	}
	return &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("the name %q %s", name, problem),
		Hint: "choose another name, or give none and let respaldo make one"}
}

// dmName is how device-mapper spells a logical volume: dashes doubled, one between.
func dmName(vg, lv string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return double(vg) + "-" + double(lv)
}

// splitDMName undoes dmName; ok is false for what is no name of a logical volume.
func splitDMName(name string) (vg, lv string, ok bool) {
	for i := 0; i < len(name); i++ {
		if name[i] != '-' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			i++
			continue
		}
		single := func(s string) string { return strings.ReplaceAll(s, "--", "-") }
		vg, lv = single(name[:i]), single(name[i+1:])
		return vg, lv, vg != "" && lv != ""
	}
	return "", "", false
}
