package sqlite

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/google/trillian"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Bounds on one answer. Callers ask again for what is missing.
const (
	maxRangeLeaves = 1024
	maxRangeBytes  = 4 << 20
)

// prefix is the part of a hash by which the index finds it.
func prefix(hash []byte) int64 { return int64(binary.BigEndian.Uint64(hash)) }

const leafColumns = "idx, queued, integrated, merkle, identity, value, extra, sum"

// leaf reads the columns of leafColumns, and finds what changed in the row since.
func (s *stmt) leaf() (*trillian.LogLeaf, error) {
	l := s.rawLeaf()
	if len(l.MerkleLeafHash) != hashSize || s.columnInt(7) != leafSum(l) {
		return nil, fmt.Errorf("%w: the fields of leaf %x are not as they were written", ErrDamaged, l.MerkleLeafHash)
	}
	return l, nil
}

func (s *stmt) rawLeaf() *trillian.LogLeaf {
	l := &trillian.LogLeaf{
		LeafIndex:          s.columnInt(0),
		QueueTimestamp:     timestamp(s.columnInt(1)),
		IntegrateTimestamp: timestamp(s.columnInt(2)),
		MerkleLeafHash:     s.columnBlob(3),
		LeafIdentityHash:   s.columnBlob(4),
		LeafValue:          s.columnBlob(5),
		ExtraData:          s.columnBlob(6),
	}
	if l.LeafIdentityHash == nil {
		l.LeafIdentityHash = l.MerkleLeafHash
	}
	return l
}

