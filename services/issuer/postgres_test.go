package issuer

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// NewDatabase is a database with the issuers' tables.
func NewDatabase(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), pgtest.Database(t), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := postgres.Create(t.Context(), pool, []postgres.Part{Migrations}); err != nil {
		t.Fatal(err)
	}
	return pool
}

// The ledger keeps only what it must remember, and a clock that is set back
// does not revive what it dropped.
func TestLedgerForgets(t *testing.T) {
	pool := NewDatabase(t)
	l := &ledger{pool: pool}
	now := time.Now().Unix()
	for n, expiry := range []int64{now + 60, now + 3600} {
		if err := l.redeem(t.Context(), numbered(uint64(n)), expiry); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.redeem(t.Context(), numbered(2), now-1); !errors.Is(err, ErrExpired) {
		t.Errorf("an expired one: %v", err)
	}
	count := func() (n int) {
		if err := pool.QueryRow(context.Background(), `SELECT count(*) FROM redeemed_token`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := l.forget(time.Now()); err != nil || count() != 2 {
		t.Errorf("%d remembered too early, %v", count(), err)
	}
	// An hour later, and then the clock is right again.
	if _, err := pool.Exec(t.Context(), `UPDATE redeemed_forgotten SET expiry = $1`, now+60); err != nil {
		t.Fatal(err)
	}
	if err := l.forget(time.Now()); err != nil || count() != 1 {
		t.Errorf("%d remembered, %v", count(), err)
	}
	if err := l.redeem(t.Context(), numbered(0), now+60); !errors.Is(err, ErrExpired) {
		t.Errorf("a forgotten one: %v", err)
	}
	if err := l.redeem(t.Context(), numbered(1), now+3600); !errors.Is(err, ErrReplayed) {
		t.Errorf("a remembered one: %v", err)
	}
}
