package trillian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/trillian"
	trillianintegration "github.com/google/trillian/integration"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
	"github.com/sigbox/sigbox/services/trillian/sqlite"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

var (
	logged   lockedBuffer
	registry = prometheus.NewRegistry()
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func config(t testing.TB) Config {
	dir := t.TempDir()
	return Config{
		Dir: filepath.Join(dir, "logs"), AnchorDir: filepath.Join(dir, "anchor"), Instance: "instance", SocketDir: filepath.Join(dir, "run"),
		SequenceOnWrite: true, SequenceInterval: 20 * time.Millisecond,
		Logger:  slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: registry,
	}
}

// onEngines runs a test on each of the storages.
func onEngines(t *testing.T, test func(t *testing.T, config func(testing.TB) Config)) {
	t.Run("sqlite", func(t *testing.T) { test(t, config) })
	t.Run("postgres", func(t *testing.T) {
		test(t, func(t testing.TB) Config {
			cfg := config(t)
			cfg.Dir, cfg.Postgres = "", pgtest.Database(t)
			return cfg
		})
	})
}

func create(t testing.TB, cfg Config) *Service {
	t.Helper()
	if cfg.Postgres != (postgres.DSN{}) {
		pool, err := postgres.Open(t.Context(), cfg.Postgres, postgres.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if err := postgres.Create(t.Context(), pool, []postgres.Part{Migrations}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Create(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return open(t, cfg)
}

func open(t testing.TB, cfg Config) *Service {
	t.Helper()
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// run runs the service until the test ends.
func run(t testing.TB, s *Service) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatal(err)
	}
}

func createLog(t testing.TB, s *Service, maxRootDuration time.Duration) int64 {
	t.Helper()
	id, err := s.CreateLog(t.Context(), LogOptions{Name: "a log", MaxRootDuration: maxRootDuration})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// dial connects as Rekor does.
func dial(t testing.TB, s *Service) trillian.TrillianLogClient {
	t.Helper()
	address, port := s.RekorAddress()
	conn, err := grpc.NewClient(fmt.Sprintf("%s:%d", address, port), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return trillian.NewTrillianLogClient(conn)
}

func TestUpstreamIntegration(t *testing.T) { onEngines(t, testUpstreamIntegration) }

func testUpstreamIntegration(t *testing.T, config func(testing.TB) Config) {
	for _, test := range []struct {
		name    string
		onWrite bool
		client  func(*Service) trillian.TrillianLogClient
	}{
		{"direct, on write", true, (*Service).Client},
		{"socket, on write", true, func(s *Service) trillian.TrillianLogClient { return dial(t, s) }},
		{"direct, timed", false, (*Service).Client},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := config(t)
			cfg.SequenceOnWrite = test.onWrite
			s := create(t, cfg)
			run(t, s)
			params := trillianintegration.DefaultTestParameters(createLog(t, s, 0))
			params.SequencingPollWait = 50 * time.Millisecond
			if err := trillianintegration.RunLogIntegration(test.client(s), params); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func queue(ctx context.Context, c trillian.TrillianLogClient, id int64, value string) (*trillian.QueueLeafResponse, error) {
	return c.QueueLeaf(ctx, &trillian.QueueLeafRequest{LogId: id, Leaf: &trillian.LogLeaf{LeafValue: []byte(value)}})
}

// What Rekor asks for after it has queued an entry is there at the first time of asking, without a timed pass.
func TestProvableAtOnce(t *testing.T) { onEngines(t, testProvableAtOnce) }

func testProvableAtOnce(t *testing.T, config func(testing.TB) Config) {
	cfg := config(t)
	cfg.SequenceInterval = time.Hour
	s := create(t, cfg)
	run(t, s)
	id := createLog(t, s, 0)
	clients := []trillian.TrillianLogClient{s.Client(), dial(t, s)}
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := range 10 {
				value := fmt.Sprintf("%d/%d", w, i)
				if err := writeAndProve(clients[w%2], id, value); err != nil {
					t.Errorf("%s: %v", value, err)
				}
			}
		})
	}
	writers.Wait()
	size, root, err := s.Size(t.Context(), id)
	if err != nil || size != 80 || len(root) != 32 {
		t.Errorf("size %d, root %x, %v", size, root, err)
	}
	if n, err := s.Usage(id); err != nil || n == 0 {
		t.Errorf("usage %d, %v", n, err)
	}
}

func writeAndProve(c trillian.TrillianLogClient, id int64, value string) error {
	ctx := context.Background()
	if _, err := queue(ctx, c, id, value); err != nil {
		return err
	}
	latest, err := c.GetLatestSignedLogRoot(ctx, &trillian.GetLatestSignedLogRootRequest{LogId: id})
	if err != nil {
		return err
	}
	var root types.LogRootV1
	if err := root.UnmarshalBinary(latest.SignedLogRoot.LogRoot); err != nil {
		return err
	}
	hash := rfc6962.DefaultHasher.HashLeaf([]byte(value))
	p, err := c.GetInclusionProofByHash(ctx, &trillian.GetInclusionProofByHashRequest{LogId: id, LeafHash: hash, TreeSize: int64(root.TreeSize)})
	if err != nil {
		return err
	}
	index := p.Proof[0].LeafIndex
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(index), root.TreeSize, hash, p.Proof[0].Hashes, root.RootHash); err != nil {
		return err
	}
	leaves, err := c.GetLeavesByRange(ctx, &trillian.GetLeavesByRangeRequest{LogId: id, StartIndex: index, Count: 1})
	if err != nil {
		return err
	}
	if got := string(leaves.Leaves[0].LeafValue); got != value {
		return fmt.Errorf("leaf %d is %q", index, got)
	}
	entry, err := c.GetEntryAndProof(ctx, &trillian.GetEntryAndProofRequest{LogId: id, LeafIndex: index, TreeSize: int64(root.TreeSize)})
	if err != nil {
		return err
	}
	if got := string(entry.Leaf.LeafValue); got != value {
		return fmt.Errorf("entry %d is %q", index, got)
	}
	if index == 0 {
		return nil
	}
	between, err := c.GetConsistencyProof(ctx, &trillian.GetConsistencyProofRequest{LogId: id, FirstTreeSize: index, SecondTreeSize: int64(root.TreeSize)})
	if err != nil {
		return err
	}
	if between.Proof == nil {
		return errors.New("no consistency proof")
	}
	return nil
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestIdleLogStaysFresh(t *testing.T) { onEngines(t, testIdleLogStaysFresh) }

func testIdleLogStaysFresh(t *testing.T, config func(testing.TB) Config) {
	s := create(t, config(t))
	fresh, still := createLog(t, s, 100*time.Millisecond), createLog(t, s, 0)
	stamp := func(id int64) uint64 {
		head, err := s.engine.Head(id)
		if err != nil {
			t.Fatal(err)
		}
		return head.TimestampNanos
	}
	was, stillWas := stamp(fresh), stamp(still)
	run(t, s)
	eventually(t, "a fresh tree head", func() bool { return stamp(fresh) > was })
	was = stamp(fresh)
	eventually(t, "another fresh tree head", func() bool { return stamp(fresh) > was })
	if stamp(still) != stillWas {
		t.Error("a log without a root duration got a new tree head")
	}
}

func TestTimedSequencing(t *testing.T) { onEngines(t, testTimedSequencing) }

func testTimedSequencing(t *testing.T, config func(testing.TB) Config) {
	cfg := config(t)
	cfg.SequenceOnWrite = false
	s := create(t, cfg)
	id := createLog(t, s, 0)
	if _, err := queue(t.Context(), s.Client(), id, "queued"); err != nil {
		t.Fatal(err)
	}
	if size, _, err := s.Size(t.Context(), id); err != nil || size != 0 {
		t.Fatalf("size %d before the pass, %v", size, err)
	}
	run(t, s)
	eventually(t, "the entry", func() bool {
		size, _, err := s.Size(t.Context(), id)
		return err == nil && size == 1
	})
}

// A clock that was set back stops nothing: tree heads go on from the last one's time.
func TestClockSetBack(t *testing.T) { onEngines(t, testClockSetBack) }

func testClockSetBack(t *testing.T, config func(testing.TB) Config) {
	s := create(t, config(t))
	id := createLog(t, s, 0)
	ahead := time.Now().Add(10 * time.Minute)
	tree, err := s.engine.Admin().Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	described, err := tree.GetTree(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	head, err := s.engine.Head(id)
	if err != nil {
		t.Fatal(err)
	}
	head.TimestampNanos = uint64(ahead.UnixNano())
	if err := storeRoot(t.Context(), s, described, head); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := writeAndProve(s.Client(), id, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		now, err := s.engine.Head(id)
		if err != nil {
			t.Fatal(err)
		}
		if now.TimestampNanos < head.TimestampNanos+uint64(time.Millisecond) {
			t.Errorf("tree head of %d after %d", now.TimestampNanos, head.TimestampNanos)
		}
		head = now
	}
}

func TestClientErrors(t *testing.T) { onEngines(t, testClientErrors) }

func testClientErrors(t *testing.T, config func(testing.TB) Config) {
	s := create(t, config(t))
	id := createLog(t, s, 0)
	c := s.Client()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name string
		call func() error
		want codes.Code
	}{
		{"unknown tree", func() error { _, err := queue(t.Context(), c, 12345, "x"); return err }, codes.NotFound},
		{"no leaf", func() error {
			_, err := c.QueueLeaf(t.Context(), &trillian.QueueLeafRequest{LogId: id})
			return err
		}, codes.InvalidArgument},
		{"canceled", func() error { _, err := queue(canceled, c, id, "x"); return err }, codes.Canceled},
		{"initialised twice", func() error {
			_, err := c.InitLog(t.Context(), &trillian.InitLogRequest{LogId: id})
			return err
		}, codes.AlreadyExists},
		{"unknown leaf", func() error {
			_, err := c.GetInclusionProofByHash(t.Context(), &trillian.GetInclusionProofByHashRequest{LogId: id, LeafHash: make([]byte, 32), TreeSize: 1})
			return err
		}, codes.NotFound},
		{"beyond the tree", func() error {
			_, err := c.GetInclusionProof(t.Context(), &trillian.GetInclusionProofRequest{LogId: id, LeafIndex: 5, TreeSize: 3})
			return err
		}, codes.InvalidArgument},
	} {
		if err := test.call(); status.Code(err) != test.want {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := queue(t.Context(), c, id, "x"); status.Code(err) != codes.Unavailable {
		t.Errorf("after closing: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	cfg := config(t)
	if _, err := New(t.Context(), cfg); !errors.Is(err, sqlite.ErrMissing) {
		t.Errorf("nothing there: %v", err)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("New made the folder")
	}
	create(t, cfg)
	if err := Create(t.Context(), cfg); !errors.Is(err, sqlite.ErrLocked) {
		t.Errorf("creating over an open one: %v", err)
	}
	if _, err := New(t.Context(), cfg); !errors.Is(err, sqlite.ErrLocked) {
		t.Errorf("opening twice: %v", err)
	}
}

func TestSocket(t *testing.T) {
	t.Run("long path", func(t *testing.T) {
		cfg := config(t)
		cfg.SocketDir = filepath.Join(cfg.SocketDir, strings.Repeat("long/", 30))
		s := create(t, cfg)
		run(t, s)
		id := createLog(t, s, 0)
		if err := writeAndProve(dial(t, s), id, "x"); err != nil {
			t.Error(err)
		}
	})
	t.Run("odd path", func(t *testing.T) {
		cfg := config(t)
		cfg.SocketDir = filepath.Join(filepath.Dir(cfg.SocketDir), "a b%20?#")
		s := create(t, cfg)
		run(t, s)
		id := createLog(t, s, 0)
		if err := writeAndProve(dial(t, s), id, "x"); err != nil {
			t.Error(err)
		}
	})
	t.Run("stale, in an open folder", func(t *testing.T) {
		cfg := config(t)
		if err := os.MkdirAll(cfg.SocketDir, 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketPath(cfg.SocketDir), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		s := create(t, cfg)
		run(t, s)
		if err := writeAndProve(dial(t, s), createLog(t, s, 0), "x"); err != nil {
			t.Error(err)
		}
		if st, err := os.Stat(cfg.SocketDir); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("folder %v, %v", st.Mode(), err)
		}
	})
	t.Run("file in the way", func(t *testing.T) {
		cfg := config(t)
		if err := os.MkdirAll(cfg.SocketDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(socketPath(cfg.SocketDir), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := create(t, cfg)
		if err := s.Run(t.Context()); err == nil {
			t.Error("it was removed")
		}
	})
}

func TestPanicEndsOneCallOnly(t *testing.T) {
	handler := recoverPanics(slog.New(slog.DiscardHandler))
	_, err := handler(t.Context(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) { panic("at the disco") })
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "disco") {
		t.Errorf("%v", err)
	}
}

func TestTrillianLogsForDebugging(t *testing.T) {
	create(t, config(t))
	klog.Warning("from upstream")
	eventually(t, "the record", func() bool { return strings.Contains(logged.String(), "from upstream") })
	for line := range strings.Lines(logged.String()) {
		if strings.Contains(line, "from upstream") && (!strings.Contains(line, "level=DEBUG") || !strings.Contains(line, "component=trillian")) {
			t.Error(line)
		}
	}
}

func TestMetricsRegistered(t *testing.T) { onEngines(t, testMetricsRegistered) }

func testMetricsRegistered(t *testing.T, config func(testing.TB) Config) {
	s := create(t, config(t))
	if err := writeAndProve(s.Client(), createLog(t, s, 0), "x"); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, want := range []string{"trillian_added_leaves", "trillian_sequencer_tree_size", "trillian_sequencer_merge_delay"} {
		if !names[want] {
			t.Errorf("no %s among %v", want, names)
		}
	}
}

// storeRoot puts a log root into the storage as a sequencer with another clock would.
func storeRoot(ctx context.Context, s *Service, tree *trillian.Tree, root types.LogRootV1) error {
	b, err := root.MarshalBinary()
	if err != nil {
		return err
	}
	return s.engine.ReadWriteTransaction(ctx, tree, func(ctx context.Context, x storage.LogTreeTX) error {
		return x.StoreSignedLogRoot(ctx, &trillian.SignedLogRoot{LogRoot: b})
	})
}
