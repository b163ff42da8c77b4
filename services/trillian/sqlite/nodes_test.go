package sqlite

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Sizes on both sides of every power of two up to several chunks, in batches of all sorts.
func TestNodesRoundTrip(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir, onWrite)
	tree := newTree(t, s)
	roots := []*types.LogRootV1{latest(t, s, tree)}
	next := 0
	add := func(n int) {
		values := make([]string, n)
		for i := range values {
			values[i] = fmt.Sprint(next)
			next++
		}
		queue(t, s, tree, values...)
		roots = append(roots, latest(t, s, tree))
	}
	for next < 140 {
		add(1)
	}
	for n := 2; next < 5*chunkNodes; n = n*3%97 + 1 {
		add(n)
	}
	last := checkTree(t, s, tree)
	for _, r := range roots {
		checkConsistent(t, s, tree, r, last)
	}
	for _, i := range []int64{0, 1, 2, chunkNodes/2 - 1, chunkNodes / 2, int64(next) - 1} {
		snap, err := s.SnapshotForTree(t.Context(), tree)
		if err != nil {
			t.Fatal(err)
		}
		leaves, err := snap.GetLeavesByRange(t.Context(), i, 1)
		if err != nil {
			t.Fatal(err)
		}
		checkIncluded(t, s, tree, leaves[0], last)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStorage(t, dir, onWrite)
	if again := checkTree(t, s, tree); !bytes.Equal(again.RootHash, last.RootHash) || again.TreeSize != last.TreeSize {
		t.Fatal("another root after reopening")
	}
	add(3)
	checkConsistent(t, s, tree, last, checkTree(t, s, tree))
}

func TestPositionsAreDense(t *testing.T) {
	next := uint64(0)
	cr := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for size := range uint64(1000) {
		if nodesIn(size) != next {
			t.Fatalf("%d nodes in %d leaves, want %d", nodesIn(size), size, next)
		}
		hash := make([]byte, 32)
		err := cr.Append(hash, func(id compact.NodeID, _ []byte) {
			if pos, err := position(id); err != nil || pos != next {
				t.Fatalf("node %v at %d, %v, want %d", id, pos, err, next)
			}
			next++
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []compact.NodeID{{Level: 63}, {Level: 62, Index: 1}, {Level: 0, Index: 1 << 62}} {
		if _, err := position(id); err == nil {
			t.Errorf("%v has a position", id)
		}
	}
}

func TestRootsOnlyGrow(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	queue(t, s, tree, "a", "b", "c")
	good := latest(t, s, tree)
	later := good.TimestampNanos + 1
	other := bytes.Repeat([]byte{1}, 32)
	for _, test := range []struct {
		name string
		root types.LogRootV1
	}{
		{"smaller", types.LogRootV1{TreeSize: 2, RootHash: good.RootHash, TimestampNanos: later}},
		{"another at the same size", types.LogRootV1{TreeSize: 3, RootHash: other, TimestampNanos: later}},
		{"no later", types.LogRootV1{TreeSize: 3, RootHash: good.RootHash, TimestampNanos: good.TimestampNanos}},
		{"earlier", types.LogRootV1{TreeSize: 3, RootHash: good.RootHash, TimestampNanos: 1}},
	} {
		b, err := test.root.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		err = s.ReadWriteTransaction(t.Context(), tree, func(ctx context.Context, x storage.LogTreeTX) error {
			return x.StoreSignedLogRoot(ctx, &trillian.SignedLogRoot{LogRoot: b})
		})
		if err == nil {
			t.Errorf("%s: accepted", test.name)
		}
	}
	if got := checkTree(t, s, tree); got.TimestampNanos != good.TimestampNanos {
		t.Error("a refused root was kept")
	}
}
