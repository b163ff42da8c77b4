// Package rekor serves a Rekor v1 transparency log in this process, from
// upstream's own library.
//
// Upstream keeps its state in package variables, so a process holds one Service
// at a time. What upstream leaves to databases beside the log, the search index
// and the attestations, is kept in a store of ours: it is on disk before the
// answer that an entry was logged leaves.
//
// Three kinds of entries that upstream knows are not taken: alpine, jar and
// rpm. Their parsers allocate and decompress what the submitter says, without
// bound. The other eight are.
package rekor

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/services/rekor/store"
)

const (
	// DefaultMaxBodyBytes admits an attestation of some 16 MB, which intoto
	// entries encode twice.
	DefaultMaxBodyBytes = 32 << 20

	// largeBodies is how many bodies of more than largeBodyBytes are read and
	// decoded at a time; others wait.
	largeBodies    = 2
	largeBodyBytes = 1 << 20

	// maxQueryBytes bounds a search: the largest part is a public key.
	maxQueryBytes = 1 << 20

	// defaultTimeout bounds the time one request may take.
	defaultTimeout = 30 * time.Second

	indexFile = "index.db"
)

// Config is what a Service needs. Fields without a stated default are required.
type Config struct {
	// TreeID is the log's tree in Trillian, which holds it already.
	TreeID int64
	// Signer signs entry timestamps and checkpoints. It holds an ECDSA key on
	// P-256: clients verify with SHA-256 and nothing else.
	Signer crypto.Signer
	// Hostname is the origin in checkpoints, and the name in their signatures.
	Hostname string
	// TrillianAddress and TrillianPort reach the log server, as upstream dials
	// it: ADDRESS:PORT is a gRPC target.
	TrillianAddress string
	TrillianPort    uint16
	// Dir holds the search index, made by Create.
	Dir string
	// Postgres, if set, is where the search index is in place of Dir. Its schema
	// is made by whoever makes the database, from Migrations.
	Postgres *pgxpool.Pool
	// MaxBodyBytes bounds a request's body. Default DefaultMaxBodyBytes.
	MaxBodyBytes int64
	// Outbox keeps a copy of what is added to the search index for an archive, which
	// takes it with Service.Outbox.
	Outbox bool
	// Audit records each entry before its answer leaves. An error withholds the
	// answer.
	Audit audit.Func
	// Frozen, if set, is asked before each signature. An error is the reason why
	// nothing may be signed for the tree: it is then served to be read, without
	// promises and checkpoints.
	Frozen func() error
	// Logger takes upstream's warnings and errors too.
	Logger *slog.Logger
	// Metrics registers the service's own metrics. Default nowhere. Upstream
	// registers a few (rekor_new_entries among them) with Prometheus' default
	// registerer when the program starts.
	Metrics prometheus.Registerer
}

// Create makes the empty search index in dir, and refuses to overwrite one.
func Create(ctx context.Context, dir string) error {
	return store.Create(ctx, filepath.Join(dir, indexFile))
}

// Migrations is the search index's part of the schema of a PostgreSQL database.
var Migrations = store.Migrations

// records is the search index, with the attestations: a store.Store or a
// store.Postgres.
type records interface {
	Put(ctx context.Context, r store.Record) error
	Any(ctx context.Context, criteria []store.Criterion, limit int) ([]store.EntryID, error)
	All(ctx context.Context, criteria []store.Criterion, limit int) ([]store.EntryID, error)
	Attestation(ctx context.Context, key string) ([]byte, error)
	Failed() <-chan struct{}
	Err() error
	Close() error
}

// Service is a running log.
type Service struct {
	cfg     Config
	logger  *slog.Logger
	store   records
	file    *store.Store // the same; nil with PostgreSQL
	logID   string
	handler http.Handler
	metrics metrics
	large   chan struct{}
	timeout time.Duration

	freshOutbox bool

	ready     chan struct{}
	readyOnce sync.Once
	closeOnce sync.Once
	closeErr  error
}

