// Package postgres keeps Trillian's logs in PostgreSQL, for several replicas at
// once, by Trillian's own provider.
//
// The provider alone can roll a log back: where two signers overlap, one with
// nothing to add signs the root again that it read before the other committed.
// Here each tree has one sequencer at a time, which holds an advisory lock on
// the connection it works on, and a trigger refuses any root that is smaller
// than the newest, differs from it or is older (schema.sql).
//
// Entries that arrive together are queued, sequenced and committed in one
// transaction, and acknowledged when its commit is known. While another replica
// sequences the tree they are only queued, so that its next pass, or that of
// whoever has the lock next, takes in what has gathered on all replicas.
package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/monitoring"
	"github.com/google/trillian/storage"
	provider "github.com/google/trillian/storage/postgresql"
	"github.com/google/trillian/types"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sigbox/sigbox/internal/postgres"
)

// Connections of one replica.
const (
	readers = 8
	// writers is, for each of the two logs, who queues, who sequences, and a
	// connection whose lock is being given back.
	writers = 6
)

const (
	// headTimeout bounds a look at a tree's head.
	headTimeout = 3 * time.Second
	// lockSequencer names the advisory locks of sequencers, one for each tree.
	lockSequencer = 0x73627371
)

//go:embed schema.sql
var schema string

// Migrations is this package's part of the schema.
var Migrations = postgres.Part{Name: "trillian", Steps: []string{schema}}

// Options are what the storage is told by those who use it. The zero value
// queues leaves and leaves sequencing to others.
type Options struct {
	// Sequence, if set, is called in the transaction that queues leaves, with a
	// view of the storage that is bound to it, and makes the queued leaves part
	// of the tree. If it fails nothing is queued.
	Sequence func(ctx context.Context, tree *trillian.Tree, bound storage.LogStorage, queued int) error
	// HashLeaf, if set, is the Merkle leaf hash of a value. It is compared with
	// the stored hash when a leaf is read.
	HashLeaf func(value []byte) []byte
	// Anchor, if set, is told of each log root.
	Anchor Anchor
	// Damaged, if set, is told of what does not hold what was written to it.
	Damaged func(treeID int64, err error)
	// Metrics takes the provider's metrics; nil keeps none.
	Metrics monitoring.MetricFactory
	// Logger receives the storage's records; nil discards them.
	Logger *slog.Logger
}

// Anchor keeps the newest root that this replica has stored or shown of each
// tree, outside of the database.
type Anchor interface {
	// Check is called with the newest root before a new one is made over it,
	// while no other replica can make one. An error stops that.
	Check(treeID int64, root types.LogRootV1) error
	// Record is called with a root that is committed, before the entries under it
	// are acknowledged. An error keeps them from being.
	Record(treeID int64, root types.LogRootV1) error
	// Seen is called with a root before anybody is shown it. An error keeps it
	// from being.
	Seen(treeID int64, root types.LogRootV1) error
}

// Storage implements storage.LogStorage. Any number of them, in any number of
// processes, can work on one database.
type Storage struct {
	opts             Options
	pool, writers    *pgxpool.Pool
	reading, writing storage.LogStorage
	admin            *catalogue

	mu     sync.Mutex
	groups map[int64]*group
	closed bool
	work   sync.WaitGroup
}

var _ storage.LogStorage = (*Storage)(nil)

// Open connects to a database whose schema is up to date.
func Open(ctx context.Context, dsn postgres.DSN, opts Options) (*Storage, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Storage{opts: opts, groups: make(map[int64]*group)}
	var err error
	if s.pool, err = postgres.Open(ctx, dsn, postgres.Options{Name: "sigboxd logs", MaxConns: readers}); err != nil {
		return nil, err
	}
	s.writers, err = postgres.Open(claiming(ctx, unlocked, 0), dsn, postgres.Options{
		Name: "sigboxd sequencer", MaxConns: writers, Prepare: lock, Release: unlock,
	})
	if err != nil {
		s.pool.Close()
		return nil, err
	}
	s.reading = provider.NewLogStorage(s.pool, opts.Metrics)
	s.writing = provider.NewLogStorage(s.writers, opts.Metrics)
	s.admin = newCatalogue(provider.NewAdminStorage(s.pool))
	return s, nil
}

// claim is how a transaction wants a tree's lock: nobody else sequences the
// tree from before the transaction begins until its connection is given back.
type claim struct {
	mode int
	tree int64
}

const (
	unlocked = iota // without: it sequences nothing
	waiting         // when it is free
	trying          // if it is free, or else errBusy
	draining        // when it is free, and if anything is queued, or else errDrained
)

var (
	errBusy    = errors.New("another replica sequences the tree")
	errDrained = errors.New("everything is sequenced")
)

// claimKey finds the claim in a context.
type claimKey struct{}

func claiming(ctx context.Context, mode int, treeID int64) context.Context {
	return context.WithValue(ctx, claimKey{}, claim{mode, treeID})
}

