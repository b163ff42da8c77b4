package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/trillian"
	"github.com/google/trillian/types"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/transparency-dev/merkle/compact"

	"github.com/sigbox/sigbox/services/trillian/verify"
)

// sourceRows is how many leaves are read with one statement, at most.
const sourceRows = 512

// Source is a tree as it is in the database.
type Source struct {
	s      *Storage
	treeID int64
}

var _ verify.Source = Source{}

// Source reads a tree beside those who use it.
func (s *Storage) Source(treeID int64) Source { return Source{s, treeID} }

// Close implements io.Closer.
func (Source) Close() error { return nil }

// Name implements verify.Source, as do the methods below.
func (r Source) Name() (tree int64, file string) { return r.treeID, "postgresql" }

// unreadable marks the errors that say that tables or indices are damaged.
func unreadable(err error) error {
	if pg := new(pgconn.PgError); errors.As(err, &pg) && pg.Code[:2] == "XX" {
		return fmt.Errorf("%w: %w", verify.ErrUnreadable, err)
	}
	return err
}

// Head returns the newest root.
func (r Source) Head(context.Context) (types.LogRootV1, []verify.Finding, error) {
	root, err := r.s.Head(r.treeID)
	return root, nil, unreadable(err)
}

// Leaves reads rows, and the value that belongs to each.
func (r Source) Leaves(ctx context.Context, start, end uint64, limit int) (leaves []verify.Leaf, err error) {
	rows, err := r.s.pool.Query(ctx, `SELECT s.SequenceNumber, s.MerkleLeafHash, l.LeafValue, coalesce(length(l.ExtraData), 0)
		FROM SequencedLeafData s LEFT JOIN LeafData l USING (TreeId, LeafIdentityHash)
		WHERE TreeId = $1 AND s.SequenceNumber >= $2 AND s.SequenceNumber < $3 ORDER BY s.SequenceNumber LIMIT $4`,
		r.treeID, int64(start), int64(end), sourceRows)
	if err != nil {
		return nil, unreadable(err)
	}
	defer rows.Close()
	for size := 0; size < limit && rows.Next(); {
		var number int64
		var extra int
		var l verify.Leaf
		if err := rows.Scan(&number, &l.Hash, &l.Value, &extra); err != nil {
			return nil, unreadable(err)
		}
		l.Index, l.Bytes = uint64(number), len(l.Value)+len(l.Hash)+extra
		leaves = append(leaves, l)
		size += l.Bytes
	}
	rows.Close()
	return leaves, unreadable(rows.Err())
}

// Nodes asks the provider, which derives those inside of a tile from its last
// row.
func (r Source) Nodes(ctx context.Context, ids []compact.NodeID) (hashes [][]byte, err error) {
	hashes = make([][]byte, len(ids))
	if len(ids) == 0 {
		return hashes, nil
	}
	tx, err := r.s.reading.SnapshotForTree(ctx, &trillian.Tree{TreeId: r.treeID, TreeType: trillian.TreeType_LOG})
	if err != nil {
		return nil, unreadable(err)
	}
	defer tx.Close() // it has written nothing
	nodes, err := tx.GetMerkleNodes(ctx, ids)
	if err != nil {
		// One tile that is missing fails them all: look for each.
		if ctx.Err() != nil || passing(err) || r.s.pool.Ping(ctx) != nil || len(ids) == 1 {
			if len(ids) == 1 && ctx.Err() == nil && !passing(err) {
				return hashes, nil
			}
			return nil, unreadable(err)
		}
		for i := range ids {
			one, err := r.Nodes(ctx, ids[i:i+1])
			if err != nil {
				return nil, err
			}
			hashes[i] = one[0]
		}
		return hashes, nil
	}
	stored := make(map[compact.NodeID][]byte, len(nodes))
	for _, n := range nodes {
		stored[n.ID] = n.Hash
	}
	for i, id := range ids {
		hashes[i] = stored[id]
	}
	return hashes, nil
}

// Rest looks for leaves whose value is missing or that are in the queue as well
// as in the tree, and for roots that are no bigger than one before them.
func (r Source) Rest(ctx context.Context, size uint64, pace func(bytes int) error) (found []verify.Finding, err error) {
	rows, err := r.s.pool.Query(ctx, `SELECT s.SequenceNumber FROM Unsequenced u JOIN SequencedLeafData s USING (TreeId, LeafIdentityHash)
		WHERE TreeId = $1 AND s.SequenceNumber < $2 LIMIT $3`, r.treeID, int64(size), verify.MaxFindings)
	if err != nil {
		return nil, unreadable(err)
	}
	var number int64
	if _, err := pgx.ForEachRow(rows, []any{&number}, func() error {
		found = append(found, verify.AboutLeaf(verify.Queue, uint64(number), "it is in the queue, and in the tree"))
		return nil
	}); err != nil {
		return found, unreadable(err)
	}
	more, err := r.restOfRoots(ctx)
	return append(found, more...), errors.Join(err, pace(0))
}

func (r Source) restOfRoots(ctx context.Context) (found []verify.Finding, err error) {
	rows, err := r.s.pool.Query(ctx, `SELECT TreeSize, RootHash FROM TreeHead WHERE TreeId = $1 ORDER BY TreeHeadTimestamp`, r.treeID)
	if err != nil {
		return nil, unreadable(err)
	}
	var size, last int64
	var hash, was []byte
	_, err = pgx.ForEachRow(rows, []any{&size, &hash}, func() error {
		if len(found) < verify.MaxFindings && (size < last || size == last && was != nil && !bytes.Equal(hash, was)) {
			found = append(found, verify.About(verify.RootRow, "size %d, root %x after size %d, root %x", size, hash, last, was))
		}
		last, was = size, bytes.Clone(hash)
		return nil
	})
	return found, unreadable(err)
}
