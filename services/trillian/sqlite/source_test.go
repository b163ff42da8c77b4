package sqlite

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/compact"

	"github.com/sigbox/sigbox/services/trillian/verify"
)

// flipNode changes one byte of a stored node.
func flipNode(t *testing.T, path string, level uint, index, at uint64) {
	t.Helper()
	pos, err := position(compact.NewNodeID(level, index))
	must(t, err)
	c, err := openConn(path, false)
	must(t, err)
	r, err := prepareReads(c)
	must(t, err)
	r.chunk.bindInt(1, int64(pos/chunkNodes))
	row, err := r.chunk.step()
	if !row {
		t.Fatal("no such row", err)
	}
	hashes := r.chunk.columnBlob(0)
	r.chunk.reset()
	hashes[pos%chunkNodes*hashSize+at] ^= 0x10
	put, err := c.prepare("UPDATE nodes SET hashes = ?1 WHERE chunk = ?2")
	must(t, err)
	must(t, put.bindBlob(1, hashes))
	put.bindInt(2, int64(pos/chunkNodes))
	must(t, errors.Join(put.run(), c.close()))
}

func inspect(t *testing.T, dir string, tree int64) *Source {
	t.Helper()
	i, err := Inspect(dir, onWrite)
	must(t, err)
	src, err := i.Source(tree)
	must(t, err)
	must(t, i.Close())
	t.Cleanup(func() { must(t, src.Close()) })
	return src
}

// Every kind of bit that a log is made of: when it is not what was written, it is found, and named.
func TestSourceFinds(t *testing.T) {
	const size = 600
	for _, test := range []struct {
		name  string
		do    func(t *testing.T, path string)
		what  string
		leaf  uint64
		level uint
	}{
		{"a value", func(t *testing.T, path string) { flip(t, path, []byte(marked(7)), 500) }, verify.LeafValue, 7, 0},
		{"a leaf hash", func(t *testing.T, path string) {
			// In the leaf's row, not in the nodes: there the next leaf's hash follows at once.
			change(t, path, "UPDATE leaves SET merkle = zeroblob(1) || substr(merkle, 2) WHERE idx = 300")
		}, verify.LeafHash, 300, 0},
		{"extra data", func(t *testing.T, path string) { flip(t, path, []byte("extra "+marked(9)), 3) }, verify.LeafFields, 9, 0},
		{"a time", func(t *testing.T, path string) {
			change(t, path, "UPDATE leaves SET integrated = integrated + 1 WHERE idx = 11")
		}, verify.LeafFields, 11, 0},
		{"an identity", func(t *testing.T, path string) {
			change(t, path, "UPDATE leaves SET identity = zeroblob(32) WHERE idx = 599")
		}, verify.LeafFields, 599, 0},
		{"the checksum", func(t *testing.T, path string) { change(t, path, "UPDATE leaves SET sum = sum + 1 WHERE idx = 100") }, verify.LeafFields, 100, 0},
		{"a leaf gone", func(t *testing.T, path string) { change(t, path, "DELETE FROM leaves WHERE idx = 255") }, verify.LeafRow, 255, 0},
		{"the last leaf gone", func(t *testing.T, path string) { change(t, path, "DELETE FROM leaves WHERE idx = 599") }, verify.LeafRow, 599, 0},
		{"a page of leaves", func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			must(t, err)
			// Leaf 5 is the first of those on the page of leaf 7.
			page := bytes.Index(b, []byte(marked(7))) / pageSize * pageSize
			copy(b[page:], bytes.Repeat([]byte{0xff}, 64))
			must(t, os.WriteFile(path, b, 0o600))
		}, verify.LeafRow, 5, 0},
		{"half a page of leaves", func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			must(t, err)
			// Its cells are gone, and the list of them says there are some: rows
			// without a number.
			page := bytes.Index(b, []byte(marked(7))) / pageSize * pageSize
			clear(b[page+pageSize/2 : page+pageSize])
			must(t, os.WriteFile(path, b, 0o600))
		}, verify.LeafRow, 5, 0},
		{"an index row's prefix", func(t *testing.T, path string) {
			change(t, path, "UPDATE hashes SET prefix = prefix + 1 WHERE leaf = 33")
		}, verify.LeafIndex, 33, 0},
		{"an index row's leaf", func(t *testing.T, path string) {
			change(t, path, "UPDATE hashes SET leaf = 35 WHERE leaf = 34")
		}, verify.LeafIndex, 34, 0},
		{"an index row too many", func(t *testing.T, path string) {
			change(t, path, "INSERT INTO hashes VALUES (17, 36)")
		}, verify.LeafIndex, 36, 0},
		{"the node of a leaf", func(t *testing.T, path string) { flipNode(t, path, 0, 40, 31) }, verify.Node, 40, 0},
		{"a node between", func(t *testing.T, path string) { flipNode(t, path, 3, 5, 0) }, verify.Node, 5, 3},
		{"the node of the largest subtree", func(t *testing.T, path string) { flipNode(t, path, 9, 0, 12) }, verify.Node, 0, 9},
		{"the last node", func(t *testing.T, path string) { flipNode(t, path, 3, 74, 3) }, verify.Node, 74, 3},
		{"a chunk of nodes gone", func(t *testing.T, path string) { change(t, path, "DELETE FROM nodes WHERE chunk = 1") }, verify.Node, 7, 4},
		{"the root's hash", func(t *testing.T, path string) {
			change(t, path, "UPDATE nodes SET root = substr(root, 1, 11) || zeroblob(32) || substr(root, 44) WHERE chunk = (SELECT max(chunk) FROM nodes)")
		}, verify.RootRow, 0, 0},
		{"the root's time", func(t *testing.T, path string) {
			change(t, path, "UPDATE nodes SET root = substr(root, 1, 43) || zeroblob(8) || substr(root, 52) WHERE chunk = (SELECT max(chunk) FROM nodes)")
		}, verify.RootRow, 0, 0},
		{"a root of before", func(t *testing.T, path string) {
			change(t, path, "UPDATE nodes SET sum = sum + 1 WHERE chunk = 0")
		}, verify.RootRow, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, tree := closedStorage(t, size)
			path := treePath(dir, tree.TreeId)
			test.do(t, path)
			src := inspect(t, dir, tree.TreeId)
			r, err := verify.All(t.Context(), src, nil)
			must(t, err)
			if len(r.Findings) == 0 {
				t.Fatal("not found")
			}
			f := r.Findings[0]
			t.Log(f)
			switch {
			case f.What != test.what || f.Tree != tree.TreeId || f.File != path:
				t.Errorf("found %+v", f)
			case f.Leaf != nil && *f.Leaf != test.leaf:
				t.Errorf("found leaf %d, want %d", *f.Leaf, test.leaf)
			case f.Level != nil && (*f.Level != test.level || *f.Index != test.leaf):
				t.Errorf("found node %d at level %d", *f.Index, *f.Level)
			}
		})
	}
}

