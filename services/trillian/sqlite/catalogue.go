package sqlite

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// catalogue is the file of trees, and a copy of it in memory: every call on the log server asks for its tree first.
type catalogue struct {
	change sync.Mutex // held by the one who changes it
	c      *conn
	put    *stmt
	remove *stmt
	trees  atomic.Pointer[map[int64]*trillian.Tree]
}

func errNoTree(id int64) error { return status.Errorf(codes.NotFound, "tree %d not found", id) }

func (k *catalogue) open(path string) error {
	c, err := treesFile.open(path)
	if err != nil {
		return err
	}
	k.c = c
	trees, err := k.load()
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, openError(err))
	}
	k.trees.Store(&trees)
	if k.put, err = c.prepare("INSERT OR REPLACE INTO trees (id, tree) VALUES (?1, ?2)"); err != nil {
		return err
	}
	k.remove, err = c.prepare("DELETE FROM trees WHERE id = ?1")
	return err
}

func (k *catalogue) load() (map[int64]*trillian.Tree, error) {
	all, err := k.c.compile("SELECT id, tree FROM trees", 0)
	if err != nil {
		return nil, err
	}
	defer all.finalize()
	trees := make(map[int64]*trillian.Tree)
	for {
		row, err := all.step()
		if err != nil || !row {
			return trees, err
		}
		t := new(trillian.Tree)
		if err := proto.Unmarshal(all.columnBlob(1), t); err != nil {
			return nil, fmt.Errorf("%w: tree %d: %w", ErrDamaged, all.columnInt(0), err)
		}
		if t.TreeId != all.columnInt(0) {
			return nil, fmt.Errorf("%w: tree %d is described as tree %d", ErrDamaged, all.columnInt(0), t.TreeId)
		}
		trees[t.TreeId] = t
	}
}

func (k *catalogue) close(keep bool) error {
	k.change.Lock()
	defer k.change.Unlock()
	if k.c == nil {
		return nil
	}
	if keep {
		k.c.leaveWAL()
	}
	err := k.c.close()
	k.c = nil
	return err
}

// save writes the trees that differ, in one commit.
func (k *catalogue) save(was, now map[int64]*trillian.Tree) error {
	if err := k.c.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for id, t := range now {
		if was[id] == t {
			continue
		}
		b, err := proto.Marshal(t)
		if err != nil {
			return err
		}
		k.put.bindInt(1, id)
		if err := k.put.bindBlob(2, b); err != nil {
			return err
		}
		if err := k.put.run(); err != nil {
			return err
		}
	}
	for id := range was {
		if now[id] == nil {
			k.remove.bindInt(1, id)
			if err := k.remove.run(); err != nil {
				return err
			}
		}
	}
	return k.c.exec("COMMIT")
}

// Admin is the catalogue of trees. It is an interface of its own because its methods are named like the log storage's.
func (s *Storage) Admin() storage.AdminStorage { return adminStorage{s} }

type adminStorage struct{ s *Storage }

// CheckDatabaseAccessible returns nil while the storage is open and sound.
func (a adminStorage) CheckDatabaseAccessible(ctx context.Context) error {
	return a.s.CheckDatabaseAccessible(ctx)
}

// Snapshot returns the catalogue as it is committed now.
func (a adminStorage) Snapshot(context.Context) (storage.ReadOnlyAdminTX, error) {
	if err := a.s.stop.reason(); err != nil {
		return nil, answer(err)
	}
	return &adminTX{s: a.s, trees: *a.s.catalogue.trees.Load()}, nil
}

// ReadWriteTransaction runs f once, while nobody else changes the catalogue, and commits what it did.
func (a adminStorage) ReadWriteTransaction(ctx context.Context, f storage.AdminTXFunc) error {
	k := &a.s.catalogue
	k.change.Lock()
	defer k.change.Unlock()
	if err := a.s.stop.reason(); err != nil {
		return answer(err)
	}
	if k.c == nil {
		return answer(ErrClosed)
	}
	was := *k.trees.Load()
	x := &adminTX{s: a.s, trees: maps.Clone(was), write: true}
	committed := false
	defer func() {
		if !committed {
			x.discard()
		}
	}()
	if err := f(ctx, x); err != nil {
		return err
	}
	if err := a.s.commitTrees(was, x); err != nil {
		return answer(err)
	}
	committed = true
	return nil
}

// commitTrees commits a change of the catalogue; the files of new trees are there already, those of removed ones go after.
func (s *Storage) commitTrees(was map[int64]*trillian.Tree, x *adminTX) error {
	opened := make(map[int64]*tree)
	for _, id := range x.created {
		if x.trees[id] == nil {
			if err := removeDatabase(treePath(s.dir, id)); err != nil {
				return errors.Join(err, closeTrees(opened))
			}
			continue
		}
		t, err := openTree(treePath(s.dir, id), id, &s.opts, &s.stop)
		if err != nil {
			return errors.Join(err, closeTrees(opened))
		}
		opened[id] = t
	}
	if err := s.catalogue.save(was, x.trees); err != nil {
		err = errors.Join(err, closeTrees(opened))
		if s.catalogue.c.inTransaction() {
			if e := s.catalogue.c.exec("ROLLBACK"); e != nil {
				return s.stop.fatal(errors.Join(err, e))
			}
		}
		if !recoverable(err) {
			return s.stop.fatal(err)
		}
		return err
	}
	s.catalogue.trees.Store(&x.trees)
	s.mu.Lock()
	removed := make(map[int64]*tree)
	maps.Copy(s.trees, opened)
	for id := range was {
		if x.trees[id] == nil {
			removed[id] = s.trees[id]
			delete(s.trees, id)
		}
	}
	s.mu.Unlock()
	errs := []error{closeTrees(removed)}
	for id := range removed {
		errs = append(errs, removeDatabase(treePath(s.dir, id)))
	}
	return errors.Join(errs...)
}

