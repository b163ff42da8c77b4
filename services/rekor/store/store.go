// Package store keeps what a Rekor log itself does not hold: the search index,
// from keys such as an artifact's digest or a signer's address to log entries,
// and the attestations that some kinds of entries leave out of the log.
//
// Neither can be made again from the log, so this is primary data: Put returns
// after its record is on disk, and records that arrive together share one
// fsync. One writer, several readers, one SQLite file in WAL mode.
package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	sqlite "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	// maxBatch and maxBatchBytes bound what one commit gathers.
	maxBatch      = 256
	maxBatchBytes = 4 << 20

	readers = 4
)

// Errors that callers tell apart.
var (
	ErrClosed  = errors.New("search index is closed")
	ErrFull    = errors.New("no space left for the search index")
	ErrTooMany = errors.New("too many entries match")
)

// EntryID names a log entry: the tree's number, 8 bytes big endian, and the
// leaf hash of RFC 6962, 32 bytes. Its hexadecimal form is Rekor's entry ID.
type EntryID [40]byte

// Record is what is kept beside one log entry.
type Record struct {
	Entry EntryID
	// Keys find the entry. Case does not matter.
	Keys []string
	// Attestation is kept under AttestationKey unless that is empty.
	AttestationKey string
	Attestation    []byte
}

// Store is safe for concurrent use.
type Store struct {
	lock   *os.File
	writer *sql.DB
	reader *sql.DB

	insertKey, insertAttestation *sql.Stmt
	lookup, has, attestation     *sql.Stmt
	outbox                       *sql.Stmt // nil: nothing is kept for an archive

	mu      sync.RWMutex // held for reading while a record is handed to the writer
	closed  bool
	queue   chan *pending
	stopped chan struct{}

	failure atomic.Pointer[error]
	failed  chan struct{}
}

type pending struct {
	record Record
	done   chan error
}

// Open opens the file that Create made. It holds an exclusive lock until Close.
func Open(ctx context.Context, path string) (*Store, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening search index: %w", err)
	}
	lock, err := acquire(path)
	if err != nil {
		return nil, err
	}
	s := &Store{
		lock:    lock,
		queue:   make(chan *pending, maxBatch),
		stopped: make(chan struct{}),
		failed:  make(chan struct{}),
	}
	if err := s.open(ctx, path); err != nil {
		return nil, errors.Join(fmt.Errorf("opening search index %s: %w", path, err), s.release())
	}
	go s.write()
	return s, nil
}

func (s *Store) open(ctx context.Context, path string) error {
	var err error
	if s.writer, err = sql.Open("sqlite", dsn(path, writerPragmas)); err != nil {
		return err
	}
	s.writer.SetMaxOpenConns(1)
	if err := checkSchema(ctx, s.writer); err != nil {
		return err
	}
	if err := checkDurability(ctx, s.writer); err != nil {
		return err
	}
	if s.reader, err = sql.Open("sqlite", dsn(path, readerPragmas)); err != nil {
		return err
	}
	s.reader.SetMaxOpenConns(readers)
	s.reader.SetMaxIdleConns(readers)
	for _, p := range []struct {
		stmt **sql.Stmt
		db   *sql.DB
		text string
	}{
		{&s.insertKey, s.writer, "INSERT OR IGNORE INTO entry_key (key, entry) VALUES (?, ?)"},
		{&s.insertAttestation, s.writer, "INSERT OR IGNORE INTO attestation (key, body) VALUES (?, ?)"},
		{&s.lookup, s.reader, "SELECT entry FROM entry_key WHERE key = ? LIMIT ?"},
		{&s.has, s.reader, "SELECT 1 FROM entry_key WHERE key = ? AND entry = ?"},
		{&s.attestation, s.reader, "SELECT body FROM attestation WHERE key = ?"},
	} {
		if *p.stmt, err = p.db.PrepareContext(ctx, p.text); err != nil {
			return err
		}
	}
	return nil
}

