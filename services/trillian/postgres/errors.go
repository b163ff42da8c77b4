package postgres

import (
	"context"
	"errors"

	"github.com/google/trillian/storage"
	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sigbox/sigbox/internal/postgres"
)

// ErrClosed means that the storage was closed.
var ErrClosed = errors.New("the logs' storage is closed")

// refusedRoot is the guard's own code.
const refusedRoot = "SBX01"

// passing tells whether another attempt may succeed.
func passing(err error) bool {
	return postgres.Passing(err) || errors.Is(err, errNoRoot) || status.Code(err) == codes.Aborted // the provider's word for a deadlock
}

// answer turns an error of the database into one with a status for the caller
// of the log server.
func (s *Storage) answer(ctx context.Context, err error) error {
	var pg *pgconn.PgError
	switch {
	case err == nil, errors.Is(err, storage.ErrTreeNeedsInit):
		return err
	case errors.Is(err, ErrClosed):
		return status.Error(codes.Unavailable, err.Error())
	case errors.As(err, &pg) && pg.Code == refusedRoot:
		return status.Errorf(codes.FailedPrecondition, "the database refused a root: %s", pg.Message)
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case passing(err):
		return status.Errorf(codes.Unavailable, "the database: %v", err)
	}
	return err
}
