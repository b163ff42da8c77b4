// Package front serves the one origin: it bounds what a client can ask of the
// process, contains panics, counts, and drains when told to stop.
package front

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Times and sizes that no honest client comes near.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 60 * time.Second
	writeTimeout      = 60 * time.Second
	idleTimeout       = 120 * time.Second
	maxHeaderBytes    = 64 << 10
	// queueTimeout is how long a write waits for its turn; clients give up
	// after 30 s or so.
	queueTimeout = 10 * time.Second
)

// Config is what New needs.
type Config struct {
	// Routes maps a path prefix, or a whole path, to its handler. The longest
	// match wins; a prefix ends in "/".
	Routes map[string]http.Handler
	// TLS is nil for plain HTTP.
	TLS *tls.Config
	// MaxBodyBytes bounds every request body.
	MaxBodyBytes int64
	// MaxInFlight writes are worked on at once, MaxQueued more wait.
	MaxInFlight, MaxQueued int
	// DrainTimeout is how long requests under way may take once Run's context
	// has ended.
	DrainTimeout time.Duration
	Logger       *slog.Logger
	Metrics      prometheus.Registerer
}

// Server is the origin.
type Server struct {
	cfg      Config
	mux      *http.ServeMux
	inFlight chan struct{}
	queued   chan struct{}
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	panics   prometheus.Counter
}

// New makes the server; nothing listens yet.
func New(cfg Config) (*Server, error) {
	s := &Server{
		cfg:      cfg,
		mux:      http.NewServeMux(),
		inFlight: make(chan struct{}, cfg.MaxInFlight),
		queued:   make(chan struct{}, cfg.MaxInFlight+cfg.MaxQueued),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sigbox_http_requests_total", Help: "Requests by route and status code.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sigbox_http_request_seconds", Help: "Time to answer a request, by route.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"route"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sigbox_http_panics_total", Help: "Handlers that panicked and were contained.",
		}),
	}
	for _, c := range []prometheus.Collector{s.requests, s.seconds, s.panics} {
		if err := cfg.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	for pattern, h := range cfg.Routes {
		s.mux.Handle(pattern, h)
	}
	return s, nil
}

// Run serves on l until ctx ends, then lets requests under way finish.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() {
		if s.cfg.TLS == nil {
			served <- srv.Serve(l)
			return
		}
		srv.TLSConfig = s.cfg.TLS
		served <- srv.ServeTLS(l, "", "")
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		s.cfg.Logger.Warn("requests were still under way when the time to drain ended", "timeout", s.cfg.DrainTimeout)
		return srv.Close()
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w}
	h, route := s.mux.Handler(r)
	if route == "" {
		route = "none"
	}
	defer func() {
		if p := recover(); p != nil {
			s.panics.Inc()
			s.cfg.Logger.Error("handler panicked", "path", bounded(r.URL.Path), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			if rec.status == 0 {
				Error(rec, http.StatusInternalServerError, "internal error")
			}
		}
		s.account(r, rec, route, time.Since(start))
	}()
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if s.cfg.TLS != nil {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
	}
	// On a copy: the server knows by its own request's body whether a handler
	// gave up on it half-way, and would take the rest for the next request
	// if that body were replaced.
	r = r.WithContext(r.Context())
	r.Body = http.MaxBytesReader(rec, r.Body, s.cfg.MaxBodyBytes)
	if r.ContentLength > s.cfg.MaxBodyBytes {
		Error(rec, http.StatusRequestEntityTooLarge, fmt.Sprintf("body is larger than %d bytes", s.cfg.MaxBodyBytes))
		return
	}
	if r.Method == http.MethodPost {
		leave, ok := s.enter(r.Context())
		if !ok {
			rec.Header().Set("Retry-After", "1")
			Error(rec, http.StatusServiceUnavailable, "too many requests at once; try again")
			return
		}
		defer leave()
	}
	h.ServeHTTP(rec, r)
}

// enter waits for a place among the writes being worked on.
func (s *Server) enter(ctx context.Context) (leave func(), ok bool) {
	select {
	case s.queued <- struct{}{}:
	default:
		return nil, false
	}
	t := time.NewTimer(queueTimeout)
	defer t.Stop()
	select {
	case s.inFlight <- struct{}{}:
		return func() { <-s.inFlight; <-s.queued }, true
	case <-t.C:
	case <-ctx.Done():
	}
	<-s.queued
	return nil, false
}

func (s *Server) account(r *http.Request, rec *recorder, route string, took time.Duration) {
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	s.requests.WithLabelValues(route, strconv.Itoa(rec.status)).Inc()
	s.seconds.WithLabelValues(route).Observe(took.Seconds())
	level := slog.LevelDebug
	switch {
	case rec.status >= 500:
		level = slog.LevelError
	case rec.status >= 400:
		level = slog.LevelInfo
	}
	if s.cfg.Logger.Enabled(r.Context(), level) {
		// The query stays out: it can carry codes of the login flow.
		s.cfg.Logger.LogAttrs(context.WithoutCancel(r.Context()), level, "request",
			slog.String("method", bounded(r.Method)), slog.String("path", bounded(r.URL.Path)), slog.Int("status", rec.status),
			slog.Int64("bytes", rec.bytes), slog.Duration("took", took), slog.String("remote", r.RemoteAddr))
	}
}

func bounded(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// Error answers in the form that Fulcio's and Rekor's clients read.
func Error(w http.ResponseWriter, status int, message string) {
	body, err := json.Marshal(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message})
	if err != nil {
		body = nil // two plain fields always encode
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(body, '\n')) // a client that has gone hears nothing
}

type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
