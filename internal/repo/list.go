package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"

	"github.com/respaldo-backup/respaldo"
)

// Latest is what Find takes for a server's newest backup. A dump is none.
const Latest = "latest"

// shortID is how many characters of an ID messages show; Find takes any unique prefix.
const shortID = 12

// List returns the backups of one server, or of all with "", oldest first. It reads none of
// the trees: Manifest.Variables is nil (Find has them). A backup of a newer format is listed,
// with what of it can be understood; snapshots that are not ours are not.
func (r *Repo) List(ctx context.Context, server string) ([]respaldo.Backup, error) {
	entries, err := r.entries(ctx, server)
	if err != nil {
		return nil, err
	}
	backups := make([]respaldo.Backup, 0, len(entries))
	for _, e := range entries {
		backups = append(backups, e.backup)
	}
	return backups, nil
}

type entry struct {
	backup respaldo.Backup
	root   *snapshot.DirEntry
}

func (r *Repo) entries(ctx context.Context, server string) ([]entry, error) {
	ctx = withLog(ctx, r.opts.Log)
	fail := func(err error) ([]entry, error) {
		return nil, r.where.explain("cannot list the backups in the repository", err)
	}
	if err := r.rep.Refresh(ctx); err != nil {
		return fail(err)
	}
	labels := map[string]string{manifest.TypeLabelKey: snapshot.ManifestType, snapshot.UsernameLabel: kopiaUser}
	if server != "" {
		labels[tagServer] = server
	}
	found, err := r.rep.FindManifests(ctx, labels)
	if err != nil {
		return fail(err)
	}
	var list []entry
	for _, md := range found {
		if md.Labels[tagFormat] == "" {
			continue // somebody else's
		}
		var man snapshot.Manifest
		if _, err := r.rep.GetManifest(ctx, md.ID, &man); err != nil {
			return fail(err)
		}
		if man.IncompleteReason != "" || man.RootEntry == nil {
			continue
		}
		list = append(list, entry{backup: describe(string(md.ID), &man), root: man.RootEntry})
	}
	slices.SortFunc(list, func(a, b entry) int {
		return cmp.Or(a.backup.Start.Compare(b.backup.Start), cmp.Compare(a.backup.ID, b.backup.ID))
	})
	return list, nil
}

func describe(id string, man *snapshot.Manifest) respaldo.Backup {
	var s summary
	json.Unmarshal([]byte(man.Tags[tagSummary]), &s) // best effort: a newer format may differ
	if n, err := strconv.Atoi(man.Tags[tagFormat]); err == nil {
		s.Manifest.Format = n
	}
	if s.Manifest.Server == "" {
		s.Manifest.Server = strings.TrimSuffix(man.Source.Path, dumpsSource)
	}
	return respaldo.Backup{ID: id, Manifest: s.Manifest, Start: man.StartTime.ToTime(), End: man.EndTime.ToTime(),
		Bytes: s.Bytes, Files: s.Files, Stored: s.Stored, Read: s.Read, Pinned: len(man.Pins) > 0}
}

// Find returns the backup that an ID, a unique prefix of one, or Latest names, with its
// whole manifest. Server "" looks among all servers' backups; Latest is this host's where it
// has backups of one server, and refused where several could be meant. It fails with Kind NotFound where there is none.
func (r *Repo) Find(ctx context.Context, server, id string) (respaldo.Backup, error) {
	e, err := r.find(ctx, server, id)
	if err != nil {
		return respaldo.Backup{}, err
	}
	b := e.backup
	if b.Manifest, err = r.manifest(ctx, e.root); err != nil {
		return respaldo.Backup{}, err
	}
	return b, nil
}

