package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Part is one service's share of the schema: the statements that bring it
// from each version to the next, the first from nothing to version 1. A step
// that was released never changes.
type Part struct {
	Name  string
	Steps []string
}

// Errors about the schema.
var (
	// ErrEmpty means that init was never run on the database.
	ErrEmpty = errors.New("the database holds no instance")
	// ErrExists means that init was run before, perhaps not to its end.
	ErrExists = errors.New("the database holds an instance already, and init never overwrites")
	// ErrOlder means that the database waits for "sigboxd upgrade".
	ErrOlder = errors.New("the database has the schema of an older sigboxd")
	// ErrNewer means that a newer program has been here.
	ErrNewer = errors.New("the database has the schema of a newer sigboxd")
)

// lockSchema is the advisory lock that makes migrations wait for each other.
// Locks of one number are Trillian trees, those of two are named by the first.
const lockSchema = 0x73626d67

// Create makes the schema, in one transaction, and refuses if there is one.
func Create(ctx context.Context, pool *pgxpool.Pool, parts []Part) error {
	return inLock(ctx, pool, func(tx pgx.Tx) error {
		exists, err := schemaExists(ctx, tx)
		switch {
		case err != nil:
			return err
		case exists:
			return ErrExists
		}
		for _, statement := range []string{
			`CREATE SCHEMA ` + Schema,
			`CREATE TABLE schema_version (
				part    TEXT NOT NULL,
				version INTEGER NOT NULL, -- the steps before it were done too
				applied TIMESTAMPTZ NOT NULL DEFAULT now(),
				PRIMARY KEY (part, version)
			)`,
		} {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return fmt.Errorf("making the schema: %w", err)
			}
		}
		return apply(ctx, tx, parts, map[string]int{})
	})
}

// Drop removes the schema with all that is in it.
func Drop(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, `DROP SCHEMA IF EXISTS `+Schema+` CASCADE`); err != nil {
		return fmt.Errorf("removing the schema: %w", err)
	}
	return nil
}

// Upgrade brings an older schema to this program's version, in one transaction.
func Upgrade(ctx context.Context, pool *pgxpool.Pool, parts []Part) error {
	return inLock(ctx, pool, func(tx pgx.Tx) error {
		have, err := versions(ctx, tx)
		if err != nil {
			return err
		}
		if err := compare(have, parts); !errors.Is(err, ErrOlder) {
			return err
		}
		return apply(ctx, tx, parts, have)
	})
}

// CheckSchema returns nil if the schema is just this program's: ErrEmpty,
// ErrOlder or ErrNewer otherwise.
func CheckSchema(ctx context.Context, pool *pgxpool.Pool, parts []Part) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("reading the schema's version: %w", err)
	}
	defer tx.Rollback(ctx) // it has written nothing
	have, err := versions(ctx, tx)
	if err != nil {
		return err
	}
	return compare(have, parts)
}

func inLock(ctx context.Context, pool *pgxpool.Pool, f func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, 0)`, int32(lockSchema)); err != nil {
			return fmt.Errorf("locking the schema: %w", err)
		}
		return f(tx)
	})
}

func schemaExists(ctx context.Context, tx pgx.Tx) (exists bool, err error) {
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)`, Schema).Scan(&exists)
	return exists, err
}

// versions are the newest applied steps by part.
func versions(ctx context.Context, tx pgx.Tx) (map[string]int, error) {
	exists, err := schemaExists(ctx, tx)
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the schema's version: %w", err)
	case !exists:
		return nil, ErrEmpty
	}
	rows, err := tx.Query(ctx, `SELECT part, max(version) FROM schema_version GROUP BY part`)
	if err == nil {
		have := map[string]int{}
		var part string
		var version int
		_, err = pgx.ForEachRow(rows, []any{&part, &version}, func() error {
			have[part] = version
			return nil
		})
		if err == nil {
			return have, nil
		}
	}
	if pg := new(pgconn.PgError); errors.As(err, &pg) && pg.Code == "42P01" { // undefined table
		return nil, fmt.Errorf("the schema %s is not sigboxd's", Schema)
	}
	return nil, fmt.Errorf("reading the schema's version: %w", err)
}

func compare(have map[string]int, parts []Part) error {
	known := map[string]bool{}
	older := false
	for _, p := range parts {
		known[p.Name] = true
		if have[p.Name] > len(p.Steps) {
			return fmt.Errorf("%w: version %d of %s, this one knows %d", ErrNewer, have[p.Name], p.Name, len(p.Steps))
		}
		older = older || have[p.Name] < len(p.Steps)
	}
	for name := range have {
		if !known[name] {
			return fmt.Errorf("%w: it has a part %q", ErrNewer, name)
		}
	}
	if older {
		return ErrOlder
	}
	return nil
}

func apply(ctx context.Context, tx pgx.Tx, parts []Part, have map[string]int) error {
	for _, p := range parts {
		for i := have[p.Name]; i < len(p.Steps); i++ {
			// Without arguments a text of several statements goes as it is.
			if _, err := tx.Exec(ctx, p.Steps[i], pgx.QueryExecModeSimpleProtocol); err != nil {
				return fmt.Errorf("bringing %s to version %d: %w", p.Name, i+1, err)
			}
			if _, err := tx.Exec(ctx, `INSERT INTO schema_version (part, version) VALUES ($1, $2)`, p.Name, i+1); err != nil {
				return fmt.Errorf("noting version %d of %s: %w", i+1, p.Name, err)
			}
		}
	}
	return nil
}
