package issuer

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sigbox/sigbox/internal/durable"
)

// Export returns the redeemed tokens in the form of a journal. Those in
// PostgreSQL are backed up with their database.
func (c *CI) Export() ([]byte, error) {
	j, ok := c.spent.(*journal)
	if !ok {
		return nil, errors.New("ci issuer: redeemed tokens are in PostgreSQL, not in a journal")
	}
	return j.export(), nil
}

// ExportCI does the same for a journal that nobody uses.
func ExportCI(dir string) ([]byte, error) {
	j, err := openJournal(journalPath(dir), time.Now())
	if err != nil {
		return nil, fmt.Errorf("opening the ci issuer's journal: %w", err)
	}
	return j.export(), j.close()
}

func (j *journal) export() []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	data := header(j.forgotten)
	for id, expiry := range j.spent {
		data = appendRecord(data, id, expiry)
	}
	return data
}

// RestoreCI makes a journal in dir from what Export returned.
func RestoreCI(dir string, data []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := durable.WriteNew(journalPath(dir), data, 0o600); err != nil {
		return fmt.Errorf("restoring the ci issuer's journal: %w", err)
	}
	j, err := openJournal(journalPath(dir), time.Now()) // which reads it
	if err != nil {
		return fmt.Errorf("restoring the ci issuer's journal: %w", err)
	}
	return j.close()
}

// object is a row of Dex's storage.
type object struct {
	Kind     string          `json:"kind"`
	ID       string          `json:"id"`
	Revision int64           `json:"revision"`
	Expiry   *int64          `json:"expiry,omitempty"`
	Value    json.RawMessage `json:"value"`
}

// Export returns who is signed in. Dex's signing keys stay where they are: it makes new ones, and its tokens live for minutes. So does what
// a sign-in under way has.
func (p *People) Export(ctx context.Context) ([]byte, error) { return p.store.export(ctx) }

// ExportPeople does the same for state that nobody uses.
func ExportPeople(ctx context.Context, dir string) ([]byte, error) {
	s, err := openStore(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("opening the oidc issuer's state: %w", err)
	}
	data, err := s.export(ctx)
	return data, errors.Join(err, s.Close())
}

func (s *store) export(ctx context.Context) (data []byte, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT kind, id, revision, expiry, value FROM object WHERE kind IN ($1, $2) ORDER BY kind, id", refreshTokens.name, offlineSessions.name)
	if err != nil {
		return nil, fmt.Errorf("reading the oidc issuer's state: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var o object
		var expiry sql.NullInt64
		var value []byte
		if err := rows.Scan(&o.Kind, &o.ID, &o.Revision, &expiry, &value); err != nil {
			return nil, fmt.Errorf("reading the oidc issuer's state: %w", err)
		}
		if expiry.Valid {
			o.Expiry = &expiry.Int64
		}
		o.Value = value
		line, err := json.Marshal(o)
		if err != nil {
			return nil, fmt.Errorf("encoding %s %q: %w", o.Kind, o.ID, err)
		}
		data = append(append(data, line...), '\n')
	}
	return data, rows.Err()
}

// RestorePeople makes state in dir from what Export returned.
func RestorePeople(ctx context.Context, dir string, data []byte) (err error) {
	if err := CreatePeople(ctx, dir); err != nil {
		return err
	}
	s, err := openStore(ctx, dir)
	if err != nil {
		return fmt.Errorf("restoring the oidc issuer's state: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("restoring the oidc issuer's state: %w", err)
	}
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		var o object
		if err = d.Decode(&o); errors.Is(err, io.EOF) {
			break
		}
		if err == nil && o.Kind != refreshTokens.name && o.Kind != offlineSessions.name {
			err = fmt.Errorf("an object of kind %q does not belong there", o.Kind)
		}
		if err == nil {
			_, err = tx.ExecContext(ctx, "INSERT INTO object (kind, id, revision, expiry, value) VALUES ($1, $2, $3, $4, $5)", o.Kind, o.ID, o.Revision, o.Expiry, []byte(o.Value))
		}
		if err != nil {
			return errors.Join(fmt.Errorf("restoring the oidc issuer's state: %w", err), tx.Rollback())
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("restoring the oidc issuer's state: %w", err)
	}
	return nil
}
