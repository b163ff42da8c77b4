package sqlite

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	engine "modernc.org/sqlite/lib"

	"github.com/sigbox/sigbox/internal/folder"
)

// Reasons for which Create and Open refuse a folder. They are wrapped with the file or folder they are about.
var (
	// ErrMissing: a file that should be there is not. Nothing is made in its place, as that would be another log.
	ErrMissing = errors.New("storage is missing")
	// ErrExists: Create was asked to make storage where there is some.
	ErrExists = errors.New("storage exists already")
	// ErrLocked: another process has the folder.
	ErrLocked = folder.ErrLocked
	// ErrReadOnly: the folder or a file in it can not be written.
	ErrReadOnly = folder.ErrReadOnly
	// ErrNetwork: locks and fsync can not be relied on where the folder is.
	ErrNetwork = folder.ErrNetwork
	// ErrForeign: the file is a database of something else, of another tree, or no database at all.
	ErrForeign = errors.New("not a file of this storage")
	// ErrNewer: a later version of this program has written the file.
	ErrNewer = errors.New("storage has a newer schema")
	// ErrDamaged: what the file holds contradicts itself.
	ErrDamaged = errors.New("storage is damaged")
	// ErrClosed: the storage has been closed.
	ErrClosed = errors.New("storage is closed")
)

// fatalError says that writing has ended for good, because what is on the disk is no longer known.
type fatalError struct{ cause error }

func (e *fatalError) Error() string {
	return fmt.Sprintf("storage has stopped after an error that leaves its state unknown: %v", e.cause)
}

func (e *fatalError) Unwrap() error { return e.cause }

// GRPCStatus makes the error one that clients may try again elsewhere or later.
func (e *fatalError) GRPCStatus() *status.Status { return status.New(codes.Unavailable, e.Error()) }

// recoverable tells whether a failed transaction leaves nothing behind once it is rolled back. Everything not
// listed is taken to be fatal.
func recoverable(err error) bool {
	var e *engineError
	if !errors.As(err, &e) {
		return true // not SQLite's: the caller's own refusal
	}
	switch e.primary() {
	case engine.SQLITE_FULL, engine.SQLITE_NOMEM, engine.SQLITE_BUSY, engine.SQLITE_CONSTRAINT, engine.SQLITE_TOOBIG:
		return true
	}
	return false
}

// damage tells whether the error says that a file does not hold what was written to it.
func damage(err error) bool {
	var e *engineError
	return errors.Is(err, ErrDamaged) || errors.As(err, &e) && (e.primary() == engine.SQLITE_CORRUPT || e.primary() == engine.SQLITE_NOTADB)
}

// undoable tells whether a transaction can be rolled back after the error. undo proves that it was.
func undoable(err error) bool { return recoverable(err) || damage(err) }

// answer turns an error of the engine into one with a status for the caller of the log server.
func answer(err error) error {
	var stopped *fatalError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &stopped):
		return stopped
	case errors.Is(err, ErrClosed):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.Is(err, ErrDamaged):
		return status.Error(codes.DataLoss, err.Error())
	}
	var e *engineError
	if !errors.As(err, &e) {
		return err
	}
	switch e.primary() {
	case engine.SQLITE_FULL:
		return status.Errorf(codes.ResourceExhausted, "no space to store the entry: %v", err)
	case engine.SQLITE_NOMEM, engine.SQLITE_BUSY:
		return status.Error(codes.Unavailable, err.Error())
	case engine.SQLITE_TOOBIG:
		return status.Error(codes.InvalidArgument, err.Error())
	case engine.SQLITE_CORRUPT, engine.SQLITE_NOTADB:
		return status.Errorf(codes.DataLoss, "%v: %v", ErrDamaged, err)
	}
	return status.Error(codes.Internal, err.Error())
}
