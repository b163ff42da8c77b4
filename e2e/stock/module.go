package stock

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ModuleRoot is the folder of the product's go.mod.
func ModuleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module github.com/sigbox/sigbox\n") {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod of sigbox above the working folder")
		}
		dir = parent
	}
}

// Track makes go test's result cache depend on every Go file and module file of
// the tree. A test that runs programs instead of importing them would otherwise
// be reported as passed, from the cache, after those programs changed.
func Track(t testing.TB, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // an editor's or a compiler's file, gone again
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == ".git" || name == "bin" || name == "dist" {
				return filepath.SkipDir
			}
			return nil
		}
		switch filepath.Ext(path) {
		case ".go", ".mod", ".sum", ".sql", ".yaml", ".yml":
			os.Stat(path) // what the cache notes is the asking
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
