package store

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sigbox/sigbox/internal/postgres"
)

//go:embed postgres.sql
var postgresSchema string

// Migrations is this package's part of the schema of a PostgreSQL database.
var Migrations = postgres.Part{Name: "rekor", Steps: []string{postgresSchema}}

// Postgres is the store in a PostgreSQL database, which several replicas may
// share. It is safe for concurrent use.
type Postgres struct{ pool *pgxpool.Pool }

// OpenPostgres uses a database whose schema is up to date. The pool stays the
// caller's.
func OpenPostgres(pool *pgxpool.Pool) *Postgres { return &Postgres{pool} }

// Put makes the record durable. Putting it again changes nothing, so that an
// attempt whose outcome is unknown is made once more. An error says only that
// the record is not known to be durable.
func (s *Postgres) Put(ctx context.Context, r Record) error {
	keys := keyIDs(r.Keys)
	// One statement is one transaction.
	err := postgres.Retry(ctx, func(ctx context.Context) error {
		if r.AttestationKey == "" {
			_, err := s.pool.Exec(ctx, `INSERT INTO entry_key (key, entry) SELECT unnest($1::bytea[]), $2 ON CONFLICT DO NOTHING`, keys, r.Entry[:])
			return err
		}
		_, err := s.pool.Exec(ctx, `WITH kept AS (INSERT INTO attestation (key, body) VALUES ($3, $4) ON CONFLICT DO NOTHING)
			INSERT INTO entry_key (key, entry) SELECT unnest($1::bytea[]), $2 ON CONFLICT DO NOTHING`, keys, r.Entry[:], r.AttestationKey, r.Attestation)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing the search index: %w", err)
	}
	return nil
}

// Any is [Store.Any].
func (s *Postgres) Any(ctx context.Context, criteria []Criterion, limit int) ([]EntryID, error) {
	var all Criterion
	for _, c := range criteria {
		all = append(all, c...)
	}
	return s.find(ctx, `SELECT DISTINCT entry FROM entry_key WHERE key = ANY($1) LIMIT $2`, limit, keyIDs(all), limit+1)
}

// All is [Store.All].
func (s *Postgres) All(ctx context.Context, criteria []Criterion, limit int) ([]EntryID, error) {
	if len(criteria) == 0 {
		return nil, nil
	}
	found, err := s.find(ctx, `SELECT DISTINCT entry FROM entry_key WHERE key = ANY($1) LIMIT $2`, limit, keyIDs(criteria[0]), limit+1)
	for _, c := range criteria[1:] {
		if err != nil || len(found) == 0 {
			return nil, err
		}
		candidates := make([][]byte, len(found))
		for i := range found {
			candidates[i] = found[i][:]
		}
		found, err = s.find(ctx, `SELECT DISTINCT entry FROM entry_key WHERE key = ANY($1) AND entry = ANY($2)`, limit, keyIDs(c), candidates)
	}
	return found, err
}

func keyIDs(keys []string) [][]byte {
	ids := make([][]byte, len(keys))
	for i, key := range keys {
		id := keyID(key)
		ids[i] = id[:]
	}
	return ids
}

func (s *Postgres) find(ctx context.Context, query string, limit int, args ...any) ([]EntryID, error) {
	rows, err := s.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("searching the index: %w", err)
	}
	var found []EntryID
	var raw []byte
	if _, err := pgx.ForEachRow(rows, []any{&raw}, func() error {
		if len(raw) != len(EntryID{}) {
			return fmt.Errorf("an entry's ID has %d bytes", len(raw))
		}
		found = append(found, EntryID(raw))
		return nil
	}); err != nil {
		return nil, fmt.Errorf("searching the index: %w", err)
	}
	if len(found) > limit {
		return nil, ErrTooMany
	}
	return found, nil
}

// Attestation is [Store.Attestation].
func (s *Postgres) Attestation(ctx context.Context, key string) ([]byte, error) {
	var body []byte
	err := s.pool.QueryRow(ctx, `SELECT body FROM attestation WHERE key = $1`, key).Scan(&body)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("attestation %q: %w", key, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("reading attestation %q: %w", key, err)
	}
	return body, nil
}

// Failed never is: a server that was away is used again when it is back.
func (s *Postgres) Failed() <-chan struct{} { return nil }

// Err is nil, for the same reason.
func (s *Postgres) Err() error { return nil }

// Close leaves the pool open.
func (s *Postgres) Close() error { return nil }