// Put makes the record durable. Putting it again changes nothing. An error says
// only that it is not known to be durable. ErrFull passes when there is space
// again; after any other I/O error the store takes nothing more.
func (s *Store) Put(ctx context.Context, r Record) error {
	p := &pending{record: r, done: make(chan error, 1)}
	if err := s.hand(ctx, p); err != nil {
		return err
	}
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) hand(ctx context.Context, p *pending) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return ErrClosed
	}
	select {
	case s.queue <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write is the one writer: what waits while a commit is under way makes up the
// next one.
func (s *Store) write() {
	defer close(s.stopped)
	batch := make([]*pending, 0, maxBatch)
	for first := range s.queue {
		batch = append(batch[:0], first)
		size := len(first.record.Attestation)
	gather:
		for len(batch) < maxBatch && size < maxBatchBytes {
			select {
			case p, ok := <-s.queue:
				if !ok {
					break gather
				}
				batch = append(batch, p)
				size += len(p.record.Attestation)
			default:
				break gather
			}
		}
		err := s.Err()
		if err == nil {
			err = s.commit(batch)
		}
		for _, p := range batch {
			p.done <- err
		}
	}
}

func (s *Store) commit(batch []*pending) error {
	err := s.insert(batch)
	if err == nil {
		return nil
	}
	if code := new(sqlite.Error); errors.As(err, &code) && code.Code()&0xff == sqlite3.SQLITE_FULL {
		// The pages were not written, so nothing is in doubt: the transaction is
		// rolled back as a whole.
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	// After a failed write or fsync the state of the file is unknown.
	s.fail(fmt.Errorf("committing to the search index: %w", err))
	return s.Err()
}

func (s *Store) insert(batch []*pending) error {
	ctx := context.Background() // a commit is not for one caller to cancel
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	insertKey, insertAttestation := tx.Stmt(s.insertKey), tx.Stmt(s.insertAttestation)
	for _, p := range batch {
		r := p.record
		for _, key := range r.Keys {
			id := keyID(key)
			if _, err := insertKey.ExecContext(ctx, id[:], r.Entry[:]); err != nil {
				return errors.Join(err, rollback(tx))
			}
		}
		if r.AttestationKey != "" {
			if _, err := insertAttestation.ExecContext(ctx, r.AttestationKey, r.Attestation); err != nil {
				return errors.Join(err, rollback(tx))
			}
		}
		if err := s.post(ctx, tx, r); err != nil {
			return errors.Join(err, rollback(tx))
		}
	}
	if err := tx.Commit(); err != nil {
		// database/sql thinks the transaction over; SQLite may not.
		_, _ = s.writer.ExecContext(ctx, "ROLLBACK")
		return err
	}
	return nil
}

// rollback ends a transaction that SQLite may have rolled back by itself.
func rollback(tx *sql.Tx) error {
	err := tx.Rollback()
	if code := new(sqlite.Error); errors.As(err, &code) && code.Code() == sqlite3.SQLITE_ERROR {
		return nil
	}
	return err
}

// Criterion is met by an entry that has any of the keys.
type Criterion []string

// Any finds the entries that meet one criterion or more. It returns ErrTooMany
// where there are more than limit.
func (s *Store) Any(ctx context.Context, criteria []Criterion, limit int) ([]EntryID, error) {
	var keys Criterion
	for _, c := range criteria {
		keys = append(keys, c...)
	}
	return s.find(ctx, keys, limit)
}

// All finds the entries that meet every criterion. The first one should be the
// rarest. It returns ErrTooMany where more than limit meet the first.
func (s *Store) All(ctx context.Context, criteria []Criterion, limit int) ([]EntryID, error) {
	if len(criteria) == 0 {
		return nil, nil
	}
	found, err := s.find(ctx, criteria[0], limit)
	if err != nil {
		return nil, err
	}
	for _, c := range criteria[1:] {
		if found, err = s.keep(ctx, found, c); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (s *Store) find(ctx context.Context, keys Criterion, limit int) ([]EntryID, error) {
	var found []EntryID
	seen := map[EntryID]bool{}
	for _, key := range keys {
		id := keyID(key)
		// One more than the limit tells "just so many" from "too many".
		rows, err := s.lookup.QueryContext(ctx, id[:], limit+1)
		if err != nil {
			return nil, fmt.Errorf("searching the index: %w", err)
		}
		for rows.Next() {
			var raw sql.RawBytes
			if err := rows.Scan(&raw); err != nil {
				return nil, errors.Join(fmt.Errorf("searching the index: %w", err), rows.Close())
			}
			if len(raw) != len(EntryID{}) {
				return nil, errors.Join(fmt.Errorf("searching the index: an entry's ID has %d bytes", len(raw)), rows.Close())
			}
			if id := EntryID(raw); !seen[id] {
				seen[id] = true
				found = append(found, id)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, fmt.Errorf("searching the index: %w", err)
		}
		if len(found) > limit {
			return nil, ErrTooMany
		}
	}
	return found, nil
}

// keep returns those entries that meet the criterion.
func (s *Store) keep(ctx context.Context, entries []EntryID, c Criterion) ([]EntryID, error) {
	var kept []EntryID
	for _, entry := range entries {
		for _, key := range c {
			id := keyID(key)
			var one int
			err := s.has.QueryRowContext(ctx, id[:], entry[:]).Scan(&one)
			if err == nil {
				kept = append(kept, entry)
				break
			}
			if !errors.Is(err, sql.ErrNoRows) {
				return nil, fmt.Errorf("searching the index: %w", err)
			}
		}
	}
	return kept, nil
}

// Attestation returns what was put under key. Where there is nothing, the error
// satisfies errors.Is(err, fs.ErrNotExist).
func (s *Store) Attestation(ctx context.Context, key string) ([]byte, error) {
	var body []byte
	err := s.attestation.QueryRowContext(ctx, key).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("attestation %q: %w", key, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("reading attestation %q: %w", key, err)
	}
	return bytes.Clone(body), nil
}

func (s *Store) fail(err error) {
	if s.failure.CompareAndSwap(nil, &err) {
		close(s.failed)
	}
}

// Failed is closed when the store takes nothing more; Err says why.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Err is the I/O error that ended the store's usefulness, or nil.
func (s *Store) Err() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Close waits for records under way, closes the file and gives up the lock.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.queue)
	s.mu.Unlock()
	<-s.stopped
	return s.release()
}

// release closes what is open. The writer goes last of the two, because the
// last connection to close empties the WAL.
func (s *Store) release() error {
	var errs []error
	for _, stmt := range []*sql.Stmt{s.insertKey, s.insertAttestation, s.lookup, s.has, s.attestation, s.outbox} {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	for _, db := range []*sql.DB{s.reader, s.writer} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// keyID is what a key is kept as: keys are of any length, this is short. Sixteen
// bytes of SHA-256 do not collide by accident, and someone who made two keys
// collide would only see an entry too many in a search, which proves nothing
// without the entry itself.
func keyID(key string) [16]byte {
	sum := sha256.Sum256([]byte(strings.ToLower(key)))
	return [16]byte(sum[:16])
}

func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking search index: %w", err)
	}
	if err := flock(f); err != nil {
		return nil, errors.Join(fmt.Errorf("search index %s is in use by another process: %w", filepath.Base(path), err), f.Close())
	}
	return f, nil
}
