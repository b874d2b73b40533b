package respaldo_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/respaldo-backup/respaldo"

// rule says that packages below From import nothing below any of Not. Because is what a
// reader is told when it is broken.
type rule struct {
	From    string
	Not     []string
	Except  []string
	Because string
}

var rules = []rule{
	{From: "", Not: []string{module + "/", "github.com/", "golang.org/"}, Except: []string{"internal/", "cmd/", "lab/", "bench/"},
		Because: "the vocabulary depends on the standard library only"},
	{From: "internal/mysql", Not: []string{module + "/internal/volume", module + "/internal/repo", module + "/internal/ledger", module + "/internal/backup"},
		Because: "the middle packages never know each other; internal/backup brings them together"},
	{From: "internal/volume", Not: []string{module + "/internal/mysql", module + "/internal/repo", module + "/internal/ledger", module + "/internal/backup"},
		Because: "the middle packages never know each other; internal/backup brings them together"},
	{From: "internal/repo", Not: []string{module + "/internal/mysql", module + "/internal/volume", module + "/internal/ledger", module + "/internal/backup"},
		Because: "the middle packages never know each other; internal/backup brings them together"},
	{From: "internal/host", Not: []string{module + "/internal/mysql", module + "/internal/volume", module + "/internal/repo", module + "/internal/ledger", module + "/internal/backup"},
		Because: "the middle packages never know each other; internal/backup brings them together"},
	{From: "internal/transfer", Not: []string{module + "/internal/mysql", module + "/internal/volume", module + "/internal/repo", module + "/internal/ledger", module + "/internal/backup"},
		Because: "the middle packages never know each other; internal/backup brings them together"},
	{From: "internal/target", Not: []string{module + "/internal/"},
		Because: "it is what internal/repo and internal/transfer share, and knows neither"},
	{From: "internal/disk", Not: []string{module},
		Because: "it is what everybody writes files with, and knows nothing of what is in them"},
	{From: "internal/", Not: []string{module + "/cmd", module + "/lab"},
		Because: "a package does not know the program it is part of, nor its tests' lab"},
	{From: "", Not: []string{"os/exec"}, Except: []string{"internal/run/", "lab/", "bench/"},
		Because: "internal/run is the one door to external programs: one place to log, time, redact and fake"},
	{From: "", Not: []string{"github.com/go-mysql-org/go-mysql"}, Except: []string{"internal/mysql/"},
		Because: "what a binlog says, only internal/mysql knows"},
	{From: "", Not: []string{"github.com/kopia/kopia"}, Except: []string{"internal/repo/"},
		Because: "internal/repo is the only one who knows what the repository is made of"},
}

// The house keeps its shape: imports point one way.
func TestImportsPointOneWay(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files++
		parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range parsed.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			for _, r := range rules {
				if r.breaks(filepath.ToSlash(path), imported) {
					t.Errorf("%s imports %s, but %s", path, imported, r.Because)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Fatalf("looked at %d files only: not run from the top of the house", files)
	}
}

func (r rule) breaks(path, imported string) bool {
	below := func(prefix string) bool { return strings.HasPrefix(path, prefix) }
	if !below(r.From) || slices.ContainsFunc(r.Except, below) {
		return false
	}
	return slices.ContainsFunc(r.Not, func(not string) bool {
		return imported == not || strings.HasPrefix(imported, strings.TrimSuffix(not, "/")+"/")
	})
}

// Every exported name of ours has a comment that says what its signature does not. A
// group of constants or fields may share one.
func TestExportedNamesHaveComments(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || path == "cmd") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		for _, decl := range parsed.Decls {
			for _, name := range uncommented(decl) {
				t.Errorf("%s: %s has no comment", files.Position(name.Pos()), name.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// conventional methods say all with their names.
var conventional = []string{"Error", "Unwrap", "String", "Read", "Write", "Set", "Type", "UnmarshalText", "Len", "Less", "Swap"}

func uncommented(decl ast.Decl) (names []*ast.Ident) {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || ofExported(d.Recv) && !slices.Contains(conventional, d.Name.Name)) {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				for _, name := range s.Names {
					typed := s.Type != nil || len(d.Specs) > 1 // a constant of a commented type
					if name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil && !typed {
						names = append(names, name)
					}
				}
			}
		}
	}
	return names
}

// ofExported tells whether a method's receiver can be seen outside: methods of others are
// somebody's interface, commented there.
func ofExported(recv *ast.FieldList) bool {
	expr := recv.List[0].Type
	if star, ok := expr.(*ast.StarExpr); ok {
		expr = star.X
	}
	name, ok := expr.(*ast.Ident)
	return ok && name.IsExported()
}
