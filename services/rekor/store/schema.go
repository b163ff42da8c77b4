package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/sigbox/sigbox/internal/durable"
)

// schemaVersion is what PRAGMA user_version holds. A file of a newer one is
// refused: this program does not know what it would break.
const schemaVersion = 1

// applicationID marks the file as ours ("sbxi").
const applicationID = 0x73627869

// Both tables are sets: the rows of entry_key live in the primary key's own
// tree, so that a row costs little more than its 56 bytes.
const schema = `
CREATE TABLE entry_key (
  key   BLOB NOT NULL, -- first 16 bytes of SHA-256 of the key in lower case
  entry BLOB NOT NULL, -- EntryID, 40 bytes
  PRIMARY KEY (key, entry)
) WITHOUT ROWID;
CREATE TABLE attestation (
  key  TEXT NOT NULL PRIMARY KEY, -- as upstream names it, "sha256:…"
  body BLOB NOT NULL
);`

var (
	// A commit is one fsync of the WAL. The WAL is folded into the file every
	// 2,000 pages and cut back to 16 MiB should it ever have grown beyond.
	writerPragmas = []string{
		"journal_mode(WAL)",
		"synchronous(FULL)",
		"wal_autocheckpoint(2000)",
		"journal_size_limit(16777216)",
		"busy_timeout(5000)",
	}
	readerPragmas = []string{
		"query_only(1)",
		"busy_timeout(5000)",
	}
)

// Create makes an empty store at path and refuses to overwrite one.
func Create(ctx context.Context, path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("creating search index: %w", err)
	}
	defer func() {
		if err != nil { // what is half made must not be mistaken for a store
			err = errors.Join(fmt.Errorf("creating search index: %w", err), os.Remove(path))
		}
	}()
	if err := f.Close(); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", dsn(path, writerPragmas))
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	if err := errors.Join(writeSchema(ctx, db), db.Close()); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

func writeSchema(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	// One transaction: a file has all of this or none of it.
	for _, statement := range []string{
		schema,
		fmt.Sprintf("PRAGMA application_id = %d", applicationID),
		fmt.Sprintf("PRAGMA user_version = %d", schemaVersion),
	} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

func checkSchema(ctx context.Context, db *sql.DB) error {
	var app, version int
	if err := db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&app); err != nil {
		return err
	}
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	switch {
	case app != applicationID:
		return errors.New("this is not a search index, or one that was never finished")
	case version > schemaVersion:
		return fmt.Errorf("it has schema %d and this program knows up to %d: a newer program made it", version, schemaVersion)
	case version != schemaVersion:
		return fmt.Errorf("it has schema %d, which no program ever wrote", version)
	}
	return nil
}

// checkDurability reads back what was asked for: SQLite keeps silent when it
// cannot have WAL, on some file systems for instance.
func checkDurability(ctx context.Context, db *sql.DB) error {
	var mode string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return err
	}
	var level int
	if err := db.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&level); err != nil {
		return err
	}
	if mode != "wal" || level != 2 {
		return fmt.Errorf("journal_mode is %q and synchronous %d, want wal and 2", mode, level)
	}
	return nil
}

// dsn names an existing file. Transactions begin immediate, so that a writer
// learns at once if it is not alone.
func dsn(path string, pragmas []string) string {
	u := url.URL{Scheme: "file", OmitHost: true, Path: path}
	u.RawQuery = url.Values{"mode": {"rw"}, "_txlock": {"immediate"}, "_pragma": pragmas}.Encode()
	return u.String()
}
