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
	"time"

	openapi "github.com/go-openapi/errors"
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
