package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	storagetree "github.com/google/trillian/storage/tree"
	"github.com/transparency-dev/merkle/compact"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// tx is a transaction of the writer. It keeps new nodes, the new root and staged leaves in memory until the commit, so that a
// leaf that is sequenced where it was queued is written once, and so that a pass that finds nothing to do writes nothing.
// It implements storage.LogTreeTX.
type tx struct {
	t    *tree
	kind trillian.TreeType

	now    head                // the state this transaction has made
	filled []cachedChunk       // chunks it has filled
	staged []*trillian.LogLeaf // leaves to queue, unless they are sequenced before the commit

	dequeued   map[string]dequeued // by identity hash
	dequeuedTo int64               // the last queue row handed out
	sequenced  []*trillian.LogLeaf
	unqueued   int64

	begun, over bool
	// broken is the engine's first error, and damaged the first that says that the file is. Those who sequence report errors as text, which
	// would hide how bad it is.
	broken, damaged error
}

type dequeued struct {
	row  int64 // in the queue; zero for a staged leaf
	leaf *trillian.LogLeaf
}

var _ storage.LogTreeTX = (*tx)(nil)

func (t *tree) newTX(treeInfo *trillian.Tree) *tx {
	return &tx{t: t, kind: treeInfo.GetTreeType(), now: *t.head.Load()}
}

// write starts the transaction in the file, if it has not been.
func (x *tx) write() error {
	if x.over {
		return errOver
	}
	if x.begun {
		return nil
	}
	if err := x.t.begin.run(); err != nil {
		return err
	}
	x.begun = true
	return nil
}

// note remembers an error of the engine.
func (x *tx) note(err *error) {
	if x.broken == nil && !undoable(*err) {
		x.broken = *err
	}
	if x.damaged == nil && damage(*err) {
		x.damaged = *err
	}
}

var errOver = status.Error(codes.FailedPrecondition, "the transaction is over")

// end rolls back what was not committed.
func (x *tx) end() {
	if !x.over {
		x.fail(nil)
	}
}

// fail ends the transaction because of err, which may be nil. It returns err, unless what happened is fatal.
func (x *tx) fail(err error) error {
	if x.over {
		return err
	}
	x.over = true
	if x.broken != nil || !undoable(err) {
		return x.t.stop.fatal(errors.Join(x.broken, err))
	}
	x.note(&err)
	x.t.report(x.damaged)
	if !x.begun {
		return err
	}
	if e := x.t.undo(); e != nil {
		return x.t.stop.fatal(errors.Join(err, e))
	}
	return err
}

// check tells whether the nodes and the root belong together.
func (x *tx) check() error {
	was := x.t.head.Load()
	if x.now.nodes == was.nodes || x.now.nodes == nodesIn(x.now.root.TreeSize) {
		return nil
	}
	return fmt.Errorf("%w: %d nodes under a root of size %d", ErrDamaged, x.now.nodes, x.now.root.TreeSize)
}

// commit makes the transaction durable and then visible. An error of the engine other than a full disk is fatal: after a failed fsync
// nobody knows what the disk has.
func (x *tx) commit() error {
	if x.over {
		return errOver
	}
	was := x.t.head.Load()
	rooted := x.now.slr != was.slr
	if !x.begun && len(x.staged) == 0 && !rooted && x.now.nodes == was.nodes {
		x.over = true
		return nil
	}
	if err := x.flush(was, rooted); err != nil {
		return x.fail(err)
	}
	if err := x.t.commit.run(); err != nil {
		return x.fail(fmt.Errorf("committing: %w", err))
	}
	x.over = true
	x.t.queued += int64(len(x.staged)) - x.unqueued
	if rooted && x.t.opts.Anchor != nil {
		if err := x.t.opts.Anchor.Record(x.t.id, x.now.root); err != nil {
			// It is in the database and not in the anchor. Nobody has seen it, and nobody will by this process.
			return x.t.stop.fatal(fmt.Errorf("recording the log root: %w", err))
		}
	}
	for _, c := range x.filled {
		x.t.chunks.add(c.no, c.hashes)
	}
	x.t.recent.add(x.sequenced)
	now := x.now
	x.t.head.Store(&now)
	return nil
}

