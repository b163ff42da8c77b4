package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/sigbox/sigbox/internal/backup"
)

// exportRows is how many rows are read with one statement, so that no reader keeps the WAL from being folded into the file.
const exportRows = 500

// Export hands out all that was there when it began, and some of what came since: rows are added and never change. pace is told of the bytes
// after each statement.
func (s *Store) Export(ctx context.Context, each func(backup.Record) error, pace func(bytes int) error) error {
	key, entry := []byte{}, []byte{}
	for n := exportRows; n == exportRows; {
		rows, err := s.reader.QueryContext(ctx, "SELECT key, entry FROM entry_key WHERE (key, entry) > (?, ?) ORDER BY key, entry LIMIT ?", key, entry, exportRows)
		if err != nil {
			return fmt.Errorf("reading the search index: %w", err)
		}
		var page []*backup.IndexRow
		for rows.Next() {
			r := new(backup.IndexRow)
			if err := rows.Scan(&r.Key, &r.Entry); err != nil {
				return errors.Join(fmt.Errorf("reading the search index: %w", err), rows.Close())
			}
			page = append(page, r)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return fmt.Errorf("reading the search index: %w", err)
		}
		for _, r := range page {
			if err := each(r); err != nil {
				return err
			}
			key, entry = r.Key, r.Entry
		}
		if n = len(page); n > 0 {
			if err := pace(n * (len(key) + len(entry))); err != nil {
				return err
			}
		}
	}
	for last := ""; ; {
		a := new(backup.Attestation)
		err := s.reader.QueryRowContext(ctx, "SELECT key, body FROM attestation WHERE key > ? ORDER BY key LIMIT 1", last).Scan(&a.Key, &a.Body)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading attestations: %w", err)
		}
		if err := each(a); err != nil {
			return err
		}
		last = a.Key
		if err := pace(len(a.Body)); err != nil {
			return err
		}
	}
}

// Load puts back what Export handed out, in one commit. What is there already stays.
func (s *Store) Load(ctx context.Context, records []backup.Record) error {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("filling the search index: %w", err)
	}
	insertKey, insertAttestation := tx.Stmt(s.insertKey), tx.Stmt(s.insertAttestation)
	for _, r := range records {
		switch r := r.(type) {
		case *backup.IndexRow:
			if len(r.Key) != 16 || len(r.Entry) != len(EntryID{}) {
				err = fmt.Errorf("a row of %d and %d bytes: %w", len(r.Key), len(r.Entry), backup.ErrDamaged)
			} else {
				_, err = insertKey.ExecContext(ctx, r.Key, r.Entry)
			}
		case *backup.Attestation:
			_, err = insertAttestation.ExecContext(ctx, r.Key, r.Body)
		default:
			err = fmt.Errorf("%T is not part of a search index", r)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("filling the search index: %w", err), rollback(tx))
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("filling the search index: %w", err)
	}
	return nil
}

// The outbox has what was put since it was last emptied, in the order of the commits, for an archive that follows at a distance.
const outboxSchema = `CREATE TABLE outbox (
  seq         INTEGER PRIMARY KEY AUTOINCREMENT,
  entry       BLOB NOT NULL,
  keys        BLOB NOT NULL, -- as in entry_key, one after the other
  attestation TEXT           -- key
)`

// KeepOutbox makes every Put leave a copy in the outbox, in the same commit, until DropOutbox. fresh says that there was none: what was
// put before is not in it. Call it before the first Put.
func (s *Store) KeepOutbox(ctx context.Context) (fresh bool, err error) {
	var one int
	err = s.writer.QueryRowContext(ctx, "SELECT 1 FROM sqlite_schema WHERE name = 'outbox'").Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		fresh = true
		_, err = s.writer.ExecContext(ctx, outboxSchema)
	}
	if err == nil {
		s.outbox, err = s.writer.PrepareContext(ctx, "INSERT INTO outbox (entry, keys, attestation) VALUES (?, ?, ?)")
	}
	if err != nil {
		return fresh, fmt.Errorf("making the outbox of the search index: %w", err)
	}
	return fresh, nil
}

// DropOutbox forgets the outbox, so that nobody believes it complete. Call it before the first Put.
func (s *Store) DropOutbox(ctx context.Context) error {
	if _, err := s.writer.ExecContext(ctx, "DROP TABLE IF EXISTS outbox"); err != nil {
		return fmt.Errorf("dropping the outbox of the search index: %w", err)
	}
	return nil
}

func (s *Store) post(ctx context.Context, tx *sql.Tx, r Record) error {
	if s.outbox == nil {
		return nil
	}
	keys := make([]byte, 0, 16*len(r.Keys))
	for _, k := range r.Keys {
		id := keyID(k)
		keys = append(keys, id[:]...)
	}
	_, err := tx.Stmt(s.outbox).ExecContext(ctx, r.Entry[:], keys, sql.NullString{String: r.AttestationKey, Valid: r.AttestationKey != ""})
	return err
}

// Outbox returns the oldest of what is in the outbox, some limit puts of it, and a mark for Sent.
func (s *Store) Outbox(ctx context.Context, limit int) (records []backup.Record, mark int64, err error) {
	rows, err := s.reader.QueryContext(ctx, "SELECT seq, entry, keys, attestation FROM outbox ORDER BY seq LIMIT ?", limit)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the outbox of the search index: %w", err)
	}
	var attestations []string
	for rows.Next() {
		var entry, keys []byte
		var attestation sql.NullString
		if err := rows.Scan(&mark, &entry, &keys, &attestation); err != nil {
			return nil, 0, errors.Join(fmt.Errorf("reading the outbox of the search index: %w", err), rows.Close())
		}
		for ; len(keys) >= 16; keys = keys[16:] {
			records = append(records, &backup.IndexRow{Key: keys[:16:16], Entry: entry})
		}
		if attestation.Valid {
			attestations = append(attestations, attestation.String)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, 0, fmt.Errorf("reading the outbox of the search index: %w", err)
	}
	for _, key := range attestations {
		body, err := s.Attestation(ctx, key)
		if err != nil {
			return nil, 0, err
		}
		records = append(records, &backup.Attestation{Key: key, Body: body})
	}
	return records, mark, nil
}

// Sent takes out of the outbox what Outbox returned with a mark.
func (s *Store) Sent(ctx context.Context, mark int64) error {
	if _, err := s.writer.ExecContext(ctx, "DELETE FROM outbox WHERE seq <= ?", mark); err != nil {
		return fmt.Errorf("emptying the outbox of the search index: %w", err)
	}
	return nil
}
