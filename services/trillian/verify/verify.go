// Package verify computes a log anew from the values of its leaves and compares everything that is stored with what it finds: leaf hashes,
// tree nodes, the indices that find them, and the root.
package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// What a finding is about.
const (
	LeafValue  = "leaf value"
	LeafHash   = "leaf hash"
	LeafFields = "leaf fields" // times, identity and extra data
	LeafIndex  = "leaf index"  // by which a leaf is found from its hashes
	LeafRow    = "leaf"        // there is none, or it can not be read
	Node       = "node"
	RootRow    = "root"
	Queue      = "queue"
	File       = "file" // the database itself
)

// Finding is one thing that is not as it was written.
type Finding struct {
	Tree int64  `json:"tree_id"`
	File string `json:"file"`
	What string `json:"what"`
	// Leaf is the index of the leaf that it is about, if it is about one.
	Leaf *uint64 `json:"leaf,omitempty"`
	// Level and Index name the node that it is about, if it is about one.
	Level  *uint   `json:"level,omitempty"`
	Index  *uint64 `json:"index,omitempty"`
	Detail string  `json:"detail"`
}

func (f Finding) String() string {
	where := f.What
	switch {
	case f.What == LeafRow && f.Leaf != nil:
		where = fmt.Sprintf("leaf %d", *f.Leaf)
	case f.Leaf != nil:
		where = fmt.Sprintf("%s of leaf %d", f.What, *f.Leaf)
	case f.Level != nil && f.Index != nil:
		where = fmt.Sprintf("node %d at level %d", *f.Index, *f.Level)
	}
	return fmt.Sprintf("%s in %s: %s", where, f.File, f.Detail)
}

// AboutLeaf makes a finding about a leaf.
func AboutLeaf(what string, leaf uint64, format string, args ...any) Finding {
	return Finding{What: what, Leaf: &leaf, Detail: fmt.Sprintf(format, args...)}
}

// About makes a finding about something else.
func About(what, format string, args ...any) Finding {
	return Finding{What: what, Detail: fmt.Sprintf(format, args...)}
}

func aboutNode(id compact.NodeID, stored, computed []byte) Finding {
	f := Finding{What: Node, Level: &id.Level, Index: &id.Index, Detail: "it is missing"}
	if stored != nil {
		f.Detail = fmt.Sprintf("it is %x, what is below it hashes to %x", stored, computed)
	}
	return f
}

// Leaf is a stored leaf.
type Leaf struct {
	Index       uint64
	Value, Hash []byte
	// Bytes is about what it takes in the file.
	Bytes int
	// Findings are about the rest of its row and the indices that lead to it.
	Findings []Finding
}

// Source is a log as it is in its file. It may grow meanwhile. Its answers do not come from a cache.
type Source interface {
	// Name is the tree's id and the file or place that holds it.
	Name() (tree int64, file string)
	// Head returns the stored root. A root that can not be read is a finding.
	Head(ctx context.Context) (types.LogRootV1, []Finding, error)
	// Leaves returns the stored leaves from start up to end, one or more if there are any: about limit bytes of them.
	Leaves(ctx context.Context, start, end uint64, limit int) ([]Leaf, error)
	// Nodes returns stored nodes; one that is not stored is nil.
	Nodes(ctx context.Context, ids []compact.NodeID) ([][]byte, error)
	// Rest examines what belongs to none of the first size leaves alone. pace is told how much work was done since; its error ends it.
	Rest(ctx context.Context, size uint64, pace func(bytes int) error) ([]Finding, error)
}

// ErrUnreadable marks errors of a Source that say that the file is damaged, as against those that say nothing about it.
var ErrUnreadable = errors.New("the file is damaged")

// MaxFindings is how many a walk collects before it gives up.
const MaxFindings = 100

var ranges = compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// Walk goes through a log from leaf to leaf.
type Walk struct {
	src      Source
	tree     *compact.Range
	begin    uint64
	Findings []Finding
}

// New starts a walk at a leaf, believing the stored nodes left of it.
func New(ctx context.Context, src Source, at uint64) (*Walk, error) {
	w := &Walk{src: src, begin: at}
	hashes, err := src.Nodes(ctx, compact.RangeNodes(0, at, nil))
	if err != nil && !errors.Is(err, ErrUnreadable) {
		return nil, err
	}
	for i, h := range hashes {
		if len(h) != rfc6962.DefaultHasher.Size() {
			w.find(About(Node, "the node %d of those that stand for the first %d leaves is missing", i, at))
			return w, nil
		}
	}
	if err != nil {
		w.find(About(Node, "those that stand for the first %d leaves: %v", at, err))
		return w, nil
	}
	w.tree, err = ranges.NewRange(0, at, hashes)
	return w, err
}

// Next is the leaf that comes next.
func (w *Walk) Next() uint64 {
	if w.tree == nil {
		return w.begin
	}
	return w.tree.End()
}

// Over says that there is no point in going on.
func (w *Walk) Over() bool { return w.tree == nil || len(w.Findings) >= MaxFindings }

func (w *Walk) find(f ...Finding) { w.Findings = append(w.Findings, named(w.src, f)...) }

// named says in findings where they are.
func named(src Source, found []Finding) []Finding {
	for i := range found {
		found[i].Tree, found[i].File = src.Name()
	}
	return found
}

