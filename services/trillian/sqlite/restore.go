package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/google/trillian"
	"github.com/google/trillian/types"
	"google.golang.org/protobuf/proto"

	"github.com/sigbox/sigbox/internal/backup"
)

// Bounds on what one commit of a Restoration writes.
const (
	restoreLeaves = 1024
	restoreBytes  = 8 << 20
)

// Restoration fills a new tree from the leaves of an old one. Everything else about the tree is computed.
type Restoration struct {
	t      *tree
	replay *backup.Replay
	has    *stmt
	x      *tx
	leaves int
	bytes  int
}

// Restore makes the file of a tree that is described by Trillian's message, under the id in it, and an entry in the catalogue.
func (s *Storage) Restore(description []byte) (*Restoration, error) {
	info := new(trillian.Tree)
	if err := proto.Unmarshal(description, info); err != nil {
		return nil, fmt.Errorf("reading the description of a tree: %w", err)
	}
	id := info.TreeId
	if id <= 0 || info.TreeType != trillian.TreeType_LOG {
		return nil, fmt.Errorf("tree %d is not a log: %v", id, info.TreeType)
	}
	k := &s.catalogue
	k.change.Lock()
	defer k.change.Unlock()
	if err := s.stop.reason(); err != nil {
		return nil, err
	}
	if k.c == nil {
		return nil, ErrClosed
	}
	if err := createTree(treePath(s.dir, id), id); err != nil {
		return nil, err
	}
	x := &adminTX{s: s, trees: maps.Clone(*k.trees.Load()), created: []int64{id}, write: true}
	x.trees[id] = info
	if err := s.commitTrees(*k.trees.Load(), x); err != nil {
		return nil, errors.Join(err, removeDatabase(treePath(s.dir, id)))
	}
	t, err := s.tree(id)
	if err != nil {
		return nil, err
	}
	r := &Restoration{t: t, replay: backup.NewReplay(id)}
	if r.has, err = t.writer.c.prepare("SELECT 1 FROM hashes WHERE prefix = ?1 LIMIT 1"); err != nil {
		return nil, err
	}
	return r, nil
}

// Tree is the tree's id.
func (r *Restoration) Tree() int64 { return r.t.id }

// Size is how many leaves there are so far.
func (r *Restoration) Size() uint64 { return r.replay.Size() }

// Root is the root of the leaves so far.
func (r *Restoration) Root() ([]byte, error) { return r.replay.Root() }

// Expect makes Add compare the root at a size with one that was published.
func (r *Restoration) Expect(size uint64, root []byte) error { return r.replay.Expect(size, root) }

// Add appends a leaf. After an error the tree holds a part of the leaves before it.
func (r *Restoration) Add(ctx context.Context, l *backup.Leaf) error {
	if r.x == nil {
		if err := r.t.acquire(ctx); err != nil {
			return err
		}
		r.x = r.t.newTX(nil)
		r.leaves, r.bytes = 0, 0
	}
	if err := r.x.write(); err != nil {
		return r.abandon(err)
	}
	hash, err := r.replay.Add(l, r.x.appendNode)
	if err != nil {
		return r.abandon(err)
	}
	identity := l.Identity
	if identity == nil {
		identity = hash
	}
	if len(identity) != hashSize {
		return r.abandon(fmt.Errorf("leaf %d has an identity of %d bytes", l.Index, len(identity)))
	}
	leaf := &trillian.LogLeaf{
		LeafIndex: int64(l.Index), QueueTimestamp: timestamp(l.Queued), IntegrateTimestamp: timestamp(l.Integrated),
		MerkleLeafHash: hash, LeafIdentityHash: identity, LeafValue: l.Value, ExtraData: l.Extra,
	}
	if err := r.x.store(leaf); err != nil {
		return r.abandon(err)
	}
	r.leaves++
	if r.bytes += leafBytes(leaf); r.leaves >= restoreLeaves || r.bytes >= restoreBytes {
		// Roots between have been nobody's, and no time of theirs is later than that of the last.
		return r.commit(1)
	}
	return nil
}

// Finish gives the tree a root of that time, in nanoseconds since 1970, over all its leaves.
func (r *Restoration) Finish(ctx context.Context, at uint64) error {
	if r.x == nil {
		if err := r.t.acquire(ctx); err != nil {
			return err
		}
		r.x = r.t.newTX(nil)
	}
	return r.commit(at)
}

// Has tells whether there is a leaf of this hash. Eight bytes of it are compared, which is enough where nothing is promised of the answer.
func (r *Restoration) Has(hash []byte) (bool, error) {
	if len(hash) != hashSize {
		return false, nil
	}
	r.has.bindInt(1, prefix(hash))
	row, err := r.has.step()
	if row {
		r.has.reset()
	}
	return row, err
}

// Close gives up what is not committed.
func (r *Restoration) Close() {
	if r.x != nil {
		r.abandon(nil)
	}
}

func (r *Restoration) abandon(err error) error {
	err = r.x.fail(err)
	r.x = nil
	r.t.yield()
	return err
}

func (r *Restoration) commit(at uint64) error {
	hash, err := r.replay.Root()
	if err != nil {
		return r.abandon(err)
	}
	root := types.LogRootV1{TreeSize: r.replay.Size(), RootHash: bytes.Clone(hash), TimestampNanos: at}
	encoded, err := root.MarshalBinary()
	if err != nil {
		return r.abandon(err)
	}
	r.x.now.root, r.x.now.slr = root, &trillian.SignedLogRoot{LogRoot: encoded}
	err = r.x.commit()
	r.x = nil
	r.t.yield()
	return err
}
