// Package tsa is a timestamp authority (RFC 3161): it says, under its signature,
// that a digest was there at a time.
//
// It stands on the libraries of Sigstore's timestamp authority, for the checks of
// chain and request and for the encoding, but not on that project's pkg/api,
// which keeps the authority in package globals: it would take its key and
// policies from the process-wide viper that Rekor reads too, its chain
// from a file only, panic on what is wrong with them, and allow one authority a
// process.
package tsa

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/prometheus/client_golang/prometheus"
	tsx509 "github.com/sigstore/timestamp-authority/v2/pkg/x509"

	"github.com/sigbox/sigbox/internal/pki"
)

const (
	path      = "/api/v1/timestamp"
	chainPath = path + "/certchain"

	typeQuery = "application/timestamp-query"
	typeReply = "application/timestamp-reply"
	typeJSON  = "application/json"

	// maxBody bounds a request, in bytes. A digest and a nonce take about 100.
	maxBody = 4 << 10
	// maxJSON bounds the JSON form more tightly, because reading the decimal
	// nonce takes quadratic time.
	maxJSON = 1 << 10
	// maxContentType bounds the header before it is parsed.
	maxContentType = 256
)

// policy is the one that Sigstore's timestamp authorities go by; there is no
// other here.
var policy = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}

// accuracy is what the timestamps claim: the time in them is in seconds.
const accuracy = time.Second

// Config says what timestamps are signed with.
type Config struct {
	// Signer is the key of Chain's first certificate, ECDSA P-256 or P-384.
	Signer crypto.Signer
	// Chain is the timestamping certificate first, the root last.
	Chain   []*x509.Certificate
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// Service is one timestamp authority. It keeps no record of what it stamped:
// each stamp stands for itself.
type Service struct {
	signer   crypto.Signer
	hash     crypto.Hash
	chain    []*x509.Certificate
	chainPEM []byte
	logger   *slog.Logger
	answers  *prometheus.CounterVec
	ready    chan struct{}
	once     sync.Once
	now      func() time.Time
}

// New checks key and chain as upstream does.
func New(_ context.Context, cfg Config) (*Service, error) {
	if cfg.Logger == nil {
		return nil, errors.New("timestamp authority: no logger")
	}
	err := pki.CheckChain(cfg.Chain, cfg.Signer, x509.ExtKeyUsageTimeStamping)
	if err == nil {
		err = tsx509.VerifyCertChain(cfg.Chain, cfg.Signer, true)
	}
	if err != nil && !pki.IsExpired(err) {
		return nil, fmt.Errorf("timestamp authority certificate chain: %w", err)
	}
	s := &Service{
		signer:   cfg.Signer,
		chain:    cfg.Chain,
		chainPEM: pki.Encode(cfg.Chain...),
		logger:   cfg.Logger,
		ready:    make(chan struct{}),
		now:      time.Now,
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sigbox_tsa_answers_total", Help: "Answers to timestamp requests.",
		}, []string{"code"}),
	}
	key, ok := cfg.Signer.Public().(*ecdsa.PublicKey)
	switch {
	case ok && key.Curve == elliptic.P256():
		s.hash = crypto.SHA256
	case ok && key.Curve == elliptic.P384():
		s.hash = crypto.SHA384
	default:
		return nil, fmt.Errorf("timestamp authority key is a %T, not ECDSA P-256 or P-384", cfg.Signer.Public())
	}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(s.answers); err != nil {
			return nil, fmt.Errorf("timestamp authority metrics: %w", err)
		}
	}
	return s, nil
}

// Handler serves /api/v1/timestamp and /api/v1/timestamp/certchain.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+path, s.serve)
	mux.HandleFunc("GET "+chainPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, _ = w.Write(s.chainPEM)
	})
	return mux
}

// errNotValid means that the authority's own certificates do not cover the time.
var errNotValid = errors.New("certificate is not valid now")

// Ready is closed once Run has stamped, or knows why it cannot.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Run stamps once, to know that the key works, and waits for ctx to be done.
func (s *Service) Run(ctx context.Context) error {
	probe := &timestamp.Request{HashAlgorithm: crypto.SHA256, HashedMessage: make([]byte, crypto.SHA256.Size())}
	switch _, err := s.stamp(probe); {
	case errors.Is(err, errNotValid):
		// The chain can still be asked for, and each request says what is wrong.
		s.logger.ErrorContext(ctx, "no timestamps can be given", "error", err)
	case err != nil:
		return err
	}
	s.once.Do(func() { close(s.ready) })
	<-ctx.Done()
	return nil
}

// refusal is an error of the client's, with the status that says so.
type refusal struct {
	status  int
	message string
}

func (r refusal) Error() string { return r.message }

func (s *Service) serve(w http.ResponseWriter, r *http.Request) {
	reply, err := s.answer(w, r)
	var no refusal
	switch {
	case errors.As(err, &no):
	case err != nil:
		no = refusal{http.StatusServiceUnavailable, "no timestamp can be given at present"}
		w.Header().Set("Retry-After", "1")
		s.logger.ErrorContext(r.Context(), "timestamp failed", "error", err)
	default:
		s.answers.WithLabelValues("200").Inc()
		w.Header().Set("Content-Type", typeReply)
		_, _ = w.Write(reply)
		return
	}
	s.answers.WithLabelValues(strconv.Itoa(no.status)).Inc()
	w.Header().Set("Content-Type", typeJSON)
	w.WriteHeader(no.status)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": no.status, "message": no.message})
}

func (s *Service) answer(w http.ResponseWriter, r *http.Request) (reply []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.logger.ErrorContext(r.Context(), "timestamp panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	media, err := contentType(r.Header)
	if err != nil {
		return nil, refusal{http.StatusUnsupportedMediaType, err.Error()}
	}
	limit := int64(maxBody)
	if media == typeJSON {
		limit = maxJSON
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("timestamp request is larger than %d bytes", limit)}
	case err != nil:
		return nil, refusal{http.StatusBadRequest, "timestamp request ended early"}
	}
	req, err := parse(media, body)
	if err != nil {
		return nil, refusal{http.StatusBadRequest, err.Error()}
	}
	return s.stamp(req)
}

func contentType(h http.Header) (string, error) {
	values := h.Values("Content-Type")
	if len(values) != 1 || len(values[0]) > maxContentType {
		return "", errors.New("one short Content-Type is needed")
	}
	media, _, err := mime.ParseMediaType(values[0])
	if err != nil || (media != typeQuery && media != typeJSON) {
		return "", fmt.Errorf("Content-Type is neither %s nor %s", typeQuery, typeJSON)
	}
	return media, nil
}

// stamp signs. It signs nothing that verifiers would have to turn down because
// the authority's own certificates do not cover the time.
func (s *Service) stamp(req *timestamp.Request) ([]byte, error) {
	now := s.now().UTC() // GeneralizedTime has no other zone (RFC 3161 section 2.4.2)
	for _, c := range s.chain {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return nil, fmt.Errorf("%w: %q is valid from %s to %s", errNotValid, c.Subject, c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
		}
	}
	t := timestamp.Timestamp{
		HashAlgorithm:     req.HashAlgorithm,
		HashedMessage:     req.HashedMessage,
		Time:              now,
		Accuracy:          accuracy,
		Nonce:             req.Nonce,
		Policy:            policy,
		AddTSACertificate: req.Certificates,
	}
	reply, err := t.CreateResponseWithOpts(s.chain[0], s.signer, s.hash)
	if err != nil {
		return nil, fmt.Errorf("signing timestamp: %w", err)
	}
	return reply, nil
}
