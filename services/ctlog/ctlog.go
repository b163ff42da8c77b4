// Package ctlog serves the certificate transparency log (RFC 6962) in which
// every certificate of this instance is recorded before it is issued. It takes
// certificates of the instance's own CA only.
//
// Upstream's CTFE does the work. Its globals stay in here: the registry of
// private key types, klog, and its metrics, which go to Prometheus's default
// registry with the prefix "ctlog_".
package ctlog

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/certificate-transparency-go/trillian/ctfe"
	"github.com/google/certificate-transparency-go/trillian/ctfe/configpb"
	"github.com/google/trillian"
	"github.com/google/trillian/crypto/keys"
	"github.com/google/trillian/crypto/keyspb"
	"github.com/google/trillian/monitoring/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sigbox/sigbox/internal/durable"
)

const (
	// Prefix is the path below which the log answers: Prefix + "/ct/v1/…".
	Prefix = "/ctlog"

	// maxBody bounds a submission, in bytes. A chain of Fulcio's takes about
	// 3 KiB, and one with the largest certificate that it issues 48.
	maxBody = 64 << 10

	// rpcDeadline bounds the work that one request may cause in the log server.
	rpcDeadline = 30 * time.Second

	// MergeDelay is the promise of RFC 6962 section 3. Entries are sequenced as
	// they are written; the day is for a restore or a repair.
	MergeDelay = 24 * time.Hour
)

// Config says which tree is served, and with what.
type Config struct {
	// TreeID is the tree of the log server that holds this log.
	TreeID int64
	// Signer signs timestamps (SCTs) and tree heads. ECDSA P-256 and SHA-256 is
	// what RFC 6962 section 2.1.4 has and what clients verify.
	Signer crypto.Signer
	// Roots are the only anchors a submitted chain may end in.
	Roots []*x509.Certificate
	// Log is the log server.
	Log trillian.TrillianLogClient
	// Dir is a folder for roots.pem, which upstream reads from a file.
	Dir    string
	Logger *slog.Logger
	// Frozen, if set, is asked before each signature. An error is the reason why
	// nothing may be signed for the tree: it is then served to be read.
	Frozen func() error
}

// Service is one log.
type Service struct {
	handler http.Handler
	sths    ctfe.STHGetter
	frozen  func() error
	ready   chan struct{}
	once    sync.Once
}

type signerKey struct{}

// The registry of key types is upstream's only way in for a private key. The
// signer travels in the context, so that nothing of it stays behind in there.
var registerSigner = sync.OnceFunc(func() {
	keys.RegisterHandler(&wrapperspb.StringValue{}, func(ctx context.Context, _ proto.Message) (crypto.Signer, error) {
		signer, ok := ctx.Value(signerKey{}).(crypto.Signer)
		if !ok {
			return nil, errors.New("no ct log signer given")
		}
		return signer, nil
	})
})

// New sets the log up. It does not reach for the tree yet: Run does.
func New(ctx context.Context, cfg Config) (*Service, error) {
	switch {
	case cfg.Signer == nil:
		return nil, errors.New("ct log: no signer")
	case len(cfg.Roots) == 0:
		return nil, errors.New("ct log: no roots: it would take no certificate")
	case cfg.Log == nil:
		return nil, errors.New("ct log: no log server")
	case cfg.Logger == nil:
		return nil, errors.New("ct log: no logger")
	}
	if cfg.Frozen == nil {
		cfg.Frozen = func() error { return nil }
	}
	der, err := x509.MarshalPKIXPublicKey(cfg.Signer.Public())
	if err != nil {
		return nil, fmt.Errorf("encoding ct log key: %w", err)
	}
	roots, err := writeRoots(cfg.Dir, cfg.Roots)
	if err != nil {
		return nil, fmt.Errorf("writing ct log roots: %w", err)
	}
	key, err := anypb.New(&wrapperspb.StringValue{})
	if err != nil {
		return nil, fmt.Errorf("encoding ct log key reference: %w", err)
	}
	validated, err := ctfe.ValidateLogConfig(&configpb.LogConfig{
		LogId:            cfg.TreeID,
		Prefix:           Prefix,
		RootsPemFile:     []string{roots},
		PrivateKey:       key,
		PublicKey:        &keyspb.PublicKey{Der: der},
		ExtKeyUsages:     []string{"CodeSigning"},
		MaxMergeDelaySec: int32(MergeDelay / time.Second),
	})
	if err != nil {
		return nil, fmt.Errorf("ct log configuration: %w", err)
	}
	registerSigner()
	instance, err := ctfe.SetUpInstance(context.WithValue(ctx, signerKey{}, crypto.Signer(guardedSigner{cfg.Signer, cfg.Frozen})), ctfe.InstanceOptions{
		Validated:          validated,
		Client:             cfg.Log,
		Deadline:           rpcDeadline,
		MetricFactory:      prometheus.MetricFactory{Prefix: "ctlog_"},
		RequestLog:         silent{},
		MaskInternalErrors: true,
	})
	if err != nil {
		return nil, fmt.Errorf("setting up ct log: %w", err)
	}
	mux := http.NewServeMux()
	for path, h := range instance.Handlers {
		mux.Handle(path, h)
	}
	return &Service{
		handler: guard(readOnly(http.MaxBytesHandler(mux, maxBody), cfg.Frozen), cfg.Logger),
		sths:    instance.STHGetter,
		frozen:  cfg.Frozen,
		ready:   make(chan struct{}),
	}, nil
}

// Handler serves Prefix + "/ct/v1/…".
func (s *Service) Handler() http.Handler { return s.handler }

// Ready is closed when the log's tree answered and a tree head was signed.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Run signs one tree head, to know that tree and key work, and then waits for
// ctx to be done: the log works only when asked.
func (s *Service) Run(ctx context.Context) error {
	if s.frozen() == nil {
		if _, err := s.sths.GetSTH(ctx); err != nil && s.frozen() == nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("signing ct log tree head: %w", err)
		}
	}
	s.once.Do(func() { close(s.ready) })
	<-ctx.Done()
	return nil
}

func writeRoots(dir string, roots []*x509.Certificate) (path string, err error) {
	var data []byte
	for _, c := range roots {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	path = filepath.Join(dir, "roots.pem")
	return path, durable.WriteFile(path, data, 0o644)
}

// guard keeps a panic from taking the caller down, who may be Fulcio in this
// process, and tells clients that are turned away when to come back.
func guard(next http.Handler, logger *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				logger.ErrorContext(r.Context(), "ct log handler panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				if !rec.wrote {
					http.Error(rec, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
				}
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

type recorder struct {
	http.ResponseWriter
	wrote bool
}

func (r *recorder) WriteHeader(status int) {
	r.wrote = true
	if (status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests) && r.Header().Get("Retry-After") == "" {
		r.Header().Set("Retry-After", "1")
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(p)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
