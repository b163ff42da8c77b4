package sqlite

import (
	"context"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	storagetree "github.com/google/trillian/storage/tree"
	"github.com/transparency-dev/merkle/compact"
)

// snapshot is a reader's view of a tree as it was committed at one moment. The log only grows, so the view is no
// more than its head: what is read later from the file is cut off there. It pins nothing in the file, however long it is kept.
type snapshot struct {
	t    *tree
	kind trillian.TreeType
	h    *head
}

var _ storage.ReadOnlyLogTreeTX = (*snapshot)(nil)

// Commit tells whether the storage has been sound up to now, so that the values read may be used.
func (s *snapshot) Commit(context.Context) error { return answer(s.t.stop.reason()) }

// Close has nothing to release.
func (s *snapshot) Close() error { return nil }

// LatestSignedLogRoot returns the root that the snapshot is of.
func (s *snapshot) LatestSignedLogRoot(context.Context) (*trillian.SignedLogRoot, error) {
	if s.h.slr == nil {
		return nil, storage.ErrTreeNeedsInit
	}
	// Callers fill these in; the bytes inside they leave alone.
	return &trillian.SignedLogRoot{LogRoot: s.h.slr.LogRoot}, s.t.answer(s.h.sound())
}

// GetMerkleNodes returns nodes of the snapshot's tree; one that it does not have is an error.
func (s *snapshot) GetMerkleNodes(ctx context.Context, ids []compact.NodeID) ([]storagetree.Node, error) {
	nodes, err := nodesAt(ids, s.h.nodes, func(pos uint64) ([]byte, error) {
		return s.h.hash(pos, s.t.chunks.get, func(no uint64) (chunk []byte, err error) {
			err = s.t.read(ctx, func(r *reads) error {
				chunk, err = r.chunkAt(no)
				return err
			})
			if err == nil {
				s.t.chunks.add(no, chunk)
			}
			return chunk, err
		})
	})
	return nodes, s.t.answer(err)
}

// GetLeavesByRange returns leaves of the snapshot's tree.
func (s *snapshot) GetLeavesByRange(ctx context.Context, start, count int64) ([]*trillian.LogLeaf, error) {
	size := int64(s.h.root.TreeSize)
	end, err := leafRange(s.kind, size, start, count)
	if err != nil {
		return nil, err
	}
	if leaves := s.t.recent.between(start, end); leaves != nil && s.t.opts.checkHashes(leaves) == nil {
		return leaves, nil
	}
	var leaves []*trillian.LogLeaf
	err = s.t.read(ctx, func(r *reads) error {
		leaves, err = r.leavesFrom(s.t.opts, start, end)
		return err
	})
	if err != nil {
		return nil, s.t.answer(err)
	}
	return leaves, s.t.answer(missing(leaves, start, end, size))
}

// GetLeavesByHash returns leaves of the snapshot's tree, in the order of the log if asked for.
func (s *snapshot) GetLeavesByHash(ctx context.Context, hashes [][]byte, ordered bool) ([]*trillian.LogLeaf, error) {
	leaves, err := leavesByMerkleHash(s.t, s.h, s.kind, hashes, ordered, func(hash []byte) (leaves []*trillian.LogLeaf, err error) {
		err = s.t.read(ctx, func(r *reads) error {
			leaves, err = r.leavesByHash(s.t.opts, hash, merkleIs(hash))
			return err
		})
		return leaves, err
	})
	return leaves, s.t.answer(err)
}
