// Package state knows whether a folder holds an instance: complete, half-made,
// of another version or in use.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sigbox/sigbox/internal/durable"
)

// Schema is the version of the folder's layout that this program writes.
const Schema = 1

const (
	fileName = "instance.json"
	lockName = "lock"
)

// Instance is what init decided once and for all.
type Instance struct {
	Schema    int       `json:"schema"`
	ID        string    `json:"id"` // random, 128 bits, hexadecimal
	Created   time.Time `json:"created"`
	URL       string    `json:"url"`
	CTTree    int64     `json:"ct_tree_id"`
	RekorTree int64     `json:"rekor_tree_id"`
	// RootSHA256 is the hash of the first TUF root, which clients pin.
	RootSHA256 string `json:"root_sha256"`
	// Epoch counts how often the instance was restored from a backup.
	Epoch int `json:"epoch,omitempty"`
}

// Errors of Load and Acquire. They are wrapped with the folder's name.
var (
	ErrMissing  = errors.New("there is no instance here")
	ErrHalfMade = errors.New("the instance here is half-made: init did not finish")
	ErrNewer    = errors.New("the instance here was written by a newer sigboxd")
	ErrExists   = errors.New("there is something here already, and init never overwrites")
	ErrLocked   = errors.New("another sigboxd uses this instance")
)

// Load reads the instance in dir.
func Load(dir string) (Instance, error) {
	var i Instance
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		entries, derr := os.ReadDir(dir)
		switch {
		case errors.Is(derr, fs.ErrNotExist), derr == nil && len(entries) == 0:
			return i, fmt.Errorf("%s: %w", dir, ErrMissing)
		case derr != nil:
			return i, derr
		}
		return i, fmt.Errorf("%s: %w", dir, ErrHalfMade)
	}
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(data, &i); err != nil {
		return i, fmt.Errorf("%s: %w", filepath.Join(dir, fileName), err)
	}
	if i.Schema > Schema {
		return i, fmt.Errorf("%s: schema %d, this one knows %d: %w", dir, i.Schema, Schema, ErrNewer)
	}
	if i.Schema < 1 || i.ID == "" || i.CTTree == 0 || i.RekorTree == 0 {
		return i, fmt.Errorf("%s is damaged: schema, id or tree ids are missing", filepath.Join(dir, fileName))
	}
	return i, nil
}

// Claim makes dir for a new instance. One that holds anything is refused.
func Claim(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s: %w", dir, ErrExists)
	}
	return nil
}

// Save completes a new instance. It is the last thing that init does.
func (i Instance) Save(dir string) error {
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteNew(filepath.Join(dir, fileName), append(data, '\n'), 0o600)
}

// Lock is the right to use an instance folder. The kernel lets go of it when
// the process ends, however it ends.
type Lock struct{ f *os.File }

// Acquire takes the folder, or fails with ErrLocked at once.
func Acquire(dir string) (*Lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking instance: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%s: %w", dir, ErrLocked)
		}
		return nil, errors.Join(err, f.Close())
	}
	return &Lock{f}, nil
}

// Release gives the folder free.
func (l *Lock) Release() error { return l.f.Close() }
