package mysql

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"

	respaldo "github.com/respaldo-backup/respaldo"
)

// tablespace is an InnoDB file that does not lie where InnoDB puts it by itself.
type tablespace struct {
	name string // "db/table", or a general tablespace's
	path string
}

// tablespaces asks InnoDB for files outside the data directory: every version has the
// list in another table. Needs PROCESS.
func (s *Server) tablespaces(ctx context.Context, q queryer) ([]tablespace, error) {
	var query string
	switch v := s.version; {
	case v.AtLeast(respaldo.MySQL, 8, 0, 0):
		query = "SELECT TABLESPACE_NAME AS name, FILE_NAME AS path FROM information_schema.FILES WHERE ENGINE = 'InnoDB' AND FILE_TYPE <> 'TEMPORARY' AND FILE_NAME NOT LIKE './%'"
	case v.AtLeast(respaldo.MariaDB, 10, 6, 0): // dropped INNODB_SYS_DATAFILES
		query = "SELECT NAME AS name, FILENAME AS path FROM information_schema.INNODB_SYS_TABLESPACES WHERE FILENAME NOT LIKE './%'"
	default:
		query = "SELECT t.NAME AS name, d.PATH AS path FROM information_schema.INNODB_SYS_DATAFILES d JOIN information_schema.INNODB_SYS_TABLESPACES t ON t.SPACE = d.SPACE WHERE d.PATH NOT LIKE './%'"
	}
	rows, err := queryRows(ctx, q, query)
	if err != nil {
		return nil, err
	}
	var found []tablespace
	for _, r := range rows {
		if r["path"] != "" {
			found = append(found, tablespace{r["name"], r["path"]})
		}
	}
	return found, nil
}

// layouter collects places, each once.
type layouter struct {
	datadir  string
	realData string
	places   []respaldo.Place
	seen     map[string]bool
}

func newLayouter(datadir string) *layouter {
	l := &layouter{datadir: datadir, realData: realPath(datadir), seen: map[string]bool{}}
	l.add(respaldo.DataRole, datadir)
	l.places[0].Inside = false // it is what the others lie inside of
	return l
}

// add notes a file or directory; relative paths are relative to the data directory,
// where every server changes to when it starts. Empty ones are passed over.
func (l *layouter) add(role respaldo.Role, path string) {
	if path == "" {
		return
	}
	path = l.absolute(path)
	key := string(role) + "\x00" + path
	if l.seen[key] {
		return
	}
	l.seen[key] = true
	real := realPath(path)
	l.places = append(l.places, respaldo.Place{Role: role, Path: path, Real: real, Inside: isBelow(real, l.realData)})
}

func (l *layouter) absolute(path string) string {
	if !filepath.IsAbs(path) {
		path = filepath.Join(l.datadir, path)
	}
	return filepath.Clean(path)
}

// realPath resolves links as far as the path exists.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if parent := filepath.Dir(path); parent != path {
		return filepath.Join(realPath(parent), filepath.Base(path))
	}
	return path
}