// flush writes what was kept in memory.
func (x *tx) flush(was *head, rooted bool) error {
	if err := x.check(); err != nil {
		return err
	}
	if err := x.write(); err != nil {
		return err
	}
	for _, l := range x.staged {
		s := x.t.enqueue
		s.bindInt(1, l.QueueTimestamp.AsTime().UnixNano())
		s.bindInt(2, prefix(l.LeafIdentityHash))
		s.bindInt(7, queueSum(l))
		if err := s.bindLeaf(3, l); err != nil {
			return err
		}
		if err := s.run(); err != nil {
			return err
		}
	}
	if !rooted && x.now.nodes == was.nodes {
		return nil
	}
	if rooted && x.now.nodes != was.nodes {
		if err := x.prove(); err != nil {
			return err
		}
	}
	for _, c := range append(x.filled, cachedChunk{x.now.nodes / chunkNodes, x.now.tail}) {
		root := x.now.slr.GetLogRoot()
		if root == nil {
			root = []byte{}
		}
		hashes := c.hashes
		if hashes == nil {
			hashes = []byte{}
		}
		s := x.t.insertNodes
		s.bindInt(1, int64(c.no))
		s.bindInt(4, rootSum(c.no, root))
		if err := errors.Join(s.bindBlob(2, hashes), s.bindBlob(3, root)); err != nil {
			return err
		}
		if err := s.run(); err != nil {
			return err
		}
	}
	return nil
}

// prove computes the new root from the nodes that are about to be stored, and compares the lowest of them with the leaves: the last look at
// what will be signed over.
func (x *tx) prove() error {
	if x.t.opts.HashLeaf == nil {
		return nil
	}
	for _, l := range x.sequenced {
		pos, err := position(compact.NewNodeID(0, uint64(l.LeafIndex)))
		if err != nil {
			return err
		}
		node, err := x.hash(pos)
		if err != nil {
			return err
		}
		if err := x.t.opts.checkHash(l); err != nil {
			return err
		}
		if !bytes.Equal(node, l.MerkleLeafHash) {
			return fmt.Errorf("%w: leaf %d was sequenced with hash %x, its hash is %x", ErrDamaged, l.LeafIndex, node, l.MerkleLeafHash)
		}
	}
	root, err := x.now.computeRoot(x.hash)
	if err != nil {
		return err
	}
	if !bytes.Equal(root, x.now.root.RootHash) {
		return fmt.Errorf("%w: the nodes of a tree of size %d hash to %x, its root is %x", ErrDamaged, x.now.root.TreeSize, root, x.now.root.RootHash)
	}
	return nil
}

// Commit does nothing: the function that runs the transaction's body commits it.
func (x *tx) Commit(context.Context) error { return nil }

// Close does nothing, for the same reason.
func (x *tx) Close() error { return nil }

// LatestSignedLogRoot returns the root as this transaction has it.
func (x *tx) LatestSignedLogRoot(context.Context) (_ *trillian.SignedLogRoot, err error) {
	defer x.note(&err)
	if x.now.slr == nil {
		return nil, storage.ErrTreeNeedsInit
	}
	return x.now.slr, x.now.sound()
}

// StoreSignedLogRoot refuses a root that takes the log back or gives it a second history.
func (x *tx) StoreSignedLogRoot(_ context.Context, slr *trillian.SignedLogRoot) error {
	if x.over {
		return errOver
	}
	next := x.now
	next.slr = &trillian.SignedLogRoot{LogRoot: bytes.Clone(slr.GetLogRoot())}
	if err := next.root.UnmarshalBinary(next.slr.LogRoot); err != nil {
		return status.Errorf(codes.InvalidArgument, "reading the log root: %v", err)
	}
	if was := x.now.root; x.now.slr != nil {
		switch {
		case next.root.TreeSize < was.TreeSize:
			return status.Errorf(codes.FailedPrecondition, "log root of size %d after one of size %d", next.root.TreeSize, was.TreeSize)
		case next.root.TreeSize == was.TreeSize && !bytes.Equal(next.root.RootHash, was.RootHash):
			return status.Errorf(codes.FailedPrecondition, "second log root for size %d: %x after %x", was.TreeSize, next.root.RootHash, was.RootHash)
		case next.root.TimestampNanos <= was.TimestampNanos:
			return status.Errorf(codes.FailedPrecondition, "log root of time %d after one of time %d", next.root.TimestampNanos, was.TimestampNanos)
		}
		if a := x.t.opts.Anchor; a != nil {
			if err := a.Check(x.t.id, was); err != nil {
				return fmt.Errorf("comparing the log root with the anchor: %w", err)
			}
		}
	}
	x.now = next
	return nil
}

