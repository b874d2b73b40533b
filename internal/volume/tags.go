package volume

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/respaldo-backup/respaldo"
)

// Tag marks every volume of ours. Key=value tags beside it say the rest.
const Tag = "respaldo"

// The keys. LVM allows A-Z a-z 0-9 _ + . - / = ! : # & in a tag (lvm(8)), prints them
// separated by commas, and sorts them.
const (
	tagServer  = Tag + ".server="
	tagRun     = Tag + ".run="
	tagVolume  = Tag + ".volume=" // the origin; a half-made snapshot does not know it otherwise
	tagCreated = Tag + ".created="
	tagKept    = Tag + ".kept=yes"
	tagExpires = Tag + ".expires="
)

// tagTime keeps microseconds and sorts as text; every character is legal in a tag.
const tagTime = "2006-01-02T15:04:05.000000Z"

// encodeTags writes what a snapshot is into LVM tags.
func encodeTags(d respaldo.Snapshot) []string {
	tags := []string{Tag, tagServer + escapeTag(d.Server), tagRun + escapeTag(d.Run), tagVolume + escapeTag(d.Volume),
		tagCreated + d.Created.UTC().Format(tagTime)}
	if d.Kept {
		tags = append(tags, tagKept)
	}
	if !d.Expires.IsZero() {
		tags = append(tags, tagExpires+d.Expires.UTC().Format(tagTime))
	}
	return tags
}

// decodeTags reads them back; ours is false when the tag that makes it ours is
// missing. A tag that cannot be read leaves its field empty: what is ours stays ours.
func decodeTags(tags []string) (d respaldo.Snapshot, ours bool) {
	for _, t := range tags {
		switch {
		case t == Tag:
			ours = true
		case t == tagKept:
			d.Kept = true
		case strings.HasPrefix(t, tagServer):
			d.Server = unescapeTag(t[len(tagServer):])
		case strings.HasPrefix(t, tagRun):
			d.Run = unescapeTag(t[len(tagRun):])
		case strings.HasPrefix(t, tagVolume):
			d.Volume = unescapeTag(t[len(tagVolume):])
		case strings.HasPrefix(t, tagCreated):
			d.Created, _ = time.Parse(tagTime, t[len(tagCreated):])
		case strings.HasPrefix(t, tagExpires):
			d.Expires, _ = time.Parse(tagTime, t[len(tagExpires):])
		}
	}
	return d, ours
}

// escapeTag writes any other byte as # and two hex digits.
func escapeTag(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_+.-/:", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "#%02x", c)
		}
	}
	return b.String()
}

func unescapeTag(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '#' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