func closeTrees(trees map[int64]*tree) error {
	var errs []error
	for _, t := range trees {
		errs = append(errs, t.close())
	}
	return errors.Join(errs...)
}

// adminTX works on a copy of the catalogue, whose trees it replaces and does not change.
type adminTX struct {
	s       *Storage
	trees   map[int64]*trillian.Tree
	write   bool
	created []int64
}

// discard removes the files made for trees that did not come to be.
func (x *adminTX) discard() {
	for _, id := range x.created {
		if err := removeDatabase(treePath(x.s.dir, id)); err != nil {
			x.s.opts.Logger.Warn("a file of a tree that was not created is left over", "tree", id, "error", err)
		}
	}
}

// Commit does nothing: the function that runs the transaction's body commits it.
func (x *adminTX) Commit() error { return nil }

// Close does nothing, for the same reason.
func (x *adminTX) Close() error { return nil }

func (x *adminTX) find(id int64) (*trillian.Tree, error) {
	if t := x.trees[id]; t != nil {
		return t, nil
	}
	return nil, errNoTree(id)
}

// GetTree returns a copy of the tree's description.
func (x *adminTX) GetTree(_ context.Context, id int64) (*trillian.Tree, error) {
	t, err := x.find(id)
	if err != nil {
		return nil, err
	}
	return proto.CloneOf(t), nil
}

// ListTrees returns copies of the trees' descriptions.
func (x *adminTX) ListTrees(_ context.Context, includeDeleted bool) ([]*trillian.Tree, error) {
	list := []*trillian.Tree{}
	for _, t := range x.trees {
		if includeDeleted || !t.Deleted {
			list = append(list, proto.CloneOf(t))
		}
	}
	return list, nil
}

func now() *timestamppb.Timestamp { return timestamppb.New(time.Now().Truncate(time.Millisecond)) }

// CreateTree makes the tree's file and its entry in the catalogue.
func (x *adminTX) CreateTree(ctx context.Context, tree *trillian.Tree) (*trillian.Tree, error) {
	if err := storage.ValidateTreeForCreation(ctx, tree); err != nil {
		return nil, err
	}
	if tree.StorageSettings != nil {
		return nil, status.Error(codes.InvalidArgument, "storage_settings have no meaning here")
	}
	id, err := storage.NewTreeID()
	if err != nil {
		return nil, err
	}
	t := proto.CloneOf(tree)
	t.TreeId = id
	t.CreateTime = now()
	t.UpdateTime = t.CreateTime
	if err := createTree(treePath(x.s.dir, id), id); err != nil {
		return nil, answer(err)
	}
	x.created = append(x.created, id)
	x.trees[id] = t
	return proto.CloneOf(t), nil
}

func (x *adminTX) update(id int64, f func(*trillian.Tree) error) (*trillian.Tree, error) {
	was, err := x.find(id)
	if err != nil {
		return nil, err
	}
	t := proto.CloneOf(was)
	if err := f(t); err != nil {
		return nil, err
	}
	x.trees[id] = t
	return proto.CloneOf(t), nil
}

// UpdateTree changes what may be changed about a tree.
func (x *adminTX) UpdateTree(ctx context.Context, id int64, updateFunc func(*trillian.Tree)) (*trillian.Tree, error) {
	return x.update(id, func(t *trillian.Tree) error {
		was := proto.CloneOf(t)
		updateFunc(t)
		if err := storage.ValidateTreeForUpdate(ctx, was, t); err != nil {
			return err
		}
		t.UpdateTime = now()
		return nil
	})
}

// SoftDeleteTree takes a tree out of service; its file stays.
func (x *adminTX) SoftDeleteTree(_ context.Context, id int64) (*trillian.Tree, error) {
	return x.update(id, func(t *trillian.Tree) error {
		if t.Deleted {
			return status.Errorf(codes.FailedPrecondition, "tree %d is deleted already", id)
		}
		t.Deleted, t.DeleteTime = true, now()
		return nil
	})
}

// UndeleteTree takes a soft-deleted tree back into service.
func (x *adminTX) UndeleteTree(_ context.Context, id int64) (*trillian.Tree, error) {
	return x.update(id, func(t *trillian.Tree) error {
		if !t.Deleted {
			return status.Errorf(codes.FailedPrecondition, "tree %d is not deleted", id)
		}
		t.Deleted, t.DeleteTime = false, nil
		return nil
	})
}

// HardDeleteTree removes a soft-deleted tree and its file.
func (x *adminTX) HardDeleteTree(_ context.Context, id int64) error {
	t, err := x.find(id)
	if err != nil {
		return err
	}
	if !t.Deleted {
		return status.Errorf(codes.FailedPrecondition, "tree %d is not deleted", id)
	}
	delete(x.trees, id)
	return nil
}
