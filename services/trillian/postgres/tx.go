package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	storagetree "github.com/google/trillian/storage/tree"
	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/compact"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// hashSize is of SHA-256.
const hashSize = 32

// errNoRoot stands for the error that the provider drops when it fails to read
// the root: what it goes on with is a tree of size zero.
var errNoRoot = status.Error(codes.Unavailable, "the newest root could not be read")

// soundRoot is the transaction's root, as long as it is one.
func soundRoot(ctx context.Context, tx storage.ReadOnlyLogTreeTX) (root types.LogRootV1, err error) {
	slr, err := tx.LatestSignedLogRoot(ctx)
	if err != nil {
		return root, err
	}
	if err := root.UnmarshalBinary(slr.GetLogRoot()); err != nil {
		return root, errNoRoot
	}
	if root.TreeSize == 0 && root.TimestampNanos == 0 && len(root.RootHash) == 0 {
		// If that is a failure, the transaction is over.
		if _, err := tx.GetLeavesByHash(ctx, [][]byte{{}}, false); err != nil {
			return root, errors.Join(errNoRoot, err)
		}
	}
	return root, nil
}

// snapshot is a transaction of the provider's that reads.
type snapshot struct {
	storage.ReadOnlyLogTreeTX
	s      *Storage
	treeID int64
}

func (x *snapshot) Commit(ctx context.Context) error {
	return x.s.answer(ctx, x.ReadOnlyLogTreeTX.Commit(ctx))
}

func (x *snapshot) GetMerkleNodes(ctx context.Context, ids []compact.NodeID) ([]storagetree.Node, error) {
	nodes, err := x.ReadOnlyLogTreeTX.GetMerkleNodes(ctx, ids)
	return nodes, x.s.answer(ctx, err)
}

func (x *snapshot) GetLeavesByRange(ctx context.Context, start, count int64) ([]*trillian.LogLeaf, error) {
	leaves, err := x.ReadOnlyLogTreeTX.GetLeavesByRange(ctx, start, count)
	return x.s.checked(ctx, x.treeID, leaves, err)
}

func (x *snapshot) GetLeavesByHash(ctx context.Context, hashes [][]byte, ordered bool) ([]*trillian.LogLeaf, error) {
	leaves, err := x.ReadOnlyLogTreeTX.GetLeavesByHash(ctx, hashes, ordered)
	return x.s.checked(ctx, x.treeID, leaves, err)
}

// checked returns leaves whose values are what was hashed.
func (s *Storage) checked(ctx context.Context, treeID int64, leaves []*trillian.LogLeaf, err error) ([]*trillian.LogLeaf, error) {
	if err != nil {
		return nil, s.answer(ctx, err)
	}
	if s.opts.HashLeaf == nil {
		return leaves, nil
	}
	for _, l := range leaves {
		if !bytes.Equal(s.opts.HashLeaf(l.LeafValue), l.MerkleLeafHash) {
			err := status.Errorf(codes.DataLoss, "the value of leaf %d does not have the hash that is stored with it", l.LeafIndex)
			if s.opts.Damaged != nil {
				s.opts.Damaged(treeID, err)
			}
			return nil, err
		}
	}
	return leaves, nil
}

// writer is a transaction of the provider's that writes.
type writer struct {
	storage.LogTreeTX
	s      *Storage
	treeID int64
	uninit bool
	root   types.LogRootV1 // the newest, this transaction's own included
	rooted bool            // by this transaction
	more   bool            // leaves are, perhaps, still in the queue
	// broken is the first error of the database. Those who sequence report
	// errors as text, which would hide what kind it is.
	broken error
}