func (x *tx) hash(pos uint64) (_ []byte, err error) {
	defer x.note(&err)
	return x.now.hash(pos, func(no uint64) []byte {
		for _, c := range x.filled {
			if c.no == no {
				return c.hashes
			}
		}
		return x.t.chunks.get(no)
	}, x.t.writer.chunkAt)
}

// GetMerkleNodes returns stored nodes; one that the tree does not have is an error.
func (x *tx) GetMerkleNodes(_ context.Context, ids []compact.NodeID) ([]storagetree.Node, error) {
	return nodesAt(ids, x.now.nodes, x.hash)
}

func nodesAt(ids []compact.NodeID, stored uint64, hash func(uint64) ([]byte, error)) ([]storagetree.Node, error) {
	nodes := make([]storagetree.Node, len(ids))
	for i, id := range ids {
		pos, err := position(id)
		if err != nil {
			return nil, err
		}
		if pos >= stored {
			return nil, status.Errorf(codes.OutOfRange, "the tree has no node %d at level %d yet", id.Index, id.Level)
		}
		h, err := hash(pos)
		if err != nil {
			return nil, err
		}
		nodes[i] = storagetree.Node{ID: id, Hash: h}
	}
	return nodes, nil
}

// SetMerkleNodes adds nodes at the end of those stored. A stored node may be set to what it is, and to nothing else.
func (x *tx) SetMerkleNodes(_ context.Context, nodes []storagetree.Node) error {
	if x.over {
		return errOver
	}
	type placed struct {
		pos  uint64
		hash []byte
	}
	order := make([]placed, len(nodes))
	for i, n := range nodes {
		pos, err := position(n.ID)
		if err != nil {
			return err
		}
		if len(n.Hash) != hashSize {
			return status.Errorf(codes.InvalidArgument, "node hash of %d bytes", len(n.Hash))
		}
		order[i] = placed{pos, n.Hash}
	}
	slices.SortFunc(order, func(a, b placed) int {
		if a.pos < b.pos {
			return -1
		}
		return 1
	})
	for _, n := range order {
		switch {
		case n.pos > x.now.nodes:
			return status.Errorf(codes.FailedPrecondition, "node %d set after %d: nodes in between are missing", n.pos, x.now.nodes)
		case n.pos < x.now.nodes:
			is, err := x.hash(n.pos)
			if err != nil {
				return err
			}
			if !bytes.Equal(is, n.hash) {
				return status.Errorf(codes.FailedPrecondition, "node %d is %x and can not become %x", n.pos, is, n.hash)
			}
		default:
			x.appendNode(n.hash)
		}
	}
	return nil
}

func (x *tx) appendNode(hash []byte) {
	if cap(x.now.tail) < chunkNodes*hashSize {
		x.now.tail = append(make([]byte, 0, chunkNodes*hashSize), x.now.tail...)
	}
	// This may write behind a tail that readers hold, never into it.
	x.now.tail = append(x.now.tail, hash...)
	x.now.nodes++
	if x.now.nodes%chunkNodes == 0 {
		x.filled = append(x.filled, cachedChunk{x.now.nodes/chunkNodes - 1, x.now.tail})
		x.now.tail = nil
	}
}

// GetLeavesByRange returns stored leaves as of this transaction.
func (x *tx) GetLeavesByRange(_ context.Context, start, count int64) (_ []*trillian.LogLeaf, err error) {
	defer x.note(&err)
	end, err := leafRange(x.kind, int64(x.now.root.TreeSize), start, count)
	if err != nil {
		return nil, err
	}
	leaves, err := x.t.writer.leavesFrom(x.t.opts, start, end)
	if err != nil {
		return nil, err
	}
	return leaves, missing(leaves, start, end, int64(x.now.root.TreeSize))
}

