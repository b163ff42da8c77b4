package trillian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/internal/postgres"
	logspostgres "github.com/sigbox/sigbox/services/trillian/postgres"
	"github.com/sigbox/sigbox/services/trillian/sqlite"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// Inspection reads the logs of an instance that does not run. It writes nothing, except an anchor when told to.
type Inspection struct {
	cfg   Config
	store inspected
}

// inspected is storage that is only read.
type inspected interface {
	Source(treeID int64) (source, error)
	Close() error
}

type sqliteInspection struct{ *sqlite.Inspection }

func (i sqliteInspection) Source(treeID int64) (source, error) { return i.Inspection.Source(treeID) }

// Inspect takes the storage in cfg.Dir to read it. PostgreSQL is read beside other replicas.
func Inspect(ctx context.Context, cfg Config) (*Inspection, error) {
	if cfg.Postgres != (postgres.DSN{}) {
		store, err := logspostgres.Open(ctx, cfg.Postgres, logspostgres.Options{HashLeaf: rfc6962.DefaultHasher.HashLeaf})
		if err != nil {
			return nil, fmt.Errorf("opening the logs' storage to read: %w", err)
		}
		return &Inspection{cfg, postgresEngine{store}}, nil
	}
	store, err := sqlite.Inspect(cfg.Dir, sqlite.Options{HashLeaf: rfc6962.DefaultHasher.HashLeaf})
	if err != nil {
		return nil, fmt.Errorf("opening the logs' storage to read: %w", err)
	}
	return &Inspection{cfg, sqliteInspection{store}}, nil
}

// Close gives the storage free.
func (i *Inspection) Close() error { return i.store.Close() }

func (i *Inspection) with(treeID int64, f func(source) error) error {
	src, err := i.store.Source(treeID)
	if err != nil {
		return err
	}
	return errors.Join(f(src), src.Close())
}

// Verify computes a log anew, all of it. progress, if set, is told how many entries are done.
func (i *Inspection) Verify(ctx context.Context, treeID int64, progress func(done, size uint64)) (r verify.Result, err error) {
	err = i.with(treeID, func(src source) (err error) {
		r, err = verify.All(ctx, src, progress)
		return err
	})
	return r, err
}

// State tells how the log would be if it were opened now: its root is the stored one, and of its leaves only the last few are looked at.
func (i *Inspection) State(ctx context.Context, treeID int64) (st LogState, err error) {
	st.AnchorFile = anchor.Path(i.cfg.AnchorDir, treeID)
	freeze := func(cause Cause, reason string, found []verify.Finding) {
		if st.Frozen == nil {
			st.Frozen = &Frozen{Cause: cause, Reason: reason, Since: time.Now(), Findings: found}
		}
	}
	err = i.with(treeID, func(src source) error {
		r, err := verify.Recent(ctx, src, proveLeaves, proveBudget)
		if err != nil {
			return err
		}
		st.Size, st.Root = r.Size, r.Root
		if len(r.Findings) > 0 {
			freeze(CauseDamaged, r.Findings[0].String(), r.Findings)
		}
		anchored, err := anchor.Read(i.cfg.AnchorDir, i.cfg.Instance, treeID)
		if err != nil {
			freeze(causeOf(err), err.Error(), nil)
			return nil
		}
		st.Anchored = anchored.Root
		stored := anchor.Root{}
		if len(r.Root) > 0 {
			stored = anchor.Root{Size: r.Size, Hash: r.Root}
		}
		if cause, reason := judge(ctx, src, stored, anchored); reason != "" {
			freeze(cause, reason, nil)
		}
		return nil
	})
	return st, err
}

// ErrNotReproduced says that the stored log does not have the root it was asked for.
var ErrNotReproduced = errors.New("the storage does not reproduce the root")

// Adopt makes an anchor in place of one that is lost, for a root that the operator knows to have been published and that the stored
// entries, all of which are computed anew, reproduce.
func (i *Inspection) Adopt(ctx context.Context, treeID int64, size uint64, root []byte, now time.Time, progress func(done, size uint64)) error {
	return i.with(treeID, func(src source) (err error) {
		r, err := verify.All(ctx, src, progress)
		switch {
		case err != nil:
			return err
		case len(r.Findings) > 0:
			return fmt.Errorf("%w: %v", ErrNotReproduced, r.Findings[0])
		case r.Size < size:
			return fmt.Errorf("%w: it has %d entries", ErrNotReproduced, r.Size)
		}
		was, err := verify.RootAt(ctx, src, size)
		if err != nil {
			return err
		}
		if !bytes.Equal(was, root) {
			return fmt.Errorf("%w: its root at size %d is %x", ErrNotReproduced, size, was)
		}
		head, _, err := src.Head(ctx)
		if err != nil {
			return err
		}
		folder, err := anchor.Open(i.cfg.AnchorDir, i.cfg.Instance)
		if errors.Is(err, anchor.ErrMissing) {
			if err = anchor.Create(i.cfg.AnchorDir); err == nil {
				folder, err = anchor.Open(i.cfg.AnchorDir, i.cfg.Instance)
			}
		}
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, folder.Close()) }()
		return folder.Adopt(treeID, anchor.Root{Size: size, Hash: root, Timestamp: head.TimestampNanos}, now)
	})
}