// Each of several is named, and they do not hide each other.
func TestSourceFindsAll(t *testing.T) {
	dir, tree := closedStorage(t, 600)
	path := treePath(dir, tree.TreeId)
	change(t, path, "DELETE FROM leaves WHERE idx IN (3, 4, 5, 400)")
	change(t, path, "UPDATE leaves SET integrated = 1 WHERE idx IN (6, 599)")
	flipNode(t, path, 0, 100, 1)
	flipNode(t, path, 4, 20, 1)
	r, err := verify.All(t.Context(), inspect(t, dir, tree.TreeId), nil)
	must(t, err)
	var got []string
	for _, f := range r.Findings {
		about, _, _ := strings.Cut(f.String(), " in ")
		got = append(got, about)
	}
	want := "leaf 3, leaf 4, leaf 5, leaf fields of leaf 6, node 100 at level 0, node 20 at level 4, leaf 400, leaf fields of leaf 599"
	if s := strings.Join(got[:min(len(got), 8)], ", "); s != want {
		t.Errorf("found %s", s)
	}
	// The rows of the index for the four that are gone lead nowhere now.
	if len(got) != 8+4 {
		t.Errorf("%d findings: %v", len(got), got)
	}
}

func TestSourceOfSoundTree(t *testing.T) {
	for _, size := range []int{0, 1, 2, 255, 256, 257, 700} {
		dir, tree := closedStorage(t, size)
		src := inspect(t, dir, tree.TreeId)
		last := uint64(0)
		all, err := verify.All(t.Context(), src, func(done, of uint64) {
			if done <= last && of > 0 || of != uint64(size) {
				t.Errorf("progress %d of %d after %d", done, of, last)
			}
			last = done
		})
		if err != nil || len(all.Findings) > 0 || all.Leaves != uint64(size) {
			t.Errorf("size %d: %+v, %v", size, all, err)
		}
		recent, err := verify.Recent(t.Context(), src, 300, 1<<40)
		if err != nil || len(recent.Findings) > 0 || recent.Size != uint64(size) || recent.Leaves < uint64(min(size, 300)) {
			t.Errorf("size %d: %+v, %v", size, recent, err)
		}
	}
}

// The log may grow while it is read, and what a crash left in the write-ahead log is read too.
func TestSourceBesideWriter(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir, onWrite)
	tree := newTree(t, s)
	for i := range 20 {
		queue(t, s, tree, marked(2*i), marked(2*i+1))
		src, err := s.Source(tree.TreeId)
		must(t, err)
		if r, err := verify.All(t.Context(), src, nil); err != nil || len(r.Findings) > 0 || r.Leaves != uint64(2*i+2) {
			t.Fatalf("%+v, %v", r, err)
		}
		must(t, src.Close())
	}
	src, err := s.Source(tree.TreeId)
	must(t, err)
	must(t, s.Close())
	if _, _, err := src.Head(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after closing: %v", err)
	}
	must(t, src.Close())
}

func TestInspectWritesNothing(t *testing.T) {
	dir, tree := closedStorage(t, 10)
	i, err := Inspect(dir, onWrite)
	must(t, err)
	if _, err := Open(t.Context(), dir, onWrite); !errors.Is(err, ErrLocked) {
		t.Errorf("opened while it is examined: %v", err)
	}
	if got := i.Trees(); len(got) != 1 || got[0] != tree.TreeId {
		t.Errorf("trees %v", got)
	}
	src, err := i.Source(tree.TreeId)
	must(t, err)
	must(t, os.Chmod(dir, 0o500))
	defer func() { must(t, os.Chmod(dir, 0o700)) }()
	if r, err := verify.All(t.Context(), src, nil); err != nil || len(r.Findings) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	must(t, errors.Join(src.Close(), i.Close()))
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 2 {
		t.Errorf("%v", entries)
	}
}

// What is handed out to be signed is compared with what was checked when it was stored.
func TestRootChangedInMemory(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	queue(t, s, tree, "a")
	h := *mustTree(t, s, tree).head.Load()
	slr := bytes.Clone(h.slr.LogRoot)
	slr[20] ^= 1
	var root types.LogRootV1
	must(t, root.UnmarshalBinary(slr))
	h.slr.LogRoot = slr
	snap, err := s.SnapshotForTree(t.Context(), tree)
	must(t, err)
	if slr, err := snap.LatestSignedLogRoot(t.Context()); err == nil {
		t.Errorf("handed out %x", slr.LogRoot)
	}
	if err := queueOne(s, tree, "b"); err == nil {
		t.Error("built upon")
	}
}