// New opens the search index and sets up the log. It fails while another
// Service of this process is not closed.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.MaxBodyBytes == 0 {
		cfg.MaxBodyBytes = DefaultMaxBodyBytes
	}
	if cfg.Frozen == nil {
		cfg.Frozen = func() error { return nil }
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("rekor: %w", err)
	}
	logID, err := keyID(cfg.Signer.Public())
	if err != nil {
		return nil, fmt.Errorf("rekor: computing the log's id: %w", err)
	}
	if !claimed.TryLock() {
		return nil, errors.New("rekor: this process has a log already; upstream keeps its state in package variables")
	}
	s := &Service{
		cfg:     cfg,
		logger:  cfg.Logger,
		logID:   logID,
		large:   make(chan struct{}, largeBodies),
		timeout: defaultTimeout,
		ready:   make(chan struct{}),
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("rekor: %w", err), s.Close())
	}
	return s, nil
}

func (c Config) validate() error {
	key, ok := c.publicKey()
	switch {
	case c.TreeID <= 0:
		return fmt.Errorf("tree id %d is not one", c.TreeID) // upstream would make a new tree
	case !ok:
		return errors.New("no signer")
	case key == nil:
		return fmt.Errorf("the signer's key is %T, want ECDSA on P-256", c.Signer.Public())
	case c.Hostname == "":
		return errors.New("no hostname")
	case c.TrillianAddress == "":
		return errors.New("no address of trillian")
	case c.Dir == "" && c.Postgres == nil:
		return errors.New("no folder")
	case c.Outbox && c.Postgres != nil:
		return errNoFile
	case c.MaxBodyBytes < 0:
		return fmt.Errorf("a body limit of %d bytes", c.MaxBodyBytes)
	case c.Audit == nil:
		return errors.New("no audit record")
	case c.Logger == nil:
		return errors.New("no logger")
	}
	return nil
}

func (c Config) publicKey() (key *ecdsa.PublicKey, present bool) {
	if c.Signer == nil {
		return nil, false
	}
	if key, ok := c.Signer.Public().(*ecdsa.PublicKey); ok && key.Curve == elliptic.P256() {
		return key, true
	}
	return nil, true
}

func (s *Service) open(ctx context.Context) error {
	var err error
	if s.cfg.Postgres != nil {
		s.store = store.OpenPostgres(s.cfg.Postgres)
	} else {
		if s.file, err = store.Open(ctx, filepath.Join(s.cfg.Dir, indexFile)); err != nil {
			return err
		}
		s.store = s.file
		if err := s.openOutbox(ctx); err != nil {
			return err
		}
	}
	if s.metrics, err = newMetrics(s.cfg.Metrics); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	if err := configureUpstream(s.cfg, s.store); err != nil {
		return err
	}
	api, err := s.routes()
	if err != nil {
		return err
	}
	s.handler = s.contain(s.bound(api))
	return nil
}

// Handler serves /api/v1/log, what is below it, and /api/v1/index/retrieve.
func (s *Service) Handler() http.Handler { return s.handler }

// LogID is the SHA-256 of the log's public key in PKIX form, in hexadecimal.
// Entries carry it, and clients find the key by it.
func (s *Service) LogID() string { return s.logID }

// Ready is closed when the log has answered once.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Run waits for the log to answer, and then until ctx is done or the search
// index cannot be written any more.
func (s *Service) Run(ctx context.Context) error {
	for delay := 5 * time.Millisecond; !s.answers(ctx); delay = min(2*delay, 500*time.Millisecond) {
		select {
		case <-time.After(delay):
		case <-s.store.Failed():
			return fmt.Errorf("rekor: %w", s.store.Err())
		case <-ctx.Done():
			return nil
		}
	}
	s.readyOnce.Do(func() { close(s.ready) })
	select {
	case <-s.store.Failed():
		return fmt.Errorf("rekor: %w", s.store.Err())
	case <-ctx.Done():
		return nil
	}
}

// Close disconnects from Trillian and closes the search index. No request may
// be under way.
func (s *Service) Close() error {
	s.closeOnce.Do(func() {
		releaseUpstream()
		if s.store != nil {
			s.closeErr = s.store.Close()
		}
		s.metrics.unregister(s.cfg.Metrics)
		claimed.Unlock()
	})
	return s.closeErr
}
