package issuer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/conformance"
)

func TestStoreConformance(t *testing.T) {
	fresh := func(t *testing.T) storage.Storage {
		dir := t.TempDir()
		if err := createStore(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		s, err := openStore(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("objects", func(t *testing.T) { conformance.RunTests(t, fresh) })
	t.Run("transactions", func(t *testing.T) { conformance.RunTransactionTests(t, fresh) })
	t.Run("postgres", func(t *testing.T) {
		fresh := func(t *testing.T) storage.Storage { return postgresStore(NewDatabase(t)) }
		t.Run("objects", func(t *testing.T) { conformance.RunTests(t, fresh) })
		t.Run("transactions", func(t *testing.T) { conformance.RunTransactionTests(t, fresh) })
	})
}

func TestStoreFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with space ? and % and #")
	if err := CreatePeople(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := CreatePeople(t.Context(), dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating over an existing store: %v", err)
	}
	s, err := openStore(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateClient(t.Context(), storage.Client{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(e.Name(), "people.db") || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
	if second, err := openStore(t.Context(), dir); err == nil {
		t.Error("opened twice")
		_ = second.Close()
	}
	if _, err := s.exec(t.Context(), "PRAGMA user_version = 2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := openStore(t.Context(), dir); err == nil {
		t.Error("opened a store of another schema")
		_ = s.Close()
	}

	half := t.TempDir()
	if err := os.WriteFile(storePath(half), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := openStore(t.Context(), half); err == nil {
		t.Error("opened an empty file")
		_ = s.Close()
	}
	if _, err := openStore(t.Context(), t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing store: %v", err)
	}
}
