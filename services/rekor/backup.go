package rekor

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/sigbox/sigbox/internal/backup"
	"github.com/sigbox/sigbox/services/rekor/store"
)

// errNoFile: an index in PostgreSQL is backed up with its database.
var errNoFile = errors.New("rekor: the search index is in PostgreSQL, not in a file")

// Export hands out the search index and the attestations: all that was there when it began.
func (s *Service) Export(ctx context.Context, each func(backup.Record) error, pace func(bytes int) error) error {
	if s.file == nil {
		return errNoFile
	}
	return s.file.Export(ctx, each, pace)
}

// ExportAtRest does the same for an index that no service uses.
func ExportAtRest(ctx context.Context, dir string, each func(backup.Record) error, pace func(bytes int) error) error {
	index, err := store.Open(ctx, filepath.Join(dir, indexFile))
	if err != nil {
		return err
	}
	return errors.Join(index.Export(ctx, each, pace), index.Close())
}

// Outbox returns some of what was added to the search index and not yet taken by Sent. It needs Config.Outbox.
func (s *Service) Outbox(ctx context.Context) (records []backup.Record, mark int64, err error) {
	if s.file == nil {
		return nil, 0, errNoFile
	}
	return s.file.Outbox(ctx, 256)
}

// Sent takes out of the outbox what Outbox returned with a mark.
func (s *Service) Sent(ctx context.Context, mark int64) error {
	if s.file == nil {
		return errNoFile
	}
	return s.file.Sent(ctx, mark)
}

// OutboxIsFresh says that the outbox lacks what was added before this service started.
func (s *Service) OutboxIsFresh() bool { return s.freshOutbox }

func (s *Service) openOutbox(ctx context.Context) (err error) {
	if !s.cfg.Outbox {
		return s.file.DropOutbox(ctx)
	}
	s.freshOutbox, err = s.file.KeepOutbox(ctx)
	return err
}

// Restoration fills a new search index.
type Restoration struct{ index *store.Store }

// Restore makes an empty search index in dir.
func Restore(ctx context.Context, dir string) (*Restoration, error) {
	if err := Create(ctx, dir); err != nil {
		return nil, err
	}
	index, err := store.Open(ctx, filepath.Join(dir, indexFile))
	if err != nil {
		return nil, err
	}
	return &Restoration{index}, nil
}

// Load adds what Export or Outbox handed out, durably.
func (r *Restoration) Load(ctx context.Context, records []backup.Record) error {
	return r.index.Load(ctx, records)
}

// Close closes the index.
func (r *Restoration) Close() error { return r.index.Close() }

// LeafOf returns the tree and the Merkle leaf hash of the entry that a row of the index leads to.
func LeafOf(row *backup.IndexRow) (tree int64, hash []byte, ok bool) {
	if len(row.Entry) != len(store.EntryID{}) {
		return 0, nil, false
	}
	for _, b := range row.Entry[:8] {
		tree = tree<<8 | int64(b)
	}
	return tree, row.Entry[8:], true
}
