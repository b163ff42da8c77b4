// Package anchor remembers the newest root of each log outside of the log's own storage, so that storage which went back to an older
// state, or holds another history, is told from the one that was last published.
//
// A folder has one file for each log. Folder and storage should not share a volume: what is restored together can not contradict
// each other.
package anchor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sigbox/sigbox/internal/durable"
	"github.com/sigbox/sigbox/internal/folder"
)

// Root is a log's root as it was published. The checkpoint of a log says no more than this.
type Root struct {
	Size uint64
	// Hash is nil for a log that has no root yet.
	Hash []byte
	// Timestamp is in nanoseconds since 1970.
	Timestamp uint64
}

func (r Root) String() string {
	if r.Hash == nil {
		return "no root"
	}
	return fmt.Sprintf("size %d, root %x", r.Size, r.Hash)
}

// Same tells whether two roots are of the same tree, whenever they were made.
func (r Root) Same(other Root) bool {
	return r.Size == other.Size && bytes.Equal(r.Hash, other.Hash) && (r.Hash == nil) == (other.Hash == nil)
}

// follows is an error if next can not come after r in one and the same log.
func (r Root) follows(next Root) error {
	switch {
	case r.Hash == nil:
		return nil
	case next.Hash == nil || next.Size < r.Size:
		return fmt.Errorf("%w: %v after %v", ErrBack, next, r)
	case next.Size == r.Size && !bytes.Equal(next.Hash, r.Hash):
		return fmt.Errorf("%w: %v after %v", ErrFork, next, r)
	}
	return nil
}

// What can be wrong with an anchor. The errors are wrapped with the name of the file or folder.
var (
	// ErrMissing: there is no folder, or no anchor of this log in it.
	ErrMissing = errors.New("anchor is missing")
	// ErrExists: there is something where a new one should be made.
	ErrExists = errors.New("an anchor exists already")
	// ErrForeign: the anchor is another instance's or another log's.
	ErrForeign = errors.New("anchor is of another log")
	// ErrDamaged: the file does not hold what was written to it.
	ErrDamaged = errors.New("anchor is damaged")
	// ErrReplaced: the file was moved, removed or replaced while it was open.
	ErrReplaced = errors.New("anchor was moved or replaced")
	// ErrBack and ErrFork: the root is older than the anchored one, or another one for the same size.
	ErrBack = errors.New("smaller root than the anchored one")
	ErrFork = errors.New("another root than the anchored one")
)

// Folder holds the anchors of one instance.
type Folder struct {
	dir      string
	instance string
	lock     *os.File

	mu    sync.RWMutex
	files map[int64]*file
}

// Create makes an empty folder, or takes one that is empty already.
func Create(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty: %w", dir, ErrExists)
	}
	return durable.SyncDir(filepath.Dir(dir))
}

// Open takes the folder for this process. Its anchors are read by Load.
func Open(dir, instance string) (*Folder, error) {
	lock, err := folder.Lock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("folder %s: %w", dir, ErrMissing)
	} else if err != nil {
		return nil, err
	}
	return &Folder{dir: dir, instance: instance, lock: lock, files: make(map[int64]*file)}, nil
}

// Path is the file of a log's anchor.
func (f *Folder) Path(tree int64) string { return Path(f.dir, tree) }

// Path is the file of a log's anchor in a folder.
func Path(dir string, tree int64) string {
	return filepath.Join(dir, fmt.Sprintf("tree-%d.anchor", tree))
}

// Add makes the anchor of a new log, which has no root yet.
func (f *Folder) Add(tree int64) error {
	err := durable.WriteNew(f.Path(tree), contents(record{instance: f.instance, tree: tree}), 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", f.Path(tree), ErrExists)
	} else if err != nil {
		return fmt.Errorf("making an anchor: %w", err)
	}
	_, err = f.Load(tree)
	return err
}

// Load opens a log's anchor and returns the root in it.
func (f *Folder) Load(tree int64) (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.files[tree]; old != nil {
		delete(f.files, tree)
		if err := old.f.Close(); err != nil {
			return State{}, err
		}
	}
	opened, err := openFile(f.Path(tree), os.O_RDWR, f.instance, tree)
	if err != nil {
		return State{}, err
	}
	f.files[tree] = opened
	return opened.state(), nil
}

func (f *Folder) file(tree int64) (*file, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if a := f.files[tree]; a != nil {
		return a, nil
	}
	return nil, fmt.Errorf("%s: %w", f.Path(tree), ErrMissing)
}

// Root is the root that was recorded last.
func (f *Folder) Root(tree int64) (Root, error) {
	a, err := f.file(tree)
	if err != nil {
		return Root{}, err
	}
	return a.state().Root, nil
}

// Check is an error unless root is the anchored one and its file is still where others will look for it.
func (f *Folder) Check(tree int64, root Root) error {
	a, err := f.file(tree)
	if err != nil {
		return err
	}
	return a.check(root)
}

// Record makes root the anchored one and returns when that is durable, with one fsync. The root already anchored is nothing to do. After an error
// nobody knows what the file holds, and Record fails until the folder is opened anew.
func (f *Folder) Record(tree int64, root Root) error {
	a, err := f.file(tree)
	if err != nil {
		return err
	}
	return a.record(root)
}

// Verify reads the file again and compares it with what was written to it.
func (f *Folder) Verify(tree int64) error {
	a, err := f.file(tree)
	if err != nil {
		return err
	}
	return a.verify()
}

// Adopt writes an anchor in place of one that is missing, damaged or another's, which is kept beside it. One that can be read is not replaced
// by a root that can not follow it.
func (f *Folder) Adopt(tree int64, root Root, now time.Time) error {
	if root.Hash == nil {
		return errors.New("an anchor without a root protects nothing")
	}
	was, err := Read(f.dir, f.instance, tree)
	switch {
	case err == nil:
		if err := was.Root.follows(root); err != nil {
			return fmt.Errorf("%s: %w", f.Path(tree), err)
		}
	case errors.Is(err, ErrMissing), errors.Is(err, ErrDamaged), errors.Is(err, ErrForeign):
	default:
		return err
	}
	name := f.Path(tree)
	kept := name + "." + now.UTC().Format("20060102T150405Z")
	if err := os.Link(name, kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keeping the anchor that was there: %w", err)
	}
	next := record{instance: f.instance, tree: tree, generation: was.Generation + 1, root: root}
	if err := durable.WriteFile(name, contents(next), 0o600); err != nil {
		return fmt.Errorf("adopting an anchor: %w", err)
	}
	_, err = f.Load(tree)
	return err
}

// Close gives the folder free. It may be called twice.
func (f *Folder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lock == nil {
		return nil
	}
	lock := f.lock
	f.lock = nil
	var errs []error
	for _, a := range f.files {
		errs = append(errs, a.f.Close())
	}
	f.files = nil
	return errors.Join(append(errs, lock.Close())...)
}

// Read returns an anchor without taking its folder, for somebody who only wants to know.
func Read(dir, instance string, tree int64) (State, error) {
	a, err := openFile(Path(dir, tree), os.O_RDONLY, instance, tree)
	if err != nil {
		return State{}, err
	}
	return a.state(), a.f.Close()
}