// Step goes on up to leaf end, but not farther than what takes about limit bytes. It returns how many bytes it has been through.
func (w *Walk) Step(ctx context.Context, end uint64, limit int) (int, error) {
	start := w.Next()
	if w.Over() || start >= end {
		return 0, nil
	}
	leaves, err := w.leaves(ctx, start, end, limit)
	if errors.Is(err, ErrUnreadable) {
		// Which one it is shows when they are read one by one.
		if leaves, err = w.leaves(ctx, start, start+1, limit); errors.Is(err, ErrUnreadable) {
			w.find(AboutLeaf(LeafRow, start, "it can not be read: %v", err))
			leaves, err = nil, nil
		}
	}
	if err != nil {
		return 0, err
	}
	upto, size := start+1, 0
	if len(leaves) > 0 {
		upto = leaves[len(leaves)-1].Index + 1
	}
	stored, err := w.nodes(ctx, start, upto)
	if err != nil {
		return 0, err
	}
	for i := start; i < upto && !w.Over(); i++ {
		var l *Leaf
		if len(leaves) > 0 && leaves[0].Index == i {
			l, leaves = &leaves[0], leaves[1:]
			size += l.Bytes
			w.find(l.Findings...)
		}
		if err := w.leaf(i, l, stored); err != nil {
			return size, err
		}
	}
	return max(size, 1), nil
}

// leaves reads rows from start up to end, which must say that they are those, in
// order: a damaged page may hold any number. Who goes on behind the last one would
// never come to an end.
func (w *Walk) leaves(ctx context.Context, start, end uint64, limit int) ([]Leaf, error) {
	leaves, err := w.src.Leaves(ctx, start, end, limit)
	if err != nil {
		return nil, err
	}
	next := start
	for _, l := range leaves {
		if l.Index < next || l.Index >= end {
			return nil, fmt.Errorf("%w: a row says that it is leaf %d, where leaf %d or a later one is to be", ErrUnreadable, l.Index, next)
		}
		next = l.Index + 1
	}
	return leaves, nil
}

// nodes reads the nodes that come to be with the leaves from start up to end.
func (w *Walk) nodes(ctx context.Context, start, end uint64) (map[compact.NodeID][]byte, error) {
	var ids []compact.NodeID
	for i := start; i < end; i++ {
		ids = append(ids, Made(i)...)
	}
	hashes, err := w.src.Nodes(ctx, ids)
	if errors.Is(err, ErrUnreadable) {
		w.find(About(Node, "those of the leaves from %d to %d can not be read: %v", start, end-1, err))
		hashes, err = make([][]byte, len(ids)), nil
	}
	if err != nil {
		return nil, err
	}
	stored := make(map[compact.NodeID][]byte, len(ids))
	for i, id := range ids {
		stored[id] = hashes[i]
	}
	return stored, nil
}

// Made lists the nodes that a leaf completes, bottom up.
func Made(leaf uint64) []compact.NodeID {
	ids := []compact.NodeID{compact.NewNodeID(0, leaf)}
	for level, i := uint(1), leaf; i&1 == 1; level++ {
		i >>= 1
		ids = append(ids, compact.NewNodeID(level, i))
	}
	return ids
}

// leaf adds a leaf to the tree and compares. Of value, hash and node two that agree tell which is the third.
func (w *Walk) leaf(i uint64, l *Leaf, stored map[compact.NodeID][]byte) error {
	node := stored[compact.NewNodeID(0, i)]
	believed := node
	if l == nil {
		if !w.unreadable(i) {
			w.find(AboutLeaf(LeafRow, i, "it is missing"))
		}
	} else {
		value := rfc6962.DefaultHasher.HashLeaf(l.Value)
		switch {
		case bytes.Equal(value, l.Hash):
			believed = value
		case bytes.Equal(node, l.Hash):
			w.find(AboutLeaf(LeafValue, i, "it hashes to %x, its hash is %x", value, l.Hash))
		case bytes.Equal(node, value):
			w.find(AboutLeaf(LeafHash, i, "it is %x, the value hashes to %x", l.Hash, value))
		default:
			w.find(AboutLeaf(LeafValue, i, "it hashes to %x, its hash is %x and its node %x", value, l.Hash, node))
		}
	}
	if believed == nil {
		w.tree = nil // nothing to go on with
		return nil
	}
	return w.tree.Append(believed, func(id compact.NodeID, computed []byte) {
		if is := stored[id]; !bytes.Equal(is, computed) {
			w.find(aboutNode(id, is, computed))
		}
	})
}

// unreadable says that the leaf was just found to be so.
func (w *Walk) unreadable(leaf uint64) bool {
	for _, f := range w.Findings {
		if f.What == LeafRow && f.Leaf != nil && *f.Leaf == leaf {
			return true
		}
	}
	return false
}

// Root is the root of the tree as far as the walk has come; nil if there is none.
func (w *Walk) Root() ([]byte, error) {
	switch {
	case w.tree == nil:
		return nil, nil
	case w.tree.End() == 0:
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	return w.tree.GetRootHash(nil)
}

// CompareRoot adds a finding if the walk has come to the end of a tree with another root.
func (w *Walk) CompareRoot(size uint64, hash []byte) error {
	if w.tree == nil || w.Next() != size {
		return nil
	}
	root, err := w.Root()
	if err != nil {
		return err
	}
	if !bytes.Equal(root, hash) {
		w.find(About(RootRow, "a tree of size %d has root %x, the leaves hash to %x", size, hash, root))
	}
	return nil
}

// RootAt computes the root of the tree's first size leaves from stored nodes.
func RootAt(ctx context.Context, src Source, size uint64) ([]byte, error) {
	w, err := New(ctx, src, size)
	if err != nil {
		return nil, err
	}
	if len(w.Findings) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrUnreadable, w.Findings[0].Detail)
	}
	return w.Root()
}
