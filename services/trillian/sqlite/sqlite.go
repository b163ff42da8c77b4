// Package sqlite keeps Trillian's logs in SQLite files: one for the catalogue of trees and one for each tree, so that logs do not wait
// for each other's commits.
//
// What was acknowledged is on the disk: every commit is fsynced before its callers are answered and before readers see it.
// An error that leaves the state of the disk unknown ends all writing for good, and Fatal tells of it. Nothing is ever
// made implicitly: a folder or file that is missing is an error.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"

	"github.com/sigbox/sigbox/internal/durable"
	"github.com/sigbox/sigbox/internal/folder"
)

// Options are what the storage is told by those who use it. The zero value queues leaves and leaves sequencing to others.
type Options struct {
	// Sequence, if set, is called in the transaction that queues leaves, with a view of the storage that is bound to
	// it, and makes the queued leaves part of the tree. If it fails the leaves are queued without it.
	Sequence func(ctx context.Context, tree *trillian.Tree, bound storage.LogStorage, queued int) error
	// Anchor, if set, is told of each log root.
	Anchor Anchor
	// Damaged, if set, is told whenever a tree's file is found not to hold what was written to it. It must not use the storage.
	Damaged func(treeID int64, err error)
	// HashLeaf, if set, is the Merkle leaf hash of a value. It is compared with the stored hash when a leaf is sequenced and
	// when it is read from the file.
	HashLeaf func(value []byte) []byte
	// Logger receives the storage's records; nil discards them.
	Logger *slog.Logger

	storage *Storage
}

// Anchor keeps each tree's newest root outside of the database, so that an older copy of the database put in its place
// is noticed.
type Anchor interface {
	// Check is called with the stored root before a new one is made over it. An error stops that.
	Check(treeID int64, root types.LogRootV1) error
	// Record is called with a root that is committed, before anybody is shown it. It returns once the root is durable; an error ends all
	// writing.
	Record(treeID int64, root types.LogRootV1) error
}

// Storage implements storage.LogStorage and storage.AdminStorage.
type Storage struct {
	dir  string
	opts Options
	lock *os.File
	stop stop

	catalogue

	mu    sync.RWMutex
	trees map[int64]*tree
}

// stop is the end of all writing.
type stop struct {
	err atomic.Pointer[error]
	ch  chan error
}

// fatal ends all writing because of err and returns what callers are told from now on.
func (s *stop) fatal(err error) error {
	var reason error = &fatalError{err}
	if s.err.CompareAndSwap(nil, &reason) {
		s.ch <- reason
	}
	return *s.err.Load()
}

// reason is nil as long as the storage is sound.
func (s *stop) reason() error {
	if p := s.err.Load(); p != nil {
		return *p
	}
	return nil
}

func treesPath(dir string) string { return filepath.Join(dir, "trees.db") }

// Create makes an empty storage in dir, which it makes with mode 0700 if it does not exist. It returns ErrExists if there is one.
func Create(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	lock, err := take(dir, folder.Lock)
	if err != nil {
		return err
	}
	defer lock.Close()
	if left, err := filepath.Glob(filepath.Join(dir, "tree-*.db")); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("%s: trees without a catalogue: %w", dir, ErrExists))
	}
	return treesFile.create(treesPath(dir), nil)
}

func take(dir string, lock func(string) (*os.File, error)) (*os.File, error) {
	f, err := lock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrMissing)
	}
	return f, err
}

// Open opens the storage in dir, for this process alone. That it can be read does not mean that it holds what was written to it: see
// Source.
func Open(ctx context.Context, dir string, opts Options) (_ *Storage, err error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	lock, err := take(dir, folder.Lock)
	if err != nil {
		return nil, err
	}
	s := &Storage{dir: dir, opts: opts, lock: lock, trees: make(map[int64]*tree)}
	s.stop.ch = make(chan error, 1)
	s.opts.storage = s
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.catalogue.open(treesPath(dir)); err != nil {
		return nil, err
	}
	for id := range *s.catalogue.trees.Load() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		t, err := openTree(treePath(dir, id), id, &s.opts, &s.stop)
		if err != nil {
			return nil, err
		}
		s.trees[id] = t
	}
	return s, nil
}

// Fatal receives the error that ended all writing, if that happens. Whoever runs the storage should end the process then: a restart
// finds out what the disk has.
func (s *Storage) Fatal() <-chan error { return s.stop.ch }

// Close waits for transactions and reads in progress and closes the files. Later calls return ErrClosed.
func (s *Storage) Close() error {
	s.mu.Lock()
	trees, lock := s.trees, s.lock
	s.trees, s.lock = nil, nil
	s.mu.Unlock()
	if lock == nil {
		return nil
	}
	// Without mu: a transaction that is waited for may still ask for its tree.
	return errors.Join(closeTrees(trees), s.catalogue.close(s.stop.reason() != nil), lock.Close())
}

// tree finds an open tree.
func (s *Storage) tree(id int64) (*tree, error) {
	if err := s.stop.reason(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.lock == nil {
		return nil, ErrClosed
	}
	if t := s.trees[id]; t != nil {
		return t, nil
	}
	return nil, errNoTree(id)
}

// Head returns the newest log root as readers see it. Before the tree is initialised it is the zero root.
func (s *Storage) Head(treeID int64) (types.LogRootV1, error) {
	t, err := s.tree(treeID)
	if err != nil {
		return types.LogRootV1{}, answer(err)
	}
	return t.head.Load().root, nil
}

// Usage returns the bytes that the tree's files take, the write-ahead log included.
func (s *Storage) Usage(treeID int64) (int64, error) {
	t, err := s.tree(treeID)
	if err != nil {
		return 0, answer(err)
	}
	var n int64
	for _, suffix := range []string{"", "-wal", "-shm"} {
		st, err := os.Stat(t.path + suffix)
		if err != nil {
			return 0, err
		}
		n += st.Size()
	}
	return n, nil
}
