package issuer

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/dexidp/dex/storage"
	_ "modernc.org/sqlite" // the driver named "sqlite"

	"github.com/sigbox/sigbox/internal/durable"
)

// store is Dex's storage in one SQLite table: an object is its kind, its id, a
// JSON value, and for the kinds that are collected the time after which it may
// go. Nothing is ever looked up by what is inside a value. Dex's own SQLite
// storage needs cgo, and its other SQL storage a schema compiler; this has
// neither, and the same statements run on PostgreSQL.
type store struct{ db *sql.DB }

var _ storage.Storage = (*store)(nil)

// schemaVersion is in the file's user_version.
const schemaVersion = 1

const schema = `
CREATE TABLE object (
	kind     TEXT NOT NULL,
	id       TEXT NOT NULL,
	revision INTEGER NOT NULL, -- grows with each change of the value
	expiry   INTEGER,          -- seconds since 1970; NULL: never collected
	value    BLOB NOT NULL,
	PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX object_expiry ON object (expiry) WHERE expiry IS NOT NULL;
PRAGMA user_version = 1;
`

func storePath(dir string) string { return filepath.Join(dir, "people.db") }

// createStore makes an empty store under another name first, so that the name
// never stands for half a file.
func createStore(ctx context.Context, dir string) (err error) {
	path := storePath(dir)
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	tmp, err := os.CreateTemp(dir, ".people.db.tmp-*") // mode 0600, which SQLite gives its other files too
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	db, err := openDB(ctx, tmp.Name())
	if err == nil {
		_, err = db.ExecContext(ctx, schema)
		err = errors.Join(err, db.Close()) // folds the write-ahead log into the file
	}
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil { // fails on an existing name
		return err
	}
	return errors.Join(os.Remove(tmp.Name()), durable.SyncDir(dir))
}

func openStore(ctx context.Context, dir string) (*store, error) {
	path := storePath(dir)
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	db, err := openDB(ctx, path)
	if err != nil {
		return nil, err
	}
	var version int
	err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
	switch {
	case err != nil:
	case version == 0:
		err = fmt.Errorf("%s was never finished: remove it and run init for it", path)
	case version != schemaVersion:
		err = fmt.Errorf("%s has schema version %d, this program knows %d: it was made by another release", path, version, schemaVersion)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &store{db}, nil
}

// openDB opens an existing file for this process alone. What durability hangs
// on is read back.
func openDB(ctx context.Context, path string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dsn := url.URL{Scheme: "file", Path: abs, RawQuery: url.Values{
		"mode":    {"rw"},
		"_pragma": {"journal_mode(wal)", "synchronous(full)", "locking_mode(exclusive)", "journal_size_limit(1048576)"},
	}.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, err
	}
	// One connection: SQLite has one writer, a sign-in needs a handful of
	// statements, and an exclusive lock belongs to its connection.
	db.SetMaxOpenConns(1)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "locking_mode": "exclusive"} {
		var got string
		if err := db.QueryRowContext(ctx, "PRAGMA "+pragma).Scan(&got); err != nil {
			return nil, errors.Join(fmt.Errorf("opening %s, is it in use by another process: %w", path, err), db.Close())
		}
		if got != want {
			return nil, errors.Join(fmt.Errorf("%s: %s is %q, not %q", path, pragma, got, want), db.Close())
		}
	}
	// An empty write transaction takes the lock now rather than with the first sign-in.
	if _, err := db.ExecContext(ctx, "BEGIN IMMEDIATE; COMMIT"); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s, is it in use by another process: %w", path, err), db.Close())
	}
	return db, nil
}

// kind names a type of object and says how its values are collected.
type kind[T any] struct {
	name   string
	expiry func(T) time.Time // nil: never
}

