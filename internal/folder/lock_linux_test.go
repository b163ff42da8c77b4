package folder

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

func TestNetworkFilesystems(t *testing.T) {
	for magic, name := range remoteFilesystems {
		if err := checkFilesystem(magic); !errors.Is(err, ErrNetwork) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, magic := range []int64{0xef53, 0x58465342, 0x9123683e, 0x01021994, 0x794c7630} { // ext4, XFS, btrfs, tmpfs, overlay
		if err := checkFilesystem(magic); err != nil {
			t.Errorf("%#x: %v", magic, err)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	f, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, lock := range map[string]func() error{
		"again":   func() error { _, err := Lock(dir); return err },
		"to read": func() error { _, err := LockToRead(dir); return err },
	} {
		if err := lock(); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err = LockToRead(dir); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}
