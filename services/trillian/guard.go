package trillian

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// Cause is what kind of reason a log is frozen for. Each has its own way out.
type Cause string

// The causes.
const (
	CauseBehind    Cause = "behind"    // the storage is older than the anchor
	CauseDifferent Cause = "different" // it has another history
	CauseNoAnchor  Cause = "no-anchor" // there is nothing to compare it with
	CauseAnchor    Cause = "anchor"    // the anchor can not be read or written, or is somebody else's
	CauseDamaged   Cause = "damaged"   // the storage does not hold what was written to it
)

// Frozen says that a log can be read and nothing else: nothing is added to it, and nothing may be signed for it.
type Frozen struct {
	Cause  Cause
	Reason string
	Since  time.Time
	// Findings name what is damaged, as far as that is known.
	Findings []verify.Finding
}

// Error is the answer to whoever wants to write.
func (f *Frozen) Error() string { return "the log is frozen, nothing is signed for it: " + f.Reason }

// GRPCStatus makes it one that the callers of the log server turn into 503.
func (f *Frozen) GRPCStatus() *status.Status { return status.New(codes.Unavailable, f.Error()) }

// guard stands between the logs and everything that would be signed over them.
type guard struct {
	logger  *slog.Logger
	metrics guardMetrics
	// anchors is nil if the folder could not be opened; every log is frozen then.
	anchors *anchor.Folder

	mu   sync.Mutex
	logs map[int64]*guardedLog
}

type guardedLog struct {
	frozen atomic.Pointer[Frozen]
	mu     sync.Mutex
	scrub  Coverage
}

func (g *guard) start(cfg Config) {
	g.logger = cfg.Logger
	g.logs = make(map[int64]*guardedLog)
	g.metrics = newGuardMetrics(cfg.Metrics)
}

func (g *guard) log(tree int64) *guardedLog {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.logs[tree]
	if l == nil {
		l = new(guardedLog)
		g.logs[tree] = l
	}
	return l
}

// frozen is nil as long as a log is sound.
func (g *guard) frozen(tree int64) *Frozen { return g.log(tree).frozen.Load() }

// freeze ends all writing to a log until the next start. The first reason is kept.
func (g *guard) freeze(tree int64, cause Cause, reason string, found []verify.Finding) {
	f := &Frozen{Cause: cause, Reason: reason, Since: time.Now(), Findings: found}
	if g.log(tree).frozen.CompareAndSwap(nil, f) {
		g.metrics.frozen.WithLabelValues(label(tree)).Set(1)
		g.logger.Error("a log is frozen: nothing is signed for it any more", slog.Int64("tree", tree), slog.String("cause", string(cause)), slog.String("reason", reason))
	}
}

// add makes the anchor of a tree that is new.
func (g *guard) add(tree *trillian.Tree) error {
	if g.anchors == nil {
		return anchor.ErrMissing
	}
	return g.anchors.Add(tree.TreeId)
}

// anchoredAt is the time of the anchored root, in nanoseconds since 1970.
func (g *guard) anchoredAt(tree int64) uint64 {
	if g.anchors == nil {
		return 0
	}
	root, err := g.anchors.Root(tree)
	if err != nil {
		return 0
	}
	return root.Timestamp
}

func anchorRoot(r types.LogRootV1) anchor.Root {
	if len(r.RootHash) == 0 {
		return anchor.Root{}
	}
	return anchor.Root{Size: r.TreeSize, Hash: r.RootHash, Timestamp: r.TimestampNanos}
}

// Check implements sqlite.Anchor: before a root is stored over another, that one must be the anchored one.
func (g *guard) Check(tree int64, root types.LogRootV1) error {
	if f := g.frozen(tree); f != nil {
		return f
	}
	if err := g.anchors.Check(tree, anchorRoot(root)); err != nil {
		g.freeze(tree, causeOf(err), err.Error(), nil)
		return g.frozen(tree)
	}
	return nil
}

// Record implements sqlite.Anchor: nobody is shown a root before it is anchored.
func (g *guard) Record(tree int64, root types.LogRootV1) error {
	if g.anchors == nil {
		return anchor.ErrMissing
	}
	if err := g.anchors.Record(tree, anchorRoot(root)); err != nil {
		return err
	}
	g.metrics.anchored.WithLabelValues(label(tree)).Set(float64(root.TreeSize))
	return nil
}