var (
	authRequests    = kind[storage.AuthRequest]{"auth_request", func(v storage.AuthRequest) time.Time { return v.Expiry }}
	authCodes       = kind[storage.AuthCode]{"auth_code", func(v storage.AuthCode) time.Time { return v.Expiry }}
	deviceRequests  = kind[storage.DeviceRequest]{"device_request", func(v storage.DeviceRequest) time.Time { return v.Expiry }}
	deviceTokens    = kind[storage.DeviceToken]{"device_token", func(v storage.DeviceToken) time.Time { return v.Expiry }}
	refreshTokens   = kind[storage.RefreshToken]{name: "refresh_token"}
	offlineSessions = kind[storage.OfflineSessions]{name: "offline_session"}
	signingKeys     = kind[storage.Keys]{name: "keys"}
	clients         = kind[storage.Client]{name: "client"}
	passwords       = kind[storage.Password]{name: "password"}
	connectors      = kind[storage.Connector]{name: "connector"}
)

func (k kind[T]) encode(v T) (value []byte, expiry sql.NullInt64, err error) {
	if k.expiry != nil {
		expiry = sql.NullInt64{Int64: k.expiry(v).Unix(), Valid: true}
	}
	value, err = json.Marshal(v)
	return value, expiry, err
}

func (k kind[T]) create(ctx context.Context, s *store, id string, v T) error {
	value, expiry, err := k.encode(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", k.name, err)
	}
	n, err := s.exec(ctx, `INSERT INTO object (kind, id, revision, expiry, value) VALUES ($1, $2, 1, $3, $4) ON CONFLICT DO NOTHING`, k.name, id, expiry, value)
	if err != nil {
		return fmt.Errorf("creating %s: %w", k.name, err)
	}
	if n == 0 {
		return storage.ErrAlreadyExists // Dex compares it with ==
	}
	return nil
}

func (k kind[T]) get(ctx context.Context, s *store, id string) (T, error) {
	v, _, err := k.read(ctx, s, id)
	return v, err
}

func (k kind[T]) read(ctx context.Context, s *store, id string) (v T, revision int64, err error) {
	var value []byte
	err = s.db.QueryRowContext(ctx, `SELECT revision, value FROM object WHERE kind = $1 AND id = $2`, k.name, id).Scan(&revision, &value)
	if errors.Is(err, sql.ErrNoRows) {
		return v, 0, storage.ErrNotFound
	}
	if err != nil {
		return v, 0, fmt.Errorf("reading %s: %w", k.name, err)
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return v, 0, fmt.Errorf("decoding %s: %w", k.name, err)
	}
	return v, revision, nil
}

func (k kind[T]) list(ctx context.Context, s *store) (all []T, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT value FROM object WHERE kind = $1 ORDER BY id`, k.name)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", k.name, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var value []byte
		var v T
		if err := rows.Scan(&value); err != nil {
			return nil, fmt.Errorf("listing %s: %w", k.name, err)
		}
		if err := json.Unmarshal(value, &v); err != nil {
			return nil, fmt.Errorf("decoding %s: %w", k.name, err)
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

func (k kind[T]) remove(ctx context.Context, s *store, id string) error {
	n, err := s.exec(ctx, `DELETE FROM object WHERE kind = $1 AND id = $2`, k.name, id)
	if err != nil {
		return fmt.Errorf("deleting %s: %w", k.name, err)
	}
	if n == 0 {
		return storage.ErrNotFound
	}
	return nil
}

// update replaces the value only if nobody else did meanwhile, and otherwise
// asks change again. No transaction is open while change runs, for it may ask an
// upstream identity provider or come back to this store.
func (k kind[T]) update(ctx context.Context, s *store, id string, change func(T) (T, error)) error {
	for range 16 {
		v, revision, err := k.read(ctx, s, id)
		if err != nil {
			return err
		}
		if v, err = change(v); err != nil {
			return err
		}
		value, expiry, err := k.encode(v)
		if err != nil {
			return fmt.Errorf("encoding %s: %w", k.name, err)
		}
		n, err := s.exec(ctx, `UPDATE object SET revision = revision + 1, expiry = $1, value = $2 WHERE kind = $3 AND id = $4 AND revision = $5`,
			expiry, value, k.name, id, revision)
		if err != nil {
			return fmt.Errorf("updating %s: %w", k.name, err)
		}
		if n == 1 {
			return nil
		}
	}
	return fmt.Errorf("updating %s: it keeps changing", k.name)
}

func (s *store) exec(ctx context.Context, statement string, args ...any) (int64, error) {
	result, err := s.db.ExecContext(ctx, statement, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}
