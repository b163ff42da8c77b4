package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Passing tells whether an error may be gone with the next attempt: the server
// is away, starting, stopping, out of something, or has given up one of two
// transactions that were in each other's way. Such an error leaves open
// whether a commit took place.
func Passing(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	var (
		pg      *pgconn.PgError
		connect *pgconn.ConnectError
		network net.Error
	)
	if errors.As(err, &pg) {
		switch pg.Code[:2] {
		case "08", // connection exception
			"40", // transaction rollback: deadlock, serialization
			"53", // insufficient resources: disk full, out of memory, too many connections
			"57", // operator intervention: shutdown, crash of another backend, cancelled
			"58": // system error: I/O
			return true
		}
		return pg.Code == "25006" || // read only transaction: a standby since
			pg.Code == "55P03" // lock not available
	}
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, pgx.ErrTxCommitRollback) || errors.Is(err, pgx.ErrTxClosed) || pgconn.SafeToRetry(err) ||
		connectionDied(err)
}

// connectionDied: pgconn reports a use of a connection that broke by text only.
func connectionDied(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if msg := err.Error(); msg == "conn closed" || msg == "closed pool" {
			return true
		}
	}
	return false
}

// patience is how long Retry goes on.
const patience = 8 * time.Second

// Retry runs f until it succeeds, fails with an error that is not [Passing], or
// has failed for some seconds. An attempt that failed may have been committed: f
// must have the same effect once and many times.
func Retry(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for delay := 10 * time.Millisecond; ; delay = min(2*delay, 500*time.Millisecond) {
		err := f(ctx)
		if !Passing(err) {
			return err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return err
		}
	}
}
