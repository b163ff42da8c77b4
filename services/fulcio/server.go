package fulcio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/sigstore/fulcio/pkg/config"
	fulciogrpc "github.com/sigstore/fulcio/pkg/generated/protobuf"
	"github.com/sigstore/fulcio/pkg/generated/protobuf/legacy"
	"github.com/sigstore/fulcio/pkg/server"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// maxBody bounds a request, in bytes: a token with its claims, and a key.
	maxBody = 256 << 10
	// requestTimeout bounds issuance, waiting for the log included.
	requestTimeout = 15 * time.Second
	// auditTimeout bounds the record of a refusal.
	auditTimeout = 2 * time.Second
	// maxRecorded bounds strings from outside in a record, in bytes.
	maxRecorded = 1024

	caError = "the certificate authority could not issue the certificate"
)

type stage int

const (
	stageAsking  stage = iota // token and key are being looked at
	stageLogging              // the precertificate is with the log
	stageIssuing
	stageIssued
)

// request follows one request through upstream's server, which keeps what went
// wrong to itself and answers 400 to whatever its CA fails with.
type request struct {
	principal *vouched
	authErr   error
	stage     stage
	serial    string // of the precertificate, hexadecimal, once it is on record
	tbs       []byte // of the log's entry
	failure   *failure
}

type failure struct {
	code    codes.Code
	reason  string
	message string // for the client
	err     error
}

type requestKey struct{}

func requestFrom(ctx context.Context) *request {
	r, _ := ctx.Value(requestKey{}).(*request)
	return r
}

func (r *request) fail(code codes.Code, reason, message string, err error) error {
	r.failure = &failure{code, reason, message, err}
	return err
}

func (r *request) failLint(err error) error {
	var claims claimsError
	if errors.As(err, &claims) {
		return r.fail(codes.InvalidArgument, reasonClaims, bounded(err.Error(), 300), err)
	}
	return r.fail(codes.Internal, reasonInternal, caError, err)
}

// outcome says what became of the request that upstream answered with err.
func (r *request) outcome(ctx context.Context, err error) *failure {
	switch {
	case r.failure != nil:
		return r.failure
	case errors.Is(ctx.Err(), context.Canceled):
		return &failure{codes.Canceled, reasonGone, "the client went away", ctx.Err()}
	case ctx.Err() != nil:
		return &failure{codes.Unavailable, reasonInternal, "the request took too long", ctx.Err()}
	case errors.Is(r.authErr, errUnreachable):
		return &failure{codes.Unavailable, reasonUnreachable, errUnreachable.Error(), r.authErr}
	case r.authErr != nil:
		return &failure{codes.InvalidArgument, reasonToken, authMessage(r.authErr), r.authErr}
	case r.stage == stageLogging:
		return &failure{codes.Unavailable, reasonLog, "the certificate transparency log did not take the certificate", err}
	case status.Code(err) == codes.InvalidArgument && r.principal == nil:
		return &failure{codes.InvalidArgument, reasonToken, status.Convert(err).Message(), err}
	case status.Code(err) == codes.InvalidArgument:
		return &failure{codes.InvalidArgument, reasonKey, status.Convert(err).Message(), err}
	default:
		return &failure{codes.Internal, reasonInternal, caError, err}
	}
}

// caServer wraps upstream's server: it gives it its configuration, contains its
// panics, and keeps the record of refusals.
type caServer struct {
	server.GRPCCAServer
	config   *config.FulcioConfig
	refusals *refusals
	logger   *slog.Logger
	metrics  *metrics
}

// CreateSigningCertificate implements fulciogrpc.CAServer.
func (s *caServer) CreateSigningCertificate(ctx context.Context, in *fulciogrpc.CreateSigningCertificateRequest) (out *fulciogrpc.SigningCertificate, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req := &request{}
	ctx = context.WithValue(config.With(ctx, s.config), requestKey{}, req)
	defer func() {
		if p := recover(); p != nil {
			s.logger.ErrorContext(ctx, "fulcio panicked", "panic", p, "stack", string(debug.Stack()))
			out, err = nil, s.refuse(ctx, in, req, &failure{codes.Internal, reasonInternal, caError, fmt.Errorf("panic: %v", p)})
		}
	}()
	out, err = s.GRPCCAServer.CreateSigningCertificate(ctx, in)
	if err == nil && req.stage != stageIssued {
		err = errors.New("upstream answered with a certificate that was not issued here")
	}
	if err != nil {
		return nil, s.refuse(ctx, in, req, req.outcome(ctx, err))
	}
	s.metrics.issued.Inc()
	return out, nil
}

