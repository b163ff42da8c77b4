package trillian

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/protobuf/proto"

	"github.com/sigbox/sigbox/internal/backup"
	"github.com/sigbox/sigbox/services/trillian/sqlite"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// exportLeaves is how many leaves are asked for at a time; the storage bounds their bytes.
const exportLeaves = 256

// Sequence integrates what is queued in a log, so that all that was accepted before has its place in it. A frozen log stays as it is.
func (s *Service) Sequence(ctx context.Context, treeID int64) error {
	if s.guard.frozen(treeID) != nil {
		return nil
	}
	if err := s.passOver(ctx, treeID); err != nil {
		return fmt.Errorf("sequencing log %d: %w", treeID, err)
	}
	return nil
}

// Root is the root that readers are given now, which is durable and anchored.
func (s *Service) Root(treeID int64) (backup.Root, error) {
	head, err := s.engine.Head(treeID)
	if err != nil {
		return backup.Root{}, fmt.Errorf("reading the head of tree %d: %w", treeID, err)
	}
	return backup.Root{Tree: treeID, Size: head.TreeSize, Timestamp: head.TimestampNanos, Hash: head.RootHash}, nil
}

// Describe returns what the catalogue has of a log, for Restore.
func (s *Service) Describe(ctx context.Context, treeID int64) ([]byte, error) {
	tree, err := storage.GetTree(ctx, s.engine.Admin(), treeID)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(tree)
}

// Export hands out the leaves of a log from start up to end. Nobody waits for it: each read is a short one, and what is read never changes. pace is
// told of the bytes after each.
func (s *Service) Export(ctx context.Context, treeID int64, start, end uint64, each func(*backup.Leaf) error, pace func(bytes int) error) error {
	tree, err := storage.GetTree(ctx, s.engine.Admin(), treeID)
	if err != nil {
		return err
	}
	for start < end {
		leaves, err := s.read(ctx, tree, start, min(end-start, exportLeaves))
		if err != nil {
			return fmt.Errorf("reading leaf %d of log %d: %w", start, treeID, err)
		}
		size := 0
		for _, l := range leaves {
			if uint64(l.LeafIndex) != start {
				return fmt.Errorf("log %d has leaf %d where leaf %d should be", treeID, l.LeafIndex, start)
			}
			out := &backup.Leaf{
				Tree: treeID, Index: start, Queued: l.QueueTimestamp.AsTime().UnixNano(), Integrated: l.IntegrateTimestamp.AsTime().UnixNano(),
				Value: l.LeafValue, Extra: l.ExtraData,
			}
			if string(l.LeafIdentityHash) != string(l.MerkleLeafHash) {
				out.Identity = l.LeafIdentityHash
			}
			if err := each(out); err != nil {
				return err
			}
			size += len(l.LeafValue) + len(l.ExtraData)
			start++
		}
		if err := pace(size); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) read(ctx context.Context, tree *trillian.Tree, start, count uint64) (leaves []*trillian.LogLeaf, err error) {
	snapshot, err := s.engine.SnapshotForTree(ctx, tree)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	if leaves, err = snapshot.GetLeavesByRange(ctx, int64(start), int64(count)); err == nil && len(leaves) == 0 {
		err = errors.New("there is none")
	}
	return leaves, err
}

// Restoration fills the logs of a new instance from those of an old one.
type Restoration struct {
	store *sqlite.Storage
	logs  map[int64]*sqlite.Restoration
}

// Restore makes storage in dir, which must not have any, for logs that Describe described.
func Restore(ctx context.Context, dir string, descriptions [][]byte) (_ *Restoration, err error) {
	if err := sqlite.Create(dir); err != nil {
		return nil, fmt.Errorf("creating the logs' storage: %w", err)
	}
	store, err := sqlite.Open(ctx, dir, sqlite.Options{HashLeaf: rfc6962.DefaultHasher.HashLeaf})
	if err != nil {
		return nil, fmt.Errorf("opening the logs' storage: %w", err)
	}
	r := &Restoration{store: store, logs: make(map[int64]*sqlite.Restoration)}
	for _, d := range descriptions {
		log, err := store.Restore(d)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("making a log: %w", err), r.Close())
		}
		r.logs[log.Tree()] = log
	}
	return r, nil
}

// Log is a log that was described; nil if it was not.
func (r *Restoration) Log(treeID int64) *sqlite.Restoration { return r.logs[treeID] }

// Close closes the storage.
func (r *Restoration) Close() error {
	for _, l := range r.logs {
		l.Close()
	}
	return r.store.Close()
}

// RootAt computes the root that a log had at a size, from stored nodes.
func (s *Service) RootAt(ctx context.Context, treeID int64, size uint64) (root []byte, err error) {
	src, err := s.engine.Source(treeID)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return verify.RootAt(ctx, src, size)
}