// isBelow includes the directory itself.
func isBelow(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// layOut works out where the server's files lie, from its variables, InnoDB's list of
// files and the links in the data directory.
func (f *Facts) layOut(spaces []tablespace, files fileLook) {
	v := f.Variables
	l := newLayouter(f.Process.DataDir)
	f.BinlogOn = f.On("log_bin")

	redo := firstOf(v["innodb_log_group_home_dir"], ".")
	if f.Version.AtLeast(respaldo.MySQL, 8, 0, 30) { // keeps it in a folder of its own
		redo = filepath.Join(redo, "#innodb_redo")
	}
	l.add(respaldo.RedoRole, redo)
	l.add(respaldo.UndoRole, firstOf(v["innodb_undo_directory"], "."))
	if dir := v["innodb_doublewrite_dir"]; dir != "" {
		l.add(respaldo.DoublewriteRole, dir)
	}
	f.systemTablespace(l)
	l.add(respaldo.AriaLogRole, v["aria_log_dir_path"])
	f.binlogs(l)
	f.relayLogs(l)
	if dir := v["secure_file_priv"]; dir != "" && !strings.EqualFold(dir, "NULL") {
		l.add(respaldo.SecureFileRole, dir)
	}
	for _, dir := range []string{"rocksdb_datadir", "rocksdb_wal_dir", "tokudb_data_dir", "tokudb_log_dir"} {
		if v[dir] != "" {
			l.add(respaldo.TablespaceRole, v[dir])
		}
	}
	for _, t := range spaces {
		f.outsideTablespace(l, t)
	}
	for _, link := range files.links {
		l.add(link.role(), link.path)
	}
	for _, o := range f.OptionFiles {
		l.add(respaldo.OptionFileRole, o)
	}
	f.Layout = respaldo.Layout{DataDir: f.Process.DataDir, Places: l.places}

	for _, p := range l.places[1:] {
		if p.Role != respaldo.BinlogRole && p.Role != respaldo.RelayLogRole && p.Real != l.realData && isBelow(l.realData, p.Real) {
			f.refused = append(f.refused, &respaldo.Error{Kind: respaldo.Refused,
				What: fmt.Sprintf("%s (%s) contains the data directory %s", p.Path, p.Role, f.Process.DataDir),
				Hint: "give it a folder of its own"})
		}
	}
}

// systemTablespace notes innodb_data_home_dir or the absolute files that
// innodb_data_file_path names ("ibdata1:12M;/fast/ibdata2:1G:autoextend").
func (f *Facts) systemTablespace(l *layouter) {
	home := f.Variables["innodb_data_home_dir"]
	for _, spec := range strings.Split(f.Variables["innodb_data_file_path"], ";") {
		name, size, _ := strings.Cut(spec, ":")
		if name == "" {
			continue
		}
		if strings.HasSuffix(size, "raw") {
			f.refused = append(f.refused, &respaldo.Error{Kind: respaldo.Refused, What: "the system tablespace lies on the raw device " + name,
				Hint: "raw devices are not supported; use a file"})
		}
		path := name
		if !filepath.IsAbs(name) && home != "" {
			path = filepath.Join(home, name)
		}
		if home != "" && filepath.Dir(l.absolute(path)) == l.absolute(home) && l.absolute(home) != l.datadir && !isBelow(l.datadir, l.absolute(home)) {
			path = home // one folder instead of its files
		}
		if l.absolute(filepath.Dir(path)) != l.datadir {
			l.add(respaldo.SystemRole, path)
		}
	}
}

func (f *Facts) binlogs(l *layouter) {
	if !f.BinlogOn {
		return
	}
	base := f.Variables["log_bin_basename"]
	if base == "" {
		base = firstOf(f.Variables["binlog_directory"], ".") + "/binlog"
	}
	base = l.absolute(base)
	f.BinlogDir, f.BinlogBase = filepath.Dir(base), filepath.Base(base)
	f.BinlogIndex = l.absolute(firstOf(f.Variables["log_bin_index"], base+".index"))
	// An index in yet another folder is no place: whoever has the binlogs can write one.
	l.add(respaldo.BinlogRole, f.BinlogDir)
	f.BinlogElsewhere = !isBelow(realPath(f.BinlogDir), l.realData) || !sameFilesystem(f.BinlogDir, l.realData)
	f.BinlogEncrypted = f.On("binlog_encryption") || f.On("encrypt_binlog")
}

// sameFilesystem tells a folder of its own from a mount below the data directory.
func sameFilesystem(a, b string) bool {
	var sa, sb syscall.Stat_t
	return syscall.Stat(a, &sa) != nil || syscall.Stat(b, &sb) != nil || sa.Dev == sb.Dev
}

// relayLogs matter only on a replica; other servers name a path that does not exist.
func (f *Facts) relayLogs(l *layouter) {
	if !f.Replica {
		return
	}
	base := firstOf(f.Variables["relay_log_basename"], f.Variables["relay_log"])
	if base == "" {
		return
	}
	l.add(respaldo.RelayLogRole, filepath.Dir(l.absolute(base)))
	if index := f.Variables["relay_log_index"]; index != "" && filepath.Dir(l.absolute(index)) != filepath.Dir(l.absolute(base)) {
		l.add(respaldo.RelayLogRole, index)
	}
}

// outsideTablespace notes the folder that DATA DIRECTORY made for a database, or the
// file of a general tablespace, whose folder may be anybody's.
func (f *Facts) outsideTablespace(l *layouter, t tablespace) {
	path := l.absolute(t.path)
	if isBelow(path, l.datadir) {
		return // "ibdata1", or undo files that innodb_undo_directory names
	}
	for _, p := range l.places[1:] {
		if p.Role != respaldo.BinlogRole && isBelow(path, p.Path) {
			return
		}
	}
	dir := filepath.Dir(path)
	if strings.HasPrefix(filepath.Base(path), "#sql") && slices.Contains(strings.Split(f.Variables["tmpdir"], ":"), dir) {
		return // a temporary table: it ends with its session (MySQL 5.6; compressed ones in 5.7)
	}
	if db, _, ok := strings.Cut(t.name, "/"); ok && filepath.Base(dir) == db {
		path = dir
	}
	l.add(respaldo.TablespaceRole, path)
}

// link is a symbolic link in the data directory, or in a database's folder.
type link struct {
	path string
	dir  bool // it leads to a directory
	top  bool // it lies in the data directory itself
}

func (l link) role() respaldo.Role {
	name := filepath.Base(l.path)
	switch {
	case l.top && (strings.HasPrefix(name, "ib_logfile") || name == "#innodb_redo"):
		return respaldo.RedoRole
	case l.top && strings.HasPrefix(name, "ibdata"):
		return respaldo.SystemRole
	case l.top && strings.HasPrefix(name, "undo"):
		return respaldo.UndoRole
	case l.top && strings.HasPrefix(name, "aria_log"):
		return respaldo.AriaLogRole
	case l.top && l.dir && !strings.HasPrefix(name, "#"):
		return respaldo.DatabaseRole
	}
	return respaldo.TablespaceRole
}

// fileLook is what the names in the data directory tell.
type fileLook struct {
	seen   bool
	links  []link
	tables map[string][]string // engine → "db.table" of user databases
}

// engineFiles are files that every table of an engine has exactly once.
var engineFiles = map[string]string{
	".MYI": "MyISAM", ".MAI": "Aria", ".CSM": "CSV", ".ARZ": "ARCHIVE", ".MRG": "MRG_MyISAM",
}

// lookAtFiles reads the data directory and the folders of its databases. Links within
// the latter are MyISAM's and Aria's DATA DIRECTORY and INDEX DIRECTORY.
func lookAtFiles(datadir string) fileLook {
	look := fileLook{tables: map[string][]string{}}
	entries, err := os.ReadDir(datadir)
	if err != nil {
		return look
	}
	look.seen = true
	for _, e := range entries {
		name, path := e.Name(), filepath.Join(datadir, e.Name())
		if strings.HasPrefix(name, ".") || name == "lost+found" {
			continue
		}
		isDir := e.IsDir()
		if e.Type()&os.ModeSymlink != 0 {
			info, err := os.Stat(path)
			isDir = err == nil && info.IsDir()
			look.links = append(look.links, link{path: path, dir: isDir, top: true})
		}
		if isDir && !strings.HasPrefix(name, "#") {
			look.database(path, name)
		}
	}
	return look
}

func (look *fileLook) database(dir, name string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		look.seen = false
		return
	}
	tables := map[string]map[string]bool{}
	for _, e := range entries {
		if e.Type()&os.ModeSymlink != 0 {
			look.links = append(look.links, link{path: filepath.Join(dir, e.Name())})
		}
		ext := filepath.Ext(e.Name())
		engine := engineFiles[ext]
		if engine == "" || systemSchemas[name] {
			continue
		}
		table, _, _ := strings.Cut(strings.TrimSuffix(e.Name(), ext), "#") // #P# and #p#: partitions
		if table == "" {
			continue // #sql-…: an ALTER in flight
		}
		if tables[engine] == nil {
			tables[engine] = map[string]bool{}
		}
		tables[engine][name+"."+table] = true
	}
	for engine, names := range tables {
		for n := range names {
			look.tables[engine] = append(look.tables[engine], n)
		}
		sort.Strings(look.tables[engine])
	}
}

