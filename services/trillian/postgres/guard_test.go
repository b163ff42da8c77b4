package postgres

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/trillian"
	trillianlog "github.com/google/trillian/log"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/storage"
	provider "github.com/google/trillian/storage/postgresql"
	"github.com/google/trillian/types"
	"github.com/google/trillian/util/clock"
	"github.com/jackc/pgx/v5"

	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

// slow is the provider's storage with a signer on it that reads the root and is
// then held up until it is let go.
type slow struct {
	storage.LogStorage
	read, goOn chan struct{}
}

func (s slow) ReadWriteTransaction(ctx context.Context, tree *trillian.Tree, f storage.LogTXFunc) error {
	return s.LogStorage.ReadWriteTransaction(ctx, tree, func(ctx context.Context, tx storage.LogTreeTX) error {
		close(s.read)
		<-s.goOn
		return f(ctx, tx)
	})
}

// Upstream's signers on upstream's provider, without the lock that keeps ours
// apart: the slower one finds nothing to add and signs the root anew that it
// read before the other committed. Only the trigger stands in the way.
func TestOverlappingSigners(t *testing.T) {
	for _, guarded := range []bool{true, false} {
		t.Run(map[bool]string{true: "guarded", false: "upstream alone"}[guarded], func(t *testing.T) {
			s := newStorage(t, Options{})
			tree := newTree(t, s)
			if !guarded {
				run(t, s, `DROP TRIGGER guard ON TreeHead`)
			}
			raw := provider.NewLogStorage(s.pool, nil)
			sign := func(on storage.LogStorage) error {
				_, err := trillianlog.IntegrateBatch(context.Background(), tree, 1000, 0, time.Nanosecond, clock.System, on, quota.Noop())
				return err
			}
			queue(t, s, tree, "first")
			if err := sign(raw); err != nil {
				t.Fatal(err)
			}
			before := head(t, s, tree)

			held := slow{raw, make(chan struct{}), make(chan struct{})}
			done := make(chan error)
			go func() { done <- sign(held) }()
			<-held.read
			queue(t, s, tree, "second")
			if err := sign(raw); err != nil {
				t.Fatal(err)
			}
			close(held.goOn)
			err := <-done

			size := head(t, s, tree).TreeSize
			switch {
			case guarded && (err == nil || !strings.Contains(err.Error(), "a root of size 1 after one of size 2") || size != 2):
				t.Errorf("size %d, %v", size, err)
			case !guarded && (err != nil || size != before.TreeSize):
				t.Errorf("size %d, %v: upstream no longer rolls the log back; is the guard still needed?", size, err)
			}
		})
	}
}

// The same two signers on our storage: one waits for the other.
func TestSequencersTakeTurns(t *testing.T) {
	dsn := pgtest.Database(t)
	create(t, dsn)
	a, b := open(t, dsn, Options{}), open(t, dsn, Options{})
	tree := newTree(t, a)
	queue(t, a, tree, "first")
	held := slow{a, make(chan struct{}), make(chan struct{})}
	signed := make(chan error, 2)
	sign := func(on storage.LogStorage) {
		_, err := trillianlog.IntegrateBatch(context.Background(), tree, 1000, 0, time.Nanosecond, clock.System, on, quota.Noop())
		signed <- err
	}
	go sign(held)
	<-held.read
	go sign(b)
	waiting := func() (n int) {
		row := a.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
		if err := row.Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for deadline := time.Now().Add(10 * time.Second); waiting() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the second sequencer does not wait")
		}
	}
	close(held.goOn)
	for range 2 {
		if err := <-signed; err != nil {
			t.Error(err)
		}
	}
	if size := head(t, a, tree).TreeSize; size != 1 {
		t.Errorf("size %d", size)
	}
	audit(t, dsn, tree)
}

func TestGuardRefuses(t *testing.T) {
	s := newStorage(t, onWrite)
	tree := newTree(t, s)
	queue(t, s, tree, "a", "b")
	now := head(t, s, tree)
	later := now.TimestampNanos + uint64(time.Second)
	other := append([]byte{}, now.RootHash...)
	other[0] ^= 1
	for name, test := range map[string]struct {
		root types.LogRootV1
		want string
	}{
		"smaller":   {types.LogRootV1{TreeSize: 1, RootHash: now.RootHash, TimestampNanos: later}, "a root of size 1 after one of size 2"},
		"different": {types.LogRootV1{TreeSize: 2, RootHash: other, TimestampNanos: later}, "a second root of size 2"},
		"older":     {types.LogRootV1{TreeSize: 2, RootHash: now.RootHash, TimestampNanos: now.TimestampNanos - 1}, "after one with time"},
		"as old":    {types.LogRootV1{TreeSize: 3, RootHash: other, TimestampNanos: now.TimestampNanos}, "after one with time"},
		"refreshed": {types.LogRootV1{TreeSize: 2, RootHash: now.RootHash, TimestampNanos: later}, ""},
	} {
		err := storeRoot(s, tree, test.root)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}

	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	// In another isolation level the guard could not see what others did.
	tx, err := conn.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	_, err = tx.Exec(t.Context(), `INSERT INTO TreeHead VALUES ($1, $2, 3, $3, '')`, tree.TreeId, int64(later+2e9), other)
	if err == nil || !strings.Contains(err.Error(), "read committed") {
		t.Errorf("repeatable read: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		`UPDATE TreeHead SET TreeSize = 0`, `DELETE FROM TreeHead`, `TRUNCATE TreeHead`,
		`UPDATE LeafData SET LeafValue = ''`, `DELETE FROM LeafData`, `TRUNCATE LeafData CASCADE`,
		`UPDATE SequencedLeafData SET SequenceNumber = 7`, `DELETE FROM SequencedLeafData`, `TRUNCATE SequencedLeafData`,
	} {
		if _, err := conn.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", statement, err)
		}
	}
}

func run(t *testing.T, s *Storage, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := s.pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
}