// leafRange checks a range and returns its end. A log's leaves end with its tree; those of a pre-ordered one are stored first and
// integrated later.
func leafRange(kind trillian.TreeType, size, start, count int64) (int64, error) {
	switch {
	case count <= 0:
		return 0, status.Errorf(codes.InvalidArgument, "range of %d leaves, want one or more", count)
	case start < 0:
		return 0, status.Errorf(codes.InvalidArgument, "range from leaf %d", start)
	}
	end := start + count
	if end < start {
		return 0, status.Errorf(codes.InvalidArgument, "range of %d leaves from leaf %d", count, start)
	}
	if kind == trillian.TreeType_PREORDERED_LOG {
		return end, nil
	}
	if start >= size {
		return 0, status.Errorf(codes.OutOfRange, "range from leaf %d in a tree of size %d", start, size)
	}
	return min(end, size), nil
}

// missing is the error for a gap inside the tree, where there can be none.
func missing(leaves []*trillian.LogLeaf, start, end, size int64) error {
	next := start + int64(len(leaves))
	var bytes int
	for _, l := range leaves {
		bytes += leafBytes(l)
	}
	if next >= min(end, size) || len(leaves) == maxRangeLeaves || bytes >= maxRangeBytes {
		return nil
	}
	return fmt.Errorf("%w: leaf %d of a tree of size %d is missing", ErrDamaged, next, size)
}

// GetLeavesByHash returns the leaves with these Merkle leaf hashes, in the order of the log if asked for.
func (x *tx) GetLeavesByHash(_ context.Context, hashes [][]byte, ordered bool) (_ []*trillian.LogLeaf, err error) {
	defer x.note(&err)
	return leavesByMerkleHash(x.t, &x.now, x.kind, hashes, ordered, func(hash []byte) ([]*trillian.LogLeaf, error) {
		return x.t.writer.leavesByHash(x.t.opts, hash, merkleIs(hash))
	})
}

func merkleIs(hash []byte) func(*trillian.LogLeaf) bool {
	return func(l *trillian.LogLeaf) bool { return bytes.Equal(l.MerkleLeafHash, hash) }
}

func identityIs(hash []byte) func(*trillian.LogLeaf) bool {
	return func(l *trillian.LogLeaf) bool { return bytes.Equal(l.LeafIdentityHash, hash) }
}

// leavesByMerkleHash looks each hash up and leaves out what is beyond the tree that h is the head of.
func leavesByMerkleHash(t *tree, h *head, kind trillian.TreeType, hashes [][]byte, ordered bool, stored func([]byte) ([]*trillian.LogLeaf, error)) ([]*trillian.LogLeaf, error) {
	var found []*trillian.LogLeaf
	for _, hash := range hashes {
		if len(hash) != hashSize {
			return nil, status.Errorf(codes.InvalidArgument, "leaf hash of %d bytes, want %d", len(hash), hashSize)
		}
		var leaves []*trillian.LogLeaf
		if l := t.recent.byHash(hash); l != nil && t.opts.checkHash(l) == nil {
			leaves = []*trillian.LogLeaf{l}
		} else {
			var err error
			if leaves, err = stored(hash); err != nil {
				return nil, err
			}
		}
		for _, l := range leaves {
			if kind == trillian.TreeType_PREORDERED_LOG || l.LeafIndex < int64(h.root.TreeSize) {
				found = append(found, l)
			}
		}
	}
	if ordered && len(hashes) > 1 {
		slices.SortFunc(found, func(a, b *trillian.LogLeaf) int { return int(a.LeafIndex - b.LeafIndex) })
	}
	return found, nil
}

