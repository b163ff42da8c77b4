package trillian

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/trillian"
	trillianlog "github.com/google/trillian/log"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"github.com/google/trillian/util/clock"
)

const (
	// passLimit is how many leaves one timed pass integrates. A longer queue takes several.
	passLimit = 1000
	// backlogLimit is how many leaves left in the queue a write takes into the tree with its own.
	backlogLimit = 256
	// noGuard lets a pass have every leaf that is queued. The guard window is for sequencers on several machines; here
	// it would only hold up leaves that were queued before the clock was set back.
	noGuard = -100 * 365 * 24 * time.Hour
)

// sequenceQueued integrates what a write has queued, in the write's own transaction.
func (s *Service) sequenceQueued(ctx context.Context, tree *trillian.Tree, bound storage.LogStorage, queued int) error {
	// A tree head is refreshed for its age by timed passes only.
	_, err := s.integrate(ctx, tree, bound, queued+backlogLimit, 0)
	return err
}

func (s *Service) integrate(ctx context.Context, tree *trillian.Tree, on storage.LogStorage, limit int, maxRootDuration time.Duration) (int, error) {
	if f := s.guard.frozen(tree.GetTreeId()); f != nil {
		return 0, f
	}
	snapshot, err := on.SnapshotForTree(ctx, tree)
	if err != nil {
		return 0, err
	}
	slr, err := snapshot.LatestSignedLogRoot(ctx)
	if err := errors.Join(err, snapshot.Close()); err != nil {
		return 0, err
	}
	var head types.LogRootV1
	if err := head.UnmarshalBinary(slr.LogRoot); err != nil {
		return 0, err
	}
	// RFC 6962 section 3.5 wants each tree head's timestamp, in milliseconds, later than the one before.
	last := max(head.TimestampNanos, s.guard.anchoredAt(tree.GetTreeId()))
	after := laterThan{clock.System, time.Unix(0, int64(last)).Add(time.Millisecond)}
	return trillianlog.IntegrateBatch(ctx, tree, limit, noGuard, maxRootDuration, after, on, quota.Noop())
}

// laterThan is the system's time, but not before a given one: after the clock was set back, heads follow each other in
// small steps until it has caught up, and nothing stops in the meantime.
type laterThan struct {
	clock.TimeSource
	floor time.Time
}

// Now returns the later of the two.
func (l laterThan) Now() time.Time {
	if t := l.TimeSource.Now(); t.After(l.floor) {
		return t
	}
	return l.floor
}

// sequenceTimed runs a pass over every log at each interval, until ctx is done.
func (s *Service) sequenceTimed(ctx context.Context) {
	tick := time.NewTicker(s.cfg.SequenceInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.pass(ctx)
		}
	}
}

// pass integrates what is queued in every log, and refreshes tree heads that have grown old.
func (s *Service) pass(ctx context.Context) {
	ids, err := s.engine.GetActiveLogIDs(ctx)
	if err != nil {
		s.cfg.Logger.Warn("a timed pass found no logs", slog.Any("error", err))
		return
	}
	for _, id := range ids {
		if s.guard.frozen(id) != nil {
			continue
		}
		if err := s.passOver(ctx, id); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("a timed pass failed", slog.Int64("tree", id), slog.Any("error", err))
		}
	}
}

func (s *Service) passOver(ctx context.Context, id int64) error {
	tree, err := storage.GetTree(ctx, s.engine.Admin(), id)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		n, err := s.integrate(ctx, tree, s.engine, passLimit, tree.MaxRootDuration.AsDuration())
		if err != nil {
			return err
		}
		if n < passLimit {
			return nil
		}
	}
	return nil
}
