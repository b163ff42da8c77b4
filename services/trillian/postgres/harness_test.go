package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/trillian"
	trillianlog "github.com/google/trillian/log"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"github.com/google/trillian/util/clock"
	"github.com/jackc/pgx/v5"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

func TestMain(m *testing.M) {
	trillianlog.InitMetrics(nil)
	os.Exit(pgtest.Main(m))
}

func hashLeaf(value []byte) []byte { return rfc6962.DefaultHasher.HashLeaf(value) }

// laterThan is the system's clock, but not before a time.
type laterThan struct {
	clock.TimeSource
	floor time.Time
}

func (l laterThan) Now() time.Time {
	if t := l.TimeSource.Now(); t.After(l.floor) {
		return t
	}
	return l.floor
}

func integrate(ctx context.Context, tree *trillian.Tree, bound storage.LogStorage, queued int) error {
	snapshot, err := bound.SnapshotForTree(ctx, tree)
	if err != nil {
		return err
	}
	root, err := soundRoot(ctx, snapshot)
	if err := errors.Join(err, snapshot.Close()); err != nil {
		return err
	}
	after := laterThan{clock.System, time.Unix(0, int64(root.TimestampNanos)+int64(time.Millisecond))}
	_, err = trillianlog.IntegrateBatch(ctx, tree, queued+256, -time.Hour, 0, after, bound, quota.Noop())
	return err
}

var onWrite = Options{Sequence: integrate, HashLeaf: hashLeaf}

// create makes the schema in an empty database.
func create(t testing.TB, dsn postgres.DSN) {
	t.Helper()
	pool, err := postgres.Open(t.Context(), dsn, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := postgres.Create(t.Context(), pool, []postgres.Part{Migrations}); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dsn postgres.DSN, opts Options) *Storage {
	t.Helper()
	s, err := Open(t.Context(), dsn, opts)
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

func newStorage(t testing.TB, opts Options) *Storage {
	t.Helper()
	dsn := pgtest.Database(t)
	create(t, dsn)
	return open(t, dsn, opts)
}

// newTree makes a log and gives it the empty tree's root.
func newTree(t testing.TB, s *Storage) *trillian.Tree {
	t.Helper()
	ctx := context.Background()
	tree, err := storage.CreateTree(ctx, s.Admin(), &trillian.Tree{
		TreeState: trillian.TreeState_ACTIVE, TreeType: trillian.TreeType_LOG, MaxRootDuration: durationpb.New(0),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := storeRoot(s, tree, types.LogRootV1{RootHash: rfc6962.DefaultHasher.EmptyRoot(), TimestampNanos: uint64(time.Now().UnixNano())}); err != nil {
		t.Fatal(err)
	}
	return tree
}

func storeRoot(s storage.LogStorage, tree *trillian.Tree, root types.LogRootV1) error {
	b, err := root.MarshalBinary()
	if err != nil {
		return err
	}
	return s.ReadWriteTransaction(context.Background(), tree, func(ctx context.Context, x storage.LogTreeTX) error {
		return x.StoreSignedLogRoot(ctx, &trillian.SignedLogRoot{LogRoot: b})
	})
}

func newLeaf(value string) *trillian.LogLeaf {
	hash := hashLeaf([]byte(value))
	return &trillian.LogLeaf{LeafValue: []byte(value), MerkleLeafHash: hash, LeafIdentityHash: hash, ExtraData: []byte("extra " + value)}
}

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

func head(t testing.TB, s *Storage, tree *trillian.Tree) types.LogRootV1 {
	t.Helper()
	root, err := s.Head(tree.TreeId)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// audit derives the whole tree from the leaves, by statements of its own, and
// holds every root that was ever stored against it. It returns the values.
func audit(t testing.TB, dsn postgres.DSN, tree *trillian.Tree) map[string]int64 {
	t.Helper()
	ctx := context.Background()
	pool, err := postgres.Open(ctx, dsn, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	all := factory.NewEmptyRange(0)
	roots := [][]byte{rfc6962.DefaultHasher.EmptyRoot()}
	values := map[string]int64{}
	rows, err := pool.Query(ctx, `SELECT s.SequenceNumber, l.LeafValue FROM SequencedLeafData s JOIN LeafData l USING (TreeId, LeafIdentityHash)
		WHERE TreeId = $1 ORDER BY 1`, tree.TreeId)
	if err != nil {
		t.Fatal(err)
	}
	var number int64
	var value []byte
	_, err = pgx.ForEachRow(rows, []any{&number, &value}, func() error {
		if number != int64(all.End()) {
			return fmt.Errorf("leaf %d follows leaf %d", number, all.End())
		}
		if _, ok := values[string(value)]; ok {
			return fmt.Errorf("%q is there twice", value)
		}
		values[string(value)] = number
		if err := all.Append(hashLeaf(value), nil); err != nil {
			return err
		}
		root, err := all.GetRootHash(nil)
		roots = append(roots, root)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rows, err = pool.Query(ctx, `SELECT TreeSize, RootHash FROM TreeHead WHERE TreeId = $1 ORDER BY TreeHeadTimestamp`, tree.TreeId)
	if err != nil {
		t.Fatal(err)
	}
	var size, last int64
	var hash []byte
	if _, err = pgx.ForEachRow(rows, []any{&size, &hash}, func() error {
		switch {
		case size < last:
			return fmt.Errorf("a root of size %d after one of size %d", size, last)
		case size >= int64(len(roots)):
			return fmt.Errorf("a root of size %d over %d leaves", size, len(roots)-1)
		case !bytes.Equal(hash, roots[size]):
			return fmt.Errorf("root %x of size %d, but the leaves give %x", hash, size, roots[size])
		}
		last = size
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if last != int64(len(roots)-1) {
		t.Fatalf("the newest root is of size %d over %d leaves", last, len(roots)-1)
	}
	return values
}
