package respaldo_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/respaldo-backup/respaldo"
	"github.com/respaldo-backup/respaldo/internal/mysql"
)

// documents are all Markdown files of the house.
func documents(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "dist") {
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return err
		}
		if strings.HasSuffix(path, ".md") {
			text, err := os.ReadFile(path)
			found[path] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 8 {
		t.Fatalf("%d documents only: not run from the top of the house", len(found))
	}
	return found
}

var (
	markdownLink = regexp.MustCompile(`\]\(([^)#:\s]+)(#[^)\s]*)?\)`)
	housePath    = regexp.MustCompile(`\b(?:cmd|internal|lab|docs|bench|packaging)/[\w./-]*\w`)
	sourceFile   = regexp.MustCompile(`[\w./-]*\w\.(?:go|md)\b`)
	heading      = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	notInAnchor  = regexp.MustCompile(`[^\w\- ]`)
)

// A document that names a file which does not exist misleads whoever follows it.
func TestDocumentsNameWhatExists(t *testing.T) {
	names := map[string]bool{} // of every file, without folders
	if err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		names[filepath.Base(path)] = true
		return err
	}); err != nil {
		t.Fatal(err)
	}
	texts := documents(t)
	for document, text := range texts {
		for _, link := range markdownLink.FindAllStringSubmatch(text, -1) {
			target := filepath.Join(filepath.Dir(document), link[1])
			if !exists(target) {
				t.Errorf("%s links to %s, which does not exist", document, link[1])
			} else if link[2] != "" && !slices.Contains(anchors(texts[target]), link[2]) {
				t.Errorf("%s links to %s%s, and there is no such heading", document, link[1], link[2])
			}
		}
		for _, path := range housePath.FindAllString(text, -1) {
			if !exists(path) && !exists(filepath.Join(filepath.Dir(document), path)) {
				t.Errorf("%s names %s, which does not exist", document, path)
			}
		}
		for _, file := range sourceFile.FindAllString(text, -1) {
			if !exists(file) && !names[file] && !exists(filepath.Join(filepath.Dir(document), file)) {
				t.Errorf("%s names %s, which does not exist", document, file)
			}
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// anchors are what the headings of a document can be linked to by.
func anchors(text string) []string {
	var list []string
	for _, h := range heading.FindAllStringSubmatch(text, -1) {
		list = append(list, "#"+strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return list
}

// The map shows every package.
func TestArchitectureNamesEveryPackage(t *testing.T) {
	text := documents(t)["ARCHITECTURE.md"]
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == "." {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" {
			return fs.SkipDir
		}
		if sources, _ := filepath.Glob(path + "/*.go"); len(sources) > 0 && !strings.Contains(text, "`"+filepath.ToSlash(path)+"`") {
			t.Errorf("ARCHITECTURE.md does not say what %s is for", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

var makeCommand = regexp.MustCompile("(?m)(?:^|`)make ([a-z]+)(?:`|$)")

// What the documents tell people to make can be made.
func TestDocumentedMakeTargets(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for document, text := range documents(t) {
		for _, m := range makeCommand.FindAllStringSubmatch(text, -1) {
			found++
			if !regexp.MustCompile("(?m)^" + m[1] + ":").Match(makefile) {
				t.Errorf("%s tells to make %s, which the Makefile does not know", document, m[1])
			}
		}
	}
	if found < 5 {
		t.Errorf("found %d make commands only", found)
	}
}

// The documents' grants are those that the program's own tests use.
func TestDocumentedGrants(t *testing.T) {
	readme := documents(t)["README.md"]
	for _, grant := range mysql.NoLockGrants(respaldo.Version{Flavor: respaldo.MySQL, Major: 8}) {
		if !strings.Contains(documents(t)["docs/locks.md"], grant+";") {
			t.Errorf("docs/locks.md lacks %s", grant)
		}
	}
	wanted := []string{mysql.SelectGrant()}
	for _, v := range []respaldo.Version{
		{Flavor: respaldo.MariaDB, Major: 11, Minor: 8}, {Flavor: respaldo.MariaDB, Major: 10, Minor: 4},
		{Flavor: respaldo.MySQL, Major: 9, Minor: 7}, {Flavor: respaldo.MySQL, Major: 8, Minor: 0}, {Flavor: respaldo.MySQL, Major: 5, Minor: 7},
	} {
		wanted = append(wanted, mysql.Grants(v)...)
	}
	for _, grant := range wanted {
		if !strings.Contains(readme, grant+";") {
			t.Errorf("the README lacks %s", grant)
		}
	}
}