func (r *Repo) find(ctx context.Context, server, id string) (entry, error) {
	list, err := r.entries(ctx, server)
	if err != nil {
		return entry{}, err
	}
	of := ""
	if server != "" {
		of = " of " + server
	}
	if len(list) == 0 {
		return entry{}, &respaldo.Error{Kind: respaldo.NotFound, What: "no backup" + of + " in " + r.where.name,
			Hint: "respaldo list shows all servers' backups; respaldo backup makes one"}
	}
	var hits []entry
	if id == Latest {
		list = slices.DeleteFunc(list, func(e entry) bool { return e.backup.Manifest.Dump != nil })
		if len(list) == 0 {
			return entry{}, &respaldo.Error{Kind: respaldo.NotFound, What: "there are dumps" + of + " in " + r.where.name + ", but no backup",
				Hint: "name a dump by its ID, see respaldo list; respaldo backup makes a backup"}
		}
		last, err := r.latest(list)
		if err != nil {
			return entry{}, err
		}
		hits = []entry{last}
	} else if id != "" {
		for _, e := range list {
			if strings.HasPrefix(e.backup.ID, strings.ToLower(id)) {
				hits = append(hits, e)
			}
		}
	}
	switch {
	case len(hits) == 0:
		return entry{}, &respaldo.Error{Kind: respaldo.NotFound, What: fmt.Sprintf("no backup%s is called %q", of, id),
			Hint: fmt.Sprintf("respaldo list shows the IDs; the newest is %s", list[len(list)-1].backup.ID[:shortID])}
	case len(hits) > 1:
		var names []string
		for _, e := range hits {
			names = append(names, e.backup.ID)
		}
		return entry{}, &respaldo.Error{Kind: respaldo.Usage, What: fmt.Sprintf("%q may mean %s", id, strings.Join(names, " or ")),
			Hint: "give more of its ID"}
	}
	return hits[0], tooNew(hits[0].backup)
}

// latest is the newest backup of one server. Where several servers could be meant, this
// host's is, if it has had one only; on a new machine, the only one there is.
func (r *Repo) latest(list []entry) (entry, error) {
	newest, here := map[string]entry{}, map[string]entry{}
	for _, e := range list { // oldest first
		m := e.backup.Manifest
		newest[identity(m)] = e
		if m.Host == r.opts.Host {
			here[identity(m)] = e
		}
	}
	for _, candidates := range []map[string]entry{newest, here} {
		if len(candidates) == 1 {
			return slices.Collect(maps.Values(candidates))[0], nil
		}
	}
	var names []string
	for _, e := range newest {
		m := e.backup.Manifest
		names = append(names, fmt.Sprintf("%s@%s (%s)", m.Server, m.Host, e.backup.ID[:min(shortID, len(e.backup.ID))]))
	}
	slices.Sort(names)
	return entry{}, &respaldo.Error{Kind: respaldo.Usage,
		What: "the latest of which server? The newest backups are of " + strings.Join(names, ", "),
		Hint: "give the backup's ID, or say which server is meant with --server"}
}

func tooNew(b respaldo.Backup) error {
	if b.Manifest.Format <= respaldo.ManifestFormat {
		return nil
	}
	return &respaldo.Error{Kind: respaldo.RepoFailed,
		What: fmt.Sprintf("backup %s has format %d, which this version does not know", b.ID[:min(shortID, len(b.ID))], b.Manifest.Format),
		Hint: "use the respaldo that made it, or a newer one"}
}

// manifest reads respaldo.json from a backup's tree.
func (r *Repo) manifest(ctx context.Context, root *snapshot.DirEntry) (respaldo.Manifest, error) {
	var m respaldo.Manifest
	if err := newReader(r.rep).json(ctx, root, manifestName, &m); err != nil {
		return m, r.where.explain("cannot read the manifest of a backup in", err)
	}
	return m, nil
}

// json reads a small file at the root of a backup.
func (rd *reader) json(ctx context.Context, root *snapshot.DirEntry, name string, v any) error {
	children, err := rd.directory(ctx, root)
	if err != nil {
		return err
	}
	for _, e := range children {
		if e.Name == name && e.Type == snapshot.EntryTypeFile {
			data, err := rd.all(ctx, e)
			if err != nil {
				return err
			}
			return json.Unmarshal(data, v)
		}
	}
	return fmt.Errorf("the backup has no %s: %w", name, io.ErrUnexpectedEOF)
}