// GetConfiguration implements fulciogrpc.CAServer.
func (s *caServer) GetConfiguration(ctx context.Context, in *fulciogrpc.GetConfigurationRequest) (*fulciogrpc.Configuration, error) {
	return s.GRPCCAServer.GetConfiguration(config.With(ctx, s.config), in)
}

// refuse puts a refusal on record, and answers it.
func (s *caServer) refuse(ctx context.Context, in *fulciogrpc.CreateSigningCertificateRequest, req *request, f *failure) error {
	s.metrics.refused.WithLabelValues(f.reason).Inc()
	claimed, _ := claimedIssuer(tokenOf(ctx, in))
	level := slog.LevelInfo
	if f.code != codes.InvalidArgument && f.code != codes.Canceled {
		level = slog.LevelError
	}
	s.logger.Log(ctx, level, "certificate refused", "reason", f.reason, "claimed_issuer", bounded(claimed, maxRecorded), "error", bounded(f.err.Error(), maxRecorded))
	fields := map[string]any{
		"reason":         f.reason,
		"message":        bounded(f.message, maxRecorded),
		"claimed_issuer": bounded(claimed, maxRecorded),
	}
	if req.serial != "" {
		fields["serial"] = req.serial // it may be in the log, and never left
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	if err := s.refusals.add(ctx, f.reason, fields); err != nil {
		s.logger.ErrorContext(ctx, "refusal is not on record", "error", err)
		return status.Error(codes.Unavailable, "the request could not be put on record")
	}
	return status.Error(f.code, f.message)
}

func tokenOf(ctx context.Context, in *fulciogrpc.CreateSigningCertificateRequest) string {
	if t := in.GetCredentials().GetOidcIdentityToken(); t != "" {
		return t
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if t := md.Get(server.MetadataOIDCTokenKey); len(t) == 1 {
			return t[0]
		}
	}
	return ""
}

// newHandler serves the REST forms of both of Fulcio's APIs by calling the
// server directly.
func newHandler(ctx context.Context, ca *caServer) (http.Handler, error) {
	mux := runtime.NewServeMux(
		runtime.WithMetadata(func(_ context.Context, r *http.Request) metadata.MD {
			token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			if !ok {
				return nil
			}
			return metadata.Pairs(server.MetadataOIDCTokenKey, token)
		}),
		// Headers are no way in or out for gRPC metadata.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithForwardResponseOption(setStatus),
		runtime.WithErrorHandler(func(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
			if status.Code(err) == codes.Unavailable {
				w.Header().Set("Retry-After", "1")
			}
			runtime.DefaultHTTPErrorHandler(ctx, mux, m, w, r, err)
		}),
		runtime.WithRoutingErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, code int) {
			http.Error(w, http.StatusText(code), code)
		}),
	)
	if err := fulciogrpc.RegisterCAHandlerServer(ctx, mux, ca); err != nil {
		return nil, fmt.Errorf("registering fulcio api v2: %w", err)
	}
	if err := legacy.RegisterCAHandlerServer(ctx, mux, server.NewLegacyGRPCCAServer(ca)); err != nil {
		return nil, fmt.Errorf("registering fulcio api v1: %w", err)
	}
	return guard(mux, ca.logger), nil
}

// setStatus applies the status code that upstream's first API asks for.
func setStatus(ctx context.Context, w http.ResponseWriter, _ proto.Message) error {
	md, ok := runtime.ServerMetadataFromContext(ctx)
	if !ok {
		return nil
	}
	if v := md.HeaderMD.Get(server.HTTPResponseCodeMetadataKey); len(v) > 0 {
		code, err := strconv.Atoi(v[0])
		if err != nil {
			return err
		}
		w.WriteHeader(code)
	}
	return nil
}

// guard reads the body, within bounds, before the gateway decodes what there is
// of it, and contains panics.
func guard(next http.Handler, logger *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				logger.ErrorContext(r.Context(), "fulcio handler panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
			}
		}()
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			http.Error(w, fmt.Sprintf("request is larger than %d bytes", maxBody), http.StatusRequestEntityTooLarge)
			return
		case err != nil:
			http.Error(w, "request ended early", http.StatusBadRequest)
			return
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		next.ServeHTTP(w, r)
	})
}
