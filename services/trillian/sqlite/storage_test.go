package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/trillian"
	trillianlog "github.com/google/trillian/log"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"github.com/google/trillian/util/clock"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	engine "modernc.org/sqlite/lib"
)

func TestMain(m *testing.M) {
	trillianlog.InitMetrics(nil)
	if dir := os.Getenv("SIGBOX_TEST_WRITE_UNTIL_KILLED"); dir != "" {
		writeUntilKilled(dir)
		return
	}
	for name, f := range map[string]func(string) error{"SIGBOX_TEST_FILL_DISK": fillDisk, "SIGBOX_TEST_OPEN": justOpen} {
		if dir := os.Getenv(name); dir != "" {
			if err := f(dir); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(m.Run())
}

func hashLeaf(value []byte) []byte { return rfc6962.DefaultHasher.HashLeaf(value) }

func integrate(ctx context.Context, tree *trillian.Tree, bound storage.LogStorage, queued int) error {
	_, err := trillianlog.IntegrateBatch(ctx, tree, queued+256, 0, 0, clock.System, bound, quota.Noop())
	return err
}

var onWrite = Options{Sequence: integrate, HashLeaf: hashLeaf}

func newStorage(t testing.TB, dir string, opts Options) *Storage {
	t.Helper()
	if err := Create(dir); err != nil {
		t.Fatal(err)
	}
	return openStorage(t, dir, opts)
}

func openStorage(t testing.TB, dir string, opts Options) *Storage {
	t.Helper()
	s, err := Open(context.Background(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newTree makes a log and gives it the empty tree's root.
func newTree(t testing.TB, s *Storage) *trillian.Tree {
	t.Helper()
	tree, err := createLog(s)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func createLog(s *Storage) (*trillian.Tree, error) {
	ctx := context.Background()
	tree, err := storage.CreateTree(ctx, s.Admin(), &trillian.Tree{
		TreeState: trillian.TreeState_ACTIVE, TreeType: trillian.TreeType_LOG, MaxRootDuration: durationpb.New(0),
	})
	if err != nil {
		return nil, err
	}
	root, err := (&types.LogRootV1{RootHash: rfc6962.DefaultHasher.EmptyRoot(), TimestampNanos: uint64(time.Now().UnixNano())}).MarshalBinary()
	if err != nil {
		return nil, err
	}
	return tree, s.ReadWriteTransaction(ctx, tree, func(ctx context.Context, x storage.LogTreeTX) error {
		return x.StoreSignedLogRoot(ctx, &trillian.SignedLogRoot{LogRoot: root})
	})
}

func newLeaf(value string) *trillian.LogLeaf {
	hash := hashLeaf([]byte(value))
	return &trillian.LogLeaf{LeafValue: []byte(value), MerkleLeafHash: hash, LeafIdentityHash: hash, ExtraData: []byte("extra " + value)}
}

// queue queues leaves of these values and returns the results.
func queue(t testing.TB, s *Storage, tree *trillian.Tree, values ...string) []*trillian.QueuedLogLeaf {
	t.Helper()
	var leaves []*trillian.LogLeaf
	for _, v := range values {
		leaves = append(leaves, newLeaf(v))
	}
	results, err := s.QueueLeaves(t.Context(), tree, leaves, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// sequence runs one pass as a timed sequencer does.
func sequence(t testing.TB, s *Storage, tree *trillian.Tree) int {
	t.Helper()
	n, err := trillianlog.IntegrateBatch(context.Background(), tree, 1000, 0, 0, clock.System, s, quota.Noop())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func latest(t testing.TB, s *Storage, tree *trillian.Tree) *types.LogRootV1 {
	t.Helper()
	snap, err := s.SnapshotForTree(context.Background(), tree)
	if err != nil {
		t.Fatal(err)
	}
	return rootOf(t, snap)
}

func rootOf(t testing.TB, snap storage.ReadOnlyLogTreeTX) *types.LogRootV1 {
	t.Helper()
	slr, err := snap.LatestSignedLogRoot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	root := new(types.LogRootV1)
	if err := root.UnmarshalBinary(slr.LogRoot); err != nil {
		t.Fatal(err)
	}
	return root
}

// checkTree builds the whole tree anew from the leaves' values and compares every stored node, every leaf and the root.
func checkTree(t testing.TB, s *Storage, tree *trillian.Tree) *types.LogRootV1 {
	t.Helper()
	ctx := context.Background()
	snap, err := s.SnapshotForTree(ctx, tree)
	if err != nil {
		t.Fatal(err)
	}
	root := rootOf(t, snap)
	nodes := make(map[compact.NodeID][]byte)
	cr := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for next := int64(0); next < int64(root.TreeSize); {
		leaves, err := snap.GetLeavesByRange(ctx, next, 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leaves {
			if l.LeafIndex != next {
				t.Fatalf("leaf %d at %d", l.LeafIndex, next)
			}
			if err := cr.Append(hashLeaf(l.LeafValue), func(id compact.NodeID, hash []byte) { nodes[id] = hash }); err != nil {
				t.Fatal(err)
			}
			next++
		}
	}
	hash, err := cr.GetRootHash(nil)
	if err != nil {
		t.Fatal(err)
	}
	if root.TreeSize == 0 {
		hash = rfc6962.DefaultHasher.EmptyRoot()
	}
	if !bytes.Equal(hash, root.RootHash) {
		t.Fatalf("the leaves' root at size %d is %x, the stored one %x", root.TreeSize, hash, root.RootHash)
	}
	ids := make([]compact.NodeID, 0, len(nodes))
	for id := range nodes {
		ids = append(ids, id)
	}
	stored, err := snap.GetMerkleNodes(ctx, ids)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range stored {
		if !bytes.Equal(n.Hash, nodes[n.ID]) {
			t.Fatalf("node %v is %x, want %x", n.ID, n.Hash, nodes[n.ID])
		}
	}
	return root
}

// checkConsistent proves that the tree of the first root is a part of the tree of the second.
func checkConsistent(t testing.TB, s *Storage, tree *trillian.Tree, first, second *types.LogRootV1) {
	t.Helper()
	if first.TreeSize == 0 {
		return
	}
	if first.TreeSize == second.TreeSize {
		if !bytes.Equal(first.RootHash, second.RootHash) {
			t.Fatalf("two roots at size %d", first.TreeSize)
		}
		return
	}
	n, err := proof.Consistency(first.TreeSize, second.TreeSize)
	if err != nil {
		t.Fatal(err)
	}
	err = proof.VerifyConsistency(rfc6962.DefaultHasher, first.TreeSize, second.TreeSize, proveWith(t, s, tree, n), first.RootHash, second.RootHash)
	if err != nil {
		t.Fatalf("from %d to %d: %v", first.TreeSize, second.TreeSize, err)
	}
}

func checkIncluded(t testing.TB, s *Storage, tree *trillian.Tree, leaf *trillian.LogLeaf, root *types.LogRootV1) {
	t.Helper()
	n, err := proof.Inclusion(uint64(leaf.LeafIndex), root.TreeSize)
	if err != nil {
		t.Fatal(err)
	}
	err = proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(leaf.LeafIndex), root.TreeSize, hashLeaf(leaf.LeafValue), proveWith(t, s, tree, n), root.RootHash)
	if err != nil {
		t.Fatalf("leaf %d in %d: %v", leaf.LeafIndex, root.TreeSize, err)
	}
}

func proveWith(t testing.TB, s *Storage, tree *trillian.Tree, nodes proof.Nodes) [][]byte {
	t.Helper()
	snap, err := s.SnapshotForTree(context.Background(), tree)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := snap.GetMerkleNodes(context.Background(), nodes.IDs)
	if err != nil {
		t.Fatal(err)
	}
	hashes := make([][]byte, len(stored))
	for i, n := range stored {
		hashes[i] = n.Hash
	}
	hashes, err = nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
	if err != nil {
		t.Fatal(err)
	}
	return hashes
}

func code(r *trillian.QueuedLogLeaf) codes.Code { return codes.Code(r.GetStatus().GetCode()) }

func TestSequencedWhereQueued(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	queue(t, s, tree, "a", "b")
	queue(t, s, tree, "c")
	if root := checkTree(t, s, tree); root.TreeSize != 3 {
		t.Fatalf("size %d", root.TreeSize)
	}
	if n := sequence(t, s, tree); n != 0 {
		t.Fatalf("%d leaves left for the timed pass", n)
	}
}

func TestQueuedForTimedPass(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir, Options{HashLeaf: hashLeaf})
	tree := newTree(t, s)
	queue(t, s, tree, "a", "b")
	if root := checkTree(t, s, tree); root.TreeSize != 0 {
		t.Fatalf("size %d before the pass", root.TreeSize)
	}
	// What is queued survives as well as what is in the tree.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStorage(t, dir, Options{HashLeaf: hashLeaf})
	if n := sequence(t, s, tree); n != 2 {
		t.Fatalf("%d leaves sequenced", n)
	}
	if root := checkTree(t, s, tree); root.TreeSize != 2 {
		t.Fatalf("size %d after the pass", root.TreeSize)
	}
}

func TestDuplicates(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
	}{{"timed", Options{HashLeaf: hashLeaf}}, {"on write", onWrite}} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := newStorage(t, dir, test.opts)
			tree := newTree(t, s)

			// Twice in a batch, with an identity that is not the Merkle leaf hash.
			identity := sha256.Sum256([]byte("who"))
			first, second := newLeaf("first"), newLeaf("second")
			first.LeafIdentityHash, second.LeafIdentityHash = identity[:], identity[:]
			results, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{first, second}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if code(results[0]) != codes.OK || code(results[1]) != codes.AlreadyExists {
				t.Fatalf("in a batch: %v, %v", code(results[0]), code(results[1]))
			}
			again := func(when string) {
				t.Helper()
				third := newLeaf("third")
				third.LeafIdentityHash = identity[:]
				results, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{third}, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				got := results[0].Leaf
				if code(results[0]) != codes.AlreadyExists || string(got.LeafValue) != "first" || string(got.ExtraData) != "extra first" ||
					!bytes.Equal(got.MerkleLeafHash, first.MerkleLeafHash) || !bytes.Equal(got.LeafIdentityHash, identity[:]) {
					t.Fatalf("%s: %v, %v", when, code(results[0]), got)
				}
			}
			again("in another batch")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStorage(t, dir, test.opts)
			again("after reopening")
			sequence(t, s, tree)
			again("after sequencing")

			// One batch of known and new leaves.
			results = queue(t, s, tree, "new")
			if code(results[0]) != codes.OK {
				t.Fatal(code(results[0]))
			}
			results = queue(t, s, tree, "new", "newer", "newer")
			for i, want := range []codes.Code{codes.AlreadyExists, codes.OK, codes.AlreadyExists} {
				if code(results[i]) != want {
					t.Errorf("mixed batch, leaf %d: %v, want %v", i, code(results[i]), want)
				}
			}
			sequence(t, s, tree)
			if root := checkTree(t, s, tree); root.TreeSize != 3 {
				t.Errorf("size %d, want 3", root.TreeSize)
			}
		})
	}
}

// Two identities that share the eight bytes of the index are two leaves.
func TestSamePrefixIsNoDuplicate(t *testing.T) {
	for _, opts := range []Options{{}, onWrite} {
		s := newStorage(t, t.TempDir(), opts)
		tree := newTree(t, s)
		var leaves []*trillian.LogLeaf
		for i := range 4 {
			l := newLeaf(fmt.Sprint(i))
			l.LeafIdentityHash = bytes.Repeat([]byte{7}, 32)
			l.LeafIdentityHash[31] = byte(i)
			leaves = append(leaves, l)
		}
		for _, batch := range [][]*trillian.LogLeaf{leaves[:2], leaves[2:]} {
			results, err := s.QueueLeaves(t.Context(), tree, batch, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range results {
				if code(r) != codes.OK {
					t.Errorf("leaf %d: %v", i, code(r))
				}
			}
		}
		results, err := s.QueueLeaves(t.Context(), tree, leaves[3:], time.Now())
		if err != nil || code(results[0]) != codes.AlreadyExists || string(results[0].Leaf.LeafValue) != "3" {
			t.Errorf("the last one again: %v, %v", results, err)
		}
		sequence(t, s, tree)
		checkTree(t, s, tree)
	}
}

func TestGuardWindow(t *testing.T) {
	s := newStorage(t, t.TempDir(), Options{})
	tree := newTree(t, s)
	start := time.Now()
	for i := range 4 {
		if _, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{newLeaf(fmt.Sprint(i))}, start.Add(time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		cutoff time.Duration
		want   int
	}{{-time.Nanosecond, 0}, {0, 1}, {time.Minute - 1, 1}, {time.Minute, 2}, {time.Hour, 4}} {
		err := s.ReadWriteTransaction(t.Context(), tree, func(ctx context.Context, x storage.LogTreeTX) error {
			leaves, err := x.DequeueLeaves(ctx, 10, start.Add(test.cutoff))
			if len(leaves) != test.want {
				t.Errorf("cutoff %v: %d leaves, want %d", test.cutoff, len(leaves), test.want)
			}
			// None is handed out twice, and all come back when the transaction changes nothing.
			if again, err := x.DequeueLeaves(ctx, 10, start.Add(test.cutoff)); err != nil || len(again) != 0 {
				t.Errorf("cutoff %v, again: %d leaves, %v", test.cutoff, len(again), err)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestConcurrentQueueSequenceRead(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
	}{{"timed", Options{HashLeaf: hashLeaf}}, {"on write", onWrite}} {
		t.Run(test.name, func(t *testing.T) {
			s := newStorage(t, t.TempDir(), test.opts)
			tree := newTree(t, s)
			const writers, each = 8, 40
			done := make(chan struct{})
			var writing, others sync.WaitGroup
			for w := range writers {
				writing.Go(func() {
					for i := range each {
						l := newLeaf(fmt.Sprintf("%d/%d", w, i))
						if _, err := s.QueueLeaves(context.Background(), tree, []*trillian.LogLeaf{l}, time.Now()); err != nil {
							t.Error(err)
							return
						}
						if test.opts.Sequence == nil {
							continue
						}
						snap, err := s.SnapshotForTree(context.Background(), tree)
						if err != nil {
							t.Error(err)
							return
						}
						found, err := snap.GetLeavesByHash(context.Background(), [][]byte{l.MerkleLeafHash}, true)
						if err != nil || len(found) != 1 {
							t.Errorf("leaf %d/%d: %d found once written, %v", w, i, len(found), err)
						}
					}
				})
			}
			others.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
						sequence(t, s, tree)
					}
				}
			})
			for range 3 {
				others.Go(func() {
					last := latest(t, s, tree)
					for {
						select {
						case <-done:
							return
						default:
						}
						root := latest(t, s, tree)
						if root.TreeSize < last.TreeSize {
							t.Errorf("size %d after %d", root.TreeSize, last.TreeSize)
							return
						}
						checkConsistent(t, s, tree, last, root)
						last = root
					}
				})
			}
			writing.Wait()
			close(done)
			others.Wait()
			for sequence(t, s, tree) > 0 {
			}
			if root := checkTree(t, s, tree); root.TreeSize != writers*each {
				t.Errorf("size %d, want %d", root.TreeSize, writers*each)
			}
		})
	}
}

func mustTree(t testing.TB, s *Storage, of *trillian.Tree) *tree {
	t.Helper()
	open, err := s.tree(of.TreeId)
	if err != nil {
		t.Fatal(err)
	}
	return open
}

func deleteTree(s *Storage, tree *trillian.Tree) error {
	if _, err := storage.SoftDeleteTree(context.Background(), s.Admin(), tree.TreeId); err != nil {
		return err
	}
	return storage.HardDeleteTree(context.Background(), s.Admin(), tree.TreeId)
}

// cacheUsed is the number of bytes of a connection's page cache.
func cacheUsed(c *conn) int {
	if engine.Xsqlite3_db_status(c.tls, c.db, engine.SQLITE_DBSTATUS_CACHE_USED, c.out, c.out+4, 0) != engine.SQLITE_OK {
		return -1
	}
	return int(*(*int32)(pointer(c.out)))
}
