package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sigbox/sigbox/tuf"
)

// repositories is where the TUF repository is kept.
type repositories interface {
	// load reads and verifies it.
	load(ctx context.Context) (*tuf.Repository, error)
	// renew has change make the next version and keeps that before it returns
	// it. Where there is nothing to do change returns what it is given. prev is
	// the version known here; another replica may have been quicker.
	renew(ctx context.Context, prev *tuf.Repository, change func(*tuf.Repository) (*tuf.Repository, error)) (*tuf.Repository, error)
	// newest is prev, or what another replica has put in its place.
	newest(ctx context.Context, prev *tuf.Repository) (*tuf.Repository, error)
}

// tufFolder keeps the repository in a folder, for this process alone.
type tufFolder string

func (f tufFolder) load(context.Context) (*tuf.Repository, error) { return tuf.Load(string(f)) }

func (f tufFolder) renew(_ context.Context, prev *tuf.Repository, change func(*tuf.Repository) (*tuf.Repository, error)) (*tuf.Repository, error) {
	next, err := change(prev)
	if err != nil || next == prev {
		return prev, err
	}
	// Saved before it is served: a version that clients have seen is never
	// forgotten.
	if err := tuf.Save(string(f), next); err != nil {
		return prev, err
	}
	return next, nil
}

func (tufFolder) newest(_ context.Context, prev *tuf.Repository) (*tuf.Repository, error) {
	return prev, nil
}

// tufTable keeps the repository in the database, for all replicas.
type tufTable struct{ *database }

// lockTUF is the advisory lock that makes renewals wait for each other.
const lockTUF = 0x73627466

// timestampFile is the file that leads to the others: where it is the same, all
// are.
const timestampFile = "timestamp.json"

func (t tufTable) load(ctx context.Context) (r *tuf.Repository, err error) {
	// One snapshot, so that the files belong together.
	err = pgx.BeginTxFunc(ctx, t.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		r, err = t.read(ctx, tx)
		return err
	})
	return r, err
}

func (tufTable) read(ctx context.Context, tx pgx.Tx) (*tuf.Repository, error) {
	rows, err := tx.Query(ctx, `SELECT name, data FROM tuf_file`)
	if err != nil {
		return nil, fmt.Errorf("reading the TUF repository: %w", err)
	}
	files := map[string][]byte{}
	var name string
	var data []byte
	if _, err := pgx.ForEachRow(rows, []any{&name, &data}, func() error {
		files[name] = bytes.Clone(data)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading the TUF repository: %w", err)
	}
	return tuf.Parse(files)
}

// create writes the first version.
func (t tufTable) create(ctx context.Context, r *tuf.Repository) error {
	return pgx.BeginFunc(ctx, t.pool, func(tx pgx.Tx) error { return t.write(ctx, tx, r) })
}

func (tufTable) write(ctx context.Context, tx pgx.Tx, r *tuf.Repository) error {
	batch := &pgx.Batch{}
	var names []string
	for name, data := range r.Files() {
		names = append(names, name)
		batch.Queue(`INSERT INTO tuf_file (name, data) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET data = excluded.data`, name, data)
	}
	batch.Queue(`DELETE FROM tuf_file WHERE name <> ALL ($1)`, names)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("saving the TUF repository: %w", err)
	}
	return nil
}

func (t tufTable) renew(ctx context.Context, prev *tuf.Repository, change func(*tuf.Repository) (*tuf.Repository, error)) (*tuf.Repository, error) {
	next := prev
	err := pgx.BeginFunc(ctx, t.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, 0)`, int32(lockTUF)); err != nil {
			return fmt.Errorf("locking the TUF repository: %w", err)
		}
		have, err := t.read(ctx, tx)
		if err != nil {
			return err
		}
		if bytes.Equal(have.Files()[timestampFile], prev.Files()[timestampFile]) {
			have = prev
		}
		if next, err = change(have); err != nil || next == have {
			return err
		}
		return t.write(ctx, tx, next)
	})
	if err != nil {
		return prev, err
	}
	return next, nil
}

func (t tufTable) newest(ctx context.Context, prev *tuf.Repository) (*tuf.Repository, error) {
	var data []byte
	err := t.pool.QueryRow(ctx, `SELECT data FROM tuf_file WHERE name = $1`, timestampFile).Scan(&data)
	if errors.Is(err, pgx.ErrNoRows) {
		return prev, errors.New("reading the TUF repository: it is gone")
	}
	if err != nil {
		return prev, fmt.Errorf("reading the TUF repository: %w", err)
	}
	if bytes.Equal(data, prev.Files()[timestampFile]) {
		return prev, nil
	}
	next, err := t.load(ctx)
	if err != nil {
		return prev, err
	}
	return next, nil
}
