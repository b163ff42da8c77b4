package state

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestLife(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "instance")
	if _, err := Load(dir); !errors.Is(err, ErrMissing) {
		t.Errorf("missing: %v", err)
	}
	if err := Claim(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errors.Is(err, ErrMissing) {
		t.Errorf("empty: %v", err)
	}
	lock, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("locked: %v", err)
	}
	if err := Claim(dir); !errors.Is(err, ErrExists) {
		t.Errorf("claimed twice: %v", err)
	}
	if _, err := Load(dir); !errors.Is(err, ErrHalfMade) {
		t.Errorf("half-made: %v", err)
	}
	want := Instance{Schema: Schema, ID: "1", CTTree: 1, RekorTree: 2, Created: time.Now().UTC().Truncate(time.Second)}
	if err := want.Save(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(dir); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if err := want.Save(dir); err == nil {
		t.Error("saved over an instance")
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	if lock, err = Acquire(dir); err != nil {
		t.Errorf("released: %v", err)
	} else {
		lock.Release()
	}
}

func TestDamaged(t *testing.T) {
	for data, want := range map[string]error{
		`{"schema":99,"id":"1","ct_tree_id":1,"rekor_tree_id":2}`: ErrNewer,
		`{"schema":1}`: nil,
		`{`:            nil,
		``:             nil,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%q: %v", data, err)
		}
	}
}
