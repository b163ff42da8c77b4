package trillian

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sigbox/sigbox/services/trillian/verify"
)

// Coverage is how far the background scrub has come with a log.
type Coverage struct {
	// Leaves of Size are done in the present pass.
	Leaves, Size uint64
	// Passes were completed since the start, the last at Completed over a tree of CompletedSize.
	Passes        int
	Completed     time.Time
	CompletedSize uint64
	// Err is why the last pass could not be completed, if it could not.
	Err string
}

// scrub computes every log anew, one after the other, again and again, until ctx is done.
func (s *Service) scrub(ctx context.Context) {
	for {
		ids, err := s.trees(ctx)
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("the scrub found no logs", slog.Any("error", err))
		}
		for _, id := range ids {
			if err := s.scrubLog(ctx, id); err != nil && ctx.Err() == nil {
				s.cover(id, func(c *Coverage) { c.Err = err.Error() })
				s.cfg.Logger.Warn("the scrub could not get through a log", slog.Int64("tree", id), slog.Any("error", err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.cfg.ScrubInterval):
		}
	}
}

func (s *Service) cover(id int64, f func(*Coverage)) {
	l := s.guard.log(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.scrub)
}

func (s *Service) scrubLog(ctx context.Context, id int64) error {
	// Bytes are paid for with time after they are read, so that no read is longer than one of the walk's.
	r, err := s.examine(ctx, id, func(done, size uint64) {
		s.cover(id, func(c *Coverage) { c.Leaves, c.Size = done, size })
		s.guard.metrics.scrubbed.WithLabelValues(label(id)).Set(float64(done))
	}, func(bytes int) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(int64(bytes) * int64(time.Second) / s.cfg.ScrubRate)):
			return nil
		}
	})
	if err != nil {
		return err
	}
	now := time.Now()
	s.guard.metrics.found.WithLabelValues(label(id)).Set(float64(len(r.Findings)))
	s.guard.metrics.completed.WithLabelValues(label(id)).Set(float64(now.Unix()))
	s.cover(id, func(c *Coverage) {
		c.Leaves, c.Size, c.Err = r.Leaves, r.Size, ""
		c.Passes, c.Completed, c.CompletedSize = c.Passes+1, now, r.Size
	})
	return nil
}

// Verify computes a log anew, all of it, while it is in use. progress, if set, is told how many entries are done. What it finds
// freezes the log.
func (s *Service) Verify(ctx context.Context, treeID int64, progress func(done, size uint64)) (verify.Result, error) {
	return s.examine(ctx, treeID, progress, func(int) error { return ctx.Err() })
}

func (s *Service) examine(ctx context.Context, id int64, progress func(done, size uint64), pace func(bytes int) error) (r verify.Result, err error) {
	src, err := s.engine.Source(id)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if r, err = verify.Paced(ctx, src, progress, pace); err != nil {
		return r, fmt.Errorf("examining log %d: %w", id, err)
	}
	for _, f := range r.Findings {
		s.cfg.Logger.Error("a log is damaged", slog.Int64("tree", id), slog.String("finding", f.String()))
	}
	if len(r.Findings) > 0 {
		s.guard.freeze(id, CauseDamaged, r.Findings[0].String(), r.Findings)
	}
	if s.guard.anchors != nil {
		if err := s.guard.anchors.Verify(id); err != nil {
			s.guard.freeze(id, causeOf(err), err.Error(), nil)
		}
	}
	return r, nil
}