// DequeueLeaves hands out leaves that were queued up to cutoff: first this transaction's own, whose writers wait for them, then
// those in the queue.
func (x *tx) DequeueLeaves(_ context.Context, limit int, cutoff time.Time) (_ []*trillian.LogLeaf, err error) {
	defer x.note(&err)
	if x.kind == trillian.TreeType_PREORDERED_LOG {
		size := int64(x.now.root.TreeSize)
		return x.t.writer.leavesFrom(x.t.opts, size, size+int64(limit))
	}
	if x.dequeued == nil {
		x.dequeued = make(map[string]dequeued)
	}
	var leaves []*trillian.LogLeaf
	for _, l := range x.staged {
		if len(leaves) == limit {
			return leaves, nil
		}
		if _, out := x.dequeued[string(l.LeafIdentityHash)]; out || l.QueueTimestamp.AsTime().After(cutoff) {
			continue
		}
		x.dequeued[string(l.LeafIdentityHash)] = dequeued{leaf: l}
		leaves = append(leaves, l)
	}
	if x.t.queued == 0 || len(leaves) == limit {
		return leaves, nil
	}
	s := x.t.dequeue
	s.bindInt(1, x.dequeuedTo)
	s.bindInt(2, cutoff.UnixNano())
	s.bindInt(3, int64(limit-len(leaves)))
	for {
		row, err := s.step()
		if err != nil {
			return nil, err
		}
		if !row {
			return leaves, nil
		}
		l, err := s.leaf()
		if err != nil {
			s.reset()
			return nil, err
		}
		x.dequeuedTo = s.columnInt(8)
		x.dequeued[string(l.LeafIdentityHash)] = dequeued{row: x.dequeuedTo, leaf: l}
		leaves = append(leaves, l)
	}
}

// UpdateSequencedLeaves stores dequeued leaves at the index they were given.
func (x *tx) UpdateSequencedLeaves(_ context.Context, leaves []*trillian.LogLeaf) (err error) {
	defer x.note(&err)
	if err := x.write(); err != nil {
		return err
	}
	fromStaged := false
	for _, l := range leaves {
		d, ok := x.dequeued[string(l.LeafIdentityHash)]
		if !ok {
			return status.Errorf(codes.FailedPrecondition, "leaf %x was not dequeued in this transaction", l.LeafIdentityHash)
		}
		delete(x.dequeued, string(l.LeafIdentityHash))
		// The caller's copy may lack what the one handed out has.
		stored := copyLeaf(d.leaf)
		stored.LeafIndex, stored.IntegrateTimestamp = l.LeafIndex, l.IntegrateTimestamp
		if err := x.t.opts.checkHash(stored); err != nil {
			return err
		}
		if err := x.store(stored); err != nil {
			return err
		}
		x.sequenced = append(x.sequenced, stored)
		if d.row == 0 {
			fromStaged = true
			continue
		}
		x.t.unqueue.bindInt(1, d.row)
		if err := x.t.unqueue.run(); err != nil {
			return err
		}
		x.unqueued++
	}
	if fromStaged {
		stored := make(map[string]bool, len(x.sequenced))
		for _, l := range x.sequenced {
			stored[string(l.LeafIdentityHash)] = true
		}
		rest := make([]*trillian.LogLeaf, 0)
		for _, l := range x.staged {
			if !stored[string(l.LeafIdentityHash)] {
				rest = append(rest, l)
			}
		}
		x.staged = rest
	}
	return nil
}

// store writes a leaf at its index and makes it be found by its hashes.
func (x *tx) store(l *trillian.LogLeaf) error {
	if l.LeafIndex < 0 {
		return status.Errorf(codes.OutOfRange, "leaf index %d", l.LeafIndex)
	}
	s := x.t.insertLeaf
	s.bindInt(1, l.LeafIndex)
	s.bindInt(2, l.QueueTimestamp.AsTime().UnixNano())
	s.bindInt(3, l.IntegrateTimestamp.AsTime().UnixNano())
	s.bindInt(8, leafSum(l))
	if err := s.bindLeaf(4, l); err != nil {
		return err
	}
	if err := s.run(); err != nil {
		return err
	}
	prefixes := []int64{prefix(l.MerkleLeafHash), prefix(l.LeafIdentityHash)}
	for _, p := range slices.Compact(prefixes) {
		x.t.insertHash.bindInt(1, p)
		x.t.insertHash.bindInt(2, l.LeafIndex)
		if err := x.t.insertHash.run(); err != nil {
			return err
		}
	}
	return nil
}