func timestamp(nanos int64) *timestamppb.Timestamp { return timestamppb.New(time.Unix(0, nanos)) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// leafSum is the checksum of what the Merkle leaf hash does not cover.
func leafSum(l *trillian.LogLeaf) int64 {
	identity := l.LeafIdentityHash
	if bytes.Equal(identity, l.MerkleLeafHash) {
		identity = nil
	}
	var fixed [40]byte
	for i, n := range []int64{l.LeafIndex, nanos(l.QueueTimestamp), nanos(l.IntegrateTimestamp), int64(len(identity)), int64(len(l.ExtraData))} {
		binary.BigEndian.PutUint64(fixed[8*i:], uint64(n))
	}
	sum := crc32.Update(0, castagnoli, fixed[:])
	return int64(crc32.Update(crc32.Update(sum, castagnoli, identity), castagnoli, l.ExtraData))
}

// queueSum is the checksum of a leaf in the queue: a pass that failed may have given it an index and a time.
func queueSum(l *trillian.LogLeaf) int64 {
	queued := copyLeaf(l)
	queued.LeafIndex, queued.IntegrateTimestamp = 0, nil
	return leafSum(queued)
}

// nanos is what a column of times holds; none is 1970.
func nanos(t *timestamppb.Timestamp) int64 { return t.AsTime().UnixNano() }

// rootSum is the checksum of a log root in a row of nodes.
func rootSum(chunk uint64, root []byte) int64 {
	sum := crc32.Update(0, castagnoli, binary.BigEndian.AppendUint64(nil, chunk))
	return int64(crc32.Update(sum, castagnoli, root))
}

// bindLeaf sets the parameters from first on: merkle, identity, value, extra.
func (s *stmt) bindLeaf(first int, l *trillian.LogLeaf) error {
	identity := l.LeafIdentityHash
	if bytes.Equal(identity, l.MerkleLeafHash) {
		identity = nil
	}
	value := l.LeafValue
	if value == nil {
		value = []byte{}
	}
	for i, b := range [][]byte{l.MerkleLeafHash, identity, value, l.ExtraData} {
		if err := s.bindBlob(first+i, b); err != nil {
			return err
		}
	}
	return nil
}

// copyLeaf gives a reader a leaf of its own to fill in or change. What the fields point to stays shared.
func copyLeaf(l *trillian.LogLeaf) *trillian.LogLeaf {
	return &trillian.LogLeaf{
		MerkleLeafHash:     l.MerkleLeafHash,
		LeafValue:          l.LeafValue,
		ExtraData:          l.ExtraData,
		LeafIndex:          l.LeafIndex,
		LeafIdentityHash:   l.LeafIdentityHash,
		QueueTimestamp:     l.QueueTimestamp,
		IntegrateTimestamp: l.IntegrateTimestamp,
	}
}

func leafBytes(l *trillian.LogLeaf) int {
	return len(l.LeafValue) + len(l.ExtraData) + len(l.MerkleLeafHash) + len(l.LeafIdentityHash) + 256
}

// checkHash finds the bit that has changed since the entry was accepted: a leaf whose hash is not that of its value
// would make a tree that nobody can verify.
func (o *Options) checkHash(l *trillian.LogLeaf) error {
	if o.HashLeaf == nil || bytes.Equal(o.HashLeaf(l.LeafValue), l.MerkleLeafHash) {
		return nil
	}
	return fmt.Errorf("%w: leaf %x is not the hash of its value", ErrDamaged, l.MerkleLeafHash)
}

func (o *Options) checkHashes(leaves []*trillian.LogLeaf) error {
	for _, l := range leaves {
		if err := o.checkHash(l); err != nil {
			return err
		}
	}
	return nil
}

// reads are the queries that the writer and the readers share. The writer's see its own open transaction.
type reads struct {
	c        *conn
	byIndex  *stmt
	byPrefix *stmt
	chunk    *stmt
	newest   *stmt
}

func prepareReads(c *conn) (*reads, error) {
	r := &reads{c: c}
	for _, p := range []struct {
		to  **stmt
		sql string
	}{
		{&r.byIndex, "SELECT " + leafColumns + " FROM leaves WHERE idx >= ?1 AND idx < ?2 ORDER BY idx"},
		{&r.byPrefix, "SELECT " + leafColumns + " FROM hashes CROSS JOIN leaves ON idx = leaf WHERE prefix = ?1 ORDER BY leaf"},
		{&r.chunk, "SELECT hashes FROM nodes WHERE chunk = ?1"},
		{&r.newest, "SELECT chunk, hashes, root, sum FROM nodes ORDER BY chunk DESC LIMIT 1"},
	} {
		s, err := c.prepare(p.sql)
		if err != nil {
			return nil, err
		}
		*p.to = s
	}
	return r, nil
}

// leavesFrom returns the stored leaves from start on, up to but not including end, as far as there is no gap.
func (r *reads) leavesFrom(o *Options, start, end int64) ([]*trillian.LogLeaf, error) {
	r.byIndex.bindInt(1, start)
	r.byIndex.bindInt(2, min(end, start+maxRangeLeaves))
	var leaves []*trillian.LogLeaf
	for size := 0; size < maxRangeBytes; {
		row, err := r.byIndex.step()
		if err != nil {
			return nil, err
		}
		if !row {
			return leaves, nil
		}
		l, err := r.byIndex.leaf()
		if err == nil {
			err = o.checkHash(l)
		}
		if err != nil {
			idx := r.byIndex.columnInt(0)
			r.byIndex.reset()
			return nil, fmt.Errorf("leaf %d: %w", idx, err)
		}
		if l.LeafIndex != start+int64(len(leaves)) {
			break
		}
		leaves = append(leaves, l)
		size += leafBytes(l)
	}
	r.byIndex.reset()
	return leaves, nil
}

// leavesByHash returns the leaves for which is holds among those that the index has under the hash's prefix, in order.
func (r *reads) leavesByHash(o *Options, hash []byte, is func(*trillian.LogLeaf) bool) ([]*trillian.LogLeaf, error) {
	r.byPrefix.bindInt(1, prefix(hash))
	var leaves []*trillian.LogLeaf
	for {
		row, err := r.byPrefix.step()
		if err != nil || !row {
			return leaves, err
		}
		l, err := r.byPrefix.leaf()
		if err == nil && !is(l) {
			continue
		}
		if err == nil {
			err = o.checkHash(l)
		}
		if err != nil {
			idx := r.byPrefix.columnInt(0)
			r.byPrefix.reset()
			return nil, fmt.Errorf("leaf %d: %w", idx, err)
		}
		leaves = append(leaves, l)
	}
}

// chunkAt reads a chunk that is known to be full.
func (r *reads) chunkAt(no uint64) ([]byte, error) {
	r.chunk.bindInt(1, int64(no))
	row, err := r.chunk.step()
	if err != nil {
		return nil, err
	}
	var hashes []byte
	if row {
		hashes = r.chunk.columnBlob(0)
		r.chunk.reset()
	}
	if len(hashes) != chunkNodes*hashSize {
		return nil, fmt.Errorf("%w: node row %d has %d bytes, want %d", ErrDamaged, no, len(hashes), chunkNodes*hashSize)
	}
	return hashes, nil
}

// Bounds on the leaves kept for their writers, who ask for them as soon as they are told of them.
const (
	keptLeaves    = 1024
	keptLeafBytes = 2 << 20
)

// recentLeaves are the newest leaves of a tree, without a gap.
type recentLeaves struct {
	mu     sync.RWMutex
	first  int64
	leaves []*trillian.LogLeaf
	index  map[[hashSize]byte]int64 // Merkle leaf hash to leaf index
	bytes  int
}

func (r *recentLeaves) add(leaves []*trillian.LogLeaf) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range leaves {
		if len(r.leaves) == 0 || l.LeafIndex != r.first+int64(len(r.leaves)) {
			r.first, r.leaves, r.bytes = l.LeafIndex, nil, 0
			r.index = make(map[[hashSize]byte]int64)
		}
		r.leaves = append(r.leaves, l)
		r.index[[hashSize]byte(l.MerkleLeafHash)] = l.LeafIndex
		r.bytes += leafBytes(l)
		for len(r.leaves) > keptLeaves || r.bytes > keptLeafBytes {
			old := r.leaves[0]
			r.leaves[0] = nil
			r.leaves = r.leaves[1:]
			r.first++
			r.bytes -= leafBytes(old)
			if hash := [hashSize]byte(old.MerkleLeafHash); r.index[hash] == old.LeafIndex {
				delete(r.index, hash)
			}
		}
	}
}

// between returns the leaves from start up to but not including end, or nil if it does not have them all.
func (r *recentLeaves) between(start, end int64) []*trillian.LogLeaf {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if start < r.first || end > r.first+int64(len(r.leaves)) || end-start > maxRangeLeaves {
		return nil
	}
	leaves := make([]*trillian.LogLeaf, 0, end-start)
	for _, l := range r.leaves[start-r.first : end-r.first] {
		leaves = append(leaves, copyLeaf(l))
	}
	return leaves
}

// byHash finds a leaf whose identity is its Merkle leaf hash. Deduplication makes it the only one in a log whose writers
// all identify leaves this way, as Rekor does; of others the database knows whether there are more.
func (r *recentLeaves) byHash(hash []byte) *trillian.LogLeaf {
	r.mu.RLock()
	defer r.mu.RUnlock()
	idx, ok := r.index[[hashSize]byte(hash)]
	if !ok {
		return nil
	}
	l := r.leaves[idx-r.first]
	if !bytes.Equal(l.LeafIdentityHash, l.MerkleLeafHash) {
		return nil
	}
	return copyLeaf(l)
}
