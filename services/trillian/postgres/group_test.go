package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/trillian"
	trillianlog "github.com/google/trillian/log"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"github.com/google/trillian/util/clock"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

func code(q *trillian.QueuedLogLeaf) codes.Code { return codes.Code(q.GetStatus().GetCode()) }

func TestQueueLeaves(t *testing.T) {
	s := newStorage(t, onWrite)
	tree := newTree(t, s)
	var many []string
	for i := range 3 * fewLeaves {
		many = append(many, fmt.Sprint("many ", i))
	}
	for _, test := range []struct {
		name   string
		values []string
		dup    []bool
		size   uint64
	}{
		{"one", []string{"a"}, []bool{false}, 1},
		{"the same", []string{"a"}, []bool{true}, 1},
		{"some new", []string{"b", "a", "c"}, []bool{false, true, false}, 3},
		{"twice in one call", []string{"d", "d"}, []bool{false, true}, 4},
		{"by way of a table", append([]string{"a", "e"}, many...), append([]bool{true, false}, make([]bool, len(many))...), uint64(5 + len(many))},
		{"none", nil, nil, uint64(5 + len(many))},
	} {
		for i, q := range queue(t, s, tree, test.values...) {
			if dup := code(q) == codes.AlreadyExists; dup != test.dup[i] || string(q.Leaf.LeafValue) != test.values[i] {
				t.Errorf("%s: %q is %v", test.name, test.values[i], q)
			}
		}
		if size := head(t, s, tree).TreeSize; size != test.size {
			t.Errorf("%s: size %d, want %d", test.name, size, test.size)
		}
	}
	bad := newLeaf("x")
	bad.LeafIdentityHash = bad.LeafIdentityHash[:31]
	if _, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{bad}, time.Now()); status.Code(err) != codes.InvalidArgument {
		t.Errorf("short hash: %v", err)
	}
}

// Queued without sequencing, as by a replica that leaves it to timed passes:
// the next write takes them along.
func TestBacklogIsTakenAlong(t *testing.T) {
	dsn := pgtest.Database(t)
	create(t, dsn)
	s := open(t, dsn, Options{})
	tree := newTree(t, s)
	queue(t, s, tree, "a", "b")
	if size := head(t, s, tree).TreeSize; size != 0 {
		t.Fatalf("size %d", size)
	}
	other := open(t, dsn, onWrite)
	queue(t, other, tree, "c")
	if values := audit(t, dsn, tree); len(values) != 3 {
		t.Errorf("%v", values)
	}
}

