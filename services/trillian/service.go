// Package trillian runs Trillian's log server and sequencer inside this process, on storage that needs no
// database server. Certificate transparency and Rekor are its two callers: the first through Client, which
// calls the server directly, the second over gRPC on a unix socket, because it dials for itself.
package trillian

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/trillian"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says where the logs are kept and how new entries get into the tree.
type Config struct {
	// Dir holds the logs, one database file per tree. Create makes it, New only opens it.
	Dir string
	// SocketDir is where the gRPC socket is made, mode 0700. A path too long for a socket address
	// is replaced by a private temporary folder.
	SocketDir string
	// SequenceOnWrite makes an entry part of the tree, durable and provable before its writer is
	// answered. Without it entries wait for the next timed pass.
	SequenceOnWrite bool
	// SequenceInterval is the time between timed passes; zero means one second.
	SequenceInterval time.Duration
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

// Service is the log server, the sequencer and their storage.
type Service struct {
	ready chan struct{}
}

var errUnbuilt = errors.New("not built yet")

// Create makes empty storage in cfg.Dir and refuses if there is any.
func Create(ctx context.Context, cfg Config) error { return errUnbuilt }

// New opens the storage that Create made.
func New(ctx context.Context, cfg Config) (*Service, error) { return nil, errUnbuilt }

// CreateLog makes a log, initialises it with the empty tree's root, and returns its tree id.
func (s *Service) CreateLog(ctx context.Context, opts LogOptions) (int64, error) {
	return 0, errUnbuilt
}

// Client calls the log server directly: no socket and no encoding in between. Answers share memory with the
// server's caches and must not be changed.
func (s *Service) Client() trillian.TrillianLogClient { return nil }

// RekorAddress is the log server's address in the two parts that Rekor joins with a colon: "unix:///DIR/trillian.sock"
// and N stand for the socket file "trillian.sock:N".
func (s *Service) RekorAddress() (address string, port uint16) { return "", 0 }

// Size returns the size and root hash of the tree that readers are given now.
func (s *Service) Size(ctx context.Context, treeID int64) (size uint64, root []byte, err error) {
	return 0, nil, errUnbuilt
}

// Run serves the socket and the timed sequencing until ctx is done, and then returns nil. An error of the storage that
// makes it unsafe to go on ends it at once and is returned.
func (s *Service) Run(ctx context.Context) error { return errUnbuilt }

// Ready is closed once the socket accepts connections.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Close waits for calls in flight and closes the storage. Call it after Run has returned.
func (s *Service) Close() error { return nil }