// serverOptionFiles are the files that the server read when it started: those of its
// command line and environment, or the default ones.
func serverOptionFiles(p Process) []string { return existingOptionFiles(topOptionFiles(p)) }

// topOptionFiles are those, whether they exist or not, without what they include.
func topOptionFiles(p Process) []string {
	files := []string{"/etc/my.cnf", "/etc/mysql/my.cnf"}
	if dir := p.env["MYSQL_HOME"]; dir != "" {
		files = append(files, filepath.Join(dir, "my.cnf"))
	}
	extra := ""
	for _, arg := range p.Args { // these options are recognised only at the beginning
		name, value, _ := strings.Cut(arg, "=")
		switch optionName(name) {
		case "--no-defaults":
			return nil
		case "--defaults-file":
			return []string{value}
		case "--defaults-extra-file":
			extra = value
		}
	}
	if extra != "" {
		files = append(files, extra)
	}
	if home := p.env["HOME"]; home != "" {
		files = append(files, filepath.Join(home, ".my.cnf"))
	}
	return files
}

func existingOptionFiles(files []string) []string {
	parsed, err := readOptionFiles(files, nil)
	if err != nil { // the server started with them, so whatever is odd there is ours to bear
		var found []string
		for _, f := range files {
			if _, err := os.Stat(f); err == nil {
				found = append(found, f)
			}
		}
		return found
	}
	seen := map[string]bool{}
	var found []string
	for _, f := range parsed.read {
		if !seen[f] {
			seen[f] = true
			found = append(found, f)
		}
	}
	return found
}