// What can not be sequenced is not stored either, and promised to nobody.
func TestSequencingFails(t *testing.T) {
	dsn := pgtest.Database(t)
	create(t, dsn)
	tree := newTree(t, open(t, dsn, Options{}))
	for name, sequence := range map[string]func(context.Context, *trillian.Tree, storage.LogStorage, int) error{
		"error":   func(context.Context, *trillian.Tree, storage.LogStorage, int) error { return errors.New("no") },
		"panic":   func(context.Context, *trillian.Tree, storage.LogStorage, int) error { panic("no") },
		"nothing": func(context.Context, *trillian.Tree, storage.LogStorage, int) error { return nil },
	} {
		s := open(t, dsn, Options{Sequence: sequence})
		if _, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{newLeaf(name)}, time.Now()); err == nil {
			t.Errorf("%s: acknowledged", name)
		}
		var n int
		if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM LeafData`).Scan(&n); err != nil || n != 0 {
			t.Errorf("%s: %d leaves are there, %v", name, n, err)
		}
	}
}

// Replicas write and run their timed passes at the same time. Storages share
// nothing but the database, so that these are as good as processes.
func TestReplicas(t *testing.T) {
	dsn := pgtest.Database(t)
	create(t, dsn)
	replicas := []*Storage{open(t, dsn, onWrite), open(t, dsn, onWrite), open(t, dsn, onWrite)}
	tree := newTree(t, replicas[0])
	ctx, stop := context.WithCancel(t.Context())
	var signers, writers sync.WaitGroup
	for _, s := range replicas {
		signers.Go(func() {
			for ctx.Err() == nil {
				// Refreshes the root each time: an empty batch that is signed.
				if _, err := trillianlog.IntegrateBatch(ctx, tree, 1000, 0, time.Nanosecond, clock.System, s, quota.Noop()); err != nil && ctx.Err() == nil {
					// The clock may be behind a root that another pass made.
					if status.Code(err) == codes.Unavailable {
						t.Error(err)
					}
				}
			}
		})
	}
	const each = 25
	for w := range 12 {
		s := replicas[w%len(replicas)]
		writers.Go(func() {
			for i := range each {
				for _, value := range []string{fmt.Sprintf("%d/%d", w, i), fmt.Sprintf("everybody's %d", i)} {
					q, err := s.QueueLeaves(ctx, tree, []*trillian.LogLeaf{newLeaf(value)}, time.Now())
					if err != nil {
						t.Errorf("%s: %v", value, err)
						return
					}
					// Acknowledged means integrated, whoever brought it first.
					if root, err := s.Head(tree.TreeId); err != nil {
						t.Error(err)
					} else if !provable(t, s, tree, q[0].Leaf, int64(root.TreeSize)) {
						t.Errorf("%s is not in the tree of size %d", value, root.TreeSize)
					}
				}
			}
		})
	}
	writers.Wait()
	stop()
	signers.Wait()
	if values := audit(t, dsn, tree); len(values) != 12*each+each {
		t.Errorf("%d values", len(values))
	}
}

func provable(t testing.TB, s *Storage, tree *trillian.Tree, leaf *trillian.LogLeaf, size int64) bool {
	snap, err := s.SnapshotForTree(context.Background(), tree)
	if err != nil {
		t.Error(err)
		return false
	}
	defer snap.Close()
	found, err := snap.GetLeavesByHash(context.Background(), [][]byte{hashLeaf(leaf.LeafValue)}, true)
	if err != nil {
		t.Error(err)
	}
	return len(found) == 1 && found[0].LeafIndex < size
}

func TestFlippedBit(t *testing.T) {
	s := newStorage(t, onWrite)
	tree := newTree(t, s)
	queue(t, s, tree, "sound", "flipped")
	run(t, s, `ALTER TABLE LeafData DISABLE TRIGGER append_only`, `UPDATE LeafData SET LeafValue = 'flippee' WHERE LeafValue = 'flipped'`)
	snap, err := s.SnapshotForTree(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	if _, err := snap.GetLeavesByHash(t.Context(), [][]byte{hashLeaf([]byte("sound"))}, false); err != nil {
		t.Error(err)
	}
	if _, err := snap.GetLeavesByHash(t.Context(), [][]byte{hashLeaf([]byte("flipped"))}, false); status.Code(err) != codes.DataLoss {
		t.Errorf("by hash: %v", err)
	}
	if _, err := snap.GetLeavesByRange(t.Context(), 0, 2); status.Code(err) != codes.DataLoss {
		t.Errorf("by range: %v", err)
	}
}

type anchor struct {
	sync.Mutex
	check, record error
	last          uint64
}

func (a *anchor) Seen(int64, types.LogRootV1) error { return nil }

func (a *anchor) Check(int64, types.LogRootV1) error {
	a.Lock()
	defer a.Unlock()
	return a.check
}

func (a *anchor) Record(_ int64, root types.LogRootV1) error {
	a.Lock()
	defer a.Unlock()
	a.last = root.TreeSize
	return a.record
}

func TestAnchor(t *testing.T) {
	dsn := pgtest.Database(t)
	create(t, dsn)
	a := &anchor{}
	opts := onWrite
	opts.Anchor = a
	s := open(t, dsn, opts)
	tree := newTree(t, s)
	queue(t, s, tree, "a", "b")
	if a.last != 2 {
		t.Errorf("anchored at %d", a.last)
	}
	a.check = errors.New("the database is behind")
	if _, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{newLeaf("c")}, time.Now()); !errors.Is(err, a.check) {
		t.Errorf("%v", err)
	}
	a.check, a.record = nil, errors.New("no space")
	if _, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{newLeaf("d")}, time.Now()); !errors.Is(err, a.record) {
		t.Errorf("%v", err)
	}
	a.record = nil
	queue(t, s, tree, "d")
	if values := audit(t, dsn, tree); len(values) != 3 {
		t.Errorf("%v", values)
	}
}
