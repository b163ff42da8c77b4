// Package trillian runs Trillian's log server and sequencer inside this process, on storage that needs no
// database server, or on a PostgreSQL that several processes share. Certificate transparency and Rekor are its two callers: the first through Client, which
// calls the server directly, the second over gRPC on a unix socket, because it dials for itself.
package trillian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/extension"
	trillianlog "github.com/google/trillian/log"
	"github.com/google/trillian/monitoring"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/server"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"github.com/google/trillian/util/clock"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/internal/postgres"
	logspostgres "github.com/sigbox/sigbox/services/trillian/postgres"
	"github.com/sigbox/sigbox/services/trillian/sqlite"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// Config says where the logs are kept and how new entries get into the tree.
type Config struct {
	// Dir holds the logs, one database file per tree. Create makes it, New only opens it.
	Dir string
	// Postgres, if set, is where the logs are in place of Dir. Its schema is made by whoever makes the database, from
	// Migrations.
	Postgres postgres.DSN
	// AnchorDir holds the anchors of the logs, which tell an older copy of Dir from the newest. It had better be on another volume.
	AnchorDir string
	// Instance is who the anchors belong to.
	Instance string
	// SocketDir is where the gRPC socket is made, mode 0700. A path too long for a socket address
	// is replaced by a private temporary folder.
	SocketDir string
	// SequenceOnWrite makes an entry part of the tree, durable and provable before its writer is
	// answered. Without it entries wait for the next timed pass.
	SequenceOnWrite bool
	// SequenceInterval is the time between timed passes; zero means one second.
	SequenceInterval time.Duration
	// ScrubRate bounds the bytes a second that the background scrub reads; zero means one MiB.
	ScrubRate int64
	// ScrubInterval is the time between two passes of the scrub; zero means one hour.
	ScrubInterval time.Duration
	// Logger receives the service's records; nil discards them.
	Logger *slog.Logger
	// Metrics is where Trillian's own metrics are registered; nil keeps none.
	Metrics prometheus.Registerer
}

// LogOptions describes a log to create.
type LogOptions struct {
	// Name is shown to administrators; it has no meaning to the log.
	Name string
	// MaxRootDuration is the longest an idle log's tree head may grow old before a fresh one is made
	// over the same tree. Zero never refreshes it.
	MaxRootDuration time.Duration
}

// engine is what the service asks of its storage.
type engine interface {
	storage.LogStorage
	// Admin is the catalogue of trees.
	Admin() storage.AdminStorage
	// Head is the newest log root as readers see it.
	Head(treeID int64) (types.LogRootV1, error)
	// Usage is the bytes that a tree takes on the disk.
	Usage(treeID int64) (int64, error)
	// Source reads a tree as it is on the disk, to be examined.
	Source(treeID int64) (source, error)
	// Fatal receives the error that ended all writing.
	Fatal() <-chan error
	// Close waits for work in progress.
	Close() error
}

type source interface {
	verify.Source
	io.Closer
}

// sqliteEngine is SQLite's storage as an engine.
type sqliteEngine struct{ *sqlite.Storage }

func (e sqliteEngine) Source(treeID int64) (source, error) { return e.Storage.Source(treeID) }

// postgresEngine is PostgreSQL's.
type postgresEngine struct{ *logspostgres.Storage }

func (e postgresEngine) Source(treeID int64) (source, error) { return e.Storage.Source(treeID), nil }

// Migrations is the logs' part of the schema of a PostgreSQL database.
var Migrations = logspostgres.Migrations

// Service is the log server, the sequencer and their storage.
type Service struct {
	cfg    Config
	engine engine
	guard  guard
	server *server.TrillianLogRPCServer
	client *client
	socket socket
	ready  chan struct{}
	once   sync.Once
}

// Create makes empty storage in cfg.Dir and cfg.AnchorDir and refuses if there is any. With PostgreSQL it makes the anchors' folder alone.
func Create(_ context.Context, cfg Config) error {
	if err := anchor.Create(cfg.AnchorDir); err != nil {
		return fmt.Errorf("creating the logs' anchors: %w", err)
	}
	if cfg.Postgres != (postgres.DSN{}) {
		return nil
	}
	if err := sqlite.Create(cfg.Dir); err != nil {
		return fmt.Errorf("creating the logs' storage: %w", err)
	}
	return nil
}

// New opens the storage that Create made, for this process alone. Logs that are not what their anchors say are frozen: they can be read, and
// nothing else.
func New(ctx context.Context, cfg Config) (_ *Service, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.SequenceInterval == 0 {
		cfg.SequenceInterval = time.Second
	}
	if cfg.ScrubRate == 0 {
		cfg.ScrubRate = 1 << 20
	}
	if cfg.ScrubInterval == 0 {
		cfg.ScrubInterval = time.Hour
	}
	switch {
	case cfg.SequenceInterval < 0 || cfg.ScrubInterval < 0 || cfg.ScrubRate < 0:
		return nil, fmt.Errorf("sequence interval %v, scrub interval %v or scrub rate %d is negative", cfg.SequenceInterval, cfg.ScrubInterval, cfg.ScrubRate)
	case cfg.AnchorDir == "" || cfg.Instance == "":
		return nil, errors.New("no folder for the anchors, or nobody whose anchors they are")
	}
	routeKlog(cfg.Logger)
	factory := newMetricFactory(cfg.Metrics)
	// These are the process's own and not the service's: the first service gives them their registry.
	trillianlog.InitMetrics(factory)

	s := &Service{cfg: cfg, ready: make(chan struct{})}
	s.guard.start(cfg)
	if s.engine, err = s.open(ctx, factory); err != nil {
		return nil, fmt.Errorf("opening the logs' storage: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.engine.Close(), s.guard.close())
		}
	}()
	if err := s.prove(ctx); err != nil {
		return nil, err
	}
	if s.socket, err = newSocket(cfg.SocketDir); err != nil {
		return nil, err
	}
	s.server = server.NewTrillianLogRPCServer(extension.Registry{
		AdminStorage:  s.engine.Admin(),
		LogStorage:    guarded{s.engine, &s.guard},
		QuotaManager:  quota.Noop(),
		MetricFactory: factory,
	}, clock.System)
	s.client = &client{server: s.server}
	return s, nil
}

