// Package durable writes files so that what was acknowledged survives a power
// cut: data is fsynced before a name points at it, and the folder is fsynced
// after.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces path with data: a reader sees the old bytes or the new,
// never a mixture, whenever the machine stops. The new file has mode perm.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	f, err := writeTemp(path, data, perm)
	if err != nil {
		return err
	}
	if err := os.Rename(f, path); err != nil {
		return errors.Join(err, os.Remove(f))
	}
	return SyncDir(filepath.Dir(path))
}

// WriteNew is WriteFile for a file that must not exist yet. An existing one is
// left as it is, and the error satisfies errors.Is(err, fs.ErrExist).
func WriteNew(path string, data []byte, perm fs.FileMode) error {
	f, err := writeTemp(path, data, perm)
	if err != nil {
		return err
	}
	// Link fails on an existing name where rename would replace it.
	err = os.Link(f, path)
	if err := errors.Join(err, os.Remove(f)); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

func writeTemp(path string, data []byte, perm fs.FileMode) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(data); err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("writing %s: %w", path, err)
	}
	return f.Name(), nil
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
