package sqlite

import (
	"context"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
)

var (
	_ storage.LogStorage   = (*Storage)(nil)
	_ storage.AdminStorage = adminStorage{}
)

// CheckDatabaseAccessible returns nil while the storage is open and sound.
func (s *Storage) CheckDatabaseAccessible(context.Context) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.lock == nil {
		return answer(ErrClosed)
	}
	return answer(s.stop.reason())
}

// GetActiveLogIDs returns the logs that take entries or still have some to integrate.
func (s *Storage) GetActiveLogIDs(context.Context) ([]int64, error) {
	if err := s.stop.reason(); err != nil {
		return nil, answer(err)
	}
	ids := []int64{}
	for id, t := range *s.catalogue.trees.Load() {
		switch {
		case t.Deleted:
		case t.TreeState == trillian.TreeState_ACTIVE, t.TreeState == trillian.TreeState_DRAINING:
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// SnapshotForTree returns the tree as it is committed now. An uninitialised tree comes with storage.ErrTreeNeedsInit.
func (s *Storage) SnapshotForTree(_ context.Context, tree *trillian.Tree) (storage.ReadOnlyLogTreeTX, error) {
	t, err := s.tree(tree.GetTreeId())
	if err != nil {
		return nil, answer(err)
	}
	snap := &snapshot{t: t, kind: tree.GetTreeType(), h: t.head.Load()}
	if snap.h.slr == nil {
		return snap, storage.ErrTreeNeedsInit
	}
	return snap, nil
}

// ReadWriteTransaction runs f once, while nobody else writes to the tree, and commits what it did. f must not use the
// storage other than through the transaction it is given.
func (s *Storage) ReadWriteTransaction(ctx context.Context, tree *trillian.Tree, f storage.LogTXFunc) error {
	t, err := s.tree(tree.GetTreeId())
	if err != nil {
		return answer(err)
	}
	return t.answer(t.readWrite(ctx, tree, f))
}

// QueueLeaves returns once the leaves are durable: in the tree with sequencing on write, in the queue without or if it failed. ctx ends the wait
// only as long as the leaves have not been taken up. The storage keeps the leaves' byte slices, which must not change afterwards.
func (s *Storage) QueueLeaves(ctx context.Context, tree *trillian.Tree, leaves []*trillian.LogLeaf, queueTimestamp time.Time) ([]*trillian.QueuedLogLeaf, error) {
	t, err := s.tree(tree.GetTreeId())
	if err != nil {
		return nil, answer(err)
	}
	queued, err := t.queue(ctx, tree, leaves, queueTimestamp)
	return queued, t.answer(err)
}

// AddSequencedLeaves stores leaves of a pre-ordered log at their indices, which need not be contiguous.
func (s *Storage) AddSequencedLeaves(ctx context.Context, tree *trillian.Tree, leaves []*trillian.LogLeaf, timestamp time.Time) ([]*trillian.QueuedLogLeaf, error) {
	var results []*trillian.QueuedLogLeaf
	err := s.ReadWriteTransaction(ctx, tree, func(_ context.Context, x storage.LogTreeTX) (err error) {
		results, err = x.(*tx).addSequenced(leaves, timestamp)
		return err
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// boundStorage is the storage with its transactions on one tree led into a transaction that is already open.
type boundStorage struct {
	storage.LogStorage
	x *tx
}

// ReadWriteTransaction leaves the commit to whoever opened the transaction.
func (b boundStorage) ReadWriteTransaction(ctx context.Context, tree *trillian.Tree, f storage.LogTXFunc) error {
	if tree.GetTreeId() != b.x.t.id {
		return errNoTree(tree.GetTreeId())
	}
	return f(ctx, b.x)
}

// SnapshotForTree shows the tree as the open transaction has it.
func (b boundStorage) SnapshotForTree(_ context.Context, tree *trillian.Tree) (storage.ReadOnlyLogTreeTX, error) {
	if tree.GetTreeId() != b.x.t.id {
		return nil, errNoTree(tree.GetTreeId())
	}
	return b.x, nil
}