// lock takes the lock before the transaction begins, because what the
// transaction reads first is the root. The lock is the session's: it ends with
// the connection, however that ends, and not before the server has made up its
// mind about a commit under way.
func lock(ctx context.Context, c *pgx.Conn) (bool, error) {
	want, ok := ctx.Value(claimKey{}).(claim)
	if !ok {
		return true, errors.New("a transaction was to write to no tree in particular")
	}
	class, key := int32(lockSequencer), int32(want.tree^want.tree>>32)
	var err error
	switch got := true; want.mode {
	case waiting:
		_, err = c.Exec(ctx, `SELECT pg_advisory_lock($1, $2)`, class, key)
	case trying:
		if err = c.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, $2)`, class, key).Scan(&got); err == nil && !got {
			return true, errBusy
		}
	case draining:
		// Two statements, for the second to see what was committed before the first
		// was done.
		batch := &pgx.Batch{}
		batch.Queue(`SELECT pg_advisory_lock($1, $2)`, class, key)
		batch.Queue(`SELECT EXISTS (SELECT 1 FROM Unsequenced WHERE TreeId = $1)`, want.tree).QueryRow(func(row pgx.Row) error { return row.Scan(&got) })
		if err = c.SendBatch(ctx, batch).Close(); err == nil && !got {
			return unlock(c), errDrained
		}
	}
	if err != nil {
		return false, fmt.Errorf("waiting for the right to sequence: %w", err)
	}
	return true, nil
}

func unlock(c *pgx.Conn) bool {
	ctx, cancel := context.WithTimeout(context.Background(), headTimeout)
	defer cancel()
	_, err := c.Exec(ctx, `SELECT pg_advisory_unlock_all()`)
	return err == nil // or else the connection goes, and the lock with it
}

// Admin is the catalogue of trees.
func (s *Storage) Admin() storage.AdminStorage { return s.admin }

// Head returns the newest log root. Before the tree is initialised it is the
// zero root.
func (s *Storage) Head(treeID int64) (types.LogRootV1, error) {
	ctx, cancel := context.WithTimeout(context.Background(), headTimeout)
	defer cancel()
	var root types.LogRootV1
	var size, at int64
	err := s.pool.QueryRow(ctx, `SELECT TreeSize, RootHash, TreeHeadTimestamp FROM TreeHead
		WHERE TreeId = $1 ORDER BY TreeHeadTimestamp DESC LIMIT 1`, treeID).Scan(&size, &root.RootHash, &at)
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := storage.GetTree(ctx, s.admin, treeID); err != nil {
			return root, s.answer(ctx, err)
		}
		return root, nil
	}
	root.TreeSize, root.TimestampNanos = uint64(size), uint64(at)
	return root, s.answer(ctx, err)
}

// Had tells whether a tree has had a root. All that there were are kept.
func (s *Storage) Had(treeID int64, size uint64, hash []byte) (had bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), headTimeout)
	defer cancel()
	err = s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM TreeHead WHERE TreeId = $1 AND TreeSize = $2 AND RootHash = $3)`,
		treeID, int64(size), hash).Scan(&had)
	return had, s.answer(ctx, err)
}

// Usage returns the bytes that all logs take together: they share tables.
func (s *Storage) Usage(int64) (n int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), headTimeout)
	defer cancel()
	err = s.pool.QueryRow(ctx, `SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = current_schema() AND c.relname IN ('leafdata', 'sequencedleafdata', 'subtree', 'treehead', 'unsequenced')`).Scan(&n)
	return n, s.answer(ctx, err)
}

// Fatal never receives: a server that is away may come back, and what it has
// then is the truth.
func (s *Storage) Fatal() <-chan error { return nil }

// Close waits for commits under way and disconnects.
func (s *Storage) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.work.Wait()
	s.writers.Close()
	s.pool.Close()
	return nil
}

// begin counts a piece of work that Close waits for.
func (s *Storage) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.work.Add(1)
	return nil
}

// CheckDatabaseAccessible asks the server.
func (s *Storage) CheckDatabaseAccessible(ctx context.Context) error {
	return s.answer(ctx, s.pool.Ping(ctx))
}

// GetActiveLogIDs returns the logs that take entries or still have some to
// integrate.
func (s *Storage) GetActiveLogIDs(ctx context.Context) ([]int64, error) {
	ids, err := s.reading.GetActiveLogIDs(ctx)
	return ids, s.answer(ctx, err)
}

// SnapshotForTree reads without a lock. An uninitialised tree comes with
// storage.ErrTreeNeedsInit.
func (s *Storage) SnapshotForTree(ctx context.Context, tree *trillian.Tree) (storage.ReadOnlyLogTreeTX, error) {
	tx, err := s.reading.SnapshotForTree(ctx, tree)
	switch {
	case errors.Is(err, storage.ErrTreeNeedsInit):
		return tx, err
	case err != nil:
		return nil, s.answer(ctx, err)
	}
	root, err := soundRoot(ctx, tx)
	if err == nil && s.opts.Anchor != nil {
		err = s.opts.Anchor.Seen(tree.GetTreeId(), root)
	}
	if err != nil {
		return nil, errors.Join(s.answer(ctx, err), tx.Close())
	}
	return &snapshot{tx, s, tree.GetTreeId()}, nil
}

// ReadWriteTransaction runs f while nobody else writes to the tree and commits
// what it did. An error of the commit leaves open what became of it.
func (s *Storage) ReadWriteTransaction(ctx context.Context, tree *trillian.Tree, f storage.LogTXFunc) error {
	if err := s.begin(); err != nil {
		return s.answer(ctx, err)
	}
	defer s.work.Done()
	_, err := s.transact(ctx, waiting, tree, f)
	return s.answer(ctx, err)
}

// AddSequencedLeaves stores leaves of a pre-ordered log at their indices.
func (s *Storage) AddSequencedLeaves(ctx context.Context, tree *trillian.Tree, leaves []*trillian.LogLeaf, at time.Time) ([]*trillian.QueuedLogLeaf, error) {
	if err := s.begin(); err != nil {
		return nil, s.answer(ctx, err)
	}
	defer s.work.Done()
	out, err := s.writing.AddSequencedLeaves(claiming(ctx, waiting, tree.GetTreeId()), tree, leaves, at)
	return out, s.answer(ctx, err)
}
