package sqlite

import (
	"container/list"
	"crypto/sha256"
	"math/bits"
	"sync"

	"github.com/transparency-dev/merkle/compact"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A log's nodes come to be once and never change: Trillian stores a node only when the subtree below it is full. Appending
// a leaf makes its own node, then that of each subtree it fills, bottom up. Kept in this order the nodes are an
// array that only grows, so that a commit rewrites a single row, and a reader that knows how much of the array is its
// own needs no snapshot of the database.

const (
	hashSize = sha256.Size
	// chunkNodes is how many hashes make a row that, with the log root beside them, just fits a page.
	chunkNodes = (pageSize - 35 - 96) / hashSize
	// maxLevel keeps the index of a node's last leaf within 63 bits.
	maxLevel = 62
)

// nodesIn is the number of nodes that a tree of size leaves has stored: two for each leaf, less the subtrees not yet full.
func nodesIn(size uint64) uint64 { return 2*size - uint64(bits.OnesCount64(size)) }

// position is a node's place in the array.
func position(id compact.NodeID) (uint64, error) {
	if id.Level > maxLevel || id.Index >= 1<<(maxLevel-id.Level) {
		return 0, status.Errorf(codes.InvalidArgument, "no tree has a node %d at level %d", id.Index, id.Level)
	}
	last := (id.Index+1)<<id.Level - 1
	return nodesIn(last) + uint64(id.Level), nil
}

// hashAt cuts one hash out of a chunk without copying it.
func hashAt(chunk []byte, pos uint64) []byte {
	i := pos % chunkNodes * hashSize
	return chunk[i : i+hashSize : i+hashSize]
}

// keptChunks bounds the memory of one tree's cache of nodes: 256 chunks of a page are 2 MiB.
const keptChunks = 256

// chunkCache keeps full chunks, which never change, most recently used first.
type chunkCache struct {
	mu    sync.Mutex
	order list.List
	byNo  map[uint64]*list.Element
}

type cachedChunk struct {
	no     uint64
	hashes []byte
}

func (c *chunkCache) get(no uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byNo[no]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(cachedChunk).hashes
}

func (c *chunkCache) add(no uint64, hashes []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byNo == nil {
		c.byNo = make(map[uint64]*list.Element, keptChunks)
	}
	if e := c.byNo[no]; e != nil {
		c.order.MoveToFront(e)
		return
	}
	c.byNo[no] = c.order.PushFront(cachedChunk{no, hashes})
	if len(c.byNo) > keptChunks {
		delete(c.byNo, c.order.Remove(c.order.Back()).(cachedChunk).no)
	}
}