func causeOf(err error) Cause {
	switch {
	case errors.Is(err, anchor.ErrMissing):
		return CauseNoAnchor
	case errors.Is(err, anchor.ErrBack):
		return CauseBehind
	case errors.Is(err, anchor.ErrFork):
		return CauseDifferent
	}
	return CauseAnchor
}

func (g *guard) close() error {
	if g.anchors == nil {
		return nil
	}
	return g.anchors.Close()
}

// guarded is the engine for everybody else: frozen logs are read-only.
type guarded struct {
	engine
	guard *guard
}

func (g guarded) writable(tree *trillian.Tree) error {
	if f := g.guard.frozen(tree.GetTreeId()); f != nil {
		return f
	}
	return nil
}

// QueueLeaves implements storage.LogStorage, as do the methods below.
func (g guarded) QueueLeaves(ctx context.Context, tree *trillian.Tree, leaves []*trillian.LogLeaf, at time.Time) ([]*trillian.QueuedLogLeaf, error) {
	if err := g.writable(tree); err != nil {
		return nil, err
	}
	return g.engine.QueueLeaves(ctx, tree, leaves, at)
}

func (g guarded) AddSequencedLeaves(ctx context.Context, tree *trillian.Tree, leaves []*trillian.LogLeaf, at time.Time) ([]*trillian.QueuedLogLeaf, error) {
	if err := g.writable(tree); err != nil {
		return nil, err
	}
	return g.engine.AddSequencedLeaves(ctx, tree, leaves, at)
}

func (g guarded) ReadWriteTransaction(ctx context.Context, tree *trillian.Tree, f storage.LogTXFunc) error {
	if err := g.writable(tree); err != nil {
		return err
	}
	return g.engine.ReadWriteTransaction(ctx, tree, f)
}

// Frozen is nil as long as the log may grow and be signed for. Otherwise it is a *Frozen.
func (s *Service) Frozen(treeID int64) error {
	if f := s.guard.frozen(treeID); f != nil {
		return f
	}
	return nil
}

// LogState is what there is to know about a log.
type LogState struct {
	Size uint64
	Root []byte
	// Frozen is nil for a log that is sound.
	Frozen *Frozen
	// Anchored is the root that was recorded last; it has no hash if there is no anchor.
	Anchored   anchor.Root
	AnchorFile string
	Scrub      Coverage
}

// State tells how a log is.
func (s *Service) State(treeID int64) (LogState, error) {
	head, err := s.engine.Head(treeID)
	if err != nil {
		return LogState{}, fmt.Errorf("reading the head of tree %d: %w", treeID, err)
	}
	l := s.guard.log(treeID)
	l.mu.Lock()
	defer l.mu.Unlock()
	st := LogState{Size: head.TreeSize, Root: head.RootHash, Frozen: l.frozen.Load(), Scrub: l.scrub, AnchorFile: anchor.Path(s.cfg.AnchorDir, treeID)}
	if s.guard.anchors != nil {
		st.Anchored, err = s.guard.anchors.Root(treeID)
		if err != nil && st.Frozen == nil {
			return st, err
		}
	}
	return st, nil
}

// guardMetrics are labelled by tree id.
type guardMetrics struct{ frozen, anchored, scrubbed, completed, found *prometheus.GaugeVec }

func newGuardMetrics(r prometheus.Registerer) guardMetrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sigbox_log_" + name, Help: help}, []string{"tree"})
		if r == nil {
			return v
		}
		return register(r, v)
	}
	return guardMetrics{
		frozen:    gauge("frozen", "Whether the log is frozen: 1 if nothing is signed for it."),
		anchored:  gauge("anchored_size", "Entries of the log as of the root that was anchored last."),
		scrubbed:  gauge("scrub_leaves", "Entries that the scrub's present pass has been through."),
		completed: gauge("scrub_completed_timestamp_seconds", "When the scrub last got through the whole log."),
		found:     gauge("scrub_findings", "What the scrub's last pass found to be damaged."),
	}
}

func label(tree int64) string { return strconv.FormatInt(tree, 10) }