// open opens the storage that the configuration names.
func (s *Service) open(ctx context.Context, metrics monitoring.MetricFactory) (engine, error) {
	var sequence func(context.Context, *trillian.Tree, storage.LogStorage, int) error
	if s.cfg.SequenceOnWrite {
		sequence = s.sequenceQueued
	}
	damaged := func(tree int64, err error) { s.guard.freeze(tree, CauseDamaged, err.Error(), nil) }
	if s.cfg.Postgres != (postgres.DSN{}) {
		anchors := &sharedAnchors{guard: &s.guard}
		store, err := logspostgres.Open(ctx, s.cfg.Postgres, logspostgres.Options{
			Sequence: sequence, HashLeaf: rfc6962.DefaultHasher.HashLeaf, Anchor: anchors, Damaged: damaged, Metrics: metrics, Logger: s.cfg.Logger,
		})
		if err != nil {
			return nil, err
		}
		anchors.had = store.Had
		return postgresEngine{store}, nil
	}
	store, err := sqlite.Open(ctx, s.cfg.Dir, sqlite.Options{
		Sequence: sequence, HashLeaf: rfc6962.DefaultHasher.HashLeaf, Anchor: &s.guard, Damaged: damaged, Logger: s.cfg.Logger,
	})
	return sqliteEngine{store}, err
}

// CreateLog makes a log, initialises it with the empty tree's root, and returns its tree id.
func (s *Service) CreateLog(ctx context.Context, opts LogOptions) (int64, error) {
	tree, err := storage.CreateTree(ctx, s.engine.Admin(), &trillian.Tree{
		TreeState:       trillian.TreeState_ACTIVE,
		TreeType:        trillian.TreeType_LOG,
		DisplayName:     opts.Name,
		MaxRootDuration: durationpb.New(opts.MaxRootDuration),
	})
	if err != nil {
		return 0, fmt.Errorf("creating log %q: %w", opts.Name, err)
	}
	if err := s.guard.add(tree); err != nil {
		return 0, fmt.Errorf("making the anchor of log %q: %w", opts.Name, err)
	}
	if _, err := s.client.InitLog(ctx, &trillian.InitLogRequest{LogId: tree.TreeId}); err != nil {
		return 0, fmt.Errorf("initialising log %q: %w", opts.Name, err)
	}
	return tree.TreeId, nil
}

// Client calls the log server directly: no socket and no encoding in between. The byte slices in its answers are shared
// with the server's caches and must not be changed. It works from New to Close, whether Run runs or not.
func (s *Service) Client() trillian.TrillianLogClient { return s.client }

// RekorAddress is the log server's address in the two parts that Rekor joins with a colon: "unix:///DIR/trillian.sock"
// and N stand for the socket file "trillian.sock:N".
func (s *Service) RekorAddress() (address string, port uint16) { return s.socket.address() }

// Size returns the size and root hash of the tree that readers are given now.
func (s *Service) Size(_ context.Context, treeID int64) (size uint64, root []byte, err error) {
	head, err := s.engine.Head(treeID)
	if err != nil {
		return 0, nil, fmt.Errorf("reading the head of tree %d: %w", treeID, err)
	}
	return head.TreeSize, head.RootHash, nil
}

// Usage returns the bytes that a log takes on the disk.
func (s *Service) Usage(treeID int64) (int64, error) {
	n, err := s.engine.Usage(treeID)
	if err != nil {
		return 0, fmt.Errorf("measuring tree %d: %w", treeID, err)
	}
	return n, nil
}

// Run serves the socket and the timed sequencing until ctx is done, and then returns nil. An error of the storage that
// makes it unsafe to go on ends it at once and is returned. It can be run once.
func (s *Service) Run(ctx context.Context) error {
	listener, err := s.socket.listen()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	grpcServer := newGRPCServer(s.server, s.cfg.Logger)
	var work sync.WaitGroup
	served := make(chan error, 1)
	work.Go(func() { served <- grpcServer.Serve(listener) })
	work.Go(func() { s.sequenceTimed(ctx) })
	work.Go(func() { s.scrub(ctx) })
	s.once.Do(func() { close(s.ready) })

	select {
	case <-ctx.Done():
	case err = <-s.engine.Fatal():
	case err = <-served:
		err = fmt.Errorf("serving %s: %w", s.socket.path, err)
	}
	cancel()
	stopServer(grpcServer)
	work.Wait()
	return err
}

// Ready is closed once the socket accepts connections.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Close waits for calls in flight, refuses later ones, and closes the storage. Call it after Run has returned.
func (s *Service) Close() error {
	s.client.close()
	err := errors.Join(s.engine.Close(), s.guard.close())
	if s.socket.temporary != "" {
		err = errors.Join(err, os.RemoveAll(s.socket.temporary))
	}
	return err
}
