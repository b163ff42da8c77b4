package trillian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/internal/folder"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// history is a log as it was after each of its entries: what storage and anchor held then, which a crash or an operator may mix.
type history struct {
	cfg  Config
	id   int64
	at   []Config // by size
	root map[int]types.LogRootV1
}

const historySize = 8

func copyTo(t *testing.T, from, to string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from))); err != nil {
		t.Fatal(err)
	}
}

// makeHistory adds entries one by one, from a copy of another history if there is one.
func makeHistory(t *testing.T, other *history, from int, word string) *history {
	t.Helper()
	h := &history{cfg: config(t), root: map[int]types.LogRootV1{}}
	h.cfg.SequenceInterval = time.Hour
	if other == nil {
		if err := Create(t.Context(), h.cfg); err != nil {
			t.Fatal(err)
		}
	} else {
		h.id = other.id
		copyTo(t, other.at[from].Dir, h.cfg.Dir)
		copyTo(t, other.at[from].AnchorDir, h.cfg.AnchorDir)
	}
	for size := from; size <= historySize; size++ {
		s, err := New(t.Context(), h.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if h.id == 0 {
			h.id = createLog(t, s, 0)
		} else if size > from {
			if _, err := queue(t.Context(), s.Client(), h.id, fmt.Sprint(word, size)); err != nil {
				t.Fatal(err)
			}
		}
		if h.root[size], err = s.engine.Head(h.id); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		kept := config(t)
		copyTo(t, h.cfg.Dir, kept.Dir)
		copyTo(t, h.cfg.AnchorDir, kept.AnchorDir)
		for len(h.at) <= size {
			h.at = append(h.at, Config{})
		}
		h.at[size] = kept
	}
	return h
}

// anchorFile is the file of the log's anchor in a configuration.
func (h *history) anchorFile(cfg Config) string { return anchor.Path(cfg.AnchorDir, h.id) }

// tearAnchor leaves of the newest slot only half.
func (h *history) tearAnchor(t *testing.T, cfg Config) {
	t.Helper()
	st, err := anchor.Read(cfg.AnchorDir, cfg.Instance, h.id)
	if err != nil {
		t.Fatal(err)
	}
	path := h.anchorFile(cfg)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, fmt.Appendf(nil, "generation %d\n", st.Generation))
	copy(data[at:], bytes.Repeat([]byte("torn"), 40))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// One row for each step of adding entries at which a power cut may come, by what was persisted, and for what operators do. A log goes on only
// where nobody can have seen more than the storage has.
func TestStartAfter(t *testing.T) {
	h := makeHistory(t, nil, 0, "entry")
	fork := makeHistory(t, h, 3, "other")
	for _, test := range []struct {
		name            string
		storage, anchor int
		fork            bool // the storage is the other history's
		then            func(t *testing.T, cfg Config)
		cause           Cause // none: it goes on
		says            string
	}{
		{name: "nothing was persisted", storage: 5, anchor: 5},
		{name: "committed, not anchored", storage: 6, anchor: 5},
		{name: "committed, the anchor torn", storage: 6, anchor: 6, then: h.tearAnchor},
		{name: "committed and anchored", storage: 6, anchor: 6},
		{name: "a group committed, not anchored", storage: 8, anchor: 5},
		{name: "the first entry committed, not anchored", storage: 1, anchor: 0},
		{name: "anchored, the commit lost", storage: 5, anchor: 6, cause: CauseBehind, says: "size 6"},
		{name: "anchored, the commit lost, the anchor torn", storage: 5, anchor: 6, then: h.tearAnchor, cause: CauseAnchor, says: "half of the anchor"},
		{name: "the anchor's older half lost", storage: 6, anchor: 6, cause: CauseAnchor, says: "half of the anchor", then: func(t *testing.T, cfg Config) {
			st, err := anchor.Read(cfg.AnchorDir, cfg.Instance, h.id)
			must(t, err)
			edit(t, h.anchorFile(cfg), fmt.Sprintf("generation %d\n", st.Generation-1), "x")
		}},
		{name: "an old copy of the storage", storage: 2, anchor: 8, cause: CauseBehind, says: "older copy"},
		{name: "an empty storage", storage: 0, anchor: 8, cause: CauseBehind, says: "older copy"},
		{name: "an old copy of the anchor", storage: 8, anchor: 2},
		{name: "another history of the same size", storage: 6, anchor: 6, fork: true, cause: CauseDifferent, says: "another history"},
		{name: "another history, longer", storage: 8, anchor: 6, fork: true, cause: CauseDifferent, says: "does not grow out of"},
		{name: "another history, shorter", storage: 5, anchor: 6, fork: true, cause: CauseBehind, says: "older copy"},
		{name: "another history, before they part", storage: 8, anchor: 3, fork: true},
		{name: "the anchor gone", storage: 5, anchor: 5, cause: CauseNoAnchor, says: "missing", then: func(t *testing.T, cfg Config) { must(t, os.Remove(h.anchorFile(cfg))) }},
		{name: "the anchors' folder gone", storage: 5, anchor: 5, cause: CauseNoAnchor, says: "missing", then: func(t *testing.T, cfg Config) { must(t, os.RemoveAll(cfg.AnchorDir)) }},
		{name: "the anchor empty", storage: 5, anchor: 5, cause: CauseAnchor, says: "damaged", then: func(t *testing.T, cfg Config) { must(t, os.Truncate(h.anchorFile(cfg), 0)) }},
		{name: "the anchor damaged", storage: 5, anchor: 5, cause: CauseAnchor, says: "damaged", then: func(t *testing.T, cfg Config) {
			must(t, os.WriteFile(h.anchorFile(cfg), make([]byte, 8192), 0o600))
		}},
		{name: "the anchor of another instance", storage: 5, anchor: 5, cause: CauseAnchor, says: "another log", then: func(t *testing.T, cfg Config) {
			must(t, os.Remove(h.anchorFile(cfg)))
			theirs, err := anchor.Open(cfg.AnchorDir, "theirs")
			must(t, err)
			must(t, errors.Join(theirs.Add(h.id), theirs.Record(h.id, anchorRoot(h.root[5])), theirs.Close()))
		}},
		{name: "the anchor of a log that never had a root", storage: 5, anchor: 5, cause: CauseNoAnchor, says: "never had a root", then: func(t *testing.T, cfg Config) {
			must(t, os.Remove(h.anchorFile(cfg)))
			ours, err := anchor.Open(cfg.AnchorDir, cfg.Instance)
			must(t, err)
			must(t, errors.Join(ours.Add(h.id), ours.Close()))
		}},
		{name: "a clock set back", storage: 5, anchor: 5, then: func(t *testing.T, cfg Config) {
			ours, err := anchor.Open(cfg.AnchorDir, cfg.Instance)
			must(t, err)
			_, err = ours.Load(h.id)
			must(t, err)
			later := anchorRoot(h.root[5])
			later.Timestamp += uint64(time.Hour)
			must(t, errors.Join(ours.Record(h.id, later), ours.Close()))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := config(t)
			cfg.SequenceInterval = time.Hour
			from := h
			if test.fork {
				from = fork
			}
			copyTo(t, from.at[test.storage].Dir, cfg.Dir)
			copyTo(t, h.at[test.anchor].AnchorDir, cfg.AnchorDir)
			if test.then != nil {
				test.then(t, cfg)
			}
			looked, err := Inspect(t.Context(), cfg)
			must(t, err)
			before, err := looked.State(t.Context(), h.id)
			must(t, errors.Join(err, looked.Close()))

			s := open(t, cfg)
			st, err := s.State(h.id)
			must(t, err)
			if st.Size != uint64(test.storage) {
				t.Errorf("size %d", st.Size)
			}
			if (before.Frozen == nil) != (st.Frozen == nil) || st.Frozen != nil && before.Frozen.Cause != st.Frozen.Cause {
				t.Errorf("before it is opened: %v, after: %v", before.Frozen, st.Frozen)
			}
			readable(t, s, h.id, from.root[test.storage])
			if test.cause != "" {
				if st.Frozen == nil || st.Frozen.Cause != test.cause || !strings.Contains(st.Frozen.Reason, test.says) {
					t.Fatalf("frozen: %+v, want %s: %s", st.Frozen, test.cause, test.says)
				}
				demandRefusals(t, s, h.id)
				return
			}
			if st.Frozen != nil {
				t.Fatalf("frozen: %v", st.Frozen)
			}
			if st.Anchored.Size != st.Size || !bytes.Equal(st.Anchored.Hash, st.Root) {
				t.Errorf("anchored %v, stored size %d, root %x", st.Anchored, st.Size, st.Root)
			}
			must(t, writeAndProve(s.Client(), h.id, "more"))
			now, err := s.State(h.id)
			must(t, err)
			if now.Size != st.Size+1 || now.Anchored.Size != now.Size || now.Anchored.Timestamp <= st.Anchored.Timestamp {
				t.Errorf("after one more: %+v", now)
			}
			head, err := s.engine.Head(h.id)
			must(t, err)
			src, err := s.engine.Source(h.id)
			must(t, err)
			must(t, verify.Extends(t.Context(), src, uint64(test.storage), from.root[test.storage].RootHash, head.TreeSize, head.RootHash))
			must(t, src.Close())
		})
	}
}

// fill adds many entries, in order.
func fill(t *testing.T, s *Service, id int64, n int, suffix string) {
	t.Helper()
	tree, err := storage.GetTree(t.Context(), s.engine.Admin(), id)
	must(t, err)
	for i := 0; i < n; {
		var leaves []*trillian.LogLeaf
		for ; i < n && len(leaves) < 200; i++ {
			value := fmt.Appendf(nil, "entry %05d %s", i, suffix)
			hash := rfc6962.DefaultHasher.HashLeaf(value)
			leaves = append(leaves, &trillian.LogLeaf{LeafValue: value, MerkleLeafHash: hash, LeafIdentityHash: hash})
		}
		_, err := s.engine.QueueLeaves(t.Context(), tree, leaves, time.Now())
		must(t, err)
	}
	if size, _, err := s.Size(t.Context(), id); err != nil || size != uint64(n) {
		t.Fatalf("size %d, %v", size, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// edit overwrites what follows from mark on.
func edit(t *testing.T, path, mark, with string) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	at := bytes.Index(data, []byte(mark))
	if at < 0 {
		t.Fatalf("%q is not in %s", mark, path)
	}
	copy(data[at:], with)
	must(t, os.WriteFile(path, data, 0o600))
}

// readable sees that everything in the log can be had.
func readable(t *testing.T, s *Service, id int64, head types.LogRootV1) {
	t.Helper()
	c, ctx := s.Client(), t.Context()
	latest, err := c.GetLatestSignedLogRoot(ctx, &trillian.GetLatestSignedLogRootRequest{LogId: id})
	must(t, err)
	var root types.LogRootV1
	must(t, root.UnmarshalBinary(latest.SignedLogRoot.LogRoot))
	if root.TreeSize != head.TreeSize || !bytes.Equal(root.RootHash, head.RootHash) {
		t.Errorf("root %+v, want %+v", root, head)
	}
	size := int64(head.TreeSize)
	if size == 0 {
		return
	}
	leaves, err := c.GetLeavesByRange(ctx, &trillian.GetLeavesByRangeRequest{LogId: id, StartIndex: 0, Count: size})
	must(t, err)
	if int64(len(leaves.Leaves)) != size {
		t.Errorf("%d leaves of %d", len(leaves.Leaves), size)
	}
	_, err = c.GetInclusionProof(ctx, &trillian.GetInclusionProofRequest{LogId: id, LeafIndex: 0, TreeSize: size})
	must(t, err)
	_, err = c.GetConsistencyProof(ctx, &trillian.GetConsistencyProofRequest{LogId: id, FirstTreeSize: 1, SecondTreeSize: size})
	must(t, err)
}

// demandRefusals sees that nothing can be added to a frozen log, by anybody.
func demandRefusals(t *testing.T, s *Service, id int64) {
	t.Helper()
	before, err := s.engine.Head(id)
	must(t, err)
	run(t, s)
	for name, c := range map[string]trillian.TrillianLogClient{"direct": s.Client(), "socket": dial(t, s)} {
		_, err := queue(t.Context(), c, id, "more")
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "frozen") {
			t.Errorf("%s: queueing: %v", name, err)
		}
		_, err = c.InitLog(t.Context(), &trillian.InitLogRequest{LogId: id})
		if err == nil {
			t.Errorf("%s: initialised", name)
		}
	}
	s.pass(t.Context())
	if err := s.passOver(t.Context(), id); err == nil {
		t.Error("a pass went through")
	}
	if after, err := s.engine.Head(id); err != nil || after.TimestampNanos != before.TimestampNanos {
		t.Errorf("a new root: %+v, %v", after, err)
	}
	if s.Frozen(id) == nil {
		t.Error("it is not said to be frozen")
	}
}

// What goes wrong with the anchor while it is in use is noticed before the next root, or by the scrub.
func TestAnchorWhileServing(t *testing.T) {
	for name, do := range map[string]func(path string) error{
		"removed": os.Remove,
		"replaced": func(path string) error {
			data, err := os.ReadFile(path)
			return errors.Join(err, os.Remove(path), os.WriteFile(path, data, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := create(t, config(t))
			id := createLog(t, s, 0)
			must(t, writeAndProve(s.Client(), id, "a"))
			must(t, do(anchor.Path(s.cfg.AnchorDir, id)))
			_, _ = queue(t.Context(), s.Client(), id, "b") // may be queued, and goes no further
			if size, _, err := s.Size(t.Context(), id); err != nil || size != 1 {
				t.Errorf("size %d, %v", size, err)
			}
			demandRefusals(t, s, id)
		})
	}
	t.Run("changed", func(t *testing.T) {
		cfg := config(t)
		cfg.ScrubInterval = 10 * time.Millisecond
		s := create(t, cfg)
		id := createLog(t, s, 0)
		must(t, writeAndProve(s.Client(), id, "a"))
		edit(t, anchor.Path(cfg.AnchorDir, id), "size 1", "size 7")
		run(t, s)
		eventually(t, "the scrub to find it", func() bool { return s.Frozen(id) != nil })
	})
}

// A clone finds the anchors taken.
func TestAnchorsTaken(t *testing.T) {
	cfg := config(t)
	s := create(t, cfg)
	createLog(t, s, 0)
	clone := config(t)
	clone.AnchorDir = cfg.AnchorDir
	copyTo(t, cfg.Dir, clone.Dir)
	if _, err := New(t.Context(), clone); !errors.Is(err, folder.ErrLocked) {
		t.Errorf("beside its original: %v", err)
	}
	if _, err := New(t.Context(), Config{Dir: clone.Dir, SocketDir: clone.SocketDir}); err == nil {
		t.Error("opened without anchors")
	}
}

// The scrub finds what changes in the file while it is served, and the log is frozen.
func TestScrubFinds(t *testing.T) {
	cfg := config(t)
	cfg.ScrubInterval = 10 * time.Millisecond
	cfg.ScrubRate = 1 << 30
	s := create(t, cfg)
	id, sound := createLog(t, s, 0), createLog(t, s, 0)
	fill(t, s, id, 3000, strings.Repeat("x", 1000)) // more than is kept in memory
	must(t, s.Close())
	s = open(t, cfg)
	must(t, s.Frozen(id))
	run(t, s)
	eventually(t, "a pass", func() bool {
		st, err := s.State(id)
		return err == nil && st.Scrub.Passes > 0 && st.Scrub.CompletedSize == 3000
	})
	must(t, s.Frozen(id))
	path := filepath.Join(cfg.Dir, fmt.Sprintf("tree-%d.db", id))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	data, err := os.ReadFile(path)
	must(t, err)
	at := bytes.Index(data, []byte("entry 00007"))
	_, err = f.WriteAt([]byte{data[at] ^ 1}, int64(at))
	must(t, errors.Join(err, f.Close()))
	eventually(t, "the scrub to find it", func() bool { return s.Frozen(id) != nil })
	var frozen *Frozen
	if !errors.As(s.Frozen(id), &frozen) || frozen.Cause != CauseDamaged || len(frozen.Findings) != 1 {
		t.Fatalf("%+v", frozen)
	}
	if f := frozen.Findings[0]; f.What != verify.LeafValue || f.Leaf == nil || *f.Leaf != 7 || f.Tree != id || f.File != path {
		t.Errorf("%+v", f)
	}
	must(t, s.Frozen(sound))
	must(t, writeAndProve(s.Client(), sound, "goes on"))
	r, err := s.Verify(t.Context(), id, nil)
	if err != nil || len(r.Findings) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	families, err := registry.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == "sigbox_log_frozen" {
			for _, m := range f.GetMetric() {
				if m.GetLabel()[0].GetValue() == label(id) && m.GetGauge().GetValue() != 1 {
					t.Error("the metric says that it is not frozen")
				}
			}
			return
		}
	}
	t.Error("no metric")
}

// What is read and found to be damaged is not signed over either, whoever reads it.
func TestDamageFoundWhenRead(t *testing.T) {
	cfg := config(t)
	s := create(t, cfg)
	id := createLog(t, s, 0)
	fill(t, s, id, 6000, "")
	must(t, s.Close())
	path := filepath.Join(cfg.Dir, fmt.Sprintf("tree-%d.db", id))
	data, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, bytes.ReplaceAll(data, []byte("entry 00007"), []byte("entry 10007")), 0o600))
	// The proof at start does not reach that far.
	s = open(t, cfg)
	must(t, s.Frozen(id))
	_, err = s.Client().GetLeavesByRange(t.Context(), &trillian.GetLeavesByRangeRequest{LogId: id, StartIndex: 7, Count: 1})
	if status.Code(err) != codes.DataLoss {
		t.Errorf("reading it: %v", err)
	}
	demandRefusals(t, s, id)
	leaves, err := s.Client().GetLeavesByRange(t.Context(), &trillian.GetLeavesByRangeRequest{LogId: id, StartIndex: 8, Count: 1})
	if err != nil || len(leaves.Leaves) != 1 {
		t.Errorf("reading another: %v", err)
	}
}

func TestProofAtStartIsShort(t *testing.T) {
	cfg := config(t)
	s := create(t, cfg)
	id := createLog(t, s, 0)
	fill(t, s, id, 8000, strings.Repeat("x", 3000))
	must(t, s.Close())
	ctx := context.Background()
	src, err := Inspect(t.Context(), cfg)
	must(t, err)
	begun := time.Now()
	st, err := src.State(ctx, id)
	must(t, errors.Join(err, src.Close()))
	if took := time.Since(begun); took > time.Second || st.Frozen != nil {
		t.Errorf("%v, frozen: %v", took, st.Frozen)
	}
}
