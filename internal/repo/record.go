package repo

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	kfs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/snapshot"

	"github.com/respaldo-backup/respaldo"
)

// Tags of a backup's kopia manifest; "tag:" is what the stock program's --tags adds.
const (
	tagFormat      = "tag:respaldo-format"
	tagSummary     = "tag:respaldo" // summary, as JSON
	tagServer      = "tag:server"
	tagVersion     = "tag:version"
	tagCoordinates = "tag:coordinates"
	tagGTID        = "tag:gtid"
	tagProof       = "tag:proof"
)

// dumpsSource is added to the server's name in the kopia source of its dumps.
const dumpsSource = "/dumps"

// summary is what List needs to know, so that it need not open a thousand trees.
type summary struct {
	Manifest respaldo.Manifest `json:"manifest"` // without Variables
	Bytes    int64             `json:"bytes"`
	Files    int               `json:"files"`
	Stored   int64             `json:"stored"`
	Read     int64             `json:"read"`
}

// staleAfter is how old a save may be without asking whether all of it is still there.
// Data that nothing refers to is safe from maintenance for longer.
const staleAfter = 2 * time.Hour

// Record makes a saved tree a backup: it writes the manifest as respaldo.json next to it
// and, last, what makes it visible. Format is set here. The data is not touched.
func (r *Repo) Record(ctx context.Context, saved *Saved, m respaldo.Manifest) (respaldo.Backup, error) {
	m.Format = respaldo.ManifestFormat
	backup := respaldo.Backup{Manifest: m, Start: saved.Start, End: time.Now(),
		Bytes: saved.Bytes, Files: saved.Files, Stored: saved.Stored, Read: saved.Read}
	err := r.write(ctx, "record", func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		if time.Since(saved.Start) > staleAfter {
			if err := r.stillThere(ctx, w, saved.root.children); err != nil {
				return err
			}
		}
		children := append([]*node{}, saved.root.children...)
		for name, v := range map[string]any{manifestName: m, filesName: saved.table} {
			n, err := writeJSON(ctx, w, saved, name, v)
			if err != nil {
				return err
			}
			children = append(children, n)
		}
		root, err := writeDirectory(ctx, w, saved.root, children)
		if err != nil {
			return err
		}
		source := saved.Server
		if m.Dump != nil {
			source += dumpsSource
		}
		short := m
		short.Variables = nil
		text, err := json.Marshal(summary{short, saved.Bytes, saved.Files, saved.Stored, saved.Read})
		if err != nil {
			return err
		}
		man := &snapshot.Manifest{
			Source:      snapshot.SourceInfo{UserName: kopiaUser, Host: r.opts.Host, Path: source},
			Description: fmt.Sprintf("%s, %s at %s", saved.Server, m.Version, m.Quiesced.Coordinates),
			StartTime:   kfs.UTCTimestampFromTime(saved.Start),
			EndTime:     kfs.UTCTimestampFromTime(backup.End),
			RootEntry:   root,
			Stats: snapshot.Stats{TotalFileSize: saved.Bytes, TotalFileCount: int32(saved.Files),
				NonCachedFiles: int32(saved.Files), TotalDirectoryCount: int32(root.DirSummary.TotalDirCount)},
			Tags: map[string]string{
				tagFormat:      strconv.Itoa(m.Format),
				tagSummary:     string(text),
				tagServer:      saved.Server,
				tagVersion:     m.Version.String(),
				tagCoordinates: m.Quiesced.Coordinates.String(),
				tagProof:       proofTag(m.Proof),
			},
		}
		if gtid := m.Quiesced.Coordinates.GTIDSet; gtid != "" {
			man.Tags[tagGTID] = gtid
		}
		id, err := snapshot.SaveSnapshot(ctx, w, man)
		backup.ID = string(id)
		return err
	})
	if err != nil {
		return respaldo.Backup{}, r.where.explain("cannot record the backup in the repository", err)
	}
	return backup, nil
}

func proofTag(p respaldo.Proof) string {
	switch {
	case p.Level == "" || p.Level == respaldo.ProveNone:
		return "none"
	case p.OK:
		return string(p.Level)
	}
	return "failed"
}

func writeJSON(ctx context.Context, w repo.DirectRepositoryWriter, saved *Saved, name string, v any) (*node, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	info := saved.root.info
	info.mode = 0o600
	n := &node{name: name, stored: name, info: info, data: append(data, '\n')}
	u := &upload{w: w, async: 1, progress: reporter("record", 0, nil)}
	return n, u.file(ctx, n)
}

// stillThere fails when maintenance has dropped something that the save had found in the
// repository and therefore not uploaded, because its last backup was pruned meanwhile.
func (r *Repo) stillThere(ctx context.Context, w repo.DirectRepositoryWriter, nodes []*node) error {
	if err := w.Refresh(ctx); err != nil {
		return err
	}
	for _, n := range nodes {
		if _, err := w.VerifyObject(ctx, n.entry.ObjectID); err != nil {
			return &respaldo.Error{Kind: respaldo.RepoFailed, What: "a part of the backup was pruned while it was made: " + n.stored,
				Hint: "run the backup again", Err: err}
		}
		if err := r.stillThere(ctx, w, n.children); err != nil {
			return err
		}
	}
	return nil
}
