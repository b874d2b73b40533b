package backup

import (
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/respaldo-backup/respaldo"
)

// Compression is how a dump is written.
type Compression string

// The kinds of compression.
const (
	Zstd         Compression = "zstd"
	Gzip         Compression = "gzip"
	Uncompressed Compression = "none"
)

// suffixes say how a file is compressed by its name.
var suffixes = map[string]Compression{".zst": Zstd, ".zstd": Zstd, ".gz": Gzip}

// settleCompression chooses by the file's name what was left open, and refuses a name that
// says another thing than the user.
func (r *DumpRequest) settleCompression() error {
	switch r.Compress {
	case "", Zstd, Gzip, Uncompressed:
	default:
		return &respaldo.Error{Kind: respaldo.Usage, What: "--compress is zstd, gzip or none, not " + string(r.Compress)}
	}
	if r.File == "" {
		return nil
	}
	for suffix, c := range suffixes {
		if !strings.HasSuffix(r.File, suffix) {
			continue
		}
		if r.Compress != "" && r.Compress != c {
			return &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("%s is the name of a %s file, and --compress says %s", r.File, c, r.Compress),
				Hint: "leave --compress out, or name the file otherwise"}
		}
		r.Compress = c
	}
	return nil
}

// writer compresses on the way to w. It must be closed, which does not close w.
func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(2)) // the origin has the first claim on the rest
	case Gzip:
		return gzip.NewWriter(w), nil
	}
	return plain{w}, nil
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }
