package trillian

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/trillian/storage"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// What the proof at start may take for each log: it must not keep an instance from being ready within a second.
const (
	proveLeaves = 4096
	proveBudget = 300 * time.Millisecond
)

// prove compares each log with its anchor and computes its newest leaves anew, before anybody can ask for them. What does not hold
// freezes the log.
func (s *Service) prove(ctx context.Context) error {
	ids, err := s.trees(ctx)
	if err != nil {
		return fmt.Errorf("listing the logs: %w", err)
	}
	s.guard.anchors, err = anchor.Open(s.cfg.AnchorDir, s.cfg.Instance)
	missing := errors.Is(err, anchor.ErrMissing)
	switch {
	case missing:
		for _, id := range ids {
			s.guard.freeze(id, CauseNoAnchor, err.Error(), nil)
		}
	case err != nil:
		return fmt.Errorf("opening the anchors: %w", err)
	}
	errs := make([]error, len(ids))
	var work sync.WaitGroup
	for i, id := range ids {
		work.Go(func() { errs[i] = s.proveLog(ctx, id) })
	}
	work.Wait()
	return errors.Join(errs...)
}

func (s *Service) trees(ctx context.Context) ([]int64, error) {
	trees, err := storage.ListTrees(ctx, s.engine.Admin(), false)
	ids := make([]int64, len(trees))
	for i, t := range trees {
		ids[i] = t.TreeId
	}
	return ids, err
}

func (s *Service) proveLog(ctx context.Context, id int64) (err error) {
	s.guard.metrics.frozen.WithLabelValues(label(id)) // so that it is there, and zero
	src, err := s.engine.Source(id)
	if err != nil {
		return fmt.Errorf("opening log %d to examine: %w", id, err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	begun := time.Now()
	r, err := verify.Recent(ctx, src, proveLeaves, proveBudget)
	if err != nil {
		return fmt.Errorf("examining log %d: %w", id, err)
	}
	if len(r.Findings) > 0 {
		s.guard.freeze(id, CauseDamaged, r.Findings[0].String(), r.Findings)
	}
	s.cfg.Logger.Debug("the newest entries of a log were computed anew", slog.Int64("tree", id), slog.Uint64("entries", r.Leaves),
		slog.Uint64("size", r.Size), slog.Duration("took", time.Since(begun)))
	if s.guard.anchors == nil {
		return nil
	}
	return s.compare(ctx, id, src)
}

// compare holds a log against its anchor.
func (s *Service) compare(ctx context.Context, id int64, src verify.Source) error {
	head, err := s.engine.Head(id)
	if err != nil {
		return err
	}
	stored := anchorRoot(head)
	anchored, err := s.guard.anchors.Load(id)
	if err != nil {
		s.guard.freeze(id, causeOf(err), err.Error(), nil)
		return nil
	}
	cause, reason := judge(ctx, src, stored, anchored)
	switch {
	case reason != "":
		s.guard.freeze(id, cause, fmt.Sprintf("%s (anchor %s)", reason, s.guard.anchors.Path(id)), nil)
		return nil
	case s.guard.frozen(id) != nil: // and so is its anchor
		return nil
	case stored.Size > anchored.Size:
		s.cfg.Logger.Warn("a log is ahead of its anchor and grows out of it: it is anchored anew", slog.Int64("tree", id),
			slog.Uint64("anchored", anchored.Size), slog.Uint64("size", stored.Size))
	}
	if stored.Hash == nil {
		return nil
	}
	if err := s.guard.Record(id, head); err != nil {
		s.guard.freeze(id, CauseAnchor, err.Error(), nil)
	}
	return nil
}

// judge tells what is wrong with a stored root in the light of the anchored one, or nothing.
func judge(ctx context.Context, src verify.Source, stored anchor.Root, anchored anchor.State) (Cause, string) {
	switch {
	case anchored.Hash == nil && stored.Hash == nil, anchored.Hash == nil && stored.Size == 0:
		return "", "" // it has never been shown to anybody
	case anchored.Hash == nil:
		return CauseNoAnchor, fmt.Sprintf("the storage has %v, and its anchor has never had a root", stored)
	case stored.Hash == nil || stored.Size < anchored.Size:
		return CauseBehind, fmt.Sprintf("the storage has %v, but %v was published: it is an older copy", stored, anchored.Root)
	case stored.Size == anchored.Size && !stored.Same(anchored.Root):
		return CauseDifferent, fmt.Sprintf("the storage has %v, but %v was published: it has another history", stored, anchored.Root)
	case stored.Same(anchored.Root) && anchored.Torn:
		return CauseAnchor, fmt.Sprintf("half of the anchor can not be read, and may have held a newer root than %v, which the storage has too", anchored.Root)
	case stored.Size == anchored.Size:
		return "", ""
	}
	if err := verify.Extends(ctx, src, anchored.Size, anchored.Hash, stored.Size, stored.Hash); err != nil {
		return CauseDifferent, fmt.Sprintf("the storage has %v, which does not grow out of %v, which was published: %v", stored, anchored.Root, err)
	}
	return "", ""
}
