package issuer

import (
	"context"
	"crypto/rand"
	_ "embed"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/sigbox/sigbox/internal/postgres"
)

//go:embed postgres.sql
var postgresSchema string

// Migrations is the issuers' part of the schema of a PostgreSQL database.
var Migrations = postgres.Part{Name: "issuer", Steps: []string{postgresSchema}}

// postgresStore is Dex's storage in a PostgreSQL database, which several
// replicas may share: an update replaces what it has read or starts again.
func postgresStore(pool *pgxpool.Pool) *store { return &store{stdlib.OpenDBFromPool(pool)} }

// ledger is the redeemed tokens in a PostgreSQL database: an id is redeemed
// once among all replicas.
type ledger struct {
	pool   *pgxpool.Pool
	closed atomic.Bool
}

// memory is how long an expired token is remembered beyond its end. The clock
// that counts is the database's.
const memory = 5 * time.Minute

// redeem implements redeemed. An attempt whose outcome is unknown is made
// again: the claim tells its own row from another call's.
func (l *ledger) redeem(ctx context.Context, id tokenID, expiry int64) error {
	if l.closed.Load() {
		return fs.ErrClosed
	}
	claim := make([]byte, 16)
	rand.Read(claim) // never fails, or the runtime ends the program
	var mine, forgotten bool
	err := postgres.Retry(ctx, func(ctx context.Context) error {
		return l.pool.QueryRow(ctx, `WITH forgotten AS (
				SELECT $2 <= greatest(expiry, extract(epoch FROM now())::bigint) AS it FROM redeemed_forgotten
			), mine AS (
				INSERT INTO redeemed_token (id, expiry, claim) SELECT $1, $2, $3 FROM forgotten WHERE NOT it
				ON CONFLICT (id) DO UPDATE SET expiry = excluded.expiry WHERE redeemed_token.claim = excluded.claim
				RETURNING 1
			)
			SELECT EXISTS (SELECT 1 FROM mine), it FROM forgotten`, id[:], expiry, claim).Scan(&mine, &forgotten)
	})
	switch {
	case err != nil:
		return fmt.Errorf("redeeming a token: %w", err)
	case mine:
		return nil
	case forgotten:
		return ErrExpired
	}
	return ErrReplayed
}

// forget implements redeemed. Each replica does it, and it does no harm.
func (l *ledger) forget(time.Time) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		var expired int64
		err := tx.QueryRow(ctx, `UPDATE redeemed_forgotten SET expiry = greatest(expiry, extract(epoch FROM now())::bigint - $1) RETURNING expiry`,
			int64(memory.Seconds())).Scan(&expired)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DELETE FROM redeemed_token WHERE expiry <= $1`, expired)
		return err
	})
	if postgres.Passing(err) {
		return nil // the next time will do
	}
	if err != nil {
		return fmt.Errorf("forgetting redeemed tokens: %w", err)
	}
	return nil
}

// failed never is: a server that was away is used again when it is back.
func (*ledger) failed() <-chan struct{} { return nil }

// close leaves the pool open.
func (l *ledger) close() error {
	l.closed.Store(true)
	return nil
}