// transact runs f in a transaction. committing says that f was done, so that
// the outcome is open if there is an error.
func (s *Storage) transact(ctx context.Context, mode int, tree *trillian.Tree, f storage.LogTXFunc) (committing bool, err error) {
	var x *writer
	err = s.writing.ReadWriteTransaction(claiming(ctx, mode, tree.GetTreeId()), tree, func(ctx context.Context, tx storage.LogTreeTX) error {
		x = &writer{LogTreeTX: tx, s: s, treeID: tree.GetTreeId()}
		var err error
		if x.root, err = soundRoot(ctx, tx); errors.Is(err, storage.ErrTreeNeedsInit) {
			x.uninit = true
		} else if err != nil {
			return err
		} else if s.opts.Anchor != nil && mode != unlocked {
			if err := s.opts.Anchor.Check(x.treeID, x.root); err != nil {
				return err
			}
		}
		if err := f(ctx, x); err != nil {
			return err
		}
		committing = true
		return nil
	})
	if err != nil {
		if x != nil && x.broken != nil && !committing {
			err = errors.Join(x.broken, err)
		}
		return committing, err
	}
	if x.rooted && s.opts.Anchor != nil {
		if err := s.opts.Anchor.Record(x.treeID, x.root); err != nil {
			return false, err
		}
	}
	return false, nil
}

func (x *writer) note(err error) error {
	if x.broken == nil && err != nil && !errors.Is(err, storage.ErrTreeNeedsInit) {
		x.broken = err
	}
	return err
}

// Commit and Close are for whoever began the transaction.
func (x *writer) Commit(context.Context) error { return nil }
func (x *writer) Close() error                 { return nil }

func (x *writer) GetMerkleNodes(ctx context.Context, ids []compact.NodeID) ([]storagetree.Node, error) {
	nodes, err := x.LogTreeTX.GetMerkleNodes(ctx, ids)
	return nodes, x.note(err)
}

func (x *writer) SetMerkleNodes(ctx context.Context, nodes []storagetree.Node) error {
	return x.note(x.LogTreeTX.SetMerkleNodes(ctx, nodes))
}

func (x *writer) DequeueLeaves(ctx context.Context, limit int, cutoff time.Time) ([]*trillian.LogLeaf, error) {
	leaves, err := x.LogTreeTX.DequeueLeaves(ctx, limit, cutoff)
	x.more = len(leaves) >= limit
	return leaves, x.note(err)
}

func (x *writer) UpdateSequencedLeaves(ctx context.Context, leaves []*trillian.LogLeaf) error {
	return x.note(x.LogTreeTX.UpdateSequencedLeaves(ctx, leaves))
}

func (x *writer) StoreSignedLogRoot(ctx context.Context, slr *trillian.SignedLogRoot) error {
	var root types.LogRootV1
	if err := root.UnmarshalBinary(slr.GetLogRoot()); err != nil {
		return fmt.Errorf("storing a root: %w", err)
	}
	if err := x.LogTreeTX.StoreSignedLogRoot(ctx, slr); err != nil {
		return x.note(err)
	}
	x.root, x.rooted = root, true
	return nil
}

// bound is the storage with its transactions on one tree led into a
// transaction that is open already.
type bound struct {
	storage.LogStorage
	x *writer
}

// ReadWriteTransaction leaves the commit to whoever began the transaction.
func (b bound) ReadWriteTransaction(ctx context.Context, tree *trillian.Tree, f storage.LogTXFunc) error {
	if tree.GetTreeId() != b.x.treeID {
		return status.Errorf(codes.Internal, "a transaction on tree %d was to write to tree %d", b.x.treeID, tree.GetTreeId())
	}
	return f(ctx, b.x)
}

// SnapshotForTree shows the tree as the open transaction has it.
func (b bound) SnapshotForTree(_ context.Context, tree *trillian.Tree) (storage.ReadOnlyLogTreeTX, error) {
	if tree.GetTreeId() != b.x.treeID {
		return nil, status.Errorf(codes.Internal, "a transaction on tree %d was to read tree %d", b.x.treeID, tree.GetTreeId())
	}
	return b.x, nil
}
