package rekor

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	openapi "github.com/go-openapi/errors"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	createPath = "/api/v1/log/entries"
	indexPath  = "/api/v1/index/retrieve"
)

// contain turns a panic into an answer: upstream parses what strangers send.
func (s *Service) contain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun := time.Now()
		rec := &recorder{ResponseWriter: w, code: http.StatusOK}
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // it is compared by net/http in the same way
					panic(p)
				}
				s.logger.Error("a request panicked", "panic", p, "path", r.URL.Path, "stack", string(debug.Stack()))
				if rec.begun {
					panic(http.ErrAbortHandler) // half an answer must not look whole
				}
				writeError(rec, http.StatusInternalServerError, "internal error")
			}
			s.metrics.observe(r, rec.code, time.Since(begun))
		}()
		next.ServeHTTP(rec, r)
	})
}

// bound limits the time and the memory that a request takes.
func (s *Service) bound(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), s.timeout)
		defer cancel()
		if deadline, ok := ctx.Deadline(); ok {
			// Without a connection, there is none to wait for.
			_ = http.NewResponseController(w).SetReadDeadline(deadline)
		}
		r = r.WithContext(ctx)
		if r.Method == http.MethodGet {
			// Trees grow, and a proof is against the newest.
			w.Header().Set("Cache-Control", "no-store")
		}

		limit := s.cfg.MaxBodyBytes
		if r.URL.Path == indexPath {
			limit = min(limit, maxQueryBytes)
		}
		if r.ContentLength > limit {
			w.Header().Set("Connection", "close") // rather than read it all
			writeTooLarge(w, limit)
			return
		}
		body := &body{ReadCloser: http.MaxBytesReader(w, r.Body, limit), ctx: ctx, large: s.large}
		defer body.release()
		r.Body = body
		next.ServeHTTP(w, r)
	})
}

// body lets few large bodies in at a time, because each is held several times
// over while it is decoded. How large one is shows only as it is read: most
// clients do not say.
type body struct {
	io.ReadCloser
	ctx   context.Context
	large chan struct{} // a place for each that may be in
	read  int64
	in    bool
}

var errBusy = errors.New("too many large requests at a time")

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	if b.read > largeBodyBytes && !b.in {
		select {
		case b.large <- struct{}{}:
			b.in = true
		case <-b.ctx.Done():
			return 0, errBusy
		}
	}
	return n, err
}

func (b *body) release() {
	if b.in {
		<-b.large
	}
}

// serveError answers a request that did not get as far as a handler.
func (s *Service) serveError(w http.ResponseWriter, r *http.Request, err error) {
	var coded openapi.Error
	var tooLarge *http.MaxBytesError
	switch read := decoding(err); {
	case errors.As(read, &tooLarge):
		writeTooLarge(w, tooLarge.Limit)
	case errors.Is(read, errBusy):
		w.Header().Set("Retry-After", "1")
		writeError(w, http.StatusServiceUnavailable, errBusy.Error())
	case errors.Is(read, os.ErrDeadlineExceeded):
		writeError(w, http.StatusRequestTimeout, "request body took too long")
	case plain(err) != nil:
		// Upstream answers 500 where a body is not JSON.
		writeError(w, http.StatusBadRequest, "request body could not be read: "+plain(err).Error())
	case errors.As(err, &coded):
		openapi.ServeError(w, r, err)
	default:
		writeError(w, http.StatusBadRequest, err.Error())
	}
}

// decoding is what failed under a body that could not be decoded.
func decoding(err error) error {
	var parse *openapi.ParseError
	if errors.As(err, &parse) {
		return parse.Reason // which it does not unwrap to
	}
	return err
}

// plain tells a failure to decode, which is no error of the API's own, from a
// failure to validate: the first comes wrapped as if it were the second.
func plain(err error) error {
	var all *openapi.CompositeError
	if !errors.As(err, &all) || len(all.Errors) == 0 {
		return nil
	}
	for _, e := range all.Errors {
		var coded openapi.Error
		if errors.As(e, &coded) {
			return nil
		}
	}
	return errors.Join(all.Errors...)
}

func writeTooLarge(w http.ResponseWriter, limit int64) {
	writeError(w, http.StatusRequestEntityTooLarge, "request body is larger than "+strconv.FormatInt(limit, 10)+" bytes")
}

func writeError(w http.ResponseWriter, code int, message string) {
	body, err := json.Marshal(apiError(code, message))
	if err != nil {
		body = []byte(`{}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body) // the client has gone; there is nobody to tell
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	code  int
	begun bool
}

func (r *recorder) WriteHeader(code int) {
	if !r.begun {
		r.code, r.begun = code, true
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.begun = true
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find what the server offers.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// metrics are per route: paths hold what clients choose, routes do not.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sigbox_rekor_requests_total",
			Help: "Requests to the log, by route and status code.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sigbox_rekor_request_seconds",
			Help:    "Time that requests to the log took, by route.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"route"}),
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.requests), reg.Register(m.seconds))
}

func (m metrics) unregister(reg prometheus.Registerer) {
	if reg != nil && m.requests != nil {
		reg.Unregister(m.requests)
		reg.Unregister(m.seconds)
	}
}

func (m metrics) observe(r *http.Request, code int, took time.Duration) {
	name := route(r)
	m.requests.WithLabelValues(name, strconv.Itoa(code)).Inc()
	m.seconds.WithLabelValues(name).Observe(took.Seconds())
}

func route(r *http.Request) string {
	switch method, path := r.Method, r.URL.Path; {
	case method == http.MethodPost && path == createPath:
		return "create"
	case method == http.MethodPost && path == createPath+"/retrieve":
		return "retrieve"
	case method == http.MethodPost && path == indexPath:
		return "search"
	case method == http.MethodGet && path == createPath:
		return "entry_by_index"
	case method == http.MethodGet && strings.HasPrefix(path, createPath+"/"):
		return "entry"
	case method == http.MethodGet && path == "/api/v1/log":
		return "log"
	case method == http.MethodGet && path == "/api/v1/log/publicKey":
		return "public_key"
	case method == http.MethodGet && path == "/api/v1/log/proof":
		return "proof"
	default:
		return "other"
	}
}
